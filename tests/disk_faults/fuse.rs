//! A file system that fails on command: one flat folder, passed through to a backing folder.
//!
//! It owns the faults and the record of what the kernel asked for. It speaks to `/dev/fuse` itself
//! (crate `fuser`, without libfuse). A fault strikes a *whole request*: the kernel may hide what
//! happens inside one. Requests of a proxy arrive as it made them, because its files are opened
//! with `O_DIRECT` and none is longer than the kernel's longest FUSE request, 1 MiB.
//! It never changes the bytes that it passes on, and never strikes but as scripted.

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

/// Nothing is remembered by the kernel: it asks again each time.
const TTL: Duration = Duration::ZERO;

/// The longest that a stalled request is held when a test forgets it. A process with a request in
/// here cannot even be killed.
const STALL_MAX: Duration = Duration::from_secs(60);

/// What the kernel asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Create,
    Allocate,
    Read,
    Write,
    Sync,
}

/// How a request is met instead of being carried out.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// It fails with this errno.
    Fail(i32),
    /// Only the first so many bytes are carried out, and the count says so.
    Short(usize),
    /// It waits until [`Faults::heal`], then it is carried out.
    Stall,
}

/// Which requests are struck.
#[derive(Clone, Debug)]
pub struct Fault {
    pub op: Op,
    /// Part of the file's name; the folder's own is empty.
    pub name: String,
    /// Only requests at these offsets.
    pub from: u64,
    pub to: u64,
    /// How many requests are struck.
    pub times: usize,
    pub effect: Effect,
}

impl Fault {
    /// Every such request to a segment file, until healed.
    pub fn on_segments(op: Op, effect: Effect) -> Fault {
        Fault {
            op,
            name: "segment-".into(),
            from: 0,
            to: u64::MAX,
            times: usize::MAX,
            effect,
        }
    }

    /// Only files whose name contains this.
    pub fn named(self, name: &str) -> Fault {
        Fault {
            name: name.into(),
            ..self
        }
    }

    /// Only requests at these offsets.
    pub fn between(self, from: u64, to: u64) -> Fault {
        Fault { from, to, ..self }
    }

    /// Only so many requests.
    pub fn times(self, times: usize) -> Fault {
        Fault { times, ..self }
    }
}

/// A request as it was met.
#[derive(Clone, Debug)]
pub struct Seen {
    pub op: Op,
    pub name: String,
    pub offset: u64,
    pub length: usize,
    /// The fault that struck it.
    pub struck: Option<Effect>,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    seen: Vec<Seen>,
    /// Requests that are being held.
    stalled: usize,
    /// Grows with each healing, which lets everything go that is held.
    healings: usize,
}

/// The script of a file system and its record.
#[derive(Default)]
pub struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

impl Faults {
    /// Adds a fault; earlier ones are asked first.
    pub fn add(&self, fault: Fault) {
        self.state.lock().expect("state").faults.push(fault);
    }

    /// Ends all faults and lets go what is held.
    pub fn heal(&self) {
        let mut state = self.state.lock().expect("state");
        state.faults.clear();
        state.healings += 1;
        self.changed.notify_all();
    }

    /// Everything asked for so far, in order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().expect("state").seen.clone()
    }

    /// How many requests were struck so far.
    pub fn struck(&self) -> usize {
        let state = self.state.lock().expect("state");
        state.seen.iter().filter(|s| s.struck.is_some()).count()
    }

    /// How many requests are held now.
    pub fn stalled(&self) -> usize {
        self.state.lock().expect("state").stalled
    }

    /// Notes a request and says how to meet it.
    fn meet(&self, op: Op, name: &str, offset: u64, length: usize) -> Option<Effect> {
        let mut state = self.state.lock().expect("state");
        let fault = state.faults.iter_mut().find(|fault| {
            fault.op == op
                && fault.times > 0
                && name.contains(&fault.name)
                && (fault.from..fault.to).contains(&offset)
        });
        let struck = fault.map(|fault| {
            fault.times -= 1;
            fault.effect
        });
        state.seen.push(Seen {
            op,
            name: name.into(),
            offset,
            length,
            struck,
        });
        struck
    }

    /// Holds the calling thread until all is healed.
    fn hold(&self) {
        let mut state = self.state.lock().expect("state");
        let healings = state.healings;
        state.stalled += 1;
        let wait = self
            .changed
            .wait_timeout_while(state, STALL_MAX, |state| state.healings == healings);
        wait.expect("state").0.stalled -= 1;
    }
}

