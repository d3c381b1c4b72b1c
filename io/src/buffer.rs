//! Aligned memory that disk, network and store share without copying.
//!
//! A buffer is one 4 KiB-aligned allocation: a *headroom* page, which only the owner of the write
//! side and the disk ever see, then a *body* that grows from the front up to its *watermark*.
//! One [`BufferWriter`] appends; any number of [`View`]s and [`Watch`]es, on any core, read bytes
//! below the watermark while it still grows. When the last of them is gone the memory returns
//! to its pool, from whichever thread that happens on, without a lock.
//!
//! This file never does I/O and never hands out a byte above the watermark.

mod arriving;

pub use arriving::Arriving;

use crate::line::{Line, Place};
use crate::pages::Pages;
use crossbeam_queue::{ArrayQueue, SegQueue};
use std::future::poll_fn;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::task::{Poll, Waker};

/// Alignment and granularity of direct I/O. 4096 whatever the device claims: the largest logical
/// sector in use, and what `statx` reports on none of the file systems here exceeds it.
pub const PAGE: usize = 4096;

/// Largest body a pool hands out: the largest block, 8 MiB.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// Body capacities are powers of two from one page to [`BODY_BYTES_MAX`]: 12 classes.
const CLASS_COUNT: usize = (BODY_BYTES_MAX / PAGE).trailing_zeros() as usize + 1;

/// Freed buffers kept per class for reuse, in bytes. Fresh memory costs a page fault per page,
/// several times the price of reading a block from the page cache, so a burst's worth is kept.
const CLASS_KEEP_BYTES: usize = 64 << 20;

const _: () = assert!(BODY_BYTES_MAX.is_power_of_two() && BODY_BYTES_MAX >= PAGE);

/// Rounds up to whole pages.
pub const fn page_align(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE)
}

/// The source of block buffers, with a budget in bytes that it never exceeds. Clones are the same
/// pool; all cores share one, without a lock.
#[derive(Clone)]
pub struct Pool(Arc<PoolShared>);

struct PoolShared {
    budget_bytes: usize,
    /// Bytes handed out.
    used_bytes: AtomicUsize,
    /// Bytes in `free`: `used_bytes + kept_bytes <= budget_bytes`, but for what is just changing
    /// hands.
    kept_bytes: AtomicUsize,
    free: [ArrayQueue<Memory>; CLASS_COUNT],
    /// Addresses without memory: at most as many of a class as were once handed out at a time.
    cold: [SegQueue<Memory>; CLASS_COUNT],
    line: Line,
}

/// An owned aligned region: headroom page plus body.
struct Memory {
    pages: Pages,
    class: usize,
}

impl Memory {
    fn new(class: usize) -> Memory {
        Memory {
            pages: Pages::new(cost_of(class)),
            class,
        }
    }

    fn start(&self) -> *mut u8 {
        self.pages.start()
    }

    fn is_mapped(&self) -> bool {
        self.pages.is_mapped()
    }
}

/// Bytes of budget that a buffer of a class takes.
const fn cost_of(class: usize) -> usize {
    PAGE + (PAGE << class)
}

impl Pool {
    /// A pool that hands out at most `budget_bytes` at a time.
    pub fn new(budget_bytes: usize) -> Pool {
        let free = std::array::from_fn(|class| {
            ArrayQueue::new((CLASS_KEEP_BYTES / (PAGE << class)).clamp(8, 1024))
        });
        Pool(Arc::new(PoolShared {
            budget_bytes,
            used_bytes: AtomicUsize::new(0),
            kept_bytes: AtomicUsize::new(0),
            free,
            cold: std::array::from_fn(|_| SegQueue::new()),
            line: Line::new(),
        }))
    }

    /// A buffer whose body holds at least `body_bytes`, if the budget allows it now and nobody waits
    /// for it.
    ///
    /// # Panics
    /// If `body_bytes` exceeds [`BODY_BYTES_MAX`]: callers know their block sizes.
    pub fn try_take(&self, body_bytes: usize) -> Option<BufferWriter> {
        let class = class_of(body_bytes);
        let is_reserved = self.0.line.is_empty() && self.0.reserve(cost_of(class));
        is_reserved.then(|| self.reserved(class))
    }

