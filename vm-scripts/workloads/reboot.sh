# shellcheck shell=dash disable=SC2153
# Orderly reboots of the guest, with vm-scripts/guest --boots N: after an unmount, and, every other time, after a sync only.
#   ROUNDS (4) of work at each boot
# shellcheck disable=SC1091
. /workload/lib.sh
: "${ROUNDS:=4}" "${BOOTS:=1}"

make_pool
RANDOM=$((SEED + BOOT))
mount_fs
# What earlier boots remembered lies on the disk itself: nothing else outlives the reboot.
for list in /mnt/remembered.*; do
    [ -f "$list" ] || continue
    cp "$list" /tmp/
    unchanged "/mnt/boot${list##*.}" "${list##*.}"
done
subvolume "/mnt/boot$BOOT"
round=0
while [ $round -lt "$ROUNDS" ]; do
    churn "/mnt/boot$BOOT/d$round"
    commit_now
    round=$((round + 1))
done
remember "/mnt/boot$BOOT" "$BOOT"
cp "/tmp/remembered.$BOOT" /mnt/
step "boot $BOOT of $BOOTS done"
if [ "$BOOT" -ge "$BOOTS" ]; then
    verify_disk
    unmount_fs
    exit 0
fi
if [ $((BOOT % 2)) -eq 1 ]; then
    unmount_fs
else
    sync
fi
reboot -f
sleep 60
