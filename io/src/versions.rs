//! Versions of objects: what can be asked of a store whose bucket keeps them.
//!
//! This file owns that vocabulary, beside [`crate::store`]. A version is named by its key and an id
//! that only the store gives out; `null` names what was written while the bucket kept no versions.
//! Versions other than the present one are at the store, and nowhere else.

use crate::store::{ObjectHead, StoreError, StoreErrorKind, StoreResult};
use crate::tags::Tags;
use futures::future::LocalBoxFuture;

/// The id of what was written while a bucket kept no versions.
pub const NULL_VERSION: &str = "null";

/// What a bucket does with the version that a write replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versioning {
    /// It is gone: the bucket never kept versions.
    Never,
    /// It stays, under its id.
    Enabled,
    /// Those that have an id stay; what is written from now on is the version `null`.
    Suspended,
}

/// Which version of which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionName {
    /// Key inside the volume, as raw characters.
    pub key: String,
    /// The store's id of the version.
    pub version_id: String,
}

/// What a store says of a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// The id of the marker that was put in the object's place, or of the version that is gone; none
    /// from a bucket that keeps no versions.
    pub version_id: Option<String>,
    /// Whether that is a marker.
    pub is_marker: bool,
}

/// Asks for versions, in the order of the keys' UTF-8 bytes and of one key the latest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionsRequest {
    /// Only of keys that start so.
    pub prefix: String,
    /// Keys that go on behind the prefix with this in them are told as one common prefix.
    pub delimiter: Option<String>,
    /// Only of keys behind this one, or of this one behind the version `version_id_marker`.
    pub key_marker: String,
    /// See `key_marker`; means nothing without it.
    pub version_id_marker: String,
    /// At most so many, 1 … 1,000.
    pub limit: usize,
}

/// A version, or a marker of a deletion, as the store lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedVersion {
    /// Key inside the volume.
    pub key: String,
    /// Its id.
    pub version_id: String,
    /// Whether it is what the key holds now.
    pub is_latest: bool,
    /// Milliseconds since the Unix epoch.
    pub last_modified_ms: u64,
    /// Entity tag without its quotes, and size in bytes; none of a marker.
    pub content: Option<(String, u64)>,
}

/// A page of versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionsPage {
    /// Versions and markers in the store's order.
    pub versions: Vec<ListedVersion>,
    /// Common prefixes in order.
    pub prefixes: Vec<String>,
    /// The markers of the next page (of the key, and of the version if that is not empty), if more
    /// follow.
    pub next: Option<(String, String)>,
}

/// What a [`crate::store::Store`] does with versions. The same rules hold for its calls; a store that
/// keeps none answers `Unsupported`. One version is read with [`crate::store::Store::get`].
pub trait VersionStore {
    /// What the bucket does with versions.
    fn versioning(&self) -> LocalBoxFuture<'_, StoreResult<Versioning>> {
        unsupported()
    }

    /// Lets the bucket keep versions from now on, or no more new ones.
    fn set_versioning(&self, _is_enabled: bool) -> LocalBoxFuture<'_, StoreResult<()>> {
        unsupported()
    }

    /// Describes a version; `NotFound` if there is none. A marker of a deletion is `NotFound`, or
    /// refused with the status 405.
    fn head_version(&self, _name: VersionName) -> LocalBoxFuture<'_, StoreResult<ObjectHead>> {
        unsupported()
    }

    /// Removes a version, or a marker, for good; removing what is not there succeeds.
    fn delete_version(&self, _name: VersionName) -> LocalBoxFuture<'_, StoreResult<Deleted>> {
        unsupported()
    }

    /// The tags of a version; `NotFound` if there is none.
    fn version_tags(&self, _name: VersionName) -> LocalBoxFuture<'_, StoreResult<Tags>> {
        unsupported()
    }

    /// Replaces the tags of a version; none takes all away.
    fn set_version_tags(
        &self,
        _name: VersionName,
        _tags: Tags,
    ) -> LocalBoxFuture<'_, StoreResult<()>> {
        unsupported()
    }

    /// Lists versions.
    fn list_versions(
        &self,
        _request: VersionsRequest,
    ) -> LocalBoxFuture<'_, StoreResult<VersionsPage>> {
        unsupported()
    }
}

/// The error of a store that keeps no versions.
pub fn no_versions() -> StoreError {
    let message = "the store behind this volume keeps no versions";
    StoreError::new(StoreErrorKind::Unsupported, message)
}

fn unsupported<T: 'static>() -> LocalBoxFuture<'static, StoreResult<T>> {
    Box::pin(async move { Err(no_versions()) })
}
