//! Direct files on a core's own io_uring.
//!
//! One [`RingDisk`] belongs to one executor and owns one ring beside glommio's. Operations queue
//! their entry; the driver task submits all that queued up since it last ran with one system call
//! and sleeps on an eventfd that the kernel signals for completions. A buffer belongs to its
//! operation until the completion arrives, whoever stops waiting before.
//!
//! Why not glommio's `DmaFile`: its buffers cannot leave their core, so a hit on another core
//! would have to be copied; its opening path reads `/sys/dev/block/MAJOR:0` and panics where that
//! is not there; and it cannot preallocate on the ring. See `ARCHITECTURE.md`.
//!
//! This file never blocks the executor and never lets a completion touch freed memory.

mod pieces;

pub use pieces::RingPieces;

use super::{Disk, DiskFile, FileEntry, REQUEST_BYTES_MAX};
use crate::buffer::{BufferWriter, Frozen, PAGE, View, Watch, page_align};
use crate::rt;
use futures::AsyncRead;
use futures::future::join_all;
use glommio::net::TcpStream;
use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::CString;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Submission entries. More operations wait in user space; an NVMe queue is rarely deeper.
const RING_ENTRIES: u32 = 256;

/// Times that one request is made again which met a passing error. An error that lasts longer than
/// the waits before them, half a second in all, does not pass.
const TRANSIENT_RETRIES_MAX: u32 = 8;

/// Wait before the first retry; it doubles for each further one.
const TRANSIENT_WAIT: Duration = Duration::from_millis(2);

/// What an operation in the kernel's hands keeps alive.
#[expect(dead_code, reason = "they are held for the kernel, not for us to read")]
enum Held {
    /// Several requests may fill parts of one buffer.
    Buffer(Watch),
    Data(Frozen),
    Part(View),
    Path(CString),
    Nothing,
}

struct Operation {
    /// Never read while in flight: it owns the memory that the kernel uses.
    held: Held,
    waker: Option<Waker>,
    result: Option<i32>,
    abandoned: bool,
}

struct Ring {
    uring: RefCell<IoUring>,
    completions: OwnedFd,
    operations: RefCell<Slab<Operation>>,
    backlog: RefCell<VecDeque<Entry>>,
    driver: RefCell<Option<Waker>>,
    in_kernel: Cell<usize>,
}

impl Ring {
    fn new() -> io::Result<Ring> {
        let uring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(RING_ENTRIES)
            // Both flags are hints of kernels 5.19 and 6.0.
            .or_else(|_| IoUring::new(RING_ENTRIES))?;
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let completions = unsafe { OwnedFd::from_raw_fd(fd) };
        uring
            .submitter()
            .register_eventfd(completions.as_raw_fd())?;
        Ok(Ring {
            uring: RefCell::new(uring),
            completions,
            operations: RefCell::default(),
            backlog: RefCell::default(),
            driver: RefCell::default(),
            in_kernel: Cell::new(0),
        })
    }

    /// Queues `entry`, whose pointers lead into `held`, and completes with its result.
    async fn run(self: &Rc<Self>, entry: Entry, held: Held) -> (io::Result<i32>, Held) {
        let id = self.operations.borrow_mut().insert(Operation {
            held,
            waker: None,
            result: None,
            abandoned: false,
        });
        self.backlog
            .borrow_mut()
            .push_back(entry.user_data(id as u64));
        if let Some(driver) = self.driver.borrow_mut().take() {
            driver.wake();
        }
        Completion {
            ring: self.clone(),
            id,
            done: false,
        }
        .await
    }

    fn submit(&self) -> io::Result<()> {
        let mut uring = self.uring.borrow_mut();
        let mut backlog = self.backlog.borrow_mut();
        while let Some(entry) = backlog.front() {
            // SAFETY: the entry's pointers lead into the operation's `held`, which stays in the
            // slab until its completion is reaped, whether or not anyone still waits for it.
            if unsafe { uring.submission().push(entry) }.is_err() {
                break;
            }
            backlog.pop_front();
            self.in_kernel.set(self.in_kernel.get() + 1);
        }
        if uring.submission().is_empty() {
            return Ok(());
        }
        uring.submit().map(drop)
    }

