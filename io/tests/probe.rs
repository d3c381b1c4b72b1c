//! Start-up refusals under the conditions that cause them: real limits, filters, folders and ports.
//!
//! Limits and filters bind a whole process, so those tests run a probe in a child: this test binary
//! again, told by an environment variable which probe to run.

use forebay_io::probe::{self, FolderLock, ProbeError};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const CHILD_VARIABLE: &str = "FOREBAY_PROBE_CHILD";
const FOLDER_VARIABLE: &str = "FOREBAY_PROBE_FOLDER";

/// Not a test: what the others run in a child process.
#[test]
#[ignore = "run by the other tests in a child process"]
fn child() {
    let folder = std::env::var(FOLDER_VARIABLE).unwrap_or_default();
    let folder = Path::new(&folder);
    let outcome = match std::env::var(CHILD_VARIABLE).as_deref() {
        Ok("io_uring") => probe::io_uring().map(|()| "fine".to_owned()),
        Ok("memlock 1") => probe::memlock(1).map(|limit| limit.to_string()),
        Ok("memlock 64") => probe::memlock(64).map(|limit| limit.to_string()),
        Ok("open files") => probe::open_files().map(|limit| limit.to_string()),
        Ok("direct io") => probe::direct_io(folder),
        Ok("private folder") => probe::private_folder(folder).map(|()| "fine".to_owned()),
        Ok("hold lock") => FolderLock::acquire(folder).map(|lock| {
            println!("answer: holding");
            std::thread::sleep(Duration::from_secs(600));
            lock.release();
            String::new()
        }),
        other => panic!("no such probe: {other:?}"),
    };
    match outcome {
        Ok(answer) => println!("answer: {answer}"),
        Err(error) => println!("refusal: {error}"),
    }
}

fn child_command(probe: &str, wrapper: &[&str]) -> Command {
    let this = std::env::current_exe().expect("path of the test binary");
    let mut command = match wrapper.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(this);
            command
        }
        None => Command::new(this),
    };
    command
        .args([
            "--exact",
            "child",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CHILD_VARIABLE, probe);
    command
}

