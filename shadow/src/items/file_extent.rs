//! File extents.

use parser::file_extent::{Encoding, ExtentRange, INLINE_DATA_START};
use parser::key::item::EXTENT_DATA;
use parser::{FileExtent, Key};

use super::{Context, Fault, Homes, Item, Rule, ensure, ensure_same_inode};
use crate::codes::Code::TreeFileExtent;

/// The last compression there is (`BTRFS_COMPRESS_ZSTD`). Another would come with a feature bit.
const LAST_COMPRESSION: u8 = 3;

pub(super) const RULES: &[Rule] = &[Rule::new(EXTENT_DATA, Homes::INODES, check)];

fn check(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let code = TreeFileExtent;
    let malformed = |error: parser::ParseError| Fault { code, message: error.to_string() };
    let offset = item.key.offset;
    ensure(context.is_aligned(offset), code, || {
        format!(
            "unaligned file_offset for file extent, have {offset} should be aligned to {}",
            context.sectorsize()
        )
    })?;
    ensure_same_inode(context, item)?;
    let extent = FileExtent::parse(item.data).map_err(malformed)?;
    let encoding = Encoding::parse(item.data).map_err(malformed)?;
    let Encoding { generation, compression, encryption, .. } = encoding;
    let last = context.last_generation();
    ensure(generation <= last, code, || {
        format!("invalid generation for file extent, have {generation} expect [0, {last}]")
    })?;
    ensure(compression <= LAST_COMPRESSION, code, || {
        format!(
            "invalid compression for file extent, have {compression} expect range [0, {LAST_COMPRESSION}]"
        )
    })?;
    ensure(encryption == 0, code, || {
        format!("invalid encryption for file extent, have {encryption} expect 0")
    })?;
    match &extent {
        FileExtent::Inline { .. } => inline(item, &encoding),
        FileExtent::Regular(range) | FileExtent::Prealloc(range) => on_disk(context, item, &encoding, range),
    }
}

fn inline(item: &Item<'_>, encoding: &Encoding) -> Result<(), Fault> {
    let code = TreeFileExtent;
    let offset = item.key.offset;
    ensure(offset == 0, code, || {
        format!("invalid file_offset for inline file extent, have {offset} expect 0")
    })?;
    let (have, want) = (item.data.len() as u64, encoding.ram_bytes.saturating_add(INLINE_DATA_START as u64));
    ensure(encoding.compression != 0 || have == want, code, || {
        format!("invalid ram_bytes for uncompressed inline extent, have {have} expect {want}")
    })
}

fn on_disk(
    context: &Context<'_>,
    item: &Item<'_>,
    encoding: &Encoding,
    range: &ExtentRange,
) -> Result<(), Fault> {
    let code = TreeFileExtent;
    let ExtentRange { disk_bytenr, disk_num_bytes, offset, num_bytes } = *range;
    let all = encoding.ram_bytes | disk_bytenr | disk_num_bytes | offset | num_bytes;
    ensure(context.is_aligned(all), code, || {
        format!(
            "invalid ram_bytes {} disk_bytenr {disk_bytenr} disk_num_bytes {disk_num_bytes} offset {offset} or \
             num_bytes {num_bytes} for file extent, should be aligned to {}",
            encoding.ram_bytes,
            context.sectorsize()
        )
    })?;
    let is_within = offset.checked_add(num_bytes).is_some_and(|end| end <= encoding.ram_bytes);
    ensure(is_within || disk_bytenr == 0, code, || {
        format!(
            "offset {offset} and num_bytes {num_bytes} of a file extent reach past its ram_bytes {}",
            encoding.ram_bytes
        )
    })?;
    ensure(item.key.offset.checked_add(num_bytes).is_some(), code, || {
        format!("extent end overflow, have file offset {} extent num bytes {num_bytes}", item.key.offset)
    })?;
    // What an old kernel logs may overlap; the replay cuts it off.
    let end = item.previous.filter(|_| !context.is_log()).and_then(|(key, data)| end_of(item, &key, data));
    ensure(end.is_none_or(|end| end <= item.key.offset), code, || {
        format!(
            "file extent end range ({}) goes beyond start offset ({}) of the next file extent",
            end.unwrap_or_default(),
            item.key.offset
        )
    })
}

/// Where the file extent before `item` ends, if it is one of the same file.
fn end_of(item: &Item<'_>, previous: &Key, data: &[u8]) -> Option<u64> {
    if (previous.objectid, previous.item_type) != (item.key.objectid, item.key.item_type) {
        return None;
    }
    match FileExtent::parse(data).ok()? {
        // It ends within its first sector; what is behind it begins with the next.
        FileExtent::Inline { .. } => None,
        FileExtent::Regular(range) | FileExtent::Prealloc(range) => {
            Some(previous.offset.saturating_add(range.num_bytes))
        }
    }
}