    /// Submits what is queued now, not when the driver comes to it: for requests that a device
    /// should have before the CPU is used for something else. An error is met again by the driver.
    fn submit_now(&self) {
        let _ = self.submit();
    }

    /// Hands results to their waiters; returns how many there were.
    fn reap(&self) -> usize {
        let mut uring = self.uring.borrow_mut();
        let mut count = 0;
        for completion in uring.completion() {
            count += 1;
            let id = completion.user_data() as usize;
            let mut operations = self.operations.borrow_mut();
            let operation = &mut operations[id];
            if operation.abandoned {
                let _unused_memory = operations.remove(id);
                continue;
            }
            operation.result = Some(completion.result());
            if let Some(waker) = operation.waker.take() {
                waker.wake();
            }
        }
        self.in_kernel.set(self.in_kernel.get() - count);
        count
    }

    async fn drive(self: Rc<Self>) {
        let mut readiness: Option<TcpStream> = None;
        loop {
            match self.submit() {
                Ok(()) => drop(self.reap()),
                // Nothing is lost: the entries stay in the submission queue for the next turn.
                Err(e) if is_transient(&e) => {
                    if self.reap() == 0 {
                        // The kernel is short of memory: others must run meanwhile.
                        rt::sleep(TRANSIENT_WAIT).await;
                    }
                }
                Err(e) => {
                    // EBADF and the like: a bug or a dying process. Nothing can be served without it.
                    log::error!("the disk ring refuses submissions: {e}");
                    std::process::abort();
                }
            }
            poll_fn(|cx| self.poll_work(cx, &mut readiness)).await;
        }
    }

