//! One connection's bytes, plain or encrypted: owns reading them into a buffer that the whole thread shares, and handing
//! the plaintext on piece by piece. Knows no HTTP.
//!
//! TLS uses rustls without its buffers: its buffered form reads 4 KiB at a time, which would make the generator the
//! thing that is measured.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use tokio::net::TcpStream;

use crate::load::target::Target;

/// Bytes read at once. Large, to spare system calls; not larger than what stays in a second-level cache.
const READ_BYTES: usize = 256 * 1024;

/// Room for one write of application data, encrypted: grows to what is needed.
const OUTGOING_BYTES: usize = 32 * 1024;

/// The buffer that all connections of one thread read into; none keeps anything in it between two reads.
#[derive(Debug, Clone)]
pub(super) struct ReadBuffer(Rc<RefCell<Vec<u8>>>);

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self(Rc::new(RefCell::new(vec![0; READ_BYTES])))
    }
}

/// A connection that requests can be sent on.
pub(super) struct Wire {
    stream: TcpStream,
    buffer: ReadBuffer,
    tls: Option<Tls>,
}

struct Tls {
    connection: UnbufferedClientConnection,
    /// Bytes read that end in the middle of a record.
    leftover: Vec<u8>,
    /// Encrypted bytes to be sent.
    outgoing: Vec<u8>,
}

/// What a TLS connection can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// `outgoing` must go before anything else.
    Send,
    /// The handshake waits for the server.
    Handshake,
    /// All records that are here were handed on.
    Traffic,
    /// The server has said that nothing more will come.
    Closed,
}

impl Wire {
    pub(super) async fn connect(target: &Target, buffer: ReadBuffer) -> io::Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let tls = match &target.tls {
            None => None,
            Some((config, name)) => {
                let connection = UnbufferedClientConnection::new(config.clone(), name.clone());
                let connection = connection.map_err(io::Error::other)?;
                Some(Tls {
                    connection,
                    leftover: Vec::new(),
                    outgoing: Vec::new(),
                })
            }
        };
        let mut wire = Self {
            stream,
            buffer,
            tls,
        };
        wire.shake_hands().await?;
        Ok(wire)
    }

    /// Protocol and cipher, once the handshake is over.
    pub(super) fn tls_name(&self) -> Option<String> {
        let connection = &self.tls.as_ref()?.connection;
        Some(format!(
            "{:?} {:?}",
            connection.protocol_version()?,
            connection.negotiated_cipher_suite()?.suite()
        ))
    }

    async fn shake_hands(&mut self) -> io::Result<()> {
        loop {
            let Some(tls) = &mut self.tls else {
                return Ok(());
            };
            let mut incoming = std::mem::take(&mut tls.leftover);
            let (used, next) = tls.advance(&mut incoming, |_| ())?;
            incoming.drain(..used);
            tls.leftover = incoming;
            match next {
                Next::Send => self.send_outgoing().await?,
                Next::Traffic => return Ok(()),
                Next::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
                Next::Handshake => {
                    self.stream.readable().await?;
                    let mut buffer = self.buffer.0.borrow_mut();
                    let read = match self.stream.try_read(&mut buffer) {
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(read) => read,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(error) => return Err(error),
                    };
                    tls.leftover.extend_from_slice(&buffer[..read]);
                }
            }
        }
    }

    /// Sends all of `bytes`.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => send_all(&self.stream, bytes).await,
            Some(tls) => {
                tls.encrypt(bytes)?;
                self.send_outgoing().await
            }
        }
    }

    async fn send_outgoing(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            send_all(&self.stream, &tls.outgoing).await?;
            tls.outgoing.clear();
        }
        Ok(())
    }

    /// Waits for bytes and hands on what they hold, possibly nothing. An end is an error: it never comes between requests.
    ///
    /// Dropped while it waits, it has taken nothing. Answers to key updates stay in `outgoing` and go with the next request.
    pub(super) async fn receive(&mut self, mut consume: impl FnMut(&[u8])) -> io::Result<()> {
        self.stream.readable().await?;
        let shared = self.buffer.clone();
        {
            let mut buffer = shared.0.borrow_mut();
            let start = self
                .tls
                .as_mut()
                .map_or(0, |tls| tls.restore_leftover(&mut buffer));
            let end = match self.stream.try_read(&mut buffer[start..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => start + read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => start,
                Err(error) => return Err(error),
            };
            match &mut self.tls {
                None => consume(&buffer[..end]),
                Some(tls) => {
                    let mut position = 0;
                    loop {
                        let (used, next) = tls.advance(&mut buffer[position..end], &mut consume)?;
                        position += used;
                        match next {
                            Next::Send => (),
                            Next::Traffic => break,
                            Next::Handshake | Next::Closed => {
                                return Err(io::ErrorKind::UnexpectedEof.into());
                            }
                        }
                    }
                    tls.leftover.extend_from_slice(&buffer[position..end]);
                }
            }
        }
        Ok(())
    }
}

