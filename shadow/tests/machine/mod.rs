//! ref-verify's rules, one test each, named by the function of ref-verify.c and the message it pins.

mod actions;
mod build;
mod memory;
mod model;

use shadow::record::{Recorded, Site};
use shadow::refverify::{Action, ActionKind};
use shadow::{ExtentRecord, RefKey};

pub const BYTENR: u64 = 1 << 20;
pub const LEN: u64 = 4096;

/// An action on the extent at [`BYTENR`].
pub fn action(kind: ActionKind, key: RefKey) -> Action {
    let site = Site { block: 7 << 20, slot: 3 };
    Action { kind, bytenr: BYTENR, len: LEN, key, count: 1, generation: 9, site }
}

/// A record with these backrefs.
pub fn record(bytenr: u64, level: Option<u8>, backrefs: &[(RefKey, u64)]) -> ExtentRecord {
    let site = Site::default();
    ExtentRecord {
        bytenr,
        len: LEN,
        level,
        refs: backrefs.iter().map(|(_, count)| count).sum(),
        generation: 5,
        flags: if level.is_some() { 2 } else { 1 },
        backrefs: backrefs.iter().map(|&(key, count)| Recorded { key, count, site }).collect(),
        site,
    }
}
