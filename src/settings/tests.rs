//! The settings as operators meet them: defaults, each flag's values, and what each mistake is told.

use super::*;
use crate::config::VolumeStore;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

const VOLUME: &str = "[[volume]]\nname = \"plain\"\nstore = \"s3\"\nendpoint = \"http://127.0.0.1:1\"\n\
                      bucket = \"b\"\nanonymous = \"read\"\n";

struct Fixture {
    folder: TempDir,
    environment: Environment,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().expect("temporary folder");
        let environment = Environment {
            home: Some(folder.path().join("home")),
            working_folder: folder.path().to_owned(),
            aws_access_key_id: Some("environment".to_owned()),
            aws_secret_access_key: Some(Secret::new("environment-pass")),
            aws_session_token: Some(Secret::new("session")),
            ..Environment::default()
        };
        let fixture = Fixture {
            folder,
            environment,
        };
        fixture.write("config.toml", VOLUME, 0o644);
        fixture
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("folder")).expect("folders");
        std::fs::write(&path, text).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    }

    /// Checks the settings of a command line, config file included.
    fn check(&self, flags: &[&str]) -> Result<StartSettings, SettingsError> {
        let words: Vec<_> = ["start", "--config=config.toml"]
            .iter()
            .chain(flags)
            .map(Into::into)
            .collect();
        let request = crate::cli::parse(&words).expect("a command line");
        if let crate::cli::Request::Run(command) = request
            && let crate::cli::Command::Start(arguments) = *command
        {
            return check(&arguments, &self.environment);
        }
        panic!("not a start: {words:?}")
    }

    fn credentials(&self, flags: &[&str]) -> StoreCredentials {
        let settings = self.check(flags).expect("settings");
        let VolumeStore::S3 { credentials, .. } = &settings.volumes[0].store else {
            panic!("an s3 store")
        };
        credentials.clone()
    }
}

#[test]
fn defaults_are_as_documented() {
    let fixture = Fixture::new();
    let settings = fixture.check(&[]).expect("settings");
    let home = fixture.folder.path().join("home");
    assert_eq!(settings.bind_addr.to_string(), "0.0.0.0:443");
    assert_eq!(settings.disk_folder, Path::new("/cache"));
    assert_eq!(settings.disk_quota, Amount::Percent(95.0));
    assert_eq!(settings.mem_capacity, Amount::Percent(10.0));
    assert_eq!(settings.db_mem_capacity, Amount::Percent(10.0));
    assert_eq!(settings.db_folder, home.join(".forebay/proxy/data"));
    assert_eq!(settings.buffer_size, 1_048_576);
    assert_eq!(settings.shards, None);
    assert_eq!((settings.max_bops, settings.writeback_active), (0, 0));
    assert_eq!(settings.writeback_delay, Duration::ZERO);
    assert_eq!(settings.pprof_port, 6064);
    assert_eq!(
        settings.tls,
        TlsSetting::Files(TlsFiles {
            cert: home.join(".forebay/ssl/cert"),
            key: home.join(".forebay/ssl/key"),
        })
    );
    assert!(!(settings.sync || settings.no_writeback || settings.sse || settings.pprof));
    assert!(!(settings.verbose || settings.dev));
    assert_eq!(settings.flags_given, ["--config"]);
    assert!(settings.later_features().is_empty());
}

