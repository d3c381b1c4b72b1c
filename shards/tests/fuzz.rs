//! Everything that reads the disk, given what no disk should hold: an error or a clean miss, never
//! a panic, never much memory, never an endless loop.
//!
//! Inputs are made from folders that the engine has written: bits are flipped, pages moved,
//! lengths and counts changed with the checksum made right again, so that what stands behind the
//! checksum is reached. Everything follows from a seed. `FOREBAY_FUZZ_ROUNDS` is how many seeds each
//! test runs, `FOREBAY_FUZZ_SEED` the first of them; `scripts/fuzz` runs them for as long as asked.

mod damage;

use damage::support::world::{FOLDER, Geometry};
use damage::{End, Folder, check, from_environment, read};
use forebay_io::buffer::{PAGE, Pool};
use forebay_io::sim::random::Dice;
use forebay_io::sim::{SimDisk, SimExecutor};
use forebay_shards::check::check_superblock;
use forebay_shards::format::{
    Place, RecordHeader, crc32c, crc64nvme, decode_entries, decode_segment_header, decode_trailer,
};
use forebay_shards::superblock::{
    FolderLimits, QUOTA_BYTES_MIN, SUPERBLOCK_NAME, Superblock, open_or_format,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Two segments hold everything that is written.
const SMALL: Geometry = Geometry {
    shards: 1,
    segments_max: 4,
    segment_bytes: 64 << 10,
    block_bytes: 16 << 10,
    pool_bytes: 2 << 20,
    ram_bytes: 64 << 10,
};

/// Seeds that a debug build runs in a few seconds per test.
const ROUNDS_DEFAULT: u64 = 3_000;

/// Decoders are this many times faster than the recovery of a folder.
const DECODES_PER_ROUND: u64 = 20;

/// Memory for decoding one page: its strings, and the vectors that grow while they are collected.
const PAGE_DECODE_BYTES_MAX: usize = 256 << 10;

/// Memory for decoding a footer, per byte of it: an entry in memory is a little larger than on
/// disk, and a vector that grows holds up to three times what it needs.
const FOOTER_DECODE_FACTOR: usize = 4;

/// Memory for one run on a folder: its buffers' budget, recovery's reads (at most 4 MiB), the
/// store's answers, and what the simulator keeps.
const RUN_BYTES_MAX: usize = 16 << 20;

/// One input takes milliseconds; one that takes this long is an endless loop.
const HANG: Duration = Duration::from_secs(120);

/// Counts the bytes that each thread holds, and the most that it held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static HELD_MAX: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is ending has no counters any more; nothing measures it.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = HELD_MAX.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call is the system allocator's with the same arguments; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and fails if it held more than `most` bytes at any moment.
fn within<T>(most: usize, work: impl FnOnce() -> T) -> T {
    let before = HELD.get();
    HELD_MAX.set(before);
    let result = work();
    let held = (HELD_MAX.get() - before) as usize;
    assert!(held <= most, "{held} bytes held, at most {most} are fine");
    result
}

/// What is being tried, for whoever finds it hanging.
static TRYING: Mutex<Vec<(&'static str, u64, Instant)>> = Mutex::new(Vec::new());

fn replay(test: &str, seed: u64) -> String {
    format!(
        "seed {seed} failed; replay it with\n  FOREBAY_FUZZ_SEED={seed} FOREBAY_FUZZ_ROUNDS=1 cargo \
         test -p forebay-shards --test fuzz {test}"
    )
}

/// Ends the process when an input takes far too long, saying which.
fn watch() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let trying = TRYING.lock().expect("nothing panics with it");
                if let Some((test, seed, _)) =
                    trying.iter().find(|(_, _, since)| since.elapsed() > HANG)
                {
                    eprintln!("endless: {}", replay(test, *seed));
                    std::process::abort();
                }
            }
        });
    });
}

/// Tries every seed that is asked for.
fn for_seeds(test: &'static str, mut try_one: impl FnMut(&mut Dice)) {
    watch();
    let first = from_environment("FOREBAY_FUZZ_SEED", 1);
    let rounds = from_environment("FOREBAY_FUZZ_ROUNDS", ROUNDS_DEFAULT);
    for seed in first..first + rounds {
        let mut trying = TRYING.lock().expect("nothing panics with it");
        trying.retain(|(name, ..)| *name != test);
        trying.push((test, seed, Instant::now()));
        drop(trying);
        let tried = catch_unwind(AssertUnwindSafe(|| try_one(&mut Dice::new(seed))));
        if let Err(panic) = tried {
            eprintln!("{}", replay(test, seed));
            resume_unwind(panic);
        }
    }
    let mut trying = TRYING.lock().expect("nothing panics with it");
    trying.retain(|(name, ..)| *name != test);
}

