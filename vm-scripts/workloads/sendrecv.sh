# shellcheck shell=dash
# Send and receive, full and incremental; what was received must be what was sent.
#   ROUNDS (6) increments
# shellcheck disable=SC1091
. /workload/lib.sh
: "${ROUNDS:=6}"

send_snapshot() { # NUMBER
    local parent=
    [ "$1" -eq 0 ] || parent="-p /mnt/snap$(($1 - 1))"
    # Through a file: busybox's shell has no way to see the first command of a pipe fail.
    # shellcheck disable=SC2086 # two words or none
    quietly btrfs send -q $parent -f /tmp/stream "/mnt/snap$1"
    quietly btrfs receive -f /tmp/stream /mnt/received
    rm /tmp/stream
    remember "/mnt/snap$1" "snap$1"
    unchanged "/mnt/received/snap$1" "snap$1"
}

make_pool
mount_fs noatime,commit=2
subvolume /mnt/sub
mkdir /mnt/received
n=0
while [ $n -lt "$ROUNDS" ]; do
    churn /mnt/sub/a
    churn "/mnt/sub/b$n"
    [ $n -lt 2 ] || mv "/mnt/sub/b$((n - 1))" "/mnt/sub/moved$n"
    [ $n -lt 3 ] || rm -r "/mnt/sub/moved$((n - 1))"
    setfattr -n user.round -v $n /mnt/sub/a
    snapshot -r /mnt/sub "/mnt/snap$n"
    send_snapshot $n
    if [ $n -ge 3 ]; then
        delete_subvolume "/mnt/snap$((n - 2))" "/mnt/received/snap$((n - 2))"
    fi
    n=$((n + 1))
done
step "$n snapshots sent and received"
wait_for_deletions
remember_all
check_again
