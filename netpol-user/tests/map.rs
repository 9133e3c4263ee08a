//! `netpol map`: the shop with real traffic, in files and over HTTP.

mod support;

use std::{
    io::{Read as _, Write as _},
    time::Duration,
};

use serde_json::Value;
use support::{
    Attempt::Tcp,
    Family, Scene,
    Seen::{Answered, Silent},
    Served, Shop, check,
    policy::{from, ingress},
    shop::{ALLOWED, DENIED},
};

#[track_caller]
fn edge<'a>(graph: &'a Value, from: &str, to: &str, verdict: &str) -> &'a Value {
    let mut edges = graph["edges"].as_array().unwrap().iter();
    let found = edges.find(|edge| edge["from"] == from && edge["to"] == to && edge["verdict"] == verdict);
    found.unwrap_or_else(|| panic!("no {verdict} {from} > {to} in {graph:#}"))
}

#[test]
fn files_show_who_talks_and_who_is_denied_by_which_rule() {
    let shop = Shop::open();
    let graph = shop.graph();
    assert_eq!((&graph["enforced"], &graph["generation"]), (&true.into(), &1.into()));
    for (from, to, port) in ALLOWED {
        let edge = edge(&graph, &format!("shop/{from}"), &format!("shop/{to}"), "allowed");
        assert_eq!(edge["ports"][0]["port"], port);
        assert_eq!(edge["ports"][0]["rules"].as_array().unwrap().len(), 2, "{edge:#}");
        assert!(edge["packets_per_second"].as_f64() > Some(0.0), "{edge:#}");
    }
    for (from, to, _) in DENIED {
        let edge = edge(&graph, &format!("shop/{from}"), &format!("shop/{to}"), "denied");
        let port = &edge["ports"][0];
        assert_eq!(port["drop_reason"], "policy-egress");
        let rule = &port["rules"][0];
        assert_eq!((&rule["direction"], &rule["namespace"]), (&"egress".into(), &"shop".into()));
        assert!(rule["source"].as_str().unwrap().contains("example.yaml:"), "{rule}");
    }
    let outside = edge(&graph, "outside", "shop/api-gateway", "denied");
    assert_eq!(outside["addresses"], serde_json::json!(["192.0.2.9"]));
    edge(&graph, "outside", "shop/nginx-lb", "allowed");
    let print = |format: &str| shop.example.host.netpol(&["map", "-o", format]).ok();
    let svg = print("svg");
    assert!(svg.contains("✕ denied") && svg.contains("by shop/default-deny egress (example.yaml:"), "{svg}");
    assert!(print("dot").contains("\"shop/order-service\" -> \"shop/product-service\" [label=\"✕ denied"));
    assert!(print("mermaid").contains("-.-x|\"✕ denied"));
}

/// What passes and audited policies would stop is neither: it has an edge of its own.
#[test]
fn what_audited_policies_would_drop_is_an_edge_of_its_own() {
    let Scene { host, .. } = &Scene::audited();
    let graph = host.netpol(&["map", "-o", "json"]).json();
    edge(&graph, "default/a", "default/b", "allowed");
    let port = &edge(&graph, "default/c", "default/b", "would-drop")["ports"][0];
    assert_eq!((&port["port"], &port["drop_reason"]), (&80.into(), &"policy-ingress".into()));
    assert_eq!(port["rules"][0]["direction"], "ingress", "{port:#}");
    let print = |format: &str| host.netpol(&["map", "-o", format]).ok();
    let svg = print("svg");
    assert!(svg.contains("? would drop") && svg.contains("class=\"edge would-drop\""), "{svg}");
    assert!(print("dot").contains("\"default/c\" -> \"default/b\" [label=\"? would drop"));
    assert!(print("mermaid").contains("-.->|\"? would drop"));
}

#[test]
fn only_this_machine_is_served_unless_told_otherwise() {
    let host = support::Host::new();
    for (command, address) in [("map", "127.0.0.1:8088"), ("metrics", "127.0.0.1:9464")] {
        let help = host.netpol(&[command, "--help"]).ok();
        assert!(help.contains(&format!("[default: {address}]")), "{help}");
    }
}

#[test]
fn what_cannot_be_meant_is_wrong_usage() {
    let host = support::Host::new();
    for arguments in
        [&["map", "-o", "xml"][..], &["map", "-o", "svg", "--listen", "127.0.0.1:0"], &["metrics", "--listen", "here"]]
    {
        assert_eq!(host.netpol(arguments).code, 2, "{arguments:?}");
    }
    let nothing = host.netpol(&["map", "-o", "json"]);
    assert_eq!((nothing.code, &nothing.json()["enforced"]), (0, &false.into()));
}