/// Numbers at which things break.
fn number(dice: &mut Dice) -> u64 {
    let power = 1_u64 << dice.below(64);
    match dice.below(5) {
        0 => dice.draw(),
        1 => power,
        2 => power - 1,
        3 => power.wrapping_neg(),
        _ => dice.below(300),
    }
}

/// Damages a page: anything from one bit to all of it, half of the time with its checksum right.
fn damage_page(dice: &mut Dice, page: &mut [u8]) {
    for _ in 0..=dice.below(4) {
        // The fields lie at the front, the strings behind the chunks.
        let most = [64, 160, 700, PAGE as u64][dice.below(4) as usize];
        let at = dice.below(most) as usize;
        match dice.below(4) {
            0 => page[at] ^= 1 << dice.below(8),
            1 => page[at] = dice.draw() as u8,
            _ => {
                // Fields are aligned; their lengths are two, four or eight bytes.
                let length = 2_usize << dice.below(3);
                let at = at / length * length;
                page[at..at + length].copy_from_slice(&number(dice).to_le_bytes()[..length]);
            }
        }
    }
    if dice.one_in(20) {
        page.iter_mut().for_each(|byte| *byte = dice.draw() as u8);
    }
    if !dice.one_in(4) {
        make_right(page);
    }
}

/// Makes a page's checksum right: every page of ours has it in the same place.
fn make_right(page: &mut [u8]) {
    let crc = crc32c(&page[12..]);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// Makes the checksum right that a segment's last page has of the footer's other pages, and its own.
fn make_footer_right(segment: &mut [u8]) {
    let Some(at) = segment.len().checked_sub(PAGE) else {
        return;
    };
    let (rest, trailer) = segment.split_at_mut(at);
    let offset = u64::from_le_bytes(trailer[48..56].try_into().expect("eight bytes"));
    let entries = usize::try_from(offset)
        .ok()
        .and_then(|from| rest.get(from..));
    let crc = crc64nvme(entries.unwrap_or_default());
    trailer[64..72].copy_from_slice(&crc.to_le_bytes());
    make_right(trailer);
}

/// The place of a page of the folder's segments.
fn place(segment: u32, incarnation: u64, page: usize) -> Place {
    Place {
        folder: FOLDER,
        shard: 0,
        segment,
        incarnation,
        offset: (page * PAGE) as u64,
    }
}

/// Segments as the engine leaves them.
fn segments() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for end in [End::Stop, End::Crash] {
        let folder = Folder::make(SMALL, end);
        let names = folder.intact.names();
        all.extend(names.iter().map(|name| folder.intact.content(name)));
    }
    all
}

/// A folder as it is formatted: the superblock's file.
fn superblock() -> Vec<u8> {
    let disk = SimDisk::new(0);
    let (inside, pool) = (disk.clone(), Pool::new(1 << 20));
    let limits = FolderLimits::of_quota(QUOTA_BYTES_MIN);
    let mut executor = SimExecutor::new(1);
    let runtime = executor.runtime();
    executor
        .block_on(async move { open_or_format(&runtime, &inside, &pool, limits).await })
        .expect("an empty folder is formatted");
    disk.content(SUPERBLOCK_NAME)
}

#[test]
fn decoders() {
    let segments = segments();
    for_seeds("decoders", |dice| {
        for _ in 0..DECODES_PER_ROUND {
            let source = &segments[dice.below(segments.len() as u64) as usize];
            let pages = source.len() / PAGE;
            let number = dice.below(pages as u64) as usize;
            let mut page = source[number * PAGE..][..PAGE].to_vec();
            damage_page(dice, &mut page);
            // Whatever place it claims is where it is looked for, so that the place stops nothing.
            let claimed = Place {
                folder: page[16..32].try_into().expect("sixteen bytes"),
                shard: u32::from_le_bytes(page[32..36].try_into().expect("four bytes")),
                segment: u32::from_le_bytes(page[36..40].try_into().expect("four bytes")),
                incarnation: u64::from_le_bytes(page[40..48].try_into().expect("eight bytes")),
                offset: u64::from_le_bytes(page[48..56].try_into().expect("eight bytes")),
            };
            decode_page(&page, &claimed);
            decode_page(&page, &place(0, 1, number));
            decode_footer(dice, source);
        }
    });
}

