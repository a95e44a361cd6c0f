//! Names of inodes: the same in an inode's own items, in the index and among the entries of its directory, and with
//! the type that the inode has.
//!
//! Sets are compared by sums of fingerprints; only where those differ is the subvolume read once more, and the names
//! kept and told.

use hashbrown::HashMap;
use parser::dir::DirEntries;
use parser::inode_ref::InodeRefs;
use parser::key::item;
use parser::{Key, RootItem, ids};

use crate::codes::Code;
use crate::forest::{Expect, Forest, RootId};
use crate::record::Site;
use crate::tree::Cursor;
use crate::violation::Violation;

/// Names that are told of one subvolume.
const NAME_LIMIT: usize = 64;

/// A name, as one of the three places where it stands says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    InodeRef,
    DirIndex,
    DirItem,
}

/// What the places must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// `INODE_REF` and `DIR_INDEX`: names of inodes with their index.
    Indexed,
    /// `DIR_ITEM` and `DIR_INDEX`: entries without.
    Entry,
    /// The types of both against that of the inode; of a subvolume, against each other.
    Type,
}

/// A name of an inode or subvolume.
pub(super) struct Name<'a> {
    pub(super) directory: u64,
    pub(super) index: u64,
    location: (u64, u8),
    /// `BTRFS_FT_*`: what the entry says, or what the inode with this name is, as far as that is known.
    dir_type: Option<u8>,
    pub(super) name: &'a [u8],
}

impl Name<'_> {
    /// Whether it is that of the top directory, which stands in no directory.
    pub(super) fn is_top(&self) -> bool {
        self.directory == ids::FIRST_FREE && self.location.0 == ids::FIRST_FREE
    }
}

/// Hands all names that an item holds to `visit`; `dir_type` is that of the inode whose items are being read.
pub(super) fn names_of<'a>(
    key: &Key,
    data: &'a [u8],
    dir_type: Option<u8>,
    mut visit: impl FnMut(Place, Name<'a>),
) {
    let location = (key.objectid, item::INODE_ITEM);
    match key.item_type {
        item::INODE_REF | item::INODE_EXTREF => {
            let refs = match key.item_type {
                item::INODE_REF => InodeRefs::new(key.offset, data),
                _ => InodeRefs::extended(data),
            };
            for entry in refs.flatten() {
                let (directory, index, name) = (entry.parent, entry.index, entry.name);
                visit(Place::InodeRef, Name { directory, index, location, dir_type, name });
            }
        }
        item::DIR_INDEX | item::DIR_ITEM => {
            let place = if key.item_type == item::DIR_INDEX { Place::DirIndex } else { Place::DirItem };
            for entry in DirEntries::new(data).flatten() {
                let location = (entry.location.objectid, entry.location.item_type);
                let (directory, index, dir_type) = (key.objectid, key.offset, Some(entry.dir_type));
                visit(place, Name { directory, index, location, dir_type, name: entry.name });
            }
        }
        _ => {}
    }
}

