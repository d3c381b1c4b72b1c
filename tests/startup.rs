//! What the proxy refuses to start on: one clear line, exit code 1 or 2, nothing changed on disk.

mod common;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use common::proxy::files_below;
use common::{Proxy, Setup, WAIT_MAX, pattern, skip};

/// Content and time of change of every file: what a refused start must leave as it was.
type Snapshot = BTreeMap<PathBuf, (Vec<u8>, SystemTime)>;

fn snapshot(folder: &Path) -> Snapshot {
    let read = |path: PathBuf| {
        let changed = path.metadata().expect("file").modified().expect("time");
        let content = std::fs::read(&path).expect("readable file");
        (path, (content, changed))
    };
    files_below(folder).into_iter().map(read).collect()
}

fn exists(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_err() {
        skip(&format!("{program} is not installed"));
    }
    found.is_ok()
}

fn is_root() -> bool {
    // SAFETY: geteuid has no arguments, no effects and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Runs a start that must be refused; gives the one line that says why.
fn refusal(command: &mut Command) -> String {
    // A group of its own: where a wrapper stays between, both have to be killed.
    let mut child = command
        .process_group(0)
        .spawn()
        .expect("the command starts");
    let started = std::time::Instant::now();
    while child.try_wait().expect("wait").is_none() {
        if started.elapsed() > WAIT_MAX {
            // It runs although it must not.
            // SAFETY: the group is the child's own, and the child is not yet waited for.
            unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
            panic!("it started, or hangs: {}", output(child).1);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (code, stderr) = output(child);
    assert!(matches!(code, Some(1 | 2)), "exit code {code:?}: {stderr}");
    assert!(
        !stderr.contains("panicked"),
        "a panic is no message: {stderr}"
    );
    let is_log = |line: &&str| {
        ["INFO", "WARN", "DEBUG"]
            .iter()
            .any(|level| line.contains(level))
    };
    let lines: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.trim().is_empty() && !is_log(line))
        .collect();
    assert_eq!(lines.len(), 1, "one clear line, not:\n{stderr}");
    lines[0].to_string()
}

fn output(child: std::process::Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("output");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// The line names what it is about in words of which at least one must be there.
fn assert_says(line: &str, words: &[&str]) {
    let lower = line.to_lowercase();
    assert!(
        words
            .iter()
            .any(|word| lower.contains(&word.to_lowercase())),
        "{line:?} says none of {words:?}"
    );
}

/// A start of this proxy is refused, in words, and leaves its folders alone.
fn assert_refused(proxy: &Proxy, words: &[&str]) {
    let before = snapshot(proxy.folder());
    assert_says(&refusal(&mut proxy.command()), words);
    let after = snapshot(proxy.folder());
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>(),
        "files came or went"
    );
    assert!(before == after, "a refused start changed a file");
}

/// A folder with a formatted cache and one object, not running.
fn used_proxy() -> Proxy {
    let mut proxy = Setup::default().start();
    proxy.put("before", &pattern(1, 100_000));
    assert!(proxy.terminate().success());
    proxy
}

fn assert_still_good(mut proxy: Proxy) {
    proxy.start();
    assert_eq!(proxy.get("before").body, pattern(1, 100_000));
}

#[test]
fn foreign_folders_are_never_formatted_over() {
    let proxy = Setup::default().prepare();
    std::fs::write(
        proxy.cache_folder().join("family-photos.tar"),
        b"irreplaceable",
    )
    .expect("file");
    assert_refused(
        &proxy,
        &[
            "family-photos.tar",
            "not a cache folder",
            "foreign",
            "not empty",
            "superblock",
        ],
    );
}

#[test]
fn half_made_folders_are_refused() {
    let proxy = used_proxy();
    let superblocks: Vec<PathBuf> = files_below(&proxy.cache_folder())
        .into_iter()
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().contains("super"))
        })
        .collect();
    assert!(
        !superblocks.is_empty(),
        "no superblock among {:?}",
        files_below(&proxy.cache_folder())
    );
    let kept: Vec<Vec<u8>> = superblocks
        .iter()
        .map(|path| std::fs::read(path).expect("superblock"))
        .collect();
    // All copies empty: what a crash in the middle of formatting may leave beside segment files.
    superblocks
        .iter()
        .for_each(|path| std::fs::write(path, b"").expect("write"));
    assert_refused(&proxy, &["superblock"]);
    // All copies garbage.
    superblocks
        .iter()
        .for_each(|path| std::fs::write(path, pattern(2, 4096)).expect("write"));
    assert_refused(&proxy, &["superblock"]);
    // Gone, with the segments still there.
    superblocks
        .iter()
        .for_each(|path| std::fs::remove_file(path).expect("remove"));
    assert_refused(&proxy, &["superblock", "segment"]);
    for (path, bytes) in superblocks.iter().zip(kept) {
        std::fs::write(path, bytes).expect("write");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode");
    }
    assert_still_good(proxy);
}

