# shellcheck shell=dash
# A disk with logical blocks of 4096 bytes that serves a limited number of requests a second.
#   IOPS    requests a second
# shellcheck disable=SC1091
. /workload/lib.sh

queue=/sys/block/${DISK##*/}/queue
[ "$(cat "$queue/logical_block_size")" -eq 4096 ] || fail "blocks of $(cat "$queue/logical_block_size") bytes"
quietly xfs_io -d -r -c 'pread 0 4096' "$DISK"
! xfs_io -d -r -c 'pread 0 512' "$DISK" >/dev/null 2>&1 || fail "read less than a block"

# The same file system again, as mkfs.btrfs makes it on such a disk.
make_fs -s 4096
make_pool
mount_fs noatime,commit=2
churn /mnt/a
snapshot -r /mnt /mnt/snapshot
many_small_files /mnt/many 300
churn /mnt/b
trim
commit_now

# One request at a time, past all caches: as many as may be made in three seconds take at least two.
now
before=$NOW
quietly xfs_io -d -r -c "pread -b 4096 0 $((IOPS * 3 * 4096))" "$DISK"
now
[ $((NOW - before)) -ge 2 ] || fail "$((IOPS * 3)) requests took $((NOW - before)) s at $IOPS a second"
remember_all
check_again
