//! The cache folder's identity: what it is, how it was formatted, whether it is ours at all.
//!
//! One file, `superblock`, holds two copies of one page. A folder that has files but no valid
//! superblock, or one of a newer format, is refused; it is never formatted over. Formatting
//! happens only in an empty folder.

use crate::format::{FORMAT_VERSION, FolderId, crc32c};
use crate::segment::{SEGMENT_NAME_PREFIX, parse_segment_name};
use forebay_io::buffer::{PAGE, Pool};
use forebay_io::disk::{Disk, DiskFile};
use forebay_io::runtime::Runtime;
use std::io;

/// The superblock's file name.
pub const SUPERBLOCK_NAME: &str = "superblock";

/// The lock's file name; the only thing besides the superblock that may stand in a new folder.
pub const LOCK_NAME: &str = forebay_io::probe::LOCK_FILE_NAME;

/// Name of the list of stores that blocks may be dirty for; the server keeps it.
pub const STORES_NAME: &str = "stores";

/// What it is called while it is written.
pub const STORES_NEW_NAME: &str = "stores.new";

const MAGIC: [u8; 8] = *b"FOREBAY\0";

/// Most virtual shards: enough for one on each core of the largest machines twice over.
pub const SHARDS_MAX: u32 = 256;

/// Smallest segment, less its slack: holds one record of the largest block.
const SEGMENT_BASE_BYTES_MIN: u64 = 8 << 20;

/// Largest segment, less its slack. Larger ones make reclaim coarser and the scan after a crash
/// longer.
const SEGMENT_BASE_BYTES_MAX: u64 = 256 << 20;

/// The segment size from which on more shards are made rather than larger segments, up to
/// [`SHARDS_ENOUGH`].
const SEGMENT_BASE_BYTES_WANTED: u64 = 32 << 20;

/// The segment size from which on even more shards are made. Every segment is an open file and some
/// hundred bytes of memory, of which blocks of a few MiB in small segments have as much as in
/// the index: a TiB is 9,000 files of this size, and 36,000 of the other.
const SEGMENT_BASE_BYTES_LARGE: u64 = 128 << 20;

/// Shards that are enough for the cores of machines whose cache is below a TiB.
const SHARDS_ENOUGH: u64 = 64;

/// Segments per shard that a format aims for. Space in open segments and in the spare ones is not
/// used for blocks: three of a hundred or so cost little, three of a dozen a quarter. The probation
/// queue, a tenth, needs some segments too.
const SEGMENTS_PER_SHARD_WANTED: u64 = 128;

/// Shards that even a small folder has, so that a few cores share its work.
const SHARDS_WANTED: u64 = 4;

/// Smallest quota that can hold a cache: seven segments of the smallest size.
pub const QUOTA_BYTES_MIN: u64 = 64 << 20;

/// What the folder takes beside its segments: superblock, lock, and the folder itself.
const FOLDER_OVERHEAD_BYTES: u64 = 64 << 10;

/// What a file system takes for a segment beside its bytes: a name, and a few blocks that say where
/// its extents are. ext4 and xfs were seen to take one.
const SEGMENT_OVERHEAD_BYTES: u64 = 16 << 10;

const _: () = assert!(
    (QUOTA_BYTES_MIN - FOLDER_OVERHEAD_BYTES)
        / (segment_bytes(SEGMENT_BASE_BYTES_MIN) + SEGMENT_OVERHEAD_BYTES)
        > crate::evict::TWO_QUEUES_SEGMENTS_MIN as u64
);

/// Bytes of a segment that holds `base` bytes of payload: as many blocks of 1 MiB and more as
/// `base` is worth, with their headers, and a footer. A plain power of two would hold one less,
/// which is a quarter of the space when four are expected.
const fn segment_bytes(base: u64) -> u64 {
    base + base / 256 + (64 << 10)
}

/// How a folder is laid out, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Random identity, in every page of the folder.
    pub folder: FolderId,
    /// Virtual shards, a power of two.
    pub shards: u32,
    /// Bytes of each segment file.
    pub segment_bytes: u64,
}

/// What a folder must keep within.
#[derive(Clone, Copy, Debug)]
pub struct FolderLimits {
    /// Bytes that it may take.
    pub quota_bytes: u64,
    /// Segment files that may be open: all of them are, as long as the program runs.
    pub segment_files_max: u64,
}

