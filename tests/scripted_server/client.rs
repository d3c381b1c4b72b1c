//! An S3 store in front of a [`Server`](super::Server), and the requests that the tests send it.

use super::{Act, Server, answer};
use bytes::Bytes;
use forebay::store::retry::RetrySettings;
use forebay::store::s3::Deadlines;
use forebay::store::{S3Spec, StoreSpec, build};
use forebay_io::store::{Attempts, ByteSpan, GetRequest, PutBody, PutRequest, Store, StoreError};
use futures::stream::{self, StreamExt};
use std::rc::Rc;
use std::time::Duration;

pub const SECRET: &str = "a-secret-nobody-may-see";

/// Short, so that the tests of what never comes are; long enough for a busy machine.
pub const DEADLINES: Deadlines = Deadlines {
    connect: Duration::from_millis(500),
    first_byte: Duration::from_millis(500),
    put_answer: Duration::from_millis(500),
    stall: Duration::from_millis(500),
    store_work: Duration::from_millis(1500),
};

/// What no request of these tests may take, whatever the store does.
pub const ANY_CASE_MAX: Duration = Duration::from_secs(10);

pub const ONCE: RetrySettings = RetrySettings {
    attempts_max: 1,
    elapsed_max: Duration::from_secs(5),
    pause_first_max: Duration::from_millis(10),
    pause_max: Duration::from_millis(10),
};

pub const THRICE: RetrySettings = RetrySettings {
    attempts_max: 3,
    ..ONCE
};

pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let bounded = tokio::time::timeout(ANY_CASE_MAX, future).await;
        bounded.expect("no case takes so long")
    })
}

pub fn spec(url: &str, retry: RetrySettings) -> S3Spec {
    let mut spec = S3Spec::new(url, "us-east-1", "bkt");
    spec.access_key = "an-access-key".into();
    spec.secret_key = SECRET.into();
    spec.deadlines = DEADLINES;
    spec.retry = retry;
    spec
}

pub fn store(server: &Server, retry: RetrySettings) -> Rc<dyn Store> {
    build(&StoreSpec::S3(spec(&server.url(), retry))).expect("a good spec")
}

pub async fn scripted(script: Vec<Act>, retry: RetrySettings) -> (Server, Rc<dyn Store>) {
    let server = Server::start(script).await;
    let store = store(&server, retry);
    (server, store)
}

pub fn wanted(span: Option<(u64, u64)>) -> GetRequest {
    GetRequest {
        key: "k".into(),
        span: span.map(|(start, end)| ByteSpan { start, end }),
        ..GetRequest::default()
    }
}

/// The bytes that came, and the error that ended them.
pub async fn read(store: &dyn Store, request: GetRequest) -> (Vec<u8>, Option<StoreError>) {
    let mut reply = match store.get(request).await {
        Ok(reply) => reply,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut bytes = Vec::new();
    while let Some(piece) = reply.body.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => return (bytes, Some(error)),
        }
    }
    assert_eq!(bytes.len() as u64, reply.span.len(), "a short success");
    (bytes, None)
}

pub async fn failure(store: &dyn Store) -> StoreError {
    let (_, error) = read(store, wanted(None)).await;
    let error = error.expect("the request must fail");
    let text = error.to_string();
    assert!(!text.contains("X-Amz") && !text.contains(SECRET), "{text}");
    error
}

pub fn whole(body: impl Into<Bytes>) -> PutRequest {
    let body = body.into();
    PutRequest {
        key: "k".into(),
        length: body.len() as u64,
        headers: Vec::new(),
        crc64nvme: None,
        if_none_match: false,
        if_match: None,
        attempts: Attempts::StorePolicy,
        body: PutBody::Whole(vec![body]),
    }
}

pub fn streamed(body: impl Into<Bytes>) -> PutRequest {
    let body = body.into();
    PutRequest {
        length: body.len() as u64,
        body: PutBody::Stream(stream::iter([Ok(body)]).boxed_local()),
        ..whole(Bytes::new())
    }
}

pub fn object(body: &[u8]) -> Vec<u8> {
    answer(200, &[("ETag", "\"t\""), ("x-amz-request-id", "1")], body)
}

pub fn part(etag: &str, range: &str, body: &[u8]) -> Vec<u8> {
    answer(206, &[("ETag", etag), ("Content-Range", range)], body)
}

pub fn stored() -> Vec<u8> {
    answer(200, &[("ETag", "\"t\"")], b"")
}

pub fn refused(status: u16, code: &str) -> Vec<u8> {
    let body = format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
    answer(
        status,
        &[("Content-Type", "application/xml")],
        body.as_bytes(),
    )
}
