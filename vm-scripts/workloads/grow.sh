# shellcheck shell=dash
# The disk is made larger from outside while the file system is in use, then smaller: the caller does that when it sees what
# the file system was made to fit.
#   SMALL, LARGE, MIDDLE   MiB that the disk has at first, then, and at last
# shellcheck disable=SC1091
. /workload/lib.sh

# Waits until the kernel has heard that the disk has so many MiB.
wait_for_size() {
    local tries=0
    while [ "$(cat "/sys/block/${DISK##*/}/size")" -ne $(($1 * 2048)) ]; do
        tries=$((tries + 1))
        [ $tries -lt 1200 ] || fail "the disk does not become $1 MiB: $(cat "/sys/block/${DISK##*/}/size") sectors"
        usleep 100000
    done
    step "the disk has $1 MiB"
}

fill() { # DIR MIB
    local n=0
    mkdir "$1"
    while [ $n -lt $(($2 / 4)) ]; do
        put "$1/large$n" $POOL_KIB
        n=$((n + 1))
    done
}

make_pool
wait_for_size "$SMALL"
mount_fs noatime,commit=2
fill /mnt/before $((SMALL / 3))
remember /mnt/before before
# The caller counts commits, and waits for the third.
for n in 1 2 3; do
    put "/mnt/before$n" 64
    commit_now
done
step "ready to be made larger"
wait_for_size "$LARGE"
quietly btrfs filesystem resize max /mnt
churn /mnt/work
# More than the disk had room for.
fill /mnt/beyond $((SMALL * 5 / 4))
unchanged /mnt/before before
remember /mnt/beyond beyond
commit_now
rm -r /mnt/before
commit_now
quietly btrfs filesystem resize "$MIDDLE"M /mnt
step "ready to be made smaller"
wait_for_size "$MIDDLE"
churn /mnt/work
unchanged /mnt/beyond beyond
remember_all
check_again
