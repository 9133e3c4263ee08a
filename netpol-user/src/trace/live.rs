//! What is loaded, asked: names, documents, tables and classifiers of one generation.

use std::net::IpAddr;

use netpol_common::{
    drops::Drop,
    kernel::{Live as Word, Settings},
    tables::{AddressFlags, IfIndex, Network},
};

use super::{
    Answer, Explanation, Host, Service, Step, Target,
    answer::{self, compare, delivery, opened},
    explain::{Asked, Leg},
    frame::Packet,
    path::{Path, Sender, Walker},
    published,
};
use crate::{
    datapath::{self, Client, Datapath, Hook, Position, Twin},
    enforce::{self, Instance},
    format::Invalid,
    model::{
        Opening, World,
        probe::{CLIENT_PORT, Place},
    },
    netns::Namespace,
    source,
    state::{self, Names},
};

/// So many backends are asked about, besides the one that was chosen.
const BACKENDS: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Enforce(#[from] enforce::Error),
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error("the documents of the last load cannot be read any more; run `netpol load` again")]
    Documents(#[source] Box<Invalid>),
    #[error("the documents of the last load are lost; name them")]
    Lost,
    #[error("a load was interrupted before its first publication; run `netpol load` again")]
    Unpublished,
    #[error(
        "this instance enforces policy in another network namespace, where its interfaces are: ask there \
         (nsenter --net=...), or name the documents"
    )]
    OtherNamespace,
    #[error("cannot find out which network namespace this is")]
    Namespace(#[source] std::io::Error),
    #[error("another policy was published meanwhile")]
    Changed,
}

/// An instance, as of one generation.
#[derive(Debug)]
pub struct Live {
    datapath: Datapath,
    twin: Twin,
    word: Word,
    pub names: Names,
    /// What its documents say, with the addresses that endpoints really have.
    pub world: World,
    pub services: Vec<Service>,
}

impl Live {
    pub fn open(instance: &Instance) -> Result<Self, Error> {
        let datapath = Datapath::open(&instance.pins)?;
        let word = datapath.live()?;
        if word.generation.0 == 0 {
            return Err(Error::Unpublished);
        }
        let names = instance.names(&datapath)?;
        if names.sources.is_empty() {
            return Err(Error::Lost);
        }
        let mut world = names.documents().map_err(|error| Error::Documents(Box::new(error)))?.world;
        place(&mut world, &names);
        let here = Namespace::current().and_then(|here| here.id()).map_err(Error::Namespace)?;
        if (here.device, here.inode) != names.namespace {
            return Err(Error::OtherNamespace);
        }
        let twin = Twin::load(&instance.pins)?;
        let services = published::of_names(&world, &names);
        Ok(Self { datapath, twin, word, names, world, services })
    }

    /// What the tables say about the two ends.
    pub fn host(&self, from: Place, to: Target) -> Result<Host, Error> {
        let is_host = |address: Option<IpAddr>| -> Result<bool, Error> {
            let Some(address) = address else { return Ok(false) };
            let known = self.twin.address(Network::SHARED, address, self.word.generation.slot())?;
            Ok(address.is_loopback() || known.is_some_and(|value| value.flags.has(AddressFlags::HOST)))
        };
        let outside = |place| match place {
            Place::Outside(address) => Some(address),
            Place::Endpoint(_) | Place::At { .. } => None,
        };
        let to = match to {
            Target::Place(place) => outside(place),
            Target::Service { .. } => None,
        };
        Ok(Host {
            is_from: is_host(outside(from))?,
            is_to: is_host(to)?,
            is_policed: self.word.settings.has(Settings::POLICE_HOST),
        })
    }

