//! What is suggested is enough and no more, on the examples and on worlds made for it.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::{
    format::{self, Source},
    model::{
        Party, PolicyKind, PortMatch, judge,
        probe::{Place, Probe, pairs},
        row::Traffic,
        sample,
    },
};

const EXAMPLES: [&str; 4] = ["shop", "abc", "stars/v1", "stars"];
const OUTSIDE: [&str; 3] = ["203.0.113.10", "203.0.113.11", "198.51.100.1"];
const FORMATS: [Format; 2] = [Format::Kubernetes, Format::Calico];

fn example(folder: &str) -> World {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(folder);
    format::read(&[path]).expect("an example").world
}

/// A connection, as policy is asked about it and as it is seen.
struct Try {
    parties: (Party, Party),
    seen: Seen,
}

/// Everybody with everybody and with the outside, on all declared ports, one more, and echo.
fn tries(world: &World) -> Vec<Try> {
    let mut probes = Probe::declared(world);
    probes.extend(["4711/tcp", "icmp"].map(|probe| probe.parse::<Probe>().unwrap()));
    let places: Vec<Place> = (0..world.endpoints.len())
        .map(Place::Endpoint)
        .chain(OUTSIDE.map(|address| Place::Outside(address.parse().unwrap())))
        .collect();
    let ways = places.iter().flat_map(|from| places.iter().map(move |to| (*from, *to)));
    let ways = ways.filter(|(from, to)| from != to && (from.endpoint().is_some() || to.endpoint().is_some()));
    let speaker = |party: Party| match party {
        Party::Endpoint { index, address } => {
            Speaker::Endpoint { name: world.endpoints[index].name.clone(), address: address.unwrap() }
        }
        Party::Outside(address) => Speaker::Outside(address),
    };
    let mut tries = Vec::new();
    for (from, to) in ways {
        for parties in pairs(world, from, to) {
            for probe in &probes {
                let opening = Traffic { probe: *probe, source_port: None }.question(world, parties).opening;
                let seen = Seen { from: speaker(parties.0), to: speaker(parties.1), opening };
                tries.push(Try { parties, seen });
            }
        }
    }
    tries
}

fn allows(world: &World, Try { parties: (from, to), seen }: &Try) -> bool {
    judge(world, *from, *to, seen.opening).allowed()
}

/// The world with exactly the suggested policies.
fn with_suggested(world: &World, text: &str) -> World {
    let source = Source { name: "suggested.yaml".to_owned(), text: text.as_bytes().to_vec() };
    let parsed = format::parse(vec![source]).unwrap_or_else(|invalid| panic!("{:#?}\n{text}", invalid.errors));
    World { tiers: parsed.world.tiers, ..world.clone() }
}

/// Every world that says a little less: without one rule, one port, or one network.
fn smaller(world: &World) -> Vec<(String, World)> {
    let mut all = Vec::new();
    for (p, policy) in world.tiers[0].policies.iter().enumerate() {
        for direction in [Direction::Ingress, Direction::Egress] {
            for (r, rule) in policy.rules(direction).unwrap().iter().enumerate() {
                let mut less = |what: String, edit: &dyn Fn(&mut Vec<crate::model::Rule>)| {
                    let mut world = world.clone();
                    let policy = &mut world.tiers[0].policies[p];
                    let rules = match direction {
                        Direction::Ingress => &mut policy.ingress,
                        Direction::Egress => &mut policy.egress,
                    };
                    edit(rules.as_mut().unwrap());
                    all.push((format!("{} {direction:?} {r}: {what}", policy.name), world));
                };
                less("rule".to_owned(), &|rules| _ = rules.remove(r));
                for (index, port) in rule.matches.destination.ports.iter().flatten().enumerate() {
                    let edit = |rules: &mut Vec<crate::model::Rule>| {
                        rules[r].matches.destination.ports.as_mut().unwrap().remove(index);
                    };
                    less(format!("port {port:?}"), &edit);
                    let PortMatch::Range(range) = port else { panic!("a name") };
                    let (first, last) = (*range.start(), *range.end());
                    let shorter = [(first + 1)..=last, first..=(last - 1)];
                    for shorter in shorter.into_iter().filter(|_| first < last) {
                        let edit = |rules: &mut Vec<crate::model::Rule>| {
                            let ports = rules[r].matches.destination.ports.as_mut().unwrap();
                            ports[index] = PortMatch::Range(shorter.clone());
                        };
                        less(format!("{first} to {last} is not {shorter:?}"), &edit);
                    }
                }
                let peer = |rule: &mut crate::model::Rule| match direction {
                    Direction::Ingress => rule.matches.source.nets.take(),
                    Direction::Egress => rule.matches.destination.nets.take(),
                };
                for net in peer(&mut rule.clone()).into_iter().flatten() {
                    let edit = |rules: &mut Vec<crate::model::Rule>| {
                        let mut nets = peer(&mut rules[r]).unwrap();
                        nets.retain(|other| *other != net);
                        match direction {
                            Direction::Ingress => rules[r].matches.source.nets = Some(nets),
                            Direction::Egress => rules[r].matches.destination.nets = Some(nets),
                        }
                    };
                    less(format!("{net}"), &edit);
                }
            }
        }
    }
    all
}

