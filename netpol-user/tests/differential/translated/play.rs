//! Scripts, played through the classifiers.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr};

use netpol_common::{
    drops::{Pass, Side},
    wire::Protocol,
};
use netpol_user::{datapath::Counter, netns::Namespace};
use proptest::{prelude::*, test_runner::TestRunner};

use super::{
    oracle::{Now, Oracle, Seen, Tally},
    packet::{HOPS, Said, Tuple, shortened, unreachable},
    script::{About, Complaint, Say, Script, Step, Talk, Target, script},
    way::{At, Fate, Links, Way},
    world::{Published, host_addresses},
};
use crate::{
    compile::{Snapshot, compile},
    kernel::Loaded,
    stage::Actor,
    support::Host,
};

/// A client, and what it sends.
#[derive(Clone, Copy, Debug)]
struct Asked {
    client: Actor,
    sent: Tuple,
}

/// Who takes part in a talk, where the family has somebody.
fn asked(talk: &Talk, services: &[Published], actors: &[Actor]) -> Option<Asked> {
    let family: Vec<_> = actors.iter().filter(|actor| actor.address.is_ipv6() == talk.six).collect();
    let client = **talk.client.get(&family);
    let protocol = match talk.about {
        About::Tcp => Protocol::TCP,
        About::Udp => Protocol::UDP,
        About::Echo => Tuple::echo(talk.six),
    };
    let destination = match &talk.target {
        Target::Service(service, place) => {
            let places = &service.get(services).places;
            let places: Vec<_> = places.iter().filter(|place| place.is_ipv6() == talk.six).collect();
            // nobody answers an echo there
            if talk.about == About::Echo {
                return None;
            }
            **place.get(&places)
        }
        Target::Party(whom, port) => {
            let server = whom.get(&family);
            // the host has no part in what others outside say to each other
            if server.address == client.address || !(client.is_workload() || server.is_workload()) {
                return None;
            }
            SocketAddr::new(server.address, if talk.about == About::Echo { talk.port } else { *port })
        }
    };
    let sent = Tuple { protocol, source: SocketAddr::new(client.address, talk.port), destination };
    Some(Asked { client, sent })
}

/// What is remembered of a talk beside its connection: the last packet that has arrived, there and back, as its sender
/// sent it and as it arrived.
type Last = HashMap<(Tuple, bool), (Said, Said)>;

struct Play<'a> {
    way: Way<'a>,
    script: &'a Script,
    /// Which of the two worlds is published.
    number: usize,
    oracle: Oracle,
    last: Last,
    /// Of fragments.
    sent: u16,
}

fn home(client: &Actor) -> At {
    if client.is_workload() { At::Endpoint(client.interface) } else { At::Elsewhere }
}