    /// As [`Pool::try_take`], waiting until other buffers are given back. Who came first is served
    /// first.
    ///
    /// # Panics
    /// If the whole budget is not enough.
    pub async fn take(&self, body_bytes: usize) -> BufferWriter {
        let class = class_of(body_bytes);
        self.wait_for(cost_of(class)).await;
        self.reserved(class)
    }

    /// Two buffers, waited for as one: of several who held one of two and waited for the other, none
    /// might ever go on.
    pub async fn take_two(&self, first: usize, second: usize) -> (BufferWriter, BufferWriter) {
        let (first, second) = (class_of(first), class_of(second));
        self.wait_for(cost_of(first) + cost_of(second)).await;
        (self.reserved(first), self.reserved(second))
    }

    /// Reserves `cost` bytes of the budget.
    async fn wait_for(&self, cost: usize) {
        let budget = self.0.budget_bytes;
        assert!(cost <= budget, "{cost} bytes of {budget}: all would wait");
        if self.0.line.is_empty() && self.0.reserve(cost) {
            return;
        }
        let turn = Turn {
            pool: &self.0,
            place: self.0.line.join(cost),
        };
        self.0.serve_line();
        poll_fn(|cx| turn.place.poll(cx)).await;
    }

    /// A buffer whose cost is reserved.
    fn reserved(&self, class: usize) -> BufferWriter {
        let memory = self.0.unkeep(class).unwrap_or_else(|| {
            self.0.trim();
            self.0.cold[class]
                .pop()
                .unwrap_or_else(|| Memory::new(class))
        });
        BufferWriter {
            backing: Arc::new(Backing {
                memory: Some(memory),
                pool: self.0.clone(),
                filled: AtomicUsize::new(0),
                state: AtomicU8::new(FILLING),
                is_lent: AtomicBool::new(false),
                waiting: SegQueue::new(),
            }),
        }
    }

    /// Bytes handed out now, headroom and rounding included.
    pub fn used_bytes(&self) -> usize {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// Bytes handed out before and kept to be handed out again. With those in use they stay within
    /// the budget.
    pub fn kept_bytes(&self) -> usize {
        self.0.kept_bytes.load(Ordering::Relaxed)
    }

    /// The most bytes that can be handed out.
    pub fn budget_bytes(&self) -> usize {
        self.0.budget_bytes
    }
}

/// A wait for budget, which leaves the line when it is dropped.
struct Turn<'a> {
    pool: &'a PoolShared,
    place: Arc<Place>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        match self.pool.line.leave(&self.place) {
            0 => self.pool.serve_line(),
            unused => self.pool.give_back(unused),
        }
    }
}

impl PoolShared {
    fn reserve(&self, cost: usize) -> bool {
        let mut used = self.used_bytes.load(Ordering::SeqCst);
        while used + cost <= self.budget_bytes {
            match self.used_bytes.compare_exchange_weak(
                used,
                used + cost,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => return true,
                Err(now) => used = now,
            }
        }
        false
    }

    fn release(&self, cost: usize) {
        self.used_bytes.fetch_sub(cost, Ordering::SeqCst);
    }

    /// Returns budget to those who wait.
    fn give_back(&self, cost: usize) {
        self.release(cost);
        self.serve_line();
    }

    fn serve_line(&self) {
        self.line
            .serve(|cost| self.reserve(cost), |cost| self.release(cost));
    }

    /// Keeps memory for reuse; beyond a full free list only its addresses.
    fn keep(&self, memory: Memory) {
        let (class, cost) = (memory.class, cost_of(memory.class));
        self.kept_bytes.fetch_add(cost, Ordering::AcqRel);
        if let Err(memory) = self.free[class].push(memory) {
            self.kept_bytes.fetch_sub(cost, Ordering::AcqRel);
            self.cool(memory);
        }
    }

