//! What this machine allows, asked before the runtime starts.
//!
//! This file owns every refusal that belongs to the system rather than to the settings: io_uring,
//! locked memory, open files, the cache folder's mode, direct I/O and lock, and the port. Each is one
//! question with one answer, a [`ProbeError`] of one line that says what is wrong and what would be
//! right. It exists because the runtime must not be the first to ask: glommio panics in a thread of
//! its own when io_uring is refused, and exits the process when an opcode is missing.
//!
//! It never starts an executor, never leaves anything behind in a folder but the lock file of
//! [`FolderLock`], and never changes a mode or an owner.

use io_uring::opcode;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Locked memory asked for each executor, bytes. glommio refuses to start below 512 KiB, and an
/// executor's three rings stay under that on the kernels that still charge rings to this limit.
pub const MEMLOCK_BYTES_PER_EXECUTOR: u64 = 512 * 1024;

/// Open files below which a proxy cannot work: rings, segment files and a few dozen connections.
pub const OPEN_FILES_MIN: u64 = 256;

/// Name of the file inside a cache folder that carries the lock.
pub const LOCK_FILE_NAME: &str = "lock";

/// Size and alignment of a direct transfer, bytes: 4 KiB suits every device (see the record format).
const DIRECT_PAGE_BYTES: usize = 4096;

/// Bit of `CAP_IPC_LOCK` in the capability sets of `/proc/self/status`.
const CAP_IPC_LOCK_BIT: u32 = 14;

/// Longest process id with its newline that is read from a lock file, bytes.
const LOCK_PID_BYTES_MAX: u64 = 16;

/// Every operation that glommio 0.9 insists on, and those that the cache submits besides. A missing
/// one is a refusal here, because glommio answers it with `process::exit(1)`.
const OPCODES_NEEDED: &[(u8, &str)] = &[
    (opcode::Nop::CODE, "NOP"),
    (opcode::Readv::CODE, "READV"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::PollRemove::CODE, "POLL_REMOVE"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::RecvMsg::CODE, "RECVMSG"),
    (opcode::Timeout::CODE, "TIMEOUT"),
    (opcode::TimeoutRemove::CODE, "TIMEOUT_REMOVE"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    (opcode::LinkTimeout::CODE, "LINK_TIMEOUT"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::OpenAt::CODE, "OPENAT"),
    (opcode::Close::CODE, "CLOSE"),
    (opcode::Statx::CODE, "STATX"),
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Send::CODE, "SEND"),
    (opcode::Recv::CODE, "RECV"),
];

/// Why this system cannot run the proxy. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel or a filter before it refuses to make a ring.
    #[error("io_uring: this system refuses it ({source}): {advice}")]
    RingRefused {
        /// What the kernel answered.
        source: io::Error,
        /// The likely cause and its remedy.
        advice: String,
    },
    /// The kernel lacks operations that the runtime needs.
    #[error(
        "io_uring: this kernel lacks the operations {}; Linux 5.8 or later is needed",
        .missing.join(", ")
    )]
    OpcodesMissing {
        /// Names of the operations.
        missing: Vec<&'static str>,
    },
    /// `RLIMIT_MEMLOCK` is too low for so many executors.
    #[error(
        "locked memory: the limit is {limit} bytes and {executors} executors need {needed}; raise it \
         with `LimitMEMLOCK=infinity` in the systemd unit, `ulimit -l` or `docker run --ulimit \
         memlock=-1`, or use fewer cores with --shards"
    )]
    MemlockTooLow {
        /// The limit in force, bytes.
        limit: u64,
        /// Bytes needed.
        needed: u64,
        /// Executors asked for.
        executors: usize,
    },
    /// `RLIMIT_NOFILE` is too low even at its hard limit.
    #[error(
        "open files: the hard limit is {limit} and at least {OPEN_FILES_MIN} are needed; raise it with \
         `LimitNOFILE=` in the systemd unit or `ulimit -Hn`"
    )]
    OpenFilesTooLow {
        /// The hard limit.
        limit: u64,
    },
    /// A limit could not be read or raised.
    #[error("{limit}: the system refuses to tell or raise this limit: {source}")]
    LimitUnreadable {
        /// Which limit.
        limit: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The folder cannot be used at all.
    #[error("folder {}: {source}; it must be an existing folder that this user may write", .folder.display())]
    FolderUnusable {
        /// The folder.
        folder: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The path names something that is not a folder.
    #[error("folder {}: this is not a folder", .folder.display())]
    NotAFolder {
        /// The path.
        folder: PathBuf,
    },
    /// The folder belongs to somebody else.
    #[error(
        "folder {}: it belongs to user id {owner} and this process runs as {ours}; `chown {ours}` it or \
         start as its owner",
        .folder.display()
    )]
    FolderNotOurs {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our effective user id.
        ours: u32,
    },
    /// Others may enter the folder.
    #[error(
        "folder {folder}: its mode is {mode:04o}, so other users may reach cached data; `chmod 700 \
         {folder}`",
        folder = .folder.display()
    )]
    FolderModeOpen {
        /// The folder.
        folder: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file system does not do direct I/O.
    #[error(
        "folder {}: its file system ({filesystem}) does not do direct I/O ({source}); use a folder on \
         ext4 or xfs",
        .folder.display()
    )]
    NoDirectIo {
        /// The folder.
        folder: PathBuf,
        /// Name of the file system.
        filesystem: String,
        /// What failed.
        source: io::Error,
    },
    /// Another process holds the folder.
    #[error(
        "folder {}: another process uses it ({holder}); stop that one or give this one its own folder",
        .folder.display()
    )]
    FolderLocked {
        /// The folder.
        folder: PathBuf,
        /// Who, as far as the lock file tells.
        holder: String,
    },
    /// Somebody listens on the address already.
    #[error(
        "address {address} is taken: another process listens there; stop it or choose another --bindAddr"
    )]
    AddressTaken {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The address cannot be bound for another reason.
    #[error("address {address}: {source}; {advice}")]
    AddressUnusable {
        /// The address asked for.
        address: SocketAddr,
        /// What the system answered.
        source: io::Error,
        /// What would be right.
        advice: &'static str,
    },
}

