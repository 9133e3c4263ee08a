//! From a frame to what flows and policy look at: addresses, protocol, ports. IPv4 and IPv6 are one
//! piece of code over [`Family`].

use crate::{
    drops::Drop,
    flow::{FlowKey, KeyProtocol, Place, PortPair},
    headers::{Boundary, Ethernet, Extension, HopWord, Icmp, Ipv4, Ipv6, Ipv6Fragment, Ports, Tcp, View},
    wire::{Addr4, Addr6, Address, PortBe, Protocol},
};

/// EtherTypes (IEEE registration authority), host byte order.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
    pub const QINQ: u16 = 0x88a8;
}

/// TCP flags (RFC 9293 section 3.1).
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// Where the network header begins.
pub const NETWORK: usize = size_of::<Ethernet>();

/// The farthest into a frame that anything is read: the verifier wants a bound, and no sane chain of
/// headers is longer.
pub const FARTHEST: usize = 512;

/// What an IP header says, whatever its version.
#[derive(Clone, Copy)]
pub struct Ip<A> {
    pub source: A,
    pub destination: A,
    pub protocol: Protocol,
    /// Offset of the transport header in the frame.
    pub transport: usize,
    /// Where the packet ends by its own word: what lies behind in the frame is not the receiver's to see,
    /// so nothing of it is read.
    pub end: usize,
    pub fragment: Fragment,
}

/// Whether a packet is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    Whole,
    /// The one with the transport header.
    First(FragmentId),
    Later(FragmentId),
}

/// What fragments of one packet have in common beside addresses and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct FragmentId(pub u32);

/// What [`Family::follow`] found, as one word: more than that is not returned by a function that the
/// verifier looks at on its own.
///
/// `failed:1 0:5 kind:2 protocol:8 transport:16 id:32`, and a [`Drop`]'s code in place of the protocol where it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Followed(pub u64);

impl Followed {
    const FAILED: u64 = 1 << 63;
    const FIRST: u64 = 1 << 56;
    const LATER: u64 = 2 << 56;

    #[inline(always)]
    pub fn pack<A>(found: Result<Ip<A>, Drop>) -> Self {
        let ip = match found {
            Ok(ip) => ip,
            Err(drop) => return Self(Self::FAILED | (drop as u64) << 48),
        };
        let fragment = match ip.fragment {
            Fragment::Whole => 0,
            Fragment::First(FragmentId(id)) => Self::FIRST | u64::from(id),
            Fragment::Later(FragmentId(id)) => Self::LATER | u64::from(id),
        };
        Self(fragment | u64::from(ip.protocol.0) << 48 | (ip.transport as u64 & 0xffff) << 32)
    }

    /// The packet whose header was followed.
    #[inline(always)]
    pub fn unpack<A>(self, ip: Ip<A>) -> Result<Ip<A>, Drop> {
        let code = (self.0 >> 48) as u8;
        if self.0 & Self::FAILED != 0 {
            return Err(Drop::from_code(code).unwrap_or(Drop::ExtensionHeaders));
        }
        let id = FragmentId(self.0 as u32);
        let fragment = match self.0 & (Self::FIRST | Self::LATER) {
            0 => Fragment::Whole,
            Self::FIRST => Fragment::First(id),
            _ => Fragment::Later(id),
        };
        Ok(Ip { protocol: Protocol(code), transport: (self.0 >> 32) as u16 as usize, fragment, ..ip })
    }
}

