//! Files for direct I/O in one folder, as policy sees them.
//!
//! This file owns the traits; [`ring`] is the real thing, [`crate::sim::disk`] its simulated twin.
//! A disk knows names, offsets and bytes. It never knows what a segment or a record is, never
//! retries a failed operation and never reports a short transfer as a whole one.

pub mod ring;

use crate::buffer::{Arriving, BufferWriter, Frozen, View};
use std::future::Future;
use std::io;
use std::ops::Range;

/// The most bytes in one kernel request. Devices split larger ones anyway (`max_sectors_kb` is
/// 1,280 KiB on common NVMe drives), and reads of some 6 MB that were not split were seen to hang
/// in D state on 5.15 (glommio #633).
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// A file of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Name inside the folder.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
}

/// An open file. Clones share it; it is closed with the last one.
pub trait DiskFile: Clone + 'static {
    /// A read whose pieces are given as they come.
    type Pieces: Pieces;

    /// A body of so many bytes is one piece of [`DiskFile::pieces`].
    const PIECE_BYTES: usize;

    /// Begins to read at `offset` into the headroom and `body_bytes` of the body of `buffer`: the
    /// headroom with the first piece, and in each piece but the last whole units of `unit` bytes of
    /// the body. All are multiples of [`crate::buffer::PAGE`].
    fn pieces(
        &self,
        offset: u64,
        buffer: BufferWriter,
        body_bytes: usize,
        unit: usize,
    ) -> Self::Pieces;

    /// Reads at `offset` into `range` of `buffer`, counted from the start of its headroom page.
    ///
    /// Gives back the buffer, its watermark untouched, and how many bytes were read: fewer than
    /// asked only at the end of the file. `offset` and `range` are multiples of
    /// [`crate::buffer::PAGE`].
    fn read(
        &self,
        offset: u64,
        buffer: BufferWriter,
        range: Range<usize>,
    ) -> impl Future<Output = (io::Result<usize>, BufferWriter)>;

    /// Writes `range` of `data.record()` at `offset`, all of it or an error. After an error, any
    /// part of it may have been written. Dropping the future does not stop the write.
    fn write(
        &self,
        offset: u64,
        data: Frozen,
        range: Range<usize>,
    ) -> impl Future<Output = io::Result<()>>;

    /// Writes a part of a buffer that may still be filling, as [`DiskFile::write`] does. It begins and
    /// ends at a page of the body.
    fn write_part(&self, offset: u64, part: View) -> impl Future<Output = io::Result<()>>;

    /// Makes all writes that completed before the call durable (`fdatasync`). After an error,
    /// none of them can be trusted to be (FAULTS row 24).
    fn sync(&self) -> impl Future<Output = io::Result<()>>;
}

/// A read that is under way, and what of it has come. Dropped, it is given up; the memory stays until
/// the disk is done with it.
pub trait Pieces: 'static {
    /// Waits for the next piece; nothing if there is none. Fails with
    /// [`io::ErrorKind::UnexpectedEof`] where the file ends before it does.
    fn next(&mut self) -> impl Future<Output = Option<io::Result<()>>>;

    /// What has come.
    fn arriving(&mut self) -> &mut Arriving;
}

/// Notes a piece of `wanted` bytes, of which `count` came.
pub(crate) fn note_piece(
    arriving: &mut Arriving,
    wanted: usize,
    count: io::Result<usize>,
) -> io::Result<()> {
    if count? != wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    arriving.note(wanted);
    Ok(())
}

/// A folder of files that this process alone uses.
pub trait Disk: Clone + 'static {
    /// Its open files.
    type File: DiskFile;

    /// The files in it, in no order.
    fn list(&self) -> impl Future<Output = io::Result<Vec<FileEntry>>>;
    /// Opens an existing file for direct reads and writes.
    fn open(&self, name: &str) -> impl Future<Output = io::Result<Self::File>>;
    /// Makes a file of exactly `size` bytes, its space allocated, and its directory entry durable.
    /// Fails if the name exists; leaves nothing behind when it fails.
    fn create(&self, name: &str, size: u64) -> impl Future<Output = io::Result<Self::File>>;
    /// Makes all writes to all files of the folder durable that completed before the call, also those
    /// of a former process. After an error none of them can be trusted to be.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;
    /// Removes a file; removing what is not there is an error.
    fn remove(&self, name: &str) -> impl Future<Output = io::Result<()>>;
}
