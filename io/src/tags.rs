//! Tags of objects: what can be asked of a store that keeps them.
//!
//! This file owns that vocabulary, beside [`crate::store`]. Tags belong to a key's present version at
//! the store, and nowhere else: they are never cached, and a new version begins without them.

use crate::store::{StoreError, StoreErrorKind, StoreResult};
use futures::future::LocalBoxFuture;

/// Most tags of an object (S3's limit).
pub const TAGS_MAX: usize = 10;

/// Longest name of a tag, UTF-16 units (S3's limit).
pub const TAG_NAME_MAX: usize = 128;

/// Longest value of a tag, UTF-16 units (S3's limit).
pub const TAG_VALUE_MAX: usize = 256;

/// Tags as pairs of name and value, each name once.
pub type Tags = Vec<(String, String)>;

/// What a [`crate::store::Store`] does with tags. The same rules hold for its calls; a store that
/// keeps none answers `Unsupported`.
pub trait TagStore {
    /// The tags of an object; `NotFound` if there is none.
    fn tags(&self, _key: String) -> LocalBoxFuture<'_, StoreResult<Tags>> {
        unsupported()
    }

    /// Replaces the tags of an object; none takes all away.
    fn set_tags(&self, _key: String, _tags: Tags) -> LocalBoxFuture<'_, StoreResult<()>> {
        unsupported()
    }
}

fn unsupported<T: 'static>() -> LocalBoxFuture<'static, StoreResult<T>> {
    let message = "the store behind this volume keeps no tags";
    let error = StoreError::new(StoreErrorKind::Unsupported, message);
    Box::pin(async move { Err(error) })
}
