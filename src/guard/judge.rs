//! Whether a write over sectors in use does harm, and what is said about it.
//!
//! The same bytes again are a repair, or nothing. So is anything written over bytes that were wrong already: the judge
//! reads what is on the disk and asks the checksum that the last commit has for it. Called for the rare write that hits
//! a sector in use.

use parser::key::item;
use parser::map::Physical;
use parser::{Header, Key, ids};
use shadow::live::Use;
use shadow::tree::Searcher;
use shadow::{BlockSource, Code, Forest, Snapshot, Violation};

use super::SECTOR;
use super::live::Hit;
use crate::image::Image;
use crate::tap::Erase;

/// A write that does harm.
#[derive(Debug)]
pub struct Incident {
    /// What is reported.
    pub violation: Violation,
    /// It is only one in a guest that flushes: the sector was freed by a commit that isn't durable.
    pub if_barriers: bool,
}

/// What a write of `bytes` at `offset` does to the sectors it hits.
pub fn judge_write(
    image: &dyn Image,
    source: &dyn BlockSource,
    committed: &Snapshot,
    (offset, bytes): (u64, &[u8]),
    hits: &[Hit],
) -> Option<Incident> {
    let judge = Judge { image, source, committed };
    let changed = hits.iter().find(|hit| judge.changes(hit, offset, bytes))?;
    let mut incident = judge.incident(changed, "overwritten with other bytes");
    if changed.used == Use::Metadata {
        incident.violation.message += &judge.versions(changed.offset, offset, bytes);
    }
    Some(incident)
}

/// What erasing `len` bytes does to the sectors it hits.
pub fn judge_erase(
    image: &dyn Image,
    source: &dyn BlockSource,
    committed: &Snapshot,
    kind: Erase,
    hits: &[Hit],
) -> Option<Incident> {
    let judge = Judge { image, source, committed };
    let harmed = hits.iter().find(|hit| judge.was_right(hit))?;
    let what = match kind {
        Erase::Discard => "discarded",
        Erase::Zeroes { .. } => "overwritten with zeros",
    };
    let mut incident = judge.incident(harmed, what);
    if !incident.if_barriers {
        incident.violation.code = Code::WriteDiscardLive;
    }
    Some(incident)
}

struct Judge<'a> {
    image: &'a dyn Image,
    source: &'a dyn BlockSource,
    committed: &'a Snapshot,
}