/// The line of the child's answer. The test harness may print its own words before it.
fn answer(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .find_map(|line| {
            let start = line.find("answer: ").or_else(|| line.find("refusal: "))?;
            Some(line[start..].to_owned())
        })
        .unwrap_or_else(|| {
            panic!(
                "the child did not answer: {text} {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })
}

fn run(mut command: Command) -> String {
    answer(&command.output().expect("run the child"))
}

/// Makes `io_uring_setup` fail with `errno` in the child, as container runtimes' filters do.
fn deny_io_uring(command: &mut Command, errno: i32) {
    let load_number = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let jump_if_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give_back = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        step(load_number, 0, 0, 0),
        step(jump_if_equal, 0, 1, libc::SYS_io_uring_setup as u32),
        step(give_back, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(give_back, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: prctl is async-signal-safe, and `program` and `filter` live through the call.
        let outcome = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
        };
        if outcome == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: the closure makes two system calls and allocates nothing between fork and exec.
    unsafe { command.pre_exec(install) };
}

#[test]
fn io_uring_works_here_with_every_operation() {
    probe::io_uring().expect("these tests need a kernel with io_uring");
}

#[test]
fn io_uring_denied_by_a_filter_is_one_line_with_the_cause() {
    let mut command = child_command("io_uring", &[]);
    deny_io_uring(&mut command, libc::EPERM);
    let line = run(command);
    assert!(line.starts_with("refusal: io_uring: "), "{line}");
    assert!(
        line.contains("seccomp") || line.contains("sysctl"),
        "{line}"
    );
}

#[test]
fn io_uring_missing_from_the_kernel_is_one_line_with_the_version_needed() {
    let mut command = child_command("io_uring", &[]);
    deny_io_uring(&mut command, libc::ENOSYS);
    let line = run(command);
    assert!(line.contains("Linux 5.8 or later"), "{line}");
}

#[test]
fn too_little_lockable_memory_is_refused_with_both_figures() {
    let line = run(child_command("memlock 1", &["prlimit", "--memlock=65536"]));
    assert!(line.contains("the limit is 65536 bytes"), "{line}");
    assert!(line.contains("need 524288"), "{line}");
    assert!(line.contains("LimitMEMLOCK=infinity"), "{line}");
}

#[test]
fn the_soft_memlock_limit_is_raised_to_the_hard_one() {
    let line = run(child_command(
        "memlock 1",
        &["prlimit", "--memlock=65536:8388608"],
    ));
    assert_eq!(line, "answer: 8388608");
}

#[test]
fn each_executor_needs_its_share_unless_the_process_may_lock_without_limit() {
    let limit = "--memlock=8388608";
    // `setpriv` takes CAP_IPC_LOCK away where the tests run as root.
    let without = [
        "setpriv",
        "--inh-caps=-ipc_lock",
        "--bounding-set=-ipc_lock",
        "prlimit",
        limit,
    ];
    // SAFETY: geteuid has no arguments, cannot fail and touches no memory.
    let root = unsafe { libc::geteuid() } == 0;
    let wrapper: &[&str] = if root { &without } else { &["prlimit", limit] };
    let line = run(child_command("memlock 64", wrapper));
    assert!(line.contains("64 executors need 33554432"), "{line}");
    if root {
        let line = run(child_command("memlock 64", &["prlimit", limit]));
        assert_eq!(line, "answer: 8388608");
    }
}

#[test]
fn open_files_are_raised_to_the_hard_limit_and_refused_when_that_is_too_low() {
    let line = run(child_command(
        "open files",
        &["prlimit", "--nofile=300:777"],
    ));
    assert_eq!(line, "answer: 777");
    let line = run(child_command("open files", &["prlimit", "--nofile=64:64"]));
    assert!(line.contains("the hard limit is 64"), "{line}");
}

#[test]
fn a_folder_must_exist_be_a_folder_and_be_closed_to_others() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let set_mode = |mode| {
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode))
            .expect("chmod");
    };
    set_mode(0o700);
    probe::private_folder(folder.path()).expect("0700 and ours");
    for mode in [0o755, 0o770, 0o701, 0o777, 0o1777] {
        set_mode(mode);
        let error = probe::private_folder(folder.path()).expect_err("open to others");
        assert!(matches!(error, ProbeError::FolderModeOpen { mode: told, .. } if told == mode));
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }
    set_mode(0o700);
    let file = folder.path().join("file");
    std::fs::write(&file, b"").expect("write");
    assert!(matches!(
        probe::private_folder(&file),
        Err(ProbeError::NotAFolder { .. })
    ));
    assert!(matches!(
        probe::private_folder(&folder.path().join("absent")),
        Err(ProbeError::FolderUnusable { .. })
    ));
}

#[test]
fn a_folder_of_somebody_else_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // SAFETY: geteuid has no arguments, cannot fail and touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        let error = probe::private_folder(Path::new("/")).expect_err("root's");
        assert!(matches!(error, ProbeError::FolderNotOurs { owner: 0, .. }));
        return;
    }
    std::os::unix::fs::chown(folder.path(), Some(12345), None).expect("chown");
    let error = probe::private_folder(folder.path()).expect_err("not ours");
    assert!(error.to_string().contains("user id 12345"), "{error}");
}

#[test]
fn direct_io_is_tried_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let filesystem = probe::direct_io(folder.path()).expect("direct I/O in the temporary folder");
    assert!(!filesystem.is_empty());
    let left = std::fs::read_dir(folder.path()).expect("list").count();
    assert_eq!(left, 0);
}

#[test]
fn a_file_system_without_direct_io_is_named_and_refused() {
    // ramfs is the file system without direct I/O that every kernel has; mounting it needs root and
    // a mount namespace, so that nothing outside the child sees it.
    let script = "mount -t ramfs ramfs \"$FOREBAY_PROBE_FOLDER\" && exec \"$0\" \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", script];
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut command = child_command("direct io", &wrapper);
    let output = command
        .env(FOLDER_VARIABLE, folder.path())
        .output()
        .expect("run unshare");
    let complaint = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && (complaint.contains("unshare:") || complaint.contains("mount:"))
    {
        eprintln!("skipped: no file system may be mounted here ({complaint})");
        return;
    }
    let line = answer(&output);
    assert!(
        line.contains("file system (ramfs) does not do direct I/O"),
        "{line}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 0);
}

/// The first success of `attempt`, or its last failure once patience is over. Other tests start
/// processes meanwhile, and between fork and exec each of those holds a copy of every descriptor of
/// this one: what was closed here may stay open for a moment longer.
fn eventually<T>(attempt: impl Fn() -> Result<T, ProbeError>) -> Result<T, ProbeError> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            outcome => return outcome,
        }
    }
}

