//! A flush that fails once and then succeeds: row 24, for writes that only the disk has.
//!
//! A kernel that could not write a page back tells so once, drops the page when it likes, and the next flush succeeds
//! ("fsyncgate"). The tests do to the backing files what such a kernel does: when the server is dead, whatever was written
//! between a file's last good flush and its failed one, and not again since, is zeroes. What was acknowledged must be
//! there all the same, and the store, which takes no upload, cannot help.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use forebay_bench::stub::{Action, Fault as StoreFault, Stub, StubHandle, StubOptions};

use super::common::proxy::StoreSpec;
use super::common::stores::S3Server;
use super::common::{Setup, wait_until};
use super::fuse::{Effect, Fault, Fuse, Op, Seen};
use super::rig::{self, Rig};

/// Writers at the same time, so that one flush is to cover several records.
const WRITERS: usize = 8;

/// A store that has nothing, and a proxy that writes back to it. None of its uploads succeeds.
fn start(flags: &[&str]) -> Option<(StubHandle, Rig)> {
    let stub = Stub::start(StubOptions::default()).expect("the S3 stub");
    stub.add_fault(StoreFault::on("PUT", "*").then(Action::status(503)));
    let server = S3Server {
        name: "the S3 stub",
        endpoint: stub.url(),
        region: stub.options().region.clone(),
        bucket: stub.options().buckets[0].clone(),
        key: stub.options().access_key.clone(),
        secret: stub.options().secret_key.clone(),
    };
    let mut setup = Setup {
        store: Some(StoreSpec::S3 {
            server,
            prefix: "flush".into(),
        }),
        volume_lines: "ttl = \"600s\"\n".into(),
        ..rig::setup()
    };
    setup
        .flags
        .extend(flags.iter().map(|flag| flag.to_string()));
    let mut rig = Rig::prepare(setup)?;
    rig.proxy.start();
    Some((stub, rig))
}

/// Writes objects from several clients at once; gives the numbers of those that were acknowledged.
fn put_together(rig: &Rig, numbers: std::ops::Range<usize>) -> Vec<usize> {
    let shared = Mutex::new(Vec::new());
    let acknowledged = &shared;
    let numbers: Vec<usize> = numbers.collect();
    std::thread::scope(|scope| {
        for share in numbers.chunks(numbers.len().div_ceil(WRITERS)) {
            scope.spawn(move || {
                for number in share {
                    let path = format!("/{}/o/{number}", super::common::VOLUME);
                    let answer = rig.proxy.request("PUT", &path, &[], &rig::block(*number));
                    match answer.status {
                        200 => acknowledged.lock().expect("numbers").push(*number),
                        // An error is an honest answer; only a false acknowledgement is not.
                        503 => {}
                        status => panic!("PUT {path}: status {status}: {}", answer.text()),
                    }
                }
            });
        }
    });
    shared.into_inner().expect("numbers")
}

/// What a kernel has dropped: for each file, what was written to it before a flush that failed, since the last good one,
/// and was not written again later.
fn dropped(seen: &[Seen]) -> Vec<(String, u64, usize)> {
    let mut unsynced: HashMap<&str, Vec<(u64, usize)>> = HashMap::new();
    let mut lost: HashMap<&str, Vec<(u64, usize)>> = HashMap::new();
    for request in seen {
        let name = request.name.as_str();
        match (request.op, request.struck) {
            (Op::Write, None) => {
                let place = (request.offset, request.length);
                let overlaps = |other: &(u64, usize)| {
                    other.0 < place.0 + place.1 as u64 && place.0 < other.0 + other.1 as u64
                };
                lost.entry(name)
                    .or_default()
                    .retain(|other| !overlaps(other));
                unsynced.entry(name).or_default().push(place);
            }
            (Op::Sync, None) => drop(unsynced.remove(name)),
            (Op::Sync, Some(_)) => {
                let places = unsynced.remove(name).unwrap_or_default();
                lost.entry(name).or_default().extend(places);
            }
            _ => {}
        }
    }
    let all = lost.into_iter();
    all.flat_map(|(name, places)| {
        let name = name.to_owned();
        places
            .into_iter()
            .map(move |(offset, length)| (name.clone(), offset, length))
    })
    .collect()
}

/// Makes zeroes of it in the backing files.
fn drop_for_good(fuse: &Fuse) -> usize {
    let dropped = dropped(&fuse.faults.seen());
    for (name, offset, length) in &dropped {
        // A file that is gone since holds nothing that counts.
        if let Ok(file) = std::fs::File::options()
            .write(true)
            .open(fuse.backing.join(name))
        {
            file.write_all_at(&vec![0; *length], *offset)
                .expect("backing file");
        }
    }
    dropped.len()
}

/// Kills the server, lets go what the kernel has dropped, starts it again and demands everything that was acknowledged.
fn crash_and_compare(rig: &mut Rig, acknowledged: &[usize]) {
    rig.fuse.faults.heal();
    rig.proxy.kill();
    let count = drop_for_good(&rig.fuse);
    assert!(
        count > 0,
        "the failed flush covered nothing: nothing was tested"
    );
    rig.proxy.start();
    for number in acknowledged {
        assert_eq!(rig::get_block(&rig.proxy, *number).cache(), "hit-dirty");
    }
}

#[test]
fn row_24_with_sync_a_later_success_acknowledges_nothing_that_was_dropped() {
    for times in [1, 3] {
        let Some((_stub, mut rig)) = start(&["--sync"]) else {
            return;
        };
        let mut acknowledged = put_together(&rig, 0..16);
        assert_eq!(acknowledged.len(), 16, "a healthy disk takes all");
        let once = Fault::on_segments(Op::Sync, Effect::Fail(libc::EIO)).times(times);
        rig.fuse.faults.add(once);
        acknowledged.extend(put_together(&rig, 16..48));
        assert_eq!(rig.fuse.faults.struck(), times);
        assert!(
            acknowledged.len() > 16,
            "nothing was acknowledged afterwards"
        );
        crash_and_compare(&mut rig, &acknowledged);
    }
}

#[test]
fn row_24_without_sync_what_a_failed_flush_was_to_cover_is_written_again() {
    let Some((_stub, mut rig)) = start(&[]) else {
        return;
    };
    let once = Fault::on_segments(Op::Sync, Effect::Fail(libc::EIO));
    let mut acknowledged = put_together(&rig, 0..16);
    // Segments are open by now: what fails next is the flush of records.
    rig.fuse.faults.add(once.times(2));
    acknowledged.extend(put_together(&rig, 16..32));
    wait_until("nothing is unsynced", || {
        rig.fuse.faults.struck() == 2 && rig::metric(&rig.proxy, "forebay_unsynced_bytes") == 0
    });
    crash_and_compare(&mut rig, &acknowledged);
}
