//! File extents against the checksum tree: what a file has written has checksums, unless its inode is NODATASUM.
//!
//! The checksum tree is read once, and kept as the ranges it covers. Of preallocated space nothing is asked: whether
//! some other file has written to it is in no inode's items.

use parser::file_extent::Encoding;
use parser::{FileExtent, Key, ids};

use crate::codes::Code;
use crate::forest::Forest;
use crate::paths;
use crate::record::RefKey;
use crate::space::checksums::covered;
use crate::space::ranges::{Range, union};
use crate::tree::Cursor;
use crate::violation::Violation;

/// Ranges without checksums that are kept of one subvolume, and ranges that are told of all.
const KEPT_LIMIT: usize = 4096;
const TOLD_LIMIT: usize = 64;

/// The addresses that have checksums.
#[derive(Debug)]
pub struct Checksums {
    /// In order; none touch.
    ranges: Vec<Range>,
}

impl Checksums {
    /// Reads the checksum tree; `None` where it can't be read as a whole.
    #[must_use]
    pub fn read(forest: &Forest<'_>) -> Option<Self> {
        let mut ranges: Vec<Range> = Vec::new();
        let mut cursor = Cursor::new(*forest, Some(forest.snapshot.tree(ids::CSUM_TREE)?));
        while let Some(found) = cursor.next_item() {
            let range = covered(&found.key, found.data().len(), &forest.snapshot.geometry);
            match (range, ranges.last_mut()) {
                (Some(range), Some(last)) if (last.0..=last.1).contains(&range.0) => {
                    last.1 = last.1.max(range.1);
                }
                (Some(range), _) => ranges.push(range),
                _ => {}
            }
        }
        cursor.into_problems().is_empty().then(|| Checksums { ranges: union(ranges) })
    }

    /// The ranges that end behind `start`.
    fn from(&self, start: u64) -> impl Iterator<Item = Range> {
        self.ranges.iter().skip(self.ranges.partition_point(|range| range.1 <= start)).copied()
    }

    /// Whether some of `range` has checksums.
    fn touches(&self, range: Range) -> bool {
        self.from(range.0).next().is_some_and(|found| found.0 < range.1)
    }

    /// Hands the parts of `range` that have none to `visit`.
    fn lacking_in(&self, (start, end): Range, mut visit: impl FnMut(Range)) {
        let mut at = start;
        for (first, last) in self.from(start).take_while(|range| range.0 < end) {
            if at < first {
                visit((at, first));
            }
            at = at.max(last);
        }
        if at < end {
            visit((at, end));
        }
    }
}

/// A range without checksums, and a file whose data it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Lack {
    range: Range,
    root: u64,
    inode: u64,
    /// Of the backref: where in the file the extent would begin.
    offset: u64,
}

/// The first extent of a NODATASUM file that no such file should have.
#[derive(Debug, Clone, Copy)]
struct Odd {
    root: u64,
    inode: u64,
    start: u64,
    /// It has checksums, or else is compressed.
    has_checksums: bool,
}

/// What the files of one subvolume say of the checksum tree.
#[derive(Debug, Default)]
pub(super) struct Sums {
    root: u64,
    lacks: Vec<Lack>,
    /// Ranges that were not kept.
    more: u64,
    odd: Option<Odd>,
    /// Files with such an extent, and the last of them.
    odd_files: u64,
    last_odd: u64,
}

impl Sums {
    pub(super) fn new(root: u64) -> Self {
        Sums { root, ..Sums::default() }
    }

