//! Which sectors of the disk the last commit needs.
//!
//! Two bits a sector, in pages that are made from the committed trees when they are first written to, and carried on by
//! what each commit changes. Looking is free of locks; it is on the path of every write. A sector that a commit frees
//! stays in use until that commit is durable.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use shadow::forest::BlockProblem;
use shadow::live::{LiveDelta, Span, Use, in_range};
use shadow::{BlockSource, Forest, Snapshot};

use super::SECTOR;

/// Sectors of a page: 128 MiB.
const PAGE_SECTORS: u64 = 32768;
const PAGE: u64 = PAGE_SECTORS * SECTOR;
const WORDS: usize = (PAGE_SECTORS / 64) as usize;

/// The sectors that one file system needs, on one device.
pub struct Live {
    devid: u64,
    pages: Box<[OnceLock<Box<Page>>]>,
    base: Mutex<Base>,
    /// Whether anything waits for a flush; spares the lock.
    is_freeing: AtomicBool,
}

struct Base {
    /// The last commit: what pages that don't exist yet are made from.
    committed: Arc<Snapshot>,
    /// Blocks of the running transaction's logs.
    log: Vec<Range>,
    /// What the last commit freed, until it is durable.
    freeing: Vec<Range>,
    /// The flush that makes it durable has at least this number.
    freed_by: u64,
    /// Pages that could not be made, until the next commit.
    unread: HashSet<usize>,
    /// Why the last of them could not, and whether somebody has been told.
    unread_because: Option<(String, bool)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    offset: u64,
    len: u64,
    used: Use,
}

struct Page {
    metadata: [AtomicU64; WORDS],
    data: [AtomicU64; WORDS],
}

/// A sector in use that is about to be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Byte offset of the sector.
    pub offset: u64,
    /// What it is needed for.
    pub used: Use,
    /// The last commit has freed it, but isn't durable yet.
    pub is_freed: bool,
}

impl Page {
    fn new() -> Box<Self> {
        let words = || std::array::from_fn(|_| AtomicU64::new(0));
        Box::new(Page { metadata: words(), data: words() })
    }

    fn plane(&self, used: Use) -> &[AtomicU64; WORDS] {
        match used {
            Use::Metadata => &self.metadata,
            Use::Data => &self.data,
        }
    }

    fn set(&self, used: Use, sector: u64, on: bool) {
        let bit = 1 << (sector % 64);
        let Some(word) = self.plane(used).get((sector / 64) as usize) else { return };
        if on {
            word.fetch_or(bit, Ordering::Release);
        } else {
            word.fetch_and(!bit, Ordering::Release);
        }
    }

    fn use_of(&self, sector: u64) -> Option<Use> {
        let bit = 1 << (sector % 64);
        let is_set = |used| {
            let word = self.plane(used).get((sector / 64) as usize);
            word.is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
        };
        [Use::Metadata, Use::Data].into_iter().find(|used| is_set(*used))
    }

    /// Whether any sector in the range is in use, by whole words: almost always none is.
    fn any(&self, from: u64, to: u64) -> bool {
        let words = (from / 64) as usize..=((to - 1) / 64) as usize;
        words.into_iter().any(|index| {
            let (first, last) = (index as u64 * 64, index as u64 * 64 + 64);
            let low = from.max(first) - first;
            let high = to.min(last) - first;
            let mask = (u64::MAX >> (64 - (high - low))) << low;
            let load = |plane: &[AtomicU64; WORDS]| plane.get(index).map_or(0, |w| w.load(Ordering::Acquire));
            (load(&self.metadata) | load(&self.data)) & mask != 0
        })
    }
}

impl Live {
    /// The sectors that `committed` needs of a device of `len` bytes. Nothing is read yet.
    #[must_use]
    pub fn new(committed: Arc<Snapshot>, len: u64) -> Self {
        let count = usize::try_from(len.div_ceil(PAGE)).unwrap_or(0);
        let pages = std::iter::repeat_with(OnceLock::new).take(count).collect();
        let devid = committed.geometry.devid;
        let base = Base {
            committed,
            log: Vec::new(),
            freeing: Vec::new(),
            freed_by: 0,
            unread: HashSet::new(),
            unread_because: None,
        };
        Live { devid, pages, base: Mutex::new(base), is_freeing: AtomicBool::new(false) }
    }

    /// Whether this is for a disk of `len` bytes, as far as pages tell.
    #[must_use]
    pub fn is_for(&self, len: u64) -> bool {
        self.pages.len() as u64 == len.div_ceil(PAGE)
    }

    /// Whether any sector of `[offset, offset + len)` is in use. Takes no lock once the range has been looked at.
    pub fn is_hit(&self, offset: u64, len: u64, source: &dyn BlockSource) -> bool {
        pieces(offset, len).any(|(page, from, to)| self.page(page, source).is_some_and(|p| p.any(from, to)))
    }

