//! Tree blocks that can't be read, of which the fault is not theirs: one chunk that lies past the end of its device takes
//! all blocks in it along, and is one report.
//!
//! Knows nothing of blocks that were read: what is wrong with those is their own.

use std::collections::BTreeMap;
use std::fmt;

use parser::map::{MapError, Physical};

use crate::codes::Code;
use crate::forest::{BlockProblem, Expect, Snapshot};
use crate::source::ReadError;
use crate::space::extents::Gap;
use crate::violation::Violation;

/// Addresses that a report of several blocks names.
const LISTED: usize = 4;

/// Blocks in a gap between chunks from which it is concluded that a chunk is missing; fewer pointers may each be wrong.
const COMMON_GAP: usize = 4;

/// What keeps blocks from being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Obstacle {
    /// The chunk at this logical address lies past the end that the file system gives its device.
    Chunk(u64),
    /// The device ends earlier than the file system takes it to.
    Device(u64),
    /// No chunk lies at the addresses that begin here.
    Gap(u64),
}

impl Obstacle {
    /// Whether more blocks that are found behind it later are no news.
    #[must_use]
    pub fn is_lasting(self) -> bool {
        !matches!(self, Obstacle::Gap(_))
    }

    /// From how many blocks on they are one report.
    fn common(self) -> usize {
        if self.is_lasting() { 2 } else { COMMON_GAP }
    }

    /// An address or a device id, and which of them.
    pub(crate) fn number(self) -> (u64, u64) {
        match self {
            Obstacle::Chunk(logical) => (logical, 1),
            Obstacle::Device(devid) => (devid, 2),
            Obstacle::Gap(start) => (start, 3),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Chunk(logical) => write!(f, "chunk {logical} lies past the end of its device"),
            Obstacle::Device(devid) => write!(f, "devid {devid} ends too early"),
            Obstacle::Gap(start) => write!(f, "no chunk is there from {start} on"),
        }
    }
}

