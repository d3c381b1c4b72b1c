//! Two servers side by side: owns running them in turn, and the medians and ratios of what came out. Measures nothing itself.

use std::fmt;

use argh::FromArgs;
use serde::{Deserialize, Serialize};

use crate::load::LoadError;
use crate::load::arguments::{Compare, Get};
use crate::load::report::Report;

/// The runs of both sides and what they come to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Comparison {
    /// Name of side A.
    pub name_a: String,
    /// Name of side B.
    pub name_b: String,
    /// Runs of side A, in order.
    pub a: Vec<Report>,
    /// Runs of side B, in order.
    pub b: Vec<Report>,
    /// A's throughput over B's, pair by pair.
    pub throughput_ratio: Option<Spread>,
    /// A's server CPU per GiB over B's, pair by pair.
    pub server_cpu_ratio: Option<Spread>,
}

/// A median and the values that it was taken from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spread {
    /// The middle, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Ends of the interval that holds the true median with `confidence`; absent with too few values for any.
    pub interval: Option<[f64; 2]>,
    /// Confidence of the interval, 0 to 1; 0 without one.
    pub confidence: f64,
    /// All, in the order they came.
    pub values: Vec<f64>,
}

impl Spread {
    fn of(values: Vec<f64>) -> Option<Self> {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self {
            median: f64::midpoint(low, high),
            min,
            max,
            values,
            ..Self::default()
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4} ({:.4} .. {:.4})", self.median, self.min, self.max)
    }
}

/// Runs `forebay-bench compare`. The first run that fails ends it: a side that fails must not look fast.
pub fn compare(arguments: &Compare) -> Result<Comparison, LoadError> {
    if arguments.pairs == 0 {
        return Err(LoadError::Usage("--pairs must be above 0".into()));
    }
    let (get_a, get_b) = (parse("--a", &arguments.a)?, parse("--b", &arguments.b)?);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for pair in 1..=arguments.pairs {
        for (get, name, reports) in [
            (&get_a, &arguments.name_a, &mut a),
            (&get_b, &arguments.name_b, &mut b),
        ] {
            let report = super::get(get)?;
            if !report.is_good() {
                return Err(LoadError::Run(format!(
                    "pair {pair}, side {name} failed:\n{report}"
                )));
            }
            eprintln!(
                "pair {pair}/{} {name}: {:.3} GiB/s, {} server CPU s/GiB",
                arguments.pairs,
                report.gib_per_s,
                report
                    .server_cpu_s_per_gib
                    .map_or("-".into(), |cpu_s| format!("{cpu_s:.4}"))
            );
            reports.push(report);
        }
    }
    let throughput_ratio = ratios(&a, &b, |report| Some(report.gib_per_s));
    let server_cpu_ratio = ratios(&a, &b, |report| report.server_cpu_s_per_gib);
    let (name_a, name_b) = (arguments.name_a.clone(), arguments.name_b.clone());
    Ok(Comparison {
        name_a,
        name_b,
        a,
        b,
        throughput_ratio,
        server_cpu_ratio,
    })
}

fn ratios(a: &[Report], b: &[Report], figure: impl Fn(&Report) -> Option<f64>) -> Option<Spread> {
    let pairs = a.iter().zip(b);
    let ratios: Option<Vec<f64>> = pairs.map(|(a, b)| Some(figure(a)? / figure(b)?)).collect();
    Spread::of(ratios?)
}

fn parse(flag: &str, text: &str) -> Result<Get, LoadError> {
    let words = split(text).map_err(|why| LoadError::Usage(format!("{flag} {text:?}: {why}")))?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Get::from_args(&["forebay-bench", "get"], &words)
        .map_err(|early| LoadError::Usage(format!("{flag}: {}", early.output.trim())))
}

/// Splits as a shell would, with quotes of both kinds and without anything else that a shell does.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for letter in text.chars() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some(_), letter) => word.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (None, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    if quote.is_some() {
        Err("a quote is not closed".into())
    } else {
        Ok(words)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.name_a.len().max(self.name_b.len()).max(8);
        writeln!(
            f,
            "{:width$}  GiB/s: median (min .. max)         server CPU s/GiB: median (min .. max)",
            ""
        )?;
        for (name, reports) in [(&self.name_a, &self.a), (&self.name_b, &self.b)] {
            let throughput = Spread::of(reports.iter().map(|report| report.gib_per_s).collect());
            let cpu: Option<Vec<f64>> = reports
                .iter()
                .map(|report| report.server_cpu_s_per_gib)
                .collect();
            writeln!(
                f,
                "{name:width$}  {:34}  {}",
                shown(throughput.as_ref()),
                shown(cpu.and_then(Spread::of).as_ref())
            )?;
        }
        let (throughput, cpu) = (
            shown(self.throughput_ratio.as_ref()),
            shown(self.server_cpu_ratio.as_ref()),
        );
        writeln!(f, "{:width$}  {throughput:34}  {cpu}", "ratio")?;
        let tls = |reports: &[Report]| {
            reports
                .first()
                .and_then(|report| report.tls.clone())
                .unwrap_or("plain".into())
        };
        writeln!(
            f,
            "wire: {} {}, {} {}",
            self.name_a,
            tls(&self.a),
            self.name_b,
            tls(&self.b)
        )?;
        for (name, reports) in [(&self.name_a, &self.a), (&self.name_b, &self.b)] {
            let busy = reports
                .iter()
                .map(|report| report.generator_busy)
                .fold(0.0, f64::max)
                * 100.0;
            let device: Option<u64> = reports.iter().map(|report| report.device_bytes_read).sum();
            let bytes: u64 = reports.iter().map(|report| report.bytes).sum();
            let errors: u64 = reports
                .iter()
                .flat_map(|report| report.errors.values())
                .sum();
            let device = device.map_or(String::new(), |read| {
                format!(
                    ", device read {:.2} bytes for each byte served",
                    read as f64 / bytes.max(1) as f64
                )
            });
            writeln!(
                f,
                "{name}: generator busy at most {busy:.0} %, {errors} errors{device}"
            )?;
        }
        Ok(())
    }
}

fn shown(spread: Option<&Spread>) -> String {
    spread.map_or("-".into(), Spread::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!(Spread::of(vec![]), None);
        let odd = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }

    #[test]
    fn words_are_split_as_in_a_shell() {
        let words = split("--header 'Authorization: Bearer x'  --size 1MiB --b \"\"").unwrap();
        assert_eq!(
            words,
            [
                "--header",
                "Authorization: Bearer x",
                "--size",
                "1MiB",
                "--b",
                ""
            ]
        );
        assert!(split("a 'b").is_err());
        assert_eq!(parse("--a", "--target http://h/ --keys 7").unwrap().keys, 7);
        assert!(matches!(
            parse("--a", "--nonsense"),
            Err(LoadError::Usage(_))
        ));
    }
}
