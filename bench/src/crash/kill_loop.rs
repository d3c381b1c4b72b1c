//! The kill loop: owns the rounds. In each the server is started on the same folder, what was acknowledged before is read
//! back, clients work, and the server dies by SIGKILL: under load, while it starts, or right after the first byte of a
//! body; now and then it is stopped in order, because what that leaves behind is another thing. At the end the store is
//! within reach, the backlog must come to 0 by itself, and the store must hold what the ledger says and nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::content::mix;
use crate::crash::CrashError;
use crate::crash::clients::{Clients, Expect, Load, Loss, ReadBack, Volume, Worked};
use crate::crash::ledger::{Account, Ledger, Version};
use crate::crash::server::{BUCKET, IMMUTABLE, REVALIDATE, Server, Settings, TOKEN};
use crate::stub::{Action, Fault, Stub, StubHandle, StubOptions};

/// Large enough that blocks are also written while they are received, and small enough for quick rounds.
const BLOCK_BYTES: u64 = 1 << 20;

/// Clients at the same time, and keys of each: some forty MiB, so that reading everything back takes a moment only.
const CLIENTS: usize = 4;
const KEYS: usize = 24;

/// Room for what is there and for the versions that overwriting leaves behind.
const QUOTA: &str = "2G";

/// Load lasts for up to so long; a start is killed within the second.
const LOAD_MS_MAX: u64 = 500;
const STARTUP_MS_MAX: u64 = 120;

/// The backlog may stand still for so long before it counts as one that never ends: longer than any pause between two
/// attempts. It measures nothing.
const BACKLOG_WAIT_MAX: Duration = Duration::from_secs(180);

/// Losses shown; one is enough to fail.
const LOSSES_SHOWN_MAX: usize = 5;

/// Whether the store can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreMode {
    /// Always, though it forgets to answer now and then.
    On,
    /// Not before the end.
    Off,
    /// It comes and goes.
    Flapping,
}

impl std::str::FromStr for StoreMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            "flapping" => Ok(Self::Flapping),
            _ => Err(format!("{text:?} is none of on, off, flapping")),
        }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server's binary.
    pub binary: PathBuf,
    /// An empty folder on a real disk; what is left in it explains a loss.
    pub folder: PathBuf,
    /// How often the server is started.
    pub rounds: u64,
    /// Whether with `--sync`.
    pub sync: bool,
    /// Whether the store can be reached.
    pub store: StoreMode,
    /// Cores that the server uses.
    pub shards: u32,
    /// Decides everything but time.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Rounds that were carried out.
    pub rounds: u64,
    /// Ends of the server, by phase.
    pub ends: BTreeMap<&'static str, u64>,
    /// Writes and deletions that were acknowledged.
    pub acknowledged: u64,
    /// Those whose outcome is unknown.
    pub in_doubt: u64,
    /// Those that were refused.
    pub refused: u64,
    /// Objects compared after a restart.
    pub compared: u64,
    /// Keys of which only an absent store could tell.
    pub unanswered: u64,
    /// Connections that ended while the server lived.
    pub broken_early: u64,
    /// Keys with two possible contents that showed first one, then the other, without a request in between.
    pub changed_by_itself: u64,
    /// Requests that the store met with a fault.
    pub store_faults: u64,
    /// Most dirty blocks seen after a start.
    pub backlog_blocks_max: u64,
    /// Objects in the store at the end.
    pub stored: u64,
    /// What must be empty.
    pub losses: Vec<Loss>,
    /// Other things that must not be, in words.
    pub wrongs: Vec<String>,
}

impl Report {
    /// Whether nothing was lost and nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.losses.is_empty() && self.wrongs.is_empty()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for loss in self.losses.iter().take(LOSSES_SHOWN_MAX) {
            write!(f, "{loss}")?;
        }
        for wrong in &self.wrongs {
            writeln!(f, "WRONG: {wrong}")?;
        }
        let kills = self.ends.iter();
        let kills: Vec<String> = kills.map(|(phase, n)| format!("{n} {phase}")).collect();
        writeln!(
            f,
            "rounds            {} ({})",
            self.rounds,
            kills.join(", ")
        )?;
        writeln!(f, "acknowledged      {}", self.acknowledged)?;
        writeln!(f, "in doubt          {}", self.in_doubt)?;
        writeln!(f, "refused           {}", self.refused)?;
        writeln!(f, "compared          {}", self.compared)?;
        writeln!(f, "only store knows  {}", self.unanswered)?;
        writeln!(f, "broken early      {}", self.broken_early)?;
        writeln!(f, "changed by itself {}", self.changed_by_itself)?;
        writeln!(f, "store faults      {}", self.store_faults)?;
        writeln!(f, "backlog at most   {} blocks", self.backlog_blocks_max)?;
        writeln!(f, "in the store      {} objects at the end", self.stored)?;
        writeln!(f, "losses            {}", self.losses.len())
    }
}

