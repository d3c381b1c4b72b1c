//! The systemd unit: its text, where it lies, and the calls to systemctl.
//!
//! This file owns the unit `forebay-proxy.service` and the words in its `ExecStart=`. It never starts
//! anything but `systemctl`, and never puts a secret into a unit, which every user may read.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the unit.
pub const UNIT_NAME: &str = "forebay-proxy.service";

/// Where units of the system's administrator belong.
const UNIT_FOLDER_DEFAULT: &str = "/etc/systemd/system";

/// Overrides [`UNIT_FOLDER_DEFAULT`]: for tests and for packaging into a staging folder.
const UNIT_FOLDER_VARIABLE: &str = "FOREBAY_UNIT_DIR";

/// Exists exactly while systemd is the running init (sd_booted(3)).
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// Why a unit cannot be made, removed or started. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// The unit is there already.
    #[error("unit {}: it is there already; --force replaces it", .path.display())]
    Exists {
        /// The unit's file.
        path: PathBuf,
    },
    /// There is no unit.
    #[error("unit {}: there is no such file, so there is nothing to remove", .path.display())]
    Missing {
        /// The unit's file.
        path: PathBuf,
    },
    /// The system refuses the file.
    #[error("unit {}: {source}; writing it usually needs root", .path.display())]
    Refused {
        /// The unit's file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// systemctl cannot be run.
    #[error("systemctl {arguments}: {problem}")]
    Systemctl {
        /// What it was told.
        arguments: String,
        /// What it answered, or why it could not be run.
        problem: String,
    },
    /// A value cannot be written into a unit.
    #[error(
        "unit: {what} holds a line break or another control character; a unit cannot hold that"
    )]
    Unwritable {
        /// Which value.
        what: &'static str,
    },
    /// The words cannot be taken apart.
    #[error("{0}")]
    Words(#[from] WordsError),
}

/// What a unit is made of.
#[derive(Clone, Debug)]
pub struct UnitPlan {
    /// The program, absolute.
    pub program: PathBuf,
    /// Words after `forebay start`.
    pub start_words: Vec<String>,
    /// The home folder that `~` means to it.
    pub home: PathBuf,
    /// The user that it runs as.
    pub user: String,
    /// Folders that it may write to.
    pub writable: Vec<PathBuf>,
    /// Folder of the cache, whose mount the unit waits for.
    pub disk_folder: PathBuf,
}

/// The unit's file.
pub fn unit_path() -> PathBuf {
    let folder = std::env::var_os(UNIT_FOLDER_VARIABLE)
        .filter(|folder| !folder.is_empty())
        .unwrap_or_else(|| OsString::from(UNIT_FOLDER_DEFAULT));
    PathBuf::from(folder).join(UNIT_NAME)
}

/// The text of a unit.
pub fn unit_text(plan: &UnitPlan) -> Result<String, UnitError> {
    let program = path_word(&plan.program, "the program's path")?;
    let mut command = vec![program, "start".to_owned()];
    for word in &plan.start_words {
        if word.chars().any(char::is_control) {
            return Err(UnitError::Unwritable {
                what: "--startFlags",
            });
        }
        command.push(quote_command_word(word));
    }
    let mut writable = Vec::new();
    for folder in &plan.writable {
        // The dash: a folder that is not there yet is the program's to complain about, in its words.
        let quoted = path_word(folder, "a folder's path")?;
        writable.push(match quoted.strip_prefix('"') {
            Some(rest) => format!("\"-{rest}"),
            None => format!("-{quoted}"),
        });
    }
    let mount = path_word(&plan.disk_folder, "the path of --diskFolder")?;
    let home = path_word(
        &PathBuf::from(format!("HOME={}", plan.home.display())),
        "the home folder's path",
    )?;
    Ok(UNIT_TEMPLATE
        .replace("{HOME}", &home)
        .replace("{MOUNT}", &mount)
        .replace("{USER}", &plan.user)
        .replace("{COMMAND}", &command.join(" "))
        .replace("{WRITABLE}", &writable.join(" ")))
}

