//! `/-/dirty`, `/-/flush`, `/-/drain`: what is acknowledged and not yet in the store, for operators.
//!
//! This file owns these paths' methods, parameters and answers; who may ask was judged before, and
//! what becomes of a block is decided by the shards. A parameter that is not known is refused, not
//! passed over: one that was meant to narrow a command must never widen it.

use super::connection::{Connection, Ended};
use super::control;
use super::get;
use super::head::Head;
use super::overrides::Overrides;
use super::reply::ErrorReply;
use crate::server::volumes::VolumeTable;
use forebay_shards::backlog::{AbandonError, Backlog, DirtyBlock, ObjectName};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Blocks in a list when nothing else is asked for.
const LIST_DEFAULT: usize = 1000;

/// Blocks in a list at most: with keys of a kilobyte each, a list of some 15 MiB.
const LIST_MAX: usize = 10_000;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `dirty`: list the blocks, oldest first.
    List,
    /// `dirty/remaining`: how much is left.
    Remaining,
    /// `dirty/retry`: try held blocks again.
    Retry,
    /// `dirty/abandon`: give a held block up.
    Abandon,
    /// `dirty/export`: a dirty block's bytes.
    Export,
    /// `flush`: make all durable and upload at once.
    Flush,
    /// `drain`: the same, and take no new dirty blocks.
    Drain,
}

impl Operation {
    const ALL: [Operation; 7] = [
        Operation::List,
        Operation::Remaining,
        Operation::Retry,
        Operation::Abandon,
        Operation::Export,
        Operation::Flush,
        Operation::Drain,
    ];

    /// The operation of a control path.
    pub fn of_path(path: &str) -> Option<Operation> {
        Operation::ALL
            .into_iter()
            .find(|operation| operation.path() == path)
    }

    fn path(self) -> &'static str {
        match self {
            Operation::List => "dirty",
            Operation::Remaining => "dirty/remaining",
            Operation::Retry => "dirty/retry",
            Operation::Abandon => "dirty/abandon",
            Operation::Export => "dirty/export",
            Operation::Flush => "flush",
            Operation::Drain => "drain",
        }
    }

    fn methods(self) -> &'static [&'static str] {
        match self {
            Operation::List | Operation::Remaining | Operation::Export => &["GET", "HEAD"],
            Operation::Retry | Operation::Abandon | Operation::Flush => &["POST"],
            Operation::Drain => &["POST", "DELETE"],
        }
    }

    fn parameters(self) -> &'static [&'static str] {
        match self {
            Operation::List => &["limit"],
            Operation::Remaining => &["before_unix_ms"],
            Operation::Retry | Operation::Abandon | Operation::Export => &["volume", "key"],
            Operation::Flush | Operation::Drain => &[],
        }
    }
}

/// Serves one of these paths; the operator's token was checked.
pub async fn serve(
    connection: &mut Connection,
    head: &Head,
    operation: Operation,
    query: &[(String, String)],
) -> Result<(), Ended> {
    let resource = format!("/-/{}", operation.path());
    let checked = check_method(operation, &head.method)
        .and_then(|()| Parameters::check(query, operation.parameters()));
    let answered = match checked {
        Ok(parameters) if operation == Operation::Export => {
            return export(connection, head, &parameters, &resource).await;
        }
        Ok(parameters) => answer(connection, head, operation, &parameters).await,
        Err(error) => Err(error),
    };
    match answered {
        Ok((status, body)) => {
            let text = format!("{body:#}\n");
            control::respond(connection, head, status, control::JSON, text).await
        }
        Err(error) => connection.respond_error(&error, &resource).await,
    }
}

fn check_method(operation: Operation, method: &str) -> Result<(), ErrorReply> {
    let methods = operation.methods();
    if methods.contains(&method) {
        return Ok(());
    }
    let allowed = methods.join(", ");
    let message = format!("this path takes {allowed}");
    Err(ErrorReply::new(405, "MethodNotAllowed", message).with("allow", allowed))
}