    /// Looks for the checksums of the file extent at `key`. `is_nodatasum`: its inode has none.
    pub(super) fn take(&mut self, checksums: &Checksums, key: &Key, data: &[u8], is_nodatasum: bool) {
        let (Ok(FileExtent::Regular(extent)), Ok(encoding)) =
            (FileExtent::parse(data), Encoding::parse(data))
        else {
            return;
        };
        if extent.disk_bytenr == 0 {
            return;
        }
        // To read any of a compressed extent, all of it is read.
        let (start, len) = match encoding.compression {
            0 => (extent.disk_bytenr.saturating_add(extent.offset), extent.num_bytes),
            _ => (extent.disk_bytenr, extent.disk_num_bytes),
        };
        let used = (start, start.saturating_add(len));
        if is_nodatasum {
            let has_checksums = checksums.touches(used);
            if has_checksums || encoding.compression != 0 {
                self.note_odd(Odd { root: self.root, inode: key.objectid, start, has_checksums });
            }
            return;
        }
        let offset = key.offset.wrapping_sub(extent.offset);
        checksums.lacking_in(used, |range| {
            let lack = Lack { range, root: self.root, inode: key.objectid, offset };
            self.keep(lack);
        });
    }

    fn keep(&mut self, lack: Lack) {
        let is_full = self.lacks.len() >= KEPT_LIMIT;
        match self.lacks.last_mut() {
            Some(last) if last.inode == lack.inode && last.range.1 == lack.range.0 => {
                last.range.1 = lack.range.1;
            }
            _ if is_full => self.more += 1,
            _ => self.lacks.push(lack),
        }
    }

    fn note_odd(&mut self, odd: Odd) {
        if self.last_odd != odd.inode {
            self.odd.get_or_insert(odd);
            (self.odd_files, self.last_odd) = (self.odd_files + 1, odd.inode);
        }
    }
}

/// Puts together what several subvolumes say: one report for each range that has lost its checksums, however many
/// files share it, and one for all NODATASUM files.
pub(super) fn tell(forest: &Forest<'_>, found: Vec<Sums>) -> Vec<Violation> {
    let odd = odd(forest, &found);
    let more: u64 = found.iter().map(|sums| sums.more).sum();
    let mut groups = group(found.into_iter().flat_map(|sums| sums.lacks).collect());
    let untold = (groups.len().saturating_sub(TOLD_LIMIT) as u64).saturating_add(more);
    groups.truncate(TOLD_LIMIT);
    let last = groups.len().saturating_sub(1);
    let tell = |(index, (range, lacks)): (usize, (Range, Vec<Lack>))| {
        missing(forest, range, &lacks, if index == last { untold } else { 0 })
    };
    groups.into_iter().enumerate().filter_map(tell).chain(odd).collect()
}

/// Joins ranges that touch, each with all that make it up.
fn group(mut lacks: Vec<Lack>) -> Vec<(Range, Vec<Lack>)> {
    lacks.sort_unstable();
    let mut groups: Vec<(Range, Vec<Lack>)> = Vec::new();
    for lack in lacks {
        match groups.last_mut() {
            Some((range, lacks)) if lack.range.0 <= range.1 => {
                range.1 = range.1.max(lack.range.1);
                lacks.push(lack);
            }
            _ => groups.push((lack.range, vec![lack])),
        }
    }
    groups
}

/// That NODATASUM files have what they should not: one report, since one tool or old kernel will have made them all.
fn odd(forest: &Forest<'_>, found: &[Sums]) -> Option<Violation> {
    let Odd { root, inode, start, has_checksums } = found.iter().find_map(|sums| sums.odd)?;
    let others = others(found.iter().map(|sums| sums.odd_files).sum());
    let what = if has_checksums { "odd csum item, checksums" } else { "bad file extent, compressed data" };
    let text = format!("root {root} inode {inode}{others}: {what} at {start} though NODATASUM");
    let violation =
        Violation::new(Code::InodeNoDataSum, start, 0, text).with_key(RefKey::data(root, inode, 0));
    Some(with_path(forest, violation))
}

/// ", and 3 more files", of 4.
fn others(files: u64) -> String {
    match files.saturating_sub(1) {
        0 => String::new(),
        1 => ", and 1 more file".to_owned(),
        more => format!(", and {more} more files"),
    }
}

