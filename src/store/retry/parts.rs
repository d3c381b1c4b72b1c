//! Which requests for parts and copies are sent again.
//!
//! This file owns the rules. Parts from memory, copies, lists and aborts are repeated: a second one
//! does what the first did. The rest needs thought:
//!
//! * a **create** makes an upload each time, so it is repeated only where the store refused it or was
//!   never reached: nobody would ever end an upload whose name was lost;
//! * a **completion** that is repeated after a lost answer may find no upload any more, because the
//!   first one had ended it. Then the object is looked at: if its ETag is that of these parts, the
//!   completion has succeeded. An abort that finds no upload the second time has succeeded too.

use super::{Backoff, Inner, Pace, Retrying};
use crate::store::etag;
use forebay_io::multipart::{
    CompleteRequest, CopyPartRequest, CopyRequest, PartRequest, PartStore, PartsPage, PartsRequest,
    UploadName, UploadsPage, UploadsRequest,
};
use forebay_io::store::{
    Attempts, PutBody, PutReply, Store, StoreError, StoreErrorKind, StoreResult,
};
use futures::future::LocalBoxFuture;
use std::cell::RefCell;

impl<S: Store + 'static, P: Pace + 'static> PartStore for Retrying<S, P> {
    fn copy(&self, request: CopyRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.copy(request.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn create_upload(
        &self,
        key: String,
        headers: Vec<(String, String)>,
    ) -> LocalBoxFuture<'_, StoreResult<UploadName>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.create_upload(key.clone(), headers.clone());
            let may_again = |error: &StoreError| error.was_never_sent || error.status.is_some();
            self.inner.repeat_if(&mut backoff, send, may_again).await
        })
    }

    fn put_part(&self, request: PartRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(async move {
            let pieces = match &request.body {
                PutBody::Whole(pieces) if request.attempts == Attempts::StorePolicy => pieces,
                PutBody::Whole(_) | PutBody::Stream(_) => {
                    return self.inner.store.put_part(request).await;
                }
            };
            let send = || {
                self.inner.store.put_part(PartRequest {
                    upload: request.upload.clone(),
                    number: request.number,
                    length: request.length,
                    headers: request.headers.clone(),
                    crc64nvme: request.crc64nvme,
                    attempts: request.attempts,
                    body: PutBody::Whole(pieces.clone()),
                })
            };
            let mut backoff = Backoff::new(self.inner.settings);
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn copy_part(&self, request: CopyPartRequest) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.copy_part(request.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn complete_upload(
        &self,
        request: CompleteRequest,
    ) -> LocalBoxFuture<'_, StoreResult<PutReply>> {
        Box::pin(self.inner.complete(request))
    }

    fn abort_upload(&self, upload: UploadName) -> LocalBoxFuture<'_, StoreResult<()>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.abort_upload(upload.clone());
            match self.inner.repeat(&mut backoff, send).await {
                Err(error) if is_over_since(&error) => Ok(()),
                other => other,
            }
        })
    }

    fn list_parts(&self, request: PartsRequest) -> LocalBoxFuture<'_, StoreResult<PartsPage>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.list_parts(request.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }

    fn list_uploads(
        &self,
        request: UploadsRequest,
    ) -> LocalBoxFuture<'_, StoreResult<UploadsPage>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(self.inner.settings);
            let send = || self.inner.store.list_uploads(request.clone());
            self.inner.repeat(&mut backoff, send).await
        })
    }
}

impl<S: Store, P: Pace> Inner<S, P> {
    async fn complete(&self, request: CompleteRequest) -> StoreResult<PutReply> {
        let mut backoff = Backoff::new(self.settings);
        // What an earlier attempt failed with, of which nobody knows what it did.
        let unknown = RefCell::new(None);
        let send = || self.store.complete_upload(request.clone());
        let note = |error: &StoreError| {
            if error.kind.is_retryable() {
                *unknown.borrow_mut() = Some(error.clone());
            }
            true
        };
        let error = match self.repeat_if(&mut backoff, send, note).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        // With the condition that the key is free, the second attempt may meet the first one's object.
        let may_be_done = is_over_since(&error)
            || (error.attempts > 1 && error.kind == StoreErrorKind::PreconditionFailed);
        let Some(earlier) = unknown.into_inner().filter(|_| may_be_done) else {
            return Err(error);
        };
        self.look_for_object(&request, &earlier, error).await
    }

    /// Whether the object is there that the parts make: then an attempt whose answer was lost made
    /// it. Else `error` stands, or the earlier one where it cannot be told.
    async fn look_for_object(
        &self,
        request: &CompleteRequest,
        earlier: &StoreError,
        error: StoreError,
    ) -> StoreResult<PutReply> {
        let in_doubt = || StoreError {
            attempts: error.attempts,
            ..earlier.clone()
        };
        let etags = request.parts.iter().map(|part| part.etag.as_str());
        let Some(expected) = etag::of_parts(etags) else {
            return Err(in_doubt());
        };
        let mut backoff = Backoff::new(self.settings);
        let send = || self.store.head(request.upload.key.clone());
        match self.repeat(&mut backoff, send).await {
            Ok(head) if head.meta.etag == expected => Ok(PutReply {
                etag: expected,
                last_modified: head.meta.last_modified,
                version_id: head.version_id,
            }),
            Ok(_) => Err(error),
            Err(missing) if missing.kind == StoreErrorKind::NotFound => Err(error),
            Err(_) => Err(in_doubt()),
        }
    }
}

/// Whether an upload is unknown to a later attempt, which an earlier one may be the reason for.
fn is_over_since(error: &StoreError) -> bool {
    error.attempts > 1 && error.kind == StoreErrorKind::NoSuchUpload
}
