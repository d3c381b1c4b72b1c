//! Whom a command takes for the proxy: by certificate authority, by fingerprint, or anybody.

use super::{RemoteArguments, dev_folder, wrong};
use crate::settings::{Environment, SettingsError};
use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::path::Path;
use std::sync::Arc;
use url::Url;

/// Where `start` puts the certificate that it makes.
const CERTIFICATE_DEFAULT: &str = "~/.forebay/ssl/cert";

const FINGERPRINT_BYTES: usize = digest::SHA256_OUTPUT_LEN;

/// Whom to believe.
pub(super) enum Trust {
    /// Whoever has a certificate for the name in the URL from one of these.
    Authorities(RootCertStore),
    /// Whoever has the certificate with this SHA-256, for whatever name.
    Fingerprint([u8; FINGERPRINT_BYTES]),
    /// Anybody.
    Anybody,
    /// Nothing is proved without TLS.
    Plain,
}

impl Trust {
    /// Whom the flags mean.
    pub fn choose(
        arguments: RemoteArguments<'_>,
        environment: &Environment,
        url: &Url,
    ) -> Result<Trust, SettingsError> {
        let given = [
            ("--ca", arguments.ca.is_some()),
            ("--fingerprint", arguments.fingerprint.is_some()),
            ("--insecure", arguments.insecure),
        ];
        let mut given = given.into_iter().filter(|(_, given)| *given);
        if let Some((flag, _)) = given.next() {
            if let Some((other, _)) = given.next() {
                return Err(wrong(
                    flag,
                    format!("{other} is given too; give one of them"),
                ));
            }
            if url.scheme() == "http" {
                return Err(wrong(
                    flag,
                    format!("{url} is not https, which it is about"),
                ));
            }
        }
        if url.scheme() == "http" {
            return Ok(Trust::Plain);
        }
        if arguments.insecure {
            return Ok(Trust::Anybody);
        }
        if let Some(text) = arguments.fingerprint {
            return parse_fingerprint(text).map(Trust::Fingerprint);
        }
        let mut roots = RootCertStore::empty();
        if let Some(given) = arguments.ca {
            add_file(&mut roots, &environment.path("--ca", given)?)
                .map_err(|problem| wrong("--ca", problem))?;
        } else if arguments.dev {
            let path = dev_folder(environment).join("ssl/cert");
            add_file(&mut roots, &path).map_err(|problem| {
                let advice = "with `start --dev --noSSL`, give --url http://localhost:8443";
                wrong("--dev", format!("{problem}; {advice}"))
            })?;
        } else {
            add_defaults(&mut roots, environment);
        }
        if roots.is_empty() {
            return Err(wrong(
                "--ca",
                format!(
                    "neither the system nor {CERTIFICATE_DEFAULT} has certificates to trust; give --ca \
                     or --fingerprint"
                ),
            ));
        }
        Ok(Trust::Authorities(roots))
    }

    /// The same as rustls takes it.
    pub fn into_config(self) -> Result<ClientConfig, SettingsError> {
        let provider = Arc::new(forebay_io::net::crypto_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("--url", error.to_string()))?;
        let pinned = |expected| {
            let verifier = Pinned { expected, provider };
            builder
                .clone()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        };
        let builder = match self {
            Trust::Authorities(roots) => builder.with_root_certificates(roots),
            Trust::Plain => builder.with_root_certificates(RootCertStore::empty()),
            Trust::Fingerprint(expected) => pinned(Some(expected)),
            Trust::Anybody => pinned(None),
        };
        Ok(builder.with_no_client_auth())
    }
}

/// A fingerprint as `start` logs it, or as plain hex.
fn parse_fingerprint(text: &str) -> Result<[u8; FINGERPRINT_BYTES], SettingsError> {
    let mut bytes = [0; FINGERPRINT_BYTES];
    let digits = text.replace(':', "");
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| {
        let problem = "it is not a SHA-256 in 64 hexadecimal digits, with or without colons, as \
                       `forebay start` logs it";
        wrong("--fingerprint", problem)
    })?;
    Ok(bytes)
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let told = |problem: String| format!("{}: {problem}", path.display());
    let pem = std::fs::read(path).map_err(|error| told(error.to_string()))?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| told(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| told(error.to_string()))?;
        count += 1;
    }
    match count {
        0 => Err(told("it holds no PEM certificate".to_owned())),
        _ => Ok(()),
    }
}

/// The system's authorities, and the certificate that a proxy on this machine made for itself.
fn add_defaults(roots: &mut RootCertStore, environment: &Environment) {
    // Those that cannot be read are not trusted; the handshake then says so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Ok(path) = environment.path("--ca", CERTIFICATE_DEFAULT) {
        // Nor is one that is not there: the proxy may be elsewhere.
        let _ = add_file(roots, &path);
    }
}

/// Believes one certificate, whatever its name, age and signer; or any.
#[derive(Debug)]
struct Pinned {
    expected: Option<[u8; FINGERPRINT_BYTES]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = digest::digest(&digest::SHA256, end_entity);
        match &self.expected {
            Some(expected) if expected != found.as_ref() => Err(rustls::Error::General(format!(
                "its certificate has the fingerprint {}, which is not the one of --fingerprint",
                hex::encode_upper(found.as_ref())
            ))),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_taken_in_both_spellings() {
        let plain = "0123456789abcdef".repeat(4);
        let pairs: Vec<String> = plain
            .to_uppercase()
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).into_owned())
            .collect();
        let bytes = parse_fingerprint(&plain).expect("plain");
        assert_eq!(bytes[..3], [0x01, 0x23, 0x45]);
        assert_eq!(parse_fingerprint(&pairs.join(":")).expect("colons"), bytes);
        for text in ["", "01:23", &"0".repeat(66), &"zz".repeat(32)] {
            let error = parse_fingerprint(text).expect_err("no fingerprint");
            assert!(error.to_string().contains("64 hexadecimal digits"));
        }
    }
}
