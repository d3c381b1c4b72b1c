//! Sending pages without copying them: the socket refers to the buffer's own.
//!
//! This file owns a core's pipe, through which pages go: `vmsplice` puts references to them into it and `splice` moves
//! those to the socket (Linux; `man 2 vmsplice`). `MSG_ZEROCOPY` and io_uring's zero-copy send would do the same with a
//! notice when the pages are free, but on loopback, and between containers, they copy after all, at twice the price.
//! Without a notice nobody knows when the kernel is done with a page, not even when the peer has acknowledged
//! it: on one machine it then lies in the peer's socket. So a page that was lent is never written again, which
//! [`View::lend`] sees to. This file never waits and never copies.

use crate::buffer::{PAGE, View};
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Fewer bytes than this are copied: then two system calls cost more than the copy.
pub(super) const LEND_BYTES_MIN: usize = 32 << 10;

/// So few bytes are lent without asking how many the socket takes: asking costs more than to lend some of them anew.
const UNASKED_BYTES_MAX: usize = 128 << 10;

/// What the pipe holds: the most that an unprivileged process may ask for. A slot refers to one page.
const PIPE_BYTES: usize = 1 << 20;

thread_local! {
    /// This core's pipe, once there is one; `Err` where the kernel refuses.
    static PIPE: RefCell<Option<Result<Pipe, ()>>> = const { RefCell::new(None) };
}

/// What came of lending.
pub(super) enum Lent {
    /// The socket took so many bytes.
    Bytes(usize),
    /// It takes none at the moment.
    Full,
    /// These bytes cannot be lent; they must be copied.
    Refused,
}

/// Lends the front of `bytes`, a part of `view`, to a socket. `more` says that other bytes will follow at once.
pub(super) fn lend(socket: RawFd, view: &View, bytes: &[u8], more: bool) -> io::Result<Lent> {
    debug_assert!(view.as_ptr_range().contains(&bytes.as_ptr()));
    if bytes.len() < LEND_BYTES_MIN || !view.lend() {
        return Ok(Lent::Refused);
    }
    // What the socket does not take has been put into the pipe for nothing.
    let room = if bytes.len() <= UNASKED_BYTES_MAX {
        bytes.len()
    } else {
        room_of(socket).unwrap_or(PIPE_BYTES)
    };
    if room < LEND_BYTES_MIN {
        return Ok(Lent::Full);
    }
    let more = more || room < bytes.len();
    let bytes = &bytes[..bytes.len().min(room)];
    PIPE.with_borrow_mut(|pipe| {
        let pipe = pipe.get_or_insert_with(|| {
            Pipe::new().map_err(|error| log::info!("bytes are copied to sockets: no pipe: {error}"))
        });
        let Ok(open) = pipe else {
            return Ok(Lent::Refused);
        };
        match open.pass(bytes, socket, more) {
            Ok(0) => Ok(Lent::Full),
            Ok(count) => Ok(Lent::Bytes(count)),
            Err(Fault::Socket(error)) => Err(error),
            Err(Fault::Pipe(taken, error)) => {
                log::info!("bytes are copied to sockets: {error}");
                *pipe = Err(());
                Ok(match taken {
                    0 => Lent::Refused,
                    _ => Lent::Bytes(taken),
                })
            }
        }
    })
}

/// Bytes that a socket has room for, as the kernel counts them; `None` where it does not say.
pub(super) fn room_of(socket: RawFd) -> Option<usize> {
    // `SK_MEMINFO_SNDBUF` and `SK_MEMINFO_WMEM_QUEUED` of linux/sock_diag.h.
    const LIMIT: usize = 3;
    const QUEUED: usize = 5;
    let mut told = [0_u32; 9];
    let mut length = size_of_val(&told) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `told`.
    let failed = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            told.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let is_told = failed == 0 && length as usize > QUEUED * size_of::<u32>();
    is_told.then(|| told[LIMIT].saturating_sub(told[QUEUED]) as usize)
}

enum Fault {
    /// The kernel lends no pages: the call is forbidden here, or memory is short. The socket has so many bytes already.
    Pipe(usize, io::Error),
    /// The connection is broken.
    Socket(io::Error),
}

/// Empty between calls: what a socket did not take is thrown away and lent anew.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    nowhere: File,
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for two descriptors.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both are open and nobody else's.
        let (reader, writer) =
            unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        // SAFETY: no pointer is passed. A smaller pipe than was asked for works as well.
        unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES) };
        let nowhere = File::options().write(true).open("/dev/null")?;
        Ok(Pipe {
            reader,
            writer,
            nowhere,
        })
    }

    /// Passes bytes on; returns how many the socket took, 0 if it is full.
    fn pass(&self, bytes: &[u8], socket: RawFd, more: bool) -> Result<usize, Fault> {
        // As many as have room whatever page they begin on.
        let piece = &bytes[..bytes.len().min(PIPE_BYTES - PAGE)];
        let held = self.fill(piece).map_err(|error| Fault::Pipe(0, error))?;
        let more = more || held < bytes.len();
        let mut taken = 0;
        let outcome = loop {
            match self.move_to(socket, held - taken, more) {
                Ok(count) if count > 0 && taken + count < held => taken += count,
                Ok(count) => break Ok(taken + count),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break Ok(taken),
                Err(e) => break Err(Fault::Socket(e)),
            }
        };
        let taken = outcome.as_ref().map_or(taken, |taken| *taken);
        let mut left = held - taken;
        while left > 0 {
            match self.move_to(self.nowhere.as_raw_fd(), left, false) {
                Ok(count) if count > 0 => left -= count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) => return Err(Fault::Pipe(taken, io::ErrorKind::WriteZero.into())),
                Err(error) => return Err(Fault::Pipe(taken, error)),
            }
        }
        outcome
    }

    /// Puts references to the pages of `bytes` into the pipe; returns how many bytes of them.
    fn fill(&self, bytes: &[u8]) -> io::Result<usize> {
        let piece = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: the kernel only reads through the descriptor, which describes `bytes`. It goes on to refer to their
        // pages after the call; nothing writes to those any more, since `View::lend` was called.
        let held = unsafe {
            libc::vmsplice(
                self.writer.as_raw_fd(),
                &raw const piece,
                1,
                libc::SPLICE_F_NONBLOCK,
            )
        };
        match held {
            1.. => Ok(held as usize),
            0 => Err(io::ErrorKind::WriteZero.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Moves up to `count` bytes out of the pipe.
    fn move_to(&self, target: RawFd, count: usize, more: bool) -> io::Result<usize> {
        let more = if more { libc::SPLICE_F_MORE } else { 0 };
        let none = std::ptr::null_mut();
        // SAFETY: both descriptors are open and no offsets are passed.
        let moved = unsafe {
            libc::splice(
                self.reader.as_raw_fd(),
                none,
                target,
                none,
                count,
                libc::SPLICE_F_NONBLOCK | more,
            )
        };
        if moved < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(moved as usize)
        }
    }
}
