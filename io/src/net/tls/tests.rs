//! Connections to clients of rustls, and to one that seals what no honest client would.

use super::record::{CONTENT_BYTES_MAX, Content, OVERHEAD_BYTES_MAX, RecordKey};
use crate::net::{Listener, Stream, crypto_provider};
use crate::rt::{CoreBuilder, CoreHandle};
use futures::io::{AsyncReadExt, AsyncWriteExt};
use futures_rustls::TlsConnector;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, ServerConfig,
    SupportedCipherSuite,
};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::Duration;

type Client = rustls::StreamOwned<ClientConnection, TcpStream>;

/// Settings of a server and of clients that trust it.
fn configs() -> (Arc<ServerConfig>, ClientConfig) {
    configs_of(aws_lc_rs::DEFAULT_CIPHER_SUITES)
}

/// The same for clients that know these suites only.
fn configs_of(suites: &[SupportedCipherSuite]) -> (Arc<ServerConfig>, ClientConfig) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut server = ServerConfig::builder_with_provider(Arc::new(crypto_provider()))
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .expect("known versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a pair");
    server.enable_secret_extraction = true;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a certificate");
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = suites.to_vec();
    let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .expect("known versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    (Arc::new(server), client)
}

/// A suite of that version.
fn suite_of(version: ProtocolVersion) -> SupportedCipherSuite {
    let of_version = |suite: &&SupportedCipherSuite| suite.version().version == version;
    *aws_lc_rs::DEFAULT_CIPHER_SUITES
        .iter()
        .find(of_version)
        .expect("there is one")
}

/// A core that accepts one connection and serves it, and a socket to it.
fn listen<T: Send + 'static, F: Future<Output = T> + 'static>(
    config: Arc<ServerConfig>,
    serve: impl FnOnce(io::Result<Stream>) -> F + Send + 'static,
) -> (CoreHandle<T>, TcpStream) {
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
        let socket = listener.accept().await.expect("a client");
        serve(Stream::accept_tls(socket, config).await).await
    });
    is_listening.recv().expect("a server");
    let socket = TcpStream::connect(address).expect("connected");
    (server.expect("an executor"), socket)
}

fn client_of(config: ClientConfig, socket: TcpStream) -> Client {
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("good settings");
    rustls::StreamOwned::new(connection, socket)
}

/// Sends back all that comes, read in pieces of `piece` bytes, and closes; returns how the stream ended.
async fn echo(stream: io::Result<Stream>, piece: usize) -> io::Result<()> {
    let mut stream = stream?;
    let ended = echo_open(&mut stream, piece).await;
    let closed = stream.close().await;
    ended.and(closed)
}

async fn echo_open(stream: &mut Stream, piece: usize) -> io::Result<()> {
    let mut buffer = vec![0; piece];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => stream.send(&[&buffer[..count]]).await?,
        }
    }
}

/// Sends back all that comes once it has ended, in pieces of odd lengths.
async fn echo_at_end(stream: io::Result<Stream>) -> io::Result<()> {
    let mut stream = stream?;
    let (mut all, mut buffer) = (Vec::new(), vec![0; 300_000]);
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
    let third = all.len() / 3;
    stream.send(&[&all[..7], b"", &all[7..third]]).await?;
    stream.send(&[&all[third..]]).await?;
    stream.close().await
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 % 253) as u8).collect()
}

/// The client's ends: it writes all, says goodbye, and reads to the end.
fn exchange(client: &mut Client, sent: &[u8]) -> Vec<u8> {
    client.write_all(sent).expect("sent");
    client.conn.send_close_notify();
    client.flush().expect("sent");
    let mut received = Vec::new();
    client.read_to_end(&mut received).expect("an end in order");
    received
}

