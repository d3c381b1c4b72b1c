//! The program: read the command line, check it, run it. The only place that picks exit codes.

use forebay::cli::backlog::{self, BacklogError};
use forebay::cli::check::{self, CheckError};
use forebay::cli::commands::{self, CommandError};
use forebay::cli::{
    self, CheckArguments, Command, DeinitCommand, InitCommand, Request, StartArguments, argv,
    logging,
};
use forebay::server;
use forebay::settings::{self, Environment, StartSettings};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

/// Freed memory of block buffers is reused instead of given back and faulted in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command failed at run time.
const EXIT_FAILED: u8 = 1;
/// The command line or the settings are wrong.
const EXIT_USAGE: u8 = 2;

/// A failure with its exit code.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn usage(error: impl ToString) -> Self {
        Failure {
            code: EXIT_USAGE,
            message: error.to_string(),
        }
    }

    fn failed(error: impl ToString) -> Self {
        Failure {
            code: EXIT_FAILED,
            message: error.to_string(),
        }
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        if error.is_usage() {
            Failure::usage(error)
        } else {
            Failure::failed(error)
        }
    }
}

impl From<BacklogError> for Failure {
    fn from(error: BacklogError) -> Self {
        if error.is_usage() {
            Failure::usage(error)
        } else {
            Failure::failed(error)
        }
    }
}

impl From<CheckError> for Failure {
    fn from(error: CheckError) -> Self {
        if error.is_usage() {
            Failure::usage(error)
        } else {
            Failure::failed(error)
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    // First of all: until this is done, every user of the machine can read the secret.
    if let Err(error) = argv::hide_secrets(&words) {
        complain(&format!(
            "warning: the secret in the arguments stays visible to other users: {error}"
        ));
    }
    match run(words.get(1..).unwrap_or_default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// One line on standard error. A standard error that is gone changes nothing.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "{}: {message}", cli::PROGRAM);
}

fn run(words: &[OsString]) -> Result<(), Failure> {
    let command = match cli::parse(words).map_err(Failure::usage)? {
        Request::Print(text) => return print(&text),
        Request::Run(command) => command,
    };
    let environment = Environment::of_process();
    let answer = match *command {
        Command::Start(arguments) => return start(&arguments, &environment),
        Command::Check(arguments) => return check_folder(&arguments, &environment),
        Command::Drain(arguments) => backlog::drain(&arguments, &environment)?,
        Command::Flush(arguments) => backlog::flush(&arguments, &environment)?,
        Command::Dirty(arguments) => backlog::dirty(&arguments, &environment)?,
        Command::Init(init) => match init.what {
            InitCommand::Creds(arguments) => commands::init_creds(&arguments, &environment)?,
            InitCommand::Systemd(arguments) => commands::init_systemd(&arguments, &environment)?,
        },
        Command::Deinit(deinit) => match deinit.what {
            DeinitCommand::Creds(arguments) => commands::deinit_creds(&arguments, &environment)?,
            DeinitCommand::Systemd(_) => commands::deinit_systemd()?,
        },
        Command::License(_) => cli::license_text().to_owned(),
        Command::Version(_) => cli::version_text(),
    };
    print(&answer)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(|error| Failure::failed(format!("standard output: {error}")))
}

/// Defects are a failure, so that scripts see them without reading.
fn check_folder(arguments: &CheckArguments, environment: &Environment) -> Result<(), Failure> {
    let mut output = std::io::stdout();
    match check::run(arguments, environment, &mut output)? {
        0 => Ok(()),
        1 => Err(Failure::failed("check: 1 defect")),
        defects => Err(Failure::failed(format!("check: {defects} defects"))),
    }
}

fn start(arguments: &StartArguments, environment: &Environment) -> Result<(), Failure> {
    let settings = settings::check(arguments, environment).map_err(Failure::usage)?;
    logging::start(settings.verbose);
    for warning in &settings.warnings {
        log::warn!("{warning}");
    }
    for (flag, feature) in settings.later_features() {
        log::warn!(
            "{flag} has no effect in this version: it belongs to {feature}, which comes later"
        );
    }
    serve(&settings)
}

/// Runs the server until it is told to stop.
fn serve(settings: &StartSettings) -> Result<(), Failure> {
    log::debug!("{settings:?}");
    let announce = |text: &str| {
        // A terminal that is gone is no reason to stop serving.
        if let Err(failure) = print(text) {
            log::warn!("{}", failure.message);
        }
    };
    server::run(settings, announce).map_err(|error| {
        if error.is_usage() {
            Failure::usage(error)
        } else {
            Failure::failed(error)
        }
    })
}
