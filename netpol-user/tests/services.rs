//! Services and pools, from documents to the tables that the classifiers read.

mod support;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use netpol_common::{
    kernel::Settings,
    service::{ServiceValue, Uplink},
    tables::IfIndex,
    wire::{Addr4, Addr6, MacWords, PortBe, Protocol},
};
use netpol_user::{
    datapath::{Datapath, Pins, Published},
    model::World,
    source::{self, Known, discover},
};
use serde_json::{Value, json};
use support::{
    Attempt, Endpoint, Host, Scene, Seen, check, exchange,
    policy::{documents, from, ingress},
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A Service with this spec in flow style.
fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn pool(name: &str, spec: &str) -> String {
    format!("apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

#[track_caller]
fn published(host: &Host) -> Published {
    datapath(host).published().unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn settings(host: &Host) -> Settings {
    datapath(host).live().unwrap_or_else(|error| panic!("{error}")).settings
}

#[track_caller]
fn datapath(host: &Host) -> Datapath {
    Datapath::open(&Pins::at(host.bpffs())).unwrap_or_else(|error| panic!("{error}"))
}

/// Addresses and ports of the backends in a service's Maglev table, each once.
fn answers(published: &Published, value: &ServiceValue, four: bool) -> Vec<(IpAddr, u16)> {
    let backends = if four { &published.backends4 } else { &published.backends6 };
    let slots = &published.maglev[value.first as usize..(value.first + value.size) as usize];
    let mut answers: Vec<_> = slots.iter().map(|&index| backends[index as usize]).collect();
    answers.sort_unstable();
    answers.dedup();
    answers
}

/// Where a service is published, with the value there.
#[track_caller]
fn at(published: &Published, text: &str, port: u16) -> ServiceValue {
    let address = address(text);
    let is_it = |row: &&(IpAddr, u16, Protocol, ServiceValue)| (row.0, row.1) == (address, port);
    let found = published.services.iter().find(is_it);
    found.unwrap_or_else(|| panic!("nothing at {text} port {port}: {published:?}")).3
}

/// The host's own way out is where the machine outside is.
fn default_routes(scene: &Scene) {
    scene.host.itself().net(async |net| {
        for (everywhere, gateway) in [("0.0.0.0/0", "192.0.2.9"), ("::/0", "2001:db8::9")] {
            net.route(everywhere.parse().expect("a network"), "v-outside", Some(address(gateway))).await;
        }
    });
}

#[test]
fn published_tables_say_what_the_documents_say() {
    let scene = Scene::bridged();
    default_routes(&scene);
    let Scene { host, a, b, .. } = &scene;
    let web = service(
        "web",
        "{type: NodePort, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd96::10\"], selector: {app: b}, \
         sessionAffinity: ClientIP, ports: [{name: http, port: 80, targetPort: web, nodePort: 8080}]}",
    );
    let away = service("away", "{clusterIP: 10.96.0.11, ports: [{port: 53, protocol: UDP}]}");
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {name: away-1, labels: {kubernetes.io/service-name: away}}\naddressType: IPv4\n\
                 endpoints: [{addresses: [192.0.2.77]}, {addresses: [192.0.2.78], conditions: {ready: false}}]\n\
                 ports: [{port: 5353, protocol: UDP}]\n"
        .to_owned();
    let nat = pool("inner", "{cidr: 10.0.0.0/16, natOutgoing: true}");
    let other = pool("other", "{cidr: \"fd99::/64\", disabled: true}");
    let b_document = b.document_with(", ports: [{name: web, port: 8081}]");
    let documents = [a.document(), b_document, web, away, slice, nat, other].join("---\n");
    host.load_path(&[], &host.documents("load.yaml", &documents));

    let tables = published(host);
    let cluster = at(&tables, "10.96.0.10", 80);
    assert_eq!((cluster.affinity, cluster.service, cluster.size), (10_800, 1, 1));
    assert_eq!(answers(&tables, &cluster, true), [(address("10.0.0.20"), 8081)]);
    assert_eq!(answers(&tables, &at(&tables, "fd96::10", 80), false), [(address("fd00::20"), 8081)]);
    for place in ["127.0.0.1", "10.0.0.1", "192.0.2.1"] {
        assert_eq!(at(&tables, place, 8080), cluster, "{place}");
    }
    assert_eq!(at(&tables, "::1", 8080), at(&tables, "2001:db8::1", 8080));
    let away = at(&tables, "10.96.0.11", 53);
    assert_eq!((away.affinity, away.service), (0, 2));
    assert_eq!(answers(&tables, &away, true), [(address("192.0.2.77"), 5353)]);
    assert_eq!(tables.members.len(), tables.services.len(), "each place here has one backend");
    let outside = |port: u16| !settings(host).has(Settings::nobody_outside(PortBe::from_host(port)));
    assert_eq!([5353, 8081].map(outside), [true, false], "only one of them is somebody outside");
    let pools: Vec<_> = tables.pools.iter().map(ToString::to_string).collect();
    assert_eq!(pools, ["10.0.0.0/16", "fd99::/64"]);
    let (index, mac) = host.net(async |net| (net.index("v-outside").await, net.mac("v-outside").await));
    let uplink = Uplink {
        address4: Addr4::from("192.0.2.1".parse::<std::net::Ipv4Addr>().unwrap()),
        address6: Addr6::from("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap()),
        mac: MacWords::new(mac),
        reserved: 0,
        mtu: 1500,
    };
    assert_eq!(tables.uplinks, [(IfIndex(index), uplink)]);

    host.load(&[a, b], &[]);
    assert_eq!(
        published(host),
        Published {
            maglev: vec![0],
            backends4: vec![(address("0.0.0.0"), 0)],
            backends6: vec![(address("::"), 0)],
            uplinks: tables.uplinks,
            ..Published::default()
        }
    );
    host.netpol(&["unload"]).ok();
    assert!(!host.bpffs().exists(), "nothing stays pinned");
}

#[test]
fn services_are_listed_with_their_backends_and_what_state_they_are_in() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    let web = service("web", "{clusterIP: 10.96.0.10, selector: {tier: web}, ports: [{port: 80, targetPort: 8080}]}");
    let tier = |document: String| document.replace("labels: {", "labels: {tier: web, ");
    let gone = "apiVersion: netpol.dev/v1\nkind: Endpoint\n\
                metadata: {name: gone, labels: {tier: web}, annotations: {netpol.dev/weight: \"5\"}}\n\
                spec: {netns: npt-not-there}\n"
        .to_owned();
    let documents = [tier(a.document()), tier(b.document()), gone, web].join("---\n");
    host.load_path(&[], &host.documents("load.yaml", &documents));
    let table = host.netpol(&["services"]).ok();
    let row = table.lines().nth(1).unwrap_or_else(|| panic!("{table}"));
    let cells: Vec<_> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(
        cells,
        [
            "default/web",
            "80/tcp",
            "10.96.0.10:80",
            "default/a:8080,default/b:8080,default/gone:8080*5 (pending)",
            "-",
            "0",
            "0",
            "-"
        ]
    );
    let json = host.netpol(&["services", "-o", "json"]).json();
    assert_eq!(json[0]["addresses"], json!([{"address": "10.96.0.10", "port": 80}]));
    assert_eq!(
        json[0]["backends"][4],
        json!({
            "endpoint": "default/gone", "address": null, "port": 8080, "weight": 5, "state": "pending",
            "connections": {"open": 0, "unanswered": 0, "closing": 0}, "refused": 0, "seen": null
        })
    );
    assert_eq!(json[0]["backends"][0]["state"], "running");
}

#[test]
fn a_change_of_backends_alone_is_a_new_generation() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    let to = |app: &str| {
        service("web", &format!("{{clusterIP: 10.96.0.10, selector: {{app: {app}}}, ports: [{{port: 80}}]}}"))
    };
    let first = host.load(&[a, b], &[to("a")])["generation"].clone();
    assert_eq!(host.load(&[a, b], &[to("a")])["changed"], false);
    let second = host.load(&[a, b], &[to("b")]);
    assert_eq!((&second["changed"], second["generation"].as_u64()), (&true.into(), first.as_u64().map(|n| n + 1)));
    let tables = published(host);
    assert_eq!(answers(&tables, &at(&tables, "10.96.0.10", 80), true), [(b.ipv4(), 80)]);
}

#[test]
fn ten_thousand_services_are_published() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let one = |n: u32| {
        let [_, _, x, y] = n.to_be_bytes();
        let spec =
            format!("{{clusterIP: 10.96.{x}.{y}, selector: {{app: a}}, ports: [{{port: 80, targetPort: {}}}]}}", n + 1);
        service(&format!("s{n}"), &spec)
    };
    let services: Vec<_> = (0..10_000).map(one).collect();
    let report = host.load(&[a, b, c], &services);
    let tables = published(host);
    assert_eq!((tables.services.len(), tables.members.len()), (10_000, 10_000), "{report}");
    assert_eq!(answers(&tables, &at(&tables, "10.96.39.15", 80), true), [(a.ipv4(), 10_000)]);
}

/// What discovery says of a host with one endpoint on a bridge.
fn uplinks(host: &Host, endpoints: &[&Endpoint], named: &[&str]) -> Result<Vec<source::Uplink>, String> {
    let text = endpoints.iter().map(|endpoint| endpoint.document()).collect::<Vec<_>>().join("---\n");
    let source = netpol_user::format::Source { name: "t".to_owned(), text: text.into_bytes() };
    let world: World = netpol_user::format::parse(vec![source]).expect("valid documents").world;
    let named: Vec<_> = named.iter().map(|&name| name.to_owned()).collect();
    let found = || {
        let found = discover(&world, Known::default()).map_err(|error| error.to_string())?;
        source::uplinks(&found, &named).map_err(|error| error.to_string())
    };
    host.namespace.enter(found).expect("entering a network namespace needs root")
}

#[test]
fn uplinks_have_a_default_route_or_are_named_and_lead_to_no_endpoint() {
    let scene = Scene::bridged();
    let Scene { host, a, .. } = &scene;
    let names = |named: &[&str]| {
        uplinks(host, &[a], named).map(|all| all.into_iter().map(|uplink| uplink.name).collect::<Vec<_>>())
    };
    assert_eq!(names(&[]), Ok(vec![]));
    assert_eq!(names(&["v-outside"]), Ok(vec!["v-outside".to_owned()]));
    assert_eq!(
        names(&["eth7"]),
        Err("--uplink eth7: there is no interface of this name; `ip link` shows them".to_owned())
    );
    for inner in ["br0", "v-a"] {
        let expected = format!("--uplink {inner}: endpoints are behind it; name the interface that leads outside");
        assert_eq!(names(&[inner]), Err(expected));
    }
    default_routes(&scene);
    host.run("ip", &["route", "add", "default", "via", "10.0.0.10", "metric", "7"]);
    assert_eq!(names(&[]), Ok(vec!["v-outside".to_owned()]), "not the bridge");
}

#[test]
fn load_takes_the_uplinks_that_it_is_told_and_says_so_where_a_pool_has_none() {
    let scene = Scene::bridged();
    let Scene { host, a, .. } = &scene;
    let documents = [a.document(), pool("p", "{cidr: 10.0.0.0/16, natOutgoing: true}")].join("---\n");
    let path = host.documents("load.yaml", &documents);
    let told = host.netpol(&["load", &path]).ok();
    assert!(told.contains("no uplink: nothing is masqueraded; name one by --uplink"), "{told}");
    let wrong = host.netpol(&["load", &path, "--uplink", "eth7"]);
    assert_eq!((wrong.code, wrong.stdout.as_str()), (1, ""));
    assert!(wrong.stderr.contains("--uplink eth7: there is no interface of this name"), "{}", wrong.stderr);
    assert_eq!(published(host).uplinks, [], "what was enforced still is");
    let report = host.load_path(&["--uplink", "v-outside"], &path);
    assert_eq!((&report["changed"], &report["uplinks"]), (&true.into(), &json!(["v-outside"])));
    let index = host.net(async |net| net.index("v-outside").await);
    assert_eq!(published(host).uplinks[0].0, IfIndex(index));
}

#[test]
fn an_uplinks_address_is_the_routes_or_the_first_that_is_good_everywhere() {
    let scene = Scene::bridged();
    let Scene { host, a, .. } = &scene;
    let addresses = || {
        let all = uplinks(host, &[a], &["v-outside"]).unwrap();
        (all[0].address4.unwrap().to_string(), all[0].address6.unwrap().to_string())
    };
    let expected = |four: &str, six: &str| (four.to_owned(), six.to_owned());
    host.run("ip", &["address", "add", "192.0.2.50/24", "dev", "v-outside"]);
    assert_eq!(addresses(), expected("192.0.2.1", "2001:db8::1"));
    host.run("ip", &["route", "add", "default", "via", "192.0.2.9", "src", "192.0.2.50"]);
    host.run("ip", &["-6", "route", "add", "default", "via", "2001:db8::9", "metric", "9"]);
    assert_eq!(addresses(), expected("192.0.2.50", "2001:db8::1"));
    host.run("ip", &["address", "del", "2001:db8::1/64", "dev", "v-outside"]);
    assert_eq!(uplinks(host, &[a], &["v-outside"]).unwrap()[0].address6, None, "a link-local one is none");
}

/// A service at 10.96.0.10: port 80 goes to 8080 of `app`, by TCP and UDP.
fn both(app: &str) -> String {
    service(
        "web",
        &format!(
            "{{clusterIP: 10.96.0.10, selector: {{app: {app}}}, ports: [{{name: t, port: 80, targetPort: 8080}}, \
             {{name: u, port: 80, targetPort: 8080, protocol: UDP}}]}}"
        ),
    )
}

/// The port of that service with this name, as `netpol services` tells it.
fn port(host: &Host, name: &str) -> Value {
    let all = host.netpol(&["services", "-o", "json"]).json();
    let rows = all.as_array().expect("rows");
    rows.iter().find(|row| row["port_name"] == name).unwrap_or_else(|| panic!("{name} in {all:#}")).clone()
}

/// Ethernet, IPv4, UDP, four bytes.
const DATAGRAM: u64 = 14 + 20 + 8 + 4;

#[test]
fn services_tell_their_connections_packets_and_what_backends_answer() {
    for way in [&[][..], &["--forwarding", "stack"]] {
        let scene = Scene::bridged();
        let Scene { host, a, b, c, outside, .. } = &scene;
        let path = host.documents("load.yaml", &documents(&scene.all(), &[both("b"), ingress("c", &[])]));
        host.netpol(&[&["load", "--uplink", "v-outside"], way, &[&path]].concat()).ok();
        let to = "10.96.0.10:80".to_owned();
        // nobody is there yet
        check(&[(a, Attempt::Tcp(to.clone()), Seen::Refused)]);
        let row = port(host, "t");
        let backend = &row["backends"][0];
        assert_eq!(backend["connections"], json!({"open": 0, "unanswered": 0, "closing": 1}), "{way:?} {row:#}");
        assert_eq!((&backend["refused"], &backend["seen"]), (&1.into(), &"refusing".into()), "{way:?} {row:#}");
        assert!(host.netpol(&["services"]).ok().contains("default/b:8080 (refusing: 1 refused)"));

        let server = (b.serve_tcp(8080), b.serve_udp(8080));
        let mut open: Vec<_> = [a, c, outside].map(|client| client.connect(&to)).into();
        open.iter_mut().for_each(|stream| assert_eq!(exchange(stream), Seen::Answered));
        let row = port(host, "t");
        let backend = &row["backends"][0];
        assert_eq!(row["connections"], json!({"open": 3, "unanswered": 0, "closing": 1}), "{way:?} {row:#}");
        assert_eq!((&backend["connections"], &backend["seen"]), (&row["connections"], &"answering".into()));

        let socket = a.enter(|| std::net::UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        socket.connect(&to).expect("a connection");
        for _ in 0..7 {
            socket.send(b"ping").expect("a datagram");
            assert_eq!(socket.recv(&mut [0; 16]).expect("an answer"), 4);
        }
        drop(server);
        let row = port(host, "u");
        let numbers = ["packets", "reply_packets", "bytes", "reply_bytes"].map(|field| row[field].as_u64().unwrap());
        assert_eq!(numbers, [7, 7, 7 * DATAGRAM, 7 * DATAGRAM], "{way:?} {row:#}");
        assert_eq!(row["connections"], json!({"open": 1, "unanswered": 0, "closing": 0}), "{way:?} {row:#}");
        // the server closed
        let begin = Instant::now();
        while port(host, "t")["connections"]["closing"] != 4 {
            assert!(begin.elapsed() < Duration::from_secs(20), "{:#}", port(host, "t"));
        }

        // other documents, other numbers of services: connections of before are still this one's
        let more = service("another", "{clusterIP: 10.96.0.9, selector: {app: a}, ports: [{port: 81}]}");
        let path = host.documents("load.yaml", &documents(&scene.all(), &[more, both("c"), ingress("c", &[])]));
        host.netpol(&[&["load", "--uplink", "v-outside"], way, &[&path]].concat()).ok();
        let row = port(host, "u");
        assert_eq!((&row["former_backends"], &row["packets"]), (&1.into(), &7.into()), "{way:?} {row:#}");

        // denied: nothing is translated, and it is told
        check(&[(a, Attempt::Udp(to), Seen::Silent)]);
        assert_eq!(port(host, "u")["denied_packets"], 1);
    }
}

#[test]
fn a_backend_that_nobody_hears_of_is_silent() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    // its own kernel drops what it gets
    let path = host.documents("load.yaml", &documents(&scene.all(), &[both("b"), ingress("b", &[from("a", &[])])]));
    host.netpol(&["load", "--uplink", "v-outside", &path]).ok();
    b.run("nft", &["add table inet t; add chain inet t c { type filter hook input priority 0; policy drop; }"]);
    check(&[(a, Attempt::Tcp("10.96.0.10:80".to_owned()), Seen::Silent)]);
    let row = port(host, "t");
    assert_eq!(row["connections"], json!({"open": 0, "unanswered": 1, "closing": 0}), "{row:#}");
    assert_eq!(row["backends"][0]["seen"], "silent");
    assert!(host.netpol(&["services"]).ok().contains("default/b:8080 (silent: 1 unanswered)"));
}