#[test]
fn a_denied_edge_has_the_numbers_and_the_rule_of_its_flow() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    host.load(&[a, b, c], &[ingress("b", &[from("a", &["80/TCP"])])]);
    check(&[(c, Tcp(b.at(Family::V4, 80)), Silent)]);
    let graph = host.netpol(&["map", "-o", "json"]).json();
    let denied = edge(&graph, "default/c", "default/b", "denied");
    let flows = host.flows();
    let flow = flows.iter().find(|flow| flow["verdict"] == "denied").unwrap();
    assert!(denied["packets"].as_u64() <= flow["packets"].as_u64() && denied["packets"].as_u64() > Some(0));
    assert_eq!(denied["ports"][0]["rules"][0]["text"], flow["explanation"]);
}

/// The data of the next event of a stream.
fn next_event(stream: &mut impl std::io::Read, pending: &mut String) -> Value {
    let mut buffer = [0; 65_536];
    loop {
        if let Some(at) = pending.find("data: ")
            && let Some(end) = pending[at..].find("\n\n")
        {
            // chunks of HTTP end lines of their own in between
            let data: String = pending[at + 6..at + end].to_owned();
            pending.drain(..at + end + 2);
            return serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error} in {data}"));
        }
        let length = stream.read(&mut buffer).expect("an event in time");
        assert!(length > 0, "the stream ended: {pending}");
        pending.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
}

fn served(host: &support::Host) -> Served {
    host.serve(&["map", "--listen", "127.0.0.1:0"])
}

#[test]
fn page_graph_and_events_are_served_to_this_machine_alone() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    host.load(&[a, b, c], &[ingress("b", &[from("a", &["80/TCP"])])]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V4, 80)), Silent)]);
    let served = served(host);
    let page = served.get("/", "localhost");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self'"), "{policy}");
    assert!(!policy.contains("unsafe"));
    assert_eq!(
        (page.header("x-content-type-options"), page.header("cache-control")),
        (Some("nosniff"), Some("no-store"))
    );
    assert_eq!(page.header("access-control-allow-origin"), None);
    for asset in ["main.js", "dom.js", "picture.js", "table.js", "details.js", "page.css", "picture.css"] {
        assert_eq!(served.get(&format!("/assets/{asset}"), "127.0.0.1").status, 200, "{asset}");
    }
    assert_eq!(served.get("/assets/..%2f..%2fCargo.toml", "127.0.0.1").status, 404);
    let graph: Value = serde_json::from_str(&served.get("/api/graph", "[::1]").body).unwrap();
    edge(&graph, "default/c", "default/b", "denied");
    assert!(served.get("/map.svg", "localhost").body.contains("✕ denied"));
    for path in ["/", "/api/graph", "/events", "/map.svg"] {
        assert_eq!(served.get(path, "rebound.example:80").status, 403, "{path}");
        assert_eq!(served.request("POST", path, "localhost").status, 405, "{path}");
    }

    let mut stream = served.ask("GET", "/events", &[("Host", "localhost")]);
    let mut pending = String::new();
    let first = next_event(&mut stream, &mut pending);
    edge(&first["graph"], "default/a", "default/b", "allowed");
    let curves = first["picture"]["edges"].as_array().unwrap();
    assert!(curves.iter().any(|curve| curve["verdict"] == "denied" && curve["label"]["lines"][1].is_string()));
    let closed = first["picture"]["boxes"].as_array().unwrap().len();
    assert_eq!(closed, 1);
    // rates need a second look
    let second = next_event(&mut stream, &mut pending);
    assert!(edge(&second["graph"], "default/a", "default/b", "allowed")["packets_per_second"].is_f64());
    let mut shut = served.ask("GET", "/events?shut=default", &[("Host", "localhost")]);
    let shut = next_event(&mut shut, &mut String::new());
    // the host may be there, too: it speaks to multicast groups
    let drawn = |id: &str| shut["picture"]["nodes"].as_array().unwrap().iter().any(|node| node["id"] == id);
    assert!(drawn("default/") && !drawn("default/a"), "{shut:#}");
}

#[test]
fn viewers_are_bounded_and_give_their_place_back() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    host.load(&[a, b, c], &[ingress("b", &[])]);
    let served = served(host);
    let watch = || {
        let mut stream = served.ask("GET", "/events", &[("Host", "localhost")]);
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        (String::from_utf8_lossy(&head).into_owned(), stream)
    };
    let viewers: Vec<_> = (0..16).map(|_| watch()).collect();
    assert!(viewers.iter().all(|(head, _)| head == "HTTP/1.1 200"));
    assert_eq!(watch().0, "HTTP/1.1 503");
    // the page itself and the graph are for everybody
    assert_eq!(served.get("/api/graph", "localhost").status, 200);
    drop(viewers);
    let back = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        watch().0 == "HTTP/1.1 200"
    });
    assert!(back, "no place is free again");
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    let Scene { host, .. } = &Scene::bridged();
    let served = served(host);
    let mut silent = served.connect();
    silent.write_all(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
    let mut answer = Vec::new();
    // within the stream's own time limit
    silent.read_to_end(&mut answer).unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
}
