//! The policies, with commits of a real kernel, sound and faulty, written by a driver of our own.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use replay::campaign::Campaign;
use replay::history::SUPERS;
use replay::refusal::commit;
use replay::rng::Rng;
use replay::trial::Trial;
use replay::{Backend, Change, History, Outcome, Plan, Step, Writes};
use serde_json::Value;
use testkit::{Image, Spec};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Long enough for an answer, were there one.
const SOON: Duration = Duration::from_millis(300);

/// The images of all scenes are of one file system, and kernels before 6.7 mount no two of those at once.
static MOUNT: Mutex<()> = Mutex::new(());

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_btrfs-shadow"))
}

/// A few commits, and one fault in each that can be broken.
static CAMPAIGN: LazyLock<Campaign> = LazyLock::new(|| {
    let scripts = [
        ("files", "mkdir d; for i in $(seq 90); do head -c $((i * 100)) /dev/urandom > d/f$i; done"),
        ("reflinks", "for i in $(seq 40); do cp --reflink=always d/f90 d/clone$i; done"),
        ("snapshot", "btrfs -q subvolume snapshot . snap"),
        ("change", "touch d/*[13]; echo more > snap/d/f7; rm d/clone*4"),
        ("more", "for i in $(seq 50); do echo $i > d/late$i; done"),
        ("after it", "rm d/late*"),
    ];
    let plan = |name, mkfs| Plan {
        spec: Spec::new(name, mkfs).mounted("commit=300,nodiscard"),
        prepare:
            "mkdir a; for i in $(seq 300); do echo $i > a/file$i; done; head -c 90000 /dev/urandom > a/b"
                .to_owned(),
        scripts: scripts.iter().map(|(name, script)| ((*name).to_owned(), (*script).to_owned())).collect(),
        live: false,
    };
    Campaign::record_singly(&[
        plan("4K dup", "-n 4096 -m dup"),
        plan("16K single", "-n 16384 -m single --csum xxhash"),
    ])
});

/// The image before a step, the step, the one after it, and the step with a fault in it.
struct Scene {
    image: Image,
    sound: Writes,
    next: Writes,
    faulty: Writes,
    generation: u64,
}

/// The fault of all scenes: one that is there still when the commit after it is made on top of it.
static FAULT: LazyLock<Trial> = LazyLock::new(|| {
    let history: &History = CAMPAIGN.histories().next().expect("a history");
    let can_be_refused = |trial: &Trial| {
        let step: &Step = &history.steps[trial.step];
        step.is_single() && step.supers.len() == 2
    };
    let stays = |trial: &Trial| {
        trial.history == 0
            && can_be_refused(trial)
            && history.steps.get(trial.step + 1).is_some_and(Step::is_single)
            && stays_faulty(history, trial)
    };
    let trials = CAMPAIGN.trials(8, |name| name == "write-bit-flip" || name.starts_with("file-extent-"));
    trials.into_iter().find(stays).expect("a fault that stays")
});

/// A commit of the first history, sound and faulty.
fn scene() -> Scene {
    let history: &History = CAMPAIGN.histories().next().expect("a history");
    let step: &Step = &history.steps[FAULT.step];
    Scene {
        image: image_before(history, FAULT.step),
        sound: Writes::from(step),
        next: Writes::from(&history.steps[FAULT.step + 1]),
        faulty: FAULT.writes.clone(),
        generation: step.to,
    }
}

/// The image as the steps before `step` have left it.
fn image_before(history: &History, step: usize) -> Image {
    let image = history.base.copy();
    write_to(&image, history.steps[..step].iter().flat_map(Step::changes));
    image
}

fn write_to<'a>(image: &Image, changes: impl Iterator<Item = &'a Change>) {
    let file = replay::disk::open(image.path());
    for change in changes {
        std::os::unix::fs::FileExt::write_all_at(&file, &change.bytes, change.offset).expect("the image");
    }
}

/// Whether the next commit leaves the fault where it is: a kernel writes many blocks anew.
fn stays_faulty(history: &History, trial: &Trial) -> bool {
    let image = image_before(history, trial.step);
    let next = &history.steps[trial.step + 1];
    write_to(&image, trial.writes.blocks.iter().chain(next.changes()));
    replay::check(program(), image.path()).code == Some(1)
}

impl Scene {
    fn start(&self, options: &[&str]) -> Backend {
        Backend::start_with(program(), self.image.path(), options)
    }