impl FolderLimits {
    /// A quota, and as many files as it takes.
    pub fn of_quota(quota_bytes: u64) -> FolderLimits {
        FolderLimits {
            quota_bytes,
            segment_files_max: u64::MAX,
        }
    }
}

/// Why a folder cannot be used. One line each; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Files, but no superblock.
    #[error(
        "it holds {example:?} but no superblock: it is not a cache folder, or one whose making \
         was cut short; give an empty folder"
    )]
    Foreign {
        /// One of the files found.
        example: String,
    },
    /// A superblock of which no copy is valid.
    #[error(
        "its superblock is damaged in both copies; restore it from a backup or give an empty folder"
    )]
    Damaged,
    /// Another format version.
    #[error(
        "it has format version {found}, this program reads version {FORMAT_VERSION}; run the \
         program that made it, or give an empty folder"
    )]
    Version {
        /// The version found.
        found: u16,
    },
    /// A quota that cannot hold the least cache.
    #[error("the quota of {given} bytes is too small: this folder needs at least {needed} bytes")]
    QuotaTooSmall {
        /// What was given.
        given: u64,
        /// What would do.
        needed: u64,
    },
    /// More segment files than may be open.
    #[error(
        "{needed} segment files must be open, and there may be {allowed}: raise the limit of open \
         files (`LimitNOFILE=` in the systemd unit, `ulimit -Hn`), or give it a smaller quota"
    )]
    TooManySegments {
        /// As many as the quota makes of the largest segments that can be chosen, or as there are.
        needed: u64,
        /// What the limit of open files leaves.
        allowed: u64,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What came back.
        source: io::Error,
    },
}

impl Superblock {
    /// A new folder's layout within `limits`.
    fn choose<R: Runtime>(runtime: &R, limits: FolderLimits) -> Result<Superblock, FolderError> {
        let (shards, segment_bytes) = choose_sizes(limits)?;
        let mut folder = [0; 16];
        folder[..8].copy_from_slice(&runtime.random().to_le_bytes());
        folder[8..].copy_from_slice(&runtime.random().to_le_bytes());
        Ok(Superblock {
            folder,
            shards,
            segment_bytes,
        })
    }

    /// Segments that each shard may have under `quota_bytes`.
    pub fn segments_per_shard(&self, quota_bytes: u64) -> Result<u32, FolderError> {
        segments_per_shard(self.shards, self.segment_bytes, quota_bytes)
    }

    fn encode(&self, page: &mut [u8]) {
        page.fill(0);
        page[..8].copy_from_slice(&MAGIC);
        page[12..14].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        page[16..32].copy_from_slice(&self.folder);
        page[32..36].copy_from_slice(&self.shards.to_le_bytes());
        page[40..48].copy_from_slice(&self.segment_bytes.to_le_bytes());
        let crc = crc32c(&page[12..]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
    }

    /// One copy, or why it is none.
    pub fn decode(page: &[u8]) -> Result<Superblock, FolderError> {
        let field = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("8 bytes"));
        let crc = u32::from_le_bytes(page[8..12].try_into().expect("4 bytes"));
        if page[..8] != MAGIC || crc != crc32c(&page[12..]) {
            return Err(FolderError::Damaged);
        }
        let found = u16::from_le_bytes(page[12..14].try_into().expect("2 bytes"));
        if found != FORMAT_VERSION {
            return Err(FolderError::Version { found });
        }
        let superblock = Superblock {
            folder: page[16..32].try_into().expect("16 bytes"),
            shards: field(32) as u32,
            segment_bytes: field(40),
        };
        let sane = superblock.shards.is_power_of_two()
            && superblock.shards <= SHARDS_MAX
            && superblock.segment_bytes.is_multiple_of(PAGE as u64)
            && (SEGMENT_BASE_BYTES_MIN..=segment_bytes(SEGMENT_BASE_BYTES_MAX))
                .contains(&superblock.segment_bytes);
        if sane {
            Ok(superblock)
        } else {
            Err(FolderError::Damaged)
        }
    }
}

