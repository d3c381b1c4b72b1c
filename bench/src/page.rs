//! Runs as a page to look at: owns the way from run files to one HTML file and Markdown tables. Measures nothing, and leaves
//! nothing out: what failed or was skipped is shown with its reason, and where a peer is ahead is said first.
//!
//! ```text
//! files --> records --> study: medians, ratios pair by pair, who is ahead --> html: sections --> one file
//!                         |                                                    |-- figures --> plot, scale: SVG
//!                         |                                                    |-- tables, singles, troubles
//!                         \-> markdown: tables for a README
//! ```

pub mod arguments;
mod figures;
mod html;
mod markdown;
mod plot;
mod records;
mod scale;
mod singles;
mod study;
mod tables;
mod text;
mod troubles;

use std::fs;
use std::path::{Path, PathBuf};

use arguments::PageArguments;
use study::Study;

use crate::load::LoadError;

/// Why there is no page. The text is for the user.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PageError(String);

impl From<PageError> for LoadError {
    fn from(error: PageError) -> Self {
        Self::Run(error.0)
    }
}

/// Runs `forebay-bench report`; says in a line what it wrote.
///
/// # Errors
/// No file was named; a file cannot be read, or a line of it makes no sense; the page cannot be written. Nothing is left behind then.
pub fn report(arguments: &PageArguments) -> Result<String, LoadError> {
    if arguments.files.is_empty() {
        return Err(LoadError::Usage("report needs a file with runs".into()));
    }
    if arguments.markdown.as_ref() == Some(&arguments.out) {
        return Err(LoadError::Usage(
            "--out and --markdown are the same file".into(),
        ));
    }
    let files: Result<Vec<_>, _> = arguments
        .files
        .iter()
        .map(|path| records::read(path))
        .collect();
    let study = Study::of(files?);
    let mut outputs = vec![(
        arguments.out.as_path(),
        html::page(&study, arguments.title.as_deref()),
    )];
    if let Some(path) = &arguments.markdown {
        outputs.push((path, markdown::tables(&study)));
    }
    write_all(&outputs)?;
    Ok(said(&study, &arguments.out))
}

fn said(study: &Study, out: &Path) -> String {
    let cells = study.cells().count();
    let failed = study
        .cells()
        .filter(|(_, _, cell)| cell.has_failed())
        .count();
    let mut said = format!(
        "{}: {} of {}, {} failed, {}",
        out.display(),
        text::plural(cells, "cell"),
        text::plural(study.systems.len(), "system"),
        failed,
        text::plural(study.singles.len(), "single run"),
    );
    if study.ours().is_some() && study.systems.len() > 1 {
        said.push_str(&format!(
            "; a peer is ahead in {}",
            text::plural(study.ahead().len(), "figure")
        ));
    }
    said
}

/// Writes all files or none: each beside its place under another name, and to its place when all are whole.
fn write_all(outputs: &[(&Path, String)]) -> Result<(), PageError> {
    let mut written: Vec<PathBuf> = Vec::new();
    let outcome = outputs.iter().try_for_each(|(path, content)| {
        let beside = beside(path)?;
        written.push(beside.clone());
        fs::write(&beside, content)
            .map_err(|error| PageError(format!("write {}: {error}", path.display())))
    });
    let outcome = outcome.and_then(|()| {
        written
            .iter()
            .zip(outputs)
            .try_for_each(|(beside, (path, _))| {
                fs::rename(beside, path)
                    .map_err(|error| PageError(format!("write {}: {error}", path.display())))
            })
    });
    if outcome.is_err() {
        for beside in &written {
            // It may not be there; the error that counts is the first.
            let _ = fs::remove_file(beside);
        }
    }
    outcome
}

/// A name in the same folder that nothing else has.
fn beside(path: &Path) -> Result<PathBuf, PageError> {
    let name = path
        .file_name()
        .ok_or_else(|| PageError(format!("{} is no name of a file", path.display())))?;
    let name = format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id());
    Ok(path.with_file_name(name))
}
