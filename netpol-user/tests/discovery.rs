//! Endpoints are found, or the reason why not is told: in real namespaces.

mod support;

use std::{net::IpAddr, path::PathBuf};

use netpol_common::tables::IfIndex;
use netpol_user::{
    model::{Attachment, Endpoint as Document, Labels, ObjectName, Origin, World},
    netns::Namespace,
    source::{Address, Delivery, Discovery, Error, Known, ROUTED, Reason, discover},
};
use support::{Endpoint, Host, pair};

fn document(name: &str, netns: impl Into<PathBuf>, interface: Option<&str>) -> Document {
    Document {
        name: ObjectName { namespace: "default".to_owned(), name: name.to_owned() },
        labels: Labels::new(),
        addresses: vec![],
        ports: vec![],
        weight: 1,
        attachment: Some(Attachment { netns: netns.into(), interface: interface.map(str::to_owned) }),
        origin: Origin { file: "endpoints.yaml".into(), line: 7, column: 1 },
    }
}

fn world(endpoints: &[&Endpoint]) -> World {
    let endpoints = endpoints.iter().map(|endpoint| document(&endpoint.name, endpoint.netns(), None)).collect();
    World { endpoints, ..World::default() }
}

fn on(host: &Host, world: &World) -> Result<Discovery, Error> {
    host.namespace.enter(|| discover(world, Known::default())).expect("entering a network namespace needs root")
}

