//! What a hostile or careless connection may cost: time, memory, descriptors.
//!
//! Waits here are upper bounds on promised deadlines, never measurements of speed.

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use common::{Client, READ_WRITE, Setup, VOLUME, pattern, wait_until};

/// DESIGN promises 10 s for a header; the rest is slack for a busy machine.
const HEADER_WAIT_MAX: Duration = Duration::from_secs(20);
/// DESIGN promises 5 s for a handshake.
const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(15);
/// No connection stays idle for more than 60 s, with whatever it was doing.
const IDLE_WAIT_MAX: Duration = Duration::from_secs(75);

fn get_head(key: &str) -> String {
    format!(
        "GET /{VOLUME}/{key} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {READ_WRITE}\r\n\r\n"
    )
}

fn put_head(key: &str, length: usize) -> String {
    get_head(key)
        .replacen("GET", "PUT", 1)
        .replace("\r\n\r\n", &format!("\r\nContent-Length: {length}\r\n\r\n"))
}

/// All deadlines run side by side, so this takes as long as the longest of them.
#[test]
fn slow_clients_are_let_go() {
    let proxy = Setup::default().start();
    proxy.put("large", &pattern(1, 48 << 20));
    let stored = proxy.stored_file_count();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // One byte now and then keeps an idle timer quiet; the header's deadline must not care.
            let mut client = proxy.client();
            let started = Instant::now();
            let head = format!(
                "GET /{VOLUME}/large HTTP/1.1\r\nX-Slow: {}",
                "s".repeat(500)
            );
            while started.elapsed() < HEADER_WAIT_MAX
                && client.send_slowly(&head.as_bytes()[..1], Duration::from_millis(500))
            {
            }
            assert!(
                started.elapsed() < HEADER_WAIT_MAX,
                "a header may take as long as it likes"
            );
        });
        scope.spawn(|| {
            let mut client = proxy.client();
            client.send("GET /");
            assert!(
                client
                    .ending("GET", HEADER_WAIT_MAX)
                    .status()
                    .is_none_or(|status| status == 408)
            );
            assert!(
                client.closes_within(Duration::from_secs(5)),
                "a started header may wait for ever"
            );
        });
        scope.spawn(|| {
            let mut client = proxy.client();
            client.send(put_head("abuse", 1000));
            client.send("stalls here");
            let ending = client.ending("PUT", IDLE_WAIT_MAX);
            assert!(
                matches!(ending.status(), None | Some(400 | 408)),
                "{ending:?}"
            );
            assert!(
                client.closes_within(Duration::from_secs(5)),
                "a stalled body may wait for ever"
            );
        });
        scope.spawn(|| {
            let mut client = proxy.client();
            assert!(
                client.closes_within(IDLE_WAIT_MAX),
                "a silent connection may wait for ever"
            );
        });
        scope.spawn(|| {
            // Asks for more than all socket buffers hold and reads nothing: the server must give up.
            let before = proxy.descriptor_count();
            let mut client = proxy.client();
            client.send(get_head("large"));
            std::thread::sleep(IDLE_WAIT_MAX);
            let mut received = 0;
            while let Ok(count @ 1..) = client.read_some() {
                received += count;
            }
            assert!(
                received < 48 << 20,
                "a client that never reads was waited for"
            );
            assert!(
                proxy.descriptor_count() <= before + 8,
                "descriptors were left behind"
            );
        });
        for _ in 0..20 {
            proxy.assert_serves();
            std::thread::sleep(Duration::from_millis(250));
        }
    });
    assert_eq!(proxy.get("abuse").status, 404);
    assert_eq!(
        proxy.stored_file_count(),
        stored + 1,
        "only the key of assert_serves was stored"
    );
}

/// With a small window next to nothing is on its way, and the server's socket is full before it looks so.
#[test]
fn clients_that_read_nothing_of_a_block_in_memory_delay_nobody() {
    let proxy = Setup::default().start();
    let block = pattern(1, 8 << 20);
    proxy.put("large", &block);
    for _ in 0..3 {
        assert_eq!(proxy.get("large").body, block);
    }
    let stopped: Vec<Client> = (0..16)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.set_recv_buffer_size(4096).expect("set");
            socket.connect(&proxy.address.into()).expect("connected");
            let mut client = Client::over(Box::new(TcpStream::from(socket)));
            client.send(get_head("large"));
            client
        })
        .collect();
    // Each of these waits for a bounded time only.
    for _ in 0..20 {
        proxy.assert_serves();
    }
    drop(stopped);
    assert_eq!(proxy.get("large").body, block);
}

