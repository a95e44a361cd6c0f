//! The four checksum algorithms, and the hash of extent data refs.

use blake2::Digest as _;

use crate::error::ParseError;
use crate::layout;

/// `enum btrfs_csum_type`. One function for super block, tree blocks and file data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChecksumType {
    /// CRC-32C, 4 bytes.
    Crc32c,
    /// XXH64 with seed 0, 8 bytes.
    XxHash64,
    /// SHA-256, 32 bytes.
    Sha256,
    /// BLAKE2b-256 without a key, 32 bytes.
    Blake2b,
}

impl ChecksumType {
    /// From the super block's `csum_type`.
    ///
    /// # Errors
    /// [`ParseError::Invalid`] for a type no kernel has defined.
    pub fn from_disk(csum_type: u16) -> Result<Self, ParseError> {
        Ok(match csum_type {
            0 => ChecksumType::Crc32c,
            1 => ChecksumType::XxHash64,
            2 => ChecksumType::Sha256,
            3 => ChecksumType::Blake2b,
            _ => {
                let value = csum_type.into();
                return Err(ParseError::Invalid { what: "btrfs_super_block", field: "csum_type", value });
            }
        })
    }

    /// Bytes of the checksum field that are meaningful (`btrfs_super_csum_size`).
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            ChecksumType::Crc32c => 4,
            ChecksumType::XxHash64 => 8,
            ChecksumType::Sha256 | ChecksumType::Blake2b => 32,
        }
    }

    /// Name as the kernel and `mkfs.btrfs --csum` spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ChecksumType::Crc32c => "crc32c",
            ChecksumType::XxHash64 => "xxhash64",
            ChecksumType::Sha256 => "sha256",
            ChecksumType::Blake2b => "blake2b",
        }
    }

    /// The checksum of `data`, in the bytes of a checksum field; those past [`ChecksumType::size`] are zero.
    #[must_use]
    pub fn compute(self, data: &[u8]) -> [u8; 32] {
        let mut sum = [0; 32];
        match self {
            ChecksumType::Crc32c => sum[..4].copy_from_slice(&crc32c::crc32c(data).to_le_bytes()),
            ChecksumType::XxHash64 => {
                sum[..8].copy_from_slice(&xxhash_rust::xxh64::xxh64(data, 0).to_le_bytes());
            }
            ChecksumType::Sha256 => sum.copy_from_slice(&sha2::Sha256::digest(data)),
            ChecksumType::Blake2b => {
                sum.copy_from_slice(&blake2::Blake2b::<blake2::digest::consts::U32>::digest(data));
            }
        }
        sum
    }

    /// Whether a super block or tree block carries the right checksum: the field is its first 32 bytes and covers
    /// all that follow. Bytes of the field past [`ChecksumType::size`] are not looked at: kernel and btrfs-progs
    /// leave different things there.
    #[must_use]
    pub fn verify(self, block: &[u8]) -> bool {
        match block.split_at_checked(32) {
            Some((field, covered)) => field[..self.size()] == self.compute(covered)[..self.size()],
            None => false,
        }
    }

    /// The one bit, as byte and bit of `block`, without which its checksum would be right; `None` if there is none, or
    /// the algorithm doesn't say. A CRC does: what a flipped bit does to it depends on the bit's place only.
    #[must_use]
    pub fn flipped_bit(self, block: &[u8]) -> Option<(usize, u8)> {
        let (field, covered) = block.split_at_checked(32).filter(|_| self == ChecksumType::Crc32c)?;
        let computed = self.compute(covered);
        let difference = layout::crc32c(field) ^ layout::crc32c(&computed);
        if difference.is_power_of_two() {
            let bit = difference.trailing_zeros();
            return Some(((bit / 8) as usize, (bit % 8) as u8));
        }
        // What each bit of the last byte does; then of the one before, and so on.
        let mut effects: [u32; 8] = core::array::from_fn(|bit| advance_crc(1 << bit));
        for byte in (0..covered.len()).rev() {
            if let Some(bit) = effects.iter().position(|effect| *effect == difference) {
                return Some((32 + byte, bit as u8));
            }
            effects = effects.map(advance_crc);
        }
        None
    }

    /// Writes the right checksum into a block. Does nothing to one shorter than a checksum field.
    pub fn seal(self, block: &mut [u8]) {
        if let Some((field, covered)) = block.split_at_mut_checked(32) {
            let size = self.size();
            field[..size].copy_from_slice(&self.compute(covered)[..size]);
        }
    }
}

