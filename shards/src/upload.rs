//! Uploads: from the dirty records of one core to the stores.

use crate::backlog::{AbandonError, Backlog, DirtyBlock, Exported, ObjectName};
use crate::core::Core;
use crate::messages::ReadError;
use forebay_io::disk::Disk;
use forebay_io::runtime::Runtime;

impl<R: Runtime, D: Disk> Core<R, D> {
    /// Sums over what is dirty.
    pub fn backlog(&self, _up_to_unix_ms: Option<u64>) -> Backlog {
        Backlog::default()
    }
    /// The oldest dirty blocks.
    pub async fn dirty_blocks(&self, _limit: usize) -> Vec<DirtyBlock> {
        Vec::new()
    }
    /// Tries held blocks again.
    pub async fn retry(&self, _name: Option<ObjectName>) -> u64 {
        0
    }
    /// Gives a held block up.
    pub async fn abandon(&self, _name: ObjectName) -> Result<(), AbandonError> {
        Err(AbandonError::NotFound)
    }
    /// A dirty block's object.
    pub async fn export(&self, _name: ObjectName) -> Result<Option<Exported>, ReadError> {
        Ok(None)
    }
    /// Takes no new dirty blocks, or takes them again.
    pub fn set_draining(&self, _draining: bool) {}
    /// Makes all durable and uploads at once.
    pub async fn hurry(&self) {}
}
