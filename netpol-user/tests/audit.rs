//! Audited policies are judged and not enforced, and every command that shows a policy says so.

mod support;

use std::{
    fs,
    net::UdpSocket,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{
    Attempt::{Tcp, Udp},
    Endpoint, FAMILIES, Family, Folder, Host, LAYOUTS, Scene,
    Seen::{Answered, Silent},
    check, exchange,
    policy::{calico, documents, egress, from, ingress},
};

const SHOP: &str = r#"
apiVersion: netpol.dev/v1
kind: Endpoint
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {addresses: [10.0.0.10], ports: [{name: http, port: 80}]}
---
apiVersion: netpol.dev/v1
kind: Endpoint
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {addresses: [10.0.0.60], ports: [{port: 5432}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop, annotations: {netpol.dev/audit: "true"}}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: nobody}}}]
    ports: [{port: 5432}]
---
apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata: {name: web, namespace: shop}
spec: {selector: app == 'web', types: [Ingress], ingress: [{action: Deny, protocol: TCP, destination: {ports: [80]}}]}
"#;

#[test]
fn trace_tells_what_an_audited_policy_would_do() {
    let folder = Folder::with(&[("shop.yaml", SHOP)]);
    let trace = |to: &str, port: &str, more: &[&str]| {
        let (from, to) = if to == "db" { ("web", "db") } else { ("db", "web") };
        folder.netpol(&[&["trace", "--from", from, "--to", to, "--port", port, "shop.yaml"], more].concat())
    };
    let told = trace("db", "5432/tcp", &[]).ok();
    for line in [
        "NetworkPolicy shop/db (shop.yaml:12) selects it, but is audited, not enforced",
        "verdict: allowed\n  would be denied by the audited policies, if they were enforced: isolated by NetworkPolicy shop/db \
         ingress at shop.yaml:12, and no rule allows tcp/5432 from shop/web\n",
    ] {
        assert!(told.contains(line), "{line:?} is not in:\n{told}");
    }
    let isolated = trace("db", "5432/tcp", &["-o", "json"]).json();
    assert_eq!((&isolated["allowed"], &isolated["audit"]["allowed"]), (&json!(true), &json!(false)));
    assert_eq!((&isolated["audit"]["rule"], &isolated["audit"]["isolated_by"]["name"]), (&Value::Null, &json!("db")));
    let ruled = trace("web", "80/tcp", &["-o", "json"]).json();
    let rule = json!({"kind": "StagedNetworkPolicy", "namespace": "shop", "name": "web", "index": 0, "source": "shop.yaml:24"});
    assert_eq!((&ruled["allowed"], &ruled["audit"]["allowed"]), (&json!(true), &json!(false)));
    assert_eq!(ruled["audit"]["rule"], rule);
    let outside = ["trace", "--from", "web", "--to", "192.0.2.1", "--port", "80", "shop.yaml", "-o", "json"];
    assert_eq!(folder.netpol(&outside).json()["audit"], Value::Null, "no audited policy is about it");
}

#[test]
fn matrix_and_check_say_audited_not_enforced() {
    let folder = Folder::with(&[("shop.yaml", SHOP)]);
    let matrix = folder.netpol(&["matrix", "shop.yaml", "--port", "5432/tcp"]).ok();
    let expected = "5432/tcp  web  db\nweb            !\ndb         !\n\n\
         ✓ allowed   · denied   ! allowed, audited policies would deny it   (a row speaks, a column is spoken to)\n\n\
         audited, not enforced:\n  NetworkPolicy shop/db (shop.yaml:12)\n  StagedNetworkPolicy shop/web (shop.yaml:21)\n";
    assert_eq!(matrix, expected);
    let rows = folder.netpol(&["matrix", "shop.yaml", "--port", "5432/tcp", "-o", "json"]).json();
    assert!(
        rows["rows"].as_array().unwrap().iter().all(|row| row["allowed"] == true && row["audit"]["allowed"] == false)
    );
    let check = folder.netpol(&["check", "shop.yaml"]).ok();
    assert!(check.ends_with("2 policies (2 audited, not enforced): valid\n"), "{check}");
    let check = folder.netpol(&["check", "shop.yaml", "-o", "json"]).json();
    assert_eq!(
        check["audited"][0],
        json!({"kind": "NetworkPolicy", "namespace": "shop", "name": "db", "source": "shop.yaml:12"})
    );
}

