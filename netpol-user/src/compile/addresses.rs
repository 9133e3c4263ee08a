//! Who is behind an address, and what the loader knows about each interface.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netpol_common::tables::{AddressFlags, AddressKey, AddressValue, HookValue, Identity, IfIndex, Network};
use netpol_common::wire::{Addr4, Addr6, Address as _, MacWords};

use super::{CompileError, Snapshot, Workload, bits::Bits, identity::Identities};
use crate::model::{ObjectName, World};

/// Fills in addresses and hooks.
pub(super) fn fill(
    snapshot: &mut Snapshot,
    found: &Found<'_>,
    identities: &Identities<'_>,
    marks: &Marks,
) -> Result<(), CompileError> {
    let networks = found.networks()?;
    let mut values = BTreeMap::new();
    for (workload, address) in found.addresses() {
        let flags = flags(workload, marks).with(masquerade(found.world, address));
        let identity = identities.endpoints.get(&(workload.endpoint, address)).copied().unwrap_or(Identity::WORLD);
        let Workload { ifindex, segment, mac, .. } = *workload;
        let network = networks.of(workload, address);
        values.insert((network, address), AddressValue { identity, ifindex, segment, mac: mac.into(), flags });
    }
    for &address in found.host {
        let identity = match identities.of_outside(address) {
            Identity::WORLD => Identity::HOST,
            told_apart => told_apart,
        };
        let value = AddressValue {
            identity,
            ifindex: IfIndex::NONE,
            segment: 0,
            mac: MacWords::ZERO,
            flags: AddressFlags::HOST,
        };
        values.insert((Network::SHARED, address), value);
    }
    for ((network, address), value) in values {
        match address {
            IpAddr::V4(address) => snapshot.addresses4.push((AddressKey { network, address: address.into() }, value)),
            IpAddr::V6(address) => snapshot.addresses6.push((AddressKey { network, address: address.into() }, value)),
        }
    }
    let hook = |workload: &Workload| {
        let own = flags(workload, marks);
        let first = |four: bool| {
            let address = workload.addresses.iter().copied().find(|address| address.is_ipv4() == four);
            let known = |address| identities.endpoints.get(&(workload.endpoint, address));
            let identity = address.and_then(known).copied().unwrap_or(Identity::ANY);
            let flags = address.map_or(own, |address| own.with(masquerade(found.world, address)));
            // nobody's identity is looked up
            (address.filter(|_| identity != Identity::ANY), identity, flags)
        };
        let ((address4, identity4, flags4), (address6, identity6, flags6)) = (first(true), first(false));
        let Workload { ifindex, master, segment, mac, router_mac, .. } = *workload;
        let value = HookValue {
            network: networks.asked_from(workload),
            master,
            segment,
            mac: mac.into(),
            host_mac: router_mac.into(),
            flags: own,
            flags4,
            identity4,
            address4: match address4 {
                Some(IpAddr::V4(address)) => address.into(),
                _ => Addr4::UNSPECIFIED,
            },
            address6: match address6 {
                Some(IpAddr::V6(address)) => address.into(),
                _ => Addr6::UNSPECIFIED,
            },
            identity6,
            flags6,
            reserved: 0,
        };
        (ifindex, value)
    };
    snapshot.hooks = found.workloads.iter().map(hook).collect();
    snapshot.hooks.sort_unstable_by_key(|(ifindex, _)| *ifindex);
    Ok(())
}

/// Whom policies are about, by direction, egress first.
pub(super) struct Marks {
    pub isolated: [Bits; 2],
    pub audited: [Bits; 2],
}

/// What is on this machine.
pub(super) struct Found<'a> {
    pub world: &'a World,
    pub workloads: &'a [Workload],
    pub host: &'a [IpAddr],
}

