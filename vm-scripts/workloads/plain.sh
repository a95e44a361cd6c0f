# shellcheck shell=dash
# The disk without a file system: written and read as it is.
# shellcheck disable=SC1091
. /workload/lib.sh

make_pool
before=$(md5sum <"$POOL")
dd if="$POOL" of="$DISK" bs=64k seek=1 conv=fsync 2>/dev/null
drop_caches
after=$(dd if="$DISK" bs=64k skip=1 count=$((POOL_KIB / 64)) 2>/dev/null | md5sum)
[ "$before" = "$after" ] || fail "$DISK does not read as it was written"