#[test]
fn every_flag_reaches_its_setting() {
    let fixture = Fixture::new();
    let settings = fixture
        .check(&[
            "--bindAddr=[::1]:8443",
            "--diskFolder=/nvme",
            "--diskQuota",
            "1T",
            "--memCapacity=64M",
            "--dbFolder=~/db",
            "--db-mem-capacity=5%",
            "--bufferSize=64k",
            "--shards=4",
            "--maxBops=32",
            "--sslCert=c.pem",
            "--sslKey=/k.pem",
            "--sync",
            "--noWriteback=true",
            "--writebackActive",
            "8",
            "--writeback-delay=250",
            "--sse",
            "--pprof",
            "--pprofPort=7000",
            "-v",
        ])
        .expect("settings");
    let folder = fixture.folder.path();
    assert_eq!(settings.bind_addr.to_string(), "[::1]:8443");
    assert_eq!(settings.disk_folder, Path::new("/nvme"));
    assert_eq!(settings.disk_quota, Amount::Bytes(1 << 40));
    assert_eq!(settings.mem_capacity, Amount::Bytes(64 << 20));
    assert_eq!(settings.db_folder, folder.join("home/db"));
    assert_eq!(settings.db_mem_capacity, Amount::Percent(5.0));
    assert_eq!(settings.buffer_size, 65_536);
    assert_eq!((settings.shards, settings.max_bops), (Some(4), 32));
    assert_eq!(
        settings.tls,
        TlsSetting::Files(TlsFiles {
            cert: folder.join("c.pem"),
            key: PathBuf::from("/k.pem"),
        })
    );
    assert!(settings.sync && settings.no_writeback && settings.sse && settings.pprof);
    assert!(settings.verbose);
    assert_eq!(settings.writeback_active, 8);
    assert_eq!(settings.writeback_delay, Duration::from_millis(250));
    assert_eq!(settings.pprof_port, 7000);
    let later: Vec<_> = settings
        .later_features()
        .into_iter()
        .map(|(flag, _)| flag)
        .collect();
    assert_eq!(later, ["--bufferSize", "--pprof", "--pprofPort"]);
}

#[test]
fn the_ram_tier_can_be_turned_off() {
    for zero in ["0", "0%"] {
        let given = Some(zero.to_owned());
        assert_eq!(check_mem_capacity(&given).expect("taken"), Amount::Bytes(0));
    }
    assert!(check_mem_capacity(&Some("-1".to_owned())).is_err());
}

