//! The config file as operators meet it: what is read, and the line that each mistake gets.

use super::*;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const SECRET: &str = "very-secret-signing-key";

/// A folder with a config file in it.
struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().expect("temporary folder");
        std::fs::create_dir(folder.path().join("objects")).expect("folder of objects");
        Fixture { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    fn write(&self, text: &str, mode: u32) {
        std::fs::write(self.path(), text).expect("write");
        std::fs::set_permissions(self.path(), std::fs::Permissions::from_mode(mode))
            .expect("chmod");
    }

    fn load(&self, text: &str) -> Result<Config, ConfigError> {
        self.write(text, 0o600);
        Config::load(&self.path(), &with_flags())
    }
}

fn with_flags() -> CredentialSources {
    CredentialSources {
        flags: Some(StoreCredentials {
            access_key: "flag-user".to_owned(),
            secret_key: Secret::new("flag-pass"),
            session_token: None,
        }),
        ..CredentialSources::default()
    }
}

/// The example of the design document, whole, but for what must exist on this machine.
const EXAMPLE: &str = r#"
[operator]
token = "0123456789abcdef0123456789abcdef"

[[volume]]
name = "genomics"
store = "s3"
endpoint = "https://s3.us-east-1.amazonaws.com"
region = "us-east-1"
bucket = "lab-data"
prefix = "flexfs/vol-1"
block_size = "4MiB"
consistency = "revalidate"
ttl = "5s"
writeback = true
anonymous = "none"

[volume.credentials]
access_key = "volume-user"
secret_key = "volume-pass"

[[volume.key]]
access_key = "AKIDEXAMPLE"
secret_key = "very-secret-signing-key"
token = "fedcba9876543210fedcba9876543210"
permission = "rw"

[[volume]]
name = "scratch"
store = "file"
path = "objects"
consistency = "immutable"
anonymous = "read"
writeback = false
etag = "fast"
"#;

#[test]
fn the_documented_example_is_read_whole() {
    let fixture = Fixture::new();
    fixture.write(EXAMPLE, 0o600);
    let config = Config::load(&fixture.path(), &CredentialSources::default()).expect("load");
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!(
        config
            .operator_token
            .expect("a token")
            .matches(TOKEN.as_bytes())
    );
    let [genomics, scratch] = config.volumes.as_slice() else {
        panic!("two volumes")
    };
    assert_eq!(genomics.name, "genomics");
    assert_eq!(genomics.block_size, 4 << 20);
    let ttl = Duration::from_secs(5);
    assert_eq!(genomics.consistency, Consistency::Revalidate { ttl });
    assert!(genomics.writeback && !genomics.anonymous_read);
    assert_eq!(genomics.etag, EtagKind::ByClient);
    let VolumeStore::S3 {
        endpoint,
        region,
        bucket,
        prefix,
        ca_file,
        credentials,
    } = &genomics.store
    else {
        panic!("an s3 store")
    };
    assert_eq!(endpoint.as_str(), "https://s3.us-east-1.amazonaws.com/");
    assert_eq!(
        (region.as_str(), bucket.as_str()),
        ("us-east-1", "lab-data")
    );
    assert_eq!((prefix.as_str(), ca_file), ("flexfs/vol-1", &None));
    assert_eq!(credentials.access_key, "volume-user");
    let key = &genomics.keys[0];
    assert_eq!(key.access_key.as_deref(), Some("AKIDEXAMPLE"));
    assert_eq!(key.secret_key.as_ref().map(Secret::expose), Some(SECRET));
    assert!(
        key.token
            .expect("a token")
            .matches(b"fedcba9876543210fedcba9876543210")
    );
    assert_eq!(key.permission, Permission::ReadWrite);
    assert_eq!(scratch.consistency, Consistency::Immutable);
    assert!(!scratch.writeback && scratch.anonymous_read);
    assert_eq!(scratch.etag, EtagKind::Fast);
    let VolumeStore::File { path } = &scratch.store else {
        panic!("a file store")
    };
    assert_eq!(path, &fixture.folder.path().join("objects"));
    assert!(!format!("{config:?}").contains(SECRET));
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let fixture = Fixture::new();
    let config = fixture
        .load("[[volume]]\nname = \"plain\"\nstore = \"s3\"\nendpoint = \"http://127.0.0.1:1\"\nbucket = \"b\"\n")
        .expect("load");
    let volume = &config.volumes[0];
    assert_eq!(volume.block_size, BLOCK_SIZE_DEFAULT);
    assert_eq!(
        volume.consistency,
        Consistency::Revalidate { ttl: TTL_DEFAULT }
    );
    assert!(volume.writeback && !volume.anonymous_read && volume.keys.is_empty());
    let VolumeStore::S3 { region, prefix, .. } = &volume.store else {
        panic!("an s3 store")
    };
    assert_eq!((region.as_str(), prefix.as_str()), (REGION_DEFAULT, ""));
    let warnings = config.warnings.join("\n");
    assert!(warnings.contains("no operator's token"), "{warnings}");
    assert!(
        warnings.contains("volume plain: nobody can use it"),
        "{warnings}"
    );
}

