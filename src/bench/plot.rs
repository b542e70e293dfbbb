//! Small charts with logarithmic axes, as SVG.
//!
//! Owns how points and lines become marks, and what each lock looks like. It knows no figure's meaning. A chart is
//! readable without colour (each lock has a shape, Linux' lines are dashed), and stands alone as a file.

use experiment::Lock;
use maud::{Markup, PreEscaped, html};

const LEFT: f64 = 58.0;
const TOP: f64 = 36.0;
const WIDTH: f64 = 270.0;
const HEIGHT: f64 = 170.0;
const RIGHT: f64 = 24.0;
const BOTTOM: f64 = 40.0;
/// Room for a letter of a lock's name, and beside the name.
const LETTER: f64 = 6.2;
const BESIDE: f64 = 24.0;

/// Okabe and Ito's colours, which colour-blind readers can tell apart, and darker ones of their kind.
const COLOURS: [&str; 11] = [
    "#d55e00", "#e69f00", "#cc79a7", "#0072b2", "#777777", "#a0a0a0", "#8a6d3b", "#b09060",
    "#009e73", "#7fcdbb", "#56b4e9",
];

/// What charts that stand alone need, in both themes.
pub const STYLE: &str = "svg text{fill:var(--ink,#1b1b1b);font:11px system-ui,sans-serif}\
svg .soft{fill:var(--soft,#666)}svg .axis{stroke:var(--line,#ccc);fill:none}\
@media(prefers-color-scheme:dark){svg text{fill:var(--ink,#e8e8e8)}svg .soft{fill:var(--soft,#a0a0a0)}\
svg .axis{stroke:var(--line,#444)}}";

/// What a lock looks like: its place among all locks of a report decides.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    place: usize,
    dashed: bool,
}

impl Look {
    /// Of the lock at `place` in its report.
    pub fn of(place: usize, lock: Lock) -> Look {
        Look { place, dashed: matches!(lock, Lock::Linux(_)) }
    }

    fn colour(self) -> &'static str {
        COLOURS[self.place % COLOURS.len()]
    }

    fn dash(self) -> &'static str {
        if self.dashed { "5 3" } else { "none" }
    }

    /// The lock's mark at a place.
    pub fn mark(self, x: f64, y: f64) -> Markup {
        let colour = self.colour();
        let r = 4.0;
        let path = match self.place % 4 {
            0 => return html! { circle cx=(num(x)) cy=(num(y)) r=(r) fill=(colour) {} },
            1 => format!("M{} {}h{}v{}h-{}z", num(x - r), num(y - r), 2.0 * r, 2.0 * r, 2.0 * r),
            2 => format!("M{} {}l{r} {}h-{}z", num(x), num(y - r), 2.0 * r, 2.0 * r),
            _ => format!("M{} {}l{r} {r}l-{r} {r}l-{r} -{r}z", num(x), num(y - r)),
        };
        html! { path d=(path) fill=(colour) {} }
    }
}

/// What belongs to one lock in a chart.
pub struct Series {
    /// The lock's name.
    pub name: String,
    /// How it looks.
    pub look: Look,
    /// Where it is.
    pub points: Vec<(f64, f64)>,
    /// Whether a line joins the points; else each is a mark.
    pub line: bool,
}

/// An axis.
pub struct Axis {
    /// What it is of, with its unit.
    pub name: &'static str,
    /// A label for a value on it.
    pub label: fn(f64) -> String,
    /// Whether its steps are 1, 2, 5, 10 and so on; else powers of two.
    pub decades: bool,
}

