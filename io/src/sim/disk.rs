//! A folder in memory, with the faults that a test asks for.
//!
//! A write takes effect page by page over virtual time, so that dropping the executor in between
//! (a crash) leaves it torn. The folder outlives executors: give a clone of it to the next one.
//! It never fails by itself: faults are set by tests.

use super::SimRuntime;
use crate::buffer::{BufferWriter, Frozen, PAGE};
use crate::disk::{Disk, DiskFile, FileEntry};
use crate::runtime::Runtime;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

type Content = Rc<RefCell<Vec<u8>>>;

/// Operations that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOperation {
    /// [`DiskFile::read`]
    Read,
    /// [`DiskFile::write`]
    Write,
    /// [`DiskFile::sync`]
    Sync,
    /// [`Disk::create`]
    Create,
}

/// An operation that fails with an errno.
struct ScriptedFault {
    operation: DiskOperation,
    errno: i32,
    /// Operations of the kind that are still let through first.
    skips: u32,
    /// Failures left.
    times: u32,
}

struct Folder {
    files: RefCell<BTreeMap<String, Content>>,
    runtime: RefCell<Option<SimRuntime>>,
    faults: RefCell<Vec<ScriptedFault>>,
    capacity_bytes: Cell<u64>,
    operations: Cell<u64>,
    used_bytes_max: Cell<u64>,
}

/// A simulated folder. Clones are the same folder.
#[derive(Clone)]
pub struct SimDisk(Rc<Folder>);

/// An open file of a [`SimDisk`].
#[derive(Clone)]
pub struct SimFile {
    folder: SimDisk,
    content: Content,
}

impl SimDisk {
    /// An empty folder that takes `capacity_bytes`; 0 means without limit.
    pub fn new(capacity_bytes: u64) -> SimDisk {
        SimDisk(Rc::new(Folder {
            files: RefCell::default(),
            runtime: RefCell::default(),
            faults: RefCell::default(),
            capacity_bytes: Cell::new(if capacity_bytes == 0 {
                u64::MAX
            } else {
                capacity_bytes
            }),
            operations: Cell::new(0),
            used_bytes_max: Cell::new(0),
        }))
    }

    /// Makes operations take random virtual time on `runtime`, so that they interleave.
    pub fn attach(&self, runtime: SimRuntime) {
        *self.0.runtime.borrow_mut() = Some(runtime);
    }

    /// Makes the next `times` operations of a kind fail with `errno`.
    pub fn fail_next(&self, operation: DiskOperation, errno: i32, times: u32) {
        let fault = ScriptedFault {
            operation,
            errno,
            skips: 0,
            times,
        };
        self.0.faults.borrow_mut().push(fault);
    }

    /// Makes one operation of a kind fail with `errno`, after `skips` that do not.
    pub fn fail_after(&self, operation: DiskOperation, errno: i32, skips: u32) {
        let fault = ScriptedFault {
            operation,
            errno,
            skips,
            times: 1,
        };
        self.0.faults.borrow_mut().push(fault);
    }

    /// Forgets all faults that have not struck yet.
    pub fn heal(&self) {
        self.0.faults.borrow_mut().clear();
    }

    /// Another folder with the same files and no faults.
    pub fn duplicate(&self) -> SimDisk {
        let twin = SimDisk::new(0);
        for (name, content) in self.0.files.borrow().iter() {
            twin.put_file(name, content.borrow().clone());
        }
        twin
    }

