//! Making the snapshot of a commit: at attach from nothing, later from the one before.

use std::collections::BTreeMap;
use std::sync::Arc;

use parser::dev::DevItem;
use parser::key::item;
use parser::superblock::{PRIMARY, compat_ro, incompat, super_flags};
use parser::{Chunk, ChunkItem, ChunkMap, ParseError, RootItem, SuperBlock, Uuid, ids};
use thiserror::Error;

use crate::codes::Code;
use crate::forest::{BlockProblem, Expect, Forest, Geometry, RootId, Snapshot};
use crate::record::{RecordBuilder, is_record_item};
use crate::roots::Links;
use crate::source::BlockSource;
use crate::space::extents::{Holds, Place, over_an_old_edge};
use crate::tree::{Cursor, ItemRef, diff};
use crate::violation::Violation;

/// Why no file system could be opened from a super block.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The super block itself is unusable.
    #[error("super block: {0}")]
    SuperBlock(#[from] ParseError),
    /// Its checksum is wrong.
    #[error("super block: checksum verify failed")]
    Checksum,
    /// It was written for another place: the kernel does not take it.
    #[error("super block: bytenr {0} is not the place where it stands")]
    Place(u64),
    /// The system chunk array, chunk tree or root tree can't be read.
    #[error("can't read the {tree}: {}", problems.first().map_or_else(String::new, ToString::to_string))]
    Tree {
        /// Which of them.
        tree: &'static str,
        /// All that was found, at least one.
        problems: Vec<BlockProblem>,
    },
    /// A tool was in the midst of rewriting the tree blocks.
    #[error("{error}; {why}")]
    Rewriting {
        /// What it was about.
        why: &'static str,
        /// What can't be read because of that, or of anything else.
        error: Box<AttachError>,
    },
}

impl AttachError {
    /// What kept trees from being read.
    #[must_use]
    pub fn problems(&self) -> &[BlockProblem] {
        match self {
            AttachError::Tree { problems, .. } => problems,
            AttachError::Rewriting { error, .. } => error.problems(),
            AttachError::SuperBlock(_) | AttachError::Checksum | AttachError::Place(_) => &[],
        }
    }

    /// The same, with what the super block says of a tool at work.
    fn while_rewriting(self, superblock: &[u8]) -> Self {
        match rewriting(superblock) {
            Some(why) => AttachError::Rewriting { why, error: Box::new(self) },
            None => self,
        }
    }
}

/// What btrfstune was about when it wrote a super block: it rewrites tree blocks where they are, and until it has done, the
/// file system is neither the one from before nor the one to come.
#[must_use]
pub fn rewriting(superblock: &[u8]) -> Option<&'static str> {
    let flags = SuperBlock::parse(superblock).map_or(0, |view| view.flags());
    const TOOLS: [(u64, &str); 5] = [
        (
            super_flags::CHANGING_FSID,
            "btrfstune is changing the fsid, or was interrupted (super block flag CHANGING_FSID): until it has done, some \
             tree blocks have the old one and some the new",
        ),
        (
            super_flags::CHANGING_FSID_V2,
            "btrfstune is changing the fsid, or was interrupted (super block flag CHANGING_FSID_V2)",
        ),
        (
            super_flags::CHANGING_BG_TREE,
            "btrfstune is converting the block group items, or was interrupted (super block flag CHANGING_BG_TREE)",
        ),
        (
            super_flags::CHANGING_DATA_CSUM,
            "btrfstune is changing the checksums of data, or was interrupted (super block flag CHANGING_DATA_CSUM)",
        ),
        (
            super_flags::CHANGING_META_CSUM,
            "btrfstune is changing the checksums of tree blocks, or was interrupted (super block flag \
             CHANGING_META_CSUM): until it has done, some have checksums of the old kind and some of the new",
        ),
    ];
    TOOLS.iter().find(|(flag, _)| flags & flag != 0).map(|(_, why)| *why)
}

