//! `netpol diff`: what it compares, what it prints, how it ends; and that it knows which connections a
//! load would end, and which it would let through.

mod support;

use serde_json::{Value, json};
use support::{
    Attempt::{Ping, Tcp},
    Family, Folder, Ran, Scene,
    Seen::{Answered, Silent},
    check, exchange,
    policy::{documents, from, ingress},
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
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
"#;

/// `netpol diff` in a folder.
fn diff(folder: &Folder, arguments: &[&str]) -> Ran {
    folder.netpol(&[&["diff"], arguments].concat())
}

#[test]
fn files_are_compared_with_files_without_a_kernel() {
    let narrower = SHOP.replace("{app: web}}}]\n    ports", "{app: nobody}}}]\n    ports");
    let folder = Folder::with(&[("a.yaml", SHOP), ("b.yaml", &narrower)]);
    let same = diff(&folder, &["--from", "a.yaml", "a.yaml"]);
    assert_eq!((same.code, same.stdout.as_str()), (0, "Nothing would change (judged: 80/tcp 5432/tcp).\n"));
    let ran = diff(&folder, &["--from", "a.yaml", "b.yaml", "-o", "json"]);
    assert_eq!(ran.code, 1);
    let expected = json!({
        "before": "files",
        "ports": ["80/tcp", "5432/tcp"],
        "endpoints": {"added": [], "removed": []},
        "pairs": [{
            "from": "shop/web", "to": "shop/db", "port": 5432, "protocol": "TCP", "before": "allowed", "after": "denied",
            "rule_before": {
                "kind": "NetworkPolicy", "namespace": "shop", "name": "db", "direction": "ingress", "index": 0,
                "source": "a.yaml:18",
            },
            "rule_after": {
                "kind": "NetworkPolicy", "namespace": "shop", "name": "db", "direction": "ingress", "index": null,
                "source": "b.yaml:12",
            },
        }],
        "flows_cut": [],
        "flows_opened": [],
    });
    assert_eq!(ran.json(), expected);
    let yaml = diff(&folder, &["--from", "a.yaml", "b.yaml", "-o", "yaml"]);
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml.stdout).unwrap(), expected);
    let table = diff(&folder, &["--from", "a.yaml", "b.yaml"]);
    assert_eq!(table.code, 1);
    for part in ["shop/web", "allowed -> denied", "NetworkPolicy shop/db ingress: default deny (b.yaml:12)"] {
        assert!(table.stdout.contains(part), "{part} in {}", table.stdout);
    }
}

