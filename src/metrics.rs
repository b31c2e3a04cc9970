//! Figures as Prometheus reads them: its text format, version 0.0.4.
//!
//! Nothing is counted here. Whoever counts writes its families into an [`Exposition`], the gateway's own ones and those of
//! policies alike; whoever is asked for them sends the text.

use std::fmt::Write as _;

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's figures mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever rises.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many were at or below each bound, their sum and their number.
    Histogram,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Families and their figures, as text. Figures stand behind the family that they belong to.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a family.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {}", kind.word()));
    }

    /// A figure of the family that was begun.
    pub fn figure(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let value = match value {
            f64::INFINITY => "+Inf".to_owned(),
            f64::NEG_INFINITY => "-Inf".to_owned(),
            value => format!("{value:?}"),
        };
        self.labelled(name, labels, &value);
    }

    /// One figure that is no count.
    pub fn value(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.labelled(name, labels, &value.to_string());
    }

    /// A number of something.
    pub fn count(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.labelled(name, labels, &value.to_string());
    }

    /// Says something to people.
    pub fn comment(&mut self, text: &str) {
        let text = text.replace('\n', " ");
        self.line(format_args!("# {text}"));
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.0
    }

    fn labelled(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        let pair = |(name, value): &(&str, &str)| format!("{name}=\"{}\"", escape(value));
        let labels = labels.iter().map(pair).collect::<Vec<_>>().join(",");
        let braced = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        self.line(format_args!("{name}{braced} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // A String takes everything that is written to it.
        let _ = writeln!(self.0, "{line}");
    }
}

/// A label's value between its quotes.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_the_format_says() {
        let mut out = Exposition::default();
        out.family("a_total", Kind::Counter, "What \\ is\ncounted");
        out.count("a_total", &[], u64::MAX);
        out.count("a_total", &[("of", "a\"b\\c\nd"), ("to", "ü")], 0);
        out.comment("two\nlines");
        out.family("b", Kind::Gauge, "b");
        for value in [0.5, -3.0, 1e300, f64::INFINITY, f64::NEG_INFINITY] {
            out.figure("b", &[], value);
        }
        let expected = "# HELP a_total What \\\\ is\\ncounted\n# TYPE a_total counter\na_total 18446744073709551615\n\
            a_total{of=\"a\\\"b\\\\c\\nd\",to=\"ü\"} 0\n# two lines\n# HELP b b\n# TYPE b gauge\n\
            b 0.5\nb -3.0\nb 1e300\nb +Inf\nb -Inf\n";
        assert_eq!(out.into_text(), expected);
    }
}