impl std::fmt::Display for BlockProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BlockProblem::Violation(violation) => violation.fmt(f),
            BlockProblem::Unknown(unread) => unread.fmt(f),
        }
    }
}

/// What of a file system the program's rules cover.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Why references are not verified; empty where they are.
    pub gaps: Vec<String>,
}

impl Coverage {
    /// Whether commits can be verified.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.gaps.is_empty()
    }

    /// From the feature bits. A feature that the program has never heard of may change any rule.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        const OTHER_RULES: u64 = incompat::EXTENT_TREE_V2 | incompat::REMAP_TREE | incompat::ZONED;
        let mut gaps = Vec::new();
        for (bit, name) in incompat::names(geometry.incompat) {
            match name {
                None => gaps.push(format!("unknown incompat feature {bit:#x}")),
                Some(name) if bit & OTHER_RULES != 0 => {
                    gaps.push(format!("incompat feature {name} has other rules"))
                }
                Some(_) => {}
            }
        }
        for (bit, name) in compat_ro::names(geometry.compat_ro) {
            if name.is_none() {
                gaps.push(format!("unknown compat_ro feature {bit:#x}"));
            }
        }
        Coverage { gaps }
    }
}

/// A file system that was opened as far as it can be read.
#[derive(Debug)]
pub struct Opened {
    /// Its state; root items that can't be read are missing.
    pub snapshot: Snapshot,
    /// What is wrong with the root tree.
    pub problems: Vec<BlockProblem>,
}

/// Opens the file system that a super block describes.
///
/// # Errors
/// [`AttachError`] where it can't be opened.
pub fn load(superblock: &[u8], source: &dyn BlockSource) -> Result<Snapshot, AttachError> {
    let Opened { snapshot, problems } = open(superblock, source)?;
    if problems.is_empty() {
        return Ok(snapshot);
    }
    Err(AttachError::Tree { tree: "root tree", problems }.while_rewriting(superblock))
}

/// Opens the file system that a super block describes, as far as it can be read.
///
/// # Errors
/// [`AttachError`] where nothing can be made of it: the super block, the chunk tree or the root of the root tree
/// can't be read.
pub fn open(superblock: &[u8], source: &dyn BlockSource) -> Result<Opened, AttachError> {
    open_as_it_is(superblock, source).map_err(|error| error.while_rewriting(superblock))
}

fn open_as_it_is(superblock: &[u8], source: &dyn BlockSource) -> Result<Opened, AttachError> {
    let mut snapshot = provisional(superblock)?;
    load_chunks(&mut snapshot, source)?;
    let root_tree = snapshot.super_view().map(|view| Expect::root_tree(&view));
    let mut roots = BTreeMap::new();
    let mut cursor = Cursor::new(Forest::new(&snapshot, source), root_tree);
    let mut problems = Vec::new();
    while let Some(found) = cursor.next_item() {
        if let Some((id, parsed)) = root_item(&found) {
            match parsed {
                Ok(root) => drop(roots.insert(id, root)),
                Err(violation) => problems.push(BlockProblem::Violation(violation)),
            }
        }
    }
    problems.extend(cursor.into_problems());
    if roots.is_empty() && !problems.is_empty() {
        return Err(AttachError::Tree { tree: "root tree", problems });
    }
    snapshot.roots = Arc::new(roots);
    Ok(Opened { snapshot, problems })
}

