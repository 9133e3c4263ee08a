//! Whose address it is. Root inside a container can give its interface any, so having one is only a claim.
//!
//! What an endpoint's interface has is its own, unless:
//!
//! 1. it is an address of the host;
//! 2. the document names addresses, and not this one;
//! 3. an earlier load has seen this interface without it (`load --accept-addresses` lifts that);
//! 4. somebody in the same network has a better title to it, or the same one.
//!
//! The titles: the document names the address; an earlier load has believed it; none. Equal titles are
//! settled for nobody, except that two documents which name one address are an error. An endpoint that is not
//! running, or does not have its address at the moment, keeps its title.
//!
//! The MAC address is one, too, of which 3 holds: with a neighbour's, bridges would learn that the neighbour is
//! here. A link-local address that is made of it (RFC 4291, appendix A) passes 2 and 3: it says no more.
//!
//! An interface is known again by the number and the MAC address of its host end, neither of which can be
//! changed from inside.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::IpAddr,
};

use netpol_common::{
    tables::{IfIndex, Network},
    wire::Mac,
};
use serde::{Deserialize, Serialize};

use super::{Found, Pending, is_link_local};
use crate::{
    format::Diagnostic,
    model::{Endpoint, ObjectName, World},
};

/// An interface as loads have seen it, from the first one on that found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// `namespace/name`
    pub endpoint: String,
    /// Number and MAC address of the host end.
    pub ifindex: u32,
    pub mac: Mac,
    /// Of the container's end, at first.
    pub inside: Mac,
    pub network: u32,
    /// What has been believed; it need not have them now.
    pub addresses: Vec<IpAddr>,
}

/// What is known from before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    pub seen: &'a [Seen],
    /// What interfaces have now is believed as if they were new, and nobody keeps an address that he has not.
    pub accept: bool,
}

impl Known<'_> {
    /// An earlier load has found this endpoint.
    pub(super) fn has_seen(&self, name: &ObjectName) -> bool {
        let name = name.to_string();
        self.seen.iter().any(|seen| seen.endpoint == name)
    }
}

/// An address that an endpoint has and is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Index into [`World::endpoints`].
    pub endpoint: usize,
    pub address: Address,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    Ip(IpAddr),
    Mac(Mac),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "address {address}"),
            Self::Mac(mac) => write!(f, "MAC address {}", mac.map(|byte| format!("{byte:02x}")).join(":")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is the host's.
    Host,
    /// It is this endpoint's, by index.
    Owned(usize),
    /// That endpoint has it with the same title.
    Contested(usize),
    /// The document names others.
    Undeclared,
    /// The interface was first seen without it.
    New,
}

impl Refused {
    /// As a warning about the endpoint's document.
    pub fn diagnostic(&self, world: &World) -> Diagnostic {
        let document = &world.endpoints[self.endpoint];
        let (name, address) = (&document.name, self.address);
        let other = |index: usize| &world.endpoints[index].name;
        let (why, help) = match self.reason {
            Reason::Host => ("which is an address of the host".to_owned(), "remove it from the container".to_owned()),
            Reason::Owned(owner) => {
                (format!("which is an address of {}", other(owner)), "give each an address of its own".to_owned())
            }
            Reason::Contested(rival) => (
                format!("and so has {}: neither is believed", other(rival)),
                "name it in `spec.addresses` of the one whose it is".to_owned(),
            ),
            Reason::Undeclared => {
                ("which its document does not name".to_owned(), "add it to `spec.addresses` if it is right".to_owned())
            }
            Reason::New => (
                "which it had not when it was first seen".to_owned(),
                "if that is right, name it in `spec.addresses` or load with --accept-addresses".to_owned(),
            ),
        };
        let message = format!("{name} has the {address}, {why}; what it sends from there is dropped");
        Diagnostic { origin: document.origin.clone(), message, help: Some(help) }
    }
}

/// What became of all claims.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub refused: Vec<Refused>,
    /// For the next load.
    pub seen: Vec<Seen>,
    /// Documents that contradict each other.
    pub wrong: Vec<Diagnostic>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Title {
    None,
    Seen,
    Document,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has the address and may have it, if nobody objects.
    Present,
    /// It has the address and may not.
    Barred(Reason),
    /// It does not have the address at the moment.
    Absent,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    endpoint: usize,
    /// Of the interface; `None`: it is not running.
    ifindex: Option<IfIndex>,
    /// `None`: nobody knows where it will be, so it may be anywhere.
    network: Option<Network>,
    title: Title,
    standing: Standing,
}

