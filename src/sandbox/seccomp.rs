//! seccomp: a system call that is not in the table fails, and the program goes on.
//!
//! It fails instead of ending the process: a call that an update of the C library makes for the first time must not cost a
//! guest its disk. What was refused is in the kernel's log (type=1326, with the number of the call), but for the few calls
//! that are answered as by an old kernel.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::calls::{CALLS, Call, UNKNOWN, When};
use super::{Fence, SandboxError};

const WHAT: &str = "seccomp";

/// Filters the system calls of the calling thread from now on.
pub(super) fn enter(connects: bool) -> Result<Fence, SandboxError> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        return Ok(Fence::Missing("not for this processor".to_owned()));
    };
    // In this order: the one with the table lets no other filter follow. What the other answers is no news: every start of a
    // thread asks.
    let filters = [(unknown(arch), 0), (allowed(arch, connects), libc::SECCOMP_FILTER_FLAG_LOG)];
    for (filter, flags) in filters {
        let program = filter.map_err(SandboxError::refused(WHAT))?;
        match install(&program, flags) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {
                return Ok(Fence::Missing("this kernel does not have it".to_owned()));
            }
            Err(error) => return Err(SandboxError::refused(WHAT)(error)),
        }
    }
    Ok(Fence::Up)
}

/// What is in the table goes through, all else is not permitted.
fn allowed(arch: TargetArch, connects: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::new();
    for call in CALLS {
        if let Some(rule) = rule(call, connects)? {
            rules.insert(call.number, rule);
        }
    }
    // What the other filter is for.
    rules.extend(UNKNOWN.iter().map(|call| (*call, Vec::new())));
    let refusal = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refusal, SeccompAction::Allow, arch)?.try_into()
}

/// Answers as a kernel does that doesn't know these calls.
fn unknown(arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = UNKNOWN.iter().map(|call| (*call, Vec::new())).collect();
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch)?
        .try_into()
}

/// The ways in which a call is let through; no rules are every way, and `None` is no way.
fn rule(call: &Call, connects: bool) -> Result<Option<Vec<SeccompRule>>, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let one = |arg, operator, value| {
        // Of these arguments, the kernel looks at 32 bits only.
        let condition = SeccompCondition::new(arg, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    Ok(Some(match call.when {
        When::Always => Vec::new(),
        When::Is(arg, values) => values.iter().map(|value| one(arg, Eq, *value)).collect::<Result<_, _>>()?,
        When::Has(arg, bits) => vec![one(arg, MaskedEq(bits), bits)?],
        When::Lacks(arg, bits) => vec![one(arg, MaskedEq(bits), 0)?],
        When::IsSelf(arg) => vec![one(arg, Eq, std::process::id().into())?],
        When::Connecting if !connects => return Ok(None),
        When::Connecting if call.number == libc::SYS_socket => vec![one(0, Eq, libc::AF_UNIX as u64)?],
        When::Connecting => Vec::new(),
    }))
}

/// What the kernel is told of a filter.
#[repr(C)]
struct Program {
    len: libc::c_ushort,
    instructions: *const seccompiler::sock_filter,
}

fn install(program: &BpfProgram, flags: libc::c_ulong) -> io::Result<()> {
    let len = program.len().try_into().map_err(|_| io::Error::other("the filter is too long"))?;
    let program = Program { len, instructions: program.as_ptr() };
    // Kernels before 5.16 would otherwise make every later call slower, against attacks on this process that the filter
    // is no help with.
    let flags = flags | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: `program` and the instructions it points to live until the call has returned; the kernel copies them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
