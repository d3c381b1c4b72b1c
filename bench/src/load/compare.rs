//! Two servers side by side: owns running them in turn, and the medians, ratios and intervals of what came out. Measures
//! nothing itself.
//!
//! Every other pair is run in the other order (A B, B A, A B ...), so that a machine that grows slower or faster does so for
//! both sides.

use std::fmt;

use argh::FromArgs;
use serde::{Deserialize, Serialize};

use crate::load::LoadError;
use crate::load::arguments::{Arguments, Compare, Verb};
use crate::load::report::Report;

/// Confidence that intervals are to have, if there are values enough.
const CONFIDENCE_MIN: f64 = 0.95;

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
    /// A's median latency over B's, pair by pair.
    pub latency_p50_ratio: Option<Spread>,
    /// A's 99th percentile of latency over B's, pair by pair.
    pub latency_p99_ratio: Option<Spread>,
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
        let interval = median_interval(sorted.len());
        Some(Self {
            median: f64::midpoint(low, high),
            min,
            max,
            interval: interval.map(|(skip, _)| [sorted[skip], sorted[sorted.len() - 1 - skip]]),
            confidence: interval.map_or(0.0, |(_, confidence)| confidence),
            values,
        })
    }
}

/// Which order statistics hold the median of what `count` values were drawn from: how many of the smallest and of the largest
/// are left out, and with what confidence the rest hold it. As narrow as 95 % allow; of fewer than six values, all of them,
/// with the confidence that they give. `None` below two values.
///
/// This is the interval that belongs to the sign test: a value lies below the median with probability one half whatever the
/// distribution, so the number that do is binomial. W. J. Conover, *Practical Nonparametric Statistics*, 3rd edition (1999),
/// section 3.2; W. R. Thompson, *Annals of Mathematical Statistics* 7 (1936), 122-128.
fn median_interval(count: usize) -> Option<(usize, f64)> {
    if count < 2 {
        return None;
    }
    let mut best = None;
    // Probability of exactly `skip` values below the median, and of at most so many.
    let (mut exactly, mut at_most) = (0.5_f64.powi(count as i32), 0.0);
    for skip in 0..count / 2 {
        at_most += exactly;
        exactly *= (count - skip) as f64 / (skip + 1) as f64;
        let confidence = 1.0 - 2.0 * at_most;
        if best.is_some() && confidence < CONFIDENCE_MIN {
            break;
        }
        best = Some((skip, confidence));
    }
    best
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4} ({:.4} .. {:.4})", self.median, self.min, self.max)?;
        match self.interval {
            Some([low, high]) if f.alternate() => write!(
                f,
                ", {:.1} % interval {low:.4} .. {high:.4}",
                self.confidence * 100.0
            ),
            _ => Ok(()),
        }
    }
}

/// Runs `forebay-bench compare`. The first run that fails ends it: a side that fails must not look fast.
pub fn compare(arguments: &Compare) -> Result<Comparison, LoadError> {
    if arguments.pairs == 0 {
        return Err(LoadError::Usage("--pairs must be above 0".into()));
    }
    let (verb_a, verb_b) = (parse("--a", &arguments.a)?, parse("--b", &arguments.b)?);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for pair in 1..=arguments.pairs {
        let mut sides = [
            (&verb_a, &arguments.name_a, &mut a),
            (&verb_b, &arguments.name_b, &mut b),
        ];
        if pair % 2 == 0 {
            sides.reverse();
        }
        for (verb, name, reports) in sides {
            reports.push(run_side(verb, name, pair, arguments.pairs)?);
        }
    }
    Ok(Comparison {
        throughput_ratio: ratios(&a, &b, |report| Some(report.gib_per_s)),
        server_cpu_ratio: ratios(&a, &b, |report| report.server_cpu_s_per_gib),
        latency_p50_ratio: ratios(&a, &b, |report| Some(report.latency_us?.p50 as f64)),
        latency_p99_ratio: ratios(&a, &b, |report| Some(report.latency_us?.p99 as f64)),
        name_a: arguments.name_a.clone(),
        name_b: arguments.name_b.clone(),
        a,
        b,
    })
}

