//! What the generator trusts and offers in TLS: owns the client configuration. Resumption is left on, as clients have it.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, ring, verify_tls12_signature,
};
use rustls::{CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// A configuration that trusts `ca` (or the system), or anything if `insecure`.
pub(super) fn client_config(
    ca: Option<&Path>,
    insecure: bool,
    tls13_aes128: bool,
) -> Result<Arc<ClientConfig>, String> {
    let mut provider = aws_lc_rs::default_provider();
    if ring_is_faster() {
        provider.cipher_suites = ring::DEFAULT_CIPHER_SUITES.to_vec();
    }
    if tls13_aes128 {
        let wanted = CipherSuite::TLS13_AES_128_GCM_SHA256;
        provider
            .cipher_suites
            .retain(|offered| offered.suite() == wanted);
    }
    let algorithms = provider.signature_verification_algorithms;
    let versions: &[&rustls::SupportedProtocolVersion] = if tls13_aes128 {
        &[&rustls::version::TLS13]
    } else {
        rustls::DEFAULT_VERSIONS
    };
    let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::new(provider))
        .with_protocol_versions(versions)
        .map_err(|error| format!("TLS: {error}"))?;
    let config = if insecure {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustAnything(algorithms)))
    } else {
        builder.with_root_certificates(roots(ca)?)
    };
    Ok(Arc::new(config.with_no_client_auth()))
}

/// Whether this processor makes several AES blocks by one instruction, but not with the 512-bit registers that aws-lc wants
/// for it: ring then decrypts nearly twice as fast. The server makes the same choice, for its own reasons (`io/src/net`).
fn ring_is_faster() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("vaes")
        && std::is_x86_feature_detected!("vpclmulqdq")
        && std::is_x86_feature_detected!("avx2")
        && !(std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512vl")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq"));
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let explain = |error: String| format!("--ca {}: {error}", file.display());
            for certificate in
                CertificateDer::pem_file_iter(file).map_err(|error| explain(error.to_string()))?
            {
                let certificate = certificate.map_err(|error| explain(error.to_string()))?;
                roots
                    .add(certificate)
                    .map_err(|error| explain(error.to_string()))?;
            }
        }
        None => {
            // Certificates of the system that cannot be read are skipped, as every other client skips them.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("no certificate to trust: give --ca FILE or --insecure".into());
    }
    Ok(roots)
}

/// For `--insecure`: any certificate will do, but whoever shows it must hold its key.
#[derive(Debug)]
struct TrustAnything(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for TrustAnything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
