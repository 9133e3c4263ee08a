//! Policy holds on real packets: each protocol, both families, bridged and routed, delivered directly
//! or through the host's stack.

mod support;

use support::{
    Attempt::{Ping, Tcp, Udp},
    Endpoint, FAMILIES, Family, HOST, LAYOUTS, Layout, Scene,
    Seen::{Answered, Refused, Silent},
    check,
    policy::{anybody, calico, egress, from, ingress, to},
};

const DIRECT: &[&str] = &["--forwarding", "direct"];
const STACK: &[&str] = &["--forwarding", "stack"];

/// `b` answers `a` on 80/TCP and 53/UDP, and nobody else.
fn ports_are_judged(layout: Layout, forwarding: &[&str], passed: &str) {
    let Scene { host, a, b, c, .. } = &Scene::new(layout);
    let _servers = (b.serve_tcp(80), b.serve_tcp(81), b.serve_udp(53), b.serve_udp(54), a.serve_tcp(80));
    host.load_with(forwarding, &[a, b, c], &[ingress("b", &[from("a", &["80/TCP", "53/UDP"])])]);
    let mut expected = vec![];
    for family in FAMILIES {
        expected.push((a, Tcp(b.at(family, 80)), Answered));
        expected.push((a, Tcp(b.at(family, 81)), Silent));
        expected.push((a, Udp(b.at(family, 53)), Answered));
        expected.push((a, Udp(b.at(family, 54)), Silent));
        expected.push((c, Tcp(b.at(family, 80)), Silent));
        expected.push((c, Udp(b.at(family, 53)), Silent));
        // the other direction is open, and so is whoever no policy is about
        expected.push((b, Tcp(a.at(family, 80)), Answered));
        expected.push((c, Tcp(a.at(family, 80)), Answered));
    }
    let ((), counts) = host.counted(|| check(&expected));
    assert_eq!(counts.drops(), ["egress policy-ingress"], "{counts:?}");
    assert!(counts.of(&format!("egress passed {passed}")) > 40, "{counts:?}");
    for other in ["stack", "direct", "routed"].into_iter().filter(|other| *other != passed) {
        assert_eq!(counts.of(&format!("egress passed {other}")), 0, "{counts:?}");
    }
    let denied = host.flow("c", "b", 80);
    assert_eq!((denied["verdict"].as_str(), denied["drop_reason"].as_str()), (Some("denied"), Some("policy-ingress")));
    assert_eq!(denied["rule"]["direction"], "ingress");
    let allowed = host.flow("a", "b", 80);
    assert_eq!((allowed["verdict"].as_str(), allowed["delivery"].as_str()), (Some("allowed"), Some(passed)));
    assert_eq!(allowed["rule"]["index"], 0);
}

#[test]
fn ports_are_judged_on_a_bridge_delivered_directly() {
    ports_are_judged(Layout::Bridged, DIRECT, "direct");
}

#[test]
fn ports_are_judged_on_a_bridge_that_forwards() {
    ports_are_judged(Layout::Bridged, STACK, "stack");
}

#[test]
fn ports_are_judged_where_the_host_would_route() {
    ports_are_judged(Layout::Routed, DIRECT, "routed");
}

#[test]
fn ports_are_judged_where_the_host_routes() {
    ports_are_judged(Layout::Routed, STACK, "stack");
}

#[test]
fn echo_is_judged_by_type() {
    for layout in LAYOUTS {
        let Scene { host, a, b, c, .. } = &Scene::new(layout);
        let echo = "types: [Ingress], ingress: [
            {action: Allow, protocol: ICMP, icmp: {type: 8, code: 0}, source: {selector: app == 'a'}},
            {action: Allow, protocol: ICMPv6, icmp: {type: 128}, source: {selector: app == 'a'}}]";
        host.load(&[a, b, c], &[calico("b", echo)]);
        let mut expected = vec![];
        for family in FAMILIES {
            expected.push((a, Ping(b.ip(family)), Answered));
            expected.push((c, Ping(b.ip(family)), Silent));
            expected.push((b, Ping(c.ip(family)), Answered));
        }
        let ((), counts) = host.counted(|| check(&expected));
        assert_eq!(counts.drops(), ["egress policy-ingress"], "{layout:?}");
    }
}

#[test]
fn other_type_of_icmp_than_the_allowed_one_is_denied() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let timestamp = "types: [Ingress], ingress: [{action: Allow, protocol: ICMP, icmp: {type: 13}}]";
    host.load(&[a, b, c], &[calico("b", timestamp)]);
    check(&[(a, Ping(b.ipv4()), Silent), (c, Ping(b.ipv6()), Silent)]);
}

#[test]
fn network_policy_without_ports_covers_echo() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    host.load(&[a, b, c], &[ingress("b", &[from("a", &[])])]);
    check(&[(a, Ping(b.ipv4()), Answered), (a, Ping(b.ipv6()), Answered), (c, Ping(b.ipv4()), Silent)]);
}