#[test]
fn what_is_suggested_allows_what_was_seen_and_nothing_else() {
    for (folder, format) in EXAMPLES.iter().flat_map(|folder| FORMATS.map(|format| (folder, format))) {
        let world = example(folder);
        let (mut seen, unseen): (Vec<_>, Vec<_>) = tries(&world).into_iter().partition(|one| allows(&world, one));
        assert!(seen.len() > 8 && unseen.len() > 3, "{folder}: {} {}", seen.len(), unseen.len());
        let said: Vec<Seen> = seen.iter().map(|one| one.seen.clone()).collect();
        let text = Suggestion::new(&world, &said).write(format).unwrap();
        if format == Format::Kubernetes {
            let icmp = seen.iter().any(|one| one.seen.opening.icmp.is_some());
            assert_eq!(icmp, text.contains("# Not expressible here: icmp/8/0"), "{text}");
            seen.retain(|one| one.seen.opening.icmp.is_none());
        }
        let suggested = with_suggested(&world, &text);
        let wrong: Vec<_> = seen.iter().filter(|one| !allows(&suggested, one)).map(|one| &one.seen).collect();
        assert!(wrong.is_empty(), "{folder} {format:?} denies {wrong:#?}\n{text}");
        let wrong: Vec<_> = unseen.iter().filter(|one| allows(&suggested, one)).map(|one| &one.seen).collect();
        assert!(wrong.is_empty(), "{folder} {format:?} allows {wrong:#?}\n{text}");
    }
}

#[test]
fn every_rule_port_and_network_of_it_is_needed() {
    for (folder, format) in EXAMPLES.iter().flat_map(|folder| FORMATS.map(|format| (folder, format))) {
        let world = example(folder);
        let seen: Vec<_> = tries(&world).into_iter().filter(|one| allows(&world, one)).collect();
        let said: Vec<Seen> = seen.iter().map(|one| one.seen.clone()).collect();
        let text = Suggestion::new(&world, &said).write(format).unwrap();
        let suggested = with_suggested(&world, &text);
        let seen: Vec<_> = seen.into_iter().filter(|one| allows(&suggested, one)).collect();
        let smaller = smaller(&suggested);
        assert!(smaller.len() > 8, "{folder}: {}", smaller.len());
        for (what, less) in smaller {
            assert!(seen.iter().any(|one| !allows(&less, one)), "{folder} {format:?}: {what} is not needed\n{text}");
        }
    }
}

#[test]
fn no_two_rules_could_be_one() {
    for folder in EXAMPLES {
        let world = example(folder);
        let seen: Vec<_> = tries(&world).into_iter().filter(|one| allows(&world, one)).map(|one| one.seen).collect();
        let text = Suggestion::new(&world, &seen).write(Format::Kubernetes).unwrap();
        let suggested = with_suggested(&world, &text);
        let policies = &suggested.tiers[0].policies;
        assert_eq!(policies.len(), world.endpoints.len(), "{folder}: one for each workload");
        for policy in policies {
            assert_eq!(policy.kind, PolicyKind::NetworkPolicy);
            for direction in [Direction::Ingress, Direction::Egress] {
                // a document's rule, by its number: whom it is about, and which ports
                let mut rules: BTreeMap<u32, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
                for rule in policy.rules(direction).expect("both directions are isolated") {
                    let (peers, ports) = rules.entry(rule.index).or_default();
                    let mut matches = rule.matches.clone();
                    let said = matches.destination.ports.take();
                    ports.insert(format!("{:?} {said:?}", matches.protocol.take()));
                    peers.insert(format!("{matches:?}"));
                }
                let rules: Vec<_> = rules.into_values().collect();
                for (index, one) in rules.iter().enumerate() {
                    for other in &rules[index + 1..] {
                        assert!(one.1 != other.1 && one.0 != other.0, "{folder} {} {direction:?}", policy.name);
                        assert!(one.0.is_disjoint(&other.0), "{folder} {} {direction:?}", policy.name);
                    }
                }
            }
        }
    }
}

