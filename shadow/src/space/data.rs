//! File data against the checksum tree: every copy, read in the order in which it lies on its device.
//!
//! Reads data through a trait of its own, and hands the work out in pieces; who does them is the caller's business.

use parser::map::Physical;
use parser::superblock::super_flags;
use parser::{Chunk, ChunkMap, ids};

use crate::codes::Code;
use crate::delta::extents::Records;
use crate::forest::{BlockProblem, Forest};
use crate::paths;
use crate::source::ReadError;
use crate::space::checksums::{Delta, Sums, csum_key, data_extent_at};
use crate::space::group::chunk_range;
use crate::space::ranges::{Range, clip};
use crate::tree::Searcher;
use crate::violation::Violation;

/// Bytes that are read at a time.
const PIECE: u64 = 1 << 20;

/// Reads file data by its place.
pub trait DataSource: Sync {
    /// Fills `buffer` with what lies at `place`.
    ///
    /// # Errors
    /// [`ReadError`] when there are no bytes to be had.
    fn read_data(&self, place: Physical, buffer: &mut [u8]) -> Result<(), ReadError>;

    /// Whether the last write to any of the `len` bytes at `place` failed, as the guest was told.
    fn write_failed(&self, _place: Physical, _len: u64) -> bool {
        false
    }
}

/// One copy of a range that has checksums.
#[derive(Debug, Clone)]
pub struct Piece {
    sums: Sums,
    range: Range,
    place: Physical,
}

/// One stripe of a chunk that holds data: where it begins, and the chunk.
#[derive(Debug, Clone, Copy)]
pub struct Stripe<'m> {
    /// Where it begins.
    pub place: Physical,
    chunk: &'m Chunk,
}

/// Why data can't be compared at all; `None` where it can.
#[must_use]
pub fn obstacle(forest: &Forest<'_>) -> Option<String> {
    let flags = forest.snapshot.super_view().map_or(0, |view| view.flags());
    let is_dump = flags & (super_flags::METADUMP | super_flags::METADUMP_V2) != 0;
    is_dump.then(|| "file data: the image is a dump of metadata".to_owned())
}

/// The stripes that hold data, as they lie on the devices, and why some are not among them.
#[must_use]
pub fn stripes(chunks: &ChunkMap) -> (Vec<Stripe<'_>>, Vec<String>) {
    let mut stripes = Vec::new();
    let mut unknown = Vec::new();
    for chunk in chunks.chunks().iter().filter(|chunk| chunk.flags.holds_data()) {
        if chunk.stripe_size().is_none() {
            let (logical, flags) = (chunk.logical, chunk.flags.0);
            unknown.push(format!(
                "file data in chunk {logical}: its profile is not supported (type {flags:#x})"
            ));
            continue;
        }
        stripes.extend(chunk.stripes.iter().map(|stripe| {
            let place = Physical { devid: stripe.devid, offset: stripe.offset };
            Stripe { place, chunk }
        }));
    }
    stripes.sort_unstable_by_key(|stripe| stripe.place);
    (stripes, unknown)
}

/// Everything on one stripe that has checksums, in order.
///
/// # Errors
/// [`BlockProblem`] when the checksum tree can't be read there.
pub fn pieces(forest: Forest<'_>, stripe: &Stripe<'_>) -> Result<Vec<Piece>, BlockProblem> {
    let bounds = chunk_range(stripe.chunk);
    let geometry = &forest.snapshot.geometry;
    let mut tree = Searcher::new(forest, forest.snapshot.tree(ids::CSUM_TREE));
    let mut found = Vec::new();
    found.extend(tree.at_or_before(&csum_key(bounds.0))?);
    let Some(last) = bounds.1.checked_sub(1) else { return Ok(Vec::new()) };
    tree.range(csum_key(bounds.0.saturating_add(1)), csum_key(last), |item| found.push(item))?;
    let mut pieces = Vec::new();
    for sums in found.iter().filter_map(|item| Sums::parse(item, geometry)) {
        if let Some(range) = clip(sums.range, bounds) {
            cut(&sums, range, |range| {
                pieces.push(Piece { sums: sums.clone(), range, place: stripe.at(range.0) })
            });
        }
    }
    Ok(pieces)
}

impl Stripe<'_> {
    fn at(&self, bytenr: u64) -> Physical {
        let within = bytenr.saturating_sub(self.chunk.logical);
        Physical { offset: self.place.offset.saturating_add(within), ..self.place }
    }
}

