//! A proxy with writeback, the stub behind it, and what was acknowledged.
//!
//! The rig remembers every object that the proxy took, so that each test ends with the same
//! question: is the store what was promised? It knows nothing of particular faults.

use crate::common::proxy::StoreSpec;
use crate::common::proxy::free_port;
use crate::common::stores::S3Server;
use crate::common::{Answer, Proxy, Setup, VOLUME, assert_same_bytes, pattern};
use forebay_bench::stub::{Stub, StubHandle, StubOptions};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// The longest that any wait here may take: the pauses of a block that fails by itself grow to five
/// minutes, those of a store to one. It is no measurement.
pub const WAIT_MAX: Duration = Duration::from_secs(400);

/// The stub's bucket.
pub const BUCKET: &str = "bucket";

/// Prefix of all keys in the bucket.
const PREFIX: &str = "p";

/// Bytes of an object where the size does not matter: more than one page, and less than a block.
pub const OBJECT_BYTES: usize = 20_000;

/// Both kinds of volume, as lines of the settings file.
pub const REVALIDATE: &str = "consistency = \"revalidate\"\nttl = \"600s\"\n";
pub const IMMUTABLE: &str = "consistency = \"immutable\"\n";

/// The stub as the proxy's settings name it.
pub fn server(endpoint: &str) -> S3Server {
    let options = StubOptions::default();
    S3Server {
        name: "STUB",
        endpoint: endpoint.to_string(),
        region: options.region,
        bucket: BUCKET.to_string(),
        key: options.access_key,
        secret: options.secret_key,
    }
}

/// Settings of a proxy in front of `server`.
pub fn setup(server: S3Server) -> Setup {
    Setup {
        store: Some(StoreSpec::S3 {
            server,
            prefix: PREFIX.to_string(),
        }),
        volume_lines: REVALIDATE.to_string(),
        ..Setup::default()
    }
}

/// The name in the bucket, prefix included, of a key of [`VOLUME`]; good as a pattern, too.
pub fn stored_key(key: &str) -> String {
    format!("{PREFIX}/{VOLUME}/{key}")
}

/// An address that nothing listens on at the moment.
pub fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// A stub at an address of our choice, so that it can come late or come back.
pub fn stub_at(address: SocketAddr) -> StubHandle {
    let options = StubOptions {
        listen: address,
        ..StubOptions::default()
    };
    Stub::start(options).expect("the stub starts")
}

