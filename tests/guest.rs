//! QEMU guests with Debian's stock kernels at work on a disk served by the built program. The guests are made by
//! `vm-scripts/setup`; `vm-scripts/test` runs it before these tests.

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use common::{Backend, Guest, Image};

/// Size of the disks: sparse files, so it costs nothing, and the guest has room for several chunks.
const MIB: u64 = 2048;

/// A guest works on a new file system. No violation, no generation without its verdict, exit code 0, and `btrfs check`
/// agrees.
fn clean_run(kernel: &str, workload: &str, settings: &[&str]) -> common::Outcome {
    let image = Image::mkfs(MIB, "");
    let backend = Backend::start(&image, &["--once"]);
    let guest = settings.iter().fold(Guest::new(kernel, workload), |guest, setting| guest.env(setting));
    guest.succeed(&backend);
    let outcome = backend.wait();
    outcome.assert_clean();
    outcome.events.assert_every_commit_clean(&image.fsid(), image.generation());
    image.assert_checked();
    outcome
}

#[test]
fn linux_6_1_files_and_snapshots() {
    let outcome = clean_run("6.1", "basic", &[]);
    let fs = outcome.events.file_systems()[0];
    assert!(outcome.events.transactions(fs).len() >= 20);
}

#[test]
fn linux_6_12_files_and_snapshots() {
    let outcome = clean_run("6.12", "basic", &[]);
    let fs = outcome.events.file_systems()[0];
    assert!(outcome.events.transactions(fs).len() >= 20);
}

#[test]
fn linux_6_1_a_minute_of_mixed_work() {
    clean_run("6.1", "mixed", &["DURATION=60", "SEED=61"]);
}

#[test]
fn linux_6_12_a_minute_of_mixed_work() {
    clean_run("6.12", "mixed", &["DURATION=60", "SEED=612"]);
}

/// No flushes at all, flushes after every write, discards with each commit and long after it: all of it is a guest's right.
#[test]
fn every_way_to_flush_and_to_discard() {
    clean_run("6.12", "mixed", &["DURATION=12", "SEED=1", "CACHE=write through"]);
    clean_run("6.1", "mixed", &["DURATION=12", "SEED=2", "OPTIONS=noatime,commit=2,nobarrier"]);
    clean_run("6.12", "mixed", &["DURATION=12", "SEED=3", "OPTIONS=noatime,commit=2,discard=sync"]);
    clean_run("6.1", "mixed", &["DURATION=12", "SEED=4", "OPTIONS=noatime,commit=2,discard=async"]);
}

#[test]
fn log_commits_are_told_from_transactions() {
    let outcome = clean_run("6.12", "fsync", &[]);
    let fs = outcome.events.file_systems()[0];
    assert!(outcome.events.log_commits(fs) >= 20, "{} log commits", outcome.events.log_commits(fs));
}

#[test]
fn mounted_again_and_again() {
    clean_run("6.1", "remount", &["ROUNDS=1"]);
}

#[test]
fn balance() {
    clean_run("6.12", "balance", &[]);
}

#[test]
fn snapshots_deleted_in_random_order() {
    clean_run("6.1", "snapdel", &[]);
}

#[test]
fn send_and_receive() {
    clean_run("6.12", "sendrecv", &[]);
}

#[test]
fn quotas() {
    clean_run("6.1", "quota", &[]);
}

#[test]
fn smaller_and_larger() {
    clean_run("6.12", "resize", &["ROUNDS=2"]);
}

