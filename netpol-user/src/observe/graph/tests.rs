use netpol_common::{
    flow::{FlowFlags, Generation},
    tables::{IfIndex, RuleId},
    wire::Protocol,
};

use super::*;
use crate::{
    datapath::{Drop, Record, Side},
    observe::{Ends, hits, tally},
    state,
};

fn names() -> Names {
    let endpoint = |name: &str, number: u8| state::Endpoint {
        namespace: "shop".into(),
        name: name.into(),
        labels: Labels::new(),
        addresses: vec![IpAddr::from([10, 0, 0, number])],
        interface: format!("v-{name}"),
        ifindex: number.into(),
        ingress: true,
        egress: true,
        stack: None,
        outside: None,
    };
    let rule = |name: &str, direction: &str, index: Option<u32>| Rule {
        kind: "NetworkPolicy".into(),
        namespace: Some("shop".into()),
        name: name.into(),
        direction: direction.into(),
        index,
        source: format!("p.yaml:{}", name.len()),
    };
    Names {
        generation: 7,
        endpoints: vec![endpoint("web", 1), endpoint("db", 2)],
        rules: vec![
            rule("web", "egress", Some(0)),
            rule("db", "ingress", Some(0)),
            rule("default-deny", "ingress", None),
            rule("default-deny", "egress", None),
        ],
        ..Names::default()
    }
}

fn record(side: Side, interface: u32, from: [u8; 4], to: [u8; 4], ports: (u16, u16)) -> Record {
    Record {
        interface: IfIndex(interface),
        far: IfIndex(0),
        side,
        source: from.into(),
        destination: to.into(),
        source_port: ports.0,
        destination_port: ports.1,
        protocol: Protocol::TCP,
        generation: Generation(7),
        flags: FlowFlags::NONE,
        denied: None,
        packets: 10,
        bytes: 1000,
        idle: Duration::from_secs(2),
        egress_rule: RuleId(1),
        ingress_rule: RuleId(2),
        tcp_flags: 0,
        translated: None,
        audited: None,
        service: 0,
    }
}

const WEB: [u8; 4] = [10, 0, 0, 1];
const DB: [u8; 4] = [10, 0, 0, 2];

fn reply(of: Record) -> Record {
    Record { flags: FlowFlags::REPLY, ..of }
}

fn denied(of: Record, reason: Drop) -> Record {
    Record { denied: Some(reason), egress_rule: RuleId(4), ingress_rule: RuleId(3), ..of }
}

fn condition() -> Condition {
    let nothing = crate::enforce::Instance::new("/nonexistent/a".as_ref(), "/nonexistent/b".as_ref());
    let host_addresses = vec![IpAddr::from([10, 0, 0, 254])];
    Condition { enforced: true, host_addresses, ..Condition::of(&nothing).unwrap() }
}

fn drawn(records: &[Record], before: Option<(&Totals, Duration)>) -> (Graph, Totals) {
    let (names, condition) = (names(), condition());
    let rows = tally(records, &Ends::new(&names, &condition.host_addresses), names.generation);
    graph((&names, &condition), &rows, before)
}

#[test]
fn both_directions_of_a_connection_are_one_edge_from_who_opened_it() {
    let there = record(Side::From, 1, WEB, DB, (40000, 5432));
    let back = reply(record(Side::From, 2, DB, WEB, (5432, 40000)));
    let (graph, _) = drawn(&[back, there], None);
    assert_eq!(graph.edges.len(), 1);
    let edge = &graph.edges[0];
    assert_eq!((edge.from.as_str(), edge.to.as_str(), edge.verdict), ("shop/web", "shop/db", Verdict::Allowed));
    assert_eq!((edge.numbers.connections, edge.numbers.packets, edge.numbers.bytes), (1, 20, 2000));
    assert_eq!((edge.ports[0].port, edge.ports[0].protocol.as_str()), (Some(5432), "TCP"));
    let rules: Vec<_> = edge.ports[0].rules.iter().map(|rule| rule.text.as_str()).collect();
    assert_eq!(rules, ["NetworkPolicy shop/web egress[0] (p.yaml:3)", "NetworkPolicy shop/db ingress[0] (p.yaml:2)"]);
}

#[test]
fn a_packet_that_two_interfaces_remember_counts_once() {
    let sent = record(Side::From, 1, WEB, DB, (40000, 5432));
    let arrived = record(Side::To, 2, WEB, DB, (40000, 5432));
    let (graph, _) = drawn(&[sent, arrived], None);
    assert_eq!((graph.edges[0].numbers.packets, graph.edges[0].numbers.connections), (10, 1));
}

