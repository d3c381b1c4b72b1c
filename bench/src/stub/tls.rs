//! TLS for the stub: owns the step from two PEM files to an acceptor. Plain rustls defaults; no client certificates.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// An acceptor that presents the chain in `certificate_file` and signs with the key in `key_file`.
pub(super) fn acceptor(certificate_file: &Path, key_file: &Path) -> io::Result<TlsAcceptor> {
    let explain =
        |file: &Path, error: String| io::Error::other(format!("{}: {error}", file.display()));
    let chain = CertificateDer::pem_file_iter(certificate_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| explain(certificate_file, error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| explain(key_file, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| explain(certificate_file, error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
