//! The command line as it is typed: owns names, defaults and help texts. What it means is decided in `plan`.
//!
//! argh knows no shared options, so the ones that every verb takes are written once, in a macro that each verb's own options
//! are put in front of.

use std::path::PathBuf;

use argh::FromArgs;

use crate::page::arguments::PageArguments;

/// Load generator for Forebay, its peers, and any other server that answers GET and PUT.
///
/// Reports throughput, latency percentiles and, given --server-pid, the server's CPU seconds for each GiB.
/// Exit code 0: done; 1: no samples, wrong bytes, or the run failed; 2: bad arguments.
#[derive(FromArgs, Debug)]
pub struct Arguments {
    #[argh(subcommand)]
    /// what to do
    pub command: Command,
}

/// What to do.
#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub enum Command {
    /// Read.
    Get(Get),
    /// Write.
    Put(Put),
    /// Read and write.
    Mixed(Mixed),
    /// Many ask for one key at once.
    Herd(Herd),
    /// Read once through beside a hot set.
    Scan(Scan),
    /// Two servers in turn.
    Compare(Compare),
    /// Show.
    Report(PageArguments),
}

/// A verb that makes no load of its own.
#[derive(Debug, Clone)]
pub enum Other {
    /// Two servers in turn.
    Compare(Compare),
    /// Show.
    Report(PageArguments),
}

/// A verb that makes load, with its arguments.
#[derive(Debug, Clone)]
pub enum Verb {
    /// Read.
    Get(Get),
    /// Write.
    Put(Put),
    /// Read and write.
    Mixed(Mixed),
    /// Many ask for one key at once.
    Herd(Herd),
    /// Read once through beside a hot set.
    Scan(Scan),
}

impl Verb {
    /// As it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Get(_) => "get",
            Self::Put(_) => "put",
            Self::Mixed(_) => "mixed",
            Self::Herd(_) => "herd",
            Self::Scan(_) => "scan",
        }
    }

    /// The shared options, with the verb's own defaults.
    pub fn common(&self) -> Common {
        match self {
            Self::Get(get) => get.common("uniform", "length"),
            Self::Put(put) => put.common("sequential", "length"),
            Self::Mixed(mixed) => mixed.common("uniform", "length"),
            Self::Herd(herd) => herd.common("sequential", "all"),
            Self::Scan(scan) => scan.common("sequential", "length"),
        }
    }
}

impl Command {
    /// The load to make, or what else is to be done.
    pub fn verb(self) -> Result<Verb, Other> {
        match self {
            Self::Get(get) => Ok(Verb::Get(get)),
            Self::Put(put) => Ok(Verb::Put(put)),
            Self::Mixed(mixed) => Ok(Verb::Mixed(mixed)),
            Self::Herd(herd) => Ok(Verb::Herd(herd)),
            Self::Scan(scan) => Ok(Verb::Scan(scan)),
            Self::Compare(compare) => Err(Other::Compare(compare)),
            Self::Report(report) => Err(Other::Report(report)),
        }
    }
}

/// The options that all verbs share, as typed.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each is described where it is typed, below")]
pub struct Common {
    pub target: String,
    pub keys: u64,
    pub first: u64,
    pub seed: u64,
    pub key_pattern: String,
    pub size: String,
    pub order: String,
    pub connections: usize,
    pub depth: usize,
    pub threads: usize,
    pub seconds: f64,
    pub warmup: f64,
    pub header: Vec<String>,
    pub token: Option<String>,
    pub access_key: Option<String>,
    pub secret_key: Option<String>,
    pub region: String,
    pub unsigned_payload: bool,
    pub ca: Option<PathBuf>,
    pub insecure: bool,
    pub tls13_aes128: bool,
    pub server_pid: Option<String>,
    pub device: Option<String>,
    pub pin: Option<String>,
    pub rate: Option<String>,
    pub step_seconds: Option<f64>,
    pub arrivals: String,
    pub verify: String,
    pub core_aware: bool,
    pub core_choice: Option<String>,
    pub hdr: Option<PathBuf>,
    pub json: bool,
}

