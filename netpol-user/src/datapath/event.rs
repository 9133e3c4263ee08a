//! What an observer is told, read from its ring.

use std::time::Duration;

use netpol_common::{
    drops::Drop,
    event::{self, Head, Kind},
    flow::{FlowFlags, FlowKey, FlowValue, Place, Ticks},
    tables::IfIndex,
    wire::{Addr4, Addr6, Address},
};

use super::{
    Record, Side,
    records::{now, record},
};

/// A packet that was told about.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: Kind,
    /// Since it happened.
    pub age: Duration,
    /// Its flow, its denial, or what is known of a packet that no flow is about. Addresses are unspecified where it has none.
    pub record: Record,
    /// Of drops: the connection was allowed until now.
    pub was_known: bool,
    /// Of drops: how many more like it were not told since the one before.
    pub suppressed: u64,
    pub frame: Frame,
    pub(super) key: Key,
}

/// The frame of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub ethertype: u16,
    pub source: [u8; 6],
    pub destination: [u8; 6],
    /// Of the whole frame.
    pub length: u32,
    /// Its beginning, where that was asked for.
    pub bytes: Vec<u8>,
    /// It has an IP header that can be read.
    pub is_ip: bool,
}

/// What the tables know the flow by, with the keys that its other direction may have, the likelier first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key {
    V4(FlowKey<Addr4>, [FlowKey<Addr4>; 2]),
    V6(FlowKey<Addr6>, [FlowKey<Addr6>; 2]),
}

impl Event {
    /// `None`: of another version.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let head: Head = part(bytes, 0)?;
        match head.family {
            6 => Self::of::<Addr6>(bytes, Key::V6),
            _ => Self::of::<Addr4>(bytes, Key::V4),
        }
    }

    fn of<A: Address>(bytes: &[u8], wrap: fn(FlowKey<A>, [FlowKey<A>; 2]) -> Key) -> Option<Self>
    where
        event::Event<A>: aya::Pod,
    {
        let event::Event { head, key, value, .. } = part::<event::Event<A>>(bytes, 0)?;
        let kind = Kind::from_code(head.kind)?;
        let now = now();
        let age = Duration::from_nanos(u64::from(now.since(Ticks::from_nanos(head.time))) << 20);
        let reason = Drop::from_code(head.reason).filter(|_| kind == Kind::Drop);
        let record = record(&key, &value, (reason.is_some_and(Drop::is_denial), now));
        let captured = bytes.get(size_of::<event::Event<A>>()..).unwrap_or_default();
        Some(Self {
            kind,
            age,
            record: Record { denied: reason, idle: age, ..record },
            was_known: head.was_known != 0,
            suppressed: head.suppressed,
            frame: Frame {
                ethertype: u16::from_be(head.ethertype),
                source: head.source_mac.bytes(),
                destination: head.destination_mac.bytes(),
                length: head.length,
                bytes: captured[..captured.len().min(head.captured as usize)].to_vec(),
                is_ip: head.family != 0 && !key.source.is_unspecified(),
            },
            key: wrap(key, others(&key, &value)),
        })
    }
}

/// Where the packets of the other direction may be remembered: at the other end's interface if that is here, on
/// the same side, else at this one, on the other side.
fn others<A: Address>(key: &FlowKey<A>, value: &FlowValue<A>) -> [FlowKey<A>; 2] {
    let leaving = if value.word.flags().has(FlowFlags::TRANSLATED) { key.rewritten(&value.becomes(key)) } else { *key };
    let (side, other) = match key.place.side() {
        Side::From => (Side::From, Side::To),
        Side::To => (Side::To, Side::From),
    };
    let here = leaving.reversed(Place::new(key.place.ifindex(), other));
    let there = leaving.reversed(Place::new(value.ifindex, side));
    if value.ifindex == IfIndex::NONE { [here, there] } else { [there, here] }
}

/// A structure that lies in these bytes.
fn part<T: aya::Pod>(bytes: &[u8], at: usize) -> Option<T> {
    let bytes = bytes.get(at..at + size_of::<T>())?;
    // SAFETY: there are as many bytes, and any are a valid Pod.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
