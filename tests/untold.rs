//! Events that can't be written: a full disk, a reader that is gone or doesn't read. Serving goes on, and what is lost
//! is counted and said.

#[path = "common/engines.rs"]
mod engines;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use engines::IO_URING;
use replay::driver::Driver;
use replay::rng::Rng;
use replay::{History, Plan};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Image, Spec};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_btrfs-shadow"))
}

/// One sound commit.
static HISTORY: LazyLock<History> = LazyLock::new(|| {
    replay::record_singly(&Plan {
        spec: Spec::new("untold", "").mounted("commit=300,nodiscard"),
        prepare: "for i in $(seq 20); do echo $i > f$i; done".to_owned(),
        scripts: vec![("files".to_owned(), "for i in $(seq 20); do cp f$i g$i; done".to_owned())],
        live: false,
    })
});

/// Waits for something that is sure to come.
#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A server of an image, in a directory of its own.
struct Serving {
    child: Child,
    dir: TempDir,
    _image: Image,
}

/// The end of one.
struct End {
    code: Option<i32>,
    stderr: String,
}

impl Serving {
    /// `command` is the program, or what starts it.
    fn start(
        dir: TempDir,
        mut command: Command,
        options: &[&str],
        streams: impl FnOnce(&mut Command),
    ) -> Self {
        let image = HISTORY.base.copy();
        command.args(["serve", "--blk-file"]).arg(image.path()).args(options);
        command.arg("--socket-path").arg(dir.path().join("socket"));
        command.arg("--control").arg(dir.path().join("control"));
        command.stdout(Stdio::null()).stderr(File::create(dir.path().join("stderr")).expect("a log file"));
        streams(&mut command);
        let child = command.spawn().expect("the built btrfs-shadow");
        let serving = Serving { child, dir, _image: image };
        wait_until("a socket", || serving.path("socket").exists());
        serving
    }

    fn plain(options: &[&str]) -> Self {
        Self::start(directory(), Command::new(program()), options, |_| {})
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).expect("its log")
    }

    /// A guest comes and commits, and is answered.
    fn commit(&self) {
        let mut driver = Driver::connect(&self.path("socket"));
        let [step] = HISTORY.steps.as_slice() else { panic!("one commit") };
        driver.write(&step.blocks, &mut Rng::new(3));
        driver.flush();
        step.supers.iter().for_each(|superblock| driver.write_one(superblock));
        driver.flush();
    }

    /// Asks the control socket all this, one after the other without waiting, and gets all answers.
    fn ask(&self, requests: impl IntoIterator<Item = Value>) -> Vec<Value> {
        let mut stream = UnixStream::connect(self.path("control")).expect("a control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let lines: Vec<String> = requests.into_iter().map(|request| format!("{request}\n")).collect();
        let reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        let all = lines.concat();
        // Beside the reading: answers that nobody takes would hold up the requests.
        let writing = std::thread::spawn(move || stream.write_all(all.as_bytes()));
        let answers = reader.lines().take(lines.len()).map(|line| {
            let answer: Value = serde_json::from_str(&line.expect("an answer")).expect("JSON");
            assert_eq!(answer["ok"], true, "{answer}");
            answer
        });
        let answers: Vec<Value> = answers.collect();
        assert_eq!(answers.len(), lines.len());
        writing.join().expect("no panic").expect("requests");
        answers
    }

    /// How many events wait, and how many are lost.
    fn untold(&self) -> (u64, u64) {
        let status = self.ask([json!({ "command": "status" })]).remove(0);
        let events = &status["status"]["events"];
        (events["waiting"].as_u64().expect("a number"), events["lost"].as_u64().expect("a number"))
    }

    /// Sets marks of about 250 bytes with these numbers.
    fn mark(&self, numbers: std::ops::Range<usize>) {
        let filling = "x".repeat(200);
        self.ask(numbers.map(|number| json!({ "command": "mark", "name": format!("{number} {filling}") })));
    }

    fn stop(mut self) -> End {
        self.ask([json!({ "command": "stop" })]);
        wait_until("its end", || self.child.try_wait().expect("its state").is_some());
        End { code: self.child.wait().expect("its end").code(), stderr: self.stderr() }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// How often something is said.
fn count(text: &str, what: &str) -> usize {
    text.matches(what).count()
}

/// Objects, one a line, none of them cut short.
fn objects(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect()
}

/// Numbers of the marks among the events, and how many events are said to be missing before each; the last is what is
/// missing after all.
fn marks(events: &[Value]) -> Vec<(Option<usize>, u64)> {
    let mut missing = 0;
    let mut marks = Vec::new();
    for event in events {
        missing += event["lost"].as_u64().unwrap_or(0);
        if event["event"] == "mark" {
            let name = event["name"].as_str().expect("a name");
            let number = name.split(' ').next().and_then(|number| number.parse().ok());
            marks.push((number, std::mem::take(&mut missing)));
        }
    }
    marks.push((None, missing));
    marks
}

#[test]
fn a_full_disk_ends_nothing_and_is_said_once() {
    let serving = Serving::plain(&["--quiet", "--events", "/dev/full"]);
    serving.commit();
    serving.mark(0..20);
    let (waiting, lost) = serving.untold();
    assert!(waiting > 20 && lost == 0, "{waiting} {lost}");
    let end = serving.stop();
    assert_eq!(end.code, Some(3), "{}", end.stderr);
    assert_eq!(count(&end.stderr, "/dev/full can't be written: No space left"), 1, "{}", end.stderr);
    assert_eq!(count(&end.stderr, "events were not written to /dev/full"), 1, "{}", end.stderr);
}

#[test]
fn where_everything_can_be_told_nothing_is_said() {
    // That there is no io_uring would be said.
    let engine = if *IO_URING { "io-uring" } else { "sync" };
    let serving = Serving::plain(&["--events", "/dev/null", "--io-engine", engine]);
    serving.commit();
    assert_eq!(serving.untold(), (0, 0));
    let end = serving.stop();
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""));
}

