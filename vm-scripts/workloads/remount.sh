# shellcheck shell=dash
# Mounts and unmounts, with other options each time, and remounts while mounted.
#   ROUNDS (2) times through the list of options
# shellcheck disable=SC1091
. /workload/lib.sh
: "${ROUNDS:=2}"
# Files with and without checksums cannot share extents.
# shellcheck disable=SC2034
REFLINK=auto

remount() { mount -o "remount,$1" /mnt || fail "remount,$1"; }

one_mount() { # OPTIONS NAME
    mount_fs "$1"
    [ ! -f /tmp/remembered.all ] || unchanged /mnt all
    churn "/mnt/$2"
    # A file that is deleted while it is open is an orphan until the unmount.
    put /mnt/orphan 300
    exec 5</mnt/orphan
    rm /mnt/orphan
    commit_now
    churn "/mnt/$2"
    exec 5<&-
    remount ro
    remount rw,compress=lzo
    churn "/mnt/$2"
    remember_all
    unmount_fs
}

make_pool
before=$(generation)
round=1
while [ $round -le "$ROUNDS" ]; do
    n=0
    for options in noatime noatime,compress=zstd nodatacow nodatasum,notreelog discard=async ssd,thread_pool=1 \
        autodefrag,max_inline=0 flushoncommit,commit=1 clear_cache,space_cache=v2; do
        one_mount $options "d$n"
        n=$((n + 1))
    done
    mount_fs ro
    unchanged /mnt all
    unmount_fs
    round=$((round + 1))
done
mount_fs
check_again
[ "$(generation)" -gt $((before + 18 * ROUNDS)) ] || fail "too few commits: $before -> $(generation)"
