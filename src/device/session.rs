//! One connection, from accept to the last completion.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use tracing::{debug, error, warn};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as LibraryError, VhostUserDaemon};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::MemorySpace;
use super::backend::Backend;
use super::limits::SIZE_INTERVAL;
use super::server::DeviceError;
use super::stop::StopHandle;
use crate::tap::Draining;

/// Serves the connection that waits at `listener` until the frontend leaves or the stop signal is given, and
/// returns when nothing is in flight any more.
pub(super) fn serve(
    backend: Arc<Backend>,
    memory: MemorySpace,
    listener: &mut Listener,
    stop: &StopHandle,
) -> Result<(), DeviceError> {
    let ended = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(DeviceError::Session)?;
    let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), backend.clone(), memory)
        .map_err(DeviceError::library("cannot start the queues' threads"))?;
    let outcome = attend(&backend, &mut daemon, listener, stop, &ended);
    // The frontend may be gone without having stopped a ring. Threads first, so that nobody but us is left to wait for
    // what is in flight; even a thread that has died doesn't keep us from it.
    backend.abandon();
    drop(daemon);
    backend.quiesce(Draining::Session);
    // SAFETY: dropping the daemon has joined its threads.
    unsafe { backend.close_exit_fds() };
    outcome
}

fn attend(
    backend: &Arc<Backend>,
    daemon: &mut VhostUserDaemon<Arc<Backend>>,
    listener: &mut Listener,
    stop: &StopHandle,
    ended: &EventFd,
) -> Result<(), DeviceError> {
    for (queue, handler) in daemon.get_epoll_handlers().iter().enumerate() {
        for (fd, id) in backend.listeners(queue) {
            handler.register_listener(fd, EventSet::IN, id).map_err(DeviceError::Session)?;
        }
    }
    daemon.start(listener).map_err(DeviceError::library("cannot accept a connection"))?;
    let Some(shutdown) = daemon.shutdown_handle() else { return Ok(()) };
    thread::scope(|scope| {
        scope.spawn(|| {
            let ended_first = loop {
                match stop.wait_a_while_for(ended.as_raw_fd(), SIZE_INTERVAL) {
                    Ok(None) => backend.follow_size(),
                    Ok(Some(ended)) => break ended,
                    Err(_) => break false,
                }
            };
            if ended_first {
                return;
            }
            // Answered while the frontend is still there to see it.
            backend.close();
            backend.quiesce(Draining::Session);
            shutdown.shutdown();
        });
        let result = daemon.wait();
        // Fails only when the counter is full, and then it is readable.
        let _ = ended.write(1);
        report_end(result);
    });
    Ok(())
}

/// A frontend that leaves, in whatever way, is no error of ours.
fn report_end(result: Result<(), LibraryError>) {
    match result {
        Ok(()) => debug!("frontend disconnected"),
        Err(LibraryError::HandleRequest(
            error @ (ProtocolError::Disconnected
            | ProtocolError::PartialMessage
            | ProtocolError::SocketBroken(_)),
        )) => debug!(%error, "frontend disconnected"),
        Err(LibraryError::WaitDaemon(_)) => error!("the connection's thread panicked"),
        Err(error) => warn!(%error, "connection ended"),
    }
}
