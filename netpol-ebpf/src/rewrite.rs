//! Translated packets: other addresses and ports, and checksums that fit.
//!
//! The helpers know what a checksum field holds: the whole sum, or only the pseudo-header's where hardware (or nobody,
//! between containers) adds the rest.

use aya_ebpf::helpers::generated::{bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes};
use netpol_common::{
    decide::Desk,
    drops::Drop,
    flow::{FlowKey, KeyProtocol, Rewrite},
    headers::{HopWord, Icmp, View as _},
    parse::{Family, NETWORK},
    wire::{Address, MacWords, Protocol},
};

use crate::{family::Maps, frame::Skb, leave};

/// `BPF_F_PSEUDO_HDR`: the sum covers a pseudo-header with the addresses (RFC 9293 section 3.1, RFC 768, RFC 8200
/// section 8.1).
const PSEUDO_HEADER: u64 = 1 << 4;
/// `BPF_F_MARK_MANGLED_0`: no checksum stays none, and a sum of 0 is written as 0xffff (RFC 768).
const ZERO_IS_NONE: u64 = 1 << 5;

// A key begins with what a rewrite is.
const _: () = {
    type Key = FlowKey<netpol_common::wire::Addr6>;
    type To = Rewrite<netpol_common::wire::Addr6>;
    assert!(core::mem::offset_of!(Key, destination) == core::mem::offset_of!(To, destination));
    assert!(core::mem::offset_of!(Key, ports) == core::mem::offset_of!(To, ports));
};

/// What the packets of a key are like, without copying it.
#[inline(always)]
pub fn of<A: Address>(key: &FlowKey<A>) -> &Rewrite<A> {
    // SAFETY: both are repr(C), and a key begins with the fields of a rewrite (asserted above).
    unsafe { &*(&raw const *key).cast() }
}

/// Where a packet's transport header is, and whose it is: offset (bits 0-15; 0: a later fragment has none), and
/// protocol with its direction (16-31).
#[inline(always)]
pub fn at(transport: u32, protocol: KeyProtocol) -> u32 {
    transport & 0xffff | protocol.word() << 16
}

/// Where a protocol's checksum is in its header, and what it covers and means.
#[inline(always)]
const fn checksum(protocol: Protocol, transport: u32) -> Checksum {
    let (offset, flags) = match protocol {
        Protocol::TCP => (16, PSEUDO_HEADER),
        Protocol::UDP | Protocol::UDPLITE => (6, PSEUDO_HEADER | ZERO_IS_NONE),
        Protocol::ICMP => (ICMP_CHECKSUM, 0),
        Protocol::ICMPV6 => (ICMP_CHECKSUM, PSEUDO_HEADER),
        _ => return Checksum::NONE,
    };
    Checksum { at: transport + offset, flags }
}

/// Where a checksum is in the frame. (No `Option`: the compiler would copy the undefined fields of `None` about, which
/// the verifier refuses.)
#[derive(Clone, Copy)]
struct Checksum {
    /// 0: there is none.
    at: u32,
    flags: u64,
}

impl Checksum {
    const NONE: Self = Self { at: 0, flags: 0 };

    /// If it covers the packet's own addresses.
    #[inline(always)]
    const fn of_addresses(self) -> Self {
        if self.flags & PSEUDO_HEADER != 0 { self } else { Self::NONE }
    }
}

/// What else a translated packet gets on its way.
#[derive(Clone, Copy)]
pub struct Onward {
    /// The MAC address of whom the link brings it to.
    pub mac: MacWords,
    /// It loses a hop, of which it has one.
    pub takes_hop: bool,
}

/// Rewrites a packet that is as `from` says.
#[inline(always)]
pub fn rewrite<F: Maps>(
    skb: Skb,
    (from, to): (&Rewrite<F::Address>, &Rewrite<F::Address>),
    at: u32,
    onward: Onward,
) -> Result<(), Drop> {
    let (transport, protocol) = (at & 0xffff, KeyProtocol::from_word(at >> 16));
    let sum = if transport == 0 { Checksum::NONE } else { checksum(protocol.protocol(), transport) };
    // once for both ways: twice, its words would be on the stack twice
    let difference = difference::<F>(from, to);
    if transport as usize == NETWORK + F::ADDRESSES + both::<F>() as usize && protocol.protocol().has_ports() {
        return usual::<F>(skb, (from, to), (difference, sum), onward);
    }
    if onward.takes_hop {
        leave::hop::<F>(skb)?;
    }
    if !skb.address_to(onward.mac) {
        return Err(Drop::Delivery);
    }
    addresses::<F>(skb, to, difference, NETWORK, sum.of_addresses())?;
    if transport != 0 && from.ports.word() != to.ports.word() {
        ports(skb, (from.ports.word(), to.ports.word()), (transport, protocol), sum)?;
    }
    Ok(())
}

/// Bytes of two addresses.
#[inline(always)]
const fn both<F: Family>() -> u32 {
    const { assert!(F::Address::BITS == 32 || F::Address::BITS == 128) };
    2 * F::Address::BITS / 8
}