#[test]
fn diff_compares_with_what_audited_policies_would_do() {
    let folder = Folder::with(&[("shop.yaml", SHOP)]);
    let ran = folder.netpol(&["diff", "--audit", "--from", "shop.yaml", "--port", "5432/tcp", "-o", "json"]);
    assert_eq!(ran.code, 1);
    let told = ran.json();
    let pair = told["pairs"].as_array().unwrap().iter().find(|pair| pair["from"] == "shop/web").unwrap().clone();
    assert_eq!(
        (&pair["to"], &pair["before"], &pair["after"]),
        (&"shop/db".into(), &"allowed".into(), &"denied".into())
    );
    assert_eq!((&pair["rule_before"], &pair["rule_after"]["name"]), (&Value::Null, &"db".into()));
    fs::write(folder.path().join("plain.yaml"), SHOP.split("---\napiVersion: networking").next().unwrap()).unwrap();
    assert_eq!(folder.netpol(&["diff", "--audit", "--from", "plain.yaml"]).code, 0, "nothing is audited");
}

/// The document with the annotation.
fn audited(document: &str) -> String {
    document.replacen("metadata: {", "metadata: {annotations: {netpol.dev/audit: \"true\"}, ", 1)
}

/// `verdict from > to:port` of what `diff --audit` says about live flows.
fn would(scene: &Scene, list: &str) -> Vec<String> {
    let told = scene.host.netpol(&["diff", "--audit", "--port", "80/tcp", "-o", "json"]).json();
    let line = |flow: &Value| {
        let end = |end: &Value| end["name"].as_str().unwrap_or_default().to_owned();
        format!("{} > {}:{}", end(&flow["source"]), end(&flow["destination"]), flow["destination"]["port"])
    };
    let mut lines: Vec<_> = told[list].as_array().unwrap_or_else(|| panic!("{told:#}")).iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn audited_policies_of_every_kind_stop_nothing_and_their_drops_are_told() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let _servers = (a.serve_tcp(80), b.serve_tcp(80), c.serve_tcp(80), c.serve_udp(53));
    let admin = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\n\
                 spec: {tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: c}}}}, \
                 ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 53}}}]}]}\n";
    let policies = [
        audited(&ingress("b", &[from("c", &["80/TCP"])])),
        audited(admin),
        audited(&calico(
            "a",
            "types: [Egress], egress: [{action: Deny, protocol: TCP, destination: {selector: app == 'c'}}, {action: Allow}]",
        )),
        // and one that is enforced
        ingress("a", &[from("b", &["80/TCP"])]),
    ];
    let report = host.load(&[a, b, c], &policies);
    assert_eq!((&report["policies"], &report["audited"]), (&json!(4), &json!(3)));
    let ((), counts) = host.counted(|| {
        check(&[
            (a, Tcp(b.at(Family::V4, 80)), Answered),
            (c, Tcp(b.at(Family::V4, 80)), Answered),
            (a, Tcp(c.at(Family::V4, 80)), Answered),
            (a, Udp(c.at(Family::V4, 53)), Answered),
        ]);
    });
    assert_eq!(counts.drops(), [""; 0]);
    check(&[(c, Tcp(a.at(Family::V4, 80)), Silent), (b, Tcp(a.at(Family::V4, 80)), Answered)]);
    assert_eq!(would(&scene, "flows_cut"), ["a > b:80", "a > c:53", "a > c:80"]);
    assert_eq!(would(&scene, "flows_opened"), [""; 0]);

    let status = host.status();
    assert_eq!((&status["enforced"], &status["audit"]), (&json!(true), &json!(false)), "{status:#}");
    assert_eq!(status["audited"].as_array().unwrap().len(), 3);
    let text = host.netpol(&["status"]).ok();
    assert!(text.contains("4 policies (3 audited, not enforced)"), "{text}");
    assert!(text.contains("audited, not enforced\n  ClusterNetworkPolicy p ("), "{text}");
    let policies = host.netpol(&["policies"]).ok();
    assert_eq!(policies.matches("no, audited").count(), 3, "{policies}");
    let listed = host.netpol(&["policies", "-o", "json"]).json();
    assert_eq!(listed.as_array().unwrap().iter().filter(|policy| policy["audit"] == true).count(), 3);
    let trace =
        host.netpol(&["trace", "--from", "default/a", "--to", "default/b", "--port", "80/tcp", "-o", "json"]).json();
    assert_eq!((&trace["allowed"], &trace["audit"]["allowed"]), (&json!(true), &json!(false)));
}

