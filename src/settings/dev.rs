//! `forebay start --dev`: everything that is needed to try the proxy, made on the first start.
//!
//! This file owns the folder `.forebay-dev` in the working folder: a config file with fresh keys, a
//! folder that stands for the bucket, the cache and the certificate. What is there is kept; a config
//! that somebody has changed is used as it is. Nothing is ever made outside of that folder.

use super::private_file::{self, Existing, PrivateFileError};
use super::{Defaults, Environment, SettingsError, StartSettings, TlsSetting, wrong};
use crate::cli::StartArguments;
use crate::config::Source;
use crate::config::written::{WrittenConfig, WrittenKey};
use crate::size::Amount;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use std::ffi::CString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zeroize::Zeroizing;

/// The folder of everything, in the working folder.
pub const FOLDER_NAME: &str = ".forebay-dev";
/// The volume that is made.
pub const VOLUME_NAME: &str = "demo";
/// Where it listens.
const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8443);
/// Quota where the disk has room: enough to see eviction in minutes, small enough for a laptop.
const QUOTA_BYTES: u64 = 4 << 30;
/// Randomness in each token and secret, bytes.
const TOKEN_BYTES: usize = 32;
/// Randomness in an access key, bytes; it need only be unlike others.
const ACCESS_KEY_BYTES: usize = 8;

/// Makes what is missing and says what `--dev` means for the flags that are not given.
pub(super) fn prepare(
    arguments: &StartArguments,
    environment: &Environment,
) -> Result<Defaults, SettingsError> {
    if arguments.config.is_some() {
        return Err(wrong(
            "--config",
            format!(
                "--dev has its own, {FOLDER_NAME}/config.toml; change that one or leave --dev out"
            ),
        ));
    }
    let folder = environment.working_folder.join(FOLDER_NAME);
    let made = |result: Result<(), PrivateFileError>| result.map_err(SettingsError::Dev);
    for name in ["", "store", "cache", "ssl", "data"] {
        made(private_file::make_folders(&folder.join(name)))?;
    }
    let config = folder.join("config.toml");
    if config.symlink_metadata().is_err() {
        let text = config_text().map_err(|problem| wrong("--dev", problem))?;
        made(private_file::write(
            &config,
            text.as_bytes(),
            Existing::Keep,
        ))?;
    }
    let text = |name: &str| -> Result<String, SettingsError> {
        let path = folder.join(name).into_os_string();
        path.into_string().map_err(|_| {
            wrong(
                "--dev",
                "the working folder's path is not UTF-8; use another",
            )
        })
    };
    let quota = quota(&folder.join("cache")).map_err(|source| {
        SettingsError::Dev(PrivateFileError::Refused {
            path: folder.clone(),
            source,
        })
    })?;
    Ok(Defaults {
        bind_addr: ADDRESS,
        disk_folder: text("cache")?,
        disk_quota: Amount::Bytes(quota),
        db_folder: text("data")?,
        ssl_cert: text("ssl/cert")?,
        ssl_key: text("ssl/key")?,
        config: Some(config),
    })
}

/// A config file with a volume and fresh keys.
fn config_text() -> Result<Zeroizing<String>, String> {
    Ok(Zeroizing::new(format!(
        "# Made by `forebay start --dev`. Change it as you like; remove the folder to start anew.\n\
         [operator]\ntoken = \"{operator}\"\n\n\
         [[volume]]\nname = \"{VOLUME_NAME}\"\nstore = \"file\"\npath = \"store\"\n\n\
         [[volume.key]]\naccess_key = \"DEV{access}\"\nsecret_key = \"{secret}\"\n\
         token = \"{token}\"\npermission = \"rw\"\n",
        operator = *random_hex(TOKEN_BYTES)?,
        access = random_hex(ACCESS_KEY_BYTES)?.to_uppercase(),
        secret = *random_hex(TOKEN_BYTES)?,
        token = *random_hex(TOKEN_BYTES)?,
    )))
}

fn random_hex(bytes: usize) -> Result<Zeroizing<String>, String> {
    let mut random = Zeroizing::new(vec![0; bytes]);
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| "the system gives no random bytes".to_owned())?;
    Ok(Zeroizing::new(hex::encode(&*random)))
}

/// [`QUOTA_BYTES`], or half of what is free where that is less. What the cache holds already counts
/// as free, so that the quota is the same on every start.
fn quota(cache: &Path) -> io::Result<u64> {
    let path = CString::new(cache.as_os_str().as_bytes())?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is NUL-terminated and the pointer is to writable memory of the right size.
    if unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs returned 0, so it has filled the structure.
    let answer = unsafe { answer.assume_init() };
    let free = answer.f_bavail.saturating_mul(answer.f_frsize);
    let available = free.saturating_add(allocated_bytes(cache)?);
    Ok(QUOTA_BYTES.min(available / 2).max(1))
}

