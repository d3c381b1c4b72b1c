//! Plots as SVG: owns how lines with bands and bars with whiskers are drawn. Colours are the style sheet's (`.sN`), numbers are
//! the caller's; what a point is called is its `<title>`, so that a browser without scripts shows it, too.

use super::scale::Axis;
use super::text::{html, put};

/// Size of a panel of lines, in SVG's units; the page scales it. A wide one is as high and takes the place of one and a half, so that
/// letters have the same size in both.
const WIDTH: f64 = 420.0;
const WIDE: f64 = 630.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 40.0;

/// Height of a bar with the gap below it, and the width that names have.
const BAR_PITCH: f64 = 27.0;
const BAR_HEIGHT: f64 = 15.0;
const BAR_LEFT: f64 = 118.0;
const BAR_RIGHT: f64 = 62.0;

/// Letters of an 11-unit sans-serif are this wide, about.
const LETTER: f64 = 6.0;

/// Styles that the style sheet has; further systems begin anew with another dash.
pub(super) const STYLES: usize = 8;

/// A point of a line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// Ends of the band at this point.
    pub(super) low: f64,
    pub(super) high: f64,
    /// Whether the sign of its line is drawn here.
    pub(super) marked: bool,
    /// What it says when pointed at.
    pub(super) title: String,
}

/// A line with its band.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// Which of the page's styles.
    pub(super) style: usize,
    pub(super) points: Vec<Point>,
    /// Places on the x axis where there should be a point and is none, with the reason.
    pub(super) gaps: Vec<(f64, String)>,
}

/// A panel of lines.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Panel {
    pub(super) title: String,
    /// Of the y axis.
    pub(super) unit: String,
    /// What the x axis is.
    pub(super) across: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// Whether two of them fill a row, and not three.
    pub(super) wide: bool,
}

impl Panel {
    /// The panel as one `<svg>`.
    pub(super) fn svg(&self) -> String {
        let mut svg = opening(
            self.width(),
            HEIGHT,
            "panel",
            &format!("{}, {}", self.title, self.unit),
        );
        heading(&mut svg, &self.title, &self.unit);
        self.grid(&mut svg);
        // Ours is drawn last, on top.
        for line in self.lines.iter().rev() {
            self.line(&mut svg, line);
        }
        svg.push_str("</svg>");
        svg
    }

    fn width(&self) -> f64 {
        if self.wide { WIDE } else { WIDTH }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (self.width() - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM)
    }

    fn grid(&self, svg: &mut String) {
        let (right, bottom) = (self.width() - RIGHT, HEIGHT - BOTTOM);
        for tick in &self.y.ticks {
            let y = self.y(tick.value);
            put(
                svg,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>"
                ),
            );
            let (x, y) = (LEFT - 7.0, y + 3.8);
            put(
                svg,
                format_args!(
                    "<text class=\"tick end\" x=\"{x}\" y=\"{y:.1}\">{}</text>",
                    html(&tick.label)
                ),
            );
        }
        put(
            svg,
            format_args!(
                "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\"/>"
            ),
        );
        let mut free = 0.0;
        for tick in &self.x.ticks {
            let (x, half) = (self.x(tick.value), width(&tick.label) / 2.0);
            let y = bottom + 4.0;
            put(
                svg,
                format_args!(
                    "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{y}\"/>"
                ),
            );
            if x - half < free {
                continue;
            }
            free = x + half + LETTER;
            let y = bottom + 16.0;
            put(
                svg,
                format_args!(
                    "<text class=\"tick middle\" x=\"{x:.1}\" y=\"{y}\">{}</text>",
                    html(&tick.label)
                ),
            );
        }
        let (x, y) = (f64::midpoint(LEFT, right), HEIGHT - 7.0);
        put(
            svg,
            format_args!(
                "<text class=\"across middle\" x=\"{x}\" y=\"{y}\">{}</text>",
                html(&self.across)
            ),
        );
    }

    fn line(&self, svg: &mut String, line: &Line) {
        put(
            svg,
            format_args!(
                "<g class=\"line {}\" data-system=\"{}\">",
                style(line.style),
                line.style
            ),
        );
        let points = || line.points.iter().map(|point| (self.x(point.x), point));
        if line.points.iter().any(|point| point.high > point.low) {
            let above = points().map(|(x, point)| (x, self.y(point.high)));
            let below = points().rev().map(|(x, point)| (x, self.y(point.low)));
            put(
                svg,
                format_args!(
                    "<polygon class=\"band\" points=\"{}\"/>",
                    joined(above.chain(below))
                ),
            );
        }
        let path = joined(points().map(|(x, point)| (x, self.y(point.y))));
        put(
            svg,
            format_args!("<polyline class=\"stroke\" points=\"{path}\"/>"),
        );
        for (x, point) in points() {
            let (y, title) = (self.y(point.y), html(&point.title));
            let shape = if point.marked {
                shape(line.style, x, y)
            } else {
                format!("M{x:.1} {y:.1}h0")
            };
            let class = if point.marked { "mark" } else { "spot" };
            put(
                svg,
                format_args!("<path class=\"{class}\" d=\"{shape}\"><title>{title}</title></path>"),
            );
        }
        for (at, reason) in &line.gaps {
            // Side by side, so that two that failed at the same place are two crosses.
            let x = self.x(*at) + (line.style as f64 - 1.5) * 5.0;
            let y = HEIGHT - BOTTOM - 5.0;
            put(
                svg,
                format_args!(
                    "<path class=\"gap\" d=\"M{:.1} {:.1}l7 7m0 -7l-7 7\"><title>{}</title></path>",
                    x - 3.5,
                    y - 3.5,
                    html(reason)
                ),
            );
        }
        svg.push_str("</g>");
    }
}

