//! Run files that look like real ones: owns a small model of servers and the records that a side-by-side of them would write.
//! The figures are made up and always the same.

use serde_json::{Value, json};

/// A server of the model.
struct Server {
    name: &'static str,
    /// CPU seconds for each GiB, plain and TLS.
    per_gib_s: [f64; 2],
    /// CPU seconds for each request.
    per_request_s: f64,
}

const SERVERS: [Server; 5] = [
    Server {
        name: "nginx",
        per_gib_s: [0.21, 0.62],
        per_request_s: 31e-6,
    },
    Server {
        name: "forebay",
        per_gib_s: [0.12, 0.19],
        per_request_s: 24e-6,
    },
    Server {
        name: "varnish + hitch",
        per_gib_s: [0.26, 0.81],
        per_request_s: 22e-6,
    },
    Server {
        name: "trafficserver",
        per_gib_s: [0.33, 0.74],
        per_request_s: 48e-6,
    },
    Server {
        name: "cachey",
        per_gib_s: [0.41, 0.88],
        per_request_s: 60e-6,
    },
];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What is read: workload, size, range.
pub type Shape = (&'static str, u64, Option<u64>);

/// Shapes and connections of the whole matrix.
pub fn matrix() -> (Vec<Shape>, Vec<u64>) {
    let mut shapes = Vec::new();
    for workload in ["hit-ram", "hit-disk", "miss"] {
        shapes.push((workload, MIB, Some(64 * KIB)));
        for size in [256 * KIB, MIB, 4 * MIB, 8 * MIB] {
            shapes.push((workload, size, None));
        }
    }
    (shapes, vec![1, 16, 64, 256, 1024])
}

/// A number between -1 and 1 that hangs on nothing but `seed`.
fn noise(seed: u64) -> f64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state ^= state >> 29;
    state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state ^= state >> 32;
    (state % 2001) as f64 / 1000.0 - 1.0
}

fn seed(parts: &[u64]) -> u64 {
    parts.iter().fold(7, |seed, part| {
        seed.wrapping_mul(1_000_003).wrapping_add(*part + 1)
    })
}

/// The report of one run of the model.
pub fn report(server: usize, shape: Shape, connections: u64, tls: bool, round: u64) -> Value {
    let (workload, size, range) = shape;
    let moved = range.unwrap_or(size);
    let gib = moved as f64 / (1_u64 << 30) as f64;
    let seed = seed(&[
        server as u64,
        size,
        moved,
        connections,
        u64::from(tls),
        round,
        workload.len() as u64,
    ]);
    let model = &SERVERS[server];
    let slower = if workload == "hit-ram" { 1.0 } else { 1.35 };
    let request_s = (model.per_gib_s[usize::from(tls)] * gib + model.per_request_s)
        * slower
        * (1.0 + 0.03 * noise(seed));
    let crowd = 1.0 + connections as f64 / 9_000.0 * (1.0 + server as f64 * 0.4);
    let cpu_s_per_gib = request_s * crowd / gib;
    let device_limit = if workload == "hit-disk" {
        2.1 / gib
    } else {
        f64::INFINITY
    };
    let alone_us = request_s * 1e6 + 90.0;
    let requests_per_s = (1.0 / (request_s * crowd))
        .min(connections as f64 / (alone_us * 1e-6))
        .min(device_limit);
    let p50_us = connections as f64 / requests_per_s * 1e6 * (0.92 + 0.05 * noise(seed + 1));
    let (seconds, requests) = (2.0, (requests_per_s * 2.0) as u64 + 1);
    let tail = 1.2 + server as f64 * 0.15 + 0.1 * noise(seed + 2);
    // As the number of nines grows, so does the latency.
    let at = |share: f64| {
        (p50_us * (1.0 + tail * (-(1.0 - share).log10() - 0.301) * 0.6).max(0.4)) as u64
    };
    let shares = [
        0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995,
        0.9999,
    ];
    let histogram: Vec<[u64; 2]> = shares
        .iter()
        .map(|&share| [at(share), ((share * requests as f64).ceil() as u64).max(1)])
        .chain([[at(0.99995), requests]])
        .collect();
    let series: Vec<Value> = (1..=2)
        .map(|t_s| {
            json!({"t_s": t_s, "gib_per_s": requests_per_s * gib, "requests_per_s": requests_per_s,
            "p50_us": p50_us as u64, "p99_us": at(0.99), "errors": 0, "server_cpu": 0.97})
        })
        .collect();
    let cipher = "TLSv1_3 TLS13_AES_128_GCM_SHA256";
    json!({
        "workload": "get", "method": "GET", "targets": ["https://127.0.0.1:8443/vol/"], "size_bytes": moved,
        "connections": connections, "depth": 1, "order": "uniform", "threads": 1, "rate": null,
        "tls": tls.then_some(cipher), "seconds": seconds, "requests": requests, "errors": {},
        "bytes": requests * moved, "gib_per_s": requests_per_s * gib, "requests_per_s": requests_per_s,
        "latency_us": {"p50": p50_us as u64, "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": at(0.99999)},
        "latency_histogram": histogram, "series": series, "by_kind": {},
        "generator_cpu_s": 1.1, "generator_busy": 0.55, "generator_cpu_s_per_gib": 0.1,
        "server_cpu_user_s": 0.4, "server_cpu_system_s": 1.5, "server_cpu_s_per_gib": cpu_s_per_gib,
        "server_core_busy": 0.98, "server_rss_bytes": 180 << 20, "device_bytes_read": 0, "device_bytes_written": 4096,
        "wrong_content": 0, "missing": 0,
        "warnings": if connections == 1024 && server == 1 { vec![format!("the generator used {} % of its 1 thread(s): throughput is a lower bound", 90 + round)] } else { vec![] },
        "a_field_of_tomorrow": true
    })
}

