//! The two address families: the maps and the verified functions of each, by the names that the rest of the code uses.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INNER_MAP, BPF_NOEXIST, bpf_fib_lookup, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap},
};
use netpol_common::{
    decide::{Desk, NextHop},
    drops::Drop,
    event::Told,
    flow::{FlowKey, FlowValue, Generation, Place, Ticks},
    kernel::{FragmentKey, FragmentPorts},
    nat::{Claim, NatKey, Translation},
    parse::{Followed, Ip, V4, V6},
    refuse::Answers,
    service::{Affinity, AffinityKey, Backend, MemberKey, ServiceKey, ServiceValue, Uplink},
    socket::SocketKey,
    tables::{AddressKey, AddressValue, Identity, IfIndex},
    wire::{Addr4, Addr6, Address},
};

use crate::{
    act::Fate,
    denials::{DenialMap, Denials},
    frame::Skb,
    maps,
    places::{self, Table},
    verified,
};

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
    type Denials: DenialMap<Self::Address>;
    const FLOWS: Table<Self::Address>;
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
    fn question<'a>(room: &'a mut MaybeUninit<bpf_fib_lookup>, key: &FlowKey<Self::Address>) -> &'a mut bpf_fib_lookup;
    /// The next hop that it has answered; unspecified: one of the other family.
    fn answer(asked: &bpf_fib_lookup) -> Self::Address;
    /// Writes down who the next hop is, as the kernel is told. (The rest stays empty: to write it would be a call.)
    #[inline(always)]
    fn leads_to(next: &mut NextHop<Self::Address>, address: Self::Address) {
        next.family = if Self::Address::BITS == 32 { AF_INET.into() } else { AF_INET6.into() };
        next.address = address;
    }
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
    fn renew() -> u32;
    fn identify() -> u32;
    fn resolve() -> u32;
    fn depart(skb: *mut __sk_buff) -> u32;
    fn judge() -> u32;
    fn audit() -> u32;
    fn settle() -> u32;
    fn identify_uplink(skb: *mut __sk_buff) -> u32;
    fn settle_uplink() -> u32;
    fn attempt(skb: *mut __sk_buff) -> u32;
    fn may_leave(skb: Skb, uplink: IfIndex) -> bool;
    fn unusual(skb: *mut __sk_buff, place: u32) -> u32;
    /// [`Family::follow`](netpol_common::parse::Family::follow) of a packet whose header was read.
    fn followed(skb: Skb, ip: Ip<Self::Address>) -> Result<Ip<Self::Address>, Drop>;
    fn related() -> u32;
    fn related_uplink() -> u32;
    fn rewrite_error(skb: *mut __sk_buff) -> u32;
    fn tell_remembered(skb: Skb);
    fn tell_closing(skb: Skb, key: &FlowKey<Self::Address>, value: &FlowValue<Self::Address>);
    /// [`Table::refresh`].
    fn refresh(key: &FlowKey<Self::Address>, generation: Generation, now: Ticks) -> bool;
    /// [`Table::put`]. `false`: there is no table.
    fn put(key: &FlowKey<Self::Address>, value: &FlowValue<Self::Address>) -> bool;
    fn tell_drop(skb: Skb, place: Place, about: u32);
}

