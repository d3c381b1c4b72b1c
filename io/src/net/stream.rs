//! A connection, plain or TLS: reads through a large buffer, writes many pieces with one call.
//!
//! glommio's stream makes one system call for each piece in both directions. Here reads
//! pass through [`READ_BUFFER_BYTES`], and writes go out as one `sendmsg` of up to 64 pieces, so
//! that a call moves hundreds of kilobytes. Errors stay errors: an I/O error is never turned into
//! a clean end of the stream. Where nothing is encrypted, the bytes of a buffer that stays in memory
//! are lent to the socket instead of copied.

use super::lend::{LEND_BYTES_MIN, Lent, lend};
use super::tls::TlsStream;
use crate::buffer::View;
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use glommio::net::TcpStream;
use socket2::SockRef;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bytes read from the socket at once. rustls asks for 4 KiB at a time, which would be a system
/// call per quarter record on uploads; 64 KiB is where fewer calls stop paying on loopback.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// Read buffers that a core keeps for the next connection that has something to read. A buffer is
/// held only from the read that fills it to the one that empties it, so a few serve thousands.
const READ_BUFFERS_KEPT_MAX: usize = 32;

/// Bytes that are copied when a socket has room again, after which more are lent to it: waiting for
/// room goes with a write, and less room than this is not worth lending to.
const PROBE_BYTES: usize = LEND_BYTES_MIN;

/// Pieces per `sendmsg`; rustls offers at most 64 records at a time.
const SEND_PIECES_MAX: usize = 64;

/// The most memory that a socket holds, bytes.
pub const SOCKET_BYTES_MAX: usize = READ_BUFFER_BYTES + (4 << 10);

pub(super) type ReadBuffer = Box<[u8; READ_BUFFER_BYTES]>;

thread_local! {
    static READ_BUFFERS: RefCell<Vec<ReadBuffer>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn take_read_buffer() -> ReadBuffer {
    let kept = READ_BUFFERS.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| {
        let bytes = vec![0; READ_BUFFER_BYTES].into_boxed_slice();
        bytes.try_into().expect("of that length")
    })
}

pub(super) fn keep_read_buffer(buffer: ReadBuffer) {
    READ_BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < READ_BUFFERS_KEPT_MAX {
            kept.push(buffer);
        }
    });
}

/// A TCP connection that this core has accepted or made.
pub struct Socket {
    inner: TcpStream,
    fd: RawFd,
    /// Holds what was read and not asked for yet; `None` when that is nothing, so that idle
    /// connections cost nothing.
    buffer: Option<ReadBuffer>,
    start: usize,
    end: usize,
}

impl Socket {
    pub(super) fn new(inner: TcpStream) -> io::Result<Socket> {
        let fd = inner.as_raw_fd();
        // SAFETY: open, and `inner` keeps it so for longer than this lasts.
        let open = unsafe { BorrowedFd::borrow_raw(fd) };
        let options = SockRef::from(&open);
        options.set_tcp_nodelay(true)?;
        // `splice` asks the socket alone whether it may wait, and would wait for the whole core.
        options.set_nonblocking(true)?;
        Ok(Socket {
            inner,
            fd,
            buffer: None,
            start: 0,
            end: 0,
        })
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.fd
    }