#[test]
fn egress_alone_isolates_what_is_sent() {
    for layout in LAYOUTS {
        let Scene { host, a, b, c, .. } = &Scene::new(layout);
        let _servers = (a.serve_tcp(80), b.serve_tcp(80), c.serve_tcp(80));
        host.load(&[a, b, c], &[egress("a", &[to("b", &["80/TCP"])])]);
        let mut expected = vec![];
        for family in FAMILIES {
            expected.push((a, Tcp(b.at(family, 80)), Answered));
            expected.push((a, Tcp(c.at(family, 80)), Silent));
            expected.push((c, Tcp(a.at(family, 80)), Answered));
            expected.push((c, Tcp(b.at(family, 80)), Answered));
        }
        let ((), counts) = host.counted(|| check(&expected));
        assert_eq!(counts.drops(), ["egress policy-egress"], "{layout:?}");
        let denied = host.flow("a", "c", 80);
        assert_eq!(denied["drop_reason"], "policy-egress");
        assert_eq!(denied["rule"]["direction"], "egress");
    }
}

#[test]
fn both_ends_must_allow() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _servers = (b.serve_tcp(80), b.serve_tcp(81), b.serve_tcp(82));
    let policies = [egress("a", &[to("b", &["80/TCP", "81/TCP"])]), ingress("b", &[from("a", &["80/TCP", "82/TCP"])])];
    host.load(&[a, b, c], &policies);
    let expected = [(80, Answered), (81, Silent), (82, Silent)];
    let expected = expected.map(|(port, seen)| (a, Tcp(b.at(Family::V4, port)), seen));
    let ((), counts) = host.counted(|| check(&expected));
    assert_eq!(counts.drops(), ["egress policy-egress", "egress policy-ingress"]);
}

#[test]
fn replies_of_an_allowed_connection_need_no_rule() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _servers = (b.serve_tcp(80), b.serve_udp(53), a.serve_tcp(80));
    // neither may b open anything, nor a be called
    let policies = [egress("b", &[]), ingress("a", &[])];
    host.load(&[a, b, c], &policies);
    let ((), counts) = host.counted(|| {
        check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (a, Udp(b.at(Family::V6, 53)), Answered)]);
        check(&[(a, Ping(b.ipv4()), Answered), (b, Tcp(a.at(Family::V4, 80)), Silent)]);
    });
    assert_eq!(counts.drops(), ["egress policy-egress"]);
    let flows = host.flows();
    let replies = flows.iter().filter(|flow| flow["is_reply"] == true && flow["source"]["name"] == "b");
    assert_eq!(replies.count(), 3, "{flows:#?}");
}

#[test]
fn refusals_come_back_through_policy() {
    for layout in LAYOUTS {
        let Scene { host, a, b, c, .. } = &Scene::new(layout);
        let policies = [ingress("b", &[from("a", &["80/TCP", "53/UDP"])]), egress("b", &[]), ingress("a", &[])];
        host.load(&[a, b, c], &policies);
        // RST, and an ICMP error about a datagram that was allowed
        for family in FAMILIES {
            check(&[(a, Tcp(b.at(family, 80)), Refused), (a, Udp(b.at(family, 53)), Refused)]);
        }
    }
}

#[test]
fn host_reaches_its_containers_unless_it_is_policed() {
    for layout in LAYOUTS {
        let Scene { host, a, b, c, .. } = &Scene::new(layout);
        let (itself, _servers) = (host.itself(), (b.serve_tcp(80), b.serve_udp(53)));
        let policies = [ingress("b", &[from("a", &["80/TCP"])])];
        let expected = |seen| {
            FAMILIES
                .map(|family| [(&itself, Tcp(b.at(family, 80)), seen), (&itself, Udp(b.at(family, 53)), seen)])
                .concat()
        };
        host.load(&[a, b, c], &policies);
        check(&expected(Answered));
        host.load_with(&["--police-host"], &[a, b, c], &policies);
        let ((), counts) = host.counted(|| check(&expected(Silent)));
        assert_eq!(counts.drops(), ["ingress policy-ingress"], "{layout:?}");
        // the container's own call of the host is not the host's traffic to it
        let _server = itself.serve_tcp(8080);
        check(&[(b, Tcp(itself.at(Family::V4, 8080)), Answered)]);
    }
}

#[test]
fn container_to_host_is_egress_like_any_other() {
    for layout in LAYOUTS {
        let Scene { host, a, b, c, .. } = &Scene::new(layout);
        let itself = host.itself();
        let _servers = (itself.serve_tcp(80), itself.serve_udp_at(itself.socket(Family::V4, 53)));
        let block = format!("{{to: [{{ipBlock: {{cidr: {}/32}}}}], ports: [{{port: 80, protocol: TCP}}]}}", HOST[0]);
        host.load(&[a, b, c], &[egress("a", &[block])]);
        let expected = [
            (a, Tcp(itself.at(Family::V4, 80)), Answered),
            (a, Udp(itself.at(Family::V4, 53)), Silent),
            (a, Tcp(itself.at(Family::V6, 80)), Silent),
            (b, Tcp(itself.at(Family::V6, 80)), Answered),
            (b, Udp(itself.at(Family::V4, 53)), Answered),
        ];
        let ((), counts) = host.counted(|| check(&expected));
        assert_eq!(counts.drops(), ["egress policy-egress"], "{layout:?}");
    }
}

