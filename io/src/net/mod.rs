//! Sockets of one core: its `SO_REUSEPORT` listener, its connections, TLS.
//!
//! This file owns accepting. It never reads a byte of a connection and never waits for a
//! handshake: an accepted socket is handed on at once.

mod ciphers;
mod lend;
mod stream;
mod tls;

pub use ciphers::crypto_provider;
pub use stream::{SOCKET_BYTES_MAX, Socket, Stream};
pub use tls::{TLS_BYTES_MAX, TLS_CORE_BYTES_MAX};

use glommio::net::TcpListener;
use socket2::{Domain, Protocol, SockAddr, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};

/// Connections that may wait in the kernel for accept. Several thousand clients may reconnect at
/// once after a restart; the kernel caps it at `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;

/// One core's listening socket. All cores bind the same address; the kernel spreads connections.
pub struct Listener {
    inner: TcpListener,
}

impl Listener {
    /// Binds `address` with `SO_REUSEPORT`. The caller has made sure that no other process has it.
    pub fn bind(address: SocketAddr) -> io::Result<Listener> {
        let socket = socket2::Socket::new(
            Domain::for_address(address),
            Type::STREAM.cloexec().nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SockAddr::from(address))?;
        socket.listen(BACKLOG)?;
        // SAFETY: the descriptor is ours and handed over whole.
        let inner = unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) };
        Ok(Listener { inner })
    }

    /// The next connection.
    ///
    /// # Errors
    /// `EMFILE` and `ENFILE` mean that descriptors ran out: pause, then call again. Others concern
    /// one connection that is gone already.
    pub async fn accept(&self) -> io::Result<Socket> {
        let stream = self.inner.accept().await.map_err(io::Error::from)?;
        Socket::new(stream)
    }
}

/// Whether an accept error means that descriptors ran out.
pub fn is_descriptor_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
