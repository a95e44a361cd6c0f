//! The sandbox of `serve`, from outside: all that serving can do is done inside, whatever it was started with. What is
//! refused inside is tested in `src/sandbox/tests.rs`; policies, writes and guests run inside in all other tests.

#[path = "common/engines.rs"]
mod engines;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use engines::IO_URING;
use replay::driver::Driver;
use replay::history::Change;
use replay::rng::Rng;
use replay::{Backend, History, Plan};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tempfile::TempDir;
use testkit::Spec;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A user with no rights at all.
const NOBODY: u32 = 65534;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_btrfs-shadow"))
}

/// A few commits of this machine's kernel.
fn history() -> History {
    replay::record_without_holes(&Plan {
        spec: Spec::new("sandbox", "").mounted("commit=300,nodiscard"),
        prepare: "for i in $(seq 50); do head -c $((i * 1000)) /dev/urandom > f$i; done".to_owned(),
        scripts: [("files", "for i in $(seq 50); do cp f$i g$i; done"), ("fewer", "rm f*3; echo x > f1")]
            .map(|(name, script)| (name.to_owned(), script.to_owned()))
            .to_vec(),
        live: false,
    })
}

/// What the kernel says of a field, in each thread of a process.
fn of_all_threads(process: u32, field: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let status = threads.filter_map(|thread| {
        // Threads may end meanwhile.
        let text = fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    });
    status.collect()
}

/// What the kernel's log tells of calls that were refused to a process since a time, where it can be read and no audit
/// daemon takes it.
fn refused(process: u32, since: SystemTime) -> Vec<String> {
    let log = Command::new("dmesg").output().map(|output| output.stdout).unwrap_or_default();
    let since = since.duration_since(SystemTime::UNIX_EPOCH).expect("a clock that is set").as_secs();
    let time = |line: &str| line.split("audit(").nth(1)?.split('.').next()?.parse::<u64>().ok();
    let is_ours = |line: &&str| {
        line.contains("type=1326") && line.contains(&format!(" pid={process} ")) && time(line) >= Some(since)
    };
    String::from_utf8_lossy(&log).lines().filter(is_ours).map(str::to_owned).collect()
}

#[track_caller]
fn assert_inside(process: u32) {
    for (field, inside) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
        let threads = of_all_threads(process, field);
        assert!(threads.len() > 1 && threads.iter().all(|value| value == inside), "{field}: {threads:?}");
    }
}

