//! Which requests for versions are sent again.
//!
//! This file owns the rules: all are, for a second one does what the first did. A DELETE of an object,
//! which is repeated as well, may leave two markers where a bucket keeps versions; they hide the same.

use super::{Backoff, Pace, Retrying};
use forebay_io::store::{ObjectHead, Store, StoreResult};
use forebay_io::tags::Tags;
use forebay_io::versions::{
    Deleted, VersionName, VersionStore, Versioning, VersionsPage, VersionsRequest,
};
use futures::future::LocalBoxFuture;

impl<S: Store + 'static, P: Pace + 'static> VersionStore for Retrying<S, P> {
    fn versioning(&self) -> LocalBoxFuture<'_, StoreResult<Versioning>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.versioning();
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn set_versioning(&self, is_enabled: bool) -> LocalBoxFuture<'_, StoreResult<()>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.set_versioning(is_enabled);
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn head_version(&self, name: VersionName) -> LocalBoxFuture<'_, StoreResult<ObjectHead>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.head_version(name.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn delete_version(&self, name: VersionName) -> LocalBoxFuture<'_, StoreResult<Deleted>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.delete_version(name.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn version_tags(&self, name: VersionName) -> LocalBoxFuture<'_, StoreResult<Tags>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.version_tags(name.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn set_version_tags(
        &self,
        name: VersionName,
        tags: Tags,
    ) -> LocalBoxFuture<'_, StoreResult<()>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || {
                let store = &self.inner.store;
                store.set_version_tags(name.clone(), tags.clone())
            };
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn list_versions(
        &self,
        request: VersionsRequest,
    ) -> LocalBoxFuture<'_, StoreResult<VersionsPage>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.list_versions(request.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }
}
