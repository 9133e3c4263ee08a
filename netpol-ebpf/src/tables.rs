//! netpol-common's questions, answered by maps: one generation's slot, one address family.

use core::marker::PhantomData;

use aya_ebpf::{
    bindings::BPF_ANY,
    btf_maps::lpm_trie::Key,
    helpers::generated::{bpf_get_prandom_u32, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use netpol_common::{
    drops::Drop,
    flow::{FlowKey, FlowValue, Generation, Rewrite, Ticks},
    kernel::{self, FragmentKey, FragmentPorts, Kernel, Live, Remembered, Settings, Way},
    nat::{Claim, NatKey, NatState, Translation},
    policy::{PolicyTables, Probe},
    service::{Affinity, AffinityKey, Backend, MemberKey, ServiceKey, ServiceValue, Uplink},
    socket::{SocketKey, Sockets},
    tables::{
        AddressKey, AddressValue, HookValue, Identity, IfIndex, PairKey, PairValue, PortKey, Range, Ruling, Subject,
    },
    wire::{Address, Protocol},
};

use crate::{
    denials::DenialMap as _,
    family::{Maps, NatMap as _},
    frame::Skb,
    leave, maps, verified,
};

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

/// The hook of an interface, in the live slot.
#[inline(always)]
pub fn hook(slot: u32, interface: IfIndex) -> Option<&'static HookValue> {
    let hooks = maps::HOOKS.get(slot)?;
    // SAFETY: inner tables are never changed once published; the kernel frees them after the
    // programs that could see them have ended.
    unsafe { hooks.get(interface.0) }
}

/// An interface to the outside.
#[inline(always)]
pub fn uplink(slot: u32, interface: IfIndex) -> Option<&'static Uplink> {
    let uplinks = maps::UPLINKS.get(slot)?;
    // SAFETY: see `hook`.
    unsafe { uplinks.get(interface.0) }
}

/// One generation's tables and the flows, for one address family. What is asked about a packet needs its context;
/// services need none.
pub struct Tables<F, C = Skb> {
    context: C,
    slot: u32,
    family: PhantomData<F>,
}

