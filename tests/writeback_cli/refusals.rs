//! What is refused: strangers, wrong certificates, unknown parameters, wrong methods, odd flags.

use super::common::{self, OPERATOR, Proxy, READ_WRITE, Setup};
use super::{Said, forebay, operate};
use std::process::{Child, Command};
use std::time::Duration;

fn run(proxy: &Proxy, words: &[&str]) -> Said {
    let mut command = forebay(proxy.folder(), words);
    Said::of(command.output().expect("the command runs"))
}

#[test]
fn only_the_operator_is_served() {
    let proxy = Setup::default().start();
    let url = format!("http://{}", proxy.address);
    for command in ["drain", "flush", "dirty"] {
        let words = [command, "--url", &url, "--token", READ_WRITE];
        run(&proxy, &words).is(1, "refuses the token: this is not the operator's token");
    }
    for (method, target) in [
        ("GET", "/-/dirty"),
        ("GET", "/-/dirty/remaining"),
        ("POST", "/-/dirty/retry"),
        ("POST", "/-/dirty/abandon?volume=vol&key=k"),
        ("GET", "/-/dirty/export?volume=vol&key=k"),
        ("POST", "/-/flush"),
        ("POST", "/-/drain"),
        ("DELETE", "/-/drain"),
    ] {
        for (token, status) in [("", 401), ("Bearer wrong", 403)] {
            let answer = proxy.request(method, target, &[("Authorization", token)], b"");
            assert_eq!(answer.status, status, "{method} {target} with {token:?}");
        }
    }
    let status = proxy.operator("GET", "/-/status").text();
    assert!(status.contains("\"draining\": false"), "{status}");
}

