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

/// The names in one `INODE_REF` or `INODE_EXTREF` item, in the order they are stored. Ends after the first error.
#[derive(Debug, Clone)]
pub struct InodeRefs<'a> {
    /// The directory, of an `INODE_REF` item.
    parent: Option<u64>,
    rest: &'a [u8],
}

impl<'a> InodeRefs<'a> {
    /// Those of an `INODE_REF` item, whose key offset is the directory.
    #[must_use]
    pub fn new(parent: u64, data: &'a [u8]) -> Self {
        InodeRefs { parent: Some(parent), rest: data }
    }

    /// Those of an `INODE_EXTREF` item.
    #[must_use]
    pub fn extended(data: &'a [u8]) -> Self {
        InodeRefs { parent: None, rest: data }
    }
}

impl<'a> Iterator for InodeRefs<'a> {
    type Item = Result<InodeRef<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (parsed, fixed) = match self.parent {
            Some(parent) => (InodeRef::parse_first(parent, self.rest), size_of::<layout::InodeRef>()),
            None => (InodeRef::parse_first_extended(self.rest), size_of::<layout::InodeExtRef>()),
        };
        let size = parsed.as_ref().map_or(usize::MAX, |entry| fixed + entry.name.len());
        self.rest = self.rest.get(size..).unwrap_or(&[]);
        Some(parsed)
    }
}

fn name<'a>(what: &'static str, data: &'a [u8], start: usize, len: u16) -> Result<&'a [u8], ParseError> {
    let need = start + usize::from(len);
    data.get(start..need).ok_or(ParseError::Truncated { what, need, have: data.len() })
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn names_are_cut_where_they_end() {
        let item = [7, 0, 0, 0, 0, 0, 0, 0, 2, 0, b'a', b'b', b'x'];
        let parsed = InodeRef::parse_first(256, &item).unwrap();
        assert_eq!(parsed, InodeRef { parent: 256, index: 7, name: b"ab" });
        let all: Vec<_> = InodeRefs::new(256, &item).collect();
        assert_eq!(all[0], Ok(parsed));
        assert!(all[1].is_err() && all.len() == 2, "one byte is no second name");
        assert!(InodeRef::parse_first(256, &item[..11]).is_err());
        assert!(InodeRef::parse_first_extended(&item).is_err());
    }
}
