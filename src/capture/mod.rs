//! Reads along with the device: decides which writes are copied, keeps the tree blocks among them, and hands super
//! block writes to the verifier.
//!
//! File data is never looked at. What a captured block is gets decided at the commit, by who points to it; here it
//! is only a candidate: it lies where tree blocks may lie and carries the file system's UUID.

mod cache;
mod failed;
mod foresight;
mod preserve;
mod regions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use crossbeam_channel::Sender;
use parser::Header;
use parser::superblock::OFFSETS;
use shadow::{Rules, Violation};

pub use cache::BlockCache;
pub use failed::FailedWrites;
pub use foresight::{Foresight, Root};
pub use preserve::{Preserve, PreservedSource};
pub use regions::Regions;

use crate::control;
use crate::fault::FaultPlan;
use crate::guard::{Guard, Incident, ends_file_system};
use crate::image::Image;
use crate::monitor::MonitorNews;
use crate::policy::Policy;
use crate::tap::{CopyFate, Draining, Erase, HoldDone, Tap, WritePlan};
use crate::verifier::Audited;

/// Bytes of a super block.
pub const SUPER_SIZE: u64 = parser::superblock::SIZE as u64;

/// Byte offset of the primary super block, whose write is the commit.
pub const PRIMARY_SUPER: u64 = OFFSETS[0];

/// Messages that may wait for the verifier's thread until a guest that does harm is made to wait: it can do so faster than
/// is reported.
const BACKLOG: usize = 8192;

/// How long each of its writes waits then. Short, so that a ring that is stopped stops soon, and nobody waits for one who
/// waits for him.
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);

/// What the verifier's thread is told, in the order in which it happened.
pub enum Message {
    /// A write that touches the primary super block, or a copy where the policy says so: held until its verdict.
    SuperWrite(HeldWrite),
    /// The guest flushes, and its next commit may have this root.
    Foresee(Root),
    /// The device waits for what is held.
    Draining(Draining),
    /// Somebody at the control socket wants something.
    Control(control::Request, Sender<control::Response>),
    /// What became of a command to QEMU's monitor.
    Monitor(MonitorNews),
    /// A write or an erasure that does harm; whether it was refused.
    Harm(Box<Incident>, bool),
    /// A flush that should have been made before the last super block was not.
    NotFlushed(Box<Violation>),
    /// The place of the primary super block was erased.
    SuperErased,
    /// The image has another size: that before, in bytes, and the new one.
    Resized(u64, u64),
    /// The guest may have been reset.
    Interrupted,
    /// A frontend connected.
    Connected,
    /// The frontend is gone.
    Disconnected,
    /// An audit in the background is done.
    Audited(Audited),
    /// No more will come: report the end.
    Finish,
}

/// A write that waits for a verdict.
pub struct HeldWrite {
    /// Byte offset of the write.
    pub offset: u64,
    /// All it writes.
    pub bytes: Vec<u8>,
    /// When it was submitted.
    pub submitted: std::time::Instant,
    /// Answers the guest.
    pub done: HoldDone,
}

impl HeldWrite {
    /// Whether any byte of `SUPER_SIZE` at `place` is written.
    #[must_use]
    pub fn touches(&self, place: u64) -> bool {
        touches_super(place, self.offset, self.bytes.len() as u64)
    }
}

fn touches_super(place: u64, offset: u64, len: u64) -> bool {
    offset < place + SUPER_SIZE && offset.saturating_add(len) > place
}

/// Counts what was captured since the last commit took them.
#[derive(Debug, Default)]
pub struct CaptureCounters {
    tree_blocks: AtomicU64,
}

impl CaptureCounters {
    /// Tree blocks written since this was last asked; each copy of a block counts.
    pub fn take_tree_blocks(&self) -> u64 {
        self.tree_blocks.swap(0, Ordering::Relaxed)
    }
}

/// State that capture and verifier share.
pub struct CaptureShared {
    /// Where tree blocks may lie; none while no file system is known.
    pub regions: ArcSwapOption<Regions>,
    /// Tree blocks by place.
    pub cache: Arc<BlockCache>,
    /// What could not be written.
    pub failed: Arc<FailedWrites>,
    /// What is overwritten while an audit runs.
    pub preserve: Arc<Preserve>,
    /// What was captured.
    pub counters: CaptureCounters,
    /// What is done with a commit that violates a rule: whether the last good one must stay whole.
    pub policy: Policy,
    /// What each rule counts for: a write that breaks one that is no error is made.
    pub rules: Arc<Rules>,
    /// Watches what is overwritten, and what is flushed.
    pub guard: Guard,
    /// Watches for what will be committed next.
    pub foresight: Foresight,
    erasure_told: AtomicBool,
}

