//! netpol-common's questions, answered by maps: one generation's slot, one address family.

use core::marker::PhantomData;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_ANY, BPF_F_INNER_MAP, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_fib_lookup, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, lpm_trie::Key},
    helpers::generated::{bpf_get_prandom_u32, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use netpol_common::{
    decide::Desk,
    drops::{Drop, Side},
    event::Told,
    flow::{FlowKey, FlowValue, Generation, Place, Rewrite, Ticks},
    kernel::{self, FragmentKey, FragmentPorts, Kernel, Live, Remembered, Settings},
    nat::{Claim, NatKey, NatState, Translation},
    parse::{V4, V6},
    policy::{PolicyTables, Probe},
    refuse::Answers,
    service::{Affinity, AffinityKey, Backend, MemberKey, ServiceKey, ServiceValue, Uplink},
    socket::{SocketKey, Sockets},
    tables::{
        AddressKey, AddressValue, HookValue, Identity, IfIndex, PairKey, PairValue, PortKey, Range, Ruling, Subject,
    },
    wire::{Addr4, Addr6, Address, Protocol},
};

use crate::{act::Fate, flows, frame::Skb, leave, maps, verified};

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
type Services<A> = HashMap<ServiceKey<A>, ServiceValue, 1>;
type Backends<A> = Array<Backend<A>, 1, { BPF_F_INNER_MAP as usize }>;
type Members<A> = HashMap<MemberKey<A>, u32, 1>;
type Pools<A> = LpmTrie<A, u32, 1>;
type SocketMap<A> = LruHashMap<SocketKey<A>, ServiceKey<A>, 32_768>;
type AffinityMap<A> = LruHashMap<AffinityKey<A>, Affinity<A>, 16_384>;

/// Names the maps of a family. The maps are statics: this is all that differs.
pub trait Maps: Answers {
    type Flows: FlowMap<Self::Address>;
    type Denials: FlowMap<Self::Address>;
    const FLOWS: &'static Self::Flows;
    const DENIALS: &'static Self::Denials;
    type Nat: NatMap<Self::Address>;
    const NAT: &'static Self::Nat;
    const AFFINITY: &'static AffinityMap<Self::Address>;
    const SOCKETS: &'static SocketMap<Self::Address>;

    fn addresses(slot: u32) -> Option<&'static Addresses<Self::Address>>;
    fn networks(slot: u32) -> Option<&'static Networks<Self::Address>>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self::Address>, FragmentPorts, 8192>;
    fn services(slot: u32) -> Option<&'static Services<Self::Address>>;
    fn backends(slot: u32) -> Option<&'static Backends<Self::Address>>;
    fn members(slot: u32) -> Option<&'static Members<Self::Address>>;
    fn pools(slot: u32) -> Option<&'static Pools<Self::Address>>;
    /// The family's address of an uplink.
    fn uplink(uplink: &Uplink) -> Self::Address;
    /// What the kernel's search for a socket wants, and how many bytes of it the family uses.
    fn tuple(sent: &NatKey<Self::Address>) -> (bpf_sock_tuple, u32);
    /// What the kernel is asked of the way of a key's packets, but for where they come from.
    fn question(key: &FlowKey<Self::Address>) -> bpf_fib_lookup;
    /// This CPU's desk.
    fn desk() -> Option<*mut Desk<Self::Address>>;
    /// Where this CPU writes an event.
    fn told() -> Option<*mut Told<Self::Address>>;

    // The family's functions in `verified`.
    fn fast(skb: Skb, place: Place) -> Fate;
    fn again(skb: Skb, place: Place) -> Fate;
    fn send(skb: Skb, place: Place) -> Fate;
    fn confirm(skb: Skb, place: Place) -> Fate;
    fn reset(skb: Skb, place: Place) -> Fate;
    fn unreachable(skb: Skb, place: Place) -> Fate;
    fn identify() -> u32;
    fn resolve() -> u32;
    fn depart(skb: *mut __sk_buff) -> u32;
    fn judge() -> u32;
    fn audit() -> u32;
    fn settle() -> u32;
    fn identify_uplink(skb: *mut __sk_buff) -> u32;
    fn settle_uplink() -> u32;
    fn attempt(skb: *mut __sk_buff) -> u32;
    fn take_hop(skb: Skb, uplink: IfIndex) -> bool;
    fn rewrite(skb: Skb, from: &Rewrite<Self::Address>, to: &Rewrite<Self::Address>, at: u32) -> u32;
    fn unusual(skb: *mut __sk_buff, place: u32) -> u32;
    fn related() -> u32;
    fn related_uplink() -> u32;
    fn rewrite_error(skb: *mut __sk_buff) -> u32;
    fn tell_remembered(skb: Skb);
    fn tell_closing(skb: Skb, key: &FlowKey<Self::Address>);
    fn tell_drop(skb: Skb, place: Place, about: u32);
}

/// An LRU of flows, whatever its size.
pub trait FlowMap<A: Address> {
    fn find(&self, key: &FlowKey<A>) -> Option<*mut FlowValue<A>>;
    fn put(&self, key: &FlowKey<A>, value: &FlowValue<A>) -> Result<(), i32>;
}

impl<A: Address, const N: usize> FlowMap<A> for LruHashMap<FlowKey<A>, FlowValue<A>, N> {
    #[inline(always)]
    fn find(&self, key: &FlowKey<A>) -> Option<*mut FlowValue<A>> {
        self.get_ptr_mut(key)
    }

    #[inline(always)]
    fn put(&self, key: &FlowKey<A>, value: &FlowValue<A>) -> Result<(), i32> {
        self.insert(key, value, u64::from(BPF_ANY))
    }
}

impl Maps for V4 {
    type Flows = LruHashMap<FlowKey<Addr4>, FlowValue<Addr4>, 262_144>;
    type Nat = HashMap<NatKey<Addr4>, Translation<Addr4>, 262_144, { BPF_F_NO_PREALLOC as usize }>;
    type Denials = LruHashMap<FlowKey<Addr4>, FlowValue<Addr4>, 65_536>;
    const FLOWS: &'static Self::Flows = &maps::FLOWS4;
    const DENIALS: &'static Self::Denials = &maps::DENIALS4;
    const NAT: &'static Self::Nat = &maps::NAT4;
    const AFFINITY: &'static AffinityMap<Addr4> = &maps::AFFINITY4;
    const SOCKETS: &'static SocketMap<Addr4> = &maps::SOCKETS4;

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
    fn told() -> Option<*mut Told<Addr4>> {
        maps::TOLD4.get_ptr_mut(0)
    }

    #[inline(always)]
    fn services(slot: u32) -> Option<&'static Services<Addr4>> {
        maps::SERVICES4.get(slot)
    }

    #[inline(always)]
    fn backends(slot: u32) -> Option<&'static Backends<Addr4>> {
        maps::BACKENDS4.get(slot)
    }

    #[inline(always)]
    fn members(slot: u32) -> Option<&'static Members<Addr4>> {
        maps::MEMBERS4.get(slot)
    }

    #[inline(always)]
    fn pools(slot: u32) -> Option<&'static Pools<Addr4>> {
        maps::POOLS4.get(slot)
    }

    #[inline(always)]
    fn uplink(uplink: &Uplink) -> Addr4 {
        uplink.address4
    }

    #[inline(always)]
    fn tuple(sent: &NatKey<Addr4>) -> (bpf_sock_tuple, u32) {
        let (saddr, daddr) = (sent.source.0, sent.destination.0);
        let (sport, dport) = (sent.ports.source().0, sent.ports.destination().0);
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 { saddr, daddr, sport, dport };
        (bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } }, size_of_val(&ipv4) as u32)
    }

    #[inline(always)]
    fn question(key: &FlowKey<Addr4>) -> bpf_fib_lookup {
        let mut asked = question(key, AF_INET);
        asked.__bindgen_anon_3.ipv4_src = key.source.0;
        asked.__bindgen_anon_4.ipv4_dst = key.destination.0;
        asked
    }

    #[inline(always)]
    fn fast(skb: Skb, place: Place) -> Fate {
        // what workloads send is the hottest way of all, and this family's stack frame is small enough
        match place.side() {
            Side::From => flows::fast::<Self>(skb, place),
            Side::To => Fate::unpack(verified::fast4(skb.0, place.0)),
        }
    }

    #[inline(always)]
    fn again(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::again4(skb.0, place.0))
    }

    #[inline(always)]
    fn send(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::send4(skb.0, place.0))
    }

    #[inline(always)]
    fn confirm(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::confirm4(skb.0, place.0))
    }

    #[inline(always)]
    fn reset(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::reset4(skb.0, place.0))
    }

    #[inline(always)]
    fn unreachable(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::unreachable4(skb.0, place.0))
    }

    #[inline(always)]
    fn identify() -> u32 {
        verified::identify4()
    }

    #[inline(always)]
    fn resolve() -> u32 {
        verified::resolve4()
    }

    #[inline(always)]
    fn judge() -> u32 {
        verified::judge4()
    }

    #[inline(always)]
    fn audit() -> u32 {
        verified::audit4()
    }

    #[inline(always)]
    fn settle() -> u32 {
        verified::settle4()
    }

    #[inline(always)]
    fn depart(skb: *mut __sk_buff) -> u32 {
        verified::depart4(skb)
    }

    #[inline(always)]
    fn identify_uplink(skb: *mut __sk_buff) -> u32 {
        verified::identify_uplink4(skb)
    }

    #[inline(always)]
    fn settle_uplink() -> u32 {
        verified::settle_uplink4()
    }

    #[inline(always)]
    fn attempt(skb: *mut __sk_buff) -> u32 {
        verified::attempt4(skb)
    }

    #[inline(always)]
    fn take_hop(skb: Skb, uplink: IfIndex) -> bool {
        verified::hop4(skb.0, uplink.0) == 0
    }

    #[inline(always)]
    fn rewrite(skb: Skb, from: &Rewrite<Addr4>, to: &Rewrite<Addr4>, at: u32) -> u32 {
        // SAFETY: references.
        unsafe { verified::rewrite4(skb.0, from, to, at) }
    }

    #[inline(always)]
    fn unusual(skb: *mut __sk_buff, place: u32) -> u32 {
        verified::unusual4(skb, place)
    }

    #[inline(always)]
    fn related() -> u32 {
        verified::related4()
    }

    #[inline(always)]
    fn related_uplink() -> u32 {
        verified::related_uplink4()
    }

    #[inline(always)]
    fn rewrite_error(skb: *mut __sk_buff) -> u32 {
        verified::rewrite_error4(skb)
    }

    #[inline(always)]
    fn tell_remembered(skb: Skb) {
        verified::tell_remembered4(skb.0);
    }

    #[inline(always)]
    fn tell_closing(skb: Skb, key: &FlowKey<Addr4>) {
        // SAFETY: a reference.
        unsafe { verified::tell_closing4(skb.0, key) };
    }

    #[inline(always)]
    fn tell_drop(skb: Skb, place: Place, about: u32) {
        verified::tell_drop4(skb.0, place.0, about);
    }
}

