//! The load generator as a program: owns its exit codes, and what goes to which stream.

use std::process::ExitCode;

use forebay_bench::load::arguments::{Arguments, Command};
use forebay_bench::load::report::Report;
use forebay_bench::load::{self, LoadError, compare};
use forebay_bench::page;

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let outcome = match &arguments.command {
        Command::Get(get) => load::get(get).map(|report| show(&report, get.json)),
        Command::Put(put) => load::put(put).map(|report| show(&report, put.json)),
        Command::Compare(both) => compare::compare(both).map(|comparison| {
            if both.json {
                println!("{}", serde_json::json!(comparison));
            } else {
                print!("{comparison}");
            }
            ExitCode::SUCCESS
        }),
        Command::Report(report) => page::report(report).map(|said| {
            println!("{said}");
            ExitCode::SUCCESS
        }),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("forebay-bench: {error}");
        match error {
            LoadError::Usage(_) => ExitCode::from(2),
            LoadError::Run(_) => ExitCode::FAILURE,
        }
    })
}

fn show(report: &Report, json: bool) -> ExitCode {
    if json {
        println!("{}", serde_json::json!(report));
    } else {
        print!("{report}");
    }
    if report.is_good() {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "forebay-bench: this run failed: {} samples, {} wrong bodies, {} requests missing",
        report.requests, report.wrong_content, report.missing
    );
    ExitCode::FAILURE
}
