//! The load generator against the stub: its figures are right, and it notices everything that is wrong.

use std::time::{Duration, Instant};

use argh::FromArgs;
use forebay_bench::load::arguments::{Compare, Get, Put};
use forebay_bench::load::report::Report;
use forebay_bench::load::{self, LoadError, compare};
use forebay_bench::stub::{Action, Fault, Stub, StubHandle, StubOptions};

const SYNTHETIC: &str = "--key-pattern synthetic/{size}/{i}";

fn start() -> StubHandle {
    start_with(StubOptions::default())
}

fn start_with(options: StubOptions) -> StubHandle {
    Stub::start(StubOptions {
        auth: false,
        synthetic: true,
        ..options
    })
    .expect("the stub starts")
}

fn arguments_for(stub: &StubHandle, seconds: f64, rest: &str) -> String {
    format!(
        "--target {}/bucket/ --seconds {seconds} --warmup 0.1 --connections 3 {SYNTHETIC} {rest}",
        stub.url()
    )
}

fn get(stub: &StubHandle, rest: &str) -> Result<Report, LoadError> {
    get_for(stub, 0.4, rest)
}

fn get_for(stub: &StubHandle, seconds: f64, rest: &str) -> Result<Report, LoadError> {
    let text = arguments_for(stub, seconds, rest);
    let words: Vec<&str> = text.split_whitespace().collect();
    load::get(&Get::from_args(&["get"], &words).expect("the test's arguments"))
}

fn put(stub: &StubHandle, rest: &str) -> Report {
    let text = format!("--target {}/bucket/ {rest}", stub.url());
    let words: Vec<&str> = text.split_whitespace().collect();
    load::put(&Put::from_args(&["put"], &words).expect("the test's arguments")).expect("a run")
}

#[test]
fn a_good_run_has_figures_that_agree() {
    let stub = start();
    let report = get(&stub, "--size 64KiB --keys 5 --verify all --threads 2").unwrap();
    assert!(report.is_good(), "{report}");
    // What the machine was busy with besides is no fault of the run.
    let of_the_machine = |text: &String| text.contains("generator") || text.contains("hypervisor");
    assert!(
        report.errors.is_empty() && report.warnings.iter().all(of_the_machine),
        "{report}"
    );
    // Bytes are counted as they come, requests when they end: they differ by what is under way at the ends.
    let difference = report.bytes.abs_diff(report.requests * 65_536);
    assert!(difference <= 2 * 3 * 65_536 + report.bytes / 10, "{report}");
    let latency = report.latency_us.unwrap();
    assert!(latency.p50 <= latency.p90 && latency.p99 <= latency.max && latency.p50 > 0);
    let stats = stub.stats();
    assert_eq!(stats.keys.len(), 5);
    assert!(
        stats.connections == 3 && stats.concurrent_max <= 3,
        "{stats:?}"
    );
}

#[test]
fn errors_are_counted_apart_and_a_run_of_errors_is_no_success() {
    let stub = start();
    stub.add_fault(Fault::on("GET", "*/0").then(Action::status(503)));
    let mixed = get(&stub, "--size 4KiB --keys 2").unwrap();
    assert!(mixed.is_good() && mixed.errors["status 503"] > 0, "{mixed}");
    let only = get(&stub, "--size 4KiB --keys 1").unwrap();
    assert!(
        !only.is_good() && only.requests == 0 && only.bytes == 0,
        "{only}"
    );
    assert!(only.latency_us.is_none());
    let address = stub.url();
    drop(stub);
    let arguments = format!("--target {address}/bucket/ --seconds 0.2 --warmup 0");
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let gone = load::get(&Get::from_args(&["get"], &words).unwrap()).unwrap();
    assert!(
        !gone.is_good()
            && gone
                .errors
                .keys()
                .all(|kind| kind.starts_with("connection")),
        "{gone}"
    );
}

#[test]
fn wrong_bodies_are_found() {
    let faults = [
        (
            Action::Corrupt { offset: 70_000 },
            "--verify all",
            "wrong content",
        ),
        (Action::Extend { bytes: 1 }, "", "bytes after the body"),
        (Action::IgnoreRange, "--range 4KiB", "status 200"),
        (
            Action::Cut {
                after_bytes: 10,
                reset: true,
            },
            "",
            "connection: ",
        ),
        (Action::CaptivePortal, "", "wrong length"),
    ];
    for (action, arguments, kind) in faults {
        let stub = start();
        stub.add_fault(Fault::on("GET", "*").then(action.clone()));
        let report = get(&stub, &format!("--size 128KiB --keys 3 {arguments}")).unwrap();
        assert!(!report.is_good(), "{action:?}: {report}");
        assert!(
            report.errors.keys().all(|found| found.starts_with(kind)),
            "{action:?}: {report}"
        );
    }
}

#[test]
fn ranges_are_asked_for_and_verified_at_their_offsets() {
    let stub = start();
    let report = get(&stub, "--size 256KiB --keys 3 --range 8KiB --verify all").unwrap();
    assert!(report.is_good() && report.errors.is_empty(), "{report}");
    assert_eq!(report.size_bytes, 8192);
    let log = stub.log();
    assert!(log.iter().all(|entry| entry.status == 206));
    let offsets: std::collections::HashSet<_> = log
        .iter()
        .filter_map(|entry| entry.header("range"))
        .collect();
    assert!(offsets.len() > 10, "ranges are spread: {offsets:?}");
}