/// An IP version: its header and its ICMP.
pub trait Family: Sized + 'static {
    type Address: Address;

    /// The protocol number of its ICMP.
    const ICMP: Protocol;

    /// Offset of the source address in its header; the destination follows.
    const ADDRESSES: usize;

    /// Offset of the header's own checksum, where it has one.
    const CHECKSUM: Option<usize>;

    /// Offset of the word that has its hop limit in it.
    const HOPS: usize;

    /// What a router makes of that word: a hop less, and a header checksum that fits (RFC 1812 section 5.3.1, RFC 8200
    /// section 3, RFC 1624). `None`: the packet has no hop left.
    fn hop(word: HopWord) -> Option<HopWord>;

    /// Reads the network header at `offset`. Extension headers, where the family has them, are still to
    /// be [followed](Family::follow).
    fn network<V: View + ?Sized>(view: &V, offset: usize) -> Result<Ip<Self::Address>, Drop>;

    /// The source and the destination of the header at [`NETWORK`], word by word.
    fn ends<V: View + ?Sized>(view: &V) -> Result<(Self::Address, Self::Address), Drop>;

    /// Whether what comes next is not the transport header.
    fn has_extensions(ip: &Ip<Self::Address>) -> bool;

    /// Finds the transport header.
    fn follow<V: View + ?Sized>(view: &V, ip: Ip<Self::Address>) -> Result<Ip<Self::Address>, Drop>;

    /// What an ICMP type is for.
    fn icmp(kind: u8) -> IcmpKind;
}

/// The classes of ICMP messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpKind {
    /// A question with an identifier.
    Request,
    /// The answer to a question of that type.
    Reply(u8),
    /// About a packet that it quotes.
    Error,
    /// Tells a host to send elsewhere.
    Redirect,
    /// Router advertisement.
    RouterAdvertisement,
    /// Neighbour solicitation or advertisement: claims or asks for an address.
    Neighbour,
    /// Router solicitation.
    Solicitation,
    /// Multicast listener messages.
    Listener,
    /// Judged by type and code, never answered.
    Other,
}

impl IcmpKind {
    /// Flows are made of these; the others have rules of their own.
    #[inline(always)]
    pub const fn is_flow(self) -> bool {
        matches!(self, Self::Request | Self::Reply(_) | Self::Other)
    }
}

/// IPv4.
pub enum V4 {}

/// IPv6.
pub enum V6 {}

impl Family for V4 {
    type Address = Addr4;
    const ICMP: Protocol = Protocol::ICMP;
    const ADDRESSES: usize = 12;
    const CHECKSUM: Option<usize> = Some(10);
    const HOPS: usize = 8;

    #[inline(always)]
    fn hop(HopWord { bytes: [hops, protocol, high, low] }: HopWord) -> Option<HopWord> {
        if hops <= 1 {
            return None;
        }
        // the sum is of complements: a hop less there is one more here, in the high byte of its word
        let sum = (u32::from(high) << 8 | u32::from(low)) + 0x100;
        let [high, low] = ((sum + (sum >> 16)) as u16).to_be_bytes();
        Some(HopWord { bytes: [hops - 1, protocol, high, low] })
    }

    #[inline(always)]
    fn network<V: View + ?Sized>(view: &V, offset: usize) -> Result<Ip<Addr4>, Drop> {
        let header: Ipv4 = view.read(offset)?;
        let length = usize::from(header.version_ihl & 0xf) * 4;
        if header.version_ihl >> 4 != 4 || length < size_of::<Ipv4>() {
            return Err(Drop::Malformed);
        }
        let word = u16::from_be(header.fragment);
        let (more, position) = (word & 0x2000 != 0, word & 0x1fff);
        let protocol = Protocol(header.protocol);
        let id = FragmentId(u32::from(header.id));
        Ok(Ip {
            source: header.source,
            destination: header.destination,
            protocol,
            transport: offset + length,
            end: offset + usize::from(u16::from_be(header.total_length)),
            fragment: fragment(protocol, position, more, id)?,
        })
    }

    #[inline(always)]
    fn ends<V: View + ?Sized>(view: &V) -> Result<(Addr4, Addr4), Drop> {
        let [source, destination] = view.words(NETWORK + Self::ADDRESSES)?;
        Ok((Addr4(source), Addr4(destination)))
    }

    #[inline(always)]
    fn has_extensions(_: &Ip<Addr4>) -> bool {
        false
    }

    #[inline(always)]
    fn follow<V: View + ?Sized>(_: &V, ip: Ip<Addr4>) -> Result<Ip<Addr4>, Drop> {
        Ok(ip)
    }

