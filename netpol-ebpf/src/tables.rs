//! netpol-common's questions, answered by maps: one generation's slot, one address family.

use core::marker::PhantomData;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY},
    btf_maps::{HashMap, LpmTrie, LruHashMap, lpm_trie::Key},
};
use netpol_common::{
    decide::Desk,
    drops::Drop,
    flow::{FlowKey, FlowValue, Generation, Ticks},
    kernel::{FragmentKey, FragmentPorts, Kernel, Live, Remembered, Settings},
    parse::{Family, V4, V6},
    policy::{PolicyTables, Probe},
    tables::{
        AddressKey, AddressValue, HookValue, Identity, IfIndex, PairKey, PairValue, PortKey, Range, Ruling, Subject,
    },
    wire::{Addr4, Addr6, Address},
};

use crate::{maps, verified};

/// The published generation and settings, read once per packet.
#[inline(always)]
pub fn live() -> Live {
    let word = match maps::LIVE.get_ptr(0) {
        // SAFETY: an aligned word of an array map; the loader writes it whole.
        Some(word) => unsafe { core::ptr::read_volatile(word) },
        None => 0,
    };
    Live { settings: Settings(word as u32), generation: Generation((word >> 32) as u32) }
}

type Addresses<A> = HashMap<AddressKey<A>, AddressValue, 1>;
type Networks<A> = LpmTrie<A, Identity, 1>;

/// Names the maps of a family. The maps are statics: this is all that differs.
pub trait Maps: Family {
    type Flows: FlowMap<Self::Address>;
    type Denials: FlowMap<Self::Address>;
    const FLOWS: &'static Self::Flows;
    const DENIALS: &'static Self::Denials;

    fn addresses(slot: u32) -> Option<&'static Addresses<Self::Address>>;
    fn networks(slot: u32) -> Option<&'static Networks<Self::Address>>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self::Address>, FragmentPorts, 8192>;
    /// This CPU's desk.
    fn desk() -> Option<*mut Desk<Self::Address>>;

    // The family's functions in `verified`.
    fn slow() -> u32;
    fn unusual(skb: *mut __sk_buff, place: u32) -> u32;
    fn related() -> u32;
}

/// An LRU of flows, whatever its size.
pub trait FlowMap<A: Address> {
    fn find(&self, key: &FlowKey<A>) -> Option<*mut FlowValue>;
    fn put(&self, key: &FlowKey<A>, value: &FlowValue) -> Result<(), i32>;
}

impl<A: Address, const N: usize> FlowMap<A> for LruHashMap<FlowKey<A>, FlowValue, N> {
    #[inline(always)]
    fn find(&self, key: &FlowKey<A>) -> Option<*mut FlowValue> {
        self.get_ptr_mut(key)
    }

    #[inline(always)]
    fn put(&self, key: &FlowKey<A>, value: &FlowValue) -> Result<(), i32> {
        self.insert(key, value, u64::from(BPF_ANY))
    }
}

impl Maps for V4 {
    type Flows = LruHashMap<FlowKey<Addr4>, FlowValue, 262_144>;
    type Denials = LruHashMap<FlowKey<Addr4>, FlowValue, 65_536>;
    const FLOWS: &'static Self::Flows = &maps::FLOWS4;
    const DENIALS: &'static Self::Denials = &maps::DENIALS4;

    #[inline(always)]
    fn addresses(slot: u32) -> Option<&'static Addresses<Addr4>> {
        maps::ADDRESSES4.get(slot)
    }

    #[inline(always)]
    fn networks(slot: u32) -> Option<&'static Networks<Addr4>> {
        maps::NETWORKS4.get(slot)
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Addr4>, FragmentPorts, 8192> {
        &maps::FRAGMENTS4
    }

    #[inline(always)]
    fn desk() -> Option<*mut Desk<Addr4>> {
        maps::DESK4.get_ptr_mut(0)
    }

    #[inline(always)]
    fn slow() -> u32 {
        verified::slow4()
    }

    #[inline(always)]
    fn unusual(skb: *mut __sk_buff, place: u32) -> u32 {
        verified::unusual4(skb, place)
    }

    #[inline(always)]
    fn related() -> u32 {
        verified::related4()
    }
}

impl Maps for V6 {
    type Flows = LruHashMap<FlowKey<Addr6>, FlowValue, 131_072>;
    type Denials = LruHashMap<FlowKey<Addr6>, FlowValue, 32_768>;
    const FLOWS: &'static Self::Flows = &maps::FLOWS6;
    const DENIALS: &'static Self::Denials = &maps::DENIALS6;

    #[inline(always)]
    fn addresses(slot: u32) -> Option<&'static Addresses<Addr6>> {
        maps::ADDRESSES6.get(slot)
    }

    #[inline(always)]
    fn networks(slot: u32) -> Option<&'static Networks<Addr6>> {
        maps::NETWORKS6.get(slot)
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Addr6>, FragmentPorts, 8192> {
        &maps::FRAGMENTS6
    }

    #[inline(always)]
    fn desk() -> Option<*mut Desk<Addr6>> {
        maps::DESK6.get_ptr_mut(0)
    }

    #[inline(always)]
    fn slow() -> u32 {
        verified::slow6()
    }

    #[inline(always)]
    fn unusual(skb: *mut __sk_buff, place: u32) -> u32 {
        verified::unusual6(skb, place)
    }

    #[inline(always)]
    fn related() -> u32 {
        verified::related6()
    }
}

