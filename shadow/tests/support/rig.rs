//! A file system, its verifier, and what must come of each commit.

use parser::Key;
use parser::key::item;
use shadow::forest::RootId;
use shadow::{Code, CommitReport, Verdict, Verifier};

use super::bytes;
use super::world::{Fault, World};

/// A world whose every commit is verified.
pub struct Rig {
    pub world: World,
    pub verifier: Verifier,
}

impl Rig {
    /// Commits the world as it stands and attaches to it.
    pub fn attach(mut world: World) -> Self {
        let superblock = world.commit();
        let mut verifier = Verifier::new(1 << 20).revocable(true);
        verifier.attach(&superblock, &world.image).expect("the first commit can be read");
        Rig { world, verifier }
    }

    /// Commits with this fault. Foreseen and verified, taken back and verified again: nothing may be left of the first
    /// time, nor may it have mattered that it was foreseen.
    pub fn commit(&mut self, fault: &Fault<'_>) -> CommitReport {
        let superblock = self.world.commit_with(fault);
        let before = self.verifier.snapshot().map(|snapshot| snapshot.superblock.clone());
        self.verifier.settle();
        self.verifier.foresee(root_of(&superblock), &self.world.image);
        assert_eq!(self.verifier.snapshot().map(|snapshot| snapshot.superblock.clone()), before);
        let first = self.verifier.commit(&superblock, &self.world.image);
        self.verifier.revoke();
        assert_eq!(self.verifier.snapshot().map(|snapshot| snapshot.superblock.clone()), before);
        let second = self.verifier.commit(&superblock, &self.world.image);
        assert_eq!(format!("{first:#?}"), format!("{second:#?}"));
        second
    }

    /// Commits; nothing may be found.
    #[track_caller]
    pub fn clean(&mut self) -> CommitReport {
        let report = self.commit(&Fault::none());
        assert_clean(&report);
        report
    }

    /// Commits with a fault; it must be found, as this and nothing else.
    #[track_caller]
    pub fn fault(&mut self, fault: &Fault<'_>, code: Code, bytenr: u64) -> CommitReport {
        let report = self.commit(fault);
        let found: Vec<_> = report.violations.iter().map(|found| (found.code.name(), found.bytenr)).collect();
        assert_eq!(found, [(code.name(), bytenr)], "{:#?}", messages(&report));
        assert_eq!(report.verdict(), Verdict::Violations);
        report
    }
}

/// Root block of the root tree, and its level.
pub fn root_of(superblock: &[u8]) -> (u64, u8) {
    parser::SuperBlock::parse(superblock).expect("a super block").root()
}

#[track_caller]
pub fn assert_clean(report: &CommitReport) {
    assert_eq!(report.verdict(), Verdict::Clean, "{:#?} {:?}", messages(report), report.unverified);
}

pub fn messages(report: &CommitReport) -> Vec<String> {
    report.violations.iter().map(ToString::to_string).collect()
}

impl World {
    /// A file extent item in a tree; the data extent is new. Its address.
    pub fn write_file(&mut self, id: RootId, inode: u64, offset: u64, len: u64) -> u64 {
        let bytenr = self.alloc_data(len);
        self.link(id, inode, offset, bytenr, len);
        bytenr
    }

    /// A file extent item for a data extent that exists.
    pub fn link(&mut self, id: RootId, inode: u64, offset: u64, bytenr: u64, len: u64) {
        let mut items = self.items(id);
        items.insert(Key::new(inode, item::EXTENT_DATA, offset), bytes::file_extent(bytenr, len, 0, len));
        self.write_tree(id, items);
    }

    /// `count` files of one extent each, in one go. Addresses of the extents.
    pub fn fill(&mut self, id: RootId, first: u64, count: u64) -> Vec<u64> {
        let mut items = self.items(id);
        let mut extents = Vec::new();
        for inode in first..first + count {
            let bytenr = self.alloc_data(4096);
            items.insert(Key::new(inode, item::INODE_ITEM, 0), bytes::inode_item());
            items.insert(Key::new(inode, item::EXTENT_DATA, 0), bytes::file_extent(bytenr, 4096, 0, 4096));
            extents.push(bytenr);
        }
        self.write_tree(id, items);
        extents
    }

    /// Removes the items of one inode.
    pub fn unlink(&mut self, id: RootId, inode: u64) {
        let mut items = self.items(id);
        items.retain(|key, _| key.objectid != inode);
        self.write_tree(id, items);
    }
}
