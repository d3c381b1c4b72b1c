//! What the store behind sees of misses, and what clients see of a store that fails.
//!
//! The store is the real Ceph gateway, reached through a relay that counts and breaks.

mod common;

use std::time::Duration;

use common::relay::Relay;
use common::stores::S3Server;
use common::{Client, Proxy, Setup, assert_same_bytes, pattern, wait_until};

const MIB: usize = 1 << 20;

/// A proxy that wrote the objects (directly in front of the store) and one that never saw them
/// (behind the relay).
fn writer_and_reader(server: &S3Server) -> (Proxy, Relay, Proxy) {
    let writer = Setup {
        store: Some(server.own_prefix()),
        ..Setup::default()
    }
    .start();
    let relay = Relay::start(server);
    let common::proxy::StoreSpec::S3 { prefix, .. } = writer.shared_store() else {
        unreachable!("an S3 store")
    };
    let store = common::proxy::StoreSpec::S3 {
        server: relay.in_front_of(server),
        prefix,
    };
    let reader = Setup {
        store: Some(store),
        shards: 2,
        ..Setup::default()
    }
    .start();
    (writer, relay, reader)
}

#[test]
fn objects_pass_through_every_real_store() {
    for server in S3Server::all() {
        let name = server.name;
        let writer = Setup {
            store: Some(server.own_prefix()),
            ..Setup::default()
        }
        .start();
        let reader = Setup {
            store: Some(writer.shared_store()),
            ..Setup::default()
        }
        .start();
        for (key, size) in [
            ("empty", 0),
            ("small", 1000),
            ("folder/with%20space+%C3%A9", 10),
            ("blocks", 3 * MIB + 17),
        ] {
            let body = pattern(size as u64, size);
            writer.put(key, &body);
            let first = reader.get(key);
            assert_eq!(
                (first.status, first.cache()),
                (200, "miss"),
                "{name}: {key}"
            );
            assert_same_bytes(&first.body, &body, key);
            let second = reader.get(key);
            assert_same_bytes(&second.body, &body, key);
            // A reader may have the last byte before the fetch has seen its end.
            assert!(
                second.cache().starts_with("hit-") || second.cache() == "coalesced",
                "{name}: {key}: x-cache {}",
                second.cache()
            );
            assert_eq!(second.header("etag"), first.header("etag"), "{name}: {key}");
        }
        assert_eq!(reader.get("missing").status, 404, "{name}");
        assert_eq!(
            writer.request("DELETE", "/vol/small", &[], b"").status,
            204,
            "{name}"
        );
        let fresh = Setup {
            store: Some(writer.shared_store()),
            ..Setup::default()
        }
        .start();
        assert_eq!(
            fresh.get("small").status,
            404,
            "{name}: deleted in the store"
        );
    }
}

#[test]
fn a_small_range_fetches_one_block() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let (writer, relay, reader) = writer_and_reader(&server);
    let body = pattern(1, 40 * MIB);
    writer.put("large", &body);
    let before = relay.bytes_from_store();
    let first = 17 * MIB + 5;
    let answer = reader.get_range("large", &format!("bytes={first}-{}", first + 99));
    assert_eq!((answer.status, answer.cache()), (206, "miss"));
    assert_same_bytes(&answer.body, &body[first..first + 100], "the range");
    // The fetch is detached: let it end before counting.
    wait_until("the block is whole in the cache", || {
        let again = reader.get_range("large", &format!("bytes={}-{}", 17 * MIB, 18 * MIB - 1));
        again.cache().starts_with("hit-") && again.body == body[17 * MIB..18 * MIB]
    });
    let fetched = relay.bytes_from_store() - before;
    // One block and the heads of a few answers.
    assert!(
        fetched < (MIB + 64 * 1024) as u64,
        "{fetched} bytes came from the store for 100"
    );
}

