//! Identities: the places that rules can't tell apart share a number.
//!
//! A place is an endpoint at one of its addresses, or the outside addresses whose longest match is
//! one mentioned prefix (or none). Two places are the same to all rules when the same subjects and conditions
//! hold for them, and they declare the same ports under the names that rules use.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netpol_common::tables::Identity;

use super::{
    IdentityName, Workload,
    bits::Bits,
    rules::{Book, Condition},
    select::{Numbering, Objects},
};
use crate::model::{IpVersion, Profile, Protocol, Selector, World};

/// Ports that an endpoint declares under names that rules use, sorted.
pub(super) type NamedPorts<'w> = Vec<(&'w str, Protocol, u16)>;

#[derive(Clone, Copy)]
enum Place {
    Endpoint {
        index: usize,
        address: IpAddr,
    },
    Outside(IpNet),
    /// The outside addresses that lie in no mentioned prefix.
    World,
}

/// What places have in common that share an identity.
#[derive(PartialEq, Eq, Hash)]
struct Class {
    /// Endpoints never share one with outside addresses.
    is_inside: bool,
    /// See [`Identities::versions`].
    version: Option<IpVersion>,
    /// See [`Identities::ports`].
    ports: usize,
    /// What holds for them, by number among the rows that differ.
    rows: Vec<usize>,
}

/// Every identity of a snapshot. Vectors are indexed by number less [`Identity::FIRST`].
#[derive(Default)]
pub(super) struct Identities<'w> {
    pub names: Vec<IdentityName>,
    /// By the position of a selector in [`Book::subjects`]: whom it is about.
    pub subjects: Vec<Bits>,
    /// By the same: the endpoints (and, after them, network sets).
    selected: Vec<Bits>,
    /// By the position of a condition in [`Book::conditions`]: for whom it holds.
    pub conditions: Vec<Bits>,
    /// `None` where no rule asks, and for outside addresses: there the subject's is the packet's.
    pub versions: Vec<Option<IpVersion>>,
    /// By identity: position in `port_tables`.
    pub ports: Vec<usize>,
    /// The first is empty.
    pub port_tables: Vec<NamedPorts<'w>>,
    pub networks4: Vec<(Ipv4Net, Identity)>,
    pub networks6: Vec<(Ipv6Net, Identity)>,
    /// By endpoint and address.
    pub endpoints: HashMap<(usize, IpAddr), Identity>,
    prefixes: Prefixes,
    /// By prefix.
    outside: Vec<Identity>,
}

impl<'w> Identities<'w> {
    pub fn new(world: &'w World, workloads: &[Workload], book: &Book<'w>) -> Self {
        let places = Places::new(world, workloads, book);
        let rows = Rows::new(world, &places, book);
        let (port_tables, ports_of) = declared_ports(world, book);
        let marks = rows.by_place(places.list.len());

        let mut identities =
            Self { port_tables, outside: vec![Identity::WORLD; places.prefixes.count()], ..Self::default() };
        let mut numbers = Numbering::default();
        let mut first_places = Vec::new();
        let world_rows = marks.last().cloned().unwrap_or_default();
        for (at, (&place, rows)) in places.list.iter().zip(marks).enumerate() {
            let (is_inside, version, ports) = match place {
                Place::Endpoint { index, address } => {
                    (true, book.asks_version.then(|| version_of(address)), ports_of[index])
                }
                Place::Outside(_) if rows != world_rows => (false, None, 0),
                Place::Outside(_) | Place::World => continue,
            };
            let (number, is_new) = numbers.number(Class { is_inside, version, ports, rows });
            if is_new {
                first_places.push(at);
                identities.versions.push(version);
                identities.ports.push(ports);
                identities.names.push(IdentityName { endpoints: Vec::new(), networks: Vec::new() });
            }
            identities.join(world, place, at, number, &places);
        }
        // Any place speaks for its class.
        let mut first_of = vec![None; places.list.len()];
        first_places.iter().enumerate().for_each(|(number, &place)| first_of[place] = Some(number));
        let project = |row: &Bits| {
            let mut bits = Bits::none(first_places.len());
            row.iter().filter_map(|place| first_of[place]).for_each(|number| bits.insert(number));
            bits
        };
        identities.subjects = rows.subjects.iter().map(project).collect();
        identities.conditions = rows.conditions.iter().map(project).collect();
        identities.selected = rows.selected;
        identities.prefixes = places.prefixes;
        identities.name_networks();
        identities
    }