impl<'a> Found<'a> {
    pub(super) fn addresses(&self) -> impl Iterator<Item = (&'a Workload, IpAddr)> + use<'a> {
        self.workloads.iter().flat_map(|workload| {
            let mut seen = HashSet::new();
            workload.addresses.iter().filter(move |address| seen.insert(**address)).map(move |&a| (workload, a))
        })
    }

    /// How many have an address, the host included.
    pub(super) fn uses(&self) -> HashMap<IpAddr, usize> {
        let mut uses = HashMap::new();
        let host: HashSet<_> = self.host.iter().copied().collect();
        host.into_iter().chain(self.addresses().map(|(_, a)| a)).for_each(|a| *uses.entry(a).or_default() += 1);
        uses
    }

    /// Refuses what would leave open who is meant.
    fn networks(&self) -> Result<Networks, CompileError> {
        let name = |workload: &Workload| self.world.endpoints[workload.endpoint].name.clone();
        let mut interfaces = HashMap::new();
        for workload in self.workloads {
            if let Some(other) = interfaces.insert(workload.ifindex, workload) {
                return Err(CompileError::InterfaceTwice {
                    ifindex: workload.ifindex.0,
                    one: name(other),
                    two: name(workload),
                });
            }
        }
        let mut networks = Networks { uses: self.uses(), crowded: HashSet::new() };
        let own = |(workload, address)| match networks.of(workload, address) {
            Network::SHARED => None,
            own => Some(own),
        };
        networks.crowded = self.addresses().filter_map(own).collect();
        let host = self.host.iter().map(|&address| ((Network::SHARED, address), None));
        let mut owners: HashMap<_, Option<&Workload>> = host.collect();
        for (workload, address) in self.addresses() {
            let other = owners.insert((networks.of(workload, address), address), Some(workload));
            let (one, two) = match other {
                None => continue,
                Some(None) => (name(workload), None),
                Some(Some(first)) => (name(first), Some(name(workload))),
            };
            return Err(CompileError::AddressTwice { address, one, two });
        }
        Ok(networks)
    }
}

struct Networks {
    uses: HashMap<IpAddr, usize>,
    /// Those that have an address which another network has, too.
    crowded: HashSet<Network>,
}

impl Networks {
    /// Only an address that somebody else has too needs the workload's own network.
    fn of(&self, workload: &Workload, address: IpAddr) -> Network {
        if self.uses.get(&address) == Some(&1) { Network::SHARED } else { workload.network }
    }

    /// Where a hook looks first: one look-up is enough where no address repeats.
    fn asked_from(&self, workload: &Workload) -> Network {
        if self.crowded.contains(&workload.network) { workload.network } else { Network::SHARED }
    }
}

/// Pools that hold the same address say the same.
fn masquerade(world: &World, address: IpAddr) -> AddressFlags {
    let translated = world.pools.iter().any(|pool| pool.masquerades() && pool.cidr.contains(&address));
    if translated { AddressFlags::MASQUERADE } else { AddressFlags::default() }
}

/// Every pool, also those that translate nothing: what goes into one is not translated.
pub(super) fn pools(snapshot: &mut Snapshot, world: &World) {
    for pool in &world.pools {
        match pool.cidr {
            IpNet::V4(net) => snapshot.pools4.push(net),
            IpNet::V6(net) => snapshot.pools6.push(net),
        }
    }
    snapshot.pools4.sort_unstable();
    snapshot.pools4.dedup();
    snapshot.pools6.sort_unstable();
    snapshot.pools6.dedup();
}

fn flags(workload: &Workload, marks: &Marks) -> AddressFlags {
    let Marks { isolated: [egress, ingress], audited: [audit_egress, audit_ingress] } = marks;
    let flags = [
        (AddressFlags::ISOLATED_EGRESS, egress.contains(workload.endpoint)),
        (AddressFlags::ISOLATED_INGRESS, ingress.contains(workload.endpoint)),
        (AddressFlags::AUDIT_EGRESS, audit_egress.contains(workload.endpoint)),
        (AddressFlags::AUDIT_INGRESS, audit_ingress.contains(workload.endpoint)),
        (AddressFlags::PORT_ISOLATED, workload.port_isolated),
        (AddressFlags::ROUTED, workload.routed),
        // what audited policies say is counted at the endpoint's own interface
        (
            AddressFlags::OUTWARD,
            workload.outward && !audit_egress.contains(workload.endpoint) && !audit_ingress.contains(workload.endpoint),
        ),
    ];
    flags.into_iter().filter(|(_, set)| *set).fold(AddressFlags::default(), |all, (flag, _)| all.with(flag))
}

impl CompileError {
    pub(super) fn owner(other: &Option<ObjectName>) -> String {
        other.as_ref().map_or_else(|| "the host itself".into(), ToString::to_string)
    }
}
