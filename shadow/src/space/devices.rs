//! Device extents against chunks, devices against their device extents, and what the super block says of both.

use std::collections::{BTreeMap, BTreeSet};

use parser::dev::{DevExtent, DevItem};
use parser::key::item;
use parser::{BlockFlags, Chunk, ChunkMap, Key, SuperBlock, ids};

use crate::codes::Code;
use crate::forest::{BlockProblem, Expect, Forest};
use crate::space::commit::{Commit, Outcome};
use crate::space::device_ids;
use crate::tree::{Change, Cursor, ItemRef, Searcher, diff};
use crate::violation::Violation;

/// A device extent: where it lies, and for which chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Device.
    pub devid: u64,
    /// Byte offset on it.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Logical address of the chunk.
    pub chunk: u64,
}

impl Piece {
    fn parse(found: &ItemRef) -> Option<Self> {
        if found.key.item_type != item::DEV_EXTENT {
            return None;
        }
        let DevExtent { length, chunk_offset, .. } = DevExtent::parse(found.data()).ok()?;
        let Key { objectid, offset, .. } = found.key;
        Some(Piece { devid: objectid, offset, len: length, chunk: chunk_offset })
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// What a chunk takes on devices; nothing for a profile that is not mapped.
fn pieces(chunk: &Chunk) -> impl Iterator<Item = Piece> + '_ {
    let len = chunk.stripe_size();
    let piece = move |len, stripe: &parser::chunk::Stripe| Piece {
        devid: stripe.devid,
        offset: stripe.offset,
        len,
        chunk: chunk.logical,
    };
    chunk.stripes.iter().filter_map(move |stripe| len.map(|len| piece(len, stripe)))
}

fn chunk_tree<'a>(forest: Forest<'a>) -> Searcher<'a> {
    Searcher::new(forest, forest.snapshot.super_view().map(|view| Expect::chunk_tree(&view)))
}

/// All device items.
///
/// # Errors
/// [`BlockProblem`] when the chunk tree can't be read.
pub fn all(forest: Forest<'_>) -> Result<Vec<DevItem>, BlockProblem> {
    let mut devices = Vec::new();
    let key = |devid| Key::new(ids::DEV_ITEMS, item::DEV_ITEM, devid);
    chunk_tree(forest).range(key(0), key(u64::MAX), |found| devices.extend(DevItem::parse(found.data())))?;
    Ok(devices)
}

fn device(forest: Forest<'_>, devid: u64) -> Result<Option<DevItem>, BlockProblem> {
    let key = Key::new(ids::DEV_ITEMS, item::DEV_ITEM, devid);
    let found = chunk_tree(forest).at_or_before(&key)?.filter(|found| found.key == key);
    Ok(found.and_then(|found| DevItem::parse(found.data()).ok()))
}

/// Looks device extents up in one commit.
struct Pieces<'a>(Searcher<'a>);

impl<'a> Pieces<'a> {
    fn new(forest: Forest<'a>) -> Self {
        Pieces(Searcher::new(forest, forest.snapshot.tree(ids::DEV_TREE)))
    }

    fn at(&mut self, devid: u64, offset: u64) -> Result<Option<Piece>, BlockProblem> {
        let key = Key::new(devid, item::DEV_EXTENT, offset);
        let found = self.0.at_or_before(&key)?.filter(|found| found.key == key);
        Ok(found.as_ref().and_then(Piece::parse))
    }

    /// The one before an offset, and the one behind it.
    fn around(&mut self, devid: u64, offset: u64) -> Result<[Option<Piece>; 2], BlockProblem> {
        let key = |offset| Key::new(devid, item::DEV_EXTENT, offset);
        let before = match offset.checked_sub(1) {
            Some(before) => self.0.at_or_before(&key(before))?,
            None => None,
        };
        let behind = self.0.at_or_after(&key(offset.saturating_add(1)))?;
        let own = |found: Option<ItemRef>| {
            found.as_ref().and_then(Piece::parse).filter(|piece| piece.devid == devid)
        };
        Ok([own(before), own(behind)])
    }

    fn sum(&mut self, devid: u64) -> Result<u64, BlockProblem> {
        let mut sum = 0u64;
        let key = |offset| Key::new(devid, item::DEV_EXTENT, offset);
        self.0.range(key(0), key(u64::MAX), |found| {
            sum = sum.saturating_add(Piece::parse(&found).map_or(0, |piece| piece.len));
        })?;
        Ok(sum)
    }
}

/// Device extents of one commit that another does not have.
#[derive(Debug, Default)]
struct Delta {
    old: Vec<Piece>,
    new: Vec<Piece>,
}

