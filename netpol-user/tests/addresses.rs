//! An address that a container gives itself is a claim: whose it is already keeps it, and no claim holds up a load.

mod support;

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use support::{
    Attempt::Tcp,
    Endpoint, Family, Fate, Host, Scene,
    Seen::{Answered, Silent},
    Wire, check,
    packet::{frame, udp},
    policy::{anybody, documents, from, ingress},
    wire::dropped,
};

/// What `default/NAME` is believed.
fn believed(host: &Host, name: &str) -> Vec<String> {
    let listing = host.netpol(&["endpoints", "-o", "json"]).json();
    let row = listing.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    row["addresses"].as_array().unwrap().iter().map(|address| address.as_str().unwrap().to_owned()).collect()
}

fn has(host: &Host, name: &str, address: &str) -> bool {
    believed(host, name).iter().any(|believed| believed == address)
}

fn warnings(report: &Value) -> Vec<&str> {
    report["warnings"].as_array().unwrap().iter().map(|warning| warning["message"].as_str().unwrap()).collect()
}

fn give(endpoint: &Endpoint, address: &str) {
    // duplicate detection would find the neighbour out
    let flags = if address.contains(':') { &["nodad"][..] } else { &[] };
    endpoint.run("ip", &[&["address", "add", address, "dev", "eth0"][..], flags].concat());
}

fn from_address(scene: &Scene, source: &str) -> Vec<u8> {
    let source: IpAddr = source.parse().unwrap();
    let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
    udp(SocketAddr::new(source, 4000), scene.b.socket(family, 53), b"who am I?")
}

/// Only c may call b; [`Wire`] needs its sentinels, too.
fn only_c() -> Vec<String> {
    vec![ingress("b", &[from("c", &[]), anybody(&["9999/UDP"])])]
}

/// `a` has taken `claimed`: it is warned about, told by `status`, and of no use.
fn is_refused(scene: &Scene, report: &Value, claimed: &[(&str, &str)]) {
    let wire = Wire::of(scene);
    let status = scene.host.status();
    assert_eq!(status["enforced"], false);
    for (address, why) in claimed {
        let expected = format!("default/a has the address {address}, {why}");
        assert!(warnings(report).iter().any(|warning| warning.starts_with(&expected)), "{expected}: {report:#}");
        let problems = status["problems"].as_array().unwrap();
        assert!(problems.iter().any(|p| p.as_str().unwrap().starts_with(&expected)), "{expected}: {problems:#?}");
        assert!(!has(&scene.host, "a", address), "{address}");
        assert_eq!(wire.packet(&from_address(scene, address)), dropped("egress spoofed"), "{address}");
    }
    assert_eq!(warnings(report).len(), claimed.len(), "{report:#}");
}

#[test]
fn neighbours_address_stays_the_neighbours_and_the_load_succeeds() {
    let scene = &Scene::bridged();
    let Scene { host, a, b, c, .. } = scene;
    host.load(&scene.all(), &only_c());
    give(a, "10.0.0.30/16");
    give(a, "fd00::30/64");
    let report = host.load(&scene.all(), &[ingress("b", &[from("c", &["80/TCP"]), anybody(&["9999/UDP"])])]);
    assert_eq!(report["changed"], true, "the policy is a new one");
    assert!(has(host, "c", "10.0.0.30") && has(host, "c", "fd00::30"), "{:?}", believed(host, "c"));
    {
        let _server = b.serve_tcp(80);
        check(&[(c, Tcp(b.at(Family::V4, 80)), Answered)]);
    }
    let owner = "which is an address of default/c";
    is_refused(scene, &report, &[("10.0.0.30", owner), ("fd00::30", owner)]);
}

#[test]
fn neighbours_address_stays_the_neighbours_while_it_is_gone() {
    let Scene { host, a, b, c, outside } = Scene::bridged();
    let text = documents(&[&a, &b, &c], &only_c());
    let path = host.documents("load.yaml", &text);
    host.load_path(&[], &path);
    let path = host.documents("load.yaml", &text.replace(c.netns().to_str().unwrap(), "npt-gone"));
    drop(c);
    give(&a, "10.0.0.30/16");
    let scene = Scene { c: host.endpoint("br0", "d", &["10.0.0.40/16"]), host, a, b, outside };
    let report = scene.host.load_path(&[], &path);
    assert_eq!(report["pending"][0]["name"], "c");
    is_refused(&scene, &report, &[("10.0.0.30", "which is an address of default/c")]);
    // a newcomer finds it taken as well, also after another load
    give(&scene.c, "10.0.0.30/16");
    let with_d = text.replace(&c_netns(&text), "npt-gone") + "---\n" + &scene.c.document();
    let path = scene.host.documents("load.yaml", &with_d);
    for _ in 0..2 {
        scene.host.load_path(&[], &path);
        assert!(!has(&scene.host, "d", "10.0.0.30"));
        assert!(has(&scene.host, "d", "10.0.0.40"));
    }
    // somebody says that what is there now is right, and one of them has gone
    scene.a.run("ip", &["address", "del", "10.0.0.30/16", "dev", "eth0"]);
    let report = scene.host.load_path(&["--accept-addresses"], &path);
    assert_eq!(warnings(&report), [""; 0]);
    assert!(has(&scene.host, "d", "10.0.0.30"));
}

