//! What the classifiers tell those who observe, and when they do not: the layout of events, leases of observers, and
//! the limits that keep a flood of drops from hiding another one.
//!
//! Nothing is told without a lease that somebody renews. What an established packet meets is not told at all.

use crate::{
    drops::Drop,
    flow::{FlowKey, FlowValue, PortPair, Ticks},
    tables::IfIndex,
    wire::{Address, MacWords, PortBe},
};

/// How many observers there may be at once.
pub const OBSERVERS: u32 = 8;

/// How much of a frame an event can carry: headers of any kind, and some of what they carry.
pub const SNAP: usize = 256;

/// How many frames were not told, per CPU: by observer those that its ring had no room for, then those that
/// the limits kept back.
pub const UNTOLD: u32 = OBSERVERS + 1;
/// The place of those that the limits kept back.
pub const SUPPRESSED: u32 = OBSERVERS;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The first packet of a connection was judged, allowed and remembered.
    New = 0,
    /// A packet was dropped.
    Drop = 1,
    /// The first FIN or RST of a direction was seen.
    Closing = 2,
}

impl Kind {
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::New,
            1 => Self::Drop,
            2 => Self::Closing,
            _ => return None,
        })
    }

    /// What an observer must want to hear of it.
    #[inline(always)]
    pub const fn wanted(self) -> Wants {
        Wants(1 << self as u8)
    }
}

/// What an observer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Wants(pub u8);

bits!(Wants);

impl Wants {
    pub const NOTHING: Self = Self(0);
    pub const NEW: Self = Kind::New.wanted();
    pub const DROP: Self = Kind::Drop.wanted();
    pub const CLOSING: Self = Kind::Closing.wanted();
    /// Frames, beside the events.
    pub const FRAMES: Self = Self(1 << 7);
}

/// Until when somebody observes, and what: one word, so that it is read and written whole. The time is that of the
/// monotonic clock in units of 2^20 ns (bits 8-63), what is wanted bits 0-7; 0: nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Lease(pub u64);

impl Lease {
    pub const NONE: Self = Self(0);

    #[inline(always)]
    pub const fn until(nanos: u64, wants: Wants) -> Self {
        Self((nanos >> 20) << 8 | wants.0 as u64)
    }

    #[inline(always)]
    pub const fn holds(self, now: u64) -> bool {
        self.0 >> 8 > now >> 20
    }

    #[inline(always)]
    pub const fn wants(self) -> Wants {
        Wants(self.0 as u8)
    }
}

/// Leases: the first element says until when anybody observes, the others are the observers'.
pub const LEASES: u32 = OBSERVERS + 1;

pod! {
    /// What an event begins with.
    pub struct Head {
        /// The coarse monotonic clock, in nanoseconds.
        pub time: u64,
        /// Of drops: how many more like this one were kept back since the last one that was told.
        pub suppressed: u64,
        /// Of the frame, in bytes.
        pub length: u32,
        /// So many of them follow, where the observer wants frames.
        pub captured: u32,
        /// A [`Kind`].
        pub kind: u8,
        /// Of a drop: its reason's code.
        pub reason: u8,
        /// The connection was known, and allowed until now.
        pub was_known: u8,
        /// 4 or 6: the key is the packet's, as far as it could be read. 0: it is not IP.
        pub family: u8,
        /// As in the frame: in network byte order.
        pub ethertype: u16,
        pub source_mac: MacWords,
        pub destination_mac: MacWords,
        pub reserved: [u16; 3],
    }

    /// An event about a packet: the flow's key and entry, as they are in the table of flows or of denials. Where there is
    /// none, the entry has what the packet itself tells.
    pub struct Event<A: Address> {
        pub head: Head,
        pub key: FlowKey<A>,
        pub reserved: u32,
        pub value: FlowValue<A>,
    }

    /// The same, and the beginning of the frame.
    pub struct Told<A: Address> {
        pub event: Event<A>,
        pub frame: [u8; SNAP],
    }

    /// What was told last of the drops that share this place of the table.
    pub struct Hush {
        pub tag: u32,
        pub told: Ticks,
        /// Kept back since.
        pub suppressed: u64,
    }

    /// How many drops of an interface were told in the present second or so.
    pub struct Ration {
        pub second: u32,
        pub told: u32,
    }
}

const _: () = {
    let () = Head::NO_PADDING;
    let () = Event::<crate::wire::Addr4>::NO_PADDING;
    let () = Event::<crate::wire::Addr6>::NO_PADDING;
    let () = Told::<crate::wire::Addr4>::NO_PADDING;
    let () = Told::<crate::wire::Addr6>::NO_PADDING;
    let () = Hush::NO_PADDING;
    let () = Ration::NO_PADDING;
    assert!(size_of::<Event<crate::wire::Addr4>>() == 144);
    assert!(size_of::<Event<crate::wire::Addr6>>() == 192);
};

impl Head {
    pub const EMPTY: Self = Self {
        time: 0,
        suppressed: 0,
        length: 0,
        captured: 0,
        kind: 0,
        reason: 0,
        was_known: 0,
        family: 0,
        ethertype: 0,
        source_mac: MacWords::ZERO,
        destination_mac: MacWords::ZERO,
        reserved: [0; 3],
    };
}

/// How many places [`Hush`] has: two kinds of drops share one seldom, and then both are told more often.
pub const HUSHES: u32 = 8192;

/// The same drop is told about once a second: 2^10 ticks.
const ONCE: u32 = 1 << 10;

/// How many drops of one interface are told in about a second, all kinds together: what one of them floods with leaves
/// room in the rings for the others'.
pub const RATION: u32 = 1000;
pub const RATIONS: u32 = 1024;

