//! Guest memory with a border around it that nobody may touch.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionCollection, GuestRegionMmap};

const PAGE: usize = 4096;

/// What the borders are filled with.
pub const BORDER: [u8; 16] = *b"\xc5not the guest's";

/// Regions: guest address and length. The first two are one to the guest, and apart; they end amid pages.
const REGIONS: [(u64, usize); 3] = [(0, 60_000), (60_000, 50_001), (1 << 40, 4096)];
/// Another memory table: the second region is elsewhere, the third is gone.
const OTHER: [(u64, usize); 2] = [(0, 60_000), (1 << 32, 50_001)];

/// End of the lowest memory, as the guest sees it.
pub const LOW_END: u64 = REGIONS[0].1 as u64 + REGIONS[1].1 as u64;

/// Mappings that are used again for every input.
pub struct Guest {
    /// Where each region begins, between two borders.
    regions: [*mut u8; 3],
}

// SAFETY: the mappings are never taken away, and touched only as memory that anybody may change.
unsafe impl Send for Guest {}
// SAFETY: as above.
unsafe impl Sync for Guest {}

fn whole(len: usize) -> usize {
    len.next_multiple_of(PAGE) + 2 * PAGE
}

/// What the mappings hold before an input is played.
fn clean() -> &'static [Vec<u8>; 3] {
    static CLEAN: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
        REGIONS.map(|(_, len)| {
            let mut bytes: Vec<u8> = BORDER.iter().copied().cycle().take(whole(len)).collect();
            bytes[PAGE..PAGE + len].fill(0);
            bytes
        })
    });
    &CLEAN
}

impl Guest {
    /// Maps them.
    ///
    /// # Panics
    /// When there is no memory.
    #[must_use]
    pub fn new() -> Self {
        let regions = REGIONS.map(|(_, len)| {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), whole(len), protection, flags, -1, 0) };
            assert_ne!(at, libc::MAP_FAILED);
            // SAFETY: within the mapping.
            unsafe { at.cast::<u8>().add(PAGE) }
        });
        Guest { regions }
    }

    /// Zeros, and borders around them.
    pub fn clear(&self) {
        for (mapping, image) in self.mappings().zip(clean()) {
            // SAFETY: the whole mapping, which nobody else uses now.
            unsafe { mapping.copy_from_nonoverlapping(image.as_ptr(), image.len()) };
        }
    }

    /// Whether the borders are as they were. Nobody may be using the memory any more.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.mappings().zip(clean()).zip(REGIONS).all(|((mapping, image), (_, len))| {
            // SAFETY: the whole mapping, which nobody else uses now.
            let bytes = unsafe { std::slice::from_raw_parts(mapping, image.len()) };
            bytes[..PAGE] == image[..PAGE] && bytes[PAGE + len..] == image[PAGE + len..]
        })
    }

    /// Where each mapping begins, the border before the region.
    fn mappings(&self) -> impl Iterator<Item = *mut u8> {
        // SAFETY: the region begins a page behind its mapping's beginning.
        self.regions.into_iter().map(|start| unsafe { start.sub(PAGE) })
    }

    /// A memory table; the one at the beginning, or the other.
    ///
    /// # Panics
    /// Never: the tables are sound.
    #[must_use]
    pub fn table(&self, other: bool) -> GuestMemoryMmap<()> {
        let regions: &[(u64, usize)] = if other { &OTHER } else { &REGIONS };
        let regions = regions.iter().zip(self.regions).map(|(&(address, len), start)| {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: mapped, and for ever.
            let mapping = unsafe {
                MmapRegion::build_raw(start, len, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            };
            GuestRegionMmap::new(mapping.expect("a sound mapping"), GuestAddress(address)).expect("a region")
        });
        GuestRegionCollection::from_regions(regions.collect()).expect("a sound table")
    }

    /// Changes low memory from `start` on until it is told to stop, as other virtual CPUs do.
    pub fn scribble(&self, start: u64, len: u64, seed: u8, stop: &AtomicBool) {
        let mut value = seed;
        while !stop.load(Ordering::Relaxed) {
            for at in (start..start.saturating_add(len).min(REGIONS[0].1 as u64)).step_by(3) {
                value = value.wrapping_mul(37).wrapping_add(11);
                // SAFETY: within the first region.
                unsafe { AtomicU8::from_ptr(self.regions[0].add(at as usize)) }
                    .store(value, Ordering::Relaxed);
            }
            std::hint::spin_loop();
        }
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}
