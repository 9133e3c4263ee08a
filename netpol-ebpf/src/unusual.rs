//! What is not a whole packet with ports: fragments, extension headers, ICMP errors, and the messages
//! that keep a link going.
//!
//! The hot path calls these through [`crate::verified`].

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{
    decide::{Action, Known},
    drops::Drop,
    flow::{Place, seconds},
    guard::{self, LinkMessage, Passage},
    headers::{Arp, Icmp, Ipv6, Neighbour, View as _},
    kernel::{FragmentKey, FragmentPorts, Kernel as _},
    parse::{self, Family, Fragment, FragmentId, IcmpKind, Ip, NETWORK, Transport, V4, V6, tcp},
    wire::{Addr6, Address as _},
};

use crate::{
    clock::now,
    family::Maps,
    flows::{Seen, put_on_desk},
    frame::{Frame, Skb},
    tables::Tables,
};

/// Set in a code when the rest is a reason to drop; else the code is an [`Action`].
const DROPPED: u32 = 1 << 31;

/// A decision as a code.
#[inline(always)]
pub fn encode(decision: Result<Action, Drop>) -> u32 {
    match decision {
        Ok(action) => action as u32,
        Err(drop) => DROPPED | drop as u32,
    }
}

/// The decision that a function's code stands for.
#[inline(always)]
pub fn decode(code: u32) -> Result<Action, Drop> {
    if code & DROPPED == 0 {
        return Action::from_code(code).ok_or(Drop::NoPolicy);
    }
    Err(Drop::from_code((code & !DROPPED) as u8).unwrap_or(Drop::NoPolicy))
}

/// The frame again, all of what may be read pulled into its linear part.
#[inline(always)]
fn whole(skb: *mut __sk_buff, place: u32) -> Result<Frame, Drop> {
    let skb = Skb(skb);
    if skb.linear().len() < parse::FARTHEST && skb.linear().len() < skb.bytes() as usize {
        skb.pull(parse::FARTHEST as u32);
    }
    Frame::read(skb, Place(place))
}

#[inline(always)]
fn passage(frame: &Frame) -> Passage {
    Passage {
        place: frame.place,
        source_mac: frame.ethernet().source,
        ingress: frame.skb.ingress(),
        settings: frame.live.settings,
    }
}

/// An ARP message.
#[inline(always)]
pub fn arp(skb: *mut __sk_buff, place: u32) -> Result<Action, Drop> {
    let frame = whole(skb, place)?;
    let message: Arp = frame.linear.read(NETWORK)?;
    guard::arp(&Tables::<V4>::of(frame.skb, frame.live.generation), passage(&frame), &message)
}

/// Any other IP packet than a plain one. [`Action::Remembered`] means that it is on the desk, to be
/// treated as a packet of its flow; [`Action::Related`], that an ICMP error is, with what it quotes.
#[inline(always)]
pub fn read<F: Maps>(skb: *mut __sk_buff, place: u32) -> Result<Action, Drop> {
    let frame = whole(skb, place)?;
    let ip = F::network(&frame.linear, NETWORK)?;
    let ip = F::followed(frame.skb, ip)?;
    let transport = match ip.fragment {
        Fragment::Later(id) => later_fragment::<F>(&frame, &ip, id)?,
        _ => parse::transport::<F, _>(&frame.linear, &ip)?,
    };
    if let Fragment::First(id) = ip.fragment {
        let ports = FragmentPorts { ports: transport.ports, protocol: transport.protocol, seen: now() };
        Tables::<F>::of(frame.skb, frame.live.generation)
            .remember_fragment(&fragment_key::<F>(&frame, &ip, id), &ports);
    }
    let whole = !matches!(ip.fragment, Fragment::Later(_));
    let seen = Seen { tcp_flags: transport.tcp_flags, transport: if whole { ip.transport as u32 } else { 0 } };
    put_on_desk::<F>(&frame, parse::key(&ip, transport.ports, transport.protocol, frame.place), seen, Known::FLOW)?;
    match transport.icmp {
        Some(class) if !class.is_flow() => icmp::<F>(&frame, &ip, class),
        _ => Ok(Action::Remembered),
    }
}

/// ICMP that flows don't speak for: errors by the packet inside, the rest by who may say it.
#[inline(always)]
fn icmp<F: Maps>(frame: &Frame, ip: &Ip<F::Address>, class: IcmpKind) -> Result<Action, Drop> {
    match class {
        IcmpKind::Error => {
            let (inner, ports, protocol) = parse::quoted::<F, _>(&frame.linear, ip.transport)?;
            let Some(desk) = F::desk() else { return Err(Drop::NoPolicy) };
            // SAFETY: this CPU's desk, which no other program uses meanwhile.
            unsafe {
                (*desk).other = parse::key(&inner, ports, protocol, frame.place);
                (*desk).quoted_transport = inner.transport as u32;
            }
            Ok(Action::Related)
        }
        IcmpKind::Redirect if F::ICMP == V4::ICMP => guard::redirect(passage(frame)),
        _ => Ok(Action::Link),
    }
}

/// IPv6's link control: neighbour, router and listener discovery.
#[inline(always)]
pub fn link(skb: *mut __sk_buff, place: u32) -> Result<Action, Drop> {
    let frame = whole(skb, place)?;
    let header: Ipv6 = frame.linear.read(NETWORK)?;
    let ip = V6::followed(frame.skb, V6::network(&frame.linear, NETWORK)?)?;
    // RFC 6980: discovery is never fragmented
    if ip.transport > parse::FARTHEST || ip.fragment != Fragment::Whole {
        return Err(Drop::ExtensionHeaders);
    }
    if ip.transport + size_of::<Icmp>() > ip.end {
        return Err(Drop::Malformed);
    }
    let icmp: Icmp = frame.linear.read(ip.transport)?;
    let advertised = match icmp.kind {
        NEIGHBOUR_ADVERTISEMENT => frame.linear.read::<Neighbour>(ip.transport)?.target,
        _ => Addr6::UNSPECIFIED,
    };
    let message = LinkMessage {
        class: V6::icmp(icmp.kind),
        source: ip.source,
        destination: ip.destination,
        advertised,
        hop_limit: header.hop_limit,
    };
    guard::link(&Tables::<V6>::of(frame.skb, frame.live.generation), passage(&frame), message)
}

/// RFC 4861 section 4.4.
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

#[inline(always)]
fn fragment_key<F: Maps>(frame: &Frame, ip: &Ip<F::Address>, id: FragmentId) -> FragmentKey<F::Address> {
    FragmentKey {
        source: ip.source,
        destination: ip.destination,
        id,
        place: frame.place,
        protocol: ip.protocol,
        zero: 0,
        zeros: 0,
    }
}

/// How long fragments are waited for: Linux's `net.ipv4.ipfrag_time`.
const FRAGMENT_TIME: u32 = seconds(30);

/// A later fragment has the ports that the first one left, and continues its flow.
#[inline(always)]
fn later_fragment<F: Maps>(frame: &Frame, ip: &Ip<F::Address>, id: FragmentId) -> Result<Transport, Drop> {
    let tables = Tables::<F>::of(frame.skb, frame.live.generation);
    let Some(ports) = tables.fragment(&fragment_key::<F>(frame, ip, id)) else { return Err(Drop::Fragment) };
    if now().since(ports.seen) > FRAGMENT_TIME {
        return Err(Drop::Fragment);
    }
    Ok(Transport { ports: ports.ports, protocol: ports.protocol, tcp_flags: tcp::ACK, icmp: None })
}