/// A mounted file system. Dropping it lets go of everything held and unmounts it.
pub struct Fuse {
    pub faults: Arc<Faults>,
    session: Option<BackgroundSession>,
    /// The mount point.
    pub path: PathBuf,
    /// What is behind it.
    pub backing: PathBuf,
}

impl Fuse {
    /// Mounts `backing` at `path`; both exist.
    pub fn mount(backing: &Path, path: &Path) -> io::Result<Fuse> {
        let faults = Arc::new(Faults::default());
        let folder = PassThrough(Arc::new(Folder {
            path: backing.to_owned(),
            files: Mutex::default(),
            faults: faults.clone(),
        }));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("forebay-test".into())];
        let session = fuser::spawn_mount(folder, path, &config)?;
        Ok(Fuse {
            faults,
            session: Some(session),
            path: path.to_owned(),
            backing: backing.to_owned(),
        })
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.faults.heal();
        let session = self.session.take().expect("until dropped");
        if let Err(error) = session.umount_and_join() {
            eprintln!("cannot unmount {}: {error}", self.path.display());
        }
    }
}

/// A file that the kernel knows.
#[derive(Clone)]
struct Known {
    name: String,
    file: Arc<File>,
}

struct Folder {
    path: PathBuf,
    files: Mutex<HashMap<u64, Known>>,
    faults: Arc<Faults>,
}

impl Folder {
    fn known(&self, number: INodeNo) -> Option<Known> {
        self.files.lock().expect("files").get(&number.0).cloned()
    }

    /// Makes a file known to the kernel by the number that it has in the backing folder.
    fn adopt(&self, name: &str, file: File) -> io::Result<FileAttr> {
        let attributes = attributes_of(&file.metadata()?, None);
        let known = Known {
            name: name.into(),
            file: Arc::new(file),
        };
        self.files
            .lock()
            .expect("files")
            .insert(attributes.ino.0, known);
        Ok(attributes)
    }

    fn attributes(&self, number: INodeNo) -> io::Result<FileAttr> {
        if number == INodeNo::ROOT {
            return Ok(attributes_of(&self.path.metadata()?, Some(number)));
        }
        let known = self
            .known(number)
            .ok_or(io::Error::from_raw_os_error(libc::ENOENT))?;
        Ok(attributes_of(&known.file.metadata()?, None))
    }

    /// Meets a request: at once where that is possible, on a thread of its own where it is held.
    fn meet(
        self: &Arc<Self>,
        op: Op,
        known: &Known,
        (offset, length): (u64, usize),
        answer: impl FnOnce(Option<Effect>) + Send + 'static,
    ) {
        match self.faults.meet(op, &known.name, offset, length) {
            Some(Effect::Stall) => {
                let folder = self.clone();
                std::thread::spawn(move || {
                    folder.faults.hold();
                    answer(None);
                });
            }
            struck => answer(struck),
        }
    }
}

