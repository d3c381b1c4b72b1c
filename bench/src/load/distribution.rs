//! Latency distributions for other programs: owns HdrHistogram's two file forms and the list of points for plots.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;

/// Microseconds of a millisecond: files are in milliseconds, as HdrHistogram's own plotter expects them.
const US_PER_MS: f64 = 1000.0;

/// Lines of the text form for each halving of what is left to 100 %: what HdrHistogram's own tools default to.
const TICKS_PER_HALF: u32 = 5;

/// Points of a plot: tens, then nines.
const POINTS: [f64; 37] = [
    0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8,
    0.825, 0.85, 0.875, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975,
    0.999, 0.9995, 0.9999, 0.99995, 0.99999, 1.0,
];

/// Latency and how many samples are at or below it, at rising percentiles; equal neighbours are left out.
pub(super) fn points(latency_us: &Histogram<u64>) -> Vec<[u64; 2]> {
    if latency_us.is_empty() {
        return Vec::new();
    }
    let mut points: Vec<[u64; 2]> = POINTS
        .iter()
        .map(|quantile| latency_us.value_at_quantile(*quantile))
        .map(|value| [value, latency_us.count_between(0, value)])
        .collect();
    points.dedup();
    points
}

/// Writes the file of `--hdr`: the percentile distribution as text, or a log of one interval if the name ends in `.hlog`.
/// `start_s` and `seconds` are the interval, the start in seconds since 1970.
pub(super) fn write(
    path: &Path,
    latency_us: &Histogram<u64>,
    start_s: f64,
    seconds: f64,
) -> Result<(), String> {
    let is_log = path
        .extension()
        .is_some_and(|extension| extension == "hlog");
    let text = if is_log {
        log(latency_us, start_s, seconds)?
    } else {
        text(latency_us)
    };
    std::fs::write(path, text).map_err(|error| format!("--hdr {}: {error}", path.display()))
}

/// The form that HdrHistogram's `outputPercentileDistribution` prints.
fn text(latency_us: &Histogram<u64>) -> String {
    let mut out = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    // Writing to a String does not fail.
    for step in latency_us.iter_quantiles(TICKS_PER_HALF) {
        let value = step.value_iterated_to() as f64 / US_PER_MS;
        let count = latency_us.count_between(0, step.value_iterated_to());
        let quantile = step.quantile_iterated_to();
        let _ = if quantile < 1.0 {
            let inverse = 1.0 / (1.0 - quantile);
            writeln!(
                out,
                "{value:12.3} {quantile:2.12} {count:10} {inverse:14.2}"
            )
        } else {
            writeln!(out, "{value:12.3} {quantile:2.12} {count:10}")
        };
    }
    let _ = write!(
        out,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n#[Max     = {:12.3}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]\n",
        latency_us.mean() / US_PER_MS,
        latency_us.stdev() / US_PER_MS,
        latency_us.max() as f64 / US_PER_MS,
        latency_us.len(),
        latency_us.buckets(),
        2048
    );
    out
}

/// HdrHistogram's log, V2 compressed, with the whole run as its one interval. Its values are microseconds.
fn log(latency_us: &Histogram<u64>, start_s: f64, seconds: f64) -> Result<String, String> {
    use hdrhistogram::serialization::V2DeflateSerializer;
    use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(start_s);
    let (mut out, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let explain = |error: &dyn std::fmt::Debug| format!("--hdr: {error:?}");
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment("[forebay-bench, latencies in microseconds]")
        .with_start_time(start)
        .with_base_time(start)
        .with_max_value_divisor(US_PER_MS)
        .begin_log_with(&mut out, &mut serializer)
        .map_err(|error| explain(&error))?;
    writer
        .write_histogram(
            latency_us,
            Duration::ZERO,
            Duration::from_secs_f64(seconds),
            None,
        )
        .map_err(|error| explain(&error))?;
    drop(writer);
    String::from_utf8(out).map_err(|error| explain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::samples::latency_histogram;

    fn thousand() -> Histogram<u64> {
        let mut histogram = latency_histogram().unwrap();
        (1..=1000).for_each(|value| histogram.record(value).unwrap());
        histogram
    }

    #[test]
    fn points_rise_to_the_whole() {
        let points = points(&thousand());
        assert!(points.is_sorted() && points.len() > 30, "{points:?}");
        assert_eq!(points.first(), Some(&[1, 1]));
        assert_eq!(points.last(), Some(&[1000, 1000]));
        assert!(points.contains(&[500, 500]));
        assert!(super::points(&latency_histogram().unwrap()).is_empty());
    }

    #[test]
    fn the_text_is_what_plotters_read() {
        let text = text(&thousand());
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .take_while(|line| !line.starts_with('#'))
            .map(|line| {
                line.split_whitespace()
                    .map(|word| word.parse().unwrap())
                    .collect()
            })
            .collect();
        let median = rows.iter().find(|row| row[1] >= 0.5).unwrap();
        assert_eq!((median[0], median[2]), (0.5, 500.0));
        assert_eq!(median[3], 2.0);
        assert_eq!(rows.last().unwrap()[..], [1.0, 1.0, 1000.0]);
        assert!(text.contains("Total count    =         1000]"), "{text}");
    }

    #[test]
    fn the_log_reads_back() {
        use base64::Engine;
        use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
        let log = log(&thousand(), 1000.0, 2.5).unwrap();
        let entries: Vec<_> = IntervalLogIterator::new(log.as_bytes()).collect();
        let found = entries.iter().find_map(|entry| match entry {
            Ok(LogEntry::Interval(interval)) => Some(interval),
            _ => None,
        });
        let interval = found.unwrap();
        assert_eq!(interval.duration(), Duration::from_millis(2500));
        let packed = base64::engine::general_purpose::STANDARD
            .decode(interval.encoded_histogram())
            .unwrap();
        let back: Histogram<u64> = hdrhistogram::serialization::Deserializer::new()
            .deserialize(&mut packed.as_slice())
            .unwrap();
        assert_eq!(back, thousand());
    }
}