/// How a life of the server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Load,
    Startup,
    FirstByte,
    Orderly,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            End::Load => "killed under load",
            End::Startup => "killed while starting",
            End::FirstByte => "killed after the first byte of a body",
            End::Orderly => "stopped in order",
        }
    }
}

struct KillLoop {
    options: Options,
    stub: StubHandle,
    store_is_away: bool,
    server: Server,
    ledger: Ledger,
    account: Account,
    clients: Clients,
    random: u64,
    /// What each key held when it was last read, and the last request on it then.
    seen: HashMap<String, (u64, Version)>,
    report: Report,
}

/// Runs the loop. An error means that it could not be carried out, and that is a failure too.
pub fn run(options: &Options) -> Result<Report, CrashError> {
    let mut kill_loop = KillLoop::prepare(options.clone())?;
    for round in 1..=options.rounds {
        kill_loop.round(round)?;
        if round % 50 == 0 {
            let report = &kill_loop.report;
            eprintln!(
                "round {round}: {} acknowledged, {} compared, {} losses",
                kill_loop.account.acknowledged,
                report.compared,
                report.losses.len()
            );
        }
        if !kill_loop.report.is_good() {
            break;
        }
    }
    if kill_loop.report.is_good() {
        kill_loop.finish()?;
    }
    let KillLoop {
        mut report,
        account,
        stub,
        ..
    } = kill_loop;
    report.acknowledged = account.acknowledged;
    report.in_doubt = account.in_doubt;
    report.refused = account.refused;
    report.store_faults = stub.log().iter().filter(|entry| entry.fault).count() as u64;
    Ok(report)
}

impl KillLoop {
    fn prepare(options: Options) -> Result<Self, CrashError> {
        let stub = Stub::start(StubOptions {
            buckets: vec![BUCKET.into()],
            ..StubOptions::default()
        });
        let stub = stub.map_err(|error| CrashError::new("start the S3 stub", error))?;
        let login = (
            stub.options().access_key.clone(),
            stub.options().secret_key.clone(),
        );
        let shards = options.shards.to_string();
        let mut flags = vec!["--shards", &shards, "--diskQuota", QUOTA];
        // Hits come from disk: that is what crashes leave behind.
        flags.extend(["--memCapacity", "0"]);
        if options.sync {
            flags.push("--sync");
        }
        let server = Server::prepare(Settings {
            binary: options.binary.clone(),
            folder: options.folder.clone(),
            store_url: stub.url(),
            store_login: login,
            block_bytes: BLOCK_BYTES,
            flags: flags.into_iter().map(String::from).collect(),
        })?;
        let volume = |name: &str, is_immutable| Volume {
            name: name.into(),
            is_immutable,
        };
        let clients = Clients::new(Load {
            address: server.address(),
            token: TOKEN.into(),
            volumes: vec![volume(REVALIDATE, false), volume(IMMUTABLE, true)],
            clients: CLIENTS,
            keys: KEYS,
            block_bytes: BLOCK_BYTES,
            seed: options.seed,
        });
        let ledger = Ledger::create(&options.folder.join("acknowledgements"))?;
        Ok(Self {
            random: mix(options.seed),
            options,
            stub,
            store_is_away: false,
            server,
            ledger,
            account: Account::default(),
            clients,
            seen: HashMap::new(),
            report: Report::default(),
        })
    }

    /// One life of the server.
    fn round(&mut self, round: u64) -> Result<(), CrashError> {
        self.ledger.note(&format!("round {round}"))?;
        self.choose_store()?;
        let end = match self.below(20) {
            0 | 1 => End::Startup,
            2..5 => End::FirstByte,
            5 => End::Orderly,
            _ => End::Load,
        };
        self.report.rounds = round;
        *self.report.ends.entry(end.name()).or_default() += 1;
        self.server.spawn()?;
        if end == End::Startup {
            std::thread::sleep(Duration::from_millis(self.below(STARTUP_MS_MAX)));
            self.server.kill()?;
            return self.wait_until_store_is_quiet();
        }
        self.server.wait_until_ready()?;
        self.account.read(self.ledger.path())?;
        self.read_back()?;
        self.note_backlog()?;
        if self.report.is_good() {
            self.work(end)?;
        } else {
            self.server.kill()?;
        }
        self.wait_until_store_is_quiet()
    }

