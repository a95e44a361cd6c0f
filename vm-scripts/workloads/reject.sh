# shellcheck shell=dash
# Numbered files, an fsync and a transaction commit after each few, until one is refused. The guest must then be read-only. What was
# committed is listed on the console ("COMMITTED" and md5sum's line), for whoever looks at the disk afterwards.
#   ROUNDS   (40) commits at most
# shellcheck disable=SC1091
. /workload/lib.sh
: "${ROUNDS:=40}"

list_committed() { # DIR
    (cd /mnt && md5sum "$1"/*) | sed 's/^/COMMITTED /'
}

one_round() { # ROUND
    mkdir "/mnt/round$1" &&
        put "/mnt/round$1/large" 200 &&
        put "/mnt/round$1/middle" 40 &&
        put_bytes "/mnt/round$1/inline" 700 &&
        cp --reflink=always "/mnt/round$1/large" "/mnt/round$1/clone" &&
        touch /mnt/many/*"$1" &&
        dd if="$POOL" of=/mnt/synced bs=1024 count=8 seek="$1" conv=notrunc,fsync 2>/dev/null &&
        if [ $(($1 % 3)) -eq 0 ]; then btrfs subvolume snapshot /mnt/work "/mnt/work/snap$1" >/dev/null; fi &&
        put "/mnt/work/rewritten" 16 64 &&
        btrfs filesystem sync /mnt
}

make_pool
mount_fs noatime,commit=300
subvolume /mnt/work
put /mnt/work/rewritten 128
put /mnt/synced 100
many_small_files /mnt/many 120
commit_now
list_committed many
round=1
refused=
while [ "$round" -le "$ROUNDS" ]; do
    if ! one_round $round 2>/tmp/said || ! touch /mnt/touched 2>/tmp/said; then
        refused=yes
        break
    fi
    list_committed "round$round"
    round=$((round + 1))
done
[ -n "$refused" ] || fail "no commit was refused"
step "refused in round $round: $(cat /tmp/said)"
! touch /mnt/touched 2>/dev/null || fail "the file system can still be written to"
grep -q ' /mnt btrfs ro,' /proc/mounts || fail "the file system is not read-only"
# It goes on reading.
drop_caches
list_committed many >/tmp/again || fail "what was committed cannot be read any more"
echo READ-ONLY
umount /mnt
