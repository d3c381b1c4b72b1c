//! The command line exactly as typed: commands and flags, as argh declares them, and the way from
//! the process's arguments to them.
//!
//! Nothing here knows what a value means: every value is still the word that was typed, and
//! [`crate::settings`] checks it. Nothing here picks an exit code; `main` does.

pub mod argv;
pub mod backlog;
pub mod check;
pub mod commands;
pub mod fold;
pub mod logging;
pub mod remote;

use crate::settings::secret::Secret;
use argh::{ArgsInfo, FromArgs};
use fold::UsageError;
use std::ffi::OsString;

/// The program's name in help texts and errors.
pub const PROGRAM: &str = "forebay";

/// What a command line asks for.
#[derive(Debug)]
pub enum Request {
    /// Print this text on standard output and succeed.
    Print(String),
    /// Run this command.
    Run(Box<Command>),
}

/// Forebay: an NVMe block cache between compute clusters and a cloud bucket. Every flag can be
/// written in both spellings (--disk-folder, --diskFolder) and with a space or =.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(help_triggers("-h", "--help", "help"))]
pub struct Arguments {
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// what to do
    #[argh(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum Command {
    /// `forebay start`
    Start(StartArguments),
    /// `forebay check`
    Check(CheckArguments),
    /// `forebay drain`
    Drain(DrainArguments),
    /// `forebay flush`
    Flush(FlushArguments),
    /// `forebay dirty`
    Dirty(DirtyArguments),
    /// `forebay init …`
    Init(InitArguments),
    /// `forebay deinit …`
    Deinit(DeinitArguments),
    /// `forebay license`
    License(LicenseArguments),
    /// `forebay version`
    Version(VersionArguments),
}

/// start the proxy
#[derive(Clone, Debug, Default, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "start", help_triggers("-h", "--help", "help"))]
pub struct StartArguments {
    /// address and port to listen on (default 0.0.0.0:443)
    #[argh(option)]
    pub bind_addr: Option<String>,
    /// access key for the object store; overrides the creds file
    #[argh(option)]
    pub block_user: Option<String>,
    /// secret key for the object store; hidden from the process list once read
    #[argh(option)]
    pub block_pass: Option<Secret>,
    /// size of an I/O buffer, bytes (default 1048576)
    #[argh(option)]
    pub buffer_size: Option<String>,
    /// file with the store's credentials: TOML, blockUser and blockPass, mode 0600 (default
    /// ~/.forebay/proxy/creds)
    #[argh(option)]
    pub creds_file: Option<String>,
    /// folder of the ledger (default ~/.forebay/proxy/data)
    #[argh(option)]
    pub db_folder: Option<String>,
    /// ledger's cache, percent of RAM or size (default 10%)
    #[argh(option)]
    pub db_mem_capacity: Option<String>,
    /// folder of the cache, mode 0700 (default /cache)
    #[argh(option)]
    pub disk_folder: Option<String>,
    /// share of the disk that the cache may fill: 5%, 64M, 1T (default 95%)
    #[argh(option)]
    pub disk_quota: Option<String>,
    /// parallel block operations (default 0: chosen from the cores)
    #[argh(option)]
    pub max_bops: Option<String>,
    /// serve plain HTTP instead of HTTPS
    #[argh(switch)]
    pub no_ssl: bool,
    /// carry every write to the store before it is acknowledged
    #[argh(switch)]
    pub no_writeback: bool,
    /// serve CPU profiles on loopback
    #[argh(switch)]
    pub pprof: bool,
    /// port for CPU profiles (default 6064)
    #[argh(option)]
    pub pprof_port: Option<String>,
    /// ask the store to encrypt uploads at rest (AES256)
    #[argh(switch)]
    pub sse: bool,
    /// certificate, PEM (default ~/.forebay/ssl/cert, made on first start)
    #[argh(option)]
    pub ssl_cert: Option<String>,
    /// its private key, PEM, mode 0600 (default ~/.forebay/ssl/key, made on first start)
    #[argh(option)]
    pub ssl_key: Option<String>,
    /// acknowledge a write only when it survives a power cut
    #[argh(switch)]
    pub sync: bool,
    /// log more
    #[argh(switch, short = 'v')]
    pub verbose: bool,
    /// uploads at a time (default 0: as --max-bops)
    #[argh(option)]
    pub writeback_active: Option<String>,
    /// pause in each upload, milliseconds (default 0)
    #[argh(option)]
    pub writeback_delay: Option<String>,
    /// file with volumes and keys, TOML; read again on SIGHUP
    #[argh(option)]
    pub config: Option<String>,
    /// cores to use (default: all)
    #[argh(option)]
    pub shards: Option<String>,
    /// RAM for hot blocks, percent of RAM or size (default 10%)
    #[argh(option)]
    pub mem_capacity: Option<String>,
    /// try it out: loopback port 8443, everything under ./.forebay-dev, no bucket needed
    #[argh(switch)]
    pub dev: bool,
}