    /// Reads past the buffer of `AsyncRead`; who reads so never reads otherwise.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.buffer.is_none());
        Pin::new(&mut self.inner).poll_read(cx, target)
    }

    /// Sends what there is room for at the moment, be it nothing.
    pub(super) fn try_send(&self, bytes: &[u8], flags: libc::c_int) -> io::Result<usize> {
        loop {
            match self.send_now(&[IoSlice::new(bytes)], flags) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                outcome => return outcome,
            }
        }
    }

    fn send_now(&self, pieces: &[IoSlice<'_>], flags: libc::c_int) -> io::Result<usize> {
        // SAFETY: `msghdr` is plain data for which all-zero is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // `IoSlice` is guaranteed to have the layout of `iovec`; the kernel only reads it.
        message.msg_iov = pieces.as_ptr().cast_mut().cast();
        message.msg_iovlen = pieces.len().min(SEND_PIECES_MAX) as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | flags;
        // SAFETY: `message` describes `pieces`, which live across the call; `fd` is open because
        // `inner` owns it.
        let sent = unsafe { libc::sendmsg(self.fd, &raw const message, flags) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(sent as usize)
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        target: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.start == this.end {
            if target.len() >= READ_BUFFER_BYTES {
                return Pin::new(&mut this.inner).poll_read(cx, target);
            }
            let mut buffer = take_read_buffer();
            match Pin::new(&mut this.inner).poll_read(cx, &mut buffer[..]) {
                Poll::Ready(Ok(count)) => {
                    this.start = 0;
                    this.end = count;
                    this.buffer = Some(buffer);
                }
                other => {
                    keep_read_buffer(buffer);
                    return other;
                }
            }
        }
        let count = target.len().min(this.end - this.start);
        if let Some(buffer) = &this.buffer {
            target[..count].copy_from_slice(&buffer[this.start..this.start + count]);
        }
        this.start += count;
        if this.start == this.end
            && let Some(buffer) = this.buffer.take()
        {
            keep_read_buffer(buffer);
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            match this.send_now(pieces, 0) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        // The socket is full. glommio's write tries once more and then waits for writability.
        let first = pieces.iter().find(|piece| !piece.is_empty());
        Pin::new(&mut this.inner).poll_write(cx, first.map_or(&[], |piece| piece))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
    }
}

/// A connection ready for a protocol.
pub enum Stream {
    /// Bytes as they are.
    Plain(Socket),
    /// Bytes through TLS.
    Tls(Box<TlsStream>),
}

impl Stream {
    /// Performs the server's side of a TLS handshake. The caller sets the deadline.
    pub async fn accept_tls(socket: Socket, config: Arc<rustls::ServerConfig>) -> io::Result<Self> {
        let stream = TlsStream::accept(socket, config).await?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    /// Reads some bytes; 0 at the end of the stream.
    pub async fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(target).await,
            Stream::Tls(stream) => stream.read(target).await,
        }
    }

    /// Sends all of `pieces`, in order, in as few calls and records as they fit.
    pub async fn send(&mut self, pieces: &[&[u8]]) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => send_plain(socket, pieces).await,
            Stream::Tls(stream) => stream.send(pieces).await,
        }
    }

    /// Sends `head` and then all of `view`, whose buffer is likely to stay in memory and be sent again.
    pub async fn send_resident(&mut self, head: &[u8], view: &View) -> io::Result<()> {
        match self {
            Stream::Plain(socket) if view.len() >= LEND_BYTES_MIN => {
                send_lent(socket, head, view).await
            }
            Stream::Plain(socket) => send_plain(socket, &[head, view]).await,
            Stream::Tls(stream) => stream.send(&[head, view]).await,
        }
    }

    /// Says goodbye (TLS close_notify) and closes the sending side.
    pub async fn close(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.close().await,
            Stream::Tls(stream) => stream.close().await,
        }
    }
}

pub(super) async fn send_plain(socket: &mut Socket, pieces: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut rest = &mut slices[..];
    // Skips leading empty pieces, so that a zero from the kernel is an error below.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let sent = poll_fn(|cx| Pin::new(&mut *socket).poll_write_vectored(cx, rest)).await?;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, sent);
    }
    Ok(())
}

/// Copies the head, which waits in the socket for what follows, and lends the pages of the view.
async fn send_lent(socket: &mut Socket, head: &[u8], view: &View) -> io::Result<()> {
    if !head.is_empty() {
        let sent = socket.try_send(head, libc::MSG_MORE)?;
        send_plain(socket, &[&head[sent..]]).await?;
    }
    let mut rest = &view[..];
    while !rest.is_empty() {
        match lend(socket.fd, view, rest, false)? {
            Lent::Bytes(count) => rest = &rest[count..],
            Lent::Full => {
                let (probe, after) = rest.split_at(PROBE_BYTES.min(rest.len()));
                send_plain(socket, &[probe]).await?;
                rest = after;
            }
            Lent::Refused => return send_plain(socket, &[rest]).await,
        }
    }
    Ok(())
}
