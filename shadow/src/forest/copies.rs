//! Reads a block from one of its copies, or from all.
//!
//! Knows nothing of what makes a block right, which [`checks`](super::checks) does.

use std::sync::Arc;

use parser::map::Physical;

use super::checks::verify;
use super::{BlockProblem, Expect, Forest, Snapshot};
use crate::cause;
use crate::codes::Code;
use crate::source::TreeBlock;
use crate::unreadable::Unread;
use crate::violation::Violation;

/// Which copies of a block are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// All up to the first good one.
    UntilGood,
    /// All of them.
    All,
}

impl Forest<'_> {
    /// Reads a block like [`Forest::read`], and returns what is wrong with those of its copies that were looked at.
    ///
    /// # Errors
    /// As [`Forest::read`].
    pub fn read_copies(
        &self,
        expect: &Expect,
        which: Copies,
    ) -> Result<(Arc<TreeBlock>, Vec<Violation>), BlockProblem> {
        let Snapshot { geometry, seed_uuids, chunks, .. } = self.snapshot;
        let nodesize = self.nodesize();
        let copies =
            || chunks.copies(expect.bytenr, nodesize).map_err(|error| self.snapshot.unmapped(error, expect));
        let has_failed = |place| self.source.write_failed(place, nodesize);
        // Those that could not be written come last: the older block that lies there may look right.
        let sound = copies()?.enumerate().filter(|(_, place)| !has_failed(*place)).map(|copy| (copy, false));
        let failed = copies()?.enumerate().filter(|(_, place)| has_failed(*place)).map(|copy| (copy, true));
        let mut good: Option<Arc<TreeBlock>> = None;
        let mut bad = Vec::new();
        let mut never_written = None;
        let mut unlike = None;
        let mut unknown = None;
        for ((index, place), failed) in sound.chain(failed) {
            match self.source.read(place) {
                // The same bytes, which have been looked at.
                Ok(block) if good.as_ref().is_some_and(|good| Arc::ptr_eq(good, &block)) => {}
                Ok(block) => match verify(geometry, seed_uuids, &block, expect) {
                    None if which == Copies::UntilGood => return Ok((block, bad)),
                    None => match &good {
                        Some(first) if !failed && first.bytes() != block.bytes() => {
                            unlike = unlike.or(Some(place));
                        }
                        Some(_) => {}
                        None => good = Some(block),
                    },
                    Some(mut violation) => {
                        let (attached, verified) = self.snapshot.verified;
                        let was_verified = expect.generation > attached && expect.generation <= verified;
                        let origin = self.source.origin(place, nodesize);
                        violation.cause =
                            cause::of_block(violation.code, geometry.csum, &block, origin, was_verified);
                        let Physical { devid, offset } = place;
                        let copy = index + 1;
                        violation.message += &format!(" (copy {copy}, devid {devid} physical {offset})");
                        if failed {
                            never_written.get_or_insert(violation);
                        } else {
                            bad.push(violation);
                        }
                    }
                },
                Err(error) => match self.snapshot.unreadable(&error, expect, place) {
                    BlockProblem::Violation(violation) => bad.push(*violation),
                    problem => unknown = unknown.or(Some(problem)),
                },
            }
        }
        if let Some(block) = good {
            bad.extend(unlike.map(|place| copies_differ(expect, nodesize, place)));
            return Ok((block, bad));
        }
        // A copy on a device that is not served says nothing; one that was read says something.
        Err(match (bad.into_iter().next(), unknown, never_written) {
            (Some(violation), ..) | (None, None, Some(violation)) => {
                BlockProblem::Violation(Box::new(violation))
            }
            (None, Some(unknown), _) => unknown,
            (None, None, None) => {
                BlockProblem::Unknown(Unread { block: None, reason: "chunk without stripes".to_owned() })
            }
        })
    }
}

fn copies_differ(expect: &Expect, nodesize: u64, place: Physical) -> Violation {
    let Physical { devid, offset } = place;
    let message = format!(
        "copies of block {}, pointed to by {}, differ: the one on devid {devid} physical {offset} is not like the first",
        expect.bytenr,
        expect.pointed_by()
    );
    Violation::new(Code::WriteCopiesDiffer, expect.bytenr, nodesize, message)
}
