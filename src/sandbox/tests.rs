//! From inside: the sandbox is one of the thread that enters it, so that each test enters it on a thread of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::engine::tests::uring_allowed;
use crate::engine::{Buffer, Engine as _, Erase, Files, Rings};

/// Does something on a thread in the sandbox.
fn inside<T: Send>(needs: &Needs, act: impl FnOnce() -> T + Send) -> T {
    on_a_thread(|| {
        enter(needs).expect("a sandbox");
        act()
    })
}

fn on_a_thread<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(act).join().expect("no panic"))
}

#[track_caller]
fn assert_refused<T>(what: &str, result: io::Result<T>) {
    match result {
        Ok(_) => panic!("{what} was possible"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}"),
    }
}

#[test]
fn what_serving_does_not_need_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (file, socket) = (dir.path().join("file"), dir.path().join("socket"));
    fs::write(&file, "contents").unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    inside(&Needs::default(), || {
        assert_refused("reading a file", fs::read(&file));
        assert_refused("making a file", File::create(dir.path().join("new")));
        assert_refused("removing a file", fs::remove_file(&file));
        assert_refused("renaming a file", fs::rename(&file, dir.path().join("moved")));
        assert_refused("making a directory", fs::create_dir(dir.path().join("dir")));
        assert_refused("listing a directory", fs::read_dir("/"));
        assert_refused("executing a program", Command::new("true").spawn());
        assert_refused("connecting to a Unix socket", UnixStream::connect(&socket));
        assert_refused("listening on a Unix socket", UnixListener::bind(dir.path().join("other")));
        assert_refused("connecting to a port", TcpStream::connect(port));
        assert_refused("a datagram socket", UdpSocket::bind("127.0.0.1:0"));
        // SAFETY: neither passes any memory.
        let (signalled, traced) =
            unsafe { (libc::kill(libc::getppid(), 0), libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0)) };
        assert_eq!((signalled, traced), (-1, -1));
    });
    assert_eq!(fs::read(&file).unwrap(), b"contents");
}

#[test]
fn nothing_becomes_executable() {
    let map = |protection| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever there is room.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) }
    };
    inside(&Needs::default(), || {
        let memory = map(libc::PROT_READ | libc::PROT_WRITE);
        assert_ne!(memory, libc::MAP_FAILED);
        // SAFETY: it was just mapped, and nobody uses it.
        assert_eq!(unsafe { libc::mprotect(memory, 4096, libc::PROT_READ) }, 0);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::mprotect(memory, 4096, libc::PROT_READ | libc::PROT_EXEC) }, -1);
        assert_eq!(map(libc::PROT_READ | libc::PROT_EXEC), libc::MAP_FAILED);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::munmap(memory, 4096) }, 0);
    });
}

#[test]
fn what_is_open_stays_usable_and_threads_are_inside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut client = UnixStream::connect(dir.path().join("socket")).unwrap();
    inside(&Needs::default(), || {
        file.write_all(b"written inside").unwrap();
        file.sync_data().unwrap();
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(b"hello").unwrap();
        let opened = std::thread::spawn(move || File::open(path).map(drop)).join().unwrap();
        assert_refused("opening a file on a thread that was started inside", opened);
    });
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"written inside");
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn needs_are_met_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
    for place in [&ours, &other] {
        fs::create_dir(place).unwrap();
        fs::write(place.join("file"), "contents").unwrap();
    }
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let needs = Needs { removes: vec![ours.join("file")], connects: true };
    inside(&needs, || {
        assert_refused("removing another file", fs::remove_file(other.join("file")));
        assert_refused("reading what may be removed", fs::read(ours.join("file")));
        fs::remove_file(ours.join("file")).unwrap();
        UnixStream::connect(&socket).unwrap();
        assert_refused("another sort of socket", UdpSocket::bind("127.0.0.1:0"));
    });
}

#[test]
fn rings_that_are_there_stay_usable_and_others_cannot_be_made() {
    if !uring_allowed() {
        return;
    }
    let cached = Arc::new(tempfile::tempfile().unwrap());
    let rings = Rings::new(Files { cached: cached.clone(), direct: None });
    rings.prepare(1).unwrap();
    inside(&Needs::default(), || {
        // The second time it is the first one's ring.
        for token in 0..2 {
            let mut engine = rings.engine().unwrap();
            engine.write_vectored(token * 512, Buffer::Owned(vec![token as u8 + 1; 512]), token);
            engine.erase(Erase::Zeroes { unmap: true }, 4096, 4096, token);
            engine.flush(token);
            engine.submit();
            let mut done = Vec::new();
            let deadline = Instant::now() + Duration::from_secs(120);
            while done.len() < 3 {
                assert!(Instant::now() < deadline);
                engine.completions(&mut done);
            }
            assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
        }
        let _engine = rings.engine().unwrap();
        assert_refused("another ring", rings.engine());
        assert_refused("a ring for anything", io_uring::IoUring::new(4));
    });
    let mut bytes = [0; 1024];
    cached.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..512].iter().all(|byte| *byte == 1) && bytes[512..].iter().all(|byte| *byte == 2));
}

/// Landlock alone: what holds where seccomp doesn't see it.
#[test]
fn landlock_fences_files_off_by_itself_and_for_rings() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut ring = uring_allowed().then(|| io_uring::IoUring::new(4).unwrap());
    let path = std::ffi::CString::new(file.path().as_os_str().as_bytes()).unwrap();
    // What opens the file by a ring, where there is one: a descriptor, or an error below 0.
    let mut open = || {
        let ring = ring.as_mut()?;
        let at = io_uring::types::Fd(libc::AT_FDCWD);
        let entry = io_uring::opcode::OpenAt::new(at, path.as_ptr()).flags(libc::O_RDONLY).build();
        // SAFETY: the path lives until the ring has answered.
        unsafe { ring.submission().push(&entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        Some(ring.completion().next().unwrap().result())
    };
    if let Some(fd) = open() {
        assert!(fd >= 0);
        // SAFETY: just opened, and nobody else's.
        unsafe { libc::close(fd) };
    }
    // SAFETY: asks for the version and passes no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    on_a_thread(|| {
        no_new_privileges().unwrap();
        assert_eq!(landlock::enter(&[]).unwrap(), Fence::Up, "these tests need Landlock");
        assert_refused("reading a file", fs::read(file.path()));
        if version >= 4 {
            assert_refused("connecting to a port", TcpStream::connect("127.0.0.1:9"));
        }
        assert!(open().is_none_or(|refused| refused == -libc::EACCES));
    });
}

#[test]
fn it_is_too_late_for_a_process_with_threads() {
    let error = on_a_thread(|| enter_process(&Needs::default()).unwrap_err());
    assert!(matches!(error, SandboxError::Late(2..)), "{error}");
    File::open("/proc/self/status").expect("nothing is refused: it was not entered");
}
