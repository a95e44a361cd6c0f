//! A ring that can do what the engine does, and nothing else: these operations, on these files.
//!
//! seccomp doesn't see what is asked of a ring. So the ring is told before its first operation what it may ever be asked:
//! who writes into its memory can neither open a file nor make a socket, and reaches no descriptor but those registered
//! here. Knows nothing of what the operations are for.

use std::io;
use std::os::fd::RawFd;
use std::sync::Once;

use io_uring::register::Restriction;
use io_uring::{Builder, IoUring, opcode, squeue};
use tracing::warn;

/// Operations handed over to the kernel at once; more are handed over in parts.
pub(super) const SUBMISSIONS: u32 = 256;

/// Completions the kernel keeps room for; more are kept elsewhere by it, and none is lost.
pub(super) const COMPLETIONS: u32 = 2048;

/// All that [`super::op::Op::entry`] makes. A new one is a row here.
const OPERATIONS: [u8; 6] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// `IORING_REGISTER_ENABLE_RINGS`: the last call of its kind, and useless from then on. There has to be one that is allowed,
/// or some kernels would take it that all are.
const ENABLE_RINGS: u8 = 12;

/// A new ring on `files`, by whose numbers its operations name them.
///
/// # Errors
/// Where io_uring isn't there, or isn't allowed.
pub(super) fn on(files: &[RawFd]) -> io::Result<IoUring> {
    fenced(files, Age::Recent).or_else(|_| fenced(files, Age::Old)).or_else(|_| {
        let ring = builder(Age::Old).build(SUBMISSIONS)?;
        ring.submitter().register_files(files)?;
        // Kernels before 5.10.
        static ONCE: Once = Once::new();
        ONCE.call_once(|| warn!("this kernel can't restrict what rings (io_uring) may be asked to do"));
        Ok(ring)
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    /// 5.19 or later.
    Recent,
    Old,
}

fn builder(age: Age) -> Builder {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETIONS).dontfork();
    if age == Age::Recent {
        // The kernel's work for a completion is done when this thread next asks, instead of interrupting it.
        builder.setup_coop_taskrun().setup_taskrun_flag();
    }
    builder
}

/// A ring that takes nothing but the operations above, on registered files, in no chains and in no other special way.
fn fenced(files: &[RawFd], age: Age) -> io::Result<IoUring> {
    let ring = builder(age).setup_r_disabled().build(SUBMISSIONS)?;
    let submitter = ring.submitter();
    submitter.register_files(files)?;
    let mut allowed = vec![
        Restriction::register_op(ENABLE_RINGS),
        Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
    ];
    allowed.extend(OPERATIONS.map(Restriction::sqe_op));
    submitter.register_restrictions(&mut allowed)?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    use io_uring::types::{Fd, Fixed};

    use super::*;
    use crate::engine::tests::uring_allowed;

    /// The result of one operation.
    fn ask(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
        // SAFETY: what the entries below point to is static, or outlives this call, which waits for their end.
        unsafe { ring.submission().push(entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_takes_nothing_else() {
        if !uring_allowed() {
            return;
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let other = File::open("/dev/zero").unwrap();
        let mut byte = [1u8];
        let at = byte.as_mut_ptr();
        for age in [Age::Recent, Age::Old] {
            let mut ring = fenced(&[file.as_raw_fd()], age).unwrap();
            let path = c"/dev/null".as_ptr();
            let refused = [
                ("open", opcode::OpenAt::new(Fd(libc::AT_FDCWD), path).build()),
                ("socket", opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build()),
                ("unlink", opcode::UnlinkAt::new(Fd(libc::AT_FDCWD), path).build()),
                ("close", opcode::Close::new(Fd(other.as_raw_fd())).build()),
                ("send", opcode::Send::new(Fixed(0), at, 1).build()),
                ("poll", opcode::PollAdd::new(Fixed(0), libc::POLLIN as u32).build()),
                ("nothing", opcode::Nop::new().build()),
                ("read elsewhere", opcode::Read::new(Fd(other.as_raw_fd()), at, 1).build()),
                ("write elsewhere", opcode::Write::new(Fd(other.as_raw_fd()), at, 1).build()),
                ("sync elsewhere", opcode::Fsync::new(Fd(other.as_raw_fd())).build()),
                ("a chain", opcode::Read::new(Fixed(0), at, 1).build().flags(squeue::Flags::IO_LINK)),
                ("no answer", opcode::Fsync::new(Fixed(0)).build().flags(squeue::Flags::SKIP_SUCCESS)),
            ];
            for (what, entry) in refused {
                assert_eq!(ask(&mut ring, &entry), -libc::EACCES, "{what}");
            }
            assert_eq!(ask(&mut ring, &opcode::Read::new(Fixed(1), at, 1).build()), -libc::EBADF);
            assert_eq!(ask(&mut ring, &opcode::Read::new(Fixed(0), at, 1).build()), 1);
            assert_eq!(byte, [0]);
            let submitter = ring.submitter();
            for refused in [
                submitter.register_files_update(0, &[other.as_raw_fd()]).map(drop),
                submitter.unregister_files(),
                submitter.register_eventfd(other.as_raw_fd()),
            ] {
                assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
            }
        }
    }
}
