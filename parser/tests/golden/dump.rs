//! From the text of `btrfs inspect-internal dump-tree` and `dump-super` to the normal form.

use std::collections::BTreeMap;

use parser::key::item;
use parser::{BackRef, ids};

use crate::Blocks;
use crate::views::is_super_block_field;

/// Names that the tool prints in place of objectids.
const OBJECTIDS: [(&str, u64); 28] = [
    ("ROOT_TREE", ids::ROOT_TREE),
    ("EXTENT_TREE", ids::EXTENT_TREE),
    ("CHUNK_TREE", ids::CHUNK_TREE),
    ("DEV_TREE", ids::DEV_TREE),
    ("FS_TREE", ids::FS_TREE),
    ("ROOT_TREE_DIR", ids::ROOT_TREE_DIR),
    ("CSUM_TREE", ids::CSUM_TREE),
    ("QUOTA_TREE", ids::QUOTA_TREE),
    ("UUID_TREE", ids::UUID_TREE),
    ("FREE_SPACE_TREE", ids::FREE_SPACE_TREE),
    ("BLOCK_GROUP_TREE", ids::BLOCK_GROUP_TREE),
    ("DEV_ITEMS", ids::DEV_ITEMS),
    ("DEV_STATS", 0),
    ("FIRST_CHUNK_TREE", ids::FIRST_CHUNK_TREE),
    ("BALANCE", ids::BALANCE),
    ("ORPHAN", ids::ORPHAN),
    ("TREE_LOG", ids::TREE_LOG),
    ("TREE_LOG_FIXUP", -7i64 as u64),
    ("TREE_RELOC", ids::TREE_RELOC),
    ("DATA_RELOC_TREE", ids::DATA_RELOC_TREE),
    ("EXTENT_CSUM", ids::EXTENT_CSUM),
    ("FREE_SPACE", ids::FREE_SPACE),
    ("FREE_INO", -12i64 as u64),
    ("QUOTA_STATUS", 0),
    ("MULTIPLE", -255i64 as u64),
    ("DEV_REPLACE", 0),
    ("CSUM", ids::EXTENT_CSUM),
    ("-1", u64::MAX),
];

fn number(text: &str) -> u64 {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).unwrap_or_else(|_| panic!("hex number {text}"));
    }
    // Quota groups: level/id.
    if let Some((level, id)) = text.split_once('/') {
        return number(level) << 48 | number(id);
    }
    let named = OBJECTIDS.iter().find(|(name, _)| *name == text).map(|(_, id)| *id);
    named.or_else(|| text.parse().ok()).unwrap_or_else(|| panic!("number or known name: {text}"))
}

/// The word after `name`, as a number.
fn after(line: &str, name: &str) -> u64 {
    number(word_after(line, name))
}

fn word_after<'a>(line: &'a str, name: &str) -> &'a str {
    let mut words = line.split_whitespace();
    words.find(|word| *word == name).and_then(|_| words.next()).unwrap_or_else(|| panic!("{name} in: {line}"))
}

/// Objectid, name of the type and offset of `key (A B C)`.
fn key(line: &str) -> (u64, &str, u64) {
    let (_, rest) = line.split_once("key (").unwrap_or_else(|| panic!("key in: {line}"));
    let (inside, _) = rest.split_once(')').unwrap_or_else(|| panic!("end of key in: {line}"));
    let words: Vec<&str> = inside.split(' ').collect();
    let [objectid, kind, offset] = words[..] else { panic!("three parts of a key: {line}") };
    (number(objectid), kind, number(offset))
}

fn type_number(name: &str) -> u8 {
    if let Some(number) = name.strip_prefix("UNKNOWN.") {
        return number.parse().expect("number of an unknown type");
    }
    (0..=u8::MAX).find(|&value| item::name(value) == Some(name)).unwrap_or_else(|| panic!("item type {name}"))
}

/// `A|B|C` as bits.
fn flags(text: &str, names: &[(&str, u64)]) -> u64 {
    let bit = |name: &str| names.iter().find(|(known, _)| *known == name).map(|(_, bit)| *bit);
    text.split('|').map(|name| bit(name).unwrap_or_else(|| panic!("flag {name}"))).sum()
}

fn extent_flags(text: &str) -> u64 {
    flags(text, &[("DATA", 1), ("TREE_BLOCK", 2), ("FULL_BACKREF", 0x100)])
}

fn group_flags(text: &str) -> u64 {
    let names = [
        ("DATA", 1),
        ("SYSTEM", 2),
        ("METADATA", 4),
        ("RAID0", 8),
        ("RAID1", 16),
        ("DUP", 32),
        ("single", 0),
    ];
    flags(text, &names)
}

