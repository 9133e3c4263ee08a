//! `verify` tells what real connections do, with and without something in their way. What enforces
//! here is nftables or nothing: verify must not depend on the classifiers it is to prove.

mod support;

use std::{collections::BTreeMap, time::Duration};

use netpol_user::{
    model::{
        Attachment, Direction, Endpoint as Document, EndpointPort, Expr, Labels, ObjectName, Origin, Policy,
        PolicyKind, Protocol, Scope, Selector, Tier, TierDefault, World,
    },
    source::{Known, discover},
    verify::{Error, Observed, Options, Port, Report, Row, Verdict, verify},
};
use support::{Endpoint, Host, pair};

const WEB: Port = Port { number: 80, protocol: Protocol::TCP };
const DNS: Port = Port { number: 53, protocol: Protocol::UDP };

fn world(endpoints: &[&Endpoint], ports: &[Port]) -> World {
    let document = |endpoint: &&Endpoint| Document {
        name: ObjectName { namespace: "shop".to_owned(), name: endpoint.name.clone() },
        labels: Labels::from([("app".to_owned(), endpoint.name.clone())]),
        addresses: vec![],
        ports: ports
            .iter()
            .map(|port| EndpointPort { name: None, port: port.number, protocol: port.protocol })
            .collect(),
        weight: 1,
        attachment: Some(Attachment { netns: endpoint.netns().to_owned(), interface: None }),
        origin: Origin::default(),
    };
    World {
        namespaces: BTreeMap::from([("shop".to_owned(), Labels::new())]),
        endpoints: endpoints.iter().map(document).collect(),
        ..World::default()
    }
}

/// A policy without rules: it denies everything in that direction of the endpoint.
fn isolate(world: &mut World, name: &str, direction: Direction) {
    let rules = |of| (direction == of).then(Vec::new);
    let labels = Expr::Eq("app".to_owned(), name.to_owned());
    let policy = Policy {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("shop".to_owned()),
        name: "isolate".to_owned(),
        subject: Selector { scope: Scope::Any, labels },
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
        audit: false,
        origin: Origin::default(),
    };
    world.tiers.push(Tier { name: "default".to_owned(), default: TierDefault::Deny, policies: vec![policy] });
}

