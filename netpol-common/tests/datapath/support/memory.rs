//! The kernel's maps as hash maps.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
};

use netpol_common::{
    drops::{Drop, Side},
    flow::{FlowKey, FlowValue, Generation, Rewrite, Ticks},
    kernel::{Bucket, FragmentKey, FragmentPorts, Kernel, Live, Remembered, Services, Settings, Way},
    nat::{Claim, NatKey, NatState, Translation},
    policy::PolicyTables,
    service::{Affinity, AffinityKey, Backend, MemberKey, ServiceKey, ServiceValue},
    socket::{SocketKey, Sockets},
    tables::{
        AddressKey, AddressValue, HookValue, Identity, IfIndex, Network, PairKey, PairValue, PortKey, Range, Ruling,
    },
    wire::{Addr4, Addr6, Address, MacWords},
};

/// One family's tables and flows.
#[derive(Debug)]
pub struct Store<A: Address> {
    pub addresses: HashMap<AddressKey<A>, AddressValue>,
    /// Address, length of the prefix, identity.
    pub networks: Vec<(A, u32, Identity)>,
    pub flows: RefCell<HashMap<FlowKey<A>, FlowValue<A>>>,
    pub denials: RefCell<HashMap<FlowKey<A>, FlowValue<A>>>,
    pub services: HashMap<ServiceKey<A>, ServiceValue>,
    pub backends: Vec<Backend<A>>,
    pub members: HashMap<MemberKey<A>, u32>,
    /// Address, length of the prefix.
    pub pools: Vec<(A, u32)>,
    pub uplinks: HashMap<IfIndex, A>,
    /// Who is next on all ways; unspecified: nobody that an entry can name.
    pub router: A,
    /// The host would send what is for outside nowhere.
    pub routes_elsewhere: bool,
    /// Routes to these take less than the uplinks do.
    pub narrow: Vec<A>,
    pub translations: RefCell<HashMap<NatKey<A>, Translation<A>>>,
    /// What another CPU claims just before this one claims the same.
    pub rivals: RefCell<HashMap<NatKey<A>, Translation<A>>>,
    /// How many translations there is room for.
    pub room: usize,
    /// Keys of answers that sockets of the host would get.
    pub bound: Vec<NatKey<A>>,
    /// What sockets asked for.
    pub wanted: RefCell<HashMap<SocketKey<A>, ServiceKey<A>>>,
    affinity: HashMap<AffinityKey<A>, Affinity<A>>,
    new_affinity: RefCell<Vec<(AffinityKey<A>, Affinity<A>)>>,
    fragments: HashMap<FragmentKey<A>, FragmentPorts>,
    /// Of the packet at hand; they join the others when it is done.
    new_fragments: RefCell<Vec<(FragmentKey<A>, FragmentPorts)>>,
}

/// All of it.
#[derive(Debug)]
pub struct Memory {
    pub v4: Store<Addr4>,
    pub v6: Store<Addr6>,
    pub hooks: HashMap<IfIndex, HookValue>,
    pub pairs: HashMap<PairKey, PairValue>,
    pub ports: HashMap<PortKey, Ruling>,
    pub ranges: Vec<Range>,
    /// Entries of the Maglev tables.
    pub maglev: Vec<u32>,
    pub buckets: RefCell<HashMap<IfIndex, Bucket>>,
    pub live: Live,
    pub now: Ticks,
    /// Whom the host knows on all ways.
    pub next_hop: MacWords,
    /// No flow finds room.
    pub full: Cell<bool>,
    /// The last packet is of a connection that audited policies would stop.
    pub marked: Cell<bool>,
    /// What they would have stopped, packet by packet: where, and why.
    pub would_drop: RefCell<Vec<(Side, Drop)>>,
    /// The next number by chance.
    pub chance: Cell<u32>,
}

impl<A: Address> Default for Store<A> {
    fn default() -> Self {
        Self {
            addresses: HashMap::new(),
            networks: Vec::new(),
            flows: RefCell::default(),
            denials: RefCell::default(),
            services: HashMap::new(),
            backends: Vec::new(),
            members: HashMap::new(),
            pools: Vec::new(),
            uplinks: HashMap::new(),
            router: A::UNSPECIFIED,
            routes_elsewhere: false,
            narrow: Vec::new(),
            translations: RefCell::default(),
            rivals: RefCell::default(),
            room: usize::MAX,
            bound: Vec::new(),
            wanted: RefCell::default(),
            affinity: HashMap::new(),
            new_affinity: RefCell::default(),
            fragments: HashMap::new(),
            new_fragments: RefCell::default(),
        }
    }
}

