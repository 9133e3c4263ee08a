//! What the ordered rules say about a connection; of one to a service, about each backend.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netpol_common::wire::Protocol;
use serde::Serialize;

use super::{Backend, Service, Target};
use crate::model::{
    Party, World,
    probe::{CLIENT_PORT, Place, Probe, pairs},
    row::{Row, Side, Traffic, row, rows},
};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub world: &'a World,
    pub services: &'a [Service],
    pub from: Place,
    pub to: Target,
    pub traffic: Traffic,
    pub host: Host,
}

/// What only the machine knows of the two ends. On paper it is nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host {
    /// The source, or the destination, is an address of the host itself.
    pub is_from: bool,
    pub is_to: bool,
    /// Ingress policy holds for the host's own traffic (`load --police-host`).
    pub is_policed: bool,
}

/// The verdict, and the way to it.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Behind a service: allowed if all backends are that answer; egress and ingress of the first that is not.
    #[serde(flatten)]
    pub row: Row,
    /// Verdicts of the ends' other addresses, where those differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_addresses: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translation: Option<Translation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<Masquerade>,
    /// Every two ends between which policy judges, with its verdict; the first is the one that is told in words.
    #[serde(skip)]
    pub legs: Vec<Leg>,
    /// The source, with the address that it opens from.
    #[serde(skip)]
    pub client: Party,
}

/// Two ends between which policy judges.
#[derive(Clone, Debug)]
pub struct Leg {
    pub from: Party,
    pub to: Party,
    pub traffic: Traffic,
    pub row: Row,
    /// Of [`Translation::backends`]; `None`: no service is between them.
    pub backend: Option<usize>,
}

impl Leg {
    /// What an endpoint says to itself, behind a service.
    pub fn is_loop(&self) -> bool {
        self.from.endpoint().is_some() && self.from.endpoint() == self.to.endpoint()
    }
}

/// Before: an address and port that a service is published at. After: one of its backends.
#[derive(Clone, Debug, Serialize)]
pub struct Translation {
    /// `namespace/name`
    pub service: String,
    pub port: u16,
    /// Where that is written: `file:line`.
    pub source: String,
    /// The address and port that packets go to; `null` where documents do not tell (the host's own addresses).
    pub published: Option<SocketAddr>,
    /// For how many seconds a client address keeps its backend.
    pub affinity: Option<u32>,
    pub backends: Vec<Behind>,
}

/// A backend, and the verdict about it.
#[derive(Clone, Debug, Serialize)]
pub struct Behind {
    /// `namespace/name`; `null`: a slice lists its address.
    pub endpoint: Option<String>,
    pub address: Option<IpAddr>,
    pub port: u16,
    pub weight: u8,
    /// As `netpol services` has it.
    pub state: &'static str,
    /// `null`: it gets no packets.
    pub allowed: Option<bool>,
    pub egress: Option<Side>,
    pub ingress: Option<Side>,
    /// The kernel has chosen it for this client port; `null`: it was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<bool>,
}

impl Behind {
    /// Name or address, with the port.
    pub fn who(&self) -> String {
        let address = || self.address.map(|address| SocketAddr::new(address, self.port).to_string());
        match &self.endpoint {
            Some(name) => format!("{name}:{}", self.port),
            None => address().unwrap_or_else(|| format!("?:{}", self.port)),
        }
    }

    /// The reason of the end that settles it.
    pub fn reason(&self) -> Option<&str> {
        let sides = || [&self.egress, &self.ingress].into_iter().flatten();
        let decisive = sides().find(|side| !side.allowed).or_else(|| sides().next_back());
        decisive.map(|side| side.reason.as_str())
    }
}

/// Before: an address of a pool. After: that of the uplink.
#[derive(Clone, Debug, Serialize)]
pub struct Masquerade {
    pub pool: String,
    /// Where the pool is written: `file:line`.
    pub source: String,
    pub before: String,
    /// `null`: the documents do not tell.
    pub after: Option<String>,
    /// The interface that it leaves through.
    pub uplink: Option<String>,
    /// Of other protocols than TCP, UDP and ICMP queries nothing tells answers from what is the host's own: dropped.
    pub possible: bool,
}