impl Tls {
    /// Puts the start of the unfinished record in front of what is read next, and says how long it is.
    fn restore_leftover(&mut self, buffer: &mut [u8]) -> usize {
        // A record is at most 16 KiB and a little, far below the buffer.
        let bytes = self.leftover.len();
        buffer[..bytes].copy_from_slice(&self.leftover);
        self.leftover.clear();
        bytes
    }

    /// Works through `incoming` and says how much of it is used up, and what is to be done next.
    fn advance(
        &mut self,
        incoming: &mut [u8],
        mut consume: impl FnMut(&[u8]),
    ) -> io::Result<(usize, Next)> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.connection.process_tls_records(&mut incoming[used..]);
            let next = match state.map_err(io::Error::other)? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(io::Error::other)?;
                        discard += record.discard;
                        consume(record.payload);
                    }
                    None
                }
                ConnectionState::EncodeTlsData(mut handshake) => {
                    append(&mut self.outgoing, |target| {
                        match handshake.encode(target) {
                            Ok(bytes) => Ok(Ok(bytes)),
                            Err(EncodeError::InsufficientSize(error)) => {
                                Ok(Err(error.required_size))
                            }
                            Err(error) => Err(io::Error::other(error)),
                        }
                    })?;
                    None
                }
                ConnectionState::TransmitTlsData(transmission) => {
                    // The caller sends `outgoing` before it calls again, so that the order on the wire is right.
                    transmission.done();
                    Some(Next::Send)
                }
                ConnectionState::BlockedHandshake => Some(Next::Handshake),
                ConnectionState::WriteTraffic(_) => Some(Next::Traffic),
                ConnectionState::PeerClosed | ConnectionState::Closed => Some(Next::Closed),
                other => return Err(io::Error::other(format!("unexpected TLS state {other:?}"))),
            };
            used += discard;
            if let Some(next) = next {
                return Ok((used, next));
            }
        }
    }

    /// Appends `bytes`, encrypted, to what is to be sent.
    fn encrypt(&mut self, bytes: &[u8]) -> io::Result<()> {
        let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut []);
        match state.map_err(io::Error::other)? {
            ConnectionState::WriteTraffic(mut traffic) => append(&mut self.outgoing, |target| {
                match traffic.encrypt(bytes, target) {
                    Ok(written) => Ok(Ok(written)),
                    Err(EncryptError::InsufficientSize(error)) => Ok(Err(error.required_size)),
                    Err(error) => Err(io::Error::other(error)),
                }
            }),
            other => Err(io::Error::other(format!(
                "cannot send in TLS state {other:?}"
            ))),
        }
    }
}

/// Lets `write` append to `target`, with more room if it asks for it: its inner `Err` is the room that it needs.
fn append(
    target: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> io::Result<Result<usize, usize>>,
) -> io::Result<()> {
    let start = target.len();
    target.resize(start + OUTGOING_BYTES, 0);
    loop {
        match write(&mut target[start..])? {
            Ok(bytes) => {
                target.truncate(start + bytes);
                return Ok(());
            }
            Err(required) => target.resize(start + required, 0),
        }
    }
}

async fn send_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
