//! What clients ask for, and how each answer is held against the [`Model`].
//!
//! This file asks and checks; what is asked when is chosen in [`super::workload`].

use super::client::{self, Answer, Arrival, Refusal};
use super::journal::Journal;
use super::model::{Ending, Model, WriteTicket};
use super::parts::{self, Begun, NotCopied};
use super::world::{Machine, Node, home};
use bytes::Bytes;
use forebay_io::runtime::{CLOCK_START_NS, Runtime};
use forebay_io::sim::SimRuntime;
use forebay_io::sim::random::Dice;
use forebay_io::sim::store::parts_tag;
use forebay_io::store::StoreErrorKind;
use forebay_shards::key::Volume;
use forebay_shards::messages::{Outcome, ReadError, WriteCondition, WriteError};
use forebay_shards::parts::BodyName;
use forebay_shards::range::RangeSpec;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// `length` bytes that no other `version` shares.
pub fn content(version: u64, length: u64) -> Bytes {
    let mut dice = Dice::new(version.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut bytes = Vec::with_capacity(length as usize + 8);
    while (bytes.len() as u64) < length {
        bytes.extend_from_slice(&dice.draw().to_le_bytes());
    }
    bytes.truncate(length as usize);
    bytes.into()
}

/// One request of a client, or a change behind the cache's back. The volumes share one store, so
/// a key says by its name which volume it is of.
#[derive(Clone, Debug)]
pub enum Op {
    Put {
        key: String,
        version: u64,
        length: u64,
    },
    /// A write that breaks off after `end` bytes.
    BrokenPut {
        key: String,
        version: u64,
        length: u64,
        end: u64,
    },
    Delete {
        key: String,
    },
    Get {
        key: String,
        spec: RangeSpec,
    },
    Head {
        key: String,
    },
    Invalidate {
        key: String,
    },
    ExternalPut {
        key: String,
        version: u64,
        length: u64,
    },
    ExternalDelete {
        key: String,
    },
    /// A write in parts, which are completed at once or by a later request.
    PutParts {
        key: String,
        version: u64,
        length: u64,
        later: bool,
    },
    /// Completes an upload that is left, or gives it up.
    EndParts {
        key: String,
        abort: bool,
    },
    Copy {
        source: String,
        key: String,
    },
    /// A write of what replaces the version that a reader was told of.
    PutIf {
        key: String,
        version: u64,
        length: u64,
    },
}

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. }
            | Op::BrokenPut { key, .. }
            | Op::Delete { key }
            | Op::Get { key, .. }
            | Op::Head { key }
            | Op::Invalidate { key }
            | Op::ExternalPut { key, .. }
            | Op::ExternalDelete { key }
            | Op::PutParts { key, .. }
            | Op::EndParts { key, .. }
            | Op::Copy { key, .. }
            | Op::PutIf { key, .. } => key,
        }
    }
}

/// Whether a key is of the volume whose keys are written once (though these clients do not care).
pub fn is_immutable(key: &str) -> bool {
    key.starts_with('i')
}

/// What all clients of one seed share.
pub struct Clients {
    pub model: RefCell<Model>,
    pub journal: Rc<Journal>,
    /// Whether a read may fail although nothing is wrong with the request.
    pub errors_allowed: Cell<bool>,
    pub checked: Arc<Volume>,
    pub immutable: Arc<Volume>,
    pub machine: Machine,
    /// Uploads whose parts are at the store, and that nobody has completed yet.
    pub begun: RefCell<Vec<Begun>>,
    /// All bodies of parts that were ever sent.
    pub bodies: RefCell<Vec<BodyName>>,
}

impl Clients {
    pub fn new(machine: Machine, journal: Rc<Journal>) -> Clients {
        Clients {
            model: RefCell::new(Model::new(journal.clone())),
            journal,
            errors_allowed: Cell::new(false),
            checked: machine.checked(),
            immutable: machine.immutable(),
            machine,
            begun: RefCell::default(),
            bodies: RefCell::default(),
        }
    }

    pub fn volume(&self, key: &str) -> &Arc<Volume> {
        match is_immutable(key) {
            true => &self.immutable,
            false => &self.checked,
        }
    }