impl CaptureShared {
    /// Reads through `image`, keeping about `limit` bytes of blocks.
    #[must_use]
    pub fn new(image: Arc<dyn Image>, limit: usize) -> Self {
        let failed = Arc::new(FailedWrites::default());
        CaptureShared {
            regions: ArcSwapOption::empty(),
            cache: Arc::new(BlockCache::new(Arc::clone(&image), Arc::clone(&failed), limit)),
            failed,
            preserve: Arc::new(Preserve::new(Arc::clone(&image), limit)),
            guard: Guard::new(image),
            counters: CaptureCounters::default(),
            foresight: Foresight::default(),
            policy: Policy::default(),
            rules: Arc::default(),
            erasure_told: AtomicBool::new(false),
        }
    }

    /// The same under another policy than report.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// The same with other rules than all of them.
    #[must_use]
    pub fn with_rules(mut self, rules: Arc<Rules>) -> Self {
        self.rules = rules;
        self
    }

    /// The verifier is about to look at what is left where the super block was erased: what is erased from now on, it has to
    /// be told.
    pub fn looks_at_erasure(&self) {
        self.erasure_told.store(false, Ordering::SeqCst);
    }

    /// A write was carried out: the image holds something else now.
    pub fn wrote(&self, offset: u64, len: u64) {
        self.cache.invalidate(offset, len);
        self.failed.remove(offset, len);
        self.guard.writes().completed(offset, len);
    }

    /// A write failed: the image may hold anything.
    pub fn could_not_write(&self, offset: u64, len: u64) {
        // First, so that what is there now is not taken for what should be.
        self.failed.add(offset, len);
        self.cache.invalidate(offset, len);
        self.guard.writes().failed(offset, len);
        self.guard.miss();
    }
}

/// The tap of one disk.
pub struct Capture {
    shared: Arc<CaptureShared>,
    verifier: Sender<Message>,
    fault: Option<FaultPlan>,
}

impl Capture {
    /// A tap that tells `verifier` about super block writes; `fault` is planted where there is one.
    #[must_use]
    pub fn new(shared: Arc<CaptureShared>, verifier: Sender<Message>, fault: Option<FaultPlan>) -> Self {
        Capture { shared, verifier, fault }
    }

    fn tell(&self, message: Message) {
        if self.verifier.send(message).is_err() {
            // Only at the end of the process; a held write is answered by being dropped.
            tracing::error!("the verifier is gone");
        }
    }
}

impl Capture {
    /// Whether a write waits for a verdict.
    fn holds(&self, offset: u64, len: u64) -> bool {
        let held = if self.shared.policy.may_refuse() { &OFFSETS[..] } else { &OFFSETS[..1] };
        held.iter().any(|place| touches_super(*place, offset, len))
    }

    /// Says what is wrong with a write; whether it may be made.
    fn may(&self, incident: Option<Incident>) -> bool {
        let Some(incident) = incident else { return true };
        let guard = &self.shared.guard;
        let counts = !incident.if_barriers || guard.barriers_trusted();
        let is_error = self.shared.rules.is_error(incident.violation.code);
        let refused = counts && is_error && self.shared.policy.may_refuse();
        if counts {
            if self.verifier.len() >= BACKLOG {
                std::thread::sleep(BACKLOG_PAUSE);
            }
            self.tell(Message::Harm(Box::new(incident), refused));
        }
        !refused
    }

    /// A new super block that is none frees everything at once: what comes next may already be under way.
    fn look_at_super(&self, offset: u64, bytes: &[u8]) {
        let at = PRIMARY_SUPER.checked_sub(offset).map(|at| at as usize);
        let whole = at.and_then(|at| bytes.get(at..at + SUPER_SIZE as usize));
        if whole.is_none_or(ends_file_system) {
            self.shared.guard.end();
        }
    }
}

impl Tap for Capture {
    fn plan(&self, offset: u64, len: u64) -> WritePlan {
        if self.holds(offset, len) {
            return WritePlan::Hold;
        }
        let end = offset.saturating_add(len);
        match self.shared.regions.load().as_ref() {
            Some(regions) if regions.may_hold_metadata(offset, end) => WritePlan::Copy,
            Some(_) if self.shared.guard.is_hit(offset, len, self.shared.cache.as_ref()) => WritePlan::Copy,
            // Of a write that isn't copied nobody hears that it has made good what failed.
            _ if self.shared.failed.touch(offset, len) => WritePlan::Copy,
            _ => WritePlan::Direct,
        }
    }

    fn copied(&self, offset: u64, bytes: &mut Vec<u8>) -> CopyFate {
        let len = bytes.len() as u64;
        if touches_super(PRIMARY_SUPER, offset, len) {
            self.look_at_super(offset, bytes);
        }
        let guard = &self.shared.guard;
        if !self.may(guard.judge_write(offset, bytes, self.shared.cache.as_ref())) {
            return CopyFate::Refuse;
        }
        self.shared.preserve.before_write(offset, len);
        let fate = match (&self.fault, self.shared.regions.load().as_ref()) {
            (Some(fault), Some(regions)) => fault.apply(offset, bytes, regions),
            _ => CopyFate::Write,
        };
        if fate == CopyFate::Write && !self.holds(offset, len) {
            guard.write_begins(offset, bytes.len() as u64);
        }
        fate
    }

