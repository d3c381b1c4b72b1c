//! Clients that move from one proxy to another while the first has blocks that the store has not.

use crate::common::assert_same_bytes;
use crate::rig::{REVALIDATE, Rig, server, setup, stored_key, wait_until};
use forebay_bench::stub::{Action, Fault};
use std::time::Duration;

/// Row 54, as far as proxies know nothing of each other: the old owner drains, and until then the
/// new one has what the store has.
#[test]
fn row_54_what_moves_to_another_proxy_is_drained_first() {
    let old = Rig::start(REVALIDATE);
    let older = old.put("k");
    old.finish();
    let busy = Action::Status {
        status: 503,
        code: None,
        retry_after_s: None,
    };
    old.stub.add_fault(Fault::on("PUT", "*").then(busy));
    let newer = old.put("k");
    let first = old.put("first");
    let new = setup(server(&old.stub.url())).start();
    let before = new.get("k");
    assert_same_bytes(&before.body, &older, "what the store has");
    assert_eq!(new.get("first").status, 404, "the store has none");
    old.assert_dirty("k", &newer);

    let drain = old.proxy.operator("POST", "/-/drain");
    assert_eq!(drain.status, 202, "{}", drain.text());
    assert_eq!(old.writeback()["draining"], true);
    old.stub.clear_faults();
    old.finish();
    // Nothing dirty is taken any more, so nothing can be left behind.
    let late = old.proxy.put("late", b"late");
    assert_eq!(late.header("x-forebay-write"), Some("through"));
    for (key, body) in [("late", &b"late"[..]), ("first", &first)] {
        assert_same_bytes(&new.get(key).body, body, key);
    }
    // What the new owner has read before is good for its `ttl`; a new copy is the newer one.
    let evicted = setup(server(&old.stub.url())).start();
    assert_same_bytes(&evicted.get("k").body, &newer, "after the drain");

    // The old one, started again, uploads nothing over what the new one writes.
    let Rig {
        mut proxy, stub, ..
    } = old;
    // Stores tell times in whole seconds: what is written in the second of an acknowledgement cannot
    // be told from what was there before it.
    std::thread::sleep(Duration::from_millis(1100));
    new.put("k", b"of the new owner");
    let stored = || {
        stub.object(crate::rig::BUCKET, &stored_key("k"))
            .map(|o| o.bytes().to_vec())
    };
    wait_until("the new owner's is stored", || {
        stored().as_deref() == Some(b"of the new owner")
    });
    proxy.restart_killed(|_| {});
    assert_eq!(proxy.put("another", b"other").status, 200);
    wait_until("the old owner uploads", || {
        let key = stored_key("another");
        stub.object(crate::rig::BUCKET, &key).is_some()
    });
    assert_eq!(stored().as_deref(), Some(&b"of the new owner"[..]));
}
