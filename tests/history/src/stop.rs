//! SIGTERM and SIGINT: the history ends after its step, and everything is taken down in order.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Whether a signal has come.
#[must_use]
pub fn is_asked_for() -> bool {
    ASKED.load(Ordering::Relaxed)
}

extern "C" fn remember(_: libc::c_int) {
    ASKED.store(true, Ordering::Relaxed);
}

/// Makes both signals end the history. Programs it runs get their signals as usual.
///
/// # Errors
/// When they can't be caught.
pub fn on_signal() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let handler = remember as extern "C" fn(libc::c_int);
        // SAFETY: the handler does nothing but store to an atomic.
        if unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