    fn cool(&self, mut memory: Memory) {
        if memory.pages.cool() {
            self.cold[memory.class].push(memory);
        }
    }

    /// Kept memory of a class, if there is any.
    fn unkeep(&self, class: usize) -> Option<Memory> {
        let memory = self.free[class].pop()?;
        self.kept_bytes.fetch_sub(cost_of(class), Ordering::AcqRel);
        Some(memory)
    }

    /// Frees kept memory, the largest first, until all of it is within the budget: what one kind
    /// of traffic has left behind must not come on top of what another takes.
    fn trim(&self) {
        for class in (0..CLASS_COUNT).rev() {
            let held = || {
                self.used_bytes.load(Ordering::Acquire) + self.kept_bytes.load(Ordering::Acquire)
            };
            while held() > self.budget_bytes
                && let Some(memory) = self.unkeep(class)
            {
                self.cool(memory);
            }
        }
    }
}

/// The smallest class whose body holds `body_bytes`.
fn class_of(body_bytes: usize) -> usize {
    assert!(
        body_bytes <= BODY_BYTES_MAX,
        "no block is larger than {BODY_BYTES_MAX} bytes"
    );
    (body_bytes.max(PAGE).next_power_of_two() / PAGE).trailing_zeros() as usize
}

const FILLING: u8 = 0;
const FINISHED: u8 = 1;
const FAILED: u8 = 2;

struct Backing {
    /// `None` only while dropping.
    memory: Option<Memory>,
    pool: Arc<PoolShared>,
    /// Body bytes below this are final and readable by anyone; those above belong to the writer.
    filled: AtomicUsize,
    state: AtomicU8,
    /// Whether the kernel may refer to its pages for longer than this lives; see [`View::lend`].
    is_lent: AtomicBool,
    waiting: SegQueue<Waker>,
}

impl Backing {
    fn start(&self) -> *mut u8 {
        self.memory.as_ref().expect("present until drop").start()
    }

    fn body_capacity(&self) -> usize {
        PAGE << self.memory.as_ref().expect("present until drop").class
    }

    /// Ends the filling as `state` says, unless it has ended.
    fn end(&self, state: u8) {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let _ = self
            .state
            .compare_exchange(FILLING, state, success, failure);
        self.wake_readers();
    }

    fn wake_readers(&self) {
        while let Some(waker) = self.waiting.pop() {
            waker.wake();
        }
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        let memory = self.memory.take().expect("dropped once");
        let cost = cost_of(memory.class);
        if self.is_lent.load(Ordering::Acquire) {
            // Fresh pages for the next user: these still carry bytes that are on their way.
            self.pool.cool(memory);
        } else {
            self.pool.keep(memory);
        }
        self.pool.give_back(cost);
    }
}

/// The write side of a buffer. There is exactly one per buffer; it may move between threads.
pub struct BufferWriter {
    backing: Arc<Backing>,
}

impl BufferWriter {
    /// Body bytes that can be held in all.
    pub fn capacity(&self) -> usize {
        self.backing.body_capacity()
    }

    /// Body bytes below the watermark.
    pub fn filled(&self) -> usize {
        self.backing.filled.load(Ordering::Relaxed)
    }

    /// The headroom page.
    pub fn headroom_mut(&mut self) -> &mut [u8] {
        // SAFETY: the first page is inside the allocation; only the one writer (`&mut self`) and,
        // after it was consumed by `freeze`, `Frozen` reach it: views begin at the body.
        unsafe { std::slice::from_raw_parts_mut(self.backing.start(), PAGE) }
    }