impl Judge<'_> {
    /// Whether the write replaces right bytes of a sector by others.
    fn changes(&self, hit: &Hit, offset: u64, bytes: &[u8]) -> bool {
        let (from, to) = (hit.offset.max(offset), (hit.offset + SECTOR).min(offset + bytes.len() as u64));
        let Some(new) = bytes.get((from - offset) as usize..(to - offset) as usize) else { return false };
        let mut old = vec![0; new.len()];
        if self.image.read_at(&mut old, from).is_err() {
            return false;
        }
        old != new && self.was_right(hit)
    }

    /// What the blocks say of themselves that begin at the sector, the old and the new; nothing where none begins.
    fn versions(&self, sector: u64, offset: u64, bytes: &[u8]) -> String {
        let mut old = vec![0; SECTOR as usize];
        let at = sector.checked_sub(offset).and_then(|at| bytes.get(at as usize..));
        let (Ok(()), Some(new)) = (self.image.read_at(&mut old, sector), at) else { return String::new() };
        let describe = |bytes: &[u8]| {
            let header = Header::parse(bytes).ok()?;
            (*header.fsid() == self.committed.geometry.metadata_uuid)
                .then(|| format!("generation {} owner {}", header.generation(), header.owner().cast_signed()))
        };
        match (describe(&old), describe(new)) {
            (Some(old), Some(new)) => format!(" ({old} by {new})"),
            (Some(old), None) => format!(" ({old} by what is no tree block)"),
            _ => String::new(),
        }
    }

    /// Whether the sector holds what the last commit wants there. What has been freed isn't wanted any more, but was.
    fn was_right(&self, hit: &Hit) -> bool {
        let place = Physical { devid: self.committed.geometry.devid, offset: hit.offset };
        let Some((_, bytenr)) = self.committed.chunks.logical(place) else { return hit.is_freed };
        if hit.is_freed {
            return true;
        }
        match hit.used {
            Use::Metadata => self.block_was_right(hit.offset, bytenr),
            Use::Data => self.data_was_right(hit.offset, bytenr),
        }
    }

    /// The tree block that the sector is a part of: whether there is a whole one, of this file system.
    fn block_was_right(&self, offset: u64, bytenr: u64) -> bool {
        let geometry = &self.committed.geometry;
        let nodesize = u64::from(geometry.nodesize);
        let mut bytes = vec![0; geometry.nodesize as usize];
        // Blocks are aligned to sectors, not to their own size.
        (0..nodesize / SECTOR).any(|before| {
            let back = before * SECTOR;
            let (Some(start), Some(address)) = (offset.checked_sub(back), bytenr.checked_sub(back)) else {
                return false;
            };
            self.image.read_at(&mut bytes, start).is_ok()
                && Header::parse(&bytes).is_ok_and(|header| header.bytenr() == address)
                && geometry.csum.verify(&bytes)
        })
    }

    /// Whether the data has the checksum that the last commit has for it.
    fn data_was_right(&self, offset: u64, bytenr: u64) -> bool {
        let geometry = &self.committed.geometry;
        let sectorsize = u64::from(geometry.sectorsize);
        let within = bytenr % sectorsize;
        let (start, address) = (offset - within.min(offset), bytenr - within);
        let mut bytes = vec![0; geometry.sectorsize as usize];
        if self.image.read_at(&mut bytes, start).is_err() {
            return false;
        }
        let size = geometry.csum.size();
        let digest = geometry.csum.compute(&bytes);
        self.checksum(address).is_some_and(|sum| digest.get(..size) == Some(sum.as_slice()))
    }

    fn checksum(&self, bytenr: u64) -> Option<Vec<u8>> {
        let geometry = &self.committed.geometry;
        let (size, sectorsize) = (geometry.csum.size(), u64::from(geometry.sectorsize));
        let longest = u64::from(geometry.nodesize) / size as u64 * sectorsize;
        let key = |at| Key::new(ids::EXTENT_CSUM, item::EXTENT_CSUM, at);
        let forest = Forest::new(self.committed, self.source);
        let mut found = None;
        let mut searcher = Searcher::new(forest, forest.snapshot.tree(ids::CSUM_TREE));
        let read = searcher.range(key(bytenr.saturating_sub(longest)), key(bytenr), |sums| {
            let at = ((bytenr - sums.key.offset) / sectorsize) as usize * size;
            found = sums.data().get(at..at + size).map(<[u8]>::to_vec).or(found.take());
        });
        read.ok().and(found)
    }

    fn incident(&self, hit: &Hit, what: &str) -> Incident {
        let Snapshot { geometry, generation, .. } = self.committed;
        let place = Physical { devid: geometry.devid, offset: hit.offset };
        let bytenr = self.committed.chunks.logical(place).map_or(0, |(_, bytenr)| bytenr);
        let where_ = format!("devid {} physical {}", place.devid, place.offset);
        let (code, message) = match (hit.used, hit.is_freed) {
            (_, true) => (
                Code::WriteReusedEarly,
                format!(
                    "freed space at {bytenr} ({where_}) {what} before the commit of generation {generation}, which \
                     freed it, was durable"
                ),
            ),
            (Use::Metadata, _) => (
                Code::WriteMetadataOverwritten,
                format!(
                    "tree block at {bytenr} ({where_}), which the super block of generation {generation} reaches, {what}"
                ),
            ),
            (Use::Data, _) => (
                Code::WriteDataOverwritten,
                format!(
                    "data at {bytenr} ({where_}), which has a checksum in the commit of generation {generation}, {what}"
                ),
            ),
        };
        Incident { violation: Violation::new(code, bytenr, SECTOR, message), if_barriers: hit.is_freed }
    }
}