    /// Generations of the super block and its copy on the disk.
    fn generations(&self) -> Vec<u64> {
        let file = std::fs::File::open(self.image.path()).expect("the image");
        SUPERS
            .iter()
            .map(|place| {
                let mut bytes = vec![0; 4096];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, *place).expect("a super block");
                replay::history::generation(&bytes)
            })
            .collect()
    }

    /// Opened afresh, the image is the last good commit.
    #[track_caller]
    fn assert_last_good(&self) {
        assert_eq!(self.generations(), [self.generation - 1; 2]);
        let output = Command::new("btrfs").arg("check").arg(self.image.path()).output().expect("btrfs check");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let _alone = MOUNT.lock().unwrap_or_else(PoisonError::into_inner);
        self.image.copy().run("find . -type f -exec cat {} + > /dev/null");
    }
}

fn ctl(backend: &Backend, args: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.arg("ctl").arg(backend.control()).args(args).output().expect("btrfs-shadow ctl")
}

fn status(backend: &Backend) -> Value {
    let output = ctl(backend, &["status", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn policies(outcome: &Outcome) -> Vec<String> {
    outcome.of_kind("commit").map(|event| event["policy"].as_str().expect("a policy").to_owned()).collect()
}

/// Every kind of fault that the replays know, each tried twice, then the sound commit in its place.
#[test]
fn a_refused_commit_leaves_the_last_good_one() {
    let trials = CAMPAIGN.trials(1, |_| true);
    let (complaints, planted) = CAMPAIGN.refuse(program(), &trials);
    assert!(complaints.is_empty(), "{planted} faults: {}", complaints.join("\n"));
    assert!(planted >= 60, "only {planted} faults");
    println!("{planted} faults refused");
}

#[test]
fn a_guest_that_goes_on_over_a_refusal_is_refused_until_it_mends_it() {
    let scene = scene();
    let mut rng = Rng::new(1);
    let backend = scene.start(&["--once", "--on-violation", "reject"]);
    let mut driver = backend.connect();
    assert_eq!(commit(&mut driver, &scene.faulty, &mut rng), (false, Some(false)));
    // The next transaction on top of it, with the faulty block still in place.
    assert_eq!(commit(&mut driver, &scene.next, &mut rng), (false, Some(false)));
    scene.assert_last_good();
    // Mended: both transactions at once.
    let mut mended = scene.next.clone();
    mended.blocks = [scene.sound.blocks.clone(), scene.next.blocks.clone()].concat();
    assert_eq!(commit(&mut driver, &mended, &mut rng), (true, Some(true)));
    drop(driver);
    let outcome = backend.wait();
    assert_eq!(policies(&outcome), ["rejected", "rejected", "written"]);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(scene.generations(), [scene.generation + 1; 2]);
}

#[test]
fn a_new_connection_mounts_the_last_good_commit_and_uses_the_generation_again() {
    let scene = scene();
    let mut rng = Rng::new(2);
    let backend = scene.start(&["--on-violation", "reject"]);
    let mut driver = backend.connect();
    assert_eq!(commit(&mut driver, &scene.faulty, &mut rng), (false, Some(false)));
    drop(driver);
    scene.assert_last_good();
    let mut driver = backend.connect();
    assert_eq!(commit(&mut driver, &scene.sound, &mut rng), (true, Some(true)));
    assert_eq!(commit(&mut driver, &scene.next, &mut rng), (true, Some(true)));
    drop(driver);
    let stopped = ctl(&backend, &["stop"]);
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    let outcome = backend.wait();
    assert_eq!(policies(&outcome), ["rejected", "written", "written"]);
    assert_eq!(outcome.verdict(scene.generation + 1), "clean");
    assert_eq!(scene.generations(), [scene.generation + 1; 2]);
}

/// A copy that is no newer super block is written at once; one whose primary never comes is refused when the guest
/// is gone.
#[test]
fn copies_share_the_fate_of_their_primary() {
    let scene = scene();
    let backend = scene.start(&["--on-violation", "reject"]);
    let mut driver = backend.connect();
    let file = std::fs::File::open(scene.image.path()).expect("the image");
    let mut old = scene.sound.supers[1].clone();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut old.bytes, old.offset).expect("the copy");
    assert!(driver.attempt(&old), "a rewrite of the copy");
    let zeros = replay::Change { offset: old.offset, bytes: vec![0; 4096] };
    assert!(driver.attempt(&zeros), "the copy wiped, as by mkfs");
    assert!(driver.attempt(&old), "the copy repaired");
    driver.begin(1, &scene.sound.supers[1]);
    wait_until("it is held", || status(&backend)["held_copies"] == 1);
    assert_eq!(driver.end(1, SOON), None);
    drop(driver);
    scene.assert_last_good();
    // The other order, after a primary that was good.
    let mut driver = backend.connect();
    write_blocks(&mut driver, &scene.sound);
    driver.begin(1, &scene.sound.supers[1]);
    assert!(driver.attempt(&scene.sound.supers[0]));
    assert_eq!(driver.end(1, PATIENCE), Some(true));
    drop(driver);
    assert!(ctl(&backend, &["stop"]).status.success());
    let outcome = backend.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(scene.generations(), [scene.generation; 2]);
}

fn write_blocks(driver: &mut replay::driver::Driver, writes: &Writes) {
    for change in &writes.blocks {
        assert!(driver.attempt(change));
    }
    driver.flush();
}

fn commit_without_copy(driver: &mut replay::driver::Driver, writes: &Writes) -> bool {
    write_blocks(driver, writes);
    driver.attempt(&writes.supers[0])
}

/// A copy whose primary never comes does not hang for ever; nor is the guest blamed for the copy that it hasn't got.
#[test]
fn a_copy_without_its_primary_is_refused_in_time() {
    let scene = scene();
    let backend = scene.start(&["--once", "--on-violation", "reject"]);
    let mut driver = backend.connect();
    let begun = Instant::now();
    driver.begin(1, &scene.sound.supers[1]);
    assert_eq!(driver.end(1, PATIENCE), Some(false));
    assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
    scene.assert_last_good();
    assert!(commit_without_copy(&mut driver, &scene.sound));
    assert_eq!(scene.generations(), [scene.generation, scene.generation - 1]);
    assert_eq!(commit(&mut driver, &scene.next, &mut Rng::new(7)), (true, Some(true)));
    drop(driver);
    let outcome = backend.wait();
    assert!(outcome.of_kind("notice").any(|event| event["message"].to_string().contains("did not come")));
    assert_eq!((outcome.code, outcome.all_violations()), (Some(0), Vec::new()));
    assert_eq!(scene.generations(), [scene.generation + 1; 2]);
}

/// Starts a commit that is paused; other requests go on.
fn pause(scene: &Scene, backend: &Backend, driver: &mut replay::driver::Driver) {
    for change in &scene.faulty.blocks {
        assert!(driver.attempt(change));
    }
    driver.flush();
    driver.begin(1, &scene.faulty.supers[0]);
    wait_until("it is paused", || !status(backend)["paused"].is_null());
    assert_eq!(driver.end(1, SOON), None, "the super block write was answered");
    driver.flush();
    assert!(driver.attempt(&scene.faulty.blocks[0]), "other writes go on");
    let status = status(backend);
    assert_eq!(status["policy"], "pause");
    assert_eq!(status["paused"]["generation"], scene.generation, "{status:#}");
    assert_eq!(status["paused"]["kind"], "transaction");
    assert!(status["paused"]["why"][0].as_str().is_some_and(|why| why.contains('/')), "{status:#}");
    assert_eq!(scene.generations(), [scene.generation - 1; 2]);
    let text = String::from_utf8(ctl(backend, &["status"]).stdout).expect("text");
    assert!(text.contains(&format!("paused      generation {}", scene.generation)), "{text}");
    for args in [&["status"][..], &["status", "--json"], &["violations"], &["violations", "--json"]] {
        unread(backend, args);
    }
}

/// Asks for what nobody reads: the reader is gone, as with `| head -1`.
#[track_caller]
fn unread(backend: &Backend, args: &[&str]) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(program());
    command.arg("ctl").arg(backend.control()).args(args).stdout(writer);
    let output = command.output().expect("btrfs-shadow ctl");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.as_ref()), (Some(0), ""), "{args:?}");
}

