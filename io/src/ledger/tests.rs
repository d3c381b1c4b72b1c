//! The ledger's thread on real folders: order, restarts, kills, loss, damage, refusals.

use super::*;
use futures::executor::block_on;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

const CACHE_BYTES: u64 = 4 << 20;

/// Set in a child process: the folder that it writes to before it kills itself.
const CHILD_FOLDER: &str = "FOREBAY_TEST_LEDGER_FOLDER";

struct Running {
    ledgers: Vec<Ledger>,
    thread: JoinHandle<()>,
}

impl Running {
    fn start(folder: &Path, cores: usize) -> Running {
        let (ports, services): (Vec<_>, Vec<_>) = (0..cores).map(|_| pair()).unzip();
        let thread = spawn_ledger(folder, CACHE_BYTES, services).expect("the folder is right");
        Running {
            ledgers: ports.into_iter().map(LedgerPort::attach).collect(),
            thread,
        }
    }

    fn stop(self) {
        drop(self.ledgers);
        self.thread.join().expect("the thread ends by itself");
    }
}

fn refusal(folder: &Path) -> String {
    let (_port, service) = pair();
    let error = spawn_ledger(folder, CACHE_BYTES, vec![service]).expect_err("refused");
    error.to_string()
}

fn key(core: u8, number: u32) -> Vec<u8> {
    [&[core][..], &number.to_be_bytes()].concat()
}

fn value(number: u32) -> Vec<u8> {
    format!("etag of {number}").into_bytes()
}

#[test]
fn a_core_sees_its_own_orders_in_order_and_a_restart_keeps_them() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("a/b/ledger");
    let running = Running::start(&path, 3);
    let threads: Vec<_> = (0..3)
        .zip(running.ledgers.clone())
        .map(|(core, ledger)| {
            std::thread::spawn(move || {
                block_on(async {
                    for number in 0..3000 {
                        ledger.put(key(core, number), value(number)).await;
                        if number % 100 == 0 {
                            assert_eq!(ledger.get(key(core, number)).await, Some(value(number)));
                            ledger.put(key(core, number), b"newer".to_vec()).await;
                            assert_eq!(
                                ledger.get(key(core, number)).await,
                                Some(b"newer".to_vec())
                            );
                        }
                    }
                    // The rows from 256 to 511 share four bytes of key, with nothing before or after.
                    ledger.remove_prefix(vec![core, 0, 0, 1]).await;
                    assert_eq!(ledger.scan_prefix(vec![core]).await.len(), 3000 - 256);
                    ledger.flush().await;
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("core");
    }
    assert!(running.ledgers.iter().all(|ledger| ledger.failures() == 0));
    running.stop();
    for folder in [&path, &path.join("rows")] {
        let mode = std::fs::metadata(folder).expect("stat").mode() & 0o7777;
        assert_eq!(mode, 0o700, "{}", folder.display());
    }
    let running = Running::start(&path, 1);
    for core in 0..3 {
        let rows = block_on(running.ledgers[0].scan_prefix(vec![core]));
        let expected: Vec<Row> = (0..256)
            .chain(512..3000)
            .map(|number| match number % 100 {
                0 => (key(core, number), b"newer".to_vec()),
                _ => (key(core, number), value(number)),
            })
            .collect();
        assert!(rows == expected, "core {core} has {} rows", rows.len());
    }
    running.stop();
}

#[test]
fn a_core_that_has_closed_keeps_nobody_whoever_holds_an_end() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ledger");
    let Running { ledgers, thread } = Running::start(&path, 2);
    for (number, ledger) in (0..).zip(&ledgers) {
        block_on(ledger.put(key(0, number), value(number)));
        block_on(ledger.close());
    }
    thread.join().expect("it ends although the ends are held");
    block_on(async {
        ledgers[0].close().await;
        ledgers[0].put(key(0, 2), value(2)).await;
        assert_eq!(ledgers[0].get(key(0, 1)).await, None);
        assert_eq!(ledgers[0].failures(), 2);
    });
    let running = Running::start(&path, 1);
    assert_eq!(block_on(running.ledgers[0].scan_prefix(vec![0])).len(), 2);
    running.stop();
}

#[test]
fn a_lock_that_outlives_its_holder_is_waited_for() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ledger");
    let running = Running::start(&path, 1);
    block_on(running.ledgers[0].put(key(0, 1), value(1)));
    running.stop();
    // As a process does that has been killed and is not yet gone.
    let held = std::fs::File::open(path.join("rows").join("db")).expect("sled's file");
    held.lock().expect("a lock");
    let releasing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(held);
    });
    let running = Running::start(&path, 1);
    assert_eq!(block_on(running.ledgers[0].scan_prefix(vec![0])).len(), 1);
    running.stop();
    releasing.join().expect("it ends");
}

