//! What a container's root can try against its own confinement.

mod support;

use std::net::Ipv6Addr;

use support::{
    Attempt::Tcp,
    Family, Scene,
    Seen::{Answered, Silent},
    Wire, check,
    policy::{egress, from, ingress, to},
    wire::{dropped, isolated},
};

#[test]
fn hiding_from_discovery_does_not_take_the_classifiers_off() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    let policies = isolated(&[egress("c", &[to("b", &["80/TCP"])]), ingress("b", &[from("c", &["80/TCP"])])]);
    let endpoints = [a.document(), b.document(), c.document()];
    let text = endpoints.into_iter().chain(policies).collect::<Vec<_>>().join("---\n");
    let path = host.documents("load.yaml", &text);
    host.load_path(&[], &path);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]);
    // renamed, it is not the interface that the document names
    a.run("ip", &["link", "set", "eth0", "down"]);
    a.run("ip", &["link", "set", "eth0", "name", "eth9"]);
    a.run("ip", &["link", "set", "eth9", "up"]);
    let report = host.load_path(&[], &path);
    assert_eq!((&report["endpoints"], &report["detached"]), (&2.into(), &0.into()), "{report:#}");
    assert_eq!(report["pending"][0]["held"]["interface"], "v-a", "{report:#}");
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent), (c, Tcp(b.at(Family::V4, 80)), Answered)]);
    assert_eq!(host.load_path(&[], &path)["changed"], false, "it stays so");
}

#[test]
fn another_interface_under_the_same_name_isolates_the_endpoint_and_fails_no_load() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    let policies = |port| [ingress("b", &[from("c", &[port])])];
    host.load(&[a, b, c], &policies("80/TCP"));
    a.run("ip", &["link", "set", "eth0", "down"]);
    a.run("ip", &["link", "set", "eth0", "name", "eth9"]);
    a.run("ip", &["link", "set", "eth9", "up"]);
    a.run("ip", &["link", "add", "eth0", "type", "bridge"]);
    let report = host.load(&[a, b, c], &policies("81/TCP"));
    assert_eq!(report["pending"][0]["held"]["interface"], "v-a", "{report:#}");
    assert!(report["pending"][0]["reason"].as_str().unwrap().contains("is of the kind bridge, not a veth"));
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent), (c, Tcp(b.at(Family::V4, 80)), Silent)]);
    // who has never been right is told, by the document's place
    host.netpol(&["unload"]).ok();
    let path = host.documents("load.yaml", &a.document());
    let ran = host.netpol(&["load", &path]);
    assert!(ran.code == 1 && ran.stderr.contains("load.yaml:1"), "{}", ran.stderr);
}

#[test]
fn veth_that_ends_inside_does_not_make_the_endpoint_ambiguous() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    let documents = [a, b, c].map(|endpoint| endpoint.document().replace(", interface: eth0", "")).join("---\n");
    let text = [documents, ingress("b", &[from("c", &[])])].join("---\n");
    a.run("ip", &["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"]);
    // and into a namespace of its own
    let nested = netpol_user::netns::Namespace::anonymous().unwrap();
    a.net(async |net| net.veth("veth2", "veth3", &nested).await);
    let report = host.load_path(&[], &host.documents("load.yaml", &text));
    assert_eq!(report["attached"].as_array().unwrap().len(), 3, "{report:#}");
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent), (c, Tcp(b.at(Family::V4, 80)), Answered)]);
}

#[test]
fn addresses_that_the_document_does_not_name_are_not_believed() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let named = format!(", addresses: [{}]", a.ip(Family::V4));
    let policies = isolated(&[]);
    let endpoints = [a.document_with(&named), b.document(), c.document()];
    let text = endpoints.into_iter().chain(policies).collect::<Vec<_>>().join("---\n");
    let path = host.documents("load.yaml", &text);
    a.run("ip", &["address", "add", "192.0.2.5/32", "dev", "eth0"]);
    host.load_path(&[], &path);
    let listing = host.netpol(&["endpoints", "-o", "json"]).json();
    let of_a = listing.as_array().unwrap().iter().find(|row| row["name"] == "a").unwrap();
    let addresses: Vec<_> = of_a["addresses"].as_array().unwrap().iter().filter_map(|a| a.as_str()).collect();
    assert!(addresses.contains(&a.ip(Family::V4).to_string().as_str()), "{addresses:?}");
    assert!(!addresses.contains(&"192.0.2.5"), "{addresses:?}");
}

#[test]
fn headers_behind_the_packets_own_end_are_not_read() {
    let scene = &Scene::bridged();
    let Scene { host, a, b, .. } = scene;
    host.load(
        &scene.all(),
        &isolated(&[egress("a", &[to("b", &["53/UDP"])]), ingress("b", &[from("a", &["53/UDP"])])]),
    );
    let (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) = (a.ip(Family::V6), b.ip(Family::V6)) else {
        panic!("two IPv6 addresses")
    };
    // RFC 8200 section 4.2: an option of 14 bytes that a receiver skips
    let options = |next: u8| [&[next, 1, 0x1e, 12][..], &[0; 12]].concat();
    let fragment = [&[60, 0, 0, 1, 0, 0, 0, 7][..], &options(60)].concat();
    let trailer = [&options(17)[..], &[0x13, 0x88, 0, 53, 0, 8, 0, 0]].concat();
    let packet = |length: usize| -> Vec<u8> {
        let head = [&[0x60, 0, 0, 0][..], &(length as u16).to_be_bytes(), &[44, 64]].concat();
        [&head[..], &Ipv6Addr::octets(&from), &to.octets(), &fragment, &trailer].concat()
    };
    let wire = Wire::of(scene);
    assert_eq!(wire.packet(&packet(fragment.len())), dropped("egress malformed"), "the ports lie behind the end");
}
