# shellcheck shell=dash
# Random work by several processes at once: creating, overwriting, truncating, punching, cloning, renaming, fsync,
# attributes, snapshots of snapshots; meanwhile balance, defragmentation, quotas, trim, freeze, changes of compression.
#   DURATION (60) seconds, or longer: until each process has done some operations
#   WORKERS  (2)
#   SEED     (1) of the random numbers
#   OPTIONS  mount options
#   CACHE    "write through" or "write back": what the disk's cache is set to
# shellcheck disable=SC1091
. /workload/lib.sh
: "${DURATION:=60}" "${WORKERS:=2}" "${OPTIONS:=noatime,commit=5,compress=zstd:1}"

FILES=40      # names in use by a worker
SNAPSHOTS=5   # kept by a worker
LARGEST=1024  # KiB
AT_LEAST=20   # operations of a worker, however slow the machine is

# Some file of this worker, in $F; made if it isn't there.
some_file() {
    rnd $FILES
    F=$HOME_DIR/d$((R % 4))/f$R
    [ -f "$F" ] || new_file
}

new_file() {
    rnd 4
    case $R in
    0) rnd 2000 && put_bytes "$F" $((R + 1)) ;;
    3) rnd $LARGEST && put "$F" $((R + 1)) ;;
    *) rnd 64 && put "$F" $((R + 1)) ;;
    esac
}

one_operation() {
    some_file
    rnd 22
    case $R in
    0 | 1) rm -f "$F" && new_file ;;
    2 | 3 | 4) rnd $LARGEST && put "$F" 12 "$R" ;;
    5) quietly xfs_io -c "pwrite -q -b 4k 4k 24k" -c fsync "$F" ;;
    6) quietly xfs_io -f -c "pwrite -q 0 3k" -c fsync -c "pwrite -q 64k 64k" -c fdatasync "$F" ;;
    7) rnd $LARGEST && truncate -s $((R * 1000)) "$F" ;;
    8) rnd 256 && quietly xfs_io -c "fpunch $((R * 4))k 32k" "$F" ;;
    9) rnd 256 && quietly xfs_io -c "falloc -k $((R * 4))k 128k" -c "pwrite -q $((R * 4))k 8k" "$F" ;;
    10) rnd 256 && quietly xfs_io -c "fzero $((R * 4))k 64k" -c "fiemap" "$F" ;;
    11) rename_file ;;
    12) rm -f "$F" ;;
    13) clone_file ;;
    14) rnd 128 && quietly xfs_io -c "reflink $F 0 $((R * 64))k 64k" "$F" ;;
    15) set_attributes ;;
    16) rm -f "$F.link" && ln "$F" "$F.link" && { rm -f "$F.sym" && ln -s "$F" "$F.sym"; } ;;
    17) quietly xfs_io -d -c "pwrite -q 0 64k" "$F" ;;
    18) take_snapshot ;;
    19) drop_snapshot ;;
    20) small_files ;;
    21) share_by_dedupe ;;
    esac
}

rename_file() {
    local from=$F
    some_file
    [ "$from" = "$F" ] || mv -f "$from" "$F"
}

clone_file() {
    local from=$F
    some_file
    [ "$from" = "$F" ] || quietly cp --reflink=always --remove-destination "$from" "$F"
}

set_attributes() {
    local name
    rnd 8
    name=user.a$R
    rnd 3000
    if [ "$R" -lt 600 ]; then
        setfattr -x "$name" "$F" 2>/dev/null || true
    else
        quietly setfattr -n "$name" -v "$(printf "%0${R}d" 7)" "$F"
    fi
}

take_snapshot() {
    local number=$snapshots_taken from=$HOME_DIR mode=
    [ $((snapshots_taken - snapshots_dropped)) -lt $SNAPSHOTS ] || drop_snapshot
    rnd 3
    # A snapshot of a snapshot, now and then.
    [ "$R" -gt 0 ] || [ "$snapshots_taken" -eq "$snapshots_dropped" ] || from=$HOME_DIR.s$((snapshots_taken - 1))
    rnd 2
    [ "$R" -eq 0 ] || mode=-r
    # shellcheck disable=SC2086 # may be nothing
    snapshot $mode "$from" "$HOME_DIR.s$number"
    [ -n "$mode" ] || put "$HOME_DIR.s$number/d0/own" 40
    snapshots_taken=$((snapshots_taken + 1))
}

