//! Why packets are dropped: each reason with its name, its counter and its explanation, stated once.

/// Declares the reasons as one table.
macro_rules! drops {
    ($($(#[$meta:meta])* $variant:ident = $code:literal, $name:literal, $text:literal;)*) => {
        /// Why a packet goes no further. The code is its index among the drop counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Drop { $($(#[$meta])* $variant = $code),* }

        impl Drop {
            /// All reasons, in the order of their codes.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name that counters, events and documents use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// One sentence for people.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

drops! {
    PolicyEgress = 0, "policy-egress", "the egress policy of the source does not allow it";
    PolicyIngress = 1, "policy-ingress", "the ingress policy of the destination does not allow it";
    Spoofed = 2, "spoofed", "the source address or MAC does not belong to where the packet came from";
    NotForEndpoint = 3, "not-for-endpoint", "the destination address is not one of the endpoint's own";
    Malformed = 4, "malformed", "a header is cut short or contradicts itself";
    Ethertype = 5, "ethertype", "an EtherType that the policy cannot judge";
    Vlan = 6, "vlan", "a VLAN tag on a workload's interface";
    Arp = 7, "arp-spoofed", "an ARP message that claims another's address";
    NeighbourDiscovery = 8, "nd-spoofed", "a neighbour advertisement or solicitation that claims another's address";
    RouterAdvertisement = 9, "router-advertisement", "a router advertisement or redirect from a workload";
    DhcpServer = 10, "dhcp-server", "a DHCP server's message from a workload";
    Fragment = 11, "fragment", "a fragment whose first fragment was not seen, or one that overlaps the header";
    ExtensionHeaders = 12, "extension-headers", "an IPv6 extension header chain that cannot be followed, or source routing";
    TcpFlags = 13, "tcp-flags", "a combination of TCP flags that no connection has";
    IcmpUnrelated = 14, "icmp-unrelated", "an ICMP error about a packet that was never sent or no longer may be";
    NoPolicy = 15, "no-policy", "the tables have no entry for an isolated endpoint";
    FlowTable = 16, "flow-table", "there is no table to remember the connection in";
    Rate = 17, "rate", "the endpoint opens new connections faster than its limit";
    Delivery = 18, "delivery", "the kernel refused to deliver the packet directly";
    Translation = 19, "translation", "no room or no free port for one more translated connection, or the packet would pass for one of another";
    NoBackend = 20, "no-backend", "the service has no backend, or no longer the one that the connection is with";
}

impl Drop {
    /// `None` for a code that no reason has.
    #[inline(always)]
    pub const fn from_code(code: u8) -> Option<Self> {
        if code >= Self::ALL.len() as u8 {
            return None;
        }
        // SAFETY: the codes are 0..ALL.len() without a gap (a test counts them).
        Some(unsafe { core::mem::transmute::<u8, Self>(code) })
    }
}

/// Where a packet that was not dropped went. The code is its index among the pass counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Pass {
    /// Allowed, left to the host's bridge or routing.
    Stack = 0,
    /// Allowed, put directly into the destination's namespace.
    Direct = 1,
    /// Allowed, routed directly into the destination's namespace.
    Routed = 2,
    /// ARP, neighbour discovery, DHCP requests: what a link needs, guarded but not judged by policy.
    Control = 3,
    /// Not understood, and the endpoint is not isolated.
    Unjudged = 4,
    /// The interface is attached but no publication has named it yet.
    Waiting = 5,
    /// Allowed where it was sent, a moment ago.
    Vouched = 6,
    /// Allowed, routed directly out of an uplink.
    Out = 7,
}

impl Pass {
    pub const ALL: &[Self] = &[
        Self::Stack,
        Self::Direct,
        Self::Routed,
        Self::Control,
        Self::Unjudged,
        Self::Waiting,
        Self::Vouched,
        Self::Out,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Stack => "stack",
            Self::Direct => "direct",
            Self::Routed => "routed",
            Self::Control => "control",
            Self::Unjudged => "unjudged",
            Self::Waiting => "waiting",
            Self::Vouched => "vouched",
            Self::Out => "out",
        }
    }
}

/// Which way a packet passes a workload's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    /// TC ingress of the host end: what the workload sends.
    From = 0,
    /// TC egress of the host end: what reaches the workload.
    To = 1,
}

impl Side {
    #[inline(always)]
    pub const fn opposite(self) -> Self {
        match self {
            Self::From => Self::To,
            Self::To => Self::From,
        }
    }
}

/// What became of one packet.
pub type Verdict = Result<Pass, Drop>;

/// Passes come first, then drops, each once per [`Side`].
pub const COUNTERS: u32 = 2 * (PASSES + 32);
const PASSES: u32 = 8;

/// A verdict as one number, below [`COUNTERS`] / 2.
#[inline(always)]
pub const fn verdict_code(verdict: Verdict) -> u32 {
    match verdict {
        Ok(pass) => pass as u32,
        Err(drop) => PASSES + drop as u32,
    }
}

/// Whether a [`verdict_code`] is a drop's.
#[inline(always)]
pub const fn is_drop(code: u32) -> bool {
    code >= PASSES
}

/// The code of what passes, and audited policies would have stopped for `reason`: besides the verdict's own.
/// ([`Drop::PolicyEgress`] and [`Drop::PolicyIngress`] are the first two.)
#[inline(always)]
pub const fn audit_code(reason: Drop) -> u32 {
    PASSES + 30 + (reason as u32 & 1)
}

/// The counter of a [`verdict_code`]: an index below [`COUNTERS`].
#[inline(always)]
pub const fn counter(side: Side, code: u32) -> u32 {
    code << 1 | side as u32
}

pod! {
    /// One counter, per CPU.
    pub struct Count {
        /// GSO packets count as their segments.
        pub packets: u64,
        /// Of the frames as they passed the hook, Ethernet header included.
        pub bytes: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_its_position() {
        for (position, drop) in Drop::ALL.iter().enumerate() {
            assert_eq!(position, *drop as usize);
            assert_eq!(Drop::from_code(position as u8), Some(*drop));
        }
    }

    #[test]
    fn no_two_verdicts_share_a_counter() {
        let mut seen = [false; COUNTERS as usize];
        for side in [Side::From, Side::To] {
            let passes = Pass::ALL.iter().map(|pass| Ok(*pass));
            let drops = Drop::ALL.iter().map(|drop| Err(*drop));
            let audited = [Drop::PolicyEgress, Drop::PolicyIngress].map(audit_code);
            for code in passes.chain(drops).map(verdict_code).chain(audited) {
                let index = counter(side, code) as usize;
                assert!(!seen[index]);
                seen[index] = true;
            }
        }
    }
}