impl<A: Address> Store<A> {
    /// What a packet leaves behind for the next one to read.
    fn settle(&mut self) {
        self.fragments.extend(self.new_fragments.get_mut().drain(..));
        self.affinity.extend(self.new_affinity.get_mut().drain(..));
    }

    /// Forgets what packets have left behind.
    pub fn forget(&mut self) {
        self.flows.get_mut().clear();
        self.denials.get_mut().clear();
        self.translations.get_mut().clear();
        self.fragments.clear();
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            v4: Store::default(),
            v6: Store::default(),
            hooks: HashMap::new(),
            pairs: HashMap::new(),
            ports: HashMap::new(),
            ranges: Vec::new(),
            maglev: Vec::new(),
            buckets: RefCell::default(),
            live: Live { settings: Settings::default(), generation: Generation(1) },
            // close to where the clock wraps
            now: Ticks(u32::MAX - 1000),
            next_hop: MacWords::ZERO,
            full: Cell::new(false),
            marked: Cell::new(false),
            would_drop: RefCell::default(),
            chance: Cell::new(1),
        }
    }
}

impl Memory {
    pub fn settle(&mut self) {
        self.v4.settle();
        self.v6.settle();
    }

    /// Lets time pass.
    pub fn wait(&mut self, ticks: u32) {
        self.now = Ticks(self.now.0.wrapping_add(ticks));
    }
}

/// An address family of which [`Memory`] has a store.
pub trait Stored: Address {
    fn store(memory: &Memory) -> &Store<Self>;
}

impl Stored for Addr4 {
    fn store(memory: &Memory) -> &Store<Self> {
        &memory.v4
    }
}

impl Stored for Addr6 {
    fn store(memory: &Memory) -> &Store<Self> {
        &memory.v6
    }
}

impl PolicyTables for Memory {
    fn pair(&self, key: &PairKey) -> Option<&PairValue> {
        self.pairs.get(key)
    }

    fn port(&self, key: &PortKey) -> Option<&Ruling> {
        self.ports.get(key)
    }

    fn range(&self, index: u32) -> Option<&Range> {
        self.ranges.get(index as usize)
    }
}

/// The address as a number of 128 bits, its own at the top.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn holds<A: Address>(network: A, length: u32, address: A) -> bool {
    (bits(network.into()) ^ bits(address.into())).leading_zeros() >= length
}

impl<A: Stored> Services<A> for Memory {
    fn service(&self, key: &ServiceKey<A>) -> Option<&ServiceValue> {
        A::store(self).services.get(key)
    }

    fn backend(&self, entry: u32) -> Option<&Backend<A>> {
        A::store(self).backends.get(*self.maglev.get(entry as usize)? as usize)
    }

    fn has_member(&self, key: &MemberKey<A>) -> bool {
        A::store(self).members.contains_key(key)
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<&Affinity<A>> {
        A::store(self).affinity.get(key)
    }

    fn stay(&self, key: &AffinityKey<A>, with: &Affinity<A>) {
        A::store(self).new_affinity.borrow_mut().push((*key, *with));
    }
}

impl<A: Stored> Sockets<A> for Memory {
    fn note(&self, key: &SocketKey<A>, wanted: &ServiceKey<A>) {
        A::store(self).wanted.borrow_mut().insert(*key, *wanted);
    }
}

impl<A: Stored> Kernel<A> for Memory {
    fn hook(&self, interface: IfIndex) -> Option<&HookValue> {
        self.hooks.get(&interface)
    }

    fn address(&self, key: &AddressKey<A>) -> Option<&AddressValue> {
        A::store(self).addresses.get(key)
    }

    fn network(&self, address: &A) -> Option<&Identity> {
        let networks = A::store(self).networks.iter().filter(|(network, length, _)| holds(*network, *length, *address));
        networks.max_by_key(|(_, length, _)| *length).map(|(_, _, identity)| identity)
    }

    fn recall(&self, key: &FlowKey<A>) -> Remembered<A> {
        let flows = A::store(self).flows.borrow();
        let Some(value) = flows.get(key).filter(|value| value.word.tag() == key.tag()) else {
            return Remembered::NOTHING;
        };
        let FlowValue { word, packets, bytes, seen, judged, ifindex, source_mac, tcp_flags, rewrite, .. } = *value;
        Remembered { word, packets, bytes, seen, judged, ifindex, source_mac, tcp_flags, rewrite }
    }

