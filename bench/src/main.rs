//! The load generator as a program: owns its exit codes, and what goes to which stream.

use std::process::ExitCode;

use forebay_bench::load::arguments::{Arguments, Compare, Other, Verb};
use forebay_bench::load::report::Report;
use forebay_bench::load::{self, LoadError, compare};
use forebay_bench::page;

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let outcome = match arguments.command.verb() {
        Ok(verb) => measure(&verb),
        Err(Other::Compare(both)) => put_side_by_side(&both),
        Err(Other::Report(report)) => page::report(&report).map(|said| {
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

fn measure(verb: &Verb) -> Result<ExitCode, LoadError> {
    let json = verb.common().json;
    let mut code = ExitCode::SUCCESS;
    load::run_steps(verb, |report| code = show(report, json))?;
    Ok(code)
}

fn put_side_by_side(both: &Compare) -> Result<ExitCode, LoadError> {
    let comparison = compare::compare(both)?;
    if both.json {
        println!("{}", serde_json::json!(comparison));
    } else {
        print!("{comparison}");
    }
    Ok(ExitCode::SUCCESS)
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
    eprintln!("forebay-bench: this run failed: {}", report.failure());
    ExitCode::FAILURE
}
