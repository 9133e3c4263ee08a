//! `netpol matrix` and `netpol trace` as scripts and people meet them: arguments, output, exit code.

mod support;

use serde_json::{Value, json};
use support::Folder;

const SHOP: &str = r#"
apiVersion: netpol.dev/v1
kind: Endpoint
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {addresses: [10.0.0.10], ports: [{name: http, port: 80}]}
---
apiVersion: netpol.dev/v1
kind: Endpoint
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {addresses: [10.0.0.60], ports: [{port: 5432}, {port: 53, protocol: UDP}]}
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

fn with(text: &str) -> Folder {
    Folder::with(&[("shop.yaml", text)])
}

/// What it prints as JSON; it must succeed.
fn json(folder: &Folder, arguments: &[&str]) -> Value {
    let ran = folder.netpol(&[arguments, &["-o", "json"]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.json()
}

/// `from -> to port/protocol` of every row that is allowed, and how many rows there are.
fn allowed(matrix: &Value) -> (Vec<String>, usize) {
    let rows = matrix["rows"].as_array().unwrap();
    let line = |row: &Value| {
        let text = |field: &str| row[field].as_str().unwrap().to_owned();
        format!("{} -> {} {}/{}", text("from"), text("to"), row["port"], text("protocol"))
    };
    (rows.iter().filter(|row| row["allowed"] == true).map(line).collect(), rows.len())
}

#[test]
fn matrix_judges_every_pair_for_every_declared_port() {
    let folder = with(SHOP);
    let (allowed, rows) = allowed(&json(&folder, &["matrix", "shop.yaml"]));
    assert_eq!(rows, 2 * 3);
    assert_eq!(
        allowed,
        [
            "shop/db -> shop/web 53/UDP",
            "shop/db -> shop/web 80/TCP",
            "shop/web -> shop/db 5432/TCP",
            "shop/db -> shop/web 5432/TCP"
        ]
    );
}

#[test]
fn matrix_judges_outside_addresses_in_both_directions() {
    let folder = with(SHOP);
    let matrix =
        json(&folder, &["matrix", ".", "--port", "5432/tcp", "--outside", "192.0.2.1", "--outside", "2001:db8::1"]);
    let rows = matrix["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2 + 2 * 2 * 2, "outside addresses are not judged among themselves");
    let row = |from: &str, to: &str| rows.iter().find(|row| row["from"] == from && row["to"] == to).unwrap();
    assert_eq!(row("192.0.2.1", "shop/db")["allowed"], false);
    assert_eq!(row("192.0.2.1", "shop/db")["egress"], Value::Null);
    assert_eq!(row("shop/db", "192.0.2.1")["allowed"], true);
    assert_eq!(row("2001:db8::1", "shop/web")["allowed"], true);
}

#[test]
fn matrix_rows_of_icmp_have_no_port() {
    let folder = with(SHOP);
    let matrix = json(&folder, &["matrix", "shop.yaml", "--port", "icmp/3/1"]);
    let row = &matrix["rows"][0];
    assert_eq!((&row["icmp_type"], &row["icmp_code"], row.get("port")), (&json!(3), &json!(1), None));
}

#[test]
fn matrix_for_people_has_a_legend_and_no_escape_codes_in_a_pipe() {
    let folder = with(SHOP);
    let output = folder.netpol(&["matrix", "shop.yaml", "--port", "5432/tcp"]);
    let expected = "5432/tcp  web  db\nweb            ✓\ndb         ✓\n\n✓ allowed   · denied   (a row speaks, a column is spoken to)\n";
    assert_eq!(output.stdout, expected);
}

#[test]
fn trace_json_is_one_row() {
    let folder = with(SHOP);
    let matrix = json(&folder, &["matrix", "shop.yaml", "--port", "5432/tcp"]);
    let trace = json(&folder, &["trace", "--from", "shop/web", "--to", "db", "--port", "5432/tcp", "shop.yaml"]);
    assert_eq!(trace, matrix["rows"][0]);
    assert_eq!(
        trace["ingress"]["rule"],
        json!({"kind": "NetworkPolicy", "namespace": "shop", "name": "db", "index": 0, "source": "shop.yaml:18"})
    );
}

#[test]
fn trace_tells_the_walk_and_the_verdict() {
    let folder = with(SHOP);
    let output = folder.netpol(&["trace", "--from", "web", "--to", "10.0.0.60", "--port", "80/tcp", "shop.yaml"]);
    assert_eq!(output.code, 0, "a denial is an answer");
    let told = output.stdout;
    for line in [
        "tcp/80 from shop/web to shop/db",
        "  from  shop/web  10.0.0.10  app=web",
        "egress of shop/web: allowed",
        "ingress of shop/db: denied",
        "    NetworkPolicy shop/db (shop.yaml:12) selects it",
        "      rule 0 (shop.yaml:18) does not match: destination port 80 is not among its ports",
        "    end of the tier: no rule decided, it denies",
        "verdict: denied",
    ] {
        assert!(told.contains(line), "{line:?} is not in:\n{told}");
    }
}

#[test]
fn questions_that_cannot_be_answered_end_with_1() {
    let folder = with(SHOP);
    let cases: [(&[&str], &str); 7] = [
        (&["trace", "--from", "wbe", "--to", "db", "--port", "80", "shop.yaml"], "did you mean shop/web?"),
        (&["trace", "--from", "web", "--to", "web", "--port", "80", "shop.yaml"], "the same endpoint"),
        (&["trace", "--from", "192.0.2.1", "--to", "192.0.2.2", "--port", "80", "shop.yaml"], "nobody judges"),
        (&["trace", "--bpffs", "nowhere", "--from", "web", "--to", "db", "--port", "80"], "nothing is loaded here"),
        (&["matrix", "shop.yaml", "--outside", "10.0.0.10"], "an address of shop/web"),
        (&["matrix", "missing.yaml"], "missing.yaml"),
        (&["matrix", "missing.yaml", "-o", "json"], "missing.yaml"),
    ];
    for (arguments, expected) in cases {
        let output = folder.netpol(arguments);
        assert_eq!(output.code, 1, "{arguments:?}");
        assert!(output.stderr.contains(expected), "{arguments:?}: {}", output.stderr);
        assert_eq!(output.stdout, "", "{arguments:?}");
    }
}

#[test]
fn invalid_documents_are_shown_with_their_place() {
    let folder = with(&SHOP.replace("podSelector: {matchLabels: {app: db}}", "podSelektor: {}"));
    for command in
        [&["matrix", "shop.yaml"][..], &["trace", "--from", "web", "--to", "db", "--port", "80", "shop.yaml"]]
    {
        let output = folder.netpol(command);
        assert_eq!(output.code, 1);
        let error = output.stderr;
        assert!(error.contains("shop.yaml:16:3") && error.contains("podSelector"), "{error}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    let folder = with(SHOP);
    for arguments in [
        &["matrix"][..],
        &["matrix", "shop.yaml", "--port", "80/http"],
        &["matrix", "shop.yaml", "--source-port", "0"],
        &["matrix", "shop.yaml", "--outside", "nowhere"],
        &["trace", "--from", "web", "--port", "80", "shop.yaml"],
    ] {
        assert_eq!(folder.netpol(arguments).code, 2, "{arguments:?}");
    }
}

#[test]
fn endpoints_without_ports_need_a_port_to_judge() {
    let text_without = SHOP
        .replace(", ports: [{name: http, port: 80}]", "")
        .replace(", ports: [{port: 5432}, {port: 53, protocol: UDP}]", "");
    let folder = with(&text_without);
    let output = folder.netpol(&["matrix", "shop.yaml"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("--port 80/tcp"));
}
