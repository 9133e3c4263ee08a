//! Many flows as one JSON document, character for character the one that `serde_json` makes of them: what flows have in common
//! is put into words once, and most of the document is such words.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt::Display,
    hash::{Hash, Hasher},
    io::{self, Write},
    ptr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer as _};

use crate::{
    model::Labels,
    observe::{Cause, Explanation, Flow, Leaving, Peer, rfc3339},
    state::Rule,
};

/// When so much is ready, it is written.
const CHUNK: usize = 1 << 18;

/// A list of flows, as it grows.
pub struct Document<'a, W: Write> {
    out: W,
    ready: Vec<u8>,
    is_empty: bool,
    rules: HashMap<One<'a, Rule>, SharedRule>,
    /// By their labels, of which each endpoint has its own.
    ends: HashMap<One<'a, Labels>, String>,
    /// The last moment's, up to the milliseconds.
    second: (u64, String),
}

/// One thing, whatever is like it: told apart by where it is.
struct One<'a, T>(&'a T);

impl<T> PartialEq for One<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self.0, other.0)
    }
}

impl<T> Eq for One<'_, T> {}

impl<T> Hash for One<'_, T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        ptr::hash(self.0, state);
    }
}

/// What is the same wherever a rule stands.
struct SharedRule {
    object: String,
    /// Why it decides, where that does not depend on what it decides about.
    explanation: Option<String>,
}

impl<'a, W: Write> Document<'a, W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            ready: Vec::with_capacity(2 * CHUNK),
            is_empty: true,
            rules: HashMap::new(),
            ends: HashMap::new(),
            second: (u64::MAX, String::new()),
        }
    }

    pub fn flow(&mut self, flow: &Flow<'a>) -> io::Result<()> {
        // all of them, so that a new one is not forgotten
        let Flow {
            time,
            verdict,
            drop_reason,
            source,
            destination,
            protocol,
            direction,
            is_reply,
            rule,
            egress_rule,
            ingress_rule,
            explanation,
            would_drop,
            audit_rule,
            audit_explanation,
            packets,
            bytes,
            idle_seconds,
            tcp_flags,
            delivery,
            current,
            interface,
            translated,
            service,
        } = flow;
        self.text(if self.is_empty { "[\n  {\n    \"time\": \"" } else { ",\n  {\n    \"time\": \"" });
        self.is_empty = false;
        self.moment(*time)?;
        self.text("\",\n    \"verdict\": ");
        self.value(verdict)?;
        self.text(",\n    \"drop_reason\": ");
        self.value(drop_reason)?;
        self.text(",\n    \"source\": ");
        self.end(source)?;
        self.text(",\n    \"destination\": ");
        self.end(destination)?;
        self.text(",\n    \"protocol\": ");
        self.words(protocol)?;
        self.text(",\n    \"direction\": ");
        self.value(direction)?;
        self.text(",\n    \"is_reply\": ");
        self.value(is_reply)?;
        self.text(",\n    \"rule\": ");
        self.rule(*rule)?;
        self.text(",\n    \"egress_rule\": ");
        self.rule(*egress_rule)?;
        self.text(",\n    \"ingress_rule\": ");
        self.rule(*ingress_rule)?;
        self.text(",\n    \"explanation\": ");
        self.explanation(explanation)?;
        self.text(",\n    \"would_drop\": ");
        self.value(would_drop)?;
        self.text(",\n    \"audit_rule\": ");
        self.rule(*audit_rule)?;
        self.text(",\n    \"audit_explanation\": ");
        self.some(audit_explanation.as_ref(), Self::explanation)?;
        self.text(",\n    \"packets\": ");
        self.value(packets)?;
        self.text(",\n    \"bytes\": ");
        self.value(bytes)?;
        self.text(",\n    \"idle_seconds\": ");
        self.value(idle_seconds)?;
        self.text(",\n    \"tcp_flags\": ");
        self.some(tcp_flags.as_ref(), Self::words)?;
        self.text(",\n    \"delivery\": ");
        self.value(delivery)?;
        self.text(",\n    \"current\": ");
        self.value(current)?;
        self.text(",\n    \"interface\": ");
        self.words(interface)?;
        self.text(",\n    \"translated\": ");
        self.some(translated.as_ref(), |this, Leaving { source, destination }| {
            this.text("{\n      \"source\": ");
            this.words(source)?;
            this.text(",\n      \"destination\": ");
            this.words(destination)?;
            this.text("\n    }");
            Ok(())
        })?;
        self.text(",\n    \"service\": ");
        self.some(service.as_ref(), Self::words)?;
        self.text("\n  }");
        if self.ready.len() >= CHUNK {
            self.out.write_all(&self.ready)?;
            self.ready.clear();
        }
        Ok(())
    }

    /// The end of the list.
    pub fn finish(mut self) -> io::Result<()> {
        self.text(if self.is_empty { "[]" } else { "\n]" });
        self.out.write_all(&self.ready)
    }

    fn text(&mut self, text: &str) {
        self.ready.extend_from_slice(text.as_bytes());
    }

    fn value(&mut self, value: &impl Serialize) -> io::Result<()> {
        Ok(serde_json::to_writer(&mut self.ready, value)?)
    }

    fn words(&mut self, value: &impl Display) -> io::Result<()> {
        Ok(serde_json::Serializer::new(&mut self.ready).collect_str(value)?)
    }

    fn some<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T) -> io::Result<()>) -> io::Result<()> {
        match value {
            Some(value) => write(self, value),
            None => {
                self.text("null");
                Ok(())
            }
        }
    }

    fn moment(&mut self, time: SystemTime) -> io::Result<()> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second.0 != since.as_secs() {
            let mut text = rfc3339(time);
            text.truncate(text.len() - "000Z".len());
            self.second = (since.as_secs(), text);
        }
        self.ready.extend_from_slice(self.second.1.as_bytes());
        write!(self.ready, "{:03}Z", since.subsec_millis())
    }

    fn end(&mut self, peer: &Peer<'a>) -> io::Result<()> {
        let Peer { namespace, name, labels, identity, address, port } = peer;
        let shared = match self.ends.entry(One(labels)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                #[derive(Serialize)]
                struct Shared<'a> {
                    namespace: Option<&'a str>,
                    name: Option<&'a str>,
                    labels: &'a Labels,
                    identity: Option<u32>,
                }
                let object = inside(&Shared { namespace: *namespace, name: *name, labels, identity: *identity })?;
                let open = object.strip_suffix("\n    }").unwrap_or(&object);
                entry.insert(format!("{open},\n      \"address\": \""))
            }
        };
        self.ready.extend_from_slice(shared.as_bytes());
        write!(self.ready, "{address}\",\n      \"port\": ")?;
        self.value(port)?;
        self.text("\n    }");
        Ok(())
    }

    fn rule(&mut self, rule: Option<&'a Rule>) -> io::Result<()> {
        self.some(rule, |this, rule| {
            let Self { rules, ready, .. } = this;
            ready.extend_from_slice(shared(rules, rule)?.object.as_bytes());
            Ok(())
        })
    }

    fn explanation(&mut self, explanation: &Explanation<'a>) -> io::Result<()> {
        if let Cause::Rule(rule) = explanation.cause
            && let Some(words) = &shared(&mut self.rules, rule)?.explanation
        {
            self.ready.extend_from_slice(words.as_bytes());
            return Ok(());
        }
        self.words(explanation)
    }
}

