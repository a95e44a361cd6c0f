//! What the items of one inode add up to, and what is wrong with it by them alone. Knows no other inode and no tree but
//! its own.

use parser::file_extent::{Encoding, INLINE_DATA_START};
use parser::inode::InodeItem;
use parser::{FileExtent, Key};

use crate::codes::Code;
use crate::record::Site;

/// The sums over the items of one inode.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) site: Site,
    pub(super) item: Option<InodeItem>,
    pub(super) links: u64,
    /// Bytes of the names in it, each counted for its item and its index.
    pub(super) entries: u64,
    bytes: u64,
    /// Where the last file extent ends.
    end: u64,
    gap: Option<u64>,
    overlap: Option<u64>,
    /// File offset of the first file extent.
    first_extent: Option<u64>,
}

impl Inode {
    pub(super) fn new(number: u64, site: Site) -> Self {
        Inode {
            number,
            site,
            item: None,
            links: 0,
            entries: 0,
            bytes: 0,
            end: 0,
            gap: None,
            overlap: None,
            first_extent: None,
        }
    }

    /// Adds the file extent at `key`, which is of `data` in sectors of `sectorsize` bytes.
    pub(super) fn extent(&mut self, key: &Key, data: &[u8], sectorsize: u64) {
        let (Ok(extent), Ok(encoding)) = (FileExtent::parse(data), Encoding::parse(data)) else { return };
        self.first_extent.get_or_insert(key.offset);
        let len = match &extent {
            FileExtent::Inline { ram_bytes } => {
                let stored = data.len().saturating_sub(INLINE_DATA_START) as u64;
                let len = if encoding.compression == 0 { stored } else { *ram_bytes };
                self.bytes = self.bytes.saturating_add(len);
                len.checked_next_multiple_of(sectorsize).unwrap_or(u64::MAX)
            }
            FileExtent::Regular(range) | FileExtent::Prealloc(range) => {
                if range.disk_bytenr != 0 {
                    self.bytes = self.bytes.saturating_add(range.num_bytes);
                }
                range.num_bytes
            }
        };
        if key.offset > self.end {
            self.gap.get_or_insert(self.end);
        }
        if key.offset < self.end {
            self.overlap.get_or_insert(key.offset);
        }
        self.end = self.end.max(key.offset.saturating_add(len));
    }

    /// What is wrong with the inode by its own items. `has_holes`: a hole needs no file extent.
    pub(super) fn faults(&self, has_holes: bool) -> Vec<(Code, String)> {
        let mut faults = Vec::new();
        let Some(item) = &self.item else {
            return vec![(Code::InodeItem, "no inode item".to_owned())];
        };
        if u64::from(item.nlink) != self.links {
            let message = format!("link count wrong, nlink {} but {} names", item.nlink, self.links);
            faults.push((Code::InodeLinkCount, message));
        }
        if item.is_dir() && item.size != self.entries {
            let message = format!("dir isize wrong, have {} expect {}", item.size, self.entries);
            faults.push((Code::InodeDirSize, message));
        }
        faults.extend(self.odd_item(item).map(|message| (Code::InodeOddItem, message)));
        faults.extend(self.extent_faults(item, has_holes));
        faults
    }

    /// An item that no inode of this kind has.
    fn odd_item(&self, item: &InodeItem) -> Option<String> {
        match self.first_extent {
            Some(offset) if item.is_dir() => {
                Some(format!("odd file extent, a directory has one at {offset}"))
            }
            _ if item.has_data() && self.entries > 0 => {
                Some(format!("odd dir item, no directory has entries, mode {:#o}", item.mode))
            }
            _ => None,
        }
    }

    fn extent_faults(&self, item: &InodeItem, has_holes: bool) -> Vec<(Code, String)> {
        let mut faults = Vec::new();
        if let Some(offset) = self.overlap {
            faults.push((Code::InodeExtents, format!("file extents overlap at {offset}")));
        }
        // While a file is being deleted over several commits, its inode item stays as it was.
        if item.nlink == 0 || !item.has_data() {
            return faults;
        }
        if item.nbytes != self.bytes {
            let message = format!("nbytes wrong, have {} expect {}", item.nbytes, self.bytes);
            faults.push((Code::InodeBytes, message));
        }
        if !has_holes {
            let gap = self.gap.or((self.end < item.size).then_some(self.end)).filter(|gap| *gap < item.size);
            let tell = |gap| (Code::InodeExtents, format!("no file extent at {gap}, of {} bytes", item.size));
            faults.extend(gap.map(tell));
        }
        faults
    }
}
