//! The inodes of one subvolume against each other: names in directories and names of inodes, link counts, sizes.
//!
//! For `check`, where it is asked for: every item of the subvolume is read, in order, snapshots each by themselves. Sets
//! of names are compared by their sums; only where those differ are the names kept and told. Trees whose blocks can't all
//! be read are left to who reports that.

use hashbrown::{HashMap, HashSet};
use parser::dir::DirEntries;
use parser::file_extent::{Encoding, INLINE_DATA_START};
use parser::inode::InodeItem;
use parser::inode_ref::InodeRefs;
use parser::key::item;
use parser::superblock::incompat;
use parser::{FileExtent, Key, RootItem, ids};

use crate::codes::Code;
use crate::forest::{Expect, Forest, RootId};
use crate::record::Site;
use crate::tree::{Cursor, ItemRef};
use crate::violation::Violation;

/// Names that are told of one subvolume.
const NAME_LIMIT: usize = 64;

/// The subvolumes whose inodes can be verified: those that are not being deleted.
pub fn subvolumes(forest: &Forest<'_>) -> Vec<(RootId, RootItem)> {
    let roots = forest.snapshot.roots.iter();
    let alive = roots.filter(|(id, root)| ids::is_fs_tree(id.tree) && root.refs > 0);
    alive.map(|(id, root)| (*id, *root)).collect()
}

/// Verifies the inodes of one subvolume.
#[must_use]
pub fn verify(forest: &Forest<'_>, id: RootId, root: &RootItem) -> Vec<Violation> {
    let mut pass = Pass::new(forest, id.tree);
    let mut cursor = Cursor::new(*forest, Some(Expect::root(id, root)));
    while let Some(found) = cursor.next_item() {
        pass.take(&found);
    }
    if !cursor.into_problems().is_empty() {
        return Vec::new();
    }
    let Pass { names, mut found, .. } = pass.finish();
    if !names.agree() {
        found.extend(tell_names(forest, id, root));
    }
    found
}

/// A name, as one of the three places where it stands says it.
#[derive(Debug, Clone, Copy)]
enum Place {
    InodeRef,
    DirIndex,
    DirItem,
}

/// What two of the places must agree on: names of inodes with their index, entries without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// `INODE_REF` and `DIR_INDEX`.
    Indexed,
    /// `DIR_ITEM` and `DIR_INDEX`.
    Entry,
}

/// A name of an inode or subvolume.
struct Name<'a> {
    directory: u64,
    index: u64,
    location: (u64, u8),
    name: &'a [u8],
}

/// Hands all names that an item holds to `visit`.
fn names_of<'a>(key: &Key, data: &'a [u8], mut visit: impl FnMut(Place, Name<'a>)) {
    let inode = (key.objectid, item::INODE_ITEM);
    match key.item_type {
        item::INODE_REF | item::INODE_EXTREF => {
            let refs = match key.item_type {
                item::INODE_REF => InodeRefs::new(key.offset, data),
                _ => InodeRefs::extended(data),
            };
            for entry in refs.flatten() {
                let name =
                    Name { directory: entry.parent, index: entry.index, location: inode, name: entry.name };
                visit(Place::InodeRef, name);
            }
        }
        item::DIR_INDEX | item::DIR_ITEM => {
            let place = if key.item_type == item::DIR_INDEX { Place::DirIndex } else { Place::DirItem };
            for entry in DirEntries::new(data).flatten() {
                let location = (entry.location.objectid, entry.location.item_type);
                visit(place, Name { directory: key.objectid, index: key.offset, location, name: entry.name });
            }
        }
        _ => {}
    }
}

