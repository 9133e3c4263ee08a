//! The maps. The loader pins each under its name and may change the sizes.
//!
//! Tables of policy are in two slots; what the datapath remembers itself is not.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, bpf_timer},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use netpol_common::{
    decide::Desk,
    drops::{COUNTERS, Count},
    event::{
        HUSHES as HUSHES_ROOM, Hush, LEASES as LEASES_ROOM, Lease, OBSERVERS, RATIONS as RATIONS_ROOM, Ration, Told,
        UNTOLD as UNTOLD_ROOM,
    },
    kernel::{Bucket, FragmentKey, FragmentPorts, Turnover},
    nat::{NatKey, Translation},
    service::{Affinity, AffinityKey, Backend, MemberKey, ServiceKey, ServiceValue, Uplink},
    socket::SocketKey,
    tables::{AddressKey, AddressValue, HookValue, Identity, PairKey, PairValue, PortKey, Range, Ruling},
    wire::{Addr4, Addr6},
};

use crate::{denials::Denials, places::Flows};

/// A policy table, in two slots. The inner maps are made anew for each publication, as large as they
/// must be: the sizes here are those of the template.
type Slots<T> = ArrayOfMaps<T, 2>;

#[btf_map]
pub static ADDRESSES4: Slots<HashMap<AddressKey<Addr4>, AddressValue, 1>> = Slots::new();
#[btf_map]
pub static ADDRESSES6: Slots<HashMap<AddressKey<Addr6>, AddressValue, 1>> = Slots::new();
#[btf_map]
pub static NETWORKS4: Slots<LpmTrie<Addr4, Identity, 1>> = Slots::new();
#[btf_map]
pub static NETWORKS6: Slots<LpmTrie<Addr6, Identity, 1>> = Slots::new();
#[btf_map]
pub static HOOKS: Slots<HashMap<u32, HookValue, 1>> = Slots::new();
#[btf_map]
pub static PAIRS: Slots<HashMap<PairKey, PairValue, 1>> = Slots::new();
#[btf_map]
pub static PORTS: Slots<HashMap<PortKey, Ruling, 1>> = Slots::new();
#[btf_map]
pub static RANGES: Slots<Array<Range, 1, { BPF_F_INNER_MAP as usize }>> = Slots::new();

#[btf_map]
pub static SERVICES4: Slots<HashMap<ServiceKey<Addr4>, ServiceValue, 1>> = Slots::new();
#[btf_map]
pub static SERVICES6: Slots<HashMap<ServiceKey<Addr6>, ServiceValue, 1>> = Slots::new();
#[btf_map]
pub static BACKENDS4: Slots<Array<Backend<Addr4>, 1, { BPF_F_INNER_MAP as usize }>> = Slots::new();
#[btf_map]
pub static BACKENDS6: Slots<Array<Backend<Addr6>, 1, { BPF_F_INNER_MAP as usize }>> = Slots::new();
#[btf_map]
pub static MAGLEV: Slots<Array<u32, 1, { BPF_F_INNER_MAP as usize }>> = Slots::new();
#[btf_map]
pub static MEMBERS4: Slots<HashMap<MemberKey<Addr4>, u32, 1>> = Slots::new();
#[btf_map]
pub static MEMBERS6: Slots<HashMap<MemberKey<Addr6>, u32, 1>> = Slots::new();
#[btf_map]
pub static POOLS4: Slots<LpmTrie<Addr4, u32, 1>> = Slots::new();
#[btf_map]
pub static POOLS6: Slots<LpmTrie<Addr6, u32, 1>> = Slots::new();
#[btf_map]
pub static UPLINKS: Slots<HashMap<u32, Uplink, 1>> = Slots::new();

/// [`netpol_common::kernel::Live`], in one aligned word.
#[btf_map]
pub static LIVE: Array<u64, 1> = Array::new();

