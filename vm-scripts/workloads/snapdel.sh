# shellcheck shell=dash
# Many snapshots of one subvolume, and snapshots of those, deleted in random order; commits and unmounts come while
# subvolumes are half dropped.
#   SNAPSHOTS (16)
#   SMALL     (600) files that keep the trees large
# shellcheck disable=SC1091
. /workload/lib.sh
: "${SNAPSHOTS:=16}" "${SMALL:=600}"

build() {
    local n=0 from
    subvolume /mnt/sub
    many_small_files /mnt/sub/small "$SMALL"
    cp -a --reflink=auto /mnt/sub/small /mnt/sub/small2
    while [ $n -lt "$SNAPSHOTS" ]; do
        churn /mnt/sub/a
        # Changes all over the tree: the snapshots share some of their leaves, not all.
        touch /mnt/sub/small/*"number $n"* /mnt/sub/small2/*"$n"
        from=/mnt/sub
        if [ $((n % 5)) -eq 4 ]; then
            rnd $n
            from=/mnt/snap$R
        fi
        snapshot "$from" "/mnt/snap$n"
        churn "/mnt/snap$n/own"
        [ $((n % 3)) -ne 0 ] || commit_now
        n=$((n + 1))
    done
}

commit_often() {
    while [ ! -f /tmp/stop ]; do
        sync
        usleep 50000
    done
}

delete_in_random_order() {
    local n deleted=0
    for n in $(seq 0 $((SNAPSHOTS - 1)) | shuf); do
        # A few stay.
        [ $((n % 8)) -ne 7 ] || continue
        delete_subvolume "/mnt/snap$n"
        deleted=$((deleted + 1))
        # The next mount finds what was half dropped, and goes on.
        if [ $((deleted % 5)) -eq 0 ]; then
            commit_now
            unmount_fs
            mount_fs noatime,commit=1
        fi
    done
    step "$deleted of $SNAPSHOTS snapshots deleted"
}

make_pool
mount_fs noatime,commit=1
build
step "built"
remember /mnt/sub sub
delete_in_random_order
rm -f /tmp/stop
commit_often &
wait_for_deletions
touch /tmp/stop
wait $!
unchanged /mnt/sub sub
delete_subvolume /mnt/sub
wait_for_deletions
remember_all
check_again