    /// Ready when there is something to submit or to reap.
    fn poll_work(&self, cx: &mut Context<'_>, readiness: &mut Option<TcpStream>) -> Poll<()> {
        *self.driver.borrow_mut() = Some(cx.waker().clone());
        let mut uring = self.uring.borrow_mut();
        if !uring.completion().is_empty() {
            return Poll::Ready(());
        }
        let room = !uring.submission().is_full();
        if room && (!self.backlog.borrow().is_empty() || !uring.submission().is_empty()) {
            return Poll::Ready(());
        }
        if self.in_kernel.get() == 0 {
            return Poll::Pending;
        }
        if readiness.is_none() {
            *readiness = Some(self.arm());
        }
        let stream = readiness.as_mut().expect("armed above");
        match Pin::new(stream).poll_read(cx, &mut [0; 8]) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => {
                *readiness = None;
                self.clear_eventfd();
                Poll::Ready(())
            }
        }
    }

    /// Lets glommio poll the eventfd. glommio has no public readiness primitive, but a stream made
    /// from a descriptor starts a one-shot poll of it at once, and its first read after the poll
    /// fires fails with ENOTSOCK: that "error" is our signal. One stream serves one signal.
    fn arm(&self) -> TcpStream {
        let copy = self
            .completions
            .try_clone()
            .expect("a descriptor for the disk ring");
        // SAFETY: a fresh duplicate that the stream alone owns and closes.
        unsafe { TcpStream::from_raw_fd(copy.into_raw_fd()) }
    }

    fn clear_eventfd(&self) {
        let mut count = [0_u8; 8];
        // SAFETY: reads eight bytes into eight bytes from our own non-blocking eventfd. EAGAIN
        // means that it was clear, which is as good.
        unsafe { libc::read(self.completions.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // What the kernel still uses outlives us: a request that a stuck disk answers after the
        // ring is gone would else write to memory that is somebody else's by then.
        let operations = std::mem::take(self.operations.get_mut());
        if self.in_kernel.get() > 0 {
            Box::leak(Box::new(operations));
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::ENOMEM)
    )
}

/// What is left of one transfer's patience with errors that pass by themselves.
#[derive(Default)]
struct Retries {
    used: u32,
}

impl Retries {
    /// Whether to make the request again that met `error`; waits before it says so.
    async fn allow(&mut self, error: &io::Error) -> bool {
        if !is_transient(error) || self.used == TRANSIENT_RETRIES_MAX {
            return false;
        }
        rt::sleep(TRANSIENT_WAIT * (1 << self.used)).await;
        self.used += 1;
        true
    }
}

/// Waits for one operation.
struct Completion {
    ring: Rc<Ring>,
    id: usize,
    done: bool,
}

impl Future for Completion {
    type Output = (io::Result<i32>, Held);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ring = self.ring.clone();
        let mut operations = ring.operations.borrow_mut();
        let operation = &mut operations[self.id];
        let Some(result) = operation.result else {
            operation.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        self.done = true;
        let operation = operations.remove(self.id);
        let result = match result {
            code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
            count => Ok(count),
        };
        Poll::Ready((result, operation.held))
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut operations = self.ring.operations.borrow_mut();
        if operations[self.id].result.is_some() {
            operations.remove(self.id);
        } else {
            operations[self.id].abandoned = true;
            operations[self.id].waker = None;
        }
    }
}

/// A folder for direct I/O, used by one executor.
#[derive(Clone)]
pub struct RingDisk {
    ring: Rc<Ring>,
    folder: Rc<OwnedFd>,
    path: Rc<PathBuf>,
}

/// An open file of a [`RingDisk`].
#[derive(Clone)]
pub struct RingFile {
    ring: Rc<Ring>,
    fd: Rc<OwnedFd>,
}

impl RingDisk {
    /// Opens `folder` and starts its ring's driver. Call it on the executor that will use it.
    pub fn open_folder(folder: &Path) -> io::Result<RingDisk> {
        let directory = std::fs::File::open(folder)?;
        let ring = Rc::new(Ring::new()?);
        rt::spawn_detached(ring.clone().drive());
        Ok(RingDisk {
            ring,
            folder: Rc::new(directory.into()),
            path: Rc::new(folder.to_path_buf()),
        })
    }

    async fn open_at(&self, name: &str, flags: i32) -> io::Result<RingFile> {
        let path = CString::new(name)?;
        let entry = opcode::OpenAt::new(types::Fd(self.folder.as_raw_fd()), path.as_ptr())
            .flags(flags | libc::O_RDWR | libc::O_DIRECT | libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .mode(0o600)
            .build();
        let (result, _) = self.ring.run(entry, Held::Path(path)).await;
        let fd = result?;
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(RingFile {
            ring: self.ring.clone(),
            fd: Rc::new(fd),
        })
    }

    async fn sync_fd(ring: &Rc<Ring>, fd: RawFd, flags: types::FsyncFlags) -> io::Result<()> {
        let entry = opcode::Fsync::new(types::Fd(fd)).flags(flags).build();
        ring.run(entry, Held::Nothing).await.0.map(drop)
    }

    async fn fill_new(&self, file: &RingFile, size: u64) -> io::Result<()> {
        let entry = opcode::Fallocate::new(types::Fd(file.fd.as_raw_fd()), size).build();
        self.ring.run(entry, Held::Nothing).await.0?;
        Self::sync_fd(&self.ring, file.fd.as_raw_fd(), types::FsyncFlags::empty()).await?;
        Self::sync_fd(
            &self.ring,
            self.folder.as_raw_fd(),
            types::FsyncFlags::empty(),
        )
        .await
    }
}

impl Disk for RingDisk {
    type File = RingFile;

    async fn list(&self) -> io::Result<Vec<FileEntry>> {
        let path = self.path.as_ref().clone();
        rt::blocking(move || {
            let mut entries = Vec::new();
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                // A name that is not UTF-8 is none of ours.
                if let Ok(name) = entry.file_name().into_string() {
                    entries.push(FileEntry {
                        name,
                        size: entry.metadata()?.len(),
                    });
                }
            }
            Ok(entries)
        })
        .await
    }

    async fn open(&self, name: &str) -> io::Result<RingFile> {
        self.open_at(name, 0).await
    }

    async fn create(&self, name: &str, size: u64) -> io::Result<RingFile> {
        let file = self.open_at(name, libc::O_CREAT | libc::O_EXCL).await?;
        match self.fill_new(&file, size).await {
            Ok(()) => Ok(file),
            Err(e) => {
                if let Err(second) = self.remove(name).await {
                    log::warn!("cannot remove the half-made {name}: {second}");
                }
                Err(e)
            }
        }
    }

    async fn sync(&self) -> io::Result<()> {
        // The ring has no operation for a whole file system.
        let folder = self.folder.try_clone()?;
        rt::blocking(move || {
            // SAFETY: the descriptor is open for the call; nothing else is passed.
            match unsafe { libc::syncfs(folder.as_raw_fd()) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
        .await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = CString::new(name)?;
        let entry =
            opcode::UnlinkAt::new(types::Fd(self.folder.as_raw_fd()), path.as_ptr()).build();
        self.ring.run(entry, Held::Path(path)).await.0.map(drop)
    }
}

/// Bytes of the whole file system that holds `folder`. Blocks: for use before the executors start.
pub fn file_system_bytes(folder: &Path) -> io::Result<u64> {
    let folder = std::fs::File::open(folder)?;
    let stats = statvfs_of(folder.as_raw_fd())?;
    Ok(stats.f_blocks * stats.f_frsize)
}

fn statvfs_of(fd: RawFd) -> io::Result<libc::statvfs> {
    // SAFETY: `statvfs` is plain data for which all-zero is valid.
    let mut stats: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `fd` is open for the call and `stats` is a valid place for the answer.
    if unsafe { libc::fstatvfs(fd, &raw mut stats) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stats)
}

impl DiskFile for RingFile {
    async fn read(
        &self,
        offset: u64,
        mut buffer: BufferWriter,
        range: Range<usize>,
    ) -> (io::Result<usize>, BufferWriter) {
        assert!(offset.is_multiple_of(PAGE as u64) && range.len().is_multiple_of(PAGE));
        // All pieces at once: one after the other they would be read at a queue depth of one, and a
        // block and its header are a page more than one request.
        let targets: Vec<_> = pieces_of(range)
            .map(|piece| buffer.io_target(piece))
            .collect();
        let mut at = offset;
        let pieces = targets.iter().map(|target| {
            let reading = self.read_piece(at, *target, buffer.watch());
            at += target.len() as u64;
            reading
        });
        // Nobody has the write side before every piece has ended.
        let counts = join_all(pieces).await;
        (whole_count(counts, &targets), buffer)
    }

    type Pieces = RingPieces;

    /// More than that are two requests, whose second is on its way while the first is looked at.
    const PIECE_BYTES: usize = REQUEST_BYTES_MAX - PAGE;

    fn pieces(
        &self,
        offset: u64,
        buffer: BufferWriter,
        body_bytes: usize,
        unit: usize,
    ) -> RingPieces {
        RingPieces::begin(self, offset, buffer, body_bytes, unit)
    }

    async fn write(&self, offset: u64, data: Frozen, range: Range<usize>) -> io::Result<()> {
        assert!(offset.is_multiple_of(PAGE as u64) && range.len().is_multiple_of(PAGE));
        let held = || Held::Data(data.clone());
        self.write_pieces(offset, &data.record()[range], held).await
    }

    async fn write_part(&self, offset: u64, part: View) -> io::Result<()> {
        assert!(offset.is_multiple_of(PAGE as u64) && part.len().is_multiple_of(PAGE));
        assert!(part.as_ptr().addr().is_multiple_of(PAGE));
        let held = || Held::Part(part.clone());
        self.write_pieces(offset, &part, held).await
    }

    async fn sync(&self) -> io::Result<()> {
        RingDisk::sync_fd(&self.ring, self.fd.as_raw_fd(), types::FsyncFlags::DATASYNC).await
    }
}

/// Cuts a read into as few requests as may carry it, of about the same length.
fn pieces_of(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let count = range.len().div_ceil(REQUEST_BYTES_MAX).max(1);
    let piece = page_align(range.len().div_ceil(count)).max(PAGE);
    let end = range.end;
    range
        .step_by(piece)
        .map(move |start| start..end.min(start + piece))
}

/// Bytes up to the first that a piece does not have: the end of the file.
fn whole_count(counts: Vec<io::Result<usize>>, targets: &[NonNull<[u8]>]) -> io::Result<usize> {
    let mut total = 0;
    let mut is_ended = false;
    for (count, target) in counts.into_iter().zip(targets) {
        let count = count?;
        if !is_ended {
            total += count;
            is_ended = count < target.len();
        }
    }
    Ok(total)
}

impl RingFile {
    /// Reads what one request may carry into `target`, a part of `buffer` that no other request
    /// has, again for what it leaves. Fewer bytes come at the end of the file.
    async fn read_piece(
        &self,
        offset: u64,
        target: NonNull<[u8]>,
        held: Watch,
    ) -> io::Result<usize> {
        let (mut total, mut retries) = (0, Retries::default());
        while total < target.len() {
            let entry = opcode::Read::new(
                types::Fd(self.fd.as_raw_fd()),
                target.cast::<u8>().as_ptr().wrapping_add(total),
                (target.len() - total) as u32,
            )
            .offset(offset + total as u64)
            .build();
            match self.ring.run(entry, Held::Buffer(held.clone())).await.0 {
                Ok(0) => break,
                Ok(count) => total += count as usize,
                Err(e) if retries.allow(&e).await => {}
                Err(e) => return Err(e),
            }
            if !total.is_multiple_of(PAGE) {
                // Only the end of the file cuts a direct read off inside a page.
                break;
            }
        }
        Ok(total)
    }

    /// Writes all of `bytes`, which `held` keeps in memory.
    async fn write_pieces(
        &self,
        offset: u64,
        bytes: &[u8],
        held: impl Fn() -> Held,
    ) -> io::Result<()> {
        // All at once: a record that waits for one piece after the other is written at a queue depth
        // of one. And to the end of each, whatever becomes of the others: nothing of this write may
        // reach the disk after its error did its caller.
        let pieces = bytes.chunks(REQUEST_BYTES_MAX).enumerate();
        let written = join_all(pieces.map(|(n, piece)| {
            let offset = offset + (n * REQUEST_BYTES_MAX) as u64;
            self.write_piece(offset, piece, &held)
        }));
        written.await.into_iter().collect()
    }

    /// Writes what one request may carry, again for what it leaves. `held` keeps it in memory.
    async fn write_piece(
        &self,
        offset: u64,
        piece: &[u8],
        held: impl Fn() -> Held,
    ) -> io::Result<()> {
        let (mut total, mut retries) = (0, Retries::default());
        while total < piece.len() {
            let source = &piece[total..];
            let entry = opcode::Write::new(
                types::Fd(self.fd.as_raw_fd()),
                source.as_ptr(),
                source.len() as u32,
            )
            .offset(offset + total as u64)
            .build();
            match self.ring.run(entry, held()).await.0 {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                // A short count inside a page cannot be continued directly: the caller retires
                // the segment, so nothing is lost by giving up.
                Ok(count) if !(count as usize).is_multiple_of(PAGE) => {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Ok(count) => total += count as usize,
                Err(e) if retries.allow(&e).await => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The open file's status flags (`F_GETFL`), for tests of direct I/O.
    pub fn status_flags(&self) -> i32 {
        // SAFETY: a query on a descriptor that we own.
        unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_GETFL) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;

    /// Runs `body` on an executor of its own, over a disk in a new folder and a pool of so many bytes.
    pub(super) fn on_disk(
        pool_bytes: usize,
        body: impl AsyncFnOnce(RingDisk, Pool) + Send + 'static,
    ) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().to_path_buf();
        let builder = rt::CoreBuilder {
            index: 0,
            cpu: None,
        };
        let core = builder.spawn(move || async move {
            let disk = RingDisk::open_folder(&path).expect("ring");
            body(disk, Pool::new(pool_bytes)).await;
        });
        core.expect("executor").join().expect("ran");
    }

    pub(super) fn filled(pool: &Pool, length: usize, seed: u8) -> Frozen {
        let mut writer = pool.try_take(length).expect("budget");
        writer.headroom_mut().fill(seed);
        let content: Vec<u8> = (0..length).map(|i| (i as u8).wrapping_add(seed)).collect();
        writer.append(&content);
        writer.freeze()
    }

    #[test]
    fn records_come_back_as_written_directly_and_in_pieces() {
        on_disk(64 << 20, async |disk, pool| {
            let file = disk.create("seg", 8 << 20).await.expect("created");
            assert_ne!(file.status_flags() & libc::O_DIRECT, 0);
            // Longer than one request, and not a whole number of pages.
            let record = filled(&pool, 3 * REQUEST_BYTES_MAX + 777, 9);
            let length = record.record().len();
            file.write(8192, record.clone(), 0..length)
                .await
                .expect("written");
            file.sync().await.expect("synced");
            let buffer = pool.try_take(4 << 20).expect("budget");
            let (count, mut buffer) = file.read(8192, buffer, 0..length).await;
            assert_eq!(count.expect("read"), length);
            buffer.advance(length - PAGE);
            assert!(buffer.freeze().record()[..length] == *record.record());
        });
    }

    #[test]
    fn a_read_is_cut_into_even_pieces_that_cover_it() {
        for pages in [1, 7, 256, 257, 513, 2049] {
            let range = PAGE..(1 + pages) * PAGE;
            let pieces: Vec<_> = pieces_of(range.clone()).collect();
            assert_eq!(pieces.len(), range.len().div_ceil(REQUEST_BYTES_MAX));
            assert_eq!(pieces[0].start, range.start);
            assert_eq!(pieces[pieces.len() - 1].end, range.end);
            assert!(pieces.windows(2).all(|two| two[0].end == two[1].start));
            assert!(pieces.iter().all(|piece| piece.len() <= REQUEST_BYTES_MAX));
            assert!(pieces.iter().all(|piece| piece.len().is_multiple_of(PAGE)));
        }
    }

    #[test]
    fn the_end_of_the_file_cuts_a_read_short() {
        on_disk(16 << 20, async |disk, pool| {
            let file = disk.create("seg", 2 * PAGE as u64).await.expect("created");
            let buffer = pool.try_take(4 * PAGE).expect("budget");
            let (count, _) = file.read(PAGE as u64, buffer, PAGE..4 * PAGE).await;
            assert_eq!(count.expect("read"), PAGE);
            // In the second of three requests, and before the first.
            let bytes = REQUEST_BYTES_MAX + REQUEST_BYTES_MAX / 2;
            let file = disk.create("long", bytes as u64).await.expect("created");
            for (offset, expected) in [(0, bytes), (2 * bytes, 0)] {
                let buffer = pool.try_take(4 << 20).expect("budget");
                let range = 0..3 * REQUEST_BYTES_MAX;
                let (count, _) = file.read(offset as u64, buffer, range).await;
                assert_eq!(count.expect("read"), expected);
            }
        });
    }

    #[test]
    fn names_are_exclusive_listed_and_removed() {
        on_disk(PAGE, async |disk, _| {
            disk.create("a", PAGE as u64).await.expect("created");
            let again = disk.create("a", PAGE as u64).await.map(drop);
            assert_eq!(
                again.expect_err("exists").kind(),
                io::ErrorKind::AlreadyExists
            );
            let entries = disk.list().await.expect("listed");
            assert_eq!(
                entries,
                [FileEntry {
                    name: "a".into(),
                    size: PAGE as u64
                }]
            );
            disk.remove("a").await.expect("removed");
            assert!(disk.open("a").await.is_err());
        });
    }

    #[test]
    fn an_abandoned_read_keeps_its_memory_until_the_kernel_is_done() {
        on_disk(256 << 20, async |disk, pool| {
            use crate::disk::Pieces;
            use futures::FutureExt;
            let file = disk.create("seg", 16 << 20).await.expect("created");
            for n in 0..32 {
                // Of one request, and of several.
                let bytes = [1 << 20, 4 << 20][n % 2];
                let buffer = pool.try_take(bytes).expect("budget");
                let read = file.read(0, buffer, PAGE..PAGE + bytes);
                assert!(read.now_or_never().is_none(), "polled once, then dropped");
                let buffer = pool.try_take(bytes).expect("budget");
                let mut pieces = file.pieces(0, buffer, bytes, 64 << 10);
                let watch = pieces.arriving().watch();
                assert!(pieces.next().now_or_never().is_none());
                drop(pieces);
                assert!(watch.wait_for(1).await.is_err(), "its readers are told");
            }
            assert!(pool.used_bytes() > 0, "the ring still owns the buffers");
            // Later operations complete after the abandoned ones were reaped.
            while pool.used_bytes() > 0 {
                file.sync().await.expect("synced");
            }
        });
    }
}