    fn remember(&self, key: &FlowKey<A>, value: &FlowValue<A>) -> Result<(), Drop> {
        if self.full.get() {
            return Err(Drop::FlowTable);
        }
        A::store(self).flows.borrow_mut().insert(*key, *value);
        Ok(())
    }

    fn remember_denial(&self, key: &FlowKey<A>, value: &mut FlowValue<A>) {
        let mut denials = A::store(self).denials.borrow_mut();
        if let Some(before) = denials.get(key) {
            value.packets += before.packets;
            value.bytes += before.bytes;
        }
        denials.insert(*key, *value);
    }

    fn refresh(&self, key: &FlowKey<A>, generation: Generation, now: Ticks) -> bool {
        let mut flows = A::store(self).flows.borrow_mut();
        let Some(value) = flows.get_mut(key).filter(|value| value.word.is_current(generation)) else { return false };
        value.judged = now;
        true
    }

    fn admit(&self, interface: IfIndex, now: Ticks) -> bool {
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.entry(interface).or_insert(Bucket::UNTOUCHED);
        let Some(rest) = bucket.take(now) else { return false };
        *bucket = rest;
        true
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<&FragmentPorts> {
        A::store(self).fragments.get(key)
    }

    fn remember_fragment(&self, key: &FragmentKey<A>, ports: &FragmentPorts) {
        A::store(self).new_fragments.borrow_mut().push((*key, *ports));
    }

    fn is_pooled(&self, address: &A) -> bool {
        A::store(self).pools.iter().any(|(network, length)| holds(*network, *length, *address))
    }

    fn uplink(&self, interface: IfIndex) -> A {
        A::store(self).uplinks.get(&interface).copied().unwrap_or(A::UNSPECIFIED)
    }

    fn route(&self, key: &FlowKey<A>, from: IfIndex) -> Way<A> {
        let store = A::store(self);
        if store.routes_elsewhere {
            return Way::NONE;
        }
        let way = |interface| Way { interface, hop: store.router, next: self.next_hop };
        if store.uplinks.contains_key(&from) {
            let to = AddressKey { network: Network::SHARED, address: key.destination };
            let endpoint = store.addresses.get(&to).map_or(IfIndex::NONE, |value| value.ifindex);
            let is_narrow = store.narrow.contains(&key.destination);
            let router = self.hooks.get(&endpoint).map(|hook| hook.router(endpoint));
            return way(router.filter(|_| !is_narrow).unwrap_or(IfIndex::NONE));
        }
        // whoever is not in a pool is outside
        if self.is_pooled(&key.destination) {
            Way::NONE
        } else {
            way(store.uplinks.keys().min_by_key(|uplink| uplink.0).copied().unwrap_or(IfIndex::NONE))
        }
    }

    fn translation(&self, key: &NatKey<A>, half: &mut Translation<A>) -> bool {
        half.state = NatState::NOTHING;
        if let Some(found) = A::store(self).translations.borrow().get(key) {
            *half = *found;
        }
        half.exists()
    }

    fn claim(&self, key: &NatKey<A>, half: &Translation<A>) -> Claim {
        let store = A::store(self);
        let mut translations = store.translations.borrow_mut();
        if let Some(rival) = store.rivals.borrow_mut().remove(key) {
            translations.insert(*key, rival);
        }
        if translations.len() >= store.room && !translations.contains_key(key) {
            return Claim::Full;
        }
        match translations.entry(*key) {
            Entry::Occupied(_) => Claim::Taken,
            Entry::Vacant(place) => {
                place.insert(*half);
                Claim::Made
            }
        }
    }

    fn tell(&self, key: &NatKey<A>, to: &Rewrite<A>, now: Ticks, tcp_flags: u8) -> NatState {
        let mut translations = A::store(self).translations.borrow_mut();
        let Some(half) = translations.get_mut(key).filter(|half| half.rewrite == *to) else { return NatState::NOTHING };
        half.seen = now;
        half.state = half.state.after(tcp_flags, half.is_reply());
        half.state
    }

    fn renew(&self, key: &NatKey<A>, now: Ticks, state: NatState) {
        if let Some(half) = A::store(self).translations.borrow_mut().get_mut(key) {
            half.seen = now;
            half.state = half.state.moved(state);
        }
    }

    fn release(&self, key: &NatKey<A>) {
        A::store(self).translations.borrow_mut().remove(key);
    }

    fn is_bound(&self, sent: &NatKey<A>) -> bool {
        A::store(self).bound.contains(sent)
    }

    fn random(&self) -> u32 {
        let next = self.chance.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.chance.set(next);
        next
    }
}