/// What the rules say.
pub fn explain(asked: &Asked<'_>) -> Explanation {
    match asked.to {
        Target::Place(to) => between(asked, to),
        Target::Service { index, address } => behind(asked, &asked.services[index], address),
    }
}

fn between(asked: &Asked<'_>, to: Place) -> Explanation {
    let Asked { world, from, traffic, host, .. } = *asked;
    let leg = |(from, to)| Leg { from, to, traffic, row: judged(asked, (from, to), traffic), backend: None };
    let legs: Vec<_> = pairs(world, from, to).into_iter().map(leg).collect();
    let mut all: Vec<_> = rows(world, from, to, traffic).into_iter().map(|row| by_host(row, host)).collect();
    let row = all.remove(0);
    let (client, masquerade) = (legs[0].from, masquerade(asked, &legs[0]));
    Explanation { row, other_addresses: all, translation: None, masquerade, legs, client }
}

fn behind(asked: &Asked<'_>, service: &Service, address: Option<IpAddr>) -> Explanation {
    let Asked { world, from, traffic, .. } = *asked;
    let published = published(asked, service, address);
    let four = published.map_or_else(|| speaks_four(asked, service), |(address, _)| address.is_ipv4());
    let anybody: IpAddr = if four { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let client = pairs(world, from, Place::Outside(anybody))[0].0;
    let mut backends = Vec::new();
    let mut legs = Vec::new();
    for backend in service.backends.iter().filter(|b| b.address.is_none_or(|address| address.is_ipv4() == four)) {
        let mut found = Behind {
            endpoint: backend.endpoint.map(|index| world.endpoints[index].name.to_string()),
            address: backend.address,
            port: backend.port,
            weight: backend.weight,
            state: backend.state.as_str(),
            allowed: None,
            egress: None,
            ingress: None,
            chosen: None,
        };
        if backend.state.answers() {
            let leg = to_backend(asked, (client, service.protocol), backend, backends.len());
            found.allowed = Some(leg.row.allowed);
            (found.egress, found.ingress) = (leg.row.egress.clone(), leg.row.ingress.clone());
            legs.push(leg);
        }
        backends.push(found);
    }
    // the first is the one that is told: one that is denied, if there is one
    legs.sort_by_key(|leg| leg.row.allowed);
    let question = traffic.question(world, (client, Party::Outside(published.map_or(anybody, |(address, _)| address))));
    let port = match traffic.probe {
        Probe::Port { port, .. } => Some(port),
        Probe::Icmp { .. } | Probe::Icmpv6 { .. } => None,
    };
    let shown = legs.first().map(|leg| &leg.row);
    let row = Row {
        from: question.name(client),
        to: address.map_or_else(|| service.name.to_string(), |address| address.to_string()),
        source_address: None,
        destination_address: None,
        port,
        protocol: service.protocol.to_string(),
        icmp_type: None,
        icmp_code: None,
        source_port: traffic.source_port,
        allowed: shown.is_some_and(|row| row.allowed),
        egress: shown.and_then(|row| row.egress.clone()),
        ingress: shown.and_then(|row| row.ingress.clone()),
        audit: shown.and_then(|row| row.audit.clone()),
    };
    let masquerade = legs.iter().find(|leg| leg.to.endpoint().is_none()).and_then(|leg| masquerade(asked, leg));
    let translation = Translation {
        service: service.name.to_string(),
        port: service.port,
        source: service.origin.to_string(),
        published: published.map(SocketAddr::from),
        affinity: service.affinity,
        backends,
    };
    Explanation { row, other_addresses: vec![], translation: Some(translation), masquerade, legs, client }
}

fn to_backend(asked: &Asked<'_>, (client, protocol): (Party, Protocol), backend: &Backend, number: usize) -> Leg {
    let to = match (backend.endpoint, backend.address) {
        (Some(index), address) => Party::Endpoint { index, address },
        (None, Some(address)) => match Place::of_address(asked.world, address) {
            Place::At { endpoint: index, address } => Party::Endpoint { index, address: Some(address) },
            _ => Party::Outside(address),
        },
        (None, None) => Party::Outside(Ipv4Addr::UNSPECIFIED.into()),
    };
    let traffic = Traffic { probe: Probe::Port { port: backend.port, protocol }, ..asked.traffic };
    let row = judged(asked, (client, to), traffic);
    let mut leg = Leg { from: client, to, traffic, row, backend: Some(number) };
    let reason = if leg.is_loop() {
        Some((true, "an endpoint always reaches itself through a service"))
    } else if client.endpoint().is_none() && to.endpoint().is_none() && !asked.host.is_from {
        Some((false, "a backend outside does not answer clients outside"))
    } else {
        None
    };
    if let Some((allowed, reason)) = reason {
        let side = Side { allowed, rule: None, isolated_by: None, reason: reason.to_owned() };
        leg.row = Row { allowed, egress: Some(side), ingress: None, audit: None, ..leg.row };
    }
    leg
}

/// The verdict between two ends.
fn judged(asked: &Asked<'_>, pair: (Party, Party), traffic: Traffic) -> Row {
    by_host(row(&traffic.question(asked.world, pair), traffic), asked.host)
}

/// What the host itself sends is not judged, unless that was wanted.
fn by_host(row: Row, host: Host) -> Row {
    if !host.is_from || host.is_policed || row.ingress.is_none() {
        return row;
    }
    let reason = "it is the host's own traffic, which is not judged (load --police-host)".to_owned();
    let ingress = Some(Side { allowed: true, rule: None, isolated_by: None, reason });
    Row { allowed: true, ingress, audit: None, ..row }
}

/// The address and port that the client's packets go to.
fn published(asked: &Asked<'_>, service: &Service, address: Option<IpAddr>) -> Option<(IpAddr, u16)> {
    let Probe::Port { port, .. } = asked.traffic.probe else { return None };
    if let Some(address) = address {
        return Some((address, port));
    }
    let four = speaks_four(asked, service);
    let of_family =
        || service.addresses.iter().filter(|(address, _)| address.is_ipv4() == four && !address.is_loopback());
    of_family().find(|(_, at)| *at == port).or_else(|| of_family().next()).copied()
}

/// IPv4, if client and service have it; else what both have.
fn speaks_four(asked: &Asked<'_>, service: &Service) -> bool {
    let client = |four: bool| match asked.from {
        Place::At { address, .. } | Place::Outside(address) => address.is_ipv4() == four,
        Place::Endpoint(index) => {
            let addresses = &asked.world.endpoints[index].addresses;
            addresses.is_empty() || addresses.iter().any(|address| address.is_ipv4() == four)
        }
    };
    let is = |address: Option<IpAddr>, four: bool| address.is_none_or(|address| address.is_ipv4() == four);
    let served = |four: bool| {
        let somewhere = service.addresses.is_empty() || service.addresses.iter().any(|(a, _)| a.is_ipv4() == four);
        somewhere && service.backends.iter().any(|backend| is(backend.address, four))
    };
    let both = |four| client(four) && served(four);
    both(true) || !both(false) && client(true)
}

/// What becomes of the source address on the way out, where it is of a pool.
fn masquerade(asked: &Asked<'_>, leg: &Leg) -> Option<Masquerade> {
    let Party::Endpoint { address: Some(source), .. } = leg.from else { return None };
    let Party::Outside(destination) = leg.to else { return None };
    let pools = &asked.world.pools;
    let stays = asked.host.is_to && leg.backend.is_none();
    if stays || pools.iter().any(|pool| pool.cidr.contains(&destination)) {
        return None;
    }
    let pool = pools.iter().find(|pool| pool.masquerades() && pool.cidr.contains(&source))?;
    let opening = leg.traffic.question(asked.world, (leg.from, leg.to)).opening;
    let asks = opening.icmp.is_some_and(|(kind, _)| matches!(kind, 8 | 13 | 128));
    let has_ports = opening.protocol.has_ports();
    let port = asked.traffic.source_port.unwrap_or(CLIENT_PORT);
    let before = if has_ports { SocketAddr::new(source, port).to_string() } else { source.to_string() };
    Some(Masquerade {
        pool: pool.name.clone(),
        source: pool.origin.to_string(),
        before,
        after: None,
        uplink: None,
        possible: matches!(opening.protocol, Protocol::TCP | Protocol::UDP) || asks,
    })
}
