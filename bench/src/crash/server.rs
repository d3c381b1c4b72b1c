//! The server's process: owns its folders, its settings and its lives. Knows the server only by its command line and its
//! answers. A process that is not ended by its owner is killed when this is dropped.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::crash::CrashError;
use crate::crash::client::Client;

/// Bearer token of the clients.
pub const TOKEN: &str = "crash-client-token-0123456789";
/// Bearer token of the operator.
pub const OPERATOR_TOKEN: &str = "crash-operator-token-0123456789";
/// The volume whose keys change.
pub const REVALIDATE: &str = "changing";
/// The volume whose keys are written once.
pub const IMMUTABLE: &str = "once";
/// The bucket of both.
pub const BUCKET: &str = "crash";

/// The longest wait for a start or an end before it counts as a hang; it measures nothing.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How often a start is asked about.
const POLL: Duration = Duration::from_millis(4);

/// Below the kernel's range for outgoing connections, so that none of those takes the port between two lives.
const PORTS: std::ops::Range<u16> = 12_000..20_000;

/// How the server is to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The server's binary.
    pub binary: PathBuf,
    /// Where its folders are made.
    pub folder: PathBuf,
    /// Endpoint of the store.
    pub store_url: String,
    /// Access key and secret of the store.
    pub store_login: (String, String),
    /// Block size of both volumes.
    pub block_bytes: u64,
    /// More flags.
    pub flags: Vec<String>,
}

/// A server with folders that outlive its processes.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    address: SocketAddr,
    child: Option<Child>,
}

impl Server {
    /// Makes the folders and the settings file; starts nothing.
    pub fn prepare(settings: Settings) -> Result<Self, CrashError> {
        let failed = |error| CrashError::new(settings.folder.display().to_string(), error);
        for name in ["cache", "ledger", "home"] {
            let mut builder = std::fs::DirBuilder::new();
            let path = settings.folder.join(name);
            builder.mode(0o700).create(path).map_err(failed)?;
        }
        let mut text = format!("[operator]\ntoken = \"{OPERATOR_TOKEN}\"\n");
        let volumes = [
            (REVALIDATE, "consistency = \"revalidate\"\nttl = \"1s\""),
            (IMMUTABLE, "consistency = \"immutable\""),
        ];
        for (name, lines) in volumes {
            text.push_str(&format!(
                "\n[[volume]]\nname = \"{name}\"\nstore = \"s3\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
                 bucket = \"{BUCKET}\"\nprefix = \"{name}\"\nblock_size = \"{}KiB\"\n{lines}\nwriteback = true\n\n\
                 [[volume.key]]\ntoken = \"{TOKEN}\"\npermission = \"rw\"\n",
                settings.store_url,
                settings.block_bytes >> 10,
            ));
        }
        let config = settings.folder.join("forebay.toml");
        std::fs::write(&config, text).map_err(failed)?;
        std::fs::set_permissions(&config, PermissionsExt::from_mode(0o600)).map_err(failed)?;
        let address = free_address()?;
        Ok(Self {
            settings,
            address,
            child: None,
        })
    }

