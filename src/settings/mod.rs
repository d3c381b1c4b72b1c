//! The settings of `forebay start`: from the words that were typed to values that were checked.
//!
//! Code beyond this module sees only [`StartSettings`]; whatever can be found wrong without touching
//! the network is found here, before anything starts, and told in one line that names the flag. This
//! module reads the config and creds files; it never opens the cache folder, a port or a store.

pub mod dev;
pub mod private_file;
pub mod secret;

use crate::cli::StartArguments;
use crate::config::{Config, ConfigError, Volume};
use crate::creds::{self, AzureCredentials, CredentialSources, CredsError, StoreCredentials};
use crate::size::{self, Amount};
use private_file::PrivateFileError;
use secret::{Secret, TokenHash};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Smallest I/O buffer, bytes: one page of direct I/O.
pub const BUFFER_SIZE_MIN: u64 = 4096;
/// Largest I/O buffer, bytes: a few hundred of them must fit in memory.
pub const BUFFER_SIZE_MAX: u64 = 64 * 1024 * 1024;
/// Default I/O buffer, bytes, as in the reference.
pub const BUFFER_SIZE_DEFAULT: u64 = 1024 * 1024;
/// Most cores that can be asked for: more than any machine has, fewer than a typing slip gives.
pub const SHARDS_MAX: usize = 1024;
/// Most parallel operations and uploads that can be asked for: each holds a block in memory.
pub const OPERATIONS_MAX: usize = 65_536;
/// Longest pause in an upload, milliseconds: one hour.
pub const WRITEBACK_DELAY_MS_MAX: u64 = 60 * 60 * 1000;
/// Default port of CPU profiles.
pub const PPROF_PORT_DEFAULT: u16 = 6064;

/// Why the settings are refused. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A flag's value is wrong.
    #[error("{flag}: {problem}")]
    Flag {
        /// The flag, in the reference's spelling.
        flag: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The creds file is refused.
    #[error(transparent)]
    Creds(#[from] CredsError),
    /// The config file is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state of `--dev` cannot be made or used.
    #[error("--dev: {0}")]
    Dev(PrivateFileError),
}

/// What the process finds around it, apart from its arguments.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The user's home folder.
    pub home: Option<PathBuf>,
    /// The folder that relative paths start from.
    pub working_folder: PathBuf,
    /// `AWS_ACCESS_KEY_ID`.
    pub aws_access_key_id: Option<String>,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub aws_secret_access_key: Option<Secret>,
    /// `AWS_SESSION_TOKEN`.
    pub aws_session_token: Option<Secret>,
    /// `AZURE_STORAGE_ACCOUNT`.
    pub azure_account: Option<String>,
    /// `AZURE_STORAGE_KEY`.
    pub azure_key: Option<Secret>,
    /// `AZURE_STORAGE_SAS_TOKEN`.
    pub azure_sas_token: Option<Secret>,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        let word = |name| std::env::var(name).ok().filter(|word| !word.is_empty());
        Environment {
            home: std::env::var_os("HOME")
                .filter(|home| !home.is_empty())
                .map(PathBuf::from),
            working_folder: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            aws_access_key_id: word("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key: word("AWS_SECRET_ACCESS_KEY").map(Secret::new),
            aws_session_token: word("AWS_SESSION_TOKEN").map(Secret::new),
            azure_account: word("AZURE_STORAGE_ACCOUNT"),
            azure_key: word("AZURE_STORAGE_KEY").map(Secret::new),
            azure_sas_token: word("AZURE_STORAGE_SAS_TOKEN").map(Secret::new),
        }
    }

    /// The store's credentials that it holds, if both halves are there.
    fn credentials(&self) -> Option<StoreCredentials> {
        Some(StoreCredentials {
            access_key: self.aws_access_key_id.clone()?,
            secret_key: self.aws_secret_access_key.clone()?,
            session_token: self.aws_session_token.clone(),
        })
    }

    /// The same for Azure: an account with its key, else a token.
    fn azure_credentials(&self) -> Option<AzureCredentials> {
        match (&self.azure_account, &self.azure_key) {
            (Some(account), Some(key)) => Some(AzureCredentials::Key {
                account: account.clone(),
                key: key.clone(),
            }),
            _ => self.azure_sas_token.clone().map(AzureCredentials::Sas),
        }
    }

    /// A path as given to a flag: `~/` is the home folder, what is relative starts here.
    pub fn path(&self, flag: &'static str, given: &str) -> Result<PathBuf, SettingsError> {
        let Some(below_home) = given.strip_prefix("~/") else {
            return Ok(self.working_folder.join(given));
        };
        match &self.home {
            Some(home) => Ok(home.join(below_home)),
            None => Err(wrong(
                flag,
                format!(
                    "`{given}` is below the home folder and HOME is not set; give an absolute path"
                ),
            )),
        }
    }

    /// The creds file that is meant by `given`.
    pub fn creds_file(&self, given: Option<&str>) -> Result<PathBuf, SettingsError> {
        self.path("--credsFile", given.unwrap_or("~/.forebay/proxy/creds"))
    }
}