impl Play<'_> {
    fn services(&self) -> &[Published] {
        &self.script.site.services[self.number]
    }

    fn asked(&self, talk: &prop::sample::Index) -> Option<Asked> {
        asked(talk.get(&self.script.talks), self.services(), self.way.actors)
    }

    fn step(&mut self, step: &Step, snapshots: &[Snapshot; 2]) -> Result<(), TestCaseError> {
        match step {
            Step::Publish => {
                self.number = 1 - self.number;
                self.oracle.publish();
                self.publish(snapshots)
            }
            Step::Say(say) => self.say(say),
            Step::Complain(complaint) => self.complain(complaint),
        }
    }

    fn publish(&self, snapshots: &[Snapshot; 2]) -> Result<(), TestCaseError> {
        let snapshot = &snapshots[self.number];
        let settings = self.script.settings.with(snapshot.nobody_outside());
        let published = self.way.loaded.datapath.publish(snapshot, settings);
        published.map(|_| ()).map_err(|error| TestCaseError::fail(error.to_string()))
    }

    fn say(&mut self, say: &Say) -> Result<(), TestCaseError> {
        let Some(asked @ Asked { client, sent }) = self.asked(&say.talk) else { return Ok(()) };
        let known = self.oracle.open.get(&sent).copied();
        let (sender, tuple) = match known {
            Some(known) if say.back => (self.server(known.at, &known.arrived), known.arrived.reversed()),
            // nobody has anything to answer
            None if say.back => return Ok(()),
            _ => (client, sent),
        };
        let said = Said { tuple, answer: say.back, shape: say.shape.clone(), hops: HOPS };
        self.sent += 1;
        let packets = said.packets(self.sent);
        let expected = |packet: &[u8]| {
            let arrived = said.read(packet).tuple;
            match known {
                Some(known) if !say.back => arrived == known.arrived,
                _ if say.back => arrived == sent.reversed(),
                // through the stack the client's own hook does it all
                _ => true,
            }
        };
        let fate = self.way.send(&sender, &packets[0], expected)?;
        let outcome = match &fate {
            Fate::Arrived(at, packet) => Ok((said.read(packet).tuple, *at)),
            Fate::Dropped(reason) => Err(*reason),
        };
        let script = self.script;
        let now = Now {
            world: &script.site.worlds[self.number],
            services: &script.site.services[self.number],
            actors: self.way.actors,
        };
        let verdict = if say.back {
            self.oracle.back(now, sent, home(&client), outcome)
        } else {
            self.oracle.there(now, sent, say.shape.flags, outcome)
        };
        verdict.map_err(|error| TestCaseError::fail(format!("{error}: {said:?} of {asked:?}, known {known:?}")))?;
        self.arrives(asked, &said, &packets, &fate)
    }

    /// Whether what has arrived is what would have been written for whom it reaches.
    fn arrives(&mut self, asked: Asked, said: &Said, packets: &[Vec<u8>], fate: &Fate) -> Result<(), TestCaseError> {
        let Fate::Arrived(at, first) = fate else {
            for later in &packets[1..] {
                let sender = self.sender(asked, said);
                let fate = self.way.send(&sender, later, |_| true)?;
                prop_assert!(matches!(fate, Fate::Dropped(_)), "a later fragment passes: {:?} {:?}", fate, said);
            }
            return Ok(());
        };
        let arrived = said.read(first);
        prop_assert!(arrived.hops == HOPS || arrived.hops == HOPS - 1, "{:?}", arrived);
        let written = arrived.packets(self.sent);
        prop_assert_eq!(first, &written[0], "{:?} became {:?}", said, arrived);
        for (later, written) in packets[1..].iter().zip(&written[1..]) {
            let sender = self.sender(asked, said);
            let fate = self.way.send(&sender, later, |packet| packet == written)?;
            let Fate::Arrived(there, packet) = &fate else {
                return Err(TestCaseError::fail(format!("{fate:?} of a later fragment of {said:?}")));
            };
            prop_assert_eq!((there, packet), (at, written), "{:?} became {:?}", said, arrived);
            self.oracle.tally.saw(Seen::Piece);
        }
        self.last.insert((asked.sent, said.answer), (said.clone(), arrived));
        Ok(())
    }

    fn sender(&self, Asked { client, sent }: Asked, said: &Said) -> Actor {
        if !said.answer {
            return client;
        }
        let known = self.oracle.open[&sent];
        self.server(known.at, &known.arrived)
    }

    /// Who a connection's packets have reached.
    fn server(&self, at: At, arrived: &Tuple) -> Actor {
        let there = |actor: &&Actor| match at {
            At::Endpoint(interface) => actor.interface == interface && actor.address == arrived.destination.ip(),
            At::Elsewhere => !actor.is_workload(),
        };
        *self.way.actors.iter().find(there).expect("somebody is there")
    }

    /// An error about the last packet finds who has sent it, and quotes what that has sent.
    fn complain(&mut self, complaint: &Complaint) -> Result<(), TestCaseError> {
        let Some(Asked { client, sent }) = self.asked(&complaint.talk) else { return Ok(()) };
        let Some(known) = self.oracle.open.get(&sent).copied() else { return Ok(()) };
        let Some((said, arrived)) = self.last.get(&(sent, complaint.back)).cloned() else { return Ok(()) };
        // of a connection that was moved since
        let is_of_it =
            if complaint.back { said.tuple == known.arrived.reversed() } else { arrived.tuple == known.arrived };
        // what is quoted must be a whole packet, with ports right behind its header
        let is_odd = said.packets(0).len() > 1 || said.has_options() && sent.source.is_ipv6();
        if !is_of_it || is_odd {
            return Ok(());
        }
        let (by, receiver) =
            if complaint.back { (client, home(&client)) } else { (self.server(known.at, &known.arrived), known.at) };
        let is_router = complaint.router && receiver == At::Elsewhere;
        let quote = |said: &Said| {
            let packet = Said { hops: arrived.hops, ..said.clone() }.whole();
            if complaint.short { shortened(&packet, said) } else { packet }
        };
        let router = if sent.source.is_ipv4() { "198.51.100.1" } else { "2001:db8:99::1" };
        let from = |own| if is_router { router.parse().unwrap() } else { own };
        let about = (from(arrived.tuple.destination.ip()), arrived.tuple.source.ip());
        let told = (from(said.tuple.destination.ip()), said.tuple.source.ip());
        let expected = unreachable(told, &quote(&said));
        let fate = self.way.send(&by, &unreachable(about, &quote(&arrived)), |_| false)?;
        match fate {
            Fate::Arrived(at, packet) => {
                let whom = if complaint.back { known.at } else { home(&client) };
                prop_assert_eq!(at, whom, "an error about {:?}, which was {:?}", arrived, said);
                prop_assert_eq!(packet, expected, "an error about {:?}, which was {:?}", arrived, said);
                self.oracle.tally.saw(Seen::Error);
            }
            Fate::Dropped(reason) => {
                let is_stale = !known.fresh[usize::from(complaint.back)];
                prop_assert!(is_stale, "{:?} of an error about {:?}, which was {:?}", reason, arrived, said);
            }
        }
        Ok(())
    }
}

