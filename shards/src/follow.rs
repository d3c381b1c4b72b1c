//! Answers that begin before their record is read to its end.
//!
//! A large record is read once for all who want it meanwhile, and to its end whoever follows it; it
//! enters the RAM tier if it is hot, and is given up in time where the disk does not answer. This
//! file decides nothing of what readers do then: see [`crate::block_reader`].

use crate::core::Core;
use crate::format::RecordHeader;
use crate::index::Location;
use crate::key::{BlockHash, BlockId};
use crate::messages::ReadError;
use crate::read::is_version;
use crate::record::ReadFailure;
use crate::record_pieces::BegunRecord;
use crate::shard::Shard;
use forebay_io::buffer::Watch;
use forebay_io::disk::Disk;
use forebay_io::local::Event;
use forebay_io::runtime::Runtime;
use forebay_io::store::ObjectMeta;
use std::cell::RefCell;
use std::rc::Rc;

/// A record that is being read, for whoever wants it.
pub(crate) struct Reading {
    location: Location,
    begun: Event,
    beginning: RefCell<Option<Beginning>>,
}

/// What became of the first piece.
#[derive(Clone)]
enum Beginning {
    /// It is there, the others are coming.
    Begun(Rc<RecordHeader>, Watch),
    /// The record is elsewhere by now, or who read it has gone away: each looks for itself.
    Moved,
    /// It cannot be read, or the disk did not answer in time.
    Failed,
    /// There was no memory for it in time.
    NoRoom(ReadError),
}

/// What became of an attempt to follow a record.
pub(crate) enum Follow {
    /// Its first piece is there, the others are coming.
    Begun(Watch),
    /// It is elsewhere by now.
    Moved,
    /// The block is not here: its record is of another version, cannot be read, or not in time.
    Nothing,
}

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Follows a record of the version of `meta` as it is read, for this reader or for an earlier one.
    ///
    /// # Errors
    /// [`ReadError::Overloaded`] if there was no memory for it in time.
    pub(crate) async fn follow_record(
        self: &Rc<Self>,
        id: &BlockId,
        hash: BlockHash,
        meta: &ObjectMeta,
        shard: &Rc<Shard<R, D>>,
        location: Location,
    ) -> Result<Follow, ReadError> {
        let under_way = self.readings.borrow().get(&hash).cloned();
        let reading = match under_way.filter(|reading| reading.location == location) {
            Some(reading) => {
                self.stats.shared_reads.add(1);
                reading
            }
            None => self.start_reading(id, hash, shard, location).await,
        };
        reading.begun.wait().await;
        let beginning = reading.beginning.borrow().clone().expect("begun");
        Ok(match beginning {
            Beginning::Begun(header, watch) if is_version(&header, id, meta) => {
                Follow::Begun(watch)
            }
            Beginning::Begun(..) => {
                shard.forget_if_at(hash, location);
                Follow::Nothing
            }
            Beginning::Moved => Follow::Moved,
            Beginning::Failed => Follow::Nothing,
            Beginning::NoRoom(error) => return Err(error),
        })
    }

    /// Reads a record's first piece, here, so that the disk has it at once; and the rest in the background.
    async fn start_reading(
        self: &Rc<Self>,
        id: &BlockId,
        hash: BlockHash,
        shard: &Rc<Shard<R, D>>,
        location: Location,
    ) -> Rc<Reading> {
        let reading = Rc::new(Reading {
            location,
            begun: Event::default(),
            beginning: RefCell::default(),
        });
        // One of the same block that is there is of a place that it had before.
        self.readings.borrow_mut().insert(hash, reading.clone());
        let start = Start {
            core: self,
            hash,
            reading: &reading,
        };
        match self.begin_reading(id, hash, shard, location).await {
            Ok(mut record) => {
                let (header, watch) = (record.header().clone(), record.watch());
                reading.begin(Beginning::Begun(header, watch));
                let (core, id, task) = (self.clone(), id.clone(), reading.clone());
                let reading_on = async move { core.read_on(&id, hash, &task, record).await };
                self.parts.runtime.spawn(reading_on);
            }
            Err(beginning) => start.fail(beginning),
        }
        drop(start);
        reading
    }

    /// Reads a record's first piece; says so if it is not there in time.
    async fn begin_reading(
        &self,
        id: &BlockId,
        hash: BlockHash,
        shard: &Rc<Shard<R, D>>,
        location: Location,
    ) -> Result<BegunRecord<R, D>, Beginning> {
        let payload_length = location.payload_length as usize;
        self.make_room(payload_length, payload_length);
        let room = self.in_time(shard.read_room(location, 0..payload_length));
        let room = room.await.map_err(Beginning::NoRoom)?;
        let beginning = shard.clone().begin(hash, location, room);
        let number = self.shard_number(hash);
        match self.patience.read(number, beginning).await {
            Some(Ok(record)) => {
                self.note_record_read(payload_length);
                Ok(record)
            }
            Some(Err(ReadFailure::Gone)) => Err(Beginning::Moved),
            Some(Err(failure)) => {
                self.note_failure(id, &failure);
                Err(Beginning::Failed)
            }
            None => Err(Beginning::Failed),
        }
    }

    async fn read_on(
        &self,
        id: &BlockId,
        hash: BlockHash,
        reading: &Rc<Reading>,
        mut record: BegunRecord<R, D>,
    ) {
        let (watch, shard) = (record.watch(), record.shard().clone());
        let number = self.shard_number(hash);
        let rest = self.patience.read(number, record.rest()).await;
        // Nobody joins what has failed.
        self.end_reading(hash, reading);
        match rest {
            Some(Ok((header, payload))) => {
                self.keep_if_hot(hash, &shard, reading.location, header, payload);
            }
            Some(Err(failure)) => self.note_failure(id, &failure),
            // The read goes on by itself. Its followers need not wait for it.
            None => watch.give_up(),
        }
    }

    fn end_reading(&self, hash: BlockHash, reading: &Rc<Reading>) {
        let mut readings = self.readings.borrow_mut();
        if readings
            .get(&hash)
            .is_some_and(|current| Rc::ptr_eq(current, reading))
        {
            readings.remove(&hash);
        }
    }
}

/// A first piece on its way. Dropped before it is there, it tells those who wait for it to look for themselves.
struct Start<'a, R: Runtime, D: Disk> {
    core: &'a Core<R, D>,
    hash: BlockHash,
    reading: &'a Rc<Reading>,
}

impl<R: Runtime, D: Disk> Start<'_, R, D> {
    /// Nobody joins what has failed.
    fn fail(&self, beginning: Beginning) {
        self.core.end_reading(self.hash, self.reading);
        self.reading.begin(beginning);
    }
}

impl<R: Runtime, D: Disk> Drop for Start<'_, R, D> {
    fn drop(&mut self) {
        if !self.reading.begun.is_set() {
            self.fail(Beginning::Moved);
        }
    }
}

impl Reading {
    fn begin(&self, beginning: Beginning) {
        *self.beginning.borrow_mut() = Some(beginning);
        self.begun.set();
    }
}
