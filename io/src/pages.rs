//! Aligned memory straight from the kernel: what block buffers are made of.
//!
//! This file owns the mapping, and how many mappings it takes. Buffers do not come from the
//! allocator: freed on another core than the one that took them, as most are, they would stay with
//! it for long and in no account. It never says how much memory there may be;
//! [`crate::buffer::Pool`] does.

use crate::buffer::PAGE;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Smallest region that is mapped. Smaller ones come from the allocator: a process may have some
/// 65,000 mappings, and a cache of tiny objects would need more.
const MAPPED_BYTES_MIN: usize = 64 << 10;

/// A huge page of x86-64 and of arm64 with 4 KiB pages. A region whose second page begins one, and
/// that holds one at least, asks for huge pages: one fault in place of 512 on first use, and the
/// kernel pins a disk write's pages by the folio.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Mappings that the kernel allows a process unless an administrator says otherwise.
const MAPPINGS_MAX_DEFAULT: usize = 65_530;

/// Mappings that a region on huge pages takes: its first page, and what asks for huge pages. Others
/// lie side by side and are one to the kernel, however many.
const MAPPINGS_PER_HUGE_REGION: usize = 2;

/// The regions on huge pages that there are and may be at a time. A process that has all the
/// mappings that it may have gets no memory at all, so there is a bound below that: the rest lies
/// on small pages.
struct HugeRegions {
    count: AtomicUsize,
    max: usize,
}

impl HugeRegions {
    /// The process's.
    fn shared() -> &'static HugeRegions {
        static SHARED: OnceLock<HugeRegions> = OnceLock::new();
        SHARED.get_or_init(|| {
            let setting = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
            let setting = setting.and_then(|text| text.trim().parse().ok());
            HugeRegions::for_mappings(setting.unwrap_or(MAPPINGS_MAX_DEFAULT))
        })
    }

    /// Half of the mappings that a process may have, for these regions.
    fn for_mappings(mappings_max: usize) -> HugeRegions {
        HugeRegions {
            count: AtomicUsize::new(0),
            max: mappings_max / 2 / MAPPINGS_PER_HUGE_REGION,
        }
    }

    /// Counts one more, if there may be.
    fn enter(&self) -> bool {
        let entered = self.count.fetch_add(1, Ordering::Relaxed) < self.max;
        if !entered {
            self.leave();
        }
        entered
    }

    fn leave(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An owned, page-aligned region whose every byte is initialised.
pub(crate) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
    /// Where it is counted as one on huge pages.
    counted: Option<&'static HugeRegions>,
}

// SAFETY: `Pages` owns its memory exclusively, like a `Box<[u8]>`.
unsafe impl Send for Pages {}
// SAFETY: `&Pages` gives no access to the bytes; who shares them governs that.
unsafe impl Sync for Pages {}

impl Pages {
    /// A region of zeroes.
    pub(crate) fn new(bytes: usize) -> Pages {
        Pages::counted_by(HugeRegions::shared(), bytes)
    }

    fn counted_by(huge_regions: &'static HugeRegions, bytes: usize) -> Pages {
        assert!(bytes > 0 && bytes.is_multiple_of(PAGE));
        let layout = Pages::layout(bytes);
        let is_huge = bytes >= PAGE + HUGE_PAGE_BYTES && huge_regions.enter();
        let start = if is_huge {
            map_huge(bytes)
        } else if bytes >= MAPPED_BYTES_MIN {
            map(bytes)
        } else {
            // SAFETY: the layout's size is not zero.
            unsafe { alloc_zeroed(layout) }
        };
        match NonNull::new(start) {
            Some(start) => Pages {
                start,
                bytes,
                counted: is_huge.then_some(huge_regions),
            },
            None => handle_alloc_error(layout),
        }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, PAGE).expect("sizes are small constants")
    }

    /// Its first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Whether it is a mapping of its own, and so shares no page with anything else.
    pub(crate) fn is_mapped(&self) -> bool {
        self.bytes >= MAPPED_BYTES_MIN
    }

    /// Gives the memory back to the kernel, not the addresses; returns whether it could. The
    /// bytes are zeroes then, on other pages: who still refers to the old ones keeps them as they
    /// were. Mappings are kept because each hole among them would count as one more.
    pub(crate) fn cool(&mut self) -> bool {
        if !self.is_mapped() {
            return false;
        }
        // SAFETY: a mapping of our own, private and anonymous, which nobody else refers to.
        let outcome =
            unsafe { libc::madvise(self.start.as_ptr().cast(), self.bytes, libc::MADV_DONTNEED) };
        outcome == 0
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if !self.is_mapped() {
            // SAFETY: allocated in `new` with the same layout, freed once.
            unsafe { dealloc(self.start.as_ptr(), Pages::layout(self.bytes)) }
        } else {
            // SAFETY: mapped in `new` with this length, and nobody refers to it any more.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
        if let Some(huge_regions) = self.counted {
            huge_regions.leave();
        }
    }
}

