//! One core's life: join the mesh, accept, load its shards meanwhile, stop.

use super::ServerState;
use super::volumes::VolumeTable;
use super::watchdog;
use crate::http::connection::Connection;
use crate::http::limits::{
    ACCEPT_PAUSE, DELETES_MAX, HANDSHAKE_TIME_MAX, LISTS_MAX, RECEIVING_MAX, VERSION_READS_MAX,
};
use crate::http::{self, CoreContext};
use forebay_io::buffer::Pool;
use forebay_io::disk::ring::RingDisk;
use forebay_io::ledger::{Ledger, LedgerPort};
use forebay_io::local::{Event, Permit, Permits};
use forebay_io::net::{Listener, Socket, Stream, is_descriptor_shortage};
use forebay_io::queue::{MeshPort, Receiver};
use forebay_io::rt::GlommioRuntime;
use forebay_io::runtime::{Runtime, timeout};
use forebay_io::uplink::{StoreFactory, UplinkPort};
use forebay_shards::core::{Core, CoreParts};
use forebay_shards::evict::WRITE_BUDGET_PERCENT;
use forebay_shards::key::Topology;
use forebay_shards::log::ShardLayout;
use forebay_shards::marks::Marks;
use forebay_shards::messages::Message;
use forebay_shards::recover::{RecoveryReport, recover};
use forebay_shards::router;
use forebay_shards::shard::{Housekeeping, Shard, ShardParts};
use forebay_shards::superblock::Superblock;
use forebay_shards::table::ShardTable;
use forebay_shards::upload::WritebackSettings;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a stopping core waits for requests in flight. With sealing it stays below the 20 s
/// that an orderly stop may take.
const STOP_WAIT: Duration = Duration::from_secs(12);

/// How long a stopping core waits for its footers. A healthy disk takes them in milliseconds; one
/// that does not answer must not keep the process.
const SEAL_WAIT: Duration = Duration::from_secs(5);

/// How long a stopping core waits for room in the ledger's queue.
const LEDGER_WAIT: Duration = Duration::from_millis(500);

/// How fast a proxy reads its cache files in search of rot, bytes per second over all cores. A
/// terabyte takes nine hours, and the fastest disks do not notice.
const SCRUB_BYTES_PER_SECOND: u64 = 32 << 20;

/// How long after a start the scrub begins: loading and the first rush of readers come first.
const SCRUB_DELAY: Duration = Duration::from_secs(60);

/// Pause between two looks whether everything is loaded, where a start has to wait for that.
const LOADING_LOOK: Duration = Duration::from_millis(2);

/// Shards that a core loads at the same time: enough reads in flight for any one disk, and no
/// shard waits for a slow one.
const SHARDS_LOADED_AT_ONCE: usize = 4;

/// What the main thread tells a core.
pub enum Control {
    /// Serve these volumes from these stores from now on.
    Reload(Arc<VolumeTable>, StoreFactory),
    /// End.
    Stop,
}

/// All that a core needs to come up.
pub struct CorePlan {
    /// Which core it is.
    pub index: usize,
    /// How many there are.
    pub cores: usize,
    /// Where blocks live.
    pub topology: Topology,
    /// The folder's layout.
    pub superblock: Superblock,
    /// Segments that the quota allows each shard.
    pub segments_max: u32,
    /// Its shards and their segment files.
    pub segments: Vec<(u32, Vec<u32>)>,
    /// The cache folder.
    pub folder: PathBuf,
    /// Budget of its RAM tier.
    pub ram_bytes: usize,
    /// Connections that it may have open.
    pub connections_max: usize,
    /// How writes are acknowledged before the store has them.
    pub writeback: WritebackSettings,
    /// Block buffers: one pool for all cores.
    pub pool: Pool,
    /// Zero of the cores' clocks.
    pub started: Instant,
    /// TLS, unless it is off.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// The volumes.
    pub table: Arc<VolumeTable>,
    /// What all cores share.
    pub state: Arc<ServerState>,
}

type Engine = Core<GlommioRuntime, RingDisk>;