/// How connections are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsSetting {
    /// Not at all.
    Off,
    /// With this certificate and key.
    Files(TlsFiles),
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// The checked settings of `forebay start`.
#[derive(Clone, Debug)]
pub struct StartSettings {
    /// Address and port to listen on; port 0 lets the system choose.
    pub bind_addr: SocketAddr,
    /// Folder of the cache, absolute.
    pub disk_folder: PathBuf,
    /// How much of its file system the cache may fill.
    pub disk_quota: Amount,
    /// RAM for hot blocks, all cores together; percent is of the machine's RAM.
    pub mem_capacity: Amount,
    /// Folder of the ledger, absolute.
    pub db_folder: PathBuf,
    /// The ledger's cache; percent is of the machine's RAM.
    pub db_mem_capacity: Amount,
    /// Size of an I/O buffer, bytes: a multiple of 4096.
    pub buffer_size: usize,
    /// Cores to use; `None` uses all.
    pub shards: Option<usize>,
    /// Parallel block operations; 0 chooses from the cores.
    pub max_bops: usize,
    /// How connections are encrypted.
    pub tls: TlsSetting,
    /// Whether a write is acknowledged only once it survives a power cut.
    pub sync: bool,
    /// Whether every write goes to the store before it is acknowledged, whatever the volume says.
    pub no_writeback: bool,
    /// Uploads at a time; 0 is as `max_bops`.
    pub writeback_active: usize,
    /// Pause in each upload.
    pub writeback_delay: Duration,
    /// Whether uploads ask for encryption at rest.
    pub sse: bool,
    /// Whether CPU profiles are served on loopback.
    pub pprof: bool,
    /// Port for them.
    pub pprof_port: u16,
    /// Whether to log more.
    pub verbose: bool,
    /// The config file; read again by [`StartSettings::reload`].
    pub config_path: PathBuf,
    /// Whether this is `--dev`.
    pub dev: bool,
    /// Volumes, each with its store's credentials resolved; never empty.
    pub volumes: Vec<Volume>,
    /// Hash of the token for the control paths; `None` closes them.
    pub operator_token: Option<TokenHash>,
    /// What is allowed but probably not meant, for the log.
    pub warnings: Vec<String>,
    /// Flags that were given, in the reference's spelling.
    pub flags_given: Vec<&'static str>,
    /// Where the store's credentials come from, for [`StartSettings::reload`].
    pub credential_origin: CredentialOrigin,
}

/// Where the store's credentials are looked for, so that they can be looked for again.
#[derive(Clone, Debug, Default)]
pub struct CredentialOrigin {
    flags: Option<StoreCredentials>,
    environment: Option<StoreCredentials>,
    azure_environment: Option<AzureCredentials>,
    creds_file: Option<PathBuf>,
    /// Whether the file was named by a flag, so that its absence is an error.
    creds_file_is_named: bool,
}

impl CredentialOrigin {
    /// The creds file, if one is looked for.
    pub fn creds_file(&self) -> Option<&Path> {
        self.creds_file.as_deref()
    }

    /// Looks into each source. The creds file is refused rather than passed over if it is there and
    /// not right: other credentials than those meant must never be used in silence.
    fn read(&self) -> Result<CredentialSources, SettingsError> {
        let file = match &self.creds_file {
            None => None,
            Some(path) => match creds::load(path) {
                Ok(credentials) => Some(credentials),
                Err(CredsError::File(PrivateFileError::Missing { .. }))
                    if !self.creds_file_is_named =>
                {
                    None
                }
                Err(error) => return Err(error.into()),
            },
        };
        Ok(CredentialSources {
            flags: self.flags.clone(),
            file,
            environment: self.environment.clone(),
            azure_environment: self.azure_environment.clone(),
        })
    }
}

