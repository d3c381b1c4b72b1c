//! What a run file says: owns the form of its lines and the errors that name a file and a line. Draws no conclusion.
//!
//! A line is either one run as `--json` prints it, one comparison as `compare --json` prints it, or a record that tells by its
//! `kind` what it is. Fields that are not known are ignored, so that newer files can be read; lines that are not known are
//! errors, so that nothing is left out of a page in silence.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::PageError;
use crate::load::report::Report;

/// Longest line that is read: a run with an hour of seconds in it is a megabyte, and a line far above that is not a run file.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// What was run, how and where. One a file, as a rule; a page may be made of several.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct About {
    pub(super) title: Option<String>,
    /// When the runs began, as the file says it (RFC 3339).
    pub(super) started: Option<String>,
    /// `short`, `long`, `targets`.
    pub(super) form: Option<String>,
    pub(super) machine: Machine,
    pub(super) systems: Vec<System>,
    /// Sentences.
    pub(super) method: Vec<String>,
}

/// Where it was run.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Machine {
    pub(super) cpu: Option<String>,
    pub(super) cores: Option<u64>,
    pub(super) kernel: Option<String>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) disk: Option<String>,
    pub(super) notes: Vec<String>,
}

/// One of the servers that were measured.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct System {
    pub(super) name: String,
    #[serde(default)]
    pub(super) version: Option<String>,
    #[serde(default)]
    pub(super) settings: Option<String>,
    #[serde(default)]
    pub(super) notes: Vec<String>,
}

/// What was asked of a system: one row of the tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Row {
    pub(super) workload: String,
    /// Of the object.
    pub(super) size_bytes: u64,
    /// Of the range that is read of it; absent where all of it is.
    #[serde(default)]
    pub(super) range_bytes: Option<u64>,
    pub(super) connections: u64,
    #[serde(default)]
    pub(super) tls: bool,
}

/// What became of one round of one row on one system.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Ran(Box<Report>),
    /// It was tried and did not work, for this reason.
    Failed(String),
    /// It was not tried, for this reason.
    Skipped(String),
}

/// One round of one row on one system.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    pub(super) system: String,
    pub(super) row: Row,
    pub(super) round: u64,
    pub(super) outcome: Outcome,
}

/// A promise and what was found.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) target: String,
    #[serde(default)]
    pub(super) value: Option<f64>,
    #[serde(default)]
    pub(super) low: Option<f64>,
    #[serde(default)]
    pub(super) high: Option<f64>,
    #[serde(default)]
    pub(super) unit: String,
    /// Absent where it could not be found out.
    #[serde(default)]
    pub(super) met: Option<bool>,
    #[serde(default)]
    pub(super) how: Option<String>,
    #[serde(default)]
    pub(super) why: Option<String>,
}

/// One figure, taken in two ways.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Check {
    pub(super) name: String,
    #[serde(default)]
    pub(super) text: String,
    #[serde(default)]
    pub(super) a: Option<f64>,
    #[serde(default)]
    pub(super) b: Option<f64>,
    #[serde(default)]
    pub(super) ratio: Option<f64>,
}

/// A run that belongs to no matrix.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Single {
    /// File and line.
    pub(super) source: String,
    pub(super) report: Report,
}

/// What one line says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    About(Box<About>),
    Run(Run),
    Target(Target),
    Check(Check),
    Single(Box<Single>),
}

/// A `run` as it is written, before it is known which of the three it is.
#[derive(Deserialize)]
struct RunLine {
    system: String,
    row: Row,
    #[serde(default)]
    round: u64,
    report: Option<Report>,
    failed: Option<String>,
    skipped: Option<String>,
}

/// What `compare --json` prints, as far as it is read here.
#[derive(Deserialize)]
struct ComparisonLine {
    name_a: String,
    name_b: String,
    a: Vec<Report>,
    b: Vec<Report>,
}

/// Reads all records of a file, in order.
///
/// # Errors
/// The file cannot be read, holds no record, or a line of it is none; the error names the line.
pub(super) fn read(path: &Path) -> Result<Vec<Record>, PageError> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| PageError(format!("open {name}: {error}")))?;
    let mut reader = BufReader::new(file);
    let (mut records, mut line, mut number) = (Vec::new(), Vec::new(), 0_u64);
    loop {
        line.clear();
        number += 1;
        let length = (&mut reader)
            .take(LINE_BYTES_MAX + 1)
            .read_until(b'\n', &mut line)
            .map_err(|error| PageError(format!("read {name}: {error}")))?;
        if length == 0 {
            break;
        }
        let at = |text: String| PageError(format!("{name}:{number}: {text}"));
        if length as u64 > LINE_BYTES_MAX {
            return Err(at(format!("longer than {LINE_BYTES_MAX} bytes")));
        }
        if !line.trim_ascii().is_empty() {
            records.extend(parse(&line, &format!("{name}:{number}")).map_err(at)?);
        }
    }
    if records.is_empty() {
        return Err(PageError(format!("{name}: no runs in it")));
    }
    Ok(records)
}