#[test]
fn flags_win_over_the_volumes_own_credentials() {
    let config = Fixture::new().load(EXAMPLE).expect("load");
    let VolumeStore::S3 { credentials, .. } = &config.volumes[0].store else {
        panic!("an s3 store")
    };
    assert_eq!(credentials.access_key, "flag-user");
}

/// The example with one line changed, the error that it must give, and the line it must name.
const MISTAKES: &[(&str, &str, usize, &str)] = &[
    (
        "name = \"genomics\"",
        "name = \"-\"",
        6,
        "name: `-` must have 3 to 63",
    ),
    (
        "name = \"genomics\"",
        "name = \"Genomics\"",
        6,
        "name: `Genomics` may hold only",
    ),
    (
        "name = \"scratch\"",
        "name = \"genomics\"",
        29,
        "name: `genomics` names an earlier volume",
    ),
    (
        "name = \"scratch\"",
        "nome = \"scratch\"",
        29,
        "nome: unknown field `nome`",
    ),
    (
        "store = \"s3\"",
        "store = \"azure\"",
        9,
        "region: belongs to store = \"s3\" only",
    ),
    (
        "store = \"s3\"",
        "store = \"gcs\"",
        7,
        "store: `gcs` is unknown; use \"s3\", \"azure\" or \"file\"",
    ),
    (
        "store = \"s3\"",
        "store = \"file\"",
        8,
        "endpoint: belongs to store = \"s3\" or \"azure\" only",
    ),
    (
        "store = \"file\"",
        "store = \"s3\"",
        31,
        "path: belongs to store = \"file\" only",
    ),
    ("path = \"objects\"", "", 28, "path: it is missing"),
    (
        "path = \"objects\"",
        "path = \"absent\"",
        31,
        "absent is not an existing folder",
    ),
    ("bucket = \"lab-data\"", "", 5, "bucket: it is missing"),
    (
        "bucket = \"lab-data\"",
        "bucket = \"../x\"",
        10,
        "bucket: may hold only",
    ),
    (
        "endpoint = \"https:",
        "endpoint = \"ftp:",
        8,
        "endpoint: must begin with https://",
    ),
    (
        "endpoint = \"https://",
        "endpoint = \"https://me:pw@",
        8,
        "endpoint: must not hold a user",
    ),
    (
        "amazonaws.com\"",
        "amazonaws.com?x=y\"",
        8,
        "endpoint: must not hold a query",
    ),
    (
        "endpoint = \"https://",
        "endpoint = \"",
        8,
        "endpoint: is not a URL",
    ),
    (
        "prefix = \"flexfs/vol-1\"",
        "prefix = \"flexfs/../vol-1\"",
        11,
        "prefix: must not hold the segments",
    ),
    (
        "prefix = \"flexfs/vol-1\"",
        "prefix = \"/flexfs\"",
        11,
        "prefix: must not begin or end with `/`",
    ),
    (
        "prefix = \"flexfs/vol-1\"",
        "ca_file = \"absent.pem\"",
        11,
        "ca_file: ",
    ),
    (
        "prefix = \"flexfs/vol-1\"",
        "ca_file = \"config.toml\"",
        11,
        "holds no PEM certificate",
    ),
    (
        "region = \"us-east-1\"",
        "region = \"us east\"",
        9,
        "region: may hold only",
    ),
    (
        "block_size = \"4MiB\"",
        "block_size = \"3MiB\"",
        12,
        "block_size: `3MiB` is not a power of two",
    ),
    (
        "block_size = \"4MiB\"",
        "block_size = \"128KiB\"",
        12,
        "block_size: `128KiB` is not",
    ),
    (
        "block_size = \"4MiB\"",
        "block_size = \"16MiB\"",
        12,
        "from 256KiB to 8MiB",
    ),
    (
        "block_size = \"4MiB\"",
        "block_size = \"big\"",
        12,
        "block_size: `big` is not a size",
    ),
    (
        "block_size = \"4MiB\"",
        "block_size = 4194304",
        12,
        "block_size: invalid type",
    ),
    (
        "consistency = \"revalidate\"",
        "consistency = \"strong\"",
        13,
        "consistency: must be \"revalidate\"",
    ),
    (
        "consistency = \"revalidate\"",
        "consistency = \"immutable\"",
        14,
        "ttl: has no meaning",
    ),
    (
        "ttl = \"5s\"",
        "etag = \"sha1\"",
        14,
        "etag: must be \"md5\" or \"fast\"",
    ),
    (
        "ttl = \"5s\"",
        "negative_ttl = \"25h\"",
        14,
        "negative_ttl: `25h` must be at most 24h",
    ),
    (
        "ttl = \"5s\"",
        "ttl = \"5\"",
        14,
        "ttl: `5` must be a whole number with a unit",
    ),
    (
        "anonymous = \"none\"",
        "anonymous = \"write\"",
        16,
        "anonymous: must be \"none\" or \"read\"",
    ),
    (
        "permission = \"rw\"",
        "permission = \"w\"",
        26,
        "permission: must be \"r\" or \"rw\"",
    ),
    ("permission = \"rw\"", "", 22, "missing field `permission`"),
    (
        "access_key = \"AKIDEXAMPLE\"",
        "",
        24,
        "secret_key: access_key is missing",
    ),
    (
        "access_key = \"AKIDEXAMPLE\"",
        "access_key = \"a/b\"",
        23,
        "access_key: may hold only",
    ),
    (
        "secret_key = \"very-secret-signing-key\"",
        "",
        23,
        "access_key: secret_key is missing",
    ),
    (
        "secret_key = \"very-secret-signing-key\"",
        "secret_key = \"hush\"",
        24,
        "secret_key: must have 16",
    ),
    (
        "secret_key = \"very-secret-signing-key\"",
        "secret_key = 12345678",
        24,
        "value is not shown",
    ),
    (
        "[operator]",
        "[operator]\ntoken_file = \"x\"",
        3,
        "token_file: token is given too",
    ),
    ("[operator]", "[operators]", 2, "unknown field `operators`"),
];