/// Waits until `condition` holds, and fails naming `what` when it does not in [`WAIT_MAX`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        let waited = started.elapsed();
        assert!(waited < WAIT_MAX, "waited {waited:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The proxy, the stub and the ledger of acknowledgements.
pub struct Rig {
    pub proxy: Proxy,
    pub stub: StubHandle,
    acknowledged: RefCell<BTreeMap<String, Vec<u8>>>,
    seed: RefCell<u64>,
}

impl Rig {
    /// A proxy with usual settings and volumes of the given kind.
    pub fn start(volume_lines: &str) -> Rig {
        let stub = Stub::start(StubOptions::default()).expect("the stub starts");
        let proxy = Setup {
            volume_lines: volume_lines.to_string(),
            ..setup(server(&stub.url()))
        }
        .start();
        Rig::of(proxy, stub)
    }

    /// A rig of parts that were started apart.
    pub fn of(proxy: Proxy, stub: StubHandle) -> Rig {
        Rig {
            proxy,
            stub,
            acknowledged: RefCell::default(),
            seed: RefCell::new(1),
        }
    }

    /// Bytes that no other call gave.
    pub fn content(&self, length: usize) -> Vec<u8> {
        let mut seed = self.seed.borrow_mut();
        *seed += 1;
        pattern(*seed, length)
    }

    /// A PUT of new bytes, which must be acknowledged.
    pub fn put(&self, key: &str) -> Vec<u8> {
        let body = self.content(OBJECT_BYTES);
        self.put_bytes(key, &body);
        body
    }

    /// A PUT that must be acknowledged.
    pub fn put_bytes(&self, key: &str, body: &[u8]) {
        self.proxy.put(key, body);
        self.note(key, body);
    }

    /// Notes that the proxy has taken an object.
    pub fn note(&self, key: &str, body: &[u8]) {
        let mut acknowledged = self.acknowledged.borrow_mut();
        acknowledged.insert(key.to_string(), body.to_vec());
    }

    /// Takes a key out of what the store must have in the end.
    pub fn forget(&self, key: &str) {
        self.acknowledged.borrow_mut().remove(key);
    }

    /// Asserts that the key is served from what is dirty, with these bytes.
    pub fn assert_dirty(&self, key: &str, body: &[u8]) {
        let answer = self.proxy.get(key);
        assert_eq!(answer.status, 200, "{key}: {}", answer.text());
        assert_eq!(answer.cache(), "hit-dirty", "{key}");
        assert_same_bytes(&answer.body, body, key);
    }

    /// `writeback` of the status.
    pub fn writeback(&self) -> Value {
        let answer = self.proxy.operator("GET", "/-/status");
        let status: Value = serde_json::from_str(&answer.text()).expect("status is JSON");
        status["writeback"].clone()
    }

    /// A number of `writeback` of the status.
    pub fn number(&self, name: &str) -> u64 {
        let writeback = self.writeback();
        let number = writeback[name].as_u64();
        number.unwrap_or_else(|| panic!("no number {name} in {writeback}"))
    }

    /// All that `/-/dirty` lists.
    pub fn all_listed(&self) -> Vec<Value> {
        let answer = self.proxy.operator("GET", "/-/dirty?limit=10000");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let list: Value = serde_json::from_str(&answer.text()).expect("the list is JSON");
        list["blocks"].as_array().expect("blocks").clone()
    }

    /// What `/-/dirty` says of a key of [`VOLUME`].
    pub fn listed(&self, key: &str) -> Option<Value> {
        let mut blocks = self.all_listed().into_iter();
        blocks.find(|block| block["volume"] == VOLUME && block["key"] == key)
    }

    /// The state of a dirty key; empty for one that is not dirty.
    pub fn state(&self, key: &str) -> String {
        let listed = self.listed(key);
        let state = listed.and_then(|block| block["state"].as_str().map(str::to_owned));
        state.unwrap_or_default()
    }

    /// Waits until uploads of the key have failed at least so often.
    pub fn wait_attempts(&self, key: &str, count: u64) {
        wait_until(&format!("{key} was tried {count} times"), || {
            let listed = self.listed(key);
            listed.is_some_and(|block| block["attempts"].as_u64() >= Some(count))
        });
    }

    /// Waits until the key is in this state.
    pub fn wait_state(&self, key: &str, state: &str) {
        wait_until(&format!("{key} is {state}"), || self.state(key) == state);
    }

    /// A control request about one key of [`VOLUME`].
    pub fn ask(&self, method: &str, path: &str, key: &str) -> Answer {
        let target = format!("/-/dirty/{path}?volume={VOLUME}&key={key}");
        self.proxy.operator(method, &target)
    }

    /// The bytes that the store has under a key of [`VOLUME`].
    pub fn stored(&self, key: &str) -> Option<Vec<u8>> {
        let object = self.stub.object(BUCKET, &stored_key(key))?;
        Some(object.bytes().to_vec())
    }

    /// Puts an object into the store behind the proxy's back, `ahead_seconds` later than now.
    pub fn store_directly(&self, key: &str, body: &[u8], ahead_seconds: i64) {
        self.stub.set_clock_offset_s(ahead_seconds);
        self.stub
            .put_object(BUCKET, &stored_key(key), body.to_vec());
        self.stub.set_clock_offset_s(0);
    }

    /// PUT requests of a key of [`VOLUME`] that the store has seen.
    pub fn puts_seen(&self, key: &str) -> u64 {
        self.stub.stats().key(BUCKET, &stored_key(key)).puts
    }

    /// Asserts that all that was acknowledged reads back equal, wherever it is by now.
    pub fn assert_readable(&self) {
        for (key, body) in self.acknowledged.borrow().iter() {
            let answer = self.proxy.get(key);
            assert_eq!(answer.status, 200, "GET {key}: {}", answer.text());
            let what = format!("{key}, x-cache {}", answer.cache());
            assert_same_bytes(&answer.body, body, &what);
        }
    }

    /// Waits until nothing waits for the store any more.
    pub fn wait_uploaded(&self) {
        wait_until("everything is uploaded", || {
            // Right after a start it is not yet known what is dirty.
            self.number("shards_unread") == 0 && self.number("dirty_blocks") == 0
        });
    }

    /// The end of a test: with nobody's help all that was acknowledged is in the store and
    /// readable, nothing is held back, and no two PUTs of one key overlapped.
    pub fn finish(&self) {
        self.wait_uploaded();
        let writeback = self.writeback();
        for held in ["quarantined_blocks", "conflict_blocks", "orphaned_blocks"] {
            assert_eq!(writeback[held], 0, "{held}: {writeback}");
        }
        for (key, body) in self.acknowledged.borrow().iter() {
            let stored = self.stored(key);
            let stored = stored.unwrap_or_else(|| panic!("the store has no {key}"));
            assert_same_bytes(&stored, body, key);
        }
        self.assert_readable();
        self.assert_one_at_a_time();
    }

    /// Asserts that the store never saw two PUTs of one key at once.
    pub fn assert_one_at_a_time(&self) {
        let stats = self.stub.stats();
        let overlapping = stats.overlapping_puts();
        assert!(overlapping.is_empty(), "PUTs overlapped: {overlapping:?}");
    }
}