impl<F: Maps, C> Tables<F, C> {
    #[inline(always)]
    pub fn of(context: C, generation: Generation) -> Self {
        Self { context, slot: generation.slot(), family: PhantomData }
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

impl<F: Maps, C> kernel::Services<F::Address> for Tables<F, C> {
    #[inline(always)]
    fn service(&self, key: &ServiceKey<F::Address>) -> Option<&ServiceValue> {
        // SAFETY: see `hook`.
        unsafe { F::services(self.slot)?.get(key) }
    }

    #[inline(always)]
    fn backend(&self, entry: u32) -> Option<&Backend<F::Address>> {
        let index = maps::MAGLEV.get(self.slot)?.get(entry)?;
        F::backends(self.slot)?.get(*index)
    }

    #[inline(always)]
    fn has_member(&self, key: &MemberKey<F::Address>) -> bool {
        let Some(members) = F::members(self.slot) else { return false };
        // SAFETY: see `hook`.
        unsafe { members.get(key).is_some() }
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<F::Address>) -> Option<&Affinity<F::Address>> {
        // SAFETY: as in `recall`; a backend that is read in halves is none of the service's.
        unsafe { F::AFFINITY.get(key) }
    }

    #[inline(always)]
    fn stay(&self, key: &AffinityKey<F::Address>, with: &Affinity<F::Address>) {
        // Without room the client's next connection goes where the table says.
        let _ = F::AFFINITY.insert(key, with, u64::from(BPF_ANY));
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
    fn recall(&self, key: &FlowKey<F::Address>) -> Remembered<F::Address> {
        let Some(found) = F::FLOWS.find(key) else { return Remembered::NOTHING };
        // SAFETY: elements of an array map stay mapped. Another CPU may write meanwhile, which is asked after.
        let value = unsafe { &*found.entry() };
        let mut remembered = Remembered {
            word: found.word,
            packets: value.packets,
            bytes: value.bytes,
            seen: value.seen,
            judged: value.judged,
            ifindex: value.ifindex,
            source_mac: value.source_mac,
            tcp_flags: value.tcp_flags,
            rewrite: value.rewrite,
        };
        if !found.is_still_of(key) {
            remembered.forget();
        }
        remembered
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey<F::Address>, value: &FlowValue<F::Address>) -> Result<(), Drop> {
        if F::put(key, value) { Ok(()) } else { Err(Drop::FlowTable) }
    }

    #[inline(always)]
    fn remember_denial(&self, key: &FlowKey<F::Address>, value: &mut FlowValue<F::Address>) {
        F::DENIALS.put(key, value);
    }

    #[inline(always)]
    fn refresh(&self, key: &FlowKey<F::Address>, generation: Generation, now: Ticks) -> bool {
        F::refresh(key, generation, now)
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

    #[inline(always)]
    fn is_pooled(&self, address: &F::Address) -> bool {
        let key = Key::new(F::Address::BITS, *address);
        F::pools(self.slot).is_some_and(|pools| pools.get(&key).is_some())
    }

    #[inline(always)]
    fn uplink(&self, interface: IfIndex) -> F::Address {
        match uplink(self.slot, interface) {
            Some(uplink) => F::uplink(uplink),
            None => F::Address::UNSPECIFIED,
        }
    }

    #[inline(always)]
    fn route(&self, key: &FlowKey<F::Address>, from: IfIndex) -> Way<F::Address> {
        leave::route::<F>(self.context, self.slot, key, from)
    }

    #[inline(always)]
    fn translation(&self, key: &NatKey<F::Address>, half: &mut Translation<F::Address>) -> bool {
        half.state = NatState::NOTHING;
        let Some(found) = F::NAT.find(key) else { return false };
        // SAFETY: the memory of elements stays the map's. The kernel may give one to another key meanwhile: the tag tells,
        // which is written with the rest.
        half.copy_from(unsafe { &*found });
        if half.tag != key.tag() {
            half.state = NatState::NOTHING;
        }
        half.exists()
    }

    #[inline(always)]
    fn claim(&self, key: &NatKey<F::Address>, half: &Translation<F::Address>) -> Claim {
        F::NAT.claim(key, half)
    }

    #[inline(always)]
    fn tell(&self, key: &NatKey<F::Address>, to: &Rewrite<F::Address>, now: Ticks, tcp_flags: u8) -> NatState {
        let Some(half) = F::NAT.find(key) else { return NatState::NOTHING };
        // SAFETY: as in `translation`; two aligned words, each whole for every reader. If the element is given to another key
        // in between, that stays the half which it is.
        unsafe {
            if (*half).tag != key.tag() || (*half).rewrite != *to {
                return NatState::NOTHING;
            }
            let state = (*half).state.after(tcp_flags, (*half).is_reply());
            (*half).seen = now;
            (*half).state = (*half).state.moved(state);
            state
        }
    }

    #[inline(always)]
    fn renew(&self, key: &NatKey<F::Address>, now: Ticks, state: NatState) {
        let Some(half) = F::NAT.find(key) else { return };
        // SAFETY: as in `translation`; two aligned words, each whole for every reader.
        unsafe {
            (*half).seen = now;
            (*half).state = (*half).state.moved(state);
        }
    }

    #[inline(always)]
    fn release(&self, key: &NatKey<F::Address>) {
        F::NAT.release(key);
    }

    #[inline(always)]
    fn is_bound(&self, sent: &NatKey<F::Address>) -> bool {
        let (mut tuple, size) = F::tuple(sent);
        let tuple = &raw mut tuple;
        // SAFETY: a live context, and `size` bytes of the tuple. Sockets are searched in the namespace of the interface.
        let socket = unsafe {
            match sent.protocol.protocol() {
                Protocol::TCP => bpf_skc_lookup_tcp(self.context.0.cast(), tuple, size, HERE, 0),
                Protocol::UDP => bpf_sk_lookup_udp(self.context.0.cast(), tuple, size, HERE, 0),
                _ => return false,
            }
        };
        if socket.is_null() {
            return false;
        }
        // SAFETY: the reference that the search has taken.
        unsafe { bpf_sk_release(socket.cast()) };
        true
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }
}

impl<F: Maps, C> Sockets<F::Address> for Tables<F, C> {
    #[inline(always)]
    fn note(&self, key: &SocketKey<F::Address>, wanted: &ServiceKey<F::Address>) {
        // Without room the answer's own address is shown.
        let _ = F::SOCKETS.insert(key, wanted, u64::from(BPF_ANY));
    }
}

/// `BPF_F_CURRENT_NETNS`
const HERE: u64 = -1i32 as u64;