/// verify every byte of a cache folder whose proxy is stopped; changes nothing. Exit code 0: no
/// defects, 1: defects or failure, 2: usage
#[derive(Clone, Debug, Default, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "check", help_triggers("-h", "--help", "help"))]
pub struct CheckArguments {
    /// folder of the cache (default /cache)
    #[argh(option)]
    pub disk_folder: Option<String>,
    /// say something of every segment
    #[argh(switch, short = 'v')]
    pub verbose: bool,
}

/// upload everything that is not yet in the store, and take no new dirty blocks until `drain --end`
/// or a restart: writes go through to the store. Waits, with progress, until nothing is left; stop
/// waiting with Ctrl-C, and the proxy goes on. Exit code 0: nothing is left, 1: blocks remain or
/// failure, 2: usage
#[derive(Clone, Debug, Default, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "drain", help_triggers("-h", "--help", "help"))]
pub struct DrainArguments {
    /// end the drain: acknowledge writes before the store has them again
    #[argh(switch)]
    pub end: bool,
    /// where the proxy is (default https://localhost:443)
    #[argh(option)]
    pub url: Option<String>,
    /// the operator's token; hidden from the process list once read
    #[argh(option)]
    pub token: Option<Secret>,
    /// file that holds the operator's token, mode 0600
    #[argh(option)]
    pub token_file: Option<String>,
    /// the proxy's config file, to take the operator's token from
    #[argh(option)]
    pub config: Option<String>,
    /// certificates to trust, PEM (default: the system's, and ~/.forebay/ssl/cert)
    #[argh(option)]
    pub ca: Option<String>,
    /// the proxy's certificate by its SHA-256 fingerprint, which `start` logs; nothing else is trusted
    #[argh(option)]
    pub fingerprint: Option<String>,
    /// trust any certificate; whoever is in between can take the token
    #[argh(switch)]
    pub insecure: bool,
    /// the proxy that `start --dev` runs in this folder: its address, certificate and token
    #[argh(switch)]
    pub dev: bool,
}

/// make everything acknowledged so far durable and upload it at once. Waits, with progress, until it
/// is in the store; writes that come meanwhile are not waited for. Exit code 0: done, 1: blocks
/// remain or failure, 2: usage
#[derive(Clone, Debug, Default, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "flush", help_triggers("-h", "--help", "help"))]
pub struct FlushArguments {
    /// where the proxy is (default https://localhost:443)
    #[argh(option)]
    pub url: Option<String>,
    /// the operator's token; hidden from the process list once read
    #[argh(option)]
    pub token: Option<Secret>,
    /// file that holds the operator's token, mode 0600
    #[argh(option)]
    pub token_file: Option<String>,
    /// the proxy's config file, to take the operator's token from
    #[argh(option)]
    pub config: Option<String>,
    /// certificates to trust, PEM (default: the system's, and ~/.forebay/ssl/cert)
    #[argh(option)]
    pub ca: Option<String>,
    /// the proxy's certificate by its SHA-256 fingerprint, which `start` logs; nothing else is trusted
    #[argh(option)]
    pub fingerprint: Option<String>,
    /// trust any certificate; whoever is in between can take the token
    #[argh(switch)]
    pub insecure: bool,
    /// the proxy that `start --dev` runs in this folder: its address, certificate and token
    #[argh(switch)]
    pub dev: bool,
}

/// list the blocks that are not yet in the store, oldest first; or decide about those that are held:
/// quarantined (the store refuses them, or they are damaged) or in conflict (the store has something
/// newer). Exit code 0: done, 1: failure, 2: usage
#[derive(Clone, Debug, Default, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "dirty", help_triggers("-h", "--help", "help"))]
pub struct DirtyArguments {
    /// print the list as the proxy sends it
    #[argh(switch)]
    pub json: bool,
    /// blocks to list, 1 to 10000 (default 1000)
    #[argh(option)]
    pub limit: Option<String>,
    /// only blocks of this volume
    #[argh(option)]
    pub volume: Option<String>,
    /// upload this held block again, over what the store has; without KEY all that are quarantined
    #[argh(option, arg_name = "key")]
    pub retry: Option<String>,
    /// write every held block to DIR/VOLUME/KEY, the key percent-encoded; replaces no file
    #[argh(option, arg_name = "dir")]
    pub export: Option<String>,
    /// give this held block up for good, without asking
    #[argh(option, arg_name = "key")]
    pub abandon: Option<String>,
    /// where the proxy is (default https://localhost:443)
    #[argh(option)]
    pub url: Option<String>,
    /// the operator's token; hidden from the process list once read
    #[argh(option)]
    pub token: Option<Secret>,
    /// file that holds the operator's token, mode 0600
    #[argh(option)]
    pub token_file: Option<String>,
    /// the proxy's config file, to take the operator's token from
    #[argh(option)]
    pub config: Option<String>,
    /// certificates to trust, PEM (default: the system's, and ~/.forebay/ssl/cert)
    #[argh(option)]
    pub ca: Option<String>,
    /// the proxy's certificate by its SHA-256 fingerprint, which `start` logs; nothing else is trusted
    #[argh(option)]
    pub fingerprint: Option<String>,
    /// trust any certificate; whoever is in between can take the token
    #[argh(switch)]
    pub insecure: bool,
    /// the proxy that `start --dev` runs in this folder: its address, certificate and token
    #[argh(switch)]
    pub dev: bool,
}

