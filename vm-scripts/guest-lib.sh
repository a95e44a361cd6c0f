# shellcheck shell=dash disable=SC3028
# What the workloads share. Runs in the guest under busybox sh; a workload starts with: . /workload/lib.sh
#
# $DISK is the disk, /mnt where it is mounted, $BOOT the number of this boot. A workload ends with 0 only if all that it
# wrote reads back, the scrub finds nothing and the kernel did not complain about btrfs.
set -eu

: "${SEED:=1}" "${REFLINK:=always}"
RANDOM=$SEED

# busybox's shell prefers its own applets to programs of the same name; these lack --reflink and --punch-hole.
cp() { /usr/bin/cp "$@"; }
fallocate() { /usr/bin/fallocate "$@"; }

step() { echo "== $*"; }
fail() {
    echo "FAILED: $*"
    exit 1
}
quietly() {
    local said
    said=$("$@" 2>&1) || {
        echo "$said"
        fail "$*"
    }
}

# rnd N: a number below N, in $R (no subshell: forks are what is slow here).
rnd() { R=$(((RANDOM * 32768 + RANDOM) % $1)); }

# Seconds since boot, in $NOW.
now() {
    read -r NOW _ </proc/uptime
    NOW=${NOW%.*}
}

# Random bytes are slow to get under emulation: got once, then taken in pieces from random places.
POOL=/tmp/pool
POOL_KIB=4096
make_pool() { [ -f $POOL ] || head -c $((POOL_KIB * 1024)) /dev/urandom >$POOL; }

# put FILE KIB [SEEK_KIB]: random bytes into FILE at SEEK_KIB (0), the rest of it unchanged.
put() {
    rnd $((POOL_KIB - $2 + 1))
    dd if=$POOL of="$1" bs=1024 count="$2" skip="$R" seek="${3:-0}" conv=notrunc 2>/dev/null
}

# put_bytes FILE BYTES: a file of BYTES random bytes; small ones are stored inline.
put_bytes() {
    rnd $((POOL_KIB - 64))
    dd if=$POOL bs=1024 skip="$R" count=64 2>/dev/null | head -c "$2" >"$1"
}

# churn DIR: some work on the files f0 to f19 in DIR: made, overwritten, cloned, cut short, deleted.
churn() {
    local n=0
    [ -d "$1" ] || mkdir "$1"
    while [ $n -lt 8 ]; do
        rnd 20
        CHURNED=$1/f$R
        rnd 96
        put "$CHURNED" $((R + 1))
        n=$((n + 1))
    done
    rnd 90
    put "$CHURNED" 8 "$R"
    put_bytes "$1/inline$R" 500
    quietly cp --reflink="$REFLINK" --remove-destination "$CHURNED" "$1/clone$((R % 4))"
    put "$1/clone$((R % 4))" 4 8
    rnd 20
    rm -f "$1/f$R"
    rnd 100
    truncate -s $((R * 1024)) "$CHURNED"
}

# many_small_files DIR COUNT: enough of them fill leaves, and with them the levels of a tree.
many_small_files() {
    local n=0
    mkdir "$1"
    while [ $n -lt "$2" ]; do
        echo "$1 $n" >"$1/one of many small files, with a name that is long enough to count, number $n"
        n=$((n + 1))
    done
}

# Not every backend offers discard.
trim() {
    [ "$(cat "/sys/block/${DISK##*/}/queue/discard_max_bytes")" -eq 0 ] || quietly fstrim /mnt
}

commit_now() { quietly btrfs filesystem sync /mnt; }

# check_again [MOUNT_OPTIONS]: unmounts, and everything that remember_all saw reads the same from the disk.
remember_all() { remember /mnt all; }
check_again() {
    unmount_fs
    mount_fs "${1:-noatime}"
    unchanged /mnt all
    verify_disk
    unmount_fs
    step "generation $(generation)"
}

make_fs() { # MKFS_OPTION...
    quietly mkfs.btrfs -q -f "$@" "$DISK"
}

mount_fs() { # [OPTIONS]
    mount -t btrfs -o "${1:-noatime}" "$DISK" /mnt || fail "mount -o ${1:-noatime} $DISK"
}

unmount_fs() { umount /mnt || fail "umount /mnt"; }

generation() { btrfs inspect-internal dump-super "$DISK" | awk '$1 == "generation" {print $2}'; }

subvolume() { quietly btrfs subvolume create "$1"; }
snapshot() { quietly btrfs subvolume snapshot "$@"; }
delete_subvolume() { quietly btrfs subvolume delete "$@"; }

# Waits until all deleted subvolumes are really gone. This sync wakes the thread that drops them, which may sleep for the
# commit interval otherwise.
wait_for_deletions() {
    commit_now
    quietly btrfs subvolume sync /mnt
}

# remember DIR NAME: the checksums of all files under DIR.
remember() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 -r md5sum) >"/tmp/remembered.$2"; }

# unchanged DIR NAME
unchanged() {
    (cd "$1" && md5sum -c -s "/tmp/remembered.$2") || fail "the files under $1 differ from what was written ($2)"
    [ "$(find "$1" -type f | wc -l)" -eq "$(wc -l <"/tmp/remembered.$2")" ] ||
        fail "$1 has not the number of files that were written ($2)"
}

drop_caches() { echo 3 >/proc/sys/vm/drop_caches; }

# Everything through the whole disk once more, as a freshly mounted file system sees it.
verify_disk() {
    quietly btrfs scrub start -B /mnt
    ! btrfs device stats /mnt | grep -v ' 0$' || fail "device errors counted"
    no_complaints
}

# The kernel's log has no complaint about btrfs.
no_complaints() {
    ! dmesg | grep -E 'BTRFS (error|critical|emerg)|WARNING: .*btrfs|btrfs.*(corrupt|csum failed)|I/O error' ||
        fail "the kernel complained"
}
