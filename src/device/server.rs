//! What lives as long as the process: the socket, the image, the tap; one session after the other.

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use vhost::vhost_user::Listener;
use vm_memory::GuestMemoryAtomic;

use super::backend::Backend;
use super::bridge::{Abutments, Bridge};
use super::inflight::Record;
use super::limits::{BLOCK_SIZES, DEFAULT_POLL, DEFAULT_QUEUES, MAX_QUEUES, SERIAL_SIZE, TURN};
use super::session;
use super::shared::Shared;
use super::size::Size;
use super::socket::{Bound, Socket, SocketFile, into_vhost_listener};
use super::stop::StopHandle;
use super::throttle::{Limits, Throttle};
use super::write_cache::WriteCache;
use super::{Memory, MemorySpace};
use crate::image::Image;
use crate::tap::Tap;

/// What can be chosen about a device.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// Queues offered, 1 to [`MAX_QUEUES`]; the frontend decides how many it uses.
    pub num_queues: usize,
    /// The longest time that a queue's thread looks for something to do before it sleeps; zero for not at all.
    pub poll: Duration,
    /// Where the requests in flight are recorded, for the process that comes after this one; without it none of them
    /// survives the process.
    pub inflight: Option<PathBuf>,
    /// How much may be asked for a second, on all queues together.
    pub limits: Limits,
    /// Bytes of a logical block, one of [`BLOCK_SIZES`].
    pub block_size: u32,
    /// Serial number; what exceeds [`SERIAL_SIZE`] bytes is cut off.
    pub serial: String,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            num_queues: DEFAULT_QUEUES,
            poll: DEFAULT_POLL,
            inflight: None,
            limits: Limits::default(),
            block_size: BLOCK_SIZES[0],
            serial: "btrfs-shadow".to_owned(),
        }
    }
}