    /// Carries one request out and checks its answer; how it went is in the journal.
    pub async fn carry_out(&self, node: &Node, op: Op, runtime: &SimRuntime) {
        let key = op.key().to_owned();
        let request = Request {
            journal: self.journal.clone(),
            key: key.clone(),
            began_us: microseconds(runtime),
            name: format!("{op:?}"),
            ended: None,
        };
        let volume = self.volume(&key);
        let result = match op {
            Op::Put {
                version, length, ..
            } => {
                let bytes = content(version, length);
                let write = self.model.borrow_mut().begin_write(&key, Some(&bytes));
                let result = client::put(node, volume, &key, &bytes, false).await;
                let result = result.map(|written| written.is_dirty);
                self.end_write(&write, &result)
            }
            // The model is not told: nobody may ever see a byte of it.
            Op::BrokenPut {
                version,
                length,
                end,
                ..
            } => {
                let bytes = content(version, length);
                let arrival = Arrival {
                    end: end as usize,
                    pause: Duration::from_millis(end % 8),
                };
                let broken = client::put_block(node, volume, &key, &bytes, false, arrival).await;
                if broken.is_ok() {
                    self.journal.accuse(&key, "half a body was acknowledged");
                }
                format!("{:?}", broken.map(drop))
            }
            Op::Delete { .. } => {
                let write = self.model.borrow_mut().begin_write(&key, None);
                let result = client::delete(node, volume, &key).await;
                self.end_write(&write, &result.map(|()| false))
            }
            Op::Get { spec, .. } => self.get(node, &key, Some(spec)).await.0,
            Op::Head { .. } => self.get(node, &key, None).await.0,
            Op::Invalidate { .. } => {
                node.router.invalidate(home(volume, &key)).await;
                "forgotten".into()
            }
            Op::ExternalPut {
                version, length, ..
            } => {
                let bytes = content(version, length);
                self.model.borrow_mut().external_write(&key, Some(&bytes));
                self.machine.store.insert(&key, bytes).etag
            }
            Op::ExternalDelete { .. } => {
                self.model.borrow_mut().external_write(&key, None);
                self.machine.store.remove(&key);
                "gone".into()
            }
            Op::PutParts {
                version,
                length,
                later,
                ..
            } => {
                let bytes = content(version, length);
                self.put_parts(node, &key, &bytes, version, later).await
            }
            Op::EndParts { abort, .. } => self.end_parts(node, &key, abort).await,
            Op::Copy { source, .. } => self.copy(node, &source, &key).await,
            Op::PutIf {
                version, length, ..
            } => self.put_if(node, &key, &content(version, length)).await,
        };
        request.end(microseconds(runtime), result);
    }

    async fn put_parts(
        &self,
        node: &Node,
        key: &str,
        bytes: &Bytes,
        seed: u64,
        later: bool,
    ) -> String {
        let begun = parts::begin(node, self.volume(key), key, bytes, seed, &self.bodies);
        match begun.await {
            Ok(begun) if later => {
                self.begun.borrow_mut().push(begun);
                "begun".into()
            }
            Ok(begun) => self.complete(node, &begun).await,
            // No object is there before all parts are.
            Err(error) => format!("no part: {error}"),
        }
    }

    async fn complete(&self, node: &Node, begun: &Begun) -> String {
        let etag = parts_tag(&begun.bytes, begun.parts.len());
        let (key, bytes) = (&begun.key, Some(&begun.bytes));
        let write = self
            .model
            .borrow_mut()
            .begin_write_as(key, bytes, Some(etag));
        let result = parts::complete(node, self.volume(key), begun).await;
        self.end_write(&write, &result.map(|written| written.is_dirty))
    }

    async fn end_parts(&self, node: &Node, key: &str, abort: bool) -> String {
        let begun = {
            let mut begun = self.begun.borrow_mut();
            let place = begun.iter().position(|begun| begun.key == key);
            place.map(|place| begun.remove(place))
        };
        match begun {
            None => "nothing is left".into(),
            Some(begun) if abort => {
                let aborted = parts::abort(node, self.volume(key), &begun).await;
                format!("given up: {aborted:?}")
            }
            Some(begun) => self.complete(node, &begun).await,
        }
    }

    /// Copies as S3 does: a read of the source, then a write of just that.
    async fn copy(&self, node: &Node, source: &str, key: &str) -> String {
        let volume = self.volume(key);
        let began = self.model.borrow_mut().begin_read();
        let from = match parts::describe(node, volume, source).await {
            Ok(from) => from,
            Err(error) => return format!("no source: {error}"),
        };
        let etag = &from.meta.etag;
        let content = {
            let mut model = self.model.borrow_mut();
            model.check_version(source, began, Some(etag));
            model.content(source, etag)
        };
        let Some(bytes) = content else {
            self.journal
                .accuse(source, &format!("unknown version {etag}"))
        };
        let write = self.model.borrow_mut().begin_write(key, Some(&bytes));
        match parts::copy(node, volume, source, &from, key).await {
            Ok(written) => self.end_write(&write, &Ok(written.is_dirty)),
            Err(NotCopied::Write(error)) => self.end_write(&write, &Err(error)),
            Err(NotCopied::Changed | NotCopied::Unread) => {
                self.end_write(&write, &Err(WriteError::OtherVersion))
            }
        }
    }

