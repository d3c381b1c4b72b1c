//! What is sent by lending pages arrives as it was, whatever becomes of the buffer meanwhile.

use forebay_io::buffer::Pool;
use forebay_io::net::{Listener, Stream};
use forebay_io::rt::{CoreBuilder, CoreHandle, GlommioRuntime};
use forebay_io::runtime::Runtime;
use socket2::{Domain, Socket, Type};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Enough to be lent, and little enough for a socket to take at once.
const BODY_BYTES: usize = 64 << 10;

const HEAD: &[u8] = b"head";

/// A server's core that accepts one connection, serves it and ends, and the client's side of it.
fn connect<F: Future<Output = ()> + 'static>(
    serve: impl FnOnce(Stream) -> F + Send + 'static,
) -> (CoreHandle<()>, TcpStream) {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    connect_from(client, serve)
}

fn connect_from<F: Future<Output = ()> + 'static>(
    client: Socket,
    serve: impl FnOnce(Stream) -> F + Send + 'static,
) -> (CoreHandle<()>, TcpStream) {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("bound");
    drop(free);
    let (started, is_listening) = mpsc::channel();
    let core = CoreBuilder {
        index: 0,
        cpu: None,
    };
    let server = core.spawn(move || async move {
        let listener = Listener::bind(address).expect("listening");
        started.send(()).expect("the client waits");
        serve(Stream::Plain(listener.accept().await.expect("a client"))).await;
    });
    is_listening.recv().expect("a server");
    client.connect(&address.into()).expect("connected");
    (server.expect("an executor"), client.into())
}

/// Sends a buffer, gives it back to its pool and fills all that the pool has; only then does the client read.
#[test]
fn a_buffer_may_be_filled_again_while_its_bytes_are_on_their_way() {
    let (overwritten, may_read) = mpsc::channel();
    let (server, mut client) = connect(move |mut stream| async move {
        let pool = Pool::new(4 << 20);
        let mut writer = pool.try_take(BODY_BYTES).expect("budget");
        writer.append(&[0xaa; BODY_BYTES]);
        let view = writer.freeze().view();
        stream.send_resident(HEAD, &view).await.expect("sent");
        drop(view);
        let mut others = Vec::new();
        while let Some(mut writer) = pool.try_take(BODY_BYTES) {
            writer.append(&[0x55; BODY_BYTES]);
            others.push(writer);
        }
        overwritten.send(others.len()).expect("the client waits");
        stream.close().await.expect("closed");
    });
    assert!(may_read.recv().expect("a server") > 10);
    let mut received = Vec::new();
    client.read_to_end(&mut received).expect("all of it");
    server.join().expect("no panic");
    assert_eq!(&received[..HEAD.len()], HEAD);
    assert_eq!(received.len() - HEAD.len(), BODY_BYTES);
    let foreign = received[HEAD.len()..].iter().filter(|byte| **byte != 0xaa);
    assert_eq!(foreign.count(), 0, "bytes of another buffer's");
}

/// Sends parts of one buffer to a client that reads slowly: every byte arrives once and in order.
fn arrive_in_front_of_a_slow_reader(parts: Vec<Range<usize>>) {
    let content: Vec<u8> = (0..2_u32 << 20).flat_map(u32::to_le_bytes).collect();
    let (whole, to_send) = (content.clone(), parts.clone());
    let (server, mut client) = connect(move |mut stream| async move {
        let mut writer = Pool::new(16 << 20).try_take(whole.len()).expect("budget");
        writer.append(&whole);
        let view = writer.freeze().view();
        for part in to_send {
            let part = view.slice(part);
            stream.send_resident(b"", &part).await.expect("sent");
        }
        stream.close().await.expect("closed");
    });
    let mut received = Vec::new();
    let mut piece = vec![0; 100_000];
    loop {
        let count = client.read(&mut piece).expect("readable");
        if count == 0 {
            break;
        }
        received.extend_from_slice(&piece[..count]);
        std::thread::sleep(Duration::from_millis(1));
    }
    server.join().expect("no panic");
    let mut rest = &received[..];
    for part in parts {
        let (first, after) = rest.split_at(part.len().min(rest.len()));
        assert!(first == &content[part.clone()], "{part:?}");
        rest = after;
    }
    assert!(rest.is_empty(), "{} bytes too many", rest.len());
}

/// More than any socket takes at once, whole and from an odd place in the middle of a page, as a range has it.
#[test]
fn a_large_buffer_arrives_whole_in_front_of_a_slow_reader() {
    let end = 8 << 20;
    arrive_in_front_of_a_slow_reader(vec![0..end, 12_345..end - 1]);
}

/// A client with a small window that reads nothing: the core goes on with its other work meanwhile.
#[test]
fn a_client_that_stops_reading_holds_up_its_own_answer_only() {
    const SENT_BYTES: usize = 8 << 20;
    let (other_work, was_done) = mpsc::channel();
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    client.set_recv_buffer_size(4096).expect("set");
    let (server, mut client) = connect_from(client, move |mut stream| async move {
        let mut writer = Pool::new(16 << 20).try_take(SENT_BYTES).expect("budget");
        writer.append(&vec![0xaa; SENT_BYTES]);
        let view = writer.freeze().view();
        let others = async {
            let runtime = GlommioRuntime::current(Instant::now());
            runtime.sleep(Duration::from_millis(100)).await;
            other_work.send(()).expect("the client waits");
        };
        let (sent, ()) = futures::join!(stream.send_resident(HEAD, &view), others);
        sent.expect("sent");
        stream.close().await.expect("closed");
    });
    let was_done = was_done.recv_timeout(Duration::from_secs(20));
    let mut received = Vec::new();
    client.read_to_end(&mut received).expect("all of it");
    server.join().expect("no panic");
    assert_eq!(received.len(), HEAD.len() + SENT_BYTES);
    was_done.expect("the core waited for one client");
}

/// Parts so small that the socket is not asked how many of their bytes it takes, more of them than it takes.
#[test]
fn small_parts_arrive_whole_in_front_of_a_slow_reader() {
    let parts = (0..320).map(|part| {
        let start = part % 160 * 50_000;
        start..start + 100_000 + part
    });
    arrive_in_front_of_a_slow_reader(parts.collect());
}