    /// The sectors of `[offset, offset + len)` that are in use.
    pub fn hits(&self, offset: u64, len: u64, source: &dyn BlockSource) -> Vec<Hit> {
        if !self.is_hit(offset, len, source) {
            return Vec::new();
        }
        // What is being freed just now must be seen as in use and freed, or as neither.
        let base = self.lock();
        let mut hits = Vec::new();
        for (index, from, to) in pieces(offset, len) {
            let Some(page) = self.pages.get(index).and_then(OnceLock::get) else { continue };
            for sector in from..to {
                let Some(used) = page.use_of(sector) else { continue };
                let offset = index as u64 * PAGE + sector * SECTOR;
                let is_freed = base.freeing.iter().any(|range| {
                    range.used == used && (range.offset..range.offset + range.len).contains(&offset)
                });
                hits.push(Hit { offset, used, is_freed });
            }
        }
        hits
    }

    /// The last commit, as far as it is known here.
    #[must_use]
    pub fn committed(&self) -> Arc<Snapshot> {
        Arc::clone(&self.lock().committed)
    }

    /// A log commit was verified, which reaches the tree blocks at these addresses, each `nodesize` long.
    pub fn log_commit(&self, blocks: &[u64]) {
        let mut base = self.lock();
        let nodesize = u64::from(base.committed.geometry.nodesize);
        for &bytenr in blocks {
            let span = Span { bytenr, len: nodesize, used: Use::Metadata };
            let ranges = ranges(&base.committed, self.devid, span);
            ranges.iter().for_each(|range| self.set(range, true));
            base.log.extend(ranges);
        }
    }

    /// A transaction is about to be committed. What it needs is in use from now on; what it freed stays so until
    /// [`Live::flushed`].
    pub fn commit(&self, new: Arc<Snapshot>, delta: &LiveDelta) {
        let mut base = self.lock();
        self.free(&mut base);
        base.unread.clear();
        let old = std::mem::replace(&mut base.committed, new);
        let mut freeing = std::mem::take(&mut base.log);
        freeing.extend(delta.dead.iter().flat_map(|span| ranges(&old, self.devid, *span)));
        let live = delta.live.iter().flat_map(|span| ranges(&base.committed, self.devid, *span));
        let mut live: Vec<Range> = live.collect();
        live.iter().for_each(|range| self.set(range, true));
        live.sort_unstable_by_key(|range| range.offset);
        // In a chunk that took the place of another.
        freeing.retain(|freed| !overlaps_any(freed, &live));
        base.freeing = freeing;
        base.freed_by = u64::MAX;
        self.is_freeing.store(true, Ordering::Release);
    }

    /// The guest may have been reset. It knows nothing of what it freed last, nor of blocks that only earlier logs of
    /// the transaction reached: all that is free.
    pub fn interrupted(&self) {
        let mut base = self.lock();
        let log = std::mem::take(&mut base.log);
        base.freeing.extend(log);
        self.free(&mut base);
    }

    /// The super block of the last commit has been written. `flush` is the number of the next flush, which makes it
    /// durable; `None` for a guest that doesn't flush: then it takes what it freed at once.
    pub fn committed_by(&self, flush: Option<u64>) {
        let mut base = self.lock();
        match flush {
            Some(number) => base.freed_by = number,
            None => self.free(&mut base),
        }
    }

    /// The flush with this number is complete.
    pub fn flushed(&self, number: u64) {
        if !self.is_freeing.load(Ordering::Acquire) {
            return;
        }
        let mut base = self.lock();
        if number >= base.freed_by {
            self.free(&mut base);
        }
    }

    fn free(&self, base: &mut Base) {
        for range in std::mem::take(&mut base.freeing) {
            self.set(&range, false);
        }
        self.is_freeing.store(false, Ordering::Release);
    }

    fn set(&self, range: &Range, on: bool) {
        for (index, from, to) in pieces(range.offset, range.len) {
            let Some(page) = self.pages.get(index).and_then(OnceLock::get) else { continue };
            (from..to).for_each(|sector| page.set(range.used, sector, on));
        }
    }

    fn page(&self, index: usize, source: &dyn BlockSource) -> Option<&Page> {
        let slot = self.pages.get(index)?;
        if let Some(page) = slot.get() {
            return Some(page);
        }
        // A commit must not pass by meanwhile: what it changes would be missed.
        let mut base = self.lock();
        if let Some(page) = slot.get() {
            return Some(page);
        }
        // What can't be read can't be guarded. Tried anew with the next commit, not with each write: that would be many
        // reads from a disk that fails.
        if base.unread.contains(&index) {
            return None;
        }
        match self.read_page(index, &base, source) {
            Ok(page) => Some(slot.get_or_init(|| page)),
            Err(problem) => {
                base.unread.insert(index);
                let reason = problem.to_string();
                if base.unread_because.as_ref().is_none_or(|(before, _)| *before != reason) {
                    base.unread_because = Some((reason, false));
                }
                None
            }
        }
    }