    /// The part of the body above the watermark.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let filled = self.filled();
        let capacity = self.capacity();
        // SAFETY: bytes above the watermark are reachable only through the one writer
        // (`&mut self`): readers bound every slice by `filled`, which only `advance` raises.
        unsafe {
            let body = self.backing.start().add(PAGE);
            std::slice::from_raw_parts_mut(body.add(filled), capacity - filled)
        }
    }

    /// Publishes the next `count` bytes, which the caller has just written to the front of
    /// [`BufferWriter::spare_mut`], and wakes readers.
    pub fn advance(&mut self, count: usize) {
        let filled = self.filled() + count;
        assert!(
            filled <= self.capacity(),
            "a body does not outgrow its buffer"
        );
        // Release: a reader that sees the new watermark sees the bytes below it.
        self.backing.filled.store(filled, Ordering::Release);
        self.backing.wake_readers();
    }

    /// Copies `bytes` in and publishes them.
    pub fn append(&mut self, bytes: &[u8]) {
        self.spare_mut()[..bytes.len()].copy_from_slice(bytes);
        self.advance(bytes.len());
    }

    /// The bytes below the watermark.
    pub fn body(&self) -> &[u8] {
        // SAFETY: below the watermark nothing is ever written again.
        unsafe { std::slice::from_raw_parts(self.backing.start().add(PAGE), self.filled()) }
    }

    /// A reader that follows the watermark.
    pub fn watch(&self) -> Watch {
        Watch {
            backing: self.backing.clone(),
        }
    }

    /// Says that no more bytes will come and the body is good. Readers who were told before that it
    /// failed are told nothing else.
    pub fn finish(&mut self) {
        self.backing.end(FINISHED);
    }

    /// Says that no more bytes will come because the source failed; readers learn it.
    pub fn fail(&mut self) {
        self.backing.end(FAILED);
    }

    /// Gives up writing: zeroes from the watermark to the page boundary, so that no earlier
    /// user's bytes reach the disk, and returns the whole for I/O.
    pub fn freeze(mut self) -> Frozen {
        let tail = page_align(self.filled()) - self.filled();
        self.spare_mut()[..tail].fill(0);
        self.finish();
        Frozen {
            backing: self.backing.clone(),
        }
    }

    /// Headroom and body as one region for a read from disk.
    ///
    /// # Panics
    /// If `range` (counted from the start of the headroom) leaves the buffer or touches bytes
    /// below the watermark.
    pub(crate) fn io_target(&mut self, range: Range<usize>) -> NonNull<[u8]> {
        assert!(range.start <= range.end && range.end <= PAGE + self.capacity());
        assert!(self.filled() == 0, "disk reads fill fresh buffers");
        // SAFETY: inside the allocation by the first assertion.
        let start = unsafe { self.backing.start().add(range.start) };
        let start = NonNull::new(start).expect("inside an allocation");
        NonNull::slice_from_raw_parts(start, range.len())
    }
}

impl Drop for BufferWriter {
    fn drop(&mut self) {
        // A writer that vanishes unfinished (a panic, a cancelled task) must not strand readers.
        self.fail();
    }
}

/// A complete buffer whose every byte, headroom included, is final: what a disk write takes.
#[derive(Clone)]
pub struct Frozen {
    backing: Arc<Backing>,
}

impl Frozen {
    /// The headroom page and the body padded with zeroes to whole pages, contiguous.
    pub fn record(&self) -> &[u8] {
        let length = PAGE + page_align(self.backing.filled.load(Ordering::Acquire));
        // SAFETY: the writer is gone (`freeze` consumed it), so nothing writes any more.
        unsafe { std::slice::from_raw_parts(self.backing.start(), length) }
    }

    /// The headroom page.
    pub fn headroom(&self) -> &[u8] {
        &self.record()[..PAGE]
    }

    /// The body.
    pub fn view(&self) -> View {
        Watch {
            backing: self.backing.clone(),
        }
        .view_all()
    }
}

/// Immutable bytes of a buffer, shared and sliced without copying; may cross cores.
#[derive(Clone)]
pub struct View {
    backing: Option<Arc<Backing>>,
    start: usize,
    length: usize,
}

impl View {
    /// No bytes.
    pub fn empty() -> View {
        View {
            backing: None,
            start: 0,
            length: 0,
        }
    }

    /// A part of it.
    ///
    /// # Panics
    /// If `range` is not inside.
    pub fn slice(&self, range: Range<usize>) -> View {
        assert!(range.start <= range.end && range.end <= self.length);
        View {
            backing: self.backing.clone(),
            start: self.start + range.start,
            length: range.len(),
        }
    }

