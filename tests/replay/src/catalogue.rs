//! The file systems and the steps that are recorded.

use testkit::{Spec, workload};

use crate::recorder::Plan;

/// Steps for any file system that has been prepared with [`workload::mixed`]. One commit each, but for those that the
/// kernel makes many of.
const STEPS: &[(&str, &str)] = &[
    ("real extents", "for i in $(seq 24); do head -c $((i * 3000)) /dev/urandom > f/real$i; done"),
    ("subvolume", "btrfs -q subvolume create new"),
    ("files in it", "for i in $(seq 60); do echo $i > new/f$i; done; head -c 60000 /dev/urandom > new/data"),
    ("reflinks", "for i in $(seq 70); do cp --reflink=always new/data new/clone$i; done"),
    ("snapshot", "btrfs -q subvolume snapshot new twin"),
    ("change both sides", "touch new/f*[13]; echo more > twin/f7; head -c 9000 /dev/urandom > twin/clone3"),
    ("read-only snapshot", "btrfs -q subvolume snapshot -r twin third"),
    ("punch holes", "for i in $(seq 1 2 40); do fallocate -p -o $((i % 5 * 8192)) -l 8192 new/clone$i; done"),
    ("preallocate", "fallocate -l 2M new/pre; fallocate -l 300K twin/pre; fallocate -l 256K new/once; mkdir twin/dir"),
    (
        "write into it",
        "for i in 1 5 9 40; do head -c 8192 /dev/urandom | dd of=new/pre bs=4k seek=$i conv=notrunc status=none
            head -c 4096 /dev/urandom | dd of=new/once bs=4k seek=$i conv=notrunc status=none; done",
    ),
    ("compress", "mkdir z; chattr +c z; for i in 1 2 3; do yes $i | head -c 500000 > z/zip$i; done"),
    ("remove", "rm -f new/clone*[24] new/once f/real1*; truncate -s 5000 new/data; mv twin/f9 twin/dir/g9"),
    ("rewrite a snapshot", "touch snap3/* snap5/*; head -c 30000 /dev/urandom > snap4/shared"),
    (
        "xattrs and links",
        "ln new/f1 new/l1; ln -s f2 new/s2; setfattr -n user.k -v $(seq -s, 200) new/f2 || true",
    ),
    (
        "delete a snapshot",
        "btrfs -q subvolume delete -c twin; until_deleted",
    ),
    ("after the deletion", "for i in $(seq 30); do echo $i > d/late$i; done"),
    (
        "delete the original",
        "btrfs -q subvolume delete -c snap2 snap3; until_deleted",
    ),
    (
        "balance metadata",
        "btrfs balance start -m . > /dev/null 2>&1 || btrfs balance start --full-balance . > /dev/null",
    ),
    (
        "after the balance",
        "rm -f d/late*[05]; head -c 70000 /dev/urandom > d/big; touch third 2> /dev/null || true",
    ),
    ("resize", "btrfs filesystem resize -16m . > /dev/null; head -c 90000 /dev/urandom > d/resized"),
    ("balance data", "btrfs balance start -d . > /dev/null 2>&1 || true"),
    ("many small files", "mkdir m; seq 900 | (cd m; split -l 1 -a 3 - x); head -c 60000 /dev/urandom > m/data"),
    ("touch them", "touch m/x*[ae]; rm m/x*b"),
];

/// One file system with all steps.
fn plan(spec: Spec, prepare: String, live: bool) -> Plan {
    let spec = Spec { mount: format!("{},nodiscard", spec.mount), ..spec };
    let scripts = STEPS.iter().map(|(name, script)| ((*name).to_owned(), (*script).to_owned())).collect();
    Plan { spec, prepare, scripts, live }
}

/// The file systems of the test: node sizes, profiles, checksums, extent item formats, quotas, space caches.
#[must_use]
pub fn plans() -> Vec<Plan> {
    let all = workload::mixed(30) + &workload::deep();
    let simple = workload::enable_simple_quota() + &workload::mixed(12);
    vec![
        plan(Spec::new("4K dup crc32c", "-n 4096 -m dup"), all.clone(), true),
        plan(
            Spec::new("4K single fat xxhash", "-n 4096 -m single -O ^skinny-metadata --csum xxhash"),
            all,
            true,
        ),
        plan(
            Spec::new("16K dup sha256 quota", "-n 16384 -m dup --csum sha256 -R quota"),
            workload::mixed(40),
            true,
        ),
        plan(Spec::new("64K blake2 simple quota", "-n 65536 --csum blake2"), simple, true),
        plan(
            Spec::new("16K v1 cache", "-n 16384 -O ^no-holes -R ^free-space-tree")
                .mounted("commit=300,space_cache=v1"),
            workload::mixed(12),
            true,
        ),
        // Large, so that chunks are: where data and metadata share their groups, the kernel reserves no more than is
        // allocated, and what it reserves for delayed references may leave a balance without room to go on (6.18).
        plan(Spec::new("4K mixed groups", "--mixed -n 4096 -s 4096").sized(4096), workload::mixed(12), false),
    ]
}

/// A large subvolume that is deleted over many commits.
#[must_use]
pub fn deletion() -> Plan {
    let prepare = String::from(
        r#"
        btrfs -q subvolume create big
        seq 12000 | (cd big; split -l 1 -a 4 - f)
        head -c 70000 /dev/urandom > big/shared
        for i in $(seq 50); do cp --reflink=always big/shared big/reflink$i; done
        sync -f .
        btrfs -q subvolume snapshot big snap
        (cd big; seq 3000 | split -l 1 -a 3 - faa)
        touch big/f*z big/f*m
        "#,
    );
    let delete = "btrfs -q subvolume delete -c big; btrfs filesystem sync .
        i=0; while [ $i -lt 60 ]; do i=$((i + 1)); echo $i > x$i; sync -f .; done";
    let spec = Spec::new("4K half deleted", "-n 4096 -m single").mounted("commit=300,nodiscard");
    let step = |name: &str, script: &str| (name.to_owned(), script.to_owned());
    let scripts = vec![
        step("delete while at work", delete),
        step("to the end", "until_deleted"),
        step("afterwards", "touch snap/f*k; rm x1*"),
    ];
    Plan { spec, prepare, scripts, live: true }
}