#[test]
fn a_missing_folder_is_not_made_in_silence_on_the_wrong_disk() {
    let proxy = Setup::default().prepare();
    std::fs::remove_dir(proxy.cache_folder()).expect("remove");
    // A missing mount looks like this. A plain file in the folder's place is no better.
    std::fs::write(proxy.cache_folder(), b"a file").expect("file");
    assert_refused(&proxy, &["cache", "not a directory", "folder"]);
}

#[test]
fn a_folder_has_one_process() {
    let mut first = Setup::default().start();
    first.put("before", &pattern(1, 100_000));
    let second = Setup::default().prepare();
    let mut command = second.command();
    let mut args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let place = args
        .iter()
        .position(|arg| arg == "--diskFolder")
        .expect("flag")
        + 1;
    args[place] = first.cache_folder().into();
    let program = command.get_program().to_owned();
    command = Command::new(program);
    command
        .args(args)
        .env("HOME", second.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    assert_says(
        &refusal(&mut command),
        &["lock", "in use", "another process"],
    );
    assert_eq!(
        first.get("before").body,
        pattern(1, 100_000),
        "the first is not disturbed"
    );
    // The lock dies with its process, however it ends.
    first.restart_killed(|_| {});
    assert_eq!(first.get("before").body, pattern(1, 100_000));
}

fn reuse_port_listener(address: SocketAddr) -> OwnedFd {
    let SocketAddr::V4(address) = address else {
        panic!("an IPv4 address")
    };
    // SAFETY: plain socket calls on a descriptor that `socket` below owns from its first line on;
    // every pointer is to a local of the type and size that is named beside it.
    unsafe {
        let socket = OwnedFd::from_raw_fd(libc::socket(
            libc::AF_INET,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            0,
        ));
        let one: libc::c_int = 1;
        let length = std::mem::size_of_val(&one) as libc::socklen_t;
        let set = libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_REUSEPORT,
            std::ptr::from_ref(&one).cast(),
            length,
        );
        assert_eq!(set, 0, "SO_REUSEPORT");
        let mut name: libc::sockaddr_in = std::mem::zeroed();
        name.sin_family = libc::AF_INET as libc::sa_family_t;
        name.sin_port = address.port().to_be();
        name.sin_addr.s_addr = u32::from(*address.ip()).to_be();
        let length = std::mem::size_of_val(&name) as libc::socklen_t;
        assert_eq!(
            libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&name).cast(), length),
            0,
            "bind"
        );
        assert_eq!(libc::listen(socket.as_raw_fd(), 16), 0, "listen");
        socket
    }
}

#[test]
fn a_port_has_one_process() {
    let proxy = Setup::default().prepare();
    let listener = TcpListener::bind(proxy.address).expect("bind");
    assert_refused(&proxy, &["in use", "taken"]);
    drop(listener);
    // The kernel would let both listen and split the connections between them.
    let sharing = reuse_port_listener(proxy.address);
    assert_refused(&proxy, &["in use", "taken"]);
    drop(sharing);
    let running = Setup::default().start();
    let mut third = Setup::default().prepare();
    third.address = running.address;
    assert_refused(&third, &["in use", "taken"]);
    running.assert_serves();
}

#[test]
fn little_lockable_memory_is_named() {
    let limit = ["prlimit", "--memlock=65536"].map(String::from).to_vec();
    let mut setup = Setup {
        wrapper: limit,
        ..Setup::default()
    };
    if is_root() {
        // The limit does not bind root, whose capability is taken away here.
        if !exists("setpriv") {
            return;
        }
        let drop = [
            "setpriv",
            "--bounding-set=-ipc_lock",
            "--inh-caps=-ipc_lock",
        ];
        setup.wrapper = [drop.as_slice(), &["prlimit", "--memlock=65536"]]
            .concat()
            .into_iter()
            .map(String::from)
            .collect();
    }
    assert_refused(&setup.prepare(), &["memlock"]);
}