fn play(script: &Script, links: &Links, loaded: &mut Loaded) -> Result<Tally, TestCaseError> {
    let mut snapshots = Vec::new();
    for world in &script.site.worlds {
        let workloads = links.running(world, script.outward);
        let compiled = compile(world, &workloads, &host_addresses());
        let mut snapshot = compiled.map_err(|error| TestCaseError::reject(error.to_string()))?;
        snapshot.uplinks = vec![links.uplink()];
        snapshots.push(snapshot);
    }
    let snapshots: [Snapshot; 2] = snapshots.try_into().expect("two worlds");
    let actors = links.actors(&links.running(&script.site.worlds[0], script.outward));
    let way = Way { loaded, links, actors: &actors };
    let mut play = Play { way, script, number: 0, oracle: Oracle::default(), last: Last::new(), sent: 0 };
    play.publish(&snapshots)?;
    for (number, step) in script.steps.iter().enumerate() {
        play.step(step, &snapshots).map_err(|error| match error {
            TestCaseError::Fail(reason) => TestCaseError::fail(format!("step {number}: {reason}")),
            reject => reject,
        })?;
    }
    Ok(play.oracle.tally)
}

/// Plays many scripts; what was seen in all of them.
fn play_all(host: &Host, links: &Links, cases: u32) -> Result<Tally, String> {
    let loaded = RefCell::new(Loaded::new(host));
    let total = RefCell::new(Tally::default());
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let played = TestRunner::new(config).run(&script(), |script| {
        let mut loaded = loaded.borrow_mut();
        loaded.datapath.forget().map_err(|error| TestCaseError::fail(error.to_string()))?;
        total.borrow_mut().add(&play(&script, links, &mut loaded)?);
        Ok(())
    });
    played.map_err(|error| error.to_string())?;
    let counters = loaded.into_inner().datapath.counters().map_err(|error| error.to_string())?;
    for (side, pass) in WAYS {
        let is_it = |counter: &Counter| (counter.side, counter.verdict) == (side, Ok(pass)) && counter.packets > 0;
        assert!(counters.iter().any(is_it), "nothing went {pass:?}, {side:?} an endpoint");
    }
    Ok(total.into_inner())
}

#[test]
fn the_classifiers_translate_as_the_documents_promise() {
    let host = Host::new();
    let far = Namespace::anonymous().expect("making a network namespace needs root");
    let links = Links::new(&host, &far);
    let played = host.namespace.enter(|| play_all(&host, &links, 200));
    let tally = played.expect("entering a network namespace needs root").unwrap_or_else(|error| panic!("{error}"));
    for what in ALL {
        assert!(tally.of(what) > 0, "nothing was tested of {what:?}: {tally:?}");
    }
}

/// Past the host, and through it.
const WAYS: [(Side, Pass); 5] = [
    (Side::From, Pass::Routed),
    (Side::From, Pass::Out),
    (Side::From, Pass::Stack),
    (Side::To, Pass::Routed),
    (Side::To, Pass::Stack),
];

/// What a run that tests something cannot miss.
const ALL: [Seen; 13] = [
    Seen::ToService,
    Seen::ToItself,
    Seen::Masqueraded,
    Seen::Twice,
    Seen::FromOutside,
    Seen::OtherPort,
    Seen::Stayed,
    Seen::Moved,
    Seen::Answer,
    Seen::Denied,
    Seen::Refused,
    Seen::Error,
    Seen::Piece,
];
