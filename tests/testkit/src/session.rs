//! An image that stays mounted while script after script runs in it, watched in between.
//!
//! As with [`crate::Image::run`], the mount lives in a namespace of its own and ends with the shell in it, however the
//! test ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::image::{FUNCTIONS, Image};

/// Longer than any script takes.
const PATIENCE: Duration = Duration::from_secs(200);

/// How long a script is left alone before it is watched again.
const INTERVAL: Duration = Duration::from_micros(300);

/// Mounts `$1` on `$2` with options `$3`, then runs each script that it is told, in the mounted directory.
const SHELL: &str = r#"
    mount -o "loop,$3" "$1" "$2"
    cd "$2"
    echo mounted
    while read -r script; do
        if sh -eu "$script" > /dev/null 2> "$script.errors" < /dev/null; then echo done; else echo failed; fi
    done
    cd /
    umount "$2"
    echo unmounted
"#;

/// A mounted image.
pub struct Session {
    shell: Child,
    commands: Option<ChildStdin>,
    answers: Receiver<String>,
    script: PathBuf,
    mount_point: PathBuf,
}

impl Session {
    /// Mounts the image.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn start(image: &Image) -> Self {
        let mount_point = image.mount_point();
        std::fs::create_dir_all(&mount_point).expect("a mount point");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc", SHELL, "sh"]);
        command.arg(image.path()).arg(&mount_point).arg(image.mount_options());
        command.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().expect("unshare(1) and sh");
        let output = BufReader::new(shell.stdout.take().expect("the shell's output"));
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let script = image.path().with_file_name("script");
        let mut session = Session { commands: shell.stdin.take(), shell, answers, script, mount_point };
        session.expect("mounted", &mut || ());
        session
    }

    /// Runs a script, as [`Image::run`] does; a command that fails ends it. Meanwhile `watch` is called again and again,
    /// and once at the end.
    ///
    /// # Panics
    /// When the script fails.
    pub fn run(&mut self, script: &str, mut watch: impl FnMut()) {
        std::fs::write(&self.script, format!("{FUNCTIONS}{script}")).expect("a script file");
        let commands = self.commands.as_mut().expect("a shell that listens");
        writeln!(commands, "{}", self.script.display()).expect("a shell that listens");
        self.expect("done", &mut watch);
        watch();
    }

    /// The mounted directory as this process, which is outside the namespace, can reach it.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        let inside = self.mount_point.strip_prefix("/").unwrap_or(&self.mount_point);
        PathBuf::from(format!("/proc/{}/root", self.shell.id())).join(inside)
    }

    /// Unmounts. What that commits has been committed when it returns.
    ///
    /// # Panics
    /// When the unmount fails.
    pub fn finish(mut self) {
        drop(self.commands.take());
        self.expect("unmounted", &mut || ());
        self.shell.wait().expect("the shell's end");
    }

    fn expect(&mut self, wanted: &str, watch: &mut dyn FnMut()) {
        let deadline = Instant::now() + PATIENCE;
        let answer = loop {
            match self.answers.recv_timeout(INTERVAL) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Timeout) => watch(),
                Err(RecvTimeoutError::Disconnected) => break String::from("nothing more"),
            }
            assert!(
                Instant::now() < deadline,
                "not {wanted} in {PATIENCE:?}: {}",
                std::fs::read_to_string(&self.script).unwrap_or_default()
            );
        };
        let errors = std::fs::read_to_string(self.script.with_extension("errors")).unwrap_or_default();
        assert_eq!(answer, wanted, "the shell's answer; the script said: {errors}");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The end of its input ends the shell, and with it the namespace and the mount.
        drop(self.commands.take());
        let _ = self.shell.wait();
    }
}