fn invalid(message: String) -> ErrorReply {
    ErrorReply::new(400, "InvalidArgument", message)
}

/// Query parameters that are all known, each given once and not empty.
struct Parameters<'a>(&'a [(String, String)]);

impl<'a> Parameters<'a> {
    fn check(query: &'a [(String, String)], known: &[&str]) -> Result<Parameters<'a>, ErrorReply> {
        for (at, (name, value)) in query.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let right = match known {
                    [] => "this path takes none".to_owned(),
                    _ => format!("this path takes {}", known.join(", ")),
                };
                return Err(invalid(format!(
                    "the query parameter {name:?} is not known here; {right}"
                )));
            }
            if query[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(invalid(format!(
                    "the query parameter {name} is given twice"
                )));
            }
            if value.is_empty() {
                return Err(invalid(format!("the query parameter {name} has no value")));
            }
        }
        Ok(Parameters(query))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Result<Option<u64>, ErrorReply> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        // `parse` alone would take a sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits => Ok(Some(number)),
            _ => Err(invalid(format!("{name}: {text:?} is not a whole number"))),
        }
    }

    fn limit(&self) -> Result<usize, ErrorReply> {
        match self.number("limit")? {
            None => Ok(LIST_DEFAULT),
            Some(limit) if (1..=LIST_MAX as u64).contains(&limit) => Ok(limit as usize),
            Some(limit) => Err(invalid(format!("limit: {limit} is not 1 to {LIST_MAX}"))),
        }
    }

    /// The object that is named, if one is. Half a name is refused.
    fn object(&self) -> Result<Option<ObjectName>, ErrorReply> {
        match (self.get("volume"), self.get("key")) {
            (Some(volume), Some(key)) => Ok(Some(ObjectName {
                volume: volume.to_owned(),
                key: key.to_owned(),
            })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(invalid("volume is given without key".to_owned())),
            (None, Some(_)) => Err(invalid("key is given without volume".to_owned())),
        }
    }

    fn object_needed(&self) -> Result<ObjectName, ErrorReply> {
        self.object()?
            .ok_or_else(|| invalid("volume and key are needed".to_owned()))
    }
}

async fn answer(
    connection: &Connection,
    head: &Head,
    operation: Operation,
    parameters: &Parameters<'_>,
) -> Result<(u16, Value), ErrorReply> {
    let router = &connection.context().router;
    match operation {
        Operation::List => {
            let limit = parameters.limit()?;
            let summary = summary(connection).await;
            let now_ms = unix_ms();
            let blocks = router.dirty_blocks(limit).await;
            let blocks: Vec<Value> = blocks.iter().map(|block| describe(block, now_ms)).collect();
            Ok((200, json!({ "summary": summary, "blocks": blocks })))
        }
        Operation::Remaining => {
            let up_to_unix_ms = parameters.number("before_unix_ms")?;
            Ok((200, remaining(connection, up_to_unix_ms).await))
        }
        Operation::Retry => {
            let retried = router.retry(parameters.object()?).await;
            Ok((200, json!({ "retried": retried })))
        }
        Operation::Abandon => match router.abandon(parameters.object_needed()?).await {
            Ok(()) => Ok((200, json!({ "abandoned": true }))),
            Err(error) => Err(ErrorReply::from(error)),
        },
        Operation::Drain if head.method == "DELETE" => {
            router.set_draining(false).await;
            Ok((200, json!({ "draining": false })))
        }
        Operation::Flush | Operation::Drain => {
            if operation == Operation::Drain {
                router.set_draining(true).await;
            }
            // Taken before anything is asked of the disk: what is acknowledged meanwhile is later.
            let before_unix_ms = unix_ms();
            router.hurry().await;
            let mut body = remaining(connection, Some(before_unix_ms)).await;
            body["before_unix_ms"] = before_unix_ms.into();
            Ok((202, body))
        }
        Operation::Export => unreachable!("answered with bytes, not with JSON"),
    }
}

