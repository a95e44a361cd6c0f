//! The file system on one disk: none, or one that is followed from commit to commit.
//!
//! mkfs in the guest, a new file system over the old one, a guest that unmounts and mounts again or is reset in the
//! middle of a commit are all normal life.

mod attaching;
mod auditing;
mod guarding;
mod judging;
mod superblocks;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use serde_json::{Value, json};
use shadow::{SuperChange, Verifier, classify};

use crate::capture::{CaptureShared, Message, PRIMARY_SUPER, SUPER_SIZE};
use crate::events::{Event, Fsid, Sinks, Untold};
use crate::image::Image;
use crate::verifier::VerifierOptions;
use crate::verifier::audit::AuditMode;
use crate::verifier::filesystem::guarding::Proposed;
use crate::verifier::ledger::{Ledger, Summary};

/// The file system on one disk.
pub struct FileSystem {
    image: Arc<dyn Image>,
    shared: Arc<CaptureShared>,
    sinks: Sinks,
    verifier: Verifier,
    ledger: Ledger,
    /// Name of the image, for people.
    disk: String,
    is_connected: bool,
    /// Commits and violations since attach.
    commits: u64,
    violations: u64,
    fsid: Fsid,
    audit: AuditMode,
    verify_data: bool,
    /// Which attachment this is, to tell a late audit from a current one.
    attachment: u64,
    /// Where an audit in the background sends its result.
    results: Sender<Message>,
    audit_running: bool,
    /// The super block that was refused last, until one is let through.
    refused: Option<Box<[u8]>>,
    /// A copy was not written since the last super block was.
    copy_missing: bool,
    /// What the guard must be told of the commit that was judged last.
    proposed: Option<Proposed>,
    /// The super block whose copies must be there when the next transaction is committed.
    copied: Option<Box<[u8]>>,
    /// What was reported about writes: the rule, and the address.
    harms: HashSet<(shadow::Code, u64)>,
    /// What was reported when the file system was attached, which an audit in the background finds again.
    surveyed: HashSet<(shadow::Code, u64)>,
    /// When the commit that is expected next was verified, ahead of its super block.
    foreseen: Option<Instant>,
    /// How often that was in vain since it last was not.
    in_vain: u64,
    /// What is on the disk could not be read, for this reason: tried again before the next super block is judged.
    unread: Option<String>,
}

impl FileSystem {
    /// Nothing is attached yet.
    #[must_use]
    pub fn new(
        image: Arc<dyn Image>,
        shared: Arc<CaptureShared>,
        sinks: Sinks,
        options: VerifierOptions,
        results: Sender<Message>,
    ) -> Self {
        let verifier = Verifier::new(options.shadow_memory).with_rules(options.rules);
        let verifier = verifier.revocable(shared.policy.may_refuse());
        FileSystem {
            image,
            shared,
            sinks,
            verifier,
            ledger: Ledger::default(),
            disk: options.disk,
            is_connected: false,
            commits: 0,
            violations: 0,
            fsid: Fsid::default(),
            audit: options.audit,
            verify_data: options.verify_data,
            attachment: 0,
            results,
            audit_running: false,
            refused: None,
            copy_missing: false,
            proposed: None,
            copied: None,
            harms: HashSet::new(),
            surveyed: HashSet::new(),
            foreseen: None,
            in_vain: 0,
            unread: None,
        }
    }

    /// Opens whatever is on the image.
    pub fn open(&mut self, reason: &'static str) {
        if self.image.len() < PRIMARY_SUPER + SUPER_SIZE {
            let len = self.image.len();
            return self.notice(&format!("{len} bytes are too few for a btrfs: served, not verified"));
        }
        match self.read_super() {
            Ok(bytes) => match classify(None, &bytes) {
                SuperChange::Reattach(_) => return self.attach(&bytes, reason),
                SuperChange::Invalid => {
                    self.notice("there is a btrfs super block at 64 KiB, but its checksum or fields are wrong: served, not verified");
                }
                _ => self.notice("no btrfs on the disk yet: served, and watched for one"),
            },
            Err(error) => return self.could_not_read(format!("can't read a super block: {error}")),
        }
        self.unread = None;
    }

    /// The disk fails: nothing is known of what is on it. Said once for each reason.
    fn could_not_read(&mut self, reason: String) {
        if self.unread.as_ref() != Some(&reason) {
            self.ledger.summary.unverified += 1;
            self.notice(&format!("{reason}; served, not verified until it can be read"));
        }
        self.unread = Some(reason);
    }

    /// A frontend has connected. While none was, others may have written to the image.
    pub fn connected(&mut self) {
        self.is_connected = true;
        let Some(snapshot) = self.verifier.snapshot() else {
            match self.read_super().map(|bytes| classify(None, &bytes)) {
                Ok(SuperChange::Reattach(_)) | Err(_) if self.image.len() >= PRIMARY_SUPER + SUPER_SIZE => {
                    self.open("connect");
                }
                _ => {}
            }
            return;
        };
        let known = snapshot.superblock.clone();
        self.shared.cache.clear();
        match self.read_super() {
            Ok(bytes) if bytes == known => {
                self.verifier.snapshot().into_iter().for_each(|snapshot| {
                    self.shared.guard.resize(snapshot);
                });
                self.guard_log();
            }
            Ok(_) => {
                self.notice("the image was changed while no frontend was connected");
                self.detach();
                self.open("changed while disconnected");
            }
            // It may have been changed or not: what is known of it can't be relied on.
            Err(error) => {
                self.detach();
                self.could_not_read(format!("can't read a super block: {error}"));
            }
        }
    }

    /// The frontend is gone.
    pub fn disconnected(&mut self) {
        self.is_connected = false;
    }

    /// Ends it all: reports the detach, and what was seen.
    pub fn finish(mut self) -> Summary {
        self.detach();
        self.ledger.summary.lost_events = self.sinks.finish();
        self.ledger.summary
    }

    /// When events that could not be written are to be tried again.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.sinks.retry_at()
    }

    /// Tries again to write events, where it is time.
    pub fn retry_events(&mut self, now: Instant) {
        self.sinks.retry(now);
    }

    /// Somebody set a mark.
    pub fn mark(&mut self, name: &str) {
        self.sinks.emit(&Event::Mark { name });
    }

    /// The last violations, as events.
    #[must_use]
    pub fn recent_violations(&self) -> Vec<Value> {
        self.ledger.recent()
    }

    /// How things stand, as an object.
    #[must_use]
    pub fn status(&self) -> Value {
        let file_system = self.verifier.snapshot().map(|snapshot| {
            json!({
                "fs": self.fsid.to_string(),
                "generation": snapshot.generation,
                "device_bytes": snapshot.super_view().map(|view| view.dev_item().total_bytes),
                "nodesize": snapshot.geometry.nodesize,
                "csum": snapshot.geometry.csum.name(),
                "commits": self.commits,
                "violations": self.violations,
                "gaps": self.verifier.coverage().gaps,
            })
        });
        let Untold { waiting, lost } = self.sinks.untold();
        json!({
            "events": { "waiting": waiting, "lost": lost },
            "disk": self.disk,
            "size": self.image.len(),
            "read_only": self.image.read_only(),
            "connected": self.is_connected,
            "file_system": file_system,
            "counters": self.ledger.counters(),
        })
    }

    /// Says something that is no violation but worth knowing.
    pub fn notice(&mut self, message: &str) {
        self.sinks.emit(&Event::Notice { message });
    }
}
