//! What should become of a packet of a translated connection, by the ordered rules, by what documents publish, and by what
//! was seen of the connection until now. No tables, no generations, no hashes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use netpol_common::{drops::Drop, wire::Protocol};

use super::{
    packet::Tuple,
    way::At,
    world::{Published, UPLINK},
};
use crate::{
    datapath::frame::{ACK, SYN},
    model::{Opening, Party, Question, Regime, World},
    stage::Actor,
};

/// What holds at present.
#[derive(Clone, Copy)]
pub struct Now<'a> {
    pub world: &'a World,
    pub services: &'a [Published],
    pub actors: &'a [Actor],
}

/// A connection that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// As it reaches who was led to, and where that is.
    pub arrived: Tuple,
    pub at: At,
    /// Since the last publication a packet has passed, there and back.
    pub fresh: [bool; 2],
}

/// What was seen, so that a test can tell what it has tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    ToService,
    ToItself,
    Masqueraded,
    Twice,
    FromOutside,
    OtherPort,
    Stayed,
    Moved,
    Answer,
    Denied,
    Refused,
    Error,
    Piece,
}

#[derive(Debug, Default)]
pub struct Tally(BTreeMap<Seen, u32>);

impl Tally {
    pub fn saw(&mut self, what: Seen) {
        *self.0.entry(what).or_default() += 1;
    }

    pub fn saw_if(&mut self, condition: bool, what: Seen) {
        if condition {
            self.saw(what);
        }
    }

    pub fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, count)| *self.0.entry(*what).or_default() += count);
    }

    pub fn of(&self, what: Seen) -> u32 {
        self.0.get(&what).copied().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
pub struct Oracle {
    /// By what the client sends.
    pub open: HashMap<Tuple, Connection>,
    /// What has ever arrived, by who sent it: nobody else gets the same, and who could have is given another port.
    ever: HashSet<(Tuple, Tuple)>,
    /// Which client stays with whom, at which place.
    stays: HashMap<(IpAddr, SocketAddr, Protocol), SocketAddr>,
    /// What was denied since the last publication.
    denied: HashSet<Tuple>,
    pub tally: Tally,
}

/// What was seen of a packet.
pub type Outcome = Result<(Tuple, At), Drop>;
type Verdict = Result<(), String>;

impl Now<'_> {
    fn actor(&self, address: IpAddr) -> Option<&Actor> {
        self.actors.iter().find(|actor| actor.is_workload() && actor.address == address)
    }

    fn published(&self, sent: &Tuple) -> Option<&Published> {
        if sent.is_echo() {
            return None;
        }
        self.services.iter().find(|service| service.places.contains(&sent.destination))
    }

    /// Whether the rules let a client open a connection to this address and port.
    fn allows(&self, sent: &Tuple, server: SocketAddr) -> bool {
        let party = |address| self.actor(address).map_or(Party::Outside(address), |actor| actor.party);
        let (from, to) = (party(sent.source.ip()), party(server.ip()));
        if from == to {
            return true;
        }
        let request = if sent.source.is_ipv4() { 8 } else { 128 };
        let (source_port, destination_port) = if sent.is_echo() { (0, 0) } else { (sent.source.port(), server.port()) };
        let icmp = sent.is_echo().then_some((request, 0));
        let opening = Opening { protocol: sent.protocol, source_port, destination_port, icmp };
        Question { world: self.world, from, to, opening, regime: Regime::Enforced }.judge().allowed()
    }

    /// What of the pools holds for an address that leaves for another.
    fn is_masqueraded(&self, from: IpAddr, to: IpAddr) -> bool {
        let pools = &self.world.pools;
        pools.iter().any(|pool| pool.masquerades() && pool.cidr.contains(&from))
            && !pools.iter().any(|pool| pool.cidr.contains(&to))
    }

    /// The source address that arrives with a packet to this server.
    fn source(&self, sent: &Tuple, server: IpAddr) -> IpAddr {
        let client = sent.source.ip();
        if client == server {
            // an answer to itself would never come out again
            return sent.destination.ip();
        }
        let leaves = self.actor(client).is_some() && self.actor(server).is_none();
        if leaves && self.is_masqueraded(client, server) {
            return UPLINK[usize::from(client.is_ipv6())].parse().unwrap();
        }
        client
    }
}

