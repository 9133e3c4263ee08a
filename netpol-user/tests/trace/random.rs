//! Whatever is asked about the examples, the kernel says what the rules say, and neither remembers nor counts it.

use std::net::IpAddr;

use netpol_user::{
    enforce::Instance,
    model::{World, probe::Place, row::Traffic},
    trace::{Live, NoPort, Target, explain, target},
};
use proptest::{prelude::*, sample::select, test_runner::TestRunner};

use super::live::unnoticed;
use crate::support::{Example, HOST, Host};

/// How many questions about each example.
const QUESTIONS: u32 = 400;

const PORTS: [&str; 15] = [
    "80/tcp",
    "443/tcp",
    "8080/tcp",
    "5432/tcp",
    "6379/tcp",
    "53/udp",
    "53/tcp",
    "5000/tcp",
    "9001/tcp",
    "80/udp",
    "1/sctp",
    "7/udplite",
    "icmp",
    "icmp/13",
    "65535/tcp",
];

/// Somebody outside, and the host, by several addresses.
const ADDRESSES: [&str; 7] =
    ["192.0.2.9", "198.51.100.7", "203.0.113.1", "8.8.8.8", HOST[0], "10.0.0.1", "2001:db8::9"];

/// What was found out about one question.
#[derive(Debug, Default)]
struct Seen {
    allowed: usize,
    denied: usize,
    translated: usize,
    masqueraded: usize,
    unasked: usize,
}

fn place(world: &World, text: &str) -> Result<Place, NoPort> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(Place::of_address(world, address)),
        Err(_) => {
            let found = world.endpoints.iter().position(|endpoint| endpoint.name.to_string() == text);
            Ok(Place::Endpoint(found.expect("an endpoint")))
        }
    }
}

/// Asks many questions about what is loaded.
fn questioned(host: &Host) -> Seen {
    let instance = Instance::new(host.bpffs(), &host.folder().join("state"));
    let ask_all = || {
        let live = Live::open(&instance).unwrap_or_else(|error| panic!("{error}"));
        let inside: Vec<_> = live.world.endpoints.iter().map(|endpoint| endpoint.name.to_string()).collect();
        let services = live.services.iter().map(|service| format!("service/{}", service.name));
        let published =
            live.services.iter().flat_map(|service| &service.addresses).map(|(address, _)| address.to_string());
        let ends: Vec<String> = inside.iter().cloned().chain(ADDRESSES.map(str::to_owned)).collect();
        let targets: Vec<String> = ends.iter().cloned().chain(services).chain(published).collect();
        let question =
            (select(ends), select(targets), select(&PORTS[..]), select(&[None, Some(1u16), Some(40_000)][..]));
        let (live, seen) = (std::cell::RefCell::new(live), std::cell::RefCell::new(Seen::default()));
        // what is seldom allowed, by chance seldom asked: everybody to everybody outside
        for (from, to) in inside.iter().flat_map(|from| ADDRESSES.map(|to| (from, to))) {
            for port in ["80/tcp", "443/tcp"] {
                let (mut live, mut seen) = (live.borrow_mut(), seen.borrow_mut());
                let asked = ask(&mut live, &mut seen, (from, to), (port, None));
                asked.unwrap_or_else(|error| panic!("{from} to {to} {port}: {error}"));
            }
        }
        let config = ProptestConfig { cases: QUESTIONS, failure_persistence: None, ..ProptestConfig::default() };
        let asked = TestRunner::new(config).run(&question, |(from, to, port, source_port)| {
            let (mut live, mut seen) = (live.borrow_mut(), seen.borrow_mut());
            ask(&mut live, &mut seen, (&from, &to), (port, source_port))
        });
        asked.unwrap_or_else(|error| panic!("{error}"));
        seen.into_inner()
    };
    host.namespace.enter(ask_all).expect("entering a network namespace needs root")
}

fn ask(
    live: &mut Live,
    seen: &mut Seen,
    (from, to): (&str, &str),
    (port, source_port): (&str, Option<u16>),
) -> Result<(), TestCaseError> {
    let probe = port.parse().unwrap();
    let from = place(&live.world, from).unwrap();
    // a service has the ports that it has
    let Ok(to) = target(&live.world, &live.services, (to, probe), place) else { return Ok(()) };
    if let Target::Place(to) = to {
        let is_judged = from.endpoint().is_some() || to.endpoint().is_some();
        if !is_judged || from.endpoint() == to.endpoint() {
            return Ok(());
        }
    }
    let host = live.host(from, to).unwrap();
    let mut said = explain(&live.asked(from, to, Traffic { probe, source_port }, host));
    let answer = live.answer(from, &mut said, host).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert!(answer.same_code && answer.differences.is_empty(), "{:#?}\n{:#?}", answer, said);
    let Some(allowed) = answer.allowed else {
        seen.unasked += 1;
        return Ok(());
    };
    let is_plain = said.translation.is_none() && said.masquerade.as_ref().is_none_or(|m| m.possible);
    prop_assert!(!is_plain || allowed == said.row.allowed, "{:#?}\n{:#?}", answer, said);
    *(if allowed { &mut seen.allowed } else { &mut seen.denied }) += 1;
    seen.translated += usize::from(said.translation.is_some());
    seen.masqueraded += usize::from(said.masquerade.is_some_and(|masquerade| masquerade.after.is_some()));
    Ok(())
}

#[test]
fn shop_is_judged_alike_by_rules_and_kernel() {
    let example = Example::up("shop", "10.0.0.1/16");
    let _internet = example.internet();
    let seen = unnoticed(&example.host, || questioned(&example.host));
    println!("{seen:?}");
    let Seen { allowed, denied, translated, masqueraded, unasked } = seen;
    assert!(
        allowed > 10 && denied > 10 && translated > 0 && masqueraded > 0 && unasked < denied,
        "{allowed} {unasked}"
    );
}

#[test]
fn stars_are_judged_alike_by_rules_and_kernel() {
    for version in ["stars/v1", "stars/v2"] {
        let example = Example::up(version, "10.20.0.1/24");
        // a service in front of all of them, which every endpoint asks by its own policies
        let text = std::fs::read_to_string(&example.path).unwrap();
        let all = "apiVersion: v1\nkind: Service\nmetadata: {name: all}\nspec:\n  type: NodePort\n  clusterIP: 10.96.0.10\n  \
                   selector: {}\n  ports: [{port: 80, targetPort: 80, nodePort: 8080}]\n";
        example.host.load_path(&[], &example.host.documents("all.yaml", &format!("{text}\n---\n{all}")));
        let seen = unnoticed(&example.host, || questioned(&example.host));
        println!("{seen:?}");
        assert!(seen.allowed > 10 && seen.denied > 10, "{seen:?}");
    }
}
