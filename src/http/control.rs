//! `/-/…`: the operator's paths: which there are, who may use them, and those that only read.
//!
//! Paths that change anything are in [`super::backlog`].

use super::auth::{self, Credential};
use super::backlog::{self, Operation};
use super::connection::{Connection, Ended};
use super::head::Head;
use super::limits::SEND_BYTES_MAX;
use super::reply::ErrorReply;
use crate::metrics;
use crate::server::memory::MemoryPlan;
use forebay_shards::scrub::ScrubProgress;
use serde_json::json;
use std::collections::BTreeMap;

/// Paths that later issues of the roadmap fill: known, so that the answer can say so.
const LATER: [&str; 3] = ["", "evict", "warm"];

/// What most answers are.
pub(super) const JSON: &str = "application/json";

/// Serves a control path.
pub async fn serve(
    connection: &mut Connection,
    head: &Head,
    credential: &Credential,
    path: &str,
    query: &[(String, String)],
) -> Result<(), Ended> {
    let resource = format!("/-/{path}");
    let reads = matches!(head.method.as_str(), "GET" | "HEAD");
    let open = matches!(path, "ping" | "healthz" | "readyz" | "topology");
    let operation = Operation::of_path(path);
    let known = open
        || operation.is_some()
        || matches!(path, "metrics" | "status")
        || LATER.contains(&path);
    if !known {
        let error = ErrorReply::new(404, "NoSuchKey", "there is no such control path");
        return connection.respond_error(&error, &resource).await;
    }
    if !open {
        let operator = connection.context().volumes().operator_token;
        if let Err(error) = auth::check_operator(credential, operator.as_ref()) {
            return connection.respond_error(&error, &resource).await;
        }
    }
    if let Some(operation) = operation {
        return backlog::serve(connection, head, operation, query).await;
    }
    if LATER.contains(&path) {
        let error = ErrorReply::not_implemented("this control path");
        return connection.respond_error(&error, &resource).await;
    }
    if !reads {
        let error = ErrorReply::new(405, "MethodNotAllowed", "this path is only read")
            .with("allow", "GET, HEAD");
        return connection.respond_error(&error, &resource).await;
    }
    let (status, content_type, body) = answer(connection, path).await;
    respond(connection, head, status, content_type, body).await
}

/// Sends an answer that is made for this request; `HEAD` gets its headers only.
pub(super) async fn respond(
    connection: &mut Connection,
    head: &Head,
    status: u16,
    content_type: &str,
    body: String,
) -> Result<(), Ended> {
    let mut reply = connection.reply(status);
    reply.header("cache-control", "no-store");
    if status != 204 {
        reply
            .header("content-type", content_type)
            .header("content-length", body.len());
    }
    let reply = connection.seal_head(reply);
    let body: &[u8] = if head.method == "HEAD" {
        b""
    } else {
        body.as_bytes()
    };
    let (first, rest) = body.split_at(body.len().min(SEND_BYTES_MAX));
    connection.send(&[&reply, first]).await?;
    for piece in rest.chunks(SEND_BYTES_MAX) {
        connection.send(&[piece]).await?;
    }
    Ok(())
}