impl From<AbandonError> for ErrorReply {
    fn from(error: AbandonError) -> Self {
        match error {
            AbandonError::NotFound => ErrorReply::new(404, "NoSuchKey", error.to_string()),
            AbandonError::NotHeld => ErrorReply::new(
                409,
                "InvalidObjectState",
                format!("{error}: it will be uploaded, or delete it"),
            ),
            AbandonError::Loading | AbandonError::Disk => ErrorReply::slow_down(&error.to_string()),
        }
    }
}

/// Milliseconds since the Unix epoch.
fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |passed| passed.as_millis() as u64)
}

fn describe(block: &DirtyBlock, now_ms: u64) -> Value {
    json!({
        "volume": block.name.volume,
        "key": block.name.key,
        "bytes": block.bytes,
        "age_seconds": now_ms.saturating_sub(block.acked_unix_ms) / 1000,
        "acknowledged_unix_ms": block.acked_unix_ms,
        "attempts": block.attempts,
        "state": block.state.label(),
        "last_error": block.last_error,
    })
}

async fn remaining(connection: &Connection, up_to_unix_ms: Option<u64>) -> Value {
    let backlog = connection.context().router.backlog(up_to_unix_ms).await;
    json!({
        "blocks": backlog.blocks,
        "bytes": backlog.bytes,
        "quarantined_blocks": backlog.quarantined_blocks,
        "conflict_blocks": backlog.conflict_blocks,
        "orphaned_blocks": backlog.orphaned_blocks,
        // Their dirty blocks are in no count yet, so nobody may take a zero for the end.
        "shards_unread": backlog.shards_unread,
    })
}

/// The sums, as `status` has them.
pub async fn summary(connection: &Connection) -> Value {
    let context = connection.context();
    let backlog = context.router.backlog(None).await;
    let volumes = context.volumes();
    let mut summary = summarize(&backlog, &volumes, unix_ms());
    let may = volumes.list().any(|volume| volume.volume.writeback);
    summary["enabled"] = (may && context.server.writeback).into();
    summary
}

fn summarize(backlog: &Backlog, volumes: &VolumeTable, now_ms: u64) -> Value {
    let stores: Vec<Value> = backlog
        .stores
        .iter()
        .map(|store| {
            let of_store = volumes
                .list()
                .filter(|volume| volume.volume.store_number == store.store);
            json!({
                // A store that no volume has any more still gets what was written for it.
                "volume": of_store.map(|volume| &volume.settings.name).min(),
                "concurrency": store.concurrency,
                "paused_ms": store.paused_ms,
                "failures": store.failures,
            })
        })
        .collect();
    json!({
        "draining": backlog.draining,
        "dirty_blocks": backlog.blocks,
        "dirty_bytes": backlog.bytes,
        "oldest_age_seconds": backlog.oldest_age_ms(now_ms) / 1000,
        "uploading": backlog.uploading,
        "quarantined_blocks": backlog.quarantined_blocks,
        "quarantined_bytes": backlog.quarantined_bytes,
        "conflict_blocks": backlog.conflict_blocks,
        "conflict_bytes": backlog.conflict_bytes,
        "orphaned_blocks": backlog.orphaned_blocks,
        "unsynced_bytes": backlog.unsynced_bytes,
        "shards_unread": backlog.shards_unread,
        "soft_limit_bytes": backlog.soft_limit_bytes,
        "hard_limit_bytes": backlog.hard_limit_bytes,
        "stores": stores,
    })
}

