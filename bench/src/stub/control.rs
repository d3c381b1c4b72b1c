//! The stub's own requests, for tests in other languages: owns the paths under `/_stub/`. They need no signature, no fault
//! strikes them, and they are counted nowhere.
//!
//! | request | does |
//! |---|---|
//! | `POST /_stub/faults` | adds the [`Fault`] (or list of them) in the JSON body |
//! | `GET /_stub/faults` | those in force, with what is left of their counts |
//! | `DELETE /_stub/faults` | heals everything |
//! | `GET /_stub/stats` | [`Stats`](crate::stub::Stats) as JSON |
//! | `GET /_stub/log` | list of [`LogEntry`](crate::stub::LogEntry) as JSON |
//! | `POST /_stub/clock` | `{"offset_s": 1200}` sets the stub's clock ahead |
//! | `POST /_stub/reset` | forgets objects, faults, counts and the clock's offset |

use serde::Deserialize;
use serde::Serialize;

use crate::stub::error::S3Error;
use crate::stub::reply::Reply;
use crate::stub::request::Request;
use crate::stub::{Fault, Shared};

/// The first path segment of the stub's own requests; no S3 bucket can be called so.
pub(super) const CONTROL_BUCKET: &str = "_stub";

#[derive(Deserialize)]
#[serde(untagged)]
enum FaultsBody {
    Many(Vec<Fault>),
    One(Fault),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockBody {
    offset_s: i64,
}

/// Answers a request under `/_stub/`.
pub(super) fn answer(shared: &Shared, request: &Request, body: &[u8]) -> Result<Reply, S3Error> {
    match (request.method.as_str(), request.key.as_str()) {
        ("POST", "faults") => {
            let added = match parse(body)? {
                FaultsBody::Many(faults) => faults,
                FaultsBody::One(fault) => vec![fault],
            };
            added
                .into_iter()
                .for_each(|fault| shared.faults().add(fault));
            Ok(Reply::new(204))
        }
        ("GET", "faults") => json(shared.faults().list()),
        ("DELETE", "faults") => {
            shared.faults().clear();
            Ok(Reply::new(204))
        }
        ("GET", "stats") => json(&shared.stats().stats()),
        ("GET", "log") => json(&shared.stats().log()),
        ("POST", "clock") => {
            let clock: ClockBody = parse(body)?;
            shared
                .clock_offset_s
                .store(clock.offset_s, std::sync::atomic::Ordering::Relaxed);
            Ok(Reply::new(204))
        }
        ("POST", "reset") => {
            shared.reset();
            Ok(Reply::new(204))
        }
        _ => Err(S3Error::new("MethodNotAllowed")
            .because("/_stub/ has faults, stats, log, clock and reset")),
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, S3Error> {
    serde_json::from_slice(body)
        .map_err(|error| S3Error::new("InvalidRequest").because(format!("JSON body: {error}")))
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<Reply, S3Error> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| S3Error::new("InternalError").because(error.to_string()))?;
    Ok(Reply::new(200)
        .header("Content-Type", "application/json")
        .body(text))
}