#[test]
fn every_mistake_is_told_with_file_line_and_key() {
    let fixture = Fixture::new();
    for (right, wrong, line, part) in MISTAKES {
        let text = EXAMPLE.replacen(right, wrong, 1);
        assert_ne!(text, EXAMPLE, "{right} is not in the example");
        let error = fixture.load(&text).expect_err(wrong).to_string();
        let place = format!("{}:{line}: ", fixture.path().display());
        assert!(error.starts_with(&place), "{wrong}: {error}");
        assert!(error.contains(part), "{wrong}: {error}");
        assert!(!error.contains('\n'), "{error}");
        for hidden in [TOKEN, SECRET, "hush", "me:pw", "12345678"] {
            assert!(!error.contains(hidden), "{error}");
        }
    }
}

#[test]
fn tokens_too_short_or_given_twice_are_refused_unseen() {
    let fixture = Fixture::new();
    let short = EXAMPLE.replace(TOKEN, "hush");
    let error = fixture.load(&short).expect_err("short").to_string();
    assert!(
        error.contains("config.toml:3: token: must have at least 16"),
        "{error}"
    );
    assert!(!error.contains("hush"), "{error}");
    let key = "[[volume.key]]\ntoken = \"fedcba9876543210fedcba9876543210\"\npermission = \"r\"\n\n[[volume]]\nname = \"scratch\"";
    let twice = EXAMPLE.replace("[[volume]]\nname = \"scratch\"", key);
    let error = fixture.load(&twice).expect_err("twice").to_string();
    assert!(
        error.contains("config.toml:29: token: an earlier key"),
        "{error}"
    );
}

