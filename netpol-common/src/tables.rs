//! The policy tables that the loader fills and the slow path reads.
//!
//! Each table exists twice (two slots); the generation's lowest bit names the live one, so all of
//! them switch with one write. A verdict is found in this order:
//!
//! 1. [`AddressKey`] (exact), else the longest prefix: who are the two ends?
//! 2. [`PairKey`] with the peer's identity, else with [`Identity::ANY`]: which rule set?
//! 3. [`PortKey`]: an exact port that rules name.
//! 4. The rule set's [`Range`]s in order: everything else that rules can say.
//! 5. The pair's own [`PairValue::otherwise`].

use crate::wire::{Addr4, Addr6, Address, MacWords, Protocol};

/// A class of (endpoint, address) pairs that the loaded policies can't tell apart. Numbers mean
/// something only within one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Identity(pub u32);

impl Identity {
    /// As a peer in a [`PairKey`]: whoever has no entry of their own.
    pub const ANY: Self = Self(0);
    /// The host that the containers run on, at an address that no rule mentions.
    pub const HOST: Self = Self(1);
    /// Every outside address that no rule mentions.
    pub const WORLD: Self = Self(2);
    /// The first number that a snapshot gives away itself.
    pub const FIRST: Self = Self(16);
}

/// An interface's number in the network namespace of the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct IfIndex(pub u32);

impl IfIndex {
    /// Of packets that no interface received: the host's own. Of addresses: not behind a hook.
    pub const NONE: Self = Self(0);
}

/// Which addresses see each other. Endpoints whose address is unique are in [`Network::SHARED`];
/// where bridges reuse addresses, each bridge has a network of its own, asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Network(pub u32);

impl Network {
    pub const SHARED: Self = Self(0);
}

/// A rule by its number in the generation's list of names; 0 means no rule (a default).
///
/// Numbers must fit in 24 bits: flow entries keep three bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct RuleId(pub u32);

impl RuleId {
    pub const NONE: Self = Self(0);
    pub const MAX: Self = Self(0xff_ffff);
}

/// A verdict together with the rule that gives it: bit 31 is set for allow, bits 0-23 are the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Ruling(pub u32);

impl Ruling {
    const ALLOWED: u32 = 1 << 31;

    #[inline(always)]
    pub const fn allow(rule: RuleId) -> Self {
        Self(rule.0 & RuleId::MAX.0 | Self::ALLOWED)
    }

    #[inline(always)]
    pub const fn deny(rule: RuleId) -> Self {
        Self(rule.0 & RuleId::MAX.0)
    }

    #[inline(always)]
    pub const fn is_allowed(self) -> bool {
        self.0 & Self::ALLOWED != 0
    }

    #[inline(always)]
    pub const fn rule(self) -> RuleId {
        RuleId(self.0 & RuleId::MAX.0)
    }
}

/// A direction of an identity: `identity << 1 | direction`, egress 0, ingress 1; and the highest bit: see
/// [`Subject::audited`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Subject(pub u32);

impl Subject {
    #[inline(always)]
    pub const fn egress(of: Identity) -> Self {
        Self(of.0 << 1)
    }

    #[inline(always)]
    pub const fn ingress(of: Identity) -> Self {
        Self(of.0 << 1 | 1)
    }

    /// The same, if the audited policies were enforced, too. No identity is so large that it has this bit.
    #[inline(always)]
    pub const fn audited(self) -> Self {
        Self(self.0 | 1 << 31)
    }
}

/// A set of rules for ports that one or more pairs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct RulesetId(pub u32);

impl RulesetId {
    /// Of pairs whose rules name no port: there is nothing to look up.
    pub const NONE: Self = Self(0);
}

pod! {
    /// Key of an exact address.
    pub struct AddressKey<A: Address> {
        pub network: Network,
        pub address: A,
    }

    /// Who is behind an exact address.
    pub struct AddressValue {
        pub identity: Identity,
        /// The host end of the endpoint's veth; [`IfIndex::NONE`] for an address of the host.
        pub ifindex: IfIndex,
        /// Endpoints with the same number other than 0 may be delivered to directly: their bridge
        /// would forward between them and nothing on the way would have a say.
        pub segment: u32,
        /// The endpoint's own MAC address.
        pub mac: MacWords,
        pub flags: AddressFlags,
    }

    /// What the loader knows about the interface that a hook is on.
    pub struct HookValue {
        /// Asked before [`Network::SHARED`]; the same where no address of the network repeats.
        pub network: Network,
        /// The bridge that the interface is a port of; [`IfIndex::NONE`] when routed.
        pub master: IfIndex,
        /// As in [`AddressValue::segment`].
        pub segment: u32,
        /// MAC address of the endpoint.
        pub mac: MacWords,
        /// MAC address of the endpoint's next hop: the bridge, or the host end of what is routed.
        pub host_mac: MacWords,
        pub flags: AddressFlags,
        /// What [`AddressValue`] says of the endpoint's first IPv4 address: most of what it sends is from there.
        pub flags4: AddressFlags,
        /// Packets to a group tell no address: it is for this one ([`Identity::ANY`]: it has none).
        pub identity4: Identity,
        /// Unspecified: it has none.
        pub address4: Addr4,
        /// The same for IPv6.
        pub address6: Addr6,
        pub identity6: Identity,
        pub flags6: AddressFlags,
        pub reserved: u16,
    }

    /// Key of the rule set that holds between a subject and a peer.
    pub struct PairKey {
        pub subject: Subject,
        pub peer: Identity,
    }

    pub struct PairValue {
        /// Whose [`PortKey`]s count; pairs with the same ports share it.
        pub ruleset: RulesetId,
        /// Index of the first [`Range`].
        pub first: u32,
        /// How many ranges there are, at most [`MAX_RANGES`].
        pub count: u32,
        /// When neither an exact port nor a range matches.
        pub otherwise: Ruling,
    }

    /// Key of a port that rules name. It is asked before the ranges.
    pub struct PortKey {
        pub ruleset: RulesetId,
        /// Host byte order. For ICMP: type in the high byte, code in the low one. Protocols without
        /// ports count as 0.
        pub port: u16,
        pub protocol: Protocol,
        pub reserved: u8,
    }

    /// One entry of a rule set's ordered list; all conditions must hold.
    pub struct Range {
        /// Host byte order, both ends included. For ICMP: type in the high byte, code in the low one.
        /// Protocols without ports count as 0.
        pub destination: [u16; 2],
        /// Host byte order, both ends included; 0 for ICMP and protocols without ports.
        pub source: [u16; 2],
        pub protocol: Protocol,
        pub reserved: [u8; 3],
        pub ruling: Ruling,
    }
}