/// The snapshot of the commit after `old`, reading only what changed. Notes in `links` which subvolumes and links
/// between them that is about.
///
/// # Errors
/// [`AttachError`] where the new trees can't be read.
pub fn advance(
    old: &Snapshot,
    superblock: &[u8],
    source: &dyn BlockSource,
    links: &mut Links,
) -> Result<Snapshot, AttachError> {
    let mut snapshot = provisional(superblock)?;
    snapshot.verified = old.verified;
    let chunk_root = |snapshot: &Snapshot| {
        snapshot.super_view().map(|view| (view.chunk_root(), view.chunk_root_generation()))
    };
    if chunk_root(old) == chunk_root(&snapshot) {
        snapshot.chunks = Arc::clone(&old.chunks);
        snapshot.seed_uuids.clone_from(&old.seed_uuids);
    } else {
        load_chunks(&mut snapshot, source)?;
    }
    let mut roots = BTreeMap::clone(&old.roots);
    let mut problems = Vec::new();
    let side = |snapshot: &Snapshot| snapshot.super_view().map(|view| Expect::root_tree(&view));
    let (from, to) = (side(old), side(&snapshot));
    let unread = diff((Forest::new(old, source), from), (Forest::new(&snapshot, source), to), |change| {
        links.note(&change);
        if let Some((id, _)) = change.before().and_then(root_item) {
            roots.remove(&id);
        }
        match change.after().and_then(root_item) {
            Some((id, Ok(root))) => drop(roots.insert(id, root)),
            Some((_, Err(violation))) => problems.push(BlockProblem::Violation(violation)),
            None => {}
        }
    });
    problems.extend(unread);
    if !problems.is_empty() {
        return Err(AttachError::Tree { tree: "root tree", problems });
    }
    snapshot.roots = Arc::new(roots);
    Ok(snapshot)
}

/// A snapshot that knows its super block and nothing else.
fn provisional(superblock: &[u8]) -> Result<Snapshot, AttachError> {
    let view = SuperBlock::parse(superblock)?;
    if !view.verify_csum() {
        return Err(AttachError::Checksum);
    }
    if view.bytenr() != PRIMARY {
        return Err(AttachError::Place(view.bytenr()));
    }
    Ok(Snapshot {
        verified: (view.generation(), view.generation()),
        superblock: view.bytes().into(),
        geometry: Geometry::new(&view)?,
        generation: view.generation(),
        chunks: Arc::default(),
        seed_uuids: Vec::new(),
        roots: Arc::default(),
    })
}

/// Reads the chunk map: from the super block's array first, then, through it, from the chunk tree.
fn load_chunks(snapshot: &mut Snapshot, source: &dyn BlockSource) -> Result<(), AttachError> {
    let bad = |message: String, bytenr| {
        let violation = Violation::new(Code::TreeChunkItem, bytenr, 0, message);
        BlockProblem::Violation(Box::new(violation))
    };
    let mut system = Vec::new();
    let Some(view) = snapshot.super_view() else { return Err(AttachError::Checksum) };
    for entry in view.sys_chunks() {
        match entry {
            Ok((logical, chunk)) => system.push(Chunk::new(logical, &chunk)),
            Err(error) => {
                let problems = vec![bad(error.to_string(), 0)];
                return Err(AttachError::Tree { tree: "system chunk array", problems });
            }
        }
    }
    let chunk_tree = Expect::chunk_tree(&view);
    let overlap = |tree, error: parser::map::Overlap| AttachError::Tree {
        tree,
        problems: vec![bad(error.to_string(), error.second)],
    };
    snapshot.chunks = Arc::new(ChunkMap::new(system).map_err(|error| overlap("system chunk array", error))?);

    let mut chunks = Vec::new();
    let mut seed_uuids: Vec<Uuid> = Vec::new();
    let mut problems = Vec::new();
    let mut cursor = Cursor::new(Forest::new(snapshot, source), Some(chunk_tree));
    while let Some(found) = cursor.next_item() {
        match found.key.item_type {
            item::CHUNK_ITEM => match ChunkItem::parse(found.data()) {
                Ok(chunk) => chunks.push(Chunk::new(found.key.offset, &chunk)),
                Err(error) => problems.push(bad(format!("{}: {error}", found.key), found.key.offset)),
            },
            item::DEV_ITEM => {
                if let Ok(device) = DevItem::parse(found.data())
                    && device.fsid != snapshot.geometry.metadata_uuid
                {
                    seed_uuids.push(device.fsid);
                }
            }
            _ => {}
        }
    }
    problems.extend(cursor.into_problems());
    if !problems.is_empty() {
        return Err(AttachError::Tree { tree: "chunk tree", problems });
    }
    snapshot.chunks = Arc::new(ChunkMap::new(chunks).map_err(|error| overlap("chunk tree", error))?);
    snapshot.seed_uuids = seed_uuids;
    Ok(())
}