#[test]
fn outside_is_judged_by_address() {
    for layout in LAYOUTS {
        let Scene { host, a, b, c, outside } = &Scene::new(layout);
        let _servers = (outside.serve_tcp(80), outside.serve_tcp(81), b.serve_tcp(80), c.serve_tcp(80));
        let blocks = "{cidr: 192.0.2.0/24}}, {ipBlock: {cidr: 2001:db8::/32, except: [2001:db8::/64]}";
        let egress = egress("a", &[format!("{{to: [{{ipBlock: {blocks}}}], ports: [{{port: 80, protocol: TCP}}]}}")]);
        let ingress = ingress("b", &[format!("{{from: [{{ipBlock: {blocks}}}]}}")]);
        host.load(&[a, b, c], &[egress, ingress]);
        let expected = [
            (a, Tcp(outside.at(Family::V4, 80)), Answered),
            (a, Tcp(outside.at(Family::V4, 81)), Silent),
            (a, Tcp(outside.at(Family::V6, 80)), Silent),
            (outside, Tcp(b.at(Family::V4, 80)), Answered),
            (outside, Tcp(b.at(Family::V6, 80)), Silent),
            (outside, Tcp(c.at(Family::V6, 80)), Answered),
            (c, Tcp(outside.at(Family::V6, 80)), Answered),
        ];
        let ((), counts) = host.counted(|| check(&expected));
        assert_eq!(counts.drops(), ["egress policy-egress", "ingress policy-ingress"], "{layout:?}");
        assert_eq!(host.flow("192.0.2.9", "b", 80)["verdict"], "allowed");
    }
}

#[test]
fn named_port_is_the_number_that_each_endpoint_gives_it() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _servers = (b.serve_tcp(8080), b.serve_tcp(9090), c.serve_tcp(8080), c.serve_tcp(9090));
    let ports = |port: u16| format!(", ports: [{{name: http, port: {port}, protocol: TCP}}]");
    let rules = [anybody(&["http/TCP"])];
    let documents = [
        a.document(),
        b.document_with(&ports(8080)),
        c.document_with(&ports(9090)),
        ingress("b", &rules),
        ingress("c", &rules),
    ];
    host.load_path(&[], &host.documents("named.yaml", &documents.join("---\n")));
    check(&[
        (a, Tcp(b.at(Family::V4, 8080)), Answered),
        (a, Tcp(b.at(Family::V6, 9090)), Silent),
        (a, Tcp(c.at(Family::V4, 8080)), Silent),
        (a, Tcp(c.at(Family::V6, 9090)), Answered),
    ]);
}

#[test]
fn range_of_ports_includes_its_ends() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _servers = [999, 1000, 1500, 2000, 2001].map(|port| b.serve_tcp(port));
    host.load(&[a, b, c], &[ingress("b", &["{ports: [{port: 1000, endPort: 2000}]}".to_owned()])]);
    let seen = [(999, Silent), (1000, Answered), (1500, Answered), (2000, Answered), (2001, Silent)];
    check(&seen.map(|(port, seen)| (a, Tcp(b.at(Family::V4, port)), seen)));
}

#[test]
fn addresses_may_repeat_between_bridges() {
    let host = support::Host::new();
    let make = |bridge: &str, name: &str, number: u8| host.endpoint(bridge, name, &[&format!("10.0.0.{number}/16")]);
    host.bridge("br0", &["10.0.0.1/16"]);
    host.bridge("br1", &["10.0.0.1/16"]);
    let [a, b] = [make("br0", "a", 10), make("br0", "b", 20)];
    let [c, d] = [make("br1", "c", 10), make("br1", "d", 20)];
    let _servers = (b.serve_tcp(80), d.serve_tcp(80));
    // a may call b; c has a's address, and may not call d
    host.load(&[&a, &b, &c, &d], &[ingress("b", &[from("a", &[])]), ingress("d", &[from("a", &[])])]);
    check(&[(&a, Tcp(b.at(Family::V4, 80)), Answered), (&c, Tcp(d.at(Family::V4, 80)), Silent)]);
}

#[test]
fn endpoint_without_policy_is_open_in_both_directions() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _servers = (b.serve_tcp(80), c.serve_udp(53));
    host.load(&[a, b], &[]);
    // c is no endpoint at all
    let expected: [(&Endpoint, _, _); 3] = [
        (a, Tcp(b.at(Family::V4, 80)), Answered),
        (c, Tcp(b.at(Family::V6, 80)), Answered),
        (b, Udp(c.at(Family::V4, 53)), Answered),
    ];
    let ((), counts) = host.counted(|| check(&expected));
    assert_eq!(counts.drops(), [""; 0]);
    assert_eq!(host.status()["unprotected"], serde_json::json!(["v-c on br0"]));
}