    /// Lets the clients work for a moment and ends the server as is its turn.
    fn work(&mut self, end: End) -> Result<(), CrashError> {
        let load_ms = self.below(LOAD_MS_MAX);
        let flips = self.options.store == StoreMode::Flapping && self.below(2) == 0;
        let flip_ms = flips.then(|| self.below(load_ms.max(1)));
        let part_bytes = 1 + self.below(2) as usize * self.below(BLOCK_BYTES) as usize;
        let stop = AtomicBool::new(false);
        // Prepared before the load: its key belongs to a client, which must not be at work on it.
        let part =
            (end == End::FirstByte).then(|| self.clients.send_part(&self.ledger, part_bytes));
        let part = part.transpose()?;
        let Self {
            clients,
            account,
            ledger,
            server,
            stub,
            store_is_away,
            ..
        } = self;
        let ledger = &*ledger;
        let worked = std::thread::scope(|scope| -> Result<Worked, CrashError> {
            let at_work = scope.spawn(|| clients.work(account, ledger, &stop));
            let outcome = (|| {
                let load_ms = if part.is_some() { load_ms % 4 } else { load_ms };
                if let Some(flip_ms) = flip_ms.filter(|ms| *ms < load_ms) {
                    std::thread::sleep(Duration::from_millis(flip_ms));
                    *store_is_away = !*store_is_away;
                    set_store(stub, ledger, *store_is_away, flip_ms)?;
                    std::thread::sleep(Duration::from_millis(load_ms - flip_ms));
                } else {
                    std::thread::sleep(Duration::from_millis(load_ms));
                }
                stop.store(true, Ordering::Relaxed);
                match end {
                    End::Orderly => server.terminate(),
                    _ => server.kill(),
                }
            })();
            stop.store(true, Ordering::Relaxed);
            let panicked = |_| Err(CrashError::new("the clients", "panicked"));
            let worked = at_work.join().unwrap_or_else(panicked)?;
            outcome.map(|()| worked)
        })?;
        drop(part);
        self.report.broken_early += worked.broken_early;
        self.report.losses.extend(worked.losses);
        Ok(())
    }

    fn choose_store(&mut self) -> Result<(), CrashError> {
        let away = match self.options.store {
            StoreMode::On => false,
            StoreMode::Off => true,
            StoreMode::Flapping => self.below(2) == 0,
        };
        self.store_is_away = away;
        let salt = self.random();
        set_store(&self.stub, &self.ledger, away, salt)
    }

    fn read_back(&mut self) -> Result<(), CrashError> {
        let everything = Expect::Everything;
        let ReadBack {
            seen,
            unanswered,
            losses,
        } = self
            .clients
            .read_back(&self.account, everything, self.store_is_away)?;
        self.report.compared += seen.len() as u64;
        self.report.unanswered += unanswered;
        self.report.losses.extend(losses);
        for (key, version) in seen {
            let touched = self.account.keys[&key].touched;
            let before = self.seen.insert(key, (touched, version));
            if before.is_some_and(|(then, seen)| then == touched && seen != version) {
                self.report.changed_by_itself += 1;
            }
        }
        Ok(())
    }

    /// Dirty blocks, and whether the server knows all of them yet.
    fn note_backlog(&mut self) -> Result<(u64, bool), CrashError> {
        let status = self.server.status()?;
        let count = |name: &str| status["writeback"][name].as_u64().unwrap_or_default();
        let blocks = status["writeback"]["dirty_blocks"].as_u64();
        let missing = || CrashError::new("/-/status", "has no writeback.dirty_blocks");
        let blocks = blocks.ok_or_else(missing)?;
        let is_loaded = status["loading"]["shards_loaded"] == status["loading"]["shards"];
        let is_complete = is_loaded && count("shards_unread") == 0;
        self.report.backlog_blocks_max = self.report.backlog_blocks_max.max(blocks);
        // Nobody else writes, and the store refuses nothing for good.
        for name in ["quarantined_blocks", "conflict_blocks", "orphaned_blocks"] {
            if count(name) > 0 {
                let listed = self.server.dirty()?;
                let held = listed["blocks"].as_array().into_iter().flatten();
                let held: Vec<String> = held
                    .filter(|block| !block["last_error"].is_null())
                    .map(ToString::to_string)
                    .collect();
                let (round, count) = (self.report.rounds, count(name));
                let wrong = format!("round {round}: {name} is {count}: {}", held.join(", "));
                self.report.wrongs.push(wrong);
            }
        }
        Ok((blocks, is_complete))
    }

