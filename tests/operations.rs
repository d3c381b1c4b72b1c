//! What an operator sees: files and their modes, direct I/O, control answers, metrics.
//!
//! Shapes only: which numbers are right is asserted where the events are made.

mod common;

use common::{Setup, pattern};

const MIB: usize = 1 << 20;

#[test]
fn segments_are_open_for_direct_io() {
    let proxy = Setup::default().start();
    proxy.put("direct", &pattern(16, MIB));
    assert_eq!(proxy.get("direct").status, 200);
    let cache = proxy.cache_folder().canonicalize().expect("folder");
    let (mut direct, mut large_buffered) = (0, Vec::new());
    let process = format!("/proc/{}", proxy.pid());
    for entry in std::fs::read_dir(format!("{process}/fd")).expect("fd") {
        let entry = entry.expect("entry");
        let Ok(path) = std::fs::read_link(entry.path()) else {
            continue;
        };
        if !path.starts_with(&cache) {
            continue;
        }
        let number = entry.file_name().into_string().expect("a number");
        let info = std::fs::read_to_string(format!("{process}/fdinfo/{number}")).expect("fdinfo");
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .expect("flags");
        let flags = i32::from_str_radix(flags.trim(), 8).expect("octal");
        if flags & libc::O_DIRECT != 0 {
            direct += 1;
        } else if path
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.len() >= MIB as u64)
        {
            large_buffered.push(path);
        }
    }
    assert!(
        direct > 0,
        "no file of the cache folder is open with O_DIRECT"
    );
    assert!(
        large_buffered.is_empty(),
        "open without O_DIRECT: {large_buffered:?}"
    );
}

#[test]
fn cache_files_are_for_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    let proxy = Setup {
        tls: true,
        ..Setup::default()
    }
    .start();
    proxy.put("private", b"body");
    for folder in [proxy.cache_folder(), proxy.ledger_folder()] {
        assert_eq!(
            folder.metadata().expect("folder").permissions().mode() & 0o777,
            0o700,
            "{folder:?}"
        );
    }
    for file in common::proxy::files_below(&proxy.cache_folder()) {
        assert_eq!(
            file.metadata().expect("file").permissions().mode() & 0o777,
            0o600,
            "{file:?}"
        );
    }
    let key = proxy.folder().join("key.pem");
    assert_eq!(
        key.metadata().expect("key").permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn control_answers_have_their_shapes() {
    let proxy = Setup {
        shards: 2,
        ..Setup::default()
    }
    .start();
    let ping = proxy.request("GET", "/-/ping", &[("Authorization", "")], b"");
    assert_eq!((ping.status, ping.body.len()), (204, 0));
    let topology = proxy.request("GET", "/-/topology", &[("Authorization", "")], b"");
    assert_eq!(topology.status, 200);
    let topology: serde_json::Value =
        serde_json::from_slice(&topology.body).expect("topology is JSON");
    let map = topology
        .as_object()
        .expect("an object")
        .values()
        .find_map(|value| value.as_array())
        .expect("a map of shards");
    assert!(map.len().is_power_of_two(), "{} virtual shards", map.len());
    assert!(
        map.iter()
            .all(|core| core.as_u64().is_some_and(|core| core < 2)),
        "each shard is on one of 2 cores"
    );
    let status: serde_json::Value =
        serde_json::from_slice(&proxy.operator("GET", "/-/status").body).expect("status is JSON");
    assert!(status.as_object().is_some_and(|object| !object.is_empty()));

    let miss_total = |text: &str| -> f64 {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && line.contains("miss"));
        lines
            .map(|line| {
                line.rsplit_once(' ')
                    .expect("a value")
                    .1
                    .parse::<f64>()
                    .expect("a number")
            })
            .sum()
    };
    let before = proxy.operator("GET", "/-/metrics");
    assert!(
        before
            .expect_header("content-type")
            .starts_with("text/plain")
    );
    assert_metrics_grammar(&before.text());
    assert_eq!(proxy.get("missing").status, 404);
    let after = proxy.operator("GET", "/-/metrics").text();
    assert!(
        miss_total(&after) > miss_total(&before.text()),
        "a miss was not counted"
    );
}

/// Every sample belongs to a family with help and type, and no series appears twice.
fn assert_metrics_grammar(text: &str) {
    let (mut families, mut series) = (
        std::collections::HashMap::new(),
        std::collections::HashSet::new(),
    );
    let mut helped = std::collections::HashSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            assert!(
                !help.is_empty() && helped.insert(name.to_string()),
                "{line}"
            );
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(
                helped.contains(name)
                    && families
                        .insert(name.to_string(), kind.to_string())
                        .is_none(),
                "{line}"
            );
        } else {
            let (key, value) = line.rsplit_once(' ').expect("a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(key.to_string()), "twice: {line}");
            let name = key.split('{').next().expect("a name");
            assert!(name.starts_with("forebay_"), "{line}");
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            let is_histogram =
                base.is_some_and(|base| families.get(base).is_some_and(|kind| kind == "histogram"));
            assert!(
                is_histogram || families.contains_key(name),
                "no TYPE for {line}"
            );
        }
    }
    assert!(!series.is_empty(), "no metrics at all");
}
