//! The built program, to be stopped, looked at, killed and started again.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::PATIENCE;

/// Where a service lives from process to process.
pub struct Service {
    image: PathBuf,
    dir: TempDir,
    processes: usize,
    child: Option<Child>,
}

impl Service {
    pub fn new(image: &Path) -> Self {
        Self { image: image.to_owned(), dir: tempfile::tempdir().unwrap(), processes: 0, child: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    pub fn record(&self) -> PathBuf {
        self.path("socket.inflight")
    }

    /// Starts a process; its predecessor must be gone.
    pub fn start(&mut self, options: &[&str]) {
        assert!(self.child.is_none());
        self.processes += 1;
        let mut command = Command::new(env!("CARGO_BIN_EXE_btrfs-shadow"));
        command.args(["serve", "--quiet", "--blk-file"]).arg(&self.image).args(options);
        command.arg("--socket-path").arg(self.socket());
        command.arg("--control").arg(self.path("control"));
        command.arg("--events").arg(self.path(&format!("events{}", self.processes)));
        let stderr = File::create(self.path(&format!("stderr{}", self.processes))).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        self.child = Some(command.spawn().expect("the built btrfs-shadow"));
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = self.child.as_ref().expect("a process").id();
        // SAFETY: a child of ours that was not waited for.
        assert_eq!(unsafe { libc::kill(pid as libc::pid_t, signal) }, 0);
    }

    /// Stops it, wherever it is, and waits until all its threads stand still.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.child.as_ref().expect("a process").id());
        let stands_still = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
            stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')))
        };
        let deadline = Instant::now() + PATIENCE;
        while !std::fs::read_dir(&tasks).expect("its threads").all(stands_still) {
            assert!(Instant::now() < deadline, "it doesn't stop");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// `btrfs-shadow ctl`.
    pub fn ctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_btrfs-shadow"));
        command.arg("ctl").arg(self.path("control")).args(args).output().expect("btrfs-shadow ctl")
    }

    /// Waits until a commit is paused.
    pub fn wait_for_pause(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status: Option<Value> = serde_json::from_slice(&self.ctl(&["status", "--json"]).stdout).ok();
            if status.as_ref().is_some_and(|status| !status["paused"].is_null()) {
                return;
            }
            assert!(Instant::now() < deadline, "nothing is paused: {status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        let status = self.child.take().expect("a process").wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "it had ended by itself: {}", self.stderr());
    }

    /// SIGTERM; the exit code.
    pub fn terminate(&mut self) -> i32 {
        self.signal(libc::SIGTERM);
        self.wait()
    }

    /// The exit code, once it ends.
    pub fn wait(&mut self) -> i32 {
        let mut child = self.child.take().expect("a process");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code().expect("an exit code");
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("it doesn't end: {}", self.stderr());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the last process has said.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.path(&format!("stderr{}", self.processes))).unwrap_or_default()
    }

    /// The events of all processes; the last line of each may have been cut off.
    pub fn events(&self) -> Vec<Value> {
        let files = (1..=self.processes).map(|process| self.path(&format!("events{process}")));
        let text: Vec<String> = files.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        let lines = text.iter().filter_map(|text| Some(text.rsplit_once('\n')?.0)).flat_map(str::lines);
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no event: {line}"))).collect()
    }

    /// How many requests the record says to be in flight.
    pub fn recorded(&self) -> usize {
        let mut bytes = Vec::new();
        File::open(self.record()).and_then(|mut file| file.read_to_end(&mut bytes)).expect("the record");
        let word = |at: usize| u64::from_ne_bytes(bytes[at * 8..][..8].try_into().unwrap());
        // A page; then, for each of 64 queues, 16 words and two for each of 1024 entries: turn and fingerprint.
        let turns = (0..64).flat_map(|queue| (0..1024).map(move |head| 512 + queue * 2064 + 16 + head * 2));
        turns.filter(|at| word(*at) != 0).count()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