/// The `spec.netns` of c in a text of documents.
fn c_netns(text: &str) -> String {
    let of_c = text.split("---\n").find(|document| document.contains("name: c,")).unwrap();
    let start = of_c.find("netns: ").unwrap() + "netns: ".len();
    of_c[start..].split(',').next().unwrap().to_owned()
}

#[test]
fn addresses_of_the_host_and_its_bridge_are_nobodys_to_take() {
    let scene = &Scene::bridged();
    let Scene { host, a, .. } = scene;
    host.load(&scene.all(), &only_c());
    let claimed = ["10.0.0.1", "fd00::1", "192.0.2.1", "127.0.0.2"];
    host.run("ip", &["address", "add", "127.0.0.2/8", "dev", "lo"]);
    for address in claimed {
        give(a, &format!("{address}/{}", if address.contains(':') { 128 } else { 32 }));
    }
    let report = host.load(&scene.all(), &only_c());
    is_refused(scene, &report, &claimed.map(|address| (address, "which is an address of the host")));
    // nor at first sight, nor if somebody accepts what is there
    host.netpol(&["unload"]).ok();
    for flags in [&[][..], &["--accept-addresses"]] {
        let report = host.load_with(flags, &scene.all(), &only_c());
        assert_eq!(warnings(&report).len(), claimed.len(), "{report:#}");
        assert!(!claimed.iter().any(|address| has(host, "a", address)), "{:?}", believed(host, "a"));
    }
}

#[test]
fn address_that_an_ip_block_names_cannot_be_taken_between_two_loads() {
    let scene = &Scene::bridged();
    let Scene { host, a, b, .. } = scene;
    let block = "{from: [{ipBlock: {cidr: 10.0.7.0/24}}], ports: [{port: 80, protocol: TCP}]}".to_owned();
    let policies = [ingress("b", &[block, anybody(&["9999/UDP"])])];
    host.load(&scene.all(), &policies);
    give(a, "10.0.7.7/16");
    let report = host.load(&scene.all(), &policies);
    assert_eq!(report["changed"], false, "{report:#}");
    {
        let _server = b.serve_tcp(80);
        check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]);
    }
    is_refused(scene, &report, &[("10.0.7.7", "which it had not when it was first seen")]);
}

#[test]
fn neighbours_mac_address_leads_nobody_astray() {
    let scene = &Scene::bridged();
    let Scene { host, a, b, c, .. } = scene;
    host.load(&scene.all(), &[]);
    let own = a.mac();
    let _server = c.serve_tcp(80);
    let mac = c.mac().map(|byte| format!("{byte:02x}")).join(":");
    a.run("ip", &["link", "set", "eth0", "address", &mac]);
    let report = host.load(&scene.all(), &[]);
    let expected = format!("default/a has the MAC address {mac}, which it had not when it was first seen");
    assert!(warnings(&report).iter().any(|warning| warning.starts_with(&expected)), "{report:#}");
    assert_eq!(host.status()["enforced"], false);
    // what would teach the bridge where c is
    let frame = |mac| frame(b.mac(), mac, &from_address(scene, "10.0.0.10"));
    let listener = b.raw();
    let arrives = |mac| {
        let frame = frame(mac);
        a.raw().send(&frame);
        listener.receive(|seen| seen == frame).is_some()
    };
    assert!(!arrives(c.mac()));
    let entries = host.run("bridge", &["fdb", "show", "dev", "v-a"]);
    assert!(!entries.contains(&mac), "{entries}");
    check(&[(&host.itself(), Tcp(c.at(Family::V4, 80)), Answered)]);
    assert!(arrives(own), "its own goes on being its own");
    let report = host.load_with(&["--accept-addresses"], &scene.all(), &[]);
    assert_eq!(warnings(&report), [""; 0]);
}

