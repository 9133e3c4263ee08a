//! Addresses, ports and protocols as they are on the wire. The byte order is in the type.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An IP protocol number (IANA "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    pub const ICMP: Self = Self(1);
    pub const TCP: Self = Self(6);
    pub const UDP: Self = Self(17);
    pub const ICMPV6: Self = Self(58);
    pub const SCTP: Self = Self(132);
    pub const UDPLITE: Self = Self(136);

    /// Whether the first four bytes of its header are a source and a destination port.
    #[inline(always)]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP | Self::UDPLITE)
    }

    /// ICMP of either family: the policy sees type and code where others have a destination port.
    #[inline(always)]
    pub const fn is_icmp(self) -> bool {
        matches!(self, Self::ICMP | Self::ICMPV6)
    }

    /// `None` for a protocol without a common name.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::ICMP => "ICMP",
            Self::TCP => "TCP",
            Self::UDP => "UDP",
            Self::ICMPV6 => "ICMPv6",
            Self::SCTP => "SCTP",
            Self::UDPLITE => "UDPLite",
            _ => return None,
        })
    }
}

impl fmt::Display for Protocol {
    /// The common name, else the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

/// A port in network byte order, the way packets and flow keys carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct PortBe(pub u16);

impl PortBe {
    pub const ZERO: Self = Self(0);

    #[inline(always)]
    pub const fn from_host(port: u16) -> Self {
        Self(port.to_be())
    }

    #[inline(always)]
    pub const fn to_host(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// A MAC address.
pub type Mac = [u8; 6];

/// The same, as the three words that headers are compared by. (Of arrays the compiler makes one number of 48 bits each to
/// compare them, shift by shift, and to copy one, a loop over its bytes.)
#[derive(Clone, Copy, Debug, Eq)]
#[repr(C)]
pub struct MacWords(pub u16, pub u16, pub u16);

/// All words, whatever the first says: what differs is rare, and each branch costs.
impl PartialEq for MacWords {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        (self.0 ^ other.0) | (self.1 ^ other.1) | (self.2 ^ other.2) == 0
    }
}

impl core::hash::Hash for MacWords {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        (self.0, self.1, self.2).hash(state);
    }
}

impl MacWords {
    pub const ZERO: Self = Self(0, 0, 0);

    #[inline(always)]
    pub const fn new([a, b, c, d, e, f]: Mac) -> Self {
        Self(u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f]))
    }

    /// The reverse of [`MacWords::new`].
    pub const fn bytes(self) -> Mac {
        let ([a, b], [c, d], [e, f]) = (self.0.to_ne_bytes(), self.1.to_ne_bytes(), self.2.to_ne_bytes());
        [a, b, c, d, e, f]
    }

    /// Sent to a group: broadcast or multicast (IEEE 802, the first byte's lowest bit).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0.to_ne_bytes()[0] & 1 != 0
    }
}

impl From<Mac> for MacWords {
    #[inline(always)]
    fn from(mac: Mac) -> Self {
        Self::new(mac)
    }
}

/// An IPv4 address: the four bytes of the header, in their order in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Addr4(pub u32);

/// An IPv6 address: the sixteen bytes of the header, in their order in memory.
#[derive(Clone, Copy, Debug, Eq)]
#[repr(transparent)]
pub struct Addr6(pub [u32; 4]);

/// By words: of two arrays the compiler makes a call of `bcmp`, with a stack frame of its own.
impl PartialEq for Addr6 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.differs(other) == 0
    }
}