#[test]
fn one_access_key_means_one_secret() {
    let fixture = Fixture::new();
    let with_key = |secret: &str| {
        format!(
            "{EXAMPLE}[[volume.key]]\naccess_key = \"AKIDEXAMPLE\"\nsecret_key = \"{secret}\"\n\
             permission = \"r\"\n"
        )
    };
    fixture
        .load(&with_key(SECRET))
        .expect("the same pair opens two volumes");
    let error = fixture
        .load(&with_key("another-secret-key"))
        .expect_err("two secrets")
        .to_string();
    assert!(
        error.contains(":37: access_key: `AKIDEXAMPLE` has another secret_key"),
        "{error}"
    );
    let twice = EXAMPLE.replace(
        "[[volume]]\nname = \"scratch\"",
        "[[volume.key]]\naccess_key = \"AKIDEXAMPLE\"\nsecret_key = \"very-secret-signing-key\"\n\
         permission = \"r\"\n[[volume]]\nname = \"scratch\"",
    );
    let error = fixture
        .load(&twice)
        .expect_err("twice in one volume")
        .to_string();
    assert!(
        error.contains(":29: access_key: an earlier key of this volume"),
        "{error}"
    );
}

/// A volume in Azure, with whatever opens it.
fn azure(more: &str) -> String {
    format!(
        "[[volume]]\nname = \"cold\"\nstore = \"azure\"\n\
         endpoint = \"https://labdata.blob.core.windows.net\"\ncontainer = \"genomes\"\n\
         prefix = \"p\"\nanonymous = \"read\"\n{more}"
    )
}

const AZURE_PAIR: &str =
    "[volume.credentials]\naccess_key = \"labdata\"\nsecret_key = \"c2VjcmV0LWh1c2g=\"\n";

const AZURE_TOKEN: &str = "[volume.credentials]\nsas_token = \"sv=2024-11-04&sr=c&sp=rwdl&\
                           se=2020-01-01T00%3A00%3A00Z&sig=hush%3D\"\n";