impl Claim {
    /// Whether the other one's claim is about the same address for the same listeners.
    fn meets(&self, other: &Self) -> bool {
        let same_network = self.network.is_none() || other.network.is_none() || self.network == other.network;
        self.endpoint != other.endpoint && same_network
    }

    /// What becomes of the address; `Ok`: it is this endpoint's.
    fn decide(&self, all: &[Self]) -> Result<(), Reason> {
        let rivals = || all.iter().filter(|rival| self.meets(rival) && !matches!(rival.standing, Standing::Barred(_)));
        let best = rivals().max_by_key(|rival| rival.title);
        match (self.standing, best) {
            (Standing::Barred(Reason::Host), _) => Err(Reason::Host),
            (Standing::Barred(_), Some(rival)) => Err(Reason::Owned(rival.endpoint)),
            (Standing::Barred(reason), None) => Err(reason),
            (_, Some(rival)) if rival.title > self.title => Err(Reason::Owned(rival.endpoint)),
            (_, Some(rival)) if rival.title == self.title && self.title != Title::Document => {
                Err(Reason::Contested(rival.endpoint))
            }
            _ => Ok(()),
        }
    }
}

/// Leaves to each endpoint the addresses that are its own.
pub(super) fn settle(
    world: &World,
    (found, pending): (&mut [Found], &[Pending]),
    host: &[IpAddr],
    known: Known<'_>,
) -> Settled {
    let memory = Memory::new(known, found);
    let mut settled = Settled::default();
    for one in found.iter_mut() {
        settled.refused.extend(memory.keep_mac(one));
    }
    let mut claims: HashMap<IpAddr, Vec<Claim>> = HashMap::new();
    for one in found.iter() {
        memory.of_running(&world.endpoints[one.workload.endpoint], one, host, &mut claims);
    }
    for one in pending {
        memory.of_pending(&world.endpoints[one.endpoint], one.endpoint, &mut claims);
    }
    settled.wrong = twice_named(world, &claims);
    for one in found.iter_mut() {
        let endpoint = one.workload.endpoint;
        let refused = &mut settled.refused;
        one.workload.addresses.retain(|&address| {
            let all = &claims[&address];
            let is_own = |claim: &&Claim| claim.endpoint == endpoint && claim.standing != Standing::Absent;
            let decided = all.iter().find(is_own).map_or(Ok(()), |own| own.decide(all));
            let address = Address::Ip(address);
            refused.extend(decided.err().map(|reason| Refused { endpoint, address, reason }));
            decided.is_ok()
        });
        settled.seen.push(memory.next(&world.endpoints[endpoint].name, one));
    }
    let names = pending.iter().map(|one| world.endpoints[one.endpoint].name.to_string());
    settled.seen.extend(names.filter_map(|name| memory.gone(&name).cloned()));
    settled
}

/// Two that run in one network, and documents that give both the same address.
fn twice_named(world: &World, claims: &HashMap<IpAddr, Vec<Claim>>) -> Vec<Diagnostic> {
    let mut wrong = Vec::new();
    for (address, claims) in claims {
        let named: Vec<_> = claims.iter().filter(|c| c.title == Title::Document && c.ifindex.is_some()).collect();
        for (at, second) in named.iter().enumerate() {
            // who shares an interface is told that
            let is_other = |first: &&&Claim| first.meets(second) && first.ifindex != second.ifindex;
            let Some(first) = named[..at].iter().find(is_other) else { continue };
            let [one, two] = [first, second].map(|claim| &world.endpoints[claim.endpoint]);
            wrong.push(Diagnostic {
                origin: two.origin.clone(),
                message: format!("endpoints {} and {} both have the address {address}", one.name, two.name),
                help: Some("give each an address of its own, or bridges of their own".to_owned()),
            });
        }
    }
    wrong.sort_by(|one, two| (one.origin.line, &one.message).cmp(&(two.origin.line, &two.message)));
    wrong
}

/// [`Known`], to look things up in.
struct Memory<'a> {
    accept: bool,
    by_interface: HashMap<(u32, Mac), &'a Seen>,
    by_name: HashMap<&'a str, &'a Seen>,
    running: BTreeSet<u32>,
}

impl<'a> Memory<'a> {
    fn new(Known { seen, accept }: Known<'a>, found: &[Found]) -> Self {
        Self {
            accept,
            by_interface: seen.iter().map(|seen| ((seen.ifindex, seen.mac), seen)).collect(),
            by_name: seen.iter().map(|seen| (seen.endpoint.as_str(), seen)).collect(),
            running: found.iter().map(|found| found.workload.ifindex.0).collect(),
        }
    }