fn shared<'r, 'a>(rules: &'r mut HashMap<One<'a, Rule>, SharedRule>, rule: &'a Rule) -> io::Result<&'r SharedRule> {
    match rules.entry(One(rule)) {
        Entry::Occupied(entry) => Ok(entry.into_mut()),
        Entry::Vacant(entry) => {
            let explanation = rule.index.map(|_| serde_json::to_string(&rule.describe())).transpose()?;
            Ok(entry.insert(SharedRule { object: inside(rule)?, explanation }))
        }
    }
}

/// As an object that is the value of a flow's field.
fn inside(value: &impl Serialize) -> io::Result<String> {
    // a line break within a string is written as `\n`, so these are between fields
    Ok(serde_json::to_string_pretty(value)?.replace('\n', "\n    "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use netpol_common::{tables::IfIndex, wire::Protocol};

    use super::*;
    use crate::{
        datapath::{Drop, Generation, Record},
        observe::{
            Reader,
            scene::{DB, OUTSIDE, UPLINK, WEB, answered, asked, audited, denial, names, record, reply},
        },
    };

    #[test]
    fn document_is_the_one_of_serde_json() {
        let mut names = names();
        names.endpoints[0].labels.insert("a\"b".into(), "c\n\u{7}d\u{e9}".into());
        names.endpoints[1].labels.clear();
        names.rules[1].namespace = None;
        names.rules[1].source = "we\"ird\n.yaml:3".into();
        let reader = Reader::new(names.into());
        let plain = record(WEB, DB, 5);
        let v6 = |text: &str| text.parse().unwrap();
        let records = [
            plain,
            reply(DB, WEB, 4),
            denial(WEB, DB, 3),
            denial(OUTSIDE, DB, 1 << 50),
            audited(WEB, DB, 2),
            asked(WEB, 5),
            answered(WEB, 4),
            Record { denied: Some(Drop::Spoofed), ..plain },
            Record { generation: Generation(1), ..plain },
            Record { protocol: Protocol::UDP, idle: Duration::from_micros(1_234_567), ..plain },
            Record { protocol: Protocol::ICMP, destination_port: 0x0800, ..plain },
            Record { protocol: Protocol(99), interface: UPLINK, ..plain },
            Record { source: v6("fd00::1"), destination: v6("fd00::2"), interface: IfIndex(77), ..plain },
            Record { tcp_flags: 0, idle: Duration::from_secs(1 << 40), ..plain },
        ];
        let now = UNIX_EPOCH + Duration::from_millis(1_772_368_200_250);
        let flows: Vec<_> = records.iter().map(|record| reader.flow(record, now)).collect();
        for count in [0, 1, flows.len()] {
            // what is shared is made at the first, and used at the second
            let twice: Vec<_> = flows[..count].iter().chain(&flows[..count]).cloned().collect();
            let mut document = vec![];
            let mut writing = Document::new(&mut document);
            twice.iter().for_each(|flow| writing.flow(flow).expect("memory"));
            writing.finish().expect("memory");
            assert_eq!(String::from_utf8(document).expect("text"), serde_json::to_string_pretty(&twice).expect("JSON"));
        }
    }

    #[test]
    fn long_document_is_written_in_parts_and_whole() {
        let reader = Reader::new(names().into());
        let flows: Vec<_> = (1..2000).map(|packets| reader.flow(&record(WEB, DB, packets), UNIX_EPOCH)).collect();
        let mut document = vec![];
        let mut writing = Document::new(&mut document);
        flows.iter().for_each(|flow| writing.flow(flow).expect("memory"));
        assert!(!writing.out.is_empty() && writing.ready.len() < CHUNK);
        writing.finish().expect("memory");
        assert_eq!(document, serde_json::to_vec_pretty(&flows).expect("JSON"));
    }
}