/// Runs in a process of its own, which [`a_kill_takes_nothing_that_was_flushed`] starts.
#[test]
fn child_that_kills_itself() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else {
        return;
    };
    let running = Running::start(Path::new(&folder), 1);
    block_on(async {
        for number in 0..500 {
            running.ledgers[0].put(key(0, number), value(number)).await;
        }
        running.ledgers[0].flush().await;
        for number in 500..1000 {
            running.ledgers[0].put(key(0, number), value(number)).await;
        }
    });
    // SAFETY: kill takes and returns integers; the target is this process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[test]
fn a_kill_takes_nothing_that_was_flushed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ledger");
    for round in 0..3 {
        let status = Command::new(std::env::current_exe().expect("this test's program"))
            .args(["--exact", "ledger::tests::child_that_kills_itself"])
            .env(CHILD_FOLDER, &path)
            .output()
            .expect("a child")
            .status;
        assert_eq!(status.signal(), Some(libc::SIGKILL), "round {round}");
        let running = Running::start(&path, 1);
        let rows = block_on(running.ledgers[0].scan_prefix(vec![0]));
        assert!(rows.len() >= 500, "{} rows are left", rows.len());
        for (number, row) in (0..).zip(&rows).take(500) {
            assert_eq!(row, &(key(0, number), value(number)));
        }
        block_on(running.ledgers[0].remove_prefix(vec![0]));
        running.stop();
    }
}

#[test]
fn a_folder_that_was_removed_is_an_empty_ledger() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ledger");
    let running = Running::start(&path, 1);
    block_on(running.ledgers[0].put(key(0, 1), value(1)));
    running.stop();
    std::fs::remove_dir_all(&path).expect("remove");
    let running = Running::start(&path, 1);
    assert_eq!(block_on(running.ledgers[0].get(key(0, 1))), None);
    block_on(running.ledgers[0].put(key(0, 2), value(2)));
    running.stop();
    let running = Running::start(&path, 1);
    assert_eq!(block_on(running.ledgers[0].get(key(0, 2))), Some(value(2)));
    running.stop();
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("photos");
    std::fs::create_dir(&path).expect("folder");
    let chmod = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    chmod(0o700);
    std::fs::write(path.join("cat.jpg"), b"meow").expect("write");
    let error = refusal(&path);
    assert!(error.contains("it is no ledger"), "{error}");
    assert!(error.contains("cat.jpg"), "{error}");
    let names: Vec<_> = std::fs::read_dir(&path).expect("list").collect();
    assert_eq!(names.len(), 1);
    chmod(0o755);
    assert!(refusal(&path).contains("mode is 0755"));
    std::fs::remove_file(path.join("cat.jpg")).expect("remove");
    chmod(0o700);
    std::fs::write(path.join("forebay-ledger"), b"Forebay ledger, format 2\n").expect("write");
    let error = refusal(&path);
    assert!(error.contains("another version"), "{error}");
    assert!(error.contains("format 1"), "{error}");
    let file = folder.path().join("file");
    std::fs::write(&file, b"").expect("write");
    assert!(refusal(&file).contains("cannot be made"));
}

