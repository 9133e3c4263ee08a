//! Audited policies are judged and not enforced, and every command that shows a policy says so.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{
    Attempt::{Tcp, Udp},
    Family, Folder, Scene,
    Seen::{Answered, Silent},
    check,
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