    #[inline(always)]
    fn icmp(kind: u8) -> IcmpKind {
        match kind {
            8 | 13 => IcmpKind::Request,
            0 => IcmpKind::Reply(8),
            14 => IcmpKind::Reply(13),
            3 | 4 | 11 | 12 => IcmpKind::Error,
            5 => IcmpKind::Redirect,
            _ => IcmpKind::Other,
        }
    }
}

impl Family for V6 {
    type Address = Addr6;
    const ICMP: Protocol = Protocol::ICMPV6;
    const ADDRESSES: usize = 8;
    const CHECKSUM: Option<usize> = None;
    const HOPS: usize = 4;

    #[inline(always)]
    fn hop(HopWord { bytes: [high, low, next, hops] }: HopWord) -> Option<HopWord> {
        if hops <= 1 { None } else { Some(HopWord { bytes: [high, low, next, hops - 1] }) }
    }

    #[inline(always)]
    fn network<V: View + ?Sized>(view: &V, offset: usize) -> Result<Ip<Addr6>, Drop> {
        let header: Ipv6 = view.read(offset)?;
        if u16::from_be(header.version_class) >> 12 != 6 {
            return Err(Drop::Malformed);
        }
        Ok(Ip {
            source: header.source,
            destination: header.destination,
            protocol: Protocol(header.next_header),
            transport: offset + size_of::<Ipv6>(),
            end: offset + size_of::<Ipv6>() + usize::from(u16::from_be(header.payload_length)),
            fragment: Fragment::Whole,
        })
    }

    #[inline(always)]
    fn ends<V: View + ?Sized>(view: &V) -> Result<(Addr6, Addr6), Drop> {
        const SOURCE: usize = NETWORK + V6::ADDRESSES;
        let ([a, b], [c, d]) = (view.words(SOURCE)?, view.words(SOURCE + 8)?);
        let ([e, f], [g, h]) = (view.words(SOURCE + 16)?, view.words(SOURCE + 24)?);
        Ok((Addr6([a, b, c, d]), Addr6([e, f, g, h])))
    }

    #[inline(always)]
    fn has_extensions(ip: &Ip<Addr6>) -> bool {
        is_extension(ip.protocol)
    }

    #[inline(always)]
    fn follow<V: View + ?Sized>(view: &V, ip: Ip<Addr6>) -> Result<Ip<Addr6>, Drop> {
        let (last, fragment) = walk(view, Chain { protocol: ip.protocol, offset: ip.transport }, ip.end)?;
        Ok(Ip { protocol: last.protocol, transport: last.offset, fragment, ..ip })
    }

    #[inline(always)]
    fn icmp(kind: u8) -> IcmpKind {
        match kind {
            128 => IcmpKind::Request,
            129 => IcmpKind::Reply(128),
            1..=4 => IcmpKind::Error,
            137 => IcmpKind::Redirect,
            134 => IcmpKind::RouterAdvertisement,
            135 | 136 => IcmpKind::Neighbour,
            133 => IcmpKind::Solicitation,
            130..=132 | 143 => IcmpKind::Listener,
            _ => IcmpKind::Other,
        }
    }
}