/// All tree blocks of a dump.
pub fn tree(text: &str) -> Blocks {
    let mut blocks = Blocks::new();
    let mut block: Option<(u64, Vec<String>)> = None;
    let mut item: Option<Vec<&str>> = None;
    let finish_item = |item: &mut Option<Vec<&str>>, block: &mut Option<(u64, Vec<String>)>| {
        if let (Some(lines), Some((_, out))) = (item.take(), block) {
            finish(&lines, out);
        }
    };
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let is_block = matches!(words[..], ["leaf" | "node", _, "items" | "level", ..]);
        if is_block {
            finish_item(&mut item, &mut block);
            blocks.extend(block.take());
            let level = if words[0] == "leaf" { 0 } else { after(line, "level") };
            let (items, generation) = (after(line, "items"), after(line, "generation"));
            let owner = after(line, "owner");
            let head = format!("block level {level} items {items} generation {generation} owner {owner}");
            block = Some((number(words[1]), vec![head]));
        } else if matches!(words[..], ["leaf" | "node", _, "flags", ..]) {
            let (_, out) = block.as_mut().expect("a block before its flags");
            let (hex, _) = word_after(line, "flags").split_once('(').expect("names of flags");
            let rev = after(line, "revision");
            out[0] += &format!(" flags {hex} rev {rev}");
        } else if let Some(uuid) = line.strip_prefix("fs uuid ") {
            block.as_mut().expect("a block before its uuid").1[0] += &format!(" fsid {uuid}");
        } else if line.starts_with("\titem ") {
            finish_item(&mut item, &mut block);
            item = Some(vec![line]);
        } else if line.starts_with("\tkey (") {
            let (objectid, kind, offset) = key(line);
            let (to, generation) = (after(line, "block"), after(line, "gen"));
            let kind = type_number(kind);
            let out = &mut block.as_mut().expect("a block before its pointers").1;
            out.push(format!("pointer {objectid} {kind} {offset} to {to} gen {generation}"));
        } else if line.starts_with("\t\t") {
            item.as_mut().expect("an item before its details").push(line.trim());
        } else {
            // A heading, or the summary at the end: the tree block before it is over.
            finish_item(&mut item, &mut block);
        }
    }
    finish_item(&mut item, &mut block);
    blocks.extend(block);
    blocks
}

fn finish(lines: &[&str], out: &mut Vec<String>) {
    let (objectid, kind, offset) = key(lines[0]);
    let (at, size) = (after(lines[0], "itemoff"), after(lines[0], "itemsize"));
    out.push(format!("{kind} {objectid} {offset} off {at} size {size}"));
    details(type_number(kind), &lines[1..], out);
}

fn details(kind: u8, lines: &[&str], out: &mut Vec<String>) {
    match kind {
        item::EXTENT_ITEM | item::METADATA_ITEM => {
            let flags = extent_flags(word_after(lines[0], "flags"));
            let (refs, generation) = (after(lines[0], "refs"), after(lines[0], "gen"));
            out.push(format!("extent refs {refs} gen {generation} flags {flags:#x}"));
            out.extend(lines[1..].iter().map(|line| backref(line)));
        }
        keyed if BackRef::is_keyed_type(keyed) => out.push(backref(lines[0])),
        item::EXTENT_DATA => out.push(file_extent(lines)),
        item::ROOT_ITEM => root_item(lines, out),
        item::ROOT_REF | item::ROOT_BACKREF => {
            let (_, name) = lines[0].split_once(" name ").expect("a name");
            let (dirid, sequence) = (after(lines[0], "dirid"), after(lines[0], "sequence"));
            out.push(format!("link dirid {dirid} sequence {sequence} name {name}"));
        }
        item::BLOCK_GROUP_ITEM => {
            let flags = group_flags(word_after(lines[0], "flags"));
            let (used, owner) = (after(lines[0], "used"), after(lines[0], "chunk_objectid"));
            out.push(format!("group used {used} chunk_objectid {owner} flags {flags:#x}"));
        }
        item::DEV_EXTENT => {
            let text = lines.join(" ");
            let [tree, objectid, offset] =
                ["chunk_tree", "chunk_objectid", "chunk_offset"].map(|name| after(&text, name));
            out.push(format!("chunk {tree} {objectid} {offset} length {}", after(&text, "length")));
        }
        item::DEV_ITEM => out.push(device(&lines.join(" "))),
        item::CHUNK_ITEM => chunk(lines, out),
        item::FREE_SPACE_INFO => {
            let flags = after(lines[0], "flags");
            out.push(format!("extents {} flags {flags}", after(lines[0], "count")));
        }
        _ => {}
    }
}