drop_snapshot() {
    [ $snapshots_dropped -lt $snapshots_taken ] || return 0
    delete_subvolume "$HOME_DIR.s$snapshots_dropped"
    snapshots_dropped=$((snapshots_dropped + 1))
}

small_files() {
    local n=0 dir=$HOME_DIR/small
    rm -rf "$dir"
    mkdir "$dir"
    while [ $n -lt 60 ]; do
        echo "$n $F" >"$dir/a file with a longer name, so that a leaf holds fewer of them, number $n"
        n=$((n + 1))
    done
}

share_by_dedupe() {
    local twin=$HOME_DIR/twin
    put "$F" 128
    quietly xfs_io -f -c "truncate 128k" "$twin"
    dd if="$F" of="$twin" bs=64k count=2 conv=notrunc 2>/dev/null
    quietly xfs_io -c "dedupe $F 0 0 128k" "$twin"
}

# What others count on, too: before any of them starts.
make_home() { # NUMBER
    [ ! -d "/mnt/w$1" ] || fail "/mnt/w$1 exists: this workload wants a file system of its own"
    subvolume "/mnt/w$1"
    mkdir "/mnt/w$1/d0" "/mnt/w$1/d1" "/mnt/w$1/d2" "/mnt/w$1/d3"
}

worker() { # NUMBER
    HOME_DIR=/mnt/w$1
    RANDOM=$((SEED * 100 + $1))
    snapshots_taken=0 snapshots_dropped=0 operations=0
    while now && { [ "$NOW" -lt "$end" ] || [ "$operations" -lt $AT_LEAST ]; }; do
        one_operation
        operations=$((operations + 1))
    done
    echo "$operations" >"/tmp/worker$1.done"
    step "worker $1: $operations operations, $snapshots_taken snapshots taken, $snapshots_dropped deleted"
}

# What acts on the whole file system while the workers go on.
one_intervention() {
    rnd 12
    case $R in
    0 | 1) sync ;;
    2) quietly btrfs balance start -dusage=60,limit=2 /mnt ;;
    3) quietly btrfs balance start -f -mlimit=1 -slimit=1 /mnt ;;
    4) quietly btrfs filesystem defragment -r -t 256K /mnt/w1 ;;
    5) quietly btrfs filesystem defragment -r -clzo /mnt/w1/d0 ;;
    6) quietly btrfs quota enable /mnt && quotas=on ;;
    7) quietly btrfs quota disable /mnt && quotas= ;;
    8) trim ;;
    9) fsfreeze --freeze /mnt && fsfreeze --unfreeze /mnt ;;
    10) rnd 3 && remount_with_compression "$R" ;;
    11) wait_for_deletions ;;
    esac
}

remount_with_compression() {
    case $1 in
    0) mount -o remount,compress=no /mnt ;;
    1) mount -o remount,compress-force=zlib:1 /mnt ;;
    2) mount -o remount,compress=zstd:1 /mnt ;;
    esac
}

run_workers() {
    local n pids='' pid interventions=0
    for n in $(seq "$WORKERS"); do
        make_home "$n"
    done
    n=1
    now
    end=$((NOW + DURATION))
    while [ $n -le "$WORKERS" ]; do
        worker $n &
        pids="$pids $!"
        n=$((n + 1))
    done
    while now && [ "$NOW" -lt "$end" ]; do
        sleep 1
        one_intervention
        interventions=$((interventions + 1))
    done
    for pid in $pids; do
        wait "$pid" || fail "a worker failed"
    done
    step "$interventions interventions"
}

# The kernel does not promise right counts before a rescan without deletions going on; btrfs check looks at them.
settle_quotas() {
    wait_for_deletions
    [ -n "$quotas" ] || return 0
    quietly btrfs quota rescan -W /mnt
    quietly btrfs quota rescan -w /mnt
}

make_pool
quotas=
[ -z "${CACHE:-}" ] || echo "$CACHE" >"/sys/block/${DISK##*/}/cache_type"
before=$(generation)
mount_fs "$OPTIONS"
run_workers
settle_quotas
# Files that defragmentation or compression changed must read the same from the disk as from memory.
remember /mnt/w1 w1
unmount_fs
mount_fs "$OPTIONS"
unchanged /mnt/w1 w1
verify_disk
unmount_fs
step "generation $before -> $(generation)"
