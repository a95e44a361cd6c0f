//! Items of the free space tree. Each block group has one info item and either extents or bitmaps.

use crate::error::ParseError;
use crate::layout;

/// Bytes of a full bitmap (`BTRFS_FREE_SPACE_BITMAP_SIZE`): one bit a sector.
pub const BITMAP_SIZE: usize = 256;

/// `struct btrfs_free_space_info`: key `(block group start, FREE_SPACE_INFO, block group length)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeSpaceInfo {
    /// Number of runs of free space in the block group.
    pub extent_count: u32,
    /// Whether the runs are stored as bitmaps.
    pub uses_bitmaps: bool,
}

impl FreeSpaceInfo {
    /// Reads the info item.
    ///
    /// # Errors
    /// [`ParseError`] when `data` does not have its size.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let item: &layout::FreeSpaceInfo = layout::exact("btrfs_free_space_info", data)?;
        Ok(FreeSpaceInfo { extent_count: item.extent_count.get(), uses_bitmaps: item.flags.get() & 1 != 0 })
    }
}

/// Whether bit `n` of a bitmap item is set: the sector is free.
#[must_use]
pub fn bitmap_bit(bitmap: &[u8], n: u64) -> bool {
    let byte = usize::try_from(n / 8).ok().and_then(|at| bitmap.get(at));
    byte.is_some_and(|byte| byte >> (n % 8) & 1 == 1)
}

/// Runs of set bits (free sectors) of a bitmap item, as (first bit, number of bits). Key
/// `(start, FREE_SPACE_BITMAP, length)`; bit `n` stands for the sector at `start + n * sectorsize`.
pub fn bitmap_runs(bitmap: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let total = bitmap.len() as u64 * 8;
    let bit = move |n: u64| bitmap_bit(bitmap, n);
    let mut next = 0;
    core::iter::from_fn(move || {
        let start = (next..total).find(|&n| bit(n))?;
        let end = (start..total).find(|&n| !bit(n)).unwrap_or(total);
        next = end;
        Some((start, end - start))
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn runs_cross_bytes_and_reach_the_end() {
        let runs: Vec<_> = bitmap_runs(&[0b1000_0001, 0b0000_0011, 0, 0x80]).collect();
        assert_eq!(runs, [(0, 1), (7, 3), (31, 1)]);
        assert_eq!(bitmap_runs(&[]).count(), 0);
        assert_eq!(bitmap_runs(&[0xff; BITMAP_SIZE]).collect::<Vec<_>>(), [(0, 2048)]);
    }
}
