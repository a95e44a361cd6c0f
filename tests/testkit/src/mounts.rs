//! Mounts that nobody else sees.
//!
//! Whoever makes a mount namespace of its own copies every mount there is, and keeps each file system alive: an
//! unmount here would not be the end of it. So what is mounted here is mounted in a namespace of the calling thread and
//! its children.

use std::io;
use std::ptr::null;

/// Moves the calling thread into a mount namespace of its own.
///
/// # Errors
/// Without the privilege.
pub fn enter_private() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: system calls that change nothing but the calling thread's view of mounts; the path is a constant.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(null(), c"/".as_ptr(), null(), flags, null()) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
