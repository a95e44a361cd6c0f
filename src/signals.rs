//! SIGTERM and SIGINT: finish what is in flight, then end.

use std::io;

use crate::device::StopHandle;

/// Makes SIGTERM and SIGINT trigger `stop`. Blocks them in the calling thread, and so in all threads it starts
/// later; one thread waits for them.
///
/// # Errors
/// When the thread can't be started or the signals can't be blocked.
pub fn stop_on_signal(stop: &StopHandle) -> io::Result<()> {
    // SAFETY: the set is a plain structure that sigemptyset initialises before it is used.
    let set = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        set
    };
    let stop = stop.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut signal = 0;
        loop {
            // SAFETY: both point to live values of their types.
            if unsafe { libc::sigwait(&set, &mut signal) } == 0 {
                tracing::info!("signal {signal}: stopping");
                stop.trigger();
            }
        }
    })?;
    Ok(())
}
