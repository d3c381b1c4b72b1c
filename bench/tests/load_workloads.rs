//! What the load generator can be told to do, against the stub: that it does it, and that it would notice otherwise.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use argh::FromArgs;
use forebay_bench::load::arguments::{Arguments, Verb};
use forebay_bench::load::report::Report;
use forebay_bench::load::{self, LoadError};
use forebay_bench::stub::{Action, Fault, LogEntry, Stub, StubHandle, StubOptions};

const SYNTHETIC: &str = "--key-pattern synthetic/{size}/{i}";

fn start() -> StubHandle {
    start_with(StubOptions::default())
}

fn start_with(options: StubOptions) -> StubHandle {
    Stub::start(StubOptions {
        synthetic: true,
        auth: false,
        ..options
    })
    .expect("the stub starts")
}

fn parse(text: &str) -> Verb {
    let words: Vec<&str> = text.split_whitespace().collect();
    let arguments = Arguments::from_args(&["forebay-bench"], &words).expect("a test's arguments");
    arguments.command.verb().expect("a verb that makes load")
}

fn run(stub: &StubHandle, verb: &str, rest: &str) -> Result<Report, LoadError> {
    let target = format!("{}/bucket/", stub.url());
    load::run(&parse(&format!("{verb} --target {target} {rest}")))
}

fn good(stub: &StubHandle, verb: &str, rest: &str) -> Report {
    let report = run(stub, verb, rest).expect("a run");
    assert!(report.is_good() && report.errors.is_empty(), "{report}");
    report
}

fn lengths(log: &[LogEntry]) -> BTreeMap<String, HashSet<u64>> {
    let mut lengths = BTreeMap::<_, HashSet<u64>>::new();
    for entry in log {
        lengths
            .entry(entry.key.clone())
            .or_default()
            .insert(entry.bytes_out);
    }
    lengths
}

#[test]
fn objects_of_many_sizes_are_written_and_read_back_verified() {
    let stub = start();
    let sizes = "--size 1..200000 --key-pattern many/{i}";
    let written = good(&stub, "put", &format!("--count 60 {sizes} --connections 3"));
    assert_eq!((written.requests, stub.keys("bucket").len()), (60, 60));
    let read = good(
        &stub,
        "get",
        &format!("--count 60 --keys 60 --order sequential {sizes} --verify all"),
    );
    // Each object once, so the same bytes both ways; the mean is of both the same.
    assert_eq!(
        (read.bytes, read.size_bytes),
        (written.bytes, written.size_bytes)
    );
    assert!(read.seconds < 60.0 && read.size == "1..200000");
    // A reader with other sizes in mind notices.
    let other = run(
        &stub,
        "get",
        "--count 60 --keys 60 --order sequential --size 7..9 --key-pattern many/{i}",
    )
    .unwrap();
    assert!(!other.is_good() && other.wrong_content > 0, "{other}");
}

#[test]
fn a_key_pattern_with_drawn_sizes_names_them() {
    let stub = start();
    let arguments = format!(
        "--count 40 --keys 40 --order sequential --size 1KiB:1,3KiB:1 --verify all {SYNTHETIC}"
    );
    good(&stub, "get", &arguments);
    let keys: HashSet<String> = stub.log().iter().map(|entry| entry.key.clone()).collect();
    assert_eq!(keys.len(), 40);
    assert!(keys.iter().any(|key| key.starts_with("synthetic/1024/")));
    assert!(keys.iter().any(|key| key.starts_with("synthetic/3072/")));
}

#[test]
fn reads_and_writes_are_mixed_by_ratio_and_reported_apart() {
    let stub = start();
    let filling = "--size 4KiB --key-pattern mix/{i}";
    good(&stub, "put", &format!("--count 20 {filling}"));
    let report = good(
        &stub,
        "mixed",
        &format!("--count 2000 --keys 20 --reads 80 {filling} --verify all --connections 4"),
    );
    let (reads, writes) = (&report.by_kind["read"], &report.by_kind["write"]);
    assert_eq!(reads.requests + writes.requests, 2000);
    assert!((1500..1700).contains(&reads.requests), "{report}");
    assert_eq!(reads.bytes, reads.requests * 4096);
    assert!(
        writes.latency_us.is_some() && report.method == "GET+PUT" && report.workload == "mixed"
    );
    let puts = stub
        .log()
        .iter()
        .filter(|entry| entry.method == "PUT")
        .count() as u64;
    assert_eq!(puts, 20 + writes.requests);
    stub.add_fault(Fault::on("PUT", "*").then(Action::status(500)));
    let refused = run(
        &stub,
        "mixed",
        &format!("--seconds 0.3 --warmup 0 --keys 20 --reads 50 {filling}"),
    )
    .unwrap();
    assert!(refused.by_kind["write"].errors > 0 && refused.by_kind["write"].requests == 0);
    assert!(refused.by_kind["read"].requests > 0 && refused.by_kind["read"].errors == 0);
}

