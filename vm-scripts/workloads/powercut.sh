# shellcheck shell=dash disable=SC2153
# The machine stops in the middle of writing; at the next boot the log is replayed, and all that fsync had promised must be
# there. Two ways to use it:
#   vm-scripts/guest --boots N           the guest resets itself N-1 times (sysrq b), and checks at each boot
#   vm-scripts/guest --kill-on RUNNING   (with --env MODE=run) QEMU is killed; a second call with MODE=check looks after it
#
#   MODE     (reset) or run, check
#   SECONDS_BEFORE (6) the reset
#   OPTIONS  mount options
# shellcheck disable=SC1091
. /workload/lib.sh
: "${MODE:=reset}" "${SECONDS_BEFORE:=6}" "${BOOTS:=1}" "${OPTIONS:=noatime,commit=3}"

# Content that follows from the number, so that a check needs nothing but the number.
content() { # NUMBER
    awk -v n="$1" 'BEGIN { for (i = 0; i < 50 + n % 400; i++) print n, i, n * i }'
}

# The journal's last line is the highest number that fsync has promised: it is written after the file.
promise() { # NUMBER
    content "$1" >"/mnt/promised/$1"
    quietly xfs_io -c fsync "/mnt/promised/$1"
    echo "$1" >>/mnt/journal
    quietly xfs_io -c fsync /mnt/journal
}

check_promises() {
    local last n
    [ -s /mnt/journal ] || return 0
    last=$(tail -n 1 /mnt/journal)
    n=$((last > 150 ? last - 150 : 1))
    step "boot $BOOT: checking promises $n to $last"
    while [ $n -le "$last" ]; do
        content $n | cmp -s - /mnt/promised/$n || fail "file $n was synced, and is lost or wrong"
        n=$((n + 1))
    done
}

writer() {
    local n
    n=$(($(tail -n 1 /mnt/journal 2>/dev/null || echo 0) + 1))
    while :; do
        promise $n
        : >/tmp/promised
        n=$((n + 1))
    done
}

# Transactions that are cut off: nothing of this has been promised.
disturber() {
    local n=0
    while :; do
        churn "/mnt/churn$((n % 3))"
        if [ $((n % 4)) -eq 3 ]; then
            snapshot /mnt/churning "/mnt/s$BOOT.$n"
            [ $n -lt 8 ] || delete_subvolume "/mnt/s$BOOT.$((n - 4))"
            sync
        fi
        churn /mnt/churning/a
        n=$((n + 1))
    done
}

last_boot() { [ "$MODE" = check ] || { [ "$MODE" = reset ] && [ "$BOOT" -ge "$BOOTS" ]; }; }

make_pool
RANDOM=$((SEED + BOOT))
mount_fs "$OPTIONS"
if [ ! -d /mnt/promised ]; then
    mkdir /mnt/promised
    subvolume /mnt/churning
    commit_now
fi
check_promises
if last_boot; then
    [ -s /mnt/journal ] || fail "nothing was ever written: the power was cut too early"
    verify_disk
    unmount_fs
    exit 0
fi
rm -f /tmp/promised
writer &
disturber &
# However slow the machine is, there is something to be looked for afterwards.
until [ -e /tmp/promised ]; do
    usleep 100000
done
if [ "$MODE" = run ]; then
    sleep 1
    echo RUNNING
    sleep 1000
fi
rnd 3000
sleep "$SECONDS_BEFORE"
usleep $((R * 1000))
step "reset"
echo b >/proc/sysrq-trigger
sleep 60