/// The hardening leaves what the proxy uses: its folders, its sockets, io_uring (which systemd's
/// @system-service includes), /sys and /proc for the geometry of disks and cores.
const UNIT_TEMPLATE: &str = "\
# Made by `forebay init systemd`; `forebay init systemd --force` makes it anew.
[Unit]
Description=Forebay block cache proxy
Wants=network-online.target
After=network-online.target
RequiresMountsFor={MOUNT}
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=exec
User={USER}
Environment={HOME}
ExecStart={COMMAND}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
# Exit code 2 means settings that another start cannot heal.
RestartPreventExitStatus=2
# The proxy stops within 20 s whatever its backlog.
TimeoutStopSec=30
LimitMEMLOCK=infinity
LimitNOFILE=1048576
LimitCORE=0
UMask=0077
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={WRITABLE}
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
";

/// Writes the unit.
pub fn write_unit(text: &str, replace: bool) -> Result<PathBuf, UnitError> {
    let path = unit_path();
    let refused = |source| UnitError::Refused {
        path: path.clone(),
        source,
    };
    if path.symlink_metadata().is_ok() && !replace {
        return Err(UnitError::Exists { path });
    }
    let temporary = path.with_extension(format!("service.{}.new", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(refused)?;
    Ok(path)
}

/// Makes systemd see the unit and, if asked, enables and starts it.
pub fn enable(now: bool) -> Result<(), UnitError> {
    if now {
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", UNIT_NAME])?;
    } else if systemd_runs() {
        systemctl(&["daemon-reload"])?;
    }
    Ok(())
}

/// Stops and disables the unit where systemd runs, and removes its file.
pub fn remove_unit() -> Result<PathBuf, UnitError> {
    let path = unit_path();
    if path.symlink_metadata().is_err() {
        return Err(UnitError::Missing { path });
    }
    if systemd_runs() {
        systemctl(&["disable", "--now", UNIT_NAME])?;
    }
    std::fs::remove_file(&path).map_err(|source| UnitError::Refused {
        path: path.clone(),
        source,
    })?;
    if systemd_runs() {
        systemctl(&["daemon-reload"])?;
    }
    Ok(path)
}

/// Whether systemctl has anybody to talk to. With the unit folder overridden it is always called, so
/// that what would be done can be seen.
fn systemd_runs() -> bool {
    std::env::var_os(UNIT_FOLDER_VARIABLE).is_some() || Path::new(SYSTEMD_RUNS).is_dir()
}

fn systemctl(arguments: &[&str]) -> Result<(), UnitError> {
    let refuse = |problem: String| UnitError::Systemctl {
        arguments: arguments.join(" "),
        problem,
    };
    let output = Command::new("systemctl")
        .args(arguments)
        .output()
        .map_err(|error| refuse(format!("it cannot be run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(refuse(format!("{} {complaint}", output.status)))
}

/// The words after `forebay start` in the unit's `ExecStart=`; `None` where there is no unit.
pub fn unit_start_words() -> Result<Option<Vec<String>>, UnitError> {
    let path = unit_path();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(UnitError::Refused { path, source }),
    };
    let command = text
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let words = split_words(command.unwrap_or_default())?;
    let plain = |word: &String| word.replace("%%", "%").replace("$$", "$");
    Ok(Some(words.iter().skip(2).map(plain).collect()))
}

/// Text that ends inside of a quoted word or after a backslash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` ends {place}; close it")]
pub struct WordsError {
    text: String,
    place: &'static str,
}

/// Takes a line apart into words as systemd and shells do: blanks separate, quotes hold together, a
/// backslash takes the next character as it is (in single quotes too, as systemd has it).
pub fn split_words(text: &str) -> Result<Vec<String>, WordsError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut letters = text.chars();
    let unfinished = |place| WordsError {
        text: text.to_owned(),
        place,
    };
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', _) => {
                let next = letters
                    .next()
                    .ok_or_else(|| unfinished("after a backslash"))?;
                word.get_or_insert_default().push(next);
            }
            (_, Some(open)) if letter == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (_, None) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err(unfinished("inside of a quoted word"));
    }
    words.extend(word);
    Ok(words)
}

/// A word of `ExecStart=`: quoted where it must be, with systemd's `%` and `$` taken literally.
fn quote_command_word(word: &str) -> String {
    quote(&word.replace('%', "%%").replace('$', "$$"))
}

fn path_word(path: &Path, what: &'static str) -> Result<String, UnitError> {
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => Ok(quote(&text.replace('%', "%%"))),
        _ => Err(UnitError::Unwritable { what }),
    }
}

