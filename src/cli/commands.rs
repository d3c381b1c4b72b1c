//! The commands that are not the server: `init` and `deinit` of the creds file and the systemd unit.
//!
//! Each takes what was typed, does its one thing, and answers with a line for standard output. None
//! prints and none picks an exit code.

use super::fold::UsageError;
use super::{
    Command, DeinitCredsArguments, InitCredsArguments, InitSystemdArguments, Request,
    StartArguments,
};
use crate::config::VolumeStore;
use crate::creds::{self, CredsError};
use crate::settings::private_file::Existing;
use crate::settings::{self, Environment, SettingsError};
use crate::systemd::{self, UnitError, UnitPlan};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Why a command failed. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A flag's value is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// `--startFlags` is wrong.
    #[error("--startFlags: {0}")]
    StartFlags(String),
    /// The creds file cannot be written or removed.
    #[error(transparent)]
    Creds(#[from] CredsError),
    /// The creds file cannot be removed.
    #[error("creds file {}: {source}", .path.display())]
    CredsNotRemoved {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The unit needs the creds file.
    #[error(
        "creds file {}: the unit {} refers to it; remove the unit first (`forebay deinit systemd`), or \
         give --force",
        .path.display(),
        systemd::UNIT_NAME
    )]
    CredsInUse {
        /// The file.
        path: PathBuf,
    },
    /// The unit cannot be written, removed or started.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// This program's own path is unknown.
    #[error("this program's own path cannot be told: {0}")]
    Program(#[source] io::Error),
}

impl CommandError {
    /// Whether the fault lies in what was typed rather than in the system.
    pub fn is_usage(&self) -> bool {
        match self {
            CommandError::Settings(_) | CommandError::StartFlags(_) => true,
            CommandError::Creds(_)
            | CommandError::CredsNotRemoved { .. }
            | CommandError::CredsInUse { .. }
            | CommandError::Unit(_)
            | CommandError::Program(_) => false,
        }
    }
}

/// `forebay init creds`
pub fn init_creds(
    arguments: &InitCredsArguments,
    environment: &Environment,
) -> Result<String, CommandError> {
    let Some(credentials) = settings::pair(&arguments.block_user, &arguments.block_pass)? else {
        return Err(CommandError::Settings(SettingsError::Flag {
            flag: "--blockUser",
            problem: "it is missing, and --blockPass too; both are needed".to_owned(),
        }));
    };
    let path = environment.creds_file(arguments.creds_file.as_deref())?;
    let existing = if arguments.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    creds::save(&path, &credentials, existing)?;
    Ok(format!("wrote {}\n", path.display()))
}

/// `forebay deinit creds`
pub fn deinit_creds(
    arguments: &DeinitCredsArguments,
    environment: &Environment,
) -> Result<String, CommandError> {
    let path = environment.creds_file(arguments.creds_file.as_deref())?;
    if !arguments.force && unit_refers_to(&path, environment)? {
        return Err(CommandError::CredsInUse { path });
    }
    std::fs::remove_file(&path).map_err(|source| CommandError::CredsNotRemoved {
        path: path.clone(),
        source,
    })?;
    Ok(format!("removed {}\n", path.display()))
}

/// Whether the unit, if there is one, starts the proxy with this creds file.
fn unit_refers_to(path: &Path, environment: &Environment) -> Result<bool, CommandError> {
    let Some(words) = systemd::unit_start_words()? else {
        return Ok(false);
    };
    let used = match parse_start(&words) {
        Ok(start) => environment.creds_file(start.creds_file.as_deref())?,
        // A unit that somebody has changed beyond our reading may refer to anything.
        Err(_) => return Ok(true),
    };
    Ok(used == path)
}

/// Reads words that follow `forebay start`.
fn parse_start(words: &[String]) -> Result<StartArguments, UsageError> {
    let line: Vec<OsString> = std::iter::once("start")
        .chain(words.iter().map(String::as_str))
        .map(OsString::from)
        .collect();
    if let Request::Run(command) = super::parse(&line)?
        && let Command::Start(start) = *command
    {
        return Ok(start);
    }
    Err(UsageError::new(
        super::PROGRAM,
        "these are not flags of `forebay start`",
    ))
}

/// `forebay init systemd`
pub fn init_systemd(
    arguments: &InitSystemdArguments,
    environment: &Environment,
) -> Result<String, CommandError> {
    let words = systemd::split_words(arguments.start_flags.as_deref().unwrap_or_default())
        .map_err(|error| CommandError::StartFlags(error.to_string()))?;
    let start = parse_start(&words).map_err(|error| CommandError::StartFlags(error.to_string()))?;
    let refuse = |problem: &str| Err(CommandError::StartFlags(problem.to_owned()));
    if start.block_pass.is_some() {
        return refuse(
            "--blockPass does not belong into a unit, which everybody may read; use `forebay init creds`",
        );
    }
    if start.dev {
        return refuse("--dev is for trying things out in a terminal, not for a unit");
    }
    let plan = plan_unit(&start, environment)?;
    let path = systemd::write_unit(&systemd::unit_text(&plan)?, arguments.force)?;
    systemd::enable(arguments.now)?;
    let mut answer = format!("wrote {}\n", path.display());
    if start.config.is_none() {
        answer.push_str(
            "note: without --config FILE in --startFlags the unit has no volumes and will not start\n",
        );
    }
    Ok(answer)
}

