//! Sick disks for a proxy: mounts of every kind, taken down however a test ends.
//!
//! Each test's thread gets a mount namespace of its own. Nothing that is mounted here is seen by
//! the rest of the machine, and the kernel takes everything down with the last process in it, even
//! after a kill -9. Loop devices give themselves up with their mount. A guard unmounts before that
//! in all other cases. This file injects nothing; [`super::fuse`] does.

use std::cell::OnceCell;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::common::{self, Answer, Proxy, Setup, VOLUME, pattern};
use super::fuse::Fuse;

/// Payload of most objects in these tests: one block, which is one record of 257 pages.
pub const MIB: usize = 1 << 20;

/// About the bytes of a segment in the small folders of these tests.
pub const SEGMENT_BYTES: u64 = 4 << 20;

/// What most tests use: four shards with some fifteen segments each.
pub const QUOTA: &str = "257M";

/// No RAM tier, so that hits come from the disk.
pub const NO_RAM: [&str; 2] = ["--memCapacity", "0"];

/// A folder that something is mounted on.
pub struct Mount {
    /// The mount point, ready to be a cache folder.
    pub path: PathBuf,
    /// Holds the mount point, and the image where there is one.
    folder: TempDir,
}

impl Mount {
    /// A folder in memory of at most so many bytes; `None` where nothing can be mounted.
    pub fn tmpfs(bytes: u64) -> Option<Mount> {
        let folder = private_folder()?;
        let path = mount_point(&folder);
        let size = format!("size={bytes},mode=0700");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &size, "forebay-test", &text(&path)],
        );
        Some(Mount { path, folder })
    }

    /// A file system of so many bytes on a loop device over a sparse file. `make` is the command
    /// that makes it, without the device; `sector_bytes` is what the device says of itself.
    pub fn on_loop(bytes: u64, make: &[&str], sector_bytes: u32) -> Option<Mount> {
        let folder = private_folder()?;
        Some(Mount::on_loop_in(folder, bytes, make, sector_bytes))
    }

    fn on_loop_in(folder: TempDir, bytes: u64, make: &[&str], sector_bytes: u32) -> Mount {
        let path = mount_point(&folder);
        let image = folder.path().join("image");
        let file = File::create(&image).expect("image");
        file.set_len(bytes).expect("image size");
        mount_image(&image, &path, Some(make), sector_bytes);
        set_private(&path);
        Mount { path, folder }
    }
}

// `tests/power_cut.rs` uses these.
#[allow(dead_code)]
impl Mount {
    /// A path outside of the file system that lives as long.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Takes the file system down and mounts it again, as after a power cut: its journal is replayed. Nobody may use it.
    pub fn mount_again(&self) {
        run("umount", &[&text(&self.path)]);
        let image = self.folder.path().join("image");
        mount_image(&image, &self.path, None, 512);
    }

    /// From now on the file system takes nothing more, and what it has not written to its journal is gone: a power cut,
    /// as far as a file system knows. What the device itself holds back is not modelled.
    pub fn cut_power(&self) {
        // `_IOR('X', 125, __u32)`, the same for ext4 and xfs; 2 says that the journal is not flushed.
        const SHUTDOWN: libc::c_ulong = 0x8004_587d;
        const NO_LOG_FLUSH: u32 = 2;
        let folder = File::open(&self.path).expect("mount point");
        // SAFETY: the descriptor is open; the call reads the four bytes that the pointer names.
        let code = unsafe { libc::ioctl(folder.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) };
        assert_eq!(code, 0, "shutdown: {}", io::Error::last_os_error());
    }

    /// The file behind the loop device.
    pub fn image(&self) -> File {
        let path = self.folder.path().join("image");
        File::options().write(true).open(path).expect("image")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = try_run("umount", &["--lazy", &text(&self.path)]) {
            eprintln!("{error}");
        }
    }
}

/// A proxy on a file system that fails on command.
pub struct Rig {
    pub proxy: Proxy,
    pub fuse: Fuse,
    _folder: TempDir,
}

impl Rig {
    /// A running proxy with four shards and hits from disk only.
    pub fn start() -> Option<Rig> {
        let mut rig = Rig::prepare(setup())?;
        rig.proxy.start();
        Some(rig)
    }