macro_rules! verb {
    ($(#[$meta:meta])* $name:ident, connections $connections:tt, seconds $seconds:tt, warmup $warmup:tt, { $($own:tt)* }) => {
        #[derive(FromArgs, Debug, Clone)]
        $(#[$meta])*
        pub struct $name {
            /// URL that keys are appended to; several, with commas between, are dealt to the connections in turn
            #[argh(option)]
            pub target: String,
            $($own)*
            /// number of different keys (default 100)
            #[argh(option, default = "100")]
            pub keys: u64,
            /// number of the first key (default 0)
            #[argh(option, default = "0")]
            pub first: u64,
            /// which random order: the same number asks for the same keys again, in the same order (default 0)
            #[argh(option, default = "0")]
            pub seed: u64,
            /// form of the keys (default bench/{size}/{i})
            #[argh(option, default = "String::from(\"bench/{size}/{i}\")")]
            pub key_pattern: String,
            /// size of each object: 1MiB, or 256KiB..8MiB (spread evenly by logarithm), or 64KiB:50,1MiB:30,4MiB:20 (weighted); a
            /// key always has the same size (default 1MiB)
            #[argh(option, default = "String::from(\"1MiB\")")]
            pub size: String,
            /// order of keys: uniform, sequential, zipf:EXPONENT, or trace:FILE with a line 'KEY SIZE' or 'GET|PUT KEY SIZE
            /// [OFFSET LENGTH]' for each request, gone through again and again (default uniform; put: sequential)
            #[argh(option)]
            pub order: Option<String>,
            /// connections in all
            #[argh(option, default = $connections)]
            pub connections: usize,
            /// requests under way on one connection at once: HTTP/1.1 pipelining (default 1)
            #[argh(option, default = "1")]
            pub depth: usize,
            /// threads that drive them (default 1)
            #[argh(option, default = "1")]
            pub threads: usize,
            /// seconds measured, or the longest that a run with an end of its own may take
            #[argh(option, default = $seconds)]
            pub seconds: f64,
            /// seconds of the same load before measuring
            #[argh(option, default = $warmup)]
            pub warmup: f64,
            /// header line added to each request, such as 'x-request-source: bench'; may be repeated
            #[argh(option)]
            pub header: Vec<String>,
            /// sends 'Authorization: Bearer TOKEN'
            #[argh(option)]
            pub token: Option<String>,
            /// signs each request with AWS Signature Version 4 in its headers
            #[argh(option)]
            pub access_key: Option<String>,
            /// secret of --access-key; default: the environment's AWS_SECRET_ACCESS_KEY
            #[argh(option)]
            pub secret_key: Option<String>,
            /// region of the signature (default us-east-1)
            #[argh(option, default = "String::from(\"us-east-1\")")]
            pub region: String,
            /// signs writes as UNSIGNED-PAYLOAD; without it their SHA-256 is made and signed, which costs the generator a pass
            #[argh(switch)]
            pub unsigned_payload: bool,
            /// PEM file with the certificates to trust (default: those of the system)
            #[argh(option)]
            pub ca: Option<PathBuf>,
            /// trust any certificate
            #[argh(switch)]
            pub insecure: bool,
            /// offer TLS 1.3 with TLS_AES_128_GCM_SHA256 and nothing else
            #[argh(switch)]
            pub tls13_aes128: bool,
            /// server process to watch in /proc; several with commas between are summed
            #[argh(option)]
            pub server_pid: Option<String>,
            /// block device to watch, such as vda: bytes that were really read from it
            #[argh(option)]
            pub device: Option<String>,
            /// CPU to run on; several with commas between, one for each thread
            #[argh(option)]
            pub pin: Option<String>,
            /// requests per second, sent when they are due (open loop); several, with commas between, are steps with a report
            /// each; default: as fast as answers come (closed loop)
            #[argh(option)]
            pub rate: Option<String>,
            /// seconds measured of each step (default: --seconds)
            #[argh(option)]
            pub step_seconds: Option<f64>,
            /// gaps between open-loop requests: poisson or fixed (default poisson)
            #[argh(option, default = "String::from(\"poisson\")")]
            pub arrivals: String,
            /// what is checked of a body that is read: length, sample (length of all, bytes of one in 16) or all (default length;
            /// herd: all)
            #[argh(option)]
            pub verify: Option<String>,
            /// ask a Forebay for its map of cores and send each request to the core that owns the object
            #[argh(switch)]
            pub core_aware: bool,
            /// the same with a choice: owner (as --core-aware), wrong (always another core), any (as it comes, but counted)
            #[argh(option)]
            pub core_choice: Option<String>,
            /// file for the latency distribution: HdrHistogram's text form, or its V2 log form if the name ends in .hlog
            #[argh(option)]
            pub hdr: Option<PathBuf>,
            /// print one JSON object (a line for each step) instead of a table
            #[argh(switch)]
            pub json: bool,
        }

        impl $name {
            /// The shared options; `order` and `verify` are what they are without being typed.
            fn common(&self, order: &str, verify: &str) -> Common {
                Common {
                    target: self.target.clone(),
                    keys: self.keys,
                    first: self.first,
                    seed: self.seed,
                    key_pattern: self.key_pattern.clone(),
                    size: self.size.clone(),
                    order: self.order.clone().unwrap_or_else(|| order.to_owned()),
                    connections: self.connections,
                    depth: self.depth,
                    threads: self.threads,
                    seconds: self.seconds,
                    warmup: self.warmup,
                    header: self.header.clone(),
                    token: self.token.clone(),
                    access_key: self.access_key.clone(),
                    secret_key: self.secret_key.clone(),
                    region: self.region.clone(),
                    unsigned_payload: self.unsigned_payload,
                    ca: self.ca.clone(),
                    insecure: self.insecure,
                    tls13_aes128: self.tls13_aes128,
                    server_pid: self.server_pid.clone(),
                    device: self.device.clone(),
                    pin: self.pin.clone(),
                    rate: self.rate.clone(),
                    step_seconds: self.step_seconds,
                    arrivals: self.arrivals.clone(),
                    verify: self.verify.clone().unwrap_or_else(|| verify.to_owned()),
                    core_aware: self.core_aware,
                    core_choice: self.core_choice.clone(),
                    hdr: self.hdr.clone(),
                    json: self.json,
                }
            }
        }
    };
}

verb! {
    /// Read objects and measure.
    #[argh(
        subcommand,
        name = "get",
        example = "{command_name} --target https://127.0.0.1:8443/vol/ --insecure --keys 1000 --size 1MiB --connections 16",
        note = "Sizes are bytes or carry KiB, MiB, GiB. In a pattern {{i}} is the key's number, {{size}} its size (as typed if all have one), {{run}} a word that no other run has.",
        note = "Defaults: --connections 16 --seconds 10 --warmup 2."
    )]
    Get, connections "16", seconds "10.0", warmup "2.0", {
        /// ask for aligned ranges of this size at random positions, instead of whole objects
        #[argh(option)]
        pub range: Option<String>,
        /// make exactly this many requests and stop, without warm-up
        #[argh(option)]
        pub count: Option<u64>,
        /// break the connection off in the middle of one answer in this many; such requests are in no figure
        /// (default: never)
        #[argh(option)]
        pub break_off: Option<u64>,
    }
}