/// `x/web` twice, `x/db`, `y/job`, each with `app: NAME` (both web: `app: web`).
fn small() -> World {
    let mut world = sample::world(&[
        sample::endpoint("x/web-1", "10.0.0.1"),
        sample::endpoint("x/web-2", "10.0.0.2"),
        sample::endpoint("x/db", "10.0.0.3"),
        sample::endpoint("y/job", "10.0.0.4"),
    ]);
    for (endpoint, app) in world.endpoints.iter_mut().zip(["web", "web", "db", "job"]) {
        endpoint.labels = sample::labels(&format!("app={app}"));
    }
    world
}

fn speaker(world: &World, index: usize) -> Speaker {
    let endpoint = &world.endpoints[index];
    Speaker::Endpoint { name: endpoint.name.clone(), address: endpoint.addresses[0] }
}

fn outside(address: &str) -> Speaker {
    Speaker::Outside(address.parse().unwrap())
}

fn other(protocol: u8) -> Opening {
    Opening { protocol: Protocol(protocol), source_port: 0, destination_port: 0, icmp: None }
}

const PING: Opening = Opening { protocol: Protocol::ICMP, source_port: 0, destination_port: 0, icmp: Some((8, 0)) };

fn seen_small(world: &World) -> Vec<Seen> {
    let [web1, web2, db, job] = [0, 1, 2, 3].map(|index| speaker(world, index));
    let host = Speaker::Host("10.0.0.254".parse().unwrap());
    let seen = |from: &Speaker, to: &Speaker, opening| Seen { from: from.clone(), to: to.clone(), opening };
    vec![
        seen(&web1, &db, sample::tcp(5432)),
        seen(&web2, &db, sample::tcp(5433)),
        seen(&job, &db, sample::tcp(5432)),
        seen(&job, &db, sample::tcp(5433)),
        seen(&outside("192.0.2.2"), &web1, sample::tcp(80)),
        seen(&outside("192.0.2.3"), &web1, sample::tcp(80)),
        seen(&outside("192.0.2.9"), &web2, sample::tcp(80)),
        seen(&job, &outside("192.0.2.53"), Opening { protocol: Protocol::UDP, ..sample::tcp(53) }),
        seen(&job, &host, sample::tcp(9100)),
        seen(&host, &db, sample::tcp(22)),
        seen(&job, &web1, PING),
        seen(&web1, &db, other(47)),
    ]
}

#[test]
fn kubernetes_documents_are_as_people_write_them() {
    let world = small();
    let text = Suggestion::new(&world, &seen_small(&world)).write(Format::Kubernetes).unwrap();
    let expected = include_str!("tests/kubernetes.yaml");
    assert_eq!(text, expected, "{text}");
}

#[test]
fn calico_documents_say_what_kubernetes_has_no_words_for() {
    let world = small();
    let text = Suggestion::new(&world, &seen_small(&world)).write(Format::Calico).unwrap();
    let expected = include_str!("tests/calico.yaml");
    assert_eq!(text, expected, "{text}");
}

#[test]
fn order_of_what_was_seen_makes_no_difference() {
    let world = small();
    for format in FORMATS {
        let mut seen = seen_small(&world);
        let text = Suggestion::new(&world, &seen).write(format).unwrap();
        seen.reverse();
        seen.extend(seen.clone());
        let mut reversed = world.clone();
        reversed.endpoints.reverse();
        assert_eq!(Suggestion::new(&reversed, &seen).write(format).unwrap(), text);
    }
}