/// Starts a process that holds the folder's lock.
fn lock_holder(folder: &Path) -> Child {
    let mut command = child_command("hold lock", &[]);
    let mut holder = command
        .env(FOLDER_VARIABLE, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the holder");
    let lines = std::io::BufReader::new(holder.stdout.take().expect("its output"));
    let mut lines = std::io::BufRead::lines(lines).map_while(Result::ok);
    if !lines.any(|line| line.contains("answer: holding")) {
        let status = holder.wait().expect("reap");
        panic!("the holder ended without taking the lock: {status}");
    }
    holder
}

#[test]
fn a_locked_folder_names_the_process_and_is_free_once_that_is_killed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut holder = lock_holder(folder.path());
    let error = FolderLock::acquire(folder.path()).expect_err("held by the child");
    let expected = format!("process {}", holder.id());
    assert!(error.to_string().contains(&expected), "{error}");
    holder.kill().expect("SIGKILL");
    holder.wait().expect("reap");
    let lock = eventually(|| FolderLock::acquire(folder.path()))
        .expect("free after the holder was killed");
    assert!(matches!(
        FolderLock::acquire(folder.path()),
        Err(ProbeError::FolderLocked { .. })
    ));
    lock.release();
    eventually(|| FolderLock::acquire(folder.path())).expect("free after release");
}

#[test]
fn a_lock_file_that_is_a_link_is_not_followed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let target = folder.path().join("precious");
    std::fs::write(&target, b"precious").expect("write");
    std::os::unix::fs::symlink(&target, folder.path().join(probe::LOCK_FILE_NAME)).expect("link");
    FolderLock::acquire(folder.path()).expect_err("a link");
    assert_eq!(std::fs::read(&target).expect("read"), b"precious");
}

/// A listener with SO_REUSEPORT, as a second proxy's cores would have.
fn sharing_listener(address: &str) -> (std::os::fd::OwnedFd, SocketAddr) {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let address: SocketAddr = address.parse().expect("address");
    let SocketAddr::V4(v4) = address else {
        panic!("an IPv4 address")
    };
    let raw = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: v4.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(v4.ip().octets()),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: the pointers are to live values of the sizes given, and the descriptor is owned at once.
    let socket = unsafe {
        let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0));
        let one: i32 = 1;
        for option in [libc::SO_REUSEPORT, libc::SO_REUSEADDR] {
            let outcome = libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const one).cast(),
                size_of::<i32>() as u32,
            );
            assert_eq!(outcome, 0);
        }
        let length = size_of::<libc::sockaddr_in>() as u32;
        assert_eq!(
            libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), length),
            0
        );
        assert_eq!(libc::listen(socket.as_raw_fd(), 16), 0);
        socket
    };
    let listener = TcpListener::from(socket.try_clone().expect("clone"));
    let address = listener.local_addr().expect("address");
    (socket, address)
}

#[test]
fn a_port_shared_with_so_reuseport_is_refused() {
    let (socket, address) = sharing_listener("127.0.0.1:0");
    let error = probe::exclusive_bind(address).expect_err("somebody listens");
    assert!(matches!(error, ProbeError::AddressTaken { .. }), "{error}");
    let everywhere = SocketAddr::from(([0, 0, 0, 0], address.port()));
    probe::exclusive_bind(everywhere).expect_err("somebody listens on one address of all");
    drop(socket);
    eventually(|| probe::exclusive_bind(address)).expect("free again");
}

#[test]
fn a_plain_listener_is_refused_and_the_rest_of_its_connections_are_not() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("address");
    assert!(matches!(
        probe::exclusive_bind(address),
        Err(ProbeError::AddressTaken { .. })
    ));
    // The listening side closes first, so its end of the connection stays in TIME_WAIT.
    let client = TcpStream::connect(address).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    drop(server);
    drop(client);
    drop(listener);
    assert_eq!(
        eventually(|| probe::exclusive_bind(address)).expect("TIME_WAIT is no listener"),
        address
    );
}

#[test]
fn port_zero_is_answered_with_the_port_chosen() {
    let address = probe::exclusive_bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bind");
    assert_ne!(address.port(), 0);
}

#[test]
fn an_address_of_another_machine_is_refused_with_advice() {
    let error = probe::exclusive_bind(SocketAddr::from(([192, 0, 2, 1], 0))).expect_err("not ours");
    assert!(
        error.to_string().contains("address of this machine"),
        "{error}"
    );
}