impl Maps for V6 {
    type Flows = LruHashMap<FlowKey<Addr6>, FlowValue<Addr6>, 131_072>;
    type Nat = HashMap<NatKey<Addr6>, Translation<Addr6>, 131_072, { BPF_F_NO_PREALLOC as usize }>;
    type Denials = LruHashMap<FlowKey<Addr6>, FlowValue<Addr6>, 32_768>;
    const FLOWS: &'static Self::Flows = &maps::FLOWS6;
    const DENIALS: &'static Self::Denials = &maps::DENIALS6;
    const NAT: &'static Self::Nat = &maps::NAT6;
    const AFFINITY: &'static AffinityMap<Addr6> = &maps::AFFINITY6;
    const SOCKETS: &'static SocketMap<Addr6> = &maps::SOCKETS6;

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
    fn told() -> Option<*mut Told<Addr6>> {
        maps::TOLD6.get_ptr_mut(0)
    }

    #[inline(always)]
    fn services(slot: u32) -> Option<&'static Services<Addr6>> {
        maps::SERVICES6.get(slot)
    }

    #[inline(always)]
    fn backends(slot: u32) -> Option<&'static Backends<Addr6>> {
        maps::BACKENDS6.get(slot)
    }

    #[inline(always)]
    fn members(slot: u32) -> Option<&'static Members<Addr6>> {
        maps::MEMBERS6.get(slot)
    }

    #[inline(always)]
    fn pools(slot: u32) -> Option<&'static Pools<Addr6>> {
        maps::POOLS6.get(slot)
    }

    #[inline(always)]
    fn uplink(uplink: &Uplink) -> Addr6 {
        uplink.address6
    }

    #[inline(always)]
    fn tuple(sent: &NatKey<Addr6>) -> (bpf_sock_tuple, u32) {
        let (saddr, daddr) = (sent.source.0, sent.destination.0);
        let (sport, dport) = (sent.ports.source().0, sent.ports.destination().0);
        let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 { saddr, daddr, sport, dport };
        (bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 } }, size_of_val(&ipv6) as u32)
    }

    #[inline(always)]
    fn question(key: &FlowKey<Addr6>) -> bpf_fib_lookup {
        let mut asked = question(key, AF_INET6);
        asked.__bindgen_anon_3.ipv6_src = key.source.0;
        asked.__bindgen_anon_4.ipv6_dst = key.destination.0;
        asked
    }

    #[inline(always)]
    fn fast(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::fast6(skb.0, place.0))
    }

    #[inline(always)]
    fn again(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::again6(skb.0, place.0))
    }

    #[inline(always)]
    fn send(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::send6(skb.0, place.0))
    }

    #[inline(always)]
    fn confirm(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::confirm6(skb.0, place.0))
    }

    #[inline(always)]
    fn reset(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::reset6(skb.0, place.0))
    }

    #[inline(always)]
    fn unreachable(skb: Skb, place: Place) -> Fate {
        Fate::unpack(verified::unreachable6(skb.0, place.0))
    }

    #[inline(always)]
    fn identify() -> u32 {
        verified::identify6()
    }

    #[inline(always)]
    fn resolve() -> u32 {
        verified::resolve6()
    }

    #[inline(always)]
    fn judge() -> u32 {
        verified::judge6()
    }

    #[inline(always)]
    fn audit() -> u32 {
        verified::audit6()
    }

    #[inline(always)]
    fn settle() -> u32 {
        verified::settle6()
    }

    #[inline(always)]
    fn depart(skb: *mut __sk_buff) -> u32 {
        verified::depart6(skb)
    }

    #[inline(always)]
    fn identify_uplink(skb: *mut __sk_buff) -> u32 {
        verified::identify_uplink6(skb)
    }

    #[inline(always)]
    fn settle_uplink() -> u32 {
        verified::settle_uplink6()
    }

    #[inline(always)]
    fn attempt(skb: *mut __sk_buff) -> u32 {
        verified::attempt6(skb)
    }

    #[inline(always)]
    fn take_hop(skb: Skb, uplink: IfIndex) -> bool {
        verified::hop6(skb.0, uplink.0) == 0
    }

    #[inline(always)]
    fn rewrite(skb: Skb, from: &Rewrite<Addr6>, to: &Rewrite<Addr6>, at: u32) -> u32 {
        // SAFETY: references.
        unsafe { verified::rewrite6(skb.0, from, to, at) }
    }

    #[inline(always)]
    fn unusual(skb: *mut __sk_buff, place: u32) -> u32 {
        verified::unusual6(skb, place)
    }

    #[inline(always)]
    fn related() -> u32 {
        verified::related6()
    }

    #[inline(always)]
    fn related_uplink() -> u32 {
        verified::related_uplink6()
    }

    #[inline(always)]
    fn rewrite_error(skb: *mut __sk_buff) -> u32 {
        verified::rewrite_error6(skb)
    }

    #[inline(always)]
    fn tell_remembered(skb: Skb) {
        verified::tell_remembered6(skb.0);
    }

    #[inline(always)]
    fn tell_closing(skb: Skb, key: &FlowKey<Addr6>) {
        // SAFETY: a reference.
        unsafe { verified::tell_closing6(skb.0, key) };
    }

    #[inline(always)]
    fn tell_drop(skb: Skb, place: Place, about: u32) {
        verified::tell_drop6(skb.0, place.0, about);
    }
}

/// socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A question about the way of a key's packets, without addresses.
#[inline(always)]
fn question<A: Address>(key: &FlowKey<A>, family: u8) -> bpf_fib_lookup {
    // SAFETY: integers only.
    let mut asked: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    asked.family = family;
    asked.l4_protocol = key.protocol().0;
    asked.sport = key.ports.source().0;
    asked.dport = key.ports.destination().0;
    asked
}

/// A hash of translations, whatever its size.
pub trait NatMap<A: Address> {
    fn find(&self, key: &NatKey<A>) -> Option<*mut Translation<A>>;
    fn claim(&self, key: &NatKey<A>, half: &Translation<A>) -> Claim;
    fn release(&self, key: &NatKey<A>);
}

impl<A: Address, const N: usize> NatMap<A> for HashMap<NatKey<A>, Translation<A>, N, { BPF_F_NO_PREALLOC as usize }> {
    #[inline(always)]
    fn find(&self, key: &NatKey<A>) -> Option<*mut Translation<A>> {
        self.get_ptr_mut(key)
    }

    #[inline(always)]
    fn claim(&self, key: &NatKey<A>, half: &Translation<A>) -> Claim {
        match self.insert(key, half, u64::from(BPF_NOEXIST)) {
            Ok(()) => Claim::Made,
            Err(EEXIST) => Claim::Taken,
            Err(_) => Claim::Full,
        }
    }