fn cut(sums: &Sums, (start, end): Range, mut take: impl FnMut(Range)) {
    debug_assert!(sums.range.0 <= start && end <= sums.range.1);
    let mut at = start;
    while at < end {
        let next = at.saturating_add(PIECE).min(end);
        take((at, next));
        at = next;
    }
}

/// What a commit has given checksums to, every copy of it.
///
/// # Errors
/// [`BlockProblem`] when the checksum trees can't be read.
pub fn fresh(old: Forest<'_>, new: Forest<'_>) -> Result<(Vec<Piece>, Vec<String>), BlockProblem> {
    let delta = Delta::new(old, new)?;
    let fresh = delta.fresh(&new.snapshot.geometry);
    let (stripes, unknown) = stripes(&new.snapshot.chunks);
    let mut pieces = Vec::new();
    for sums in &delta.new {
        for range in fresh.iter().filter_map(|range| clip(*range, sums.range)) {
            for stripe in &stripes {
                let Some(range) = clip(range, chunk_range(stripe.chunk)) else { continue };
                cut(sums, range, |range| {
                    pieces.push(Piece { sums: sums.clone(), range, place: stripe.at(range.0) });
                });
            }
        }
    }
    Ok((pieces, unknown))
}

impl Piece {
    /// Number of bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.1.saturating_sub(self.range.0)
    }

    /// Reads the piece and compares every sector with its checksum.
    ///
    /// # Errors
    /// Why it could not be read, in words.
    pub fn verify(&self, forest: Forest<'_>, data: &dyn DataSource) -> Result<Option<Violation>, String> {
        let geometry = &forest.snapshot.geometry;
        let (start, _) = self.range;
        let Physical { devid, offset } = self.place;
        let len = usize::try_from(self.bytes()).unwrap_or(0);
        let mut buffer = vec![0; len];
        if let Err(error) = data.read_data(self.place, &mut buffer) {
            return Err(format!("file data at {start}: {error}"));
        }
        let sectors = buffer.chunks(geometry.sectorsize.max(1) as usize);
        let sums = self.sums.of(self.range, geometry).unwrap_or_default().chunks(geometry.csum.size());
        let mut wrong = sectors.zip(sums).enumerate().filter_map(|(sector, (bytes, sum))| {
            let computed = geometry.csum.compute(bytes);
            let computed = computed.get(..sum.len()).unwrap_or(&computed);
            (computed != sum).then(|| (sector as u64, hex(sum), hex(computed)))
        });
        let Some((sector, told, computed)) =
            wrong.find(|(sector, ..)| !self.is_excused(*sector, forest, data))
        else {
            return Ok(None);
        };
        let more = match wrong.count() {
            0 => String::new(),
            count => format!(", and {count} more sectors behind it"),
        };
        let sectorsize = u64::from(geometry.sectorsize);
        let within = sector.saturating_mul(sectorsize);
        let bytenr = start.saturating_add(within);
        let message = format!(
            "checksum error at logical {bytenr} on devid {devid}, physical {}: csum {computed} expected csum \
             {told}{more}",
            offset.saturating_add(within)
        );
        let mut violation = Violation::new(Code::SpaceDataChecksum, bytenr, sectorsize, message);
        violation = violation.with_worth(told, computed);
        violation.path = path(forest, bytenr);
        Ok(Some(violation))
    }

    /// Whether this copy of a sector could not be written, as the guest was told, and there is another.
    fn is_excused(&self, sector: u64, forest: Forest<'_>, data: &dyn DataSource) -> bool {
        let sectorsize = u64::from(forest.snapshot.geometry.sectorsize);
        let within = sector.saturating_mul(sectorsize);
        let Physical { devid, offset } = self.place;
        if !data.write_failed(Physical { devid, offset: offset.saturating_add(within) }, sectorsize) {
            return false;
        }
        let copies = forest.snapshot.chunks.copies(self.range.0.saturating_add(within), sectorsize);
        copies.is_ok_and(|mut copies| copies.any(|place| !data.write_failed(place, sectorsize)))
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

/// Whose data it is.
fn path(forest: Forest<'_>, bytenr: u64) -> Option<String> {
    let mut items = Searcher::new(forest, forest.snapshot.tree(ids::EXTENT_TREE));
    let (start, len) = data_extent_at(&mut items, bytenr).ok()??;
    let record = Records::new(forest).get(start).ok()??;
    let key = record.backrefs.first()?.key;
    paths::describe(&forest, &Violation::new(Code::SpaceDataChecksum, start, len, "").with_key(key))
}
