//! A store behind a slow line: every request and every piece of a body takes virtual time.
//!
//! It wraps the store in memory and adds what a network adds: time before a request is carried
//! out, time before its answer arrives, pieces that trickle. It outlives runs of the program.

use bytes::Bytes;
use forebay_io::listing::{ListPage, ListRequest};
use forebay_io::multipart::{
    CompleteRequest, CopyPartRequest, CopyRequest, PartRequest, PartStore, PartsPage, PartsRequest,
    UploadName, UploadsPage, UploadsRequest,
};
use forebay_io::runtime::Runtime;
use forebay_io::sim::SimRuntime;
use forebay_io::sim::store::MemoryStore;
use forebay_io::store::{
    GetReply, GetRequest, ObjectHead, PutReply, PutRequest, Store, StoreResult,
};
use futures::future::LocalBoxFuture;
use futures::stream::StreamExt;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// The least size of a part but the last, bytes: parts of a simulation are small.
const PART_BYTES_MIN: u64 = 1;

/// Bytes of a body that arrive at once: smaller than a page, so that nothing is aligned by luck.
const PIECE_BYTES: usize = 3000;

type Clock = Rc<RefCell<Option<SimRuntime>>>;

/// The store and the line to it. Clones share both.
#[derive(Clone)]
pub struct Wan {
    memory: MemoryStore,
    clock: Clock,
    /// Longest pause before and after each step.
    pause_us_max: Rc<Cell<u64>>,
    /// GETs by key and first byte.
    gets: Rc<RefCell<BTreeMap<(String, u64), u64>>>,
    trace: Rc<Cell<u64>>,
}

impl Wan {
    pub fn new() -> Wan {
        let clock = Clock::default();
        let sleeper = clock.clone();
        let memory = MemoryStore::new(Rc::new(move |pause| {
            let runtime = sleeper.borrow().clone().expect("attached to a run");
            Box::pin(async move { runtime.sleep(pause).await })
        }));
        memory.set_part_bytes_min(PART_BYTES_MIN);
        let pause_us_max = Rc::new(Cell::new(300));
        Wan {
            memory,
            clock,
            pause_us_max,
            gets: Rc::default(),
            trace: Rc::default(),
        }
    }

    /// Another store with the same objects and no faults, on a line of its own.
    pub fn fork(&self) -> Wan {
        let fork = Wan::new();
        for key in self.memory.keys() {
            let bytes = self.memory.object(&key).expect("listed just now");
            fork.memory.insert(&key, bytes);
        }
        fork.pause_us_max.set(self.pause_us_max.get());
        fork
    }

    /// A digest of every request and answer so far with its virtual time.
    pub fn trace(&self) -> u64 {
        self.trace.get()
    }

    fn note(&self, what: &str, key: &str, ok: bool) {
        let now = self
            .clock
            .borrow()
            .as_ref()
            .map_or(0, |clock| clock.now().0);
        let mut trace = self.trace.get();
        for byte in what.bytes().chain(key.bytes()).chain(now.to_le_bytes()) {
            trace = (trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.trace.set(trace.rotate_left(u32::from(ok)));
    }

    pub fn memory(&self) -> &MemoryStore {
        &self.memory
    }

    /// Lives by this run's clock from now on.
    pub fn attach(&self, runtime: SimRuntime) {
        let clock = runtime.clone();
        self.memory.set_clock(Rc::new(move || clock.unix_seconds()));
        *self.clock.borrow_mut() = Some(runtime);
    }

    pub fn set_pause_us_max(&self, pause_us_max: u64) {
        self.pause_us_max.set(pause_us_max);
    }

    /// GETs of `key` by the first byte that they asked for.
    pub fn gets_of_key(&self, key: &str) -> BTreeMap<u64, u64> {
        let gets = self.gets.borrow();
        let of_key = gets.iter().filter(|((name, _), _)| name == key);
        of_key.map(|((_, start), count)| (*start, *count)).collect()
    }

    async fn pause(&self) {
        let runtime = self.clock.borrow().clone().expect("attached to a run");
        let pause_us = runtime.random() % (self.pause_us_max.get() + 1);
        runtime.sleep(Duration::from_micros(pause_us)).await;
    }
}

impl Wan {
    /// Carries a request out behind the line, and notes it.
    async fn over<T>(
        &self,
        what: &str,
        key: &str,
        request: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        self.pause().await;
        let reply = request.await;
        self.note(what, key, reply.is_ok());
        self.pause().await;
        reply
    }
}

impl PartStore for Wan {
    fn copy(&self, request: CopyRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        let key = request.key.clone();
        Box::pin(async move { self.over("copy", &key, self.memory.copy(request)).await })
    }

    fn create_upload(
        &self,
        key: String,
        headers: Vec<(String, String)>,
    ) -> LocalBoxFuture<'_, StoreResult<UploadName>> {
        Box::pin(async move {
            let name = key.clone();
            let request = self.memory.create_upload(key, headers);
            self.over("create", &name, request).await
        })
    }

    fn put_part(&self, request: PartRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        let key = request.upload.key.clone();
        Box::pin(async move { self.over("part", &key, self.memory.put_part(request)).await })
    }

    fn copy_part(&self, request: CopyPartRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        let key = request.upload.key.clone();
        Box::pin(async move {
            let request = self.memory.copy_part(request);
            self.over("copy part", &key, request).await
        })
    }

    fn complete_upload(
        &self,
        request: CompleteRequest,
    ) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        let key = request.upload.key.clone();
        Box::pin(async move {
            let request = self.memory.complete_upload(request);
            self.over("complete", &key, request).await
        })
    }

