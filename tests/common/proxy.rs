//! One running proxy: its folders, its settings, its process.
//!
//! A [`Setup`] says how to start; [`Proxy`] is the process with folders that outlive it, so that a
//! test can kill it, change a flag and start it again on the same data. Dropping it kills the
//! process and removes the folders.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tempfile::TempDir;

use super::http::{Answer, Client};
use super::stores::{AzureServer, S3Server};
use super::{WAIT_MAX, tls};

/// The volume that [`READ_WRITE`] and [`READ_ONLY`] open.
pub const VOLUME: &str = "vol";
/// A second volume that only [`OTHER`] opens.
pub const OTHER_VOLUME: &str = "other";
/// Bearer token: read and write on [`VOLUME`].
pub const READ_WRITE: &str = "token-read-write-0123456789abcdef";
/// Bearer token: read on [`VOLUME`].
pub const READ_ONLY: &str = "token-read-only-0123456789abcdef";
/// Bearer token: read and write on [`OTHER_VOLUME`] only.
pub const OTHER: &str = "token-other-volume-0123456789abcdef";
/// Bearer token of the operator.
pub const OPERATOR: &str = "token-operator-0123456789abcdef";

/// Below the kernel's range for outgoing connections, so that none of those takes our port.
const PORT_FIRST: u16 = 20_000;
const PORT_COUNT: u16 = 12_000;

/// A port that nothing listens on at the moment; each call in one process gives another.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries run one after another, but other runs may share the machine: begin apart.
    let offset = (std::process::id().wrapping_mul(97) % u32::from(PORT_COUNT)) as u16;
    for _ in 0..PORT_COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % PORT_COUNT;
        let port = PORT_FIRST + (offset + step) % PORT_COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!(
        "no free port between {PORT_FIRST} and {}",
        PORT_FIRST + PORT_COUNT
    );
}

/// How to start a proxy.
#[derive(Clone)]
pub struct Setup {
    /// TLS with a certificate that the proxy makes, or plain HTTP.
    pub tls: bool,
    /// Value of `--shards`.
    pub shards: u32,
    /// Value of `--diskQuota`.
    pub disk_quota: String,
    /// Value of `block_size` of every volume.
    pub block_size: String,
    /// More lines for both volumes, such as a ttl.
    pub volume_lines: String,
    /// Flags after all others.
    pub flags: Vec<String>,
    /// A command to put before the binary, such as `prlimit --memlock=65536`.
    pub wrapper: Vec<String>,
    /// Where objects live; `None`: a folder of the proxy's own.
    pub store: Option<StoreSpec>,
    /// Where segments live; `None`: a folder of the proxy's own.
    pub cache_folder: Option<PathBuf>,
    /// Where the proxy's own folders are made; `None`: among the system's temporary ones.
    pub parent: Option<PathBuf>,
}

/// A store that several proxies may share.
#[derive(Clone)]
pub enum StoreSpec {
    /// A folder on this machine.
    Folder(PathBuf),
    /// A real S3 server, perhaps reached through a relay, and a prefix of our own in its bucket.
    S3 { server: S3Server, prefix: String },
    /// Azurite, a prefix of our own in its container, and what the settings file has as credentials.
    Azure {
        server: AzureServer,
        prefix: String,
        credentials: String,
    },
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            tls: false,
            shards: 1,
            disk_quota: "256M".to_string(),
            block_size: "1MiB".to_string(),
            // Long, so that no test depends on how fast the machine is. Writes go through, so that
            // what is cached and what is stored can be told apart; tests of writeback ask for it.
            volume_lines: "ttl = \"600s\"\nwriteback = false\n".to_string(),
            flags: Vec::new(),
            wrapper: Vec::new(),
            store: None,
            cache_folder: None,
            parent: None,
        }
    }
}

impl Setup {
    /// Starts a proxy with these settings in new folders.
    pub fn start(self) -> Proxy {
        let mut proxy = self.prepare();
        proxy.start();
        proxy
    }

    /// Makes the folders and the settings file and picks the port, without starting.
    pub fn prepare(self) -> Proxy {
        let parent = self.parent.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new()
            .prefix("forebay-test-")
            .tempdir_in(parent)
            .expect("temporary folder");
        for name in ["cache", "ledger", "store", "home"] {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).expect("folder");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("mode");
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let proxy = Proxy {
            setup: self,
            folder,
            address,
            child: None,
            stderr: Arc::default(),
        };
        proxy.write_config();
        proxy
    }
}

/// A proxy: folders and settings, and a process while it runs.
pub struct Proxy {
    pub setup: Setup,
    pub address: SocketAddr,
    folder: TempDir,
    child: Option<Child>,
    stderr: Arc<Mutex<String>>,
}

impl Proxy {
    /// Where segments live.
    pub fn cache_folder(&self) -> PathBuf {
        let own = || self.folder.path().join("cache");
        self.setup.cache_folder.clone().unwrap_or_else(own)
    }