/// The image gets another size under a running guest, whose file system follows: larger, and smaller again.
#[test]
fn the_disk_itself_larger_and_smaller() {
    let (small, large, middle) = (256, 1024, 768);
    let image = Image::mkfs(small, "");
    let backend = Backend::start(&image, &["--once"]);
    let resize = |mib: u64| {
        let file = std::fs::File::options().write(true).open(image.path()).expect("the image");
        file.set_len(mib << 20).expect("another size");
    };
    let settings = [("SMALL", small), ("LARGE", large), ("MIDDLE", middle)];
    let settings = settings.map(|(name, mib)| format!("{name}={mib}"));
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            settings
                .iter()
                .fold(Guest::new("6.12", "grow"), |guest, setting| guest.env(setting))
                .succeed(&backend);
        });
        backend.wait_for_status(
            || guest.is_finished(),
            |status| status["file_system"]["commits"].as_u64() > Some(2),
        );
        resize(large);
        let total = |status: &serde_json::Value| status["file_system"]["device_bytes"].as_u64();
        backend.wait_for_status(|| guest.is_finished(), |status| total(status) == Some(large << 20));
        let status =
            backend.wait_for_status(|| guest.is_finished(), |status| total(status) == Some(middle << 20));
        assert_eq!(status["size"], large << 20);
        resize(middle);
        guest.join().expect("the guest");
    });
    let outcome = backend.wait();
    outcome.assert_clean();
    outcome.events.assert_every_commit_clean(&image.fsid(), image.generation());
    image.assert_checked();
    assert_eq!(image.super_field("total_bytes"), (middle << 20).to_string());
    let notices: Vec<_> =
        outcome.events.of_kind("notice").map(|event| event["message"].to_string()).collect();
    for mib in [large, middle] {
        let said = format!("the image has {} bytes now", mib << 20);
        assert!(notices.iter().any(|notice| notice.contains(&said)), "{notices:?}");
    }
}

/// Logical blocks of 4096 bytes, and no more requests a second than were asked for.
#[test]
fn large_blocks_and_few_requests() {
    let image = Image::mkfs(MIB, "");
    let backend = Backend::start(&image, &["--once", "--block-size", "4096", "--iops", "400"]);
    Guest::new("6.12", "blocks").env("IOPS=400").succeed(&backend);
    let outcome = backend.wait();
    outcome.assert_clean();
    outcome.events.assert_every_commit_clean(&image.fsid(), image.generation());
    image.assert_checked();
}

#[test]
fn several_queues() {
    let image = Image::mkfs(MIB, "--csum xxhash -n 4096");
    let backend = Backend::start(&image, &["--once"]);
    Guest::new("6.12", "mixed").env("DURATION=20").with(&["--queues", "4", "--cpus", "4"]).succeed(&backend);
    let outcome = backend.wait();
    outcome.assert_clean();
    outcome.events.assert_every_commit_clean(&image.fsid(), image.generation());
    image.assert_checked();
}

/// Plants a fault: exit code 1, and the first violation, with a code of one of these families, is in the commit that
/// carries the fault.
fn planted_fault(kind: &str, families: &[&str]) {
    let image = Image::mkfs(MIB, "");
    let backend = Backend::start(&image, &["--once", "--plant-fault", kind]);
    // What the guest makes of it is its own affair.
    let (code, text) = Guest::new("6.12", "basic").env("ROUNDS=8").run(&backend);
    assert!(code.is_some_and(|code| code != 2 && code != 127), "the guest did not run:\n{text}");
    let outcome = backend.wait();
    assert_eq!(outcome.code, Some(1), "exit code; standard error: {}", outcome.stderr);
    let fs = image.fsid();
    let first = outcome.events.violations().first().copied().expect("a violation");
    let code = first["code"].as_str().expect("a violation has a code");
    assert!(families.iter().any(|family| code.starts_with(family)), "not of {families:?}: {first:#}");
    assert_eq!(first["fs"], fs.as_str());
    assert!(first["bytenr"].as_u64().is_some_and(|bytenr| bytenr > 0), "{first:#}");
    let carrier = outcome
        .events
        .of_kind("commit")
        .find(|event| event["verdict"] != "clean")
        .expect("a commit that is not clean");
    assert_eq!(carrier["verdict"], "violations");
    assert_eq!(carrier["generation"], first["generation"]);
    // It did not switch itself off: the commits after it have their events, too.
    let last = carrier["generation"].as_u64().expect("a generation");
    assert!(outcome.events.transactions(&fs).iter().any(|generation| *generation > last));
}

#[test]
fn wrong_reference_count_is_reported_at_its_commit() {
    planted_fault("extent-refs", &["ref/count"]);
}

#[test]
fn backref_of_another_root_is_reported_at_its_commit() {
    planted_fault("backref-root", &["ref/"]);
}

#[test]
fn lost_tree_block_is_reported_at_its_commit() {
    planted_fault("lose-block", &["write/", "tree/"]);
}

/// The refused commit never was: the guest is read-only, the image is the last good commit with all its files.
#[test]
fn a_refused_commit_leaves_the_last_good_one() {
    common::script("reject", &["extent-refs", "lose-block", "root-address", "log-lost"]);
}