#[test]
fn a_volume_in_azure_is_opened_by_a_key_or_a_token() {
    let fixture = Fixture::new();
    let store = |text: &str, sources: &CredentialSources| {
        fixture.write(text, 0o600);
        let config = Config::load(&fixture.path(), sources).expect("load");
        let volume = config.volumes.into_iter().next().expect("a volume");
        (volume.store, config.warnings.join("\n"))
    };
    let none = CredentialSources::default();
    let (with_key, _) = store(&azure(AZURE_PAIR), &none);
    let VolumeStore::Azure {
        endpoint,
        container,
        prefix,
        credentials,
        ..
    } = with_key
    else {
        panic!("an azure store")
    };
    assert_eq!(endpoint.as_str(), "https://labdata.blob.core.windows.net/");
    assert_eq!((container.as_str(), prefix.as_str()), ("genomes", "p"));
    let AzureCredentials::Key { account, key } = credentials else {
        panic!("a key")
    };
    assert_eq!(
        (account.as_str(), key.expose()),
        ("labdata", "c2VjcmV0LWh1c2g=")
    );
    let (with_token, warnings) = store(&azure(AZURE_TOKEN), &none);
    assert!(matches!(
        with_token,
        VolumeStore::Azure {
            credentials: AzureCredentials::Sas(_),
            ..
        }
    ));
    assert!(
        warnings.contains("SAS token expired at 2020-01-01T00:00:00Z")
            && !warnings.contains("hush"),
        "{warnings}"
    );
    // The same from outside: flags before the volume's own, the environment last.
    let outside = CredentialSources {
        azure_environment: Some(AzureCredentials::Key {
            account: "environment".into(),
            key: Secret::new("aHVzaA=="),
        }),
        ..CredentialSources::default()
    };
    let (from_environment, _) = store(&azure(""), &outside);
    assert!(format!("{from_environment:?}").contains("\"environment\""));
    let flags = StoreCredentials {
        access_key: "flags".into(),
        secret_key: Secret::new("aHVzaA=="),
        session_token: None,
    };
    let flags = CredentialSources {
        flags: Some(flags),
        ..outside
    };
    let (from_flags, _) = store(&azure(AZURE_PAIR), &flags);
    assert!(format!("{from_flags:?}").contains("\"flags\""));
}

#[test]
fn mistakes_about_azure_are_told_without_its_secrets() {
    let fixture = Fixture::new();
    let (pair, token) = (azure(AZURE_PAIR), azure(AZURE_TOKEN));
    for (text, right, wrong, part) in [
        (
            &pair,
            "container = \"genomes\"\n",
            "",
            ":1: container: it is missing",
        ),
        (
            &pair,
            "genomes",
            "Genomes",
            ":5: container: must have 3 to 63",
        ),
        (
            &pair,
            "endpoint = \"https://labdata.blob.core.windows.net\"\n",
            "",
            ":1: endpoint: it is missing",
        ),
        (
            &pair,
            "prefix",
            "bucket",
            ":6: bucket: belongs to store = \"s3\" only",
        ),
        (
            &pair,
            "prefix",
            "path",
            ":6: path: belongs to store = \"file\" only",
        ),
        (
            &pair,
            "c2VjcmV0LWh1c2g=",
            "c2VjcmV0LWh1c2g",
            "hold a key that is not base64",
        ),
        (&pair, "\"labdata\"", "\"Lab\"", "name no storage account"),
        (
            &pair,
            "secret_key",
            "session_token",
            "session_token: belongs to store = \"s3\" only",
        ),
        (&pair, "access_key = \"labdata\"\n", "", "give access_key"),
        (
            &pair,
            "access_key = \"labdata\"",
            "sas_token = \"x\"",
            "sas_token: access_key or",
        ),
        (
            &token,
            "sv=2024-11-04&",
            "",
            ":9: credentials.sas_token: they hold a SAS token without `sv`",
        ),
        (&token, "&sig=hush%3D", "", "without `sig`"),
        (&token, "se=2020-01-01T00%3A00%3A00Z&", "", "without `se`"),
        (&token, "sr=c", "sr=b", "for a single blob"),
        (
            &token,
            "store = \"azure\"",
            "store = \"s3\"",
            "container: belongs to store = \"azure\" only",
        ),
        (
            &azure(""),
            "prefix",
            "prefix",
            ":1: credentials: there are none",
        ),
    ] {
        let text = text.replacen(right, wrong, 1);
        fixture.write(&text, 0o600);
        let error = Config::load(&fixture.path(), &CredentialSources::default())
            .expect_err(wrong)
            .to_string();
        assert!(error.contains(part), "{wrong}: {error}");
        assert!(
            !error.contains("hush") && !error.contains("c2Vj"),
            "{error}"
        );
    }
    // With the keys that S3 has, the token is not passed over.
    let s3 = EXAMPLE.replace(
        "secret_key = \"volume-pass\"",
        "secret_key = \"p\"\nsas_token = \"x\"",
    );
    let error = fixture.load(&s3).expect_err("a token for S3").to_string();
    assert!(
        error.contains("credentials.sas_token: belongs to store"),
        "{error}"
    );
    fixture.write(&pair, 0o644);
    let open = Config::load(&fixture.path(), &CredentialSources::default());
    open.expect_err("it holds a key and all may read it");
}

