//! A frame at a hook: its bytes, and what the kernel says of it.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_pull_data, bpf_skb_store_bytes},
};
use netpol_common::{
    drops::Drop,
    flow::{Generation, Place},
    headers::{Ethernet, Header, View},
    kernel::Live,
    tables::IfIndex,
    wire::MacWords,
};

use crate::{maps, tables::live};

const PACKET_HOST: u32 = 0;

/// What every stage needs to know of a frame.
#[derive(Clone, Copy)]
pub struct Frame {
    pub skb: Skb,
    pub linear: Linear,
    pub place: Place,
    pub live: Live,
}

impl Frame {
    /// # Errors
    ///
    /// [`Drop::Malformed`]: there is no Ethernet header.
    #[inline(always)]
    pub fn read(skb: Skb, place: Place) -> Result<Self, Drop> {
        let linear = skb.linear();
        let Ethernet { .. } = linear.read(0)?;
        Ok(Self { skb, linear, place, live: live() })
    }

    /// Its link addresses. They are read where they are asked for, which must be before the frame is changed: kept from
    /// the beginning they would cost six words of stack, written and read again, on the way of each packet.
    #[inline(always)]
    pub fn ethernet(&self) -> Ethernet {
        self.linear.read(0).unwrap_or(Ethernet::NONE)
    }
}

/// The readable part of a frame. A GSO frame can have as little as its headers in it.
#[derive(Clone, Copy)]
pub struct Linear {
    data: usize,
    end: usize,
}

/// What the kernel keeps beside a frame's bytes.
#[derive(Clone, Copy)]
pub struct Skb(pub *mut __sk_buff);

impl Skb {
    /// Reads a field of the context.
    #[inline(always)]
    fn get(self) -> &'static __sk_buff {
        // SAFETY: the context that the kernel gave to the program, valid while it runs.
        unsafe { &*self.0 }
    }

    #[inline(always)]
    pub fn linear(self) -> Linear {
        Linear { data: self.get().data as usize, end: self.get().data_end as usize }
    }

    /// Makes up to `bytes` of the frame readable.
    #[inline(always)]
    pub fn pull(self, bytes: u32) {
        let bytes = if bytes < self.bytes() { bytes } else { self.bytes() };
        // SAFETY: a live context. Failure leaves the frame as it was, and reading finds it short.
        unsafe { bpf_skb_pull_data(self.0, bytes) };
    }

    #[inline(always)]
    pub fn interface(self) -> IfIndex {
        IfIndex(self.get().ifindex)
    }

    /// The interface that received the frame; none for the host's own.
    #[inline(always)]
    pub fn ingress(self) -> IfIndex {
        IfIndex(self.get().ingress_ifindex)
    }

    #[inline(always)]
    pub fn bytes(self) -> u32 {
        self.get().len
    }

    /// The frame is for this host: neither for a neighbour, whose frames a switch floods, nor for a group
    /// (`PACKET_HOST`, linux/if_packet.h).
    #[inline(always)]
    pub fn is_for_host(self) -> bool {
        self.get().pkt_type == PACKET_HOST
    }

    /// How many packets the frame is on the wire.
    #[inline(always)]
    pub fn packets(self) -> u32 {
        let segments = self.get().gso_segs;
        if segments > 1 { segments } else { 1 }
    }

    /// A VLAN tag that the kernel keeps beside the frame.
    #[inline(always)]
    pub fn is_tagged(self) -> bool {
        self.get().vlan_present != 0
    }

    /// Whether the classifier at the sender's interface has just allowed this frame to the interface that
    /// it is at. Frames from elsewhere can carry any value: [`Skb::ingress`] must be an interface of ours.
    #[inline(always)]
    pub fn is_vouched(self) -> bool {
        self.get().tc_index == vouch(self.interface())
    }

    /// Tells the classifier at the interface that this frame was judged, for both ends.
    ///
    /// `tc_index` is the kernel's own room for what ingress has to say to egress; bridges and routing
    /// leave it alone.
    #[inline(always)]
    pub fn vouch_for(self, interface: IfIndex) {
        // SAFETY: a live context, and `tc_index` is writable for classifiers.
        unsafe { (*self.0).tc_index = vouch(interface) }
    }

    /// Vouches for a frame that goes straight out of an uplink, as an entry of this generation says: so its interface has a
    /// hook in it. The classifier there, usually the next that runs on this CPU, need not ask that again.
    #[inline(always)]
    pub fn leaves_by(self, uplink: IfIndex, generation: Generation) {
        self.vouch_for(uplink);
        let Some(last) = maps::LAST_OUT.get_ptr_mut(0) else { return };
        // SAFETY: this CPU's word.
        unsafe { *last = came_by(self.ingress(), generation) };
    }

    /// Whether the interface that received the frame is known to have a hook. Nothing is said about the frame itself.
    #[inline(always)]
    pub fn came_like_the_last(self, generation: Generation) -> bool {
        // SAFETY: as above.
        maps::LAST_OUT.get_ptr(0).is_some_and(|last| unsafe { *last } == came_by(self.ingress(), generation))
    }

    /// Takes away whatever a container may have written there.
    #[inline(always)]
    pub fn clear_vouch(self) {
        // SAFETY: as above.
        unsafe {
            if (*self.0).tc_index != 0 {
                (*self.0).tc_index = 0;
            }
        }
    }

    /// Writes the MAC address of whom the link brings the frame to. `false`: it is as it was.
    #[inline(always)]
    pub fn address_to(self, mac: MacWords) -> bool {
        // SAFETY: a live context, and six readable bytes, to the beginning of the frame.
        unsafe { bpf_skb_store_bytes(self.0, 0, (&raw const mac).cast(), size_of::<MacWords>() as u32, 0) == 0 }
    }

    /// Forgets the host's mark: it would survive into the container's namespace.
    #[inline(always)]
    pub fn clear_mark(self) {
        // SAFETY: a live context, and `mark` is writable for classifiers.
        unsafe {
            if (*self.0).mark != 0 {
                (*self.0).mark = 0;
            }
        }
    }
}

