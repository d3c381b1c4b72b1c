//! The built program from outside: exit codes, one-line refusals, files made and removed, secrets.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a condition may take before it is taken for false; never part of an assertion.
const PATIENCE: Duration = Duration::from_secs(20);

/// A home and working folder of its own, with a systemctl that only writes down what it is told.
struct World {
    folder: TempDir,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().expect("temporary folder");
        let world = World { folder };
        for name in ["home", "units", "bin", "cache"] {
            std::fs::create_dir(world.path(name)).expect("folder");
        }
        world.set_mode("cache", 0o700);
        world.write(
            "bin/systemctl",
            "#!/bin/sh\necho \"$@\" >> \"$HOME/systemctl.log\"\n[ \"$1\" != enable ] || [ ! -e \"$HOME/broken\" ]\n",
        );
        world.set_mode("bin/systemctl", 0o755);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("write");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect(name)
    }

    fn set_mode(&self, name: &str, mode: u32) {
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode))
            .expect("chmod");
    }

    /// A config with one volume that needs nothing else.
    fn write_config(&self) {
        std::fs::create_dir_all(self.path("objects")).expect("folder");
        self.write(
            "config.toml",
            "[[volume]]\nname = \"plain\"\nstore = \"file\"\npath = \"objects\"\nanonymous = \"read\"\n",
        );
    }

    /// The program, or the program in another one's hands.
    fn command(&self, wrapper: &[&str], words: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_forebay");
        let mut command = match wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        let path = format!(
            "{}:{}",
            self.path("bin").display(),
            std::env::var("PATH").expect("PATH")
        );
        command
            .args(words)
            .current_dir(self.folder.path())
            .env("HOME", self.path("home"))
            .env("FOREBAY_UNIT_DIR", self.path("units"))
            .env("PATH", path);
        for name in [
            "RUST_LOG",
            "JOURNAL_STREAM",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        ] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, words: &[&str]) -> Answer {
        Answer::of(self.command(&[], words).output().expect("run"))
    }

    /// A start that must be refused: no log, one line, the code.
    fn refused_start(&self, wrapper: &[&str], flags: &[&str]) -> Answer {
        let cache = format!("--diskFolder={}", self.path("cache").display());
        let mut words = vec!["start", "--config=config.toml"];
        if !flags.iter().any(|flag| flag.starts_with("--diskFolder")) {
            words.push(&cache);
        }
        if !flags.iter().any(|flag| flag.starts_with("--bindAddr")) {
            words.push("--bindAddr=127.0.0.1:0");
        }
        words.extend(flags);
        let mut command = self.command(wrapper, &words);
        let answer = Answer::of(command.env("RUST_LOG", "off").output().expect("run"));
        assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
        answer
    }
}

struct Answer {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn of(output: Output) -> Answer {
        Answer {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    }

    fn is(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        self
    }

