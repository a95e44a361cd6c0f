# shellcheck shell=dash
# Files, overwrites, reflinks, snapshots, deleted subvolumes and files; a transaction commit at the end of each round.
#   ROUNDS   (24) rounds, each at least one commit
#   OPTIONS  mount options (the kernel goes on with deleted subvolumes once in each commit interval)
# shellcheck disable=SC1091
. /workload/lib.sh
: "${ROUNDS:=24}" "${OPTIONS:=noatime,commit=2}"

new_files() { # DIR
    local n=0
    mkdir "$1"
    while [ $n -lt 12 ]; do
        rnd 64
        put "$1/file$n" $((R + 1))
        n=$((n + 1))
    done
    # Small enough to be stored in the leaf.
    put_bytes "$1/inline" 700
    put "$1/large" 1024
}

overwrite_files() { # DIR
    local n
    for n in 1 4 7; do
        rnd 48
        put "$1/file$n" 8 "$R"
    done
    put "$1/large" 64 512
}

share_extents() { # DIR
    cp --reflink=always "$1/large" "$1/clone"
    cp -a --reflink=always "$1" "$1.copy"
    put "$1/clone" 16 128
}

one_round() { # ROUND
    new_files "/mnt/work/r$1"
    [ "$1" -lt 2 ] || overwrite_files "/mnt/work/r$(($1 - 1))"
    [ $(($1 % 3)) -ne 0 ] || share_extents "/mnt/work/r$1"
    [ "$1" -lt 5 ] || rm -r "/mnt/work/r$(($1 - 4))"
    if [ $(($1 % 4)) -eq 0 ]; then
        snapshot -r /mnt/work "/mnt/snap$1"
        remember "/mnt/snap$1" "snap$1"
    fi
    if [ $(($1 % 4)) -eq 2 ] && [ "$1" -gt 8 ]; then
        unchanged "/mnt/snap$(($1 - 6))" "snap$(($1 - 6))"
        delete_subvolume "/mnt/snap$(($1 - 6))"
        wait_for_deletions
    fi
    quietly btrfs filesystem sync /mnt
}

make_pool
before=$(generation)
mount_fs "$OPTIONS"
[ -d /mnt/work ] || subvolume /mnt/work
round=1
while [ $round -le "$ROUNDS" ]; do
    one_round $round
    [ $((round % 6)) -ne 0 ] || step "$round rounds"
    round=$((round + 1))
done
remember /mnt/work work
unmount_fs

mount_fs "$OPTIONS"
unchanged /mnt/work work
verify_disk
unmount_fs
after=$(generation)
step "generation $before -> $after"
[ $((after - before)) -ge "$ROUNDS" ] || fail "only $((after - before)) commits in $ROUNDS rounds"
