//! What the tests with real guests share: images, the built program as a backend, a guest that uses it, its events.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than the backend takes to start or to end on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longer than a guest takes from its start, others before it, to anything it does: with several tests at once it waits
/// for [`guest_lock`] as well.
const GUEST_PATIENCE: Duration = Duration::from_secs(3600);

/// A path in the repository.
fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs one of btrfs-progs' programs.
fn run(program: &str, args: &[&str], image: &Path) -> Output {
    // Where an ordinary user's PATH lacks sbin.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    Command::new(program)
        .env("PATH", path)
        .args(args)
        .arg(image)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; vm-scripts/test installs what the tests need"))
}

/// An image file in a directory that goes away with it.
pub struct Image {
    _dir: TempDir,
    path: PathBuf,
}

impl Image {
    /// A sparse file of zeros.
    pub fn blank(mib: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disk.img");
        File::create(&path).and_then(|file| file.set_len(mib << 20)).expect("an image file");
        Image { _dir: dir, path }
    }

    /// A new btrfs; `options` are those of mkfs.btrfs, separated by blanks.
    pub fn mkfs(mib: u64, options: &str) -> Self {
        let image = Image::blank(mib);
        let mut args = vec!["-q"];
        args.extend(options.split_whitespace());
        let output = run("mkfs.btrfs", &args, &image.path);
        assert!(output.status.success(), "mkfs.btrfs {options}: {}", String::from_utf8_lossy(&output.stderr));
        image
    }

    /// The image file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A field of the super block, as `btrfs inspect-internal dump-super` spells it.
    pub fn super_field(&self, name: &str) -> String {
        let output = run("btrfs", &["inspect-internal", "dump-super"], &self.path);
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .filter_map(|line| line.split_once(char::is_whitespace))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_else(|| panic!("no {name} in the super block:\n{text}"))
    }

    pub fn generation(&self) -> u64 {
        self.super_field("generation").parse().expect("a number")
    }

    /// The file system's identity as events spell it.
    pub fn fsid(&self) -> String {
        self.super_field("fsid")
    }