/// FNV-1a, and the finaliser of splitmix64: such that sums of them tell sets apart.
fn hash(words: impl IntoIterator<Item = u64>, name: &[u8]) -> u64 {
    let fold = |state: u64, word: u64| (state ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
    let state = words.into_iter().fold(0xcbf2_9ce4_8422_2325, fold);
    let mut z = name.iter().fold(state, |state, &byte| fold(state, u64::from(byte)));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number for what two places must agree on.
fn fingerprint(name: &Name<'_>, kind: Kind) -> u64 {
    let (objectid, item_type) = (name.location.0, u64::from(name.location.1));
    match kind {
        Kind::Indexed => hash([name.directory, name.index, objectid, item_type], name.name),
        Kind::Entry => hash([name.directory, u64::MAX, objectid, item_type], name.name),
        Kind::Type => hash([objectid, item_type, name.dir_type.map_or(u64::MAX, u64::from)], &[]),
    }
}

/// Which sums a name adds to, and how often; less than 0 on the other side. The top directory has no entry, a
/// subvolume no `INODE_REF`.
fn shares(place: Place, name: &Name<'_>) -> impl Iterator<Item = (Kind, i64)> {
    let is_inode = name.location.1 == item::INODE_ITEM;
    let shares = match place {
        Place::InodeRef if name.is_top() => [None, None, None],
        // Its type stands against that of two entries.
        Place::InodeRef => [Some((Kind::Indexed, 1)), None, Some((Kind::Type, 2))],
        Place::DirIndex if is_inode => {
            [Some((Kind::Indexed, -1)), Some((Kind::Entry, 1)), Some((Kind::Type, -1))]
        }
        Place::DirIndex => [None, Some((Kind::Entry, 1)), Some((Kind::Type, 1))],
        Place::DirItem => [None, Some((Kind::Entry, -1)), Some((Kind::Type, -1))],
    };
    shares.into_iter().flatten()
}

/// Sums of names: by kind, those of one side less those of the other.
#[derive(Debug, Default)]
pub(super) struct Names {
    indexed: u64,
    entries: u64,
    types: u64,
}

impl Names {
    pub(super) fn add(&mut self, place: Place, name: &Name<'_>) {
        for (kind, times) in shares(place, name) {
            let sum = match kind {
                Kind::Indexed => &mut self.indexed,
                Kind::Entry => &mut self.entries,
                Kind::Type => &mut self.types,
            };
            *sum = sum.wrapping_add(fingerprint(name, kind).wrapping_mul(times.cast_unsigned()));
        }
    }

    /// Reads the subvolume once more, where the sums say that places differ, and tells how.
    pub(super) fn tell(&self, forest: &Forest<'_>, id: RootId, root: &RootItem) -> Vec<Violation> {
        if (self.indexed, self.entries) != (0, 0) {
            tell_names(forest, id, root)
        } else if self.types != 0 {
            // Where names are missing, so are types.
            tell_types(forest, id, root)
        } else {
            Vec::new()
        }
    }
}

/// Hands every name of a subvolume to `visit`, with where it stands.
fn all_names(
    forest: &Forest<'_>,
    (id, root): (RootId, &RootItem),
    mut visit: impl FnMut(Place, &Name<'_>, Site),
) {
    let mut cursor = Cursor::new(*forest, Some(Expect::root(id, root)));
    let mut current: Option<(u64, Option<u8>)> = None;
    while let Some(found) = cursor.next_item() {
        let inode = found.key.objectid;
        if found.key.item_type == item::INODE_ITEM {
            let parsed = parser::inode::InodeItem::parse(found.data());
            current = Some((inode, parsed.ok().and_then(|item| item.dir_type())));
        }
        let dir_type = current.filter(|(number, _)| *number == inode).and_then(|(_, dir_type)| dir_type);
        names_of(&found.key, found.data(), dir_type, |place, name| visit(place, &name, found.site));
    }
}

/// The names that stand on one side only.
fn tell_names(forest: &Forest<'_>, id: RootId, root: &RootItem) -> Vec<Violation> {
    let mut open: HashMap<(Kind, u64), (i64, Site, String)> = HashMap::new();
    all_names(forest, (id, root), |place, name, site| {
        for (kind, times) in shares(place, name).filter(|(kind, _)| *kind != Kind::Type) {
            let key = (kind, fingerprint(name, kind));
            let entry = open.entry(key).or_insert_with(|| {
                let text = format!("{}: only its {place:?} is there", describe(id, name));
                (0, site, text)
            });
            entry.0 += times;
            if entry.0 == 0 {
                open.remove(&key);
            }
        }
    });
    let rest = open.into_values().map(|(_, site, text)| (site, text)).collect();
    report(forest, Code::InodeName, rest)
}

/// "root 256 dir 257 index 3 name a of inode 300".
fn describe(id: RootId, name: &Name<'_>) -> String {
    let Name { directory, index, location, name, .. } = name;
    let name = name.escape_ascii();
    format!("root {} dir {directory} index {index} name {name} of inode {}", id.tree, location.0)
}

/// Entries, by what they name: how often more than its name, with their type; or, less than 0, the other way round.
type Types = HashMap<((u64, u8), u8), (i64, Site, String)>;

/// The entries whose type is not that of their inode.
fn tell_types(forest: &Forest<'_>, id: RootId, root: &RootItem) -> Vec<Violation> {
    let mut open = Types::new();
    all_names(forest, (id, root), |place, name, site| {
        let Some(dir_type) = name.dir_type else { return };
        for (_, times) in shares(place, name).filter(|(kind, _)| *kind == Kind::Type) {
            let key = (name.location, dir_type);
            let entry = open.entry(key).or_insert_with(|| {
                let text = format!("{}, {place:?}: filetype mismatch, have {dir_type}", describe(id, name));
                (0, site, text)
            });
            entry.0 += times;
            if entry.0 == 0 {
                open.remove(&key);
            }
        }
    });
    // What an inode without an inode item is, nobody knows; that it has none is told already.
    let expected: HashMap<(u64, u8), u8> = open
        .iter()
        .filter(|(_, (times, ..))| *times > 0)
        .map(|((location, kind), _)| (*location, *kind))
        .collect();
    let wrong = open.into_iter().filter(|(_, (times, ..))| *times < 0);
    let told = wrong.filter_map(|((location, _), (_, site, text))| {
        expected.get(&location).map(|kind| (site, format!("{text} expect {kind}")))
    });
    report(forest, Code::InodeFileType, told.collect())
}

/// The first of what was found, in the order of the tree's blocks.
fn report(forest: &Forest<'_>, code: Code, mut found: Vec<(Site, String)>) -> Vec<Violation> {
    found.sort_unstable_by_key(|(site, _)| (site.block, site.slot));
    found.truncate(NAME_LIMIT);
    let violation = |(site, text): (Site, String)| {
        Violation::new(code, site.block, forest.nodesize(), format!("unresolved ref {text}"))
    };
    found.into_iter().map(violation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with two names, and a subvolume.
    fn sound() -> Vec<(Place, Name<'static>)> {
        let mut names = Vec::new();
        for (directory, index, name) in [(256, 2, b"a"), (257, 9, b"b")] {
            for (place, index) in [(Place::InodeRef, index), (Place::DirIndex, index), (Place::DirItem, 77)] {
                let location = (300, item::INODE_ITEM);
                names.push((place, Name { directory, index, location, dir_type: Some(1), name }));
            }
        }
        for (place, index) in [(Place::DirIndex, 3), (Place::DirItem, 78)] {
            let location = (400, item::ROOT_ITEM);
            names.push((place, Name { directory: 256, index, location, dir_type: Some(2), name: b"s" }));
        }
        names
    }

    fn sums(names: &[(Place, Name<'_>)]) -> (bool, bool) {
        let mut sums = Names::default();
        names.iter().for_each(|(place, name)| sums.add(*place, name));
        ((sums.indexed, sums.entries) == (0, 0), sums.types == 0)
    }

    #[test]
    fn names_and_types_agree_until_one_of_them_is_another() {
        assert_eq!(sums(&sound()), (true, true));
        for at in 0..sound().len() {
            let mut types = sound();
            types[at].1.dir_type = Some(6);
            assert_eq!(sums(&types), (true, false), "the type of {at}");
            let mut lost = sound();
            lost.remove(at);
            assert_eq!(sums(&lost), (false, false), "without {at}");
            let mut renamed = sound();
            renamed[at].1.name = b"x";
            assert_eq!(sums(&renamed), (false, true), "the name of {at}");
        }
    }

    #[test]
    fn an_index_counts_where_it_is_one() {
        for at in 0..sound().len() {
            let mut moved = sound();
            moved[at].1.index += 1;
            // The key of a DIR_ITEM has the name's hash there; no INODE_REF says that of a subvolume.
            let is_free = moved[at].0 == Place::DirItem || moved[at].1.location.1 == item::ROOT_ITEM;
            assert_eq!(sums(&moved), (is_free, true), "the index of {at}");
        }
    }
}