#[test]
fn paths_are_strict_about_methods_and_parameters() {
    let proxy = Setup::default().start();
    for (method, target, status, part) in [
        ("POST", "/-/dirty", 405, "GET, HEAD"),
        ("GET", "/-/flush", 405, "POST"),
        ("PUT", "/-/drain", 405, "POST, DELETE"),
        ("DELETE", "/-/flush", 405, "POST"),
        ("GET", "/-/dirty/abandon?volume=v&key=k", 405, "POST"),
        ("GET", "/-/dirty?limt=5", 400, "takes limit"),
        ("GET", "/-/dirty?limit=0", 400, "is not 1 to 10000"),
        ("GET", "/-/dirty?limit=10001", 400, "is not 1 to 10000"),
        ("GET", "/-/dirty?limit=%2B5", 400, "not a whole number"),
        ("GET", "/-/dirty?limit=5&limit=6", 400, "given twice"),
        (
            "GET",
            "/-/dirty/remaining?before=5",
            400,
            "takes before_unix_ms",
        ),
        ("POST", "/-/flush?before_unix_ms=5", 400, "takes none"),
        ("POST", "/-/drain?force=1", 400, "takes none"),
        ("POST", "/-/dirty/retry?key=k", 400, "without volume"),
        ("POST", "/-/dirty/abandon", 400, "volume and key are needed"),
        ("GET", "/-/dirty/export?volume=v", 400, "without key"),
        ("GET", "/-/dirty/export?volume=v&key=%ff", 400, "UTF-8"),
        (
            "GET",
            "/-/dirty/export?volume=vol&key=../../etc",
            404,
            "no dirty block",
        ),
        (
            "GET",
            "/-/dirty/export?volume=no-such&key=k",
            404,
            "no dirty block",
        ),
        (
            "POST",
            "/-/dirty/abandon?volume=vol&key=k",
            404,
            "no dirty block",
        ),
        ("GET", "/-/dirty/", 404, "no such control path"),
        ("GET", "/-/dirty/all", 404, "no such control path"),
    ] {
        let answer = proxy.operator(method, target);
        let text = answer.text();
        assert_eq!(answer.status, status, "{method} {target}: {text}");
        assert!(text.contains(part), "{method} {target}: {text}");
        let allow = answer.header("allow");
        assert_eq!(allow, (status == 405).then_some(part), "{method} {target}");
    }
    let answer = proxy.operator("HEAD", "/-/dirty");
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_ne!(answer.expect_header("content-length"), "0");
    assert_eq!(answer.expect_header("cache-control"), "no-store");
    // A body that nobody asked for does not unsettle the connection.
    let mut client = proxy.client();
    for _ in 0..2 {
        let token = format!("Bearer {OPERATOR}");
        let answer = client.request("POST", "/-/flush", &[("Authorization", &token)], b"{}");
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
}

#[test]
fn the_proxy_must_prove_itself() {
    let setup = Setup {
        tls: true,
        ..Setup::default()
    };
    let proxy = setup.start();
    let url = format!("https://{}", proxy.address);
    let certificate = proxy.certificate_file();
    let certificate = certificate.to_str().expect("text");
    let flush = |words: &[&str]| {
        let words = [&["flush", "--url", &url, "--token", OPERATOR], words].concat();
        run(&proxy, &words)
    };
    let stderr = proxy.stderr();
    let fingerprint = stderr
        .split_whitespace()
        .map(|word| word.trim_end_matches([',', ';', ')']))
        .find(|word| word.split(':').count() == 32)
        .unwrap_or_else(|| panic!("no fingerprint in {stderr}"));
    flush(&["--fingerprint", fingerprint]).is(0, "flushed");
    flush(&[
        "--fingerprint",
        &fingerprint.replace(':', "").to_lowercase(),
    ])
    .is(0, "flushed");
    let plain = fingerprint.replace(':', "");
    flush(&["--fingerprint", &"00".repeat(32)]).is(1, &plain);
    flush(&["--ca", certificate]).is(0, "flushed");
    let said = flush(&["--insecure"]).is(0, "flushed");
    assert!(said.error.contains("warning: --insecure"), "{said:?}");
    flush(&["--fingerprint", "12:34"]).is(2, "64 hexadecimal digits");
    flush(&["--ca", "no-such-file"]).is(2, "No such file");
    flush(&["--ca", certificate, "--insecure"]).is(2, "is given too");
    // Trusting something else than what the proxy has.
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("made");
    std::fs::write(proxy.folder().join("other.pem"), other.cert.pem()).expect("write");
    flush(&["--ca", "other.pem"]).is(1, "does not answer");
}

#[test]
fn a_proxy_that_is_not_there_is_named() {
    let proxy = Setup::default().prepare();
    let url = format!("http://{}", proxy.address);
    let said = run(&proxy, &["drain", "--url", &url, "--token", OPERATOR]);
    said.is(1, &format!("the proxy at {url} does not answer: "));
    let words = [
        "drain",
        "--url",
        "http://no-such-host.invalid",
        "--token",
        OPERATOR,
    ];
    run(&proxy, &words).is(1, "does not answer: ");
}

#[test]
fn odd_flags_are_usage_errors() {
    let proxy = Setup::default().start();
    for (words, part) in [
        (&["dirty", "--limit", "0"][..], "--limit: `0`"),
        (&["dirty", "--limit", "x"], "--limit: `x`"),
        (
            &["dirty", "--json", "--retry"],
            "--json: it belongs to the list",
        ),
        (
            &["dirty", "--export", "a", "--abandon", "b"],
            "is given too",
        ),
        (&["dirty", "--retry", "--volume", "v"], "name the key"),
        (&["drain", "--config", "c"], "more than one of --token"),
        (&["drain", "key"], "`key` is not expected here"),
        (
            &["flush", "--now"],
            "--now is not a flag of `forebay flush`",
        ),
    ] {
        operate(&proxy, words).is(2, part);
    }
    run(&proxy, &["flush"]).is(2, "--token: it is missing");
    run(&proxy, &["flush", "--config", "no-such.toml"]).is(2, "no-such.toml");
    run(&proxy, &["flush", "--dev"]).is(2, "start --dev");
}

#[test]
fn the_token_comes_from_files_and_stays_out_of_the_process_list() {
    let proxy = Setup::default().start();
    let url = format!("http://{}", proxy.address);
    let config = proxy.config_file();
    let words = [
        "flush",
        "--url",
        &url,
        "--config",
        config.to_str().expect("text"),
    ];
    run(&proxy, &words).is(0, "flushed");
    let file = proxy.folder().join("token");
    std::fs::write(&file, format!("{OPERATOR}\n")).expect("write");
    let words = ["flush", "--url", &url, "--tokenFile", "token"];
    run(&proxy, &words).is(2, "chmod 600");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, private).expect("chmod");
    run(&proxy, &words).is(0, "flushed");
    // A listener that never answers keeps the command there to be looked at.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", silent.local_addr().expect("bound"));
    let mut command = forebay(
        proxy.folder(),
        &["flush", "--url", &url, "--token", OPERATOR],
    );
    let mut child = command.spawn().expect("the command runs");
    let (_kept, _) = silent.accept().expect("it connects");
    let line = std::fs::read(format!("/proc/{}/cmdline", child.id())).expect("cmdline");
    child.kill().expect("kill");
    child.wait().expect("wait");
    let line = String::from_utf8_lossy(&line);
    assert!(line.contains("flush") && !line.contains(OPERATOR), "{line}");
}

/// The process of `start --dev`; killed when dropped.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn dev_needs_nothing_but_its_folder() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let port = common::proxy::free_port();
    let address = format!("127.0.0.1:{port}");
    let start = ["start", "--dev", "--bindAddr", &address, "--shards", "1"];
    let mut command: Command = forebay(folder.path(), &start);
    command.stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null());
    let _dev = Dev(command.spawn().expect("it starts"));
    let url = format!("https://localhost:{port}");
    let flush = || {
        let words = ["flush", "--dev", "--url", &url];
        let output = forebay(folder.path(), &words).output();
        Said::of(output.expect("the command runs"))
    };
    common::wait_until("the dev proxy serves", || {
        std::thread::sleep(Duration::from_millis(100));
        flush().code == Some(0)
    });
    flush().is(0, "flushed: nothing was left to upload");
}