    /// Where it listens when it runs.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts a process and waits for nothing. What it logs goes to `forebay.log` in the folder.
    pub fn spawn(&mut self) -> Result<(), CrashError> {
        let folder = &self.settings.folder;
        let failed = |error| CrashError::new(self.settings.binary.display().to_string(), error);
        let log = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.log())
        };
        let mut command = Command::new(&self.settings.binary);
        let (key, secret) = &self.settings.store_login;
        command
            .args([
                "start",
                "--noSSL",
                "--blockUser",
                key,
                "--blockPass",
                secret,
            ])
            .args(["--bindAddr", &self.address.to_string()])
            .arg("--config")
            .arg(folder.join("forebay.toml"))
            .arg("--diskFolder")
            .arg(folder.join("cache"))
            .arg("--dbFolder")
            .arg(folder.join("ledger"))
            .args(&self.settings.flags)
            .env("HOME", folder.join("home"))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::from(log().map_err(failed)?))
            .stderr(Stdio::from(log().map_err(failed)?));
        self.child = Some(command.spawn().map_err(failed)?);
        Ok(())
    }

    /// Waits until it is ready to serve.
    pub fn wait_until_ready(&mut self) -> Result<(), CrashError> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.has_ended()? {
                let why = format!("ended with {status} instead of getting ready");
                return Err(CrashError::new("the server", self.with_last_words(&why)));
            }
            let ready = Client::new(self.address, OPERATOR_TOKEN).request("GET", "/-/readyz", b"");
            if ready.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if begun.elapsed() > WAIT_MAX {
                let why = self.with_last_words("is not ready");
                return Err(CrashError::new("the server", why));
            }
            std::thread::sleep(POLL);
        }
    }

    /// How the process ended, if it did by itself.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>, CrashError> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let ended = child.try_wait();
        ended.map_err(|error| CrashError::new("wait for the server", error))
    }

    /// SIGKILL. A process that had ended by itself is an error: nobody may rely on that.
    pub fn kill(&mut self) -> Result<(), CrashError> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let failed = |error| CrashError::new("kill the server", error);
        child.kill().map_err(failed)?;
        let status = child.wait().map_err(failed)?;
        if status.signal() == Some(libc::SIGKILL) {
            return Ok(());
        }
        let why = self.with_last_words(&format!("had ended with {status} before it was killed"));
        Err(CrashError::new("the server", why))
    }

    /// SIGTERM, and its end with exit code 0.
    pub fn terminate(&mut self) -> Result<(), CrashError> {
        let Some(child) = &self.child else {
            return Ok(());
        };
        // SAFETY: the child is ours and not waited for, so that its id names no other process.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
        let begun = Instant::now();
        while begun.elapsed() < WAIT_MAX {
            if let Some(status) = self.has_ended()? {
                self.child = None;
                if status.code() == Some(0) {
                    return Ok(());
                }
                let why = self.with_last_words(&format!("ended with {status} after SIGTERM"));
                return Err(CrashError::new("the server", why));
            }
            std::thread::sleep(POLL);
        }
        let why = self.with_last_words("does not end after SIGTERM");
        Err(CrashError::new("the server", why))
    }

    /// `/-/status`.
    pub fn status(&self) -> Result<serde_json::Value, CrashError> {
        self.ask("/-/status")
    }

    /// The server's list of dirty blocks.
    pub fn dirty(&self) -> Result<serde_json::Value, CrashError> {
        self.ask("/-/dirty")
    }

    fn ask(&self, path: &'static str) -> Result<serde_json::Value, CrashError> {
        let failed = |why: String| CrashError::new(path, why);
        let answer = Client::new(self.address, OPERATOR_TOKEN).request("GET", path, b"");
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        if answer.status != 200 {
            return Err(failed(format!("answered {}", answer.status)));
        }
        serde_json::from_slice(&answer.body).map_err(|error| failed(error.to_string()))
    }

    fn log(&self) -> PathBuf {
        self.settings.folder.join("forebay.log")
    }

    /// Adds the end of the log to a message.
    fn with_last_words(&self, why: &str) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(12).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!("{why}; its last words:\n{}", lines.join("\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Errors mean that it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether a folder takes direct I/O: on one that does not, nothing that the server does on disk is what it does in earnest.
pub fn is_on_disk(folder: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let path = folder.join("direct-io-probe");
    let direct = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    // What cannot be removed goes with the folder.
    let _ = std::fs::remove_file(&path);
    direct.is_ok()
}

fn free_address() -> Result<SocketAddr, CrashError> {
    let count = PORTS.end - PORTS.start;
    // Several may run on one machine: begin apart.
    let first = (std::process::id().wrapping_mul(97) % u32::from(count)) as u16;
    // Each call gives another, whether or not the last one is in use yet: servers share ports without a word.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    (0..count)
        .map(|_| first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count)
        .map(|step| SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS.start + step)))
        .find(|address| TcpListener::bind(address).is_ok())
        .ok_or_else(|| CrashError::new(format!("ports {PORTS:?}"), "none is free"))
}