fn ctl(backend: &Backend, args: &[&str]) -> String {
    let mut command = Command::new(program());
    let output = command.arg("ctl").arg(backend.control()).args(args).output().expect("btrfs-shadow ctl");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Everything but guests and violations, in two connections.
fn everything(history: &History, options: &[&str]) {
    let begun = SystemTime::now();
    let image = history.base.copy();
    let backend = Backend::start_with(program(), image.path(), options);
    let mut rng = Rng::new(7);
    for step in &history.steps {
        let mut driver = backend.connect();
        driver.write(&step.blocks, &mut rng);
        driver.flush();
        for superblock in &step.supers {
            driver.write_one(superblock);
        }
        driver.flush();
        driver.erase(400 << 20, 1 << 20, false);
        driver.erase(401 << 20, 1 << 20, true);
        ctl(&backend, &["mark", "a mark"]);
        assert!(ctl(&backend, &["status"]).contains("guest connected"));
        assert_eq!(ctl(&backend, &["violations"]), "");
        assert_inside(backend.id());
    }
    ctl(&backend, &["stop"]);
    let process = backend.id();
    let outcome = backend.wait();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{options:?}");
    assert_eq!(refused(process, begun), [""; 0], "{options:?}");
    let clean = outcome.of_kind("commit").filter(|event| event["verdict"] == "clean");
    assert_eq!(clean.count(), history.steps.iter().map(|step| step.supers.len().min(1)).sum::<usize>());
    assert_eq!(outcome.of_kind("mark").count(), history.steps.len());
}

#[test]
fn everything_works_inside() {
    let history = history();
    assert!(history.steps.len() > 1);
    // A limit that is reached: timers are set.
    let audit = ["--audit", "background", "--verify-data", "--on-violation", "reject", "--iops", "500"];
    let before = ["--audit", "before", "--verify-data", "--on-violation", "pause"];
    let engines = [&["--io-engine", "sync"][..], &["--io-engine", "io-uring"], &["--direct-io"]];
    let engines = if *IO_URING { &engines[..] } else { &engines[..1] };
    for &engine in engines {
        everything(&history, &[engine, &audit].concat());
        everything(&history, &[engine, &before, &["--qmp", "/nonexistent/qmp"]].concat());
    }
}

#[test]
fn it_can_be_switched_off() {
    let image = Spec::new("outside", "").sized(128).mkfs();
    let backend = Backend::start_with(program(), image.path(), &["--sandbox", "off"]);
    let _driver = backend.connect();
    for field in ["Seccomp", "NoNewPrivs"] {
        let own = of_all_threads(std::process::id(), field).remove(0);
        assert!(of_all_threads(backend.id(), field).iter().all(|value| *value == own), "{field}");
    }
}

/// A process that is started by hand, in a directory of its own.
struct Process {
    child: Child,
    dir: TempDir,
}

impl Process {
    /// `command` serves an image of 64 MiB that belongs to `user`; `complete` adds how it is connected to.
    fn start(mut command: Command, user: u32, complete: impl FnOnce(&mut Command, &Path)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("image");
        File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("an image");
        for path in [&image, dir.path()] {
            chown(path, Some(user), Some(user)).expect("another owner");
        }
        command.arg("serve").arg("--blk-file").arg(&image).arg("--once");
        command.arg("--events").arg(dir.path().join("events")).stdout(Stdio::null());
        command.stderr(File::create(dir.path().join("stderr")).expect("a log file"));
        complete(&mut command, dir.path());
        Process { child: command.spawn().expect("the built btrfs-shadow"), dir }
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return status;
            }
            assert!(Instant::now() < deadline, "it did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A guest comes, writes, and goes; what was said.
    fn visit(&mut self, mut driver: Driver) -> String {
        driver.write_one(&Change { offset: 1 << 20, bytes: vec![7; 4096] });
        driver.flush();
        assert_inside(self.child.id());
        drop(driver);
        let code = self.wait().code();
        let said = fs::read_to_string(self.dir.path().join("stderr")).expect("its log");
        // Nothing was there to be verified.
        assert_eq!(code, Some(3), "{said}");
        let image = fs::read(self.dir.path().join("image")).expect("the image");
        assert!(image[1 << 20..][..4096].iter().all(|byte| *byte == 7));
        said
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own_user() -> u32 {
    fs::metadata("/proc/self").expect("/proc").uid()
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < deadline, "no {}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where the tests run as root: as nobody. Else they are not root anyway.
#[test]
fn it_needs_no_rights() {
    let programs = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let (command, user) = match own_user() {
        0 => {
            // The one that was built may lie where nobody else may look.
            let copy = programs.path().join("btrfs-shadow");
            fs::copy(program(), &copy).expect("a copy of the program");
            let mut command = Command::new("setpriv");
            let user = NOBODY.to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--inh-caps=-all", "--"]);
            command.arg(copy);
            (command, NOBODY)
        }
        user => (Command::new(program()), user),
    };
    let mut process = Process::start(command, user, |command, dir| {
        command.arg("--socket-path").arg(dir.join("socket")).arg("--control").arg(dir.join("control"));
        command.args(engine());
    });
    let socket = process.dir.path().join("socket");
    wait_for(&socket);
    assert_eq!(process.visit(Driver::connect(&socket)), "");
    let is_ours = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.uid() == user);
    assert!(is_ours(&process.dir.path().join("events")), "it ran as somebody else");
    assert!(!socket.exists() && !process.dir.path().join("control").exists(), "sockets are left");
}

#[test]
fn an_inherited_listening_socket() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("socket");
    let listener = OwnedFd::from(UnixListener::bind(&path).expect("a socket"));
    let mut process = Process::start(Command::new(program()), own_user(), |command, _| {
        command.args(["--fd", "0"]).args(engine()).stdin(listener);
    });
    assert_eq!(process.visit(Driver::connect(&path)), "");
}

#[test]
fn an_inherited_connected_socket() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let stream = OwnedFd::from(listener.accept().expect("a connection").0);
            Process::start(Command::new(program()), own_user(), |command, _| {
                command.args(["--fd", "0"]).args(engine()).stdin(stream);
            })
        });
        let driver = Driver::connect(&path);
        assert_eq!(server.join().expect("a server").visit(driver), "");
    });
}

/// The engine about which nothing has to be said here.
fn engine() -> &'static [&'static str] {
    if *IO_URING { &[] } else { &["--io-engine", "sync"] }
}

/// The program where io_uring is not permitted, as in most containers.
fn without_io_uring() -> Command {
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let refusal = SeccompAction::Errno(libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into().expect("a known processor");
    let rules = calls.map(|call| (call, Vec::new())).into_iter().collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch).expect("a filter");
    let filter: BpfProgram = filter.try_into().expect("a program");
    let mut command = Command::new(program());
    // SAFETY: between fork and exec only system calls are made, and no memory is allocated.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&filter).map_err(|_| std::io::ErrorKind::PermissionDenied.into())
        });
    }
    command
}

/// Once, and not for each queue.
#[test]
fn where_io_uring_is_not_allowed_it_goes_without_and_says_so() {
    let mut process = Process::start(without_io_uring(), own_user(), |command, dir| {
        command.arg("--socket-path").arg(dir.join("socket"));
    });
    let socket = process.dir.path().join("socket");
    wait_for(&socket);
    let said = process.visit(Driver::connect(&socket));
    assert!(said.lines().count() == 1 && said.contains("io_uring can't be used"), "{said}");
}

/// Before a guest comes that counts on it.
#[test]
fn who_asks_for_io_uring_where_it_is_not_allowed_is_told_at_once() {
    for options in [&["--io-engine", "io-uring"][..], &["--direct-io"]] {
        let mut process = Process::start(without_io_uring(), own_user(), |command, dir| {
            command.arg("--socket-path").arg(dir.join("socket")).args(options);
        });
        assert_eq!(process.wait().code(), Some(2), "{options:?}");
        let said = fs::read_to_string(process.dir.path().join("stderr")).expect("its log");
        assert!(said.contains("cannot use io_uring: Operation not permitted"), "{options:?}: {said}");
    }
}