/// Flags that are understood and whose feature this version has not got yet.
const LATER_FEATURES: [(&str, &str); 3] = [
    ("--bufferSize", "I/O buffers of a fixed size"),
    ("--pprof", "CPU profiles"),
    ("--pprofPort", "CPU profiles"),
];

impl StartSettings {
    /// Flags that were given and do nothing yet, each with the feature it belongs to.
    pub fn later_features(&self) -> Vec<(&'static str, &'static str)> {
        LATER_FEATURES
            .into_iter()
            .filter(|(flag, _)| self.flags_given.contains(flag))
            .collect()
    }

    /// Reads the config and creds files again, for SIGHUP. On an error the old settings stay good.
    pub fn reload(&self) -> Result<Config, SettingsError> {
        Ok(Config::load(
            &self.config_path,
            &self.credential_origin.read()?,
        )?)
    }
}

/// An error about a flag.
fn wrong(flag: &'static str, problem: impl Into<String>) -> SettingsError {
    SettingsError::Flag {
        flag,
        problem: problem.into(),
    }
}

/// Checks the arguments of `forebay start`. With `--dev` this makes the state folder first.
pub fn check(
    arguments: &StartArguments,
    environment: &Environment,
) -> Result<StartSettings, SettingsError> {
    let defaults = if arguments.dev {
        dev::prepare(arguments, environment)?
    } else {
        Defaults::of_machine()
    };
    let credential_origin = credential_origin(arguments, environment)?;
    let config_path = check_config_path(arguments, environment, &defaults)?;
    let config = Config::load(&config_path, &credential_origin.read()?)?;
    let bind_addr = check_bind_addr(arguments.bind_addr.as_deref(), defaults.bind_addr)?;
    let tls = check_tls(arguments, environment, &defaults)?;
    let mut warnings = config.warnings;
    if tls == TlsSetting::Off && !bind_addr.ip().is_loopback() {
        warnings.push(format!(
            "--noSSL with {bind_addr}: tokens and data cross the network unencrypted"
        ));
    }
    let path = |flag, given: &Option<String>, default: &str| {
        environment.path(flag, given.as_deref().unwrap_or(default))
    };
    Ok(StartSettings {
        bind_addr,
        disk_folder: path(
            "--diskFolder",
            &arguments.disk_folder,
            &defaults.disk_folder,
        )?,
        disk_quota: check_amount("--diskQuota", &arguments.disk_quota, defaults.disk_quota)?,
        mem_capacity: check_mem_capacity(&arguments.mem_capacity)?,
        db_folder: path("--dbFolder", &arguments.db_folder, &defaults.db_folder)?,
        db_mem_capacity: check_amount("--dbMemCapacity", &arguments.db_mem_capacity, TEN_PERCENT)?,
        buffer_size: check_buffer_size(arguments.buffer_size.as_deref())?,
        shards: check_shards(arguments.shards.as_deref())?,
        max_bops: check_count("--maxBops", &arguments.max_bops, OPERATIONS_MAX)?,
        tls,
        sync: arguments.sync,
        no_writeback: arguments.no_writeback,
        writeback_active: check_count(
            "--writebackActive",
            &arguments.writeback_active,
            OPERATIONS_MAX,
        )?,
        writeback_delay: check_delay(arguments.writeback_delay.as_deref())?,
        sse: arguments.sse,
        pprof: arguments.pprof,
        pprof_port: check_port(
            "--pprofPort",
            arguments.pprof_port.as_deref(),
            PPROF_PORT_DEFAULT,
        )?,
        verbose: arguments.verbose,
        config_path,
        dev: arguments.dev,
        volumes: config.volumes,
        operator_token: config.operator_token,
        warnings,
        flags_given: flags_given(arguments),
        credential_origin,
    })
}

const TEN_PERCENT: Amount = Amount::Percent(10.0);

/// What holds where a flag is not given; `--dev` has its own.
struct Defaults {
    bind_addr: SocketAddr,
    disk_folder: String,
    disk_quota: Amount,
    db_folder: String,
    ssl_cert: String,
    ssl_key: String,
    config: Option<PathBuf>,
}

impl Defaults {
    fn of_machine() -> Self {
        Defaults {
            bind_addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 443),
            disk_folder: "/cache".to_owned(),
            disk_quota: Amount::Percent(95.0),
            db_folder: "~/.forebay/proxy/data".to_owned(),
            ssl_cert: "~/.forebay/ssl/cert".to_owned(),
            ssl_key: "~/.forebay/ssl/key".to_owned(),
            config: None,
        }
    }
}

