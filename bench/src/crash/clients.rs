//! The clients: owns the load on a server that will die, and reading everything back after it did. Each key belongs to one
//! client, so that its requests have an order; what the key may hold is asked of the account, never remembered here beyond
//! a round.
//!
//! On a `revalidate` volume a key is written again and again with new content. On an `immutable` one a name has one
//! content for ever: it is written again with the same, and after a deletion the client may move on to a new name.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::content::mix;
use crate::crash::CrashError;
use crate::crash::client::{Client, WAIT_MAX};
use crate::crash::ledger::{Account, KeyAccount, Ledger, Request, Version};

/// Rounds after which a key that is surely gone is no longer read back each time. The last check of the store covers it.
const GONE_ROUNDS_MAX: u64 = 5;

/// A deletion that is drawn while the store is away is sent once in so many times: it waits for the store, and its client with it.
const DELETE_EVERY_WITHOUT_STORE: u64 = 50;

/// Connections that read back: enough to keep the server's cores busy.
const READERS: usize = 4;

/// How long an answer that must come may be refused with 5xx before it counts as a loss. A start reads its shards, a store
/// that came back is found again within seconds; this is far above both, and measures nothing.
const UNANSWERED_MAX: Duration = Duration::from_secs(30);

/// Wait for what only the store can tell while it is away: the server may go on asking it for much longer.
const EXCUSED_WAIT_MAX: Duration = Duration::from_millis(150);

/// After so many of those in vain a reader of many keys asks for no other: rounds are to be short.
const EXCUSED_UNANSWERED_MAX: u64 = 1;

/// Wait before such an answer is asked for again.
const RETRY_WAIT: Duration = Duration::from_millis(20);

/// Contents of every size matter; these ones most, being at the edges of what the disk takes.
const PAGE_BYTES: u64 = 4096;

/// A volume of the server, as the clients see it.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its name, the first segment of the keys' paths.
    pub name: String,
    /// Whether its keys are written once.
    pub is_immutable: bool,
}

/// What the clients are to do.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where the server listens.
    pub address: SocketAddr,
    /// Bearer token that may read and write both volumes.
    pub token: String,
    /// Volumes that keys are dealt to in turn.
    pub volumes: Vec<Volume>,
    /// Clients at the same time.
    pub clients: usize,
    /// Keys of each.
    pub keys: usize,
    /// The largest object.
    pub block_bytes: u64,
    /// Decides everything but time.
    pub seed: u64,
}

/// Something that was acknowledged and is not there, or something that is there and was never sent.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Volume and key.
    pub key: String,
    /// What was found, in words.
    pub found: String,
    /// What may have been.
    pub possible: Vec<Version>,
    /// The ledger's last lines about the key.
    pub history: Vec<String>,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "LOSS: {}: found {}, possible {:?}",
            self.key, self.found, self.possible
        )?;
        self.history
            .iter()
            .try_for_each(|line| writeln!(f, "    {line}"))
    }
}

impl Loss {
    /// A loss of that key.
    pub fn of(key: &str, account: &KeyAccount, found: Option<&[u8]>) -> Self {
        let identified = account.identify(key, found);
        let found = match (identified, found) {
            (Some(version), _) => format!("{version:?}"),
            (None, Some(bytes)) => format!("{} bytes that are no version of it", bytes.len()),
            (None, None) => "nothing".to_owned(),
        };
        Self::in_words(key, account, found)
    }

    /// A loss that shows itself otherwise than by content.
    pub fn in_words(key: &str, account: &KeyAccount, found: String) -> Self {
        Self {
            key: key.to_owned(),
            found,
            possible: account.possible.clone(),
            history: account.history.clone(),
        }
    }
}

/// What a round of load came to.
#[derive(Debug, Default)]
pub struct Worked {
    /// Requests answered, reads included.
    pub answered: u64,
    /// Connections that ended before anybody was told to stop: the server's doing.
    pub broken_early: u64,
    /// Reads that were wrong.
    pub losses: Vec<Loss>,
}

/// Which acknowledgements count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// All of them.
    Everything,
    /// Those before the last `settled`: the power failed.
    Settled,
}

impl Expect {
    fn possible(self, key: &KeyAccount) -> &[Version] {
        match self {
            Self::Everything => &key.possible,
            Self::Settled => &key.possible_after_cut,
        }
    }
}

/// What reading back found.
#[derive(Debug, Default)]
pub struct ReadBack {
    /// Each key that could be read, with what it holds.
    pub seen: Vec<(String, Version)>,
    /// Keys that the server could not tell about because the store is away.
    pub unanswered: u64,
    /// What is wrong.
    pub losses: Vec<Loss>,
}

/// One key in use by a client.
struct Slot {
    volume: usize,
    /// How often the client has moved on to a new name.
    generation: u64,
    sequence: u64,
    key: String,
    account: KeyAccount,
}

struct Worker {
    index: usize,
    random: u64,
    slots: Vec<Slot>,
    /// As the ledger had it when the round began.
    store_is_away: bool,
}

/// All clients, with their keys, over all rounds.
pub struct Clients {
    load: Load,
    workers: Vec<Worker>,
}