    /// The number that an index into these vectors stands for.
    pub fn numbered(index: usize) -> Identity {
        Identity(Identity::FIRST.0.saturating_add(u32::try_from(index).unwrap_or(u32::MAX)))
    }

    /// [`Identity::WORLD`] where no rule tells the address from others.
    pub fn of_outside(&self, address: IpAddr) -> Identity {
        self.prefixes.holding(address.into()).next().map_or(Identity::WORLD, |prefix| self.outside[prefix])
    }

    /// By direction ([`Direction::Egress`](crate::model::Direction) first): the endpoints that some
    /// policy is about, with an address or without.
    pub fn isolated(&self, book: &Book<'_>, world: &World) -> [Bits; 2] {
        match world.profile {
            Profile::Deny => std::array::from_fn(|_| Bits::all(world.endpoints.len() + world.sets.len())),
            Profile::Allow => self.chosen(book, world, false),
        }
    }

    /// The same of audited policies alone.
    pub fn audited(&self, book: &Book<'_>, world: &World) -> [Bits; 2] {
        self.chosen(book, world, true)
    }

    fn chosen(&self, book: &Book<'_>, world: &World, audit: bool) -> [Bits; 2] {
        let objects = world.endpoints.len() + world.sets.len();
        std::array::from_fn(|direction| {
            let policies = book.tiers[direction].iter().flatten().filter(|policy| policy.audit == audit);
            policies.fold(Bits::none(objects), |mut bits, policy| {
                bits.union(&self.selected[policy.subject]);
                bits
            })
        })
    }

    fn join(&mut self, world: &World, place: Place, at: usize, number: usize, places: &Places) {
        let identity = Self::numbered(number);
        match place {
            Place::World => {}
            Place::Outside(_) => self.outside[at - places.first_prefix] = identity,
            Place::Endpoint { index, address } => {
                self.endpoints.insert((index, address), identity);
                let names = &mut self.names[number].endpoints;
                let name = &world.endpoints[index].name;
                // Places are sorted by name: the same endpoint comes again at once.
                if names.last() != Some(name) {
                    names.push(name.clone());
                }
            }
        }
    }

    /// A prefix of the same class as the next shorter one says nothing.
    fn name_networks(&mut self) {
        for (prefix, &net) in self.prefixes.list.iter().enumerate() {
            let identity = self.outside[prefix];
            let parent = self.prefixes.holding(net).nth(1);
            if identity == parent.map_or(Identity::WORLD, |parent| self.outside[parent]) {
                continue;
            }
            match net {
                IpNet::V4(net) => self.networks4.push((net, identity)),
                IpNet::V6(net) => self.networks6.push((net, identity)),
            }
            if let Some(name) = identity.0.checked_sub(Identity::FIRST.0).and_then(|n| self.names.get_mut(n as usize)) {
                name.networks.push(net);
            }
        }
    }
}

const fn version_of(address: IpAddr) -> IpVersion {
    match address {
        IpAddr::V4(_) => IpVersion::V4,
        IpAddr::V6(_) => IpVersion::V6,
    }
}

/// Endpoints' places sorted by name, then one for each prefix, then the world: numbers must not
/// depend on the order of discovery.
struct Places {
    list: Vec<Place>,
    by_endpoint: Vec<Vec<usize>>,
    first_prefix: usize,
    prefixes: Prefixes,
    /// By prefix: the places that lie in it.
    inside: Vec<Vec<usize>>,
}

