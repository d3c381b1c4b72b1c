//! The server's life: what is asked before it starts, how its threads come up, how they stop.
//!
//! This file owns the order. Whatever can refuse a start is asked before anything is written:
//! the machine, the port, the folder, the stores. Then companions and cores come up, and the main
//! thread waits for signals. It serves nothing itself.

mod core;
pub mod memory;
mod reload;
mod signals;
pub mod stores_file;
pub mod volumes;
mod watchdog;

use crate::certificate::{self, CertificateError};
use crate::config::Config;
use crate::http::stats::HttpStats;
use crate::settings::dev::DevBanner;
use crate::settings::{SettingsError, StartSettings, TlsSetting};
use core::{Control, CorePlan};
use forebay_io::buffer::Pool;
use forebay_io::disk::Disk;
use forebay_io::disk::ring::RingDisk;
use forebay_io::ledger::{self, LedgerPort};
use forebay_io::probe::{self, FolderLock, ProbeError};
use forebay_io::queue::{self, Sender};
use forebay_io::rt::{self, CoreBuilder, CoreHandle, GlommioRuntime};
use forebay_io::uplink::{self, UplinkLimits};
use forebay_shards::key::Topology;
use forebay_shards::messages::Message;
use forebay_shards::router::MESH_CAPACITY;
use forebay_shards::superblock::{self, FolderError, FolderLimits, SUPERBLOCK_NAME, Superblock};
use forebay_shards::upload::WritebackSettings;
use memory::{MemoryNeeds, MemoryPlan, MemoryShort};
use reload::Reloader;
use signals::Wake;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use stores_file::{KnownStore, STORES_NAME, StoresFile};
use volumes::{Stores, VolumeError, VolumeTable};

/// Fetches and uploads in flight per core when `--maxBops` does not say: covers the
/// bandwidth-delay product of 10 Gb/s over 100 ms with 4 MiB blocks.
const OPERATIONS_PER_CORE: usize = 32;

/// Part of the uploads in flight that is never taken by what is uploaded in the background.
const UPLOADS_KEPT_DIVISOR: usize = 8;

/// How long a stop waits for the ledger. With what the cores wait for it stays below the 20 s that an
/// orderly stop may take.
const LEDGER_WAIT: Duration = Duration::from_secs(2);

/// Pause between two looks whether the ledger's thread has ended.
const LEDGER_LOOK: Duration = Duration::from_millis(5);

/// Open files beside segments and connections: logs, the ledger, the rings, connections to stores.
const OTHER_FILES_BASE: u64 = 128;

/// The same for each core: its rings and event files, and its companion's connections.
const OTHER_FILES_PER_CORE: u64 = 96;

/// The fewest connections per core that a start leaves descriptors for.
const CONNECTIONS_PER_CORE_MIN: u64 = 64;

/// What all cores share and only read.
pub struct ServerState {
    /// Counters of each core's connections.
    pub http: Vec<HttpStats>,
    /// Differs from run to run; begins request ids.
    pub run_id: u32,
    /// Where the server listens.
    pub address: SocketAddr,
    /// The quota in bytes, as resolved at start.
    pub quota_bytes: u64,
    /// How the memory is split.
    pub memory: MemoryPlan,
    /// Whether writes may be acknowledged before the store has them, where their volume says so.
    pub writeback: bool,
    started: Instant,
    cores_ready: AtomicUsize,
    /// Whether something may be dirty for a store that the settings do not name: cores load before
    /// they listen then.
    has_strangers: bool,
    cores_loaded: AtomicUsize,
    orphans: AtomicU64,
}

impl ServerState {
    /// Whether every core serves.
    pub fn is_ready(&self) -> bool {
        self.cores_ready.load(Ordering::Acquire) == self.http.len()
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Why the server does not start, or stopped. One line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The machine, the folder or the port refuses.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The cache folder is not ours to use.
    #[error("cache folder {}: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        source: FolderError,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A volume's store cannot be built.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The settings cannot be shown.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The memory asked for is not there.
    #[error(transparent)]
    Memory(#[from] MemoryShort),
    /// There may not be as many open files as the cores need, whatever the cache holds.
    #[error(
        "open files: {needed} are needed for {cores} cores with at least {CONNECTIONS_PER_CORE_MIN} \
         connections each, the hard limit is {limit}; raise it with `LimitNOFILE=` in the systemd \
         unit or `ulimit -Hn`, or lower --shards"
    )]
    OpenFiles {
        /// What would do, without a single segment.
        needed: u64,
        /// Cores.
        cores: usize,
        /// The limit.
        limit: u64,
    },
    /// Blocks wait for a store that the settings do not name.
    #[error(
        "{blocks} acknowledged blocks are not uploaded yet and belong to {stores}, which the settings \
         do not name any more; start with the settings as they were and run `forebay drain` first"
    )]
    Orphans {
        /// How many.
        blocks: u64,
        /// Volumes and stores.
        stores: String,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What came back.
        source: io::Error,
    },
}