#[track_caller]
fn found(host: &Host, endpoints: &[&Endpoint]) -> Discovery {
    let discovery = on(host, &world(endpoints)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(discovery.pending, []);
    discovery
}

/// Why each endpoint's packets take the stack; `None`: they don't.
fn reasons(discovery: &Discovery) -> Vec<Option<&str>> {
    let reason = |delivery| match delivery {
        &Delivery::Direct => None,
        Delivery::Stack(reason) => Some(reason.as_str()),
    };
    discovery.workloads.iter().map(|found| reason(&found.delivery)).collect()
}

#[track_caller]
fn pending(host: &Host, endpoint: Document) -> String {
    let world = World { endpoints: vec![endpoint], ..World::default() };
    let discovery = on(host, &world).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(discovery.workloads, []);
    let [pending] = &discovery.pending[..] else { panic!("{:?}", discovery.pending) };
    assert_eq!(pending.endpoint, 0);
    pending.reason.clone()
}

#[test]
fn bridged_endpoints_are_found_with_both_ends_of_their_veths() {
    let (host, a, b) = pair();
    let discovery = found(&host, &[&a, &b]);
    assert_eq!(discovery.namespace, host.namespace.id().unwrap());
    assert_eq!(reasons(&discovery), [None, None]);
    let indices = host.net(async |net| (net.index("v-a").await, net.index("br0").await));
    let first = &discovery.workloads[0];
    assert_eq!((first.interface.as_str(), first.container_interface.as_str()), ("v-a", "eth0"));
    assert_eq!(first.namespace, a.namespace.id().unwrap());
    let workload = &first.workload;
    assert_eq!((workload.ifindex, workload.master), (IfIndex(indices.0), IfIndex(indices.1)));
    assert_eq!((workload.network.0, workload.segment), (indices.1, indices.1));
    assert!(!workload.routed && !workload.port_isolated);
    assert!(a.run("cat", &["/proc/net/if_inet6"]).contains("fe80"), "link-local addresses are expected, too");
    for address in &a.addresses {
        assert!(workload.addresses.contains(address), "{address} in {:?}", workload.addresses);
    }
    let is_link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    assert_eq!(workload.addresses.iter().filter(|address| is_link_local(address)).count(), 1);
    for address in ["10.0.0.1", "fd00::1", "127.0.0.1"] {
        assert!(discovery.host_addresses.contains(&address.parse().unwrap()), "{:?}", discovery.host_addresses);
    }
}

#[test]
fn macs_are_those_of_both_ends() {
    let (host, a, _b) = pair();
    let mac = |output: String| -> Vec<u8> {
        output.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    };
    let address = |line: String| mac(line.split_whitespace().nth(2).unwrap().to_owned());
    let workload = &found(&host, &[&a]).workloads[0].workload;
    assert_eq!(workload.mac[..], address(a.run("ip", &["-br", "link", "show", "eth0"])));
    assert_eq!(workload.host_mac[..], address(host.run("ip", &["-br", "link", "show", "v-a"])));
}

#[test]
fn discovery_twice_is_the_same() {
    let (host, a, b) = pair();
    let (first, second) = (found(&host, &[&a, &b]), found(&host, &[&a, &b]));
    assert_eq!(first.workloads, second.workloads);
    assert_eq!(first.bridges, second.bridges);
    assert_eq!(first.host_addresses, second.host_addresses);
}

#[test]
fn bridges_list_their_unmanaged_ports() {
    let (host, a, b) = pair();
    let discovery = found(&host, &[&b]);
    let [bridge] = &discovery.bridges[..] else { panic!("{:?}", discovery.bridges) };
    assert!(bridge.up && !bridge.vlan_filtering);
    let ports: Vec<_> = bridge.ports.iter().map(|port| (port.name.as_str(), port.endpoint)).collect();
    assert_eq!(ports, [(a.host_interface.as_str(), None), (b.host_interface.as_str(), Some(0))]);
}

#[test]
fn routed_endpoints_share_a_network_and_go_direct_where_the_host_routes() {
    let host = Host::new();
    let a = host.routed_endpoint("a", &["10.1.0.5", "fd01::5"]);
    let b = host.routed_endpoint("b", &["10.1.0.6", "fd01::6"]);
    let discovery = found(&host, &[&a, &b]);
    assert_eq!(reasons(&discovery), [None, None]);
    for found in &discovery.workloads {
        assert!(found.workload.routed);
        assert_eq!((found.workload.network, found.workload.master), (ROUTED, IfIndex::NONE));
        assert_eq!(found.workload.segment, ROUTED.0);
    }
    assert_eq!(a.ping(b.ipv4()), support::Seen::Answered);
    assert_eq!(a.ping(b.ipv6()), support::Seen::Answered);
}

#[test]
fn routed_endpoint_takes_the_stack_where_the_host_does_not_route_to_it() {
    let host = Host::new();
    let a = host.routed_endpoint("a", &["10.1.0.5"]);
    let b = host.routed_endpoint("b", &["10.1.0.6"]);
    host.run("ip", &["route", "del", "10.1.0.6"]);
    let expected = [None, Some("the host routes 10.1.0.6 to nowhere, not to v-b")];
    assert_eq!(reasons(&found(&host, &[&a, &b])), expected);
    host.sysctl("net/ipv4/ip_forward", "0");
    let expected = Some("the host does not route: net.ipv4.conf.v-a.forwarding=0");
    assert_eq!(reasons(&found(&host, &[&a])), [expected]);
}

#[test]
fn rules_that_see_routed_packets_are_named() {
    let host = Host::new();
    let a = host.routed_endpoint("a", &["10.1.0.5"]);
    host.run("nft", &["add table inet t; add chain inet t in { type filter hook input priority 0; }"]);
    assert_eq!(reasons(&found(&host, &[&a])), [None], "input sees no forwarded packets");
    host.run("nft", &["add chain inet t on { type filter hook forward priority 0; }"]);
    assert_eq!(reasons(&found(&host, &[&a])), [Some("nftables chain inet/t/on sees routed packets")]);
}

#[test]
fn missing_namespace_and_leftover_file_are_pending() {
    let host = Host::new();
    let reason = pending(&host, document("a", "/run/netns/npt-nobody", None));
    assert_eq!(reason, "the network namespace /run/netns/npt-nobody does not exist");
    let file = host.documents("leftover", "");
    assert_eq!(pending(&host, document("a", &file, None)), format!("{file} is not a network namespace"));
}

#[test]
fn fifo_instead_of_a_namespace_holds_nobody_up() {
    let host = Host::new();
    let path = host.folder().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(pending(&host, document("a", path, None)).contains("is not a network namespace"));
}

#[test]
fn namespace_without_a_veth_is_pending() {
    let host = Host::new();
    let empty = Namespace::anonymous().unwrap();
    assert!(pending(&host, document("a", empty.path(), None)).ends_with("has no veth interface"));
    let (host, a, _b) = pair();
    let reason = pending(&host, document("a", a.netns(), Some("eth7")));
    assert!(reason.ends_with("has no interface eth7 (it has eth0 [veth])"), "{reason}");
}

#[test]
fn veth_that_ends_in_another_namespace_is_pending() {
    let (host, a, _b) = pair();
    let elsewhere = Host::new();
    // the same interface number exists here, too, and is a veth: only its other end is not ours
    elsewhere.bridge("br0", &[]);
    let other = elsewhere.endpoint("br0", "o", &[]);
    let reason = pending(&elsewhere, document("a", a.netns(), None));
    assert!(reason.contains("the other end of eth0") && reason.contains("run netpol where it is"), "{reason}");
    assert_eq!(found(&elsewhere, &[&other]).workloads.len(), 1);
    assert_eq!(found(&host, &[&a]).workloads.len(), 1);
}

#[test]
fn own_namespace_is_pending() {
    let (host, a, _b) = pair();
    // seen from inside the endpoint, its own namespace is the host
    let world = World { endpoints: vec![document("a", a.netns(), None)], ..World::default() };
    let discovery = a.enter(|| discover(&world, Known::default())).unwrap();
    let [pending] = &discovery.pending[..] else { panic!("{:?}", discovery.pending) };
    assert!(pending.reason.contains("is the network namespace that netpol runs in"), "{}", pending.reason);
    drop(host);
}

#[test]
fn two_veths_need_spec_interface() {
    let (host, a, _b) = pair();
    host.net(async |net| net.veth("v-a1", "eth1", &a.namespace).await);
    let Err(Error::Endpoints(errors)) = on(&host, &world(&[&a])) else { panic!("chose one") };
    let [error] = &errors[..] else { panic!("{errors:?}") };
    assert!(error.message.contains("has several interfaces: eth0, eth1"), "{}", error.message);
    assert!(error.help.as_ref().unwrap().contains("spec.interface"));
    assert_eq!(error.origin.line, 7);
    let both = ["eth0", "eth1"].map(|interface| document(interface, a.netns(), Some(interface)));
    let discovery = on(&host, &World { endpoints: both.to_vec(), ..World::default() }).unwrap();
    let interfaces: Vec<_> = discovery.workloads.iter().map(|found| found.interface.as_str()).collect();
    assert_eq!(interfaces, ["v-a", "v-a1"]);
}

#[test]
fn one_address_twice_on_a_bridge_is_nobodys() {
    let (host, a, b) = pair();
    let c = host.endpoint("br0", "c", &["10.0.0.10/16"]);
    let discovery = found(&host, &[&a, &b, &c]);
    let refused: Vec<_> = discovery.refused.iter().map(|r| (r.endpoint, r.address, r.reason)).collect();
    let address = Address::Ip(c.ipv4());
    assert_eq!(refused, [(0, address, Reason::Contested(2)), (2, address, Reason::Contested(0))]);
    assert!(discovery.workloads.iter().all(|found| !found.workload.addresses.contains(&c.ipv4())));
}

#[test]
fn one_address_on_two_bridges_is_fine() {
    let (host, a, _b) = pair();
    host.bridge("br1", &[]);
    let c = host.endpoint("br1", "c", &["10.0.0.10/16"]);
    let discovery = found(&host, &[&a, &c]);
    assert_ne!(discovery.workloads[0].workload.network, discovery.workloads[1].workload.network);
}

#[test]
fn two_endpoints_on_one_interface_are_an_error() {
    let (host, a, _b) = pair();
    let twice = vec![document("one", a.netns(), None), document("two", a.netns(), Some("eth0"))];
    let Err(Error::Endpoints(errors)) = on(&host, &World { endpoints: twice, ..World::default() }) else {
        panic!("accepted")
    };
    let messages: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(messages, ["endpoints default/one and default/two are both the interface behind v-a"]);
}

#[test]
fn isolated_ports_are_told() {
    let (host, a, b) = pair();
    host.run("bridge", &["link", "set", "dev", "v-a", "isolated", "on"]);
    let discovery = found(&host, &[&a, &b]);
    let isolated: Vec<_> = discovery.workloads.iter().map(|found| found.workload.port_isolated).collect();
    assert_eq!(isolated, [true, false]);
}

#[test]
fn bridge_that_would_not_forward_is_not_bypassed() {
    let (host, a, b) = pair();
    host.run("bridge", &["link", "set", "dev", "v-b", "state", "0"]);
    let expected = [None, Some("port v-b of bridge br0 is disabled, not forwarding")];
    assert_eq!(reasons(&found(&host, &[&a, &b])), expected);
    host.run("bridge", &["link", "set", "dev", "v-b", "state", "3"]);
    host.run("bridge", &["link", "set", "dev", "v-a", "learning", "off"]);
    assert_eq!(reasons(&found(&host, &[&a])), [Some("bridge br0 does not learn or flood at port v-a")]);
    host.net(async |net| net.down("br0").await);
    let discovery = found(&host, &[&a]);
    assert!(reasons(&discovery)[0].unwrap().contains("br0"), "{:?}", reasons(&discovery));
    assert_eq!(discovery.workloads[0].workload.segment, 0);
}

#[test]
fn bridge_chains_of_nftables_are_not_bypassed() {
    let (host, a, _b) = pair();
    host.run("nft", &["add table bridge t; add chain bridge t c { type filter hook forward priority 0; }"]);
    let expected = "bridge br0: nftables chain bridge/t/c sees bridged packets";
    assert_eq!(reasons(&found(&host, &[&a])), [Some(expected)]);
}

#[test]
fn forward_rules_count_for_bridges_with_bridge_nf_call_iptables_only() {
    for variant in ["iptables-nft", "iptables-legacy"] {
        let (host, a, _b) = pair();
        host.sysctl("net/bridge/bridge-nf-call-iptables", "1");
        assert_eq!(reasons(&found(&host, &[&a])), [None], "{variant}");
        host.run(variant, &["-A", "FORWARD", "-i", "br0", "-o", "br0", "-j", "DROP"]);
        let discovery = found(&host, &[&a]);
        let reason = reasons(&discovery)[0].unwrap_or_else(|| panic!("{variant}: direct"));
        assert!(reason.starts_with("bridge br0: "), "{reason}");
        assert!(reason.ends_with(" sees bridged packets (bridge-nf-call-iptables=1)"), "{reason}");
        host.sysctl("net/bridge/bridge-nf-call-iptables", "0");
        assert_eq!(reasons(&found(&host, &[&a])), [None], "{variant}");
        host.run("ip", &["link", "set", "br0", "type", "bridge", "nf_call_iptables", "1"]);
        assert!(reasons(&found(&host, &[&a]))[0].is_some(), "{variant}: the bridge's own setting");
    }
}

#[test]
fn chains_on_the_veth_itself_are_not_bypassed() {
    let (host, a, b) = pair();
    let chain = "{ type filter hook ingress device v-a priority 0; }";
    host.run("nft", &[&format!("add table netdev t; add chain netdev t c {chain}")]);
    let expected = [Some("nftables chain netdev/t/c is on v-a"), None];
    assert_eq!(reasons(&found(&host, &[&a, &b])), expected);
}

#[test]
fn endpoints_that_exist_on_paper_only_are_left_alone() {
    let host = Host::new();
    let paper = Document { attachment: None, ..document("a", "", None) };
    let discovery = on(&host, &World { endpoints: vec![paper], ..World::default() }).unwrap();
    assert_eq!((discovery.workloads, discovery.pending), (vec![], vec![]));
}

#[test]
fn missing_capability_is_named() {
    let (host, a, _b) = pair();
    let world = world(&[&a]);
    let error = host.namespace.enter(|| {
        // SAFETY: concerns only this thread, which ends right after.
        let dropped = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(dropped, 0);
        discover(&world, Known::default()).map(|_| ()).unwrap_err().to_string()
    });
    let both = "CAP_SYS_ADMIN (to enter network namespaces) and CAP_NET_ADMIN (to read netfilter rules)";
    assert_eq!(error.unwrap(), format!("needs {both}: run it as root"));
}

#[test]
fn many_endpoints_are_found_in_one_go() {
    let host = Host::new();
    host.bridge("br0", &["10.0.0.1/16"]);
    let endpoints: Vec<_> = (0..50)
        .map(|number: u8| host.endpoint("br0", &format!("e{number}"), &[&format!("10.0.1.{number}/16")]))
        .collect();
    let discovery = found(&host, &endpoints.iter().collect::<Vec<_>>());
    for (endpoint, found) in endpoints.iter().zip(&discovery.workloads) {
        assert_eq!(found.interface, endpoint.host_interface);
        assert!(found.workload.addresses.contains(&endpoint.ipv4()));
    }
    assert_eq!(discovery.bridges[0].ports.len(), 50);
}