#[test]
fn a_herd_asks_for_each_fresh_key_at_once() {
    let stub = start_with(StubOptions {
        latency: Duration::from_millis(30),
        ..StubOptions::default()
    });
    let arguments =
        format!("--connections 20 --threads 2 --rounds 3 --first 70 --size 64KiB {SYNTHETIC}");
    let report = good(&stub, "herd", &arguments);
    assert_eq!((report.requests, report.missing), (60, 0));
    let slowest = &report.by_kind["slowest"];
    assert_eq!(slowest.requests, 3);
    assert_eq!(
        slowest.latency_us.unwrap().max,
        report.latency_us.unwrap().max
    );
    assert_eq!(report.latency_histogram.last().unwrap()[1], 60);
    let stats = stub.stats();
    // The stub waits before it answers, so all of a round are with it at once: that is what makes a herd.
    assert_eq!(stats.concurrent_max, 20, "{stats:?}");
    for key in 70..73 {
        assert_eq!(
            stats.key("bucket", &format!("synthetic/64KiB/{key}")).gets,
            20
        );
    }
}

#[test]
fn a_herd_with_a_wrong_body_or_an_error_fails() {
    let stub = start();
    stub.add_fault(Fault::on("GET", "*/1").then(Action::Corrupt { offset: 5 }));
    let arguments = format!("--connections 5 --rounds 3 --size 1KiB {SYNTHETIC}");
    let report = run(&stub, "herd", &arguments).unwrap();
    assert!(
        !report.is_good() && report.wrong_content == 5 && report.requests == 10,
        "{report}"
    );
    stub.clear_faults();
    stub.add_fault(Fault::on("GET", "*/2").then(Action::Cut {
        after_bytes: 1,
        reset: true,
    }));
    let report = run(&stub, "herd", &arguments).unwrap();
    assert!(report.missing == 5 && report.requests == 10, "{report}");
}

#[test]
fn a_scan_goes_once_through_beside_a_hot_set() {
    let stub = start();
    let arguments = format!(
        "--keys 300 --size 16KiB --connections 2 --hot-connections 3 --hot-keys 4 --warmup 0.2 \
         --hot-key-pattern synthetic/{{size}}/hot-{{i}} --verify all {SYNTHETIC}"
    );
    let report = good(&stub, "scan", &arguments);
    assert_eq!((report.by_kind["scan"].requests, report.missing), (300, 0));
    assert!(report.by_kind["hot"].requests > 0 && report.by_kind["hot"].latency_us.is_some());
    let stats = stub.stats();
    let (hot, cold): (Vec<_>, Vec<_>) =
        stats.keys.iter().partition(|(key, _)| key.contains("hot-"));
    assert_eq!((hot.len(), cold.len()), (4, 300));
    assert!(cold.iter().all(|(_, seen)| seen.gets == 1));
}

#[test]
fn a_scan_whose_hot_set_is_not_there_fails() {
    let stub = start();
    let arguments = format!("--keys 200 --size 16KiB --connections 2 --hot-keys 5 {SYNTHETIC}");
    let report = run(&stub, "scan", &arguments).expect("it ran");
    assert_eq!((report.by_kind["scan"].requests, report.missing), (200, 0));
    assert_eq!(report.by_kind["hot"].requests, 0);
    assert!(!report.is_good(), "one of its two sides has no sample");
    assert!(
        report.failure().ends_with(", no sample of hot requests"),
        "{}",
        report.failure()
    );
}

#[test]
fn a_trace_is_followed_line_by_line() {
    let (stub, folder) = (start(), tempfile::tempdir().unwrap());
    let file = folder.path().join("trace");
    std::fs::write(
        &file,
        "# a comment\nPUT t/a 5000\nGET t/a 5000\nGET t/a 5000 4090 20\n\nGET synthetic/100/x 100\n",
    )
    .unwrap();
    let order = format!(
        "--order trace:{} --connections 1 --verify all",
        file.display()
    );
    let report = good(&stub, "mixed", &format!("--count 8 {order}"));
    assert_eq!(
        (
            report.by_kind["read"].requests,
            report.by_kind["write"].requests
        ),
        (6, 2)
    );
    let seen: Vec<(String, String)> = stub
        .log()
        .iter()
        .map(|entry| (entry.method.clone(), entry.key.clone()))
        .collect();
    let expected = [
        ("PUT", "t/a"),
        ("GET", "t/a"),
        ("GET", "t/a"),
        ("GET", "synthetic/100/x"),
    ];
    let twice = expected.iter().chain(&expected);
    assert!(
        twice.eq(seen
            .iter()
            .map(|(method, key)| (method.as_str(), key.as_str()))
            .collect::<Vec<_>>()
            .iter()),
        "{seen:?}"
    );
    assert_eq!(lengths(&stub.log())["t/a"], HashSet::from([0, 5000, 20]));
    assert!(matches!(
        run(&stub, "get", &order),
        Err(LoadError::Usage(_))
    ));
}