impl StartError {
    /// Whether the settings are to blame, rather than the machine.
    pub fn is_usage(&self) -> bool {
        match self {
            StartError::Certificate(_)
            | StartError::Volume(_)
            | StartError::Settings(_)
            | StartError::Memory(_)
            | StartError::Folder {
                source: FolderError::QuotaTooSmall { .. },
                ..
            } => true,
            StartError::Orphans { .. } => true,
            StartError::Probe(_)
            | StartError::OpenFiles { .. }
            | StartError::Folder { .. }
            | StartError::Io { .. } => false,
        }
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io {
        what: what.into(),
        source,
    }
}

/// Runs the server until it is told to stop. `announce` is given the lines to print once the
/// server listens.
pub fn run(settings: &StartSettings, announce: impl FnOnce(&str)) -> Result<(), StartError> {
    abort_on_panic();
    signals::ignore_file_size_limit();
    let cpus = rt::usable_cpus();
    let cores = settings.shards.unwrap_or(cpus.len());
    let mut stores = Stores::default();
    let config = Config {
        operator_token: settings.operator_token,
        volumes: settings.volumes.clone(),
        warnings: Vec::new(),
    };
    let table = stores.adopt(&config, settings.sse)?;
    let files_max = probe::open_files()?;
    probe::io_uring()?;
    probe::memlock(cores)?;
    let address = probe::exclusive_bind(settings.bind_addr)?;
    let Prepared {
        lock,
        superblock,
        segments,
        segments_max,
        quota_bytes,
        memory,
        ledger_cache_bytes,
        tls,
    } = prepare(settings, cores, files_max)?;
    log::info!("{}", memory.summary());
    let segment_files = u64::from(superblock.shards) * u64::from(segments_max);
    let connections_max =
        connections_with(files_max, segment_files, cores).min(memory.connections_per_core);
    let folder = &settings.disk_folder;
    let mut known_stores = open_stores_file(folder)?;
    let configured = table.written_back();
    let strangers = known_stores.strangers(&configured);
    let may_write_back = note_stores(&mut known_stores, &configured);
    let started = Instant::now();
    let state = Arc::new(ServerState {
        http: (0..cores).map(|_| HttpStats::default()).collect(),
        run_id: started_id(),
        address,
        quota_bytes,
        memory: memory.clone(),
        writeback: may_write_back && !settings.no_writeback,
        started,
        cores_ready: AtomicUsize::new(0),
        has_strangers: !strangers.is_empty(),
        cores_loaded: AtomicUsize::new(0),
        orphans: AtomicU64::new(0),
    });
    let topology = Topology::new(superblock.shards, cores as u32);
    let pool = Pool::new(memory.pool_bytes);
    let plan = |index| CorePlan {
        index,
        cores,
        topology,
        superblock,
        segments_max,
        segments: shards_of(index, topology, &segments),
        folder: folder.clone(),
        ram_bytes: memory.ram_bytes_per_core,
        connections_max,
        writeback: WritebackSettings {
            enabled: may_write_back && !settings.no_writeback,
            ..writeback(settings, cores)
        },
        pool: pool.clone(),
        started,
        tls: tls.clone(),
        table: table.clone(),
        state: state.clone(),
    };
    let (ledger_ports, ledger) = start_ledger(settings, cores, ledger_cache_bytes)?;
    let mut running = Running::start(settings, cores, &cpus, &stores, ledger_ports, plan)?;
    running.wait_until_ready(&state)?;
    match state.orphans.load(Ordering::Acquire) {
        0 if state.has_strangers => forget_strangers(&mut known_stores, &configured),
        0 => {}
        blocks => {
            running.stop();
            stop_ledger(ledger);
            return Err(orphans(blocks, &strangers));
        }
    }
    watchdog::start(state.clone()).map_err(failed("cannot start the watchdog"))?;
    log::info!(
        "listening on {address} with {cores} cores, {} virtual shards, quota {quota_bytes} bytes",
        superblock.shards
    );
    if settings.dev {
        announce(DevBanner::new(settings, address)?.text());
    }
    let mut reloader = Reloader::new(settings, config, stores, table, known_stores);
    signals::wait(reload::CREDENTIALS_LOOK, |wake| match wake {
        Wake::Reload => reloader.reload(&running),
        Wake::Idle => reloader.look(&running),
    })
    .map_err(failed("cannot wait for signals"))?;
    running.stop();
    stop_ledger(ledger);
    drop(lock);
    Ok(())
}

fn open_stores_file(folder: &Path) -> Result<StoresFile, StartError> {
    StoresFile::read(folder).map_err(failed("cannot tell which stores blocks wait for"))
}

/// Writes down which stores blocks may become dirty for. A disk that does not take that may still
/// serve what it has; nothing becomes dirty then. Returns whether blocks may.
fn note_stores(known_stores: &mut StoresFile, configured: &[KnownStore]) -> bool {
    let noted = known_stores.add(configured);
    if let Err(error) = &noted {
        log::error!(
            "no writeback until the next start: {STORES_NAME} cannot be written in the cache folder: \
             {error}"
        );
    }
    noted.is_ok()
}

/// Nothing is dirty for a store that the settings do not name.
fn forget_strangers(known_stores: &mut StoresFile, configured: &[KnownStore]) {
    if let Err(error) = known_stores.set(configured) {
        // It is looked at again at the next start.
        log::warn!("the list of stores stays longer than it need be: {error}");
    }
}

fn orphans(blocks: u64, strangers: &[KnownStore]) -> StartError {
    let named = strangers
        .iter()
        .map(|known| format!("volume {:?} at {:?}", known.volume, known.store));
    let stores = named.collect::<Vec<_>>().join(", ");
    StartError::Orphans { blocks, stores }
}

/// Starts the ledger's thread, with a port for each core.
fn start_ledger(
    settings: &StartSettings,
    cores: usize,
    cache_bytes: u64,
) -> Result<(Vec<LedgerPort>, JoinHandle<()>), StartError> {
    let (ports, services) = (0..cores).map(|_| ledger::pair()).unzip();
    let folder = &settings.db_folder;
    let thread = ledger::spawn_ledger(folder, cache_bytes, services)
        .map_err(failed(format!("ledger {}", folder.display())))?;
    Ok((ports, thread))
}

/// Waits for the ledger's thread, which ends with everything on disk now that the cores have closed
/// their ends of it; but not for a disk that does not answer.
fn stop_ledger(ledger: JoinHandle<()>) {
    let started = Instant::now();
    while !ledger.is_finished() && started.elapsed() < LEDGER_WAIT {
        std::thread::sleep(LEDGER_LOOK);
    }
    if !ledger.is_finished() {
        log::warn!("the ledger's disk does not answer; some uploads may be repeated");
    } else if ledger.join().is_err() {
        log::error!("the ledger's thread has failed; some uploads may be repeated");
    }
}

/// Bytes of a body that go to disk at once while the rest is received. What comes last is written
/// when all others wait: half a mebibyte takes half as long as one, and smaller ones cost requests.
const PIECE_BYTES: usize = 512 << 10;

/// How each core writes back.
fn writeback(settings: &StartSettings, cores: usize) -> WritebackSettings {
    let operations = operations_per_core(settings, cores);
    let active_max = match settings.writeback_active {
        0 => operations,
        all => all.div_ceil(cores),
    };
    WritebackSettings {
        enabled: !settings.no_writeback,
        sync: settings.sync,
        // Some of the lane is left to those who wait for the store: writes through and deletes.
        active_max: active_max.min(operations - operations / UPLOADS_KEPT_DIVISOR),
        delay: settings.writeback_delay,
        piece_bytes: PIECE_BYTES,
    }
}

/// A panic anywhere ends the process: a server with a dead core would answer for its blocks never.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

fn started_id() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |passed| passed.as_millis() as u32)
}