fn parse(line: &[u8], source: &str) -> Result<Vec<Record>, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| format!("no JSON: {error}"))?;
    let Some(object) = value.as_object() else {
        return Err("no JSON object".into());
    };
    let Some(kind) = object.get("kind") else {
        if object.contains_key("name_a") {
            return Ok(compared(typed(value, "comparison")?));
        }
        if !(object.contains_key("requests") && object.contains_key("seconds")) {
            return Err(
                "neither a record with a `kind` nor a run as `forebay-bench --json` prints it"
                    .into(),
            );
        }
        let (report, source) = (typed(value, "run")?, source.to_owned());
        return Ok(vec![Record::Single(Box::new(Single { source, report }))]);
    };
    let record = match kind.as_str() {
        Some("about") => Record::About(typed(value, "about")?),
        Some("run") => Record::Run(run(typed(value, "run")?)?),
        Some("target") => Record::Target(typed(value, "target")?),
        Some("check") => Record::Check(typed(value, "check")?),
        _ => {
            return Err(format!(
                "kind {kind} is none of \"about\", \"run\", \"target\" and \"check\""
            ));
        }
    };
    Ok(vec![record])
}

fn typed<T: DeserializeOwned>(value: Value, kind: &str) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("no good {kind}: {error}"))
}

fn run(line: RunLine) -> Result<Run, String> {
    let outcome = match (line.report, line.failed, line.skipped) {
        (Some(report), None, None) => judged(report),
        (None, Some(reason), None) => Outcome::Failed(reason),
        (None, None, Some(reason)) => Outcome::Skipped(reason),
        _ => return Err("a run has one of `report`, `failed` and `skipped`".into()),
    };
    Ok(Run {
        system: line.system,
        row: line.row,
        round: line.round,
        outcome,
    })
}

/// A report that is not to be believed is a failure, whoever wrote it down as a run.
fn judged(report: Report) -> Outcome {
    if report.is_good() {
        return Outcome::Ran(Box::new(report));
    }
    let mut reason = report.failure();
    for (kind, count) in &report.errors {
        reason.push_str(&format!("; {count} × {kind}"));
    }
    Outcome::Failed(reason)
}

fn compared(line: ComparisonLine) -> Vec<Record> {
    let sides = [(line.name_a, line.a), (line.name_b, line.b)];
    let runs = sides.into_iter().flat_map(|(system, reports)| {
        reports.into_iter().zip(1..).map(move |(report, round)| {
            Record::Run(Run {
                system: system.clone(),
                row: row_of(&report),
                round,
                outcome: judged(report),
            })
        })
    });
    runs.collect()
}

fn row_of(report: &Report) -> Row {
    let workload = if report.workload.is_empty() {
        report.method.to_ascii_lowercase()
    } else {
        report.workload.clone()
    };
    Row {
        workload,
        size_bytes: report.size_bytes,
        range_bytes: None,
        connections: report.connections as u64,
        tls: report.tls.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Result<Record, String> {
        parse(line.as_bytes(), "f:1").map(|mut records| records.remove(0))
    }

    const ROW: &str = r#""row":{"workload":"miss","size_bytes":5,"connections":2}"#;

    #[test]
    fn each_kind_is_told_and_unknown_fields_are_ignored() {
        let about =
            one(r#"{"kind":"about","new":1,"machine":{"cores":2,"x":0},"systems":[{"name":"n"}]}"#);
        assert!(matches!(about, Ok(Record::About(about)) if about.machine.cores == Some(2)));
        let run = one(&format!(
            r#"{{"kind":"run","system":"n",{ROW},"failed":"why"}}"#
        ));
        assert!(
            matches!(run, Ok(Record::Run(Run { outcome: Outcome::Failed(why), .. })) if why == "why")
        );
        let target = one(r#"{"kind":"target","name":"a","target":"≤ 1","met":null}"#);
        assert!(matches!(target, Ok(Record::Target(target)) if target.met.is_none()));
        assert!(matches!(
            one(r#"{"kind":"check","name":"a","a":1}"#),
            Ok(Record::Check(_))
        ));
        assert!(matches!(
            one(r#"{"requests":1,"seconds":2.0}"#),
            Ok(Record::Single(_))
        ));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for line in [
            "nonsense",
            "[]",
            "{}",
            r#"{"kind":"rum"}"#,
            r#"{"kind":7}"#,
            r#"{"kind":"run","system":"n"}"#,
            r#"{"requests":1}"#,
            r#"{"requests":"many","seconds":1}"#,
        ] {
            assert!(one(line).is_err(), "{line}");
        }
        for rest in ["", r#","failed":"a","skipped":"b""#] {
            let line = format!(r#"{{"kind":"run","system":"n",{ROW}{rest}}}"#);
            assert!(one(&line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_report_without_samples_is_a_failure_with_its_errors() {
        let line = format!(
            r#"{{"kind":"run","system":"n",{ROW},"report":{{"errors":{{"status 503":9}}}}}}"#
        );
        let Ok(Record::Run(run)) = one(&line) else {
            panic!("a run");
        };
        assert!(matches!(run.outcome, Outcome::Failed(why) if why.contains("9 × status 503")));
    }

    #[test]
    fn a_comparison_is_as_many_runs_as_it_has() {
        let report = r#"{"method":"GET","requests":3,"seconds":1,"connections":4}"#;
        let line =
            format!(r#"{{"name_a":"A","name_b":"B","a":[{report},{report}],"b":[{report}]}}"#);
        let records = parse(line.as_bytes(), "f:1").unwrap();
        assert_eq!(records.len(), 3);
        assert!(
            matches!(&records[1], Record::Run(run) if run.round == 2 && run.row.workload == "get")
        );
    }
}