    fn abort_upload(&self, upload: UploadName) -> LocalBoxFuture<'_, StoreResult<()>> {
        let key = upload.key.clone();
        Box::pin(async move {
            let request = self.memory.abort_upload(upload);
            self.over("abort", &key, request).await
        })
    }

    fn list_parts(&self, request: PartsRequest) -> LocalBoxFuture<'_, StoreResult<PartsPage>> {
        let key = request.upload.key.clone();
        Box::pin(async move {
            let request = self.memory.list_parts(request);
            self.over("list parts", &key, request).await
        })
    }

    fn list_uploads(
        &self,
        request: UploadsRequest,
    ) -> LocalBoxFuture<'_, StoreResult<UploadsPage>> {
        let prefix = request.prefix.clone();
        Box::pin(async move {
            let request = self.memory.list_uploads(request);
            self.over("list uploads", &prefix, request).await
        })
    }
}

impl forebay_io::tags::TagStore for Wan {}

impl forebay_io::versions::VersionStore for Wan {}

impl Store for Wan {
    fn get(&self, request: GetRequest) -> LocalBoxFuture<'_, StoreResult<GetReply>> {
        Box::pin(async move {
            let start = request.span.map_or(0, |span| span.start);
            *self
                .gets
                .borrow_mut()
                .entry((request.key.clone(), start))
                .or_default() += 1;
            self.pause().await;
            let key = request.key.clone();
            let reply = self.memory.get(request).await;
            self.note("get", &key, reply.is_ok());
            self.pause().await;
            let GetReply { meta, span, body } = reply?;
            let line = self.clone();
            let body = body
                .flat_map(|piece| futures::stream::iter(split(piece)))
                .then(move |piece| {
                    let line = line.clone();
                    async move {
                        line.pause().await;
                        piece
                    }
                });
            Ok(GetReply {
                meta,
                span,
                body: body.boxed_local(),
            })
        })
    }

    fn head(&self, key: String) -> LocalBoxFuture<'_, StoreResult<ObjectHead>> {
        Box::pin(async move {
            self.pause().await;
            let name = key.clone();
            let reply = self.memory.head(key).await;
            self.note("head", &name, reply.is_ok());
            self.pause().await;
            reply
        })
    }

    fn put(&self, request: PutRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(async move {
            self.pause().await;
            let name = request.key.clone();
            let reply = self.memory.put(request).await;
            self.note("put", &name, reply.is_ok());
            self.pause().await;
            reply
        })
    }

    fn delete(
        &self,
        key: String,
    ) -> LocalBoxFuture<'_, StoreResult<forebay_io::versions::Deleted>> {
        Box::pin(async move {
            self.pause().await;
            let name = key.clone();
            let reply = self.memory.delete(key).await;
            self.note("delete", &name, reply.is_ok());
            self.pause().await;
            reply
        })
    }

    fn list(&self, request: ListRequest) -> LocalBoxFuture<'_, StoreResult<ListPage>> {
        Box::pin(async move {
            self.pause().await;
            let prefix = request.prefix.clone();
            let reply = self.memory.list(request).await;
            self.note("list", &prefix, reply.is_ok());
            self.pause().await;
            reply
        })
    }
}

fn split(piece: StoreResult<Bytes>) -> Vec<StoreResult<Bytes>> {
    match piece {
        Err(error) => vec![Err(error)],
        Ok(mut bytes) => {
            let mut pieces = Vec::new();
            while !bytes.is_empty() {
                pieces.push(Ok(bytes.split_to(PIECE_BYTES.min(bytes.len()))));
            }
            pieces
        }
    }
}