#[test]
fn audited_load_stops_nothing_and_says_what_it_would() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let _servers = (a.serve_tcp(80), b.serve_tcp(80));
    let policies = [ingress("b", &[from("a", &["80/TCP"])]), egress("a", &[])];
    // it takes the place of what was enforced
    host.load(&[a, b, c], &policies);
    check(&[(c, Tcp(b.at(Family::V4, 80)), Silent)]);
    let path = host.documents("load.yaml", &documents(&[a, b, c], &policies));
    let text = host.netpol(&["load", "--audit", &path]).ok();
    assert!(text.starts_with("auditing 2 policies (2 audited, not enforced) for 3 endpoints"), "{text}");
    assert!(text.contains("nothing is stopped: `netpol diff --audit` says what would be"), "{text}");
    let ((), counts) = host.counted(|| {
        check(&[
            (a, Tcp(b.at(Family::V4, 80)), Answered),
            (c, Tcp(b.at(Family::V6, 80)), Answered),
            (b, Tcp(a.at(Family::V4, 80)), Answered),
        ]);
    });
    assert_eq!(counts.drops(), [""; 0]);
    let endpoints = host.netpol(&["endpoints", "-o", "json"]).json();
    let open = json!({"ingress": false, "egress": false});
    assert!(endpoints.as_array().unwrap().iter().all(|endpoint| endpoint["isolated"] == open), "{endpoints:#}");
    assert_eq!(would(&scene, "flows_cut"), ["a > b:80", "c > b:80"]);
    // what the kernel says of the same
    let ends = |flow: &Value| format!("{} > {}", flow["source"]["name"], flow["destination"]["name"]).replace('"', "");
    let mut marked: Vec<_> = flagged(host).iter().filter(|flow| flow["is_reply"] == false).map(ends).collect();
    marked.sort();
    assert_eq!(marked, ["a > b", "c > b"]);

    let status = host.netpol(&["status"]);
    assert_eq!(status.code, 1, "{}", status.stdout);
    assert!(status.stdout.starts_with("NOT ENFORCED"), "{}", status.stdout);
    assert!(status.stdout.contains("loaded with --audit, so nothing is stopped"), "{}", status.stdout);
    let status = host.status();
    assert_eq!((&status["enforced"], &status["audit"]), (&json!(false), &json!(true)));
    assert_eq!(status["audited"].as_array().unwrap().len(), 2);
    let listed = host.netpol(&["policies", "-o", "json"]).json();
    assert!(listed.as_array().unwrap().iter().all(|policy| policy["audit"] == true));

    // the same again changes nothing; without the flag it is enforced
    let again = host.load_path(&["--audit"], &path);
    assert_eq!(again["changed"], false);
    let rehearsed = host.load_path(&["--dry-run"], &path);
    assert_eq!((&rehearsed["changed"], &rehearsed["audited"]), (&json!(true), &json!(0)));
    assert_eq!(host.load_path(&[], &path)["changed"], true);
    assert!(host.enforced());
    check(&[(c, Tcp(b.at(Family::V6, 80)), Silent), (b, Tcp(a.at(Family::V4, 80)), Answered)]);
    assert_eq!(host.netpol(&["diff", "--audit", "--port", "80/tcp"]).code, 0, "nothing is audited any more");
}

/// What audited policies would have dropped, as `status` tells it: `egress policy-ingress 7`, with packets.
fn counted(host: &Host) -> Vec<String> {
    let status = host.status();
    let row = |row: &Value| {
        let [direction, reason] = ["direction", "reason"].map(|field| row[field].as_str().unwrap_or_default());
        format!("{direction} {reason} {}", row["packets"])
    };
    status["would_drop"].as_array().unwrap_or_else(|| panic!("{status:#}")).iter().map(row).collect()
}

/// Flows of the present policy that audited ones would drop.
fn flagged(host: &Host) -> Vec<Value> {
    let all = host.netpol(&["flows", "--verdict", "would-drop", "-o", "json"]).json();
    all.as_array().unwrap().iter().filter(|flow| flow["current"] == true).cloned().collect()
}