/// Why a device can't be served. What a guest or a frontend does wrong is not among it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The socket can't be used.
    #[error("{0}")]
    Socket(#[source] io::Error),
    /// The image can't be read and written as wanted.
    #[error("{0}")]
    Image(#[source] io::Error),
    /// The record of requests in flight can't be used.
    #[error("{0}")]
    Record(#[source] io::Error),
    /// An option is out of range.
    #[error("{0}")]
    Options(String),
    /// A session lacks a resource.
    #[error("cannot set up a session: {0}")]
    Session(#[source] io::Error),
    /// The vhost-user library can't go on.
    #[error("{what}: {cause}")]
    Library {
        /// What was to be done.
        what: &'static str,
        /// The library's words; its error type is none in the sense of Rust.
        cause: String,
    },
}

impl DeviceError {
    pub(super) fn library(what: &'static str) -> impl FnOnce(vhost_user_backend::Error) -> Self {
        move |error| Self::Library { what, cause: error.to_string() }
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// The frontend is gone, and every request it made is finished. Another may come.
    Disconnected,
    /// The stop signal was given, before or during a session.
    Stopped,
    /// There was no session and there won't be another: the socket was inherited connected, and was used.
    Exhausted,
}

/// Serves one disk, to one frontend after the other.
pub struct Server {
    door: Door,
    image: Arc<dyn Image>,
    tap: Arc<dyn Tap>,
    options: DeviceOptions,
    lasting: Lasting,
}

/// What one session leaves to the next.
struct Lasting {
    record: Arc<Record>,
    /// A flush has failed: see the worker's.
    flush_failed: Arc<AtomicBool>,
    /// A guest must not get more by connecting anew.
    throttle: Option<Arc<Throttle>>,
}

/// Where frontends come in.
enum Door {
    Listening { listener: Listener, _file: Option<SocketFile> },
    Connected(Option<Abutments>),
}

impl Server {
    /// Takes over the socket. Frontends can connect from now on, and wait until they are served. No file is opened or
    /// made later, and no ring (io_uring) that the image uses.
    pub fn bind(
        socket: Socket,
        image: Arc<dyn Image>,
        tap: Arc<dyn Tap>,
        options: DeviceOptions,
    ) -> Result<Self, DeviceError> {
        if options.num_queues == 0 || options.num_queues > MAX_QUEUES {
            return Err(DeviceError::Options(format!("the number of queues must be 1 to {MAX_QUEUES}")));
        }
        if !BLOCK_SIZES.contains(&options.block_size) {
            return Err(DeviceError::Options(format!("a block has one of these sizes: {BLOCK_SIZES:?}")));
        }
        image.prepare(options.num_queues).map_err(DeviceError::Image)?;
        let door = match socket.bind().map_err(DeviceError::Socket)? {
            Bound::Listening(listener, file) => {
                Door::Listening { listener: into_vhost_listener(listener), _file: file }
            }
            Bound::Connected(stream) => {
                Door::Connected(Some(Abutments::new(stream).map_err(DeviceError::Socket)?))
            }
        };
        // After the socket: who listens there has the record next to it.
        let record = Record::open(options.inflight.as_deref()).map_err(DeviceError::Record)?;
        let throttle = Throttle::new(options.limits).map(Arc::new);
        let lasting = Lasting { record, flush_failed: Arc::default(), throttle };
        Ok(Self { door, image, tap, options, lasting })
    }

    /// Serves one connection, from accept to disconnect.
    ///
    /// The tap is told when the connection begins, and that it has ended when every request, held writes included,
    /// is finished; until the tap has answered a held write this doesn't return.
    pub fn serve_one(&mut self, stop: &StopHandle) -> Result<SessionEnd, DeviceError> {
        let core = Core { image: &self.image, options: &self.options, lasting: &self.lasting };
        let tap = &self.tap;
        match &mut self.door {
            Door::Listening { listener, .. } => {
                if !stop.wait_for(listener.as_raw_fd()).map_err(DeviceError::Socket)? {
                    return Ok(SessionEnd::Stopped);
                }
                core.serve(tap, listener, stop)?;
            }
            Door::Connected(ends) => {
                if stop.is_triggered() {
                    return Ok(SessionEnd::Stopped);
                }
                let Some(ends) = ends.take() else { return Ok(SessionEnd::Exhausted) };
                let (_bridge, listener) = Bridge::open(ends).map_err(DeviceError::Socket)?;
                core.serve(tap, &mut into_vhost_listener(listener), stop)?;
            }
        }
        Ok(if stop.is_triggered() { SessionEnd::Stopped } else { SessionEnd::Disconnected })
    }
}

/// What every session is made from.
struct Core<'a> {
    image: &'a Arc<dyn Image>,
    options: &'a DeviceOptions,
    lasting: &'a Lasting,
}

impl Core<'_> {
    fn serve(
        &self,
        tap: &Arc<dyn Tap>,
        listener: &mut Listener,
        stop: &StopHandle,
    ) -> Result<(), DeviceError> {
        let memory: MemorySpace = GuestMemoryAtomic::new(Memory::new());
        let block_size = self.options.block_size;
        let shared = Arc::new(Shared {
            tap: tap.clone(),
            size: Size::of(self.image.as_ref(), block_size),
            block_size,
            read_only: self.image.read_only(),
            serial: serial(&self.options.serial),
            memory: memory.clone(),
            record: self.lasting.record.clone(),
            closing: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            flush_failed: Arc::clone(&self.lasting.flush_failed),
            throttle: self.lasting.throttle.clone(),
            write_cache: WriteCache::new(self.lasting.record.write_cache()),
            poll: self.options.poll,
            turn: TURN,
            copied: Arc::default(),
        });
        let backend = Backend::new(shared, self.image.clone(), self.options.num_queues);
        let backend = Arc::new(backend.map_err(DeviceError::Session)?);
        tap.connected();
        let outcome = session::serve(backend, memory, listener, stop);
        tap.disconnected();
        outcome
    }
}

/// The serial number as GET_ID delivers it: padded with zeros, not terminated if there is no room.
fn serial(text: &str) -> Vec<u8> {
    let mut serial = text.as_bytes()[..text.len().min(SERIAL_SIZE)].to_vec();
    serial.resize(SERIAL_SIZE, 0);
    serial
}
