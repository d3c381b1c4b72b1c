//! Axes: owns where a value stands between the ends of an axis, and which values are written beside it. Draws nothing.

use super::text;

/// Ticks that a value axis has room for.
const TICKS_MAX: usize = 6;

/// Ratio of the largest to the smallest value above which a logarithmic axis is easier to read.
const LOG_RATIO_MIN: f64 = 20.0;

/// A mark on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
}

/// How values become places.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Linear,
    Log,
    /// Shares below one, by their number of nines: 0.9, 0.99, 0.999 are as far from each other.
    Nines,
}

impl Form {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.max(f64::MIN_POSITIVE).log10(),
            Self::Nines => -(1.0 - value).max(1e-12).log10(),
        }
    }
}

/// One axis with its ends and ticks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    form: Form,
    first: f64,
    last: f64,
    pub(super) ticks: Vec<Tick>,
}

impl Axis {
    /// From zero to a little above the largest value.
    pub(super) fn from_zero(values: &[f64]) -> Self {
        let largest = values.iter().copied().fold(0.0, f64::max);
        Self::linear(0.0, largest)
    }

    /// From `first` to `last` or a round number above it.
    pub(super) fn linear(first: f64, last: f64) -> Self {
        let span = if last > first { last - first } else { 1.0 };
        let step = step(span / (TICKS_MAX - 1) as f64);
        let steps = (span / step - 1e-9).ceil();
        let ticks = (0..=steps as u64).map(|at| {
            let value = first + at as f64 * step;
            let label = tick_label(value, step);
            Tick { value, label }
        });
        Self {
            form: Form::Linear,
            first,
            last: first + steps * step,
            ticks: ticks.collect(),
        }
    }

    /// Exactly `first..=last`, with ticks at round numbers between.
    pub(super) fn exact(first: f64, last: f64) -> Self {
        let mut axis = Self::linear(first, last);
        axis.last = if last > first { last } else { first + 1.0 };
        axis.ticks.retain(|tick| tick.value <= axis.last);
        axis
    }

    /// Powers of ten around the values, with 2 and 5 between where there is room. Values that are not positive have no place.
    pub(super) fn log(values: &[f64], label: impl Fn(f64) -> String) -> Self {
        let positive = values.iter().copied().filter(|value| *value > 0.0);
        let (low, high) = positive.fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        if high <= 0.0 {
            return Self::linear(0.0, 1.0);
        }
        let candidates = round_numbers(low, high);
        let first = candidates
            .iter()
            .copied()
            .rfind(|at| *at <= low * (1.0 + 1e-9));
        let last = candidates
            .iter()
            .copied()
            .find(|at| *at >= high * (1.0 - 1e-9));
        let (first, last) = (first.unwrap_or(low), last.unwrap_or(high));
        let inside: Vec<f64> = candidates
            .into_iter()
            .filter(|at| (first..=last).contains(at))
            .collect();
        let tens: Vec<f64> = inside.iter().copied().filter(|at| is_power(*at)).collect();
        let shown = if inside.len() <= TICKS_MAX + 1 {
            inside
        } else {
            tens
        };
        let ticks = shown.into_iter().map(|value| Tick {
            value,
            label: label(value),
        });
        Self {
            form: Form::Log,
            first,
            // One value alone would leave no width.
            last: if last > first { last } else { first * 10.0 },
            ticks: ticks.collect(),
        }
    }

    /// Logarithmic where the values span far, else linear from zero.
    pub(super) fn fitting(values: &[f64], label: impl Fn(f64) -> String) -> Self {
        let positive = values.iter().copied().filter(|value| *value > 0.0);
        let low = positive.fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        if high > low * LOG_RATIO_MIN {
            return Self::log(values, label);
        }
        let mut axis = Self::from_zero(values);
        for tick in &mut axis.ticks {
            tick.label = if tick.value > 0.0 {
                label(tick.value)
            } else {
                "0".into()
            };
        }
        axis
    }

    /// A logarithmic axis whose ticks are these values and no others, with a margin at both ends.
    pub(super) fn steps(ticks: Vec<Tick>) -> Self {
        let first = ticks.first().map_or(1.0, |tick| tick.value);
        let last = ticks.last().map_or(1.0, |tick| tick.value);
        let margin = if last > first {
            (last / first).powf(0.04)
        } else {
            2.0
        };
        Self {
            form: Form::Log,
            first: first / margin,
            last: last * margin,
            ticks,
        }
    }