/// With nowhere to say anything at all.
#[test]
fn a_log_that_can_not_be_written_either() {
    let full = || OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let serving =
        Serving::start(directory(), Command::new(program()), &["--events", "/dev/full"], |command| {
            command.stdout(full()).stderr(full());
        });
    serving.commit();
    assert_eq!(serving.stop().code, Some(3));
}

#[test]
fn a_standard_output_that_is_closed() {
    for (events, code) in [(None, 3), (Some("/dev/null"), 0)] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let options: Vec<&str> = events.iter().flat_map(|events| ["--events", events]).collect();
        let serving = Serving::start(directory(), Command::new(program()), &options, |command| {
            command.stdout(writer);
        });
        serving.commit();
        let end = serving.stop();
        // What is there for people besides matters only where there is nothing else.
        assert_eq!(end.code, Some(code), "{}", end.stderr);
        assert_eq!(count(&end.stderr, "standard output can't be written: Broken pipe"), 1, "{}", end.stderr);
    }
}

/// A named pipe.
fn fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().expect("mkfifo");
    assert!(made.success());
}

/// Opens a pipe for reading without waiting for a writer.
fn reader(path: &Path) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).expect("a pipe")
}

/// Reads what is there; whether it was the end.
fn read_on(pipe: &mut File, text: &mut Vec<u8>) -> bool {
    let mut bytes = [0; 65536];
    loop {
        match pipe.read(&mut bytes) {
            Ok(0) => return true,
            Ok(count) => text.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_reader_that_does_not_read_holds_up_nobody_and_learns_what_it_has_missed() {
    const SENT: usize = 6000;
    let dir = directory();
    let path = dir.path().join("pipe");
    fifo(&path);
    let mut pipe = reader(&path);
    let events = path.to_str().expect("a path").to_owned();
    let options = ["--quiet", "--events", &events];
    let serving = Serving::start(dir, Command::new(program()), &options, |_| {});
    serving.commit();
    serving.mark(0..SENT);
    let (waiting, lost) = serving.untold();
    assert!(waiting > 1000 && lost > 500, "{waiting} {lost}");
    let mut text = Vec::new();
    wait_until("room", || {
        read_on(&mut pipe, &mut text);
        serving.untold().0 == 0
    });
    serving.mark(SENT..SENT + 1);
    let end = serving.stop();
    wait_until("the end of the pipe", || read_on(&mut pipe, &mut text));
    assert_eq!(end.code, Some(3), "{}", end.stderr);
    assert_eq!(count(&end.stderr, "can't be written: nobody reads it"), 1, "{}", end.stderr);
    assert_eq!(count(&end.stderr, &format!("{lost} events were lost")), 1, "{}", end.stderr);
    let marks = marks(&objects(std::str::from_utf8(&text).expect("text")));
    // Each is there, or among the missing at its place.
    let mut next = 0;
    for (number, missing) in &marks {
        next += *missing as usize;
        if let Some(number) = number {
            assert_eq!(*number, next, "{missing} missing before it");
            next += 1;
        }
    }
    assert_eq!(next, SENT + 1);
    assert_eq!(marks.iter().map(|(_, missing)| missing).sum::<u64>(), lost);
}

#[test]
fn a_reader_that_comes_back_gets_what_it_has_missed() {
    let dir = directory();
    let path = dir.path().join("pipe");
    fifo(&path);
    let mut first = reader(&path);
    let events = path.to_str().expect("a path").to_owned();
    let serving = Serving::start(dir, Command::new(program()), &["--quiet", "--events", &events], |_| {});
    serving.mark(0..10);
    let mut text = Vec::new();
    read_on(&mut first, &mut text);
    drop(first);
    serving.commit();
    serving.mark(10..20);
    assert!(serving.untold().0 > 10);
    let mut second = reader(&path);
    // No event comes meanwhile: it is tried again nevertheless.
    wait_until("all is written", || serving.untold() == (0, 0));
    let end = serving.stop();
    wait_until("the end of the pipe", || read_on(&mut second, &mut text));
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    assert_eq!(count(&end.stderr, "no event was lost"), 1, "{}", end.stderr);
    let marks = marks(&objects(std::str::from_utf8(&text).expect("text")));
    let expected: Vec<_> = (0..20).map(|number| (Some(number), 0)).chain([(None, 0)]).collect();
    assert_eq!(marks, expected);
}

/// A small file system that fills up, and gets room again.
#[test]
fn a_disk_that_has_room_again_gets_what_it_has_missed() {
    if fs::metadata("/proc/self").expect("/proc").uid() != 0 {
        eprintln!("not root: no small file system can be mounted, not tested");
        return;
    }
    let dir = directory();
    let small = dir.path().join("small");
    fs::create_dir(&small).expect("a directory");
    // In a mount namespace of its own; a page more than the filling has room.
    let mut command = Command::new("unshare");
    let script =
        "mount -t tmpfs -o size=64k none \"$0\" && head -c 57344 /dev/zero > \"$0/filling\" && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(&small).arg(program());
    let events = small.join("events").to_str().expect("a path").to_owned();
    let serving = Serving::start(dir, command, &["--quiet", "--events", &events], |_| {});
    let inside = PathBuf::from(format!("/proc/{}/root", serving.child.id()));
    let inside = |name: &str| inside.join(small.join(name).strip_prefix("/").expect("an absolute path"));
    serving.commit();
    serving.mark(0..60);
    assert!(serving.untold().0 > 0);
    // The last line is cut short, where the disk was full.
    assert!(!fs::read_to_string(inside("events")).expect("events").ends_with('\n'));
    fs::remove_file(inside("filling")).expect("room");
    wait_until("all is written", || serving.untold() == (0, 0));
    let text = fs::read_to_string(inside("events")).expect("events");
    let marks = marks(&objects(&text));
    let expected: Vec<_> = (0..60).map(|number| (Some(number), 0)).chain([(None, 0)]).collect();
    assert_eq!(marks, expected);
    let end = serving.stop();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    assert_eq!(count(&end.stderr, "can't be written: No space left"), 1, "{}", end.stderr);
    assert_eq!(count(&end.stderr, "no event was lost"), 1, "{}", end.stderr);
}

#[test]
fn a_check_that_nobody_hears_is_no_clean_one() {
    let check = |options: &[&str], stdout: Stdio| -> Output {
        let mut command = Command::new(program());
        command.arg("check").args(options).arg(HISTORY.base.path()).stdout(stdout);
        command.stderr(Stdio::piped()).spawn().and_then(Child::wait_with_output).expect("btrfs-shadow check")
    };
    for options in [&[][..], &["--json"]] {
        assert_eq!(check(options, Stdio::null()).status.code(), Some(0));
        let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let output = check(options, full.into());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert_eq!(count(&said, "standard output can't be written"), 1, "{said}");
    }
}