#[test]
fn a_paused_commit_is_resumed() {
    let scene = scene();
    let backend = scene.start(&["--once", "--on-violation", "pause"]);
    let mut driver = backend.connect();
    pause(&scene, &backend, &mut driver);
    assert!(ctl(&backend, &["resume"]).status.success());
    assert_eq!(driver.end(1, PATIENCE), Some(true));
    assert!(driver.attempt(&scene.faulty.supers[1]));
    assert_eq!(scene.generations(), [scene.generation; 2]);
    let again = ctl(&backend, &["resume"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("no commit is paused"));
    let shown = String::from_utf8(ctl(&backend, &["violations", "--json"]).stdout).expect("text");
    assert!(shown.lines().count() >= 1 && shown.contains("\"origin\":\"commit\""), "{shown}");
    drop(driver);
    let outcome = backend.wait();
    assert_eq!((outcome.code, policies(&outcome)), (Some(1), vec!["paused".to_owned()]));
    let resolution = outcome.of_kind("resolution").next().expect("a resolution");
    assert_eq!((&resolution["policy"], &resolution["by"]), (&Value::from("written"), &Value::from("ctl")));
    assert_eq!(resolution["generation"], scene.generation);
}

/// What is guarded is made anew from the last commit: not before it is known which that is.
#[test]
fn the_image_gets_larger_during_a_pause() {
    let scene = scene();
    let backend = scene.start(&["--once", "--on-violation", "pause"]);
    let mut driver = backend.connect();
    pause(&scene, &backend, &mut driver);
    let len = std::fs::metadata(scene.image.path()).expect("the image").len() + (300 << 20);
    File::options().write(true).open(scene.image.path()).and_then(|file| file.set_len(len)).expect("a size");
    let last = Change { offset: len - 4096, bytes: vec![1; 4096] };
    wait_until("the size is followed", || driver.attempt(&last));
    assert_eq!(status(&backend)["size"], len);
    assert!(ctl(&backend, &["reject"]).status.success());
    assert_eq!(driver.end(1, PATIENCE), Some(false));
    assert!(!driver.attempt(&scene.faulty.supers[1]), "its copy");
    backend.wait_for_notice(&format!("the image has {len} bytes now"));
    assert_eq!(commit(&mut driver, &scene.sound, &mut Rng::new(3)), (true, Some(true)));
    drop(driver);
    let outcome = backend.wait();
    assert_eq!(
        (outcome.code, policies(&outcome)),
        (Some(1), vec!["paused".to_owned(), "written".to_owned()])
    );
}

#[test]
fn a_paused_commit_is_rejected() {
    let scene = scene();
    let backend = scene.start(&["--once", "--on-violation", "pause"]);
    let mut driver = backend.connect();
    pause(&scene, &backend, &mut driver);
    assert!(ctl(&backend, &["reject"]).status.success());
    assert_eq!(driver.end(1, PATIENCE), Some(false));
    assert!(!driver.attempt(&scene.faulty.supers[1]), "its copy");
    scene.assert_last_good();
    let mut rng = Rng::new(3);
    assert_eq!(commit(&mut driver, &scene.sound, &mut rng), (true, Some(true)));
    drop(driver);
    let outcome = backend.wait();
    assert_eq!(policies(&outcome), ["paused", "written"]);
    assert_eq!(outcome.of_kind("resolution").next().expect("a resolution")["policy"], "rejected");
}

/// The guest is gone, or the program is told to end: nobody waits for ever, and nothing faulty is written.
#[test]
fn a_paused_commit_ends_with_its_session() {
    for by_stop in [false, true] {
        let scene = scene();
        let backend = scene.start(&["--once", "--on-violation", "pause"]);
        let mut driver = backend.connect();
        pause(&scene, &backend, &mut driver);
        if by_stop {
            assert!(ctl(&backend, &["stop"]).status.success());
            assert_eq!(driver.end(1, PATIENCE), Some(false));
        }
        drop(driver);
        let outcome = backend.wait();
        assert_eq!(outcome.code, Some(1));
        let resolution = outcome.of_kind("resolution").next().expect("a resolution");
        assert_eq!(resolution["policy"], "rejected");
        scene.assert_last_good();
    }
}

#[test]
fn stop_refuses_the_commit_and_ends_with_1() {
    let scene = scene();
    let mut rng = Rng::new(4);
    let backend = scene.start(&["--on-violation", "stop"]);
    let mut driver = backend.connect();
    driver.write(&scene.faulty.blocks, &mut rng);
    driver.flush();
    assert!(!driver.attempt(&scene.faulty.supers[0]));
    let outcome = backend.wait();
    drop(driver);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(policies(&outcome), ["rejected"]);
    scene.assert_last_good();
}

/// Under `report`, nothing is refused and no copy is held.
#[test]
fn report_writes_whatever_comes() {
    let scene = scene();
    let backend = scene.start(&["--once"]);
    let mut driver = backend.connect();
    let mut rng = Rng::new(5);
    driver.write(&scene.faulty.blocks, &mut rng);
    driver.flush();
    assert!(driver.attempt(&scene.faulty.supers[1]), "a copy before its primary");
    assert!(driver.attempt(&scene.faulty.supers[0]));
    drop(driver);
    let outcome = backend.wait();
    assert_eq!((outcome.code, policies(&outcome)), (Some(1), vec!["written".to_owned()]));
    assert_eq!(scene.generations(), [scene.generation; 2]);
}

/// A rule that is a warning, or off, refuses nothing.
#[test]
fn a_warning_refuses_nothing() {
    for level in ["warn", "off"] {
        let scene = scene();
        let (refs, trees) = (format!("ref/*={level}"), format!("tree/*={level}"));
        let backend = scene.start(&["--once", "--on-violation", "reject", "--rule", &refs, "--rule", &trees]);
        let mut driver = backend.connect();
        let mut rng = Rng::new(6);
        assert_eq!(commit(&mut driver, &scene.faulty, &mut rng), (true, Some(true)));
        drop(driver);
        let outcome = backend.wait();
        assert_eq!(policies(&outcome), ["written"]);
        assert_ne!(outcome.code, Some(1));
        let severities: Vec<&Value> = outcome.of_kind("violation").map(|event| &event["severity"]).collect();
        assert!(severities.iter().all(|severity| **severity == "warning"));
        assert_eq!(severities.is_empty(), level == "off");
    }
}

/// A super block that nothing can be mounted with is refused where that is an error, and the report says so.
#[test]
fn a_super_block_that_is_none_is_refused_and_the_report_says_so() {
    let warn = ["--once", "--on-violation", "reject", "--rule", "tree/super-block=warn"];
    for (options, refuses) in [(&warn[..3], true), (&warn[..1], false), (&warn, false)] {
        let scene = scene();
        let backend = scene.start(options);
        let mut driver = backend.connect();
        let mut broken = scene.sound.supers[0].clone();
        broken.bytes[2000] ^= 4;
        write_blocks(&mut driver, &scene.sound);
        assert_eq!(driver.attempt(&broken), !refuses);
        if refuses {
            scene.assert_last_good();
            // Of the same generation, and not the same: its copy may come first, and waits for it.
            write_blocks(&mut driver, &scene.sound);
            driver.begin(1, &scene.sound.supers[1]);
            assert_eq!(driver.end(1, SOON), None);
            assert!(driver.attempt(&scene.sound.supers[0]));
            assert_eq!(driver.end(1, PATIENCE), Some(true));
        }
        drop(driver);
        let outcome = backend.wait();
        let [found] = outcome.all_violations().try_into().expect("one violation");
        let what = "the super block is written with wrong content: checksum verify failed";
        let fate = if refuses { "; the write was refused" } else { "" };
        assert_eq!((found.code.as_str(), found.message), ("tree/super-block", format!("{what}{fate}")));
        assert_eq!(found.is_error, options.len() < warn.len());
        assert_eq!(outcome.code == Some(1), found.is_error);
    }
}

/// The other end of a monitor's socket: answers commands as QEMU does, and notes them.
struct FakeMonitor {
    path: PathBuf,
    _dir: tempfile::TempDir,
    commands: std::sync::mpsc::Receiver<String>,
}

impl FakeMonitor {
    fn start(running: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("a socket");
        let (sender, commands) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let hello = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
                let _ = stream.write_all(hello.as_bytes());
                let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
                while let Some(Ok(line)) = lines.next() {
                    let request: Value = serde_json::from_str(&line).expect("JSON");
                    let command = request["execute"].as_str().expect("a command").to_owned();
                    let status = format!("{{\"return\": {{\"running\": {running}}}}}\r\n");
                    let answer =
                        if command == "query-status" { status } else { "{\"return\": {}}\r\n".to_owned() };
                    let event = "{\"event\": \"STOP\", \"timestamp\": {}}\r\n";
                    let _ = stream.write_all((event.to_owned() + &answer).as_bytes());
                    let _ = sender.send(command);
                }
            }
        });
        FakeMonitor { path, _dir: dir, commands }
    }

    fn next(&self) -> String {
        self.commands.recv_timeout(PATIENCE).expect("a command")
    }
}