    /// Why pages could not be made, once for each reason.
    pub fn take_unread(&self) -> Option<String> {
        let mut base = self.lock();
        let (reason, told) = base.unread_because.as_mut()?;
        (!std::mem::replace(told, true)).then(|| reason.clone())
    }

    fn read_page(
        &self,
        index: usize,
        base: &Base,
        source: &dyn BlockSource,
    ) -> Result<Box<Page>, BlockProblem> {
        let page = Page::new();
        let (start, end) = (index as u64 * PAGE, (index as u64 + 1).saturating_mul(PAGE));
        let put = |offset: u64, len: u64, used| {
            let (from, to) = (offset.max(start), offset.saturating_add(len).min(end));
            let sectors = from.saturating_sub(start) / SECTOR..to.saturating_sub(start).div_ceil(SECTOR);
            sectors.for_each(|sector| page.set(used, sector, true));
        };
        let forest = Forest::new(&base.committed, source);
        for (range, chunk) in base.committed.chunks.device_ranges(self.devid) {
            let (offset, past) = (range.start.offset, range.start.offset.saturating_add(range.length));
            let (from, to) = (offset.max(start), past.min(end));
            if from >= to || chunk.flags.is_striped() {
                continue;
            }
            let logical = |physical: u64| chunk.logical.saturating_add(physical - offset);
            in_range(&forest, logical(from), logical(to), |span| {
                put(offset + (span.bytenr - chunk.logical), span.len, span.used);
            })?;
        }
        let pending = base.log.iter().chain(&base.freeing);
        pending.for_each(|range| put(range.offset, range.len, range.used));
        Ok(page)
    }

    fn lock(&self) -> MutexGuard<'_, Base> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a range overlaps one of those that are sorted by their offsets and don't overlap each other.
fn overlaps_any(range: &Range, sorted: &[Range]) -> bool {
    let end = range.offset.saturating_add(range.len);
    let behind = sorted.partition_point(|other| other.offset < end);
    let last = behind.checked_sub(1).and_then(|last| sorted.get(last));
    last.is_some_and(|last| last.offset.saturating_add(last.len) > range.offset)
}

/// Where a span lies on one device. One that crosses chunks is taken apart.
fn ranges(snapshot: &Snapshot, devid: u64, span: Span) -> Vec<Range> {
    let mut found = Vec::new();
    let (mut at, end) = (span.bytenr, span.bytenr.saturating_add(span.len));
    while at < end {
        let Some(chunk) = snapshot.chunks.chunk_at(at) else { break };
        let len = end.min(chunk.end()) - at;
        if let Ok(places) = snapshot.chunks.copies(at, len) {
            let here = places.filter(|place| place.devid == devid);
            found.extend(here.map(|place| Range { offset: place.offset, len, used: span.used }));
        }
        at = chunk.end();
    }
    found
}

/// The pages that a range touches, and the sectors in each.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (usize, u64, u64)> {
    let end = offset.saturating_add(len);
    let pages = offset / PAGE..end.div_ceil(PAGE).max(offset / PAGE);
    pages.filter_map(move |page| {
        let start = page * PAGE;
        let from = offset.max(start) - start;
        let to = end.min(start.saturating_add(PAGE)) - start;
        let (from, to) = (from / SECTOR, to.div_ceil(SECTOR));
        (from < to).then(|| Some((usize::try_from(page).ok()?, from, to)))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_found_among_many() {
        let range = |offset, len| Range { offset, len, used: Use::Data };
        let sorted: Vec<Range> = (0..100).map(|n| range(n * 1000, 500)).collect();
        for (offset, len, overlaps) in
            [(0, 1, true), (499, 1, true), (500, 500, false), (400, 5000, true), (99_500, 9, false)]
        {
            assert_eq!(overlaps_any(&range(offset, len), &sorted), overlaps, "{offset} {len}");
        }
        assert!(!overlaps_any(&range(0, 10), &[]));
    }

    #[test]
    fn ranges_are_cut_at_pages() {
        let all: Vec<_> = pieces(PAGE - 4096, 8192).collect();
        assert_eq!(all, [(0, PAGE_SECTORS - 1, PAGE_SECTORS), (1, 0, 1)]);
        assert_eq!(pieces(512, 512).collect::<Vec<_>>(), [(0, 0, 1)]);
        assert_eq!(pieces(4096, 0).count(), 0);
    }

    #[test]
    fn a_page_says_what_is_set_and_nothing_else() {
        let page = Page::new();
        assert!(!page.any(0, PAGE_SECTORS));
        page.set(Use::Data, 64, true);
        page.set(Use::Metadata, 200, true);
        assert!(page.any(64, 65) && page.any(0, 128) && page.any(65, 201));
        assert!(!page.any(0, 64) && !page.any(65, 200) && !page.any(201, PAGE_SECTORS));
        assert_eq!(
            (page.use_of(64), page.use_of(200), page.use_of(65)),
            (Some(Use::Data), Some(Use::Metadata), None)
        );
        page.set(Use::Data, 64, false);
        assert!(!page.any(0, 128));
    }
}
