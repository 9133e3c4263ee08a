//! Writes the answer to a refused packet in its place, and sends it back.

use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_store_bytes};
use netpol_common::{
    decide::Packet,
    drops::{Drop, Side},
    flow::Place,
    headers::{Tcp, View as _},
    kernel::{Kernel as _, Settings},
    parse::{self, NETWORK, tcp},
    refuse::{self, First, Reset, Unreachable},
    wire::{Address, Protocol},
};

use crate::{
    act::Fate,
    family::Maps,
    frame::Skb,
    tables::{Tables, hook, live},
};

/// Offsets in the transport header.
const TCP_CHECKSUM: u32 = 16;
const ICMP_CHECKSUM: u32 = 2;
const ICMP_REST: u32 = 6;

/// Drops a packet to a service that nobody is behind, and says so to its sender, if that may be.
#[inline(always)]
pub fn refuse<F: Maps>(skb: Skb, place: Place) -> Fate {
    if let Side::To = place.side() {
        return Fate::dropped(Drop::NoBackend);
    }
    // a function for each, because of their stack frames
    let fate = F::reset(skb, place);
    if fate.is_open() { F::unreachable(skb, place) } else { fate }
}

/// An open fate: it is no TCP.
#[inline(always)]
pub fn reset<F: Maps>(skb: Skb, place: Place) -> Fate {
    let Some(packet) = asked::<F>(skb) else { return Fate::dropped(Drop::NoBackend) };
    match packet.key.protocol() {
        Protocol::TCP => answered(skb, place, is_reset::<F>(skb, packet)),
        _ => Fate::UNDECIDED,
    }
}

#[inline(always)]
fn is_reset<F: Maps>(skb: Skb, packet: &Packet<F::Address>) -> Result<(), Drop> {
    let transport = refuse::transport::<F>();
    let segment: Tcp = skb.linear().read(transport)?;
    if segment.flags & tcp::RST != 0 {
        return Err(Drop::NoBackend);
    }
    let end = F::network(&skb.linear(), NETWORK)?.end;
    let (reset, change) = refuse::reset::<F>(packet, end, &segment);
    shape(skb, packet, size_of::<Reset<F>>())?;
    write(skb, NETWORK, &reset)?;
    adjust(skb, transport as u32 + TCP_CHECKSUM, change)
}

#[inline(always)]
pub fn unreachable<F: Maps>(skb: Skb, place: Place) -> Fate {
    let Some(packet) = asked::<F>(skb) else { return Fate::dropped(Drop::NoBackend) };
    match packet.key.protocol() {
        Protocol::UDP => answered(skb, place, is_unreachable::<F>(skb, packet)),
        _ => Fate::dropped(Drop::NoBackend),
    }
}

#[inline(always)]
fn is_unreachable<F: Maps>(skb: Skb, packet: &Packet<F::Address>) -> Result<(), Drop> {
    let transport = refuse::transport::<F>();
    let (quoted, first) = (skb.linear().read::<F::Header>(NETWORK)?, skb.linear().read::<First>(transport)?);
    let (unreachable, change) = refuse::unreachable::<F>(&packet.key, &quoted, first);
    let about = size_of::<Unreachable<F>>();
    shape(skb, packet, about + size_of::<F::Header>() + size_of::<First>())?;
    write(skb, NETWORK + about, &quoted)?;
    write(skb, NETWORK + about + size_of::<F::Header>(), &first)?;
    write(skb, NETWORK, &unreachable)?;
    adjust(skb, transport as u32 + ICMP_REST, change)?;
    adjust(skb, transport as u32 + ICMP_CHECKSUM, !change & 0xffff)
}

/// The packet on the desk, if it may be answered, and its headers may be read.
#[inline(always)]
fn asked<F: Maps>(skb: Skb) -> Option<&'static Packet<F::Address>> {
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let packet = unsafe { &(*F::desk()?).packet };
    // what is told to many is little, as what they may open is
    let is_limited = !packet.settings.has(Settings::UNLIMITED);
    let tables = Tables::<F>::of(skb, packet.generation);
    if !refuse::is_answerable::<F>(packet) || is_limited && !tables.admit(packet.key.place.ifindex(), packet.now) {
        return None;
    }
    skb.pull(parse::FARTHEST as u32);
    Some(packet)
}

#[inline(always)]
fn answered(skb: Skb, place: Place, written: Result<(), Drop>) -> Fate {
    if written.is_err() {
        return Fate::dropped(Drop::NoBackend);
    }
    let interface = place.ifindex();
    Fate::answered(skb, interface, hook(live().generation.slot(), interface).is_some(), Drop::NoBackend)
}

/// Makes the frame one of so many bytes behind its Ethernet header, which goes back.
#[inline(always)]
fn shape<A: Address>(skb: Skb, packet: &Packet<A>, size: usize) -> Result<(), Drop> {
    let back = [packet.source_mac, packet.destination_mac];
    // SAFETY: a live context.
    done(unsafe { bpf_skb_change_tail(skb.0, (NETWORK + size) as u32, 0) })?;
    write(skb, 0, &back)
}

#[inline(always)]
fn write<P>(skb: Skb, at: usize, part: &P) -> Result<(), Drop> {
    // SAFETY: a live context, and as many readable bytes; outside of the frame is refused.
    done(unsafe { bpf_skb_store_bytes(skb.0, at as u32, (&raw const *part).cast(), size_of::<P>() as u32, 0) })
}

/// Changes a checksum that no hardware will calculate.
#[inline(always)]
fn adjust(skb: Skb, at: u32, change: u32) -> Result<(), Drop> {
    // SAFETY: a live context; outside of the frame is refused.
    done(unsafe { bpf_l4_csum_replace(skb.0, at, 0, u64::from(change), 0) })
}

#[inline(always)]
fn done(result: i64) -> Result<(), Drop> {
    if result == 0 { Ok(()) } else { Err(Drop::NoBackend) }
}