/// `forebay deinit systemd`
pub fn deinit_systemd() -> Result<String, CommandError> {
    let path = systemd::remove_unit()?;
    Ok(format!("removed {}\n", path.display()))
}

/// What the unit for these flags is made of. Paths are made absolute: a unit has another working
/// folder than the shell that wrote it.
fn plan_unit(start: &StartArguments, environment: &Environment) -> Result<UnitPlan, CommandError> {
    let start = with_absolute_paths(start, environment)?;
    let home = environment.path("HOME", "~/")?;
    let default = |given: &Option<String>, default: &str| match given {
        Some(path) => Ok(PathBuf::from(path)),
        None => environment.path("HOME", default),
    };
    let disk_folder = default(&start.disk_folder, "/cache")?;
    let mut writable = vec![
        disk_folder.clone(),
        home.join(".forebay"),
        default(&start.db_folder, "~/.forebay/proxy/data")?,
    ];
    if start.config.is_some() {
        // The unit does not see this shell's credentials, so they must not make the check pass.
        let environment = Environment {
            aws_access_key_id: None,
            azure_account: None,
            azure_sas_token: None,
            ..environment.clone()
        };
        let checked = settings::check(&start, &environment)?;
        for volume in checked.volumes {
            if let VolumeStore::File { path } = volume.store {
                writable.push(path);
            }
        }
    }
    writable.dedup();
    Ok(UnitPlan {
        program: std::env::current_exe().map_err(CommandError::Program)?,
        start_words: start_words(&start),
        home,
        user: user_name(),
        writable,
        disk_folder,
    })
}

/// The same flags with every path absolute.
fn with_absolute_paths(
    start: &StartArguments,
    environment: &Environment,
) -> Result<StartArguments, CommandError> {
    let mut start = start.clone();
    for (flag, path) in [
        ("--credsFile", &mut start.creds_file),
        ("--dbFolder", &mut start.db_folder),
        ("--diskFolder", &mut start.disk_folder),
        ("--sslCert", &mut start.ssl_cert),
        ("--sslKey", &mut start.ssl_key),
        ("--config", &mut start.config),
    ] {
        if let Some(given) = path {
            *given = environment
                .path(flag, given)?
                .to_string_lossy()
                .into_owned();
        }
    }
    Ok(start)
}

/// Flags as words for `forebay start`.
fn start_words(start: &StartArguments) -> Vec<String> {
    let options = [
        ("--bind-addr", &start.bind_addr),
        ("--block-user", &start.block_user),
        ("--buffer-size", &start.buffer_size),
        ("--creds-file", &start.creds_file),
        ("--db-folder", &start.db_folder),
        ("--db-mem-capacity", &start.db_mem_capacity),
        ("--disk-folder", &start.disk_folder),
        ("--disk-quota", &start.disk_quota),
        ("--max-bops", &start.max_bops),
        ("--pprof-port", &start.pprof_port),
        ("--ssl-cert", &start.ssl_cert),
        ("--ssl-key", &start.ssl_key),
        ("--writeback-active", &start.writeback_active),
        ("--writeback-delay", &start.writeback_delay),
        ("--config", &start.config),
        ("--shards", &start.shards),
        ("--mem-capacity", &start.mem_capacity),
    ];
    let switches = [
        ("--no-ssl", start.no_ssl),
        ("--no-writeback", start.no_writeback),
        ("--pprof", start.pprof),
        ("--sse", start.sse),
        ("--sync", start.sync),
        ("--verbose", start.verbose),
    ];
    let options = options
        .into_iter()
        .filter_map(|(flag, value)| value.as_ref().map(|value| format!("{flag}={value}")));
    let switches = switches
        .into_iter()
        .filter(|(_, given)| *given)
        .map(|(flag, _)| flag.to_owned());
    options.chain(switches).collect()
}

/// The name of the user who runs this, or the number where it has none; systemd takes both.
fn user_name() -> String {
    // SAFETY: geteuid has no arguments, cannot fail and touches no memory.
    let id = unsafe { libc::geteuid() }.to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    });
    name.unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use argh::ArgsInfo;

    /// A flag that a unit forgets would change what runs. Every flag of `start` but those that a unit
    /// must not hold is parsed, written as words and parsed again.
    #[test]
    fn every_flag_survives_the_way_into_a_unit() {
        let info = StartArguments::get_args_info();
        let mut words = Vec::new();
        for flag in info.flags {
            match flag.kind {
                _ if ["--help", "--dev", "--block-pass"].contains(&flag.long) => {}
                argh::FlagInfoKind::Switch => words.push(flag.long.to_owned()),
                argh::FlagInfoKind::Option { .. } => words.push(format!("{}=7", flag.long)),
            }
        }
        assert!(words.len() > 20, "{words:?}");
        let mut round = start_words(&parse_start(&words).expect("parse"));
        words.sort();
        round.sort();
        assert_eq!(round, words);
    }
}