#[test]
fn port_can_be_chosen_and_endpoints_come_and_go() {
    let renamed = SHOP.replace("name: web", "name: front");
    let folder = Folder::with(&[
        ("a.yaml", SHOP),
        ("b.yaml", &renamed),
        ("open.yaml", &SHOP.replace("app: web}}}]", "app: web}}}, {ipBlock: {cidr: 192.0.2.0/24}}]")),
    ]);
    let ran = diff(&folder, &["--from", "a.yaml", "b.yaml", "--port", "22/tcp", "-o", "json"]);
    assert_eq!((ran.code, &ran.json()["endpoints"]), (1, &json!({"added": ["shop/front"], "removed": ["shop/web"]})));
    assert_eq!((&ran.json()["pairs"], &ran.json()["ports"]), (&json!([]), &json!(["22/tcp"])));
    // outside addresses are compared without being named
    let ran = diff(&folder, &["--from", "a.yaml", "open.yaml", "-o", "json"]).json();
    let pairs = ran["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 1, "{ran:#}");
    assert_eq!((&pairs[0]["from"], &pairs[0]["after"]), (&"192.0.2.0/24".into(), &"allowed".into()));
    let named = diff(&folder, &["--from", "a.yaml", "open.yaml", "--outside", "192.0.2.7", "-o", "json"]).json();
    assert_eq!(named["pairs"][0]["from"], "192.0.2.7");
}

#[test]
fn wrong_usage_ends_with_2_and_wrong_documents_with_1() {
    let folder = Folder::with(&[("a.yaml", SHOP), ("bad.yaml", "kind: Nothing\n")]);
    for arguments in [&[][..], &["a.yaml", "--audit"], &["a.yaml", "--port", "x"]] {
        assert_eq!(diff(&folder, arguments).code, 2, "{arguments:?}");
    }
    let ran = diff(&folder, &["--from", "a.yaml", "bad.yaml"]);
    assert!(ran.code == 1 && ran.stdout.is_empty() && ran.stderr.contains("bad.yaml"), "{ran:?}");
}

#[test]
fn without_an_instance_everything_was_allowed() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let path = host.documents("load.yaml", &documents(&[a, b, c], &[ingress("b", &[from("a", &["80/TCP"])])]));
    let ran = host.netpol(&["diff", &path, "--port", "80/tcp", "-o", "json"]);
    assert_eq!((ran.code, &ran.json()["before"]), (1, &"nothing".into()));
    let pairs = ran.json()["pairs"].as_array().unwrap().clone();
    assert!(pairs.iter().all(|pair| pair["to"] == "default/b" && pair["after"] == "denied"), "{pairs:#?}");
    assert!(
        pairs.iter().any(|pair| pair["from"] == "default/c") && !pairs.iter().any(|pair| pair["from"] == "default/a")
    );
    let table = host.netpol(&["diff", &path, "--port", "80/tcp"]);
    assert!(table.stdout.starts_with("Nothing is enforced: compared with everything allowed."), "{}", table.stdout);
}

#[test]
fn flows_that_a_load_cuts_and_denials_that_it_allows_are_foretold() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let itself = host.itself();
    let _servers = (b.serve_tcp(80), b.serve_tcp(81));
    host.load(&[a, b, c], &[ingress("b", &[from("a", &["80/TCP"]), from("c", &["80/TCP"])])]);
    let (mut kept, mut cut) = (a.connect(&b.at(Family::V4, 80)), c.connect(&b.at(Family::V6, 80)));
    assert_eq!([exchange(&mut kept), exchange(&mut cut)], [Answered, Answered]);
    check(&[
        (a, Tcp(b.at(Family::V4, 81)), Silent),
        (c, Tcp(b.at(Family::V4, 81)), Silent),
        (a, Ping(b.ipv4()), Silent),
        // no policy holds the host back, before or after
        (&itself, Tcp(b.at(Family::V4, 81)), Answered),
    ]);
    let path =
        host.documents("next.yaml", &documents(&[a, b, c], &[ingress("b", &[from("a", &["80/TCP", "81/TCP"])])]));
    let ran = host.netpol(&["diff", &path, "--port", "80/tcp", "--port", "81/tcp", "-o", "json"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let told = ran.json();
    let line = |flow: &Value| {
        let end = |end: &Value| end["name"].as_str().unwrap_or_default().to_owned();
        let port = flow["destination"]["port"].as_u64().unwrap();
        format!("{} {} > {}:{port}", flow["verdict"].as_str().unwrap(), end(&flow["source"]), end(&flow["destination"]))
    };
    let list = |name: &str| told[name].as_array().unwrap().iter().map(line).collect::<Vec<_>>();
    assert_eq!(list("flows_cut"), ["allowed c > b:80"], "{told:#}");
    assert_eq!(list("flows_opened"), ["denied a > b:81"], "{told:#}");
    let pairs: Vec<_> = told["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| json!([pair["from"], pair["port"], pair["after"]]))
        .collect();
    assert_eq!(pairs, [json!(["default/c", 80, "denied"]), json!(["default/a", 81, "allowed"])]);
    let table = host.netpol(&["diff", &path, "--port", "80/tcp", "--port", "81/tcp"]).stdout;
    assert!(
        table.contains("\nflows that would be cut\n") && table.contains("denials that would be allowed"),
        "{table}"
    );
    assert!(table.contains("2 verdicts would change, 1 flow cut, 1 denial allowed"), "{table}");
    // a connection that has ended is told as such
    check(&[(c, Tcp(b.at(Family::V4, 80)), Answered)]);
    let table = host.netpol(&["diff", &path, "--port", "80/tcp"]).stdout;
    let cut_flows: Vec<_> = table.lines().filter(|line| line.contains(" s ago")).collect();
    let ended = cut_flows.iter().filter(|line| line.contains(", ended"));
    assert_eq!((cut_flows.len(), ended.count()), (3, 1), "{table}");
    // nothing is changed by asking
    assert_eq!((host.generation(), exchange(&mut cut)), (1, Answered));
    host.load_path(&[], &path);
    assert_eq!([exchange(&mut kept), exchange(&mut cut)], [Answered, Silent]);
    check(&[(a, Tcp(b.at(Family::V4, 81)), Answered)]);
    let same = host.netpol(&["diff", &path, "--port", "80/tcp", "-o", "json"]);
    assert_eq!(same.code, 0, "{}", same.stdout);
    assert_eq!((&same.json()["flows_cut"], &same.json()["flows_opened"]), (&json!([]), &json!([])));
}