/// A bar with its whisker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bar {
    pub(super) style: usize,
    pub(super) name: String,
    /// Absent where there is no figure; `label` says why.
    pub(super) value: Option<f64>,
    pub(super) low: f64,
    pub(super) high: f64,
    /// Beside the bar.
    pub(super) label: String,
    /// What it says when pointed at.
    pub(super) title: String,
    /// Whether none of the others is better.
    pub(super) best: bool,
}

/// A panel of bars, one below the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bars {
    pub(super) title: String,
    pub(super) unit: String,
    pub(super) bars: Vec<Bar>,
}

impl Bars {
    /// The panel as one `<svg>`.
    pub(super) fn svg(&self) -> String {
        let height = TOP + self.bars.len() as f64 * BAR_PITCH + 4.0;
        let mut svg = opening(
            WIDTH,
            height,
            "bars",
            &format!("{}, {}", self.title, self.unit),
        );
        heading(&mut svg, &self.title, &self.unit);
        let largest = self.bars.iter().map(|bar| bar.high).fold(0.0, f64::max);
        let room = WIDTH - BAR_LEFT - BAR_RIGHT;
        let x = |value: f64| {
            BAR_LEFT
                + if largest > 0.0 {
                    (value / largest).clamp(0.0, 1.0) * room
                } else {
                    0.0
                }
        };
        for (bar, at) in self.bars.iter().zip(0_u16..) {
            let top = TOP + f64::from(at) * BAR_PITCH;
            bar.draw(&mut svg, top, x);
        }
        let end = height - 4.0;
        put(
            &mut svg,
            format_args!(
                "<line class=\"axis\" x1=\"{BAR_LEFT}\" y1=\"{TOP}\" x2=\"{BAR_LEFT}\" y2=\"{end}\"/>"
            ),
        );
        svg.push_str("</svg>");
        svg
    }
}

impl Bar {
    fn draw(&self, svg: &mut String, top: f64, x: impl Fn(f64) -> f64) {
        let (middle, text_y) = (top + BAR_HEIGHT / 2.0, top + BAR_HEIGHT - 3.5);
        let best = if self.best { " best" } else { "" };
        put(
            svg,
            format_args!(
                "<g class=\"bar {}{best}\" data-system=\"{}\"><title>{}</title>",
                style(self.style),
                self.style,
                html(&self.title)
            ),
        );
        let name_x = BAR_LEFT - 9.0;
        put(
            svg,
            format_args!(
                "<text class=\"name end\" x=\"{name_x}\" y=\"{text_y:.1}\">{}</text>",
                html(&shortened(&self.name))
            ),
        );
        let mut end = BAR_LEFT;
        if let Some(value) = self.value {
            let width = x(value) - BAR_LEFT;
            put(
                svg,
                format_args!(
                    "<rect class=\"fill\" x=\"{BAR_LEFT}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\" rx=\"1.5\"/>"
                ),
            );
            end = x(value);
            if self.high > self.low {
                let (low, high) = (x(self.low), x(self.high));
                let (up, down) = (middle - 4.0, middle + 4.0);
                put(
                    svg,
                    format_args!(
                        "<path class=\"whisker\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {up:.1}V{down:.1}M{high:.1} {up:.1}V{down:.1}\"/>"
                    ),
                );
                end = end.max(high);
            }
        }
        let class = if self.value.is_some() {
            "value"
        } else {
            "value none"
        };
        let end = end + 7.0;
        put(
            svg,
            format_args!(
                "<text class=\"{class}\" x=\"{end:.1}\" y=\"{text_y:.1}\">{}</text></g>",
                html(&self.label)
            ),
        );
    }
}