fn delta(commit: &Commit<'_, '_>) -> Result<Delta, BlockProblem> {
    let side = |forest: Forest<'_>| forest.snapshot.tree(ids::DEV_TREE);
    let mut delta = Delta::default();
    let (old, new) = ((commit.old, side(commit.old)), (commit.new, side(commit.new)));
    let mut problems = diff(old, new, |change| {
        delta.old.extend(change.before().and_then(Piece::parse));
        delta.new.extend(change.after().and_then(Piece::parse));
    });
    match problems.pop() {
        Some(problem) => Err(problem),
        None => Ok(delta),
    }
}

/// Device extents and chunks that changed, against each other.
pub(crate) fn extents(commit: &mut Commit<'_, '_>) -> Outcome {
    if commit.new.snapshot.tree(ids::DEV_TREE).is_none() {
        // A root item that is lost is another rule's finding.
        return Ok(Vec::new());
    }
    let delta = delta(commit)?;
    let (gone, made) = commit.changed_chunks();
    let chunks = &commit.new.snapshot.chunks;
    let mut stored = Pieces::new(commit.new);
    let mut found = Vec::new();
    for piece in &delta.new {
        found.extend(without_chunk(chunks, piece));
        for other in stored.around(piece.devid, piece.offset)?.into_iter().flatten() {
            let (first, second) = if other.offset < piece.offset { (&other, piece) } else { (piece, &other) };
            found.extend(overlap(first, second));
        }
        found.extend(beyond(device(commit.new, piece.devid)?.as_ref(), piece));
    }
    let mut changed: BTreeSet<u64> = gone.iter().chain(&made).map(|chunk| chunk.logical).collect();
    changed.extend(delta.old.iter().map(|piece| piece.chunk));
    for chunk in changed.iter().filter_map(|start| chunks.chunk_at(*start)) {
        for piece in pieces(chunk) {
            found.extend(without_extent(&piece, stored.at(piece.devid, piece.offset)?));
        }
    }
    // Those of a chunk that is gone must be gone too.
    for piece in gone.iter().flat_map(|chunk| pieces(chunk)) {
        if let Some(left) = stored.at(piece.devid, piece.offset)?.filter(|left| !delta.new.contains(left)) {
            found.extend(without_chunk(chunks, &left));
        }
    }
    // One disagreement about a chunk is enough.
    found.sort_by_key(|violation| (violation.bytenr, violation.code));
    found.dedup_by_key(|violation| (violation.bytenr, violation.code));
    Ok(found)
}

/// A device extent for which there is no chunk.
#[must_use]
pub fn without_chunk(chunks: &ChunkMap, piece: &Piece) -> Option<Violation> {
    let chunk = chunks.chunk_at(piece.chunk).filter(|chunk| chunk.logical == piece.chunk);
    let is_known = chunk.is_some_and(|chunk| {
        chunk.stripe_size().is_none() && chunk.stripes.iter().any(|stripe| stripe.offset == piece.offset)
            || pieces(chunk).any(|known| known == *piece)
    });
    let Piece { devid, offset, len, chunk } = *piece;
    (!is_known).then(|| {
        let message =
            format!("Device extent[{devid}, {offset}, {len}] didn't find the relative chunk {chunk}");
        Violation::new(Code::SpaceDevExtent, chunk, len, message)
    })
}

/// A stripe of a chunk, and the device extent at its place.
#[must_use]
pub fn without_extent(piece: &Piece, stored: Option<Piece>) -> Option<Violation> {
    let Piece { devid, offset, len, chunk } = *piece;
    if stored == Some(*piece) {
        return None;
    }
    let what = match stored {
        None => "is not found in dev extent".to_owned(),
        Some(other) => format!("meets dev extent[{devid}, {offset}, {}] of chunk {}", other.len, other.chunk),
    };
    let message = format!("Chunk[256, 228, {chunk}] stripe[{devid}, {offset}] of {len} bytes {what}");
    Some(Violation::new(Code::SpaceDevExtent, chunk, len, message))
}

/// Two device extents, in order.
#[must_use]
pub fn overlap(first: &Piece, second: &Piece) -> Option<Violation> {
    (first.devid == second.devid && first.end() > second.offset).then(|| {
        let message = format!(
            "dev extent devid {} physical offset {} len {} overlap with previous dev extent end {}",
            second.devid,
            second.offset,
            second.len,
            first.end()
        );
        let violation = Violation::new(Code::SpaceDevExtentOverlap, second.chunk, second.len, message);
        violation.with_worth(first.end(), second.offset)
    })
}