/// A number for a name such that sums of them tell sets of names apart: FNV-1a, and the finaliser of splitmix64.
fn fingerprint(name: &Name<'_>, kind: Kind) -> u64 {
    let fold = |state: u64, word: u64| (state ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
    let index = if kind == Kind::Indexed { name.index } else { u64::MAX };
    let (objectid, item_type) = name.location;
    let words = [name.directory, index, objectid, u64::from(item_type)];
    let state = words.into_iter().fold(0xcbf2_9ce4_8422_2325, fold);
    let mut z = name.name.iter().fold(state, |state, &byte| fold(state, u64::from(byte)));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Which sums a name adds to, and whether to this side or the other. The top directory has no name, a subvolume no
/// `INODE_REF`.
fn shares(place: Place, name: &Name<'_>) -> impl Iterator<Item = (Kind, bool)> {
    let is_inode = name.location.1 == item::INODE_ITEM;
    let is_top = name.directory == ids::FIRST_FREE && name.location.0 == ids::FIRST_FREE;
    let shares = match place {
        Place::InodeRef if is_top => [None, None],
        Place::InodeRef => [Some((Kind::Indexed, true)), None],
        Place::DirIndex => [is_inode.then_some((Kind::Indexed, false)), Some((Kind::Entry, true))],
        Place::DirItem => [Some((Kind::Entry, false)), None],
    };
    shares.into_iter().flatten()
}

/// Sums of names: by kind, those of one side less those of the other.
#[derive(Debug, Default)]
struct Names {
    indexed: u64,
    entries: u64,
}

impl Names {
    fn add(&mut self, place: Place, name: &Name<'_>) {
        for (kind, positive) in shares(place, name) {
            let sum = if kind == Kind::Indexed { &mut self.indexed } else { &mut self.entries };
            let value = fingerprint(name, kind);
            *sum = if positive { sum.wrapping_add(value) } else { sum.wrapping_sub(value) };
        }
    }

    fn agree(&self) -> bool {
        (self.indexed, self.entries) == (0, 0)
    }
}

/// Reads the subvolume once more and tells the names that stand on one side only.
fn tell_names(forest: &Forest<'_>, id: RootId, root: &RootItem) -> Vec<Violation> {
    let mut open: HashMap<(Kind, u64), (i64, Site, String)> = HashMap::new();
    let mut cursor = Cursor::new(*forest, Some(Expect::root(id, root)));
    while let Some(found) = cursor.next_item() {
        names_of(&found.key, found.data(), |place, name| {
            for (kind, positive) in shares(place, &name) {
                let sign = if positive { 1 } else { -1 };
                let key = (kind, fingerprint(&name, kind));
                let entry = open.entry(key).or_insert_with(|| {
                    let Name { directory, index, location, name } = &name;
                    let name = name.escape_ascii();
                    let text = format!(
                        "root {} dir {directory} index {index} name {name} of inode {}: only its {place:?}",
                        id.tree, location.0
                    );
                    (0, found.site, text)
                });
                entry.0 += sign;
                if entry.0 == 0 {
                    open.remove(&key);
                }
            }
        });
    }
    let mut rest: Vec<_> = open.into_values().collect();
    rest.sort_unstable_by_key(|(_, site, _)| (site.block, site.slot));
    rest.truncate(NAME_LIMIT);
    let violation = |(_, site, text): (i64, Site, String)| {
        Violation::new(
            Code::InodeName,
            site.block,
            forest.nodesize(),
            format!("unresolved ref {text} is there"),
        )
    };
    rest.into_iter().map(violation).collect()
}

/// What the items of one inode add up to.
#[derive(Debug)]
struct Inode {
    number: u64,
    site: Site,
    item: Option<InodeItem>,
    links: u64,
    entries: u64,
    bytes: u64,
    /// Where the last file extent ends.
    end: u64,
    gap: Option<u64>,
    overlap: Option<u64>,
}

/// One walk over a subvolume.
struct Pass<'a> {
    forest: &'a Forest<'a>,
    tree: u64,
    names: Names,
    current: Option<Inode>,
    /// Inodes without a link, which must have an orphan item.
    unlinked: Vec<(u64, Site)>,
    orphans: HashSet<u64>,
    found: Vec<Violation>,
}

impl<'a> Pass<'a> {
    fn new(forest: &'a Forest<'a>, tree: u64) -> Self {
        Pass {
            forest,
            tree,
            names: Names::default(),
            current: None,
            unlinked: Vec::new(),
            orphans: HashSet::new(),
            found: Vec::new(),
        }
    }

    fn take(&mut self, found: &ItemRef) {
        let key = found.key;
        if key.objectid == ids::ORPHAN {
            self.orphans.insert(key.offset);
        }
        if !(ids::FIRST_FREE..=ids::LAST_FREE).contains(&key.objectid) {
            return self.end_inode();
        }
        if self.current.as_ref().is_none_or(|inode| inode.number != key.objectid) {
            self.end_inode();
            self.current = Some(Inode {
                number: key.objectid,
                site: found.site,
                item: None,
                links: 0,
                entries: 0,
                bytes: 0,
                end: 0,
                gap: None,
                overlap: None,
            });
        }
        let Some(inode) = &mut self.current else { return };
        match key.item_type {
            item::INODE_ITEM => inode.item = InodeItem::parse(found.data()).ok(),
            item::EXTENT_DATA => inode.extent(&key, found.data(), self.forest),
            _ => names_of(&key, found.data(), |place, name| {
                match place {
                    Place::InodeRef => inode.links += 1,
                    // Each name counts for its item and its index.
                    Place::DirIndex | Place::DirItem => inode.entries += name.name.len() as u64,
                }
                self.names.add(place, &name);
            }),
        }
    }

    fn end_inode(&mut self) {
        let Some(inode) = self.current.take() else { return };
        let has_holes = self.forest.snapshot.geometry.has_incompat(incompat::NO_HOLES);
        for (code, message) in inode.faults(has_holes) {
            let text = format!("root {} inode {}: {message}", self.tree, inode.number);
            self.found.push(Violation::new(code, inode.site.block, self.forest.nodesize(), text));
        }
        if inode.item.is_some_and(|item| item.nlink == 0) {
            self.unlinked.push((inode.number, inode.site));
        }
    }

    fn finish(mut self) -> Self {
        self.end_inode();
        for (number, site) in std::mem::take(&mut self.unlinked) {
            if !self.orphans.contains(&number) {
                let text = format!("root {} inode {number}: no link and no orphan item", self.tree);
                self.found.push(Violation::new(
                    Code::InodeNoOrphan,
                    site.block,
                    self.forest.nodesize(),
                    text,
                ));
            }
        }
        self
    }
}

impl Inode {
    fn extent(&mut self, key: &Key, data: &[u8], forest: &Forest<'_>) {
        let sectorsize = u64::from(forest.snapshot.geometry.sectorsize.max(1));
        let (Ok(extent), Ok(encoding)) = (FileExtent::parse(data), Encoding::parse(data)) else { return };
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

    /// What is wrong with the inode by its own items.
    fn faults(&self, has_holes: bool) -> Vec<(Code, String)> {
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
        if item.is_regular() && item.nbytes != self.bytes {
            let message = format!("nbytes wrong, have {} expect {}", item.nbytes, self.bytes);
            faults.push((Code::InodeBytes, message));
        }
        if let Some(offset) = self.overlap {
            faults.push((Code::InodeExtents, format!("file extents overlap at {offset}")));
        }
        if item.is_regular() && !has_holes {
            let gap = self.gap.or((self.end < item.size).then_some(self.end)).filter(|gap| *gap < item.size);
            let tell = |gap| (Code::InodeExtents, format!("no file extent at {gap}, of {} bytes", item.size));
            faults.extend(gap.map(tell));
        }
        faults
    }
}
