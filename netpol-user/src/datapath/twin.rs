//! A second copy of the classifiers, attached to nothing: it reads the policy tables that are enforced, and what it
//! remembers and counts is its own. So a frame can be tried, and no packet ever notices.
//!
//! That it is the same code as the one on the interfaces, the kernel says: the tag of a program is a hash of its
//! instructions, without the numbers of its maps (`bpf_prog_calc_tag` in kernel/bpf/core.c).

use std::net::{IpAddr, SocketAddr};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{ArrayOfMaps, FromMapData, HashMap, InnerMap, Map, MapData, MapError, MapType, PerCpuArray},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions},
};
use netpol_common::{
    drops::{Count, Drop, Pass, Side, Verdict, counter, verdict_code},
    flow::FlowFlags,
    kernel::{FragmentKey, FragmentPorts},
    nat::{NatKey, Translation},
    service::{Affinity, AffinityKey, Uplink},
    tables::{AddressKey, AddressValue, HookValue, IfIndex, Network},
    wire::{Addr4, Addr6, Address, PortBe, Protocol},
};

use super::{
    Action, Arrival, Datapath, Error, Pins, Record, Role, clock,
    pins::MAPS,
    programs::{Classifier, OBJECT, part, refused},
    records, slots,
    table::{self, Layout, TABLES},
    testrun::{self, Context},
};
use crate::privileges;

/// Maps that are not in slots, and that classifiers only read.
const READ_ONLY: [&str; 2] = ["LIVE", "HOST"];

/// Entries in each hash of the copy's own: a frame makes four at most.
const ROOM: u32 = 512;

/// See the module.
pub struct Twin {
    object: Ebpf,
    pins: Pins,
    /// Whom to know, as the classifiers that are loaded do: see [`Twin::stays`].
    client: Option<Client>,
}

/// A client of what is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    pub published: SocketAddr,
    pub protocol: Protocol,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    pub action: Action,
    /// What was counted. `None`: an uplink does not count what the host's stack brings on.
    pub verdict: Option<Verdict>,
    /// What was remembered of the frame's own direction: rules, delivery, translation.
    pub record: Option<Record>,
}

impl Twin {
    /// Loads the copy. Nothing of it is pinned: it goes with this process.
    ///
    /// # Errors
    /// Nothing is loaded; or the tables are not laid out as this build reads them.
    pub fn load(pins: &Pins) -> Result<Self, Error> {
        privileges::require(&[privileges::LOAD_CLASSIFIERS, privileges::LOAD_PROGRAMS, privileges::VERIFY_POINTERS])?;
        if !pins.exist() {
            return Err(Error::NotLoaded { path: pins.maps().join("LIVE") });
        }
        let mut loader = EbpfLoader::new();
        let mut paths = Vec::new();
        for (name, kind, ..) in MAPS {
            if is_shared(name) {
                let path = pins.maps().join(name);
                // it would be made and pinned there
                if !path.exists() {
                    return Err(Error::OtherVersion { path, what: "it is missing".into() });
                }
                pins.check(name)?;
                paths.push((*name, path));
            } else if matches!(kind, MapType::LruHash | MapType::Hash) {
                loader.map_max_entries(name, ROOM);
            }
        }
        for (name, path) in &paths {
            loader.map_pin_path(name, path);
        }
        let (jiffy, layout) = (clock::jiffy()?, Layout::new(ROOM, 0));
        loader.override_global(clock::JIFFY, &jiffy, true);
        layout.tell(&mut loader);
        let mut object = loader.load(OBJECT).map_err(|error| Error::Object(Box::new(error)))?;
        for which in Classifier::all() {
            let program: &mut SchedClassifier = part(&mut object, which.name())?;
            program.load().map_err(refused(which.name()))?;
        }
        clock::set(&mut object)?;
        Ok(Self { object, pins: pins.clone(), client: None })
    }

