//! The system calls that serving takes. A new one is a row here.
//!
//! Taken together by what they are for. Where not every use of a call is needed, the row says by which of its arguments
//! the others are known.

use libc::{c_int, c_long};

/// A system call, and when it is let through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) number: c_long,
    pub(super) when: When,
}

/// When a call is let through.
#[derive(Debug, Clone, Copy)]
pub(super) enum When {
    Always,
    /// If this argument is one of these values.
    Is(u8, &'static [u64]),
    /// If this argument has all of these bits.
    Has(u8, u64),
    /// If this argument has none of these bits.
    Lacks(u8, u64),
    /// If this argument is the number of this process.
    IsSelf(u8),
    /// If Unix sockets are to be connected to.
    Connecting,
}

use When::{Connecting, Has, Is, IsSelf, Lacks};

const fn any(number: c_long) -> Call {
    Call { number, when: When::Always }
}

const fn some(number: c_long, when: When) -> Call {
    Call { number, when }
}

const fn bits(value: c_int) -> u64 {
    value as u64
}

/// `prctl` that names a piece of memory; the allocator's.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// What is let through.
pub(super) const CALLS: &[Call] = &[
    // The image, the sinks, guests' event descriptors. No file is opened any more.
    any(libc::SYS_read),
    any(libc::SYS_write),
    any(libc::SYS_readv),
    any(libc::SYS_writev),
    any(libc::SYS_pread64),
    any(libc::SYS_pwrite64),
    any(libc::SYS_preadv),
    any(libc::SYS_pwritev),
    any(libc::SYS_preadv2),
    any(libc::SYS_pwritev2),
    any(libc::SYS_lseek),
    any(libc::SYS_fallocate),
    any(libc::SYS_fsync),
    any(libc::SYS_fdatasync),
    any(libc::SYS_fstat),
    any(libc::SYS_newfstatat),
    any(libc::SYS_statx),
    any(libc::SYS_close),
    any(libc::SYS_dup),
    some(
        libc::SYS_fcntl,
        Is(
            1,
            &[
                bits(libc::F_GETFD),
                bits(libc::F_SETFD),
                bits(libc::F_GETFL),
                bits(libc::F_SETFL),
                bits(libc::F_DUPFD_CLOEXEC),
                bits(libc::F_OFD_SETLK),
            ],
        ),
    ),
    // Only to make a descriptor blocking or not.
    some(libc::SYS_ioctl, Is(1, &[libc::FIONBIO])),
    // Sockets are removed at the end.
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_unlink),
    any(libc::SYS_unlinkat),
    // Rings are there already, and what may be asked of them is settled (`engine/uring/ring.rs`).
    any(libc::SYS_io_uring_enter),
    // Waiting.
    any(libc::SYS_eventfd2),
    any(libc::SYS_timerfd_create),
    any(libc::SYS_timerfd_settime),
    any(libc::SYS_epoll_create1),
    any(libc::SYS_epoll_ctl),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_pwait),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_poll),
    any(libc::SYS_ppoll),
    any(libc::SYS_futex),
    any(libc::SYS_nanosleep),
    any(libc::SYS_clock_nanosleep),
    any(libc::SYS_restart_syscall),
    // Where these are not answered without the kernel.
    any(libc::SYS_clock_gettime),
    any(libc::SYS_clock_getres),
    any(libc::SYS_gettimeofday),
    // Frontends and clients of the control socket; the sockets they connect to are there already.
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_accept),
    any(libc::SYS_accept4),
    any(libc::SYS_shutdown),
    any(libc::SYS_sendto),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendmsg),
    any(libc::SYS_recvmsg),
    any(libc::SYS_getsockopt),
    any(libc::SYS_setsockopt),
    any(libc::SYS_getsockname),
    any(libc::SYS_getpeername),
    // QEMU's monitor.
    some(libc::SYS_socket, Connecting),
    some(libc::SYS_connect, Connecting),
    // Memory, that of guests too; nothing in it is ever executed.
    some(libc::SYS_mmap, Lacks(2, bits(libc::PROT_EXEC))),
    some(libc::SYS_mprotect, Lacks(2, bits(libc::PROT_EXEC))),
    any(libc::SYS_munmap),
    any(libc::SYS_mremap),
    any(libc::SYS_madvise),
    any(libc::SYS_brk),
    any(libc::SYS_getcpu),
    some(
        libc::SYS_prctl,
        Is(
            0,
            &[bits(libc::PR_SET_NAME), bits(libc::PR_GET_NAME), PR_SET_VMA, bits(libc::PR_SET_THP_DISABLE)],
        ),
    ),
    // Threads, never processes.
    some(libc::SYS_clone, Has(0, bits(libc::CLONE_THREAD | libc::CLONE_VM))),
    any(libc::SYS_set_robust_list),
    any(libc::SYS_rseq),
    any(libc::SYS_sched_yield),
    any(libc::SYS_sched_getaffinity),
    any(libc::SYS_getpid),
    any(libc::SYS_gettid),
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
    // Signals: waited for, and sent to ourselves when all is lost.
    any(libc::SYS_rt_sigaction),
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_rt_sigtimedwait),
    any(libc::SYS_rt_sigreturn),
    any(libc::SYS_sigaltstack),
    some(libc::SYS_tgkill, IsSelf(0)),
    any(libc::SYS_getrandom),
];

/// Calls that are answered as by a kernel that doesn't know them, all others that are refused with "operation not
/// permitted". They are made as a matter of course: the C library has an older way to start threads, and the allocator
/// asks which memory nodes there are and takes one where none answers. Of these the arguments can't be looked at.
pub(super) const UNKNOWN: &[c_long] = &[
    libc::SYS_clone3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
];
