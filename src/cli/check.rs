//! `forebay check`: reads a whole cache folder, says what is wrong with it, changes nothing.
//!
//! This file owns threads, files, progress and the words of the report; what counts as damage is
//! [`forebay_shards::check`]'s. It opens every file for reading only. The one thing that it
//! writes is its process id into the folder's lock, which it holds so that no proxy runs meanwhile.

use super::CheckArguments;
use crate::settings::{Environment, SettingsError};
use forebay_io::buffer::PAGE;
use forebay_io::disk::FileEntry;
use forebay_io::probe::{self, FolderLock, ProbeError};
use forebay_shards::check::{
    self, Defect, Fault, Meaning, RecordSummary, SegmentReport, SegmentSource, SegmentState,
    Summary,
};
use forebay_shards::format::SegmentPurpose;
use forebay_shards::segment::segment_name;
use forebay_shards::superblock::{FolderError, SUPERBLOCK_NAME, Superblock};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Where the cache is when nothing is said, as for `forebay start`.
const DISK_FOLDER_DEFAULT: &str = "/cache";

/// Bytes read at once: enough for a device to be busy with several requests of one thread.
const READ_BYTES: usize = 4 << 20;

/// Threads, at least: while some compute checksums, others keep the device busy.
const THREADS_MIN: usize = 4;

/// Threads, at most: each holds a buffer, and no device gets faster with more.
const THREADS_MAX: usize = 16;

/// Pause between two lines of progress where there is no terminal.
const PROGRESS_LINE_PAUSE: Duration = Duration::from_secs(5);

/// What a terminal shows.
const BAR: &str = "{percent:>3} % {wide_bar} {binary_bytes} of {binary_total_bytes}, \
                   {binary_bytes_per_sec}, {eta} left";

/// Pause between two looks at the progress.
const PROGRESS_TICK: Duration = Duration::from_millis(200);

/// Why a folder was not checked to its end. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A flag's value is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The folder is not ours, or a proxy runs on it.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// There is no superblock.
    #[error(
        "folder {}: it has no superblock, so it is not a cache folder; give the folder of --diskFolder",
        .folder.display()
    )]
    NoSuperblock {
        /// The folder.
        folder: PathBuf,
    },
    /// Without a superblock nothing can be checked.
    #[error("cache folder {}: {source}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        source: FolderError,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What came back.
        source: io::Error,
    },
}

impl CheckError {
    /// Whether the fault lies in what was typed rather than in the folder.
    pub fn is_usage(&self) -> bool {
        match self {
            CheckError::Settings(_) => true,
            CheckError::Probe(_)
            | CheckError::NoSuperblock { .. }
            | CheckError::Folder { .. }
            | CheckError::Io { .. } => false,
        }
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> CheckError {
    move |source| CheckError::Io {
        what: what.into(),
        source,
    }
}

/// Checks the folder and writes the report to `output`. Returns how many defects there are.
pub fn run(
    arguments: &CheckArguments,
    environment: &Environment,
    output: &mut dyn Write,
) -> Result<u64, CheckError> {
    let given = arguments.disk_folder.as_deref();
    let folder = environment.path("--diskFolder", given.unwrap_or(DISK_FOLDER_DEFAULT))?;
    probe::private_folder(&folder)?;
    // Before the lock, whose file would be the first of ours in a folder that is not.
    let content = match std::fs::read(folder.join(SUPERBLOCK_NAME)) {
        Ok(content) => content,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(CheckError::NoSuperblock { folder });
        }
        Err(e) => return Err(failed("cannot read the superblock")(e)),
    };
    let (superblock, defects) =
        check::check_superblock(&content).map_err(|source| CheckError::Folder {
            folder: folder.clone(),
            source,
        })?;
    let lock = FolderLock::acquire(&folder)?;
    let found = check_locked(&folder, superblock, defects, arguments.verbose, output);
    lock.undo();
    found
}

fn check_locked(
    folder: &Path,
    superblock: Superblock,
    superblock_defects: Vec<Defect>,
    verbose: bool,
    output: &mut dyn Write,
) -> Result<u64, CheckError> {
    let entries = list(folder).map_err(failed(format!("cannot list {}", folder.display())))?;
    let listing = check::check_names(&entries, &superblock);
    let sizes = listing.segments.iter().map(|(_, _, size)| *size);
    let total_bytes = sizes.map(|size| size.min(superblock.segment_bytes)).sum();
    let started = Instant::now();
    let mut report = Report {
        output,
        progress: Progress::new(total_bytes, started),
        summary: Summary::default(),
        verbose,
    };
    for defect in superblock_defects.iter().chain(&listing.defects) {
        report.tell(defect)?;
    }
    check_segments(folder, &superblock, &listing.segments, &mut report)?;
    let Report {
        summary, progress, ..
    } = report;
    progress.finish();
    let text = closing_text(
        folder,
        &superblock,
        &summary,
        total_bytes,
        started.elapsed(),
    );
    write_report(output, &text)?;
    Ok(summary.defects)
}

fn list(folder: &Path) -> io::Result<Vec<FileEntry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        entries.push(FileEntry {
            name: entry.file_name().to_string_lossy().into_owned(),
            size: entry.metadata()?.len(),
        });
    }
    Ok(entries)
}