    fn interface(&self, Found { workload, .. }: &Found) -> Option<&'a Seen> {
        self.by_interface.get(&(workload.ifindex.0, workload.host_mac)).copied()
    }

    /// The interface of an endpoint that is not running.
    fn gone(&self, name: &str) -> Option<&'a Seen> {
        self.by_name.get(name).copied().filter(|seen| !self.running.contains(&seen.ifindex))
    }

    /// Gives the container's end the MAC address back that it had at first.
    fn keep_mac(&self, found: &mut Found) -> Option<Refused> {
        let first = self.interface(found).filter(|_| !self.accept)?.inside;
        let workload = &mut found.workload;
        let now = std::mem::replace(&mut workload.mac, first);
        let refused = Refused { endpoint: workload.endpoint, address: Address::Mac(now), reason: Reason::New };
        (now != first).then_some(refused)
    }

    fn of_running(
        &self,
        document: &Endpoint,
        found: &Found,
        host: &[IpAddr],
        claims: &mut HashMap<IpAddr, Vec<Claim>>,
    ) {
        let workload = &found.workload;
        let seen = self.interface(found);
        let before = self.by_name.get(document.name.to_string().as_str());
        let had = |seen: Option<&Seen>, address| seen.is_some_and(|seen| seen.addresses.contains(&address));
        let mut claim = |address, title, standing| {
            let (endpoint, network) = (workload.endpoint, Some(workload.network));
            let claim = Claim { endpoint, ifindex: Some(workload.ifindex), network, title, standing };
            claims.entry(address).or_default().push(claim);
        };
        for &address in &workload.addresses {
            let named = document.addresses.contains(&address);
            let of_mac = address == link_local(workload.mac);
            let believed = had(seen, address) || had(before.copied(), address);
            let title = match (named, believed) {
                (true, _) => Title::Document,
                (false, true) => Title::Seen,
                (false, false) => Title::None,
            };
            let standing = if host.contains(&address) {
                Standing::Barred(Reason::Host)
            } else if named || of_mac {
                Standing::Present
            } else if !document.addresses.is_empty() && !is_link_local(address) {
                Standing::Barred(Reason::Undeclared)
            } else if seen.is_some() && !had(seen, address) && !self.accept {
                Standing::Barred(Reason::New)
            } else {
                Standing::Present
            };
            claim(address, title, standing);
        }
        let absent = |address: &&IpAddr| !workload.addresses.contains(address);
        document.addresses.iter().filter(absent).for_each(|&a| claim(a, Title::Document, Standing::Absent));
        let kept = seen.filter(|_| !self.accept).map(|seen| seen.addresses.as_slice()).unwrap_or_default();
        let kept = kept.iter().filter(absent).filter(|address| !document.addresses.contains(address));
        kept.for_each(|&address| claim(address, Title::Seen, Standing::Absent));
    }

    fn of_pending(&self, document: &Endpoint, endpoint: usize, claims: &mut HashMap<IpAddr, Vec<Claim>>) {
        let seen = self.gone(&document.name.to_string());
        let network = seen.map(|seen| Network(seen.network));
        let mut claim = |address, title| {
            let claim = Claim { endpoint, ifindex: None, network, title, standing: Standing::Absent };
            claims.entry(address).or_default().push(claim);
        };
        document.addresses.iter().for_each(|&address| claim(address, Title::Document));
        let kept = seen.filter(|_| !self.accept).map(|seen| seen.addresses.as_slice()).unwrap_or_default();
        let kept = kept.iter().filter(|address| !document.addresses.contains(address));
        kept.for_each(|&address| claim(address, Title::Seen));
    }

    /// What the next load is to know of an endpoint that runs.
    fn next(&self, name: &ObjectName, found: &Found) -> Seen {
        let workload = &found.workload;
        let kept = self.interface(found).filter(|_| !self.accept).map(|seen| seen.addresses.as_slice());
        let addresses: BTreeSet<_> = kept.unwrap_or_default().iter().chain(&workload.addresses).copied().collect();
        Seen {
            endpoint: name.to_string(),
            ifindex: workload.ifindex.0,
            mac: workload.host_mac,
            inside: workload.mac,
            network: workload.network.0,
            addresses: addresses.into_iter().collect(),
        }
    }
}

/// The address that the kernel makes of a MAC address: the modified EUI-64 below fe80::/64.
fn link_local(mac: Mac) -> IpAddr {
    let [a, b, c, d, e, f] = mac;
    IpAddr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