verb! {
    /// Write objects and measure, or with --count fill a store with exactly so many.
    ///
    /// Whether a write is acknowledged before the store has it is the server's to say (volume's `writeback`, `--noWriteback`,
    /// `--sync`); of a client's wishes Forebay knows one: --header 'If-None-Match: *' makes a write go through to the store.
    #[argh(
        subcommand,
        name = "put",
        example = "{command_name} --target http://127.0.0.1:9000/bucket/ --count 1000 --size 4MiB --connections 4",
        note = "Defaults: --connections 4 --seconds 10 --warmup 2."
    )]
    Put, connections "4", seconds "10.0", warmup "2.0", {
        /// write each of this many keys once and stop; --keys, --seconds and --warmup do not matter then
        #[argh(option)]
        pub count: Option<u64>,
    }
}

verb! {
    /// Read and write the same keys, mixed by ratio, and report both together and apart.
    #[argh(
        subcommand,
        name = "mixed",
        example = "{command_name} --target https://127.0.0.1:8443/vol/ --insecure --token TOKEN --reads 70 --size 256KiB..8MiB --seconds 60",
        note = "Keys must exist before they are read: fill with put. Defaults: --connections 16 --seconds 10 --warmup 2."
    )]
    Mixed, connections "16", seconds "10.0", warmup "2.0", {
        /// percentage of reads; lines of a trace that name a method keep it (default 70)
        #[argh(option, default = "70.0")]
        pub reads: f64,
        /// read aligned ranges of this size at random positions, instead of whole objects
        #[argh(option)]
        pub range: Option<String>,
        /// make exactly this many requests and stop, without warm-up
        #[argh(option)]
        pub count: Option<u64>,
    }
}