    /// As [`bytes::Bytes`], without copying.
    pub fn into_bytes(self) -> bytes::Bytes {
        bytes::Bytes::from_owner(self)
    }

    /// Prepares the pages to be lent to the kernel, which may then refer to them for as long as it
    /// likes, whatever becomes of this view: when the buffer's last user is gone its pages are
    /// given up, not filled again. Returns whether they may be lent; those of the smallest
    /// buffers may not, since other memory lies on them.
    pub fn lend(&self) -> bool {
        let Some(backing) = &self.backing else {
            return false;
        };
        let is_mapped = backing.memory.as_ref().is_some_and(Memory::is_mapped);
        if is_mapped {
            backing.is_lent.store(true, Ordering::Release);
        }
        is_mapped
    }

    /// Bytes of pool budget that this view keeps taken.
    pub fn pinned_bytes(&self) -> usize {
        self.backing
            .as_ref()
            .map_or(0, |backing| PAGE + backing.body_capacity())
    }
}

impl Deref for View {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.backing {
            None => &[],
            // SAFETY: `start + length` was at most the watermark when the view was made, and
            // below the watermark nothing is ever written again.
            Some(backing) => unsafe {
                std::slice::from_raw_parts(backing.start().add(PAGE + self.start), self.length)
            },
        }
    }
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The source of a buffer's bytes failed before the body was complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillFailed;

/// Follows a buffer while it fills, from any core.
#[derive(Clone)]
pub struct Watch {
    backing: Arc<Backing>,
}

impl Watch {
    /// Body bytes readable now.
    pub fn filled(&self) -> usize {
        self.backing.filled.load(Ordering::Acquire)
    }

    /// Whether the body is complete.
    pub fn is_finished(&self) -> bool {
        self.backing.state.load(Ordering::Acquire) == FINISHED
    }