    /// One line on standard error that holds `part`.
    fn says(&self, part: &str) -> &Self {
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        assert!(self.stderr.contains(part), "{}", self.stderr);
        self
    }
}

#[test]
fn version_and_license_are_printed() {
    let world = World::new();
    let version = format!("forebay {}\n", env!("CARGO_PKG_VERSION"));
    for words in [&["version"][..], &["--version"]] {
        assert_eq!(world.run(words).is(0).stdout, version);
    }
    let license = world.run(&["license"]);
    assert!(license.is(0).stdout.contains("Apache License"));
}

#[test]
fn help_goes_to_standard_output_and_names_every_flag() {
    let world = World::new();
    for words in [
        &["--help"][..],
        &["start", "--help"],
        &["start", "-h"],
        &["help", "start"],
    ] {
        let help = world.run(words);
        assert!(help.is(0).stderr.is_empty());
        assert!(help.stdout.contains("Usage: forebay"), "{}", help.stdout);
    }
    let help = world.run(&["start", "--help"]).stdout;
    for flag in [
        "--bind-addr",
        "--no-ssl",
        "--disk-quota",
        "--dev",
        "-v, --verbose",
    ] {
        assert!(help.contains(flag), "{flag} in {help}");
    }
}

#[test]
fn usage_errors_are_one_line_and_exit_2() {
    let world = World::new();
    world.run(&[]).is(2).says("no command given");
    world.run(&["strat"]).is(2).says("did you mean `start`?");
    world
        .run(&["start", "--diskFoldr=/x"])
        .is(2)
        .says("did you mean --diskFolder?");
    world
        .run(&["start", "--shards=no", "--dev"])
        .is(2)
        .says("--shards: `no`");
    world.run(&["start"]).is(2).says("--config: it is missing");
    world
        .run(&["start", "--config=absent"])
        .is(2)
        .says("absent: it cannot be opened");
    world
        .run(&["init", "creds"])
        .is(2)
        .says("--blockUser: it is missing");
    let mut command = world.command(&[], &["start", "--diskFolder"]);
    let broken = std::os::unix::ffi::OsStrExt::from_bytes(b"/x\xff");
    let broken: &OsStr = broken;
    Answer::of(command.arg(broken).output().expect("run"))
        .is(2)
        .says("not valid UTF-8");
}

#[test]
fn a_reader_that_leaves_is_no_success_and_no_panic() {
    let world = World::new();
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    let mut command = world.command(&[], &["license"]);
    let answer = Answer::of(command.stdout(writer).output().expect("run"));
    answer.is(1).says("standard output: ");
}

#[test]
fn creds_are_written_privately_replaced_by_force_and_removed() {
    let world = World::new();
    let init = ["init", "creds", "--blockUser=me", "--blockPass", "hush"];
    world.run(&init).is(0);
    let file = "home/.forebay/proxy/creds";
    let metadata = std::fs::metadata(world.path(file)).expect("stat");
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    let folder = std::fs::metadata(world.path("home/.forebay")).expect("stat");
    assert_eq!(folder.mode() & 0o7777, 0o700);
    assert!(
        world
            .read(file)
            .contains("blockUser = \"me\"\nblockPass = \"hush\"\n")
    );
    let other = ["init", "creds", "--block-user=you", "--block-pass=hush"];
    world.run(&other).is(1).says("--force replaces it");
    assert!(world.read(file).contains("\"me\""));
    world.run(&[&other[..], &["--force"]].concat()).is(0);
    assert!(world.read(file).contains("\"you\""));
    world.run(&["deinit", "creds"]).is(0);
    assert!(!world.path(file).exists());
    world.run(&["deinit", "creds"]).is(1).says("No such file");
}

#[test]
fn creds_stay_while_the_unit_refers_to_them() {
    let world = World::new();
    world
        .run(&["init", "creds", "--blockUser=me", "--blockPass=hush"])
        .is(0);
    let other = world.path("other creds");
    let other = other.to_str().expect("path");
    world
        .run(&[
            "init",
            "creds",
            "--blockUser=me",
            "--blockPass=hush",
            "--credsFile",
            other,
        ])
        .is(0);
    world.run(&["init", "systemd"]).is(0);
    world
        .run(&["deinit", "creds"])
        .is(1)
        .says("forebay-proxy.service refers to it");
    world.run(&["deinit", "creds", "--credsFile", other]).is(0);
    world
        .run(&[
            "init",
            "creds",
            "--blockUser=me",
            "--blockPass=hush",
            "--credsFile",
            other,
        ])
        .is(0);
    let flags = format!("--credsFile '{other}'");
    world
        .run(&["init", "systemd", "--force", "--startFlags", &flags])
        .is(0);
    world
        .run(&["deinit", "creds", "--credsFile", other])
        .is(1)
        .says("refers to it");
    world.run(&["deinit", "creds"]).is(0);
    world
        .run(&["deinit", "creds", "--credsFile", other, "--force"])
        .is(0);
    world.run(&["deinit", "systemd"]).is(0);
    world
        .run(&["deinit", "systemd"])
        .is(1)
        .says("nothing to remove");
}

#[test]
fn the_unit_starts_what_was_asked_for_and_systemctl_is_told() {
    let world = World::new();
    world.write_config();
    let flags = "--config config.toml --diskFolder=/nvme --diskQuota 50% --sync -v";
    world
        .run(&["init", "systemd", "--now", "--startFlags", flags])
        .is(0);
    let unit = world.read("units/forebay-proxy.service");
    let config = world.path("config.toml");
    let program = env!("CARGO_BIN_EXE_forebay");
    let expected = format!(
        "\nExecStart={program} start --disk-folder=/nvme --disk-quota=50%% --config={} --sync --verbose\n",
        config.display()
    );
    assert!(unit.contains(&expected), "{unit}");
    assert!(
        unit.contains(&format!(" -{}", world.path("objects").display())),
        "{unit}"
    );
    assert_eq!(
        world.read("home/systemctl.log"),
        "daemon-reload\nenable --now forebay-proxy.service\n"
    );
    world
        .run(&["init", "systemd"])
        .is(1)
        .says("--force replaces it");
    assert_eq!(world.read("units/forebay-proxy.service"), unit);
    world.run(&["deinit", "systemd"]).is(0);
    assert!(
        world
            .read("home/systemctl.log")
            .contains("disable --now forebay-proxy.service")
    );
    assert_eq!(
        std::fs::read_dir(world.path("units"))
            .expect("list")
            .count(),
        0
    );
}

#[test]
fn a_systemctl_that_fails_is_told() {
    let world = World::new();
    world.write("home/broken", "");
    let answer = world.run(&["init", "systemd", "--now"]);
    answer
        .is(1)
        .says("systemctl enable --now forebay-proxy.service: exit status: 1");
}

#[test]
fn flags_that_cannot_start_never_become_a_unit() {
    let world = World::new();
    for (flags, part) in [
        ("--diskFoldr=/x", "did you mean --diskFolder?"),
        ("--diskFolder='/x", "ends inside of a quoted word"),
        (
            "--blockUser=me --blockPass=hush",
            "--blockPass does not belong into a unit",
        ),
        ("--dev", "--dev is for trying"),
        ("--config=absent", "cannot be opened"),
        ("-v --help", "not flags of `forebay start`"),
    ] {
        let answer = world.run(&["init", "systemd", "--startFlags", flags]);
        answer.is(2).says(part);
        assert!(!answer.stderr.contains("hush"), "{}", answer.stderr);
    }
    assert_eq!(
        std::fs::read_dir(world.path("units"))
            .expect("list")
            .count(),
        0
    );
}

#[test]
fn files_open_to_others_are_refused_with_their_mode() {
    let world = World::new();
    world.write_config();
    std::fs::create_dir_all(world.path("home/.forebay/proxy")).expect("folder");
    let creds = "home/.forebay/proxy/creds";
    world.write(creds, "blockUser = \"me\"\nblockPass = \"hush\"\n");
    world.set_mode(creds, 0o644);
    world.refused_start(&[], &[]).is(2).says("its mode is 0644");
    std::fs::rename(world.path(creds), world.path("moved")).expect("rename");
    world.set_mode("moved", 0o600);
    std::os::unix::fs::symlink(world.path("moved"), world.path(creds)).expect("link");
    world.refused_start(&[], &[]).is(2).says("symbolic link");
    std::fs::remove_file(world.path(creds)).expect("remove");
    let text = world.read("config.toml")
        + "[[volume.key]]\ntoken = \"0123456789abcdef\"\npermission = \"r\"\n";
    world.write("config.toml", &text);
    world.set_mode("config.toml", 0o640);
    world.refused_start(&[], &[]).is(2).says("its mode is 0640");
}

#[test]
fn a_cache_folder_that_is_not_private_is_refused() {
    let world = World::new();
    world.write_config();
    world.set_mode("cache", 0o755);
    world.refused_start(&[], &[]).is(1).says("its mode is 0755");
    assert_eq!(
        std::fs::read_dir(world.path("cache"))
            .expect("list")
            .count(),
        0
    );
    world
        .refused_start(&[], &["--diskFolder=absent"])
        .is(1)
        .says("absent");
}

#[test]
fn limits_that_are_too_low_are_refused_by_name() {
    let world = World::new();
    world.write_config();
    let memlock = ["prlimit", "--memlock=65536"];
    world
        .refused_start(&memlock, &["--shards=1"])
        .is(1)
        .says("locked memory: the limit is 65536");
    let nofile = ["prlimit", "--nofile=64:64"];
    world
        .refused_start(&nofile, &[])
        .is(1)
        .says("open files: the hard limit is 64");
    assert_eq!(
        std::fs::read_dir(world.path("cache"))
            .expect("list")
            .count(),
        0
    );
}

#[test]
fn io_uring_refused_is_one_line() {
    let world = World::new();
    world.write_config();
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: strace is not installed");
        return;
    }
    let trace = format!("--output={}", world.path("trace").display());
    let wrapper = [
        "strace",
        "-f",
        "-qq",
        &trace,
        "-e",
        "inject=io_uring_setup:error=EPERM",
    ];
    world
        .refused_start(&wrapper, &[])
        .is(1)
        .says("io_uring: this system refuses it");
}

