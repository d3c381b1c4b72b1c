//! The S3 stub as a program: owns its command line, nothing else. See `forebay_bench::stub`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;
use forebay_bench::stub::{Stub, StubOptions};

/// An S3 server in memory for tests and benchmarks: checks signatures, counts requests, fails on demand.
#[derive(FromArgs)]
struct Arguments {
    /// address and port to listen at (default 127.0.0.1:9000; port 0 takes a free one)
    #[argh(option, default = "SocketAddr::from(([127, 0, 0, 1], 9000))")]
    listen: SocketAddr,
    /// access key that requests must be signed with (default stub-access)
    #[argh(option, default = "String::from(\"stub-access\")")]
    access_key: String,
    /// secret key that requests must be signed with (default stub-secret)
    #[argh(option, default = "String::from(\"stub-secret\")")]
    secret_key: String,
    /// region in the scope of a signature (default us-east-1)
    #[argh(option, default = "String::from(\"us-east-1\")")]
    region: String,
    /// bucket that exists; may be repeated (default: one, named bucket)
    #[argh(option)]
    bucket: Vec<String>,
    /// serve requests without looking at their signatures
    #[argh(switch)]
    no_auth: bool,
    /// let every key named synthetic/SIZE/NAME exist, such as synthetic/4MiB/17
    #[argh(switch)]
    synthetic: bool,
    /// PEM file with the certificate chain; with --tls-key, the stub speaks TLS only
    #[argh(option)]
    tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's key
    #[argh(option)]
    tls_key: Option<PathBuf>,
    /// milliseconds of sleep before every answer (default 0)
    #[argh(option, default = "0")]
    latency_ms: u64,
    /// threads that serve (default 1)
    #[argh(option, default = "1")]
    threads: usize,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let tls = match (arguments.tls_cert, arguments.tls_key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            eprintln!("forebay-s3-stub: --tls-cert and --tls-key must be given together");
            return ExitCode::from(2);
        }
    };
    let mut buckets = arguments.bucket;
    if buckets.is_empty() {
        buckets.push("bucket".into());
    }
    let options = StubOptions {
        listen: arguments.listen,
        access_key: arguments.access_key,
        secret_key: arguments.secret_key,
        region: arguments.region,
        buckets,
        auth: !arguments.no_auth,
        synthetic: arguments.synthetic,
        tls,
        latency: Duration::from_millis(arguments.latency_ms),
        threads: arguments.threads,
    };
    match Stub::start(options) {
        Ok(stub) => {
            println!("listening at {}", stub.url());
            stub.join();
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!(
                "forebay-s3-stub: cannot serve at {}: {error}",
                arguments.listen
            );
            ExitCode::FAILURE
        }
    }
}