fn decode_page(page: &[u8], place: &Place) {
    let header = within(PAGE_DECODE_BYTES_MAX, || RecordHeader::decode(page, place));
    if let Ok(header) = header {
        let mut again = [0; PAGE];
        header
            .encode(&mut again, place)
            .expect("what came from a page fits a page");
        assert_eq!(RecordHeader::decode(&again, place), Ok(header));
    }
    within(PAGE_DECODE_BYTES_MAX, || {
        let _ = decode_segment_header(
            page,
            &Place {
                offset: 0,
                ..*place
            },
        );
        let _ = RecordHeader::incarnation_of(page, place);
        if let Ok(trailer) = decode_trailer(page, place, SMALL.segment_bytes) {
            assert!(trailer.offset < SMALL.segment_bytes);
        }
    });
}

/// A whole footer whose last page, or whose entries, are damaged.
fn decode_footer(dice: &mut Dice, source: &[u8]) {
    let mut segment = source.to_vec();
    let at = segment.len() - PAGE;
    if dice.one_in(2) {
        damage_page(dice, &mut segment[at..]);
    } else {
        damage_page(dice, &mut segment[at - PAGE..at]);
    }
    make_footer_right(&mut segment);
    let incarnation =
        u64::from_le_bytes(segment[at + 40..at + 48].try_into().expect("eight bytes"));
    let number = u32::from_le_bytes(segment[at + 36..at + 40].try_into().expect("four bytes"));
    let place = place(number, incarnation, 0);
    if let Ok(trailer) = decode_trailer(&segment[at..], &place, SMALL.segment_bytes) {
        let bytes = &segment[trailer.offset as usize..at];
        let most = FOOTER_DECODE_FACTOR * bytes.len();
        let _ = within(most, || decode_entries(bytes, &trailer));
        // Fewer pages than the trailer promises.
        let _ = within(most, || decode_entries(&bytes[..bytes.len() / 2], &trailer));
    }
}

#[test]
fn superblocks() {
    let intact = superblock();
    for_seeds("superblocks", |dice| {
        let mut content = intact.clone();
        for copy in content.chunks_exact_mut(PAGE) {
            // Its fields are at the front.
            for _ in 0..dice.below(3) {
                let at = [12, 16, 32, 36, 40, 44, 48][dice.below(7) as usize];
                copy[at..at + 4].copy_from_slice(&number(dice).to_le_bytes()[..4]);
                make_right(copy);
            }
            if dice.one_in(3) {
                damage_page(dice, copy);
            }
        }
        content.truncate(match dice.below(4) {
            0 => dice.below(content.len() as u64 + 1) as usize,
            _ => content.len(),
        });
        within(PAGE_DECODE_BYTES_MAX, || {
            for copy in content.chunks_exact(PAGE) {
                if let Ok(found) = Superblock::decode(copy) {
                    assert_sane(&found);
                }
            }
            if let Ok((found, _)) = check_superblock(&content) {
                assert_sane(&found);
            }
        });
        let disk = SimDisk::new(0);
        disk.put_file(SUPERBLOCK_NAME, content.clone());
        let (inside, pool) = (disk.clone(), Pool::new(1 << 20));
        let limits = FolderLimits::of_quota(QUOTA_BYTES_MIN);
        let mut executor = SimExecutor::new(1);
        let runtime = executor.runtime();
        let opened = executor
            .block_on(async move { open_or_format(&runtime, &inside, &pool, limits).await });
        if let Ok(found) = opened {
            assert_sane(&found);
        }
        assert!(disk.content(SUPERBLOCK_NAME) == content, "written over");
    });
}

fn assert_sane(superblock: &Superblock) {
    assert!(superblock.shards.is_power_of_two());
    assert!(superblock.segment_bytes.is_multiple_of(PAGE as u64));
    for quota in [0, 1 << 20, 1 << 40, u64::MAX] {
        if let Ok(segments) = superblock.segments_per_shard(quota) {
            assert!(segments > 0);
        }
    }
}

