//! Translated connections: a pair of entries in a plain hash, one for each direction.
//!
//! ```text
//! original   c:1000 -> v:80    becomes    c':2000 -> b:8080
//! reply      b:8080 -> c':2000 becomes    v:80    -> c:1000      the claim: nobody else may have this key
//! ```
//!
//! Flow entries repeat what is here; they may be evicted, these may not. An entry goes when neither direction was
//! seen for long enough, which a timer of the kernel's looks after.

use crate::{
    flow::{FlowKey, KeyProtocol, PortPair, Rewrite, Ticks, seconds},
    parse::tcp,
    tables::Network,
    wire::{Addr4, Addr6, Address, PortBe, Protocol},
};

pod! {
    /// Packets, at the hooks that translate them.
    pub struct NatKey<A: Address> {
        pub source: A,
        pub destination: A,
        pub ports: PortPair,
        pub zone: Zone,
        pub protocol: KeyProtocol,
    }

    /// What becomes of them.
    pub struct Translation<A: Address> {
        pub rewrite: Rewrite<A>,
        /// As in [`ServiceValue::service`](crate::service::ServiceValue::service); 0: masqueraded.
        pub service: u32,
        /// The last look at either direction.
        pub seen: Ticks,
        pub state: NatState,
        /// Of the key: an element can be given to another while a program on another CPU reads it.
        pub tag: u32,
    }
}

const _: () = {
    let () = NatKey::<Addr4>::NO_PADDING;
    let () = NatKey::<Addr6>::NO_PADDING;
    let () = Translation::<Addr4>::NO_PADDING;
    let () = Translation::<Addr6>::NO_PADDING;
};

/// Where addresses mean the same: a workload's network, or the uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Zone(pub u32);

impl Zone {
    pub const UPLINKS: Self = Self(1 << 31);

    #[inline(always)]
    pub const fn of(network: Network) -> Self {
        Self(network.0)
    }
}

/// Of a connection. 0: there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct NatState(pub u32);

bits!(NatState);

impl NatState {
    pub const NOTHING: Self = Self(0);
    pub const EXISTS: Self = Self(1);
    /// This half is about the replies.
    pub const REPLY: Self = Self(1 << 1);
    /// TCP: a FIN or RST was seen.
    pub const CLOSING: Self = Self(1 << 2);
    /// Both directions were seen.
    pub const ANSWERED: Self = Self(1 << 3);

    /// Answered, and at no end yet.
    #[inline(always)]
    pub const fn is_established(self) -> bool {
        self.0 & (Self::ANSWERED.0 | Self::CLOSING.0) == Self::ANSWERED.0
    }

    /// The state of a half when its connection is in another: which half it is stays.
    #[inline(always)]
    pub const fn moved(self, to: Self) -> Self {
        const OF_BOTH: u32 = NatState::CLOSING.0 | NatState::ANSWERED.0;
        Self(self.0 & !OF_BOTH | to.0 & OF_BOTH)
    }

    /// The state after a packet with these flags: a SYN begins anew.
    #[inline(always)]
    pub const fn after(self, tcp_flags: u8, is_reply: bool) -> Self {
        let kept = if tcp_flags & tcp::SYN != 0 { Self(self.0 & !Self::CLOSING.0) } else { self };
        let kept = if tcp_flags & (tcp::FIN | tcp::RST) != 0 { kept.with(Self::CLOSING) } else { kept };
        if is_reply { kept.with(Self::ANSWERED) } else { kept }
    }
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Claim {
    Made,
    /// Somebody has the key.
    Taken,
    /// There is no room.
    Full,
}

impl<A: Address> NatKey<A> {
    #[inline(always)]
    pub fn of(key: &FlowKey<A>, zone: Zone) -> Self {
        let FlowKey { source, destination, ports, protocol, .. } = *key;
        Self { source, destination, ports, zone, protocol }
    }

    /// The key of the answers to packets that leave like this.
    #[inline(always)]
    pub fn reply(sent: &Rewrite<A>, protocol: KeyProtocol, zone: Zone) -> Self {
        let Rewrite { source, destination, ports } = sent.reversed();
        Self { source, destination, ports, zone, protocol: protocol.reversed() }
    }

    #[inline(always)]
    pub fn rewrite(&self) -> Rewrite<A> {
        Rewrite { source: self.source, destination: self.destination, ports: self.ports }
    }

    /// Not 0.
    #[inline(always)]
    pub fn tag(&self) -> u32 {
        let ends = u64::from(self.source.fold()) << 32 | u64::from(self.destination.fold());
        let mixed =
            ends ^ u64::from(self.zone.0) << 32 ^ u64::from(self.ports.word()) ^ u64::from(self.protocol.word()) << 40;
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 | 1
    }
}

impl<A: Address> Translation<A> {
    pub const NOTHING: Self =
        Self { rewrite: Rewrite::NONE, service: 0, seen: Ticks(0), state: NatState::NOTHING, tag: 0 };

    #[inline(always)]
    pub const fn exists(&self) -> bool {
        self.state.0 != 0
    }

    #[inline(always)]
    pub const fn is_reply(&self) -> bool {
        self.state.has(NatState::REPLY)
    }

    /// There is one, of the direction in which the connection was opened.
    #[inline(always)]
    pub const fn is_original(&self) -> bool {
        self.state.0 & (NatState::EXISTS.0 | NatState::REPLY.0) == NatState::EXISTS.0
    }
}

/// How long a silent translation is kept. The looks of the slow path, which renew it, are five seconds apart.
#[inline(always)]
pub const fn patience(protocol: Protocol, state: NatState) -> u32 {
    match protocol {
        // RFC 5382 section 5 asks for 2 hours and 4 minutes at least, and 4 minutes for what opens or closes
        Protocol::TCP if state.has(NatState::CLOSING) => seconds(120),
        Protocol::TCP if !state.has(NatState::ANSWERED) => seconds(240),
        Protocol::TCP => seconds(7_500),
        // RFC 4787 section 4.3: 2 minutes at least; RFC 5508 section 3.2: 60 seconds
        Protocol::UDP if !state.has(NatState::ANSWERED) => seconds(120),
        Protocol::UDP => seconds(300),
        Protocol::ICMP | Protocol::ICMPV6 => seconds(60),
        _ => seconds(600),
    }
}

/// The half of the replies goes last, at least one look of the timer after the other: a packet between the two finds it, and
/// makes the pair whole. An original without it would let others claim its answers.
const REPLY_STAYS: u32 = seconds(30);

/// Whether half a translation has been silent for too long.
#[inline(always)]
pub const fn is_expired<A: Address>(key: &NatKey<A>, half: &Translation<A>, now: Ticks) -> bool {
    let more = if half.is_reply() { REPLY_STAYS } else { 0 };
    now.since(half.seen) > patience(key.protocol.protocol(), half.state) + more
}

/// How often another port is tried where the client's own is taken.
pub const ATTEMPTS: u32 = 16;

/// A port for a client whose own is taken: not one of the well-known ones (RFC 6335 section 6).
#[inline(always)]
pub const fn another_port(random: u32) -> PortBe {
    const FIRST: u32 = 1024;
    PortBe::from_host((FIRST + ((random as u64 * (65_536 - FIRST) as u64) >> 32) as u32) as u16)
}

/// The client's port of packets in the original direction: of ICMP questions the identifier.
#[inline(always)]
pub const fn with_client_port(ports: PortPair, port: PortBe) -> PortPair {
    PortPair::new(port, ports.destination())
}