#[test]
fn address_that_is_added_on_purpose_is_accepted_or_named() {
    let scene = &Scene::bridged();
    let Scene { host, a, b, c, .. } = scene;
    host.load(&scene.all(), &only_c());
    for address in ["10.0.0.77/16", "10.0.0.88/16"] {
        give(a, address);
    }
    let named = ", addresses: [10.0.0.10, 10.0.0.77]";
    let all = [a.document_with(named), b.document(), c.document()].join("---\n");
    let path = host.documents("load.yaml", &[all, only_c().join("---\n")].join("---\n"));
    let report = host.load_path(&[], &path);
    let left_out = "default/a has the address 10.0.0.88, which its document does not name";
    assert!(warnings(&report).iter().any(|warning| warning.starts_with(left_out)), "{report:#}");
    assert!(has(host, "a", "10.0.0.77") && !has(host, "a", "10.0.0.88"));
    assert!(host.enforced(), "what a document leaves out on purpose is no problem");
    let report = host.load_with(&["--accept-addresses"], &scene.all(), &only_c());
    assert_eq!(warnings(&report), [""; 0]);
    assert!(has(host, "a", "10.0.0.88"));
    // and stays accepted
    assert_eq!(warnings(&host.load(&scene.all(), &only_c())), [""; 0]);
    assert_eq!(Wire::of(scene).packet(&from_address(scene, "10.0.0.88")), dropped("egress policy-ingress"));
}

#[test]
fn address_that_was_there_at_first_comes_back_without_asking() {
    let scene = &Scene::bridged();
    let Scene { host, a, c, .. } = scene;
    give(a, "10.0.0.77/16");
    host.load(&scene.all(), &[]);
    a.run("ip", &["address", "del", "10.0.0.77/16", "dev", "eth0"]);
    give(c, "10.0.0.77/16");
    let report = host.load(&scene.all(), &[]);
    let expected = "default/c has the address 10.0.0.77, which is an address of default/a";
    assert!(warnings(&report)[0].starts_with(expected), "{report:#}");
    c.run("ip", &["address", "del", "10.0.0.77/16", "dev", "eth0"]);
    give(a, "10.0.0.77/16");
    assert_eq!(warnings(&host.load(&scene.all(), &[])), [""; 0]);
    assert_eq!(Wire::of(scene).packet(&from_address(scene, "10.0.0.77")), Fate::Arrived);
}

#[test]
fn two_that_come_with_one_address_are_both_without_it_unless_a_document_tells() {
    let scene = &Scene::bridged();
    let Scene { host, a, b, c, .. } = scene;
    give(a, "10.0.0.30/16");
    let report = host.load(&scene.all(), &only_c());
    assert!(!has(host, "a", "10.0.0.30") && !has(host, "c", "10.0.0.30"));
    assert_eq!(warnings(&report).len(), 2, "{report:#}");
    assert!(warnings(&report)[0].contains("10.0.0.30, and so has default/c: neither is believed"), "{report:#}");
    let named = c.document_with(", addresses: [10.0.0.30, \"fd00::30\"]");
    let all = [a.document(), b.document(), named, only_c().join("---\n")].join("---\n");
    let report = host.load_path(&[], &host.documents("load.yaml", &all));
    assert!(has(host, "c", "10.0.0.30"));
    is_refused(scene, &report, &[("10.0.0.30", "which is an address of default/c")]);
}

#[test]
fn newcomer_does_not_get_what_a_running_endpoint_has() {
    let Scene { host, a, b, c, outside } = Scene::bridged();
    host.load(&[&b, &c], &only_c());
    // a namespace that nobody holds goes some time later
    a.run("ip", &["link", "delete", "eth0"]);
    drop(a);
    let a = host.endpoint("br0", "a", &["10.0.0.10/16", "10.0.0.30/16"]);
    let scene = Scene { host, a, b, c, outside };
    let report = scene.host.load(&scene.all(), &only_c());
    is_refused(&scene, &report, &[("10.0.0.30", "which is an address of default/c")]);
    assert!(has(&scene.host, "c", "10.0.0.30"));
}

#[test]
fn two_documents_that_name_one_address_are_an_error_with_its_place() {
    let Scene { host, a, b, .. } = &Scene::bridged();
    host.load(&[a, b], &[]);
    let both = [a, b].map(|endpoint| endpoint.document_with(", addresses: [10.0.0.10]")).join("---\n");
    let path = host.documents("both.yaml", &both);
    let ran = host.netpol(&["load", &path]);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    let expected = "endpoints default/a and default/b both have the address 10.0.0.10";
    assert!(ran.stderr.contains(expected) && ran.stderr.contains("both.yaml:6"), "{}", ran.stderr);
    assert_eq!(host.generation(), 1);
}