/// What all threads of a check share.
struct Work<'a> {
    folder: &'a Path,
    superblock: &'a Superblock,
    segments: &'a [(u32, u32, u64)],
    next: AtomicUsize,
    bytes_passed: AtomicU64,
}

/// Reads all segments with a few threads and reports each as it comes.
fn check_segments(
    folder: &Path,
    superblock: &Superblock,
    segments: &[(u32, u32, u64)],
    report: &mut Report<'_>,
) -> Result<(), CheckError> {
    let work = Work {
        folder,
        superblock,
        segments,
        next: AtomicUsize::new(0),
        bytes_passed: AtomicU64::new(0),
    };
    let mut shards = Shards::new(segments);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores
        .clamp(THREADS_MIN, THREADS_MAX)
        .min(segments.len().max(1));
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for number in 0..threads {
            let (work, sender) = (&work, sender.clone());
            std::thread::Builder::new()
                .name(format!("check-{number}"))
                .spawn_scoped(scope, move || work.run(&sender))
                .map_err(failed("cannot start a thread"))?;
        }
        drop(sender);
        loop {
            match receiver.recv_timeout(PROGRESS_TICK) {
                Ok((shard, segment, found)) => {
                    report.segment(shard, segment, &found)?;
                    if let Some(records) = shards.add(shard, found.records) {
                        report.shard(shard, records)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let passed = work.bytes_passed.load(Ordering::Relaxed);
            report.progress.show(passed);
        }
    })
}

impl Work<'_> {
    /// Checks segments until there are no more, or nobody listens any more.
    fn run(&self, reports: &mpsc::Sender<(u32, u32, SegmentReport)>) {
        // Direct reads want an aligned address, which a vector does not promise.
        let mut memory = vec![0; READ_BYTES + PAGE];
        let skipped = memory.as_ptr().align_offset(PAGE).min(PAGE);
        let buffer = &mut memory[skipped..skipped + READ_BYTES];
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((shard, segment, size)) = self.segments.get(index).copied() else {
                return;
            };
            let found = self.segment(buffer, shard, segment, size);
            if reports.send((shard, segment, found)).is_err() {
                return;
            }
        }
    }

    fn segment(&self, buffer: &mut [u8], shard: u32, segment: u32, size: u64) -> SegmentReport {
        let name = segment_name(shard, segment);
        match open(&self.folder.join(&name)) {
            Ok(file) => {
                let mut source = FileSource {
                    file,
                    size,
                    bytes_passed: &self.bytes_passed,
                };
                check::check_segment(&mut source, buffer, self.superblock, shard, segment)
            }
            Err(error) => SegmentReport {
                state: SegmentState::Empty,
                purpose: None,
                records: Vec::new(),
                defects: vec![Defect {
                    file: name,
                    offset: 0,
                    fault: Fault::Unopened(error.to_string()),
                    meaning: Meaning::SegmentFetchedAgain,
                }],
            },
        }
    }
}