#[test]
fn requests_are_signed_so_that_a_strict_server_takes_them() {
    let options = StubOptions::default();
    let (access, secret) = (options.access_key.clone(), options.secret_key.clone());
    let stub = Stub::start(StubOptions {
        auth: true,
        ..options
    })
    .unwrap();
    let keys = format!(
        "--access-key {access} --secret-key {secret} --region {}",
        stub.options().region
    );
    let odd = "--key-pattern a/sp~(e)c+ial/{i} --size 70000 --header x-amz-meta-a:b";
    good(&stub, "put", &format!("--count 3 {keys} {odd}"));
    good(
        &stub,
        "put",
        &format!("--count 3 {keys} {odd} --unsigned-payload"),
    );
    good(
        &stub,
        "get",
        &format!("--count 9 --keys 3 {keys} {odd} --verify all --range 1000"),
    );
    let wrong = format!("--access-key {access} --secret-key x");
    for unfit in [wrong.as_str(), "--token t", ""] {
        let report = run(&stub, "get", &format!("--count 3 --keys 3 {unfit} {odd}")).unwrap();
        let refused = |kind: &String| kind.starts_with("status 40");
        assert!(
            report.requests == 0 && report.errors.keys().all(refused),
            "{report}"
        );
    }
    for senseless in ["--secret-key x", "--access-key a --secret-key x --token t"] {
        assert!(
            matches!(run(&stub, "get", senseless), Err(LoadError::Usage(_))),
            "{senseless}"
        );
    }
}

#[test]
fn a_token_is_sent_with_every_request() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("http://{}/v/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let stream = listener.accept().unwrap().0;
        let (mut lines, mut writer) = (BufReader::new(&stream).lines(), &stream);
        let mut tokens = 0;
        for _ in 0..2 {
            for line in lines.by_ref().map(Result::unwrap) {
                tokens += u32::from(line == "Authorization: Bearer abc");
                if line.is_empty() {
                    break;
                }
            }
            writer
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
                .unwrap();
        }
        tokens
    });
    let arguments = "--count 2 --connections 1 --size 1 --token abc";
    let report = load::run(&parse(&format!("get --target {target} {arguments}"))).unwrap();
    assert_eq!((report.requests, server.join().unwrap()), (2, 2));
}

#[test]
fn several_requests_are_under_way_on_one_connection() {
    let stub = start_with(StubOptions {
        latency: Duration::from_millis(5),
        ..StubOptions::default()
    });
    let arguments =
        format!("--count 200 --keys 50 --connections 2 --size 1..9000 --verify all {SYNTHETIC}");
    let report = good(&stub, "get", &format!("{arguments} --depth 8"));
    assert_eq!((report.requests, report.depth), (200, 8));
    assert_eq!(stub.stats().connections, 2);
    // Eight wait in a row behind one another: the last is due for 8 x 5 ms, where with depth 1 each takes 5.
    let deep = report.latency_us.unwrap().p50;
    let shallow = good(&stub, "get", &arguments).latency_us.unwrap().p50;
    assert!(deep > 3 * shallow, "{deep} {shallow}");
    let mixed = "--count 200 --keys 9 --reads 50 --depth 4 --key-pattern deep/{i} --size 90000 --verify all";
    good(
        &stub,
        "put",
        "--count 9 --key-pattern deep/{i} --size 90000 --depth 3",
    );
    good(&stub, "mixed", mixed);
}

#[test]
fn a_connection_lost_with_requests_under_way_loses_them_all() {
    let stub = start();
    stub.add_fault(Fault::on("GET", "*/3").then(Action::Cut {
        after_bytes: 10,
        reset: true,
    }));
    let arguments = format!(
        "--count 10 --keys 10 --order sequential --connections 1 --depth 10 --size 1KiB {SYNTHETIC}"
    );
    let report = run(&stub, "get", &arguments).unwrap();
    let errors: u64 = report.errors.values().sum();
    assert_eq!(
        (report.requests, errors, report.missing),
        (3, 7, 7),
        "{report}"
    );
}

