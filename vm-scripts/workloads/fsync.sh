# shellcheck shell=dash
# A storm of fsync: the tree log is written again and again, transaction commits are rare.
#   DURATION (20) seconds, or longer: until each writer has done some rounds
#   WRITERS  (3)
# shellcheck disable=SC1091
. /workload/lib.sh
: "${DURATION:=20}" "${WRITERS:=3}"

AT_LEAST=3 # rounds of a writer, however slow the machine is

# Appends and overwrites, fsync after each, in one process.
many_fsyncs() { # FILE
    local n=0 file=$1
    set --
    while [ $n -lt 10 ]; do
        rnd 200
        set -- "$@" -c "pwrite -q ${R}k 4k" -c fsync -c "pwrite -q $((n * 1000)) 100" -c fdatasync
        n=$((n + 1))
    done
    quietly xfs_io -f "$@" "$file"
}

writer() { # NUMBER
    local dir=/mnt/writer$1 round=0
    RANDOM=$((SEED * 100 + $1))
    mkdir "$dir"
    while now && { [ "$NOW" -lt "$end" ] || [ $round -lt $AT_LEAST ]; }; do
        many_fsyncs "$dir/log"
        put "$dir/new" 20
        quietly xfs_io -c fsync "$dir/new"
        mv "$dir/new" "$dir/current"
        quietly xfs_io -c fsync "$dir"
        ln "$dir/current" "$dir/link$round"
        quietly xfs_io -c fsync "$dir/link$round"
        [ $round -lt 3 ] || rm "$dir/link$((round - 3))"
        quietly xfs_io -c "falloc 0 64k" -c fsync -c "fpunch 8k 8k" -c fsync "$dir/current"
        round=$((round + 1))
    done
    step "writer $1: $round rounds"
}

make_pool
# A long commit interval: the log is what this is about.
mount_fs noatime,commit=60
now
end=$((NOW + DURATION))
pids=
n=1
while [ $n -le "$WRITERS" ]; do
    writer $n &
    pids="$pids $!"
    n=$((n + 1))
done
while now && [ "$NOW" -lt "$end" ]; do
    sleep 5
    sync
done
for pid in $pids; do
    wait "$pid" || fail "a writer failed"
done
remember_all
check_again