fn run_side(verb: &Verb, name: &str, pair: usize, pairs: usize) -> Result<Report, LoadError> {
    let report = super::run(verb)?;
    if !report.is_good() {
        return Err(LoadError::Run(format!(
            "pair {pair}, side {name} failed:\n{report}"
        )));
    }
    let cpu_s = report.server_cpu_s_per_gib;
    eprintln!(
        "pair {pair}/{pairs} {name}: {:.3} GiB/s, {} server CPU s/GiB",
        report.gib_per_s,
        cpu_s.map_or("-".into(), |cpu_s| format!("{cpu_s:.4}"))
    );
    Ok(report)
}

fn ratios(a: &[Report], b: &[Report], figure: impl Fn(&Report) -> Option<f64>) -> Option<Spread> {
    let pairs = a.iter().zip(b);
    // A side whose figure is 0, such as the CPU of a process that was the wrong one to watch, has no ratio.
    let ratio = |a: &Report, b: &Report| {
        let ratio = figure(a)? / figure(b)?;
        ratio.is_finite().then_some(ratio)
    };
    let ratios: Option<Vec<f64>> = pairs.map(|(a, b)| ratio(a, b)).collect();
    Spread::of(ratios?)
}

fn parse(flag: &str, text: &str) -> Result<Verb, LoadError> {
    let mut words =
        split(text).map_err(|why| LoadError::Usage(format!("{flag} {text:?}: {why}")))?;
    if words.first().is_none_or(|word| word.starts_with('-')) {
        words.insert(0, "get".into());
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let arguments = Arguments::from_args(&["forebay-bench"], &words)
        .map_err(|early| LoadError::Usage(format!("{flag}: {}", early.output.trim())))?;
    arguments
        .command
        .verb()
        .map_err(|_| LoadError::Usage(format!("{flag}: a side is a verb that makes load")))
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
        for (what, ratio) in [
            ("throughput", &self.throughput_ratio),
            ("server CPU per GiB", &self.server_cpu_ratio),
            ("p50 latency", &self.latency_p50_ratio),
            ("p99 latency", &self.latency_p99_ratio),
        ] {
            if let Some(ratio) = ratio {
                writeln!(f, "ratio of {what}: {ratio:#}")?;
            }
        }
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
    fn intervals_are_those_of_the_sign_test() {
        // The table of any textbook: of 5 values the extremes hold 93.75 %; of 6 96.9; of 10 the second and the ninth 97.9.
        assert_eq!(median_interval(1), None);
        assert_eq!(median_interval(5), Some((0, 0.9375)));
        assert_eq!(median_interval(6), Some((0, 0.96875)));
        let (skip, confidence) = median_interval(10).unwrap();
        assert!(skip == 1 && (confidence - 0.978_515_625).abs() < 1e-12);
        let (skip, confidence) = median_interval(25).unwrap();
        assert!(skip == 7 && (confidence - 0.956_715).abs() < 1e-4);
        let spread = Spread::of((1..=10).map(f64::from).collect()).unwrap();
        assert_eq!(spread.interval, Some([2.0, 9.0]));
        assert!(format!("{spread:#}").contains("97.9 % interval"));
    }

    #[test]
    fn a_figure_of_nothing_has_no_ratio() {
        let report = |cpu_s| Report {
            server_cpu_s_per_gib: cpu_s,
            ..Report::default()
        };
        let ratio = |a, b| {
            ratios(&[report(a)], &[report(b)], |report| {
                report.server_cpu_s_per_gib
            })
        };
        assert_eq!(ratio(Some(3.0), Some(2.0)).unwrap().median, 1.5);
        assert_eq!(ratio(Some(0.0), Some(0.0)), None);
        assert_eq!(ratio(Some(1.0), Some(0.0)), None);
        assert_eq!(ratio(Some(1.0), None), None);
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
        let verb = parse("--a", "--target http://h/ --keys 7").unwrap();
        assert_eq!((verb.name(), verb.common().keys), ("get", 7));
        let verb = parse("--a", "mixed --target http://h/ --reads 10").unwrap();
        assert!(matches!(verb, Verb::Mixed(mixed) if mixed.reads == 10.0));
        assert!(parse("--a", "compare --a x --b y").is_err());
        assert!(matches!(
            parse("--a", "--nonsense"),
            Err(LoadError::Usage(_))
        ));
    }
}
