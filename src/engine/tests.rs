//! What every engine must do, on each of them.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use super::*;

/// The ring's engine on a file. None where io_uring isn't allowed (kernel.io_uring_disabled, a container's filter), which is
/// said where it is seen whatever becomes of the test.
pub(crate) fn uring_on(cached: Arc<File>) -> Option<UringEngine> {
    match Rings::new(Files { cached, direct: None }).engine() {
        Ok(engine) => Some(engine),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) =>
        {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or_default();
            let _ = writeln!(io::stderr(), "{test}: io_uring is not allowed here ({error}): not tested");
            None
        }
        Err(error) => panic!("io_uring: {error}"),
    }
}

/// Whether io_uring can be tested here.
pub(crate) fn uring_allowed() -> bool {
    uring_on(Arc::new(tempfile::tempfile().unwrap())).is_some()
}

/// All engines that there are here, on one file.
fn engines_of(file: &Arc<File>) -> Vec<Box<dyn Engine>> {
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(SyncEngine::new(file.clone()))];
    engines.extend(uring_on(file.clone()).map(|uring| Box::new(uring) as Box<dyn Engine>));
    engines
}

/// All engines that there are here, each on a file of its own with these contents.
fn engines_on(contents: &[u8]) -> Vec<(Box<dyn Engine>, Arc<File>)> {
    let file = || {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.write_all_at(contents, 0).unwrap();
        file
    };
    let (one, two) = (file(), file());
    let mut engines: Vec<(Box<dyn Engine>, Arc<File>)> = vec![(Box::new(SyncEngine::new(one.clone())), one)];
    if let Some(uring) = uring_on(two.clone()) {
        engines.push((Box::new(uring), two));
    }
    engines
}

fn only(engine: &mut dyn Engine) -> Completion {
    let mut done = Vec::new();
    engine.submit();
    while done.is_empty() {
        engine.completions(&mut done);
    }
    assert_eq!(done.len(), 1);
    assert!(!engine.has_completions());
    done.remove(0)
}

fn shared(pieces: Vec<Vec<u8>>) -> (SharedSlices, Arc<Vec<Vec<u8>>>) {
    let owner = Arc::new(pieces);
    let slices = owner
        .iter()
        .map(|piece| libc::iovec { iov_base: piece.as_ptr() as *mut _, iov_len: piece.len() })
        .collect();
    // SAFETY: the vectors live as long as the Arc, and nothing is written through the slices.
    (unsafe { SharedSlices::new(slices, owner.clone()) }, owner)
}

#[test]
fn copies_across_pieces_and_keeps_the_owner() {
    let (slices, owner) = shared(vec![vec![1, 2], vec![], vec![3, 4, 5]]);
    assert_eq!(slices.len(), 5);
    assert_eq!(slices.to_vec(), [1, 2, 3, 4, 5]);
    assert_eq!(Arc::strong_count(&owner), 2);
    drop(slices);
    assert_eq!(Arc::strong_count(&owner), 1);
}

#[test]
fn writes_then_reads_the_same() {
    for (mut engine, _) in engines_on(&[0; 4096]) {
        engine.write_vectored(1024, Buffer::Owned(vec![7; 512]), 1);
        assert!(only(engine.as_mut()).result.is_ok());
        engine.flush(2);
        assert_eq!(only(engine.as_mut()).token, 2);
        engine.read_vectored(1023, Buffer::Owned(vec![9; 514]), 3);
        let done = only(engine.as_mut());
        assert!(done.result.is_ok());
        let Some(Buffer::Owned(bytes)) = done.buffer else { panic!("buffer not given back") };
        assert_eq!((bytes[0], bytes[1], bytes[512], bytes[513]), (0, 7, 7, 0));
    }
}

#[test]
fn scattered_over_more_slices_than_one_call_takes() {
    for (mut engine, file) in engines_on(&[0; 16384]) {
        let pieces: Vec<Vec<u8>> = (0..3000u32).map(|i| vec![i as u8; i as usize % 6]).collect();
        let expected = pieces.concat();
        let (slices, _owner) = shared(pieces);
        engine.write_vectored(100, Buffer::Shared(slices), 1);
        assert!(only(engine.as_mut()).result.is_ok());
        let mut bytes = vec![0; expected.len()];
        file.read_exact_at(&mut bytes, 100).unwrap();
        assert!(bytes == expected);
    }
}

#[test]
fn reading_past_the_end_is_an_error() {
    for (mut engine, _) in engines_on(&[1; 100]) {
        engine.read_vectored(50, Buffer::Owned(vec![0; 51]), 1);
        assert_eq!(only(engine.as_mut()).result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        engine.read_vectored(u64::MAX, Buffer::Owned(vec![0; 1]), 1);
        assert!(only(engine.as_mut()).result.is_err());
    }
}

#[test]
fn what_is_erased_reads_as_zeros_and_nothing_else_does() {
    for kind in [Erase::Discard, Erase::Zeroes { unmap: false }, Erase::Zeroes { unmap: true }] {
        for (mut engine, file) in engines_on(&[5; 32768]) {
            engine.erase(kind, 8192, 16384, 1);
            assert!(only(engine.as_mut()).result.is_ok());
            let mut bytes = vec![9; 32768];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes[8192..24576].iter().all(|byte| *byte == 0), "{kind:?}");
            assert!(bytes[..8192].iter().chain(&bytes[24576..]).all(|byte| *byte == 5), "{kind:?}");
            assert_eq!(file.metadata().unwrap().len(), 32768);
        }
    }
}

/// memfd has no ZERO_RANGE: the zeros have to be written.
#[test]
fn zeros_where_the_file_system_has_none() {
    use std::os::fd::{FromRawFd as _, OwnedFd};
    // SAFETY: the name is a terminated string; the descriptor is new, and ours.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"zeros".as_ptr(), libc::MFD_CLOEXEC)) };
    let file = Arc::new(File::from(fd));
    for mut engine in engines_of(&file) {
        file.write_all_at(&[5; 5 << 20], 0).unwrap();
        let end = 4096 + (4 << 20) + 512;
        engine.erase(Erase::Zeroes { unmap: false }, 4096, end - 4096, 1);
        assert!(only(engine.as_mut()).result.is_ok());
        let mut bytes = vec![9; 5 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[4096..end as usize].iter().all(|byte| *byte == 0));
        assert!(bytes[..4096].iter().chain(&bytes[end as usize..]).all(|byte| *byte == 5));
    }
}

#[test]
fn nothing_to_move_is_done_at_once() {
    for (mut engine, _) in engines_on(&[]) {
        engine.read_vectored(0, Buffer::Owned(Vec::new()), 1);
        assert!(only(engine.as_mut()).result.is_ok());
        engine.erase(Erase::Discard, 0, 0, 2);
        assert!(only(engine.as_mut()).result.is_ok());
    }
}

#[test]
fn a_read_only_file_refuses_writes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let read_only = Arc::new(File::open(file.path()).unwrap());
    for mut engine in engines_of(&read_only) {
        engine.write_vectored(0, Buffer::Owned(vec![1; 512]), 1);
        assert!(only(engine.as_mut()).result.is_err());
    }
}