/// Whether io_uring may be used and knows every operation that the runtime and the cache submit.
pub fn io_uring() -> Result<(), ProbeError> {
    let ring = io_uring::IoUring::new(8).map_err(ring_refused)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(ring_refused)?;
    let missing: Vec<&'static str> = OPCODES_NEEDED
        .iter()
        .filter(|(code, _)| !probe.is_supported(*code))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(ProbeError::OpcodesMissing { missing })
    }
}

/// Puts the likely cause beside the kernel's terse answer.
fn ring_refused(source: io::Error) -> ProbeError {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let advice = match (source.raw_os_error(), disabled.as_deref().map(str::trim)) {
        (Some(libc::EPERM), Ok("1" | "2")) => {
            "sysctl kernel.io_uring_disabled turns it off; set it to 0".to_owned()
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "a seccomp filter or security module denies it, as container runtimes do by default; allow \
             the calls io_uring_setup, io_uring_enter and io_uring_register"
                .to_owned()
        }
        (Some(libc::ENOSYS | libc::EINVAL), _) => {
            "the kernel is too old or a seccomp filter hides it; Linux 5.8 or later is needed".to_owned()
        }
        (Some(libc::ENOMEM), _) => {
            "too little lockable memory; raise RLIMIT_MEMLOCK (`LimitMEMLOCK=infinity`)".to_owned()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            "no file descriptor is left; raise RLIMIT_NOFILE (`LimitNOFILE=1048576`)".to_owned()
        }
        _ => "Linux 5.8 or later with io_uring permitted is needed".to_owned(),
    };
    ProbeError::RingRefused { source, advice }
}