    /// The whole content of a file.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn content(&self, name: &str) -> Vec<u8> {
        self.0.files.borrow()[name].borrow().clone()
    }

    /// Changes the capacity.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.capacity_bytes.set(bytes);
    }

    /// Flips the lowest bit of the byte at `offset`.
    ///
    /// # Panics
    /// If there is no such file or byte.
    pub fn flip_bit(&self, name: &str, offset: usize) {
        self.0.files.borrow()[name].borrow_mut()[offset] ^= 1;
    }

    /// Puts a file there as somebody else would.
    pub fn put_file(&self, name: &str, content: Vec<u8>) {
        self.0
            .files
            .borrow_mut()
            .insert(name.into(), Rc::new(RefCell::new(content)));
    }

    /// Names of all files, sorted.
    pub fn names(&self) -> Vec<String> {
        self.0.files.borrow().keys().cloned().collect()
    }

    /// Length of a file.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn length(&self, name: &str) -> usize {
        self.0.files.borrow()[name].borrow().len()
    }

    /// Bytes of all files.
    pub fn used_bytes(&self) -> u64 {
        self.0
            .files
            .borrow()
            .values()
            .map(|content| content.borrow().len() as u64)
            .sum()
    }

    /// The most bytes that all files ever had together.
    pub fn used_bytes_max(&self) -> u64 {
        self.0.used_bytes_max.get()
    }

    /// Reads, writes, syncs and creations begun so far.
    pub fn operations(&self) -> u64 {
        self.0.operations.get()
    }

    async fn begin(&self, operation: DiskOperation) -> io::Result<()> {
        self.0.operations.set(self.0.operations.get() + 1);
        self.pause().await;
        let mut faults = self.0.faults.borrow_mut();
        let Some(at) = faults.iter().position(|fault| fault.operation == operation) else {
            return Ok(());
        };
        let fault = &mut faults[at];
        if fault.skips > 0 {
            fault.skips -= 1;
            return Ok(());
        }
        let errno = fault.errno;
        fault.times -= 1;
        if fault.times == 0 {
            faults.remove(at);
        }
        Err(io::Error::from_raw_os_error(errno))
    }

    async fn pause(&self) {
        let runtime = self.0.runtime.borrow().clone();
        if let Some(runtime) = runtime {
            let pause = Duration::from_nanos(runtime.random() % 100_000);
            runtime.sleep(pause).await;
        }
    }

    fn not_found(name: &str) -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, name.to_owned())
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn list(&self) -> io::Result<Vec<FileEntry>> {
        let files = self.0.files.borrow();
        let entry = |(name, content): (&String, &Content)| FileEntry {
            name: name.clone(),
            size: content.borrow().len() as u64,
        };
        Ok(files.iter().map(entry).collect())
    }

    async fn open(&self, name: &str) -> io::Result<SimFile> {
        let content = self.0.files.borrow().get(name).cloned();
        let content = content.ok_or_else(|| Self::not_found(name))?;
        Ok(SimFile {
            folder: self.clone(),
            content,
        })
    }

    async fn create(&self, name: &str, size: u64) -> io::Result<SimFile> {
        self.begin(DiskOperation::Create).await?;
        if self.0.files.borrow().contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if self.used_bytes() + size > self.0.capacity_bytes.get() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let content: Content = Rc::new(RefCell::new(vec![0; size as usize]));
        self.0
            .files
            .borrow_mut()
            .insert(name.into(), content.clone());
        self.0
            .used_bytes_max
            .set(self.0.used_bytes_max.get().max(self.used_bytes()));
        Ok(SimFile {
            folder: self.clone(),
            content,
        })
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let removed = self.0.files.borrow_mut().remove(name);
        removed.map(drop).ok_or_else(|| Self::not_found(name))
    }
}

impl DiskFile for SimFile {
    async fn read(
        &self,
        offset: u64,
        mut buffer: BufferWriter,
        range: Range<usize>,
    ) -> (io::Result<usize>, BufferWriter) {
        assert!(offset.is_multiple_of(PAGE as u64) && range.len().is_multiple_of(PAGE));
        if let Err(e) = self.folder.begin(DiskOperation::Read).await {
            return (Err(e), buffer);
        }
        let content = self.content.borrow();
        let available = content.get(offset as usize..).unwrap_or_default();
        let count = range.len().min(available.len());
        let end = range.start + count;
        // Headroom and body are one region to a disk but two to the writer.
        let split = PAGE.clamp(range.start, end);
        let (head, body) = available[..count].split_at(split - range.start);
        buffer.headroom_mut()[range.start.min(PAGE)..split.min(PAGE)].copy_from_slice(head);
        let body_start = split.max(PAGE) - PAGE;
        buffer.spare_mut()[body_start..body_start + body.len()].copy_from_slice(body);
        (Ok(count), buffer)
    }

    async fn write(&self, offset: u64, data: Frozen, range: Range<usize>) -> io::Result<()> {
        assert!(offset.is_multiple_of(PAGE as u64) && range.len().is_multiple_of(PAGE));
        self.folder.begin(DiskOperation::Write).await?;
        for (page, bytes) in data.record()[range].chunks(PAGE).enumerate() {
            if page % 16 == 7 {
                self.folder.pause().await;
            }
            let start = offset as usize + page * PAGE;
            let mut content = self.content.borrow_mut();
            let Some(target) = content.get_mut(start..start + PAGE) else {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            };
            target.copy_from_slice(bytes);
        }
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        self.folder.begin(DiskOperation::Sync).await
    }
}