verb! {
    /// All connections ask for one key at the same instant, round after round, each round a key that nobody asked for before.
    ///
    /// Latency is from the moment of release; `slowest` is the distribution over rounds of the slowest in each.
    #[argh(
        subcommand,
        name = "herd",
        example = "{command_name} --target https://127.0.0.1:8443/vol/ --insecure --connections 1000 --rounds 20 --first 0",
        note = "The server must not have the keys and its store must: a second run needs another --first. Defaults: --connections 100 --seconds 600 --verify all; --keys, --order, --depth, --rate and --warmup do not matter."
    )]
    Herd, connections "100", seconds "600.0", warmup "0.0", {
        /// rounds, a key each (default 10)
        #[argh(option, default = "10")]
        pub rounds: u64,
    }
}

verb! {
    /// Some connections read a hot set again and again while others read --keys once through; reports both apart.
    ///
    /// The run ends with the scan. A warm-up is of the hot set alone.
    #[argh(
        subcommand,
        name = "scan",
        example = "{command_name} --target https://127.0.0.1:8443/vol/ --insecure --keys 20000 --connections 4 --hot-keys 200 --hot-order zipf:0.9",
        note = "--connections, --keys and --key-pattern are the scan's. Defaults: --connections 4 --seconds 3600 --warmup 2; --order does not matter."
    )]
    Scan, connections "4", seconds "3600.0", warmup "2.0", {
        /// connections that read the hot set, besides (default 8)
        #[argh(option, default = "8")]
        pub hot_connections: usize,
        /// keys of the hot set (default 100)
        #[argh(option, default = "100")]
        pub hot_keys: u64,
        /// form of their keys (default hot/{size}/{i})
        #[argh(option, default = "String::from(\"hot/{size}/{i}\")")]
        pub hot_key_pattern: String,
        /// order of the hot keys: uniform or zipf:EXPONENT (default zipf:0.9)
        #[argh(option, default = "String::from(\"zipf:0.9\")")]
        pub hot_order: String,
    }
}

/// Load two servers in turn, A B, B A, A B ..., and print the ratios of each pair, their medians and intervals.
#[derive(FromArgs, Debug, Clone)]
#[argh(
    subcommand,
    name = "compare",
    example = "{command_name} --a 'get --target https://127.0.0.1:8443/vol/ --server-pid 10' --b 'get --target https://127.0.0.1:8444/ --server-pid 20'"
)]
pub struct Compare {
    /// verb and arguments of side A, in one string; without a verb it is `get`
    #[argh(option)]
    pub a: String,
    /// verb and arguments of side B, in one string
    #[argh(option)]
    pub b: String,
    /// name of side A in the table (default A)
    #[argh(option, default = "String::from(\"A\")")]
    pub name_a: String,
    /// name of side B in the table (default B)
    #[argh(option, default = "String::from(\"B\")")]
    pub name_b: String,
    /// pairs of runs (default 5)
    #[argh(option, default = "5")]
    pub pairs: usize,
    /// print one JSON object instead of a table
    #[argh(switch)]
    pub json: bool,
}
