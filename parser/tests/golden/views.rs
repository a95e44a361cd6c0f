//! From the parser's views to the normal form.

use std::collections::BTreeMap;

use oracle::Volume;
use parser::block::HEADER_SIZE;
use parser::chunk::ChunkItem;
use parser::dev::{BlockGroupItem, DevExtent, DevItem};
use parser::free_space::FreeSpaceInfo;
use parser::key::item;
use parser::root::{RootItem, RootRef};
use parser::{BackRef, Block, ExtentItem, FileExtent, Key, SuperBlock, ids};

use crate::Blocks;

/// Every live tree block of the image, the log's left out.
pub fn tree(volume: &mut Volume<'_>) -> Blocks {
    let sb = volume.super_block();
    let mut roots = vec![sb.root(), sb.chunk_root()];
    let root_tree = sb.root();
    volume
        .walk(root_tree.0, root_tree.1, &mut |_, block| {
            let Block::Leaf(leaf) = block else { return };
            for (_, data) in leaf.items().filter(|(key, _)| key.item_type == item::ROOT_ITEM) {
                let root = RootItem::parse(data).unwrap();
                roots.push((root.bytenr, root.level));
            }
        })
        .unwrap();
    let mut blocks = BTreeMap::new();
    for (root, level) in roots {
        volume
            .walk(root, level, &mut |bytenr, block| {
                blocks.entry(bytenr).or_insert_with(|| lines(block));
            })
            .unwrap();
    }
    blocks
}