/// Bytes that the files below `folder` take on disk.
fn allocated_bytes(folder: &Path) -> io::Result<u64> {
    let mut sum = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            // stat(2) counts in units of 512 bytes, whatever the file system's block is.
            sum += metadata.blocks() * 512;
        }
    }
    Ok(sum)
}

/// What `--dev` prints once the server listens: lines that work as pasted.
pub struct DevBanner {
    text: Zeroizing<String>,
}

impl DevBanner {
    /// The banner for a server that listens on `listening`. Reads the keys from the config file, as
    /// the settings hold only their hashes.
    pub fn new(
        settings: &StartSettings,
        listening: SocketAddr,
    ) -> Result<DevBanner, SettingsError> {
        let source = Source::read(&settings.config_path)?;
        let written = source.parse()?;
        Ok(DevBanner {
            text: Zeroizing::new(banner_text(settings, listening, &written)),
        })
    }

    /// The text, several lines. It holds tokens: for the terminal, not for the log.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A volume that the config opens for writing, with its key.
fn writable_volume(written: &WrittenConfig) -> Option<(&str, &WrittenKey)> {
    written.volume.iter().find_map(|volume| {
        let volume = volume.get_ref();
        let key = volume.key.iter().map(|key| key.get_ref());
        let key = key
            .into_iter()
            .find(|key| key.permission.get_ref() == "rw")?;
        Some((volume.name.get_ref().as_str(), key))
    })
}

fn banner_text(settings: &StartSettings, listening: SocketAddr, written: &WrittenConfig) -> String {
    let (scheme, trust, bundle) = match &settings.tls {
        TlsSetting::Off => ("http", String::new(), String::new()),
        TlsSetting::Files(files) => {
            let cert = shell_word(&files.cert.to_string_lossy());
            (
                "https",
                format!("--cacert {cert} "),
                format!("AWS_CA_BUNDLE={cert} "),
            )
        }
    };
    // The certificate names localhost and not the wildcard address.
    let host = match listening.ip() {
        address if address.is_unspecified() || address.is_loopback() => "localhost".to_owned(),
        std::net::IpAddr::V6(address) => format!("[{address}]"),
        std::net::IpAddr::V4(address) => address.to_string(),
    };
    let base = format!("{scheme}://{host}:{}", listening.port());
    let mut text = format!(
        "Forebay listens on {base}; everything is under {}.\n",
        settings
            .config_path
            .parent()
            .unwrap_or(Path::new("."))
            .display()
    );
    let Some((volume, key)) = writable_volume(written) else {
        text.push_str(
            "Its config has no volume with a key of permission \"rw\", so nothing to try.\n",
        );
        return text;
    };
    if let Some(token) = &key.token {
        let header = shell_word(&format!(
            "Authorization: Bearer {}",
            token.get_ref().expose()
        ));
        let call = format!("curl -sS {trust}-H {header}");
        let url = format!("{base}/{volume}/hello.txt");
        text.push_str(&format!(
            "\nPut an object, then get it:\n\n  {call} -H 'Content-Type: text/plain' -X PUT \
             --data-binary 'hello from forebay' {url} && {call} {url}\n"
        ));
    }
    if let (Some(access), Some(secret)) = (&key.access_key, &key.secret_key) {
        text.push_str(&format!(
            "\nThe same with the aws command (signed requests):\n\n  {bundle}AWS_ACCESS_KEY_ID={} \
             AWS_SECRET_ACCESS_KEY={} AWS_DEFAULT_REGION=us-east-1 aws --endpoint-url {base} s3 cp \
             s3://{volume}/hello.txt -\n",
            shell_word(access.get_ref()),
            shell_word(secret.get_ref().expose()),
        ));
    }
    if let Some(token) = written
        .operator
        .as_ref()
        .and_then(|operator| operator.token.as_ref())
    {
        let header = shell_word(&format!(
            "Authorization: Bearer {}",
            token.get_ref().expose()
        ));
        text.push_str(&format!(
            "\nWhat it does:\n\n  curl -sS {trust}-H {header} {base}/-/metrics\n"
        ));
    }
    text
}

/// A word that a shell takes as it is.
fn shell_word(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:@%+".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VolumeStore;
    use crate::settings::check;
    use std::os::unix::fs::PermissionsExt;

    fn start(folder: &Path, arguments: &StartArguments) -> Result<StartSettings, SettingsError> {
        let environment = Environment {
            working_folder: folder.to_owned(),
            ..Environment::default()
        };
        check(arguments, &environment)
    }

    fn dev() -> StartArguments {
        StartArguments {
            dev: true,
            ..StartArguments::default()
        }
    }

    #[test]
    fn the_first_start_makes_everything_private_and_the_next_keeps_it() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let settings = start(folder.path(), &dev()).expect("first start");
        let state = folder.path().join(FOLDER_NAME);
        for name in ["", "store", "cache", "ssl", "data"] {
            let mode = std::fs::metadata(state.join(name)).expect("stat").mode();
            assert_eq!(mode & 0o7777, 0o700, "{name}");
        }
        let config = state.join("config.toml");
        let text = std::fs::read_to_string(&config).expect("read");
        assert_eq!(
            std::fs::metadata(&config).expect("stat").mode() & 0o7777,
            0o600
        );
        assert_eq!(settings.bind_addr, ADDRESS);
        assert_eq!(settings.disk_folder, state.join("cache"));
        assert!(matches!(settings.disk_quota, Amount::Bytes(bytes) if bytes <= QUOTA_BYTES));
        let volume = &settings.volumes[0];
        assert_eq!(volume.name, VOLUME_NAME);
        assert!(
            matches!(&volume.store, VolumeStore::File { path } if *path == state.join("store"))
        );
        assert!(settings.operator_token.is_some() && settings.warnings.is_empty());
        start(folder.path(), &dev()).expect("second start");
        assert_eq!(std::fs::read_to_string(&config).expect("read"), text);
    }