/// The root item that `found` is, if it is one.
fn root_item(found: &ItemRef) -> Option<(RootId, Result<RootItem, Box<Violation>>)> {
    if found.key.item_type != item::ROOT_ITEM {
        return None;
    }
    let id = RootId { tree: found.key.objectid, offset: found.key.offset };
    let parsed = RootItem::parse(found.data()).map_err(|error| {
        let (block, slot) = (found.site.block, found.site.slot);
        let message = format!("corrupt leaf: root=1 block={block} slot={slot}, {}: {error}", found.key);
        Box::new(Violation::new(Code::TreeRootItem, block, 0, message))
    });
    Some((id, parsed))
}

/// A device of `len` bytes that is smaller than its super block says: the image was cut off.
#[must_use]
pub fn device_too_small(snapshot: &Snapshot, len: u64) -> Option<Violation> {
    let total = snapshot.super_view()?.dev_item().total_bytes;
    (total > len).then(|| {
        let devid = snapshot.geometry.devid;
        let message = format!("devid {devid} total_bytes {total}, but the device has only {len} bytes");
        Violation::new(Code::SpaceDeviceTooSmall, 0, 0, message).with_worth(total, len)
    })
}

/// Largest extent tree that is read as a whole at attach, in bytes of tree blocks: about a million extents. Beyond
/// it attaching would be noticed.
pub const SURVEY_LIMIT: u64 = 64 << 20;

/// What reading the whole extent tree has shown.
#[derive(Debug, Default)]
pub struct Survey {
    /// Extents, tree blocks among them.
    pub extents: u64,
    /// Tree blocks.
    pub tree_blocks: u64,
    /// What is wrong with records by themselves: the checks of ref-verify's `btrfs_build_ref_tree`; and extents over the edge
    /// of a block group that is gone.
    pub violations: Vec<Violation>,
}

/// Reads the extent tree as ref-verify does at mount. `None` when it is larger than [`SURVEY_LIMIT`] or can't be
/// read to the end.
#[must_use]
pub fn survey(forest: &Forest<'_>) -> Option<Survey> {
    let root = forest.snapshot.roots.get(&RootId { tree: ids::EXTENT_TREE, offset: 0 })?;
    if root.bytes_used > SURVEY_LIMIT {
        return None;
    }
    let mut survey = Survey::default();
    let mut builder: Option<(u64, RecordBuilder<'_>)> = None;
    let mut finish = |builder: Option<(u64, RecordBuilder<'_>)>| {
        let Some((_, builder)) = builder else { return };
        let built = builder.finish();
        survey.violations.extend(built.violations);
        let Some(record) = built.record else { return };
        survey.extents += 1;
        survey.tree_blocks += u64::from(record.metadata());
        let place = Place { bytenr: record.bytenr, len: record.len, holds: Holds::of(&record) };
        survey.violations.extend(over_an_old_edge(&place, &forest.snapshot.chunks));
    };
    let mut cursor = Cursor::new(*forest, forest.snapshot.tree(ids::EXTENT_TREE));
    while let Some(found) = cursor.next_item() {
        if !is_record_item(found.key.item_type) {
            continue;
        }
        let bytenr = found.key.objectid;
        if builder.as_ref().is_none_or(|(current, _)| *current != bytenr) {
            let next = RecordBuilder::new(&forest.snapshot.geometry, bytenr);
            finish(builder.replace((bytenr, next)));
        }
        if let Some((_, builder)) = &mut builder {
            builder.push(&found.key, found.data(), found.site);
        }
    }
    finish(builder);
    cursor.into_problems().is_empty().then_some(survey)
}