#[test]
fn one_fetch_serves_all_who_wait() {
    const READERS: usize = 32;
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let (writer, relay, reader) = writer_and_reader(&server);
    let body = pattern(2, MIB);
    writer.put("storm", &body);
    let (gets, bytes) = (relay.gets(), relay.bytes_from_store());
    relay.hold();
    let mut clients: Vec<Client> = (0..READERS).map(|_| reader.client()).collect();
    for client in &mut clients {
        client.send_request("GET", "/vol/storm", &[], b"");
    }
    // The first reader leaves before anything came: the fetch is nobody's, so it must go on.
    clients.remove(0).reset();
    wait_until("a fetch is on its way", || relay.gets() > gets);
    std::thread::sleep(Duration::from_millis(500));
    relay.release();
    let answers: Vec<_> = clients
        .iter_mut()
        .map(|client| client.read_answer("GET"))
        .collect();
    for answer in &answers {
        assert_eq!(answer.status, 200);
        assert_same_bytes(&answer.body, &body, "a waiting reader");
        assert!(
            ["miss", "coalesced"].contains(&answer.cache()),
            "x-cache {}",
            answer.cache()
        );
    }
    assert!(
        answers
            .iter()
            .filter(|answer| answer.cache() == "coalesced")
            .count()
            >= READERS - 2
    );
    assert_eq!(
        relay.gets() - gets,
        1,
        "GET requests that reached the store"
    );
    assert!(relay.bytes_from_store() - bytes < (MIB + 64 * 1024) as u64);
    assert!(reader.get("storm").cache().starts_with("hit-"));
}

#[test]
fn a_cut_answer_is_never_passed_off_as_whole_and_never_cached() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let (writer, relay, reader) = writer_and_reader(&server);
    let body = pattern(3, 3 * MIB);
    writer.put("cut", &body);
    // Every connection is cut a little into the body, retries included, until the relay heals.
    for after in [1, 200, 5_000, MIB as u64 / 2] {
        relay.cut_after(after);
        // Once that much has passed nothing more does, so that the retries fail too.
        let mut client = reader.client();
        client.send_request("GET", "/vol/cut", &[], b"");
        let outcome = client.try_read_answer("GET");
        if let Ok(answer) = outcome {
            assert!(
                answer.status >= 500,
                "status {} for an answer cut after {after}",
                answer.status
            );
            assert!(answer.error_code() != "NoSuchKey");
        }
    }
    assert!(
        relay.cuts() > 0,
        "the relay cut nothing, so nothing was tested"
    );
    relay.heal();
    wait_until("the proxy serves again by itself", || {
        reader.get("cut").status == 200
    });
    assert_same_bytes(&reader.get("cut").body, &body, "after the store healed");
    reader.assert_serves();
}

#[test]
fn cached_blocks_outlive_the_store() {
    let Some(server) = S3Server::rgw() else {
        return;
    };
    let (writer, relay, mut reader) = writer_and_reader(&server);
    let body = pattern(4, 2 * MIB);
    writer.put("kept", &body);
    assert_same_bytes(&reader.get("kept").body, &body, "while the store is there");
    wait_until("it is a hit", || {
        reader.get("kept").cache().starts_with("hit-")
    });
    relay.cut_after(0);
    reader.restart_killed(|_| {});
    assert_same_bytes(
        &reader.get("kept").body,
        &body,
        "with the store gone, after kill -9",
    );
    let unknown = reader.get("never-seen");
    assert!(
        unknown.status >= 500,
        "an unreachable store is no proof of absence: {}",
        unknown.status
    );
    let write = reader.request("PUT", "/vol/lost", &[], b"body");
    assert!(
        write.status >= 500,
        "a write that did not reach the store was acknowledged: {}",
        write.status
    );
    relay.heal();
    wait_until("misses are served again", || {
        reader.get("never-seen").status == 404
    });
    // The relay cuts answers: the store may have taken the write whose outcome was unknown. It is
    // there whole or not at all.
    let lost = reader.get("lost");
    assert!(
        lost.status == 404 || (lost.status == 200 && lost.body == b"body"),
        "half a write shows: {}",
        lost.status
    );
}