/// Shards, and bytes of a segment, of a new folder.
fn choose_sizes(limits: FolderLimits) -> Result<(u32, u64), FolderError> {
    let FolderLimits {
        quota_bytes,
        segment_files_max,
    } = limits;
    if quota_bytes < QUOTA_BYTES_MIN {
        return Err(FolderError::QuotaTooSmall {
            given: quota_bytes,
            needed: QUOTA_BYTES_MIN,
        });
    }
    let shards_with = |base: u64| quota_bytes / (SEGMENTS_PER_SHARD_WANTED * base);
    let tight = SHARDS_WANTED.min(quota_bytes / QUOTA_BYTES_MIN);
    let wanted = shards_with(SEGMENT_BASE_BYTES_WANTED)
        .min(SHARDS_ENOUGH)
        .max(shards_with(SEGMENT_BASE_BYTES_LARGE))
        .max(tight);
    let mut shards = power_of_two_below(wanted, 1, SHARDS_MAX.into());
    let mut base = power_of_two_below(
        quota_bytes / shards / SEGMENTS_PER_SHARD_WANTED,
        SEGMENT_BASE_BYTES_MIN,
        SEGMENT_BASE_BYTES_MAX,
    );
    loop {
        let sizes = (shards as u32, segment_bytes(base));
        let per_shard = segments_per_shard(sizes.0, sizes.1, quota_bytes)?;
        let needed = shards * u64::from(per_shard);
        if needed <= segment_files_max {
            return Ok(sizes);
        }
        if base == SEGMENT_BASE_BYTES_MAX {
            return Err(FolderError::TooManySegments {
                needed,
                allowed: segment_files_max,
            });
        }
        base *= 2;
        // Half the files, and as many for each shard as before, down to the least shards.
        shards = (shards / 2).max(SHARDS_WANTED.min(shards));
    }
}

fn segments_per_shard(
    shards: u32,
    segment_bytes: u64,
    quota_bytes: u64,
) -> Result<u32, FolderError> {
    let layer_bytes = (segment_bytes + SEGMENT_OVERHEAD_BYTES) * u64::from(shards);
    let usable = quota_bytes.saturating_sub(FOLDER_OVERHEAD_BYTES);
    match usable / layer_bytes {
        0 => Err(FolderError::QuotaTooSmall {
            given: quota_bytes,
            needed: layer_bytes + FOLDER_OVERHEAD_BYTES,
        }),
        count => Ok(count.min(u64::from(u32::MAX)) as u32),
    }
}

/// The largest power of two that is at most `value`, held between two powers of two.
fn power_of_two_below(value: u64, least: u64, most: u64) -> u64 {
    let below = value.checked_ilog2().map_or(1, |log| 1 << log);
    below.clamp(least, most)
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> FolderError {
    move |source| FolderError::Io { what, source }
}

/// Reads the folder's superblock, or formats the folder if it is empty.
pub async fn open_or_format<R: Runtime, D: Disk>(
    runtime: &R,
    disk: &D,
    pool: &Pool,
    limits: FolderLimits,
) -> Result<Superblock, FolderError> {
    let entries = disk.list().await.map_err(failed("cannot list it"))?;
    if entries.iter().any(|entry| entry.name == SUPERBLOCK_NAME) {
        return read(disk, pool).await;
    }
    refuse_foreign(entries.iter().map(|entry| entry.name.as_str()))?;
    let superblock = Superblock::choose(runtime, limits)?;
    format(disk, pool, &superblock)
        .await
        .map_err(failed("cannot write its superblock"))?;
    Ok(superblock)
}

/// Refuses a folder that cannot be used within `limits`, from what can be seen without touching
/// it: its file names, and the superblock's content if there is one.
pub fn inspect<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    superblock: Option<&[u8]>,
    limits: FolderLimits,
) -> Result<(), FolderError> {
    refuse_foreign(names.clone())?;
    let Some(content) = superblock else {
        return choose_sizes(limits).map(drop);
    };
    let superblock = decode_copies(content)?;
    let per_shard = superblock.segments_per_shard(limits.quota_bytes)?;
    // Those beyond a quota that has shrunk are opened before they are removed.
    let present = names.filter(|name| parse_segment_name(name).is_some());
    let needed = (u64::from(superblock.shards) * u64::from(per_shard)).max(present.count() as u64);
    match needed <= limits.segment_files_max {
        true => Ok(()),
        false => Err(FolderError::TooManySegments {
            needed,
            allowed: limits.segment_files_max,
        }),
    }
}