    /// Asks the kernel what is explained, and compares. Completes the explanation by what only the kernel knows.
    ///
    /// # Errors
    /// [`Error::Changed`]: ask again.
    pub fn answer(&mut self, from: Place, explanation: &mut Explanation, host: Host) -> Result<Answer, Error> {
        let different = self.twin.differences(&self.datapath)?;
        let mut answer =
            Answer { generation: self.word.generation.0, same_code: different.is_empty(), ..Answer::default() };
        if !different.is_empty() {
            answer.differences.push(format!(
                "the classifiers that are loaded are not those of this netpol ({} differ), so what it asks is not what \
                 judges packets; run `netpol load` again",
                different.join(", ")
            ));
        }
        match self.sender(from, explanation, host)? {
            Err(reason) => answer.not_asked = Some(reason),
            Ok(sender) => match self.ask(sender, explanation, &mut answer) {
                Err(Error::Datapath(datapath::Error::Gone { interface })) => {
                    answer
                        .differences
                        .push(format!("{interface} is gone, where it was loaded; run `netpol load` again"));
                    answer.not_asked = Some(format!("{interface} is gone"));
                }
                outcome => outcome?,
            },
        }
        if self.datapath.live()?.generation != self.word.generation {
            return Err(Error::Changed);
        }
        Ok(answer)
    }

    /// Where packets of the source come from; or why nobody can be asked about them.
    fn sender(&self, from: Place, explanation: &Explanation, host: Host) -> Result<Result<Sender, String>, Error> {
        let asleep = |leg: &Leg| {
            let place = leg.to.endpoint().filter(|index| self.running(*index).is_none())?;
            Some(format!("{} does not run", self.world.endpoints[place].name))
        };
        if let Some(reason) = explanation.legs.first().and_then(asleep) {
            return Ok(Err(reason));
        }
        Ok(match from {
            Place::Endpoint(index) | Place::At { endpoint: index, .. } => self
                .running(index)
                .map(|endpoint| Sender::Endpoint(IfIndex(endpoint.ifindex)))
                .ok_or_else(|| format!("{} does not run", self.world.endpoints[index].name)),
            Place::Outside(_) if host.is_from => Ok(Sender::Host),
            Place::Outside(address) => {
                let through = source::route(address)?;
                let first = self.names.uplinks.first().map(|uplink| IfIndex(uplink.ifindex));
                let through = through.or(first).unwrap_or(LOOPBACK);
                match &explanation.translation {
                    Some(_) if !self.uplinks().contains(&through) => Err(format!(
                        "{address} is reached through {}, which is no uplink: nothing is translated there",
                        self.interface(through)
                    )),
                    _ => Ok(Sender::Outside(through)),
                }
            }
        })
    }

    fn ask(&mut self, sender: Sender, explanation: &mut Explanation, answer: &mut Answer) -> Result<(), Error> {
        let mut shown = None;
        let mut rest = 0..explanation.legs.len();
        if let (Some(translation), Sender::Endpoint(_) | Sender::Outside(_)) = (&explanation.translation, sender) {
            let Some(published) = translation.published else {
                answer.not_asked = Some("it is published nowhere in the source's family".to_owned());
                return Ok(());
            };
            let Some(packet) = self.to_service(explanation, published) else {
                answer.not_asked = Some("the source has no address of that family".to_owned());
                return Ok(());
            };
            let Packet { source: address, opening: Opening { protocol, .. }, .. } = packet;
            self.twin.stays(Some(Client { address, published, protocol }));
            let path = self.walk(sender, packet)?;
            self.twin.stays(None);
            let chosen = self.chosen(explanation, &path, answer);
            if let Some(number) = chosen {
                // what the words are about
                explanation.legs[..=number].rotate_right(1);
                rest.start = 1;
            }
            shown = Some(path);
        }
        for number in rest.take(BACKENDS) {
            let leg = &explanation.legs[number];
            let question = leg.traffic.question(&self.world, (leg.from, leg.to));
            let Some(packet) = packet(leg, question.opening) else {
                answer.not_asked.get_or_insert_with(|| "an end has no known address".to_owned());
                continue;
            };
            if let Some(reason) = packet.obstacle() {
                answer.not_asked.get_or_insert_with(|| reason.to_owned());
                continue;
            }
            // what an endpoint says to itself has no way but through the service
            let is_nobodys = leg.from.endpoint().is_none() && leg.to.endpoint().is_none();
            if leg.backend.is_some() && (leg.is_loop() || is_nobodys) {
                continue;
            }
            let opened = opened(&question);
            let path = self.walk(sender, packet)?;
            answer.differences.extend(self.compare(explanation, number, &path, &opened));
            if shown.is_none() {
                shown = Some(path);
            }
        }
        let Some(path) = shown else { return Ok(()) };
        self.tell(explanation, &path, answer)
    }