#[test]
fn refused_io_uring_is_named() {
    if !exists("strace") {
        return;
    }
    let mut setup = Setup::default();
    let silent = [
        "strace",
        "-f",
        "-qqq",
        "-o",
        "/dev/null",
        "-e",
        "trace=io_uring_setup",
    ];
    for error in ["EPERM", "ENOSYS"] {
        let inject = format!("inject=io_uring_setup:error={error}");
        setup.wrapper = silent
            .iter()
            .map(ToString::to_string)
            .chain(["-e".to_string(), inject])
            .collect();
        assert_refused(&setup.clone().prepare(), &["io_uring"]);
    }
}

#[test]
fn folders_without_direct_io_are_refused() {
    if !is_root() {
        skip("mounting a file system without O_DIRECT needs root");
        return;
    }
    let proxy = Setup::default().prepare();
    let mount = Command::new("mount")
        .args(["-t", "ramfs", "ramfs"])
        .arg(proxy.cache_folder())
        .output()
        .expect("mount runs");
    if !mount.status.success() {
        skip(&format!(
            "ramfs cannot be mounted: {}",
            String::from_utf8_lossy(&mount.stderr)
        ));
        return;
    }
    std::fs::set_permissions(proxy.cache_folder(), std::fs::Permissions::from_mode(0o700))
        .expect("mode");
    let line = std::panic::catch_unwind(|| refusal(&mut proxy.command()));
    let left = files_below(&proxy.cache_folder());
    let unmount = Command::new("umount")
        .arg("-l")
        .arg(proxy.cache_folder())
        .status()
        .expect("umount runs");
    assert!(unmount.success());
    assert_says(&line.expect("refused"), &["O_DIRECT", "direct I/O"]);
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn credentials_that_others_can_read_are_refused() {
    let mut proxy = Setup::default().prepare();
    let file = proxy.folder().join("creds");
    let text = "blockUser = \"user\"\nblockPass = \"a-secret-nobody-should-see\"\n";
    std::fs::write(&file, text).expect("file");
    proxy.setup.flags = vec!["--credsFile".to_string(), file.display().to_string()];
    let mode = |bits| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(bits)).expect("mode")
    };
    for bits in [0o644, 0o640, 0o604, 0o660] {
        mode(bits);
        assert_refused(&proxy, &["0600", "creds"]);
    }
    mode(0o600);
    let link = proxy.folder().join("creds-link");
    symlink(&file, &link).expect("link");
    proxy.setup.flags[1] = link.display().to_string();
    assert_refused(&proxy, &["symlink", "symbolic link", "link"]);
    proxy.setup.flags[1] = proxy.folder().join("no-such-file").display().to_string();
    assert_refused(&proxy, &["no-such-file"]);
    proxy.setup.flags[1] = file.display().to_string();
    std::fs::write(
        &file,
        "blockUser = \nblockPass = \"a-secret-nobody-should-see\"",
    )
    .expect("file");
    let line = refusal(&mut proxy.command());
    assert!(
        !line.contains("a-secret-nobody-should-see"),
        "a secret in a message: {line}"
    );
    std::fs::write(&file, text).expect("file");
    proxy.start();
    proxy.assert_serves();
    assert!(!proxy.stderr().contains("a-secret-nobody-should-see"));
}

