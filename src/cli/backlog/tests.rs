//! Words and flags; that the commands do what they say is tested against a running proxy.

use super::*;

fn block(volume: &str, key: &str, state: &str) -> Block {
    Block {
        volume: volume.to_owned(),
        key: key.to_owned(),
        bytes: 4 << 20,
        age_seconds: 3700,
        attempts: 2,
        state: state.to_owned(),
        last_error: Some("refused\u{7}".to_owned()),
    }
}

fn summary() -> Summary {
    Summary {
        draining: true,
        dirty_blocks: 2,
        dirty_bytes: 8 << 20,
        quarantined_blocks: 1,
        conflict_blocks: 0,
        orphaned_blocks: 0,
    }
}

#[test]
fn the_list_is_one_line_a_block() {
    let listing = Listing {
        summary: summary(),
        blocks: vec![
            block("v", "a", "waiting"),
            block("w", "b\u{1b}[2J\nc", "quarantined"),
        ],
    };
    let text = table(&listing, None);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert_eq!(
        lines[1],
        "waiting         2    1h01m     4.00 MiB  v/a  (refused\\u{7})"
    );
    assert!(lines[2].contains("w/b\\u{1b}[2J\\u{a}c"), "{text}");
    assert!(lines[3].starts_with("and 1 more"), "{text}");
    assert_eq!(
        lines[4],
        "2 to upload (8.00 MiB), 1 quarantined, 0 in conflict, 0 of volumes that are gone; draining"
    );
    assert!(!table(&listing, Some("v")).contains("w/b"));
}

#[test]
fn ages_have_two_units() {
    let told = [59, 61, 3600, 86_400 * 3 + 7200].map(age);
    assert_eq!(told, ["59s", "1m01s", "1h00m", "3d02h"]);
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    let refuse = |change: fn(&mut DirtyArguments)| {
        let mut arguments = DirtyArguments::default();
        change(&mut arguments);
        let error = check_dirty(&arguments).expect_err("refused");
        error.to_string()
    };
    let error = refuse(|a| (a.retry, a.abandon) = (Some(String::new()), Some("k".to_owned())));
    assert!(error.contains("--abandon: --retry is given too"), "{error}");
    let error = refuse(|a| (a.json, a.export) = (true, Some("d".to_owned())));
    assert!(error.contains("--json: it belongs to the list"), "{error}");
    let error = refuse(|a| (a.json, a.volume) = (true, Some("v".to_owned())));
    assert!(error.contains("leave one of them out"), "{error}");
    let error = refuse(|a| (a.retry, a.volume) = (Some(String::new()), Some("v".to_owned())));
    assert!(error.contains("name the key"), "{error}");
    for text in ["0", "10001", "many", "-1"] {
        let error = check_limit(Some(text)).expect_err("refused").to_string();
        assert!(error.contains("1 to 10000"), "{error}");
    }
    assert_eq!(check_limit(None).expect("a default"), 1000);
}

#[test]
fn what_is_left_says_whether_it_is_over() {
    let text = r#"{"blocks":0,"bytes":0,"quarantined_blocks":2,"conflict_blocks":1,
        "orphaned_blocks":0,"shards_unread":0,"before_unix_ms":5}"#;
    let begun: Begun = serde_json::from_str(text).expect("an answer");
    assert_eq!(begun.before_unix_ms, 5);
    assert!(begun.remaining.is_over());
    assert_eq!(begun.remaining.held(), "2 quarantined, 1 in conflict");
    let error = BacklogError::Held(begun.remaining).to_string();
    assert!(error.contains("2 quarantined, 1 in conflict"), "{error}");
    let loading = Remaining {
        shards_unread: 1,
        ..Remaining::default()
    };
    assert!(!loading.is_over() && loading.held().is_empty());
}
