//! Power cuts, against the built binary: P3, and what `--sync` off promises.
//!
//! The cache and the ledger lie on an ext4 or xfs of their own, which is shut down under load without flushing its journal.
//! Then the server is killed, the file system taken down and mounted again, and the server started. With `--sync` every
//! acknowledgement counts. Without it those count that came before the server said that nothing was left unsynced; later
//! ones may be missing, or an older version may be there, but whole. The store takes no uploads until the end, so that
//! the disk is the only place where acknowledged bytes can come from.
//!
//! These tests need root and loop devices, as those of `disk_faults` do, and are skipped as they are.

#[path = "common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "disk_faults/fuse.rs"]
mod fuse;
#[allow(dead_code)]
#[path = "disk_faults/rig.rs"]
mod rig;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::proxy::StoreSpec;
use common::stores::S3Server;
use common::{Proxy, READ_WRITE, Setup, VOLUME, wait_until};
use forebay_bench::crash::clients::{Clients, Expect, Load, Volume};
use forebay_bench::crash::ledger::{Account, Ledger, Version};
use forebay_bench::stub::{Action, Fault, Stub, StubHandle, StubOptions};
use rig::Mount;

/// Cuts in each test.
const CUTS: u64 = 5;

/// Load before the server is asked whether all is synced, and after it until the cut. They differ from cut to cut.
const LOAD_MS: [u64; CUTS as usize] = [300, 100, 200, 50, 400];
const LATE_LOAD_MS: [u64; CUTS as usize] = [150, 5, 700, 60, 0];

/// How long the clients go on with a file system that is gone.
const AFTERWARDS: Duration = Duration::from_millis(30);

const BLOCK_BYTES: u64 = 1 << 20;
const BUCKET: &str = "bucket";

/// Two shards with some fifteen segments each, and what a journal wants.
const FILE_SYSTEM_BYTES: u64 = 420 << 20;

/// What the flag promises.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sync {
    On,
    Off,
}

struct PowerCut {
    mount: Mount,
    stub: StubHandle,
    proxy: Proxy,
    ledger: Ledger,
    account: Account,
    clients: Clients,
    sync: Sync,
    /// Keys that held an older version than the last acknowledged one.
    fallen_back: usize,
}

impl PowerCut {
    fn prepare(make: &[&str], sync: Sync) -> Option<PowerCut> {
        let mount = Mount::on_loop(FILE_SYSTEM_BYTES, make, 512)?;
        let stub = Stub::start(StubOptions::default()).expect("the S3 stub");
        let server = S3Server {
            name: "the S3 stub",
            endpoint: stub.url(),
            region: stub.options().region.clone(),
            bucket: BUCKET.into(),
            key: stub.options().access_key.clone(),
            secret: stub.options().secret_key.clone(),
        };
        let mut flags = rig::NO_RAM.map(String::from).to_vec();
        if sync == Sync::On {
            flags.push("--sync".into());
        }
        let proxy = Setup {
            parent: Some(mount.path.clone()),
            shards: 2,
            disk_quota: rig::QUOTA.into(),
            store: Some(StoreSpec::S3 {
                server,
                prefix: "power".into(),
            }),
            volume_lines: "ttl = \"600s\"\n".into(),
            flags,
            ..Setup::default()
        }
        .prepare();
        // The test's own files are no part of the bargain.
        rig::run("sync", &["-f", mount.path.to_str().expect("UTF-8")]);
        let ledger = mount.beside("acknowledgements");
        let ledger = Ledger::create(&ledger).expect("ledger");
        let clients = Clients::new(Load {
            address: proxy.address,
            token: READ_WRITE.into(),
            volumes: vec![Volume {
                name: VOLUME.into(),
                is_immutable: false,
            }],
            clients: 4,
            keys: 12,
            block_bytes: BLOCK_BYTES,
            seed: 1,
        });
        Some(PowerCut {
            mount,
            stub,
            proxy,
            ledger,
            account: Account::default(),
            clients,
            sync,
            fallen_back: 0,
        })
    }

    /// Starts the server after a cut, reads everything back and notes what is left.
    fn recover(&mut self) {
        self.proxy.start();
        self.account.read(self.ledger.path()).expect("ledger");
        let expect = match self.sync {
            Sync::On => Expect::Everything,
            Sync::Off => Expect::Settled,
        };
        let read = self.clients.read_back(&self.account, expect, false);
        let read = read.expect("reading back");
        let losses = read.losses.iter();
        let losses: Vec<String> = losses.map(|loss| loss.to_string()).collect();
        assert!(losses.is_empty(), "{}", losses.concat());
        for (key, version) in read.seen {
            let possible = &self.account.keys[&key].possible;
            self.fallen_back += usize::from(!possible.contains(&version));
            self.ledger.seen(&key, version).expect("ledger");
        }
        self.account.read(self.ledger.path()).expect("ledger");
    }