/// What a start needs of the disk.
struct Prepared {
    lock: FolderLock,
    superblock: Superblock,
    segments: Vec<Vec<u32>>,
    segments_max: u32,
    quota_bytes: u64,
    memory: MemoryPlan,
    ledger_cache_bytes: u64,
    tls: Option<Arc<rustls::ServerConfig>>,
}

/// Asks all that can refuse before it writes anything. The folder must exist: a mount that is not
/// there must not be papered over.
fn prepare(settings: &StartSettings, cores: usize, files_max: u64) -> Result<Prepared, StartError> {
    let folder = &settings.disk_folder;
    probe::private_folder(folder)?;
    let filesystem = probe::direct_io(folder)?;
    log::info!("{} is on {filesystem}", folder.display());
    let quota_bytes = settings.disk_quota.resolve(file_system_bytes(folder)?);
    let limits = FolderLimits {
        quota_bytes,
        segment_files_max: segment_files_with(files_max, cores)?,
    };
    inspect(folder, limits)?;
    let needs = memory_needs(settings, cores, quota_bytes)?;
    let memory = memory::plan(&needs)?;
    let tls = load_certificate(settings)?;
    let lock = FolderLock::acquire(folder)?;
    match open_folder(folder, limits) {
        Ok((superblock, segments, segments_max)) => Ok(Prepared {
            lock,
            superblock,
            segments,
            segments_max,
            quota_bytes,
            memory,
            ledger_cache_bytes: memory::ledger(&needs),
            tls,
        }),
        Err(error) => {
            lock.undo();
            Err(error)
        }
    }
}

