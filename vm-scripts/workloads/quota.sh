# shellcheck shell=dash
# Quotas switched on and off and rescanned while files are written and snapshots come and go; limits that are hit.
#   ROUNDS (3)
# shellcheck disable=SC1091
. /workload/lib.sh
: "${ROUNDS:=3}"

id_of() { btrfs inspect-internal rootid "$1"; }

writer() {
    while [ ! -f /tmp/stop ]; do
        churn /mnt/written
        sleep 0.1
    done
}

one_round() { # ROUND
    quietly btrfs quota enable /mnt
    subvolume "/mnt/sub$1"
    churn "/mnt/sub$1/a"
    quietly btrfs qgroup create "1/$1" /mnt
    quietly btrfs qgroup assign "0/$(id_of "/mnt/sub$1")" "1/$1" /mnt
    churn "/mnt/sub$1/a"
    snapshot "/mnt/sub$1" "/mnt/snap$1"
    commit_now
    churn "/mnt/snap$1/a"
    quietly btrfs quota rescan -w /mnt
    quietly btrfs qgroup limit 3M "/mnt/snap$1"
    if put "/mnt/snap$1/too-large" 4000 && xfs_io -c fsync "/mnt/snap$1/too-large"; then
        fail "4000 KiB fit into a quota of 3 MiB"
    fi
    rm "/mnt/snap$1/too-large"
    quietly btrfs qgroup limit none "/mnt/snap$1"
    commit_now
    quietly btrfs qgroup show /mnt
    if [ "$1" -gt 1 ]; then
        delete_subvolume "/mnt/snap$(($1 - 1))"
        wait_for_deletions
        quietly btrfs quota disable /mnt
        churn "/mnt/sub$1/a"
        commit_now
    fi
}

make_pool
mount_fs noatime,commit=2
rm -f /tmp/stop
writer &
round=1
while [ $round -le "$ROUNDS" ]; do
    one_round $round
    step "round $round"
    round=$((round + 1))
done
touch /tmp/stop
wait $!
wait_for_deletions
quietly btrfs quota enable /mnt
quietly btrfs quota rescan -w /mnt
remember_all
check_again
