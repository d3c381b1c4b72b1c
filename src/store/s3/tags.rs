//! Tags of objects: their requests.

use super::documents;
use super::list::ANSWER_BYTES_MAX;
use super::sign::{Target, Verb};
use super::{RequestHeaders, S3Store, base64};
use crate::xml;
use bytes::Bytes;
use forebay_io::store::StoreResult;
use forebay_io::tags::{TagStore, Tags};
use futures::future::LocalBoxFuture;
use md5::{Digest, Md5};
use reqwest::header::HeaderName;

impl S3Store {
    async fn tags_inner(&self, key: &str) -> StoreResult<Tags> {
        let target = tagging(Verb::GetTags, key);
        let headers = RequestHeaders::default();
        let response = self.send_document(&target, &headers, Bytes::new()).await?;
        let body = self
            .read_answer(&target, response, ANSWER_BYTES_MAX)
            .await?;
        documents::tags(&body)
    }

    async fn set_tags_inner(&self, key: &str, tags: &Tags) -> StoreResult<()> {
        let mut headers = RequestHeaders::default();
        if tags.is_empty() {
            let target = tagging(Verb::ClearTags, key);
            return self
                .send_document(&target, &headers, Bytes::new())
                .await
                .map(drop);
        }
        let document = Bytes::from(xml::tagging(tags));
        // Older stores want it of every such document.
        let name = HeaderName::from_static("content-md5");
        headers.plain.push((name, base64(&Md5::digest(&document))));
        let target = tagging(Verb::SetTags, key);
        self.send_document(&target, &headers, document)
            .await
            .map(drop)
    }
}

fn tagging(verb: Verb, key: &str) -> Target<'_> {
    let mut target = Target::of(verb, key);
    target.query = vec![("tagging", String::new())];
    target
}

impl TagStore for S3Store {
    fn tags(&self, key: String) -> LocalBoxFuture<'_, StoreResult<Tags>> {
        Box::pin(async move { self.tags_inner(&key).await })
    }

    fn set_tags(&self, key: String, tags: Tags) -> LocalBoxFuture<'_, StoreResult<()>> {
        Box::pin(async move { self.set_tags_inner(&key, &tags).await })
    }
}
