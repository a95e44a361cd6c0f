# shellcheck shell=dash
# The histories of tests/history, inside the guest: the program comes on the second disk, see vm-scripts/soak.
#   PROGRAM_BYTES  its size
#   KINDS          kinds of histories, between commas
#   COMMITS (100)  of each
#   SECONDS_EACH (60) at most
# shellcheck disable=SC1091
. /workload/lib.sh
: "${COMMITS:=100}" "${SECONDS_EACH:=60}"

head -c "$PROGRAM_BYTES" /dev/vdb >/tmp/history
chmod +x /tmp/history
/tmp/history guest --device "$DISK" --kind "$KINDS" --seed "$SEED" --commits "$COMMITS" --seconds "$SECONDS_EACH" || {
    tail -n 30 /tmp/operations.log
    dmesg | grep -i btrfs | tail -n 20
    fail "a history"
}
no_complaints
