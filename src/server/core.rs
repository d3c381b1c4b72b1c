//! One core's life: recover its shards, join the mesh, accept, stop.

use super::ServerState;
use super::volumes::VolumeTable;
use super::watchdog;
use crate::http::connection::Connection;
use crate::http::limits::{ACCEPT_PAUSE, CONNECTIONS_MAX, HANDSHAKE_TIME_MAX};
use crate::http::{self, CoreContext};
use forebay_io::buffer::Pool;
use forebay_io::disk::ring::RingDisk;
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
use forebay_shards::messages::Message;
use forebay_shards::recover::{RecoveryReport, recover};
use forebay_shards::router;
use forebay_shards::shard::{Housekeeping, Shard, ShardParts};
use forebay_shards::superblock::Superblock;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a stopping core waits for requests in flight. With sealing it stays below the 20 s
/// that an orderly stop may take.
const STOP_WAIT: Duration = Duration::from_secs(12);

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
    mut controls: Receiver<Control>,
) {
    let index = plan.index;
    let runtime = GlommioRuntime::current(plan.started);
    let uplink = uplink.attach(runtime.clone());
    let engine = match recover_shards(&plan, &runtime, uplink.clone()).await {
        Ok(recovered) => recovered,
        Err(error) => return log::error!("core {index}: cannot open its shards: {error}"),
    };
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
    });
    let connections = Permits::new(CONNECTIONS_MAX);
    runtime.spawn(tick(context.clone()));
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
        *context.volume_table.borrow_mut() = table;
    }
    stop(&context, &connections, &engine).await;
}

async fn recover_shards(
    plan: &CorePlan,
    runtime: &GlommioRuntime,
    uplink: forebay_io::uplink::Uplink<GlommioRuntime>,
) -> io::Result<Rc<Engine>> {
    let disk = RingDisk::open_folder(&plan.folder)?;
    let pool = plan.pool.clone();
    let housekeeping = Housekeeping::new(plan.superblock.segment_bytes);
    let mut shards = HashMap::new();
    let mut recovery = RecoveryReport::default();
    for (number, files) in &plan.segments {
        let layout = ShardLayout {
            folder: plan.superblock.folder,
            shard: *number,
            segment_bytes: plan.superblock.segment_bytes,
            segments_max: plan.segments_max,
        };
        let (found, report) = recover(&disk, &pool, &layout, files).await;
        recovery.add(&report);
        let parts = ShardParts {
            runtime: runtime.clone(),
            disk: disk.clone(),
            blocks: pool.clone(),
            housekeeping: housekeeping.clone(),
            layout,
            write_budget_percent: WRITE_BUDGET_PERCENT,
        };
        let shard = Shard::new(parts, found);
        shard.shrink().await?;
        shards.insert(*number, Rc::new(shard));
    }
    log::info!(
        "core {}: {} shards, {} blocks from {} footers and {} scans",
        plan.index,
        shards.len(),
        recovery.blocks,
        recovery.footers,
        recovery.scans
    );
    Ok(Core::new(CoreParts {
        index: plan.index,
        topology: plan.topology,
        runtime: runtime.clone(),
        pool,
        uplink,
        shards,
        recovery,
        ram_bytes: plan.ram_bytes,
    }))
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
async fn stop(context: &Rc<CoreContext>, connections: &Permits, engine: &Rc<Engine>) {
    context.stopping.set();
    let drained = async {
        // The accepting task has given its own permit back when all are free.
        while connections.free() < CONNECTIONS_MAX {
            context.runtime.sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(&context.runtime, STOP_WAIT, drained)
        .await
        .is_none()
    {
        log::warn!("core {}: requests in flight are cut off", context.index);
    }
    engine.seal().await;
}