impl Places {
    fn new(world: &World, workloads: &[Workload], book: &Book<'_>) -> Self {
        let addresses = workloads.iter().flat_map(|w| w.addresses.iter().map(|&address| (w.endpoint, address)));
        let mut ends: Vec<_> =
            addresses.map(|(index, address)| (&world.endpoints[index].name, address, index)).collect();
        ends.sort_unstable();
        ends.dedup();
        let ends = ends.into_iter().map(|(_, address, index)| Place::Endpoint { index, address });

        let of_rules = book.conditions.iter().flat_map(|c| c.nets.into_iter().flatten().chain(c.not_nets));
        let prefixes = Prefixes::new(of_rules.chain(world.sets.iter().flat_map(|set| &set.nets)));
        let mut list: Vec<_> = ends.collect();
        let first_prefix = list.len();
        list.extend(prefixes.list.iter().map(|&net| Place::Outside(net)));
        list.push(Place::World);

        let mut by_endpoint = vec![Vec::new(); world.endpoints.len()];
        let mut inside = vec![Vec::new(); prefixes.count()];
        for (at, place) in list.iter().enumerate() {
            let net = match *place {
                Place::Endpoint { index, address } => {
                    by_endpoint[index].push(at);
                    address.into()
                }
                Place::Outside(net) => net,
                Place::World => continue,
            };
            prefixes.holding(net).for_each(|prefix| inside[prefix].push(at));
        }
        Self { list, by_endpoint, first_prefix, prefixes, inside }
    }

    fn inside_any(&self, nets: &[IpNet]) -> Bits {
        let mut bits = Bits::none(self.list.len());
        for prefix in nets.iter().filter_map(|net| self.prefixes.numbers.get(&net.trunc())) {
            self.inside[*prefix].iter().for_each(|&place| bits.insert(place));
        }
        bits
    }
}

/// The prefixes that rules and network sets mention.
#[derive(Default)]
struct Prefixes {
    list: Vec<IpNet>,
    numbers: HashMap<IpNet, usize>,
    /// The lengths that occur, longest first.
    lengths: [Vec<u8>; 2],
}

impl Prefixes {
    fn new<'n>(nets: impl Iterator<Item = &'n IpNet>) -> Self {
        let list: Vec<_> = nets.map(IpNet::trunc).collect::<BTreeSet<_>>().into_iter().collect();
        let lengths = |wanted: fn(&IpNet) -> bool| {
            let set: BTreeSet<_> = list.iter().filter(|net| wanted(net)).map(IpNet::prefix_len).collect();
            set.into_iter().rev().collect()
        };
        let lengths = [lengths(|net| matches!(net, IpNet::V4(_))), lengths(|net| matches!(net, IpNet::V6(_)))];
        Self { numbers: list.iter().enumerate().map(|(i, &net)| (net, i)).collect(), lengths, list }
    }

    fn count(&self) -> usize {
        self.list.len()
    }

    /// The mentioned prefixes that contain all of `net`, longest first.
    fn holding(&self, net: IpNet) -> impl Iterator<Item = usize> + '_ {
        let lengths = &self.lengths[usize::from(matches!(net, IpNet::V6(_)))];
        lengths.iter().filter(move |&&len| len <= net.prefix_len()).filter_map(move |&len| {
            let shorter = IpNet::new(net.addr(), len).ok()?.trunc();
            self.numbers.get(&shorter).copied()
        })
    }
}

/// For which places each thing that rules ask holds.
struct Rows {
    subjects: Vec<Bits>,
    selected: Vec<Bits>,
    conditions: Vec<Bits>,
}