#[test]
fn a_fill_is_exact_and_reads_back_verified() {
    let stub = start_with(StubOptions::default());
    let report = put(
        &stub,
        "--count 37 --size 100000 --connections 4 --key-pattern fill/{i}",
    );
    assert!(
        report.is_good() && report.requests == 37 && report.bytes == 3_700_000,
        "{report}"
    );
    assert_eq!(stub.keys("bucket").len(), 37);
    let text = format!(
        "--target {}/bucket/ --seconds 0.3 --warmup 0 --order sequential --key-pattern fill/{{i}} --keys 37 \
         --size 100000 --verify all",
        stub.url()
    );
    let words: Vec<&str> = text.split_whitespace().collect();
    let back = load::get(&Get::from_args(&["get"], &words).unwrap()).unwrap();
    assert!(back.is_good() && back.errors.is_empty(), "{back}");
    stub.add_fault(Fault::on("PUT", "fill/3").then(Action::status(500)));
    let holed = put(&stub, "--count 5 --size 10 --key-pattern fill/{i}");
    assert!(!holed.is_good() && holed.missing == 1, "{holed}");
}

#[test]
fn open_loop_latency_starts_when_a_request_is_due() {
    let stub = start_with(StubOptions {
        latency: Duration::from_millis(50),
        ..StubOptions::default()
    });
    // One connection serves 20 requests a second; 100 are due. A closed loop would report 50 ms for ever.
    let text = format!(
        "--target {}/bucket/ --seconds 0.8 --warmup 0 --connections 1 --size 10 {SYNTHETIC} --rate 100 --arrivals fixed",
        stub.url()
    );
    let words: Vec<&str> = text.split_whitespace().collect();
    let report = load::get(&Get::from_args(&["get"], &words).unwrap()).unwrap();
    assert!(report.latency_us.unwrap().max > 300_000, "{report}");
    let calm = get(&start(), "--size 10 --rate 50").unwrap();
    assert!(calm.requests_per_s < 100.0, "{calm}");
}

#[test]
fn tls_is_negotiated_as_asked_and_strangers_are_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    let (certificate, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let stub = start_with(StubOptions {
        tls: Some((certificate.clone(), key)),
        ..StubOptions::default()
    });
    let ca = format!("--ca {}", certificate.display());
    for trust in [ca.as_str(), "--insecure"] {
        let report = get(
            &stub,
            &format!("--size 300000 --keys 4 --verify all --tls13-aes128 {trust}"),
        )
        .unwrap();
        assert!(report.is_good() && report.errors.is_empty(), "{report}");
        assert_eq!(
            report.tls.as_deref(),
            Some("TLSv1_3 TLS13_AES_128_GCM_SHA256")
        );
    }
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    std::fs::write(&certificate, other.cert.pem()).unwrap();
    let distrusted = get(&stub, &format!("--size 10 {ca}")).unwrap();
    assert!(!distrusted.is_good(), "{distrusted}");
}

#[test]
fn two_servers_are_compared_in_turn() {
    let (fast, slow) = (
        start(),
        start_with(StubOptions {
            latency: Duration::from_millis(300),
            ..StubOptions::default()
        }),
    );
    let own = std::process::id();
    // Long and large enough that also the slow one's CPU time is more than a tick of the kernel's.
    let words = format!("--size 1MiB --server-pid {own}");
    let side = |stub: &StubHandle| arguments_for(stub, 1.5, &words);
    let (a, b) = (side(&fast), side(&slow));
    let words = ["--a", &a, "--b", &b, "--pairs", "2", "--name-a", "fast"];
    let comparison = compare::compare(&Compare::from_args(&["compare"], &words).unwrap()).unwrap();
    let ratio = comparison.throughput_ratio.clone().unwrap();
    assert!(ratio.values.len() == 2 && ratio.min > 1.0, "{comparison}");
    assert!(comparison.server_cpu_ratio.is_some());
    assert!(comparison.to_string().contains("fast"));
}

#[test]
fn arguments_without_sense_are_refused_before_anything_is_sent() {
    let stub = start();
    for wrong in [
        "--size 1XB",
        "--range 2MiB",
        "--order random",
        "--verify some",
        "--threads 4",
        "--header nonsense",
        "--rate 0",
        "--pin x",
    ] {
        assert!(
            matches!(get(&stub, wrong), Err(LoadError::Usage(_))),
            "{wrong}"
        );
    }
    assert!(matches!(
        get(&stub, "--server-pid 4294967294"),
        Err(LoadError::Run(_))
    ));
    assert_eq!(stub.stats().requests_total, 0);
}

#[test]
fn a_server_that_never_answers_does_not_hold_up_the_end() {
    let stub = start();
    stub.add_fault(Fault::on("GET", "*").then(Action::NeverAnswer));
    let begun = Instant::now();
    assert!(!get(&stub, "--size 10").unwrap().is_good());
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn answers_are_broken_off_when_that_is_asked_for_and_count_for_nothing() {
    let stub = start();
    let report = get_for(
        &stub,
        2.0,
        "--size 1MiB --keys 5 --break-off 2 --verify all",
    )
    .unwrap();
    assert!(
        report.requests > 0 && report.errors.is_empty() && report.wrong_content == 0,
        "{report}"
    );
    // Each one broken off costs a connection; three would do otherwise.
    assert!(stub.stats().connections > 6, "{:?}", stub.stats());
    assert!(matches!(
        get(&stub, "--size 1KiB --keys 5 --break-off 0"),
        Err(LoadError::Usage(_))
    ));
}

#[test]
fn a_report_survives_its_json_and_fields_that_are_missing() {
    let stub = start();
    let report = get(&stub, "--size 4KiB --keys 2").unwrap();
    let text = serde_json::to_string(&report).unwrap();
    let mut back: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(back.latency_us, report.latency_us);
    assert_eq!(serde_json::to_string(&back).unwrap(), text);
    back = serde_json::from_str("{\"method\":\"GET\",\"requests\":3}").unwrap();
    assert!(back.requests == 3 && back.series.is_empty() && back.owner_share.is_none());
}
