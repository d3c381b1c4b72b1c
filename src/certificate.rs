//! The server's certificate and key: made on first start, loaded and checked on every one.
//!
//! This file owns what TLS is offered: TLS 1.2 and 1.3 by rustls, HTTP/1.1 only, no
//! early data, rotating tickets. It never replaces a certificate or key that is there, because
//! clients pin what they once saw; half a pair is an error for people to resolve.

use crate::settings::TlsFiles;
use crate::settings::private_file::{self, Existing, PrivateFileError};
use aws_lc_rs::digest;
use forebay_io::net::crypto_provider;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::crypto::aws_lc_rs as provider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long a self-made certificate is good. Clients pin it and nothing renews it, so it must outlive
/// the machine that made it.
pub const SELF_MADE_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How far before its making a self-made certificate begins, for clients whose clocks are behind.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate that ends sooner than this is worth a warning: time enough to get another.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Room for a host name and its NUL; Linux allows 64 bytes.
const HOST_NAME_BYTES_MAX: usize = 256;

/// Why there is no usable certificate. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// One of the two files is there and the other is not.
    #[error(
        "{} is there but {} is not; restore it, or remove the first to have both made anew",
        .present.display(),
        .absent.display()
    )]
    HalfAPair {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        absent: PathBuf,
    },
    /// The certificate file cannot be read.
    #[error("--sslCert {}: {problem}", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The key file cannot be read.
    #[error("--sslKey {0}")]
    KeyFile(#[source] PrivateFileError),
    /// The key file holds no usable key.
    #[error("--sslKey {}: {problem}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The pair cannot be made or written.
    #[error("certificate {}: it cannot be made: {problem}", .path.display())]
    NotMade {
        /// The certificate's file.
        path: PathBuf,
        /// What went wrong.
        problem: String,
    },
}

/// A certificate with its key, ready to serve.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// For every TLS connection of every core.
    pub config: Arc<rustls::ServerConfig>,
    /// SHA-256 of the leaf certificate's DER, as `AB:CD:…`: what clients pin.
    pub fingerprint: String,
    /// Whether this call made the pair.
    pub made: bool,
    /// What is allowed but worth a line in the log.
    pub warnings: Vec<String>,
}

/// Loads the pair, or makes it where both files are missing.
pub fn load_or_make(files: &TlsFiles) -> Result<Certificate, CertificateError> {
    let made = match (exists(&files.cert), exists(&files.key)) {
        (true, true) => false,
        (false, false) => {
            make(files)?;
            true
        }
        (cert_is_there, _) => {
            let (present, absent) = if cert_is_there {
                (&files.cert, &files.key)
            } else {
                (&files.key, &files.cert)
            };
            return Err(CertificateError::HalfAPair {
                present: present.clone(),
                absent: absent.clone(),
            });
        }
    };
    load(files, made, SystemTime::now())
}

/// Whether anything, be it a dangling link, has this name.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn load(files: &TlsFiles, made: bool, now: SystemTime) -> Result<Certificate, CertificateError> {
    let refuse = |problem: String| CertificateError::Certificate {
        path: files.cert.clone(),
        problem,
    };
    let pem = std::fs::read(&files.cert).map_err(|error| refuse(error.to_string()))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| refuse(format!("it is not a PEM certificate: {error}")))?;
    let Some(leaf) = chain.first() else {
        return Err(refuse("it holds no PEM certificate".to_owned()));
    };
    let warnings = check_validity(leaf, now).map_err(refuse)?;
    let fingerprint = fingerprint(leaf);
    let key = load_key(&files.key)?;
    let config = server_config(chain, key, files)?;
    Ok(Certificate {
        config: Arc::new(config),
        fingerprint,
        made,
        warnings,
    })
}

fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let pem = private_file::read(path).map_err(CertificateError::KeyFile)?;
    // The parser's words are not shown: they could quote the key.
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| CertificateError::Key {
        path: path.to_owned(),
        problem: "it holds no PEM private key (PKCS #8, PKCS #1 or SEC 1, not encrypted)"
            .to_owned(),
    })
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    files: &TlsFiles,
) -> Result<rustls::ServerConfig, CertificateError> {
    let refuse_key = |problem: String| CertificateError::Key {
        path: files.key.clone(),
        problem,
    };
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(crypto_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| refuse_key(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => refuse_key(format!(
                "it does not belong to the certificate in {}",
                files.cert.display()
            )),
            other => refuse_key(format!("it cannot be used: {other}")),
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Early data can be replayed by anybody who sees it, and a PUT must not be.
    config.max_early_data_size = 0;
    // For our own record layer, which gets the keys of a finished handshake.
    config.enable_secret_extraction = true;
    config.ticketer = provider::Ticketer::new()
        .map_err(|error| refuse_key(format!("session tickets cannot be set up: {error}")))?;
    Ok(config)
}

/// Refuses a certificate outside its time; warns of one that ends soon.
fn check_validity(leaf: &CertificateDer<'_>, now: SystemTime) -> Result<Vec<String>, String> {
    let (_, parsed) = X509Certificate::from_der(leaf)
        .map_err(|_| "its first certificate is not X.509".to_owned())?;
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let now = now.duration_since(UNIX_EPOCH).map_or(0, seconds);
    let validity = parsed.validity();
    if now > validity.not_after.timestamp() {
        return Err(format!(
            "it expired on {}; put a current one in its place",
            validity.not_after
        ));
    }
    if now < validity.not_before.timestamp() {
        return Err(format!(
            "it is not valid before {}; check this machine's clock",
            validity.not_before
        ));
    }
    if now
        > validity
            .not_after
            .timestamp()
            .saturating_sub(seconds(EXPIRY_WARNING))
    {
        return Ok(vec![format!(
            "the certificate expires on {}",
            validity.not_after
        )]);
    }
    Ok(Vec::new())
}

/// SHA-256 of a certificate as `openssl x509 -fingerprint -sha256` prints it.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let hash = digest::digest(&digest::SHA256, certificate);
    let bytes: Vec<String> = hash
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    bytes.join(":")
}

/// Makes a pair and writes it, the key first: a crash between the two leaves half a pair, which the
/// next start names, never a certificate that clients pinned without a key.
fn make(files: &TlsFiles) -> Result<(), CertificateError> {
    let refuse = |problem: String| CertificateError::NotMade {
        path: files.cert.clone(),
        problem,
    };
    let (certificate, key) = self_signed().map_err(|error| refuse(error.to_string()))?;
    let write = |path: &Path, pem: &str| {
        if let Some(folder) = path.parent() {
            private_file::make_folders(folder)?;
        }
        private_file::write(path, pem.as_bytes(), Existing::Keep)
    };
    write(&files.key, &key).map_err(|error| refuse(error.to_string()))?;
    write(&files.cert, &certificate).map_err(|error| refuse(error.to_string()))
}

/// A new certificate and key in PEM.
fn self_signed() -> Result<(String, zeroize::Zeroizing<String>), rcgen::Error> {
    let host = host_name();
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    if let Some(host) = &host
        && host != "localhost"
    {
        names.push(host.clone());
    }
    let mut params = CertificateParams::new(names).or_else(|_| {
        // A host name that no certificate can hold must not keep the proxy from starting.
        CertificateParams::new(vec![
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ])
    })?;
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SLACK).into();
    params.not_after = (now + SELF_MADE_VALIDITY).into();
    params.distinguished_name.push(
        DnType::CommonName,
        format!("Forebay on {}", host.as_deref().unwrap_or("localhost")),
    );
    // An end-entity certificate: whoever trusts it trusts this server, not whatever it may sign.
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    Ok((
        certificate.pem(),
        zeroize::Zeroizing::new(key.serialize_pem()),
    ))
}