impl Linear {
    #[inline(always)]
    pub(crate) fn len(self) -> usize {
        self.end - self.data
    }
}

impl View for Linear {
    #[inline(always)]
    fn read<H: Header>(&self, offset: usize) -> Result<H, Drop> {
        let at = self.data + offset;
        if at + size_of::<H>() > self.end {
            return Err(Drop::Malformed);
        }
        // SAFETY: inside the frame (checked above, as the verifier proves). Frames begin at even
        // addresses and headers lie at even offsets; every bit pattern is a valid header.
        Ok(unsafe { *(at as *const H) })
    }

    /// One load for each: from what is aligned to 2 the compiler reads halves, and puts them together. (In the verifier's
    /// count, which begins two bytes before the frame, the addresses of a packet are aligned to 4.) The offset must be a
    /// constant: else the address is computed anew for the assembly, and the verifier does not know that it was checked.
    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    fn words(&self, offset: usize) -> Result<[u32; 2], Drop> {
        let at = self.data + offset;
        if at + size_of::<[u32; 2]>() > self.end {
            return Err(Drop::Malformed);
        }
        let (first, second);
        // SAFETY: inside the frame (checked above, as the verifier proves).
        unsafe {
            core::arch::asm!(
                "{first} = *(u32 *)({at} + 0)",
                "{second} = *(u32 *)({at} + 4)",
                at = in(reg) at,
                first = out(reg) first,
                second = lateout(reg) second,
                options(pure, readonly, nostack),
            );
        }
        Ok([first, second])
    }
}

/// By which interface a frame came (bits 0-31), and the generation in which it left.
#[inline(always)]
const fn came_by(interface: IfIndex, generation: Generation) -> u64 {
    (generation.0 as u64) << 32 | interface.0 as u64
}

/// What `tc_index` (16 bits) says of a frame that may go to the interface; never 0.
#[inline(always)]
const fn vouch(interface: IfIndex) -> u32 {
    let low = interface.0 & 0xffff;
    if low == 0 { 0xffff } else { low }
}