/// Runs a core until it is told to stop. A core that cannot come up says why and returns, which
/// the main thread notices.
pub async fn run(
    plan: CorePlan,
    mesh: MeshPort<Message>,
    uplink: UplinkPort,
    ledger: LedgerPort,
    mut controls: Receiver<Control>,
) {
    let (index, connections_max) = (plan.index, plan.connections_max);
    let runtime = GlommioRuntime::current(plan.started);
    let uplink = uplink.attach(runtime.clone());
    let disk = match RingDisk::open_folder(&plan.folder) {
        Ok(disk) => disk,
        Err(error) => return log::error!("core {index}: cannot open its shards: {error}"),
    };
    let engine = Core::new(CoreParts {
        index,
        topology: plan.topology,
        runtime: runtime.clone(),
        pool: plan.pool.clone(),
        uplink: uplink.clone(),
        shards: ShardTable::new(plan.segments.iter().map(|(number, _)| *number)),
        ram_bytes: plan.ram_bytes,
        writeback: plan.writeback,
    });
    let ledger = ledger.attach();
    engine.set_volumes(plan.table.faces());
    let loader = Rc::new(Loader {
        core: index,
        runtime: runtime.clone(),
        disk,
        pool: plan.pool.clone(),
        housekeeping: Housekeeping::new(plan.superblock.segment_bytes),
        superblock: plan.superblock,
        segments_max: plan.segments_max,
        segments: plan.segments.iter().cloned().collect(),
        ledger: ledger.clone(),
        sync: plan.writeback.sync,
        engine: engine.clone(),
    });
    for _ in 0..SHARDS_LOADED_AT_ONCE {
        runtime.spawn(loader.clone().run());
    }
    if plan.state.has_strangers {
        count_orphans(&runtime, &engine, &plan).await;
    }
    let listener = match Listener::bind(plan.state.address) {
        Ok(listener) => listener,
        Err(error) => return log::error!("core {index}: cannot listen: {error}"),
    };
    let context = Rc::new(CoreContext {
        index,
        runtime: runtime.clone(),
        router: router::join(engine.clone(), mesh),
        server: plan.state.clone(),
        stopping: Event::default(),
        volume_table: RefCell::new(plan.table),
        requests: Cell::new(0),
        receiving: Permits::new(RECEIVING_MAX),
        listing: Permits::new(LISTS_MAX),
        deleting: Permits::new(DELETES_MAX),
        version_reads: Permits::new(VERSION_READS_MAX),
        md5s: Rc::default(),
    });
    let connections = Permits::new(connections_max);
    runtime.spawn(tick(context.clone()));
    runtime.spawn(scrub(runtime.clone(), engine.clone(), plan.cores));
    runtime.spawn(accept(
        context.clone(),
        listener,
        plan.tls,
        connections.clone(),
    ));
    plan.state.cores_ready.fetch_add(1, Ordering::AcqRel);
    while let Some(Control::Reload(table, factory)) = controls.recv().await {
        // Stores first: no request may name a number that the companion does not know.
        uplink.replace_stores(factory).await;
        engine.set_volumes(table.faces());
        *context.volume_table.borrow_mut() = table;
    }
    stop(&context, &connections, connections_max, &engine).await;
    // Said rather than left to the end of all that holds an end of it, which a task may outlive.
    if timeout(&runtime, LEDGER_WAIT, ledger.close())
        .await
        .is_none()
    {
        log::warn!("core {index}: the ledger takes nothing more");
    }
}

/// Waits until all that is dirty is known, on all cores, and counts what leads to no store. Nobody is
/// served before: blocks of a store that the settings do not name are a reason not to start.
async fn count_orphans(runtime: &GlommioRuntime, engine: &Rc<Engine>, plan: &CorePlan) {
    let is_unread = || engine.backlog(None).shards_unread > 0;
    while is_unread() {
        runtime.sleep(LOADING_LOOK).await;
    }
    let state = &plan.state;
    let orphans = engine.backlog(None).orphaned_blocks;
    state.orphans.fetch_add(orphans, Ordering::AcqRel);
    state.cores_loaded.fetch_add(1, Ordering::AcqRel);
    while state.cores_loaded.load(Ordering::Acquire) < plan.cores {
        runtime.sleep(LOADING_LOOK).await;
    }
}

/// Loads a core's shards while it serves.
struct Loader {
    core: usize,
    runtime: GlommioRuntime,
    disk: RingDisk,
    pool: Pool,
    housekeeping: Housekeeping,
    superblock: Superblock,
    segments_max: u32,
    /// Segment files by shard.
    segments: HashMap<u32, Vec<u32>>,
    ledger: Ledger,
    sync: bool,
    engine: Rc<Engine>,
}

impl Loader {
    /// Loads shards until none is left, those that requests wait for first.
    async fn run(self: Rc<Self>) {
        let shards = self.engine.shards();
        while let Some(number) = shards.next_to_load() {
            let (shard, report) = self.load(number).await;
            let shard = Rc::new(shard);
            self.engine.recall_marks(&shard).await;
            self.engine.adopt(number, shard, &report);
            if let Some(load_ms) = self.engine.load_ms() {
                let all = self.engine.recovery();
                log::info!(
                    "core {}: {} shards loaded in {load_ms} ms: {} blocks from {} footers and {} scans",
                    self.core,
                    shards.len(),
                    all.blocks,
                    all.footers,
                    all.scans
                );
            }
        }
    }