fn backref(line: &str) -> String {
    match line {
        "tree block backref" => "tree-ref keyed".to_owned(),
        "shared block backref" => "shared-ref keyed".to_owned(),
        _ if line.starts_with("tree block backref root") => format!("tree-ref root {}", after(line, "root")),
        _ if line.starts_with("shared block backref parent") => {
            format!("shared-ref parent {}", after(line, "parent"))
        }
        _ if line.starts_with("extent data backref root") => {
            let [root, objectid, offset, count] =
                ["root", "objectid", "offset", "count"].map(|name| after(line, name));
            format!("data-ref root {root} objectid {objectid} offset {offset} count {count}")
        }
        _ if line.starts_with("shared data backref parent") => {
            format!("shared-data-ref parent {} count {}", after(line, "parent"), after(line, "count"))
        }
        _ if line.starts_with("shared data backref count") => {
            format!("shared-data-ref keyed count {}", after(line, "count"))
        }
        _ if line.starts_with("tree block") => format!("tree block level {}", after(line, "level")),
        _ => panic!("backref of an unknown form: {line}"),
    }
}

fn file_extent(lines: &[&str]) -> String {
    if lines[1].starts_with("inline") {
        return format!("inline ram {}", after(lines[1], "ram_bytes"));
    }
    let kind = if lines[1].starts_with("prealloc") { "prealloc" } else { "regular" };
    let (bytenr, length) = (after(lines[1], "byte"), after(lines[1], "nr"));
    let (offset, count) = (after(lines[2], "offset"), after(lines[2], "nr"));
    format!("{kind} disk {bytenr} {length} offset {offset} nr {count}")
}

fn root_item(lines: &[&str], out: &mut Vec<String>) {
    let text = lines.join(" ");
    let (flags, _) = word_after(&text, "flags").split_once('(').expect("names of flags");
    let names = ["generation", "bytenr", "bytes_used", "last_snapshot", "refs", "level", "generation_v2"];
    let [generation, bytenr, bytes_used, last_snapshot, refs, level, generation_v2] =
        names.map(|name| after(&text, name));
    out.push(format!(
        "root generation {generation} bytenr {bytenr} bytes_used {bytes_used} last_snapshot {last_snapshot} \
         flags {flags} refs {refs} level {level} generation_v2 {generation_v2}"
    ));
    let (objectid, kind, offset) =
        key(lines.iter().find(|line| line.starts_with("drop")).expect("a drop key"));
    if objectid != 0 {
        let drop_level = after(&text, "drop_level");
        out.push(format!("drop-cursor {objectid} {} {offset} level {drop_level}", type_number(kind)));
    }
}

fn device(text: &str) -> String {
    let [devid, total, used] = ["devid", "total_bytes", "bytes_used"].map(|name| after(text, name));
    let (uuid, fsid) = (word_after(text, "uuid"), word_after(text, "fsid"));
    format!("device {devid} total {total} used {used} uuid {uuid} fsid {fsid}")
}

fn chunk(lines: &[&str], out: &mut Vec<String>) {
    let text = lines.join(" ");
    let flags = group_flags(word_after(&text, "type"));
    let [length, owner, stripe_len] = ["length", "owner", "stripe_len"].map(|name| after(&text, name));
    out.push(format!("chunk length {length} owner {owner} stripe_len {stripe_len} type {flags:#x}"));
    let stripes = lines.windows(2).filter(|pair| pair[0].starts_with("stripe "));
    for pair in stripes {
        let (devid, offset) = (after(pair[0], "devid"), after(pair[0], "offset"));
        out.push(format!("stripe {devid} {offset} {}", word_after(pair[1], "dev_uuid")));
    }
}

/// The fields of `dump-super -f` that the parser has as well.
pub fn super_block(text: &str) -> BTreeMap<String, String> {
    let (fields, rest) = text.split_once("sys_chunk_array[2048]:\n").expect("a system chunk array");
    let mut map = BTreeMap::new();
    for line in
        fields.lines().filter(|line| !line.starts_with(['\t', '-', 's']) || line.starts_with("sector"))
    {
        let (name, value) = line.split_once('\t').unwrap_or((line, ""));
        let name = name.split(' ').next().expect("a name");
        // Only the first word: what follows says what the number means. `csum` has 0x before its bytes.
        let value = value.trim().split(' ').next().unwrap_or_default();
        let value = if name == "csum" { value.trim_start_matches("0x") } else { value };
        if is_super_block_field(name) && !name.is_empty() {
            map.insert(name.to_owned(), value.to_owned());
        }
    }
    let mut chunks = Vec::new();
    let array = rest.split("backup_roots").next().expect("what comes before the backup roots");
    let mut lines: Vec<&str> = Vec::new();
    for line in array.lines().chain(["\titem end"]) {
        if line.starts_with("\titem ") {
            if let Some(first) = lines.first() {
                chunks.push(format!("at {}", key(first).2));
                chunk(&lines[1..], &mut chunks);
            }
            lines = vec![line];
        } else {
            lines.push(line.trim());
        }
    }
    map.insert("sys_chunk_array".to_owned(), chunks.join("; "));
    map
}