#[test]
fn every_suite_of_both_versions_carries_data_both_ways() {
    let mut suites = 0;
    for suite in aws_lc_rs::DEFAULT_CIPHER_SUITES {
        let is_of_other_certificates = format!("{suite:?}").contains("RSA_WITH");
        if is_of_other_certificates && !format!("{suite:?}").contains("ECDSA") {
            continue;
        }
        suites += 1;
        for piece in [1000, 100_000] {
            let (server_config, client_config) = configs_of(&[*suite]);
            let (server, socket) = listen(server_config, move |stream| echo(stream, piece));
            let mut client = client_of(client_config, socket);
            // Less than sockets hold: this client reads only when it has written.
            let sent = content(70_000);
            assert!(exchange(&mut client, &sent) == sent, "{suite:?}, {piece}");
            let ours = client
                .conn
                .negotiated_cipher_suite()
                .map(|suite| suite.suite());
            assert_eq!(ours, Some(suite.suite()));
            server.join().expect("no panic").expect("an end in order");
        }
    }
    assert_eq!(suites, 6, "three of each version");
}

#[test]
fn megabytes_arrive_whole_in_front_of_a_slow_reader() {
    for version in [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3] {
        let (server_config, client_config) = configs_of(&[suite_of(version)]);
        let (server, socket) = listen(server_config, echo_at_end);
        let mut client = client_of(client_config, socket);
        let sent = content(20_000_000);
        client.write_all(&sent).expect("sent");
        client.conn.send_close_notify();
        client.flush().expect("sent");
        let (mut received, mut piece) = (Vec::new(), vec![0; 77_777]);
        loop {
            match client.read(&mut piece).expect("readable") {
                0 => break,
                count => received.extend_from_slice(&piece[..count]),
            }
            if received.len() % 11 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(received == sent, "{version:?}");
        server.join().expect("no panic").expect("an end in order");
    }
}

#[test]
fn thousands_of_small_pieces_are_sent_as_well_as_few_large_ones() {
    let (server_config, client_config) = configs();
    let (server, socket) = listen(server_config, |stream| async move {
        let mut stream = stream?;
        let all = content(900_000);
        let pieces: Vec<&[u8]> = all.chunks(100).collect();
        stream.send(&pieces).await?;
        stream.close().await
    });
    let mut received = Vec::new();
    let mut client = client_of(client_config, socket);
    client.read_to_end(&mut received).expect("an end in order");
    assert!(received == content(900_000));
    server.join().expect("no panic").expect("sent");
}

/// A client on the server's own core, which sends and receives at the same time: neither end may stop the other.
#[test]
fn data_goes_both_ways_at_once() {
    let (server_config, client_config) = configs();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("bound");
    drop(free);
    let core = CoreBuilder {
        index: 0,
        cpu: None,
    };
    let core = core.spawn(move || async move {
        let listener = Listener::bind(address).expect("listening");
        let serving = async {
            let socket = listener.accept().await.expect("a client");
            echo(Stream::accept_tls(socket, server_config).await, 50_000).await
        };
        let asking = async {
            let socket = glommio::net::TcpStream::connect(address)
                .await
                .expect("connected");
            let name = ServerName::try_from("localhost").expect("a name");
            let connector = TlsConnector::from(Arc::new(client_config));
            let (mut reader, mut writer) = connector.connect(name, socket).await?.split();
            let sent = content(10_000_000);
            let mut received = Vec::new();
            let writing = async {
                writer.write_all(&sent).await?;
                writer.close().await
            };
            futures::try_join!(writing, reader.read_to_end(&mut received))?;
            assert!(received == sent);
            Ok(())
        };
        futures::try_join!(serving, asking).map(drop)
    });
    let ended = core.expect("an executor").join();
    ended.expect("no panic").expect("both ended in order");
}

/// A client sends data in the packet with the last of its handshake: none of it was ever rustls'.
fn assert_early_data_is_read(server_config: Arc<ServerConfig>, client_config: ClientConfig) {
    let (server, socket) = listen(server_config, |stream| echo(stream, 4096));
    let mut client = client_of(client_config, socket);
    let early = client.conn.writer().write_all(b"early bird");
    early.expect("buffered");
    assert_eq!(exchange(&mut client, b" and late"), b"early bird and late");
    server.join().expect("no panic").expect("an end in order");
}

#[test]
fn data_in_the_packet_that_ends_the_handshake_is_read() {
    let (server_config, client_config) = configs();
    assert_early_data_is_read(server_config, client_config);
}

/// The same where nothing of the server's follows the handshake: Go's clients want no tickets, and send at once.
#[test]
fn data_behind_the_handshake_is_read_where_no_tickets_are_sent() {
    for suite in [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3].map(suite_of) {
        let (mut server_config, mut client_config) = configs_of(&[suite]);
        Arc::get_mut(&mut server_config)
            .expect("ours alone")
            .send_tls13_tickets = 0;
        client_config.resumption = rustls::client::Resumption::disabled();
        assert_early_data_is_read(server_config, client_config);
    }
}

#[test]
fn a_second_connection_resumes_the_first_ones_session() {
    let (server_config, client_config) = configs();
    let client_config = Arc::new(client_config);
    let kinds = [(); 2].map(|()| {
        let (server, socket) = listen(server_config.clone(), |stream| echo(stream, 100));
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(client_config.clone(), name).expect("good settings");
        let mut client = rustls::StreamOwned::new(connection, socket);
        assert_eq!(exchange(&mut client, b"hello"), b"hello");
        server.join().expect("no panic").expect("an end in order");
        client.conn.handshake_kind()
    });
    use rustls::HandshakeKind::{Full, Resumed};
    assert_eq!(kinds, [Some(Full), Some(Resumed)]);
}

#[test]
fn a_client_may_change_its_key_and_ask_for_ours() {
    let (server_config, client_config) = configs_of(&[suite_of(ProtocolVersion::TLSv1_3)]);
    let (server, socket) = listen(server_config, |stream| echo(stream, 20_000));
    let mut client = client_of(client_config, socket);
    let mut back = vec![0; 50_000];
    let sent = content(back.len());
    for _ in 0..5 {
        client.write_all(&sent).expect("sent");
        client
            .conn
            .refresh_traffic_keys()
            .expect("a secure connection");
        client.read_exact(&mut back).expect("all of it");
        assert!(back == sent);
    }
    assert_eq!(exchange(&mut client, b"end"), b"end");
    server.join().expect("no panic").expect("an end in order");
}

/// Long before a key has encrypted too much there is another, and the client learns of it in time.
#[test]
fn a_worn_key_of_ours_is_renewed_under_way() {
    let (server_config, client_config) = configs_of(&[suite_of(ProtocolVersion::TLSv1_3)]);
    let (server, socket) = listen(server_config, |stream| async move {
        let Stream::Tls(mut stream) = stream? else {
            panic!("TLS was asked for");
        };
        let sent = content(3_000_000);
        for left in [50, 5, 0] {
            stream.sealer.wear(left.max(1));
            stream.send(&[b"head", &sent]).await?;
        }
        stream.close().await
    });
    let mut client = client_of(client_config, socket);
    let mut received = Vec::new();
    client.read_to_end(&mut received).expect("an end in order");
    server.join().expect("no panic").expect("sent");
    let once = [&b"head"[..], &content(3_000_000)].concat();
    assert!(received == once.repeat(3));
}

/// TLS 1.2 has no other key: the connection ends before the old one is used too often.
#[test]
fn a_worn_key_of_an_old_version_ends_the_connection() {
    let (server_config, client_config) = configs_of(&[suite_of(ProtocolVersion::TLSv1_2)]);
    let (server, socket) = listen(server_config, |stream| async move {
        let Stream::Tls(mut stream) = stream? else {
            panic!("TLS was asked for");
        };
        stream.sealer.wear(3);
        stream.send(&[&[1; 100_000]]).await
    });
    let mut client = client_of(client_config, socket);
    let read = client.read_to_end(&mut Vec::new());
    assert!(read.is_err(), "no end in order");
    let error = server.join().expect("no panic").expect_err("no key");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[test]
fn an_end_that_nobody_announced_is_an_error() {
    let (server_config, client_config) = configs();
    let (server, socket) = listen(server_config, |stream| echo(stream, 100));
    let mut client = client_of(client_config, socket);
    client.write_all(b"hello").expect("sent");
    client.read_exact(&mut [0; 5]).expect("answered");
    client.sock.shutdown(Shutdown::Write).expect("open");
    let error = server.join().expect("no panic").expect_err("cut off");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn who_speaks_no_tls_is_told_so() {
    let (server_config, _) = configs();
    let (server, mut socket) = listen(server_config, |stream| echo(stream, 100));
    socket
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("sent");
    let mut answer = Vec::new();
    // The rest of the request may lie unread when the server closes: then it is a reset.
    let _ = socket.read_to_end(&mut answer);
    let error = server.join().expect("no panic").expect_err("no handshake");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(answer.starts_with(&[21, 3]), "an alert: {answer:?}");
}

/// A client that seals its records itself: the keys of a handshake and a socket.
struct Raw {
    socket: TcpStream,
    sealer: RecordKey,
    opener: RecordKey,
}

impl Raw {
    fn of(mut client: Client) -> Raw {
        while client.conn.is_handshaking() {
            client
                .conn
                .complete_io(&mut client.sock)
                .expect("a handshake");
        }
        let version = client.conn.protocol_version().expect("negotiated");
        let is_13 = version == ProtocolVersion::TLSv1_3;
        // Its tickets come behind the handshake, and would be among what is read below.
        if is_13 {
            client.write_all(b"x").expect("sent");
            client.read_exact(&mut [0; 1]).expect("answered");
        }
        let (connection, socket) = (client.conn, client.sock);
        let secrets = connection.dangerous_extract_secrets().expect("allowed");
        let key = |(sequence, secrets)| RecordKey::new(version, sequence, &secrets).expect("good");
        Raw {
            socket,
            sealer: key(secrets.tx),
            opener: key(secrets.rx),
        }
    }

    fn seal(&mut self, content: Content, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0; plain.len() + OVERHEAD_BYTES_MAX];
        let length = self.sealer.seal(content, plain, &mut out).expect("sealed");
        out.truncate(length);
        out
    }

    /// The alert with which the server ends the connection.
    fn alert(mut self) -> Vec<u8> {
        let mut answer = Vec::new();
        let _ = self.socket.read_to_end(&mut answer);
        let mut last = Vec::new();
        let mut rest = &mut answer[..];
        while !rest.is_empty() {
            let length = super::record::record_length(rest)
                .expect("a record")
                .expect("whole");
            let (record, others) = rest.split_at_mut(length);
            let (content, place) = self.opener.open_in_place(record).expect("the server's");
            last = [&[content as u8], &record[place]].concat();
            rest = others;
        }
        last
    }
}

/// Runs a server against what `attack` makes of a good connection; returns its error and its alert.
fn attacked(
    version: ProtocolVersion,
    attack: impl FnOnce(&mut Raw) -> Vec<u8>,
) -> (io::Error, Vec<u8>) {
    let (server_config, client_config) = configs_of(&[suite_of(version)]);
    let (server, socket) = listen(server_config, |stream| echo(stream, 30_000));
    let mut raw = Raw::of(client_of(client_config, socket));
    let bytes = attack(&mut raw);
    raw.socket.write_all(&bytes).expect("sent");
    let error = server.join().expect("no panic").expect_err("attacked");
    (error, raw.alert())
}

#[test]
fn whatever_is_no_record_of_the_peers_ends_the_connection_with_the_right_alert() {
    let flip = |raw: &mut Raw, at: usize| {
        let mut record = raw.seal(Content::Data, &[1; 100]);
        let at = at.min(record.len() - 1);
        record[at] ^= 1;
        record
    };
    for version in [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3] {
        type Attack<'a> = Box<dyn Fn(&mut Raw) -> Vec<u8> + 'a>;
        let attacks: Vec<(&str, u8, Attack<'_>)> = vec![
            ("a bit of the ciphertext", 20, Box::new(|raw| flip(raw, 30))),
            ("a bit of the tag", 20, Box::new(|raw| flip(raw, 1000))),
            ("the version", 10, Box::new(|raw| flip(raw, 1))),
            (
                "twice the same record",
                20,
                Box::new(|raw| raw.seal(Content::Data, b"x").repeat(2)),
            ),
            ("too long", 22, Box::new(|_| vec![23, 3, 3, 0xff, 0xff])),
            ("too short", 20, Box::new(|_| vec![23, 3, 3, 0, 3, 1, 2, 3])),
            (
                "a handshake",
                10,
                Box::new(|raw| raw.seal(Content::Handshake, &[1, 0, 0, 0])),
            ),
            (
                "a fatal alert",
                10,
                Box::new(|raw| raw.seal(Content::Alert, &[2, 40])),
            ),
            (
                "half an alert",
                10,
                Box::new(|raw| raw.seal(Content::Alert, &[1])),
            ),
            (
                "nothing, for ever",
                10,
                Box::new(|raw| (0..40).flat_map(|_| raw.seal(Content::Data, b"")).collect()),
            ),
        ];
        for (what, alert, attack) in attacks {
            let (error, answer) = attacked(version, attack);
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{version:?}: {what}");
            assert_eq!(answer, [21, 2, alert], "{version:?}: {what}");
        }
    }
}

#[test]
fn a_new_key_is_announced_as_the_standard_says_or_not_at_all() {
    type Records<'a> = &'a [(Content, &'a [u8])];
    let attacks: [(&str, u8, Records<'_>); 5] = [
        (
            "a third kind of request",
            50,
            &[(Content::Handshake, &[24, 0, 0, 1, 2])],
        ),
        (
            "something behind it",
            10,
            &[(Content::Handshake, &[24, 0, 0, 1, 0, 24])],
        ),
        ("an empty piece", 10, &[(Content::Handshake, &[])]),
        (
            "data in the middle",
            10,
            &[(Content::Handshake, &[24, 0]), (Content::Data, b"x")],
        ),
        (
            "the old key again",
            20,
            &[
                (Content::Handshake, &[24, 0, 0, 1, 0]),
                (Content::Data, b"x"),
            ],
        ),
    ];
    for (what, alert, records) in attacks {
        let (error, answer) = attacked(ProtocolVersion::TLSv1_3, |raw| {
            records
                .iter()
                .flat_map(|(content, plain)| raw.seal(*content, plain))
                .collect()
        });
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{what}");
        assert_eq!(answer, [21, 2, alert], "{what}");
    }
}

/// Padding, empty records, full ones, a warning that means nothing, and records cut anywhere by the network.
#[test]
fn what_is_odd_and_allowed_is_taken() {
    let (server_config, client_config) = configs_of(&[suite_of(ProtocolVersion::TLSv1_3)]);
    let (server, socket) = listen(server_config, |stream| echo(stream, 3000));
    let mut raw = Raw::of(client_of(client_config, socket));
    let full = content(CONTENT_BYTES_MAX);
    let mut bytes = raw.seal(Content::Data, b"");
    bytes.extend(raw.seal(Content::Data, &full));
    bytes.extend(raw.seal(Content::Alert, &[1, 90]));
    bytes.extend(raw.seal(Content::Data, b"abc"));
    bytes.extend(raw.seal(Content::Alert, &[1, 0]));
    for piece in bytes.chunks(1111) {
        raw.socket.write_all(piece).expect("sent");
        std::thread::sleep(Duration::from_millis(1));
    }
    server.join().expect("no panic").expect("an end in order");
    let mut answer = Vec::new();
    raw.socket
        .read_to_end(&mut answer)
        .expect("closed in order");
    let (mut received, mut rest) = (Vec::new(), &mut answer[..]);
    while !rest.is_empty() {
        let length = super::record::record_length(rest)
            .expect("a record")
            .expect("whole");
        let (record, others) = rest.split_at_mut(length);
        let (content, place) = raw.opener.open_in_place(record).expect("the server's");
        if content == Content::Data {
            received.extend_from_slice(&record[place]);
        }
        rest = others;
    }
    assert!(received == [&full[..], b"abc"].concat());
}
