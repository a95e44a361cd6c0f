//! Changes an input of the target `shadow` where it may matter.

use std::ops::Range;
use std::sync::LazyLock;

use corrupt::Kind;
use parser::{Block, Header};
use replay::rng::Rng;

use crate::quiet::quietly;
use crate::world::{Disk, UNSEALED};

/// Bytes of a tree block before its items or pointers.
const HEADER: usize = parser::block::HEADER_SIZE;
/// Bytes of an item's key, offset and size.
const ITEM: usize = size_of::<parser::layout::Item>();
/// Bytes of a node's pointer.
const POINTER: usize = size_of::<parser::layout::KeyPtr>();
/// Bytes of a super block in which roots, generations, sizes and features are; the system chunk array begins behind
/// them.
const SUPER_FIELDS: Range<usize> = 32..811 + 200;

/// Changes bytes in place, in no way in particular.
pub type Scramble<'a> = &'a mut dyn FnMut(&mut [u8]);

/// Changes `input` in one to four places.
#[must_use]
pub fn mutate(input: &[u8], rng: &mut Rng, scramble: Scramble<'_>) -> Vec<u8> {
    let mut disk = Disk::read(input);
    for _ in 0..=rng.below(4) {
        mutate_once(&mut disk, rng, scramble);
    }
    disk.write()
}

fn mutate_once(disk: &mut Disk, rng: &mut Rng, scramble: Scramble<'_>) {
    let choice = rng.below(20);
    if disk.blocks.is_empty() || choice == 0 {
        disk.flags ^= 1 << rng.below(8);
        return;
    }
    if choice == 1 {
        return super_field(&mut disk.supers[rng.below(2)], rng, scramble);
    }
    let index = rng.below(disk.blocks.len());
    if choice == 2 {
        return records(&mut disk.blocks, index, rng);
    }
    let words = addresses(disk);
    let (_, _, csum) = disk.form();
    let block = &mut disk.blocks[index].1;
    match choice {
        // Anything in the header but the checksum.
        3 => block[32 + rng.below(HEADER - 32)] = rng.number() as u8,
        4..=9 => {
            csum.seal(block);
            planted(block, rng);
        }
        10..=13 => word(block, rng, &words),
        14..=16 => {
            let range = part(block, rng);
            scramble(&mut block[range]);
        }
        17 | 18 => key(block, rng),
        _ => swapped(block, rng),
    }
}

/// A fault of one of the kinds that the tests plant, if the block has what it changes.
fn planted(block: &mut [u8], rng: &mut Rng) {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(corrupt::all);
    for _ in 0..8 {
        let (kind, seed) = (&KINDS[rng.below(KINDS.len())], rng.number());
        let changed = quietly(|| {
            let mut changed = block.to_vec();
            corrupt::mutate_block(&mut changed, kind, seed).map(|_| changed)
        });
        if let Some(changed) = changed.flatten() {
            return block.copy_from_slice(&changed);
        }
    }
}

/// A field of a super block; its checksum and magic are left alone.
fn super_field(bytes: &mut [u8], rng: &mut Rng, scramble: Scramble<'_>) {
    let fields = &mut bytes[SUPER_FIELDS];
    let len = [1, 2, 4, 8, 8, 8, 80][rng.below(7)];
    let start = rng.below(fields.len() - len);
    let magic = 64 - SUPER_FIELDS.start..72 - SUPER_FIELDS.start;
    let saved: [u8; 8] = std::array::from_fn(|index| fields[magic.start + index]);
    if len == 80 {
        scramble(&mut fields[start..start + len]);
    } else {
        let number = interesting(rng, &[]).to_le_bytes();
        fields[start..start + len].copy_from_slice(&number[..len]);
    }
    // A disk without the magic is nothing; now and then that is tried, too.
    if rng.below(16) != 0 {
        fields[magic].copy_from_slice(&saved);
    }
}