/// The hot path: ports stand right behind the addresses, so that the frame is written again up to them, at once, by one call
/// of a helper.
#[inline(always)]
fn usual<F: Maps>(
    skb: Skb,
    (from, to): (&Rewrite<F::Address>, &Rewrite<F::Address>),
    (difference, sum): (u64, Checksum),
    onward: Onward,
) -> Result<(), Drop> {
    if sum.at == 0 {
        return Err(Drop::Translation);
    }
    let is_summed = F::CHECKSUM.is_some();
    // where no checksum of the header makes up for it, what hardware says of the whole packet changes, too
    if onward.takes_hop && !is_summed {
        leave::hop::<F>(skb)?;
    }
    let Some(desk) = F::desk() else { return Err(Drop::Translation) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let head = unsafe { &mut (*desk).head };
    let frame = skb.linear();
    head.destination_mac = onward.mac;
    let [first, second] = frame.words(BEHIND)?;
    let [third, fourth] = frame.words(BEHIND + 8)?;
    (head.words[0], head.words[1], head.words[2], head.words[3]) = (first, second, third, fourth);
    let mut word: HopWord = frame.read(const { NETWORK + F::HOPS })?;
    if is_summed {
        if onward.takes_hop {
            word = F::hop(word).ok_or(Drop::Delivery)?;
        }
        let [hops, protocol, high, low] = word.bytes;
        let [high, low] = replaced(u16::from_ne_bytes([high, low]), difference).to_ne_bytes();
        word = HopWord { bytes: [hops, protocol, high, low] };
    }
    // of IPv6 it is the fourth
    let place = const { (NETWORK + F::HOPS - BEHIND) / 4 };
    head.words[place] = u32::from_ne_bytes(word.bytes);
    let words = (&raw const *to).cast::<u32>();
    for number in 0..const { both::<F>() as usize / 4 + 1 } {
        // SAFETY: a rewrite begins with two addresses and two ports of half a word, in the order of the packet.
        head.words[place + 1 + number] = unsafe { *words.add(number) };
    }
    // SAFETY: a live context; offsets outside of the frame are refused.
    done(unsafe { bpf_l4_csum_replace(skb.0, sum.at, 0, difference, sum.flags) })?;
    let (old, new) = (from.ports.word(), to.ports.word());
    if old != new {
        let flags = sum.flags & ZERO_IS_NONE | size_of::<u32>() as u64;
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(skb.0, sum.at, u64::from(old), u64::from(new), flags) })?;
    }
    let size = (NETWORK + F::ADDRESSES) as u32 + both::<F>() + size_of::<u32>() as u32;
    // SAFETY: as above, and so many readable bytes: those of the desk.
    done(unsafe { bpf_skb_store_bytes(skb.0, 0, (&raw const head.destination_mac).cast(), size, 0) })
}

/// Where a frame goes on behind its destination's MAC address.
const BEHIND: usize = size_of::<MacWords>();