/// Why nothing is known of a block, or of more than that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The block, where it is only one.
    pub block: Option<u64>,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.block {
            Some(block) => write!(f, "block {block}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl Snapshot {
    /// A block that no chunk maps, or one with a profile that is not mapped yet.
    pub(crate) fn unmapped(&self, error: MapError, expect: &Expect) -> BlockProblem {
        match error {
            MapError::Unmapped { .. } => {
                let from = expect.pointed_by();
                let message = format!("block {} which {from} points to: no chunk maps it", expect.bytenr);
                let start = Gap::at(&self.chunks, expect.bytenr).map_or(0, |gap| gap.start);
                self.damaged(Code::TreeUnmapped, expect, message, Some(Obstacle::Gap(start)))
            }
            MapError::Unsupported { .. } => {
                BlockProblem::Unknown(Unread { block: None, reason: error.to_string() })
            }
        }
    }

    /// A copy of a block, at `place`, that the source can't give.
    pub(crate) fn unreadable(&self, error: &ReadError, expect: &Expect, place: Physical) -> BlockProblem {
        if !matches!(error, ReadError::OutOfBounds { .. }) {
            return BlockProblem::Unknown(Unread { block: Some(expect.bytenr), reason: error.to_string() });
        }
        let chunk = self.chunks.chunk_at(expect.bytenr);
        let logical = chunk.map_or(0, |chunk| chunk.logical);
        let from = expect.pointed_by();
        let message = format!("block {} which {from} points to: {error} (chunk {logical})", expect.bytenr);
        let obstacle = match self.ends_before(place) {
            true => Obstacle::Chunk(logical),
            false => Obstacle::Device(place.devid),
        };
        self.damaged(Code::TreeUnreadable, expect, message, Some(obstacle))
    }

    fn damaged(
        &self,
        code: Code,
        expect: &Expect,
        message: String,
        obstacle: Option<Obstacle>,
    ) -> BlockProblem {
        let mut violation = Violation::new(code, expect.bytenr, self.geometry.nodesize.into(), message);
        violation.obstacle = obstacle;
        BlockProblem::Violation(Box::new(violation))
    }

    /// Whether a block's place lies past the end of its device as the super block has it.
    fn ends_before(&self, Physical { devid, offset }: Physical) -> bool {
        let device = self.super_view().map(|view| view.dev_item()).filter(|device| device.devid == devid);
        let end = offset.saturating_add(self.geometry.nodesize.into());
        device.is_some_and(|device| end > device.total_bytes)
    }
}

/// Puts blocks together that can't be read for the same reason, and leaves all else as it is. What was said of a block
/// twice is said once.
#[must_use]
pub fn fold(found: Vec<Violation>) -> Vec<Violation> {
    let mut folded = Vec::new();
    let mut barred: BTreeMap<(Code, Obstacle), BTreeMap<u64, Violation>> = BTreeMap::new();
    for violation in found {
        match violation.obstacle {
            Some(obstacle) => {
                let blocks = barred.entry((violation.code, obstacle)).or_default();
                blocks.entry(violation.bytenr).or_insert(violation);
            }
            None => folded.push(violation),
        }
    }
    for ((_, obstacle), blocks) in barred {
        if blocks.len() < obstacle.common() {
            folded.extend(blocks.into_values());
        } else {
            folded.extend(together(blocks, obstacle));
        }
    }
    folded
}

/// One report of several blocks: about the first, with the addresses of some others.
fn together(blocks: BTreeMap<u64, Violation>, obstacle: Obstacle) -> Option<Violation> {
    let count = blocks.len();
    let others: Vec<u64> = blocks.keys().skip(1).copied().collect();
    let mut violation = blocks.into_values().next()?;
    violation.message += &format!("; {obstacle}: nor can {} be read", listed(&others, "more"));
    Some(violation.with_worth(0u64, count as u64))
}

/// Why blocks are not known, each reason once.
#[must_use]
pub fn reasons(unread: Vec<Unread>) -> Vec<String> {
    let mut order = Vec::new();
    let mut blocks: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for Unread { block, reason } in unread {
        if !blocks.contains_key(&reason) {
            order.push(reason.clone());
        }
        blocks.entry(reason).or_default().extend(block);
    }
    let say = |reason: String| {
        let mut these = blocks.remove(&reason).unwrap_or_default();
        these.sort_unstable();
        these.dedup();
        match these[..] {
            [] => reason,
            [block] => Unread { block: Some(block), reason }.to_string(),
            _ => format!("{}: {reason}", listed(&these, "blocks")),
        }
    };
    order.into_iter().map(say).collect()
}

/// How many blocks, and the first of them.
fn listed(blocks: &[u64], what: &str) -> String {
    let first: Vec<String> = blocks.iter().take(LISTED).map(u64::to_string).collect();
    let and_others = if blocks.len() > LISTED { " and others" } else { "" };
    format!("{} {what} ({}{and_others})", blocks.len(), first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn barred(code: Code, bytenr: u64, obstacle: Option<Obstacle>) -> Violation {
        let mut violation = Violation::new(code, bytenr, 4096, format!("block {bytenr}"));
        violation.obstacle = obstacle;
        violation
    }

    fn said(found: Vec<Violation>) -> Vec<String> {
        fold(found).into_iter().map(|violation| violation.message).collect()
    }

    #[test]
    fn what_one_obstacle_keeps_from_being_read_is_one_report() {
        let unreadable = |bytenr, obstacle| barred(Code::TreeUnreadable, bytenr, Some(obstacle));
        let mut found: Vec<Violation> =
            (0..6).rev().map(|n| unreadable(100 + n, Obstacle::Chunk(96))).collect();
        found.push(unreadable(103, Obstacle::Chunk(96)));
        found.push(barred(Code::TreeChecksum, 7, None));
        found.push(barred(Code::TreeChecksum, 8, None));
        found.push(unreadable(50, Obstacle::Device(1)));
        found.push(unreadable(300, Obstacle::Chunk(256)));
        found.push(unreadable(301, Obstacle::Chunk(256)));
        let chunk = "chunk 96 lies past the end of its device";
        let wanted = [
            "block 7".to_owned(),
            "block 8".to_owned(),
            format!("block 100; {chunk}: nor can 5 more (101, 102, 103, 104 and others) be read"),
            "block 300; chunk 256 lies past the end of its device: nor can 1 more (301) be read".to_owned(),
            "block 50".to_owned(),
        ];
        assert_eq!(said(found), wanted);
    }

    #[test]
    fn pointers_to_nowhere_are_each_wrong_until_they_are_many() {
        let nowhere = |count: u64| {
            (0..count).map(|n| barred(Code::TreeUnmapped, n, Some(Obstacle::Gap(0)))).collect::<Vec<_>>()
        };
        assert_eq!(said(nowhere(3)).len(), 3);
        assert_eq!(said(nowhere(4)).len(), 1);
    }

    #[test]
    fn each_reason_is_said_once() {
        let unread = |block, reason: &str| Unread { block, reason: reason.to_owned() };
        let all = vec![
            unread(Some(9), "I/O error"),
            unread(Some(5), "devid 2 is not served here"),
            unread(None, "chunk without stripes"),
            unread(Some(4), "I/O error"),
            unread(Some(9), "I/O error"),
        ];
        let wanted =
            ["2 blocks (4, 9): I/O error", "block 5: devid 2 is not served here", "chunk without stripes"];
        assert_eq!(reasons(all), wanted);
    }
}