fn quote(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,@%+$".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan() -> UnitPlan {
        UnitPlan {
            program: PathBuf::from("/bin/true"),
            start_words: vec![
                "--diskFolder=/cache".to_owned(),
                "--diskQuota=5%".to_owned(),
            ],
            home: PathBuf::from("/root"),
            user: "root".to_owned(),
            writable: vec![PathBuf::from("/cache"), PathBuf::from("/var/lib/a b")],
            disk_folder: PathBuf::from("/cache"),
        }
    }

    #[test]
    fn the_unit_says_what_runs_and_what_it_may_write() {
        let text = unit_text(&plan()).expect("text");
        assert!(text.contains("\nExecStart=/bin/true start --diskFolder=/cache --diskQuota=5%%\n"));
        assert!(text.contains("\nReadWritePaths=-/cache \"-/var/lib/a b\"\n"));
        assert!(text.contains("\nRequiresMountsFor=/cache\n"));
        assert!(text.contains("\nUser=root\nEnvironment=HOME=/root\n"));
        assert!(!text.contains(['{', '}']), "{text}");
    }

    #[test]
    fn systemd_knows_every_line_of_the_unit() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join(UNIT_NAME);
        std::fs::write(&path, unit_text(&plan()).expect("text")).expect("write");
        let output = match Command::new("systemd-analyze")
            .arg("verify")
            .arg(&path)
            .output()
        {
            Ok(output) => output,
            Err(error) => {
                eprintln!("skipped: systemd-analyze cannot be run: {error}");
                return;
            }
        };
        // It exits 0 even where it does not know a key, so its words are the answer. What it says
        // of other units of this machine is not ours.
        let words = String::from_utf8_lossy(&output.stderr);
        let ours: Vec<&str> = words
            .lines()
            .filter(|line| line.contains("forebay"))
            .collect();
        assert!(ours.is_empty(), "{ours:?}");
        std::fs::write(
            &path,
            unit_text(&plan()).expect("text") + "\n[Service]\nNoSuchKey=1\n",
        )
        .expect("write");
        let output = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&path)
            .output()
            .expect("again");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(
            words.contains("NoSuchKey"),
            "verify finds nothing, so the check above is void: {words}"
        );
    }

    #[test]
    fn words_split_as_in_a_shell() {
        let split = |text| split_words(text).expect("words");
        assert_eq!(
            split("--a=1  --b '2 3' \"4\\\"5\""),
            ["--a=1", "--b", "2 3", "4\"5"]
        );
        assert_eq!(split("--a='b c'd \"\""), ["--a=b cd", ""]);
        assert_eq!(split("  "), Vec::<String>::new());
        assert!(split_words("--a 'b").is_err());
        assert!(split_words("--a \\").is_err());
    }

    #[test]
    fn line_breaks_cannot_enter_a_unit() {
        let mut broken = plan();
        broken
            .start_words
            .push("--config=/x\nExecStartPre=/bin/sh".to_owned());
        assert!(unit_text(&broken).is_err());
        let mut broken = plan();
        broken.disk_folder = PathBuf::from("/x\n[Service]");
        assert!(unit_text(&broken).is_err());
    }

    proptest! {
        #[test]
        fn a_quoted_word_splits_back_to_itself(words in proptest::collection::vec("\\PC{0,12}", 0..5)) {
            let line: Vec<String> = words.iter().map(|word| quote(word)).collect();
            prop_assert_eq!(split_words(&line.join(" ")), Ok(words));
        }
    }
}