pub fn uuid(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn lines(block: &Block<'_>) -> Vec<String> {
    let header = block.header();
    let mut lines = vec![format!(
        "block level {} items {} generation {} owner {} flags {:#x} rev {} fsid {}",
        header.level(),
        header.nritems(),
        header.generation(),
        header.owner(),
        header.flags() & 0xff_ffff_ffff_ffff,
        header.backref_rev(),
        uuid(header.fsid()),
    )];
    match block {
        Block::Node(node) => lines.extend(node.ptrs().map(|ptr| {
            let Key { objectid, item_type, offset } = ptr.key;
            format!("pointer {objectid} {item_type} {offset} to {} gen {}", ptr.bytenr, ptr.generation)
        })),
        Block::Leaf(leaf) => {
            // The header view borrows the block's first bytes, from which item offsets count.
            let body = header.csum().as_ptr().addr() + HEADER_SIZE;
            for (key, data) in leaf.items() {
                let name = item::name(key.item_type).unwrap_or("UNKNOWN");
                let (at, size) = (data.as_ptr().addr() - body, data.len());
                lines.push(format!("{name} {} {} off {at} size {size}", key.objectid, key.offset));
                details(&key, data, &mut lines);
            }
        }
    }
    lines
}

fn details(key: &Key, data: &[u8], lines: &mut Vec<String>) {
    match key.item_type {
        item::EXTENT_ITEM | item::METADATA_ITEM => extent_item(key, data, lines),
        keyed if BackRef::is_keyed_type(keyed) => {
            let backref = BackRef::parse_keyed(key, data).unwrap();
            lines.push(match backref {
                // The tool prints nothing but the name for these; who holds the reference stands in the key.
                BackRef::TreeBlock { root } => {
                    assert_eq!(root, key.offset);
                    "tree-ref keyed".to_owned()
                }
                BackRef::SharedBlock { parent } => {
                    assert_eq!(parent, key.offset);
                    "shared-ref keyed".to_owned()
                }
                BackRef::SharedData { parent, count } => {
                    assert_eq!(parent, key.offset);
                    format!("shared-data-ref keyed count {count}")
                }
                other => inline_ref(&other),
            });
        }
        item::EXTENT_DATA => lines.push(file_extent(data)),
        item::ROOT_ITEM => root_item(data, lines),
        item::ROOT_REF | item::ROOT_BACKREF => {
            let RootRef { dirid, sequence, name } = RootRef::parse(data).unwrap();
            let name = String::from_utf8_lossy(name);
            lines.push(format!("link dirid {dirid} sequence {sequence} name {name}"));
        }
        item::BLOCK_GROUP_ITEM => {
            let group = BlockGroupItem::parse(data).unwrap();
            let (used, owner, flags) = (group.used, group.chunk_objectid, group.flags.0);
            lines.push(format!("group used {used} chunk_objectid {owner} flags {flags:#x}"));
        }
        item::DEV_EXTENT => {
            let DevExtent { chunk_tree, chunk_objectid, chunk_offset, length } =
                DevExtent::parse(data).unwrap();
            lines.push(format!("chunk {chunk_tree} {chunk_objectid} {chunk_offset} length {length}"));
        }
        item::DEV_ITEM => lines.push(device(&DevItem::parse(data).unwrap())),
        item::CHUNK_ITEM => chunk(&ChunkItem::parse(data).unwrap(), lines),
        item::FREE_SPACE_INFO => {
            let info = FreeSpaceInfo::parse(data).unwrap();
            let flags = u32::from(info.uses_bitmaps);
            lines.push(format!("extents {} flags {flags}", info.extent_count));
        }
        _ => {}
    }
}

fn extent_item(key: &Key, data: &[u8], lines: &mut Vec<String>) {
    let extent = ExtentItem::parse(key.item_type, data).unwrap();
    lines.push(format!(
        "extent refs {} gen {} flags {:#x}",
        extent.refs(),
        extent.generation(),
        extent.flags()
    ));
    if let Some(level) = extent.block_info_level() {
        lines.push(format!("tree block level {level}"));
    } else if key.item_type == item::METADATA_ITEM {
        lines.push(format!("tree block level {}", key.offset));
    }
    lines.extend(extent.inline_refs().map(|backref| inline_ref(&backref.unwrap())));
}

fn inline_ref(backref: &BackRef) -> String {
    match backref {
        BackRef::TreeBlock { root } => format!("tree-ref root {root}"),
        BackRef::SharedBlock { parent } => format!("shared-ref parent {parent}"),
        BackRef::ExtentData { root, objectid, offset, count } => {
            format!("data-ref root {root} objectid {objectid} offset {offset} count {count}")
        }
        BackRef::SharedData { parent, count } => format!("shared-data-ref parent {parent} count {count}"),
        BackRef::Owner { root } => format!("owner-ref root {root}"),
    }
}

fn file_extent(data: &[u8]) -> String {
    let (kind, range) = match FileExtent::parse(data).unwrap() {
        FileExtent::Inline { ram_bytes } => return format!("inline ram {ram_bytes}"),
        FileExtent::Regular(range) => ("regular", range),
        FileExtent::Prealloc(range) => ("prealloc", range),
    };
    let (bytenr, length) = (range.disk_bytenr, range.disk_num_bytes);
    assert_eq!(range.extent_is_hole(), bytenr == 0);
    format!("{kind} disk {bytenr} {length} offset {} nr {}", range.offset, range.num_bytes)
}

trait IsHole {
    fn extent_is_hole(&self) -> bool;
}

impl IsHole for parser::file_extent::ExtentRange {
    fn extent_is_hole(&self) -> bool {
        FileExtent::Regular(*self).extent().is_none()
    }
}

fn root_item(data: &[u8], lines: &mut Vec<String>) {
    let root = RootItem::parse(data).unwrap();
    lines.push(format!(
        "root generation {} bytenr {} bytes_used {} last_snapshot {} flags {:#x} refs {} level {} generation_v2 {}",
        root.generation,
        root.bytenr,
        root.bytes_used,
        root.last_snapshot,
        root.flags,
        root.refs,
        root.level,
        root.generation_v2.unwrap_or(0),
    ));
    if root.drop_progress.objectid != 0 {
        let Key { objectid, item_type, offset } = root.drop_progress;
        lines.push(format!("drop-cursor {objectid} {item_type} {offset} level {}", root.drop_level));
        assert_eq!(root.drop_cursor().is_some(), root.refs == 0);
    }
}

fn device(device: &DevItem) -> String {
    let DevItem { devid, total_bytes, bytes_used, .. } = device;
    let (id, fsid) = (uuid(&device.uuid), uuid(&device.fsid));
    format!("device {devid} total {total_bytes} used {bytes_used} uuid {id} fsid {fsid}")
}

fn chunk(chunk: &ChunkItem<'_>, lines: &mut Vec<String>) {
    lines.push(format!(
        "chunk length {} owner {} stripe_len {} type {:#x}",
        chunk.length(),
        chunk.owner(),
        chunk.stripe_len(),
        chunk.flags().0
    ));
    for stripe in chunk.stripes() {
        lines.push(format!("stripe {} {} {}", stripe.devid, stripe.offset, uuid(&stripe.dev_uuid)));
    }
}

/// The super block, field by field as `dump-super` names them.
pub fn super_block(sb: &SuperBlock<'_>) -> BTreeMap<String, String> {
    let (root, root_level) = sb.root();
    let (chunk_root, chunk_root_level) = sb.chunk_root();
    let (log_root, log_root_level) = sb.log_root().unwrap_or((0, 0));
    let csum = sb.csum().unwrap();
    let stored: String = sb.bytes()[..csum.size()].iter().map(|byte| format!("{byte:02x}")).collect();
    let device = sb.dev_item();
    let mut chunks = Vec::new();
    for entry in sb.sys_chunks() {
        let (logical, item) = entry.unwrap();
        chunks.push(format!("at {logical}"));
        chunk(&item, &mut chunks);
    }
    let fields = [
        ("csum_type", sb.csum_type().to_string()),
        ("csum_size", csum.size().to_string()),
        ("csum", stored),
        ("bytenr", sb.bytenr().to_string()),
        ("flags", format!("{:#x}", sb.flags())),
        ("fsid", uuid(sb.fsid())),
        ("metadata_uuid", uuid(sb.metadata_uuid())),
        ("label", String::from_utf8_lossy(sb.label()).into_owned()),
        ("generation", sb.generation().to_string()),
        ("root", root.to_string()),
        ("chunk_root_generation", sb.chunk_root_generation().to_string()),
        ("root_level", root_level.to_string()),
        ("chunk_root", chunk_root.to_string()),
        ("chunk_root_level", chunk_root_level.to_string()),
        ("log_root", log_root.to_string()),
        ("log_root_level", log_root_level.to_string()),
        ("total_bytes", sb.total_bytes().to_string()),
        ("bytes_used", sb.bytes_used().to_string()),
        ("sectorsize", sb.sectorsize().to_string()),
        ("nodesize", sb.nodesize().to_string()),
        ("num_devices", sb.num_devices().to_string()),
        ("compat_flags", format!("{:#x}", sb.compat_flags())),
        ("compat_ro_flags", format!("{:#x}", sb.compat_ro_flags())),
        ("incompat_flags", format!("{:#x}", sb.incompat_flags())),
        ("dev_item.uuid", uuid(&device.uuid)),
        ("dev_item.fsid", uuid(&device.fsid)),
        ("dev_item.total_bytes", device.total_bytes.to_string()),
        ("dev_item.bytes_used", device.bytes_used.to_string()),
        ("dev_item.devid", device.devid.to_string()),
        ("sys_chunk_array", chunks.join("; ")),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Names that [`super_block`] gives; the tool prints more.
pub fn is_super_block_field(name: &str) -> bool {
    !matches!(
        name,
        "magic"
            | "sys_array_size"
            | "log_root_transid"
            | "leafsize"
            | "stripesize"
            | "root_dir"
            | "cache_generation"
            | "uuid_tree_generation"
    ) && ![
        "type",
        "io_align",
        "io_width",
        "sector_size",
        "dev_group",
        "seek_speed",
        "bandwidth",
        "generation",
    ]
    .iter()
    .any(|rest| name.strip_prefix("dev_item.") == Some(rest))
        && ids::ROOT_TREE == 1
}