/// Binds a family's names to its maps and functions.
macro_rules! family {
    (
        $family:ident, $address:ident;
        flows { $flows:ident, $blocks:ident; }
        denials { $denials:ident; }
        nat { $nat_room:literal = $nat:ident; }
        others { affinity = $affinity:ident; sockets = $sockets:ident; fragments = $fragments:ident; }
        scratch { $($scratch:ident: $content:ident = $scratch_map:ident;)* }
        slots { $($slot:ident: $table:ident = $slots:ident;)* }
        ways { $($way:ident = $verified_way:ident;)* }
        stages { $($stage:ident = $verified_stage:ident;)* }
        stages_of_packet { $($asking:ident = $verified_asking:ident;)* }
        refresh = $refresh:ident; put = $put:ident; may_leave = $may_leave:ident; unusual = $unusual:ident;
        tell { $remembered:ident, $closing:ident, $drop:ident; }
        { $($own:tt)* }
    ) => {
        impl Maps for $family {
            const FLOWS: Table<$address> = Table::new(&maps::$flows, &places::$blocks);
            type Denials = Denials<$address>;
            const DENIALS: &'static Self::Denials = &maps::$denials;
            type Nat = HashMap<NatKey<$address>, Translation<$address>, $nat_room>;
            const NAT: &'static Self::Nat = &maps::$nat;
            const AFFINITY: &'static AffinityMap<$address> = &maps::$affinity;
            const SOCKETS: &'static SocketMap<$address> = &maps::$sockets;

            #[inline(always)]
            fn fragments() -> &'static LruHashMap<FragmentKey<$address>, FragmentPorts, 8192> {
                &maps::$fragments
            }

            $(
                #[inline(always)]
                fn $scratch() -> Option<*mut $content<$address>> {
                    maps::$scratch_map.get_ptr_mut(0)
                }
            )*

            $(
                #[inline(always)]
                fn $slot(slot: u32) -> Option<&'static $table<$address>> {
                    maps::$slots.get(slot)
                }
            )*

            $(
                #[inline(always)]
                fn $way(skb: Skb, place: Place) -> Fate {
                    Fate::unpack(verified::$verified_way(skb.0, place.0))
                }
            )*

            $(
                #[inline(always)]
                fn $stage() -> u32 {
                    verified::$verified_stage()
                }
            )*

            $(
                #[inline(always)]
                fn $asking(skb: *mut __sk_buff) -> u32 {
                    verified::$verified_asking(skb)
                }
            )*

            #[inline(always)]
            fn may_leave(skb: Skb, uplink: IfIndex) -> bool {
                verified::$may_leave(skb.0, uplink.0) == 0
            }

            #[inline(always)]
            fn unusual(skb: *mut __sk_buff, place: u32) -> u32 {
                verified::$unusual(skb, place)
            }

            #[inline(always)]
            fn tell_remembered(skb: Skb) {
                verified::$remembered(skb.0);
            }

            #[inline(always)]
            fn tell_closing(skb: Skb, key: &FlowKey<$address>, value: &FlowValue<$address>) {
                // SAFETY: references.
                unsafe { verified::$closing(skb.0, key, value) };
            }

            #[inline(always)]
            fn refresh(key: &FlowKey<$address>, generation: Generation, now: Ticks) -> bool {
                // SAFETY: a reference.
                unsafe { verified::$refresh(key, generation.0, now.0) != 0 }
            }

            #[inline(always)]
            fn put(key: &FlowKey<$address>, value: &FlowValue<$address>) -> bool {
                // SAFETY: references.
                let put = || unsafe { verified::$put(key, value) };
                let outcome = put();
                // whoever is in the way a second time, too, leaves it out, as if it had been evicted since
                let outcome = if outcome == verified::AGAIN { put() } else { outcome };
                outcome == 0 || outcome == verified::AGAIN
            }

            #[inline(always)]
            fn tell_drop(skb: Skb, place: Place, about: u32) {
                verified::$drop(skb.0, place.0, about);
            }

            $($own)*
        }
    };
}

family! {
    V4, Addr4;
    flows { FLOWS4, BLOCKS4; }
    denials { DENIALS4; }
    nat { 262_144 = NAT4; }
    others { affinity = AFFINITY4; sockets = SOCKETS4; fragments = FRAGMENTS4; }
    scratch {
        desk: Desk = DESK4;
        told: Told = TOLD4;
    }
    slots {
        addresses: Addresses = ADDRESSES4;
        networks: Networks = NETWORKS4;
        services: Services = SERVICES4;
        backends: Backends = BACKENDS4;
        members: Members = MEMBERS4;
        pools: Pools = POOLS4;
    }
    ways {
        fast = fast4;
        again = again4;
        send = send4;
        confirm = confirm4;
        reset = reset4;
        unreachable = unreachable4;
    }
    stages {
        renew = renew4;
        identify = identify4;
        resolve = resolve4;
        judge = judge4;
        audit = audit4;
        settle = settle4;
        settle_uplink = settle_uplink4;
        related = related4;
        related_uplink = related_uplink4;
    }
    stages_of_packet {
        depart = depart4;
        identify_uplink = identify_uplink4;
        attempt = attempt4;
        rewrite_error = rewrite_error4;
    }
    refresh = refresh4; put = put4; may_leave = may_leave4; unusual = unusual4;
    tell { tell_remembered4, tell_closing4, tell_drop4; }
    {
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
        fn question<'a>(room: &'a mut MaybeUninit<bpf_fib_lookup>, key: &FlowKey<Addr4>) -> &'a mut bpf_fib_lookup {
            let asked = question(room, key, AF_INET);
            asked.__bindgen_anon_3.ipv4_src = key.source.0;
            asked.__bindgen_anon_4.ipv4_dst = key.destination.0;
            asked
        }

        #[inline(always)]
        fn answer(asked: &bpf_fib_lookup) -> Addr4 {
            // SAFETY: an integer.
            if asked.family == AF_INET { Addr4(unsafe { asked.__bindgen_anon_4.ipv4_dst }) } else { Addr4::UNSPECIFIED }
        }

        #[inline(always)]
        fn followed(_: Skb, ip: Ip<Addr4>) -> Result<Ip<Addr4>, Drop> {
            Ok(ip)
        }
    }
}

