//! What is sent by lending pages arrives as it was, whatever becomes of the buffer meanwhile.

use forebay_io::buffer::Pool;
use forebay_io::net::{Listener, Stream};
use forebay_io::rt::{CoreBuilder, CoreHandle};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

/// Enough to be lent, and little enough for a socket to take at once.
const BODY_BYTES: usize = 64 << 10;

const HEAD: &[u8] = b"head";

/// A server's core that accepts one connection, serves it and ends, and the client's side of it.
fn connect<F: Future<Output = ()> + 'static>(
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
    let client = TcpStream::connect(address).expect("connected");
    (server.expect("an executor"), client)
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

/// More than any socket takes at once, to a client that reads slowly: every byte once and in order.
#[test]
fn a_large_buffer_arrives_whole_in_front_of_a_slow_reader() {
    let content: Vec<u8> = (0..2_u32 << 20).flat_map(u32::to_le_bytes).collect();
    let sent = content.clone();
    let (server, mut client) = connect(move |mut stream| async move {
        let mut writer = Pool::new(16 << 20).try_take(sent.len()).expect("budget");
        writer.append(&sent);
        let view = writer.freeze().view();
        // An odd place in the middle of a page, as a range has it.
        for range in [0..sent.len(), 12_345..sent.len() - 1] {
            stream
                .send_resident(b"", &view.slice(range))
                .await
                .expect("sent");
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
        if received.len() % 7 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    server.join().expect("no panic");
    let (first, second) = received.split_at(content.len());
    assert!(first == content, "the whole");
    assert!(second == &content[12_345..content.len() - 1], "the part");
}
