//! What `ctl status` says, as an object.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::policy::Policy;
use crate::verifier::fate::Judged;
use crate::verifier::filesystem::FileSystem;

/// A commit that waits for a decision.
pub struct PausedStatus<'a> {
    /// Which, and why.
    pub judged: &'a Judged,
    /// For how long.
    pub paused: Duration,
    /// Since when.
    pub since: SystemTime,
}

/// The object. Fields may be added; none is renamed.
pub fn status(
    filesystem: &FileSystem,
    policy: Policy,
    paused: Option<PausedStatus<'_>>,
    held_copies: usize,
) -> Value {
    let mut status = filesystem.status();
    if let Value::Object(fields) = &mut status {
        fields.insert("policy".to_owned(), json!(policy.name()));
        fields.insert("held_copies".to_owned(), json!(held_copies));
        fields.insert("paused".to_owned(), paused.map_or(Value::Null, |paused| paused.value()));
    }
    status
}

impl PausedStatus<'_> {
    fn value(&self) -> Value {
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "generation": self.judged.generation,
            "kind": self.judged.commit.map(|kind| kind.name()),
            "since": since.as_secs(),
            "paused_ms": u64::try_from(self.paused.as_millis()).unwrap_or(u64::MAX),
            "why": self.judged.why,
        })
    }
}
