//! An S3 server in memory: owns the life of a stub, from options to shutdown, and what a test may ask of it.
//!
//! It is an *origin*: quick enough not to be the limit, and honest. It checks AWS Signature Version 4 as strictly as S3
//! does, verifies every checksum it is given, and never answers success for something it did not do, unless a
//! [`fault`] tells it to. It keeps nothing on disk and is never meant to hold data that anybody needs.
//!
//! ```
//! use forebay_bench::stub::{Action, Fault, Stub, StubOptions};
//!
//! let stub = Stub::start(StubOptions::default()).unwrap();
//! stub.put_object("bucket", "a/b", "hello");
//! stub.add_fault(Fault::on("GET", "a/*").times(2).then(Action::status(503)));
//! println!("serving at {}", stub.url());
//! assert_eq!(stub.stats().requests_total, 0);
//! ```
//!
//! The same things can be asked over HTTP, see [`control`]. The life of a request: `connection` reads it,
//! `signature` checks it, `verb` does it, `reply` sends what came of it, bent by `fault`.

mod connection;
pub mod control;
mod error;
pub mod fault;
mod object;
mod reply;
mod request;
mod signature;
pub mod stats;
mod tls;
mod verb;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::content::synthetic_size;
pub use fault::{Action, Fault};
pub use object::Object;
pub use stats::{LogEntry, Stats};

/// How long a stopping stub waits for its connections: tests drop stubs with clients still attached.
const SHUTDOWN_WAIT: Duration = Duration::from_millis(200);

/// How a stub is to be started. `Default` gives what a test usually wants.
#[derive(Debug, Clone)]
pub struct StubOptions {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The access key that requests must be signed with.
    pub access_key: String,
    /// The secret that belongs to `access_key`.
    pub secret_key: String,
    /// The region in the credential scope of a signature.
    pub region: String,
    /// The buckets that exist; there is no request that makes one.
    pub buckets: Vec<String>,
    /// Whether signatures are demanded. Off, any request is served.
    pub auth: bool,
    /// Whether keys of the form `synthetic/<size>/<anything>` exist without having been written.
    pub synthetic: bool,
    /// Certificate chain and key, both PEM files; with them the stub speaks TLS only.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Sleep before the head of every answer, to stand for a far away bucket.
    pub latency: Duration,
    /// Threads that serve. One is enough for tests; an origin under benchmark may need more.
    pub threads: usize,
}

impl Default for StubOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            access_key: "stub-access".into(),
            secret_key: "stub-secret".into(),
            region: "us-east-1".into(),
            buckets: vec!["bucket".into()],
            auth: true,
            synthetic: false,
            tls: None,
            latency: Duration::ZERO,
            threads: 1,
        }
    }
}

/// Buckets by name, each with its objects by key.
type Buckets = HashMap<String, HashMap<String, Arc<Object>>>;

/// What all connections of one stub share.
#[derive(Debug)]
struct Shared {
    options: StubOptions,
    /// The address bound, with the port that was found free.
    address: SocketAddr,
    buckets: Mutex<Buckets>,
    faults: Mutex<fault::Faults>,
    stats: Mutex<stats::Recorder>,
    /// Seconds that the stub's clock is ahead of the machine's: a test of clock skew moves it.
    clock_offset_s: AtomicI64,
}

impl Shared {
    /// The stub's own idea of the time.
    fn now(&self) -> SystemTime {
        let offset_s = self.clock_offset_s.load(Ordering::Relaxed);
        let offset = Duration::from_secs(offset_s.unsigned_abs());
        if offset_s < 0 {
            SystemTime::now() - offset
        } else {
            SystemTime::now() + offset
        }
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        lock(&self.buckets)
    }

    fn faults(&self) -> MutexGuard<'_, fault::Faults> {
        lock(&self.faults)
    }

    fn stats(&self) -> MutexGuard<'_, stats::Recorder> {
        lock(&self.stats)
    }

    /// The object of that name, written or synthetic.
    fn object(&self, bucket: &str, key: &str) -> Option<Arc<Object>> {
        if self.options.synthetic
            && let Some(size) = synthetic_size(key)
        {
            return Some(Arc::new(Object::synthetic(key, size)));
        }
        self.buckets().get(bucket)?.get(key).cloned()
    }

    /// Puts an object in place; the outcome is `None` where there is no such bucket.
    fn store(&self, bucket: &str, key: &str, object: Object) -> Option<Arc<Object>> {
        let object = Arc::new(object);
        self.buckets()
            .get_mut(bucket)?
            .insert(key.to_owned(), Arc::clone(&object));
        Some(object)
    }

    /// Forgets objects, faults and counts.
    fn reset(&self) {
        self.buckets().values_mut().for_each(HashMap::clear);
        *self.faults() = fault::Faults::default();
        *self.stats() = stats::Recorder::default();
        self.clock_offset_s.store(0, Ordering::Relaxed);
    }
}

