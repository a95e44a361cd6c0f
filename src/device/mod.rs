//! The vhost-user-blk device: serves an image to a guest and asks a [`Tap`](crate::tap::Tap) about every write.
//!
//! The only module that knows virtio and vhost-user: rings, descriptors, guest memory, feature bits. It knows nothing
//! about btrfs, nor about what the tap does.
//!
//! A [`Server`] lives as long as the process and owns the socket; each connection gets a session of its own, with
//! new rings, threads and engines, so that nothing of a guest that is gone can reach the next one. (The kernel's rings that
//! engines use are the same again, and empty.)
//!
//! ```text
//! server ── session ── backend ── worker (one per queue and thread) ── chain, request, engine, tap
//!    │         │                        └── inflight (a record that outlives the process)
//!    │         ├── size, channel (the image's size, and how a running guest hears of another one)
//!    │         └── bridge (only for --fd with a connected socket)
//!  socket, stop
//! ```

mod backend;
pub mod bare;
mod bridge;
mod chain;
mod channel;
mod config;
mod copies;
mod held;
mod identity;
mod in_flight;
mod inflight;
pub mod limits;
mod poll;
mod request;
mod server;
mod session;
mod shared;
mod size;
mod socket;
mod stop;
mod throttle;
mod vring;
mod worker;
mod write_cache;

pub use server::{DeviceError, DeviceOptions, Server, SessionEnd};
pub use socket::{Socket, SocketFile, listen};
pub use stop::StopHandle;
pub use throttle::Limits;

use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use vring::Vring;

/// Guest memory as one memory table maps it. No dirty bitmap: live migration isn't offered.
type Memory = GuestMemoryMmap<()>;
/// Guest memory whose table the frontend may replace at any time.
type MemorySpace = GuestMemoryAtomic<Memory>;