    #[inline(always)]
    fn release(&self, key: &NatKey<A>) {
        // gone already: that is what is wanted
        let _ = self.remove(key);
    }
}

/// `-EEXIST`, asm-generic/errno-base.h.
const EEXIST: i32 = -17;

/// The hook of an interface, in the live slot.
#[inline(always)]
pub fn hook(slot: u32, interface: IfIndex) -> Option<&'static HookValue> {
    let hooks = maps::HOOKS.get(slot)?;
    // SAFETY: inner tables are never changed once published; the kernel frees them after the
    // programs that could see them have ended.
    unsafe { hooks.get(interface.0) }
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
            rewrite: value.rewrite,
        }
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey<F::Address>, value: &FlowValue<F::Address>) -> Result<(), Drop> {
        F::FLOWS.put(key, value).map_err(|_| Drop::FlowTable)
    }

    #[inline(always)]
    fn count_on(&self, key: &FlowKey<F::Address>, value: &mut FlowValue<F::Address>) {
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
    fn remember_denial(&self, key: &FlowKey<F::Address>, value: &FlowValue<F::Address>) {
        // Without room the next packet is judged again: slower, and as safe.
        let _ = F::DENIALS.put(key, value);
    }

    #[inline(always)]
    fn refresh(&self, key: &FlowKey<F::Address>, now: Ticks, ingress: IfIndex) {
        let Some(entry) = F::FLOWS.find(key) else { return };
        // SAFETY: as in `recall`; two aligned words of which each is whole for every reader.
        unsafe {
            (*entry).judged = now;
            if let Side::To = key.place.side() {
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

    #[inline(always)]
    fn is_pooled(&self, address: &F::Address) -> bool {
        let key = Key::new(F::Address::BITS, *address);
        F::pools(self.slot).is_some_and(|pools| pools.get(&key).is_some())
    }

    #[inline(always)]
    fn uplink(&self, interface: IfIndex) -> F::Address {
        let Some(uplinks) = maps::UPLINKS.get(self.slot) else { return F::Address::UNSPECIFIED };
        // SAFETY: see `hook`.
        match unsafe { uplinks.get(interface.0) } {
            Some(uplink) => F::uplink(uplink),
            None => F::Address::UNSPECIFIED,
        }
    }

    #[inline(always)]
    fn route(&self, key: &FlowKey<F::Address>, from: IfIndex) -> IfIndex {
        leave::route::<F>(self.context, key, from)
    }

    #[inline(always)]
    fn translation(&self, key: &NatKey<F::Address>) -> Translation<F::Address> {
        let Some(half) = F::NAT.find(key) else { return Translation::NOTHING };
        // SAFETY: the kernel frees an element when no program can see it any more, but may give it to another
        // key before: the tag tells, which is written with the rest.
        let copy = unsafe { *half };
        if copy.tag == key.tag() { copy } else { Translation::NOTHING }
    }

    #[inline(always)]
    fn claim(&self, key: &NatKey<F::Address>, half: &Translation<F::Address>) -> Claim {
        F::NAT.claim(key, half)
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