/// What becomes of a checksum by a difference in what it covers (RFC 1624).
#[inline(always)]
fn replaced(sum: u16, difference: u64) -> u16 {
    let mut sum = (!sum as u64 & 0xffff) + (difference & 0xffff) + (difference >> 16 & 0xffff);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// By how much a sum over the addresses grows, in 32 bits. (No helper: its call costs more than sixteen additions.)
#[inline(always)]
fn difference<F: Family>(from: &Rewrite<F::Address>, to: &Rewrite<F::Address>) -> u64 {
    let (old, new) = ((&raw const *from).cast::<u32>(), (&raw const *to).cast::<u32>());
    let words = (both::<F>() / 4) as usize;
    // the complements of the old words are so many times 0xffff_ffff, less the words
    let mut sum = words as u64 * 0xffff_ffff;
    for place in 0..words {
        // SAFETY: both begin with two addresses, which are words.
        sum = unsafe { sum + u64::from(*new.add(place)) - u64::from(*old.add(place)) };
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// Rewrites an ICMP error and the packet that it quotes, which is as its sender knows it then: with its transport
/// checksum, where that is quoted.
#[inline(always)]
pub fn error<F: Family>(skb: Skb, desk: &Desk<F::Address>) -> Result<(), Drop> {
    let (inner, icmp) = (of(&desk.other), desk.packet.transport);
    let network = icmp as usize + size_of::<Icmp>();
    let (at, sum) = (desk.quoted_transport, Checksum { at: icmp + ICMP_CHECKSUM, flags: PSEUDO_HEADER });
    let difference = difference::<F>(inner, &desk.quoted);
    let mut covered = 0;
    if inner.ports.word() != desk.quoted.ports.word() {
        let (offset, size, from, to) = port_bytes(desk.other.protocol, inner.ports.word(), desk.quoted.ports.word())?;
        covered = u64::from(to) + u64::from(!from);
        // SAFETY: a live context; offsets outside of the frame are refused.
        done(unsafe { bpf_l4_csum_replace(skb.0, sum.at, u64::from(from), u64::from(to), size) })?;
        // SAFETY: as above, and at most four readable bytes.
        done(unsafe { bpf_skb_store_bytes(skb.0, at + offset, (&raw const to).cast(), size as u32, 0) })?;
    }
    let quoted = checksum(desk.other.protocol.protocol(), at);
    covered += if quoted.flags & PSEUDO_HEADER != 0 { difference } else { 0 };
    // behind the packet's own end the frame may go on
    if F::network(&skb.linear(), NETWORK).is_ok_and(|ip| quoted.at as usize + size_of::<u16>() <= ip.end) {
        quoted_sum(skb, quoted, covered, sum.at)?;
    }
    // of an IPv4 header the sum stays what it was, with its own checksum in it; IPv6 has none
    let (quoted, own) = match F::CHECKSUM {
        Some(_) => (Checksum::NONE, Checksum::NONE),
        None => (Checksum { flags: 0, ..sum }, sum),
    };
    addresses::<F>(skb, &desk.quoted, difference, network, quoted)?;
    let outer = of(&desk.packet.key);
    addresses::<F>(skb, &desk.wire, self::difference::<F>(outer, &desk.wire), NETWORK, own)
}

/// The checksum of a packet that is quoted, when what it covers grows by `difference`; `icmp`: where that of the error
/// is. (Of TCP the quote often ends before it.)
#[inline(always)]
fn quoted_sum(skb: Skb, sum: Checksum, difference: u64, icmp: u32) -> Result<(), Drop> {
    let (mut field, size) = (0u16, size_of::<u16>() as u32);
    // SAFETY: a live context, and two writable bytes; offsets outside of the frame are refused.
    let is_there = sum.at != 0
        && unsafe { bpf_skb_load_bytes(skb.0.cast(), sum.at, (&raw mut field).cast(), size) } == 0
        && !(field == 0 && sum.flags & ZERO_IS_NONE != 0);
    if !is_there {
        return Ok(());
    }
    let difference = (difference & 0xffff_ffff) + (difference >> 32);
    let mut new = replaced(field, difference);
    if new == 0 && sum.flags & ZERO_IS_NONE != 0 {
        new = 0xffff;
    }
    // SAFETY: as above, and two readable bytes.
    done(unsafe { bpf_skb_store_bytes(skb.0, sum.at, (&raw const new).cast(), size, 0) })?;
    // SAFETY: as above.
    done(unsafe { bpf_l4_csum_replace(skb.0, icmp, u64::from(field), u64::from(new), u64::from(size)) })
}

/// Of an ICMP or ICMPv6 header (RFC 792, RFC 4443 section 2.1).
const ICMP_CHECKSUM: u32 = 2;

/// Writes the addresses of the header at `network`, whose sum grows by `difference`: also where nothing differs, since to
/// compare them the compiler would keep all words on the stack. `covered`: a checksum that they are part of, where
/// it is and how.
#[inline(always)]
fn addresses<F: Family>(
    skb: Skb,
    to: &Rewrite<F::Address>,
    difference: u64,
    network: usize,
    covered: Checksum,
) -> Result<(), Drop> {
    if let Some(offset) = F::CHECKSUM {
        // SAFETY: a live context; offsets outside of the frame are refused.
        done(unsafe { bpf_l3_csum_replace(skb.0, (network + offset) as u32, 0, difference, 0) })?;
    }
    if covered.at != 0 {
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(skb.0, covered.at, 0, difference, covered.flags) })?;
    }
    let at = (network + F::ADDRESSES) as u32;
    // SAFETY: as above, and so many readable bytes.
    done(unsafe { bpf_skb_store_bytes(skb.0, at, (&raw const *to).cast(), both::<F>(), 0) })
}

#[inline(always)]
fn ports(
    skb: Skb,
    (from, to): (u32, u32),
    (transport, protocol): (u32, KeyProtocol),
    sum: Checksum,
) -> Result<(), Drop> {
    let (offset, size, from, to) = port_bytes(protocol, from, to)?;
    if sum.at == 0 {
        return Err(Drop::Translation);
    }
    let flags = sum.flags & ZERO_IS_NONE | size;
    // SAFETY: a live context; offsets outside of the frame are refused.
    done(unsafe { bpf_l4_csum_replace(skb.0, sum.at, u64::from(from), u64::from(to), flags) })?;
    // SAFETY: as above, and at most four readable bytes: the first two of a little-endian word are its low half.
    done(unsafe { bpf_skb_store_bytes(skb.0, transport + offset, (&raw const to).cast(), size as u32, 0) })
}

/// Where the ports are in a transport header, how many bytes they have, and which. They begin the header; of ICMP the
/// identifier is the asker's port.
#[inline(always)]
fn port_bytes(protocol: KeyProtocol, from: u32, to: u32) -> Result<(u32, u64, u32, u32), Drop> {
    if protocol.protocol().has_ports() {
        Ok((0, 4, from, to))
    } else if protocol.asks() {
        Ok((4, 2, from & 0xffff, to & 0xffff))
    } else if protocol.answers() {
        Ok((4, 2, from >> 16, to >> 16))
    } else {
        Err(Drop::Translation)
    }
}

#[inline(always)]
fn done(result: i64) -> Result<(), Drop> {
    if result == 0 { Ok(()) } else { Err(Drop::Translation) }
}
