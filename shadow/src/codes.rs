//! The codes of all rules: one row a rule. A code appears in reports and never changes its meaning.

/// How bad a violation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Odd, but nothing is lost by it.
    Warning,
    /// The file system is damaged.
    Error,
}

impl Severity {
    /// As events spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

macro_rules! codes {
    ($($variant:ident $code:literal $severity:ident $summary:literal;)*) => {
        /// A rule.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $summary] $variant,)*
        }

        impl Code {
            /// Every rule there is.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The code as it appears in reports: family/name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Code::$variant => $code,)* }
            }

            /// How bad a violation of the rule is.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Code::$variant => Severity::$severity,)* }
            }

            /// What the rule says, in one line.
            #[must_use]
            pub const fn summary(self) -> &'static str {
                match self { $(Code::$variant => $summary,)* }
            }
        }
    };
}

codes! {
    // The checks of ref-verify.c, in the order they stand there.
    RefDuplicateBackref "ref/duplicate-backref" Error
        "the extent tree records the same backref of an extent twice";
    RefInvalidBackref "ref/invalid-backref" Error
        "an inline or keyed backref of a type that does not exist, or cut short";
    RefOwnerRef "ref/owner-ref" Error
        "an extent owner ref in a file system without simple quotas";
    RefReallocated "ref/reallocated" Error
        "an extent was allocated while it still had references";
    RefNoExtentItem "ref/no-extent-item" Error
        "a reference to an extent that the extent tree does not know";
    RefNoReferences "ref/no-references" Error
        "a reference to, or a drop from, an extent whose references were all gone";
    RefDropExhausted "ref/drop-exhausted" Error
        "a dropped reference whose recorded count was already 0";
    RefDropUnknown "ref/drop-unknown" Error
        "a dropped reference that was never recorded";
    RefDuplicateTreeRef "ref/duplicate-tree-ref" Error
        "a second reference with the same key to one tree block: a cross-linked or doubly linked tree";
    RefUnknownRoot "ref/unknown-root" Error
        "a reference in the name of a root that does not exist, and is not being deleted";

    // The shadow against what the extent tree now says.
    RefMissingBackref "ref/missing-backref" Error
        "a tree holds a reference that the extent tree does not record";
    RefStaleBackref "ref/stale-backref" Error
        "the extent tree records a reference that no tree holds";
    RefStaleExtent "ref/stale-extent" Error
        "an extent item to which no reference is held";
    RefWrongRoot "ref/wrong-root" Error
        "a backref names another root than the one that holds the reference";
    RefWrongParent "ref/wrong-parent" Error
        "a backref names another parent block than the one that holds the reference";
    RefWrongOwner "ref/wrong-owner" Error
        "a backref names another inode (data) or level (tree block) than the reference has";
    RefWrongOffset "ref/wrong-offset" Error
        "a data backref names another file offset than the reference has";
    RefBackrefCount "ref/backref-count" Error
        "the count of a data backref differs from the number of references";
    RefCount "ref/count" Error
        "the refs field of an extent item differs from the sum of its backrefs";
    RefFullBackref "ref/full-backref" Error
        "the FULL_BACKREF flag of a tree block disagrees with the references of its children";
    RefExtentType "ref/extent-type" Error
        "an extent item says data where the references are to a tree block, or the other way round";
    RefExtentLength "ref/extent-length" Error
        "a file extent names another length than the extent item";
    RefExtentGeneration "ref/extent-generation" Error
        "the extent item of a new tree block names another generation than the block";
    RefExtentOverlap "ref/extent-overlap" Error
        "an extent item for the same range as another one";

    TreeUnmapped "tree/unmapped" Error
        "a pointer to an address that no chunk covers";
    TreeUnreadable "tree/unreadable" Error
        "a tree block lies outside the device or cannot be read";
    TreeChecksum "tree/checksum" Error
        "the checksum of a tree block is wrong";
    TreeFsid "tree/fsid" Error
        "a tree block belongs to another file system";
    TreeBytenr "tree/bytenr" Error
        "a tree block was written for another address";
    TreeLevel "tree/level" Error
        "the level of a tree block differs from what its parent says";
    TreeGeneration "tree/generation" Error
        "the generation of a tree block differs from what its parent says (parent transid verify failed)";
    TreeOwner "tree/owner" Error
        "a tree block is owned by a tree that cannot hold it";
    TreeFirstKey "tree/first-key" Error
        "the first key of a tree block differs from what its parent says";
    TreeHeader "tree/header" Error
        "a tree block whose header is impossible: number of items, level, flags";
    TreeKeyOrder "tree/key-order" Error
        "keys of a tree block that are not in order, or outside the range its parent gives it";
    TreeItemBounds "tree/item-bounds" Error
        "item data that overlaps, leaves a hole or lies outside its block";
    TreeBlockPointer "tree/block-pointer" Error
        "a node without pointers, or a pointer to an impossible address";
    TreeDoublyLinked "tree/doubly-linked" Error
        "a tree that reaches the same block twice";
    TreeExtentItem "tree/extent-item" Error
        "an extent item that is malformed: size, flags, level, order or bounds";
    TreeFileExtent "tree/file-extent" Error
        "a file extent item that is malformed";
    TreeRootItem "tree/root-item" Error
        "a root item that is malformed or names no extent tree";
    TreeChunkItem "tree/chunk-item" Error
        "a chunk item that is malformed or overlaps another";
    TreeItemPlace "tree/item-place" Error
        "an item in a tree that cannot hold such items";
    TreeInodeOrder "tree/inode-order" Error
        "an item of an inode behind items of another one: its inode item is missing";
    TreeInodeItem "tree/inode-item" Error
        "an inode item that is malformed: key, generation, mode, links of a directory";
    TreeInodeRef "tree/inode-ref" Error
        "a name of an inode that is malformed: length, hash";
    TreeDirItem "tree/dir-item" Error
        "a directory entry or extended attribute that is malformed: location, type, lengths, hash";
    TreeLogItem "tree/log-item" Error
        "a directory's range in a log tree that is malformed";
    TreeOrphanItem "tree/orphan-item" Error
        "an orphan item that is malformed";
    TreeCsumItem "tree/csum-item" Error
        "a checksum item that is malformed: key, alignment, size";
    TreeRootRef "tree/root-ref" Error
        "a link between subvolumes that is malformed: name";
    TreeBlockGroupItem "tree/block-group-item" Error
        "a block group item that is malformed: size, type, profile";
    TreeFreeSpaceItem "tree/free-space-item" Error
        "an item of the free space tree that is malformed: alignment, size";
    TreeDevItem "tree/dev-item" Error
        "a device item that is malformed: key, device id, bytes used";
    TreeDevExtent "tree/dev-extent" Error
        "a device extent that is malformed: owner, alignment";
    TreeRaidStripe "tree/raid-stripe" Error
        "a raid stripe extent that is malformed: alignment, feature";
    TreeQgroupItem "tree/qgroup-item" Error
        "an item of the quota tree that is malformed";
    TreeUuidItem "tree/uuid-item" Error
        "an item of the UUID tree that is malformed";
    TreeSuperBlock "tree/super-block" Error
        "a super block that contradicts itself";

    RootNoOrphan "root/no-orphan-item" Error
        "a subvolume that nothing refers to, without the orphan item by which its deletion goes on";
    RootUnreferenced "root/unreferenced" Error
        "a subvolume that is not being deleted, and to which no other one links";
    RootRef "root/ref" Error
        "a root ref without its root backref, or the other way round, or the two disagree";
    RootUnknown "root/unknown" Error
        "a link from or to a subvolume that does not exist or is being deleted";
    RootDirItem "root/dir-item" Error
        "a link to a subvolume that no directory entry stands for";
    RootGenerationV2 "root/generation-v2" Warning
        "the two generations of a root item differ: an old kernel wrote it, or nobody did";
    WriteMetadataOverwritten "write/metadata-overwritten" Error
        "a tree block that the last committed super block reaches was overwritten in place with other bytes";
    WriteDataOverwritten "write/data-overwritten" Error
        "file data with a committed checksum was overwritten in place with other bytes";
    WriteReusedEarly "write/reused-early" Error
        "space was used again before the commit that freed it was durable";
    WriteDiscardLive "write/discard-live" Error
        "tree blocks or file data that the last commit needs were discarded or overwritten with zeros";
    WriteNotWritten "write/not-written" Error
        "the super block reaches a new tree block that nobody has written";
    WriteNotCompleted "write/not-completed" Error
        "the super block reaches a tree block whose write is not complete";
    WriteNotFlushed "write/not-flushed" Error
        "the super block reaches a tree block that was not flushed before, in a guest that flushes";
    WriteCopiesDiffer "write/copies-differ" Error
        "copies of a tree block that are whole by themselves and hold different bytes";
    WriteSuperCopies "write/super-copies" Error
        "a copy of the super block that is not that of the last commit when the next one comes";

    SpaceDeviceTooSmall "space/device-too-small" Error
        "a device that is smaller than the file system on it takes it to be";
    SpaceBlockGroupOverlap "space/block-group-overlap" Error
        "an extent that crosses the edge of a block group that was removed";
    SpaceBlockGroupNotEmpty "space/block-group-not-empty" Error
        "a block group that was removed while it held extents";
    SpaceExtentOverlap "space/extent-overlap" Error
        "an extent that begins before another one ends";
    SpaceExtentOutsideBlockGroup "space/extent-outside-block-group" Error
        "an extent in no block group, or over the end of one";
    SpaceExtentType "space/extent-type" Error
        "an extent in a block group of another type: data, metadata, system";
    SpaceExtentOnSuperBlock "space/extent-on-super-block" Error
        "an extent over a copy of the super block";
    SpaceBlockGroupUsed "space/block-group-used" Error
        "used of a block group is not the sum of the extents in it";
    SpaceBytesUsed "space/bytes-used" Error
        "bytes_used of the super block is not the sum over the block groups";
    SpaceBlockGroupChunk "space/block-group-chunk" Error
        "a block group without its chunk, a chunk without its block group, or the two unlike each other";
    SpaceFreeSpaceTree "space/free-space-tree" Error
        "the free space tree differs from the gaps between extents";
    SpaceFreeSpaceCount "space/free-space-count" Error
        "the extent count of a free space info item is not the number of free ranges";
    SpaceDevExtent "space/dev-extent" Error
        "a device extent without its chunk, or a chunk without one of its device extents";
    SpaceDevExtentOverlap "space/dev-extent-overlap" Error
        "two device extents that overlap";
    SpaceDevExtentBounds "space/dev-extent-bounds" Error
        "a device extent past the end of its device, or of a device that is not there";
    SpaceDeviceBytesUsed "space/device-bytes-used" Error
        "bytes_used of a device item is not the sum of its device extents";
    SpaceDeviceUuid "space/device-uuid" Error
        "a stripe or super block that names its device by another UUID than the device item has";
    SpaceSystemChunkArray "space/system-chunk-array" Error
        "the super block's array does not hold exactly the system chunks";
    SpaceTotalBytes "space/total-bytes" Error
        "total_bytes of the super block is less than the devices have";
    SpaceNumDevices "space/num-devices" Warning
        "num_devices of the super block is not the number of device items";
    SpaceCsumWithoutExtent "space/csum-without-extent" Error
        "checksums for addresses where no data extent lies";
    SpaceCsumOverlap "space/csum-overlap" Error
        "two checksum items for the same sectors";
    SpaceCsumChanged "space/csum-changed" Error
        "checksums of data that stays were removed or replaced";
    SpaceDataChecksum "space/data-checksum" Error
        "file data does not have the checksum that the checksum tree says";

    // Only where `check --inodes` asks for it.
    InodeItem "inode/no-item" Error
        "items of an inode that has no inode item";
    InodeLinkCount "inode/link-count" Error
        "the link count of an inode differs from the number of its names";
    InodeNoOrphan "inode/no-orphan-item" Error
        "an inode without a link, and without the orphan item by which its deletion goes on";
    InodeName "inode/name" Error
        "a name that does not stand in all three places: directory item, directory index, inode ref";
    InodeDirSize "inode/dir-size" Error
        "the size of a directory is not twice the length of its names";
    InodeBytes "inode/nbytes" Error
        "the bytes of a file differ from the sum of its extents";
    InodeExtents "inode/extents" Error
        "file extents that overlap, or leave a hole where holes have extents";
    InodeFileType "inode/filetype" Error
        "a directory entry that says another type of file than the inode is";
    InodeTop "inode/top-directory" Error
        "the top directory of a subvolume has another name than '..' with index 0";
    InodeOddItem "inode/odd-item" Error
        "file extents of a directory, or directory entries of another file";
    InodeCsumMissing "inode/csum-missing" Error
        "file data without checksums, of an inode that is not NODATASUM";
    InodeNoDataSum "inode/nodatasum" Warning
        "an inode that is NODATASUM, and has data with checksums or compressed data";
}

impl Code {
    /// The part of the code before the slash.
    #[must_use]
    pub fn family(self) -> &'static str {
        self.name().split_once('/').map_or("", |(family, _)| family)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_of_a_known_family() {
        let names: HashSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(
                ["ref", "write", "tree", "space", "root", "inode"].contains(&code.family()),
                "{}",
                code.name()
            );
        }
    }
}
