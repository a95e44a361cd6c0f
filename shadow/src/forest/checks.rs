//! What a pointer says of a block, held against the block.
//!
//! Knows nothing of where the block was read, and of what its items say.

use parser::Uuid;
use parser::block::Header;

use super::{Expect, Geometry};
use crate::codes::Code;
use crate::source::{StructureFault, TreeBlock};
use crate::violation::Violation;

/// The checks of a block against the pointer to it, from the most telling to the least. The words are the
/// kernel's, where it has some.
pub(super) fn verify(
    geometry: &Geometry,
    seed_uuids: &[Uuid],
    block: &TreeBlock,
    expect: &Expect,
) -> Option<Violation> {
    let bytenr = expect.bytenr;
    // Blocks without a fault are many: nothing is put into words for them.
    let from = || expect.pointed_by();
    let violation = |code, message: String| Violation::new(code, bytenr, geometry.nodesize.into(), message);
    if !block.csum_ok() {
        return Some(violation(
            Code::TreeChecksum,
            format!("checksum verify failed on {bytenr}, which {} points to", from()),
        ));
    }
    let header = match Header::parse(block.bytes()) {
        Ok(header) => header,
        Err(error) => return Some(violation(Code::TreeHeader, format!("block {bytenr}: {error}"))),
    };
    let differs = |code, what: &str, wanted: u64, found: u64| {
        let message = format!("{what} on {bytenr} wanted {wanted} found {found}, pointed to by {}", from());
        Some(violation(code, message).with_worth(wanted, found))
    };
    if header.bytenr() != bytenr {
        return differs(Code::TreeBytenr, "bad tree block start,", bytenr, header.bytenr());
    }
    if *header.fsid() != geometry.metadata_uuid && !seed_uuids.contains(header.fsid()) {
        return Some(violation(
            Code::TreeFsid,
            format!("bad fsid on block {bytenr}, pointed to by {}", from()),
        ));
    }
    if header.generation() != expect.generation {
        return differs(
            Code::TreeGeneration,
            "parent transid verify failed",
            expect.generation,
            header.generation(),
        );
    }
    if header.level() != expect.level {
        return differs(Code::TreeLevel, "level verify failed", expect.level.into(), header.level().into());
    }
    if !expect.owner.allows(header.owner()) {
        let message =
            format!("block {bytenr} is owned by tree {}, pointed to by {}", header.owner() as i64, from());
        return Some(
            violation(Code::TreeOwner, message).with_worth(format!("{:?}", expect.owner), header.owner()),
        );
    }
    if let Some(fault) = block.fault() {
        return Some(structure_violation(&fault, bytenr, &header, geometry));
    }
    let view = block.view()?;
    match (expect.first_key, view.first_key()) {
        (Some(wanted), found) if found != Some(wanted) => {
            let found = found.map_or_else(|| "none".to_owned(), |key| key.to_string());
            let message =
                format!("tree first key mismatch on {bytenr} wanted {wanted} found {found}, {}", from());
            return Some(violation(Code::TreeFirstKey, message).with_worth(wanted.to_string(), found));
        }
        _ => {}
    }
    match (expect.limit, view.last_key()) {
        (Some(limit), Some(last)) if last >= limit => {
            let message = format!(
                "bad key order on {bytenr}: last key {last}, the next block begins with {limit}, {}",
                from()
            );
            Some(violation(Code::TreeKeyOrder, message).with_worth(limit.to_string(), last.to_string()))
        }
        _ => None,
    }
}

fn structure_violation(
    fault: &StructureFault,
    bytenr: u64,
    header: &Header<'_>,
    geometry: &Geometry,
) -> Violation {
    use parser::check::BlockFault;
    let code = match fault {
        StructureFault::Parse(_) => Code::TreeHeader,
        StructureFault::Check(BlockFault::KeyOrder { .. }) => Code::TreeKeyOrder,
        StructureFault::Check(BlockFault::ItemBounds { .. }) => Code::TreeItemBounds,
        StructureFault::Check(BlockFault::EmptyNode | BlockFault::BlockPointer { .. }) => {
            Code::TreeBlockPointer
        }
    };
    let detail = match fault {
        StructureFault::Parse(error) => error.to_string(),
        StructureFault::Check(fault) => fault.to_string(),
    };
    let kind = if header.level() == 0 { "leaf" } else { "node" };
    let message = format!("corrupt {kind}: root={} block={bytenr} {detail}", header.owner());
    Violation::new(code, bytenr, geometry.nodesize.into(), message)
}