    /// The classifiers whose instructions are not those of the ones that are pinned.
    pub fn differences(&self, datapath: &Datapath) -> Result<Vec<&'static str>, Error> {
        let mut different = Vec::new();
        for which in Classifier::all() {
            let refused = refused(which.name());
            let tags = [self.program(which)?.info(), datapath.program(which).info()];
            let [own, theirs] = tags.map(|info| info.map(|info| info.tag()));
            if own.map_err(&refused)? != theirs.map_err(&refused)? {
                different.push(which.name());
            }
        }
        Ok(different)
    }

    /// Gives a classifier a frame that begins with its Ethernet header, as the first that it ever sees. The interfaces
    /// must be of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Gone`]: there is no such interface (any more).
    pub fn run(&mut self, (role, side): (Role, Side), frame: &[u8], arrival: Arrival) -> Result<Tried, Error> {
        self.forget()?;
        self.know()?;
        let which = Classifier { role, side };
        // to endpoints is their ingress, wherever it is seen
        let direction = if role == Role::Uplink { side.opposite() } else { side };
        let before = self.counts(direction)?;
        let context = Context::new(arrival);
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(context.bytes());
        let result = self.program(which)?.test_run(options);
        let action: Action = match result {
            Ok(result) => result.return_value.into(),
            Err(error) if is_gone(&error) => {
                return Err(Error::Gone { interface: format!("#{}", arrival.interface.0) });
            }
            Err(error) => return Err(testrun::refused(which, error)),
        };
        let after = self.counts(direction)?;
        let counted = verdicts().zip(before.into_iter().zip(after)).find(|(_, (before, after))| before != after);
        let record = self.record(arrival.interface, side)?;
        Ok(Tried { action, verdict: counted.map(|(verdict, _)| verdict), record })
    }

    /// From now on the client stays with the backend that it stays with in fact (session affinity): that is in the memory
    /// of the classifiers that are loaded.
    pub const fn stays(&mut self, client: Option<Client>) {
        self.client = client;
    }

    /// What the loader knows about an interface.
    pub fn hook(&self, interface: IfIndex, slot: u32) -> Result<Option<HookValue>, Error> {
        let hooks: HashMap<MapData, u32, HookValue> = self.inner("HOOKS", slot)?;
        found(hooks.get(&interface.0, 0)).map_err(Error::map("HOOKS"))
    }

    /// What is known of an interface to the outside.
    pub fn uplink(&self, interface: IfIndex, slot: u32) -> Result<Option<Uplink>, Error> {
        let uplinks: HashMap<MapData, u32, Uplink> = self.inner("UPLINKS", slot)?;
        found(uplinks.get(&interface.0, 0)).map_err(Error::map("UPLINKS"))
    }

    /// Who has an address, asked from a network.
    pub fn address(&self, network: Network, address: IpAddr, slot: u32) -> Result<Option<AddressValue>, Error> {
        match address {
            IpAddr::V4(address) => self.find("ADDRESSES4", network, Addr4::from(address), slot),
            IpAddr::V6(address) => self.find("ADDRESSES6", network, Addr6::from(address), slot),
        }
    }

    fn find<A: Address>(
        &self,
        name: &str,
        network: Network,
        address: A,
        slot: u32,
    ) -> Result<Option<AddressValue>, Error>
    where
        AddressKey<A>: Pod,
    {
        let map: HashMap<MapData, AddressKey<A>, AddressValue> = self.inner(name, slot)?;
        let ask = |network| found(map.get(&AddressKey { network, address }, 0)).map_err(Error::map(name));
        match ask(network)? {
            None if network != Network::SHARED => ask(Network::SHARED),
            answer => Ok(answer),
        }
    }

    fn inner<M: FromMapData + InnerMap>(&self, name: &str, slot: u32) -> Result<M, Error> {
        let outer = self.pins.map(name)?;
        let inner = || -> Result<M, MapError> { ArrayOfMaps::<MapData, M>::try_from(outer)?.get(&slot, 0) };
        inner().map_err(Error::map(name))
    }

    fn program(&self, which: Classifier) -> Result<&SchedClassifier, Error> {
        let Some(program) = self.object.program(which.name()) else {
            unreachable!("the object is built with this program in it");
        };
        program.try_into().map_err(refused(which.name()))
    }

    fn map(&self, name: &str) -> &Map {
        let Some(map) = self.object.map(name) else { unreachable!("the object is built with this map in it") };
        map
    }

    fn map_mut(&mut self, name: &str) -> &mut Map {
        let Some(map) = self.object.map_mut(name) else { unreachable!("the object is built with this map in it") };
        map
    }

    /// Packets by verdict, in the order of [`verdicts`].
    fn counts(&self, side: Side) -> Result<Vec<u64>, Error> {
        let map: PerCpuArray<&MapData, Count> = self.map("COUNTS").try_into().map_err(Error::map("COUNTS"))?;
        let count = |verdict| {
            let counts = map.get(&counter(side, verdict_code(verdict)), 0)?;
            Ok(counts.iter().map(|count| count.packets).sum())
        };
        verdicts().map(count).collect::<Result<_, MapError>>().map_err(Error::map("COUNTS"))
    }

    /// The entry of the direction that was just seen there: the other one is at another place, or says that it replies.
    fn record(&self, interface: IfIndex, side: Side) -> Result<Option<Record>, Error> {
        let mut records = Vec::new();
        records::each_of(|name| Ok(self.map(name)), |record| records.push(record))?;
        let is_it = |record: &Record| {
            (record.interface, record.side) == (interface, side) && !record.flags.has(FlowFlags::REPLY)
        };
        Ok(records.into_iter().find(is_it))
    }

    /// As if no packet had passed yet. (Limits of new flows are not reached by as few.)
    fn forget(&mut self) -> Result<(), Error> {
        let [v4, v6] = TABLES.map(|table| table.map);
        table::forget::<Addr4>(self.map(v4), v4)?;
        table::forget::<Addr6>(self.map(v6), v6)?;
        testrun::forget_denials::<Addr4>(self.map_mut("DENIALS4"), "DENIALS4")?;
        testrun::forget_denials::<Addr6>(self.map_mut("DENIALS6"), "DENIALS6")?;
        self.clear::<FragmentKey<Addr4>, FragmentPorts>("FRAGMENTS4")?;
        self.clear::<FragmentKey<Addr6>, FragmentPorts>("FRAGMENTS6")?;
        self.clear::<NatKey<Addr4>, Translation<Addr4>>("NAT4")?;
        self.clear::<NatKey<Addr6>, Translation<Addr6>>("NAT6")?;
        self.clear::<AffinityKey<Addr4>, Affinity<Addr4>>("AFFINITY4")?;
        self.clear::<AffinityKey<Addr6>, Affinity<Addr6>>("AFFINITY6")
    }

    fn know(&mut self) -> Result<(), Error> {
        let Some(Client { address, published, protocol }) = self.client else { return Ok(()) };
        let port = PortBe::from_host(published.port());
        match (address, published.ip()) {
            (IpAddr::V4(client), IpAddr::V4(address)) => {
                let (client, address) = (client.into(), address.into());
                self.copy("AFFINITY4", &AffinityKey::<Addr4> { client, address, port, protocol, zero: 0 })
            }
            (IpAddr::V6(client), IpAddr::V6(address)) => {
                let (client, address) = (client.into(), address.into());
                self.copy("AFFINITY6", &AffinityKey::<Addr6> { client, address, port, protocol, zero: 0 })
            }
            _ => Ok(()),
        }
    }

    /// Takes an entry over from the classifiers that are loaded, if it is there. Look-ups by system call leave its age.
    fn copy<A: Address>(&mut self, name: &'static str, key: &AffinityKey<A>) -> Result<(), Error>
    where
        AffinityKey<A>: Pod,
        Affinity<A>: Pod,
    {
        let theirs: HashMap<MapData, AffinityKey<A>, Affinity<A>> =
            self.pins.map(name)?.try_into().map_err(Error::map(name))?;
        let Some(value) = found(theirs.get(key, 0)).map_err(Error::map(name))? else { return Ok(()) };
        let own: Result<HashMap<&mut MapData, AffinityKey<A>, Affinity<A>>, _> = self.map_mut(name).try_into();
        own.and_then(|mut own| own.insert(key, value, 0)).map_err(Error::map(name))
    }

    fn clear<K: Pod, V: Pod>(&mut self, name: &'static str) -> Result<(), Error> {
        let map: HashMap<&mut MapData, K, V> = self.map_mut(name).try_into().map_err(Error::map(name))?;
        testrun::clear(map).map_err(Error::map(name))
    }
}

fn is_gone(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::ENODEV))
}

fn is_shared(name: &str) -> bool {
    slots::names().any(|slot| slot == name) || READ_ONLY.contains(&name)
}

fn verdicts() -> impl Iterator<Item = Verdict> {
    let passes = Pass::ALL.iter().map(|pass| Ok(*pass));
    passes.chain(Drop::ALL.iter().map(|drop| Err(*drop)))
}

fn found<V>(value: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

impl std::fmt::Debug for Twin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Twin").field("pins", &self.pins).finish_non_exhaustive()
    }
}
