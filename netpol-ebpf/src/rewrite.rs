//! Translated packets: other addresses and ports, and checksums that fit.
//!
//! The helpers know what a checksum field holds: the whole sum, or only the pseudo-header's where hardware (or nobody,
//! between containers) adds the rest.

use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes};
use netpol_common::{
    drops::Drop,
    flow::{FlowKey, KeyProtocol, Rewrite},
    parse::{Family, NETWORK},
    wire::{Address, Protocol},
};

use crate::frame::Skb;

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
const fn checksum(protocol: Protocol) -> Option<(u32, u64)> {
    match protocol {
        Protocol::TCP => Some((16, PSEUDO_HEADER)),
        Protocol::UDP | Protocol::UDPLITE => Some((6, PSEUDO_HEADER | ZERO_IS_NONE)),
        Protocol::ICMP => Some((2, 0)),
        Protocol::ICMPV6 => Some((2, PSEUDO_HEADER)),
        _ => None,
    }
}

/// Rewrites a packet that is as `from` says.
#[inline(always)]
pub fn rewrite<F: Family>(skb: Skb, from: &Rewrite<F::Address>, to: &Rewrite<F::Address>, at: u32) -> Result<(), Drop> {
    let (transport, protocol) = (at & 0xffff, KeyProtocol::from_word(at >> 16));
    let sum = if transport == 0 { None } else { checksum(protocol.protocol()) };
    if from.source != to.source || from.destination != to.destination {
        addresses::<F>(skb, (from, to), transport, sum)?;
    }
    if transport != 0 && from.ports.word() != to.ports.word() {
        ports(skb, (from.ports.word(), to.ports.word()), (transport, protocol), sum)?;
    }
    Ok(())
}

#[inline(always)]
fn addresses<F: Family>(
    skb: Skb,
    (from, to): (&Rewrite<F::Address>, &Rewrite<F::Address>),
    transport: u32,
    sum: Option<(u32, u64)>,
) -> Result<(), Drop> {
    const { assert!(F::Address::BITS == 32 || F::Address::BITS == 128) };
    let size = 2 * F::Address::BITS / 8;
    let (old, new) = ((&raw const *from).cast_mut().cast(), (&raw const *to).cast_mut().cast());
    // SAFETY: both begin with two addresses, `size` bytes.
    let difference = unsafe { bpf_csum_diff(old, size, new, size, 0) } as u64;
    if let Some(offset) = F::CHECKSUM {
        // SAFETY: a live context; offsets outside of the frame are refused.
        done(unsafe { bpf_l3_csum_replace(skb.0, (NETWORK + offset) as u32, 0, difference, 0) })?;
    }
    if let Some((offset, flags)) = sum
        && flags & PSEUDO_HEADER != 0
    {
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(skb.0, transport + offset, 0, difference, flags) })?;
    }
    // SAFETY: as above, and `size` readable bytes.
    done(unsafe { bpf_skb_store_bytes(skb.0, (NETWORK + F::ADDRESSES) as u32, new.cast(), size, 0) })
}

#[inline(always)]
fn ports(
    skb: Skb,
    (from, to): (u32, u32),
    (transport, protocol): (u32, KeyProtocol),
    sum: Option<(u32, u64)>,
) -> Result<(), Drop> {
    // ports begin the header; of ICMP the identifier is the asker's port
    let (offset, size, from, to) = if protocol.protocol().has_ports() {
        (0, 4, from, to)
    } else if protocol.asks() {
        (4, 2, from & 0xffff, to & 0xffff)
    } else if protocol.answers() {
        (4, 2, from >> 16, to >> 16)
    } else {
        return Err(Drop::Translation);
    };
    let Some((checksum, flags)) = sum else { return Err(Drop::Translation) };
    let flags = flags & ZERO_IS_NONE | size;
    // SAFETY: a live context; offsets outside of the frame are refused.
    done(unsafe { bpf_l4_csum_replace(skb.0, transport + checksum, u64::from(from), u64::from(to), flags) })?;
    let bytes = to;
    // SAFETY: as above, and at most four readable bytes: the first two of a little-endian word are its low half.
    done(unsafe { bpf_skb_store_bytes(skb.0, transport + offset, (&raw const bytes).cast(), size as u32, 0) })
}

#[inline(always)]
fn done(result: i64) -> Result<(), Drop> {
    if result == 0 { Ok(()) } else { Err(Drop::Translation) }
}