/// So many datagrams of four bytes, which nobody answers.
fn speak(from: &Endpoint, to: &str, count: usize) -> UdpSocket {
    let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = from.enter(|| UdpSocket::bind(any)).expect("a socket");
    socket.connect(to).expect("a connection");
    (0..count).for_each(|_| assert_eq!(socket.send(b"ping").expect("a datagram"), 4));
    socket
}

/// A socket that gets so many datagrams.
fn hear(at: &Endpoint, port: u16) -> UdpSocket {
    let socket = at.enter(|| UdpSocket::bind(("::", port))).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    socket
}

#[track_caller]
fn heard(socket: &UdpSocket, count: usize) {
    (0..count).for_each(|_| assert_eq!(socket.recv(&mut [0; 16]).expect("a datagram"), 4));
}

#[test]
fn each_packet_that_audited_policies_would_drop_passes_and_is_counted() {
    for layout in LAYOUTS {
        for way in [&[][..], &["--forwarding", "stack"]] {
            let scene = Scene::new(layout);
            let Scene { host, a, b, outside, .. } = &scene;
            let policies = [
                audited(&ingress("b", &[from("c", &["53/UDP"])])),
                audited(&egress("a", &[support::policy::to("b", &[])])),
            ];
            host.load_with(way, &scene.all(), &policies);
            let server = hear(b, 53);
            for (sent, family) in [(7, FAMILIES[0]), (14, FAMILIES[1])] {
                let _client = speak(a, &b.at(family, 53), 7);
                heard(&server, 7);
                assert_eq!(counted(host), [format!("egress policy-ingress {sent}")], "{layout:?} {way:?}");
            }
            let rows = flagged(host);
            assert_eq!(rows.len(), 4, "both directions, both families: {rows:#?}");
            let row = rows.iter().find(|row| row["source"]["name"] == "a" && row["packets"] == 7).expect("the flow");
            assert_eq!((&row["verdict"], &row["would_drop"]), (&json!("allowed"), &json!("policy-ingress")));
            assert_eq!((&row["audit_rule"]["index"], &row["ingress_rule"]), (&Value::Null, &Value::Null));
            assert_eq!(row["explanation"], "no policy", "of what is enforced");
            let words = row["audit_explanation"].as_str().unwrap();
            assert!(words.starts_with("isolated by NetworkPolicy default/b-ingress-"), "{words}");
            assert!(words.contains("load.yaml:") && words.ends_with("no rule allows udp/53 from default/a"), "{words}");
            let table = host.netpol(&["flows"]).ok();
            assert!(table.contains("would-drop") && table.contains("no rule allows udp/53 from default/a"), "{table}");

            // from outside it is the receiver's hook that sees it
            let _client = speak(outside, &b.at(Family::V4, 53), 3);
            heard(&server, 3);
            assert!(counted(host).contains(&"ingress policy-ingress 3".to_owned()), "{:?}", counted(host));
            // and what a may not send, its own
            let _sink = hear(outside, 9);
            let _client = speak(a, &outside.at(Family::V4, 9), 5);
            assert!(counted(host).contains(&"egress policy-egress 5".to_owned()), "{:?}", counted(host));
            assert_eq!(host.counts().drops().iter().filter(|drop| drop.contains("policy")).count(), 0);
        }
    }
}

#[test]
fn a_connection_that_would_be_dropped_works_and_both_its_directions_are_counted() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    let _server = b.serve_tcp(80);
    host.load(&scene.all(), &[audited(&ingress("b", &[]))]);
    let mut stream = a.connect(&b.at(Family::V4, 80));
    for _ in 0..20 {
        assert_eq!(exchange(&mut stream), Answered);
    }
    stream.shutdown(std::net::Shutdown::Both).expect("an end");
    let begin = Instant::now();
    loop {
        let packets: u64 = flagged(host).iter().map(|flow| flow["packets"].as_u64().unwrap()).sum();
        // acknowledgements may still be on their way
        if counted(host) == [format!("egress policy-ingress {packets}")] {
            assert!(packets > 40, "{packets}");
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{packets} packets, and {:?}", counted(host));
    }
    let rules = host.netpol(&["top", "--once", "--interval", "0.1", "--tab", "rules", "-o", "json"]).json();
    assert!(rules.as_array().unwrap().iter().any(|row| row["verdict"] == "would-drop"), "{rules:#}");
    let drops = host.netpol(&["top", "--once", "--interval", "0.1", "--tab", "drops", "-o", "json"]).json();
    assert_eq!((&drops[0]["verdict"], &drops[0]["reason"]), (&"would-drop".into(), &"policy-ingress".into()));
    let top = host.netpol(&["top", "--once", "--interval", "0.1", "--filter", "verdict:would-drop"]).ok();
    assert!(top.lines().nth(1).is_some_and(|line| line.starts_with("would-drop")), "{top}");
    let text = host.netpol(&["status"]).ok();
    assert!(text.contains("packets that passed, and audited policies would have dropped\n"), "{text}");
    let metrics = host.netpol(&["metrics", "--once"]).ok();
    let series = "netpol_would_drop_packets_total{direction=\"egress\",reason=\"policy-ingress\"} ";
    let told = metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{metrics}"));
    assert_eq!(counted(host), [format!("egress policy-ingress {told}")]);
}

