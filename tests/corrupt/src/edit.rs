//! Tree blocks taken apart, to be changed and put together again without holes.

use parser::block::HEADER_SIZE;
use parser::{Block, Key, NodePtr, layout};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A changed block (its checksum not yet mended), and what was changed, in words.
pub struct Edited {
    /// The block.
    pub bytes: Vec<u8>,
    /// The change.
    pub change: String,
}

/// Reads a structure from the beginning of `bytes`.
pub fn read<T: FromBytes + Immutable + KnownLayout>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

/// Changes a structure at the beginning of `bytes`.
pub fn change<T>(bytes: &mut [u8], edit: impl FnOnce(&mut T)) -> Option<()>
where
    T: FromBytes + IntoBytes + KnownLayout,
{
    let (value, _) = T::mut_from_prefix(bytes).ok()?;
    edit(value);
    Some(())
}

fn disk_key(key: Key) -> layout::DiskKey {
    layout::DiskKey { objectid: key.objectid.into(), item_type: key.item_type, offset: key.offset.into() }
}

/// An item of a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its key.
    pub key: Key,
    /// Its data.
    pub data: Vec<u8>,
}

/// A leaf taken apart.
#[derive(Debug, Clone)]
pub struct Leaf {
    header: layout::Header,
    /// The items, in slot order.
    pub items: Vec<Item>,
    /// Bytes of the block.
    pub nodesize: usize,
}

impl Leaf {
    /// Takes a leaf apart; `None` for a node or for bytes that are no tree block.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let Block::Leaf(leaf) = Block::parse(bytes).ok()? else { return None };
        let items = leaf.items().map(|(key, data)| Item { key, data: data.to_vec() }).collect();
        Some(Leaf { header: read(bytes)?, items, nodesize: bytes.len() })
    }

    /// Puts the leaf together; `None` when it has grown beyond the block.
    pub fn build(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; self.nodesize];
        let header = layout::Header { nritems: u32::try_from(self.items.len()).ok()?.into(), ..self.header };
        header.write_to_prefix(&mut bytes).ok()?;
        let body = bytes.get_mut(HEADER_SIZE..)?;
        let array = self.items.len() * size_of::<layout::Item>();
        let mut end = body.len();
        for (slot, item) in self.items.iter().enumerate() {
            let start = end.checked_sub(item.data.len()).filter(|start| *start >= array)?;
            body[start..end].copy_from_slice(&item.data);
            let place = layout::Item {
                key: disk_key(item.key),
                offset: u32::try_from(start).ok()?.into(),
                size: u32::try_from(item.data.len()).ok()?.into(),
            };
            place.write_to_prefix(body.get_mut(slot * size_of::<layout::Item>()..)?).ok()?;
            end = start;
        }
        Some(bytes)
    }

    /// Generation of the block.
    pub fn generation(&self) -> u64 {
        self.header.generation.get()
    }

    /// Whether it belongs to a relocation.
    pub fn is_reloc(&self) -> bool {
        self.header.flags.get() & parser::block::FLAG_RELOC != 0
    }

    /// Tree that owns the block.
    pub fn owner(&self) -> u64 {
        self.header.owner.get()
    }

    /// Gives the block to another tree.
    pub fn set_owner(&mut self, tree: u64) {
        self.header.owner = tree.into();
    }

    /// Sorts the items by key. `false` when two have the same, or when the leaf would no longer fit its place in the
    /// tree: another first key, or one past the last, unless nothing stands behind it (`is_last`).
    pub fn settle(&mut self, original: &Leaf, is_last: bool) -> bool {
        self.items.sort_by_key(|item| item.key);
        let ends = |leaf: &Leaf| Some((leaf.items.first()?.key, leaf.items.last()?.key));
        let (Some((first, last)), Some((old_first, old_last))) = (ends(self), ends(original)) else {
            return false;
        };
        first == old_first
            && (is_last || last <= old_last)
            && self.items.windows(2).all(|pair| pair[0].key < pair[1].key)
    }
}

/// A node taken apart.
#[derive(Debug, Clone)]
pub struct Node {
    header: layout::Header,
    /// The pointers, in slot order.
    pub ptrs: Vec<NodePtr>,
    /// Bytes of the block.
    pub nodesize: usize,
}

impl Node {
    /// Takes a node apart; `None` for a leaf or for bytes that are no tree block.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let Block::Node(node) = Block::parse(bytes).ok()? else { return None };
        Some(Node { header: read(bytes)?, ptrs: node.ptrs().collect(), nodesize: bytes.len() })
    }

    /// Generation of the block.
    pub fn generation(&self) -> u64 {
        self.header.generation.get()
    }

    /// Puts the node together.
    pub fn build(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; self.nodesize];
        let header = layout::Header { nritems: u32::try_from(self.ptrs.len()).ok()?.into(), ..self.header };
        header.write_to_prefix(&mut bytes).ok()?;
        for (slot, ptr) in self.ptrs.iter().enumerate() {
            let at = HEADER_SIZE + slot * size_of::<layout::KeyPtr>();
            let ptr = layout::KeyPtr {
                key: disk_key(ptr.key),
                blockptr: ptr.bytenr.into(),
                generation: ptr.generation.into(),
            };
            ptr.write_to_prefix(bytes.get_mut(at..)?).ok()?;
        }
        Some(bytes)
    }
}
