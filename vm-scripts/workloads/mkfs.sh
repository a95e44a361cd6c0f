# shellcheck shell=dash
# New file systems on the same disk, each with other options, mounted and worked on.
#   MKFS  option sets, separated by ;
# shellcheck disable=SC1091
. /workload/lib.sh
: "${MKFS:=--csum crc32c;--csum xxhash -n 4096;--csum sha256 -m single;--csum blake2 -n 32768;-O ^skinny-metadata;\
-R ^free-space-tree;-O ^no-holes,^extref;-M;-d dup -n 65536;-R quota}"

one_file_system() { # MKFS_OPTION...
    step "mkfs.btrfs $*"
    make_fs "$@"
    mount_fs noatime
    subvolume /mnt/sub
    churn /mnt/sub/a
    commit_now
    snapshot /mnt/sub /mnt/snap
    churn /mnt/sub/a
    commit_now
    rm -r /mnt/sub/a
    churn /mnt/sub/b
    commit_now
    churn /mnt/sub/b
    remember_all
    check_again
}

make_pool
rest=$MKFS
while [ -n "$rest" ]; do
    options=${rest%%;*}
    [ "$options" = "$rest" ] && rest= || rest=${rest#*;}
    # shellcheck disable=SC2086 # several options
    one_file_system $options
done
