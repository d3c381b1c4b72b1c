//! The command line as it is typed: owns names, defaults and help texts. What it means is decided in `plan`.

use std::path::PathBuf;

use argh::FromArgs;

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
    /// Read from two servers in turn.
    Compare(Compare),
    /// Show.
    Report(crate::page::arguments::PageArguments),
}

/// Read objects and measure.
#[derive(FromArgs, Debug, Clone)]
#[argh(
    subcommand,
    name = "get",
    example = "{command_name} --target https://127.0.0.1:8443/vol/ --insecure --keys 1000 --size 1MiB --connections 16",
    note = "Sizes are bytes or carry KiB, MiB, GiB. A pattern's {{i}} is the key's number from 0, {{size}} is --size as typed."
)]
pub struct Get {
    /// URL that keys are appended to; several, with commas between, are dealt to the connections in turn
    #[argh(option)]
    pub target: String,
    /// number of different keys (default 100)
    #[argh(option, default = "100")]
    pub keys: u64,
    /// form of the keys (default bench/{size}/{i})
    #[argh(option, default = "String::from(\"bench/{size}/{i}\")")]
    pub key_pattern: String,
    /// size of each object (default 1MiB)
    #[argh(option, default = "String::from(\"1MiB\")")]
    pub size: String,
    /// connections in all (default 16)
    #[argh(option, default = "16")]
    pub connections: usize,
    /// threads that drive them (default 1)
    #[argh(option, default = "1")]
    pub threads: usize,
    /// seconds measured (default 10)
    #[argh(option, default = "10.0")]
    pub seconds: f64,
    /// seconds of the same load before measuring (default 2)
    #[argh(option, default = "2.0")]
    pub warmup: f64,
    /// ask for aligned ranges of this size at random positions, instead of whole objects
    #[argh(option)]
    pub range: Option<String>,
    /// order of keys: uniform, sequential or zipf:EXPONENT (default uniform)
    #[argh(option, default = "String::from(\"uniform\")")]
    pub order: String,
    /// header line added to each request, such as 'Authorization: Bearer TOKEN'; may be repeated
    #[argh(option)]
    pub header: Vec<String>,
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
    /// requests per second, sent when they are due (open loop); default: as fast as answers come (closed loop)
    #[argh(option)]
    pub rate: Option<f64>,
    /// gaps between open-loop requests: poisson or fixed (default poisson)
    #[argh(option, default = "String::from(\"poisson\")")]
    pub arrivals: String,
    /// break the connection off in the middle of one answer in this many; such requests are in no figure
    /// (default: never)
    #[argh(option)]
    pub break_off: Option<u64>,
    /// what is checked of a body: length, sample (length of all, bytes of one in 16) or all (default length)
    #[argh(option, default = "String::from(\"length\")")]
    pub verify: String,
    /// print one JSON object instead of a table
    #[argh(switch)]
    pub json: bool,
}

/// Write objects and measure, or with --count fill a store with exactly so many.
#[derive(FromArgs, Debug, Clone)]
#[argh(
    subcommand,
    name = "put",
    example = "{command_name} --target http://127.0.0.1:9000/bucket/ --count 1000 --size 4MiB --connections 4"
)]
pub struct Put {
    /// URL that keys are appended to; several, with commas between, are dealt to the connections in turn
    #[argh(option)]
    pub target: String,
    /// number of different keys, written round and round (default 100)
    #[argh(option, default = "100")]
    pub keys: u64,
    /// write each of this many keys once and stop; --keys, --seconds and --warmup do not matter then
    #[argh(option)]
    pub count: Option<u64>,
    /// form of the keys (default bench/{size}/{i})
    #[argh(option, default = "String::from(\"bench/{size}/{i}\")")]
    pub key_pattern: String,
    /// size of each object (default 1MiB)
    #[argh(option, default = "String::from(\"1MiB\")")]
    pub size: String,
    /// connections in all (default 4)
    #[argh(option, default = "4")]
    pub connections: usize,
    /// threads that drive them (default 1)
    #[argh(option, default = "1")]
    pub threads: usize,
    /// seconds measured (default 10)
    #[argh(option, default = "10.0")]
    pub seconds: f64,
    /// seconds of the same load before measuring (default 2)
    #[argh(option, default = "2.0")]
    pub warmup: f64,
    /// header line added to each request; may be repeated
    #[argh(option)]
    pub header: Vec<String>,
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
    /// block device to watch, such as vda
    #[argh(option)]
    pub device: Option<String>,
    /// CPU to run on; several with commas between, one for each thread
    #[argh(option)]
    pub pin: Option<String>,
    /// requests per second (open loop)
    #[argh(option)]
    pub rate: Option<f64>,
    /// gaps between open-loop requests: poisson or fixed (default poisson)
    #[argh(option, default = "String::from(\"poisson\")")]
    pub arrivals: String,
    /// print one JSON object instead of a table
    #[argh(switch)]
    pub json: bool,
}

/// Read from two servers in turn, A B A B, and print the ratios of each pair and their medians.
#[derive(FromArgs, Debug, Clone)]
#[argh(
    subcommand,
    name = "compare",
    example = "{command_name} --a '--target https://127.0.0.1:8443/vol/ --server-pid 10' --b '--target https://127.0.0.1:8444/ --server-pid 20'"
)]
pub struct Compare {
    /// arguments of `get` for side A, in one string
    #[argh(option)]
    pub a: String,
    /// arguments of `get` for side B, in one string
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
