//! Where fuzzing begins.

use super::step;

/// Inputs that get somewhere: requests of every kind, each engine, rings that are moved, processes that are killed.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for how in [0, 1, 3, 0x21, 0x23, 0x43, 0x80, 0xc2, 0xe3, 0x1c] {
        let mut seed = vec![how, 1];
        for kind in 0..8 {
            for (sector, shape) in [(3u16, 0x10), (4, 0x64), (5, 0xb8), (6, 0)] {
                seed.extend([step::REQUEST, kind]);
                seed.extend(sector.to_le_bytes());
                seed.push(shape);
            }
            seed.push(step::RUN);
        }
        seed.extend(killed());
        seed.extend([step::ANSWER, 0, step::ANSWER, 1, step::TABLE, step::RUN, step::RESTART, 0]);
        seed.extend([step::SCRIBBLE, 0, 0x60, 200, 9, step::REQUEST, 1, 7, 0, 0x30, step::RUN]);
        seed.extend([step::INDIRECT, 8, 0, 1, 0, 9, 0, 0, 2, 16, 0, 1, 1, step::OFFER, 3, step::RUN]);
        seed.extend([step::HEADER, 9, 0, 0, 1, 1, 0, step::WRITE, 9, 0, 1, 4, 1, 2, 3, 4, step::RUN]);
        seed.extend([
            step::RESTART,
            0x73,
            5,
            0,
            0,
            1,
            0,
            0,
            0,
            2,
            0,
            0,
            0,
            3,
            0,
            0,
            step::REQUEST,
            1,
            2,
            0,
            0x20,
        ]);
        seed.extend([step::INDEX, 9, 1, step::RUN, step::DESCRIPTOR, 2, 8, 0, 0, 5, 1, 0, 3, 1, step::RUN]);
        seeds.push([&[how, 1][..], &killed(), &killed()].concat());
        seeds.push(seed);
    }
    seeds.push(greedy());
    seeds
}

/// Much is made of little memory: 200 writes of nearly a whole disk share all of their descriptors but one. The process
/// that takes them up copies what the one before did not.
fn greedy() -> Vec<u8> {
    let mut seed = vec![1, 0, step::RESTART, 0x81, 0, 0];
    // Addresses are in low memory: the header is zeros but for its type, and the status lies behind it.
    let mut descriptor = |index: u8, low: u16, len: u16, flags: u8, next: u8| {
        seed.extend([step::DESCRIPTOR, index, 8]);
        seed.extend(low.to_le_bytes());
        seed.push(4);
        seed.extend(len.to_le_bytes());
        seed.extend([flags, next]);
    };
    (0..200).for_each(|head| descriptor(head, 0, 16, 1, 200));
    (200..221).for_each(|piece| descriptor(piece, 0, 0xc000, 1, piece + 1));
    descriptor(221, 32, 1, 2, 0);
    seed.extend([step::HEADER, 8, 0, 0, 1, 0, 0]);
    (0..200).for_each(|head| seed.extend([step::OFFER, head]));
    seed.extend([step::RUN, step::KILL, 2, 1, step::RUN]);
    seed
}

/// Requests in flight, some of them carried out, and processes that are killed: nobody has tampered, somebody has, and the
/// frontend counts what was taken.
fn killed() -> Vec<u8> {
    let mut seed = Vec::new();
    for kill in [&[0][..], &[3, 2], &[8], &[0x20, 7, 2], &[0x41, 16, 3, 17, 0x24], &[0xc, 5, 0]] {
        for (kind, first) in [(0, 0x10), (1, 0x14), (4, 0x28), (6, 0x1c)] {
            seed.extend([step::REQUEST, kind, first, 0, first]);
        }
        seed.extend([step::RUN, step::COMPLETE, 1, step::COMPLETE, 0x80, step::RUN, step::KILL]);
        seed.extend(kill);
        seed.extend([step::RUN, step::COMPLETE, 2, step::RUN]);
        seed.extend([step::RESTART, 0]);
    }
    seed
}