#[test]
fn bad_settings_are_refused_with_their_place() {
    let proxy = Setup::default().prepare();
    let good = std::fs::read_to_string(proxy.config_file()).expect("settings");
    let file = "forebay.toml";
    let cases: &[(&str, String, &[&str])] = &[
        (
            "broken TOML",
            good.replacen("[[volume]]", "[[volume", 1),
            &[file],
        ),
        (
            "unknown key",
            good.replacen("store =", "stoer =", 1),
            &["stoer"],
        ),
        (
            "unknown store",
            good.replacen("\"file\"", "\"tape\"", 1),
            &["tape"],
        ),
        (
            "odd block size",
            good.replacen("1MiB", "3MiB", 1),
            &["block_size"],
        ),
        (
            "tiny block size",
            good.replacen("1MiB", "4KiB", 1),
            &["block_size"],
        ),
        (
            "bad volume name",
            good.replacen("\"vol\"", "\"-\"", 1),
            &["name"],
        ),
        (
            "volume with a slash",
            good.replacen("\"vol\"", "\"a/b\"", 1),
            &["name"],
        ),
        (
            "volume twice",
            good.replacen("\"other\"", "\"vol\"", 1),
            &["vol"],
        ),
        (
            "bad permission",
            good.replacen("\"rw\"", "\"rwx\"", 1),
            &["permission"],
        ),
        (
            "bad ttl",
            good.replacen("\"600s\"", "\"soon\"", 1),
            &["ttl"],
        ),
        (
            "relative path",
            good.replacen("path = \"/", "path = \"", 1),
            &["path"],
        ),
    ];
    for (name, text, words) in cases {
        assert_ne!(text, &good, "{name}: the case changes nothing");
        std::fs::write(proxy.config_file(), text).expect("settings");
        let line = refusal(&mut proxy.command());
        assert_says(&line, words);
        assert_says(&line, &[file]);
        assert!(
            files_below(&proxy.cache_folder()).is_empty(),
            "{name}: the cache folder was made before the settings were read"
        );
    }
    std::fs::remove_file(proxy.config_file()).expect("remove");
    assert_refused(&proxy, &[file]);
    // Root reads whatever its mode; a folder is unreadable as a file for everybody.
    std::fs::create_dir(proxy.config_file()).expect("folder");
    assert_refused(&proxy, &[file]);
}

#[test]
fn bad_flags_are_usage_errors() {
    let proxy = Setup::default().prepare();
    let cases: &[&[&str]] = &[
        &["--no-such-flag"],
        &["--shards", "0"],
        &["--shards", "many"],
        &["--diskQuota", "110%"],
        &["--diskQuota", "-1"],
        &["--diskQuota", "much"],
        &["--bindAddr", "nowhere"],
        &["--bindAddr", "127.0.0.1:99999"],
        &["--bufferSize", "-5"],
    ];
    for flags in cases {
        let mut command = Command::new(
            std::env::var_os("FOREBAY_TEST_BINARY").unwrap_or(env!("CARGO_BIN_EXE_forebay").into()),
        );
        command
            .arg("start")
            .args(*flags)
            .arg("--diskFolder")
            .arg(proxy.cache_folder());
        command
            .env("HOME", proxy.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = command.output().expect("runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {stderr}");
        assert!(
            !stderr.is_empty() && !stderr.contains("panicked"),
            "{flags:?}: {stderr}"
        );
        assert!(
            files_below(&proxy.cache_folder()).is_empty(),
            "{flags:?}: something was made"
        );
    }
}

#[test]
fn a_quota_that_cannot_be_kept_is_refused() {
    let proxy = Setup {
        disk_quota: "1M".to_string(),
        ..Setup::default()
    }
    .prepare();
    assert_refused(&proxy, &["quota"]);
}

#[test]
fn a_quota_of_more_segments_than_may_be_open_is_refused_or_laid_out_in_fewer() {
    let mut proxy = Setup {
        wrapper: ["prlimit", "--nofile=1024"].map(String::from).to_vec(),
        disk_quota: "1T".to_string(),
        ..Setup::default()
    }
    .prepare();
    // Even of the largest segments there are thousands.
    assert_refused(&proxy, &["open files"]);
    // The usual layout has 2,000 of these, a coarser one fits.
    proxy.setup.disk_quota = "64G".to_string();
    proxy.start();
    proxy.put("before", &pattern(1, 100_000));
    assert!(proxy.terminate().success());
    // What is formatted stays as it is.
    proxy.setup.disk_quota = "256G".to_string();
    assert_refused(&proxy, &["open files"]);
    proxy.setup.disk_quota = "64G".to_string();
    assert_still_good(proxy);
}

#[test]
fn unusable_certificates_are_refused() {
    let proxy = Setup {
        tls: true,
        ..Setup::default()
    }
    .prepare();
    std::fs::write(proxy.certificate_file(), "not a certificate").expect("file");
    assert_refused(&proxy, &["cert"]);
    // A key without its certificate is never written over.
    std::fs::remove_file(proxy.certificate_file()).expect("remove");
    std::fs::write(proxy.folder().join("key.pem"), "somebody's key").expect("file");
    assert_refused(&proxy, &["key", "cert"]);
}

#[test]
fn addresses_of_others_are_refused() {
    let mut proxy = Setup::default().prepare();
    // TEST-NET-1: no machine has it.
    proxy.address = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 8443));
    assert_refused(&proxy, &["192.0.2.1"]);
}
