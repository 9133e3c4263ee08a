//! A flow, as scripts see it: names, verdict, rule and counters of one record, all of it borrowed.
//!
//! There may be a million of them, so making one allocates nothing; words are made where they are
//! written.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use netpol_common::{parse::tcp, wire::Protocol};
use serde::{Serialize, Serializer};

use super::clock;
use crate::{
    datapath::Drop,
    model::{Labels, Opening, explain::Service},
    state::{self, Rule},
};

/// One direction of a connection at one place, or a denial.
#[derive(Clone, Debug, Serialize)]
pub struct Flow<'a> {
    /// Of the last packet, in RFC 3339's form.
    #[serde(serialize_with = "clock::serialize")]
    pub time: SystemTime,
    pub verdict: &'static str,
    pub drop_reason: Option<&'static str>,
    pub source: Peer<'a>,
    pub destination: Peer<'a>,
    #[serde(serialize_with = "in_words")]
    pub protocol: Protocol,
    /// `egress`: seen where it leaves the source; `ingress`: where it reaches the destination.
    pub direction: &'static str,
    pub is_reply: bool,
    /// The rule that decided; `null` where no policy had a say.
    pub rule: Option<&'a Rule>,
    /// `null` also where an audited rule stands in its place: see `audit_rule`.
    pub egress_rule: Option<&'a Rule>,
    pub ingress_rule: Option<&'a Rule>,
    /// The rule in words, as every output says it.
    #[serde(serialize_with = "in_words")]
    pub explanation: Explanation<'a>,
    /// It passes, and audited policies would drop it for this reason.
    pub would_drop: Option<&'static str>,
    /// The rule that would, and in words.
    pub audit_rule: Option<&'a Rule>,
    #[serde(serialize_with = "in_words_or_null")]
    pub audit_explanation: Option<Explanation<'a>>,
    pub packets: u64,
    pub bytes: u64,
    /// Since the last packet.
    pub idle_seconds: f64,
    /// The flags seen in this direction, for TCP.
    #[serde(serialize_with = "in_words_or_null")]
    pub tcp_flags: Option<TcpFlags>,
    pub delivery: &'static str,
    /// The verdict is of the policy that is enforced now.
    pub current: bool,
    #[serde(serialize_with = "in_words")]
    pub interface: Interface<'a>,
    /// The packet as it leaves the hook; `null` where it is as it came.
    pub translated: Option<Leaving>,
    /// The port of a service that it is about: `namespace/name:port`.
    #[serde(serialize_with = "in_words_or_null")]
    pub service: Option<ServiceName<'a>>,
}

/// The ends that a packet is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Leaving {
    #[serde(serialize_with = "in_words")]
    pub source: Place,
    #[serde(serialize_with = "in_words")]
    pub destination: Place,
}

/// `address:port`, or the address alone for protocols without ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

/// `namespace/name:port`
#[derive(Clone, Copy, Debug)]
pub struct ServiceName<'a>(pub &'a state::Service);

impl fmt::Display for ServiceName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state::Service { namespace, name, port, .. } = self.0;
        write!(f, "{namespace}/{name}:{port}")
    }
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peer<'a> {
    pub namespace: Option<&'a str>,
    pub name: Option<&'a str>,
    pub labels: &'a Labels,
    pub identity: Option<u32>,
    pub address: IpAddr,
    /// `null` for protocols without ports.
    pub port: Option<u16>,
}

/// The labels of whoever is no endpoint.
pub static NO_LABELS: Labels = BTreeMap::new();

impl Peer<'_> {
    /// `namespace/name`, else the address, with the port.
    pub fn describe(&self) -> String {
        match (self.port, self.name, self.address) {
            (None, ..) => self.who().to_string(),
            (Some(port), None, IpAddr::V6(address)) => format!("[{address}]:{port}"),
            (Some(port), ..) => format!("{}:{port}", self.who()),
        }
    }

    /// `namespace/name`, else the address.
    pub fn who(&self) -> Who<'_> {
        Who(self)
    }
}

/// See [`Peer::who`].
pub struct Who<'a>(&'a Peer<'a>);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.namespace, self.0.name) {
            (Some(namespace), Some(name)) => write!(f, "{namespace}/{name}"),
            _ => self.0.address.fmt(f),
        }
    }
}

/// Why the verdict is what it is.
#[derive(Clone, Copy, Debug)]
pub struct Explanation<'a> {
    pub cause: Cause<'a>,
    /// What was judged: the connection in the direction in which it was opened.
    pub opening: Opening,
    pub from: Peer<'a>,
    pub to: Peer<'a>,
}

/// Where a verdict comes from.
#[derive(Clone, Copy, Debug)]
pub enum Cause<'a> {
    Rule(&'a Rule),
    /// No policy is about either end, in its direction.
    NoPolicy,
    /// A policy that is enforced allows it; the rule is not remembered beside the audited one.
    Unsaid,
    /// Dropped for another reason than policy.
    Reason(Drop),
    /// The verdict is of a policy that is no longer enforced; the next packet is judged anew.
    Earlier {
        generation: u32,
    },
    /// The file of names is lost.
    Nameless {
        rule: u32,
    },
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Rule(rule) => {
                let (word, peer) = if rule.direction == "egress" { ("to", &self.to) } else { ("from", &self.from) };
                rule.explain(f, format_args!("{} {word} {}", Service(self.opening), peer.who()))
            }
            Cause::NoPolicy => f.write_str("no policy"),
            Cause::Unsaid => f.write_str("a policy that is enforced"),
            Cause::Reason(reason) => f.write_str(reason.explanation()),
            Cause::Earlier { generation } => write!(f, "a policy of before (generation {generation})"),
            Cause::Nameless { rule } => write!(f, "rule {rule}, whose name is lost; run `netpol load` again"),
        }
    }
}

/// All flags seen so far (RFC 9293 section 3.1), as `SYN,ACK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN or RST: this may have been the last packet of all.
    pub const fn ended(self) -> bool {
        self.0 & (tcp::FIN | tcp::RST) != 0
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let seen = NAMES.iter().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0);
        seen.enumerate().try_for_each(|(place, (_, name))| write!(f, "{}{name}", if place > 0 { "," } else { "" }))
    }
}

/// An interface by name, where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface<'a> {
    Named(&'a str),
    Number(u32),
}

impl fmt::Display for Interface<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Number(number) => write!(f, "#{number}"),
        }
    }
}

fn in_words<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn in_words_or_null<T: fmt::Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
