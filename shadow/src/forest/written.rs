//! Whether a block was safely on the disk when the super block that reaches it came.
//!
//! Knows nothing of what is in it.

use parser::map::Physical;

use super::{Expect, Forest};
use crate::codes::Code;
use crate::source::Origin;
use crate::violation::Violation;

/// Why a block was not safely on the disk when the super block that reaches it came.
#[derive(Debug)]
pub enum Unsafe {
    /// It was not written, or its write was not complete.
    Missing(Violation),
    /// It was not flushed, which a guest without barriers, or without a write cache, need not do.
    NotFlushed(Violation),
}

impl Forest<'_> {
    /// Whether all copies of a new block were written, completed and flushed; `None` if so, or where nothing is known.
    /// A guest that has more than one may go on without those of which it was told that they could not be written.
    #[must_use]
    pub fn unsafe_copy(&self, expect: &Expect) -> Option<Unsafe> {
        let nodesize = self.nodesize();
        let places = self.snapshot.chunks.copies(expect.bytenr, nodesize).ok()?;
        let (mut found, mut failed, mut sound) = (None, None, 0);
        for (index, place) in places.enumerate() {
            if self.source.write_failed(place, nodesize) {
                failed = failed.or(Some((index, place)));
                continue;
            }
            sound += 1;
            let origin = self.source.origin(place, nodesize);
            let (code, what) = match origin {
                Origin::Unknown | Origin::Durable => continue,
                Origin::InFlight => (Code::WriteNotCompleted, "while its write is not complete"),
                Origin::NotWritten => (Code::WriteNotWritten, "which was not written since the last commits"),
                Origin::NotFlushed => (Code::WriteNotFlushed, "which was not flushed"),
            };
            let violation = self.reached(code, expect, what, index, place);
            if origin != Origin::NotFlushed {
                return Some(Unsafe::Missing(violation));
            }
            found = found.or(Some(Unsafe::NotFlushed(violation)));
        }
        match failed {
            Some((index, place)) if sound == 0 => {
                let what = "of which no copy could be written, as the guest was told";
                Some(Unsafe::Missing(self.reached(Code::WriteNotWritten, expect, what, index, place)))
            }
            _ => found,
        }
    }

    fn reached(
        &self,
        code: Code,
        expect: &Expect,
        what: &str,
        index: usize,
        Physical { devid, offset }: Physical,
    ) -> Violation {
        let message = format!(
            "the super block reaches block {} of generation {}, pointed to by {}, {what} (copy {}, devid {devid} \
             physical {offset})",
            expect.bytenr,
            expect.generation,
            expect.pointed_by(),
            index + 1
        );
        Violation::new(code, expect.bytenr, self.nodesize(), message)
    }
}
