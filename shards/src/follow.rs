//! Answers that begin before their record is read to its end.
//!
//! A large record is read to its end whoever follows it, enters the RAM tier if it is hot, and is
//! given up in time where the disk does not answer. This file decides nothing of what readers do
//! then: see [`crate::block_reader`].

use crate::core::Core;
use crate::index::Location;
use crate::key::{BlockHash, BlockId};
use crate::read::is_version;
use crate::record::{ReadFailure, ReadRoom};
use crate::record_pieces::BegunRecord;
use crate::shard::Shard;
use forebay_io::buffer::Watch;
use forebay_io::disk::Disk;
use forebay_io::runtime::Runtime;
use forebay_io::store::ObjectMeta;
use std::rc::Rc;

/// What became of an attempt to follow a record.
pub(crate) enum Follow {
    /// Its first piece is there, the others are coming.
    Begun(Watch),
    /// It is elsewhere by now.
    Moved,
    /// It cannot be read; without a reason if the disk did not answer in time.
    Failed(Option<ReadFailure>),
    /// It was of another version, and is forgotten.
    OtherVersion,
}

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Begins to read a record of the version of `meta`, and reads it to its end in the background.
    pub(crate) async fn follow_record(
        self: &Rc<Self>,
        id: &BlockId,
        hash: BlockHash,
        meta: &ObjectMeta,
        shard: &Rc<Shard<R, D>>,
        location: Location,
        room: ReadRoom,
    ) -> Follow {
        let beginning = shard.clone().begin(hash, location, room);
        let number = self.shard_number(hash);
        match self.patience.read(number, beginning).await {
            Some(Ok(mut record)) if is_version(record.header(), id, meta) => {
                let watch = record.watch();
                let follower = self.clone().read_on(id.clone(), hash, location, record);
                self.parts.runtime.spawn(follower);
                Follow::Begun(watch)
            }
            Some(Ok(_)) => {
                shard.forget_if_at(hash, location);
                Follow::OtherVersion
            }
            Some(Err(ReadFailure::Gone)) => Follow::Moved,
            Some(Err(failure)) => Follow::Failed(Some(failure)),
            None => Follow::Failed(None),
        }
    }

    async fn read_on(
        self: Rc<Self>,
        id: BlockId,
        hash: BlockHash,
        location: Location,
        mut record: BegunRecord<R, D>,
    ) {
        let (watch, shard) = (record.watch(), record.shard().clone());
        match self
            .patience
            .read(self.shard_number(hash), record.rest())
            .await
        {
            Some(Ok((header, payload))) => {
                self.keep_if_hot(hash, &shard, location, header, payload);
            }
            Some(Err(failure)) => self.note_failure(&id, &failure),
            // The read goes on by itself. Its followers need not wait for it.
            None => watch.give_up(),
        }
    }
}
