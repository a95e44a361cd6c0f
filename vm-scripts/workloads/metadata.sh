# shellcheck shell=dash
# Work that is nearly all metadata, always the same: small files made, renamed, linked, removed, snapshots taken and
# deleted, a commit after every few of them. Says how long it took: "METADATA-TIME: seconds".
#   ROUNDS (30)
# shellcheck disable=SC1091
. /workload/lib.sh
: "${ROUNDS:=30}"

one_round() { # NUMBER
    local n=0 dir=/mnt/sub/d$1
    mkdir "$dir"
    while [ $n -lt 150 ]; do
        echo "$1 $n" >"$dir/f$n"
        n=$((n + 1))
    done
    for n in 0 1 2 3 4 5 6 7 8 9; do
        mv "$dir/f1$n" "$dir/a name that is a good deal longer than the one before $n"
        ln "$dir/f2$n" "$dir/link$n"
        rm "$dir/f3$n"
    done
    commit_now
    if [ $(($1 % 4)) -eq 0 ]; then
        snapshot /mnt/sub "/mnt/s$1"
        [ "$1" -lt 8 ] || delete_subvolume "/mnt/s$(($1 - 8))"
        commit_now
    fi
    [ "$1" -lt 3 ] || rm -r "/mnt/sub/d$(($1 - 3))"
    commit_now
}

mount_fs noatime
subvolume /mnt/sub
commit_now
read -r before _ </proc/uptime
round=0
while [ $round -lt "$ROUNDS" ]; do
    one_round $round
    round=$((round + 1))
done
sync
read -r after _ </proc/uptime
unmount_fs
echo "METADATA-TIME: $(awk -v a="$before" -v b="$after" 'BEGIN { print b - a }')"
