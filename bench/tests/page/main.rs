//! `forebay-bench report` as a program: what it makes of good files, and that of bad ones it makes nothing.

mod sample;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;

const MIB: u64 = 1 << 20;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("write the test's file");
        path
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("list the test's folder");
        let names = entries.map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        });
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Runs `report --out page.html` with these further arguments in the folder.
    fn report(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_forebay-bench"))
            .current_dir(self.0.path())
            .args(["report", "--out", "page.html"])
            .args(arguments)
            .output()
            .expect("run forebay-bench")
    }

    /// The page that such a run wrote.
    fn page(&self, arguments: &[&str]) -> String {
        let output = self.report(arguments);
        assert!(output.status.success(), "{}", said(&output));
        fs::read_to_string(self.path("page.html")).expect("the page")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every tag that is opened is closed, in order: what no escaped text can change.
fn assert_balanced(page: &str) {
    const WITHOUT_END: [&str; 2] = ["meta", "!DOCTYPE"];
    let page = without(page, "<style>", "</style>");
    let page = without(&page, "<script>", "</script>");
    let mut open: Vec<&str> = Vec::new();
    for part in page.split('<').skip(1) {
        let tag = part.split('>').next().expect("a tag's end");
        let name = tag
            .split([' ', '/'])
            .find(|word| !word.is_empty())
            .expect("a name");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "near {part}");
        } else if !tag.ends_with('/') && !WITHOUT_END.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

fn without(page: &str, from: &str, to: &str) -> String {
    let (before, rest) = page.split_once(from).expect("its start");
    let (_, after) = rest.split_once(to).expect("its end");
    format!("{before}{after}")
}

/// Nothing is fetched: no address but those in the text of targets.
fn assert_self_contained(page: &str) {
    for needle in ["src=", "<link", "@import", "url(", "<iframe", "fetch("] {
        assert!(!page.contains(needle), "{needle}");
    }
}

#[test]
fn a_whole_matrix_becomes_a_page_with_all_that_was_asked() {
    let folder = Folder::new();
    let (shapes, connections) = sample::matrix();
    folder.file("long.jsonl", &sample::file(&shapes, &connections, 3));
    let page = folder.page(&["long.jsonl", "--markdown", "tables.md"]);
    assert_balanced(&page);
    assert_self_contained(&page);
    assert_eq!(folder.names(), ["long.jsonl", "page.html", "tables.md"]);
    for text in [
        "Forebay beside its peers",
        "AMD EPYC 7R13",
        "6.18.0",
        "24 GiB",
        "long form",
        "Where a peer is ahead",
        "Who is first",
        "Hits in memory",
        "Hits on disk",
        "Misses",
        "Side by side",
        "By size",
        "By connections",
        "Latency percentiles",
        "one worker on CPU 0",
        "1.2.3",
        "a note with &lt;b&gt;markup&lt;/b&gt;",
        "sendfile copies nothing",
        "✗ missed",
        "not measured",
        "wrk beside forebay-bench",
        "&lt;connection reset&gt; &amp; &quot;closed&quot;",
        "block-as-object only",
        "throughput is a lower bound",
        "Rounds go over all systems in turn",
    ] {
        assert!(page.contains(text), "no {text:?}");
    }
    // For whoever wants to look at it.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sample-page.html");
    fs::write(kept, &page).expect("keep the page");
    let tables = fs::read_to_string(folder.path("tables.md")).expect("the tables");
    assert!(
        tables.contains("### Hits in memory") && tables.contains("**missed**: sendfile"),
        "{tables}"
    );
    // Rows of one table have as many columns.
    for table in tables.split("\n\n").filter(|block| block.starts_with('|')) {
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let first = columns(table.lines().next().expect("a head"));
        assert!(
            table.trim().lines().all(|line| columns(line) == first),
            "{table}"
        );
    }
}

#[test]
fn medians_and_ratios_are_those_of_the_rounds() {
    let folder = Folder::new();
    let mut records = Vec::new();
    // Our CPU per GiB against the peer's: pairs 0.5, 3 and 2, of which 2 is the median; medians alone would say 0.4 / 0.2 = 2, too,
    // but the spread 0.5 … 3 is only to be had pair by pair.
    for (round, ours, theirs) in [(1, 0.1, 0.2), (2, 0.6, 0.2), (3, 0.4, 0.2)] {
        for (server, name, cpu) in [(1, "forebay", ours), (0, "nginx", theirs)] {
            let mut run = sample::run(server, ("hit-ram", MIB, None), 64, true, round);
            run["system"] = json!(name);
            run["report"]["server_cpu_s_per_gib"] = json!(cpu);
            run["report"]["gib_per_s"] = json!(1.0);
            run["report"]["latency_us"] = json!(null);
            records.push(run);
        }
    }
    folder.file("runs", &sample::lines(&records));
    let page = folder.page(&["runs", "--markdown", "tables.md", "--title", "A <title>"]);
    assert!(page.contains("<title>A &lt;title&gt;</title>"));
    assert!(page.contains("2.00 ×<small>0.500 … 3.00</small>"), "{page}");
    assert!(page.contains("median of 3, not all"), "{page}");
    let tables = fs::read_to_string(folder.path("tables.md")).expect("the tables");
    assert!(
        tables.contains("| 0.400 · 1.00 GiB/s | **0.200** · 1.00 GiB/s |")
            || tables.contains("0.400 · **1.00 GiB/s** | **0.200** · 1.00 GiB/s |"),
        "{tables}"
    );
}

#[test]
fn a_failed_cell_is_shown_with_its_reason_and_a_retry_counts() {
    let folder = Folder::new();
    let shape = ("hit-ram", MIB, None);
    let mut failed = sample::run(1, shape, 16, false, 1);
    failed.as_object_mut().expect("an object").remove("report");
    failed["failed"] = json!("the server | did not start");
    let mut wrong = sample::run(0, shape, 16, false, 1);
    wrong["report"]["wrong_content"] = json!(3);
    let good = sample::run(1, shape, 16, false, 1);
    folder.file(
        "runs",
        &sample::lines(&[failed.clone(), wrong.clone(), good]),
    );
    let page = folder.page(&["runs"]);
    assert!(
        page.contains("the server | did not start")
            && page.contains("a later run of this round worked"),
        "{page}"
    );
    assert!(page.contains("3 wrong bodies"), "{page}");
    // Where only we failed, the peer is ahead.
    let peer = sample::run(0, shape, 16, false, 1);
    folder.file("runs", &sample::lines(&[failed, peer]));
    let page = folder.page(&["runs", "--markdown", "tables.md"]);
    assert!(page.contains("forebay failed"), "{page}");
    let tables = fs::read_to_string(folder.path("tables.md")).expect("the tables");
    assert!(
        tables.contains("failed [1]")
            && tables.contains("1. forebay failed (1 round): the server \\| did not start"),
        "{tables}"
    );
}

#[test]
fn reasons_that_differ_by_a_number_are_one() {
    let folder = Folder::new();
    let failed = |round, pid| {
        let mut run = sample::run(1, ("hit-ram", MIB, None), 16, false, round);
        run.as_object_mut().expect("an object").remove("report");
        run["failed"] = json!(format!("the server's process {pid} has ended"));
        run
    };
    let runs = [failed(1, 1489), failed(2, 29), failed(3, 666)];
    folder.file("runs", &sample::lines(&runs));
    folder.page(&["runs", "--markdown", "tables.md"]);
    let tables = fs::read_to_string(folder.path("tables.md")).expect("the tables");
    assert!(
        tables.contains("1. forebay failed (3 rounds): the server's process 1489 has ended"),
        "{tables}"
    );
    assert!(!tables.contains("2. "), "{tables}");
}

#[test]
fn without_us_nobody_is_a_peer() {
    let folder = Folder::new();
    let shape = ("hit-ram", MIB, None);
    folder.file(
        "runs",
        &sample::lines(&[
            sample::run(0, shape, 16, false, 1),
            sample::run(3, shape, 16, false, 1),
        ]),
    );
    let page = folder.page(&["runs"]);
    assert!(page.contains("nobody is its peer"), "{page}");
    assert_balanced(&page);
}

#[test]
fn runs_as_the_generator_prints_them_are_shown_one_by_one() {
    let folder = Folder::new();
    let mut first = sample::report(1, ("hit-ram", MIB, None), 64, true, 1);
    first["by_kind"] =
        json!({"hot": {"requests": 5, "bytes": 10, "errors": 1, "latency_us": null}});
    first["rate"] = json!(100.0);
    let mut second = sample::report(1, ("hit-ram", 4 * MIB, None), 16, false, 1);
    second["rate"] = json!(200.0);
    let comparison = json!({"name_a": "forebay", "name_b": "nginx", "a": [first], "b": [sample::report(0, ("hit-ram", MIB, None), 64, true, 1)]});
    folder.file("one", &sample::lines(&[first]));
    folder.file("two", &sample::lines(&[second]));
    folder.file("compared", &sample::lines(&[comparison]));
    let page = folder.page(&["one"]);
    assert!(
        page.contains("Throughput over time") && page.contains("TLS13_AES_128_GCM_SHA256"),
        "{page}"
    );
    assert_balanced(&page);
    let page = folder.page(&["one", "two", "compared"]);
    assert!(
        page.contains("Latency of all runs") && page.contains("Latency by offered rate"),
        "{page}"
    );
    assert!(page.contains("Who is first"), "{page}");
    assert_balanced(&page);
}

#[test]
fn bad_input_is_an_error_that_names_its_line_and_leaves_nothing() {
    let folder = Folder::new();
    let good = sample::lines(&[sample::about()]);
    for (name, content, wanted) in [
        ("cut", format!("{good}\n{}", &good[..40]), "cut:3: no JSON"),
        (
            "kind",
            format!("{good}{{\"kind\":\"rum\"}}\n"),
            "kind:2: kind \"rum\" is none of",
        ),
        (
            "row",
            format!("{good}{{\"kind\":\"run\",\"system\":\"x\",\"failed\":\"y\"}}\n"),
            "row:2: no good run: missing field `row`",
        ),
        ("object", "{}\n".into(), "object:1: neither a record"),
        ("empty", String::new(), "empty: no runs in it"),
        ("blank", "\n \n".into(), "blank: no runs in it"),
    ] {
        folder.file(name, &content);
        let output = folder.report(&[name, "--markdown", "tables.md"]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(wanted), "{}", said(&output));
        fs::remove_file(folder.path(name)).expect("remove the test's file");
        assert_eq!(folder.names(), [""; 0], "{name}");
    }
    let output = folder.report(&["missing"]);
    assert!(
        output.status.code() == Some(1) && said(&output).contains("open missing"),
        "{}",
        said(&output)
    );
    assert_eq!(folder.report(&[]).status.code(), Some(2));
    assert_eq!(
        folder
            .report(&["x", "--markdown", "page.html"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn a_page_that_cannot_be_written_leaves_the_old_one() {
    let folder = Folder::new();
    folder.file("runs", &sample::lines(&[sample::about()]));
    folder.file("page.html", "the old page");
    let output = folder.report(&["runs", "--markdown", "no/such/folder/tables.md"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("tables.md"), "{}", said(&output));
    assert_eq!(
        fs::read_to_string(folder.path("page.html")).expect("the page"),
        "the old page"
    );
    assert_eq!(folder.names(), ["page.html", "runs"]);
}
