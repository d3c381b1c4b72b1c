//! A connection over TLS: rustls shakes hands, the records after that are sealed and opened here.
//!
//! rustls' own record layer allocates each record, copies its plaintext in, and copies what it opens twice; a core
//! that serves hits does little else. Here content is sealed from where it lies into one buffer that stays in the
//! processor's cache and leaves with one call, and opened straight to where it belongs. Keys, their renewal and
//! everything of the handshake are rustls' (its kernel TLS interface); this file owns what may come after it: data,
//! alerts, new keys (RFC 8446 sections 4.6.3, 5 and 6). It never sends a byte of a record again that has once been
//! sealed, and whatever is wrong ends the connection.

mod aead;
mod handshake;
mod incoming;
mod outgoing;
mod record;

pub use outgoing::TLS_CORE_BYTES_MAX;

use super::lend::room_of;
use super::stream::Socket;
use futures::io::{AsyncWrite, AsyncWriteExt};
use incoming::Incoming;
use outgoing::{
    Rest, SEND_CONTENT_BYTES_MAX, SEND_CONTENT_BYTES_MIN, SEND_RECORDS_MAX, Unsent, is_crowded,
    keep_send_buffer, take_send_buffer,
};
use record::{Content, OVERHEAD_BYTES_MAX, RecordError, RecordKey};
use rustls::ServerConfig;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// The most memory that TLS adds to a socket, bytes: what was sealed and did not leave, a record that has not come
/// whole, keys and state; or a handshake, which needs less.
pub const TLS_BYTES_MAX: usize = SEND_CONTENT_BYTES_MIN + 2 * record::RECORD_BYTES_MAX + (8 << 10);

/// Records in a row that carry no data before a peer is taken for hostile. As many as rustls allows.
const EMPTY_RECORDS_MAX: u32 = 32;

/// The level and the description of the alert that ends a stream in order.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// An alert of TLS 1.3 that only announces another, and its like in TLS 1.2.
const USER_CANCELED: u8 = 90;
const NO_RENEGOTIATION: u8 = 100;

/// A message that announces a new key, without and with a wish for one in return.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const KEY_UPDATE_REQUESTED: u8 = 1;

/// An error of TLS, in the words of whoever found it.
fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// A connection whose handshake is done.
pub struct TlsStream {
    socket: Socket,
    sealer: RecordKey,
    opener: RecordKey,
    kernel: KernelConnection<ServerConnectionData>,
    incoming: Incoming,
    /// Sealed and not yet taken by the socket.
    unsent: Unsent,
    /// Of a message that announces a new key, what has come.
    message: Vec<u8>,
    /// Whether the peer wants to see a new key of ours before more data.
    owes_key: bool,
    empty_records: u32,
    /// Whether the peer has said that nothing more comes.
    is_ended: bool,
    /// Whether we have.
    said_goodbye: bool,
}

impl TlsStream {
    /// Performs the server's side of a handshake. The caller sets the deadline.
    pub async fn accept(socket: Socket, config: Arc<ServerConfig>) -> io::Result<TlsStream> {
        handshake::accept(socket, config).await
    }

    /// `early`: what has come behind the handshake.
    fn new(
        socket: Socket,
        sealer: RecordKey,
        opener: RecordKey,
        kernel: KernelConnection<ServerConnectionData>,
        early: Vec<u8>,
    ) -> TlsStream {
        TlsStream {
            socket,
            sealer,
            opener,
            kernel,
            incoming: Incoming::new(early),
            unsent: Unsent::default(),
            message: Vec::new(),
            owes_key: false,
            empty_records: 0,
            is_ended: false,
            said_goodbye: false,
        }
    }

