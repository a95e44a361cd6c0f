//! What the other rules have already reported of a commit: a lost extent item leaves its block group's sum and the
//! free space tree behind, and is one bug.

use std::collections::BTreeSet;

use crate::codes::Code;
use crate::space::ranges::Range;
use crate::violation::{Violation, Worth};

/// Sums that are tried; damage beyond them explains anything.
const SUM_LIMIT: usize = 4096;

/// An extent about which something was reported.
#[derive(Debug, Clone, Copy)]
struct Suspect {
    bytenr: u64,
    len: u64,
    /// By how much its length is wrong, where that is what was reported.
    difference: u64,
    /// Its length is not to be relied on at all.
    any: bool,
}

/// The extents about which something was reported, by address.
#[derive(Debug, Default)]
pub struct Explained(Vec<Suspect>);

impl Explained {
    /// From what was reported; `nodesize` stands in where no length is known.
    #[must_use]
    pub fn new<'v>(reported: impl IntoIterator<Item = &'v Violation>, nodesize: u64) -> Self {
        let mut explained = Explained::default();
        explained.learn(reported, nodesize);
        explained
    }

    /// Takes up more that was reported.
    pub fn learn<'v>(&mut self, reported: impl IntoIterator<Item = &'v Violation>, nodesize: u64) {
        self.0.extend(reported.into_iter().filter_map(|found| suspect(found, nodesize)));
        self.0.sort_unstable_by_key(|suspect| suspect.bytenr);
    }

    fn within(&self, (start, end): Range) -> &[Suspect] {
        let from = self.0.partition_point(|suspect| suspect.bytenr < start);
        let to = self.0.partition_point(|suspect| suspect.bytenr < end);
        self.0.get(from..to).unwrap_or(&[])
    }

    /// Whether something was reported of the extent at `bytenr`.
    #[must_use]
    pub fn names(&self, bytenr: u64) -> bool {
        !self.within((bytenr, bytenr.saturating_add(1))).is_empty()
    }

    /// Whether the sum of the extents of a block group is off by `off` because of what was reported.
    #[must_use]
    pub fn explains_sum(&self, group: Range, off: i128) -> bool {
        let mut sums = BTreeSet::from([0i128]);
        for suspect in self.within(group) {
            if suspect.any || sums.len() > SUM_LIMIT {
                return true;
            }
            let before: Vec<i128> = sums.iter().copied().collect();
            for more in [suspect.len, suspect.difference].map(i128::from) {
                sums.extend(before.iter().flat_map(|sum| [sum + more, sum - more]));
            }
        }
        sums.contains(&off)
    }

    /// Whether a range of a block group is taken for free, or for used, because of what was reported.
    #[must_use]
    pub fn explains_range(&self, group: Range, (start, end): Range) -> bool {
        let mut at = start;
        for suspect in self.within(group) {
            if suspect.any {
                return true;
            }
            if suspect.bytenr <= at {
                let len = suspect.len.saturating_add(suspect.difference);
                at = at.max(suspect.bytenr.saturating_add(len));
            }
        }
        at >= end
    }
}

fn suspect(found: &Violation, nodesize: u64) -> Option<Suspect> {
    let any = match found.code {
        Code::TreeExtentItem | Code::RefExtentType | Code::RefExtentOverlap | Code::SpaceExtentOverlap => {
            true
        }
        code if code.family() == "ref" => false,
        _ => return None,
    };
    let len = if found.len == 0 { nodesize } else { found.len };
    let difference = match (&found.expected, &found.found) {
        (Worth::Number(expected), Worth::Number(found)) => expected.abs_diff(*found),
        _ => 0,
    };
    let is_length = found.code == Code::RefExtentLength;
    Some(Suspect { bytenr: found.bytenr, len, difference: if is_length { difference } else { 0 }, any })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(bytenr: u64, len: u64) -> Violation {
        Violation::new(Code::RefNoExtentItem, bytenr, len, "")
    }

    #[test]
    fn a_lost_extent_explains_its_length_and_nothing_else() {
        let reported = [lost(100, 8), lost(120, 4)];
        let explained = Explained::new(&reported, 16);
        for off in [0, 8, -8, 4, 12, -12] {
            assert!(explained.explains_sum((50, 200), off), "{off}");
        }
        assert!(!explained.explains_sum((50, 200), 9));
        assert!(!explained.explains_sum((110, 200), 8));
        assert!(explained.explains_range((50, 200), (100, 108)));
        assert!(!explained.explains_range((50, 200), (100, 109)));
        assert!(!explained.explains_range((50, 200), (99, 108)));
        assert!(!explained.explains_range((110, 200), (100, 108)));
        assert!(explained.names(120) && !explained.names(121));
    }

    #[test]
    fn a_wrong_length_explains_the_difference() {
        let wrong = Violation::new(Code::RefExtentLength, 100, 20, "").with_worth(12, 20);
        let explained = Explained::new([&wrong], 16);
        assert!(explained.explains_sum((0, 200), 8));
        assert!(!explained.explains_sum((0, 200), 7));
        assert!(Explained::new([&lost(0, 0)], 16).explains_sum((0, 100), -16));
    }
}