#[test]
fn labels_that_yaml_would_take_for_something_else_stay_texts() {
    let mut world = small();
    for (endpoint, value) in world.endpoints.iter_mut().zip(["true", "true", "1e3", "null"]) {
        endpoint.labels = sample::labels(&format!("app={value}"));
    }
    for format in FORMATS {
        let text = Suggestion::new(&world, &seen_small(&world)).write(format).unwrap();
        let suggested = with_suggested(&world, &text);
        let db = (sample::party(&world, 0), sample::party(&world, 2));
        assert!(judge(&suggested, db.0, db.1, sample::tcp(5432)).allowed(), "{text}");
        assert!(!judge(&suggested, db.1, db.0, sample::tcp(5432)).allowed(), "{text}");
    }
}

#[test]
fn policies_of_one_namespace_have_names_of_their_own() {
    let mut world = sample::world(&[sample::endpoint("x/a.b", "10.0.0.1"), sample::endpoint("x/a-b", "10.0.0.2")]);
    world.endpoints[0].labels = sample::labels("app=one");
    for format in FORMATS {
        let suggested = with_suggested(&world, &Suggestion::new(&world, &[]).write(format).unwrap());
        assert_eq!(suggested.tiers[0].policies.len(), 2);
    }
}

#[test]
fn many_peers_make_one_rule_that_can_be_read_back() {
    let names: Vec<String> = (0..40).map(|number| format!("x/service-with-a-long-name-{number}")).collect();
    let endpoints = names.iter().enumerate().map(|(index, name)| sample::endpoint(name, &format!("10.0.0.{index}")));
    let world = sample::world(&endpoints.collect::<Vec<_>>());
    let seen = |index| Seen { from: speaker(&world, index), to: speaker(&world, 0), opening: sample::tcp(80) };
    let seen: Vec<_> = (1..30).map(seen).collect();
    for format in FORMATS {
        let suggested = with_suggested(&world, &Suggestion::new(&world, &seen).write(format).unwrap());
        let allowed =
            |from| judge(&suggested, sample::party(&world, from), sample::party(&world, 0), sample::tcp(80)).allowed();
        let expected: Vec<bool> = (1..40).map(|index| index < 30).collect();
        assert_eq!((1..40).map(allowed).collect::<Vec<_>>(), expected);
        let into = suggested.policies().find(|policy| policy.name.ends_with("-0")).unwrap().ingress.clone().unwrap();
        assert!(into.iter().all(|rule| rule.index == 0));
    }
}

// === random ===

/// Six endpoints in two namespaces, with labels of which some are shared.
fn any_endpoints() -> impl Strategy<Value = World> {
    let label = || prop_oneof![Just(None), Just(Some("1")), Just(Some("2"))];
    let labels = || (label(), label(), label());
    proptest::collection::vec(labels(), 6).prop_map(|all| {
        let endpoints = all.iter().enumerate().map(|(index, &(a, b, app))| {
            let namespace = if index % 2 == 0 { "x" } else { "y" };
            let mut endpoint = sample::endpoint(&format!("{namespace}/e{index}"), &format!("10.0.0.{index}"));
            let pairs = [("a", a), ("b", b), ("app", app)].into_iter();
            endpoint.labels = pairs.filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect();
            endpoint
        });
        sample::world(&endpoints.collect::<Vec<_>>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn workloads_may_do_what_one_of_their_replicas_did(world in any_endpoints(), chosen in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20)) {
        let tries = tries(&world);
        let seen: Vec<&Try> = chosen.iter().map(|index| index.get(&tries)).collect();
        let said: Vec<Seen> = seen.iter().map(|one| one.seen.clone()).collect();
        // replicas have the same namespace and labels
        let workload = |party: Party| match party {
            Party::Endpoint { index, .. } => {
                let endpoint = &world.endpoints[index];
                Ok((endpoint.name.namespace.clone(), endpoint.labels.clone()))
            }
            Party::Outside(address) => Err(address),
        };
        let about = |Try { parties: (from, to), seen }: &Try| (workload(*from), workload(*to), Service::from(seen.opening));
        let text = Suggestion::new(&world, &said).write(Format::Calico).unwrap();
        let suggested = with_suggested(&world, &text);
        for one in &tries {
            let wanted = seen.iter().any(|other| about(other) == about(one));
            prop_assert_eq!(allows(&suggested, one), wanted, "{:?}\n{}", one.seen, text);
        }
    }
}