impl core::hash::Hash for Addr6 {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Addr6 {
    /// Link-local, or a group: no router takes it elsewhere (RFC 4291 sections 2.5.6 and 2.7; groups of
    /// larger scopes need a multicast router).
    #[inline(always)]
    pub const fn is_link_scope(self) -> bool {
        let [first, second, ..] = self.0[0].to_ne_bytes();
        first == 0xff || (first == 0xfe && second & 0xc0 == 0x80)
    }
}

impl From<Ipv4Addr> for Addr4 {
    fn from(address: Ipv4Addr) -> Self {
        Self(u32::from_ne_bytes(address.octets()))
    }
}

impl From<Addr4> for Ipv4Addr {
    fn from(address: Addr4) -> Self {
        address.0.to_ne_bytes().into()
    }
}

impl From<Ipv6Addr> for Addr6 {
    fn from(address: Ipv6Addr) -> Self {
        let bytes = address.octets();
        let word = |i: usize| u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Addr6> for Ipv6Addr {
    fn from(Addr6([a, b, c, d]): Addr6) -> Self {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip([a, b, c, d]) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes.into()
    }
}

impl From<Addr4> for IpAddr {
    fn from(address: Addr4) -> Self {
        Self::V4(address.into())
    }
}

impl From<Addr6> for IpAddr {
    fn from(address: Addr6) -> Self {
        Self::V6(address.into())
    }
}

/// An address type that keys can hold.
pub trait Address: Copy + Eq + fmt::Debug + core::hash::Hash + Into<IpAddr> + 'static {
    /// Bits of an address: the length of a host's prefix.
    const BITS: u32;

    /// `0.0.0.0` or `::`.
    const UNSPECIFIED: Self;

    /// All of its bits, mixed into one word.
    fn fold(&self) -> u32;

    /// Words of 32 bits.
    const WORDS: usize = Self::BITS as usize / 32;

    /// Its words, each multiplied by a key of its own from `first` on, added up modulo 2^64.
    fn multiplied(&self, first: usize, key: &impl Fn(usize) -> u64) -> u64;

    /// 0: the other is the same.
    fn differs(&self, other: &Self) -> u32;

    /// The one that is of this family.
    fn of_family(four: Addr4, six: Addr6) -> Self;

    /// Its 16-bit words added up, for checksums (RFC 1071).
    fn sum(&self) -> u32;

    /// No address yet: `0.0.0.0` or `::`.
    fn is_unspecified(&self) -> bool;

    /// Multicast, or IPv4's `255.255.255.255`.
    fn is_group(&self) -> bool;

    /// `127.0.0.0/8` (RFC 1122 section 3.2.1.3) or `::1`: never on a wire.
    fn is_loopback(&self) -> bool;
}

impl Address for Addr4 {
    const BITS: u32 = 32;
    const UNSPECIFIED: Self = Self(0);

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.0.to_ne_bytes()[0] == 127
    }

    #[inline(always)]
    fn fold(&self) -> u32 {
        self.0
    }

    #[inline(always)]
    fn of_family(four: Addr4, _: Addr6) -> Self {
        four
    }

    #[inline(always)]
    fn multiplied(&self, first: usize, key: &impl Fn(usize) -> u64) -> u64 {
        u64::from(self.0).wrapping_mul(key(first))
    }

    #[inline(always)]
    fn differs(&self, other: &Self) -> u32 {
        self.0 ^ other.0
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        (self.0 & 0xffff) + (self.0 >> 16)
    }

    #[inline(always)]
    fn is_unspecified(&self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    fn is_group(&self) -> bool {
        self.0 == u32::MAX || self.0.to_ne_bytes()[0] & 0xf0 == 0xe0
    }
}

impl Address for Addr6 {
    const BITS: u32 = 128;
    const UNSPECIFIED: Self = Self([0; 4]);

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.0;
        a | b | c == 0 && d == 1u32.to_be()
    }

    #[inline(always)]
    fn of_family(_: Addr4, six: Addr6) -> Self {
        six
    }

    #[inline(always)]
    fn multiplied(&self, first: usize, key: &impl Fn(usize) -> u64) -> u64 {
        let [a, b, c, d] = self.0;
        let by = |number: usize, word: u32| u64::from(word).wrapping_mul(key(first + number));
        by(0, a).wrapping_add(by(1, b)).wrapping_add(by(2, c)).wrapping_add(by(3, d))
    }

    #[inline(always)]
    fn differs(&self, other: &Self) -> u32 {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h)
    }

    #[inline(always)]
    fn fold(&self) -> u32 {
        let [a, b, c, d] = self.0;
        a ^ b.rotate_left(5) ^ c.rotate_left(11) ^ d.rotate_left(17)
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        let [a, b, c, d] = self.0;
        Addr4(a).sum() + Addr4(b).sum() + Addr4(c).sum() + Addr4(d).sum()
    }

    #[inline(always)]
    fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.0;
        a | b | c | d == 0
    }

    #[inline(always)]
    fn is_group(&self) -> bool {
        self.0[0].to_ne_bytes()[0] == 0xff
    }
}

#[cfg(feature = "user")]
mod user {
    use super::{Addr4, Addr6};

    // SAFETY: repr(transparent) over integers.
    unsafe impl aya::Pod for Addr4 {}
    // SAFETY: repr(transparent) over integers.
    unsafe impl aya::Pod for Addr6 {}
}