async fn answer(connection: &Connection, path: &str) -> (u16, &'static str, String) {
    const TEXT: &str = "text/plain; charset=utf-8";
    let context = connection.context();
    match path {
        "ping" => (204, TEXT, String::new()),
        "healthz" => (200, TEXT, "ok\n".into()),
        "readyz" if context.stopping.is_set() => (503, TEXT, "stopping\n".into()),
        "readyz" if context.server.is_ready() => (200, TEXT, "ready\n".into()),
        "readyz" => (503, TEXT, "loading\n".into()),
        "topology" => (200, JSON, topology(connection)),
        "metrics" => {
            let snapshots = context.router.snapshots().await;
            let backlog = context.router.backlog(None).await;
            let uptime = context.server.uptime();
            let text = metrics::render(&snapshots, &backlog, &context.server.http, uptime);
            (200, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        _ => (200, JSON, status(connection).await),
    }
}

fn topology(connection: &Connection) -> String {
    let topology = connection.context().router.topology();
    let map: Vec<usize> = (0..topology.shards())
        .map(|shard| topology.core_of_shard(shard))
        .collect();
    let body = json!({
        "version": 1,
        "cores": topology.cores(),
        "core": connection.context().router.index(),
        "shards": topology.shards(),
        "hash": "xxh3-128",
        "hash_input": "volume + '/' + key, seed = block number (0 finds the object's home)",
        "shard_of_hash": "low bits: hash mod shards",
        "shard_to_core": map,
    });
    format!("{body:#}\n")
}

/// How the memory was split at start: the most that each part takes.
fn memory(plan: &MemoryPlan) -> serde_json::Value {
    let shares: Vec<_> = plan
        .shares
        .iter()
        .map(|share| json!({ "name": share.name, "bytes": share.bytes, "flag": share.flag }))
        .collect();
    json!({
        "limit_bytes": plan.limit.bytes,
        "control_group": plan.limit.control_group,
        "connections_per_core": plan.connections_per_core,
        "shares": shares,
    })
}

async fn status(connection: &Connection) -> String {
    let context = connection.context();
    let snapshots = context.router.snapshots().await;
    let writeback = backlog::summary(connection).await;
    let sum = |pick: fn(&forebay_shards::stats::CoreSnapshot) -> u64| -> u64 {
        snapshots.iter().map(pick).sum()
    };
    let volumes: Vec<_> = context
        .volumes()
        .list()
        .map(|volume| {
            json!({
                "name": volume.settings.name,
                "block_bytes": volume.volume.block_bytes,
                "writeback": volume.volume.writeback && context.server.writeback,
                "anonymous_read": volume.settings.anonymous_read,
            })
        })
        .collect();
    let cores: Vec<_> = snapshots
        .iter()
        .map(|core| {
            json!({
                "core": core.core,
                "shards": core.shards,
                "blocks": core.blocks,
                "disk_used_bytes": core.disk_used_bytes,
                "ram_bytes": core.ram_bytes,
                    "fetches_in_flight": core.flights,
                "counters": core.counters,
            })
        })
        .collect();
    let mut scrub = ScrubProgress::default();
    for (n, core) in snapshots.iter().enumerate() {
        match n {
            0 => scrub = core.scrub,
            _ => scrub.add(&core.scrub),
        }
    }
    let mut shard_counters = BTreeMap::<&str, u64>::new();
    for (name, value) in snapshots.iter().flat_map(|core| &core.shard_counters) {
        *shard_counters.entry(name).or_default() += value;
    }
    let recovered = |pick: fn(&forebay_shards::recover::RecoveryReport) -> u64| -> u64 {
        snapshots.iter().map(|core| pick(&core.recovery)).sum()
    };
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": context.server.is_ready(),
        "uptime_seconds": context.server.uptime().as_secs(),
        "bind_address": context.server.address.to_string(),
        "disk": {
            "used_bytes": sum(|c| c.disk_used_bytes),
            "quota_bytes": context.server.quota_bytes,
            "segment_quota_bytes": sum(|c| c.disk_quota_bytes),
            "blocks": sum(|c| c.blocks),
            "shards_full": sum(|c| c.shards_full),
            "counters": shard_counters,
        },
        "loading": {
            "shards": sum(|c| c.shards),
            "shards_loaded": sum(|c| c.shards_loaded),
            "milliseconds": snapshots.iter().filter_map(|c| c.load_ms).max(),
        },
        "buffers": {
            "used_bytes": snapshots.first().map_or(0, |core| core.buffer_bytes),
            "kept_bytes": snapshots.first().map_or(0, |core| core.buffer_kept_bytes),
            "budget_bytes": snapshots.first().map_or(0, |core| core.buffer_budget_bytes),
        },
        "memory": memory(&context.server.memory),
        "ram": { "used_bytes": sum(|c| c.ram_bytes), "blocks": sum(|c| c.ram_blocks) },
        "recovery": {
            "footers": recovered(|r| r.footers),
            "scans": recovered(|r| r.scans),
            "empty": recovered(|r| r.empty),
            "lost": recovered(|r| r.lost),
            "blocks": recovered(|r| r.blocks),
        },
        "scrub": {
            "cycle": scrub.cycle,
            "records_done": scrub.records_done,
            "records_total": scrub.records_total.max(sum(|c| c.blocks)),
            "bytes": scrub.bytes,
            "damaged": scrub.damaged,
            "unreadable": scrub.unreadable,
        },
        "writeback": writeback,
        "volumes": volumes,
        "cores": cores,
    });
    format!("{body:#}\n")
}