#[test]
fn a_folder_has_one_user() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ledger");
    let running = Running::start(&path, 1);
    assert!(refusal(&path).contains("another process is using it"));
    running.stop();
    Running::start(&path, 1).stop();
}

#[test]
fn a_marker_that_a_crash_cut_short_is_completed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ledger");
    Running::start(&path, 1).stop();
    let marker = path.join("forebay-ledger");
    std::fs::write(&marker, b"Forebay l").expect("write");
    Running::start(&path, 1).stop();
    let text = std::fs::read_to_string(&marker).expect("read");
    assert_eq!(text, "Forebay ledger, format 1\n");
}

#[test]
fn an_opening_that_killed_the_last_start_is_not_tried_again() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ledger");
    for round in 1..=5 {
        let running = Running::start(&path, 1);
        assert_eq!(block_on(running.ledgers[0].get(key(0, 1))), None);
        block_on(running.ledgers[0].put(key(0, 1), value(1)));
        running.stop();
        std::fs::write(path.join("opening"), b"").expect("write");
        let kept = path.join("rows.damaged-3").exists();
        assert_eq!(kept, round > 3, "round {round}");
        assert!(!path.join("rows.damaged-4").exists());
    }
}

#[test]
fn rows_that_sled_refuses_are_set_aside() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ledger");
    let running = Running::start(&path, 1);
    block_on(running.ledgers[0].put(key(0, 1), value(1)));
    running.stop();
    std::fs::write(path.join("rows/conf"), b"this is no configuration of sled").expect("write");
    let running = Running::start(&path, 1);
    assert_eq!(block_on(running.ledgers[0].get(key(0, 1))), None);
    block_on(running.ledgers[0].put(key(0, 1), value(1)));
    assert_eq!(block_on(running.ledgers[0].get(key(0, 1))), Some(value(1)));
    assert_eq!(running.ledgers[0].failures(), 0);
    running.stop();
    assert!(path.join("rows.damaged-1/db").exists());
    assert!(!path.join("opening").exists());
}

#[test]
fn damage_loses_rows_and_never_changes_them() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("ledger");
    let running = Running::start(&path, 1);
    block_on(async {
        for number in 0..2000 {
            running.ledgers[0].put(key(0, number), value(number)).await;
        }
    });
    running.stop();
    let whole = std::fs::read(path.join("rows/db")).expect("read");
    let used = whole.iter().rposition(|byte| *byte != 0).expect("rows") + 1;
    let mut rows_left = std::collections::BTreeSet::new();
    for round in 0..DAMAGES {
        let copy = folder.path().join(format!("copy-{round}"));
        copy_folder(&path, &copy);
        let mut damaged = whole.clone();
        for byte in &mut damaged[used / DAMAGES * round + round * 7..][..16] {
            *byte ^= 0x5a;
        }
        std::fs::write(copy.join("rows/db"), &damaged).expect("write");
        let (port, service) = pair();
        let thread = spawn_ledger(&copy, CACHE_BYTES, vec![service]).expect("start");
        let ledger = port.attach();
        let rows = block_on(ledger.scan_prefix(vec![0]));
        for (key, found) in &rows {
            let number = u32::from_be_bytes(key[1..].try_into().expect("four bytes"));
            assert_eq!(found, &value(number), "round {round}");
        }
        rows_left.insert(rows.len());
        drop(ledger);
        // A panic in sled ends this thread here and the process in a release: either way the next
        // start begins anew.
        let survived = thread.join().is_ok();
        assert!(survived || copy.join("opening").exists(), "round {round}");
        let running = Running::start(&copy, 1);
        block_on(running.ledgers[0].put(key(1, 1), value(1)));
        assert_eq!(block_on(running.ledgers[0].get(key(1, 1))), Some(value(1)));
        running.stop();
    }
    assert!(rows_left.len() > 1, "no damage was met: {rows_left:?}");
}

/// Places of the file that are damaged, one at a time.
const DAMAGES: usize = 24;

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("folder");
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(to, private).expect("chmod");
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("copy");
        }
    }
}