/// Sends a dirty block's bytes, with the headers that its object has.
async fn export(
    connection: &mut Connection,
    head: &Head,
    parameters: &Parameters<'_>,
    resource: &str,
) -> Result<(), Ended> {
    let found = match parameters.object_needed() {
        Ok(name) => {
            let found = connection.context().router.export(name).await;
            found.map_err(ErrorReply::from)
        }
        Err(error) => Err(error),
    };
    let exported = match found {
        Ok(Some(exported)) => exported,
        Ok(None) => {
            let error = AbandonError::NotFound.into();
            return connection.respond_error(&error, resource).await;
        }
        Err(error) => return connection.respond_error(&error, resource).await,
    };
    let mut reply = connection.reply(200);
    get::version_headers(&mut reply, &exported.meta);
    get::object_headers(&mut reply, &exported.meta, &Overrides::default());
    reply.header("content-length", exported.payload.len());
    let reply = connection.seal_head(reply);
    if head.method == "HEAD" {
        return connection.send(&[&reply]).await;
    }
    get::send_view(connection, &reply, &exported.payload).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn refusal(operation: Operation, pairs: &[(&str, &str)]) -> String {
        let query = query(pairs);
        let parameters = match Parameters::check(&query, operation.parameters()) {
            Ok(parameters) => parameters,
            Err(error) => return error.message,
        };
        let refused = match operation {
            Operation::List => parameters.limit().err(),
            Operation::Remaining => parameters.number("before_unix_ms").err(),
            Operation::Abandon => parameters.object_needed().err(),
            _ => parameters.object().err(),
        };
        let error = refused.unwrap_or_else(|| panic!("{pairs:?} is taken"));
        assert_eq!(error.status, 400);
        error.message
    }

    #[test]
    fn every_path_is_found_and_says_what_it_takes() {
        for operation in Operation::ALL {
            assert_eq!(Operation::of_path(operation.path()), Some(operation));
            let error = check_method(operation, "PATCH").expect_err("no such method");
            assert_eq!(error.headers, [("allow", operation.methods().join(", "))]);
            for method in operation.methods() {
                check_method(operation, method).expect("allowed");
            }
        }
        assert_eq!(Operation::of_path("dirty/"), None);
        assert_eq!(Operation::of_path(""), None);
    }

    #[test]
    fn parameters_are_strict() {
        use Operation::{Abandon, Drain, List, Remaining, Retry};
        for (operation, pairs, part) in [
            (List, &[("limt", "5")][..], "takes limit"),
            (Drain, &[("volume", "v")], "takes none"),
            (List, &[("limit", "5"), ("limit", "5")], "given twice"),
            (List, &[("limit", "")], "has no value"),
            (List, &[("limit", "0")], "is not 1 to 10000"),
            (List, &[("limit", "10001")], "is not 1 to 10000"),
            (List, &[("limit", "+5")], "not a whole number"),
            (List, &[("limit", "99999999999999999999")], "not a whole"),
            (Remaining, &[("before_unix_ms", "-1")], "not a whole number"),
            (Remaining, &[("before", "1")], "takes before_unix_ms"),
            (Retry, &[("key", "k")], "without volume"),
            (Retry, &[("volume", "v")], "without key"),
            (Abandon, &[], "volume and key are needed"),
        ] {
            let message = refusal(operation, pairs);
            assert!(message.contains(part), "{pairs:?}: {message}");
        }
        let query = query(&[("key", "../a b"), ("volume", "v")]);
        let parameters = Parameters::check(&query, Retry.parameters()).expect("right");
        let name = parameters.object().expect("right").expect("named");
        assert_eq!((&*name.volume, &*name.key), ("v", "../a b"));
    }

    #[test]
    fn ages_never_lie_in_the_future() {
        let block = DirtyBlock {
            name: ObjectName {
                volume: "v".into(),
                key: "k".into(),
            },
            bytes: 5,
            acked_unix_ms: 20_000,
            attempts: 1,
            state: forebay_shards::backlog::BlockState::Conflict,
            last_error: None,
        };
        assert_eq!(describe(&block, 23_999)["age_seconds"], 3);
        assert_eq!(describe(&block, 10_000)["age_seconds"], 0);
        assert_eq!(describe(&block, 0)["state"], "conflict");
    }
}