#[test]
fn a_volume_without_credentials_says_where_to_give_them() {
    let fixture = Fixture::new();
    let text = "[[volume]]\nname = \"plain\"\nstore = \"s3\"\nendpoint = \"http://127.0.0.1:1\"\nbucket = \"b\"\n";
    fixture.write(text, 0o600);
    let error = Config::load(&fixture.path(), &CredentialSources::default()).expect_err("none");
    let error = error.to_string();
    assert!(error.contains(":1: credentials: there are none"), "{error}");
    assert!(error.contains("forebay init creds"), "{error}");
}

#[test]
fn a_file_with_secrets_must_be_closed_to_others_and_one_without_need_not() {
    let fixture = Fixture::new();
    for mode in [0o644, 0o640, 0o602] {
        fixture.write(EXAMPLE, mode);
        let error = Config::load(&fixture.path(), &with_flags())
            .expect_err("open")
            .to_string();
        assert!(error.contains(&format!("mode is {mode:04o}")), "{error}");
        assert!(error.contains("chmod 600"), "{error}");
    }
    let open =
        "[[volume]]\nname = \"open\"\nstore = \"file\"\npath = \"objects\"\nanonymous = \"read\"\n";
    fixture.write(open, 0o644);
    Config::load(&fixture.path(), &with_flags()).expect("nothing secret in it");
}

#[test]
fn the_operators_token_may_stand_in_a_private_file() {
    let fixture = Fixture::new();
    let text = EXAMPLE.replace(&format!("token = \"{TOKEN}\""), "token_file = \"operator\"");
    let error = fixture.load(&text).expect_err("no such file").to_string();
    assert!(error.contains(":3: token_file: "), "{error}");
    let token_path = fixture.folder.path().join("operator");
    std::fs::write(&token_path, format!("{TOKEN}\n")).expect("write");
    let set_mode = |mode| {
        std::fs::set_permissions(&token_path, std::fs::Permissions::from_mode(mode))
            .expect("chmod");
    };
    set_mode(0o644);
    let error = fixture.load(&text).expect_err("open to others").to_string();
    assert!(error.contains("chmod 600"), "{error}");
    set_mode(0o600);
    let config = fixture.load(&text).expect("load");
    assert!(
        config
            .operator_token
            .expect("a token")
            .matches(TOKEN.as_bytes())
    );
}

#[test]
fn what_is_no_config_file_is_refused() {
    let fixture = Fixture::new();
    let sources = CredentialSources::default();
    let absent = Config::load(&fixture.path(), &sources)
        .expect_err("absent")
        .to_string();
    assert!(absent.contains("cannot be opened"), "{absent}");
    let folder = Config::load(fixture.folder.path(), &sources)
        .expect_err("a folder")
        .to_string();
    assert!(folder.contains("not a regular file"), "{folder}");
    let endless = Config::load(Path::new("/dev/zero"), &sources)
        .expect_err("a device")
        .to_string();
    assert!(endless.contains("not a regular file"), "{endless}");
    let empty = fixture.load("").expect_err("empty").to_string();
    assert!(empty.contains("[[volume]]: there is none"), "{empty}");
    let broken = fixture
        .load("[[volume]]\nname = \"abc\n")
        .expect_err("broken")
        .to_string();
    assert!(broken.contains("config.toml:"), "{broken}");
}
