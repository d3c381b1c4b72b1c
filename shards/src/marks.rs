//! What may change about an immutable record and may be late or lost: rows of the ledger.
//!
//! This file owns the rows' bytes and their keys. A row is about one dirty record in one life of
//! its segment; it says that the store has the record, or why it is held. It is never the only
//! witness of anything: without it the record is uploaded once more. Rows that do not carry their
//! own checksum are not there.

use crate::format::{FolderId, crc32c};
use crate::index::Location;
use forebay_io::ledger::Ledger;
use forebay_io::runtime::Runtime;
use futures::future::{Either, LocalBoxFuture, select};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// How long anybody waits for the ledger. It answers in microseconds, or its disk hangs; then a row
/// that cannot be had is a row that is lost.
const LEDGER_WAIT: Duration = Duration::from_secs(2);

/// Version of the rows.
const MARK_VERSION: u8 = 1;
/// Longest text in a row, bytes: an ETag is shorter, an error is cut.
const TEXT_BYTES_MAX: usize = 1024;
/// Bytes of a row around its text.
const ENVELOPE_BYTES: usize = 1 + 1 + 4 + 2 + 4;
/// Bytes of a key.
const KEY_BYTES: usize = 16 + 4 + 4 + 8 + 4;

/// What a row says of its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The store has it, under this ETag.
    Uploaded {
        /// The store's ETag.
        store_etag: String,
    },
    /// The store refused it for good, or it is damaged.
    Quarantined {
        /// Uploads tried.
        attempts: u32,
        /// Why.
        message: String,
    },
    /// The store has something newer.
    Conflict {
        /// Uploads tried.
        attempts: u32,
        /// Why.
        message: String,
    },
}

impl Mark {
    /// The row.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, attempts, text) = match self {
            Mark::Uploaded { store_etag } => (1, 0, store_etag),
            Mark::Quarantined { attempts, message } => (2, *attempts, message),
            Mark::Conflict { attempts, message } => (3, *attempts, message),
        };
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut row = vec![MARK_VERSION, kind];
        row.extend_from_slice(&u32::to_le_bytes(attempts));
        row.extend_from_slice(&(end as u16).to_le_bytes());
        row.extend_from_slice(&text.as_bytes()[..end]);
        let crc = crc32c(&row);
        row.extend_from_slice(&crc.to_le_bytes());
        row
    }

    /// What a row says; `None` if it is not one of ours, or damaged.
    pub fn decode(row: &[u8]) -> Option<Mark> {
        let text_bytes = row.len().checked_sub(ENVELOPE_BYTES)?;
        let (body, crc) = row.split_at(row.len() - 4);
        let announced = usize::from(u16::from_le_bytes(body[6..8].try_into().ok()?));
        if crc != crc32c(body).to_le_bytes() || body[0] != MARK_VERSION || announced != text_bytes {
            return None;
        }
        let attempts = u32::from_le_bytes(body[2..6].try_into().ok()?);
        let message = String::from_utf8(body[8..].to_vec()).ok()?;
        match body[1] {
            1 => Some(Mark::Uploaded {
                store_etag: message,
            }),
            2 => Some(Mark::Quarantined { attempts, message }),
            3 => Some(Mark::Conflict { attempts, message }),
            _ => None,
        }
    }
}

/// A record's place in one life of its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MarkPlace {
    /// The segment.
    pub segment: u32,
    /// Its life.
    pub incarnation: u64,
    /// The record's first page.
    pub page: u32,
}

impl MarkPlace {
    /// The place of the record at `at` in a segment's life.
    pub fn new(at: Location, incarnation: u64) -> MarkPlace {
        MarkPlace {
            segment: at.segment,
            incarnation,
            page: at.page,
        }
    }
}

type Sleep = Rc<dyn Fn(Duration) -> LocalBoxFuture<'static, ()>>;

/// One shard's rows.
#[derive(Clone)]
pub struct Marks {
    ledger: Ledger,
    sleep: Sleep,
    folder: FolderId,
    shard: u32,
}

impl Marks {
    /// The rows of a shard.
    pub fn new<R: Runtime>(runtime: &R, ledger: Ledger, folder: FolderId, shard: u32) -> Marks {
        let runtime = runtime.clone();
        Marks {
            ledger,
            sleep: Rc::new(move |wait| Box::pin(runtime.sleep(wait))),
            folder,
            shard,
        }
    }

