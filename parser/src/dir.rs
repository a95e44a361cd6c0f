//! Directory entries and extended attributes (`struct btrfs_dir_item`).

use crate::error::ParseError;
use crate::key::Key;
use crate::layout;

/// `BTRFS_FT_XATTR`: the entry is an extended attribute.
pub const TYPE_XATTR: u8 = 8;
/// `BTRFS_FT_DIR`.
pub const TYPE_DIR: u8 = 2;
/// The first type that doesn't exist (`BTRFS_FT_MAX`).
pub const TYPE_MAX: u8 = 9;
/// Longest name of a file (`BTRFS_NAME_LEN`) or attribute.
pub const NAME_MAX: usize = 255;
/// Bytes of an entry beside name and data.
pub const ENTRY_SIZE: usize = size_of::<layout::DirItem>();

/// Bytes of `struct btrfs_dir_log_item`, which only log trees have.
pub const LOG_ITEM_SIZE: usize = size_of::<layout::DirLogItem>();

/// The flag of an encrypted name, beside the type (`BTRFS_FT_ENCRYPTED`).
const ENCRYPTED: u8 = 1 << 7;

/// One entry of a `DIR_ITEM`, `DIR_INDEX` or `XATTR_ITEM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// What the entry names: the key of an inode item, or `(subvolume, ROOT_ITEM, -1)`.
    pub location: Key,
    /// `BTRFS_FT_*`.
    pub dir_type: u8,
    /// The name.
    pub name: &'a [u8],
    /// The value of an extended attribute.
    pub data: &'a [u8],
}

/// The entries of one item, of which there are several where hashes of names collide. Ends after the first error.
#[derive(Debug, Clone)]
pub struct DirEntries<'a> {
    rest: &'a [u8],
}

impl<'a> DirEntries<'a> {
    /// The entries in `data`.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        DirEntries { rest: data }
    }

    fn parse_one(&self) -> Result<(DirEntry<'a>, usize), ParseError> {
        let what = "btrfs_dir_item";
        let fixed: &layout::DirItem = layout::prefix(what, self.rest)?;
        let (name_len, data_len) = (usize::from(fixed.name_len.get()), usize::from(fixed.data_len.get()));
        let need = ENTRY_SIZE + name_len + data_len;
        let (name, data) = self
            .rest
            .get(ENTRY_SIZE..need)
            .and_then(|rest| rest.split_at_checked(name_len))
            .ok_or(ParseError::Truncated { what, need, have: self.rest.len() })?;
        let dir_type = fixed.dir_type & !ENCRYPTED;
        Ok((DirEntry { location: Key::from(&fixed.location), dir_type, name, data }, need))
    }
}

impl<'a> Iterator for DirEntries<'a> {
    type Item = Result<DirEntry<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match self.parse_one() {
            Ok((entry, size)) => {
                self.rest = self.rest.get(size..).unwrap_or(&[]);
                Some(Ok(entry))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn entries_follow_each_other_and_end_at_the_first_error() {
        let mut item = Vec::from([0; ENTRY_SIZE]);
        item[25] = 3;
        item[27] = 2;
        item[29] = TYPE_XATTR | ENCRYPTED;
        item.extend(b"abxyz");
        let twice = [item.as_slice(), &item].concat();
        let entries: Vec<_> = DirEntries::new(&twice).collect();
        let entry = DirEntry { location: Key::MIN, dir_type: TYPE_XATTR, name: b"ab", data: b"xyz" };
        assert_eq!(entries, [Ok(entry), Ok(entry)]);
        let cut: Vec<_> = DirEntries::new(&twice[..twice.len() - 1]).collect();
        assert!(cut[0].is_ok() && cut[1].is_err() && cut.len() == 2);
    }
}