/// A place in a chain of IPv6 headers: what comes there, and where that is.
#[derive(Clone, Copy)]
struct Chain {
    protocol: Protocol,
    offset: usize,
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// More than RFC 8200 section 4.1 recommends (each once, destination options twice), and the bound
/// that the verifier wants.
const MOST_EXTENSIONS: usize = 7;

#[inline(always)]
fn is_extension(protocol: Protocol) -> bool {
    matches!(protocol.0, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// Follows extension headers to the transport header. ESP and unknown headers end the chain: the
/// policy judges them by their number.
#[inline(always)]
fn walk<V: View + ?Sized>(view: &V, mut at: Chain, end: usize) -> Result<(Chain, Fragment), Drop> {
    let mut found = Fragment::Whole;
    for _ in 0..MOST_EXTENSIONS {
        if !is_extension(at.protocol) {
            return Ok((at, found));
        }
        if at.offset > FARTHEST {
            return Err(Drop::ExtensionHeaders);
        }
        let (next, length) = if at.protocol.0 == FRAGMENT {
            let header: Ipv6Fragment = view.read(at.offset)?;
            let word = u16::from_be(header.offset);
            let next = Protocol(header.next_header);
            found = fragment(next, word >> 3, word & 1 != 0, FragmentId(header.id))?;
            if let Fragment::Later(_) = found {
                // What follows is data: the chain continues in the first fragment only.
                return Ok((Chain { protocol: next, offset: at.offset + size_of::<Ipv6Fragment>() }, found));
            }
            (next, size_of::<Ipv6Fragment>())
        } else {
            let header: Extension = view.read(at.offset)?;
            // RFC 5095: type 0 lets the sender choose the path; no other type is for containers.
            if at.protocol.0 == ROUTING {
                return Err(Drop::ExtensionHeaders);
            }
            let length = usize::from(header.length);
            let bytes = if at.protocol.0 == AUTHENTICATION { (length + 2) * 4 } else { (length + 1) * 8 };
            (Protocol(header.next_header), bytes)
        };
        at = Chain { protocol: next, offset: at.offset + length };
        // RFC 7112: the first fragment has the whole chain
        if at.offset > end {
            return Err(Drop::Malformed);
        }
    }
    if is_extension(at.protocol) { Err(Drop::ExtensionHeaders) } else { Ok((at, found)) }
}

/// `position` in units of 8 bytes.
#[inline(always)]
fn fragment(protocol: Protocol, position: u16, more: bool, id: FragmentId) -> Result<Fragment, Drop> {
    match (position, more) {
        (0, false) => Ok(Fragment::Whole),
        (0, true) => Ok(Fragment::First(id)),
        // RFC 3128: it would overwrite the flags of a header that was already judged.
        (1, _) if protocol == Protocol::TCP => Err(Drop::Fragment),
        _ => Ok(Fragment::Later(id)),
    }
}

/// Reads a packet of the usual kind: whole, without extension headers, and no ICMP but questions,
/// answers and what is judged by type. `None`: it is of another kind, malformed perhaps.
#[inline(always)]
pub fn plain<F: Family, V: View + ?Sized>(view: &V) -> Option<(Ip<F::Address>, Transport)> {
    let ip = F::network(view, NETWORK).ok()?;
    if F::has_extensions(&ip) || ip.fragment != Fragment::Whole {
        return None;
    }
    // the same addresses again: in place of these the compiler leaves the others unread
    let (source, destination) = F::ends(view).ok()?;
    let ip = Ip { source, destination, ..ip };
    let transport = transport::<F, V>(view, &ip).ok()?;
    if transport.icmp.is_some_and(|class| !class.is_flow()) { None } else { Some((ip, transport)) }
}

/// What the transport header says.
#[derive(Clone, Copy)]
pub struct Transport {
    pub ports: PortPair,
    pub protocol: KeyProtocol,
    /// 0 for protocols other than TCP.
    pub tcp_flags: u8,
    /// `None` for protocols other than the family's ICMP.
    pub icmp: Option<IcmpKind>,
}

/// Reads the transport header, which must lie in the packet as a whole.
#[inline(always)]
pub fn transport<F: Family, V: View + ?Sized>(view: &V, ip: &Ip<F::Address>) -> Result<Transport, Drop> {
    let (protocol, offset) = (ip.protocol, ip.transport);
    if offset > FARTHEST {
        return Err(Drop::ExtensionHeaders);
    }
    if offset + least(protocol) > ip.end {
        return Err(Drop::Malformed);
    }
    if protocol == Protocol::TCP {
        let header: Tcp = view.read(offset)?;
        let tcp_flags = header.flags;
        if !plausible(tcp_flags) {
            return Err(Drop::TcpFlags);
        }
        let ports = PortPair::new(PortBe(header.source), PortBe(header.destination));
        return Ok(Transport { ports, protocol: protocol.into(), tcp_flags, icmp: None });
    }
    if protocol == F::ICMP {
        return icmp::<F, V>(view, offset);
    }
    let ports = if protocol.has_ports() {
        let header: Ports = view.read(offset)?;
        PortPair::new(PortBe(header.source), PortBe(header.destination))
    } else {
        // nothing of it is looked at, but what comes before must be there as a whole
        let Boundary {} = view.read(offset)?;
        PortPair::NONE
    };
    Ok(Transport { ports, protocol: protocol.into(), tcp_flags: 0, icmp: None })
}

/// Bytes of the shortest header of a protocol.
#[inline(always)]
const fn least(protocol: Protocol) -> usize {
    match protocol {
        Protocol::TCP => size_of::<Tcp>(),
        // RFC 768, RFC 3828, RFC 9260 (more), RFC 792, RFC 4443
        Protocol::UDP | Protocol::UDPLITE | Protocol::SCTP | Protocol::ICMP | Protocol::ICMPV6 => 8,
        _ => 0,
    }
}

/// Connections have a SYN, an ACK or a RST, and never open and end at once.
#[inline(always)]
fn plausible(flags: u8) -> bool {
    flags & (tcp::SYN | tcp::ACK | tcp::RST) != 0
        && flags & (tcp::SYN | tcp::FIN) != tcp::SYN | tcp::FIN
        && flags & (tcp::SYN | tcp::RST) != tcp::SYN | tcp::RST
}

#[inline(always)]
fn icmp<F: Family, V: View + ?Sized>(view: &V, offset: usize) -> Result<Transport, Drop> {
    let header: Icmp = view.read(offset)?;
    let class = F::icmp(header.kind);
    let port = |kind: u8| PortBe::from_host(u16::from(kind) << 8 | u16::from(header.code));
    let own = port(header.kind);
    let id = PortBe(header.id);
    let (ports, protocol) = match class {
        IcmpKind::Request => (PortPair::new(id, own), KeyProtocol::question(F::ICMP)),
        IcmpKind::Reply(request) => (PortPair::new(port(request), id), KeyProtocol::answer(F::ICMP)),
        _ => (PortPair::new(PortBe::ZERO, own), F::ICMP.into()),
    };
    Ok(Transport { ports, protocol, tcp_flags: 0, icmp: Some(class) })
}

/// The key of a packet's flow at a place.
#[inline(always)]
pub fn key<A: Address>(ip: &Ip<A>, ports: PortPair, protocol: KeyProtocol, place: Place) -> FlowKey<A> {
    FlowKey { source: ip.source, destination: ip.destination, ports, place, protocol }
}

/// The packet that an ICMP error quotes, if it is one that flows are about.
///
/// # Errors
///
/// [`Drop::IcmpUnrelated`]: a fragment, extension headers, or too little of the packet.
#[inline(always)]
pub fn quoted<F: Family, V: View + ?Sized>(
    view: &V,
    offset: usize,
) -> Result<(Ip<F::Address>, PortPair, KeyProtocol), Drop> {
    let offset = offset + size_of::<Icmp>();
    if offset > FARTHEST {
        return Err(Drop::IcmpUnrelated);
    }
    let ip = F::network(view, offset).map_err(|_| Drop::IcmpUnrelated)?;
    if F::has_extensions(&ip) || ip.transport > FARTHEST || ip.fragment != Fragment::Whole {
        return Err(Drop::IcmpUnrelated);
    }
    if ip.protocol == F::ICMP {
        let inner = icmp::<F, V>(view, ip.transport).map_err(|_| Drop::IcmpUnrelated)?;
        return Ok((ip, inner.ports, inner.protocol));
    }
    let ports = if ip.protocol.has_ports() {
        let ports: Ports = view.read(ip.transport).map_err(|_| Drop::IcmpUnrelated)?;
        PortPair::new(PortBe(ports.source), PortBe(ports.destination))
    } else {
        PortPair::NONE
    };
    Ok((ip, ports, ip.protocol.into()))
}
