# shellcheck shell=dash
# The file system made smaller and larger while it is in use: chunks beyond the new end are moved away.
#   ROUNDS (3)
# shellcheck disable=SC1091
. /workload/lib.sh
: "${ROUNDS:=3}"

resize() {
    step "resize $1"
    quietly btrfs filesystem resize "$1" /mnt
}

fill() { # DIR
    local n=0
    mkdir -p "$1"
    while [ $n -lt 30 ]; do
        put "$1/large$n" 4000
        n=$((n + 1))
    done
    churn "$1/c"
}

make_pool
mount_fs noatime,commit=2
size=$(blockdev --getsize64 "$DISK")
round=1
while [ $round -le "$ROUNDS" ]; do
    fill "/mnt/d$round"
    remember "/mnt/d$round" "$round"
    commit_now
    resize $((size * 6 / 10))
    churn /mnt/work
    resize +$((size / 10))
    unchanged "/mnt/d$round" "$round"
    [ $round -eq 1 ] || rm -r "/mnt/d$((round - 1))"
    trim
    resize $((size * 5 / 10))
    churn /mnt/work
    resize max
    round=$((round + 1))
done
remember_all
check_again