/// Drops a block, puts it elsewhere or in another's place, or leaves its checksum wrong.
fn records(blocks: &mut Vec<(u64, Vec<u8>)>, index: usize, rng: &mut Rng) {
    let other = rng.below(blocks.len());
    match rng.below(4) {
        0 => drop(blocks.remove(index)),
        1 => blocks[index].1 = blocks[other].1.clone(),
        2 => blocks.push((blocks[other].0, blocks[index].1.clone())),
        _ => blocks[index].0 ^= UNSEALED,
    }
}

/// Numbers that name a block of the disk.
fn addresses(disk: &Disk) -> Vec<u64> {
    disk.blocks.iter().map(|(_, bytes)| Header::parse(bytes).map_or(0, |header| header.bytenr())).collect()
}

fn interesting(rng: &mut Rng, words: &[u64]) -> u64 {
    if !words.is_empty() && rng.below(2) == 0 {
        return words[rng.below(words.len())];
    }
    match rng.below(8) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => u64::MAX - rng.number() % 10_000,
        4 => 1 << rng.below(64),
        5 => rng.number() % 512,
        6 => (rng.number() % 4096) << 12,
        _ => rng.number(),
    }
}

/// A range of a block that holds an item's data, or a pointer, or its item array; mostly the first.
fn part(block: &[u8], rng: &mut Rng) -> Range<usize> {
    let whole = HEADER..block.len();
    match Block::parse(block) {
        Ok(Block::Leaf(leaf)) if !leaf.is_empty() => {
            let data = leaf.data(rng.below(leaf.len()));
            if data.is_empty() || rng.below(8) == 0 {
                return HEADER..HEADER + leaf.len() * ITEM;
            }
            let start = data.as_ptr().addr() - block.as_ptr().addr();
            start..start + data.len()
        }
        Ok(Block::Node(node)) if !node.is_empty() => {
            let start = HEADER + rng.below(node.len()) * POINTER;
            start..start + POINTER
        }
        _ => whole,
    }
}

/// A number in an item's data, or a pointer.
fn word(block: &mut [u8], rng: &mut Rng, words: &[u64]) {
    let range = part(block, rng);
    let part = &mut block[range];
    let len = [1, 2, 4, 8, 8][rng.below(5)].min(part.len());
    // Fields lie at multiples of their size or one byte behind, after a type.
    let start = match rng.below(3) {
        0 => rng.below(part.len() - len + 1),
        shift => (rng.below(part.len() / len) * len + shift - 1).min(part.len() - len),
    };
    let mut number = [0; 8];
    number[..len].copy_from_slice(&part[start..start + len]);
    let was = u64::from_le_bytes(number);
    let now = match rng.below(4) {
        0 => was.wrapping_add(rng.number() % 5).wrapping_sub(2),
        1 => was ^ 1 << rng.below(8 * len),
        _ => interesting(rng, words),
    };
    part[start..start + len].copy_from_slice(&now.to_le_bytes()[..len]);
}

/// A key, so that it still lies between its neighbours, mostly: one of its numbers is changed a little.
fn key(block: &mut [u8], rng: &mut Rng) {
    let (count, size) = match Block::parse(block) {
        Ok(Block::Leaf(leaf)) => (leaf.len(), ITEM),
        Ok(Block::Node(node)) => (node.len(), POINTER),
        Err(_) => return,
    };
    if count == 0 {
        return;
    }
    let at = HEADER + rng.below(count) * size;
    match rng.below(4) {
        0 => block[at + 8] = rng.number() as u8,
        1 => block[at] = block[at].wrapping_add(1),
        2 => block[at + 9 + rng.below(8)] ^= 1 << rng.below(8),
        _ => block[at + 9] = block[at + 9].wrapping_sub(1),
    }
}

/// Two items' data for one another, if they are of one size.
fn swapped(block: &mut [u8], rng: &mut Rng) {
    let (one, other) = (part(block, rng), part(block, rng));
    if one.len() == other.len() && (one.end <= other.start || other.end <= one.start) {
        let bytes = block[one.clone()].to_vec();
        block.copy_within(other.clone(), one.start);
        block[other].copy_from_slice(&bytes);
    }
}