    /// Percentiles from the median's left to `last`, a share below one, by their nines.
    pub(super) fn nines(last: f64) -> Self {
        let known = [
            (0.0, "0"),
            (0.5, "50"),
            (0.9, "90"),
            (0.99, "99"),
            (0.999, "99.9"),
            (0.9999, "99.99"),
            (0.99999, "99.999"),
            (0.999_999, "99.9999"),
        ];
        let ticks = known.iter().filter(|(value, _)| *value <= last + 1e-12);
        let ticks = ticks.map(|&(value, label)| Tick {
            value,
            label: format!("{label} %"),
        });
        Self {
            form: Form::Nines,
            first: 0.0,
            last: last.max(0.5),
            ticks: ticks.collect(),
        }
    }

    /// Where a value stands: 0 at the first end, 1 at the last, never beyond.
    pub(super) fn place(&self, value: f64) -> f64 {
        let (first, last) = (self.form.place(self.first), self.form.place(self.last));
        ((self.form.place(value) - first) / (last - first)).clamp(0.0, 1.0)
    }
}

/// The round number (1, 2 or 5 times a power of ten) at or above a width.
fn step(width: f64) -> f64 {
    let power = 10_f64.powf(width.log10().floor());
    let fits = [1.0, 2.0, 5.0]
        .iter()
        .find(|times| **times * power >= width * (1.0 - 1e-9));
    fits.map_or(10.0, |times| *times) * power
}

/// 1, 2 and 5 times powers of ten, from the one below `low` to the one above `high`.
fn round_numbers(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (first..=last)
        .flat_map(|power| [1.0, 2.0, 5.0].map(|times| times * 10_f64.powi(power)))
        .collect()
}

fn is_power(value: f64) -> bool {
    (value.log10() - value.log10().round()).abs() < 1e-9
}

/// A value with as many decimals as the step has.
fn tick_label(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    if decimals == 0 {
        return text::count(value.round() as u64);
    }
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_reach_the_largest_value() {
        assert_eq!(
            labels(&Axis::from_zero(&[4.1, 0.3])),
            ["0", "1", "2", "3", "4", "5"]
        );
        assert_eq!(
            labels(&Axis::from_zero(&[0.41])),
            ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]
        );
        assert_eq!(
            labels(&Axis::from_zero(&[11_000.0])),
            ["0", "5,000", "10,000", "15,000"]
        );
        assert_eq!(labels(&Axis::exact(0.0, 11.0)), ["0", "5", "10"]);
    }

    #[test]
    fn every_axis_holds_all_its_values_and_not_too_many_ticks() {
        for exponent in -12..12 {
            for mantissa in [1.0, 1.01, 1.999, 2.0, 3.7, 5.0, 5.01, 9.99] {
                let value = mantissa * 10_f64.powi(exponent);
                for axis in [
                    Axis::from_zero(&[value]),
                    Axis::log(&[value, value * 37.0], text::figure),
                    Axis::fitting(&[value, value * 37.0], text::figure),
                ] {
                    assert!(axis.last >= value * (1.0 - 1e-9), "{value}: {axis:?}");
                    assert!((2..=8).contains(&axis.ticks.len()), "{value}: {axis:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_and_zero_have_an_axis_too() {
        for axis in [
            Axis::from_zero(&[]),
            Axis::from_zero(&[0.0]),
            Axis::log(&[0.0], text::figure),
            Axis::fitting(&[], text::figure),
            Axis::steps(Vec::new()),
            Axis::exact(0.0, 0.0),
        ] {
            assert!((0.0..=1.0).contains(&axis.place(0.0)), "{axis:?}");
            assert!(axis.place(1.0).is_finite(), "{axis:?}");
        }
    }

    #[test]
    fn places_follow_the_form_of_the_axis() {
        let linear = Axis::from_zero(&[10.0]);
        assert_eq!((linear.place(0.0), linear.place(5.0)), (0.0, 0.5));
        let log = Axis::log(&[1.0, 100.0], text::figure);
        assert!((log.place(10.0) - 0.5).abs() < 1e-9);
        let nines = Axis::nines(0.9999);
        assert!((nines.place(0.99) - 0.5).abs() < 1e-9);
        assert_eq!(
            labels(&nines),
            ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]
        );
        assert_eq!(nines.place(2.0), 1.0);
    }

    #[test]
    fn a_wide_span_is_logarithmic_and_a_narrow_one_begins_at_zero() {
        assert_eq!(Axis::fitting(&[1.0, 10.0], text::figure).form, Form::Linear);
        assert_eq!(Axis::fitting(&[1.0, 30.0], text::figure).form, Form::Log);
    }
}
