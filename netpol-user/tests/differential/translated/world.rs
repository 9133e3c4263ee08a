//! Random worlds with services and pools.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netpol_common::wire::Protocol;
use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::{
    model::{
        EndpointSlice, Expr, ObjectName, Pool, Profile, Scope, Selector, Service, ServiceAddress, ServicePort,
        SliceEndpoint, SlicePort, Target, Traffic, World,
    },
    worlds::{self, at},
};

/// The addresses that the uplink gives to what leaves.
pub const UPLINK: [&str; 2] = ["192.0.2.200", "2001:db8::fe"];
/// A machine outside that slices list.
const LISTED: [&str; 2] = ["8.8.8.8", "2001:db8::1"];
/// Of services at their own addresses.
const PORT: u16 = 80;
/// Ports at the host's addresses, by the service's number; the first is one that clients use, too.
const NODE_PORTS: [u16; 3] = [40_000, 8_001, 8_002];

/// One service of two worlds.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which endpoints are behind it, bit by bit, before and after a publication.
    members: [u8; 2],
    /// So is somebody outside.
    listed: [bool; 2],
    target: u16,
    affinity: bool,
}

/// What is published, and who may answer there: of both protocols, in both families.
#[derive(Clone, Debug)]
pub struct Published {
    pub places: Vec<SocketAddr>,
    pub affinity: bool,
    pub backends: Vec<SocketAddr>,
}

#[derive(Clone, Debug)]
pub struct Site {
    /// Two policies for the same endpoints.
    pub worlds: [World; 2],
    pub services: [Vec<Published>; 2],
}

/// What the host has: those of random worlds, and the uplink's.
pub fn host_addresses() -> Vec<IpAddr> {
    let all = worlds::HOST.iter().chain(&UPLINK).map(|text| text.parse().unwrap());
    all.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

fn plan() -> impl Strategy<Value = Plan> {
    let twice = || any::<[bool; 2]>().prop_map(|[a, b]| [a && b, a && b]);
    (any::<[u8; 2]>(), any::<bool>(), twice(), select(&[80u16, 443, 1000][..]), any::<bool>()).prop_map(
        |(members, stays, listed, target, affinity)| Plan {
            members: if stays { [members[0]; 2] } else { members },
            listed,
            target,
            affinity,
        },
    )
}

fn pools() -> impl Strategy<Value = Vec<Pool>> {
    const NETWORKS: [&str; 4] = ["10.0.0.0/24", "10.0.1.0/24", "fd00::/32", "fd00:1::/32"];
    let flags = prop_oneof![3 => Just((true, false)), 1 => any::<(bool, bool)>()];
    vec(option::weighted(0.8, flags), NETWORKS.len()).prop_map(|flags| {
        let pools =
            NETWORKS.iter().zip(flags).filter_map(|(cidr, flags)| Some((cidr.parse::<IpNet>().unwrap(), flags?)));
        pools
            .map(|(cidr, (nat_outgoing, disabled))| {
                let name = format!("pool-{}", cidr.addr());
                Pool { name, cidr, nat_outgoing, disabled, origin: at(0) }
            })
            .collect()
    })
}

/// As [`worlds::world`], but where policies deny most of what there is, nothing is translated: half of them have none.
fn world() -> impl Strategy<Value = World> {
    (worlds::world(), any::<bool>()).prop_map(|(world, is_open)| {
        if is_open { World { tiers: Vec::new(), profile: Profile::Allow, ..world } } else { world }
    })
}

/// Two of them, with services that both have.
pub fn site() -> impl Strategy<Value = Site> {
    let services = vec(plan(), 1..=NODE_PORTS.len());
    (world(), world(), services, pools()).prop_map(|(world, other, plans, pools)| {
        let other = World { endpoints: world.endpoints.clone(), namespaces: world.namespaces.clone(), ..other };
        let mut worlds = [world, other];
        let services = [0, 1].map(|when| {
            let world = &mut worlds[when];
            world.pools.clone_from(&pools);
            plans.iter().enumerate().map(|(number, plan)| publish(world, (number, plan), when)).collect()
        });
        Site { worlds, services }
    })
}

/// Adds a service to a world, and says what is promised of it.
fn publish(world: &mut World, (number, plan): (usize, &Plan), when: usize) -> Published {
    let name = ObjectName { namespace: "x".into(), name: format!("s{number}") };
    let own: [IpAddr; 2] = [[10, 96, 0, number as u8].into(), [0xfd96, 0, 0, 0, 0, 0, 0, number as u16].into()];
    let mut backends = Vec::new();
    for (index, endpoint) in world.endpoints.iter_mut().enumerate() {
        if plan.members[when] >> index & 1 == 1 {
            // a label that no random policy looks at
            endpoint.labels.insert(name.name.clone(), String::new());
            backends.extend(endpoint.addresses.iter().map(|&address| SocketAddr::new(address, plan.target)));
        }
    }
    let protocols = [Protocol::TCP, Protocol::UDP];
    let ports = protocols.map(|protocol| ServicePort {
        name: None,
        protocol,
        port: PORT,
        target: Target::Number(plan.target),
        node_port: Some(NODE_PORTS[number]),
        origin: at(0),
    });
    if plan.listed[when] {
        let listed = LISTED.map(|text| text.parse::<IpAddr>().unwrap());
        backends.extend(listed.map(|address| SocketAddr::new(address, plan.target)));
        let endpoint = |address| SliceEndpoint { address, ready: true, origin: at(0) };
        world.slices.push(EndpointSlice {
            name: name.clone(),
            service: Some(name.name.clone()),
            endpoints: listed.map(endpoint).to_vec(),
            ports: protocols.map(|protocol| SlicePort { name: None, protocol, port: plan.target }).to_vec(),
            weight: 1,
            origin: at(0),
        });
    }
    let host = host_addresses().into_iter().map(|address| SocketAddr::new(address, NODE_PORTS[number]));
    let places = own.map(|address| SocketAddr::new(address, PORT)).into_iter().chain(host).collect();
    world.services.push(Service {
        selector: Some(Selector { scope: Scope::Any, labels: Expr::Has(name.name.clone()) }),
        name,
        addresses: own.map(|address| ServiceAddress { address, is_external: false, origin: at(0) }).to_vec(),
        internal_traffic: Traffic::Cluster,
        external_traffic: Traffic::Cluster,
        family: None,
        // longer than any test takes
        affinity: plan.affinity.then_some(10_800),
        publish_not_ready: false,
        ports: ports.to_vec(),
        origin: at(0),
    });
    Published { places, affinity: plan.affinity, backends }
}