    /// The first packet from the client to where the service is published.
    fn to_service(&self, explanation: &Explanation, published: std::net::SocketAddr) -> Option<Packet> {
        let source = explanation.client.address();
        let source = source.filter(|source| source.is_ipv4() == published.is_ipv4())?;
        let protocol =
            self.services.iter().find(|s| s.addresses.contains(&(published.ip(), published.port())))?.protocol;
        let source_port = explanation.row.source_port.unwrap_or(CLIENT_PORT);
        let opening = Opening { protocol, source_port, destination_port: published.port(), icmp: None };
        Some(Packet { source, destination: published.ip(), opening })
    }

    /// Which leg the kernel has chosen, and whether that is one.
    fn chosen(&self, explanation: &mut Explanation, path: &Path, answer: &mut Answer) -> Option<usize> {
        let service = explanation.translation.as_ref().map(|translation| translation.service.clone())?;
        if path.dropped() == Some(Drop::NoBackend) {
            // it says so itself where there is none
            if explanation.legs.iter().any(|leg| leg.row.allowed) {
                answer.differences.push(format!("service {service} has backends, and the kernel knows none"));
            }
            return None;
        }
        let reached = path.reached()?;
        let port = |leg: &Leg| leg.traffic.question(&self.world, (leg.from, leg.to)).opening.destination_port;
        let is_it = |leg: &Leg| leg.to.address() == Some(reached.ip()) && port(leg) == reached.port();
        let Some(number) = explanation.legs.iter().position(is_it) else {
            answer
                .differences
                .push(format!("service {service}: the kernel leads to {reached}, which is no backend of it"));
            return None;
        };
        let leg = &explanation.legs[number];
        let opened = opened(&leg.traffic.question(&self.world, (leg.from, leg.to)));
        answer.differences.extend(self.compare(explanation, number, path, &opened));
        let chosen = explanation.legs[number].backend;
        for (index, behind) in explanation.translation.iter_mut().flat_map(|t| &mut t.backends).enumerate() {
            behind.chosen = Some(Some(index) == chosen);
        }
        Some(number)
    }

    fn compare(&self, explanation: &Explanation, number: usize, path: &Path, opened: &str) -> Option<String> {
        // that is said by the explanation
        let impossible = explanation.masquerade.as_ref().is_some_and(|masquerade| !masquerade.possible);
        if impossible && path.dropped() == Some(Drop::Translation) {
            return None;
        }
        compare(&self.names, &explanation.legs[number], path, opened)
    }

    /// Writes down what happened on the way that is shown.
    fn tell(&self, explanation: &mut Explanation, path: &Path, answer: &mut Answer) -> Result<(), Error> {
        if path.0.is_empty() {
            answer.not_asked.get_or_insert_with(|| "it passes no interface of an endpoint".to_owned());
            return Ok(());
        }
        answer.allowed = Some(path.dropped().is_none());
        answer.drop_reason = path.dropped().map(Drop::name);
        answer.steps = path.0.iter().map(|passed| Step::new(&self.names, passed)).collect();
        answer.delivery = delivery(&self.names, path);
        self.masquerade(explanation, path, answer);
        for passed in &path.0 {
            let interface = self.interface(passed.interface);
            let hook = Hook { interface: interface.clone(), ifindex: passed.interface, role: passed.role };
            match self.datapath.position(&hook)? {
                Position::First => {}
                Position::Behind(program) => answer
                    .differences
                    .push(format!("program {program} on {interface} is in front of netpol, and can decide otherwise")),
                Position::Missing => answer
                    .differences
                    .push(format!("nothing of netpol is attached to {interface}; run `netpol load` again")),
            }
        }
        Ok(())
    }