#[test]
fn the_monitor_is_told_to_stop_and_to_go_on() {
    for running in [true, false] {
        let monitor = FakeMonitor::start(running);
        let scene = scene();
        let qmp = monitor.path.to_str().expect("a plain path");
        let backend = scene.start(&["--once", "--on-violation", "pause", "--qmp", qmp]);
        let mut driver = backend.connect();
        pause(&scene, &backend, &mut driver);
        assert_eq!(monitor.next(), "qmp_capabilities");
        assert_eq!(monitor.next(), "query-status");
        if running {
            assert_eq!(monitor.next(), "stop");
        }
        assert!(ctl(&backend, &["reject"]).status.success());
        if running {
            assert_eq!(monitor.next(), "cont");
        }
        assert_eq!(driver.end(1, PATIENCE), Some(false));
        drop(driver);
        assert!(monitor.commands.try_recv().is_err(), "one that was stopped by others was let go on");
        let _ = backend.wait();
        scene.assert_last_good();
    }
}

#[test]
fn a_monitor_that_is_not_there_is_a_notice() {
    let scene = scene();
    let backend = scene.start(&["--once", "--on-violation", "pause", "--qmp", "/nonexistent/qmp"]);
    let mut driver = backend.connect();
    pause(&scene, &backend, &mut driver);
    wait_until("a notice about the monitor", || {
        backend.events().iter().any(|event| {
            event["event"] == "notice"
                && event["message"].as_str().is_some_and(|text| text.contains("monitor"))
        })
    });
    assert!(ctl(&backend, &["resume"]).status.success());
    assert_eq!(driver.end(1, PATIENCE), Some(true));
}

