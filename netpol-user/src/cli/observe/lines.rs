//! One line for each event.

use std::{
    fmt::Write as _,
    io::{self, Write},
    time::SystemTime,
};

use serde::Serialize;
use serde_json::json;

use super::Format;
use crate::{
    cli::output::escape,
    observe::{Flow, Happening, Item, Leaving, Told, What, rfc3339},
};

/// Writes lines.
pub struct Lines<W: Write> {
    out: W,
    format: Format,
    colours: bool,
    has_begun: bool,
}

/// Columns of the table, with the widths that most of their cells fit into; the last one has the rest.
const COLUMNS: [(&str, usize); 7] =
    [("TIME", 12), ("TYPE", 6), ("VERDICT", 14), ("FROM", 28), ("TO", 28), ("PROTOCOL", 8), ("RULE", 0)];

impl<W: Write> Lines<W> {
    pub const fn new(out: W, format: Format, colours: bool) -> Self {
        Self { out, format, colours, has_begun: false }
    }

    /// Writes what comes before the first event, once.
    pub fn begin(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.has_begun, true) && self.format == Format::Table {
            let header = row(COLUMNS.map(|(name, _)| name.to_owned()));
            writeln!(self.out, "{header}")?;
        }
        self.flush()
    }

    pub fn happening(&mut self, happening: &Happening) -> io::Result<()> {
        match self.format {
            Format::Json => self.json(&object(happening)?),
            Format::Compact => {
                let words = compact(happening);
                self.line(happening.kind.name(), tone(happening.kind), &words)
            }
            Format::Table => writeln!(self.out, "{}", row(cells(happening))),
        }
    }

    /// What was not told.
    pub fn missed(&mut self, item: &Item) -> io::Result<()> {
        let time = rfc3339(SystemTime::now());
        let (name, words, object) = match item {
            Item::Happening(_) => return Ok(()),
            Item::Lost(lost) => (
                "lost",
                format!("{lost} events, because they were not read in time (a larger --buffer helps)"),
                json!({"type": "lost", "time": time, "lost": lost}),
            ),
            Item::Suppressed(drops) => (
                "more",
                format!("{drops} drops like those that were told, or too many of one interface"),
                json!({"type": "suppressed", "time": time, "suppressed": drops}),
            ),
            Item::Gap(gap) => {
                let seconds = gap.as_secs_f64();
                let words =
                    format!("an unknown number of events: netpol was stopped, {seconds:.1} s too long to count them");
                ("lost", words, json!({"type": "lost", "time": time, "lost": null, "seconds": seconds}))
            }
        };
        match self.format {
            Format::Json => self.json(&object),
            Format::Compact | Format::Table => {
                self.line(name, YELLOW, &format!("{} {words}", clock(SystemTime::now())))
            }
        }
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")
    }

    /// `words` begin with the time.
    fn line(&mut self, name: &str, tone: &str, words: &str) -> io::Result<()> {
        let (time, words) = words.split_once(' ').unwrap_or((words, ""));
        let words = escape(words);
        if self.colours {
            writeln!(self.out, "{time} {tone}{name:<6}\x1b[0m {words}")
        } else {
            writeln!(self.out, "{time} {name:<6} {words}")
        }
    }
}

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const DIM: &str = "\x1b[2m";

const fn tone(kind: What) -> &'static str {
    match kind {
        What::New => GREEN,
        What::Drop => RED,
        What::Closed | What::Flow => DIM,
    }
}

/// The event as an object. What is no IP packet has neither protocol number nor addresses.
fn object(happening: &Happening) -> io::Result<serde_json::Value> {
    let mut object = serde_json::to_value(happening.told())?;
    if let Some(ethertype) = happening.ethertype() {
        object["protocol"] = ethertype.into();
        for end in ["source", "destination"] {
            if object[end]["address"] == "0.0.0.0" || object[end]["address"] == "::" {
                object[end]["address"] = serde_json::Value::Null;
            }
        }
    }
    Ok(object)
}

/// `12:30:00.250`, of the day in UTC.
fn clock(moment: SystemTime) -> String {
    rfc3339(moment).get(11..23).unwrap_or_default().to_owned()
}

/// Time, and what happened, in words.
fn compact(happening: &Happening) -> String {
    let told = happening.told();
    let flow = &told.flow;
    let mut words = clock(flow.time);
    let (from, to) = ends(happening, flow);
    let verdict = flow.drop_reason.unwrap_or(flow.verdict);
    _ = write!(words, " {verdict} {from} > {to} {}", protocol(happening, flow));
    if let Some(Leaving { source, destination }) = flow.translated {
        _ = write!(words, " => {source} > {destination}");
    }
    if let Some(service) = flow.service {
        _ = write!(words, " ({service})");
    }
    match happening.kind {
        What::Closed => {
            let (packets, bytes) = (told.reply_packets.unwrap_or_default(), told.reply_bytes.unwrap_or_default());
            let state = told.tcp_state.map_or("", |state| state.name());
            _ = write!(words, " {state}, {} packets {} bytes", flow.packets, flow.bytes);
            _ = write!(words, ", answers {packets} packets {bytes} bytes: {}", flow.explanation);
        }
        _ => _ = write!(words, ": {}", flow.explanation),
    }
    words + &notes(&told)
}

