//! Tags of objects: their requests.

use super::documents;
use super::list::ANSWER_BYTES_MAX;
use super::sign::{Target, Verb};
use super::{RequestHeaders, S3Store, base64, versions};
use crate::xml;
use bytes::Bytes;
use forebay_io::store::StoreResult;
use forebay_io::tags::{TagStore, Tags};
use futures::future::LocalBoxFuture;
use md5::{Digest, Md5};
use reqwest::header::HeaderName;

impl S3Store {
    pub(super) async fn tags_inner(
        &self,
        key: &str,
        version_id: Option<&str>,
    ) -> StoreResult<Tags> {
        let target = tagging(Verb::GetTags, key, version_id)?;
        let headers = RequestHeaders::default();
        let response = self.send_document(&target, &headers, Bytes::new()).await?;
        let body = self
            .read_answer(&target, response, ANSWER_BYTES_MAX)
            .await?;
        documents::tags(&body)
    }

    pub(super) async fn set_tags_inner(
        &self,
        key: &str,
        version_id: Option<&str>,
        tags: &Tags,
    ) -> StoreResult<()> {
        let mut headers = RequestHeaders::default();
        if tags.is_empty() {
            let target = tagging(Verb::ClearTags, key, version_id)?;
            return self
                .send_document(&target, &headers, Bytes::new())
                .await
                .map(drop);
        }
        let document = Bytes::from(xml::tagging(tags));
        // Older stores want it of every such document.
        let name = HeaderName::from_static("content-md5");
        headers.plain.push((name, base64(&Md5::digest(&document))));
        let target = tagging(Verb::SetTags, key, version_id)?;
        self.send_document(&target, &headers, document)
            .await
            .map(drop)
    }
}

fn tagging<'k>(verb: Verb, key: &'k str, version_id: Option<&str>) -> StoreResult<Target<'k>> {
    let mut target = Target::of(verb, key);
    target.query = vec![("tagging", String::new())];
    if let Some(version_id) = version_id {
        target.query.push(versions::parameter(version_id)?);
    }
    Ok(target)
}

impl TagStore for S3Store {
    fn tags(&self, key: String) -> LocalBoxFuture<'_, StoreResult<Tags>> {
        Box::pin(async move { self.tags_inner(&key, None).await })
    }

    fn set_tags(&self, key: String, tags: Tags) -> LocalBoxFuture<'_, StoreResult<()>> {
        Box::pin(async move { self.set_tags_inner(&key, None, &tags).await })
    }
}