fn expect(condition: bool, what: impl FnOnce() -> String) -> Verdict {
    if condition { Ok(()) } else { Err(what()) }
}

const fn is_policy(reason: Drop) -> bool {
    matches!(reason, Drop::PolicyEgress | Drop::PolicyIngress)
}

impl Oracle {
    /// A new policy: what was found out under the one before is judged again.
    pub fn publish(&mut self) {
        self.denied.clear();
        for connection in self.open.values_mut() {
            connection.fresh = [false; 2];
        }
    }

    /// What a client has sent.
    pub fn there(&mut self, now: Now<'_>, sent: Tuple, flags: u8, outcome: Outcome) -> Verdict {
        let opens = sent.protocol != Protocol::TCP || flags & (SYN | ACK) == SYN;
        if outcome.is_err_and(is_policy) {
            self.denied.insert(sent);
            self.tally.saw(Seen::Denied);
        }
        if let Some(connection) = self.open.get(&sent).copied() {
            let server = connection.arrived.destination;
            let is_gone = now.published(&sent).is_some_and(|service| !service.backends.contains(&server));
            if !is_gone {
                return self.goes_on(now, sent, connection, outcome);
            }
            self.open.remove(&sent);
            self.tally.saw(Seen::Moved);
        }
        match now.published(&sent) {
            Some(_) if !opens => self.in_the_middle(sent, outcome),
            Some(service) => self.asks_service(now, sent, service, outcome),
            None => self.asks_party(now, sent, outcome),
        }
    }

    fn goes_on(&mut self, now: Now<'_>, sent: Tuple, known: Connection, outcome: Outcome) -> Verdict {
        let allowed = now.allows(&sent, known.arrived.destination);
        match outcome {
            Ok(arrived) => {
                expect(allowed, || "passed, and the rules deny it".into())?;
                expect(arrived == (known.arrived, known.at), || {
                    format!("arrives as {arrived:?}, and did as {known:?} before")
                })?;
                self.open.entry(sent).and_modify(|connection| connection.fresh[0] = true);
                Ok(())
            }
            Err(reason) => expect(!allowed && is_policy(reason), || format!("{reason:?}, and the rules allow it")),
        }
    }

    /// TCP that no connection is known of, in the middle of one: whoever was chosen now would know nothing of it.
    fn in_the_middle(&mut self, sent: Tuple, outcome: Outcome) -> Verdict {
        let Err(reason) = outcome else { return Err("passed to a backend that knows nothing of it".into()) };
        self.tally.saw_if(reason == Drop::NoBackend, Seen::Refused);
        let is_remembered = is_policy(reason) && self.denied.contains(&sent);
        expect(reason == Drop::NoBackend || is_remembered, || format!("{reason:?}, and nobody is behind it"))
    }

    fn asks_service(&mut self, now: Now<'_>, sent: Tuple, service: &Published, outcome: Outcome) -> Verdict {
        let of_family = service.backends.iter().filter(|backend| backend.is_ipv4() == sent.source.is_ipv4());
        let mut may: Vec<SocketAddr> = of_family.copied().collect();
        let place = (sent.source.ip(), sent.destination, sent.protocol);
        if service.affinity {
            match self.stays.get(&place) {
                Some(stays) if may.contains(stays) => may = vec![*stays],
                _ => _ = self.stays.remove(&place),
            }
        }
        let is_outside = now.actor(sent.source.ip()).is_none();
        // its answers would never pass here
        let is_nobody = |backend: &SocketAddr| is_outside && now.actor(backend.ip()).is_none();
        match outcome {
            Ok(arrived) => {
                let server = arrived.0.destination;
                expect(may.contains(&server), || format!("{server} is none of {may:?}"))?;
                expect(!is_nobody(&server), || "from outside to outside".into())?;
                let stays = service.affinity && self.stays.insert(place, server).is_some();
                self.tally.saw_if(stays, Seen::Stayed);
                self.tally.saw(Seen::ToService);
                self.tally.saw_if(is_outside, Seen::FromOutside);
                self.opened(now, sent, arrived)
            }
            Err(Drop::NoBackend) => {
                self.tally.saw(Seen::Refused);
                expect(may.is_empty() || may.iter().any(is_nobody), || format!("there are backends: {may:?}"))
            }
            Err(reason) => {
                let denied = may.iter().any(|backend| !is_nobody(backend) && !now.allows(&sent, *backend));
                expect(is_policy(reason) && denied, || format!("{reason:?}, and the rules allow any of {may:?}"))
            }
        }
    }