/// What else is to be said of a drop.
fn notes(told: &Told<'_>) -> String {
    let mut notes = vec![];
    if let (Some(at), Some(reason)) = (told.at, told.flow.drop_reason)
        && !reason.starts_with("policy-")
    {
        notes.push(format!("at the interface of {at}"));
    }
    if told.was_allowed {
        notes.push("allowed until now".to_owned());
    }
    if told.kind == What::Drop && told.flow.packets > 1 {
        notes.push(format!("{} packets until now", told.flow.packets));
    }
    if told.suppressed > 0 {
        notes.push(format!("{} more like it", told.suppressed));
    }
    if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) }
}

fn ends(happening: &Happening, flow: &Flow<'_>) -> (String, String) {
    match &happening.frame {
        Some(frame) if !frame.is_ip => {
            let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
            (mac(frame.source), mac(frame.destination))
        }
        _ => (flow.source.describe(), flow.destination.describe()),
    }
}

fn protocol(happening: &Happening, flow: &Flow<'_>) -> String {
    happening.ethertype().unwrap_or_else(|| flow.protocol.to_string())
}

fn cells(happening: &Happening) -> [String; COLUMNS.len()] {
    let told = happening.told();
    let flow = &told.flow;
    let (from, to) = ends(happening, flow);
    let verdict = flow.drop_reason.unwrap_or(flow.verdict).to_owned();
    let totals = match told.reply_packets {
        Some(replies) => format!("{} + {replies} packets: ", flow.packets),
        None => String::new(),
    };
    let rule = format!("{totals}{}{}", flow.explanation, notes(&told));
    [clock(flow.time), happening.kind.name().to_owned(), verdict, from, to, protocol(happening, flow), rule]
}

/// Cells in their columns; one that is too long moves the rest of its line.
fn row(cells: [String; COLUMNS.len()]) -> String {
    let mut line = String::new();
    for (cell, (_, width)) in cells.iter().zip(COLUMNS) {
        _ = write!(line, "{:<width$}  ", escape(cell));
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::{
        Reader, What,
        scene::{DB, OUTSIDE, WEB, denial, names, record},
    };

    fn happening(kind: What, record: crate::datapath::Record) -> Happening {
        let reader = Arc::new(Reader::new(names().into()));
        let now = SystemTime::UNIX_EPOCH;
        Happening { kind, now, reader, record, reply: None, was_known: false, suppressed: 0, frame: None }
    }

    fn written(format: Format, happening: &Happening) -> String {
        let mut out = vec![];
        Lines::new(&mut out, format, false).happening(happening).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn drop_is_told_with_its_rule_and_how_many_more_there_were() {
        let drop = Happening { suppressed: 7, was_known: true, ..happening(What::Drop, denial(OUTSIDE, DB, 3)) };
        assert_eq!(
            written(Format::Compact, &drop),
            "00:00:00.000 drop   policy-ingress 192.0.2.9:40000 > shop/db:5432 TCP: isolated by NetworkPolicy \
             shop/database ingress at shop.yaml:3, and no rule allows tcp/5432 from 192.0.2.9 (allowed until now, 3 \
             packets until now, 7 more like it)\n"
        );
        let json: serde_json::Value = serde_json::from_str(&written(Format::Json, &drop)).expect("an object");
        assert_eq!(
            (&json["type"], &json["suppressed"], &json["was_allowed"]),
            (&"drop".into(), &7.into(), &true.into())
        );
        assert_eq!((&json["destination"]["name"], &json["rule"]["source"]), (&"db".into(), &"shop.yaml:3".into()));
    }

    #[test]
    fn end_is_told_with_both_directions() {
        let reply = record(DB, WEB, 2);
        let flags = |record| crate::datapath::Record { tcp_flags: 0x13, ..record };
        let end = Happening { reply: Some(flags(reply)), ..happening(What::Closed, flags(record(WEB, DB, 5))) };
        let line = written(Format::Compact, &end);
        assert!(line.contains("CLOSED, 5 packets 500 bytes, answers 2 packets 200 bytes: "), "{line}");
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        let mut names = names();
        names.endpoints[0].name = "we\x1b[2Jb\n".into();
        let reader = Arc::new(Reader::new(names.into()));
        let told = Happening { reader, ..happening(What::New, record(WEB, DB, 1)) };
        for format in [Format::Compact, Format::Table, Format::Json] {
            let line = written(format, &told);
            assert_eq!(line.lines().count(), 1, "{line:?}");
            assert!(!line.trim_end().contains(|c: char| c.is_control()), "{line:?}");
        }
    }
}
