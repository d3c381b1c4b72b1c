//! One flipped byte anywhere in a folder, then a start, then everything is read: right bytes or
//! none, never wrong ones, never a panic. And the checker names the damage.
//!
//! The checker sees every byte of every page that describes flipped, and some of each payload. The
//! engine starts on those of them that mean something and on some of the zeroes between, which the
//! same checksum covers. With `FOREBAY_FLIP_ALL=1` both get every single byte of the folder, which
//! takes minutes (`scripts/fuzz` does it).

mod damage;

use damage::support::world::Geometry;
use damage::{End, Folder, check, check_one, from_environment};
use forebay_io::buffer::{PAGE, Pool};
use forebay_io::sim::{SimDisk, SimExecutor};
use forebay_shards::check::SegmentState;
use forebay_shards::format::record_bytes;
use forebay_shards::superblock::{
    self, FolderError, FolderLimits, QUOTA_BYTES_MIN, SUPERBLOCK_NAME, Superblock,
};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Two segments hold everything that is written.
const SMALL: Geometry = Geometry {
    shards: 1,
    segments_max: 4,
    segment_bytes: 64 << 10,
    block_bytes: 16 << 10,
    pool_bytes: 2 << 20,
    ram_bytes: 0,
};

/// Threads that share the flips; small machines have two cores.
const THREADS: u64 = 2;

/// Of the bytes that no header or footer has, one in so many is flipped, unless all are.
const PAYLOAD_STRIDE: usize = 61;

/// Of the zeroes in pages that describe, the engine starts on one in so many, unless on all.
const ZERO_STRIDE: usize = 31;

/// What a byte of the folder belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A segment's header, a record's header, a footer.
    Describes,
    /// A payload and its padding.
    Payload,
    /// Nothing.
    Unused,
}

/// Name and parts of every segment, byte page by byte page.
fn parts(folder: &Folder) -> Vec<(String, Vec<Part>)> {
    let reports = check(&folder.intact, &SMALL);
    let parts = reports.into_iter().map(|(name, report)| {
        assert_eq!(report.defects, [], "a folder that nobody damaged");
        let pages = folder.intact.length(&name) / PAGE;
        let mut parts = vec![Part::Unused; pages];
        parts[0] = Part::Describes;
        for record in &report.records {
            let page = record.page as usize;
            let end = page + (record_bytes(record.payload_length) as usize) / PAGE;
            parts[page..end].fill(Part::Payload);
            parts[page] = Part::Describes;
        }
        if report.state == SegmentState::Sealed {
            // Few enough records for one page of entries and the last one.
            parts[pages - 2..].fill(Part::Describes);
        }
        (name, parts)
    });
    parts.collect()
}

/// Flips one byte of the intact folder, and looks whether a check sees it.
fn flip_and_check(folder: &mut Folder, name: &str, offset: usize, part: Part) {
    folder.restore();
    folder.machine.disk.flip_bit(name, offset);
    let report = check_one(&folder.machine.disk, &SMALL, name).expect("a segment");
    assert!(
        !report.defects.is_empty() || part == Part::Unused,
        "the check does not see it"
    );
}

/// Starts on the damaged folder and reads all; then once more on what the start has made of it.
fn start_and_read(folder: &Folder, twice: bool) {
    let world = folder.assert_right_bytes(2);
    if twice {
        world.stop();
        drop(folder.assert_right_bytes(3));
    }
}

/// One thread's share of a folder. Returns how many bytes it has flipped.
fn flip_share(end: End, thread: u64, all: bool) -> u64 {
    let mut folder = Folder::make(SMALL, end);
    let mut flips = 0;
    for (name, parts) in parts(&folder) {
        let content = folder.intact.content(&name);
        for offset in (thread as usize..content.len()).step_by(THREADS as usize) {
            let part = parts[offset / PAGE];
            if part != Part::Describes && !all && offset % PAYLOAD_STRIDE != 0 {
                continue;
            }
            let start = all || content[offset] != 0 || offset % ZERO_STRIDE == 0;
            if end == End::Crash && !start {
                // The other folder has the same pages, and footers besides.
                continue;
            }
            let flip = || {
                flip_and_check(&mut folder, &name, offset, part);
                if start {
                    start_and_read(&folder, all);
                }
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(flip)) {
                eprintln!("{end:?}: byte {offset} of {name} ({part:?})");
                resume_unwind(panic);
            }
            flips += 1;
        }
    }
    flips
}

fn flip_all(end: End) {
    let all = from_environment("FOREBAY_FLIP_ALL", 0) == 1;
    let flips: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || flip_share(end, thread, all)))
            .collect();
        let shares = threads.into_iter().map(|thread| {
            let share = thread.join();
            share.unwrap_or_else(|panic| resume_unwind(panic))
        });
        shares.sum()
    });
    println!("{end:?}: {flips} bytes flipped");
    assert!(flips > 2_000, "{flips} flips are not a whole folder");
}

#[test]
fn a_byte_of_a_folder_that_was_stopped() {
    flip_all(End::Stop);
}

#[test]
fn a_byte_of_a_folder_after_a_crash() {
    flip_all(End::Crash);
}

/// Every byte of the superblock's file: the other copy is used, and nothing is ever formatted over.
#[test]
fn a_byte_of_the_superblock() {
    fn open(disk: &SimDisk) -> Result<Superblock, FolderError> {
        let mut executor = SimExecutor::new(1);
        let runtime = executor.runtime();
        let (disk, pool) = (disk.clone(), Pool::new(1 << 20));
        let limits = FolderLimits::of_quota(QUOTA_BYTES_MIN);
        executor.block_on(async move {
            superblock::open_or_format(&runtime, &disk, &pool, limits).await
        })
    }
    let disk = SimDisk::new(0);
    let intact = open(&disk).expect("formatted");
    for offset in 0..disk.length(SUPERBLOCK_NAME) {
        let damaged = disk.duplicate();
        damaged.flip_bit(SUPERBLOCK_NAME, offset);
        let before = damaged.content(SUPERBLOCK_NAME);
        assert_eq!(open(&damaged).expect("one copy is good"), intact);
        let (found, defects) =
            forebay_shards::check::check_superblock(&before).expect("one copy is good");
        assert_eq!((found, defects.len()), (intact, 1), "byte {offset}");
        // The same byte of the other copy: none is good.
        let other = (offset + PAGE) % (2 * PAGE);
        damaged.flip_bit(SUPERBLOCK_NAME, other);
        let before = damaged.content(SUPERBLOCK_NAME);
        assert!(open(&damaged).is_err(), "byte {offset} of both copies");
        assert!(damaged.content(SUPERBLOCK_NAME) == before, "written over");
        assert!(forebay_shards::check::check_superblock(&before).is_err());
    }
}
