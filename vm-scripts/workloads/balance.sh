# shellcheck shell=dash
# Balance of every kind while the file system is written to: data, metadata, system, filters, other profiles, cancelled,
# paused over an unmount and resumed.
#   ROUNDS (1)
# shellcheck disable=SC1091
. /workload/lib.sh
: "${ROUNDS:=1}"

balance() {
    step "balance $*"
    quietly btrfs balance start "$@" /mnt
}

writer() {
    while [ ! -f /tmp/stop ]; do
        churn /mnt/written
        sleep 0.2
    done
}

fill() {
    local n=0
    subvolume /mnt/sub
    many_small_files /mnt/sub/small 300
    while [ $n -lt 20 ]; do
        churn "/mnt/sub/d$n"
        put "/mnt/sub/d$n/large" 3000
        [ $((n % 5)) -ne 4 ] || { snapshot -r /mnt/sub "/mnt/snap$n" && commit_now; }
        n=$((n + 1))
    done
}

interrupted() {
    step "cancelled"
    btrfs balance start -d -m /mnt >/dev/null 2>&1 &
    usleep 400000
    # It may be done already.
    btrfs balance cancel /mnt >/dev/null 2>&1 || true
    wait $! || true
    step "paused, unmounted, resumed"
    btrfs balance start -d -m /mnt >/dev/null 2>&1 &
    usleep 300000
    btrfs balance pause /mnt >/dev/null 2>&1 || true
    wait $! || true
    remember_all
    unmount_fs
    mount_fs noatime,skip_balance
    unchanged /mnt all
    btrfs balance resume /mnt >/dev/null 2>&1 || true
}

one_round() {
    rm -f /tmp/stop
    writer &
    balance -dusage=30
    balance -m
    balance -f -s
    balance -d
    balance -mlimit=1 -dlimit=1
    balance -dvrange=0..200000000
    balance -f -mconvert=single
    balance -dconvert=dup,soft
    balance -mconvert=dup -dconvert=single
    touch /tmp/stop
    wait $!
}

make_pool
mount_fs
fill
round=0
while [ $round -lt "$ROUNDS" ]; do
    one_round
    interrupted
    balance --full-balance
    round=$((round + 1))
done
remember_all
check_again
