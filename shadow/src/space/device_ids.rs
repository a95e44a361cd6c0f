//! The UUIDs by which devices are known: a stripe names its device by devid and UUID, the super block says which one it
//! stands on. Where these are not those of the device item, the kernel takes the device for missing, or for another file
//! system's.
//!
//! Knows nothing of what lies on the devices.

use parser::dev::DevItem;
use parser::uuid::Hyphenated;
use parser::{Chunk, SuperBlock, Uuid};

use crate::codes::Code;
use crate::space::commit::{Commit, Outcome};
use crate::space::devices;
use crate::tree::ItemRef;
use crate::violation::Violation;

/// Chunks that were made, and devices that are known by another UUID than before.
pub(crate) fn changed(commit: &mut Commit<'_, '_>) -> Outcome {
    let uuids = |found: Option<&ItemRef>| {
        let device = found.and_then(|found| DevItem::parse(found.data()).ok());
        device.map(|device| (device.uuid, device.fsid))
    };
    let mut renamed = false;
    devices::device_changes(commit, |change| renamed |= uuids(change.before()) != uuids(change.after()))?;
    let (_, made) = commit.changed_chunks();
    if made.is_empty() && !renamed {
        return Ok(Vec::new());
    }
    let devices = devices::all(commit.new)?;
    if !renamed {
        return Ok(made.into_iter().filter_map(|chunk| unlike_stripe(chunk, &devices)).collect());
    }
    Ok(whole(commit.new.snapshot.chunks.chunks(), &devices, commit.new.snapshot.super_view().as_ref()))
}

/// What is wrong with all stripes and with the device that the super block stands on.
#[must_use]
pub fn whole(chunks: &[Chunk], devices: &[DevItem], superblock: Option<&SuperBlock<'_>>) -> Vec<Violation> {
    let own = superblock.and_then(|view| unlike_super(view, devices));
    // Of a device item with a wrong UUID, all its stripes would be told.
    let is_told = |violation: &Violation| {
        let item = own.as_ref().map(|own| &own.found);
        item == Some(&violation.expected)
    };
    let stripes = chunks.iter().filter_map(|chunk| unlike_stripe(chunk, devices));
    let mut found: Vec<Violation> = stripes.filter(|violation| !is_told(violation)).collect();
    found.dedup_by_key(|violation| violation.expected.clone());
    found.extend(own);
    found
}

/// A chunk that names one of its devices by another UUID than the device item has. A device without an item is another
/// rule's.
fn unlike_stripe(chunk: &Chunk, devices: &[DevItem]) -> Option<Violation> {
    chunk.stripes.iter().enumerate().find_map(|(index, stripe)| {
        let device = devices.iter().find(|device| device.devid == stripe.devid)?;
        (device.uuid != stripe.dev_uuid).then(|| {
            let message = format!(
                "chunk {} stripe {index} lies on devid {} uuid {}, the device item has uuid {}",
                chunk.logical,
                stripe.devid,
                uuid(&stripe.dev_uuid),
                uuid(&device.uuid)
            );
            let violation = Violation::new(Code::SpaceDeviceUuid, chunk.logical, chunk.length, message);
            violation.with_worth(uuid(&device.uuid), uuid(&stripe.dev_uuid))
        })
    })
}

/// The device item of the device that the super block stands on, where its UUIDs are not those in the super block. What
/// else is in them may lag behind.
fn unlike_super(superblock: &SuperBlock<'_>, devices: &[DevItem]) -> Option<Violation> {
    let own = superblock.dev_item();
    let device = devices.iter().find(|device| device.devid == own.devid)?;
    let (what, expected, found) = if device.uuid != own.uuid {
        ("uuid", own.uuid, device.uuid)
    } else if device.fsid != own.fsid {
        ("fsid", own.fsid, device.fsid)
    } else {
        return None;
    };
    let (expected, found) = (uuid(&expected), uuid(&found));
    let message =
        format!("the device item of devid {} has {what} {found}, its super block {expected}", own.devid);
    Some(Violation::new(Code::SpaceDeviceUuid, own.devid, 0, message).with_worth(expected, found))
}

fn uuid(bytes: &Uuid) -> String {
    Hyphenated(*bytes).to_string()
}