fn run(host: &Host, world: &World, options: &Options) -> Result<Report, Error> {
    let inside = host.namespace.enter(|| {
        let discovery = discover(world, Known::default()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(discovery.pending, []);
        verify(world, &discovery, options, &|_, _| {})
    });
    inside.expect("entering a network namespace needs root")
}

#[track_caller]
fn report(host: &Host, world: &World) -> Report {
    run(host, world, &Options::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// Rows as `a > b 80/tcp v4: expected seen`.
fn told(report: &Report) -> Vec<String> {
    let line = |row: &Row| {
        let family = if row.address.is_ipv4() { "v4" } else { "v6" };
        let name = |name: &str| name.strip_prefix("shop/").unwrap_or(name).to_owned();
        let port = format!("{}/{}", row.port, row.protocol.to_lowercase());
        let (from, to) = (name(&row.from), name(&row.to));
        format!("{from} > {to} {port} {family}: {:?} {}", row.expected, row.observed.as_str())
    };
    let mut lines: Vec<_> = report.rows.iter().map(line).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn open_network_without_policies_holds() {
    let (host, a, b) = pair();
    let report = report(&host, &world(&[&a, &b], &[WEB, DNS]));
    assert!(report.ok, "{report:#?}");
    let expected = [
        "a > b 53/udp v4: Allowed allowed",
        "a > b 53/udp v6: Allowed allowed",
        "a > b 80/tcp v4: Allowed allowed",
        "a > b 80/tcp v6: Allowed allowed",
        "b > a 53/udp v4: Allowed allowed",
        "b > a 53/udp v6: Allowed allowed",
        "b > a 80/tcp v4: Allowed allowed",
        "b > a 80/tcp v6: Allowed allowed",
    ];
    assert_eq!(told(&report), expected);
}

#[test]
fn denial_that_nothing_enforces_is_found_out() {
    let (host, a, b) = pair();
    let mut world = world(&[&a, &b], &[WEB]);
    isolate(&mut world, "b", Direction::Ingress);
    let report = report(&host, &world);
    assert!(!report.ok);
    let expected = [
        "a > b 80/tcp v4: Denied allowed",
        "a > b 80/tcp v6: Denied allowed",
        "b > a 80/tcp v4: Allowed allowed",
        "b > a 80/tcp v6: Allowed allowed",
    ];
    assert_eq!(told(&report), expected);
    assert!(report.rows.iter().all(|row| row.ok == (row.expected == Verdict::Allowed)));
}

#[test]
fn denial_that_is_enforced_by_silence_holds() {
    let (host, a, b) = pair();
    let mut world = world(&[&a, &b], &[WEB, DNS]);
    isolate(&mut world, "b", Direction::Ingress);
    // only what opens connections towards b: SYNs and requests, not its own answers
    host.run(
        "nft",
        &[r#"
        add table bridge t; add chain bridge t c { type filter hook forward priority 0; }
        add rule bridge t c oifname "v-b" tcp flags & (syn | ack) == syn drop
        add rule bridge t c oifname "v-b" udp dport 53 drop
    "#],
    );
    let report = report(&host, &world);
    assert!(report.ok, "{report:#?}");
    assert!(told(&report).contains(&"a > b 53/udp v4: Denied denied".to_owned()), "{:?}", told(&report));
    assert_eq!(report.rows.iter().filter(|row| row.observed == Observed::Denied).count(), 4);
}

#[test]
fn allowance_that_something_else_drops_is_found_out() {
    let (host, a, b) = pair();
    host.run(
        "nft",
        &[r#"
        add table bridge t; add chain bridge t c { type filter hook forward priority 0; }
        add rule bridge t c tcp dport 80 drop
    "#],
    );
    let report = report(&host, &world(&[&a, &b], &[WEB]));
    assert!(!report.ok);
    assert!(report.rows.iter().all(|row| !row.ok && row.observed == Observed::Denied), "{report:#?}");
}

#[test]
fn services_that_already_listen_are_left_alone_and_answer_themselves() {
    let (host, a, b) = pair();
    let _servers = (b.serve_tcp(80), b.serve_udp(53));
    let report = report(&host, &world(&[&a, &b], &[WEB, DNS]));
    assert!(report.ok, "{report:#?}");
    assert!(report.rows.iter().all(|row| row.observed == Observed::Allowed), "{report:#?}");
    assert_eq!(a.tcp("10.0.0.20:80"), support::Seen::Answered, "the service is still there");
}

#[test]
fn silent_datagram_service_proves_nothing() {
    let (host, a, b) = pair();
    let _silent = b.enter(|| std::net::UdpSocket::bind("10.0.0.20:53").unwrap());
    let options = Options { ports: vec![DNS], ..Options::default() };
    let report = run(&host, &world(&[&a, &b], &[]), &options).unwrap();
    let lines = told(&report);
    assert!(lines.contains(&"a > b 53/udp v4: Allowed unproven".to_owned()), "{lines:?}");
    assert!(lines.contains(&"a > b 53/udp v6: Allowed allowed".to_owned()), "{lines:?}");
    assert!(report.ok);
}

#[test]
fn routed_endpoints_are_connected_through_the_host() {
    let host = Host::new();
    let a = host.routed_endpoint("a", &["10.1.0.5", "fd01::5"]);
    let b = host.routed_endpoint("b", &["10.1.0.6", "fd01::6"]);
    let report = report(&host, &world(&[&a, &b], &[WEB, DNS]));
    assert!(report.ok, "{report:#?}");
    assert_eq!(report.rows.len(), 8);
    assert!(report.rows.iter().all(|row| row.observed == Observed::Allowed), "{report:#?}");
}

#[test]
fn missing_route_between_networks_is_no_contradiction() {
    let (host, a, _b) = pair();
    host.bridge("br1", &["10.9.0.1/16"]);
    let c = host.endpoint("br1", "c", &["10.9.0.10/16"]);
    let report = report(&host, &world(&[&a, &c], &[WEB]));
    assert!(report.ok, "{report:#?}");
    assert_eq!(told(&report), ["a > c 80/tcp v4: Allowed unproven", "c > a 80/tcp v4: Allowed unproven"]);
}

#[test]
fn what_the_deadline_leaves_untried_does_not_hold() {
    let (host, a, b) = pair();
    let options = Options { deadline: Duration::ZERO, ..Options::default() };
    let report = run(&host, &world(&[&a, &b], &[WEB]), &options).unwrap();
    assert!(!report.ok);
    assert!(report.rows.iter().all(|row| row.observed == Observed::Untried), "{report:#?}");
}

#[test]
fn protocols_without_sockets_are_named_as_not_tried() {
    let (host, a, b) = pair();
    let sctp = Port { number: 9, protocol: Protocol::SCTP };
    let report = report(&host, &world(&[&a, &b], &[WEB, sctp]));
    assert_eq!(report.skipped.len(), 2);
    assert!(report.skipped[0].starts_with("shop/a port 9/sctp"), "{:?}", report.skipped);
}

#[test]
fn nothing_to_try_is_an_error() {
    let (host, a, b) = pair();
    let failed = |world: &World| run(&host, world, &Options::default()).unwrap_err().to_string();
    assert!(failed(&World::default()).starts_with("none of the endpoints is running here"));
    assert!(failed(&world(&[&a, &b], &[])).contains("--port 80/tcp"));
}

#[test]
fn report_is_the_json_that_scripts_read() {
    let (host, a, b) = pair();
    let options = Options { ports: vec![WEB], ..Options::default() };
    let report = run(&host, &world(&[&a, &b], &[]), &options).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["ok"], true);
    let row = &json["rows"][0];
    for (field, value) in [("from", "shop/b"), ("to", "shop/a"), ("protocol", "TCP"), ("address", "10.0.0.10")] {
        assert_eq!(row[field], value);
    }
    assert_eq!(row["port"], 80);
    assert_eq!((row["expected"].as_str(), row["observed"].as_str()), (Some("allowed"), Some("allowed")));
    assert_eq!(row["ok"], true);
}

#[test]
fn command_without_running_endpoints_fails_and_says_so() {
    let host = Host::new();
    let elsewhere = "{apiVersion: netpol.dev/v1, kind: Endpoint, metadata: {name: a}, spec: {netns: npt-nowhere}}";
    let path = host.documents("pending.yaml", elsewhere);
    let ran = host.netpol(&["verify", &path]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("none of the endpoints is running here"), "{}", ran.stderr);
    assert_eq!(host.netpol(&["verify", &path, "--port", "80/icmp"]).code, 2);
}
