//! The sandbox of `serve`: what the process can still do once everything is open, should a guest ever take it over.
//!
//! Landlock fences off files and networks, seccomp all system calls but those in the table of `calls`, and no program
//! that is executed gains rights. Needs no privileges. A kernel that lacks a part of it is worked with, and told of.
//!
//! Holds for the thread that enters it, and for all that are started from there; there is no way out. Knows nothing about
//! what the rest of the program does: that is said by [`Needs`] and by the table.

mod calls;
mod landlock;
mod seccomp;

use std::io;
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

/// What is needed after everything was opened, besides the calls that every run makes.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// Files that are to be removed at the end, as sockets are.
    pub removes: Vec<PathBuf>,
    /// Whether Unix sockets are connected to later.
    pub connects: bool,
}

/// Why the sandbox can't be entered, on a kernel that has it.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is more than one thread, and the others would stay outside.
    #[error("{0} threads are running already: please report this")]
    Late(usize),
    /// The kernel refuses.
    #[error("{what}: {cause}")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// The kernel's, or the library's, words.
        cause: String,
    },
}

impl SandboxError {
    fn refused<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Refused { what, cause: error.to_string() }
    }
}

/// What a part of the sandbox came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fence {
    /// It is up.
    Up,
    /// This kernel doesn't have it, for this reason.
    Missing(String),
}

/// Puts the whole process into the sandbox. To be called before threads are started.
///
/// # Errors
/// When there are threads, or the kernel has the sandbox but refuses it. What the kernel doesn't have is a warning.
pub fn enter_process(needs: &Needs) -> Result<(), SandboxError> {
    if let Some(threads) = threads().filter(|count| *count > 1) {
        return Err(SandboxError::Late(threads));
    }
    keep_number_of_cores();
    #[cfg(target_env = "gnu")]
    share_heap_of_c();
    enter(needs)
}

/// Puts the calling thread into the sandbox.
fn enter(needs: &Needs) -> Result<(), SandboxError> {
    no_new_privileges().map_err(SandboxError::refused("no_new_privs"))?;
    // Landlock first: setting it up takes calls that the filter doesn't let through.
    if let Fence::Missing(why) = landlock::enter(&needs.removes)? {
        warn!(
            "the sandbox is without Landlock ({why}): system calls are restricted, files by their permissions only"
        );
    }
    if let Fence::Missing(why) = seccomp::enter(needs.connects)? {
        warn!("the sandbox is without seccomp ({why}): system calls are not restricted");
    }
    debug!("in the sandbox");
    Ok(())
}

fn no_new_privileges() -> io::Result<()> {
    // SAFETY: passes no memory.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many threads this process has, where that can be seen.
fn threads() -> Option<usize> {
    std::fs::read_dir("/proc/self/task").ok().map(Iterator::count)
}

/// How many cores there are for this process is written in files that can't be read later.
fn keep_number_of_cores() {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    if std::env::var_os(VARIABLE).is_none()
        && let Ok(cores) = std::thread::available_parallelism()
    {
        // SAFETY: there is no other thread that could be reading the environment.
        unsafe { std::env::set_var(VARIABLE, cores.to_string()) };
    }
}

/// The C library's own heap, of which only it makes use, is one for all threads: it would ask those files how many there
/// may be.
#[cfg(target_env = "gnu")]
fn share_heap_of_c() {
    // SAFETY: sets a number that is looked at when a heap is made.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// The directory that a file is in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests;
