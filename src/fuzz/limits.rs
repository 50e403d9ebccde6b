//! How much memory an input may take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What everything may take, in bytes: most of it is for one frame of a layer, in a vector that grew to hold it.
const BASE: usize = 160 << 20;

/// What each byte of an input may take besides. A byte of a table of contents can stand for a whole path.
const FACTOR: usize = 8 << 10;

thread_local! {
    /// Bytes that this thread holds now, and the most that it has held since it was last asked.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// The system's allocator, counting what each thread holds. What one thread gives to another is counted wrong, which is
/// why a count never goes below zero.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(more: usize, less: usize) {
    // A thread that ends has nothing to count with.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = now.saturating_add(more).saturating_sub(less);
        held.set((now, most.max(now)));
    });
}

// SAFETY: everything is done by the system's allocator; counting touches a cell without a destructor and allocates nothing.
#[expect(unsafe_code, reason = "an allocator is unsafe by its nature")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of the same function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs `work`, which may not hold more memory at a time than an input of this length explains.
pub(super) fn bounded(length: usize, work: impl FnOnce()) {
    let (before, _) = HELD.get();
    HELD.set((before, before));
    work();
    let (_, most) = HELD.get();
    let allowed = BASE + length * FACTOR;
    let taken = most - before;
    assert!(taken <= allowed, "{length} bytes of input took {taken} bytes of memory, more than {allowed}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_much_is_noticed() {
        bounded(0, || drop(vec![0_u8; BASE / 2]));
        let result = std::panic::catch_unwind(|| bounded(0, || drop(vec![0_u8; BASE + 1])));
        assert!(result.is_err());
    }
}