impl Clients {
    /// Clients that have written nothing yet.
    pub fn new(load: Load) -> Self {
        let worker = |index: usize| {
            let slot = |number: usize| {
                let volume = number % load.volumes.len();
                Slot::new(&load, index, number, volume)
            };
            Worker {
                index,
                random: mix(load.seed ^ mix(index as u64)),
                slots: (0..load.keys).map(slot).collect(),
                store_is_away: false,
            }
        };
        let workers = (0..load.clients).map(worker).collect();
        Self { load, workers }
    }

    /// Works until `stop` is set or the server is gone. `account` is up to date.
    pub fn work(
        &mut self,
        account: &Account,
        ledger: &Ledger,
        stop: &AtomicBool,
    ) -> Result<Worked, CrashError> {
        let load = &self.load;
        let outcomes: Vec<Result<Worked, CrashError>> = std::thread::scope(|scope| {
            let spawn = |worker| scope.spawn(|| Worker::work(worker, load, account, ledger, stop));
            let threads: Vec<_> = self.workers.iter_mut().map(spawn).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                let panicked = |_| Err(CrashError::new("a client", "panicked"));
                thread.join().unwrap_or_else(panicked)
            };
            threads.into_iter().map(join).collect()
        });
        let mut total = Worked::default();
        for outcome in outcomes {
            let worked = outcome?;
            total.answered += worked.answered;
            total.broken_early += worked.broken_early;
            total.losses.extend(worked.losses);
        }
        Ok(total)
    }

    /// Reads back every key that the account knows and compares. `store_is_away` excuses a key that only the store
    /// can tell about; nothing else does.
    pub fn read_back(
        &self,
        account: &Account,
        expect: Expect,
        store_is_away: bool,
    ) -> Result<ReadBack, CrashError> {
        let keys = account.keys.iter();
        let keys: Vec<_> = keys
            .filter(|(_, key)| {
                key.possible != [Version::Absent] || key.round + GONE_ROUNDS_MAX >= account.rounds
            })
            .collect();
        let found = Mutex::new(ReadBack::default());
        std::thread::scope(|scope| {
            for share in keys.chunks(keys.len().div_ceil(READERS).max(1)) {
                let (found, load) = (&found, &self.load);
                scope.spawn(move || {
                    let mut client = Client::new(load.address, &load.token);
                    let mut excused_unanswered = 0;
                    for (name, key) in share {
                        let possible = expect.possible(key);
                        // Whether it is gone, only the store can tell; what was written without it must be here.
                        let store_must_tell =
                            !key.must_be_on_disk || possible.contains(&Version::Absent);
                        let excused = store_is_away && store_must_tell;
                        let outcome = if excused && excused_unanswered >= EXCUSED_UNANSWERED_MAX {
                            Checked::Unanswered
                        } else {
                            check(&mut client, name, key, possible, excused)
                        };
                        excused_unanswered += u64::from(matches!(outcome, Checked::Unanswered));
                        let mut found = found.lock().unwrap_or_else(|error| error.into_inner());
                        match outcome {
                            Checked::Holds(version) => found.seen.push(((*name).clone(), version)),
                            Checked::Unanswered => found.unanswered += 1,
                            Checked::Lost(loss) => found.losses.push(loss),
                        }
                    }
                });
            }
        });
        Ok(found
            .into_inner()
            .unwrap_or_else(|error| error.into_inner()))
    }

    /// Begins a PUT of which the server gets no more than so many bytes of body; the connection is left open.
    pub fn send_part(&mut self, ledger: &Ledger, sent_bytes: usize) -> Result<Client, CrashError> {
        let load = &self.load;
        let slot = &mut self.workers[0].slots[0];
        let length = load.block_bytes;
        slot.sequence += 1;
        let version = Version::Written {
            sequence: slot.sequence,
            length,
        };
        ledger.begin(&slot.key, Request::Part(version))?;
        let mut client = Client::new(load.address, &load.token);
        let body = version.bytes(&slot.key).unwrap_or_default();
        // The server may be dying already; then it got even less.
        let _ = client.send_part(&format!("/{}", slot.key), &body, sent_bytes);
        Ok(client)
    }
}

impl Slot {
    fn new(load: &Load, worker: usize, number: usize, volume: usize) -> Self {
        let mut slot = Self {
            volume,
            generation: 0,
            sequence: 0,
            key: String::new(),
            account: KeyAccount::new(),
        };
        slot.name(load, worker, number);
        slot
    }

    fn name(&mut self, load: &Load, worker: usize, number: usize) {
        let volume = &load.volumes[self.volume];
        self.key = format!("{}/c{worker}/k{number}-{}", volume.name, self.generation);
    }
}

/// What a client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Put,
    Delete,
    Get,
}