/// A device extent that ends past the end of its device, or whose device is not there.
#[must_use]
pub fn beyond(device: Option<&DevItem>, piece: &Piece) -> Option<Violation> {
    let Piece { devid, offset, len, chunk } = *piece;
    let message = match device {
        None => format!("Device extent[{devid}, {offset}, {len}] didn't find its device"),
        Some(device) if piece.end() > device.total_bytes => format!(
            "dev extent devid {devid} physical offset {offset} len {len} is beyond device boundary {}",
            device.total_bytes
        ),
        Some(_) => return None,
    };
    Some(Violation::new(Code::SpaceDevExtentBounds, chunk, len, message))
}

/// By how much the sums of one device have changed.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    told: i128,
    extents: i128,
    chunks: i128,
}

/// Hands the device items that differ to `visit`.
pub(super) fn device_changes(
    commit: &Commit<'_, '_>,
    mut visit: impl FnMut(&Change),
) -> Result<(), BlockProblem> {
    let side = |forest: Forest<'_>| forest.snapshot.super_view().map(|view| Expect::chunk_tree(&view));
    let (old, new) = ((commit.old, side(commit.old)), (commit.new, side(commit.new)));
    let mut problems = diff(old, new, |change| {
        if change.key().item_type == item::DEV_ITEM {
            visit(&change);
        }
    });
    problems.pop().map_or(Ok(()), Err)
}

/// `bytes_used` of every device whose item or extents changed. Where it changed as the chunks did, the device extents
/// are to blame.
pub(crate) fn bytes_used(commit: &mut Commit<'_, '_>) -> Outcome {
    let mut sums: BTreeMap<u64, Sums> = BTreeMap::new();
    let Delta { old, new } = delta(commit)?;
    let (gone, made) = commit.changed_chunks();
    for (pieces, sign) in [(&old, -1), (&new, 1)] {
        for piece in pieces {
            sums.entry(piece.devid).or_default().extents += sign * i128::from(piece.len);
        }
    }
    for (chunks, sign) in [(&gone, -1), (&made, 1)] {
        for piece in chunks.iter().flat_map(|chunk| pieces(chunk)) {
            sums.entry(piece.devid).or_default().chunks += sign * i128::from(piece.len);
        }
    }
    device_changes(commit, |change| {
        let told = |found: Option<&ItemRef>| {
            let device = found.and_then(|found| DevItem::parse(found.data()).ok());
            device.map_or(0, |device| i128::from(device.bytes_used))
        };
        sums.entry(change.key().offset).or_default().told += told(change.after()) - told(change.before());
    })?;
    let mut found = Vec::new();
    for (devid, sums) in sums {
        if sums.told == sums.extents || sums.told == sums.chunks {
            continue;
        }
        if let Some(device) = device(commit.new, devid)? {
            found.extend(wrong_used(&device, Pieces::new(commit.new).sum(devid)?));
        }
    }
    Ok(found)
}

/// A device whose `bytes_used` is not the sum of its device extents.
#[must_use]
pub fn wrong_used(device: &DevItem, extents: u64) -> Option<Violation> {
    let DevItem { devid, bytes_used, .. } = *device;
    (bytes_used != extents).then(|| {
        let message = format!(
            "Dev extent's total-byte({extents}) is not equal to byte-used({bytes_used}) in dev[1, 216, {devid}]"
        );
        Violation::new(Code::SpaceDeviceBytesUsed, devid, 0, message).with_worth(extents, bytes_used)
    })
}

/// The super block's array, where it or the chunk tree changed.
pub(crate) fn system_chunks(commit: &mut Commit<'_, '_>) -> Outcome {
    let side =
        |forest: &Forest<'_>| forest.snapshot.super_view().map(|view| array(&view)).unwrap_or_default();
    let (old, new) = (side(&commit.old), side(&commit.new));
    let (gone, made) = commit.changed_chunks();
    let is_system = |chunk: &&Chunk| chunk.flags.0 & BlockFlags::SYSTEM != 0;
    if old == new && !gone.iter().chain(&made).any(is_system) {
        return Ok(Vec::new());
    }
    Ok(Vec::from_iter(wrong_array(&new, &commit.new.snapshot.chunks)))
}

/// The super block's array, in logical order.
#[must_use]
pub fn array(view: &SuperBlock<'_>) -> Vec<Chunk> {
    let mut array: Vec<Chunk> =
        view.sys_chunks().flatten().map(|(logical, chunk)| Chunk::new(logical, &chunk)).collect();
    array.sort_by_key(|chunk| chunk.logical);
    array
}