    async fn put_if(&self, node: &Node, key: &str, bytes: &Bytes) -> String {
        let volume = self.volume(key);
        let etag = match client::read(node, volume, key, None).await {
            Ok(answer) => answer.meta.etag.clone(),
            Err(_) => return "no version to replace".into(),
        };
        let write = self.model.borrow_mut().begin_write(key, Some(bytes));
        let condition = WriteCondition::Version(etag);
        let result = client::put_when(node, volume, key, bytes, condition).await;
        let result = match result {
            Err(WriteError::Store(error))
                if matches!(
                    error.kind,
                    StoreErrorKind::NotFound | StoreErrorKind::PreconditionFailed
                ) =>
            {
                Err(WriteError::OtherVersion)
            }
            result => result.map(|written| written.is_dirty),
        };
        self.end_write(&write, &result)
    }

    fn end_write(&self, write: &WriteTicket, result: &Result<bool, WriteError>) -> String {
        let ending = match result {
            Ok(false) => Ending::Done,
            Ok(true) => Ending::Dirty,
            Err(
                WriteError::Exists
                | WriteError::Loading
                | WriteError::Immutable
                | WriteError::OtherVersion
                | WriteError::Incomplete,
            ) => Ending::NotDone,
            Err(WriteError::Store(_) | WriteError::Stalled) => Ending::Unknown,
        };
        let completions = self.machine.disk.completions();
        let mut model = self.model.borrow_mut();
        model.end_write(write, ending, completions);
        format!("{ending:?}")
    }

    /// Reads and checks; gives what to say of it, and how it came about if it came.
    pub async fn get(
        &self,
        node: &Node,
        key: &str,
        spec: Option<RangeSpec>,
    ) -> (String, Option<Outcome>) {
        let began = self.model.borrow_mut().begin_read();
        match client::read(node, self.volume(key), key, spec).await {
            Ok(answer) => {
                let expected = spec.map_or(0, |_| answer.span.len());
                if answer.bytes.len() as u64 != expected {
                    self.journal.accuse(key, "a short answer");
                }
                (self.check(key, began, &answer), Some(answer.outcome))
            }
            Err(Refusal::CutShort(answer)) => {
                let what = self.check(key, began, &answer);
                (format!("cut short: {what}"), None)
            }
            Err(Refusal::Error(ReadError::NotFound)) => {
                let mut model = self.model.borrow_mut();
                model.check_version(key, began, None);
                ("nothing".into(), None)
            }
            Err(Refusal::Error(error)) => {
                let expected =
                    matches!(error, ReadError::Changed | ReadError::NotSatisfiable { .. });
                if !expected && !self.errors_allowed.get() {
                    self.journal
                        .accuse(key, &format!("{error} without a fault"));
                }
                (error.to_string(), None)
            }
        }
    }

    fn check(&self, key: &str, began: u64, answer: &Answer) -> String {
        let etag = &answer.meta.etag;
        let mut model = self.model.borrow_mut();
        model.check_version(key, began, Some(etag));
        let (start, size) = (answer.span.start, answer.meta.size);
        model.check_bytes(key, etag, start, size, &answer.bytes);
        let count = answer.bytes.len();
        format!("{:?} {count} bytes of {etag}", answer.outcome)
    }
}

/// A request that was begun: it is in the journal when it has ended, also when the program ended
/// under it.
struct Request {
    journal: Rc<Journal>,
    key: String,
    name: String,
    began_us: u64,
    /// When, and how.
    ended: Option<(u64, String)>,
}

impl Request {
    fn end(mut self, now_us: u64, result: String) {
        self.ended = Some((now_us, result));
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let Request { name, began_us, .. } = self;
        let text = match &self.ended {
            Some((ended_us, result)) => format!("{began_us}..{ended_us} us: {name} -> {result}"),
            None => format!("{began_us}.. us: {name} -> cut off"),
        };
        self.journal.note_of(&self.key, text);
    }
}

/// Since the start of this run.
fn microseconds(runtime: &SimRuntime) -> u64 {
    (runtime.now().0 - CLOCK_START_NS) / 1000
}