/// The hook of an interface, in the live slot.
#[inline(always)]
pub fn hook(slot: u32, interface: IfIndex) -> Option<&'static HookValue> {
    let hooks = maps::HOOKS.get(slot)?;
    // SAFETY: inner tables are never changed once published; the kernel frees them after the
    // programs that could see them have ended.
    unsafe { hooks.get(interface.0) }
}

/// One generation's tables and the flows, for one address family.
pub struct Tables<F> {
    slot: u32,
    family: PhantomData<F>,
}

impl<F: Maps> Tables<F> {
    #[inline(always)]
    pub fn of(generation: Generation) -> Self {
        Self { slot: generation.slot(), family: PhantomData }
    }
}

impl<F: Maps> PolicyTables for Tables<F> {
    #[inline(always)]
    fn pair(&self, key: &PairKey) -> Option<&PairValue> {
        // SAFETY: see `hook`.
        unsafe { maps::PAIRS.get(self.slot)?.get(key) }
    }

    #[inline(always)]
    fn port(&self, key: &PortKey) -> Option<&Ruling> {
        // SAFETY: see `hook`.
        unsafe { maps::PORTS.get(self.slot)?.get(key) }
    }

    #[inline(always)]
    fn range(&self, index: u32) -> Option<&Range> {
        maps::RANGES.get(self.slot)?.get(index)
    }

    #[inline(always)]
    fn verdict(&self, subject: Subject, peer: Identity, probe: Probe) -> Option<Ruling> {
        match verified::policy_verdict(self.slot, subject.0, peer.0, probe.pack()) {
            verified::UNKNOWN => None,
            ruling => Some(Ruling(ruling)),
        }
    }
}

impl<F: Maps> Kernel<F::Address> for Tables<F> {
    #[inline(always)]
    fn hook(&self, interface: IfIndex) -> Option<&HookValue> {
        hook(self.slot, interface)
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey<F::Address>) -> Option<&AddressValue> {
        // SAFETY: see `hook`.
        unsafe { F::addresses(self.slot)?.get(key) }
    }

    #[inline(always)]
    fn network(&self, address: &F::Address) -> Option<&Identity> {
        let key = Key::new(F::Address::BITS, *address);
        F::networks(self.slot)?.get(&key)
    }

    #[inline(always)]
    fn recall(&self, key: &FlowKey<F::Address>) -> Remembered {
        let Some(entry) = F::FLOWS.find(key) else { return Remembered::NOTHING };
        // SAFETY: elements of a preallocated map stay mapped. Another CPU may write meanwhile: the
        // tag tells whether this was read from the flow that it was looked up for.
        let value = unsafe { &*entry };
        let word = value.word;
        if word.tag() != key.tag() {
            return Remembered::NOTHING;
        }
        Remembered {
            word,
            packets: value.packets,
            bytes: value.bytes,
            seen: value.seen,
            judged: value.judged,
            tcp_flags: value.tcp_flags,
        }
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey<F::Address>, value: &FlowValue) -> Result<(), Drop> {
        F::FLOWS.put(key, value).map_err(|_| Drop::FlowTable)
    }

    #[inline(always)]
    fn count_on(&self, key: &FlowKey<F::Address>, value: &mut FlowValue) {
        if let Some(before) = F::DENIALS.find(key) {
            // SAFETY: as in `recall`.
            let before = unsafe { &*before };
            if before.word.tag() == key.tag() {
                value.packets += before.packets;
                value.bytes += before.bytes;
            }
        }
    }

    #[inline(always)]
    fn remember_denial(&self, key: &FlowKey<F::Address>, value: &FlowValue) {
        // Without room the next packet is judged again: slower, and as safe.
        let _ = F::DENIALS.put(key, value);
    }

    #[inline(always)]
    fn refresh(&self, key: &FlowKey<F::Address>, now: Ticks, ingress: IfIndex) {
        let Some(entry) = F::FLOWS.find(key) else { return };
        // SAFETY: as in `recall`; two aligned words of which each is whole for every reader.
        unsafe {
            (*entry).judged = now;
            if let netpol_common::drops::Side::To = key.place.side() {
                (*entry).ifindex = ingress;
            }
        }
    }

    #[inline(always)]
    fn admit(&self, interface: IfIndex, now: Ticks) -> bool {
        let Some(bucket) = maps::RATES.get_ptr_mut(interface.0 % maps::RATES_ROOM) else { return false };
        // SAFETY: as in `recall`. Two CPUs may take the same token: the limit is approximate.
        unsafe {
            let Some(rest) = (*bucket).take(now) else { return false };
            *bucket = rest;
        }
        true
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<F::Address>) -> Option<&FragmentPorts> {
        // SAFETY: as in `recall`.
        unsafe { F::fragments().get(key) }
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey<F::Address>, ports: &FragmentPorts) {
        // Without room the later fragments are dropped and counted.
        let _ = F::fragments().insert(key, ports, u64::from(BPF_ANY));
    }
}
