//! The audit of a whole file system at attach: before the guest is served, or while it is.

use std::sync::Arc;

use crossbeam_channel::Sender;
use shadow::Snapshot;

use crate::capture::{CaptureShared, Message, PreservedSource};
use crate::check::{AuditReport, NoProgress, audit};

/// When to compare all references with all backrefs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AuditMode {
    /// Never: take the file system as it is
    #[default]
    Off,
    /// While the guest is served already
    Background,
    /// Before anything else happens
    Before,
}

/// What a background audit found.
pub struct Audited {
    /// Which attachment it belongs to.
    pub attachment: u64,
    /// What it found; `None` when too much was overwritten meanwhile.
    pub report: Option<AuditReport>,
}

/// Audits `snapshot` on a thread of its own; the result comes as a message.
pub fn spawn(
    shared: &Arc<CaptureShared>,
    snapshot: Snapshot,
    attachment: u64,
    result: Sender<Message>,
) -> std::io::Result<()> {
    shared.preserve.begin();
    let preserve = Arc::clone(&shared.preserve);
    let spawned = std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
        let source = PreservedSource::new(Arc::clone(&preserve), snapshot.geometry.clone());
        let report = audit(&snapshot, &source, &NoProgress);
        let report = preserve.end().then_some(report);
        // Nobody is there to hear of it at the end of the process.
        let _ = result.send(Message::Audited(Audited { attachment, report }));
    });
    if spawned.is_err() {
        shared.preserve.end();
    }
    spawned.map(drop)
}
