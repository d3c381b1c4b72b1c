//! What did not go well: owns the list of failed and skipped cells and of warnings, with equal ones put together. Drops none.

use std::collections::BTreeMap;

use super::records::{Outcome, Row};
use super::study::Study;

/// Row, round, and whether a later run of that round worked.
pub(super) type Place = (Row, u64, bool);

/// Cells that failed, or were not tried, for reasons which differ by numbers only.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trouble {
    pub(super) system: usize,
    pub(super) failed: bool,
    /// The first of them.
    pub(super) reason: String,
    pub(super) places: Vec<Place>,
}

/// Runs that gave a warning which differs by numbers only.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Warning {
    /// The first of them.
    pub(super) text: String,
    /// System, row, round and the warning in its words.
    pub(super) places: Vec<(usize, Row, u64, String)>,
}

/// All failures, then all that was not tried.
pub(super) fn troubles(study: &Study) -> Vec<Trouble> {
    let mut groups: BTreeMap<(bool, usize, String), Trouble> = BTreeMap::new();
    for (row, system, cell) in study.cells() {
        for (round, outcome) in cell.trouble() {
            let (skipped, reason) = match outcome {
                Outcome::Ran(_) => continue,
                Outcome::Failed(reason) => (false, reason),
                Outcome::Skipped(reason) => (true, reason),
            };
            let again = cell.reports().any(|(other, _)| other == round);
            let group = groups
                .entry((skipped, system, without_numbers(reason)))
                .or_insert_with(|| Trouble {
                    system,
                    failed: !skipped,
                    reason: reason.to_owned(),
                    places: Vec::new(),
                });
            group.places.push((row.clone(), round.1, again));
        }
    }
    groups.into_values().collect()
}

/// Index of the trouble that a cell is in; failures before skips.
pub(super) fn of_cell(troubles: &[Trouble], row: &Row, system: usize) -> Option<usize> {
    troubles.iter().position(|trouble| {
        trouble.system == system && trouble.places.iter().any(|place| place.0 == *row)
    })
}

/// All warnings of runs that count, the most frequent first.
pub(super) fn warnings(study: &Study) -> Vec<Warning> {
    let mut groups: BTreeMap<String, Warning> = BTreeMap::new();
    for (row, system, cell) in study.cells() {
        for (round, report) in cell.reports() {
            for text in &report.warnings {
                let group = groups
                    .entry(without_numbers(text))
                    .or_insert_with(|| Warning {
                        text: text.clone(),
                        places: Vec::new(),
                    });
                group
                    .places
                    .push((system, row.clone(), round.1, text.clone()));
            }
        }
    }
    let mut warnings: Vec<Warning> = groups.into_values().collect();
    warnings.sort_by_key(|warning| std::cmp::Reverse(warning.places.len()));
    warnings
}

/// A text with one sign for each number.
fn without_numbers(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        let letter = if letter.is_ascii_digit() { '#' } else { letter };
        if !(letter == '#' && plain.ends_with('#')) {
            plain.push(letter);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_not_keep_warnings_apart() {
        assert_eq!(without_numbers("used 97 % of 1"), "used # % of #");
        assert_eq!(without_numbers("used 7 % of 12"), "used # % of #");
        assert_ne!(without_numbers("used 7 %"), without_numbers("used 7"));
    }
}
