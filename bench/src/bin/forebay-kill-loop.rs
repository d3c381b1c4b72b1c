//! The kill loop as a program: owns its command line and exit codes, nothing else. See `forebay_bench::crash::kill_loop`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use argh::FromArgs;
use forebay_bench::crash::kill_loop::{self, Options, StoreMode};
use forebay_bench::crash::server::is_on_disk;

/// Start a server, work, kill it, again and again; compare what it acknowledged with what it has.
///
/// Exit code 0: nothing was lost; 1: something was, or the loop could not be carried out; 2: bad arguments.
#[derive(FromArgs)]
struct Arguments {
    /// the server's binary
    #[argh(option)]
    binary: PathBuf,
    /// how often the server is started (default 1000)
    #[argh(option, default = "1000")]
    rounds: u64,
    /// start the server with --sync
    #[argh(switch)]
    sync: bool,
    /// whether the store can be reached: on, off (until the end) or flapping (default flapping)
    #[argh(option, default = "StoreMode::Flapping")]
    store: StoreMode,
    /// cores that the server uses (default 2)
    #[argh(option, default = "2")]
    shards: u32,
    /// decides everything but time (default: by the clock)
    #[argh(option)]
    seed: Option<u64>,
    /// a folder on a real disk, which takes direct I/O, for the server's own (default /var/tmp)
    #[argh(option, default = "PathBuf::from(\"/var/tmp\")")]
    folder: PathBuf,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let by_clock = clock.map_or(1, |time| time.as_millis() as u64);
    let seed = arguments.seed.unwrap_or(by_clock);
    let name = format!("forebay-kill-loop.{}.{seed}", std::process::id());
    let folder = arguments.folder.join(name);
    if let Err(error) = std::fs::create_dir(&folder) {
        eprintln!("forebay-kill-loop: {}: {error}", folder.display());
        return ExitCode::from(2);
    }
    if !is_on_disk(&folder) {
        eprintln!("warning: {} takes no direct I/O", folder.display());
    }
    let options = Options {
        binary: arguments.binary,
        folder: folder.clone(),
        rounds: arguments.rounds,
        sync: arguments.sync,
        store: arguments.store,
        shards: arguments.shards,
        seed,
    };
    println!(
        "seed {seed}, store {:?}, sync {}, {} shards",
        options.store, options.sync, options.shards
    );
    match kill_loop::run(&options) {
        Ok(report) => {
            print!("{report}");
            if report.is_good() {
                if let Err(error) = std::fs::remove_dir_all(&folder) {
                    eprintln!("forebay-kill-loop: {}: {error}", folder.display());
                }
                return ExitCode::SUCCESS;
            }
        }
        Err(error) => eprintln!("forebay-kill-loop: {error}"),
    }
    eprintln!("everything is kept in {}", folder.display());
    ExitCode::FAILURE
}