    fn written(&self, offset: u64, bytes: Vec<u8>) {
        self.shared.wrote(offset, bytes.len() as u64);
        let regions = self.shared.regions.load();
        let Some(regions) = regions.as_ref() else { return };
        for (place, bytes) in regions.candidates(offset, &bytes) {
            // Of a block that is written twice, one copy is kept: found out here, it need not be at the commit.
            let copy = self.shared.cache.find(regions.other_copies(place), bytes);
            let block = copy.unwrap_or_else(|| Arc::new(regions.parse(bytes)));
            if let Ok(header) = Header::parse(block.bytes())
                && block.csum_ok()
            {
                self.shared.counters.tree_blocks.fetch_add(1, Ordering::Relaxed);
                self.shared.foresight.wrote(&header, regions.generation);
            }
            self.shared.cache.insert(place, block);
        }
    }

    fn write_failed(&self, offset: u64, len: u64) {
        self.shared.could_not_write(offset, len);
    }

    fn flush_begins(&self) -> u64 {
        let (number, proof) = self.shared.guard.flush_begins();
        if let Some(violation) = proof {
            self.tell(Message::NotFlushed(Box::new(violation)));
        }
        let committed = self.shared.regions.load().as_ref().map(|regions| regions.generation);
        if let Some(root) = committed.and_then(|committed| self.shared.foresight.at_flush(committed)) {
            self.tell(Message::Foresee(root));
        }
        number
    }

    fn flushed(&self, begun: u64) {
        self.shared.guard.flushed(begun);
    }

    fn flush_failed(&self) {
        self.shared.guard.flush_failed();
    }

    fn erases(&self, kind: Erase, offset: u64, len: u64) -> bool {
        let guard = &self.shared.guard;
        if touches_super(PRIMARY_SUPER, offset, len) {
            guard.end();
        }
        if !self.may(guard.judge_erase(kind, offset, len, self.shared.cache.as_ref())) {
            return false;
        }
        self.shared.preserve.before_write(offset, len);
        true
    }

    fn erased(&self, offset: u64, len: u64) {
        self.shared.cache.invalidate(offset, len);
        // Whoever erases it again and again has it looked at once.
        if touches_super(PRIMARY_SUPER, offset, len) && !self.shared.erasure_told.swap(true, Ordering::SeqCst)
        {
            self.tell(Message::SuperErased);
        }
    }

    fn hold(&self, offset: u64, bytes: Vec<u8>, done: HoldDone) {
        let submitted = std::time::Instant::now();
        // What is erased after this write is another matter.
        self.shared.erasure_told.store(false, Ordering::SeqCst);
        self.tell(Message::SuperWrite(HeldWrite { offset, bytes, submitted, done }));
    }

    fn draining(&self, why: Draining) {
        self.tell(Message::Draining(why));
    }

    fn connected(&self) {
        self.shared.guard.connected();
        self.tell(Message::Connected);
    }

    fn resized(&self, before: u64, now: u64) {
        self.tell(Message::Resized(before, now));
    }

    fn interrupted(&self) {
        self.shared.guard.interrupt();
        self.tell(Message::Interrupted);
    }

    fn disconnected(&self) {
        self.tell(Message::Disconnected);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crossbeam_channel::{Receiver, unbounded};
    use shadow::Code;

    use super::*;
    use crate::image::RawImage;

    fn capture() -> (Capture, Receiver<Message>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let image = Arc::new(RawImage::open(file.path(), false).unwrap());
        let (sender, receiver) = unbounded();
        (Capture::new(Arc::new(CaptureShared::new(image, 1 << 20)), sender, None), receiver)
    }

    /// A guest that erases the super block all the time doesn't fill memory with it, and none of it is missed.
    #[test]
    fn an_erasure_is_told_once_until_somebody_looks_or_writes() {
        let (capture, messages) = capture();
        let erase = || (0..100).for_each(|_| capture.erased(PRIMARY_SUPER, 4096));
        let told = || messages.try_iter().count();
        capture.erased(0, PRIMARY_SUPER);
        assert_eq!(told(), 0);
        erase();
        assert_eq!(told(), 1, "one that has not been looked at");
        erase();
        assert_eq!(told(), 0);
        capture.shared.looks_at_erasure();
        erase();
        assert_eq!(told(), 1);
        capture.hold(PRIMARY_SUPER, vec![0; 4096], Box::new(|_| ()));
        erase();
        assert_eq!(told(), 2, "a write, and what is erased after it");
    }

    /// A guest that does harm faster than it is reported is slowed down.
    #[test]
    fn harm_is_not_told_faster_than_it_is_heard() {
        const MORE: u32 = 20;
        let (capture, messages) = capture();
        let harm = || {
            let violation = Violation::new(Code::WriteNotFlushed, 4096, 4096, "harm");
            assert!(capture.may(Some(Incident { violation, if_barriers: false })));
        };
        (0..BACKLOG).for_each(|_| harm());
        let begun = Instant::now();
        (0..MORE).for_each(|_| harm());
        assert!(begun.elapsed() >= BACKLOG_PAUSE * MORE);
        assert_eq!(messages.len(), BACKLOG + MORE as usize, "none is lost");
    }
}