/// A value beside the limit that it was to keep: a dot with a whisker on a short axis. Both ends of the axis are the caller's choice
/// of what fits: from zero to somewhat above the largest of all.
pub(super) fn bullet(
    value: f64,
    low: f64,
    high: f64,
    limit: f64,
    below: bool,
    met: bool,
) -> String {
    let (width, middle) = (170.0, 11.0);
    let largest = [value, high, limit].into_iter().fold(0.0, f64::max) * 1.12;
    let x = |value: f64| {
        4.0 + if largest > 0.0 {
            (value / largest).clamp(0.0, 1.0) * (width - 8.0)
        } else {
            0.0
        }
    };
    let mut svg = opening(width, 22.0, "bullet", "the value beside its target");
    let (from, to) = if below {
        (4.0, x(limit))
    } else {
        (x(limit), width - 4.0)
    };
    put(
        &mut svg,
        format_args!(
            "<rect class=\"room\" x=\"{from:.1}\" y=\"6\" width=\"{:.1}\" height=\"10\" rx=\"2\"/>",
            to - from
        ),
    );
    put(
        &mut svg,
        format_args!(
            "<line class=\"limit\" x1=\"{0:.1}\" y1=\"2\" x2=\"{0:.1}\" y2=\"20\"/>",
            x(limit)
        ),
    );
    let class = if met { "good" } else { "bad" };
    put(
        &mut svg,
        format_args!(
            "<path class=\"whisker {class}\" d=\"M{:.1} {middle}H{:.1}\"/>",
            x(low),
            x(high)
        ),
    );
    put(
        &mut svg,
        format_args!(
            "<circle class=\"dot {class}\" cx=\"{:.1}\" cy=\"{middle}\" r=\"4.5\"/>",
            x(value)
        ),
    );
    svg.push_str("</svg>");
    svg
}

/// The sign of a style, for legends.
pub(super) fn sign(style_number: usize) -> String {
    let mut svg = opening(30.0, 14.0, "sign", "");
    put(
        &mut svg,
        format_args!(
            "<g class=\"line {}\"><polyline class=\"stroke\" points=\"1,7 29,7\"/><path class=\"mark\" d=\"{}\"/></g></svg>",
            style(style_number),
            shape(style_number, 15.0, 7.0)
        ),
    );
    svg
}

/// Classes of a style.
pub(super) fn style(number: usize) -> String {
    let again = if number >= STYLES { " again" } else { "" };
    format!("s{}{again}", number % STYLES)
}

/// The outline of a style's mark around a place: each has its own, for those who do not tell the colours apart.
fn shape(style: usize, x: f64, y: f64) -> String {
    let at = |dx: f64, dy: f64| format!("{:.1} {:.1}", x + dx, y + dy);
    match style % STYLES {
        // Circle, square, triangles, diamond, cross, bar, plus.
        0 => format!(
            "M{}a3.8 3.8 0 1 0 7.6 0a3.8 3.8 0 1 0 -7.6 0z",
            at(-3.8, 0.0)
        ),
        1 => format!("M{}h6.8v6.8h-6.8z", at(-3.4, -3.4)),
        2 => format!("M{}l4.4 7.6h-8.8z", at(0.0, -4.6)),
        3 => format!("M{}l4.8 4.8l-4.8 4.8l-4.8 -4.8z", at(0.0, -4.8)),
        4 => format!("M{}l4.4 -7.6h-8.8z", at(0.0, 4.6)),
        5 => format!(
            "M{}l2 -2l2.4 2.4l2.4 -2.4l2 2l-2.4 2.4l2.4 2.4l-2 2l-2.4 -2.4l-2.4 2.4l-2 -2l2.4 -2.4z",
            at(-4.4, -2.4)
        ),
        6 => format!("M{}h3v9h-3z", at(-1.5, -4.5)),
        _ => format!("M{}h2.8v3h3v2.8h-3v3h-2.8v-3h-3v-2.8h3z", at(-1.4, -4.4)),
    }
}

fn opening(width: f64, height: f64, class: &str, label: &str) -> String {
    let about = if label.is_empty() {
        "aria-hidden=\"true\"".to_owned()
    } else {
        format!("role=\"img\" aria-label=\"{}\"", html(label))
    };
    format!("<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" {about}>")
}

fn heading(svg: &mut String, title: &str, unit: &str) {
    put(
        svg,
        format_args!(
            "<text class=\"head\" x=\"2\" y=\"14\">{}<tspan class=\"unit\" dx=\"7\">{}</tspan></text>",
            html(title),
            html(unit)
        ),
    );
}

fn joined(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut text = String::new();
    for (x, y) in points {
        put(&mut text, format_args!("{x:.1},{y:.1} "));
    }
    text
}

/// Width of a label, about.
fn width(label: &str) -> f64 {
    label.chars().count() as f64 * LETTER
}

/// A name that fits beside a bar.
fn shortened(name: &str) -> String {
    const LETTERS_MAX: usize = 18;
    if name.chars().count() <= LETTERS_MAX {
        return name.to_owned();
    }
    let kept: String = name.chars().take(LETTERS_MAX - 1).collect();
    format!("{}…", kept.trim_end())
}