    /// A request that a dead server left behind in the store is still carried out. S3 does so too, and nothing that the
    /// server does could prevent it: the next life begins when it is over.
    fn wait_until_store_is_quiet(&self) -> Result<(), CrashError> {
        let begun = Instant::now();
        let mut quiet = 0;
        while quiet < 3 {
            if begun.elapsed() > BACKLOG_WAIT_MAX {
                return Err(CrashError::new("the S3 stub", "is still at work"));
            }
            quiet = if self.stub.in_progress() == 0 {
                quiet + 1
            } else {
                0
            };
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The store returns, the backlog goes by itself, and both sides are compared with the ledger.
    fn finish(&mut self) -> Result<(), CrashError> {
        self.store_is_away = false;
        self.ledger.note("store on")?;
        self.stub.clear_faults();
        self.server.spawn()?;
        self.server.wait_until_ready()?;
        self.account.read(self.ledger.path())?;
        self.wait_for_backlog()?;
        self.read_back()?;
        self.server.terminate()?;
        self.compare_store();
        let stats = self.stub.stats();
        let overlapping = stats.keys.iter();
        let overlapping = overlapping.filter(|(_, key)| key.puts_concurrent_max > 1);
        for (key, counts) in overlapping {
            let count = counts.puts_concurrent_max;
            let wrong = format!("{key}: {count} PUTs were in flight at once");
            self.report.wrongs.push(wrong);
        }
        Ok(())
    }

    fn wait_for_backlog(&mut self) -> Result<(), CrashError> {
        let (mut least, mut since) = (u64::MAX, Instant::now());
        loop {
            let (blocks, is_complete) = self.note_backlog()?;
            if blocks == 0 && is_complete {
                return Ok(());
            }
            if blocks < least || !is_complete {
                (least, since) = (blocks, Instant::now());
            }
            if since.elapsed() > BACKLOG_WAIT_MAX || !self.report.is_good() {
                let wrong = format!("the backlog stands still at {blocks} blocks");
                self.report.wrongs.push(wrong);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The store holds what the ledger says, and nothing else.
    fn compare_store(&mut self) {
        let stored = self.stub.keys(BUCKET);
        self.report.stored = stored.len() as u64;
        for (name, key) in &self.account.keys {
            let object = self.stub.object(BUCKET, name).map(|object| object.bytes());
            let possible = key.possible.iter();
            let mut possible = possible.filter(|version| version.is(name, object.as_deref()));
            if possible.next().is_none() {
                let mut loss = Loss::of(name, key, object.as_deref());
                loss.found.push_str(" in the store at the end");
                self.report.losses.push(loss);
            }
        }
        let known: BTreeSet<&String> = self.account.keys.keys().collect();
        for name in stored.iter().filter(|name| !known.contains(name)) {
            let wrong = format!("the store has {name}, which nobody wrote");
            self.report.wrongs.push(wrong);
        }
    }

    fn random(&mut self) -> u64 {
        self.random = mix(self.random);
        self.random
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.random() >> 16) % limit
    }
}

/// Takes the store away or brings it back. The ledger says "off" only when it is, and "on" before it is.
fn set_store(stub: &StubHandle, ledger: &Ledger, away: bool, salt: u64) -> Result<(), CrashError> {
    if away {
        let action = match salt % 2 {
            0 => Action::Drop,
            _ => Action::status(503),
        };
        stub.clear_faults();
        stub.add_fault(Fault::on("*", "*").then(action));
        return ledger.note("store off");
    }
    ledger.note("store on")?;
    stub.clear_faults();
    // An upload whose answer is lost, and answers that take a moment, so that kills fall into them.
    stub.add_fault(
        Fault::on("PUT", "*")
            .skip(salt % 16)
            .times(1)
            .then(Action::CommitThenDrop),
    );
    stub.add_fault(Fault::on("PUT", "*").then(Action::DelayHead { ms: salt / 16 % 8 }));
    Ok(())
}