    /// Waits until at least `count` body bytes are readable and returns how many are. Fewer only
    /// when the body is complete.
    pub async fn wait_for(&self, count: usize) -> Result<usize, FillFailed> {
        poll_fn(|cx| {
            if let Some(answer) = self.progress(count) {
                return Poll::Ready(answer);
            }
            self.backing.waiting.push(cx.waker().clone());
            match self.progress(count) {
                Some(answer) => Poll::Ready(answer),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Tells all readers that no more bytes will come, as if the source had failed: for whoever
    /// sees that it takes too long. What comes all the same can be read.
    pub fn give_up(&self) {
        self.backing.end(FAILED);
    }

    fn progress(&self, count: usize) -> Option<Result<usize, FillFailed>> {
        // The state first: the watermark never moves after FINISHED.
        let state = self.backing.state.load(Ordering::Acquire);
        let filled = self.filled();
        match state {
            _ if filled >= count => Some(Ok(filled)),
            FINISHED => Some(Ok(filled)),
            FAILED => Some(Err(FillFailed)),
            _ => None,
        }
    }

    /// Readable bytes as a view.
    ///
    /// # Panics
    /// If `range` reaches above the watermark.
    pub fn view(&self, range: Range<usize>) -> View {
        assert!(range.start <= range.end && range.end <= self.filled());
        View {
            backing: Some(self.backing.clone()),
            start: range.start,
            length: range.len(),
        }
    }

    /// All readable bytes.
    pub fn view_all(&self) -> View {
        self.view(0..self.filled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::executor::block_on;

    #[test]
    fn what_is_kept_for_reuse_is_inside_the_budget() {
        let budget = 4 * (PAGE + (1 << 20));
        let pool = Pool::new(budget);
        let large: Vec<_> = (0..4).map_while(|_| pool.try_take(1 << 20)).collect();
        assert_eq!((large.len(), pool.kept_bytes()), (4, 0));
        drop(large);
        assert_eq!((pool.used_bytes(), pool.kept_bytes()), (0, budget));
        let mut small = Vec::new();
        while let Some(buffer) = pool.try_take(PAGE) {
            small.push(buffer);
            assert!(pool.used_bytes() + pool.kept_bytes() <= budget);
        }
        assert!(small.len() > 500);
        drop(small);
        assert!(pool.kept_bytes() <= budget);
        assert!(pool.try_take(1 << 20).is_some());
    }

    #[test]
    fn sizes_round_to_classes() {
        assert_eq!(class_of(0), 0);
        assert_eq!(class_of(PAGE), 0);
        assert_eq!(class_of(PAGE + 1), 1);
        assert_eq!(class_of(BODY_BYTES_MAX), CLASS_COUNT - 1);
    }

    #[test]
    fn the_budget_is_kept_and_waiters_are_served() {
        let pool = Pool::new(2 * PAGE);
        let first = pool.try_take(100).expect("room for one");
        assert!(pool.try_take(1).is_none());
        let mut waiting = Box::pin(pool.take(1));
        assert!((&mut waiting).now_or_never().is_none());
        let view = first.watch().view_all();
        drop(first);
        assert!(
            (&mut waiting).now_or_never().is_none(),
            "a view keeps its memory taken"
        );
        drop(view);
        assert!((&mut waiting).now_or_never().is_some());
        drop(waiting);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn memory_is_aligned_reused_and_padded_with_zeroes() {
        let pool = Pool::new(1 << 20);
        let mut dirty = pool.try_take(PAGE).expect("room");
        assert_eq!(dirty.headroom_mut().as_ptr() as usize % PAGE, 0);
        dirty.spare_mut().fill(0xee);
        drop(dirty);
        let mut writer = pool.try_take(PAGE).expect("room");
        writer.append(b"hello");
        writer.headroom_mut().fill(1);
        let frozen = writer.freeze();
        assert_eq!(frozen.record().len(), 2 * PAGE);
        assert_eq!(&frozen.record()[PAGE..PAGE + 5], b"hello");
        assert!(frozen.record()[PAGE + 5..].iter().all(|b| *b == 0));
        assert_eq!(&*frozen.view(), b"hello");
    }

    #[test]
    fn readers_follow_a_fill_on_another_thread() {
        const LENGTH: usize = 1 << 20;
        let pool = Pool::new(4 << 20);
        let mut writer = pool.try_take(LENGTH).expect("room");
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let watch = writer.watch();
                std::thread::spawn(move || {
                    block_on(async {
                        let mut seen = 0;
                        while seen < LENGTH {
                            let filled = watch.wait_for(seen + 1).await.expect("no failure");
                            let part = watch.view(seen..filled);
                            for (i, byte) in part.iter().enumerate() {
                                assert_eq!(*byte, ((seen + i) % 251) as u8);
                            }
                            seen = filled;
                        }
                    });
                })
            })
            .collect();
        let content: Vec<u8> = (0..LENGTH).map(|i| (i % 251) as u8).collect();
        for piece in content.chunks(7919) {
            writer.append(piece);
        }
        writer.finish();
        for reader in readers {
            reader.join().expect("reader thread");
        }
    }

    #[test]
    fn a_failed_or_abandoned_fill_tells_its_readers() {
        let pool = Pool::new(1 << 20);
        let mut writer = pool.try_take(100).expect("room");
        writer.append(b"abc");
        let watch = writer.watch();
        assert_eq!(block_on(watch.wait_for(3)), Ok(3));
        let mut waiting = Box::pin(watch.wait_for(4));
        assert!((&mut waiting).now_or_never().is_none());
        drop(writer);
        assert_eq!((&mut waiting).now_or_never(), Some(Err(FillFailed)));
        assert_eq!(
            block_on(watch.wait_for(3)),
            Ok(3),
            "what arrived is still readable"
        );
    }

    #[test]
    fn a_finished_short_body_ends_the_wait() {
        let pool = Pool::new(1 << 20);
        let mut writer = pool.try_take(100).expect("room");
        writer.append(b"abc");
        writer.finish();
        assert_eq!(block_on(writer.watch().wait_for(10)), Ok(3));
    }
}
