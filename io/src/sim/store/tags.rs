//! Tags of the store in memory, which meet the faults of descriptions.

use super::{MemoryStore, Verb, lose_reply};
use crate::store::StoreResult;
use crate::tags::{TagStore, Tags};
use crate::versions::VersionStore;
use futures::future::LocalBoxFuture;

/// It keeps no versions.
impl VersionStore for MemoryStore {}

impl TagStore for MemoryStore {
    fn tags(&self, key: String) -> LocalBoxFuture<'_, StoreResult<Tags>> {
        Box::pin(async move {
            self.begin(Verb::Head, &key).await?;
            self.find(&key)?;
            let inside = self.inside.borrow();
            Ok(inside.tags.get(&key).cloned().unwrap_or_default())
        })
    }

    fn set_tags(&self, key: String, tags: Tags) -> LocalBoxFuture<'_, StoreResult<()>> {
        Box::pin(async move {
            let fault = self.begin(Verb::Head, &key).await?;
            self.find(&key)?;
            self.inside.borrow_mut().tags.insert(key, tags);
            lose_reply(fault.as_ref())
        })
    }
}
