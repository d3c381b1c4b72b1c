//! One request, ready to be sent: owns turning an object into a request head and into what must be answered. Sends nothing.

use std::time::SystemTime;

use crate::content::Content;
use crate::load::keys::{Item, Random, encode};
use crate::load::plan::{Lane, Method, Plan, Verify};
use crate::load::response::Expectation;
use crate::load::samples::Kind;
use crate::load::sign::{EMPTY_PAYLOAD, Sha256, Signer, UNSIGNED_PAYLOAD};
use crate::load::target::Target;

/// One response in this many is compared byte by byte with `--verify sample`.
const VERIFY_SAMPLE_EVERY: u64 = 16;

/// Content is made, hashed and sent this much at a time.
pub(super) const CONTENT_STEP_BYTES: usize = 64 * 1024;

/// One request.
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) head: String,
    /// What is sent as a body.
    pub(super) body: Option<Content>,
    /// Bytes that it moves, in whichever direction.
    pub(super) body_bytes: u64,
    pub(super) expectation: Expectation,
}

impl Request {
    /// The request for `item`, by the rules of its lane.
    pub(super) fn new(
        plan: &Plan,
        lane: &Lane,
        target: &Target,
        item: &Item,
        random: &mut Random,
    ) -> Self {
        let method = item.method.unwrap_or_else(|| {
            let is_read = lane.reads >= 1.0 || random.unit() < lane.reads;
            if is_read { Method::Get } else { Method::Put }
        });
        let path = format!("{}{}", target.path, encode(&item.key));
        let content = Content::of_key(&item.key);
        let payload = match (&plan.signer, method) {
            (None, _) | (_, Method::Get) => EMPTY_PAYLOAD.to_owned(),
            (Some(signer), Method::Put) => payload_hash(signer, &content, item.size),
        };
        let signature = plan.signer.as_ref().map(|signer| {
            let (name, now) = (method.name(), SystemTime::now());
            signer.header_lines(name, &target.host, &path, &payload, now)
        });
        let start = format!(
            "{} {path} HTTP/1.1\r\nHost: {}\r\n{}{}",
            method.name(),
            target.host,
            plan.header_lines,
            signature.unwrap_or_default()
        );
        match method {
            Method::Get => Self::read(plan, lane, item, content, &start, random),
            Method::Put => Self::write(item, content, &start),
        }
    }

    fn write(item: &Item, content: Content, start: &str) -> Self {
        Self {
            kind: Kind::Write,
            head: format!("{start}Content-Length: {}\r\n\r\n", item.size),
            body: Some(content),
            body_bytes: item.size,
            expectation: Expectation {
                status: 200,
                length: None,
                content: None,
            },
        }
    }

    fn read(
        plan: &Plan,
        lane: &Lane,
        item: &Item,
        content: Content,
        start: &str,
        random: &mut Random,
    ) -> Self {
        let drawn = |range: u64| {
            let length = range.min(item.size);
            (random.below(item.size / length) * length, length)
        };
        // An empty object has no range.
        let wanted = lane.range.filter(|_| item.size > 0).map(drawn);
        let range = item.range.or(wanted);
        let verify = match plan.verify {
            Verify::Length => false,
            Verify::Sample => random.below(VERIFY_SAMPLE_EVERY) == 0,
            Verify::All => true,
        };
        let (offset, length) = range.unwrap_or((0, item.size));
        let (head, status) = match range {
            None => (format!("{start}\r\n"), 200),
            Some(_) => {
                let last = offset + length - 1;
                (format!("{start}Range: bytes={offset}-{last}\r\n\r\n"), 206)
            }
        };
        Self {
            kind: lane.read_kind,
            head,
            body: None,
            body_bytes: length,
            expectation: Expectation {
                status,
                length: Some(length),
                content: verify.then_some((content, offset)),
            },
        }
    }
}

/// The SHA-256 that a write is signed with. It is made before the request is due, so it costs CPU time, not latency.
fn payload_hash(signer: &Signer, content: &Content, size: u64) -> String {
    if signer.unsigned_payload {
        return UNSIGNED_PAYLOAD.to_owned();
    }
    let (mut hash, mut piece) = (Sha256::new(), vec![0; CONTENT_STEP_BYTES]);
    let mut offset = 0;
    while offset < size {
        let step = (size - offset).min(CONTENT_STEP_BYTES as u64) as usize;
        content.fill(offset, &mut piece[..step]);
        hash.update(&piece[..step]);
        offset += step as u64;
    }
    hash.hex()
}