#[test]
fn stalled_handshakes_delay_nobody() {
    let proxy = Setup {
        tls: true,
        ..Setup::default()
    }
    .start();
    proxy.assert_serves();
    let before = proxy.descriptor_count();
    let mut stalled: Vec<Client> = (0..200).map(|_| Client::connect(proxy.address)).collect();
    for (index, client) in stalled.iter_mut().enumerate() {
        // Some say nothing, some begin a ClientHello and stop.
        if index % 2 == 0 {
            client.send([0x16, 3, 1, 2, 0, 1, 0]);
        }
    }
    // If handshakes were made one after another, each of these would wait for 200 deadlines.
    for _ in 0..10 {
        proxy.assert_serves();
    }
    let started = Instant::now();
    for client in &mut stalled {
        // A TLS alert may come before the close; only the end of the connection matters.
        while started.elapsed() < HANDSHAKE_WAIT_MAX && matches!(client.read_some(), Ok(1..)) {}
    }
    assert!(
        started.elapsed() < HANDSHAKE_WAIT_MAX,
        "stalled handshakes are never given up"
    );
    drop(stalled);
    wait_until(
        "the descriptors of 200 stalled handshakes are closed",
        || proxy.descriptor_count() <= before + 8,
    );
}

#[test]
fn a_flood_of_connections_is_bounded_and_passes() {
    let proxy = Setup::default().start();
    proxy.assert_serves();
    let before = proxy.descriptor_count();
    let memory_before = proxy.resident_bytes();
    let flood: Vec<TcpStream> = (0..1000)
        .filter_map(|index: u64| {
            let mut stream =
                TcpStream::connect_timeout(&proxy.address, Duration::from_secs(5)).ok()?;
            // Noise, half a request, a whole request whose answer nobody reads, or silence.
            let _ = match index % 4 {
                0 => stream.write_all(&pattern(index, 100)),
                1 => stream.write_all(b"GET / HTTP/1.1\r\nHost: l"),
                2 => stream.write_all(get_head("still-alive").as_bytes()),
                _ => Ok(()),
            };
            Some(stream)
        })
        .collect();
    assert!(
        flood.len() > 100,
        "only {} connections were taken",
        flood.len()
    );
    // Meanwhile a good client is served or told, in so many words, to come back.
    if let Ok(mut client) = Client::try_connect(proxy.address) {
        client.send_request("GET", &format!("/{VOLUME}/still-alive"), &[], b"");
        if let Ok(answer) = client.try_read_answer("GET") {
            assert!([200, 503].contains(&answer.status), "{}", answer.status);
            assert!(answer.status == 200 || answer.header("retry-after").is_some());
        }
    }
    let growth = proxy.resident_bytes().saturating_sub(memory_before);
    assert!(growth < 256 << 20, "1,000 connections cost {growth} bytes");
    drop(flood);
    wait_until("the flood's descriptors are closed", || {
        proxy.descriptor_count() <= before + 8
    });
    proxy.assert_serves();
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let proxy = Setup::default().start();
    let body = pattern(2, 4 << 20);
    proxy.put("large", &body);
    let stored = proxy.stored_file_count();
    let vanish = |round: usize| {
        let mut reader = proxy.client();
        reader.send(get_head("large"));
        if round.is_multiple_of(2) {
            reader.read_some().expect("the answer begins");
        }
        reader.reset();
        let mut writer = proxy.client();
        writer.send(put_head("abuse", body.len()));
        writer.send(&body[..(round * 104_729) % body.len()]);
        writer.reset();
    };
    (0..60).for_each(vanish);
    wait_until("the first clients' memory settles", || {
        proxy.get("large").status == 200
    });
    let (memory, descriptors) = (proxy.resident_bytes(), proxy.descriptor_count());
    (60..240).for_each(vanish);
    wait_until("descriptors are closed", || {
        proxy.descriptor_count() <= descriptors + 8
    });
    // 180 more readers and writers moved up to 1.4 GiB; kept buffers would show.
    let growth = proxy.resident_bytes().saturating_sub(memory);
    assert!(growth < 96 << 20, "memory grew by {growth} bytes");
    assert_eq!(proxy.get("abuse").status, 404);
    wait_until("abandoned uploads are gone from the store", || {
        proxy.stored_file_count() == stored
    });
    assert_eq!(proxy.get("large").body, body);
}

/// User and system time of a process, in clock ticks (100 a second).
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let after_name = stat.rsplit_once(") ").expect("a command name").1;
    let fields: Vec<&str> = after_name.split(' ').collect();
    // Fields 14 and 15 of the whole line; the name and what precedes it are two of them.
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let proxy = Setup::default().start();
    proxy.assert_serves();
    let limit = proxy.descriptor_count() + 16;
    let status = Command::new("prlimit")
        .args([
            format!("--pid={}", proxy.pid()),
            format!("--nofile={limit}"),
        ])
        .status()
        .expect("prlimit (util-linux) runs");
    assert!(status.success());
    let crowd: Vec<TcpStream> = (0..100)
        .filter_map(|_| TcpStream::connect_timeout(&proxy.address, Duration::from_secs(5)).ok())
        .collect();
    assert!(
        crowd.len() > 16,
        "the backlog takes what cannot be accepted yet"
    );
    std::thread::sleep(Duration::from_secs(1));
    let ticks = cpu_ticks(proxy.pid());
    std::thread::sleep(Duration::from_secs(3));
    let spent = cpu_ticks(proxy.pid()) - ticks;
    // A loop around a failing accept() would take all 300.
    assert!(
        spent < 200,
        "{spent} of 300 ticks spent while no connection can be accepted"
    );
    drop(crowd);
    proxy.assert_serves();
}