/// Which drops are the same to somebody who watches: those with the same ends and for the same reason, whatever the
/// sender's port, which is another one for each attempt.
#[inline(always)]
pub fn drop_tag<A: Address>(key: &FlowKey<A>, reason: u32) -> u32 {
    let ports =
        if key.protocol().has_ports() { PortPair::new(PortBe::ZERO, key.ports.destination()) } else { key.ports };
    let ends = u64::from(key.source.fold()) << 32 | u64::from(key.destination.fold());
    let mixed = ends ^ u64::from(key.place.0) << 32 ^ u64::from(ports.word()) ^ u64::from(key.protocol.word()) << 40;
    // Fibonacci hashing, twice: what differs in a few bits shall differ in the place as well
    let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29 ^ u64::from(reason) << 17).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // never 0, the mark of an unused place
    (mixed >> 32) as u32 | 1
}

impl Hush {
    pub const UNUSED: Self = Self { tag: 0, told: Ticks(0), suppressed: 0 };

    /// The place of a [`drop_tag`] in the table.
    #[inline(always)]
    pub const fn place(tag: u32) -> u32 {
        tag >> 1 & (HUSHES - 1)
    }

    /// Whether one more of these is kept back, because the last one was told a moment ago.
    #[inline(always)]
    pub const fn keeps_back(&self, tag: u32, now: Ticks) -> bool {
        self.tag == tag && now.since(self.told) < ONCE
    }

    /// How many were kept back since one of these was told; what others had here is nothing to them.
    #[inline(always)]
    pub const fn kept_back(&self, tag: u32) -> u64 {
        if self.tag == tag { self.suppressed } else { 0 }
    }
}

impl Ration {
    #[inline(always)]
    pub const fn place(interface: IfIndex) -> u32 {
        interface.0 & (RATIONS - 1)
    }

    /// After one more; `told` above [`RATION`]: too many.
    #[inline(always)]
    pub const fn after_one(self, now: Ticks) -> Self {
        let second = now.0 >> 10;
        if self.second != second {
            return Self { second, told: 1 };
        }
        let told = if self.told > RATION { self.told } else { self.told + 1 };
        Self { second, told }
    }
}

impl Drop {
    /// The reasons that are remembered in the table of denials, with the rule.
    #[inline(always)]
    pub const fn is_denial(self) -> bool {
        matches!(self, Self::PolicyEgress | Self::PolicyIngress)
    }
}

#[cfg(feature = "user")]
// SAFETY: repr(transparent) over an integer.
unsafe impl aya::Pod for Lease {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flow::Place,
        wire::{Addr4, Protocol},
    };

    fn key(source: u32, ports: (u16, u16)) -> FlowKey<Addr4> {
        FlowKey {
            source: Addr4(source),
            destination: Addr4(2),
            ports: PortPair::new(PortBe::from_host(ports.0), PortBe::from_host(ports.1)),
            place: Place(4),
            protocol: Protocol::TCP.into(),
        }
    }

    #[test]
    fn lease_holds_until_its_time_and_says_what_for() {
        let second = 1_000_000_000;
        let lease = Lease::until(10 * second, Wants::NEW.with(Wants::FRAMES));
        assert!(lease.holds(9 * second) && !lease.holds(10 * second));
        assert!(lease.wants().has(Wants::FRAMES) && !lease.wants().has(Wants::DROP));
        assert!(!Lease::NONE.holds(0));
    }

    #[test]
    fn attempts_from_other_ports_are_the_same_drop_and_nothing_else_is() {
        let tag = drop_tag(&key(1, (40_000, 80)), 1);
        assert_eq!(tag, drop_tag(&key(1, (40_001, 80)), 1));
        for other in
            [drop_tag(&key(1, (40_000, 81)), 1), drop_tag(&key(3, (40_000, 80)), 1), drop_tag(&key(1, (1, 80)), 0)]
        {
            assert_ne!(tag, other);
        }
    }

    #[test]
    fn few_of_many_different_drops_share_a_place() {
        let mut places = [0u8; HUSHES as usize];
        let mut shared = 0;
        for port in 1..=1000 {
            let place = &mut places[Hush::place(drop_tag(&key(7, (40_000, port)), 1)) as usize];
            shared += u32::from(*place > 0);
            *place = 1;
        }
        // by chance about 1000 * 1000 / 2 / 8192 of them
        assert!(shared < 120, "{shared}");
    }

    #[test]
    fn same_drop_is_told_once_a_second_and_another_one_at_once() {
        let tag = drop_tag(&key(1, (40_000, 80)), 1);
        let other = drop_tag(&key(1, (40_000, 81)), 1);
        let hush = Hush { tag, told: Ticks(5000), suppressed: 3 };
        assert!(!Hush::UNUSED.keeps_back(tag, Ticks(5000)));
        assert!(hush.keeps_back(tag, Ticks(5000 + ONCE - 1)) && !hush.keeps_back(tag, Ticks(5000 + ONCE)));
        assert!(!hush.keeps_back(other, Ticks(5001)));
        assert_eq!((hush.kept_back(tag), hush.kept_back(other)), (3, 0));
    }

    #[test]
    fn interface_has_a_ration_for_each_second() {
        let mut ration = Ration { second: 0, told: 0 };
        let mut told = 0;
        for _ in 0..5000 {
            ration = ration.after_one(Ticks(3 << 10));
            told += u32::from(ration.told <= RATION);
        }
        assert_eq!(told, RATION);
        assert_eq!(ration.after_one(Ticks(4 << 10)).told, 1);
    }
}