/// Changes a segment so that its checksums hide it. Then what was written cannot be expected back.
fn forge(dice: &mut Dice, segment: &mut [u8]) {
    let pages = segment.len() / PAGE;
    let heads: Vec<usize> = (0..pages)
        .filter(|page| segment[page * PAGE..].starts_with(b"FB"))
        .collect();
    let Some(page) = heads.get(dice.below(heads.len().max(1) as u64) as usize) else {
        return;
    };
    let page = &mut segment[page * PAGE..][..PAGE];
    // Not its identity: with another one it would only be stepped over.
    let at = [12, 14, 40, 48, 56, 64, 68, 80, 104, 112, 132, 136, 144][dice.below(13) as usize];
    let length = 1_usize << dice.below(4);
    page[at..at + length].copy_from_slice(&number(dice).to_le_bytes()[..length]);
    make_right(page);
    if dice.one_in(3) && pages > 2 {
        // An entry of the footer: page, length, kind or sequence.
        let entry = (pages - 2) * PAGE + dice.below(12) as usize * 40;
        let at = entry + [16, 24, 28, 32][dice.below(4) as usize];
        segment[at..at + 4].copy_from_slice(&number(dice).to_le_bytes()[..4]);
        make_footer_right(segment);
    }
}

/// Changes a segment as a bad disk does.
fn rot(dice: &mut Dice, segment: &mut Vec<u8>, others: &[Vec<u8>]) {
    let pages = (segment.len() / PAGE) as u64;
    if pages == 0 {
        return;
    }
    let page = dice.below(pages) as usize * PAGE;
    match dice.below(7) {
        0 => {
            let at = dice.below(segment.len() as u64) as usize;
            segment[at] ^= 1 << dice.below(8);
        }
        1 => segment[page..page + PAGE].fill(0),
        2 => segment[page..page + PAGE].fill_with(|| dice.draw() as u8),
        // A write that landed elsewhere, or a page of a former life or of another segment.
        3 => {
            let from = dice.below(pages) as usize * PAGE;
            segment.copy_within(from..from + PAGE, page);
        }
        4 => {
            let other = &others[dice.below(others.len() as u64) as usize];
            let count = (1 + dice.below(pages) as usize) * PAGE;
            let end = (page + count).min(other.len()).min(segment.len());
            if page < end {
                segment[page..end].copy_from_slice(&other[page..end]);
            }
        }
        5 => segment.truncate(dice.below(segment.len() as u64 + 1) as usize),
        _ => segment.resize(segment.len() + dice.below(3 * PAGE as u64) as usize, 0xff),
    }
}

/// Whole folders: started on, read, written to, and checked.
#[test]
fn folders() {
    let mut made = [End::Stop, End::Crash].map(|end| Folder::make(SMALL, end));
    let others = segments();
    for_seeds("folders", |dice| {
        let folder = &mut made[dice.below(2) as usize];
        folder.restore();
        let forged = dice.one_in(2);
        for name in folder.intact.names() {
            let mut segment = folder.intact.content(&name);
            for _ in 0..dice.below(4) {
                match forged {
                    true => forge(dice, &mut segment),
                    false => rot(dice, &mut segment, &others),
                }
            }
            folder.machine.disk.put_file(&name, segment);
        }
        if dice.one_in(8) {
            let name = format!("segment-000-{:06}", number(dice) as u32);
            let segment = others[dice.below(others.len() as u64) as usize].clone();
            folder.machine.disk.put_file(&name, segment);
        }
        let seed = dice.draw();
        within(RUN_BYTES_MAX, || live_on(folder, forged, seed));
    });
}

/// A check, two runs with reads and writes, and a check again.
fn live_on(folder: &mut Folder, forged: bool, seed: u64) {
    check(&folder.machine.disk, &SMALL);
    for life in 0..2 {
        let mut world = folder.machine.start(seed.wrapping_add(life), 1);
        for (volume, key, expected) in &folder.expected {
            let found = read(&mut world, volume, key);
            let right = found == *expected || folder.was_once(key, found.as_deref());
            assert!(forged || right, "{key}: bytes that were never written");
        }
        folder.write_again(&mut world);
        for (volume, key, expected) in &folder.expected {
            assert!(
                read(&mut world, volume, key) == *expected,
                "{key}: not what was just written"
            );
        }
        world.stop();
    }
    check(&folder.machine.disk, &SMALL);
}