/// The backend is killed or told to end under a guest, and started again: the guest doesn't notice.
#[test]
fn the_backend_is_killed_and_upgraded_under_a_guest() {
    common::script("kill-backend", &["--kills", "0", "--guest-kills", "3", "--upgrades", "2"]);
}

/// A commit is paused in a guest at work, and QEMU stops the virtual machine; decided on, both go on.
fn paused(decision: &str) -> (common::Outcome, String) {
    let image = Image::mkfs(MIB, "");
    let monitor = tempfile::tempdir().expect("a directory");
    let qmp = monitor.path().join("qmp");
    let qmp = qmp.to_str().expect("a plain path");
    let options =
        ["--once", "--plant-fault", "data-backref-count@12", "--on-violation", "pause", "--qmp", qmp];
    let backend = Backend::start(&image, &options);
    let text = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let socket = format!("unix:{qmp},server=on,wait=off");
            let guest = Guest::new("6.12", "reject").env("ROUNDS=12");
            guest.with(&["--qemu-arg", "-qmp", "--qemu-arg", &socket]).run(&backend).1
        });
        let status = backend.wait_for_pause(|| guest.is_finished());
        assert_eq!(status["paused"]["generation"], 12, "{status:#}");
        // Time for QEMU to stop its rings over the write that is not answered.
        std::thread::sleep(std::time::Duration::from_secs(2));
        assert_eq!(backend.status()["paused"]["generation"], 12, "it was decided on by itself");
        assert!(backend.ctl(&[decision]).status.success());
        guest.join().expect("the guest")
    });
    let outcome = backend.wait();
    let notices: Vec<_> =
        outcome.events.of_kind("notice").map(|event| event["message"].to_string()).collect();
    for said in ["the virtual machine is stopped", "the virtual machine goes on"] {
        assert!(notices.iter().any(|notice| notice.contains(said)), "{notices:?}");
    }
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    if decision == "reject" {
        image.assert_checked();
        assert_eq!(image.generation(), 11);
    }
    (outcome, text)
}

#[test]
fn a_paused_guest_is_stopped_and_goes_on_when_the_commit_is_rejected() {
    let (_, text) = paused("reject");
    assert!(text.contains("READ-ONLY"), "{text}");
}

#[test]
fn a_paused_guest_is_stopped_and_goes_on_when_the_commit_is_resumed() {
    let (outcome, text) = paused("resume");
    assert!(text.contains("no commit was refused"), "{text}");
    let fs = outcome.events.file_systems()[0];
    assert!(outcome.events.transactions(fs).last().is_some_and(|last| *last > 12));
}

/// Pauses a commit in a guest at work, then does something to QEMU, to whose monitor there is a socket and whose
/// process id there is a file. The paused commit must be refused, and the disk sound.
fn interrupted(options: &[&str], interrupt: impl FnOnce(&Path, &Path)) -> String {
    let image = Image::mkfs(MIB, "");
    let dir = tempfile::tempdir().expect("a directory");
    let (qmp, pid) = (dir.path().join("qmp"), dir.path().join("pid"));
    let plain = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let mut all = vec!["--once", "--plant-fault", "root-level@12", "--on-violation", "pause"];
    all.extend(options);
    let told = plain(&qmp);
    if options.contains(&"--qmp") {
        all.push(&told);
    }
    let backend = Backend::start(&image, &all);
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let socket = format!("unix:{},server=on,wait=off", plain(&qmp));
            let guest = Guest::new("6.12", "reject");
            guest
                .with(&["--qemu-arg", "-qmp", "--qemu-arg", &socket])
                .with(&["--qemu-arg", "-pidfile", "--qemu-arg", &plain(&pid)])
                .run(&backend)
        });
        backend.wait_for_pause(|| guest.is_finished());
        std::thread::sleep(std::time::Duration::from_secs(1));
        interrupt(&qmp, &pid);
        guest.join().expect("the guest");
    });
    let outcome = backend.wait();
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let resolution = outcome.events.of_kind("resolution").next().expect("a resolution");
    assert_eq!(resolution["policy"], "rejected");
    image.assert_checked();
    assert_eq!(image.generation(), 11);
    resolution["by"].as_str().expect("a reason").to_owned()
}