    /// Reads some bytes; 0 at the end of the stream. May be given up and called again.
    ///
    /// # Errors
    /// `InvalidData` for what is no TLS, or not the peer's; `UnexpectedEof` for an end that was not announced, which
    /// anybody on the way could have made.
    pub async fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, target)).await
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, target: &mut [u8]) -> Poll<io::Result<usize>> {
        if target.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            match self.open_records(target) {
                Ok(0) if self.is_ended => return Poll::Ready(Ok(0)),
                Ok(0) => {}
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) => {
                    self.tell(error);
                    return Poll::Ready(Err(invalid(error)));
                }
            }
            if ready!(self.incoming.poll_fill(&mut self.socket, cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Opens what has come, as far as `target` has room; returns the bytes of data.
    fn open_records(&mut self, target: &mut [u8]) -> Result<usize, RecordError> {
        let mut filled = self.incoming.take_opened(target);
        while filled < target.len() && !self.is_ended {
            let Some(record) = self.incoming.next_record()? else {
                break;
            };
            let room = &mut target[filled..];
            if room.len() >= self.opener.room_for(record.len()) {
                let (content, count) = self.opener.open_into(record, room)?;
                self.incoming.consume();
                match content {
                    Content::Data => filled += self.data(count)?,
                    other => {
                        let message = room[..count].to_vec();
                        self.take_message(other, &message)?;
                    }
                }
                continue;
            }
            let (content, place) = self.opener.open_in_place(record)?;
            match content {
                Content::Data => {
                    self.data(place.len())?;
                    self.incoming.keep_opened(place);
                    filled += self.incoming.take_opened(&mut target[filled..]);
                }
                other => {
                    let message = record[place].to_vec();
                    self.incoming.consume();
                    self.take_message(other, &message)?;
                }
            }
        }
        Ok(filled)
    }

    fn data(&mut self, count: usize) -> Result<usize, RecordError> {
        if !self.message.is_empty() {
            return Err(RecordError::Unexpected);
        }
        match count {
            0 => self.count_empty()?,
            _ => self.empty_records = 0,
        }
        Ok(count)
    }

    fn count_empty(&mut self) -> Result<(), RecordError> {
        self.empty_records += 1;
        match self.empty_records > EMPTY_RECORDS_MAX {
            true => Err(RecordError::Unexpected),
            false => Ok(()),
        }
    }

    fn take_message(&mut self, content: Content, bytes: &[u8]) -> Result<(), RecordError> {
        self.count_empty()?;
        match content {
            Content::Alert => self.take_alert(bytes),
            _ => self.take_handshake(bytes),
        }
    }

    fn take_alert(&mut self, alert: &[u8]) -> Result<(), RecordError> {
        match *alert {
            [_, 0] => {
                self.is_ended = true;
                Ok(())
            }
            [_, USER_CANCELED] => Ok(()),
            [1, NO_RENEGOTIATION] if !self.opener.is_13() => Ok(()),
            [..] => Err(RecordError::Unexpected),
        }
    }

    /// Nothing of a handshake may come any more but a new key of TLS 1.3, and nothing may stand behind that.
    fn take_handshake(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        let so_far = self.message.len();
        let fits = so_far + bytes.len() <= KEY_UPDATE.len();
        if !self.opener.is_13() || bytes.is_empty() || !fits {
            return Err(RecordError::Unexpected);
        }
        self.message.extend_from_slice(bytes);
        let known = self.message.len().min(KEY_UPDATE.len() - 1);
        if self.message[..known] != KEY_UPDATE[..known] {
            return Err(RecordError::Unexpected);
        }
        let Some(request) = self.message.get(KEY_UPDATE.len() - 1) else {
            return Ok(());
        };
        match *request {
            KEY_UPDATE_REQUESTED => self.owes_key = true,
            0 => {}
            _ => return Err(RecordError::Malformed),
        }
        self.message.clear();
        let updated = self.kernel.update_rx_secret();
        let (sequence, secrets) = updated.map_err(|_| RecordError::Unexpected)?;
        self.opener = RecordKey::new(self.kernel.protocol_version(), sequence, &secrets)?;
        Ok(())
    }

    /// Tells the peer why the connection ends, if the socket takes it at once.
    fn tell(&mut self, error: RecordError) {
        if self.said_goodbye {
            return;
        }
        self.said_goodbye = true;
        self.is_ended = true;
        let sealed = self.seal_small(Content::Alert, &[2, error.alert()]);
        if let (Ok(()), Ok(count)) = (sealed, self.socket.try_send(self.unsent.rest(), 0)) {
            self.unsent.consume(count);
        }
    }

    /// Sends all of `pieces`, in order.
    pub async fn send(&mut self, pieces: &[&[u8]]) -> io::Result<()> {
        if self.said_goodbye {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut rest = Rest::of(pieces);
        while rest.bytes > 0 {
            self.renew_key()?;
            self.flush().await?;
            self.send_some(&mut rest)?;
        }
        self.flush().await
    }

    /// Seals about as much as the socket has room for and hands it over. What it does not take waits.
    fn send_some(&mut self, rest: &mut Rest<'_>) -> io::Result<()> {
        let wanted = self.content_wanted(rest.bytes);
        let mut buffer = take_send_buffer();
        let sealed = self.seal_pieces(rest, wanted, &mut buffer);
        let sent = sealed.map_err(invalid).and_then(|length| {
            let count = self.socket.try_send(&buffer[..length], 0)?;
            self.unsent.append(&buffer[count..length]);
            Ok(())
        });
        keep_send_buffer(buffer);
        sent
    }

    /// How much to seal: what the socket takes at the moment, so that little has to wait.
    fn content_wanted(&self, left: usize) -> usize {
        if left <= SEND_CONTENT_BYTES_MIN || is_crowded() {
            return SEND_CONTENT_BYTES_MIN;
        }
        room_of(self.socket.descriptor())
            .unwrap_or(SEND_CONTENT_BYTES_MAX)
            .clamp(SEND_CONTENT_BYTES_MIN, SEND_CONTENT_BYTES_MAX)
    }

    /// Seals about `wanted` bytes from the front of `rest` into `out`; returns the length of the records.
    fn seal_pieces(
        &mut self,
        rest: &mut Rest<'_>,
        wanted: usize,
        out: &mut [u8],
    ) -> Result<usize, RecordError> {
        let (mut length, mut taken, mut records) = (0, 0, 0);
        let mut gathered = Vec::new();
        // Of many small pieces, no more than the buffer has room for and the key is good for.
        while taken < wanted && records < SEND_RECORDS_MAX && rest.bytes > 0 {
            let content = rest.next_content(&mut gathered);
            taken += content.len();
            records += 1;
            length += self
                .sealer
                .seal(Content::Data, content, &mut out[length..])?;
        }
        Ok(length)
    }

    /// Puts one record that is no data behind what waits to be sent.
    fn seal_small(&mut self, content: Content, plain: &[u8]) -> Result<(), RecordError> {
        let mut record = [0; 8 + OVERHEAD_BYTES_MAX];
        let length = self.sealer.seal(content, plain, &mut record)?;
        self.unsent.append(&record[..length]);
        Ok(())
    }

    /// Takes a new key for sending where the old one is worn, or the peer has asked for one.
    fn renew_key(&mut self) -> io::Result<()> {
        let is_due = self.owes_key || self.sealer.is_worn_before(SEND_RECORDS_MAX as u64 + 1);
        if !is_due || !self.sealer.is_13() {
            return Ok(());
        }
        self.seal_small(Content::Handshake, &KEY_UPDATE)
            .map_err(invalid)?;
        let (sequence, secrets) = self.kernel.update_tx_secret().map_err(invalid)?;
        let version = self.kernel.protocol_version();
        self.sealer = RecordKey::new(version, sequence, &secrets).map_err(invalid)?;
        self.owes_key = false;
        Ok(())
    }

    /// Waits until the socket has taken what is sealed. May be given up and called again.
    async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.rest().is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, self.unsent.rest()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.unsent.consume(count),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says goodbye (close_notify) and closes the sending side.
    pub async fn close(&mut self) -> io::Result<()> {
        if !self.said_goodbye {
            self.said_goodbye = true;
            self.seal_small(Content::Alert, &CLOSE_NOTIFY)
                .map_err(invalid)?;
        }
        self.flush().await?;
        self.socket.close().await
    }
}

#[cfg(test)]
mod tests;