impl Rows {
    fn new(world: &World, places: &Places, book: &Book<'_>) -> Self {
        let sets = world.sets.iter().map(|set| places.inside_any(&set.nets)).collect();
        let mut scribe = Scribe { world, places, objects: Objects::new(world), selected: HashMap::new(), sets };
        Self {
            subjects: book.subjects.iter().map(|selector| scribe.subjects_of(selector)).collect(),
            selected: book.subjects.iter().map(|selector| scribe.selected(selector).clone()).collect(),
            conditions: book.conditions.iter().map(|condition| scribe.holds_for(condition)).collect(),
        }
    }

    /// The rows that hold, of those that differ from each other.
    fn by_place(&self, count: usize) -> Vec<Vec<usize>> {
        let mut seen = HashSet::new();
        let distinct = self.subjects.iter().chain(&self.conditions).filter(|row| seen.insert(*row));
        let mut marks = vec![Vec::new(); count];
        for (number, row) in distinct.enumerate() {
            row.iter().for_each(|place| marks[place].push(number));
        }
        marks
    }
}

struct Scribe<'a, 'w> {
    world: &'w World,
    places: &'a Places,
    objects: Objects<'w>,
    /// Each selector is asked once.
    selected: HashMap<&'w Selector, Bits>,
    /// By network set: the places that lie in it.
    sets: Vec<Bits>,
}

impl<'w> Scribe<'_, 'w> {
    fn selected(&mut self, selector: &'w Selector) -> &Bits {
        self.selected.entry(selector).or_insert_with(|| self.objects.selected_by(selector))
    }

    /// A policy is about endpoints, never about network sets.
    fn subjects_of(&mut self, selector: &'w Selector) -> Bits {
        let places = self.places;
        let count = self.world.endpoints.len();
        let mut bits = Bits::none(places.list.len());
        for endpoint in self.selected(selector).iter().take_while(|&object| object < count) {
            places.by_endpoint[endpoint].iter().for_each(|&place| bits.insert(place));
        }
        bits
    }

    /// As a peer: endpoints, and whatever lies in a network set where such are looked for.
    fn peers_of(&mut self, selector: &'w Selector, finds_sets: bool) -> Bits {
        let count = self.world.endpoints.len();
        let mut bits = self.subjects_of(selector);
        if !finds_sets {
            return bits;
        }
        self.selected(selector);
        let sets = self.selected[selector].iter().filter_map(|object| self.sets.get(object.checked_sub(count)?));
        sets.for_each(|set| bits.union(set));
        bits
    }

    fn holds_for(&mut self, condition: &Condition<'w>) -> Bits {
        let Condition { selector, not_selector, nets, not_nets, finds_sets } = *condition;
        let mut bits = Bits::all(self.places.list.len());
        if let Some(selector) = selector {
            bits.intersect(&self.peers_of(selector, finds_sets));
        }
        if let Some(selector) = not_selector {
            bits.subtract(&self.peers_of(selector, finds_sets));
        }
        if let Some(nets) = nets {
            bits.intersect(&self.places.inside_any(nets));
        }
        bits.subtract(&self.places.inside_any(not_nets));
        bits
    }
}

/// The distinct tables of named ports, and each endpoint's.
fn declared_ports<'w>(world: &'w World, book: &Book<'w>) -> (Vec<NamedPorts<'w>>, Vec<usize>) {
    let used: HashSet<_> = book.port_names().collect();
    let mut numbers = Numbering::default();
    let mut tables = vec![NamedPorts::new()];
    numbers.number(NamedPorts::new());
    let of_endpoint = world.endpoints.iter().map(|endpoint| {
        let named = endpoint.ports.iter().filter_map(|port| Some((port.name.as_deref()?, port.protocol, port.port)));
        let mut table: NamedPorts<'w> = named.filter(|(name, ..)| used.contains(name)).collect();
        table.sort_unstable();
        table.dedup();
        let (number, is_new) = numbers.number(table.clone());
        if is_new {
            tables.push(table);
        }
        number
    });
    let of_endpoint = of_endpoint.collect();
    (tables, of_endpoint)
}