    /// `btrfs check` agrees that the image is in order.
    pub fn assert_checked(&self) {
        let output = run("btrfs", &["check"], &self.path);
        assert!(
            output.status.success(),
            "btrfs check found errors:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// `btrfs-shadow serve` on an image.
pub struct Backend {
    child: Child,
    dir: TempDir,
}

/// What became of a backend.
pub struct Outcome {
    pub code: Option<i32>,
    pub events: Events,
    pub stderr: String,
}

impl Backend {
    /// Starts it and waits for its socket.
    pub fn start(image: &Image, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| File::create(dir.path().join(name)).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_btrfs-shadow"))
            .arg("serve")
            .arg("--blk-file")
            .arg(image.path())
            .arg("--socket-path")
            .arg(dir.path().join("socket"))
            .arg("--events")
            .arg(dir.path().join("events"))
            .arg("--control")
            .arg(dir.path().join("control"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .expect("the built btrfs-shadow");
        let mut backend = Backend { child, dir };
        let deadline = Instant::now() + PATIENCE;
        while !backend.socket().exists() {
            let ended = backend.child.try_wait().expect("the backend's state");
            assert!(ended.is_none(), "the backend ended at once: {}", backend.text("stderr"));
            assert!(Instant::now() < deadline, "the backend opened no socket");
            std::thread::sleep(Duration::from_millis(20));
        }
        backend
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// A path beside its socket.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Asks it with `btrfs-shadow ctl`, once it has a control socket; what it answers.
    pub fn ctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_btrfs-shadow"));
        command.arg("ctl").arg(self.path("control")).args(args).output().expect("btrfs-shadow ctl")
    }

    /// What `ctl status` says.
    pub fn status(&self) -> Value {
        let output = self.ctl(&["status", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Waits until a commit is paused; the status then. It must happen while there is a guest, which `is_over` knows.
    pub fn wait_for_pause(&self, is_over: impl Fn() -> bool) -> Value {
        self.wait_for_status(is_over, |status| !status["paused"].is_null())
    }

    /// Waits for a status; it must come while there is a guest, which `is_over` knows.
    pub fn wait_for_status(&self, is_over: impl Fn() -> bool, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + GUEST_PATIENCE;
        loop {
            let over = is_over();
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(!over && Instant::now() < deadline, "it did not come to that: {status:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// Waits for the end by itself, as with `--once`.
    pub fn wait(mut self) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().expect("the backend's state") {
                break status;
            }
            assert!(Instant::now() < deadline, "the backend did not end: {}", self.text("stderr"));
            std::thread::sleep(Duration::from_millis(50));
        };
        Outcome {
            code: status.code(),
            events: Events::parse(&self.text("events")),
            stderr: self.text("stderr"),
        }
    }

    /// Asks it to end (SIGTERM), and waits.
    pub fn terminate(self) -> Outcome {
        let pid = self.child.id().to_string();
        // The shell's own: the program of that name is not everywhere.
        let status = Command::new("sh").args(["-c", "kill -TERM $0", &pid]).status().expect("sh");
        assert!(status.success(), "the backend was gone before it was asked to end: {}", self.text("stderr"));
        self.wait()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Outcome {
    /// Verified and clean: exit code 0 and not one violation.
    pub fn assert_clean(&self) {
        assert!(self.events.violations().is_empty(), "violations: {:#?}", self.events.violations());
        assert_eq!(self.code, Some(0), "exit code; standard error: {}", self.stderr);
    }
}

/// The events of a run, in their order.
pub struct Events(Vec<Value>);

impl Events {
    fn parse(text: &str) -> Self {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON: {error}: {line}"))
        };
        Events(text.lines().map(parse).collect())
    }

    /// Those of one kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |event| event["event"] == kind)
    }

    pub fn violations(&self) -> Vec<&Value> {
        self.of_kind("violation").collect()
    }

    /// Identities of all file systems that were attached, each once, in the order of their first appearance.
    pub fn file_systems(&self) -> Vec<&str> {
        let mut found = Vec::new();
        for event in self.of_kind("attach") {
            let fs = event["fs"].as_str().expect("an attach event names its file system");
            if !found.contains(&fs) {
                found.push(fs);
            }
        }
        found
    }

    /// Generation at which a file system was first attached.
    pub fn attach_generation(&self, fs: &str) -> u64 {
        let attach = self.of_kind("attach").find(|event| event["fs"] == fs);
        let attach = attach.unwrap_or_else(|| panic!("{fs} was never attached"));
        attach["generation"].as_u64().expect("an attach event has a generation")
    }

    /// Generations of a file system's transaction commits, in their order.
    pub fn transactions(&self, fs: &str) -> Vec<u64> {
        self.of_kind("commit")
            .filter(|event| event["fs"] == fs && event["kind"] == "transaction")
            .map(|event| event["generation"].as_u64().expect("a commit event has a generation"))
            .collect()
    }

    /// How many log commits (fsync) a file system made.
    pub fn log_commits(&self, fs: &str) -> usize {
        self.of_kind("commit").filter(|event| event["fs"] == fs && event["kind"] == "log").count()
    }

    /// From its attachment to generation `last`, each of the file system's generations was committed exactly once, and
    /// each of its commits, of the log too, has the verdict clean.
    pub fn assert_every_commit_clean(&self, fs: &str, last: u64) {
        let doubtful: Vec<_> =
            self.of_kind("commit").filter(|event| event["fs"] == fs && event["verdict"] != "clean").collect();
        assert!(doubtful.is_empty(), "commits that are not clean: {doubtful:#?}");
        let expected: Vec<u64> = (self.attach_generation(fs) + 1..=last).collect();
        assert_eq!(self.transactions(fs), expected, "generations of the commits of {fs}");
    }
}

/// Runs one of `vm-scripts` that have guests of their own on the built program; it must end well.
pub fn script(name: &str, arguments: &[&str]) {
    let _alone = guest_lock();
    let mut command = Command::new(in_repository("vm-scripts").join(name));
    let output = command.args(["--binary", env!("CARGO_BIN_EXE_btrfs-shadow")]).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("vm-scripts/{name}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// One guest at a time on this machine: with more, they would run into their time limits.
fn guest_lock() -> File {
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(in_repository(".vm-cache/guest-tests.lock"))
        .expect("a lock file");
    lock.lock().expect("the lock");
    lock
}

/// A run of `vm-scripts/guest`.
pub struct Guest {
    command: Command,
    log: tempfile::NamedTempFile,
}

impl Guest {
    /// A guest with a stock kernel and one of `vm-scripts/workloads`.
    pub fn new(kernel: &str, workload: &str) -> Self {
        for file in ["vmlinuz", "initramfs"] {
            let path = in_repository(".vm-cache").join(kernel).join(file);
            assert!(path.exists(), "no {}: these tests are run by vm-scripts/test", path.display());
        }
        let log = tempfile::NamedTempFile::new().expect("a file for the guest's console");
        let mut command = Command::new(in_repository("vm-scripts/guest"));
        command
            .args(["--kernel", kernel, "--workload", workload, "--timeout", "600", "--log"])
            .arg(log.path());
        Guest { command, log }
    }

    /// Options of `vm-scripts/guest`.
    pub fn with(mut self, options: &[&str]) -> Self {
        self.command.args(options);
        self
    }

    /// A variable for the workload.
    pub fn env(self, setting: &str) -> Self {
        self.with(&["--env", setting])
    }

    /// Runs the guest on a backend. Returns its exit code and what it printed.
    pub fn run(mut self, backend: &Backend) -> (Option<i32>, String) {
        let alone = guest_lock();
        let output = self.command.arg("--vhost").arg(backend.socket()).output().expect("vm-scripts/guest");
        drop(alone);
        let console = std::fs::read(self.log.path()).unwrap_or_default();
        let said = String::from_utf8_lossy(&output.stderr);
        (output.status.code(), format!("{said}\n{}", String::from_utf8_lossy(&console)))
    }

    /// Like [`Guest::run`], and the workload must end well.
    pub fn succeed(self, backend: &Backend) {
        let (code, text) = self.run(backend);
        assert_eq!(code, Some(0), "exit code of the guest:\n{text}");
    }
}