    #[test]
    fn two_folders_have_different_keys() {
        assert_ne!(*config_text().expect("text"), *config_text().expect("text"));
    }

    #[test]
    fn other_flags_win() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let arguments = StartArguments {
            bind_addr: Some("127.0.0.1:0".to_owned()),
            disk_quota: Some("64M".to_owned()),
            shards: Some("2".to_owned()),
            no_ssl: true,
            ..dev()
        };
        let settings = start(folder.path(), &arguments).expect("start");
        assert_eq!(settings.bind_addr.port(), 0);
        assert_eq!(settings.disk_quota, Amount::Bytes(64 << 20));
        assert_eq!(settings.shards, Some(2));
        assert_eq!(settings.tls, TlsSetting::Off);
        let arguments = StartArguments {
            config: Some("other.toml".to_owned()),
            ..dev()
        };
        let error = start(folder.path(), &arguments)
            .expect_err("two configs")
            .to_string();
        assert!(error.contains("--config: --dev has its own"), "{error}");
    }

    #[test]
    fn a_config_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let settings = start(folder.path(), &dev()).expect("start");
        std::fs::set_permissions(
            &settings.config_path,
            std::fs::Permissions::from_mode(0o644),
        )
        .expect("chmod");
        let error = start(folder.path(), &dev()).expect_err("open").to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn the_banner_has_the_keys_that_the_settings_accept() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let settings = start(folder.path(), &dev()).expect("start");
        let banner = DevBanner::new(&settings, ADDRESS).expect("banner");
        let text = banner.text();
        let key = &settings.volumes[0].keys[0];
        let tokens: Vec<&str> = text
            .split("Bearer ")
            .skip(1)
            .map(|rest| &rest[..TOKEN_BYTES * 2])
            .collect();
        let [put, get, operator] = tokens.as_slice() else {
            panic!("three tokens in {text}")
        };
        assert_eq!(put, get);
        assert!(key.token.expect("a token").matches(put.as_bytes()));
        assert!(
            settings
                .operator_token
                .expect("a token")
                .matches(operator.as_bytes())
        );
        let secret = key.secret_key.as_ref().expect("a pair").expose();
        assert!(text.contains(&format!("AWS_SECRET_ACCESS_KEY={secret} ")));
        assert!(text.contains("https://localhost:8443/demo/hello.txt"));
        assert!(text.contains(&format!(
            "--cacert {}/ssl/cert ",
            folder.path().join(FOLDER_NAME).display()
        )));
    }

    #[test]
    fn words_survive_the_shell() {
        for word in ["plain", "with space", "it's", "$HOME `x` \"y\"", ""] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", shell_word(word))])
                .output()
                .expect("sh");
            assert_eq!(output.stdout, word.as_bytes());
        }
    }

    #[test]
    fn the_quota_counts_what_the_cache_holds_as_free() {
        let folder = tempfile::tempdir().expect("temporary folder");
        std::fs::write(folder.path().join("segment"), vec![1; 1 << 20]).expect("write");
        assert!(allocated_bytes(folder.path()).expect("count") >= 1 << 20);
        assert!(quota(folder.path()).expect("quota") > 0);
    }
}
