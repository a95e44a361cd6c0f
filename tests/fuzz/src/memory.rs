//! Counts what is allocated, so that an input that takes too much is a failure wherever it is run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn add(len: usize) {
    let now = NOW.fetch_add(len, Ordering::Relaxed) + len;
    MOST.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: all is done by the system's allocator; counting takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        // Both may be there for a moment.
        add(len);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(pointer, layout, len) }
    }
}

/// Does `work`, which must not have more than `limit` bytes allocated at any time. One at a time in a process: what
/// other threads allocate counts as well.
///
/// # Panics
/// When it has more.
pub fn bounded<R>(limit: usize, work: impl FnOnce() -> R) -> R {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = work();
    let taken = MOST.load(Ordering::Relaxed).saturating_sub(before);
    assert!(taken <= limit, "{taken} bytes were allocated, more than {limit}");
    result
}