fn refuse_foreign<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Result<(), FolderError> {
    if names.clone().any(|name| name == SUPERBLOCK_NAME) {
        return Ok(());
    }
    // `lost+found` stands in the root of every new ext4 file system.
    match names
        .into_iter()
        .find(|name| *name != LOCK_NAME && *name != "lost+found")
    {
        Some(name) => Err(FolderError::Foreign {
            example: name.to_owned(),
        }),
        None => Ok(()),
    }
}

async fn read<D: Disk>(disk: &D, pool: &Pool) -> Result<Superblock, FolderError> {
    let cannot = "cannot read its superblock";
    let file = disk.open(SUPERBLOCK_NAME).await.map_err(failed(cannot))?;
    let buffer = pool.take(2 * PAGE).await;
    let (count, mut buffer) = file.read(0, buffer, PAGE..3 * PAGE).await;
    let count = count.map_err(failed(cannot))?;
    buffer.advance(count);
    decode_copies(buffer.body())
}

/// The first valid copy.
fn decode_copies(content: &[u8]) -> Result<Superblock, FolderError> {
    let mut verdict = FolderError::Damaged;
    for copy in content.chunks_exact(PAGE) {
        match Superblock::decode(copy) {
            Ok(superblock) => return Ok(superblock),
            Err(version @ FolderError::Version { .. }) => verdict = version,
            Err(_) => {}
        }
    }
    Err(verdict)
}

async fn format<D: Disk>(disk: &D, pool: &Pool, superblock: &Superblock) -> io::Result<()> {
    let file = disk.create(SUPERBLOCK_NAME, 2 * PAGE as u64).await?;
    let mut buffer = pool.take(PAGE).await;
    superblock.encode(buffer.headroom_mut());
    superblock.encode(&mut buffer.spare_mut()[..PAGE]);
    buffer.advance(PAGE);
    file.write(0, buffer.freeze(), 0..2 * PAGE).await?;
    file.sync().await
}

/// Removes segment files without any content and takes them out of the folder's listing. A process
/// that dies while it makes a segment leaves one: no space was ever set aside for it.
///
/// # Errors
/// What the disk says.
pub async fn discard_unmade<D: Disk>(
    disk: &D,
    entries: &mut Vec<forebay_io::disk::FileEntry>,
) -> io::Result<()> {
    let is_unmade = |entry: &forebay_io::disk::FileEntry| {
        entry.size == 0 && parse_segment_name(&entry.name).is_some()
    };
    for entry in entries.iter().filter(|entry| is_unmade(entry)) {
        disk.remove(&entry.name).await?;
    }
    entries.retain(|entry| !is_unmade(entry));
    Ok(())
}