    async fn within<T>(&self, order: impl Future<Output = T>) -> Option<T> {
        let order = std::pin::pin!(order);
        match select(order, (self.sleep)(LEDGER_WAIT)).await {
            Either::Left((answer, _)) => Some(answer),
            Either::Right(_) => {
                log::error!("shard {}: the ledger does not answer", self.shard);
                None
            }
        }
    }

    fn shard_prefix(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(KEY_BYTES);
        key.extend_from_slice(&self.folder);
        key.extend_from_slice(&self.shard.to_be_bytes());
        key
    }

    fn life_prefix(&self, segment: u32, incarnation: u64) -> Vec<u8> {
        let mut key = self.shard_prefix();
        key.extend_from_slice(&segment.to_be_bytes());
        key.extend_from_slice(&incarnation.to_be_bytes());
        key
    }

    fn key(&self, place: MarkPlace) -> Vec<u8> {
        let mut key = self.life_prefix(place.segment, place.incarnation);
        key.extend_from_slice(&place.page.to_be_bytes());
        key
    }

    /// Writes the row of a record.
    pub async fn put(&self, place: MarkPlace, mark: &Mark) {
        self.within(self.ledger.put(self.key(place), mark.encode()))
            .await;
    }

    /// Removes the rows of a life that is over.
    pub async fn end_life(&self, segment: u32, incarnation: u64) {
        let prefix = self.life_prefix(segment, incarnation);
        self.within(self.ledger.remove_prefix(prefix)).await;
    }

    /// The row of a record.
    pub async fn get(&self, place: MarkPlace) -> Option<Mark> {
        let row = self.within(self.ledger.get(self.key(place))).await??;
        Mark::decode(&row)
    }

    /// All rows of the shard. Those of lives that `is_present` does not know are removed.
    pub async fn load(&self, is_present: impl Fn(u32, u64) -> bool) -> HashMap<MarkPlace, Mark> {
        let mut marks = HashMap::new();
        let rows = self.within(self.ledger.scan_prefix(self.shard_prefix()));
        for (key, row) in rows.await.unwrap_or_default() {
            let Some(place) = place_of(&key) else {
                continue;
            };
            if !is_present(place.segment, place.incarnation) {
                self.within(self.ledger.remove_prefix(key)).await;
            } else if let Some(mark) = Mark::decode(&row) {
                marks.insert(place, mark);
            }
        }
        marks
    }
}

fn place_of(key: &[u8]) -> Option<MarkPlace> {
    if key.len() != KEY_BYTES {
        return None;
    }
    Some(MarkPlace {
        segment: u32::from_be_bytes(key[20..24].try_into().ok()?),
        incarnation: u64::from_be_bytes(key[24..32].try_into().ok()?),
        page: u32::from_be_bytes(key[32..36].try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn marks() -> impl Strategy<Value = Mark> {
        (0..3, any::<u32>(), ".{0,200}").prop_map(|(kind, attempts, text)| match kind {
            0 => Mark::Uploaded { store_etag: text },
            1 => Mark::Quarantined {
                attempts,
                message: text,
            },
            _ => Mark::Conflict {
                attempts,
                message: text,
            },
        })
    }

    proptest! {
        #[test]
        fn rows_come_back(mark in marks()) {
            prop_assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        }

        #[test]
        fn a_damaged_row_is_no_row(mark in marks(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut row = mark.encode();
            let at = at.index(row.len());
            row[at] ^= flip;
            prop_assert_eq!(Mark::decode(&row), None);
        }

        #[test]
        fn bytes_are_no_row_or_one_that_comes_back(row in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(mark) = Mark::decode(&row) {
                prop_assert_eq!(mark.encode(), row);
            }
        }
    }

    #[test]
    fn long_errors_are_cut_between_characters() {
        let mark = Mark::Quarantined {
            attempts: 3,
            message: "ü".repeat(TEXT_BYTES_MAX),
        };
        let Some(Mark::Quarantined { message, .. }) = Mark::decode(&mark.encode()) else {
            panic!("it comes back");
        };
        assert_eq!(message, "ü".repeat(TEXT_BYTES_MAX / 2));
    }
}
