//! A TLS client that trusts exactly the certificate the proxy made, and nothing else.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

use super::WAIT_MAX;
use super::http::{Client, Wire};

struct TlsWire(StreamOwned<ClientConnection, TcpStream>);

impl Read for TlsWire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for TlsWire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Wire for TlsWire {
    fn socket(&self) -> &TcpStream {
        &self.0.sock
    }
}

/// Connects and completes the handshake, verifying the name and the certificate in the file.
pub fn try_connect(address: SocketAddr, certificate_file: &Path) -> io::Result<Client> {
    let certificate = CertificateDer::from_pem_file(certificate_file).map_err(|error| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("{certificate_file:?}: {error}"),
        )
    })?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::from(address.ip());
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let socket = TcpStream::connect_timeout(&address, WAIT_MAX)?;
    socket.set_read_timeout(Some(WAIT_MAX))?;
    socket.set_nodelay(true)?;
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Client::over(Box::new(TlsWire(stream))))
}