#[test]
fn a_wrong_value_is_told_with_its_flag_and_what_would_be_right() {
    let fixture = Fixture::new();
    for (flags, part) in [
        (
            &["--bindAddr=443"][..],
            "--bindAddr: `443` is not an IP address and port",
        ),
        (
            &["--bindAddr=localhost:443"],
            "--bindAddr: `localhost:443` is not an IP address",
        ),
        (
            &["--bindAddr=1.2.3.4:70000"],
            "write for instance 0.0.0.0:443",
        ),
        (&["--diskQuota=lots"], "--diskQuota: `lots` is not a size"),
        (&["--disk-quota=0%"], "--diskQuota: `0%` is out of range"),
        (
            &["--memCapacity=1.5G"],
            "--memCapacity: `1.5G` has a fraction",
        ),
        (
            &["--bufferSize=1000"],
            "--bufferSize: 1000 is not a multiple of 4096",
        ),
        (&["--bufferSize=1G"], "from 4096 to 64M"),
        (
            &["--shards=0"],
            "--shards: `0` is not a number of cores from 1 to 1024",
        ),
        (&["--shards=-1"], "--shards: `-1`"),
        (
            &["--maxBops=many"],
            "--maxBops: `many` is not a number from 0",
        ),
        (&["--writebackActive=70000"], "--writebackActive: `70000`"),
        (
            &["--writebackDelay=1s"],
            "--writebackDelay: `1s` is not a number of milliseconds",
        ),
        (&["--pprofPort=0"], "--pprofPort: `0` is not a port"),
        (&["--sslCert=c"], "--sslCert: --sslKey is missing"),
        (&["--sslKey=k"], "--sslKey: --sslCert is missing"),
        (
            &["--noSSL", "--sslKey=k"],
            "--noSSL: --sslCert and --sslKey have no use",
        ),
        (&["--blockUser=u"], "--blockUser: --blockPass is missing"),
        (&["--blockPass=p"], "--blockPass: --blockUser is missing"),
        (&["--credsFile=absent"], "absent: there is no such file"),
    ] {
        let error = fixture.check(flags).expect_err("a mistake").to_string();
        assert!(error.contains(part), "{flags:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_start_without_volumes_says_how_to_give_them() {
    let error = check(&StartArguments::default(), &Environment::default()).expect_err("no config");
    assert!(
        error.to_string().starts_with("--config: it is missing"),
        "{error}"
    );
}

#[test]
fn a_port_alone_means_every_address() {
    let settings = Fixture::new()
        .check(&["--bindAddr=:8443"])
        .expect("settings");
    assert_eq!(settings.bind_addr.to_string(), "0.0.0.0:8443");
}

#[test]
fn no_ssl_is_allowed_anywhere_and_warned_of_off_loopback() {
    let fixture = Fixture::new();
    let warned = |flags: &[&str]| {
        let settings = fixture.check(flags).expect("settings");
        assert_eq!(settings.tls, TlsSetting::Off);
        settings
            .warnings
            .iter()
            .any(|warning| warning.contains("--noSSL"))
    };
    assert!(warned(&["--noSSL"]));
    assert!(!warned(&["--noSSL", "--bindAddr=127.0.0.1:80"]));
    assert!(!warned(&["--noSSL", "--bindAddr=[::1]:80"]));
}

#[test]
fn credentials_come_from_the_first_source_that_has_them() {
    let fixture = Fixture::new();
    let found = fixture.credentials(&[]);
    assert_eq!(found.access_key, "environment");
    assert_eq!(found.session_token, Some(Secret::new("session")));
    fixture.write(
        "home/.forebay/proxy/creds",
        "blockUser = \"file\"\nblockPass = \"p\"\n",
        0o600,
    );
    assert_eq!(fixture.credentials(&[]).access_key, "file");
    fixture.write("other", "blockUser = \"other\"\nblockPass = \"p\"\n", 0o600);
    assert_eq!(
        fixture.credentials(&["--credsFile=other"]).access_key,
        "other"
    );
    let found = fixture.credentials(&["--blockUser=flag", "--blockPass=p"]);
    assert_eq!(found.access_key, "flag");
    assert_eq!(found.session_token, None);
}

#[test]
fn a_creds_file_that_is_there_and_wrong_is_never_passed_over() {
    let fixture = Fixture::new();
    fixture.write(
        "home/.forebay/proxy/creds",
        "blockUser = \"file\"\nblockPass = \"p\"\n",
        0o644,
    );
    let error = fixture.check(&[]).expect_err("open to others").to_string();
    assert!(
        error.starts_with("creds file ") && error.contains("chmod 600"),
        "{error}"
    );
}

#[test]
fn a_reload_sees_new_files_and_refuses_bad_ones() {
    let fixture = Fixture::new();
    let settings = fixture.check(&[]).expect("settings");
    fixture.write(
        "home/.forebay/proxy/creds",
        "blockUser = \"rotated\"\nblockPass = \"p\"\n",
        0o600,
    );
    fixture.write("config.toml", &VOLUME.replace("plain", "other"), 0o644);
    let config = settings.reload().expect("reload");
    assert_eq!(config.volumes[0].name, "other");
    let VolumeStore::S3 { credentials, .. } = &config.volumes[0].store else {
        panic!("an s3 store")
    };
    assert_eq!(credentials.access_key, "rotated");
    fixture.write("config.toml", "[[volume]]\nname = 1\n", 0o644);
    let error = settings.reload().expect_err("broken").to_string();
    assert!(error.contains("config.toml:2: name: "), "{error}");
}

#[test]
fn nothing_that_is_printed_holds_a_secret() {
    let fixture = Fixture::new();
    let settings = fixture
        .check(&["--blockUser=u", "--blockPass=hush-hush"])
        .expect("settings");
    assert!(!format!("{settings:?}").contains("hush-hush"));
}