family! {
    V6, Addr6;
    flows { FLOWS6, BLOCKS6; }
    denials { DENIALS6; }
    nat { 131_072 = NAT6; }
    others { affinity = AFFINITY6; sockets = SOCKETS6; fragments = FRAGMENTS6; }
    scratch {
        desk: Desk = DESK6;
        told: Told = TOLD6;
    }
    slots {
        addresses: Addresses = ADDRESSES6;
        networks: Networks = NETWORKS6;
        services: Services = SERVICES6;
        backends: Backends = BACKENDS6;
        members: Members = MEMBERS6;
        pools: Pools = POOLS6;
    }
    ways {
        fast = fast6;
        again = again6;
        send = send6;
        confirm = confirm6;
        reset = reset6;
        unreachable = unreachable6;
    }
    stages {
        renew = renew6;
        identify = identify6;
        resolve = resolve6;
        judge = judge6;
        audit = audit6;
        settle = settle6;
        settle_uplink = settle_uplink6;
        related = related6;
        related_uplink = related_uplink6;
    }
    stages_of_packet {
        depart = depart6;
        identify_uplink = identify_uplink6;
        attempt = attempt6;
        rewrite_error = rewrite_error6;
    }
    refresh = refresh6; put = put6; may_leave = may_leave6; unusual = unusual6;
    tell { tell_remembered6, tell_closing6, tell_drop6; }
    {
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
        fn question<'a>(room: &'a mut MaybeUninit<bpf_fib_lookup>, key: &FlowKey<Addr6>) -> &'a mut bpf_fib_lookup {
            let asked = question(room, key, AF_INET6);
            asked.__bindgen_anon_3.ipv6_src = key.source.0;
            asked.__bindgen_anon_4.ipv6_dst = key.destination.0;
            asked
        }

        #[inline(always)]
        fn answer(asked: &bpf_fib_lookup) -> Addr6 {
            // SAFETY: integers.
            if asked.family == AF_INET6 { Addr6(unsafe { asked.__bindgen_anon_4.ipv6_dst }) } else { Addr6::UNSPECIFIED }
        }

        #[inline(always)]
        fn followed(skb: Skb, ip: Ip<Addr6>) -> Result<Ip<Addr6>, Drop> {
            Followed(verified::follow6(skb.0)).unpack(ip)
        }
    }
}

/// socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A question about the way of a key's packets, without addresses.
#[inline(always)]
fn question<'a, A: Address>(
    room: &'a mut MaybeUninit<bpf_fib_lookup>,
    key: &FlowKey<A>,
    family: u8,
) -> &'a mut bpf_fib_lookup {
    // SAFETY: integers only.
    let asked = unsafe { zero_by_words(room) };
    asked.family = family;
    asked.l4_protocol = key.protocol().0;
    asked.sport = key.ports.source().0;
    asked.dport = key.ports.destination().0;
    asked
}

/// All bits 0. (`core::mem::zeroed` becomes a call that goes byte by byte; so does a value that is given back, instead of being
/// made where it stays.)
///
/// # Safety
///
/// That is a value of the type.
#[inline(always)]
unsafe fn zero_by_words<T>(value: &mut MaybeUninit<T>) -> &mut T {
    const { assert!(size_of::<T>().is_multiple_of(size_of::<u32>()) && align_of::<T>() >= align_of::<u32>()) };
    for word in 0..size_of::<T>() / size_of::<u32>() {
        // SAFETY: within the value, aligned as its words are. (Volatile, or it would become that call again.)
        unsafe { value.as_mut_ptr().cast::<u32>().add(word).write_volatile(0) };
    }
    // SAFETY: written, and the caller's.
    unsafe { value.assume_init_mut() }
}

/// A hash of translations, whatever its size.
pub trait NatMap<A: Address> {
    fn find(&self, key: &NatKey<A>) -> Option<*mut Translation<A>>;
    fn claim(&self, key: &NatKey<A>, half: &Translation<A>) -> Claim;
    fn release(&self, key: &NatKey<A>);
}

impl<A: Address, const N: usize> NatMap<A> for HashMap<NatKey<A>, Translation<A>, N> {
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
