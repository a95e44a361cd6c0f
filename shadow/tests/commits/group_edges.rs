//! Extents over the edge of a block group that is gone: at the commit that removes it, at a later one, and for an audit of
//! the whole file system, which has not seen it go.

use parser::BlockFlags;
use shadow::Code;
use shadow::audit::{Table, partitions, scan};
use shadow::space::audit::audit;

use super::space::{SECOND, SECOND_LEN, TOP, assert_found, remove_second, with_two_groups};
use crate::support::bytes::ChunkSpec;
use crate::support::*;

const CROSSES: Code = Code::SpaceBlockGroupOverlap;
const OUTSIDE: Code = Code::SpaceExtentOutsideBlockGroup;
const THIRD: u64 = SECOND + SECOND_LEN;
const THIRD_LEN: u64 = 4 << 20;

/// What reading the extent tree at attach shows.
fn surveyed(rig: &Rig) -> Vec<(Code, u64)> {
    let survey = rig.verifier.survey(&rig.world.image).expect("a small extent tree");
    survey.violations.iter().map(|found| (found.code, found.bytenr)).collect()
}

/// The codes and addresses of what an audit says about extents; the worlds have no devices.
fn audited(rig: &Rig) -> Vec<(Code, u64)> {
    let forest = shadow::Forest::new(rig.verifier.snapshot().expect("a commit"), &rig.world.image);
    let mut scan: Vec<_> = partitions(&forest)
        .expect("the extent tree's root")
        .into_iter()
        .map(|(first, last)| scan(&forest, first, last))
        .collect();
    let groups = scan.iter_mut().flat_map(|scan| std::mem::take(&mut scan.groups)).collect();
    let found = audit(forest, &Table::new(scan), groups, &[]).violations;
    let of_devices = |code: Code| code.name().contains("dev") || code == Code::SpaceTotalBytes;
    let found = found.iter().filter(|found| !of_devices(found.code));
    found.map(|found| (found.code, found.bytenr)).collect()
}

/// A data block group of its own behind the two.
fn add_third(world: &mut World) {
    add_group(world, THIRD, THIRD_LEN, 96 << 20);
}

fn add_group(world: &mut World, logical: u64, length: u64, offset: u64) {
    let stripes = vec![world.chunks[2].stripes[0] + offset];
    world.chunks.push(ChunkSpec { logical, length, flags: BlockFlags::DATA, stripes });
}

#[test]
fn an_audit_finds_an_extent_over_the_edge_of_a_block_group_that_is_gone() {
    let first = SECOND - 4096;
    let last = THIRD - 4096;
    for bytenr in [first, last] {
        let mut rig = with_two_groups(0);
        add_third(&mut rig.world);
        rig.clean();
        assert_eq!((audited(&rig), surveyed(&rig)), (vec![], vec![]));
        remove_second(&mut rig.world);
        rig.world.link(TOP, 500, 0, bytenr, 8192);
        rig.commit(&Fault::none());
        assert_eq!((audited(&rig), surveyed(&rig)), (vec![(CROSSES, bytenr)], vec![(CROSSES, bytenr)]));
        // Of the others that it has left behind, one report as ever.
        for file in 0..3 {
            rig.world.link(TOP, 600 + file, 0, SECOND + 65536 + file * 8192, 4096);
        }
        rig.commit(&Fault::none());
        assert_eq!(audited(&rig), [(CROSSES, bytenr), (OUTSIDE, SECOND + 65536)]);
    }
}

/// Behind all others, what lies there is the only trace of a block group.
#[test]
fn behind_the_last_block_group_an_audit_looks_for_what_was_left() {
    let mut rig = with_two_groups(20);
    remove_second(&mut rig.world);
    rig.world.unlink(TOP, 400);
    rig.world.link(TOP, 500, 0, SECOND - 4096, 8192);
    rig.commit(&Fault::none());
    assert_eq!(audited(&rig), [(CROSSES, SECOND - 4096), (OUTSIDE, SECOND + 8192)]);
    let mut rig = with_two_groups(0);
    remove_second(&mut rig.world);
    rig.world.link(TOP, 500, 0, SECOND - 4096, 8192);
    rig.commit(&Fault::none());
    assert_eq!(audited(&rig), [(OUTSIDE, SECOND - 4096)]);
}

#[test]
fn the_edge_of_a_block_group_that_went_earlier_is_crossed() {
    for bytenr in [SECOND - 4096, THIRD - 4096] {
        let mut rig = with_two_groups(0);
        add_third(&mut rig.world);
        rig.clean();
        remove_second(&mut rig.world);
        rig.clean();
        rig.world.link(TOP, 500, 0, bytenr, 8192);
        assert_found(&mut rig, &[(CROSSES, bytenr)]);
        assert_eq!(audited(&rig), [(CROSSES, bytenr)]);
    }
}

/// A new chunk may take the addresses of several that the same transaction has removed.
#[test]
fn an_edge_in_the_midst_of_a_new_block_group_is_none() {
    let mut rig = with_two_groups(0);
    add_third(&mut rig.world);
    rig.clean();
    rig.world.chunks.retain(|chunk| chunk.logical < SECOND);
    add_group(&mut rig.world, SECOND, SECOND_LEN + THIRD_LEN, 96 << 20);
    rig.world.link(TOP, 500, 0, THIRD - 4096, 8192);
    rig.clean();
    assert_eq!(audited(&rig), []);
}
