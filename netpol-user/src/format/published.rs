//! What two documents may not both say about an address: whose it is, and what happens to it.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
};

use super::Diagnostic;
use crate::model::{Origin, Pool, Protocol, Service, ServiceAddress, ServicePort, World};

pub fn conflicts(world: &World) -> Vec<Diagnostic> {
    let mut conflicts = ports(world);
    conflicts.extend(addresses(world));
    conflicts.extend(pools(&world.pools));
    conflicts
}

fn conflict(origin: &Origin, message: String, help: &str) -> Diagnostic {
    Diagnostic { origin: origin.clone(), message, help: Some(help.to_owned()) }
}

/// Address (`None`: all of the host's), port, protocol.
type Place = (Option<IpAddr>, u16, Protocol);

/// Two services at one place.
fn ports(world: &World) -> Vec<Diagnostic> {
    let mut first: HashMap<Place, (&Service, &Origin)> = HashMap::new();
    let mut conflicts = Vec::new();
    for service in &world.services {
        for (place, origin) in service.ports.iter().flat_map(|port| places(service, port)) {
            let (other, there) = match first.entry(place) {
                Entry::Vacant(free) => {
                    free.insert((service, origin));
                    continue;
                }
                Entry::Occupied(taken) => *taken.get(),
            };
            let (address, port, protocol) = place;
            // ports of one service are told apart where they are read
            if address.is_some() && other.name == service.name {
                continue;
            }
            let what = match address {
                Some(address) => format!("{address} port {port}/{protocol}"),
                None => format!("node port {port}/{protocol}"),
            };
            let message = format!("services `{}` and `{}` both publish {what}", other.name, service.name);
            let help = format!("the other is at {there}:{}; give one another address or port", there.column);
            conflicts.push(conflict(origin, message, &help));
        }
    }
    conflicts
}

fn places<'w>(service: &'w Service, port: &'w ServicePort) -> impl Iterator<Item = (Place, &'w Origin)> {
    let own = service.addresses.iter().map(|own| ((Some(own.address), port.port, port.protocol), &own.origin));
    let node = port.node_port.map(|number| ((None, number, port.protocol), &port.origin));
    own.chain(node)
}

/// A service's address that an endpoint has.
fn addresses(world: &World) -> Vec<Diagnostic> {
    let of_endpoints: HashMap<IpAddr, _> =
        world.endpoints.iter().flat_map(|e| e.addresses.iter().map(move |&address| (address, e))).collect();
    let published = world.services.iter().flat_map(|s| s.addresses.iter().map(move |address| (s, address)));
    let taken = published.filter_map(|(service, ServiceAddress { address, origin, .. })| {
        let endpoint = of_endpoints.get(address)?;
        let message = format!("service `{}` has the address of endpoint `{}`, {address}", service.name, endpoint.name);
        Some(conflict(origin, message, "give the service an address that nobody has"))
    });
    taken.collect()
}

/// Pools inside each other that say different things. Sorted by address and length, each pool follows those
/// that hold it: those are kept, the innermost last.
fn pools(pools: &[Pool]) -> Vec<Diagnostic> {
    let mut sorted: Vec<&Pool> = pools.iter().collect();
    sorted.sort_by_key(|pool| (pool.cidr.network(), pool.cidr.prefix_len()));
    let mut holding: Vec<&Pool> = Vec::new();
    let mut conflicts = Vec::new();
    for pool in sorted {
        holding.retain(|outer| outer.cidr.contains(&pool.cidr));
        if let Some(outer) = holding.last()
            && (outer.nat_outgoing, outer.disabled) != (pool.nat_outgoing, pool.disabled)
        {
            let message = format!("pools `{}` and `{}` overlap and have different settings", outer.name, pool.name);
            let help = format!(
                "the other is at {}:{}; make `natOutgoing` and `disabled` the same, or the CIDRs apart",
                outer.origin, outer.origin.column
            );
            conflicts.push(conflict(&pool.origin, message, &help));
        }
        holding.push(pool);
    }
    conflicts
}