    fn masquerade(&self, explanation: &mut Explanation, path: &Path, answer: &mut Answer) {
        let found = path.masqueraded();
        let leaves = path.uplink().is_some();
        match (&mut explanation.masquerade, found) {
            (Some(masquerade), Some((uplink, after))) => {
                masquerade.after = Some(after.to_string());
                masquerade.uplink = Some(self.interface(uplink));
            }
            (Some(masquerade), None) if path.dropped().is_none() && leaves => {
                answer.differences.push(format!(
                    "pool {} translates what leaves it, and the kernel leaves the source as it is",
                    masquerade.pool
                ));
            }
            (None, Some((uplink, after))) => answer.differences.push(format!(
                "no pool translates it, and the kernel gives it the source {after} at {}",
                self.interface(uplink)
            )),
            // it leaves through another interface, where nothing is translated
            (masquerade, None) if path.dropped().is_none() => *masquerade = None,
            _ => {}
        }
    }

    fn walk(&mut self, sender: Sender, packet: Packet) -> Result<Path, Error> {
        let uplinks = self.uplinks();
        let route = |address| source::route(address).ok().flatten();
        let mut walker = Walker {
            twin: &mut self.twin,
            slot: self.word.generation.slot(),
            settings: self.word.settings,
            uplinks: &uplinks,
            route: &route,
        };
        walker.walk(sender, packet).map_err(|error| match error {
            datapath::Error::Gone { interface } => {
                let numbers =
                    self.names.endpoints.iter().map(|e| e.ifindex).chain(uplinks.iter().map(|uplink| uplink.0));
                let number = numbers.into_iter().find(|number| format!("#{number}") == interface);
                let interface = number.map_or(interface, |number| self.interface(IfIndex(number)));
                datapath::Error::Gone { interface }.into()
            }
            error => error.into(),
        })
    }

    fn uplinks(&self) -> Vec<IfIndex> {
        self.names.uplinks.iter().map(|uplink| IfIndex(uplink.ifindex)).collect()
    }

    fn interface(&self, number: IfIndex) -> String {
        answer::interface(&self.names, number)
    }

    /// An endpoint of the documents, as it was found at load.
    fn running(&self, index: usize) -> Option<&state::Endpoint> {
        let name = &self.world.endpoints[index].name;
        let is_it =
            |endpoint: &&state::Endpoint| (&endpoint.namespace, &endpoint.name) == (&name.namespace, &name.name);
        self.names.endpoints.iter().find(is_it)
    }
}

/// It is there in every network namespace, by that number.
const LOOPBACK: IfIndex = IfIndex(1);

/// The first packet between two ends whose addresses are known.
fn packet(leg: &Leg, opening: Opening) -> Option<Packet> {
    let (source, destination) = (leg.from.address()?, leg.to.address()?);
    (source.is_ipv4() == destination.is_ipv4()).then_some(Packet { source, destination, opening })
}

/// Gives endpoints the addresses that were believed when they were loaded. (Those of one link are spoken to by nobody
/// who would ask.)
fn place(world: &mut World, names: &Names) {
    let link_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    for running in &names.endpoints {
        let is_it =
            |name: &crate::model::ObjectName| (&name.namespace, &name.name) == (&running.namespace, &running.name);
        if let Some(endpoint) = world.endpoints.iter_mut().find(|endpoint| is_it(&endpoint.name)) {
            endpoint.addresses = running.addresses.iter().copied().filter(|address| !link_local(address)).collect();
        }
    }
}

/// The question, for [`super::explain`].
impl Live {
    pub fn asked(&self, from: Place, to: Target, traffic: crate::model::row::Traffic, host: Host) -> Asked<'_> {
        Asked { world: &self.world, services: &self.services, from, to, traffic, host }
    }
}