#[test]
fn a_services_packets_are_translated_and_counted() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {clusterIP: 10.96.0.10, selector: {app: b}, \
                   ports: [{port: 80, targetPort: 53, protocol: UDP}]}\n";
    for way in [&[][..], &["--forwarding", "stack"]] {
        let scene = Scene::bridged();
        let Scene { host, a, b, .. } = &scene;
        let server = hear(b, 53);
        host.load_with(way, &scene.all(), &[service.to_owned(), audited(&ingress("b", &[]))]);
        let _client = speak(a, "10.96.0.10:80", 6);
        heard(&server, 6);
        assert_eq!(counted(host), ["egress policy-ingress 6"], "{way:?}");
        let rows = flagged(host);
        let row = rows
            .iter()
            .find(|row| row["packets"] == 6 && row["service"] == "default/b:80")
            .unwrap_or_else(|| panic!("{rows:#?}"));
        assert_eq!((&row["service"], &row["would_drop"]), (&json!("default/b:80"), &json!("policy-ingress")));
    }
}

#[test]
fn without_the_annotation_nothing_is_marked_any_more() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    let server = hear(b, 53);
    let policy = ingress("b", &[from("c", &["53/UDP"])]);
    host.load(&scene.all(), &[audited(&policy)]);
    let client = speak(a, &b.at(Family::V4, 53), 2);
    heard(&server, 2);
    assert_eq!(counted(host), ["egress policy-ingress 2"]);
    // gone: the open flow goes on, and is as any other
    host.load(&scene.all(), &[]);
    client.send(b"ping").expect("a datagram");
    heard(&server, 1);
    assert_eq!((counted(host), flagged(host).len()), (vec!["egress policy-ingress 2".to_owned()], 0));
    // enforced: it is stopped
    host.load(&scene.all(), std::slice::from_ref(&policy));
    client.send(b"ping").expect("a datagram");
    assert_eq!(host.counts().drops(), ["egress policy-ingress"]);
    assert_eq!((counted(host), flagged(host).len()), (vec!["egress policy-ingress 2".to_owned()], 0));
    // and audited again
    host.load(&scene.all(), &[audited(&policy)]);
    client.send(b"ping").expect("a datagram");
    heard(&server, 1);
    assert_eq!(counted(host), ["egress policy-ingress 3"]);
}

#[test]
fn beside_what_is_enforced_the_audited_rule_is_named() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    let server = hear(b, 53);
    let admin = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\n\
                 spec: {tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: b}}}}, \
                 ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 53}}}]}]}\n";
    let policies =
        [audited(admin), ingress("b", &[from("a", &["53/UDP"])]), egress("a", &[support::policy::to("b", &[])])];
    host.load(&scene.all(), &policies);
    let _client = speak(a, &b.at(Family::V4, 53), 2);
    heard(&server, 2);
    let rows = flagged(host);
    let row = rows.iter().find(|row| row["packets"] == 2).unwrap_or_else(|| panic!("{rows:#?}"));
    assert_eq!((&row["audit_rule"]["name"], &row["audit_rule"]["index"]), (&json!("p"), &json!(0)));
    assert_eq!(row["egress_rule"]["direction"], "egress", "what allows it there is still named");
    assert_eq!((&row["ingress_rule"], &row["rule"]["direction"]), (&Value::Null, &json!("egress")));
}