/// With its virtual machine stopped because of the pause, QEMU waits for the backend, and the backend for somebody to
/// decide: if QEMU is killed, nobody will.
#[test]
fn a_machine_that_is_killed_while_it_is_stopped_does_not_hang_the_backend() {
    let by = interrupted(&["--qmp"], |_, pid| {
        let pid = std::fs::read_to_string(pid).expect("QEMU's process id");
        let status = Command::new("sh").args(["-c", "kill -KILL $0", pid.trim()]).status().expect("sh");
        assert!(status.success());
    });
    assert_eq!(by, "the end of the virtual machine");
}

#[test]
fn a_reset_during_a_pause_refuses_the_commit() {
    let by = interrupted(&[], |qmp, _| {
        let stream = UnixStream::connect(qmp).expect("QEMU's monitor");
        let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
        for command in ["qmp_capabilities", "system_reset"] {
            lines.next().expect("a line").expect("text");
            writeln!(&stream, "{{\"execute\":\"{command}\"}}").expect("a command");
        }
        lines.next().expect("a line").expect("text");
    });
    assert_eq!(by, "the end of a ring");
}

#[test]
fn reboots_and_power_cuts_in_one_run_of_the_backend() {
    let image = Image::mkfs(MIB, "");
    let backend = Backend::start(&image, &[]);
    // The same QEMU, reset by the guest: once after an unmount, once after a sync only.
    Guest::new("6.12", "reboot").with(&["--boots", "3"]).succeed(&backend);
    // The plug pulled: QEMU killed in the middle of its work, and another one started.
    Guest::new("6.12", "powercut")
        .env("MODE=run")
        .with(&["--kill-on", "RUNNING", "--kill-after", "6.3"])
        .succeed(&backend);
    Guest::new("6.12", "powercut").env("MODE=check").succeed(&backend);
    // Resets in the middle of transactions, under the other kernel.
    Guest::new("6.1", "powercut").env("SEED=7").with(&["--boots", "3"]).succeed(&backend);
    let outcome = backend.terminate();
    outcome.assert_clean();
    outcome.events.assert_every_commit_clean(&image.fsid(), image.generation());
    image.assert_checked();
}

/// Every file system that mkfs.btrfs made in the guest was picked up early in its life, and followed to its end.
fn assert_followed(outcome: &common::Outcome, image: &Image, made: usize) {
    outcome.assert_clean();
    let events = &outcome.events;
    let followed: Vec<_> =
        events.file_systems().into_iter().filter(|fs| events.transactions(fs).len() >= 4).collect();
    assert_eq!(
        followed.len(),
        made,
        "file systems with commits: {:?} of {:?}",
        followed,
        events.file_systems()
    );
    for fs in followed {
        // mkfs.btrfs leaves generation 6 to 9 behind.
        assert!(events.attach_generation(fs) < 10, "{fs} was picked up late");
        let last = events.transactions(fs).last().copied().expect("commits");
        events.assert_every_commit_clean(fs, last);
    }
    events.assert_every_commit_clean(&image.fsid(), image.generation());
    image.assert_checked();
}

#[test]
fn mkfs_in_the_guest_over_a_file_system_that_is_followed() {
    let image = Image::mkfs(MIB, "");
    let backend = Backend::start(&image, &["--once"]);
    let settings =
        "MKFS=--csum sha256 -m single;-O ^skinny-metadata -n 4096;-M;-n 65536 --csum blake2;-R quota";
    Guest::new("6.1", "mkfs").env(settings).succeed(&backend);
    assert_followed(&backend.wait(), &image, 5);
}

#[test]
fn mkfs_in_the_guest_on_a_blank_disk() {
    let image = Image::blank(MIB);
    let backend = Backend::start(&image, &["--once"]);
    Guest::new("6.12", "mkfs").env("MKFS=-q;--csum xxhash").succeed(&backend);
    assert_followed(&backend.wait(), &image, 2);
}

#[test]
fn a_disk_without_btrfs_is_served_and_nothing_is_called_verified() {
    let image = Image::blank(64);
    let noise: Vec<u8> = (0..64_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
    std::fs::write(image.path(), &noise).expect("the image");
    let backend = Backend::start(&image, &["--once"]);
    Guest::new("6.12", "plain").succeed(&backend);
    let outcome = backend.wait();
    assert!(outcome.events.violations().is_empty(), "{:#?}", outcome.events.violations());
    assert_eq!(outcome.code, Some(3), "exit code; standard error: {}", outcome.stderr);
}
