//! The disk of the target `shadow`, as an input holds it: two super blocks, then tree blocks, each after its place.
//!
//! Most of a block is zeros between its items and their data: what is stored is what lies before and behind its longest run
//! of zeros. Checksums are made right here, or no change would get past them; a flag at a block's place leaves them wrong.

use std::collections::HashMap;
use std::sync::Arc;

use parser::map::Physical;
use parser::{ChecksumType, SuperBlock, superblock};
use shadow::space::data::DataSource;
use shadow::{BlockSource, ReadError, TreeBlock};

use crate::bytes::Bytes;

/// In a place: the checksum is left as it is.
pub const UNSEALED: u64 = 1 << 63;

/// Bytes of all blocks of an input together; what comes behind isn't there.
const LIMIT: usize = 4 << 20;

/// An input taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What is to be done with it.
    pub flags: u32,
    /// The super block of the last commit and that of the next.
    pub supers: [Vec<u8>; 2],
    /// Tree blocks and their places.
    pub blocks: Vec<(u64, Vec<u8>)>,
}

impl Disk {
    /// Reads any bytes as a disk.
    pub fn read(input: &[u8]) -> Self {
        let mut rest = Bytes::new(input);
        let flags = rest.u32();
        let supers = [0; 2].map(|_: u8| unpack(&mut rest, superblock::SIZE));
        let mut disk = Disk { flags, supers, blocks: Vec::new() };
        let (nodesize, ..) = disk.form();
        while !rest.is_empty() && disk.blocks.len() * nodesize < LIMIT {
            disk.blocks.push((rest.u64(), unpack(&mut rest, nodesize)));
        }
        disk
    }

    /// The input that is read as this disk.
    pub fn write(&self) -> Vec<u8> {
        let mut input = self.flags.to_le_bytes().to_vec();
        self.supers.iter().for_each(|bytes| pack(bytes, &mut input));
        for (place, bytes) in &self.blocks {
            input.extend(place.to_le_bytes());
            pack(bytes, &mut input);
        }
        input
    }

    /// What the first super block says of blocks, or what is usual: node size, sector size, checksums.
    pub fn form(&self) -> (usize, u32, ChecksumType) {
        let view = SuperBlock::parse(&self.supers[0]).ok();
        let form =
            view.and_then(|view| Some((view.nodesize() as usize, view.sectorsize(), view.csum().ok()?)));
        form.unwrap_or((4096, 4096, ChecksumType::Crc32c))
    }
}

/// What lies before the longest run of zeros, and what behind it, after their lengths.
fn pack(bytes: &[u8], input: &mut Vec<u8>) {
    let (mut gap, mut start) = (0..0, 0);
    for (at, byte) in bytes.iter().chain(&[1]).enumerate() {
        if *byte != 0 {
            if at - start > gap.len() {
                gap = start..at;
            }
            start = at + 1;
        }
    }
    for part in [&bytes[..gap.start], &bytes[gap.end..]] {
        // At most 64 KiB, and then there is no gap: one is a byte short, and the other has it.
        let len = part.len().min(usize::from(u16::MAX)) as u16;
        input.extend(len.to_le_bytes());
    }
    input.extend(&bytes[..gap.start]);
    input.extend(&bytes[gap.end..]);
}

fn unpack(rest: &mut Bytes<'_>, size: usize) -> Vec<u8> {
    let (before, behind) = (usize::from(rest.u16()).min(size), usize::from(rest.u16()).min(size));
    let mut bytes = rest.take(before).to_vec();
    let behind = rest.take(behind.min(size - bytes.len()));
    bytes.resize(size - behind.len(), 0);
    bytes.extend(behind);
    bytes
}

/// Tree blocks by their byte offset, on whatever device they are looked for.
pub struct World {
    pub flags: u32,
    pub supers: [Vec<u8>; 2],
    blocks: HashMap<u64, Arc<TreeBlock>>,
    nothing: Arc<TreeBlock>,
}

impl World {
    pub fn new(mut disk: Disk) -> Self {
        let (nodesize, sectorsize, csum) = disk.form();
        for bytes in &mut disk.supers {
            csum_of(bytes).unwrap_or(csum).seal(bytes);
        }
        let mut blocks = HashMap::new();
        for (place, mut bytes) in disk.blocks {
            if place & UNSEALED == 0 {
                csum.seal(&mut bytes);
            }
            let block = TreeBlock::new(bytes.into(), csum, sectorsize);
            blocks.insert(place & !UNSEALED, Arc::new(block));
        }
        let nothing = Arc::new(TreeBlock::new(vec![0; nodesize].into(), csum, sectorsize));
        World { flags: disk.flags, supers: disk.supers, blocks, nothing }
    }
}

fn csum_of(superblock: &[u8]) -> Option<ChecksumType> {
    SuperBlock::parse(superblock).ok()?.csum().ok()
}

impl BlockSource for World {
    fn read(&self, place: Physical) -> Result<Arc<TreeBlock>, ReadError> {
        Ok(Arc::clone(self.blocks.get(&place.offset).unwrap_or(&self.nothing)))
    }
}

/// File data is zeros.
impl DataSource for World {
    fn read_data(&self, _place: Physical, buffer: &mut [u8]) -> Result<(), ReadError> {
        buffer.fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_read_as_it_was_written() {
        let block = |at: usize, len: usize| {
            let mut bytes = vec![0; 4096];
            bytes[at..at + len].fill(7);
            bytes
        };
        let blocks =
            vec![(0, vec![0; 4096]), (1 << 63, vec![1; 4096]), (3, block(0, 9)), (4, block(4000, 96))];
        let disk = Disk { flags: 0x1234_5678, supers: [block(64, 100), block(1, 4090)], blocks };
        assert_eq!(Disk::read(&disk.write()), disk);
        // Whatever it is cut down to, it is a disk.
        for len in 0..300 {
            assert!(Disk::read(&disk.write()[..len]).blocks.is_empty());
        }
    }
}