#[btf_map]
pub static FLOWS4: Flows<Addr4> = Flows::new();
#[btf_map]
pub static FLOWS6: Flows<Addr6> = Flows::new();
/// The number that the tables' secret is made of, for whoever looks an entry up; classifiers have it in their constants.
#[btf_map]
pub static SEED: Array<u64, 1> = Array::new();
/// Denials have room of their own: a flood of them evicts no connection.
#[btf_map]
pub static DENIALS4: Denials<Addr4> = Denials::new();
#[btf_map]
pub static DENIALS6: Denials<Addr6> = Denials::new();
/// See [`Turnover`].
#[btf_map]
pub static TURNOVER: PerCpuArray<u64, { Turnover::ROOM }> = PerCpuArray::new();
#[btf_map]
pub static FRAGMENTS4: LruHashMap<FragmentKey<Addr4>, FragmentPorts, 8192> = LruHashMap::new();
#[btf_map]
pub static FRAGMENTS6: LruHashMap<FragmentKey<Addr6>, FragmentPorts, 8192> = LruHashMap::new();
/// Translations are not forgotten for want of room, so they never give way to others. Their memory is taken at once: a packet
/// that had to ask the allocator for it might get none, and would pay for what is refilled there (more than a hundredth of a connection).
#[btf_map]
pub static NAT4: HashMap<NatKey<Addr4>, Translation<Addr4>, 262_144> = HashMap::new();
#[btf_map]
pub static NAT6: HashMap<NatKey<Addr6>, Translation<Addr6>, 131_072> = HashMap::new();
#[btf_map]
pub static AFFINITY4: LruHashMap<AffinityKey<Addr4>, Affinity<Addr4>, 16_384> = LruHashMap::new();
#[btf_map]
pub static AFFINITY6: LruHashMap<AffinityKey<Addr6>, Affinity<Addr6>, 16_384> = LruHashMap::new();
/// What the host's sockets asked for, where they got a backend.
#[btf_map]
pub static SOCKETS4: LruHashMap<SocketKey<Addr4>, ServiceKey<Addr4>, 32_768> = LruHashMap::new();
#[btf_map]
pub static SOCKETS6: LruHashMap<SocketKey<Addr6>, ServiceKey<Addr6>, 32_768> = LruHashMap::new();
/// The cookie of the host's network namespace; 0: no socket is the host's.
#[btf_map]
pub static HOST: Array<u64, 1> = Array::new();
/// The timer that ends silent translations.
#[btf_map]
pub static AGING: Array<Aging, 1> = Array::new();

#[repr(C)]
pub struct Aging {
    pub timer: bpf_timer,
    /// How often it has run.
    pub rounds: u64,
}

/// By the lowest bits of the interface's number: two interfaces far apart may share one.
#[btf_map]
pub static RATES: Array<Bucket, { RATES_ROOM as usize }> = Array::new();
pub const RATES_ROOM: u32 = 16_384;

/// By [`netpol_common::drops::counter`].
#[btf_map]
pub static COUNTS: PerCpuArray<Count, { COUNTERS as usize }> = PerCpuArray::new();

/// Where the slow path works. A classifier runs to its end on its CPU before another begins there, so
/// one of each family is enough.
#[btf_map]
pub static DESK4: PerCpuArray<Desk<Addr4>, 1> = PerCpuArray::new();
#[btf_map]
pub static DESK6: PerCpuArray<Desk<Addr6>, 1> = PerCpuArray::new();

/// Of the frame that this CPU has sent straight out of an uplink last: see [`Skb::leaves_by`](crate::frame::Skb::leaves_by).
#[btf_map]
pub static LAST_OUT: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Until when somebody observes, and who: see [`Lease`]. Observers write their own, and the first, when they renew it.
#[btf_map]
pub static LEASES: Array<Lease, { LEASES_ROOM as usize }> = Array::new();
/// The observers' ring buffers, each made by its observer: the size here is that of the template.
#[btf_map]
pub static RINGS: ArrayOfMaps<RingBuf<u8, 4096>, { OBSERVERS as usize }> = ArrayOfMaps::new();
/// Frames that observers were not told about, by [`netpol_common::event::UNTOLD`].
#[btf_map]
pub static UNTOLD: PerCpuArray<u64, { UNTOLD_ROOM as usize }> = PerCpuArray::new();
/// Which drops were told a moment ago.
#[btf_map]
pub static HUSHES: Array<Hush, { HUSHES_ROOM as usize }> = Array::new();
#[btf_map]
pub static RATIONS: Array<Ration, { RATIONS_ROOM as usize }> = Array::new();
/// Where events are written, as on the desks.
#[btf_map]
pub static TOLD4: PerCpuArray<Told<Addr4>, 1> = PerCpuArray::new();
#[btf_map]
pub static TOLD6: PerCpuArray<Told<Addr6>, 1> = PerCpuArray::new();
