//! The operations of a simulated disk: what each does, how long it takes, how a fault changes it.
//!
//! An operation holds no borrow while time passes. A write belongs to the folder from the moment
//! at which it begins: dropping its future leaves it in flight, and it lands later or at a crash.

use super::faults::DiskFault;
use super::pages::{Content, Page, SECTORS};
use super::{DiskOperation, InFlight, Moment, SimDisk, SimFile};
use crate::buffer::{Arriving, BufferWriter, Frozen, PAGE, View};
use crate::disk::{Disk, DiskFile, FileEntry, Pieces, note_piece};
use crate::runtime::Runtime;
use std::io;
use std::ops::Range;
use std::time::Duration;

/// Longest time that an operation waits before the disk looks at it.
const QUEUE_NS_MAX: u64 = 60_000;

/// Longest time that the disk then works on it.
const WORK_NS_MAX: u64 = 60_000;

fn failure(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn eio() -> io::Error {
    failure(libc::EIO)
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

/// Marks a write as abandoned when the future that waits for it is dropped.
struct Waiting {
    folder: SimDisk,
    write: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.folder.0.state.borrow_mut();
        if let Some(write) = state.in_flight.get_mut(&self.write) {
            write.abandoned = true;
        }
    }
}

impl SimDisk {
    /// What all operations have in common: time, and errors by script.
    async fn begin(&self, operation: DiskOperation) -> io::Result<()> {
        self.0.operations.set(self.0.operations.get() + 1);
        self.tell(operation, Moment::Begun);
        self.pause_ns(QUEUE_NS_MAX).await;
        self.stall().await;
        let mut state = self.0.state.borrow_mut();
        state.land_abandoned();
        let state = &mut *state;
        if state.faults.strikes(&mut state.dice, DiskFault::BitRot) {
            state.rot();
        }
        match state.faults.scripted(operation) {
            Some(errno) => Err(failure(errno)),
            None => Ok(()),
        }
    }

    async fn stall(&self) {
        let pause_ms = {
            let mut state = self.0.state.borrow_mut();
            let state = &mut *state;
            let strikes = state.faults.strikes(&mut state.dice, DiskFault::Stall);
            strikes.then(|| state.dice.below(state.stall_ms_max + 1))
        };
        let runtime = self.0.runtime.borrow().clone();
        if let (Some(pause_ms), Some(runtime)) = (pause_ms, runtime) {
            runtime.sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    fn draw(&self, faults: &[DiskFault]) -> Option<DiskFault> {
        let mut state = self.0.state.borrow_mut();
        let state = &mut *state;
        state.faults.draw(&mut state.dice, faults)
    }

    fn create_half(&self, name: &str, size: u64) -> io::Result<u64> {
        let mut state = self.0.state.borrow_mut();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if state.used_bytes() + size > self.0.capacity_bytes.get() {
            return Err(failure(libc::ENOSPC));
        }
        let number = state.take_number();
        state.files.insert(number, Content::default());
        state.names.insert(name.into(), number);
        state.half_made.push(number);
        Ok(number)
    }

    fn create_rest(&self, name: &str, number: u64, size: u64) -> io::Result<()> {
        let mut state = self.0.state.borrow_mut();
        state.half_made.retain(|half_made| *half_made != number);
        if state.used_bytes() + size > self.0.capacity_bytes.get() {
            state.names.remove(name);
            state.files.remove(&number);
            return Err(failure(libc::ENOSPC));
        }
        let file = state.files.get_mut(&number).expect("made just now");
        file.resize(size);
        // The directory was synced: earlier removals are durable with this name.
        state.removed.clear();
        Ok(())
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn list(&self) -> io::Result<Vec<FileEntry>> {
        let state = self.0.state.borrow();
        let entry = |(name, number): (&String, &u64)| FileEntry {
            name: name.clone(),
            size: state.files[number].length(),
        };
        Ok(state.names.iter().map(entry).collect())
    }

    async fn open(&self, name: &str) -> io::Result<SimFile> {
        let number = self.0.state.borrow().names.get(name).copied();
        Ok(SimFile {
            folder: self.clone(),
            number: number.ok_or_else(|| not_found(name))?,
        })
    }

    async fn create(&self, name: &str, size: u64) -> io::Result<SimFile> {
        let operation = DiskOperation::Create;
        self.begin(operation).await?;
        if self.draw(&[DiskFault::CreateFull]).is_some() {
            return Err(failure(libc::ENOSPC));
        }
        let number = self.create_half(name, size)?;
        self.pause_ns(WORK_NS_MAX).await;
        self.tell(operation, Moment::Halfway);
        let made = self.create_rest(name, number, size);
        self.note_used_bytes();
        self.note(&[1, number, size, u64::from(made.is_ok())]);
        self.tell(operation, Moment::Done);
        made.map(|()| SimFile {
            folder: self.clone(),
            number,
        })
    }

    async fn sync(&self) -> io::Result<()> {
        self.sync_files(|_| true, &[6]).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.state.borrow_mut();
        let number = state.names.remove(name).ok_or_else(|| not_found(name))?;
        state.removed.push((name.to_owned(), number));
        drop(state);
        self.note(&[2, number]);
        Ok(())
    }
}

impl SimFile {
    /// Copies `pages` of the file, as reads show them or as a fault has it, into a buffer.
    fn copy(&self, first: u32, target: &mut BufferWriter, range: Range<usize>, from: Source) {
        let state = self.folder.0.state.borrow();
        let file = &state.files[&self.number];
        for (count, start) in range.clone().step_by(PAGE).enumerate() {
            let page = first + count as u32;
            let content = match from {
                Source::Visible => file.visible(page),
                Source::Former => file.former(page).or_else(|| file.visible(page)),
                Source::Elsewhere(by) => file.visible((page + by) % file.page_count().max(1)),
            };
            let bytes = content.map_or(&[0; PAGE], |page| &**page);
            // Headroom and body are one region to a disk but two to the writer.
            if start < PAGE {
                target.headroom_mut().copy_from_slice(bytes);
            } else {
                let at = start - PAGE - target.filled();
                target.spare_mut()[at..at + PAGE].copy_from_slice(bytes);
            }
        }
    }

    fn read_now(
        &self,
        offset: u64,
        buffer: &mut BufferWriter,
        range: Range<usize>,
    ) -> io::Result<usize> {
        let first = (offset / PAGE as u64) as u32;
        let fault = self.folder.draw(&[
            DiskFault::ReadError,
            DiskFault::UnreadablePlace,
            DiskFault::ShortRead,
            DiskFault::StaleRead,
            DiskFault::MisdirectedRead,
        ]);
        let (available, by) = {
            let mut state = self.folder.0.state.borrow_mut();
            let state = &mut *state;
            let file = state.files.get_mut(&self.number).expect("open files exist");
            if fault == Some(DiskFault::UnreadablePlace) {
                file.unreadable.insert(first);
            }
            let pages = first..first + (range.len() / PAGE) as u32;
            if file.unreadable.range(pages).next().is_some() {
                return Err(eio());
            }
            let by = 1 + state.dice.below(u64::from(file.page_count().max(1))) as u32;
            (file.length().saturating_sub(offset) as usize, by)
        };
        let source = match fault {
            Some(DiskFault::ReadError) => return Err(eio()),
            Some(DiskFault::StaleRead) => Source::Former,
            Some(DiskFault::MisdirectedRead) => Source::Elsewhere(by),
            _ => Source::Visible,
        };
        let mut count = range.len().min(available);
        if fault == Some(DiskFault::ShortRead) {
            count = count / PAGE / 2 * PAGE;
        }
        let end = (range.start + count).next_multiple_of(PAGE);
        self.copy(first, buffer, range.start..end, source);
        Ok(count)
    }

    /// Takes the bytes over: from here on the write is the folder's.
    fn enter(&self, offset: u64, bytes: &[u8]) -> Waiting {
        let page = |bytes: &[u8]| Page::new(bytes.try_into().expect("whole pages"));
        let mut state = self.folder.0.state.borrow_mut();
        let write = state.take_number();
        state.in_flight.insert(
            write,
            InFlight {
                file: self.number,
                first_page: (offset / PAGE as u64) as u32,
                pages: bytes.chunks(PAGE).map(page).collect(),
                landed: 0,
                abandoned: false,
            },
        );
        Waiting {
            folder: self.folder.clone(),
            write,
        }
    }

    /// Ends a write with an error; any of its sectors may be there.
    fn fail_write(&self, write: u64, error: io::Error) -> io::Error {
        let mut state = self.folder.0.state.borrow_mut();
        let state = &mut *state;
        let Some(in_flight) = state.in_flight.get(&write).cloned() else {
            return error;
        };
        let kept_per_mille = [0, 500, 1000][state.dice.below(3) as usize];
        if let Some(file) = state.files.get_mut(&self.number) {
            for (at, content) in in_flight.pages.iter().enumerate().skip(in_flight.landed) {
                let dice = &mut state.dice;
                let sectors = (0..SECTORS)
                    .filter(|_| dice.strikes(kept_per_mille))
                    .fold(0_u8, |mask, sector| mask | 1 << sector);
                let page = in_flight.first_page + at as u32;
                if sectors != 0 && page < file.page_count() {
                    file.land(super::pages::Pending {
                        write,
                        page,
                        content: content.clone(),
                        sectors,
                        order: None,
                        acknowledged: false,
                    });
                }
            }
        }
        state.end(write, false);
        error
    }

    /// The fault that this write meets, if any.
    fn draw_for_write(&self, write: u64) -> Option<DiskFault> {
        let fault = self.folder.draw(&[
            DiskFault::WriteError,
            DiskFault::UnwritablePlace,
            DiskFault::LostWrite,
            DiskFault::MisdirectedWrite,
        ]);
        let mut state = self.folder.0.state.borrow_mut();
        let state = &mut *state;
        let in_flight = state.in_flight.get(&write)?;
        let pages = in_flight.first_page..in_flight.first_page + in_flight.pages.len() as u32;
        let file = state.files.get_mut(&self.number)?;
        if fault == Some(DiskFault::UnwritablePlace) {
            file.unwritable.insert(pages.start);
        }
        match file.unwritable.range(pages).next() {
            Some(_) => Some(DiskFault::UnwritablePlace),
            None => fault,
        }
    }

    /// Sends a write to some other place of some file.
    fn misdirect(&self, write: u64) {
        let mut state = self.folder.0.state.borrow_mut();
        let state = &mut *state;
        let named: Vec<u64> = state.names.values().copied().collect();
        let Some(in_flight) = state.in_flight.get_mut(&write) else {
            return;
        };
        if !named.is_empty() {
            in_flight.file = named[state.dice.below(named.len() as u64) as usize];
        }
        let target = &state.files[&in_flight.file];
        let room = target
            .page_count()
            .saturating_sub(in_flight.pages.len() as u32);
        in_flight.first_page = state.dice.below(u64::from(room) + 1) as u32;
    }

    /// Whether the file would outgrow the disk with this write.
    fn has_room(&self, end: u64) -> bool {
        let state = self.folder.0.state.borrow();
        let growth = end.saturating_sub(state.files[&self.number].length());
        growth == 0 || state.used_bytes() + growth <= self.folder.0.capacity_bytes.get()
    }
}

/// Where the bytes of a read come from.
#[derive(Clone, Copy)]
enum Source {
    Visible,
    Former,
    /// So many pages further on.
    Elsewhere(u32),
}

impl SimFile {
    async fn write_bytes(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(PAGE as u64) && bytes.len().is_multiple_of(PAGE));
        let operation = DiskOperation::Write;
        let length = bytes.len() as u64;
        let waiting = self.enter(offset, bytes);
        let write = waiting.write;
        let end = |result: io::Result<()>| {
            let outcome = u64::from(result.is_ok());
            self.folder.note(&[4, self.number, offset, length, outcome]);
            self.folder.tell(operation, Moment::Done);
            result
        };
        if let Err(e) = self.folder.begin(operation).await {
            return end(Err(self.fail_write(write, e)));
        }
        if !self.has_room(offset + length) {
            return end(Err(self.fail_write(write, failure(libc::ENOSPC))));
        }
        match self.draw_for_write(write) {
            Some(DiskFault::LostWrite) => {
                self.folder.0.state.borrow_mut().in_flight.remove(&write);
                return end(Ok(()));
            }
            Some(DiskFault::MisdirectedWrite) => self.misdirect(write),
            Some(_) => return end(Err(self.fail_write(write, eio()))),
            None => {}
        }
        let pages = length / PAGE as u64;
        {
            let mut state = self.folder.0.state.borrow_mut();
            let landed = state.dice.below(pages + 1) as usize;
            state.land_until(write, landed);
        }
        self.folder.tell(operation, Moment::Halfway);
        self.folder.pause_ns(WORK_NS_MAX).await;
        self.folder.0.state.borrow_mut().complete(write, true);
        self.folder.note_used_bytes();
        end(Ok(()))
    }
}

impl SimDisk {
    /// Makes durable what was complete in those files; `trace` says what was asked for.
    async fn sync_files(&self, which: impl Fn(u64) -> bool, trace: &[u64]) -> io::Result<()> {
        let operation = DiskOperation::Sync;
        // Only what was complete when the sync was asked for is covered by it.
        let order = self.0.state.borrow().order;
        let begun = self.begin(operation).await;
        self.tell(operation, Moment::Halfway);
        let fault = self.draw(&[DiskFault::SyncError, DiskFault::SyncLie]);
        let result = match (begun, fault) {
            (Err(e), _) => Err(e),
            (Ok(()), Some(_)) => Err(eio()),
            (Ok(()), None) => Ok(()),
        };
        let mut state = self.0.state.borrow_mut();
        for (_, file) in state.files.iter_mut().filter(|(number, _)| which(**number)) {
            match fault {
                Some(DiskFault::SyncLie) => file.forget(order),
                _ if result.is_ok() => file.sync(order),
                _ => {}
            }
        }
        drop(state);
        let outcome = u64::from(result.is_ok());
        self.note(&[trace, &[outcome]].concat());
        self.tell(operation, Moment::Done);
        result
    }
}

/// A read whose pieces are read when they are asked for.
pub struct SimPieces {
    file: SimFile,
    offset: u64,
    unit: usize,
    arriving: Arriving,
    left: Range<usize>,
}

impl Pieces for SimPieces {
    async fn next(&mut self) -> Option<io::Result<()>> {
        if self.left.is_empty() {
            return None;
        }
        let start = self.left.start;
        // The headroom comes with the first piece.
        let end = start.max(PAGE) + self.unit;
        let range = start..end.min(self.left.end);
        self.left.start = range.end;
        let (file, offset) = (self.file.clone(), self.offset + start as u64);
        let buffer = self.arriving.writer();
        let count = file.read_into(offset, buffer, range.clone()).await;
        Some(note_piece(&mut self.arriving, range.len(), count))
    }

    fn arriving(&mut self) -> &mut Arriving {
        &mut self.arriving
    }
}

impl SimFile {
    async fn read_into(
        &self,
        offset: u64,
        buffer: &mut BufferWriter,
        range: Range<usize>,
    ) -> io::Result<usize> {
        assert!(offset.is_multiple_of(PAGE as u64) && range.len().is_multiple_of(PAGE));
        let operation = DiskOperation::Read;
        let begun = self.folder.begin(operation).await;
        let length = range.len() as u64;
        let result = begun.and_then(|()| self.read_now(offset, buffer, range));
        let outcome = result.as_ref().map_or(u64::MAX, |count| *count as u64);
        self.folder.note(&[3, self.number, offset, length, outcome]);
        self.folder.tell(operation, Moment::Done);
        result
    }
}

impl DiskFile for SimFile {
    type Pieces = SimPieces;

    /// Several in a block that is not among the smallest.
    const PIECE_BYTES: usize = 64 << 10;

    fn pieces(
        &self,
        offset: u64,
        buffer: BufferWriter,
        body_bytes: usize,
        unit: usize,
    ) -> SimPieces {
        SimPieces {
            file: self.clone(),
            offset,
            unit,
            arriving: Arriving::new(buffer),
            left: 0..PAGE + body_bytes,
        }
    }

    async fn read(
        &self,
        offset: u64,
        mut buffer: BufferWriter,
        range: Range<usize>,
    ) -> (io::Result<usize>, BufferWriter) {
        let result = self.read_into(offset, &mut buffer, range).await;
        (result, buffer)
    }

    async fn write(&self, offset: u64, data: Frozen, range: Range<usize>) -> io::Result<()> {
        self.write_bytes(offset, &data.record()[range]).await
    }

    async fn write_part(&self, offset: u64, part: View) -> io::Result<()> {
        self.write_bytes(offset, &part).await
    }

    async fn sync(&self) -> io::Result<()> {
        let number = self.number;
        self.folder
            .sync_files(|file| file == number, &[5, number])
            .await
    }
}