fn with_path(forest: &Forest<'_>, mut violation: Violation) -> Violation {
    violation.path = paths::describe(forest, &violation);
    violation
}

/// That a range has no checksums: the report of its first file.
fn missing(forest: &Forest<'_>, (start, end): Range, lacks: &[Lack], untold: u64) -> Option<Violation> {
    let Lack { root, inode, offset, .. } = *lacks.first()?;
    let mut files: Vec<(u64, u64)> = lacks.iter().map(|lack| (lack.root, lack.inode)).collect();
    files.sort_unstable();
    files.dedup();
    let others = others(files.len() as u64);
    let elsewhere = if untold > 0 { format!("; {untold} more ranges are lacking") } else { String::new() };
    let text = format!(
        "root {root} inode {inode}{others}: some csum missing, none for {start}-{end} ({} bytes){elsewhere}",
        end - start
    );
    let violation = Violation::new(Code::InodeCsumMissing, start, end - start, text)
        .with_key(RefKey::data(root, inode, offset));
    Some(with_path(forest, violation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(ranges: &[Range], range: Range) -> Vec<Range> {
        let checksums = Checksums { ranges: ranges.to_vec() };
        let mut found = Vec::new();
        checksums.lacking_in(range, |range| found.push(range));
        let all_there = range.1 - range.0 == found.iter().map(|(start, end)| end - start).sum::<u64>();
        assert_eq!(checksums.touches(range), !all_there, "{ranges:?} {range:?}");
        found
    }

    #[test]
    fn what_has_no_checksums_is_what_lies_between_those_that_are_there() {
        let ranges = [(10, 20), (30, 40), (50, 60)];
        assert_eq!(lacking(&ranges, (12, 20)), []);
        assert_eq!(lacking(&ranges, (10, 40)), [(20, 30)]);
        assert_eq!(lacking(&ranges, (0, 70)), [(0, 10), (20, 30), (40, 50), (60, 70)]);
        assert_eq!(lacking(&ranges, (20, 30)), [(20, 30)]);
        assert_eq!(lacking(&ranges, (60, 61)), [(60, 61)]);
        assert_eq!(lacking(&ranges, (35, 55)), [(40, 50)]);
        assert_eq!(lacking(&[], (3, 5)), [(3, 5)]);
    }

    #[test]
    fn what_several_files_lack_is_told_once() {
        let lack = |range, root, inode| Lack { range, root, inode, offset: 0 };
        let all = vec![
            lack((40, 50), 7, 300),
            lack((0, 10), 5, 257),
            lack((10, 20), 5, 258),
            lack((5, 12), 6, 257),
            lack((21, 30), 5, 259),
        ];
        let groups = group(all);
        let told: Vec<_> = groups.iter().map(|(range, lacks)| (*range, lacks.len())).collect();
        assert_eq!(told, [((0, 20), 3), ((21, 30), 1), ((40, 50), 1)]);
        assert_eq!(groups[0].1[0], lack((0, 10), 5, 257), "the first of the range is named");
        assert!(group(Vec::new()).is_empty());
    }

    #[test]
    fn a_file_that_lacks_much_is_kept_as_ranges_and_no_more_of_them_than_there_is_room_for() {
        let mut sums = Sums::new(5);
        let lack = |start, inode| Lack { range: (start, start + 4), root: 5, inode, offset: 0 };
        for start in [0, 4, 8, 16] {
            sums.keep(lack(start, 257));
        }
        sums.keep(lack(20, 258));
        assert_eq!(
            sums.lacks.iter().map(|lack| lack.range).collect::<Vec<_>>(),
            [(0, 12), (16, 20), (20, 24)]
        );
        (0..KEPT_LIMIT as u64).for_each(|index| sums.keep(lack(index * 8 + 100, 259)));
        assert_eq!((sums.lacks.len(), sums.more), (KEPT_LIMIT, 3));
    }
}