    async fn load(&self, number: u32) -> (Shard<GlommioRuntime, RingDisk>, RecoveryReport) {
        let layout = ShardLayout {
            folder: self.superblock.folder,
            shard: number,
            segment_bytes: self.superblock.segment_bytes,
            segments_max: self.segments_max,
        };
        let files = self.segments.get(&number).map_or(&[][..], Vec::as_slice);
        let (found, report) = recover(&self.disk, &self.pool, &layout, files).await;
        let parts = ShardParts {
            runtime: self.runtime.clone(),
            disk: self.disk.clone(),
            blocks: self.pool.clone(),
            housekeeping: self.housekeeping.clone(),
            layout,
            write_budget_percent: WRITE_BUDGET_PERCENT,
            marks: Some(Marks::new(
                &self.runtime,
                self.ledger.clone(),
                self.superblock.folder,
                number,
            )),
            sync: self.sync,
        };
        let shard = Shard::new(parts, found);
        if let Err(error) = shard.shrink().await {
            log::error!("shard {number} stays larger than its quota for now: {error}");
        }
        (shard, report)
    }
}

async fn scrub(runtime: GlommioRuntime, engine: Rc<Engine>, cores: usize) {
    runtime.sleep(SCRUB_DELAY).await;
    engine.scrub(SCRUB_BYTES_PER_SECOND / cores as u64).await;
}

async fn tick(context: Rc<CoreContext>) {
    loop {
        context.stats().ticks.fetch_add(1, Ordering::Relaxed);
        context.runtime.sleep(watchdog::TICK).await;
    }
}

/// Accepts until the server stops. A permit comes first, so that no more connections are open
/// than may be; those beyond wait in the kernel's queue.
async fn accept(
    context: Rc<CoreContext>,
    listener: Listener,
    tls: Option<Arc<rustls::ServerConfig>>,
    connections: Permits,
) {
    let stopping = context.stopping.clone();
    let accepting = async {
        loop {
            let permit = connections.acquire().await;
            match listener.accept().await {
                Ok(socket) => {
                    context.stats().accepted.add(1);
                    let task = serve_socket(context.clone(), socket, tls.clone(), permit);
                    context.runtime.spawn(task);
                }
                Err(error) if is_descriptor_shortage(&error) => {
                    context.stats().accept_pauses.add(1);
                    log::warn!("accepting pauses: {error}");
                    context.runtime.sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => log::debug!("a connection was gone before it was accepted: {error}"),
            }
        }
    };
    futures::pin_mut!(accepting);
    let stop = stopping.wait();
    futures::pin_mut!(stop);
    futures::future::select(accepting, stop).await;
}

async fn serve_socket(
    context: Rc<CoreContext>,
    socket: Socket,
    tls: Option<Arc<rustls::ServerConfig>>,
    _permit: Permit,
) {
    context.stats().open.fetch_add(1, Ordering::Relaxed);
    let stream = match tls {
        None => Some(Stream::Plain(socket)),
        Some(config) => {
            let handshake = Stream::accept_tls(socket, config);
            match timeout(&context.runtime, HANDSHAKE_TIME_MAX, handshake).await {
                Some(Ok(stream)) => Some(stream),
                Some(Err(error)) => {
                    log::debug!("a handshake failed: {error}");
                    None
                }
                None => None,
            }
        }
    };
    match stream {
        Some(stream) => http::serve(Connection::new(stream, context.clone())).await,
        None => context.stats().handshake_failures.add(1),
    }
    context.stats().open.fetch_sub(1, Ordering::Relaxed);
}

/// Stops accepting, lets requests in flight end, then seals the segments.
async fn stop(
    context: &Rc<CoreContext>,
    connections: &Permits,
    connections_max: usize,
    engine: &Rc<Engine>,
) {
    context.stopping.set();
    let drained = async {
        // The accepting task has given its own permit back when all are free.
        while connections.free() < connections_max {
            context.runtime.sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(&context.runtime, STOP_WAIT, drained)
        .await
        .is_none()
    {
        log::warn!("core {}: requests in flight are cut off", context.index);
    }
    if timeout(&context.runtime, SEAL_WAIT, engine.seal())
        .await
        .is_none()
    {
        log::warn!(
            "core {}: the disk did not take all footers; the next start scans instead",
            context.index
        );
    }
}
