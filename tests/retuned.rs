//! A file system that btrfstune rewrites where it is, under `serve` and half done for `check`: what is the matter is said.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use parser::superblock::super_flags;
use parser::{ChecksumType, SuperBlock};
use replay::Backend;
use replay::backend::check;
use replay::history::{Change, SUPER_SIZE};
use replay::rng::Rng;
use testkit::{Image, Spec};

const SUPER: u64 = 64 << 10;
const SECTOR: usize = 4096;
const FLAGS: usize = 56;
const WHY: &str = "btrfstune is changing the fsid, or was interrupted (super block flag CHANGING_FSID)";

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_btrfs-shadow"))
}

fn super_of(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; SUPER_SIZE];
    File::open(image.path()).and_then(|file| file.read_exact_at(&mut bytes, SUPER)).expect("a super block");
    bytes
}

/// A file system, and what btrfstune made of it.
fn before_and_after() -> (Image, Image) {
    let image = Spec::new("retuned", "-m single").sized(128).build(&testkit::workload::mixed(3));
    let tuned = image.copy();
    // Where an ordinary user's PATH lacks sbin.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("btrfstune");
    let output = command.env("PATH", path).args(["-f", "-u"]).arg(tuned.path()).output().expect("btrfstune");
    assert!(output.status.success(), "{output:?}");
    (image, tuned)
}

/// The super block that btrfstune writes before it begins: the new fsid, and a flag.
fn begun(tuned: &Image) -> Change {
    let mut bytes = super_of(tuned);
    let flags = SuperBlock::parse(&bytes).expect("a super block").flags() | super_flags::CHANGING_FSID;
    bytes[FLAGS..FLAGS + 8].copy_from_slice(&flags.to_le_bytes());
    ChecksumType::Crc32c.seal(&mut bytes);
    Change { offset: SUPER, bytes }
}

/// All that differs between two images, but for the super block.
fn rewritten(image: &Image, tuned: &Image) -> Vec<Change> {
    let [old, new] = [image, tuned].map(|image| std::fs::read(image.path()).expect("an image"));
    let sectors = old.chunks(SECTOR).zip(new.chunks(SECTOR)).enumerate();
    let changed = sectors.filter(|(at, (old, new))| old != new && (at * SECTOR) as u64 != SUPER);
    changed.map(|(at, (_, new))| Change { offset: (at * SECTOR) as u64, bytes: new.to_vec() }).collect()
}

#[test]
fn serve_says_why_it_can_not_open_what_btrfstune_is_rewriting() {
    let (image, tuned) = before_and_after();
    let backend = Backend::start_with(program(), image.path(), &["--once"]);
    let mut driver = backend.connect();
    driver.write_one(&begun(&tuned));
    backend.wait_for_notice(WHY);
    driver.write(&rewritten(&image, &tuned), &mut Rng::new(1));
    driver.flush();
    driver.write_one(&Change { offset: SUPER, bytes: super_of(&tuned) });
    drop(driver);
    let outcome = backend.wait();
    assert_eq!(outcome.all_violations(), Vec::new());
    let fs: Vec<_> = outcome.of_kind("attach").map(|event| event["fs"].clone()).collect();
    assert!(fs.len() >= 2 && fs.first() != fs.last(), "{fs:?}");
    let notices: Vec<_> = outcome.of_kind("notice").map(|event| event["message"].to_string()).collect();
    let told = notices.iter().filter(|message| message.contains("can't be opened")).collect::<Vec<_>>();
    assert!(told.len() == 1 && told[0].contains("served, not verified"), "{notices:#?}");
    assert_eq!(check(program(), image.path()).code, Some(0));
}

/// Interrupted at once, nothing can be opened; later, what can be opened is half of each.
#[test]
fn check_says_that_btrfstune_was_interrupted() {
    let (image, tuned) = before_and_after();
    let write = |change: &Change| {
        let file = File::options().write(true).open(image.path()).expect("an image");
        file.write_all_at(&change.bytes, change.offset).expect("a write");
    };
    write(&begun(&tuned));
    let outcome = check(program(), image.path());
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(WHY), "{}", outcome.stderr);
    let changes = rewritten(&image, &tuned);
    assert!(changes.len() > 8, "{}", changes.len());
    changes.iter().for_each(write);
    let outcome = check(program(), image.path());
    assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
    let told = |event: &serde_json::Value| event["message"].to_string().contains(WHY);
    assert!(outcome.of_kind("notice").any(told));
    write(&Change { offset: SUPER, bytes: super_of(&tuned) });
    assert_eq!(check(program(), image.path()).code, Some(0));
}