/// Whether `executors` executors may lock the memory that they need. The soft limit is first raised
/// to the hard one; the limit that results is returned, bytes (`u64::MAX` when there is none).
pub fn memlock(executors: usize) -> Result<u64, ProbeError> {
    let limit = raise_to_hard(libc::RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK")?;
    let count = u64::try_from(executors.max(1)).unwrap_or(u64::MAX);
    // glommio compares the limit itself with its minimum and knows nothing of CAP_IPC_LOCK, which
    // lifts only what the kernel counts: so the capability spares the factor, not the minimum.
    let needed = if may_lock_without_limit() {
        MEMLOCK_BYTES_PER_EXECUTOR
    } else {
        MEMLOCK_BYTES_PER_EXECUTOR.saturating_mul(count)
    };
    if limit < needed {
        return Err(ProbeError::MemlockTooLow {
            limit,
            needed,
            executors: executors.max(1),
        });
    }
    Ok(limit)
}

/// Raises the limit of open files to its hard limit and returns it.
pub fn open_files() -> Result<u64, ProbeError> {
    let limit = raise_to_hard(libc::RLIMIT_NOFILE, "RLIMIT_NOFILE")?;
    if limit < OPEN_FILES_MIN {
        return Err(ProbeError::OpenFilesTooLow { limit });
    }
    Ok(limit)
}

/// Raises a soft limit to the hard one and returns what is in force then.
fn raise_to_hard(
    resource: libc::__rlimit_resource_t,
    name: &'static str,
) -> Result<u64, ProbeError> {
    let unreadable = |source| ProbeError::LimitUnreadable {
        limit: name,
        source,
    };
    let mut limits = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limits` is a live, writable rlimit; the kernel writes only inside it.
    if unsafe { libc::getrlimit(resource, &mut limits) } != 0 {
        return Err(unreadable(io::Error::last_os_error()));
    }
    if limits.rlim_cur < limits.rlim_max {
        limits.rlim_cur = limits.rlim_max;
        // SAFETY: `limits` is a live rlimit that the kernel only reads.
        if unsafe { libc::setrlimit(resource, &limits) } != 0 {
            return Err(unreadable(io::Error::last_os_error()));
        }
    }
    Ok(limits.rlim_cur)
}

/// Whether this process holds `CAP_IPC_LOCK`. `false` when it cannot be told.
fn may_lock_without_limit() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return false;
    };
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << CAP_IPC_LOCK_BIT) != 0)
}

/// Whether `folder` is a folder of ours that nobody else may enter (0700).
pub fn private_folder(folder: &Path) -> Result<(), ProbeError> {
    let metadata = std::fs::metadata(folder).map_err(|source| unusable(folder, source))?;
    if !metadata.is_dir() {
        return Err(ProbeError::NotAFolder {
            folder: folder.to_owned(),
        });
    }
    // SAFETY: geteuid has no arguments, cannot fail and touches no memory.
    let ours = unsafe { libc::geteuid() };
    if metadata.uid() != ours {
        return Err(ProbeError::FolderNotOurs {
            folder: folder.to_owned(),
            owner: metadata.uid(),
            ours,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(ProbeError::FolderModeOpen {
            folder: folder.to_owned(),
            mode,
        });
    }
    Ok(())
}

fn unusable(folder: &Path, source: io::Error) -> ProbeError {
    ProbeError::FolderUnusable {
        folder: folder.to_owned(),
        source,
    }
}

/// One aligned page, so that its address suits direct I/O.
#[repr(C, align(4096))]
struct DirectPage([u8; DIRECT_PAGE_BYTES]);

const _: () = assert!(align_of::<DirectPage>() == DIRECT_PAGE_BYTES);

/// Writes a page into `folder` with O_DIRECT, reads it back and compares. Returns the file system's
/// name. The file never has a name, or loses it before the first byte is written.
pub fn direct_io(folder: &Path) -> Result<String, ProbeError> {
    let file = nameless_file(folder).map_err(|source| unusable(folder, source))?;
    let filesystem = filesystem_name(&file).map_err(|source| unusable(folder, source))?;
    match direct_round_trip(&file) {
        Ok(()) => Ok(filesystem),
        // The file system has taken the flag, and a full disk still serves what it holds. A folder
        // that is yet to be formatted is refused by its first write.
        Err(source) if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
            Ok(filesystem)
        }
        // A failing disk is not a matter of direct I/O and must not be reported as one.
        Err(source) if matches!(source.raw_os_error(), Some(libc::EIO | libc::EROFS)) => {
            Err(unusable(folder, source))
        }
        Err(source) => Err(ProbeError::NoDirectIo {
            folder: folder.to_owned(),
            filesystem,
            source,
        }),
    }
}

/// A file in `folder` that has no name.
fn nameless_file(folder: &Path) -> io::Result<File> {
    let nameless = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(folder);
    match nameless {
        // What file systems and kernels without O_TMPFILE answer.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
            ) =>
        {
            let path = folder.join(format!(".forebay-probe-{}", std::process::id()));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        other => other,
    }
}

/// Turns direct I/O on, writes one page and reads it back.
fn direct_round_trip(file: &File) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take and return integers; the descriptor is open for the call.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        if flags < 0 || libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let mut written = Box::new(DirectPage([0; DIRECT_PAGE_BYTES]));
    for (byte, value) in written.0.iter_mut().zip((0..=250u8).cycle()) {
        *byte = value;
    }
    file.write_all_at(&written.0, 0)?;
    let mut read = Box::new(DirectPage([0; DIRECT_PAGE_BYTES]));
    file.read_exact_at(&mut read.0, 0)?;
    if read.0 != written.0 {
        return Err(io::Error::other("a page came back with other bytes"));
    }
    Ok(())
}

/// The name of the file system that holds `file`, or its magic number.
fn filesystem_name(file: &File) -> io::Result<String> {
    let mut answer = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the pointer is to writable memory of the right size; the descriptor is open.
    if unsafe { libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs returned 0, so it has filled the structure.
    let magic = unsafe { answer.assume_init() }.f_type as u64;
    let name = match magic {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x0102_1994 => "tmpfs",
        0x8584_58F6 => "ramfs",
        0x794C_7630 => "overlayfs",
        0x6573_5546 => "fuse",
        0x6969 => "nfs",
        0x2FC1_2FC1 => "zfs",
        0xF2F5_2010 => "f2fs",
        other => return Ok(format!("type {other:#x}")),
    };
    Ok(name.to_owned())
}

/// The right to use a cache folder, held until dropped or until the process dies, however it dies.
#[derive(Debug)]
pub struct FolderLock {
    /// The lock is the kernel's, on this open file.
    file: File,
    path: PathBuf,
    /// Whether the file was made for this lock.
    made: bool,
}

impl FolderLock {
    /// Takes the lock of `folder`, or says who holds it.
    pub fn acquire(folder: &Path) -> Result<FolderLock, ProbeError> {
        let path = folder.join(LOCK_FILE_NAME);
        let made = path.symlink_metadata().is_err();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|source| unusable(folder, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(ProbeError::FolderLocked {
                    folder: folder.to_owned(),
                    holder: lock_holder(&mut file),
                });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(unusable(folder, source)),
        }
        // A file that lost its name between opening and locking locks nothing.
        let named =
            std::fs::metadata(&path).and_then(|named| Ok((named.ino(), file.metadata()?.ino())));
        if !matches!(named, Ok((named, ours)) if named == ours) {
            let holder = "a process that is just giving it up".to_owned();
            return Err(ProbeError::FolderLocked {
                folder: folder.to_owned(),
                holder,
            });
        }
        // The number is for people: the lock, not the number, decides. A full disk has no room for
        // it, and a number that is cut off reads as none.
        match file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
        {
            Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                return Err(unusable(folder, e));
            }
            Ok(()) | Err(_) => {}
        }
        Ok(FolderLock { file, path, made })
    }

    /// Gives the folder back as it was found, for a start that is refused after all: a lock file
    /// that this lock made goes, while the lock is still held.
    pub fn undo(self) {
        if self.made {
            // One that stays does no harm.
            let _ = std::fs::remove_file(&self.path);
        }
        drop(self.file);
    }
}

/// What the lock file says of the process that holds it.
fn lock_holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(LOCK_PID_BYTES_MAX).read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        _ => "it has not written its process id".to_owned(),
    }
}

/// How long an address may stay taken before the start is refused. The kernel takes a process's
/// rings apart after the process is gone: listeners that a ring was polling outlive a kill -9 by
/// up to some hundred milliseconds, and a supervisor restarts at once.
const ADDRESS_WAIT: Duration = Duration::from_secs(2);

/// Pause between two tries of a taken address.
const ADDRESS_RETRY: Duration = Duration::from_millis(20);

/// Binds `address` for a moment without SO_REUSEPORT, and returns it with the port that was chosen
/// where 0 was asked for.
///
/// The cores' listeners share their port with SO_REUSEPORT, which a second proxy of the same user
/// could join unseen; this socket cannot. It has SO_REUSEADDR, which on Linux passes over closed
/// connections of an earlier run but never over a listening socket, whatever that one has set.
pub fn exclusive_bind(address: SocketAddr) -> Result<SocketAddr, ProbeError> {
    let give_up = Instant::now() + ADDRESS_WAIT;
    let bound = loop {
        // The standard library sets SO_REUSEADDR, and not SO_REUSEPORT, on every listener.
        let bound = TcpListener::bind(address).and_then(|listener| listener.local_addr());
        let taken = matches!(&bound, Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE));
        if !taken || Instant::now() >= give_up {
            break bound;
        }
        std::thread::sleep(ADDRESS_RETRY);
    };
    bound.map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => ProbeError::AddressTaken { address },
        Some(libc::EACCES) => ProbeError::AddressUnusable {
            address,
            source,
            advice: "ports below 1024 need CAP_NET_BIND_SERVICE or root",
        },
        Some(libc::EADDRNOTAVAIL) => ProbeError::AddressUnusable {
            address,
            source,
            advice: "give an address of this machine, or 0.0.0.0 for all of them",
        },
        _ => ProbeError::AddressUnusable {
            address,
            source,
            advice: "give an address and port that this machine can listen on",
        },
    })
}