#[test]
fn rates_are_stepped_with_a_report_each() {
    let (stub, folder) = (start(), tempfile::tempdir().unwrap());
    let file = folder.path().join("latency.hgrm");
    let text = format!(
        "get --target {}/bucket/ --rate 50,200 --arrivals fixed --step-seconds 0.5 --warmup 0.1 --size 10 {SYNTHETIC} --hdr {}",
        stub.url(),
        file.display()
    );
    let (mut reports, mut began) = (Vec::new(), Instant::now());
    load::run_steps(&parse(&text), |report| {
        reports.push((report.clone(), began.elapsed()));
        began = Instant::now();
    })
    .unwrap();
    let [(slow, _), (fast, _)] = &reports[..] else {
        panic!("two reports, not {}", reports.len());
    };
    assert_eq!((slow.rate, fast.rate), (Some(50.0), Some(200.0)));
    for (report, took) in &reports {
        // Fixed gaps: no more than come due from the first moment of the warm-up on, however late a part of it was.
        let rate = report.rate.unwrap();
        assert!(
            (1.0..=rate * took.as_secs_f64()).contains(&(report.requests as f64)),
            "{took:?} {report}"
        );
        // As many as the rate makes of the window, or the report says that they were fewer.
        let told = report
            .warnings
            .iter()
            .any(|text| text.contains("were offered"));
        let kept = report.requests as f64 >= 0.95 * rate * report.seconds;
        assert!(kept || told, "{report}");
        assert!((report.requests_per_s * report.seconds - report.requests as f64).abs() < 0.1);
    }
    assert!(
        folder.path().join("latency-50.hgrm").exists()
            && folder.path().join("latency-200.hgrm").exists()
    );
    assert!(matches!(load::run(&parse(&text)), Err(LoadError::Usage(_))));
}

#[test]
fn a_rate_that_was_not_reached_is_said() {
    let stub = start_with(StubOptions {
        latency: Duration::from_millis(50),
        ..StubOptions::default()
    });
    let arguments =
        format!("--seconds 0.6 --warmup 0 --connections 1 --size 10 --rate 200 {SYNTHETIC}");
    let report = run(&stub, "get", &arguments).unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|text| text.contains("were offered")),
        "{report}"
    );
    // Waiting for the next moment costs no CPU: spinning away would make this 1. A process of its own, to count its own time.
    let stub = start();
    let arguments = format!(
        "get --target {}/bucket/ --seconds 0.6 --warmup 0 --size 10 --rate 100 --json {SYNTHETIC}",
        stub.url()
    );
    let output = Command::new(env!("CARGO_BIN_EXE_forebay-bench"))
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let calm: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && calm.requests > 20, "{calm}");
    assert!(calm.generator_busy < 0.5, "{calm}");
}

#[test]
fn a_run_has_a_series_and_a_distribution() {
    let (stub, folder) = (start(), tempfile::tempdir().unwrap());
    let file = folder.path().join("run.hgrm");
    let own = std::process::id();
    let arguments = format!(
        "--seconds 2.5 --warmup 0 --size 4KiB --server-pid {own} {SYNTHETIC} --hdr {}",
        file.display()
    );
    let report = good(&stub, "get", &arguments);
    // An entry for each second, and one for the half that is left.
    let ends: Vec<f64> = report.series.iter().map(|second| second.t_s).collect();
    assert!(
        (2..=3).contains(&ends.len()) && ends.is_sorted() && ends[0] >= 1.0,
        "{ends:?}"
    );
    for second in &report.series {
        assert!(
            second.requests_per_s > 0.0 && second.gib_per_s > 0.0 && second.p50_us <= second.p99_us
        );
        assert!(second.server_cpu.is_some_and(|cpu| cpu > 0.0) && second.errors == 0);
    }
    let counted = report.latency_histogram.last().unwrap();
    assert_eq!(counted[1], report.requests);
    let text = std::fs::read_to_string(file).unwrap();
    assert!(
        text.contains(&format!("Total count    = {:>12}]", report.requests)),
        "{text}"
    );
}

#[test]
fn arguments_of_the_new_verbs_are_checked_before_anything_is_sent() {
    let stub = start();
    for (verb, wrong) in [
        ("mixed", "--reads 101"),
        ("mixed", "--range 2MiB"),
        ("herd", "--rounds 0"),
        ("herd", "--rate 5"),
        ("scan", "--hot-order x"),
        ("scan", "--hot-connections 0"),
        ("get", "--depth 0"),
        ("get", "--count 0"),
        ("get", "--rate 5,x"),
        ("get", "--rate 5,0"),
        ("get", "--step-seconds 5"),
        ("get", "--core-choice best"),
        ("get", "--size 8..4"),
        ("put", "--order trace:/no/such/file"),
    ] {
        let outcome = run(&stub, verb, wrong);
        assert!(
            matches!(outcome, Err(LoadError::Usage(_))),
            "{verb} {wrong}: {outcome:?}"
        );
    }
    // The stub is no Forebay and knows no topology.
    assert!(matches!(
        run(&stub, "get", "--core-aware"),
        Err(LoadError::Run(_))
    ));
}
