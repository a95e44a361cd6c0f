//! Shell scripts that fill a mounted file system with every kind of extent and backref.

use crate::image::{Image, Spec};
use crate::tool;

/// Files, directories, links, xattrs, reflinks beyond what fits inline, snapshots with changes on both sides, deleted
/// originals (which leave shared backrefs), preallocation, holes, compression. `snapshots` above a hundred overflow the
/// inline tree block backrefs of 16 KiB nodes, above thirty those of 4 KiB nodes.
#[must_use]
pub fn mixed(snapshots: u32) -> String {
    format!(
        r#"
        mkdir d e f; btrfs -q subvolume create base
        for i in $(seq 150); do head -c $((i * 97)) /dev/urandom > base/file$i; done
        head -c 70000 /dev/urandom > base/shared
        for i in $(seq 120); do cp --reflink=always base/shared base/reflink$i; done
        for i in $(seq 1 3 120); do fallocate -p -o 8192 -l 4096 base/reflink$i; done
        fallocate -l 1M base/prealloc; dd if=/dev/urandom of=base/prealloc bs=4k seek=3 count=1 conv=notrunc,fsync status=none
        head -c 300000 /dev/urandom > base/holes; fallocate -p -o 65536 -l 131072 base/holes
        touch base/zip; chattr +c base/zip; yes btrfs | head -c 400000 > base/zip
        setfattr -n user.x -v y base/file1 || true
        ln base/file2 base/link2; ln -s file3 base/symlink
        sync -f .
        for i in $(seq {snapshots}); do
            btrfs -q subvolume snapshot base snap$i
            echo changed > snap$i/file$i
            head -c 20000 /dev/urandom > snap$i/file$((i + 20))
        done
        sync -f .
        btrfs -q subvolume snapshot -r base ro
        btrfs -q subvolume snapshot snap1 nested
        for i in $(seq 40); do echo $i > nested/file$i; rm -f base/file$((i * 3)); done
        dd if=/dev/urandom of=base/shared bs=4k seek=2 count=3 conv=notrunc status=none
        sync -f .
        btrfs -q subvolume delete -c base
        until_deleted
        for i in $(seq 60); do echo $i > nested/more$i; done
        for i in $(seq 40); do head -c 8192 /dev/urandom > d/gap$i; done; sync -f .; rm d/gap*[02468]; sync -f .
        for i in $(seq 90); do cp --reflink=always snap2/holes d/holes$i; done; cp snap2/zip e/
        cp --reflink=always snap2/reflink1 f/hole; sync -f .
        "#
    )
}

/// A tree of three levels (with 4 KiB nodes) whose inner nodes are shared by many snapshots and changed in the original:
/// shared tree block backrefs, more than fit inline.
#[must_use]
pub fn deep() -> String {
    String::from(
        r#"
        btrfs -q subvolume create deep
        seq 3000 | (cd deep; split -l 1 -a 3 - f)
        sync -f .
        for i in $(seq 40); do btrfs -q subvolume snapshot deep deep$i; touch deep/faaa deep/fbbb; done
        sync -f .
        "#,
    )
}

/// An image whose deleted subvolume, partly shared with a snapshot, is half gone: the unmount stops the deletion.
///
/// # Panics
/// When several attempts end too early or too late.
#[must_use]
pub fn half_deleted(spec: &Spec) -> Image {
    let script = r#"
        btrfs -q subvolume create big
        seq 40000 | (cd big; split -l 1 -a 4 - f)
        head -c 70000 /dev/urandom > big/shared
        for i in $(seq 50); do cp --reflink=always big/shared big/reflink$i; done
        sync -f .
        btrfs -q subvolume snapshot big snap
        (cd big; seq 5000 | split -l 1 -a 3 - faa)
        touch big/f*z big/f*m
        sync -f .
        btrfs -q subvolume delete -c big
    "#;
    for _ in 0..8 {
        let image = spec.build(script);
        let path = image.path().to_str().expect("a plain path");
        let roots = tool::stdout("btrfs", ["inspect-internal", "dump-tree", "-t", "1", path]);
        let cursors = roots.lines().filter(|line| line.trim_start().starts_with("drop_progress key ("));
        if cursors.into_iter().any(|line| !line.contains("key (0 ")) {
            return image;
        }
    }
    panic!("no deletion was stopped half way in 8 attempts");
}

/// Turns simple quotas on, which btrfs-progs 6.2 does not know: the ioctl itself, `BTRFS_IOC_QUOTA_CTL` with
/// `BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA`.
#[must_use]
pub fn enable_simple_quota() -> String {
    String::from(
        r#"
        perl -e '
            sysopen(my $dir, ".", 0) or die "open: $!";
            my $enable = pack("QQ", 4, 0);
            ioctl($dir, 0xc0109428, $enable) or die "ioctl: $!";
        '
        "#,
    )
}