fn attributes_of(metadata: &Metadata, number: Option<INodeNo>) -> FileAttr {
    let kind = if metadata.is_dir() {
        FileType::Directory
    } else {
        FileType::RegularFile
    };
    let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    FileAttr {
        ino: number.unwrap_or(INodeNo(metadata.ino())),
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: changed,
        mtime: changed,
        ctime: changed,
        crtime: changed,
        kind,
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: metadata.nlink() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

/// How a request ends that is struck, or carried out with nothing to say but that.
fn finish(reply: ReplyEmpty, struck: Option<Effect>, carry_out: impl FnOnce() -> io::Result<()>) {
    match struck {
        Some(Effect::Fail(code)) => reply.error(Errno::from_i32(code)),
        _ => match carry_out() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        },
    }
}

fn bounded(length: usize, struck: Option<Effect>) -> usize {
    match struck {
        Some(Effect::Short(count)) => count.min(length),
        _ => length,
    }
}

struct PassThrough(Arc<Folder>);

impl Filesystem for PassThrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let unusable = || io::ErrorKind::Unsupported.into();
        // As a block device does, and unlike FUSE's own way: without this a direct request holds the
        // thread that makes it, through io_uring too.
        config
            .add_capabilities(InitFlags::FUSE_ASYNC_DIO)
            .map_err(|_| unusable())?;
        // As many requests at once as a proxy makes: a held one must not hold others up here.
        config
            .set_max_background(256)
            .map(drop)
            .map_err(|_| unusable())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.0.path.join(name);
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let name = name.to_string_lossy();
        match opened.and_then(|file| self.0.adopt(&name, file)) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.attributes(number) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = || -> io::Result<FileAttr> {
            if let (Some(known), Some(size)) = (self.0.known(number), size) {
                known.file.set_len(size)?;
            }
            if let (Some(known), Some(mode)) = (self.0.known(number), mode) {
                let mode = std::fs::Permissions::from_mode(mode & 0o7777);
                known.file.set_permissions(mode)?;
            }
            self.0.attributes(number)
        };
        match change() {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let path = self.0.path.join(name);
        let name = name.to_string_lossy();
        if let Some(Effect::Fail(code)) = self.0.faults.meet(Op::Create, &name, 0, 0) {
            return reply.error(Errno::from_i32(code));
        }
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode & 0o7777)
            .open(path);
        match made.and_then(|file| self.0.adopt(&name, file)) {
            Ok(attributes) => reply.created(
                &TTL,
                &attributes,
                Generation(0),
                FileHandle(0),
                FopenFlags::empty(),
            ),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let path = |name: &OsStr| self.0.path.join(name);
        finish(reply, None, || {
            std::fs::rename(path(name), path(new_name))?;
            let mut files = self.0.files.lock().expect("files");
            for known in files.values_mut().filter(|known| *known.name == *name) {
                known.name = new_name.to_string_lossy().into_owned();
            }
            Ok(())
        });
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        finish(reply, None, || std::fs::remove_file(self.0.path.join(name)));
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(known) = self.0.known(number) else {
            return reply.error(Errno::ENOENT);
        };
        let (length, file) = (size as usize, known.file.clone());
        self.0
            .meet(Op::Read, &known, (offset, length), move |struck| {
                if let Some(Effect::Fail(code)) = struck {
                    return reply.error(Errno::from_i32(code));
                }
                let mut bytes = vec![0; bounded(length, struck)];
                match read_fully(&file, &mut bytes, offset) {
                    Ok(count) => reply.data(&bytes[..count]),
                    Err(error) => reply.error(errno(&error)),
                }
            });
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(known) = self.0.known(number) else {
            return reply.error(Errno::ENOENT);
        };
        let (data, file) = (data.to_vec(), known.file.clone());
        self.0
            .meet(Op::Write, &known, (offset, data.len()), move |struck| {
                if let Some(Effect::Fail(code)) = struck {
                    return reply.error(Errno::from_i32(code));
                }
                let part = &data[..bounded(data.len(), struck)];
                match file.write_all_at(part, offset) {
                    Ok(()) => reply.written(part.len() as u32),
                    Err(error) => reply.error(errno(&error)),
                }
            });
    }

    fn fallocate(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        let Some(known) = self.0.known(number) else {
            return reply.error(Errno::ENOENT);
        };
        let file = known.file.clone();
        let place = (offset, length as usize);
        self.0.meet(Op::Allocate, &known, place, move |struck| {
            let flags = rustix::fs::FallocateFlags::empty();
            finish(reply, struck, || {
                Ok(rustix::fs::fallocate(&*file, flags, offset, length)?)
            });
        });
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let Some(known) = self.0.known(number) else {
            return reply.error(Errno::ENOENT);
        };
        // Nothing here is to survive a power cut: the backing folder is not asked to sync.
        self.0.meet(Op::Sync, &known, (0, 0), move |struck| {
            finish(reply, struck, || Ok(()));
        });
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        finish(reply, self.0.faults.meet(Op::Sync, "", 0, 0), || Ok(()));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let list = || -> io::Result<Vec<(u64, std::ffi::OsString)>> {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&self.0.path)? {
                let entry = entry?;
                names.push((entry.metadata()?.ino(), entry.file_name()));
            }
            names.sort_by(|left, right| left.1.cmp(&right.1));
            Ok(names)
        };
        let names = match list() {
            Ok(names) => names,
            Err(error) => return reply.error(errno(&error)),
        };
        for (at, (number, name)) in names.into_iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(number), at as u64 + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // 4 GiB, all free: no test asks for a share of it.
        reply.statfs(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}

/// Reads as much as there is, up to the buffer's length.
fn read_fully(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut total = 0;
    while total < bytes.len() {
        match file.read_at(&mut bytes[total..], offset + total as u64)? {
            0 => break,
            count => total += count,
        }
    }
    Ok(total)
}
