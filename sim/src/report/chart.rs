//! Pictures of runs, as SVG: made by hand, so the same run is the same file.

use super::ttft;
use crate::world::Outcome;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
/// Room on the right for the names.
const RIGHT: f64 = 170.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 10] = [
    "#1b6ca8", "#d1495b", "#3a7d44", "#edae49", "#6a4c93", "#00798c", "#8d5b4c", "#5c677d",
    "#c77dff", "#30343f",
];

/// Two axes and lines in them.
struct Chart {
    svg: String,
    x: (f64, f64),
    y: (f64, f64),
    lines: usize,
}

impl Chart {
    fn new(title: &str, x: (f64, f64), y: (f64, f64), axes: (&str, &str)) -> Self {
        let (width, height) = (LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" \
             stroke=\"#888\"/>\n",
            escaped(title)
        );
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            LEFT + WIDTH / 2.0,
            height - 10.0,
            escaped(axes.0),
            TOP + HEIGHT / 2.0,
            escaped(axes.1)
        );
        Self { svg, x, y, lines: 0 }
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let part = |value: f64, (least, most): (f64, f64)| {
            ((value - least) / (most - least).max(1e-9)).clamp(0.0, 1.0)
        };
        (LEFT + WIDTH * part(x, self.x), TOP + HEIGHT * (1.0 - part(y, self.y)))
    }

    fn tick_x(&mut self, x: f64, label: &str) {
        let (at, _) = self.place(x, self.y.0);
        let (bottom, text) = (TOP + HEIGHT, TOP + HEIGHT + 18.0);
        let _ = writeln!(
            self.svg,
            "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{text}\" text-anchor=\"middle\">{label}</text>"
        );
    }

    fn tick_y(&mut self, y: f64, label: &str) {
        let (_, at) = self.place(self.x.0, y);
        let (right, text) = (LEFT + WIDTH, LEFT - 6.0);
        let _ = writeln!(
            self.svg,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{text}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            at + 4.0
        );
    }

    fn line(&mut self, name: &str, points: impl Iterator<Item = (f64, f64)>) {
        let colour = COLOURS[self.lines % COLOURS.len()];
        let mut path = String::new();
        for (x, y) in points {
            let (x, y) = self.place(x, y);
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
        }
        let (x, y) = (LEFT + WIDTH + 12.0, TOP + 14.0 + 18.0 * self.lines as f64);
        let _ = writeln!(
            self.svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>\
             <text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{}</text>",
            escaped(name)
        );
        self.lines += 1;
    }

    fn finish(mut self) -> String {
        self.svg.push_str("</svg>\n");
        self.svg
    }
}

/// What part of all requests waited how long for the first token, run by run.
pub fn waits(title: &str, runs: &[(&str, &Outcome)]) -> String {
    // A millisecond to 1,000 s: below and beyond nobody cares for the difference.
    let mut chart =
        Chart::new(title, (-3.0, 3.0), (0.0, 1.0), ("time to first token", "part of requests"));
    let labels = ["1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s", "1,000 s"];
    for (power, label) in (-3..).zip(labels) {
        chart.tick_x(f64::from(power), label);
    }
    for (part, label) in [(0.0, "0"), (0.5, "0.5"), (0.9, "0.9"), (0.99, "0.99")] {
        chart.tick_y(part, label);
    }
    for (name, outcome) in runs {
        let mut waits: Vec<_> = outcome.records.iter().filter_map(ttft).collect();
        waits.sort_unstable();
        // As many points as can be told apart.
        let step = (waits.len() / 400).max(1);
        let count = waits.len() as f64;
        let points = waits.iter().enumerate().step_by(step);
        let points = points.map(|(place, &micros)| {
            ((micros.max(1) as f64 / 1e6).log10(), (place + 1) as f64 / count)
        });
        chart.line(name, points);
    }
    chart.finish()
}

/// Requests at each server over the time of one run.
pub fn loads(title: &str, outcome: &Outcome) -> String {
    let most = outcome.load.iter().flatten().copied().max().unwrap_or(0).max(1);
    let longest = outcome.load.iter().map(Vec::len).max().unwrap_or(0);
    let every = outcome.load_every.as_secs_f64();
    let span = every * longest.max(1) as f64;
    let axes = ("seconds", "requests in flight");
    let mut chart = Chart::new(title, (0.0, span), (0.0, f64::from(most)), axes);
    for quarter in 0..=4 {
        let part = f64::from(quarter) / 4.0;
        chart.tick_x(span * part, &format!("{:.0}", span * part));
        chart.tick_y(f64::from(most) * part, &format!("{:.0}", f64::from(most) * part));
    }
    for (server, load) in outcome.load.iter().enumerate() {
        let points = load.iter().enumerate();
        let points = points.map(|(place, &count)| (place as f64 * every, f64::from(count)));
        chart.line(&format!("server {server}"), points);
    }
    chart.finish()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Record;
    use vllm_proxy_core::time::{Duration, Instant};

    #[test]
    fn a_chart_has_a_line_for_each() {
        let record = Record { first: Some(Instant::from_millis(100)), ..Record::default() };
        let outcome = Outcome {
            records: vec![record; 3],
            load: vec![vec![1, 2, 3], vec![3, 2, 1]],
            load_every: Duration::from_secs(2),
            ..Outcome::default()
        };
        let svg = waits("a < b", &[("one", &outcome), ("two", &outcome)]);
        assert_eq!(svg.matches("stroke-width").count(), 2);
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"), "{svg}");
        // A third of the way from 1 ms to 1,000 s.
        assert!(svg.contains("M313.3 320.0L313.3 180.0L313.3 40.0"), "{svg}");
        let svg = loads("load", &outcome);
        assert_eq!(svg.matches("stroke-width").count(), 2);
        assert!(svg.contains("M60.0 320.0L313.3 180.0L566.7 40.0"), "{svg}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let outcome = Outcome::default();
        assert!(waits("", &[("none", &outcome)]).contains("d=\"\""));
        assert!(loads("", &outcome).ends_with("</svg>\n"));
    }
}