    /// Where the ledger lives.
    pub fn ledger_folder(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    /// Where this proxy's own `file` store lives.
    pub fn store_folder(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// All folders of this proxy.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The settings file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("forebay.toml")
    }

    /// The certificate that the proxy makes on its first TLS start.
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// This proxy's store, for a second proxy in front of the same objects.
    pub fn shared_store(&self) -> StoreSpec {
        self.setup
            .store
            .clone()
            .unwrap_or_else(|| StoreSpec::Folder(self.store_folder()))
    }

    /// Writes the settings file, as at the first start.
    pub fn write_config(&self) {
        let mut text = format!("[operator]\ntoken = \"{OPERATOR}\"\n");
        let keys = [
            (VOLUME, READ_WRITE, "rw"),
            (VOLUME, READ_ONLY, "r"),
            (OTHER_VOLUME, OTHER, "rw"),
        ];
        for volume in [VOLUME, OTHER_VOLUME] {
            text.push_str(&format!("\n[[volume]]\nname = \"{volume}\"\n"));
            match self.shared_store() {
                StoreSpec::Folder(path) => {
                    let path = path.join(volume);
                    std::fs::create_dir_all(&path).expect("store folder");
                    text.push_str(&format!(
                        "store = \"file\"\npath = \"{}\"\n",
                        path.display()
                    ));
                }
                StoreSpec::S3 { server, prefix } => {
                    text.push_str(&format!(
                        "store = \"s3\"\nendpoint = \"{}\"\nregion = \"{}\"\nbucket = \"{}\"\nprefix = \"{prefix}/{volume}\"\n",
                        server.endpoint, server.region, server.bucket
                    ));
                }
                StoreSpec::Azure { .. } => {}
            }
            let mut credentials = String::new();
            if let StoreSpec::Azure {
                server,
                prefix,
                credentials: lines,
            } = self.shared_store()
            {
                text.push_str(&format!(
                    "store = \"azure\"\nendpoint = \"{}\"\ncontainer = \"{}\"\nprefix = \"{prefix}/{volume}\"\n",
                    server.endpoint, server.container
                ));
                credentials = format!("\n[volume.credentials]\n{lines}\n");
            }
            text.push_str(&format!("block_size = \"{}\"\n", self.setup.block_size));
            text.push_str(&self.setup.volume_lines);
            text.push_str(&credentials);
            for (_, token, permission) in keys.iter().filter(|(name, _, _)| *name == volume) {
                text.push_str(&format!(
                    "\n[[volume.key]]\ntoken = \"{token}\"\npermission = \"{permission}\"\n"
                ));
            }
        }
        std::fs::write(self.config_file(), text).expect("settings file");
        std::fs::set_permissions(self.config_file(), std::fs::Permissions::from_mode(0o600))
            .expect("mode");
    }

    /// The command that starts this proxy, for tests that run it themselves. `FOREBAY_TEST_BINARY`
    /// names another binary than the one just built, such as an installed one.
    pub fn command(&self) -> Command {
        let binary = std::env::var("FOREBAY_TEST_BINARY")
            .unwrap_or_else(|_| env!("CARGO_BIN_EXE_forebay").to_string());
        let mut words = self.setup.wrapper.clone();
        words.push(binary);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("start");
        command.arg("--config").arg(self.config_file());
        command.arg("--diskFolder").arg(self.cache_folder());
        command.arg("--dbFolder").arg(self.ledger_folder());
        command.arg("--bindAddr").arg(self.address.to_string());
        command.arg("--shards").arg(self.setup.shards.to_string());
        command.arg("--diskQuota").arg(&self.setup.disk_quota);
        if self.setup.tls {
            command.arg("--sslCert").arg(self.certificate_file());
            command
                .arg("--sslKey")
                .arg(self.folder.path().join("key.pem"));
        } else {
            command.arg("--noSSL");
        }
        // Without a key the flags of the test name the credentials.
        if let Some(StoreSpec::S3 { server, .. }) = &self.setup.store
            && !server.key.is_empty()
        {
            command.args(["--blockUser", &server.key, "--blockPass", &server.secret]);
        }
        command.args(&self.setup.flags);
        // No setting of whoever runs the tests may leak in: not their creds file, not their keys.
        command
            .env("HOME", self.folder.path().join("home"))
            .current_dir(self.folder.path());
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AZURE_STORAGE_ACCOUNT",
            "AZURE_STORAGE_KEY",
            "AZURE_STORAGE_SAS_TOKEN",
            "RUST_LOG",
        ] {
            command.env_remove(name);
        }
        command.env("RUST_BACKTRACE", "1");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Starts the process and waits until it says that it is ready.
    pub fn start(&mut self) {
        self.spawn();
        let started = Instant::now();
        loop {
            if let Some(status) = self.exit_status() {
                panic!(
                    "the proxy ended with {status} instead of getting ready:\n{}",
                    self.stderr()
                );
            }
            if self.is_ready() {
                return;
            }
            assert!(
                started.elapsed() < WAIT_MAX,
                "not ready after {WAIT_MAX:?}:\n{}",
                self.stderr()
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Starts the process and waits for nothing.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "already running");
        let mut child = self
            .command()
            .spawn()
            .expect("cannot start the forebay binary");
        let mut pipe = child.stderr.take().expect("piped");
        let sink = Arc::clone(&self.stderr);
        std::thread::spawn(move || {
            let mut chunk = [0_u8; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                sink.lock()
                    .expect("not poisoned")
                    .push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
        });
        self.child = Some(child);
    }

    fn is_ready(&self) -> bool {
        // A listener without TLS answers a failed handshake by closing; both mean "not yet".
        let client = if self.setup.tls {
            tls::try_connect(self.address, &self.certificate_file())
        } else {
            Client::try_connect(self.address)
        };
        let Ok(mut client) = client else { return false };
        client.send_request("GET", "/-/readyz", &[("Authorization", "")], b"");
        client
            .try_read_answer("GET")
            .is_ok_and(|answer| answer.status == 200)
    }

    /// What the process wrote to stderr so far, over all its lives.
    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("not poisoned").clone()
    }

    /// The process id of the running server.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// How the process ended, if it did.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("wait")
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child is ours and not yet waited for, so its id names no other process.
        let code = unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
        assert_eq!(code, 0, "kill: {}", std::io::Error::last_os_error());
    }

    /// kill -9, and nothing of the process is left when this returns.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        let status = self.child.take().expect("running").wait().expect("wait");
        assert_eq!(
            status.signal(),
            Some(libc::SIGKILL),
            "it had ended by itself:\n{}",
            self.stderr()
        );
    }

