//! From documents alone.

use serde_json::{Value, json};

use crate::support::{Folder, policies};

const SHOP: &str = r#"
apiVersion: netpol.dev/v1
kind: Endpoint
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {addresses: [10.0.0.10]}
---
apiVersion: netpol.dev/v1
kind: Endpoint
metadata: {name: db-1, namespace: shop, labels: {app: db, open: 'yes'}}
spec: {addresses: [10.0.0.61], ports: [{name: pg, port: 5432}]}
---
apiVersion: netpol.dev/v1
kind: Endpoint
metadata: {name: db-2, namespace: shop, labels: {app: db}}
spec: {ports: [{name: pg, port: 5432}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open, namespace: shop}
spec:
  podSelector: {matchLabels: {open: 'yes'}}
  ingress: [{ports: [{port: 5432}]}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: db}, ports: [{port: 15432, targetPort: pg}]}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: inner}
spec: {cidr: 10.0.0.0/16, natOutgoing: true}
"#;

fn trace(arguments: &[&str]) -> crate::support::Ran {
    Folder::with(&[("shop.yaml", SHOP)]).netpol(&[&["trace", "shop.yaml"], arguments].concat())
}

#[track_caller]
fn json(to: &str, port: &str) -> Value {
    let ran = trace(&["--from", "web", "--to", to, "--port", port, "-o", "json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.json()
}

#[test]
fn every_backend_of_a_service_has_its_verdict() {
    for to in ["10.96.0.1", "db", "shop/db", "service/shop/db"] {
        let said = json(to, "15432/tcp");
        let shown = if to.starts_with("10.") { to } else { "shop/db" };
        assert_eq!((&said["to"], &said["port"]), (&json!(shown), &json!(15432)), "{said:#}");
        assert_eq!((&said["allowed"], said.get("kernel")), (&json!(false), None), "one of both is denied");
        let translation = &said["translation"];
        assert_eq!((&translation["service"], &translation["port"]), (&json!("shop/db"), &json!(15432)));
        assert_eq!(translation["published"], "10.96.0.1:15432");
        assert!(translation["source"].as_str().unwrap().starts_with("shop.yaml:"));
        let verdicts: Vec<_> = translation["backends"].as_array().unwrap().iter().map(|b| &b["allowed"]).collect();
        assert_eq!(verdicts, [true, false], "{said:#}");
        assert_eq!(said["ingress"]["isolated_by"]["name"], "db", "of the one that is denied");
    }
}

#[test]
fn people_read_who_is_behind_it() {
    let told = trace(&["--from", "web", "--to", "10.96.0.1", "--port", "15432/tcp"]).ok();
    for line in [
        "tcp/15432 from shop/web to 10.96.0.1\n",
        "  to    service shop/db  10.96.0.1:15432  its port 15432  (shop.yaml:",
        "translation: to one backend, by a hash of the client's address and port\n",
        "  ✓ shop/db-1:5432  10.0.0.61  allowed\n",
        "  ✗ shop/db-2:5432  denied: isolated by NetworkPolicy shop/db ingress at shop.yaml:",
        "ingress of shop/db-2: denied",
        "verdict: it depends: 1 of 2 backends may be reached",
    ] {
        assert!(told.contains(line), "{line:?} is not in:\n{told}");
    }
}

#[test]
fn what_leaves_a_pool_is_told() {
    let said = json("192.0.2.1", "80/tcp");
    let expected = json!({
        "pool": "inner", "source": said["masquerade"]["source"], "before": "10.0.0.10:50000", "after": null,
        "uplink": null, "possible": true
    });
    assert_eq!((&said["allowed"], &said["masquerade"]), (&json!(true), &expected), "{said:#}");
    assert_eq!(json("192.0.2.1", "9/sctp")["masquerade"]["possible"], false);
    for inside in ["shop/db-1", "10.0.9.9"] {
        assert_eq!(json(inside, "80/tcp").get("masquerade"), None, "{inside}");
    }
    let told = trace(&["--from", "web", "--to", "192.0.2.1", "--port", "80/tcp"]).ok();
    let line = "masquerade: 10.0.0.10:50000 becomes the uplink's address, by pool inner (shop.yaml:";
    assert!(told.contains(line), "{told}");
}

#[test]
fn port_that_a_service_lacks_is_an_error_that_names_those_it_has() {
    let ran = trace(&["--from", "web", "--to", "service/shop/db", "--port", "5432/tcp"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("service shop/db does not publish 5432/tcp: it has 15432/tcp"), "{}", ran.stderr);
    // an address and another port are just that
    assert_eq!(json("10.96.0.1", "80/tcp").get("translation"), None);
}

#[test]
fn the_published_port_of_the_shop_is_found_by_the_name_of_its_service() {
    let shop = policies().join("shop");
    let shop = shop.to_str().unwrap();
    let folder = Folder::with(&[]);
    for port in ["80/tcp", "8080/tcp"] {
        let service =
            ["trace", "--from", "192.0.2.7", "--to", "service/shop/nginx-lb", "--port", port, "-o", "json", shop];
        let ran = folder.netpol(&service);
        assert_eq!(ran.code, 0, "{ran:?}");
        let said = ran.json();
        assert_eq!((&said["allowed"], &said["egress"]), (&json!(true), &json!(null)), "{said:#}");
        assert_eq!(said["translation"]["published"], json!(null), "no document knows the host's addresses");
        assert_eq!(said["translation"]["backends"][0]["endpoint"], "shop/nginx-lb");
    }
}