    /// The same, not yet started.
    pub fn prepare(setup: Setup) -> Option<Rig> {
        if !Path::new("/dev/fuse").exists() {
            common::skip("there is no /dev/fuse");
            return None;
        }
        let folder = private_folder()?;
        let path = mount_point(&folder);
        let backing = folder.path().join("backing");
        make_private(&backing);
        let fuse = Fuse::mount(&backing, &path).expect("a mount of /dev/fuse");
        let proxy = Setup {
            cache_folder: Some(path),
            ..setup
        }
        .prepare();
        Some(Rig {
            proxy,
            fuse,
            _folder: folder,
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A process with a request in a held file system cannot die: let go before it is killed.
        self.fuse.faults.heal();
    }
}

/// What most tests start with.
pub fn setup() -> Setup {
    Setup {
        disk_quota: QUOTA.into(),
        flags: NO_RAM.map(String::from).to_vec(),
        parent: ground().ok(),
        ..Setup::default()
    }
}

/// [`setup`] on another folder.
pub fn setup_on(mount: &Mount) -> Setup {
    Setup {
        cache_folder: Some(mount.path.clone()),
        ..setup()
    }
}

thread_local! {
    /// A folder in memory that only this thread and its children see. The folders of its proxies
    /// are made there, their stores too: the machine's own disk is not under test.
    static GROUND: OnceCell<Result<Ground, String>> = const { OnceCell::new() };
}

struct Ground(TempDir);

impl Ground {
    fn new() -> Result<Ground, String> {
        isolate_mounts().map_err(|error| format!("nothing can be mounted here: {error}"))?;
        let folder = tempfile::Builder::new().prefix("forebay-disk-").tempdir();
        let folder = folder.map_err(|error| error.to_string())?;
        let path = text(folder.path());
        try_run(
            "mount",
            &["-t", "tmpfs", "-o", "size=2g", "forebay-test", &path],
        )?;
        Ok(Ground(folder))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = try_run("umount", &["--lazy", &text(self.0.path())]) {
            eprintln!("{error}");
        }
    }
}

/// This thread's folder in memory, or why it has none.
fn ground() -> Result<PathBuf, String> {
    GROUND.with(|ground| match ground.get_or_init(Ground::new) {
        Ok(ground) => Ok(ground.0.path().to_owned()),
        Err(reason) => Err(reason.clone()),
    })
}

/// A folder of one mount; `None` where nothing can be mounted.
fn private_folder() -> Option<TempDir> {
    match ground() {
        Ok(path) => Some(tempfile::tempdir_in(path).expect("temporary folder")),
        Err(reason) => {
            common::skip(&reason);
            None
        }
    }
}

fn isolate_mounts() -> io::Result<()> {
    let root = CString::new("/").expect("no NUL");
    // SAFETY: no memory is shared with the call; it changes what this thread sees of the mounts.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the path is a valid string, the other pointers are unused with these flags.
    let code = unsafe {
        libc::mount(
            std::ptr::null(),
            root.as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        )
    };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes a folder that only we may enter.
pub fn make_private(path: &Path) {
    std::fs::create_dir(path).expect("folder");
    set_private(path);
}

/// Mounts an image through a loop device, on which a file system is made first if there is a command for it.
fn mount_image(image: &Path, path: &Path, make: Option<&[&str]>, sector_bytes: u32) {
    let sector = sector_bytes.to_string();
    let device = run("losetup", &["-f", "--show", "-b", &sector, &text(image)]);
    let make = make.map_or(Ok(String::new()), |make| {
        try_run(make[0], &[&make[1..], &[device.trim()]].concat())
    });
    let mounted = make.and_then(|_| try_run("mount", &[device.trim(), &text(path)]));
    // From now on the device goes with its last user: the mount, or nobody.
    run("losetup", &["-d", device.trim()]);
    mounted.expect("a file system on a loop device");
}

fn mount_point(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("cache");
    std::fs::create_dir(&path).expect("mount point");
    path
}

fn set_private(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).expect("mode");
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Runs a command that must succeed; gives its output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    try_run(program, arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a command that a file system refuses while one of its files is open for writing. The kernel ends the rings of a
/// process that was killed after the process has been waited for, and their files are open until then.
pub fn run_when_idle(program: &str, arguments: &[&str]) -> String {
    let mut output = Err(String::new());
    super::common::wait_until("the kernel has closed the files of the dead", || {
        output = try_run(program, arguments);
        !output.as_ref().is_err_and(|error| error.contains("busy"))
    });
    output.unwrap_or_else(|error| panic!("{error}"))
}

fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} {arguments:?}: {said}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The content of an object: one block that differs from every other.
pub fn block(number: usize) -> Vec<u8> {
    pattern(number as u64 + 1, MIB)
}

/// Writes the objects `o/0 .. o/count` of one block each.
pub fn put_blocks(proxy: &Proxy, numbers: std::ops::Range<usize>) {
    for number in numbers {
        proxy.put(&format!("o/{number}"), &block(number));
    }
}

/// Reads an object and demands the right bytes.
pub fn get_block(proxy: &Proxy, number: usize) -> Answer {
    let answer = proxy.get(&format!("o/{number}"));
    assert_eq!(answer.status, 200, "object {number}: {}", answer.text());
    common::assert_same_bytes(&answer.body, &block(number), &format!("object {number}"));
    answer
}

/// Reads objects and demands the right bytes; counts those that came from disk.
pub fn hits(proxy: &Proxy, numbers: std::ops::Range<usize>) -> usize {
    numbers
        .filter(|number| get_block(proxy, *number).cache() == "hit-disk")
        .count()
}

/// The sum of a metric over all cores and labels.
pub fn metric(proxy: &Proxy, name: &str) -> u64 {
    let page = proxy.operator("GET", "/-/metrics").text();
    let samples = page.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']))
    });
    let values: Vec<f64> = samples
        .map(|line| {
            let (_, value) = line.rsplit_once(' ').expect("a value");
            value.parse().expect("a number")
        })
        .collect();
    assert!(!values.is_empty(), "there is no metric {name}");
    values.iter().sum::<f64>() as u64
}

/// Demands that the store has an object as it was written.
pub fn assert_stored(proxy: &Proxy, number: usize) {
    let second = Setup {
        store: Some(proxy.shared_store()),
        ..Setup::default()
    }
    .start();
    let answer = second.request("GET", &format!("/{VOLUME}/o/{number}"), &[], b"");
    assert_eq!(answer.status, 200, "the store lacks object {number}");
    common::assert_same_bytes(&answer.body, &block(number), "in the store");
}

/// What a folder takes of its file system: all that is in it, and itself.
pub fn allocated_bytes(folder: &Path) -> u64 {
    let own = folder.metadata().expect("folder").blocks() * 512;
    own + common::proxy::disk_usage(folder)
}

/// Bytes of the file system that holds a folder.
pub fn file_system_bytes(folder: &Path) -> u64 {
    let stats = rustix::fs::statvfs(folder).expect("statvfs");
    stats.f_blocks * stats.f_frsize
}