/// A CRC-32C register after one byte of zeros.
fn advance_crc(register: u32) -> u32 {
    const REFLECTED: u32 = 0x82f6_3b78;
    (0..8).fold(register, |register, _| (register >> 1) ^ if register & 1 != 0 { REFLECTED } else { 0 })
}

/// `hash_extent_data_ref`: the offset of a keyed `EXTENT_DATA_REF` item, and the order of inline ones.
///
/// Two CRC-32C sums without the final inversion, the first shifted by 31 (not 32).
#[must_use]
pub fn extent_data_ref_hash(root: u64, objectid: u64, offset: u64) -> u64 {
    let high = !crc32c::crc32c(&root.to_le_bytes());
    let low = !crc32c::crc32c_append(crc32c::crc32c(&objectid.to_le_bytes()), &offset.to_le_bytes());
    (u64::from(high) << 31) ^ u64::from(low)
}

/// `btrfs_name_hash`: the offset of a `DIR_ITEM` or `XATTR_ITEM` key.
#[must_use]
pub fn name_hash(name: &[u8]) -> u64 {
    // CRC-32C from ~1, without the inversions.
    u64::from(!crc32c::crc32c_append(1, name))
}

/// `btrfs_extref_hash`: the offset of an `INODE_EXTREF` key.
#[must_use]
pub fn extref_hash(parent: u64, name: &[u8]) -> u64 {
    u64::from(!crc32c::crc32c_append(!(parent as u32), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let mut block = [0x5a; 4096];
        ChecksumType::Crc32c.seal(&mut block);
        assert_eq!(ChecksumType::Crc32c.flipped_bit(&block), None);
        for (byte, bit) in [(0, 0), (3, 7), (32, 0), (33, 5), (2000, 3), (4094, 1), (4095, 7)] {
            let mut broken = block;
            broken[byte] ^= 1 << bit;
            assert_eq!(ChecksumType::Crc32c.flipped_bit(&broken), Some((byte, bit)));
            broken[1234] ^= 3;
            assert_eq!(ChecksumType::Crc32c.flipped_bit(&broken), None);
        }
        assert_eq!(ChecksumType::XxHash64.flipped_bit(&block), None);
        assert_eq!(ChecksumType::Crc32c.flipped_bit(&[1; 3]), None);
    }

    #[test]
    fn known_answers() {
        let check = b"123456789";
        assert_eq!(ChecksumType::Crc32c.compute(check)[..4], 0xE306_9283_u32.to_le_bytes());
        assert_eq!(ChecksumType::XxHash64.compute(check)[..8], 0x8CB8_41DB_40E6_AE83_u64.to_le_bytes());
        assert_eq!(ChecksumType::Sha256.compute(b"")[..4], [0xe3, 0xb0, 0xc4, 0x42]);
        assert_eq!(ChecksumType::Blake2b.compute(b"")[..4], [0x0e, 0x57, 0x51, 0xc0]);
    }

    #[test]
    fn names_are_hashed_as_the_kernel_does() {
        // The default subvolume's entry stands at this offset in every file system.
        assert_eq!(name_hash(b"default"), 2_378_154_706);
        assert_eq!(extref_hash(0xffff_fffe, b"default"), name_hash(b"default"));
    }

    #[test]
    fn seal_then_verify_for_every_type() {
        for csum_type in 0..4 {
            let csum = ChecksumType::from_disk(csum_type).unwrap();
            let mut block = [7u8; 4096];
            csum.seal(&mut block);
            assert!(csum.verify(&block), "{}", csum.name());
            block[4095] ^= 1;
            assert!(!csum.verify(&block), "{}", csum.name());
        }
        assert!(ChecksumType::from_disk(4).is_err());
        assert!(!ChecksumType::Crc32c.verify(&[0; 31]));
    }
}