impl Worker {
    fn work(
        worker: &mut Worker,
        load: &Load,
        account: &Account,
        ledger: &Ledger,
        stop: &AtomicBool,
    ) -> Result<Worked, CrashError> {
        worker.store_is_away = account.store_is_away;
        for slot in &mut worker.slots {
            slot.account = account.keys.get(&slot.key).cloned().unwrap_or_default();
        }
        let mut client = Client::new(load.address, &load.token);
        let mut worked = Worked::default();
        while !stop.load(Ordering::Relaxed) && worked.losses.is_empty() {
            match worker.step(load, ledger, &mut client, &mut worked)? {
                true => worked.answered += 1,
                // Without an answer nothing is known; the ledger says so by having no line.
                false => {
                    worked.broken_early += u64::from(!stop.load(Ordering::Relaxed));
                    break;
                }
            }
        }
        Ok(worked)
    }

    /// One request; says whether it was answered.
    fn step(
        &mut self,
        load: &Load,
        ledger: &Ledger,
        client: &mut Client,
        worked: &mut Worked,
    ) -> Result<bool, CrashError> {
        let number = self.below(self.slots.len() as u64) as usize;
        let step = self.next_step();
        if step == Step::Get {
            let slot = &self.slots[number];
            let Ok(answer) = client.request("GET", &format!("/{}", slot.key), b"") else {
                return Ok(false);
            };
            let found = match answer.status {
                200 => Some(answer.body.as_slice()),
                404 => None,
                _ => return Ok(true),
            };
            let possible = &slot.account.possible;
            if !possible.iter().any(|version| version.is(&slot.key, found)) {
                let loss = Loss::of(&slot.key, &slot.account, found);
                worked.losses.push(loss);
            }
            return Ok(true);
        }
        let version = match step {
            Step::Put => self.next_version(load, number),
            _ => Version::Absent,
        };
        let slot = &mut self.slots[number];
        let request = ledger.begin(&slot.key, Request::Make(version))?;
        slot.account.begin(version);
        let path = format!("/{}", slot.key);
        let answer = match version.bytes(&slot.key) {
            Some(body) => client.request("PUT", &path, &body),
            None => client.request("DELETE", &path, b""),
        };
        let Ok(answer) = answer else {
            return Ok(false);
        };
        ledger.answered(request, answer.status)?;
        slot.account.answered(version, answer.status);
        let is_gone = slot.account.possible == [Version::Absent];
        if is_gone && load.volumes[slot.volume].is_immutable && self.below(2) == 0 {
            let slot = &mut self.slots[number];
            slot.generation += 1;
            slot.sequence = 0;
            slot.account = KeyAccount::new();
            slot.name(load, self.index, number);
        }
        Ok(true)
    }

    fn next_step(&mut self) -> Step {
        match self.below(20) {
            0..11 => Step::Put,
            11..14 if !self.store_is_away => Step::Delete,
            11..14 if self.below(DELETE_EVERY_WITHOUT_STORE) == 0 => Step::Delete,
            _ => Step::Get,
        }
    }

    /// A new version, or on an immutable volume the only one.
    fn next_version(&mut self, load: &Load, number: usize) -> Version {
        let word = self.random();
        let slot = &mut self.slots[number];
        let word = if load.volumes[slot.volume].is_immutable {
            slot.sequence = 1;
            mix(load.seed ^ mix(slot.generation) ^ mix(number as u64) ^ self.index as u64)
        } else {
            slot.sequence += 1;
            word
        };
        let edge = PAGE_BYTES * (1 + (word >> 8) % (load.block_bytes / PAGE_BYTES - 1));
        let length = match word % 16 {
            0 => 1,
            1 => load.block_bytes,
            2 => load.block_bytes - 1,
            3 => edge - 1,
            4 => edge,
            5 => edge + 1,
            _ => 1 + (word >> 8) % load.block_bytes,
        };
        Version::Written {
            sequence: slot.sequence,
            length,
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

enum Checked {
    Holds(Version),
    Unanswered,
    Lost(Loss),
}

fn check(
    client: &mut Client,
    name: &str,
    key: &KeyAccount,
    possible: &[Version],
    excused: bool,
) -> Checked {
    let wait = if excused { EXCUSED_WAIT_MAX } else { WAIT_MAX };
    client.wait_at_most(wait);
    let begun = Instant::now();
    loop {
        let why = match client.request("GET", &format!("/{name}"), b"") {
            Ok(answer) if matches!(answer.status, 200 | 404) => {
                let found = (answer.status == 200).then_some(answer.body.as_slice());
                let held = possible.iter().find(|version| version.is(name, found));
                return match held {
                    Some(version) => Checked::Holds(*version),
                    None => Checked::Lost(Loss::of(name, key, found)),
                };
            }
            Ok(answer) if answer.status < 500 => {
                let found = format!("status {}", answer.status);
                return Checked::Lost(Loss::in_words(name, key, found));
            }
            Ok(_) | Err(_) if excused => return Checked::Unanswered,
            Ok(answer) => format!("status {} for {UNANSWERED_MAX:?}", answer.status),
            Err(error) => format!("no answer for {UNANSWERED_MAX:?}: {error}"),
        };
        if begun.elapsed() > UNANSWERED_MAX {
            return Checked::Lost(Loss::in_words(name, key, why));
        }
        std::thread::sleep(RETRY_WAIT);
    }
}