/// Numbers of the segment files of each shard, from the folder's listing.
pub fn segment_files(
    entries: &[forebay_io::disk::FileEntry],
    superblock: &Superblock,
) -> Vec<Vec<u32>> {
    let mut shards = vec![Vec::new(); superblock.shards as usize];
    for entry in entries {
        let Some((shard, segment)) = parse_segment_name(&entry.name) else {
            if entry.name.starts_with(SEGMENT_NAME_PREFIX) {
                log::warn!(
                    "ignoring {:?}, which is not a segment of this folder",
                    entry.name
                );
            }
            continue;
        };
        match shards.get_mut(shard as usize) {
            Some(numbers) => numbers.push(segment),
            None => log::warn!("ignoring {:?}: the folder has no such shard", entry.name),
        }
    }
    for numbers in &mut shards {
        numbers.sort_unstable();
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_io::sim::{SimDisk, SimExecutor};

    fn open(disk: &SimDisk, quota: u64) -> Result<Superblock, FolderError> {
        let mut executor = SimExecutor::new(1);
        let runtime = executor.runtime();
        let pool = Pool::new(1 << 20);
        let disk = disk.clone();
        let limits = FolderLimits::of_quota(quota);
        executor.block_on(async move { open_or_format(&runtime, &disk, &pool, limits).await })
    }

    #[test]
    fn layouts_fit_their_quota() {
        for shift in 26..44 {
            for quota in [1_u64 << shift, (1 << shift) + (3 << (shift - 2))] {
                let sizes = choose_sizes(FolderLimits::of_quota(quota));
                let (shards, segment_bytes) = sizes.expect("large enough");
                let count = segments_per_shard(shards, segment_bytes, quota).expect("at least one");
                let used = segment_bytes * u64::from(shards) * u64::from(count);
                let layout = format!("quota {quota}: {shards} shards of {count} {segment_bytes}");
                assert!(used + 2 * PAGE as u64 <= quota, "{layout}");
                assert!(count >= 6, "{layout}");
                // Enough that what open and spare segments waste is little.
                assert!(quota < 1 << 33 || count >= 100, "{layout}");
                assert!(quota < 1 << 28 || shards >= 4, "{layout}");
                // Few enough to be open, and that blocks of 4 MiB have little memory in each.
                let files = u64::from(shards) * u64::from(count);
                assert!(quota > 1 << 40 || files <= 17_000, "{layout}");
            }
        }
    }

    #[test]
    fn segments_are_larger_where_fewer_files_may_be_open() {
        let quota_bytes = 5 << 38;
        let files = |segment_files_max| {
            let chosen = choose_sizes(FolderLimits {
                quota_bytes,
                segment_files_max,
            });
            chosen.map(|(shards, segment_bytes)| {
                let count = segments_per_shard(shards, segment_bytes, quota_bytes);
                let count = count.expect("at least one");
                assert!(count >= 100, "{shards} shards of {count} {segment_bytes}");
                u64::from(shards) * u64::from(count)
            })
        };
        let freely = files(u64::MAX).expect("without a limit");
        assert_eq!(files(freely).expect("just enough"), freely);
        let fewer = files(freely - 1).expect("larger ones");
        assert!(fewer < freely && fewer > freely / 3, "{fewer} of {freely}");
        let needed = match files(64) {
            Err(FolderError::TooManySegments { needed, allowed }) => {
                assert_eq!(allowed, 64);
                needed
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(files(needed).expect("what it said would do"), needed);
    }

    #[test]
    fn a_folder_with_too_many_segments_is_refused_untouched() {
        let disk = SimDisk::new(0);
        let superblock = open(&disk, 1 << 30).expect("formatted");
        let mut content = vec![0; PAGE];
        superblock.encode(&mut content);
        let count = superblock.segments_per_shard(1 << 30).expect("some");
        let files = u64::from(superblock.shards) * u64::from(count);
        let inspect_with = |segment_files_max, quota_bytes, present: u32| {
            let mut names = vec![SUPERBLOCK_NAME.to_owned()];
            names.extend((0..present).map(|number| crate::segment::segment_name(0, number)));
            let limits = FolderLimits {
                quota_bytes,
                segment_files_max,
            };
            inspect(names.iter().map(String::as_str), Some(&content), limits)
        };
        inspect_with(files, 1 << 30, 9).expect("just enough");
        for (allowed, quota, present) in
            [(files - 1, 1 << 30, 0), (files, 1 << 29, files as u32 + 1)]
        {
            let refused = inspect_with(allowed, quota, present);
            assert!(
                matches!(refused, Err(FolderError::TooManySegments { .. })),
                "{allowed} {quota} {present}: {refused:?}"
            );
        }
    }

    #[test]
    fn an_empty_folder_is_formatted_once() {
        let disk = SimDisk::new(0);
        let first = open(&disk, 1 << 30).expect("formatted");
        assert_eq!(
            open(&disk, 1 << 34).expect("read back"),
            first,
            "the layout never changes"
        );
        assert!(matches!(
            Superblock {
                shards: 256,
                segment_bytes: 1 << 28,
                ..first
            }
            .segments_per_shard(1 << 30),
            Err(FolderError::QuotaTooSmall { .. })
        ));
    }

    #[test]
    fn one_damaged_copy_is_survived_two_are_refused() {
        let disk = SimDisk::new(0);
        let first = open(&disk, 1 << 30).expect("formatted");
        disk.flip_bit(SUPERBLOCK_NAME, 20);
        assert_eq!(open(&disk, 1 << 30).expect("second copy"), first);
        disk.flip_bit(SUPERBLOCK_NAME, PAGE + 20);
        assert!(matches!(open(&disk, 1 << 30), Err(FolderError::Damaged)));
    }

    #[test]
    fn foreign_folders_are_left_alone() {
        let disk = SimDisk::new(0);
        disk.put_file("thesis.doc", b"do not lose".to_vec());
        assert!(matches!(
            open(&disk, 1 << 30),
            Err(FolderError::Foreign { .. })
        ));
        assert_eq!(disk.names(), ["thesis.doc"]);
    }
}