fn check_config_path(
    arguments: &StartArguments,
    environment: &Environment,
    defaults: &Defaults,
) -> Result<PathBuf, SettingsError> {
    match (&arguments.config, &defaults.config) {
        (Some(given), _) => environment.path("--config", given),
        (None, Some(path)) => Ok(path.clone()),
        (None, None) => Err(wrong(
            "--config",
            "it is missing; give the TOML file with the volumes to serve, or --dev to try things out",
        )),
    }
}

fn credential_origin(
    arguments: &StartArguments,
    environment: &Environment,
) -> Result<CredentialOrigin, SettingsError> {
    let flags = pair(&arguments.block_user, &arguments.block_pass)?;
    let named = arguments.creds_file.is_some();
    let creds_file = match environment.creds_file(arguments.creds_file.as_deref()) {
        Ok(path) => Some(path),
        Err(error) if named => return Err(error),
        // No home folder, so no file in it.
        Err(_) => None,
    };
    Ok(CredentialOrigin {
        flags,
        environment: environment.credentials(),
        azure_environment: environment.azure_credentials(),
        // `--dev` talks to no store that needs credentials; the user's own stay out of it.
        creds_file: creds_file.filter(|_| named || !arguments.dev),
        creds_file_is_named: named,
    })
}

/// Credentials from `--blockUser` and `--blockPass`, which come together.
pub fn pair(
    user: &Option<String>,
    pass: &Option<Secret>,
) -> Result<Option<StoreCredentials>, SettingsError> {
    match (user, pass) {
        (Some(user), Some(pass)) => Ok(Some(StoreCredentials {
            access_key: user.clone(),
            secret_key: pass.clone(),
            session_token: None,
        })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(wrong(
            "--blockUser",
            "--blockPass is missing; give both or none",
        )),
        (None, Some(_)) => Err(wrong(
            "--blockPass",
            "--blockUser is missing; give both or none",
        )),
    }
}

fn check_bind_addr(given: Option<&str>, default: SocketAddr) -> Result<SocketAddr, SettingsError> {
    let Some(given) = given else {
        return Ok(default);
    };
    // `:443` means every address, as in the reference.
    let whole = match given.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => given.to_owned(),
    };
    whole.parse().map_err(|_| {
        let problem = format!(
            "`{given}` is not an IP address and port; write for instance 0.0.0.0:443, [::]:443 or \
             127.0.0.1:8443"
        );
        wrong("--bindAddr", problem)
    })
}

fn check_tls(
    arguments: &StartArguments,
    environment: &Environment,
    defaults: &Defaults,
) -> Result<TlsSetting, SettingsError> {
    let (cert, key) = match (&arguments.ssl_cert, &arguments.ssl_key) {
        (Some(_), _) | (_, Some(_)) if arguments.no_ssl => {
            return Err(wrong(
                "--noSSL",
                "--sslCert and --sslKey have no use with it; leave them out",
            ));
        }
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => (&defaults.ssl_cert, &defaults.ssl_key),
        (Some(_), None) => {
            return Err(wrong("--sslCert", "--sslKey is missing; give both or none"));
        }
        (None, Some(_)) => {
            return Err(wrong("--sslKey", "--sslCert is missing; give both or none"));
        }
    };
    if arguments.no_ssl {
        return Ok(TlsSetting::Off);
    }
    Ok(TlsSetting::Files(TlsFiles {
        cert: environment.path("--sslCert", cert)?,
        key: environment.path("--sslKey", key)?,
    }))
}

fn check_amount(
    flag: &'static str,
    given: &Option<String>,
    default: Amount,
) -> Result<Amount, SettingsError> {
    match given {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|error: size::SizeError| wrong(flag, error.to_string())),
    }
}

/// Unlike other amounts this one may be nothing: `0` turns the RAM tier off.
fn check_mem_capacity(given: &Option<String>) -> Result<Amount, SettingsError> {
    match given.as_deref().map(str::trim) {
        Some("0" | "0%") => Ok(Amount::Bytes(0)),
        _ => check_amount("--memCapacity", given, TEN_PERCENT),
    }
}

