//! The built program, as a backend of one image and as a checker.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::driver::Driver;
use crate::history::{Change, Step};
use crate::rng::Rng;

/// Longer than the program takes to start or to end on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a commit writes.
#[derive(Debug, Clone)]
pub struct Writes {
    /// Before the super block.
    pub blocks: Vec<Change>,
    /// The primary super block, then its copies.
    pub supers: Vec<Change>,
}

impl From<&Step> for Writes {
    fn from(step: &Step) -> Self {
        Writes { blocks: step.blocks.clone(), supers: step.supers.clone() }
    }
}

/// What a driver is told to do.
#[derive(Debug, Clone)]
pub enum Op {
    /// Write all of these, in any order.
    Blocks(Vec<Change>),
    /// Write this one.
    Write(Change),
    /// Flush.
    Flush,
    /// Discard this many bytes from here.
    Discard(u64, u64),
    /// Write this many zeros here.
    Zeroes(u64, u64),
}

impl Writes {
    /// A commit as a kernel makes it.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        let mut ops = vec![Op::Blocks(self.blocks.clone()), Op::Flush];
        ops.extend(self.supers.iter().cloned().map(Op::Write));
        ops.push(Op::Flush);
        ops
    }
}

/// Has a driver do all this.
///
/// # Panics
/// When a request fails.
pub fn carry_out(driver: &mut Driver, ops: &[Op], seed: u64) {
    let mut rng = Rng::new(seed);
    for op in ops {
        match op {
            Op::Blocks(changes) => driver.write(changes, &mut rng),
            Op::Write(change) => driver.write_one(change),
            Op::Flush => driver.flush(),
            Op::Discard(offset, len) => driver.erase(*offset, *len, false),
            Op::Zeroes(offset, len) => driver.erase(*offset, *len, true),
        }
    }
}

/// A running `btrfs-shadow serve --once`.
pub struct Backend {
    child: Child,
    dir: TempDir,
}

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; none for a run that was killed.
    pub code: Option<i32>,
    /// Its events.
    pub events: Vec<Value>,
    /// What it said.
    pub stderr: String,
}

impl Backend {
    /// Starts the program on an image and waits for its socket.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(program: &Path, image: &Path) -> Self {
        Self::start_with(program, image, &["--once"])
    }

    /// The same with options of `serve` instead of `--once`. A control socket is there, too.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_with(program: &Path, image: &Path, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let stderr = File::create(dir.path().join("stderr")).expect("a log file");
        let mut command = Command::new(program);
        command.args(["serve", "--quiet", "--blk-file"]).arg(image).args(options);
        command.arg("--socket-path").arg(dir.path().join("socket"));
        command.arg("--events").arg(dir.path().join("events"));
        command.arg("--control").arg(dir.path().join("control"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let mut backend = Backend { child: command.spawn().expect("the built btrfs-shadow"), dir };
        let deadline = Instant::now() + PATIENCE;
        while !backend.path("socket").exists() {
            let ended = backend.child.try_wait().expect("the backend's state");
            assert!(ended.is_none(), "the backend ended at once: {}", backend.text("stderr"));
            assert!(Instant::now() < deadline, "the backend opened no socket");
            std::thread::sleep(Duration::from_millis(2));
        }
        backend
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.path("control")
    }

    /// Connects to it, as a guest's driver does.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn connect(&self) -> Driver {
        Driver::connect(&self.path("socket"))
    }

    /// Its events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let text = self.text("events");
        // The last line may be half written.
        events(text.rsplit_once('\n').map_or("", |(whole, _)| whole))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Makes commits, disconnects, and waits for the end.
    ///
    /// # Panics
    /// When the backend fails a request or does not end.
    #[must_use]
    pub fn replay(self, commits: &[Writes], seed: u64) -> Outcome {
        let ops: Vec<Op> = commits.iter().flat_map(Writes::ops).collect();
        self.perform(&ops, seed)
    }

    /// Does all this, disconnects, and waits for the end.
    ///
    /// # Panics
    /// When the backend fails a request or does not end.
    #[must_use]
    pub fn perform(self, ops: &[Op], seed: u64) -> Outcome {
        let mut driver = self.connect();
        carry_out(&mut driver, ops, seed);
        drop(driver);
        self.wait()
    }

    /// Waits until it says so in a notice.
    ///
    /// # Panics
    /// When it doesn't.
    pub fn wait_for_notice(&self, says: &str) {
        let deadline = Instant::now() + PATIENCE;
        let said = |event: &Value| {
            event["event"] == "notice"
                && event["message"].as_str().is_some_and(|message| message.contains(says))
        };
        while !self.events().iter().any(said) {
            assert!(Instant::now() < deadline, "it never said: {says}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn wait(mut self) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the backend's state") {
                break status;
            }
            assert!(Instant::now() < deadline, "the backend did not end: {}", self.text("stderr"));
            std::thread::sleep(Duration::from_millis(2));
        };
        Outcome { code: status.code(), events: events(&self.text("events")), stderr: self.text("stderr") }
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

/// Runs `btrfs-shadow check` on an image.
///
/// # Panics
/// When it can't be run.
#[must_use]
pub fn check(program: &Path, image: &Path) -> Outcome {
    let output = Command::new(program).args(["check", "--json"]).arg(image).output().expect("btrfs-shadow");
    Outcome {
        code: output.status.code(),
        events: events(&String::from_utf8_lossy(&output.stdout)),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn events(text: &str) -> Vec<Value> {
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON: {error}: {line}"));
    text.lines().map(parse).collect()
}

impl Outcome {
    /// The events of one kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["event"] == kind)
    }

    /// The transaction commit of a generation.
    #[must_use]
    pub fn commit(&self, generation: u64) -> Option<&Value> {
        self.of_kind("commit")
            .find(|event| event["generation"] == generation && event["kind"] == "transaction")
    }

    /// The verdict on a generation; "none" when it had none.
    #[must_use]
    pub fn verdict(&self, generation: u64) -> &str {
        self.commit(generation).and_then(|event| event["verdict"].as_str()).unwrap_or("none")
    }

    /// Violations of a generation that a commit brought.
    #[must_use]
    pub fn violations(&self, generation: u64) -> Vec<Reported> {
        let own = self
            .of_kind("violation")
            .filter(|event| event["generation"] == generation && event["origin"] == "commit");
        own.map(Reported::new).collect()
    }

    /// All violations, whatever brought them.
    #[must_use]
    pub fn all_violations(&self) -> Vec<Reported> {
        self.of_kind("violation").map(Reported::new).collect()
    }
}

/// A violation that was reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// Its code.
    pub code: String,
    /// What it says.
    pub message: String,
    /// Whether it is an error, and no warning.
    pub is_error: bool,
}

impl Reported {
    fn new(event: &Value) -> Self {
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        Reported { code: text("code"), message: text("message"), is_error: text("severity") == "error" }
    }
}