/// An array that does not hold exactly the system chunks.
#[must_use]
pub fn wrong_array(array: &[Chunk], chunks: &ChunkMap) -> Option<Violation> {
    let is_system = |chunk: &&Chunk| chunk.flags.0 & BlockFlags::SYSTEM != 0;
    let lost = chunks.chunks().iter().filter(is_system).find(|chunk| !array.contains(chunk));
    let lost = lost.map(|chunk| (chunk.logical, "is not in, or differs in"));
    let is_known = |chunk: &&Chunk| chunks.chunks().iter().filter(is_system).any(|known| known == *chunk);
    let stray = array.iter().find(|chunk| !is_known(chunk)).map(|chunk| (chunk.logical, "is only in"));
    let (logical, what) = lost.or(stray)?;
    let message = format!("system chunk {logical} {what} the super block's system chunk array");
    Some(Violation::new(Code::SpaceSystemChunkArray, logical, 0, message))
}

/// The super block's `total_bytes`, where it did not change as the devices did.
pub(crate) fn total_bytes(commit: &mut Commit<'_, '_>) -> Outcome {
    let side = |forest: &Forest<'_>| forest.snapshot.super_view().map_or(0, |view| view.total_bytes());
    let (old, new) = (side(&commit.old), side(&commit.new));
    let mut more = 0i128;
    device_changes(commit, |change| {
        let total = |found: Option<&ItemRef>| {
            let device = found.and_then(|found| DevItem::parse(found.data()).ok());
            device.map_or(0, |device| i128::from(device.total_bytes))
        };
        more += total(change.after()) - total(change.before());
    })?;
    if more == i128::from(new) - i128::from(old) {
        return Ok(Vec::new());
    }
    Ok(Vec::from_iter(wrong_total(new, &all(commit.new)?)))
}

/// A super block that has fewer bytes than its devices together. More is possible: a device may be missing.
#[must_use]
pub fn wrong_total(total_bytes: u64, devices: &[DevItem]) -> Option<Violation> {
    let sum = devices.iter().fold(0u64, |sum, device| sum.saturating_add(device.total_bytes));
    (total_bytes < sum).then(|| {
        let message = format!("super_total_bytes {total_bytes} mismatch with the devices' total bytes {sum}");
        Violation::new(Code::SpaceTotalBytes, 0, 0, message).with_worth(sum, total_bytes)
    })
}

/// What is wrong with all devices, device extents and chunks of one commit.
///
/// # Errors
/// What could not be read.
pub fn whole(forest: Forest<'_>) -> Result<Vec<Violation>, Vec<BlockProblem>> {
    let chunks = &forest.snapshot.chunks;
    let devices = all(forest).map_err(|problem| vec![problem])?;
    let mut found = Vec::new();
    let mut stored: BTreeMap<(u64, u64), Piece> = BTreeMap::new();
    let mut cursor = Cursor::new(forest, forest.snapshot.tree(ids::DEV_TREE));
    while let Some(item) = cursor.next_item() {
        stored.extend(Piece::parse(&item).map(|piece| ((piece.devid, piece.offset), piece)));
    }
    let problems = cursor.into_problems();
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut sums: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
    let mut previous: Option<&Piece> = None;
    for piece in stored.values() {
        found.extend(without_chunk(chunks, piece));
        found.extend(previous.replace(piece).and_then(|previous| overlap(previous, piece)));
        found.extend(beyond(devices.iter().find(|device| device.devid == piece.devid), piece));
        let sum = &mut sums.entry(piece.devid).or_default()[0];
        *sum = sum.saturating_add(piece.len);
    }
    for piece in chunks.chunks().iter().flat_map(pieces) {
        found.extend(without_extent(&piece, stored.get(&(piece.devid, piece.offset)).copied()));
        let sum = &mut sums.entry(piece.devid).or_default()[1];
        *sum = sum.saturating_add(piece.len);
    }
    for device in &devices {
        let [by_extents, by_chunks] = sums.get(&device.devid).copied().unwrap_or_default();
        if by_chunks != device.bytes_used {
            found.extend(wrong_used(device, by_extents));
        }
    }
    if let Some(view) = forest.snapshot.super_view() {
        found.extend(device_ids::whole(chunks.chunks(), &devices, Some(&view)));
        found.extend(wrong_array(&array(&view), chunks));
        found.extend(wrong_total(view.total_bytes(), &devices));
        found.extend(wrong_number(view.num_devices(), devices.len() as u64));
    }
    found.sort_by_key(|violation| (violation.bytenr, violation.code));
    found.dedup_by_key(|violation| (violation.bytenr, violation.code));
    Ok(found)
}

/// A super block with another number of devices. Kernels before 5.19 wrote it in a transaction of its own.
fn wrong_number(told: u64, devices: u64) -> Option<Violation> {
    (told != devices).then(|| {
        let message = format!("super_num_devices {told} mismatch with num_devices {devices} found here");
        Violation::new(Code::SpaceNumDevices, 0, 0, message).with_worth(devices, told)
    })
}