/// make the files that the proxy needs
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "init", help_triggers("-h", "--help", "help"))]
pub struct InitArguments {
    /// what to make
    #[argh(subcommand)]
    pub what: InitCommand,
}

/// What `forebay init` makes.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum InitCommand {
    /// `forebay init creds`
    Creds(InitCredsArguments),
    /// `forebay init systemd`
    Systemd(InitSystemdArguments),
}

/// write the store's credentials to the creds file
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "creds", help_triggers("-h", "--help", "help"))]
pub struct InitCredsArguments {
    /// access key for the object store
    #[argh(option)]
    pub block_user: Option<String>,
    /// secret key for the object store
    #[argh(option)]
    pub block_pass: Option<Secret>,
    /// file to write (default ~/.forebay/proxy/creds)
    #[argh(option)]
    pub creds_file: Option<String>,
    /// replace a file that is there
    #[argh(switch)]
    pub force: bool,
}

/// write the systemd unit forebay-proxy.service
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "systemd", help_triggers("-h", "--help", "help"))]
pub struct InitSystemdArguments {
    /// replace a unit that is there
    #[argh(switch)]
    pub force: bool,
    /// enable and start it at once
    #[argh(switch)]
    pub now: bool,
    /// flags for `forebay start`, in one quoted word
    #[argh(option)]
    pub start_flags: Option<String>,
}

/// remove files that init made
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "deinit", help_triggers("-h", "--help", "help"))]
pub struct DeinitArguments {
    /// what to remove
    #[argh(subcommand)]
    pub what: DeinitCommand,
}

/// What `forebay deinit` removes.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum DeinitCommand {
    /// `forebay deinit creds`
    Creds(DeinitCredsArguments),
    /// `forebay deinit systemd`
    Systemd(DeinitSystemdArguments),
}

/// remove the creds file; refuses while the systemd unit refers to it
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "creds", help_triggers("-h", "--help", "help"))]
pub struct DeinitCredsArguments {
    /// file to remove (default ~/.forebay/proxy/creds)
    #[argh(option)]
    pub creds_file: Option<String>,
    /// remove it even if the systemd unit refers to it
    #[argh(switch)]
    pub force: bool,
}

/// stop, disable and remove the systemd unit
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "systemd", help_triggers("-h", "--help", "help"))]
pub struct DeinitSystemdArguments {}

/// print the license
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "license", help_triggers("-h", "--help", "help"))]
pub struct LicenseArguments {}

/// print the version
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "version", help_triggers("-h", "--help", "help"))]
pub struct VersionArguments {}

/// Reads the words after the program's name.
pub fn parse(words: &[OsString]) -> Result<Request, UsageError> {
    let folded = fold::fold(words, &Arguments::get_args_info())?;
    let folded: Vec<&str> = folded.iter().map(String::as_str).collect();
    match Arguments::from_args(&[PROGRAM], &folded) {
        Ok(Arguments { version: true, .. }) => Ok(Request::Print(version_text())),
        Ok(Arguments {
            command: Some(command),
            ..
        }) => Ok(Request::Run(Box::new(command))),
        Ok(Arguments { command: None, .. }) => Err(UsageError::new(PROGRAM, "no command given")),
        Err(exit) if exit.status.is_ok() => Ok(Request::Print(exit.output)),
        // The folding leaves argh nothing to refuse; if it does, its words must stay one line.
        Err(exit) => {
            let line = exit.output.split_whitespace().collect::<Vec<_>>().join(" ");
            Err(UsageError::new(PROGRAM, line))
        }
    }
}

/// What `forebay version` prints.
pub fn version_text() -> String {
    format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION"))
}

/// What `forebay license` prints.
pub fn license_text() -> &'static str {
    include_str!("../../LICENSE")
}
