//! The load generator against the real server: that it finds the cores, and that the server takes its signatures.

mod common;

use argh::FromArgs as _;
use common::signing::{Pair, WRITER};
use common::{Proxy, READ_WRITE, Setup, VOLUME};
use forebay_bench::load;
use forebay_bench::load::arguments::Arguments;
use forebay_bench::load::report::Report;

fn run(proxy: &Proxy, verb: &str, rest: &str) -> Report {
    let text = format!(
        "{verb} --target http://{}/{VOLUME}/ --key-pattern load/{{i}} --size 1KiB..300KiB {rest}",
        proxy.address
    );
    let words: Vec<&str> = text.split_whitespace().collect();
    let arguments = Arguments::from_args(&["forebay-bench"], &words).expect("arguments");
    let verb = arguments.command.verb().expect("a verb that makes load");
    let report = load::run(&verb).expect("a run");
    assert!(report.is_good() && report.errors.is_empty(), "{report}");
    report
}

#[test]
fn requests_meet_the_owner_or_miss_it_as_asked() {
    let proxy = Setup {
        shards: 3,
        ..Setup::default()
    }
    .start();
    let token = format!("--token {READ_WRITE}");
    run(&proxy, "put", &format!("--count 90 {token}"));
    let reading =
        format!("--count 90 --keys 90 --order sequential --connections 6 --verify all {token}");
    let share = |choice: &str| {
        let report = run(&proxy, "get", &format!("{reading} {choice}"));
        assert_eq!(report.requests, 90);
        report.owner_share
    };
    assert_eq!(share("--core-aware"), Some(1.0));
    assert_eq!(share("--core-aware --threads 2 --depth 3"), Some(1.0));
    assert_eq!(share("--core-choice wrong"), Some(0.0));
    assert!(share("--core-choice any").is_some_and(|share| share > 0.0 && share < 1.0));
    assert_eq!(share(""), None);
    let aware = run(&proxy, "put", &format!("--count 20 --core-aware {token}"));
    assert_eq!((aware.owner_share, aware.core_aware), (Some(1.0), true));
}

#[test]
fn the_server_takes_the_generators_signatures() {
    let proxy = common::signing::start();
    let Pair { access, secret } = WRITER;
    let keys = format!("--access-key {access} --secret-key {secret}");
    run(&proxy, "put", &format!("--count 9 {keys}"));
    run(
        &proxy,
        "put",
        &format!("--count 9 {keys} --unsigned-payload"),
    );
    let mixed = "--count 200 --keys 9 --depth 4 --connections 4 --verify all";
    let report = run(&proxy, "mixed", &format!("{mixed} {keys}"));
    assert_eq!(
        report.by_kind["read"].requests + report.by_kind["write"].requests,
        200
    );
    let scan = "--keys 9 --hot-keys 5 --hot-key-pattern load/{i} --verify all --warmup 0";
    let report = run(&proxy, "scan", &format!("{scan} {keys}"));
    assert_eq!(report.by_kind["scan"].requests, 9);
}
