//! Something that happened to a packet, with names.

use std::{fmt, sync::Arc, time::SystemTime};

use serde::{Serialize, Serializer};

use super::{
    flow::{Flow, TcpFlags},
    reader::Reader,
    tcp,
};
use crate::datapath::{Drop, Frame, Record};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A connection was judged, allowed and remembered.
    New,
    /// A packet was dropped.
    Drop,
    /// Both ends of a TCP connection have said that they send no more, or one broke it off.
    Closed,
    /// Nothing happened just now: a connection is remembered.
    Flow,
}

impl What {
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Drop => "drop",
            Self::Closed => "closed",
            Self::Flow => "flow",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Happening {
    pub kind: What,
    /// Now: the record says how long it is ago.
    pub now: SystemTime,
    pub reader: Arc<Reader>,
    /// Of a connection that has ended: the direction that opened it.
    pub record: Record,
    /// Of a connection that has ended: its other direction.
    pub reply: Option<Record>,
    /// Of drops: the connection was allowed until now.
    pub was_known: bool,
    /// Of drops: how many more like it were not told since the one before.
    pub suppressed: u64,
    /// `None`: it is only remembered.
    pub frame: Option<Frame>,
}

/// The same, as scripts see it.
#[derive(Debug, Serialize)]
pub struct Told<'a> {
    #[serde(rename = "type")]
    pub kind: What,
    #[serde(flatten)]
    pub flow: Flow<'a>,
    /// Whose interface it was seen at, whatever the addresses say.
    #[serde(serialize_with = "in_words_or_null")]
    pub at: Option<At<'a>>,
    /// Of drops: the connection was allowed until now.
    pub was_allowed: bool,
    /// Of drops: how many more like it were not told since the one before.
    pub suppressed: u64,
    /// Of what has ended.
    pub reply_packets: Option<u64>,
    pub reply_bytes: Option<u64>,
    pub reply_tcp_flags: Option<String>,
    pub tcp_state: Option<tcp::State>,
    pub frame: Option<Outside>,
}

/// `namespace/name`
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The outside of a frame.
#[derive(Clone, Debug, Serialize)]
pub struct Outside {
    pub ethertype: String,
    pub source_mac: String,
    pub destination_mac: String,
    pub length: u32,
}

impl Happening {
    pub fn flow(&self) -> Flow<'_> {
        self.reader.flow(&self.record, self.now)
    }

    /// The frame is no IP packet, or its header cannot be read: the flow has no addresses.
    pub fn is_ip(&self) -> bool {
        self.frame.as_ref().is_none_or(|frame| frame.is_ip)
    }

    /// What it is, where it is no IP packet: `ARP`, or the EtherType.
    pub fn ethertype(&self) -> Option<String> {
        let frame = self.frame.as_ref().filter(|frame| !frame.is_ip)?;
        if self.record.denied == Some(Drop::Vlan) {
            // the kernel may keep the tag beside the frame
            return Some("VLAN".to_owned());
        }
        Some(match frame.ethertype {
            0x0800 => "IPv4".to_owned(),
            0x0806 => "ARP".to_owned(),
            0x86dd => "IPv6".to_owned(),
            other => format!("ethertype 0x{other:04x}"),
        })
    }

    pub fn told(&self) -> Told<'_> {
        let at = self.reader.behind(self.record.interface);
        let at = at.map(|endpoint| At { namespace: &endpoint.namespace, name: &endpoint.name });
        let ended = self.kind == What::Closed;
        let reply = |count: fn(&Record) -> u64| ended.then(|| self.reply.as_ref().map_or(0, count));
        let reply_flags = self.reply.map_or(0, |reply| reply.tcp_flags);
        Told {
            kind: self.kind,
            flow: self.flow(),
            at,
            was_allowed: self.was_known,
            suppressed: self.suppressed,
            reply_packets: reply(|record| record.packets),
            reply_bytes: reply(|record| record.bytes),
            reply_tcp_flags: ended.then(|| TcpFlags(reply_flags).to_string()),
            tcp_state: ended.then(|| tcp::State::of(self.record.tcp_flags, reply_flags)),
            frame: self.frame.as_ref().map(|frame| Outside {
                ethertype: format!("0x{:04x}", frame.ethertype),
                source_mac: mac(frame.source),
                destination_mac: mac(frame.destination),
                length: frame.length,
            }),
        }
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn in_words_or_null<T: fmt::Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