#[test]
fn a_denial_is_an_edge_of_its_own_with_the_rule_that_said_no() {
    let allowed = record(Side::From, 1, WEB, DB, (40000, 5432));
    let by_ingress = denied(record(Side::From, 1, WEB, DB, (40001, 22)), Drop::PolicyIngress);
    let by_egress = denied(record(Side::From, 2, DB, WEB, (40001, 80)), Drop::PolicyEgress);
    let (graph, _) = drawn(&[allowed, by_ingress, by_egress], None);
    let said: Vec<_> = graph
        .edges
        .iter()
        .map(|e| (e.from.as_str(), e.verdict, e.ports[0].drop_reason, e.ports[0].rules[0].rule.direction.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            ("shop/db", Verdict::Denied, Some("policy-egress"), "egress"),
            ("shop/web", Verdict::Denied, Some("policy-ingress"), "ingress"),
            ("shop/web", Verdict::Allowed, None, "egress"),
        ]
    );
    assert_eq!(graph.edges[0].ports[0].rules.len(), 1);
}

#[test]
fn host_and_outside_are_nodes_where_they_talk() {
    let outside = record(Side::To, 1, [203, 0, 113, 10], WEB, (40000, 80));
    let host = record(Side::To, 1, [10, 0, 0, 254], WEB, (40000, 80));
    let (graph, _) = drawn(&[outside, host], None);
    let ids: Vec<_> = graph.nodes.iter().map(|node| node.id.as_str()).collect();
    assert_eq!(ids, ["outside", "host", "shop/db", "shop/web"]);
    let edge = graph.edges.iter().find(|edge| edge.from == "outside").unwrap();
    assert_eq!(edge.addresses, [IpAddr::from([203, 0, 113, 10])]);
    let (quiet, _) = drawn(&[], None);
    assert_eq!(quiet.nodes.len(), 2);
}

#[test]
fn rates_come_from_two_readings_and_survive_a_new_judgement() {
    let first = record(Side::From, 1, WEB, DB, (40000, 5432));
    let (graph, totals) = drawn(std::slice::from_ref(&first), None);
    assert_eq!(graph.edges[0].numbers.packets_per_second, None);
    let later = Record { packets: 30, bytes: 4000, egress_rule: RuleId(0), ..first };
    let (graph, _) = drawn(&[later], Some((&totals, Duration::from_secs(2))));
    let numbers = graph.edges[0].numbers;
    assert_eq!((numbers.packets_per_second, numbers.bytes_per_second), (Some(10.0), Some(1500.0)));
    let evicted = record(Side::From, 1, WEB, DB, (40001, 5432));
    let (graph, _) = drawn(&[Record { packets: 1, ..evicted }], Some((&totals, Duration::from_secs(2))));
    assert_eq!(graph.edges[0].numbers.packets_per_second, Some(0.0));
}

#[test]
fn what_an_earlier_generation_judged_has_no_rule() {
    let old = Record { generation: Generation(6), ..record(Side::From, 1, WEB, DB, (40000, 5432)) };
    let (graph, _) = drawn(&[old], None);
    assert!(!graph.edges[0].ports[0].current && graph.edges[0].ports[0].rules.is_empty());
}

#[test]
fn a_scan_of_all_ports_stays_one_edge_with_a_few_ports() {
    let scan: Vec<_> =
        (1..=5000).map(|port| denied(record(Side::From, 1, WEB, DB, (40000, port)), Drop::PolicyIngress)).collect();
    let (graph, _) = drawn(&scan, None);
    let edge = &graph.edges[0];
    assert_eq!((edge.numbers.connections, edge.ports.len(), edge.more_ports), (5000, PORTS, 5000 - PORTS));
}

#[test]
fn hits_of_a_rule_are_the_packets_of_clients() {
    let (names, condition) = (names(), condition());
    let records = [
        record(Side::From, 1, WEB, DB, (40000, 5432)),
        reply(record(Side::From, 2, DB, WEB, (5432, 40000))),
        denied(record(Side::From, 1, WEB, DB, (40001, 22)), Drop::PolicyIngress),
        denied(record(Side::From, 2, DB, WEB, (40001, 22)), Drop::PolicyEgress),
    ];
    let hits = hits(&tally(&records, &Ends::new(&names, &condition.host_addresses), 7));
    let of: Vec<_> = hits.iter().map(|(rule, hits)| (*rule, hits.flows, hits.packets, hits.bytes)).collect();
    assert_eq!(of, [(1, 1, 10, 1000), (2, 1, 10, 1000), (3, 1, 10, 1000), (4, 1, 10, 1000)]);
}
