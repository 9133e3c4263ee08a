//! Prometheus' text format, version 0.0.4: a line for each sample, under its family's help and type.
//!
//! Written here because the official client crate does not escape label values, and names from documents must not
//! end a line.

use std::fmt::{Display, Write as _};

/// What a reader must be told in `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until it begins anew at 0.
    Counter,
    Gauge,
}

/// A text that grows by families of samples.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // help texts are ours: nothing in them needs escaping
        self.0.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family { text: &mut self.0, name }
    }

    pub fn finish(self) -> String {
        self.0
    }
}

/// One family's samples.
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.text.push_str(self.name);
        if !labels.is_empty() {
            let pairs: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            let _ = write!(self.text, "{{{}}}", pairs.join(","));
        }
        let _ = writeln!(self.text, " {value}");
        self
    }
}

/// The three characters that a label value cannot hold as they are.
fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_cannot_end_their_quotes_or_their_line() {
        let mut text = Exposition::default();
        let mut family = text.family("netpol_x", Kind::Gauge, "Help.");
        family.sample(&[("name", "a\"} 1\nnetpol_y{z=\"\\")], 7).sample(&[], 0.5);
        assert_eq!(
            text.finish(),
            "# HELP netpol_x Help.\n# TYPE netpol_x gauge\n\
             netpol_x{name=\"a\\\"} 1\\nnetpol_y{z=\\\"\\\\\"} 7\nnetpol_x 0.5\n"
        );
    }
}
