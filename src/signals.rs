//! SIGTERM and SIGINT: finish what is in flight, then end. SIGXFSZ: a file that may not grow is an error like others.

use std::io;

use crate::device::StopHandle;

/// SIGTERM and SIGINT, kept from ending the process until somebody waits for them.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them in the calling thread, and so in all threads it starts later. SIGXFSZ is ignored from now on.
    ///
    /// # Errors
    /// When they can't be blocked.
    pub fn block() -> io::Result<Self> {
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
            // Or a limit on file sizes would end the process instead of failing a write.
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            set
        };
        Ok(Signals(set))
    }

    /// Makes them trigger `stop`, those too that have come since they were blocked.
    ///
    /// # Errors
    /// When the thread that waits for them can't be started.
    pub fn trigger(self, stop: &StopHandle) -> io::Result<()> {
        let Signals(set) = self;
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
}
