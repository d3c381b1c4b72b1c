//! A TCP relay between the proxy and a real store: counts what passes, and can hold or cut it.
//!
//! It understands nothing but the first bytes of a request, to count requests by verb; it never
//! changes a byte. Faults are switched on and off while connections run.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::stores::S3Server;

/// No answer is cut.
const NO_CUT: u64 = u64::MAX;

#[derive(Default)]
struct Shared {
    gets: AtomicU64,
    bytes_from_store: AtomicU64,
    /// Bytes of answers that may still pass before the connection is cut.
    cut_after: AtomicU64,
    cuts: AtomicU64,
    held: Mutex<bool>,
    released: Condvar,
    stopped: AtomicBool,
}

/// The relay; it ends with the test.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    /// Listens on a port of its own and passes everything to `server`.
    pub fn start(server: &S3Server) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port");
        let address = listener.local_addr().expect("address");
        let shared = Arc::new(Shared {
            cut_after: AtomicU64::new(NO_CUT),
            ..Shared::default()
        });
        let target = server.authority().to_string();
        let for_accept = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if for_accept.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), Ok(store)) = (client, TcpStream::connect(&target)) else {
                    continue;
                };
                carry(client, store, &for_accept);
            }
        });
        Relay { address, shared }
    }

    /// The server as the proxy should see it: behind this relay.
    pub fn in_front_of(&self, server: &S3Server) -> S3Server {
        S3Server {
            endpoint: format!("http://{}", self.address),
            ..server.clone()
        }
    }

    /// GET requests so far.
    pub fn gets(&self) -> u64 {
        self.shared.gets.load(Ordering::SeqCst)
    }

    /// Bytes that the store has sent so far.
    pub fn bytes_from_store(&self) -> u64 {
        self.shared.bytes_from_store.load(Ordering::SeqCst)
    }

    /// Connections cut so far.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Keeps the store's answers back until [`Relay::release`].
    pub fn hold(&self) {
        *self.shared.held.lock().expect("not poisoned") = true;
    }

    /// Lets answers pass again.
    pub fn release(&self) {
        *self.shared.held.lock().expect("not poisoned") = false;
        self.shared.released.notify_all();
    }

    /// Cuts every connection once this many more bytes of answers have passed.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// Cuts nothing any more.
    pub fn heal(&self) {
        self.shared.cut_after.store(NO_CUT, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.release();
        // Wakes the accepting thread; it does not matter whether that worked.
        let _ = TcpStream::connect(self.address);
    }
}

fn carry(client: TcpStream, store: TcpStream, shared: &Arc<Shared>) {
    // Signed small requests would otherwise wait for delayed acknowledgements.
    let _ = (client.set_nodelay(true), store.set_nodelay(true));
    let (client_reader, store_writer) = (
        client.try_clone().expect("clone"),
        store.try_clone().expect("clone"),
    );
    let upward = Arc::clone(shared);
    std::thread::spawn(move || {
        pass(client_reader, store_writer, |bytes| {
            // A request's head arrives at the start of a packet; good enough to count by verb.
            if bytes.starts_with(b"GET ") {
                upward.gets.fetch_add(1, Ordering::SeqCst);
            }
            bytes.len()
        });
    });
    let downward = Arc::clone(shared);
    std::thread::spawn(move || {
        pass(store, client, |bytes| {
            let mut held = downward.held.lock().expect("not poisoned");
            while *held {
                held = downward.released.wait(held).expect("not poisoned");
            }
            drop(held);
            downward
                .bytes_from_store
                .fetch_add(bytes.len() as u64, Ordering::SeqCst);
            let left = downward.cut_after.load(Ordering::SeqCst);
            if left == NO_CUT {
                return bytes.len();
            }
            let allowed = left.min(bytes.len() as u64);
            downward.cut_after.store(left - allowed, Ordering::SeqCst);
            if (allowed as usize) < bytes.len() {
                downward.cuts.fetch_add(1, Ordering::SeqCst);
            }
            allowed as usize
        });
    });
}

/// Copies until either side ends; `admit` says how many bytes of each read pass, fewer than all ends it.
fn pass(mut from: TcpStream, mut to: TcpStream, mut admit: impl FnMut(&[u8]) -> usize) {
    let mut chunk = vec![0_u8; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        let admitted = admit(&chunk[..count]);
        if to.write_all(&chunk[..admitted]).is_err() || admitted < count {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}