/// A chart; points that are not above zero on both axes are left out. With `names` it says beside itself what each
/// mark is, for a chart that stands alone.
pub fn chart(title: &str, x: &Axis, y: &Axis, series: &[Series], names: bool) -> Markup {
    let all = || series.iter().flat_map(|s| &s.points).filter(|p| p.0 > 0.0 && p.1 > 0.0);
    let (Some(xs), Some(ys)) =
        (range(all().map(|p| p.0), x.decades), range(all().map(|p| p.1), y.decades))
    else {
        return html! {};
    };
    let at_x = |value: f64| LEFT + (value.max(xs.0) / xs.0).ln() / (xs.1 / xs.0).ln() * WIDTH;
    let at_y =
        |value: f64| TOP + HEIGHT - (value.max(ys.0) / ys.0).ln() / (ys.1 / ys.0).ln() * HEIGHT;
    let longest = series.iter().map(|s| s.name.len()).max().unwrap_or(0);
    let beside = if names { BESIDE + LETTER * longest as f64 } else { 0.0 };
    let (width, height) = (LEFT + WIDTH + RIGHT + beside, TOP + HEIGHT + BOTTOM);
    html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {width} {height}")) width=(width) role="img"
            aria-label=(title) {
            style { (PreEscaped(STYLE)) }
            text x=(LEFT) y="14" font-weight="bold" { (title) }
            @for tick in ticks(xs, x.decades) {
                path class="axis" d=(format!("M{} {TOP}v{HEIGHT}", num(at_x(tick)))) {}
                text class="soft" x=(num(at_x(tick))) y=(TOP + HEIGHT + 15.0) text-anchor="middle" { ((x.label)(tick)) }
            }
            @for tick in ticks(ys, y.decades) {
                path class="axis" d=(format!("M{LEFT} {}h{WIDTH}", num(at_y(tick)))) {}
                text class="soft" x=(LEFT - 6.0) y=(num(at_y(tick) + 4.0)) text-anchor="end" { ((y.label)(tick)) }
            }
            text class="soft" x=(LEFT + WIDTH) y=(height - 6.0) text-anchor="end" { (x.name) }
            text class="soft" x="0" y=(TOP - 8.0) { (y.name) }
            @if names {
                @for (n, s) in series.iter().filter(|s| !s.points.is_empty()).enumerate() {
                    @let (x, y) = (LEFT + WIDTH + RIGHT, TOP + 6.0 + 16.0 * n as f64);
                    (s.look.mark(x, y))
                    text x=(num(x + 10.0)) y=(num(y + 4.0)) { (s.name) }
                }
            }
            @for s in series {
                @let points: Vec<_> = s.points.iter().filter(|p| p.0 > 0.0 && p.1 > 0.0).collect();
                g {
                    title { (s.name) }
                    @if s.line && points.len() > 1 {
                        path fill="none" stroke=(s.look.colour()) stroke-width="1.8" stroke-dasharray=(s.look.dash())
                            d=(path(points.iter().map(|p| (at_x(p.0), at_y(p.1))))) {}
                    }
                    @if !s.line || points.len() < 12 {
                        @for p in &points { (s.look.mark(at_x(p.0), at_y(p.1))) }
                    }
                }
            }
        }
    }
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let steps = points
        .enumerate()
        .map(|(n, (x, y))| format!("{}{} {}", if n == 0 { 'M' } else { 'L' }, num(x), num(y)));
    steps.collect()
}

fn num(value: f64) -> String {
    format!("{value:.1}")
}

/// The steps of an axis around all values, from the last one below them to the first one above.
fn steps(low: f64, high: f64, decades: bool) -> Vec<f64> {
    let (base, within): (f64, &[f64]) =
        if decades { (10.0, &[1.0, 2.0, 5.0]) } else { (2.0, &[1.0]) };
    // A value that is a step but for its last digits is that step.
    let (low, high) = (low * (1.0 + 1e-9), high * (1.0 - 1e-9));
    let powers = low.log(base).floor() as i32..=high.log(base).ceil() as i32 + 1;
    let all: Vec<f64> =
        powers.flat_map(|power| within.iter().map(move |step| step * base.powi(power))).collect();
    let from = all.iter().rposition(|step| *step <= low).unwrap_or(0);
    let to = all.iter().position(|step| *step >= high).unwrap_or(all.len() - 1);
    all[from..=to.max(from + 1)].to_vec()
}

/// From a step to a step around all values; `None` without any.
fn range(values: impl Iterator<Item = f64>, decades: bool) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
    let steps = if high > 0.0 { steps(low, high, decades) } else { return None };
    Some((steps[0], steps[steps.len() - 1]))
}

fn ticks((low, high): (f64, f64), decades: bool) -> Vec<f64> {
    /// As many labels fit.
    const MOST: usize = 8;
    let all = steps(low, high, decades);
    let is_power = |step: &&f64| (step.log10() - step.log10().round()).abs() < 1e-9;
    let ticks: Vec<f64> = match decades && all.len() > MOST {
        true => all.iter().filter(is_power).copied().collect(),
        false => all,
    };
    let every = ticks.len().div_ceil(MOST);
    ticks.into_iter().step_by(every).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_goes_from_a_whole_step_to_a_whole_step() {
        assert_eq!(range([20.0, 300.0].into_iter(), true), Some((20.0, 500.0)));
        assert_eq!(range([1.0, 8.0].into_iter(), false), Some((1.0, 8.0)));
        assert_eq!(range([3.0, 9.0].into_iter(), false), Some((2.0, 16.0)));
        assert_eq!(range([10.0].into_iter(), true), Some((10.0, 20.0)));
        assert_eq!(range([4.0].into_iter(), false), Some((4.0, 8.0)));
        assert_eq!(range([0.02, 0.9].into_iter(), true), Some((0.02, 1.0)));
        assert_eq!(range(std::iter::empty(), true), None);
        assert_eq!(ticks((20.0, 500.0), true), [20.0, 50.0, 100.0, 200.0, 500.0]);
        assert_eq!(ticks((10.0, 10_000.0), true), [10.0, 100.0, 1000.0, 10_000.0]);
        assert!(ticks((1.0, 1e12), true).len() <= 8);
    }
}