/// Opens for reading past the page cache, which would only be emptied of what others need; through
/// it where the file system knows no direct reads.
fn open(path: &Path) -> io::Result<File> {
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | flags)
            .open(path)
    };
    match open(libc::O_DIRECT) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => open(0),
        opened => opened,
    }
}

struct FileSource<'a> {
    file: File,
    size: u64,
    bytes_passed: &'a AtomicU64,
}

impl SegmentSource for FileSource<'_> {
    fn length(&self) -> u64 {
        self.size
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        // A count that is no whole page is the file's end, and no place for a direct read to go on.
        while filled < buffer.len() && filled.is_multiple_of(PAGE) {
            match self
                .file
                .read_at(&mut buffer[filled..], offset + filled as u64)
            {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    fn passed(&mut self, bytes: u64) {
        self.bytes_passed.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Records by shard, until all of its segments have been read.
struct Shards(BTreeMap<u32, (usize, Vec<RecordSummary>)>);

impl Shards {
    fn new(segments: &[(u32, u32, u64)]) -> Shards {
        let mut shards: BTreeMap<u32, (usize, Vec<RecordSummary>)> = BTreeMap::new();
        for (shard, _, _) in segments {
            shards.entry(*shard).or_default().0 += 1;
        }
        Shards(shards)
    }

    /// Takes a segment's records; gives the shard's once they are complete.
    fn add(&mut self, shard: u32, records: Vec<RecordSummary>) -> Option<Vec<RecordSummary>> {
        let (missing, all) = self.0.get_mut(&shard)?;
        all.extend(records);
        *missing -= 1;
        if *missing > 0 {
            return None;
        }
        self.0.remove(&shard).map(|(_, all)| all)
    }
}

/// What is being told.
struct Report<'a> {
    output: &'a mut dyn Write,
    progress: Progress,
    summary: Summary,
    verbose: bool,
}

impl Report<'_> {
    fn line(&mut self, line: &str) -> Result<(), CheckError> {
        let output = &mut self.output;
        self.progress
            .aside(|| write_report(*output, &format!("{line}\n")))
    }

    fn tell(&mut self, defect: &Defect) -> Result<(), CheckError> {
        self.summary.defects += 1;
        self.line(&defect.to_string())
    }

    fn segment(
        &mut self,
        shard: u32,
        segment: u32,
        found: &SegmentReport,
    ) -> Result<(), CheckError> {
        self.summary.count_segment(found);
        for defect in &found.defects {
            self.tell(defect)?;
        }
        if !self.verbose {
            return Ok(());
        }
        let state = match found.state {
            SegmentState::Empty => "empty",
            SegmentState::Open => "open",
            SegmentState::Sealed => "sealed",
        };
        let purpose = match found.purpose {
            Some(SegmentPurpose::Probation) => "probation",
            Some(SegmentPurpose::Main) => "main",
            Some(SegmentPurpose::Dirty) => "dirty",
            Some(SegmentPurpose::Free) => "free",
            None if found.state == SegmentState::Empty => "not used yet",
            None => "of unknown purpose",
        };
        let name = segment_name(shard, segment);
        let (records, defects) = (found.records.len(), found.defects.len());
        self.line(&format!(
            "{name}: {state}, {purpose}, {records} records and graves, {defects} defects"
        ))
    }

    fn shard(&mut self, shard: u32, records: Vec<RecordSummary>) -> Result<(), CheckError> {
        let (counts, defects) = check::rank_shard(shard, records);
        self.summary.add(&Summary {
            defects: 0,
            ..counts
        });
        defects.iter().try_for_each(|defect| self.tell(defect))
    }
}

fn write_report(output: &mut dyn Write, text: &str) -> Result<(), CheckError> {
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(failed("standard output"))
}

fn closing_text(
    folder: &Path,
    superblock: &Superblock,
    summary: &Summary,
    bytes: u64,
    elapsed: Duration,
) -> String {
    let Summary {
        segments_sealed,
        segments_open,
        segments_empty,
        segments_probation,
        segments_main,
        segments_dirty,
        records_live,
        records_dirty,
        records_replaced,
        tombstones,
        live_bytes,
        replaced_bytes,
        defects,
    } = *summary;
    let verdict = match defects {
        0 => "no defects".to_owned(),
        1 => "1 defect".to_owned(),
        count => format!("{count} defects"),
    };
    format!(
        "folder    {} ({} virtual shards, segments of {})\n\
         segments  {segments_sealed} sealed, {segments_open} open, {segments_empty} empty \
         ({segments_probation} probation, {segments_main} main, {segments_dirty} dirty)\n\
         records   {records_live} live ({}, {records_dirty} written dirty), {records_replaced} replaced ({}), \
         {tombstones} tombstones\n\
         read      {} in {:.1} s, {:.2} GiB/s\n\
         found     {verdict}\n",
        folder.display(),
        superblock.shards,
        HumanBytes(superblock.segment_bytes),
        HumanBytes(live_bytes),
        HumanBytes(replaced_bytes),
        HumanBytes(bytes),
        elapsed.as_secs_f64(),
        gib_per_second(bytes, elapsed),
    )
}

fn gib_per_second(bytes: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 {
        bytes as f64 / seconds / f64::from(1 << 30)
    } else {
        0.0
    }
}

/// How far the check has come, on standard error.
enum Progress {
    /// A terminal.
    Bar(ProgressBar),
    /// A file or a pipe: a line now and then.
    Lines {
        total_bytes: u64,
        started: Instant,
        last: Instant,
    },
}

impl Progress {
    fn new(total_bytes: u64, started: Instant) -> Progress {
        if !io::stderr().is_terminal() {
            return Progress::Lines {
                total_bytes,
                started,
                last: started,
            };
        }
        let style = ProgressStyle::with_template(BAR).expect("a constant that the tests parse");
        Progress::Bar(ProgressBar::new(total_bytes).with_style(style))
    }

    fn show(&mut self, passed: u64) {
        match self {
            Progress::Bar(bar) => bar.set_position(passed),
            Progress::Lines {
                total_bytes,
                started,
                last,
            } if last.elapsed() >= PROGRESS_LINE_PAUSE => {
                *last = Instant::now();
                let line = progress_line(passed, *total_bytes, started.elapsed());
                // Progress that nobody can read is no reason to stop.
                let _ = writeln!(io::stderr(), "{line}");
            }
            Progress::Lines { .. } => {}
        }
    }

    /// Writes something else without tearing the bar.
    fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match self {
            Progress::Bar(bar) => bar.suspend(write),
            Progress::Lines { .. } => write(),
        }
    }

    fn finish(self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn progress_line(passed: u64, total_bytes: u64, elapsed: Duration) -> String {
    let percent = passed * 100 / total_bytes.max(1);
    let left = total_bytes.saturating_sub(passed);
    let seconds_left = match passed {
        0 => 0.0,
        _ => elapsed.as_secs_f64() * left as f64 / passed as f64,
    };
    format!(
        "{percent} %: {} of {}, {:.2} GiB/s, {} left",
        HumanBytes(passed),
        HumanBytes(total_bytes),
        gib_per_second(passed, elapsed),
        HumanDuration(Duration::from_secs_f64(seconds_left)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_can_be_drawn() {
        ProgressStyle::with_template(BAR).expect("a template");
    }

    #[test]
    fn a_line_of_progress_says_share_bytes_rate_and_time_left() {
        let line = progress_line(1 << 30, 4 << 30, Duration::from_secs(2));
        assert_eq!(
            line,
            "25 %: 1.00 GiB of 4.00 GiB, 0.50 GiB/s, 6 seconds left"
        );
        let line = progress_line(0, 0, Duration::ZERO);
        assert!(line.starts_with("0 %: "), "{line}");
    }
}