    fn asks_party(&mut self, now: Now<'_>, sent: Tuple, outcome: Outcome) -> Verdict {
        match outcome {
            Ok(arrived) => {
                expect(arrived.0.destination.ip() == sent.destination.ip(), || "nobody is behind that".into())?;
                expect(sent.is_echo() || arrived.0.destination == sent.destination, || "another port".into())?;
                self.opened(now, sent, arrived)
            }
            // its answers would be another's
            Err(Drop::Translation) => {
                let taken = self.ever.iter().any(|(by, arrived)| *arrived == sent && *by != sent);
                expect(taken, || "nobody else gets such answers".into())
            }
            Err(reason) => {
                let denied = !now.allows(&sent, sent.destination);
                expect(denied && is_policy(reason), || format!("{reason:?}, and the rules allow it"))
            }
        }
    }

    fn opened(&mut self, now: Now<'_>, sent: Tuple, (arrived, at): (Tuple, At)) -> Verdict {
        expect(now.allows(&sent, arrived.destination), || "passed, and the rules deny it".into())?;
        let source = now.source(&sent, arrived.destination.ip());
        expect(arrived.source.ip() == source, || format!("comes from {}, not from {source}", arrived.source))?;
        let there = now.actor(arrived.destination.ip()).map_or(At::Elsewhere, |actor| At::Endpoint(actor.interface));
        expect(at == there, || format!("arrives at {at:?}, not at {there:?}"))?;
        // an echo's other port is the same identifier
        let destination = if sent.is_echo() {
            SocketAddr::new(arrived.destination.ip(), sent.source.port())
        } else {
            arrived.destination
        };
        let kept = Tuple { source: SocketAddr::new(source, sent.source.port()), destination, ..sent };
        // through the stack an endpoint's own hook does not know what comes from outside by a service from what does not
        let is_another = |by: Tuple| by != sent || now.actor(sent.source.ip()).is_none();
        let is_taken = |tuple: Tuple| self.ever.iter().any(|(by, arrived)| *arrived == tuple && is_another(*by));
        let is_plain = kept == sent;
        let is_published = kept.source.ip() != sent.source.ip()
            && now.services.iter().any(|service| service.places.contains(&kept.source));
        if arrived != kept {
            expect(is_taken(kept) || is_published && !sent.is_echo(), || "its port was free".into())?;
            let is_inside = now.actor(sent.source.ip()).is_some();
            expect(!(is_plain && is_inside) && arrived.source.port() >= 1024, || {
                format!("from port {}", arrived.source.port())
            })?;
            self.tally.saw(Seen::OtherPort);
        }
        let twin = self.open.iter().find(|(_, connection)| connection.arrived == arrived);
        expect(twin.is_none(), || format!("arrives as {twin:?} does"))?;
        self.ever.insert((sent, arrived));
        let fresh = [true, false];
        self.open.insert(sent, Connection { arrived, at, fresh });
        let is_masqueraded = UPLINK.iter().any(|text| source == text.parse::<IpAddr>().unwrap());
        self.tally.saw_if(is_masqueraded, Seen::Masqueraded);
        self.tally.saw_if(is_masqueraded && now.published(&sent).is_some(), Seen::Twice);
        self.tally.saw_if(sent.source.ip() == arrived.destination.ip(), Seen::ToItself);
        Ok(())
    }

    /// What somebody has answered to a client, whose own place is `home`.
    pub fn back(&mut self, now: Now<'_>, sent: Tuple, home: At, outcome: Outcome) -> Verdict {
        let connection = self.open[&sent];
        let allowed = now.allows(&sent, connection.arrived.destination);
        match outcome {
            Ok(arrived) => {
                expect(allowed, || "an answer passed, and the rules deny the connection".into())?;
                expect(arrived == (sent.reversed(), home), || {
                    format!("the answer arrives as {arrived:?}, not as {:?}", sent.reversed())
                })?;
                self.open.entry(sent).and_modify(|connection| connection.fresh[1] = true);
                self.tally.saw(Seen::Answer);
                Ok(())
            }
            Err(reason) => {
                expect(!allowed && is_policy(reason), || format!("{reason:?} of an answer, and the rules allow it"))
            }
        }
    }
}