    /// SIGTERM; gives the exit status, which must come within the promised 20 s (with some slack).
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        let started = Instant::now();
        loop {
            if let Some(status) = self.exit_status() {
                self.child = None;
                return status;
            }
            assert!(
                started.elapsed() < WAIT_MAX,
                "still there {WAIT_MAX:?} after SIGTERM"
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Lets go of a process that has ended by itself, so that another can be started.
    pub fn forget(&mut self) {
        let status = self.exit_status();
        assert!(status.is_some(), "it still runs");
        self.child = None;
    }

    /// kill -9 and a new start on the same folders, after `change` had its way with the settings.
    pub fn restart_killed(&mut self, change: impl FnOnce(&mut Setup)) {
        self.kill();
        change(&mut self.setup);
        self.write_config();
        self.start();
    }

    /// A new connection, over TLS where the proxy speaks it.
    pub fn client(&self) -> Client {
        if self.setup.tls {
            tls::try_connect(self.address, &self.certificate_file()).expect("TLS connection")
        } else {
            Client::connect(self.address)
        }
    }

    /// One request on a connection of its own, with the read-write token.
    pub fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.client().request(method, target, headers, body)
    }

    /// GET of a key of [`VOLUME`].
    pub fn get(&self, key: &str) -> Answer {
        self.request("GET", &format!("/{VOLUME}/{key}"), &[], b"")
    }

    /// GET of a range of a key of [`VOLUME`].
    pub fn get_range(&self, key: &str, range: &str) -> Answer {
        self.request("GET", &format!("/{VOLUME}/{key}"), &[("Range", range)], b"")
    }

    /// PUT to a key of [`VOLUME`], which must be accepted.
    pub fn put(&self, key: &str, body: &[u8]) -> Answer {
        let answer = self.request("PUT", &format!("/{VOLUME}/{key}"), &[], body);
        assert_eq!(answer.status, 200, "PUT {key}: {}", answer.text());
        answer
    }

    /// A control request with the operator's token.
    pub fn operator(&self, method: &str, target: &str) -> Answer {
        self.request(
            method,
            target,
            &[("Authorization", &format!("Bearer {OPERATOR}"))],
            b"",
        )
    }

    /// Asserts that the proxy runs and serves: a put and a get on a new connection.
    pub fn assert_serves(&self) {
        let body = super::pattern(1, 1000);
        self.put("still-alive", &body);
        assert_eq!(self.get("still-alive").body, body);
    }

    /// Resident memory of the process, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        line.trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("a number of kB")
            * 1024
    }

    /// Open descriptors of the process.
    pub fn descriptor_count(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("fd")
            .count()
    }

    /// Regular files of this proxy's `file` store: their number tells whether something was stored.
    pub fn stored_file_count(&self) -> usize {
        files_below(&self.store_folder()).len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Errors mean that it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- stderr of the proxy ---\n{}", self.stderr());
        }
    }
}

/// Every regular file below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("readable folder") {
            let entry = entry.expect("entry");
            let kind = entry.file_type().expect("type");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

/// Bytes of disk that a folder occupies (allocated blocks, as `du` counts them).
pub fn disk_usage(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    files_below(folder)
        .iter()
        .map(|file| file.metadata().map_or(0, |meta| meta.blocks() * 512))
        .sum()
}