/// One `run` record.
pub fn run(server: usize, shape: Shape, connections: u64, tls: bool, round: u64) -> Value {
    let (workload, size, range) = shape;
    let mut record = json!({
        "kind": "run", "system": SERVERS[server].name, "round": round, "position": server,
        "row": {"workload": workload, "size_bytes": size, "range_bytes": range, "connections": connections, "tls": tls},
    });
    if server == 3 && connections == 1024 && tls {
        record["failed"] = json!("12 of 1,024 handshakes failed: <connection reset> & \"closed\"");
    } else if server == 2 && range.is_some() {
        record["skipped"] = json!(
            "block-as-object only: Varnish would fetch the whole object for a range of a miss"
        );
    } else {
        record["report"] = report(server, shape, connections, tls, round);
    }
    record
}

/// What was run, in words.
pub fn about() -> Value {
    let systems: Vec<Value> = SERVERS
        .iter()
        .map(|server| {
            json!({"name": server.name, "version": "1.2.3", "notes": ["a note with <b>markup</b>"],
                "settings": "one worker on CPU 0, 512 MiB of memory, TLS 1.3 with AES-128-GCM, keep-alive without limit"})
        })
        .collect();
    json!({
        "kind": "about", "title": "Forebay beside its peers", "started": "2026-11-22T01:00:00Z", "form": "long",
        "machine": {"cpu": "AMD EPYC 7R13", "cores": 2, "kernel": "6.18.0", "memory_bytes": 24_u64 << 30,
            "disk": "virtio, 2.1 GiB/s at depth 32", "notes": ["a virtual machine"]},
        "systems": systems,
        "method": ["Server on CPU 0, generator and origin on CPU 1.", "Rounds go over all systems in turn, every other one backwards."]
    })
}

/// Promises, one of each outcome, and a check.
pub fn targets() -> Vec<Value> {
    vec![
        json!({"kind": "target", "name": "TLS hit in memory, CPU per GiB", "target": "≤ 0.40 × nginx", "value": 0.31, "low": 0.30,
            "high": 0.33, "unit": "ratio", "met": true, "how": "1 MiB, 16 connections, 5 pairs"}),
        json!({"kind": "target", "name": "plain hit in memory, CPU per GiB", "target": "≤ 0.60 × nginx with sendfile", "value": 0.74,
            "low": 0.71, "high": 0.79, "unit": "ratio", "met": false, "how": "1 MiB, 16 connections, 5 pairs",
            "why": "sendfile copies nothing; our path copies once into the socket"}),
        json!({"kind": "target", "name": "disk-resident hit, throughput", "target": "≥ 0.90 × fio", "value": 0.94, "low": 0.91,
            "high": 0.97, "unit": "ratio", "met": true}),
        json!({"kind": "target", "name": "herd of 1,000", "target": "exactly 1 store GET", "value": 1.0, "unit": "GETs", "met": true}),
        json!({"kind": "target", "name": "hop, p50", "target": "≤ 50 µs", "value": null, "unit": "µs", "met": null,
            "why": "one core only on this machine"}),
        json!({"kind": "check", "name": "wrk beside forebay-bench", "text": "the same row, plain", "a": 11_200.0, "b": 11_350.0, "ratio": 0.987}),
    ]
}

/// All records of the sample, with these shapes and connections and so many rounds, one a line.
pub fn file(shapes: &[Shape], connections: &[u64], rounds: u64) -> String {
    let mut records = vec![about()];
    for round in 1..=rounds {
        for &shape in shapes {
            for &count in connections {
                for tls in [true, false] {
                    records.extend(
                        (0..SERVERS.len()).map(|server| run(server, shape, count, tls, round)),
                    );
                }
            }
        }
    }
    records.extend(targets());
    lines(&records)
}

/// Records as a file has them.
pub fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}