/// A panic in one connection must not take down the questions that a test asks afterwards.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts stubs.
#[derive(Debug)]
pub struct Stub;

impl Stub {
    /// Starts a stub on a thread of its own; it listens when this returns and stops when the handle is dropped.
    pub fn start(options: StubOptions) -> io::Result<StubHandle> {
        let listener = std::net::TcpListener::bind(options.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let acceptor = options
            .tls
            .as_ref()
            .map(|(certificate, key)| tls::acceptor(certificate, key))
            .transpose()?;
        let buckets = options
            .buckets
            .iter()
            .map(|name| (name.clone(), HashMap::new()))
            .collect();
        let threads = options.threads.max(1);
        let shared = Arc::new(Shared {
            options,
            address,
            buckets: Mutex::new(buckets),
            faults: Mutex::default(),
            stats: Mutex::default(),
            clock_offset_s: AtomicI64::new(0),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("s3-stub")
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("s3-stub-main".into())
            .spawn(move || {
                runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                tokio::select! {
                    outcome = connection::accept_all(serving, listener, acceptor) => outcome,
                    _ = stopped => Ok(()),
                }
            })
            .unwrap_or_else(|error| eprintln!("s3 stub at {address} stopped: {error}"));
                runtime.shutdown_timeout(SHUTDOWN_WAIT);
            })?;
        Ok(StubHandle {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// A running stub, for use from ordinary blocking tests. Dropping it stops the stub.
#[derive(Debug)]
pub struct StubHandle {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StubHandle {
    /// Where the stub listens.
    pub fn addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// The endpoint as a client writes it, without a slash at its end.
    pub fn url(&self) -> String {
        let scheme = if self.shared.options.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.addr())
    }

    /// The options that the stub was started with.
    pub fn options(&self) -> &StubOptions {
        &self.shared.options
    }

    /// Writes an object past HTTP, signatures and faults, and returns its ETag, quotes included.
    ///
    /// # Panics
    /// When there is no such bucket: the test is wrong.
    pub fn put_object(&self, bucket: &str, key: &str, body: impl Into<Bytes>) -> String {
        let object = Object::new(body.into(), Vec::new(), self.shared.now());
        let stored = self.shared.store(bucket, key, object);
        stored
            .unwrap_or_else(|| panic!("the stub has no bucket {bucket:?}"))
            .etag()
            .to_owned()
    }

    /// The object as it is stored now.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Arc<Object>> {
        self.shared.object(bucket, key)
    }

    /// Removes an object past HTTP; says whether there was one.
    pub fn delete_object(&self, bucket: &str, key: &str) -> bool {
        self.shared
            .buckets()
            .get_mut(bucket)
            .is_some_and(|objects| objects.remove(key).is_some())
    }

    /// The keys of a bucket in byte order, synthetic ones excepted.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let buckets = self.shared.buckets();
        let mut keys: Vec<String> = buckets
            .get(bucket)
            .into_iter()
            .flat_map(HashMap::keys)
            .cloned()
            .collect();
        keys.sort();
        keys
    }

    /// Adds a fault behind those that are there; the first that matches a request is the one that bends it.
    pub fn add_fault(&self, fault: Fault) {
        self.shared.faults().add(fault);
    }

    /// Heals everything.
    pub fn clear_faults(&self) {
        self.shared.faults().clear();
    }

    /// What was counted since the start or the last reset.
    pub fn stats(&self) -> Stats {
        self.shared.stats().stats()
    }

    /// Requests in progress now. A client that died may have left some behind, which are still carried out.
    pub fn in_progress(&self) -> u64 {
        self.shared.stats().active()
    }

    /// The last requests, oldest first, up to [`stats::LOG_ENTRIES_MAX`].
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.stats().log()
    }

    /// Forgets objects, faults, counts and the clock's offset. Connections stay.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Sets the stub's clock ahead of the machine's, or behind it when negative.
    pub fn set_clock_offset_s(&self, offset_s: i64) {
        self.shared
            .clock_offset_s
            .store(offset_s, Ordering::Relaxed);
    }

    /// Serves until the process ends; for the binary.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            // The thread's own panic has been printed already.
            let _ = thread.join();
        }
    }
}

impl Drop for StubHandle {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The stub may have stopped by itself; then there is nobody to tell.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