/// Speaks to a control socket directly.
fn ask(stream: &mut UnixStream, request: &str) -> Value {
    stream.write_all(request.as_bytes()).expect("a request");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("a response");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn the_control_socket_survives_its_clients() {
    let scene = scene();
    let backend = scene.start(&[]);
    let mode = std::fs::metadata(backend.control()).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let connect = || UnixStream::connect(backend.control()).expect("the socket");
    // One that says nothing, one that says half a request, and one that is gone.
    let silent = connect();
    let mut half = connect();
    half.write_all(b"{\"command\":").expect("half a request");
    drop(connect());
    let mut garbage = connect();
    for request in
        ["nonsense\n", "[1,2]\n", "{\"command\":\"dance\"}\n", "\u{0}\n", "{\"command\":\"mark\"}\n"]
    {
        assert_eq!(ask(&mut garbage, request)["ok"], false, "{request}");
    }
    // And it may still ask properly.
    let response = ask(&mut garbage, "{\"command\":\"status\"}\n");
    assert_eq!((&response["ok"], &response["status"]["paused"]), (&Value::from(true), &Value::Null));
    assert_eq!(response["status"]["file_system"]["generation"], scene.generation - 1);
    let mut endless = connect();
    let _ = endless.write_all(&[b'x'; 10000]);
    let mut answer = String::new();
    let _ = endless.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.contains("too long"), "{answer}");
    let name = "n".repeat(300);
    assert_eq!(ctl(&backend, &["mark", &name]).status.code(), Some(2));
    assert!(ctl(&backend, &["mark", "before the test"]).status.success());
    // More than there are places for: those that have one are served on.
    let crowd: Vec<UnixStream> = (0..20).map(|_| connect()).collect();
    wait_until("somebody is sent away", || {
        let mut last = &crowd[19];
        last.set_read_timeout(Some(SOON)).expect("a timeout");
        let mut bytes = [0; 100];
        last.read(&mut bytes).is_ok_and(|len| String::from_utf8_lossy(&bytes[..len]).contains("too many"))
    });
    assert_eq!(ask(&mut garbage, "{\"command\":\"violations\"}\n")["violations"], Value::Array(Vec::new()));
    drop((crowd, silent, half));
    wait_until("places are free again", || ctl(&backend, &["status"]).status.success());
    wait_until("a place to say stop", || ctl(&backend, &["stop"]).status.success());
    let control = backend.control();
    let outcome = backend.wait();
    assert!(!control.exists(), "the socket was left behind");
    assert!(outcome.of_kind("mark").any(|event| event["name"] == "before the test"));
    assert_eq!(
        Command::new(program()).arg("ctl").arg(control).arg("status").status().unwrap().code(),
        Some(2)
    );
}