fn check_buffer_size(given: Option<&str>) -> Result<usize, SettingsError> {
    let bytes = match given {
        None => BUFFER_SIZE_DEFAULT,
        Some(text) => {
            size::parse_bytes(text).map_err(|error| wrong("--bufferSize", error.to_string()))?
        }
    };
    let fits = (BUFFER_SIZE_MIN..=BUFFER_SIZE_MAX).contains(&bytes)
        && bytes.is_multiple_of(BUFFER_SIZE_MIN);
    match usize::try_from(bytes) {
        Ok(bytes) if fits => Ok(bytes),
        _ => Err(wrong(
            "--bufferSize",
            format!("{bytes} is not a multiple of 4096 from 4096 to 64M"),
        )),
    }
}

fn check_shards(given: Option<&str>) -> Result<Option<usize>, SettingsError> {
    match given.map(|text| (text, text.parse::<usize>())) {
        None => Ok(None),
        Some((_, Ok(count))) if (1..=SHARDS_MAX).contains(&count) => Ok(Some(count)),
        Some((text, _)) => Err(wrong(
            "--shards",
            format!("`{text}` is not a number of cores from 1 to {SHARDS_MAX}"),
        )),
    }
}

fn check_count(
    flag: &'static str,
    given: &Option<String>,
    max: usize,
) -> Result<usize, SettingsError> {
    match given.as_ref().map(|text| (text, text.parse::<usize>())) {
        None => Ok(0),
        Some((_, Ok(count))) if count <= max => Ok(count),
        Some((text, _)) => Err(wrong(
            flag,
            format!("`{text}` is not a number from 0 (choose for me) to {max}"),
        )),
    }
}

fn check_delay(given: Option<&str>) -> Result<Duration, SettingsError> {
    match given.map(|text| (text, text.parse::<u64>())) {
        None => Ok(Duration::ZERO),
        Some((_, Ok(delay_ms))) if delay_ms <= WRITEBACK_DELAY_MS_MAX => {
            Ok(Duration::from_millis(delay_ms))
        }
        Some((text, _)) => Err(wrong(
            "--writebackDelay",
            format!("`{text}` is not a number of milliseconds from 0 to {WRITEBACK_DELAY_MS_MAX}"),
        )),
    }
}

fn check_port(flag: &'static str, given: Option<&str>, default: u16) -> Result<u16, SettingsError> {
    match given.map(|text| (text, text.parse::<u16>())) {
        None => Ok(default),
        Some((_, Ok(port))) if port > 0 => Ok(port),
        Some((text, _)) => Err(wrong(
            flag,
            format!("`{text}` is not a port from 1 to 65535"),
        )),
    }
}

/// The flags that were typed, in the reference's spelling.
fn flags_given(arguments: &StartArguments) -> Vec<&'static str> {
    // Taken apart by name, so that a new flag cannot be forgotten here.
    let StartArguments {
        bind_addr,
        block_user,
        block_pass,
        buffer_size,
        creds_file,
        db_folder,
        db_mem_capacity,
        disk_folder,
        disk_quota,
        max_bops,
        no_ssl,
        no_writeback,
        pprof,
        pprof_port,
        sse,
        ssl_cert,
        ssl_key,
        sync,
        verbose,
        writeback_active,
        writeback_delay,
        config,
        shards,
        mem_capacity,
        dev,
    } = arguments;
    [
        ("--bindAddr", bind_addr.is_some()),
        ("--blockUser", block_user.is_some()),
        ("--blockPass", block_pass.is_some()),
        ("--bufferSize", buffer_size.is_some()),
        ("--credsFile", creds_file.is_some()),
        ("--dbFolder", db_folder.is_some()),
        ("--dbMemCapacity", db_mem_capacity.is_some()),
        ("--diskFolder", disk_folder.is_some()),
        ("--diskQuota", disk_quota.is_some()),
        ("--maxBops", max_bops.is_some()),
        ("--noSSL", *no_ssl),
        ("--noWriteback", *no_writeback),
        ("--pprof", *pprof),
        ("--pprofPort", pprof_port.is_some()),
        ("--sse", *sse),
        ("--sslCert", ssl_cert.is_some()),
        ("--sslKey", ssl_key.is_some()),
        ("--sync", *sync),
        ("--verbose", *verbose),
        ("--writebackActive", writeback_active.is_some()),
        ("--writebackDelay", writeback_delay.is_some()),
        ("--config", config.is_some()),
        ("--shards", shards.is_some()),
        ("--memCapacity", mem_capacity.is_some()),
        ("--dev", *dev),
    ]
    .into_iter()
    .filter_map(|(flag, given)| given.then_some(flag))
    .collect()
}

#[cfg(test)]
mod tests;