/// This machine's name, if it has one that can stand in a certificate.
fn host_name() -> Option<String> {
    let mut buffer = [0u8; HOST_NAME_BYTES_MAX];
    // SAFETY: the pointer and length describe `buffer`, which outlives the call.
    let outcome = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) };
    if outcome != 0 {
        return None;
    }
    let name = CStr::from_bytes_until_nul(&buffer).ok()?.to_str().ok()?;
    (!name.is_empty() && name.is_ascii()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use tempfile::TempDir;
    use x509_parser::extensions::GeneralName;

    fn files(folder: &TempDir) -> TlsFiles {
        TlsFiles {
            cert: folder.path().join("ssl/cert"),
            key: folder.path().join("ssl/key"),
        }
    }

    fn folder() -> TempDir {
        tempfile::tempdir().expect("temporary folder")
    }

    #[test]
    fn the_first_start_makes_a_pair_and_the_next_keeps_it() {
        let folder = folder();
        let files = files(&folder);
        let first = load_or_make(&files).expect("make");
        assert!(first.made && first.warnings.is_empty());
        for path in [&files.cert, &files.key] {
            assert_eq!(
                std::fs::metadata(path).expect("stat").mode() & 0o7777,
                0o600
            );
        }
        let again = load_or_make(&files).expect("load");
        assert!(!again.made);
        assert_eq!(again.fingerprint, first.fingerprint);
        assert_eq!(first.fingerprint.len(), 32 * 3 - 1);
        assert_eq!(first.config.alpn_protocols, [b"http/1.1"]);
        assert_eq!(first.config.max_early_data_size, 0);
    }

    #[test]
    fn the_certificate_names_this_machine_and_loopback() {
        let (pem, _) = self_signed().expect("make");
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let (_, parsed) = X509Certificate::from_der(&der).expect("X.509");
        let names = parsed
            .subject_alternative_name()
            .expect("SAN")
            .expect("SAN");
        let names = &names.value.general_names;
        let host = host_name().expect("a host name");
        for name in ["localhost", &host] {
            assert!(
                names.contains(&GeneralName::DNSName(name)),
                "{name} in {names:?}"
            );
        }
        let v6 = std::net::Ipv6Addr::LOCALHOST.octets();
        for address in [&[127, 0, 0, 1][..], &v6] {
            assert!(
                names.contains(&GeneralName::IPAddress(address)),
                "{names:?}"
            );
        }
        let constraints = parsed
            .basic_constraints()
            .expect("constraints")
            .expect("constraints");
        assert!(!constraints.value.ca);
    }

    #[test]
    fn half_a_pair_is_never_completed() {
        for lost in ["cert", "key"] {
            let folder = folder();
            let files = files(&folder);
            load_or_make(&files).expect("make");
            std::fs::remove_file(folder.path().join("ssl").join(lost)).expect("remove");
            let error = load_or_make(&files).expect_err("half a pair").to_string();
            assert!(error.contains(&format!("ssl/{lost} is not")), "{error}");
            assert!(!folder.path().join("ssl").join(lost).exists());
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, other) = (folder(), folder());
        load_or_make(&files(&one)).expect("make");
        load_or_make(&files(&other)).expect("make");
        std::fs::copy(files(&other).key, files(&one).key).expect("copy");
        let error = load_or_make(&files(&one))
            .expect_err("other key")
            .to_string();
        assert!(
            error.contains("does not belong to the certificate"),
            "{error}"
        );
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let folder = folder();
        let files = files(&folder);
        load_or_make(&files).expect("make");
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644))
            .expect("chmod");
        let error = load_or_make(&files).expect_err("open key").to_string();
        assert!(
            error.contains("--sslKey") && error.contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn files_that_hold_something_else_are_refused() {
        let folder = folder();
        let files = files(&folder);
        load_or_make(&files).expect("make");
        let key = std::fs::read(&files.key).expect("read");
        std::fs::write(&files.key, "no key").expect("write");
        let error = load_or_make(&files).expect_err("no key").to_string();
        assert!(error.contains("holds no PEM private key"), "{error}");
        std::fs::write(&files.key, &key).expect("write");
        for (text, part) in [
            ("no certificate", "holds no PEM certificate"),
            (
                "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
                "not a PEM",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "not X.509",
            ),
        ] {
            std::fs::write(&files.cert, text).expect("write");
            let error = load_or_make(&files).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_certificate_is_refused_outside_its_time_and_announced_before_its_end() {
        let folder = folder();
        let files = files(&folder);
        load_or_make(&files).expect("make");
        let now = SystemTime::now();
        let past_its_end = now + SELF_MADE_VALIDITY + Duration::from_secs(60);
        let error = load(&files, false, past_its_end)
            .expect_err("expired")
            .to_string();
        assert!(error.contains("it expired on"), "{error}");
        let before = now - CLOCK_SLACK - Duration::from_secs(60);
        let error = load(&files, false, before)
            .expect_err("too early")
            .to_string();
        assert!(error.contains("not valid before"), "{error}");
        let near_its_end = now + SELF_MADE_VALIDITY - Duration::from_secs(3600);
        let loaded = load(&files, false, near_its_end).expect("still valid");
        assert!(
            loaded.warnings[0].contains("expires on"),
            "{:?}",
            loaded.warnings
        );
    }

    /// Serves one connection and answers one request.
    fn serve_one(config: Arc<rustls::ServerConfig>, listener: &TcpListener) -> std::io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        let mut connection =
            rustls::ServerConnection::new(config).map_err(std::io::Error::other)?;
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        let mut request = [0; 4096];
        let _ = stream.read(&mut request)?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")?;
        stream.flush()?;
        connection.send_close_notify();
        connection.complete_io(&mut socket)?;
        Ok(())
    }

    #[test]
    fn curl_accepts_the_certificate_when_told_to_trust_it_and_only_then() {
        let folder = folder();
        let files = files(&folder);
        let config = load_or_make(&files).expect("make").config;
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("address").port();
        let server = std::thread::spawn(move || {
            for _ in 0..4 {
                // The untrusting client breaks the handshake off; that is its answer, not ours.
                let _ = serve_one(config.clone(), &listener);
            }
        });
        let curl = |arguments: &[&str]| {
            let output = std::process::Command::new("curl")
                .args(["-sS", "--noproxy", "*", "--max-time", "20"])
                .args(arguments)
                .output()
                .expect("these tests need curl");
            (output.status.success(), output.stdout)
        };
        let ca = files.cert.to_str().expect("path");
        let by_name = format!("https://localhost:{port}/");
        let by_address = format!("https://127.0.0.1:{port}/");
        let hello = (true, b"hello".to_vec());
        assert_eq!(curl(&["--cacert", ca, "--ipv4", &by_name]), hello);
        assert_eq!(curl(&["--cacert", ca, "--tlsv1.3", &by_address]), hello);
        assert_eq!(
            curl(&["--cacert", ca, "--tls-max", "1.2", &by_address]),
            hello
        );
        assert!(
            !curl(&[&by_address]).0,
            "an untrusted certificate was accepted"
        );
        server.join().expect("server");
    }
}
