//! The server's side of a handshake, by rustls, up to the keys.
//!
//! This file owns what goes over the socket until a connection is secure. rustls is shown one record after the
//! other, so that it never sees one that comes behind the handshake: from there on records are ours.

use super::record::{RECORD_BYTES_MAX, RecordKey, record_length};
use super::{TlsStream, invalid};
use crate::net::stream::{Socket, send_plain};
use rustls::ServerConfig;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;

/// Bytes read at a time: a ClientHello, or what a client says last, fits.
const READ_BYTES: usize = 4 << 10;

/// More than this waits for no handshake: rustls takes messages of up to 64 KiB.
const INCOMING_BYTES_MAX: usize = (64 << 10) + 2 * RECORD_BYTES_MAX;

/// What rustls wants next.
enum Next {
    /// More records.
    Read,
    /// That what it has encoded is sent.
    Send,
    /// To be asked again.
    Again,
    /// Nothing: the connection is secure.
    Done,
}

struct Handshake {
    socket: Socket,
    connection: UnbufferedServerConnection,
    incoming: Vec<u8>,
    /// As much of `incoming` as rustls has been shown: whole records.
    shown: usize,
    outgoing: Vec<u8>,
}

/// Performs it. The caller sets the deadline.
pub(super) async fn accept(socket: Socket, config: Arc<ServerConfig>) -> io::Result<TlsStream> {
    let connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
    let mut handshake = Handshake {
        socket,
        connection,
        incoming: Vec::new(),
        shown: 0,
        outgoing: Vec::new(),
    };
    loop {
        match handshake.step() {
            Ok(Next::Again) => {}
            Ok(Next::Read) => handshake.read().await?,
            Ok(Next::Send) => handshake.send().await?,
            Ok(Next::Done) => return handshake.finish(),
            Err(error) => {
                // It may have an alert to tell the client why, and must not see the same records again.
                (handshake.incoming, handshake.shown) = (Vec::new(), 0);
                while let Ok(Next::Again) = handshake.step() {}
                let _ = handshake.send().await;
                return Err(invalid(error));
            }
        }
    }
}

impl Handshake {
    fn step(&mut self) -> Result<Next, rustls::Error> {
        let shown = &mut self.incoming[..self.shown];
        let UnbufferedStatus { discard, state } = self.connection.process_tls_records(shown);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.outgoing),
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                sent.done();
                Ok(Next::Send)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Next::Read),
            Ok(ConnectionState::WriteTraffic(_)) => Ok(Next::Done),
            Ok(_) => Err(rustls::Error::General("the handshake was left".into())),
            Err(error) => Err(error),
        };
        self.incoming.drain(..discard);
        self.shown -= discard;
        match next {
            // It may send before the client has had its last word.
            Ok(Next::Done) if self.connection.is_handshaking() => Ok(Next::Read),
            next => next,
        }
    }

    /// Shows one more record, read from the socket if there is none.
    async fn read(&mut self) -> io::Result<()> {
        loop {
            let hidden = &self.incoming[self.shown..];
            match record_length(hidden) {
                Ok(Some(length)) if length <= hidden.len() => {
                    self.shown += length;
                    return Ok(());
                }
                // Not TLS: rustls has the right answer to it.
                Err(_) => {
                    self.shown = self.incoming.len();
                    return Ok(());
                }
                _ if self.incoming.len() > INCOMING_BYTES_MAX => {
                    return Err(invalid("a handshake without end"));
                }
                _ => {}
            }
            let mut piece = [0; READ_BYTES];
            let reading = poll_fn(|cx| self.socket.poll_receive(cx, &mut piece));
            match reading.await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.incoming.extend_from_slice(&piece[..count]),
            }
        }
    }

    async fn send(&mut self) -> io::Result<()> {
        send_plain(&mut self.socket, &[&self.outgoing]).await?;
        self.outgoing.clear();
        Ok(())
    }

    fn finish(self) -> io::Result<TlsStream> {
        let (secrets, kernel) = self
            .connection
            .dangerous_into_kernel_connection()
            .map_err(invalid)?;
        let version = kernel.protocol_version();
        let (sent, received) = (secrets.tx, secrets.rx);
        let sealer = RecordKey::new(version, sent.0, &sent.1).map_err(invalid)?;
        let opener = RecordKey::new(version, received.0, &received.1).map_err(invalid)?;
        Ok(TlsStream::new(
            self.socket,
            sealer,
            opener,
            kernel,
            self.incoming,
        ))
    }
}

fn encode(
    mut data: EncodeTlsData<'_, ServerConnectionData>,
    outgoing: &mut Vec<u8>,
) -> Result<Next, rustls::Error> {
    let filled = outgoing.len();
    loop {
        match data.encode(&mut outgoing[filled..]) {
            Ok(count) => {
                outgoing.truncate(filled + count);
                return Ok(Next::Again);
            }
            Err(EncodeError::InsufficientSize(needed)) => {
                outgoing.resize(filled + needed.required_size, 0);
            }
            Err(EncodeError::AlreadyEncoded) => {
                return Err(rustls::Error::General("encoded twice".into()));
            }
        }
    }
}