#[test]
fn a_port_that_is_taken_is_refused() {
    let world = World::new();
    world.write_config();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let flag = format!("--bindAddr={}", listener.local_addr().expect("address"));
    world
        .refused_start(&[], &[&flag])
        .is(1)
        .says("another process listens there");
}

#[test]
fn a_folder_that_is_locked_is_refused() {
    let world = World::new();
    world.write_config();
    let file = std::fs::File::create(world.path("cache/lock")).expect("lock file");
    file.lock().expect("lock");
    world
        .refused_start(&[], &[])
        .is(1)
        .says("another process uses it");
}

/// A pipe that is full, so that a process blocks as soon as it says anything.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let set_flags = |writer: &std::io::PipeWriter, flags: i32| {
        // SAFETY: F_SETFL takes an integer; the descriptor is open.
        let outcome = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, flags) };
        assert_eq!(outcome, 0);
    };
    set_flags(&writer, libc::O_NONBLOCK);
    while writer.write(&[b'.'; 4096]).is_ok() {}
    set_flags(&writer, 0);
    (reader, writer)
}

fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"));
    String::from_utf8_lossy(&bytes.unwrap_or_default()).replace('\0', " ")
}

#[test]
fn the_secret_disappears_from_the_process_list() {
    let world = World::new();
    for secret in [
        &["--blockPass", "hush-hush"][..],
        &["--block-pass=hush-hush"],
    ] {
        let mut words = vec!["start", "--blockUser", "me"];
        words.extend(secret);
        words.extend(["--config", "absent"]);
        // The complaint about the config does not fit into the pipe, so the process waits there.
        let (mut reader, writer) = full_pipe();
        let mut command = world.command(&[], &words);
        let mut child = command.stderr(writer).spawn().expect("start");
        drop(command);
        let deadline = Instant::now() + PATIENCE;
        let mut seen = command_line(child.id());
        while !seen.contains("*********") && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            seen = command_line(child.id());
        }
        assert!(seen.contains("--blockUser me --block"), "{seen}");
        assert!(seen.contains("********* --config absent"), "{seen}");
        assert!(!seen.contains("hush"), "{seen}");
        let mut said = Vec::new();
        reader.read_to_end(&mut said).expect("drain");
        assert_eq!(child.wait().expect("reap").code(), Some(2));
        assert!(String::from_utf8_lossy(&said).contains("absent: it cannot be opened"));
    }
}
