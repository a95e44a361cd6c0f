//! The names of inodes: `struct btrfs_inode_ref` and `struct btrfs_inode_extref`.

use crate::error::ParseError;
use crate::layout;

/// A name of an inode in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeRef<'a> {
    /// Inode number of the directory.
    pub parent: u64,
    /// Index of the entry in the directory.
    pub index: u64,
    /// The name.
    pub name: &'a [u8],
}

impl<'a> InodeRef<'a> {
    /// Reads the first name of an `INODE_REF` item, whose key offset is the directory.
    ///
    /// # Errors
    /// [`ParseError`] when the name does not fit.
    pub fn parse_first(parent: u64, data: &'a [u8]) -> Result<Self, ParseError> {
        let what = "btrfs_inode_ref";
        let fixed: &layout::InodeRef = layout::prefix(what, data)?;
        let name = name(what, data, size_of::<layout::InodeRef>(), fixed.name_len.get())?;
        Ok(InodeRef { parent, index: fixed.index.get(), name })
    }

    /// Reads the first name of an `INODE_EXTREF` item, whose key offset is a hash.
    ///
    /// # Errors
    /// [`ParseError`] when the name does not fit.
    pub fn parse_first_extended(data: &'a [u8]) -> Result<Self, ParseError> {
        let what = "btrfs_inode_extref";
        let fixed: &layout::InodeExtRef = layout::prefix(what, data)?;
        let name = name(what, data, size_of::<layout::InodeExtRef>(), fixed.name_len.get())?;
        Ok(InodeRef { parent: fixed.parent_objectid.get(), index: fixed.index.get(), name })
    }
}

fn name<'a>(what: &'static str, data: &'a [u8], start: usize, len: u16) -> Result<&'a [u8], ParseError> {
    let need = start + usize::from(len);
    data.get(start..need).ok_or(ParseError::Truncated { what, need, have: data.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_where_they_end() {
        let item = [7, 0, 0, 0, 0, 0, 0, 0, 2, 0, b'a', b'b', b'x'];
        let parsed = InodeRef::parse_first(256, &item).unwrap();
        assert_eq!(parsed, InodeRef { parent: 256, index: 7, name: b"ab" });
        assert!(InodeRef::parse_first(256, &item[..11]).is_err());
        assert!(InodeRef::parse_first_extended(&item).is_err());
    }
}