fn load_certificate(
    settings: &StartSettings,
) -> Result<Option<Arc<rustls::ServerConfig>>, StartError> {
    let TlsSetting::Files(files) = &settings.tls else {
        return Ok(None);
    };
    let certificate = certificate::load_or_make(files)?;
    for warning in &certificate.warnings {
        log::warn!("{warning}");
    }
    let made = if certificate.made { "made " } else { "" };
    let (path, fingerprint) = (files.cert.display(), &certificate.fingerprint);
    log::info!("{made}certificate {path} SHA-256 {fingerprint}");
    Ok(Some(certificate.config))
}

/// Refuses a folder that is not ours before the lock file is made in it.
fn inspect(folder: &Path, limits: FolderLimits) -> Result<(), StartError> {
    let cannot = || {
        failed(format!(
            "cannot look into the cache folder {}",
            folder.display()
        ))
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(cannot())? {
        names.push(
            entry
                .map_err(cannot())?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    let content = match std::fs::read(folder.join(SUPERBLOCK_NAME)) {
        Ok(content) => Some(content),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(cannot()(e)),
    };
    superblock::inspect(names.iter().map(String::as_str), content.as_deref(), limits).map_err(
        |source| StartError::Folder {
            folder: folder.to_owned(),
            source,
        },
    )
}

/// Opens or formats the folder on an executor of its own, which ends before the cores start.
fn open_folder(
    folder: &Path,
    limits: FolderLimits,
) -> Result<(Superblock, Vec<Vec<u32>>, u32), StartError> {
    let path = folder.to_owned();
    let handle = CoreBuilder {
        index: 0,
        cpu: None,
    }
    .spawn(move || async move {
        let cannot = |source| FolderError::Io {
            what: "cannot open it",
            source,
        };
        let disk = RingDisk::open_folder(&path).map_err(cannot)?;
        let runtime = GlommioRuntime::current(Instant::now());
        let pool = Pool::new(1 << 20);
        let superblock = superblock::open_or_format(&runtime, &disk, &pool, limits).await?;
        let mut entries = disk.list().await.map_err(cannot)?;
        if let Err(error) = superblock::discard_unmade(&disk, &mut entries).await {
            // As on a disk that was remounted read-only: an empty file does no harm.
            log::warn!("{}: an empty segment file stays: {error}", path.display());
        }
        let segments_max = superblock.segments_per_shard(limits.quota_bytes)?;
        Ok((
            superblock,
            superblock::segment_files(&entries, &superblock),
            segments_max,
        ))
    })
    .map_err(failed("cannot start an executor"))?;
    let opened = handle
        .join()
        .map_err(failed("the folder's executor failed"))?;
    opened.map_err(|source| StartError::Folder {
        folder: folder.to_owned(),
        source,
    })
}

/// Bytes of the file system that holds `folder`.
fn file_system_bytes(folder: &Path) -> Result<u64, StartError> {
    forebay_io::disk::ring::file_system_bytes(folder).map_err(failed(format!(
        "cannot ask for the size of {}",
        folder.display()
    )))
}

fn memory_needs(
    settings: &StartSettings,
    cores: usize,
    quota_bytes: u64,
) -> Result<MemoryNeeds, StartError> {
    let limit =
        forebay_io::memory::limit().map_err(failed("cannot ask for the machine's memory"))?;
    let block_sizes = settings.volumes.iter().map(|volume| volume.block_size);
    Ok(MemoryNeeds {
        limit,
        cores,
        mem_capacity: settings.mem_capacity,
        db_mem_capacity: settings.db_mem_capacity,
        operations_per_core: operations_per_core(settings, cores),
        quota_bytes,
        block_bytes_min: block_sizes.min().expect("at least one volume"),
        tls: settings.tls != TlsSetting::Off,
    })
}

fn operations_per_core(settings: &StartSettings, cores: usize) -> usize {
    match settings.max_bops {
        0 => OPERATIONS_PER_CORE,
        all => all.div_ceil(cores),
    }
}

/// Files that are no segments, connections apart.
fn other_files(cores: usize) -> u64 {
    OTHER_FILES_BASE + cores as u64 * OTHER_FILES_PER_CORE
}

/// Segment files that may be open beside all else.
fn segment_files_with(limit: u64, cores: usize) -> Result<u64, StartError> {
    let needed = other_files(cores) + cores as u64 * CONNECTIONS_PER_CORE_MIN;
    let left = limit.checked_sub(needed);
    left.ok_or(StartError::OpenFiles {
        needed,
        cores,
        limit,
    })
}

/// Connections per core that may be open beside all segment files.
fn connections_with(limit: u64, segments: u64, cores: usize) -> usize {
    (limit.saturating_sub(other_files(cores) + segments) / cores as u64) as usize
}

/// The shards of one core with their segment files.
fn shards_of(index: usize, topology: Topology, segments: &[Vec<u32>]) -> Vec<(u32, Vec<u32>)> {
    (0..topology.shards())
        .filter(|shard| topology.core_of_shard(*shard) == index)
        .map(|shard| (shard, segments[shard as usize].clone()))
        .collect()
}

/// The threads of a running server.
struct Running {
    cores: Vec<CoreHandle<()>>,
    controls: Vec<Sender<Control>>,
    companions: Vec<JoinHandle<()>>,
}

impl Running {
    fn start(
        settings: &StartSettings,
        cores: usize,
        cpus: &[usize],
        stores: &Stores,
        ledgers: Vec<LedgerPort>,
        plan: impl Fn(usize) -> CorePlan,
    ) -> Result<Running, StartError> {
        let operations = operations_per_core(settings, cores);
        let limits = UplinkLimits {
            fetches_max: operations,
            uploads_max: operations,
        };
        let mut running = Running {
            cores: Vec::new(),
            controls: Vec::new(),
            companions: Vec::new(),
        };
        let meshes = queue::mesh::<Message>(cores, MESH_CAPACITY);
        for (index, (mesh, ledger)) in meshes.into_iter().zip(ledgers).enumerate() {
            let (port, companion_port) = uplink::pair();
            let factory = stores.factory();
            let companion = uplink::spawn_companion(index, companion_port, limits, factory)
                .map_err(failed("cannot start a companion thread"))?;
            running.companions.push(companion);
            let (control, controls) = queue::bounded(4);
            running.controls.push(control);
            let plan = plan(index);
            // More cores than CPUs share them, unpinned.
            let cpu = (cores <= cpus.len()).then(|| cpus[index]);
            let core = CoreBuilder { index, cpu }
                .spawn(move || core::run(plan, mesh, port, ledger, controls))
                .map_err(failed("cannot start a core"))?;
            running.cores.push(core);
        }
        Ok(running)
    }

    /// Waits for every core, or for the first that gives up.
    fn wait_until_ready(&mut self, state: &ServerState) -> Result<(), StartError> {
        while !state.is_ready() {
            if self.controls.iter().any(Sender::is_closed) {
                let what = "a core could not start; the log says why".to_owned();
                return Err(StartError::Io {
                    what,
                    source: io::Error::other("see above"),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Tells every core to serve these volumes; `false` if one is too busy to be told.
    fn serve_volumes(&self, table: &Arc<VolumeTable>, stores: &Stores) -> bool {
        let mut are_told = true;
        for control in &self.controls {
            let change = Control::Reload(table.clone(), stores.factory());
            are_told &= control.try_send(change).is_ok();
        }
        are_told
    }

    /// Stops accepting, lets requests end, seals segments, ends all threads.
    fn stop(self) {
        for control in &self.controls {
            let _ = control.try_send(Control::Stop);
        }
        for core in self.cores {
            if let Err(error) = core.join() {
                log::error!("{error}");
            }
        }
        // Their queues are closed now; what is still on its way to a store is abandoned.
        drop(self.companions);
        log::info!("stopped");
    }
}