    fn work(&mut self, load: Duration, then: impl FnOnce(&mut Proxy, &Mount)) {
        let stop = AtomicBool::new(false);
        let (account, ledger, mount) = (&self.account, &self.ledger, &self.mount);
        let (clients, proxy) = (&mut self.clients, &mut self.proxy);
        std::thread::scope(|scope| {
            let at_work = scope.spawn(|| clients.work(account, ledger, &stop));
            std::thread::sleep(load);
            then(proxy, mount);
            stop.store(true, Ordering::Relaxed);
            let worked = at_work.join().expect("the clients").expect("the load");
            let losses: Vec<String> = worked.losses.iter().map(ToString::to_string).collect();
            assert!(losses.is_empty(), "{}", losses.concat());
        });
        self.account.read(self.ledger.path()).expect("ledger");
    }

    /// Load, everything synced, more load, and the power fails.
    fn live(&mut self, round: usize) {
        self.work(Duration::from_millis(LOAD_MS[round]), |_, _| {});
        if self.sync == Sync::Off {
            wait_until("nothing is unsynced", || {
                self.status()["unsynced_bytes"].as_u64() == Some(0)
            });
            self.ledger.note("settled").expect("ledger");
            self.account.read(self.ledger.path()).expect("ledger");
        }
        let late_load = Duration::from_millis(LATE_LOAD_MS[round]);
        self.work(late_load, |proxy, mount| {
            mount.cut_power();
            std::thread::sleep(AFTERWARDS);
            proxy.kill();
        });
        self.mount.mount_again();
    }

    fn status(&self) -> serde_json::Value {
        let answer = self.proxy.operator("GET", "/-/status");
        let status: serde_json::Value = serde_json::from_slice(&answer.body).expect("status");
        status["writeback"].clone()
    }

    /// The store takes uploads again: it must come to hold what was read back.
    fn finish(&mut self) {
        self.stub.clear_faults();
        wait_until("the backlog is uploaded", || {
            // Right after a start it is not yet known what is dirty.
            let status = self.status();
            status["shards_unread"] == 0 && status["dirty_blocks"] == 0
        });
        for (name, key) in &self.account.keys {
            let path = format!("power/{name}");
            let object = self.stub.object(BUCKET, &path);
            let object = object.map(|object| object.bytes());
            let holds = |version: &Version| version.is(name, object.as_deref());
            let found = key.identify(name, object.as_deref());
            assert!(
                key.possible.iter().any(holds),
                "{name} is {found:?} in the store, possible {:?}:\n{}",
                key.possible,
                key.history.join("\n")
            );
        }
    }
}

fn cut_again_and_again(make: &[&str], sync: Sync) {
    let Some(mut power) = PowerCut::prepare(make, sync) else {
        return;
    };
    let refused = Fault::on("PUT", "*").then(Action::status(503));
    power.stub.add_fault(refused);
    for round in 0..CUTS as usize {
        let line = format!("round {}", round + 1);
        power.ledger.note(&line).expect("ledger");
        power.recover();
        power.live(round);
    }
    power.recover();
    power.finish();
    let (acknowledged, in_doubt) = (power.account.acknowledged, power.account.in_doubt);
    assert!(acknowledged > 0, "nothing was tested");
    let fallen_back = power.fallen_back;
    println!(
        "{CUTS} cuts, {acknowledged} acknowledged, {in_doubt} in doubt, {fallen_back} older than acknowledged"
    );
    if sync == Sync::On {
        assert_eq!(fallen_back, 0);
    }
}

const EXT4: [&str; 4] = ["mkfs.ext4", "-q", "-E", "nodiscard"];
const XFS: [&str; 3] = ["mkfs.xfs", "-q", "-f"];

#[test]
fn ext4_with_sync_keeps_every_acknowledgement() {
    cut_again_and_again(&EXT4, Sync::On);
}

#[test]
fn xfs_with_sync_keeps_every_acknowledgement() {
    cut_again_and_again(&XFS, Sync::On);
}

#[test]
fn ext4_without_sync_keeps_whole_blocks_and_all_that_is_settled() {
    cut_again_and_again(&EXT4, Sync::Off);
}

#[test]
fn xfs_without_sync_keeps_whole_blocks_and_all_that_is_settled() {
    cut_again_and_again(&XFS, Sync::Off);
}