impl HookValue {
    /// Of an interface that nothing passes: no address is behind it, and no frame has its MAC address.
    pub const NOBODY: Self = Self {
        network: Network::SHARED,
        master: IfIndex::NONE,
        segment: 0,
        mac: MacWords::ZERO,
        host_mac: MacWords::ZERO,
        flags: AddressFlags::ISOLATED_EGRESS.with(AddressFlags::ISOLATED_INGRESS),
        flags4: AddressFlags(0),
        identity4: Identity::ANY,
        address4: Addr4::UNSPECIFIED,
        address6: Addr6::UNSPECIFIED,
        identity6: Identity::ANY,
        flags6: AddressFlags(0),
        reserved: 0,
    };

    /// What [`AddressValue`] says of the endpoint's first address of a family, and that address. `None`: it has none.
    #[inline(always)]
    pub fn own<A: Address>(&self, ifindex: IfIndex) -> Option<(A, AddressValue)> {
        let (identity, flags) =
            if A::BITS == Addr4::BITS { (self.identity4, self.flags4) } else { (self.identity6, self.flags6) };
        let value = AddressValue { identity, ifindex, segment: self.segment, mac: self.mac, flags };
        let address = A::of_family(self.address4, self.address6);
        (!address.is_unspecified()).then_some((address, value))
    }

    /// The interface that the host routes from what this one sends: the bridge's, where it is a port of one.
    #[inline(always)]
    pub fn router(&self, own: IfIndex) -> IfIndex {
        if self.master == IfIndex::NONE { own } else { self.master }
    }
}

const _: () = {
    let () = AddressKey::<crate::wire::Addr4>::NO_PADDING;
    let () = AddressKey::<crate::wire::Addr6>::NO_PADDING;
    let () = AddressValue::NO_PADDING;
    let () = HookValue::NO_PADDING;
    let () = PairKey::NO_PADDING;
    let () = PairValue::NO_PADDING;
    let () = PortKey::NO_PADDING;
    let () = Range::NO_PADDING;
    assert!(size_of::<AddressValue>() == 20);
    assert!(size_of::<HookValue>() == 60);
    assert!(size_of::<Range>() == 16);
};

/// The longest list that the slow path walks: a longer one is an error at load.
pub const MAX_RANGES: u32 = 64;

/// Bits of [`AddressValue::flags`] and [`HookValue::flags`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct AddressFlags(pub u16);

impl AddressFlags {
    /// Some policy is about the endpoint's ingress: nothing unknown reaches it.
    pub const ISOLATED_INGRESS: Self = Self(1);
    /// Some policy is about the endpoint's egress.
    pub const ISOLATED_EGRESS: Self = Self(1 << 1);
    /// An address of the host itself.
    pub const HOST: Self = Self(1 << 2);
    /// The bridge port is isolated: two such ports don't forward to each other.
    pub const PORT_ISOLATED: Self = Self(1 << 3);
    /// Routed: the host end is no bridge port, and forwarding between two such endpoints is the
    /// host's routing alone.
    pub const ROUTED: Self = Self(1 << 4);
    /// In a pool with `natOutgoing`: what it sends through an uplink to outside of all pools gets the uplink's
    /// address.
    pub const MASQUERADE: Self = Self(1 << 5);
    /// Some audited policy is about the endpoint's ingress: the slow path asks what it would say.
    pub const AUDIT_INGRESS: Self = Self(1 << 6);
    /// Some audited policy is about the endpoint's egress.
    pub const AUDIT_EGRESS: Self = Self(1 << 7);
    /// Between it and the uplinks is the host's routing alone: nothing else on the way has a say.
    pub const OUTWARD: Self = Self(1 << 8);
}

bits!(AddressFlags);

#[cfg(feature = "user")]
mod user {
    use super::{Identity, Ruling};

    // SAFETY: repr(transparent) over an integer.
    unsafe impl aya::Pod for Identity {}
    // SAFETY: repr(transparent) over an integer.
    unsafe impl aya::Pod for Ruling {}
}