/// Maps fresh memory; null if the kernel refuses. What follows the region's first page, which is a
/// buffer's body, lies on huge pages where the system grants them to who asks.
fn map_huge(bytes: usize) -> *mut u8 {
    let whole = map(bytes + HUGE_PAGE_BYTES);
    if whole.is_null() {
        return whole;
    }
    let body = (whole as usize + PAGE).next_multiple_of(HUGE_PAGE_BYTES);
    let before = body - PAGE - whole as usize;
    let after = HUGE_PAGE_BYTES - before;
    let start = whole.wrapping_add(before);
    // SAFETY: both ends and the region between lie in the mapping that was just made, in whole
    // pages, and nothing refers to them yet. An empty end is not unmapped: `munmap` refuses that.
    // The advice changes no byte; where it is not taken, the pages are small.
    unsafe {
        if before > 0 {
            libc::munmap(whole.cast(), before);
        }
        if after > 0 {
            libc::munmap(start.wrapping_add(bytes).cast(), after);
        }
        libc::madvise(
            start.wrapping_add(PAGE).cast(),
            (bytes - PAGE) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES,
            libc::MADV_HUGEPAGE,
        );
    }
    start
}

/// Maps fresh memory; null if the kernel refuses. It asks for the addresses below what was mapped
/// last: side by side, regions are one mapping. Some kernels (6.7 to 6.11) would leave gaps between
/// large ones.
fn map(bytes: usize) -> *mut u8 {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    let wish = LAST.load(Ordering::Relaxed).saturating_sub(bytes);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: without MAP_FIXED a new mapping touches no memory that is in use: the address is a
    // wish, and the kernel chooses another where it cannot be had.
    let start = unsafe { libc::mmap(wish as *mut _, bytes, access, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return std::ptr::null_mut();
    }
    LAST.store(start as usize, Ordering::Relaxed);
    start.cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_of_both_kinds_are_zero_aligned_and_writable() {
        for bytes in [PAGE, MAPPED_BYTES_MIN, (1 << 20) + PAGE, (4 << 20) + PAGE] {
            let mut pages = Pages::new(bytes);
            assert!((pages.start() as usize).is_multiple_of(PAGE));
            // SAFETY: the region is ours and initialised, and lives to the end of the loop.
            let all = unsafe { std::slice::from_raw_parts_mut(pages.start(), bytes) };
            assert!(all.iter().all(|byte| *byte == 0));
            all.fill(7);
            if pages.cool() {
                // SAFETY: as above; the former slice is not used any more.
                let all = unsafe { std::slice::from_raw_parts(pages.start(), bytes) };
                assert!(all.iter().all(|byte| *byte == 0));
            } else {
                assert_eq!(bytes, PAGE);
            }
        }
    }

    #[test]
    fn a_large_body_begins_on_a_huge_page_and_nothing_more_stays_mapped() {
        for _ in 0..16 {
            let pages = Pages::new(PAGE + HUGE_PAGE_BYTES);
            let body = pages.start() as usize + PAGE;
            assert!(body.is_multiple_of(HUGE_PAGE_BYTES));
            let maps = std::fs::read_to_string("/proc/self/smaps").expect("procfs");
            let range = format!("{body:x}-{:x} ", body + HUGE_PAGE_BYTES);
            let (_, mine) = maps.split_once(&range).expect("a mapping of its own");
            let flags = mine.split("VmFlags:").nth(1).expect("flags");
            let flags = flags.lines().next().expect("a line");
            assert!(flags.split_whitespace().any(|flag| flag == "hg"), "{flags}");
        }
    }
    #[test]
    fn beyond_their_bound_large_regions_take_no_mapping_of_their_own() {
        let huge_regions: &'static HugeRegions =
            Box::leak(Box::new(HugeRegions::for_mappings(3 * 4)));
        let region = || Pages::counted_by(huge_regions, PAGE + HUGE_PAGE_BYTES);
        let mappings = || {
            let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
            maps.lines().count()
        };
        let is_huge = |pages: &Pages| pages.counted.is_some();
        let (before, mut regions) = (mappings(), Vec::new());
        regions.extend((0..200).map(|_| region()));
        assert!(regions[..3].iter().all(is_huge) && !regions[3..].iter().any(is_huge));
        // Tests beside this one map something too, but not that much.
        assert!(mappings() < before + 150, "{before} {}", mappings());
        drop(regions.remove(0));
        assert!(is_huge(&region()) && is_huge(&region()));
        assert_eq!(huge_regions.count.load(Ordering::Relaxed), 2);
    }
}
