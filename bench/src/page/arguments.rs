//! The command line of `report` as it is typed: owns names and help texts.

use std::path::PathBuf;

use argh::FromArgs;

/// Turn runs into one HTML page with plots that needs nothing beside itself.
#[derive(FromArgs, Debug, Clone)]
#[argh(
    subcommand,
    name = "report",
    example = "{command_name} --out page.html --markdown tables.md runs.jsonl",
    note = "A file has one JSON object in a line: what `get --json` and the other verbs print, what `compare --json` prints, or what scripts/bench-side-by-side writes."
)]
pub struct PageArguments {
    /// where the page is written; a page that is there already is replaced when the new one is whole
    #[argh(option)]
    pub out: PathBuf,
    /// where the same figures are written as Markdown tables
    #[argh(option)]
    pub markdown: Option<PathBuf>,
    /// title of the page (default: what the files say)
    #[argh(option)]
    pub title: Option<String>,
    /// files with runs
    #[argh(positional, arg_name = "file")]
    pub files: Vec<PathBuf>,
}
