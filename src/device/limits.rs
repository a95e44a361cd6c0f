//! Every limit of the device, and what happens at it.

use std::time::Duration;

/// Bytes of a sector, the unit of request offsets and lengths. Requests that aren't whole sectors fail.
pub const SECTOR_SIZE: u64 = 512;

/// Bytes of a logical block that can be chosen from. Requests that aren't whole blocks fail.
pub const BLOCK_SIZES: [u32; 2] = [512, 4096];

/// Bytes of the largest physical block that the guest is told of. What is read and written at once below may be more: a
/// stripe, or what goes over the network; the guest is told of that as the best size.
pub const MAX_PHYSICAL_BLOCK: u32 = 65536;

/// Queues of a device. The backend library keeps them in a 64-bit mask; more are refused at start.
pub const MAX_QUEUES: usize = 64;

/// Queues offered by default. QEMU uses one per virtual CPU and doesn't start if it is offered fewer.
pub const DEFAULT_QUEUES: usize = 16;

/// Descriptors of a ring. A frontend that asks for more is refused.
pub const MAX_QUEUE_SIZE: usize = 1024;

/// Segments of a request, as the guest is told: what fits, with header and status, into the 128 descriptors of QEMU's
/// default ring. A guest that exceeds it is served up to [`MAX_DESCRIPTORS`].
pub const SEGMENTS: u32 = 126;

/// Bytes of a segment, as the guest is told: together with [`SEGMENTS`] it keeps the requests of a well-behaved guest
/// below [`MAX_COPY`].
pub const SEGMENT_SIZE: u32 = 128 << 10;

/// Ranges of a discard or write zeroes request. More are refused.
pub const ERASE_SEGMENTS: u32 = 64;

/// Sectors of such a range, as the guest is told: 2 GiB. A longer one is refused.
pub const ERASE_SECTORS: u32 = 4 << 20;

/// Descriptors of a chain. A longer one fails with an I/O error.
pub const MAX_DESCRIPTORS: usize = 1024;

/// Bytes of a write that has to be copied. A longer one fails with an I/O error.
pub const MAX_COPY: usize = 64 << 20;

/// Bytes copied out of guest memory on all queues, being written or held back for a verdict. Beyond it a queue takes no
/// further requests until one of its own that was copied is answered; one on each queue may go beyond it.
pub const MAX_COPIED: usize = 128 << 20;

/// Requests that are taken from a ring before completions are delivered and the stop signal is looked at.
pub const BATCH: usize = 16;

/// Bytes that are read and written before completions are delivered, however few requests it is: the guest can go on with
/// the first while the next is copied.
pub const BATCH_BYTES: usize = 128 << 10;

/// Requests that are taken from a ring in a turn. Then the queue's thread looks at all that may have happened, even if there
/// are more: a ring can be made so that each answer is another request.
pub const TURN: usize = 4 * MAX_QUEUE_SIZE;

/// The longest time that a queue's thread looks for something to do before it sleeps: as long as QEMU's event loops do by
/// default. How long it really is depends on whether it is worth it.
pub const DEFAULT_POLL: Duration = Duration::from_micros(32);

/// What `--iops` and `--bps` leave unused for so long may be used in a burst.
pub const THROTTLE_BURST: Duration = Duration::from_millis(100);

/// Log lines about one queue of one connection, for the guest's doings and for failures of ours each. Further ones are
/// dropped: a guest must not be able to fill the log.
pub const MAX_COMPLAINTS: u32 = 20;

/// How often the image is looked at for another size while there is a frontend.
pub const SIZE_INTERVAL: Duration = Duration::from_secs(1);

/// Descriptors among which the frontend's channel is looked for, from 0. More than a process has whose frontend behaves; one
/// that lies beyond them is not used.
pub const CHANNEL_FDS: i32 = 4096;

/// Unix sockets among them that may be the channel. With more it may not be found, and isn't used then.
pub const CHANNEL_CANDIDATES: usize = 64;

/// Bytes of the serial number.
pub const SERIAL_SIZE: usize = 20;

const _: () = assert!((SEGMENTS as usize) * (SEGMENT_SIZE as usize) <= MAX_COPY);
const _: () = assert!(MAX_COPY <= MAX_COPIED);
