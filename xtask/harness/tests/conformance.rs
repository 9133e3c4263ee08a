//! The runner itself: it must notice what does not hold, and say where.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::{Value, json};

struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("conformance-{test}-{}", std::process::id()));
        for folder in ["cases", "tables"] {
            fs::create_dir_all(path.join(folder)).unwrap();
        }
        Self(path)
    }

    fn with(self, file: &str, content: &Value) -> Self {
        fs::write(self.0.join(file), content.to_string()).unwrap();
        self
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol-harness"));
        let Output { status, stdout, stderr } =
            command.arg("conformance").arg(&self.0).args(arguments).output().unwrap();
        (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `x/a` may reach `x/b` until everything into `x` is denied, then only by `10.0.0.1`, its address.
fn case(last: bool) -> Value {
    let pod = |name: &str, ip: &str| json!({"name": name, "labels": {}, "ip": ip, "ports": [{"port": 80, "protocol": "TCP"}]});
    let policy = |spec: Value| json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "x"}, "spec": spec});
    let expect = |allowed| json!([{"from": "x/a", "to": "x/b", "port": 80, "protocol": "TCP", "allowed": allowed}]);
    let from = json!([{"from": [{"ipBlock": {"cidr": "${ip:x/a}/32"}}]}]);
    json!({
        "format": 1, "name": "a case",
        "model": {"namespaces": [{"name": "x", "labels": {}, "pods": [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]}]},
        "steps": [
            {"expected": expect(true)},
            {"apply": [policy(json!({"podSelector": {}}))], "expected": expect(false)},
            {"apply": [policy(json!({"podSelector": {}, "ingress": from}))], "expected": expect(true)},
            {"delete": [{"kind": "NetworkPolicy", "namespace": "x", "name": "p"}], "expected": expect(last)},
        ],
    })
}

#[test]
fn case_that_holds_ends_with_0() {
    let (code, told) = Folder::new("holds").with("cases/one-1.json", &case(true)).run(&["--offline"]);
    assert_eq!(code, Some(0), "{told}");
    for engine in ["interpreter", "compiled"] {
        let line = format!("one                      {engine:<14}      1        8       0");
        assert!(told.contains(&line), "four steps in two families: {told}");
    }
}

const LIVE: [&str; 5] = ["bridged", "bridged-stack", "routed", "routed-stack", "mixed"];

#[test]
fn case_that_holds_holds_live() {
    let (code, told) = Folder::new("live").with("cases/one-1.json", &case(true)).run(&[]);
    assert_eq!(code, Some(0), "{told}");
    for engine in LIVE {
        let line = format!("one                      {engine:<14}      1        8       0");
        assert!(told.contains(&line), "four steps in two families: {told}");
    }
    assert!(!told.contains("UNSTEADY"), "{told}");
}

#[test]
fn packets_tell_of_a_case_that_does_not_hold() {
    let (code, told) = Folder::new("live-fails").with("cases/one-1.json", &case(false)).run(&["--keep-going"]);
    assert_eq!(code, Some(1), "{told}");
    for engine in LIVE {
        assert!(told.contains(&format!("FAILED one-1 [{engine}]")), "{told}");
    }
    assert!(told.contains("allowed x/a:50000 -> x/b:80 at egress of") && told.contains("counted:"), "{told}");
}

#[test]
fn every_protocol_is_judged_by_its_packets() {
    for protocol in ["TCP", "UDP", "SCTP", "253"] {
        let mut case = case(true);
        for step in case["steps"].as_array_mut().unwrap() {
            step["expected"][0]["protocol"] = json!(protocol);
        }
        let folder = Folder::new(&format!("protocol-{protocol}")).with("cases/one-1.json", &case);
        let (code, told) = folder.run(&[]);
        assert_eq!(code, Some(0), "{protocol}: {told}");
    }
}

#[test]
fn icmp_is_judged_by_type_and_code() {
    let row = |(kind, code, allowed): (u8, u8, bool)| json!({"from": "x/a", "to": "x/b", "protocol": "ICMP", "icmp_type": kind, "icmp_code": code, "allowed": allowed});
    // numbers that are no errors in either family
    let messages = [(128, 0, true), (128, 1, false), (139, 0, false)].map(row);
    let mut case = case(true);
    case["steps"] = json!([{
        "apply": [{
            "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "x"},
            "spec": {"selector": "all()", "types": ["Ingress"], "ingress": [{
                "action": "Allow", "protocol": "ICMP", "icmp": {"type": 128, "code": 0},
            }, {
                "action": "Allow", "protocol": "ICMPv6", "icmp": {"type": 128, "code": 0},
            }]},
        }],
        "expected": messages,
    }]);
    let (code, told) = Folder::new("icmp").with("cases/one-1.json", &case).run(&[]);
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn outside_addresses_speak_through_the_uplink() {
    let mut case = case(true);
    case["model"]["externals"] = json!([{"name": "world", "ip": "192.0.2.1", "kind": "external"}]);
    let rows = |allowed| {
        let row = |from: &str, to: &str, allowed| json!({"from": from, "to": to, "port": 80, "protocol": "TCP", "allowed": allowed});
        json!([row("@world", "x/b", allowed), row("x/b", "@world", true)])
    };
    for (step, allowed) in [true, false, false, true].into_iter().enumerate() {
        case["steps"][step]["expected"] = rows(allowed);
    }
    let (code, told) = Folder::new("outside").with("cases/one-1.json", &case).run(&[]);
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn sample_is_named_and_leaves_out_the_rest() {
    let folder = ["cyclonus-1", "cyclonus-2", "e2e-1"]
        .into_iter()
        .fold(Folder::new("sample"), |folder, name| folder.with(&format!("cases/{name}.json"), &case(true)));
    let (code, told) = folder.run(&["--sample", "1", "--seed", "x"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("2 of 3 cases (--sample 1 --seed \"x\")"), "{told}");
    let row = |set: &str| format!("{set:<24} bridged             1        8       0");
    assert!(told.contains(&row("cyclonus")) && told.contains(&row("e2e")), "{told}");
}

#[test]
fn case_that_does_not_hold_is_named_with_its_row() {
    let (code, told) = Folder::new("fails").with("cases/one-1.json", &case(false)).run(&[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("FAILED one-1 [interpreter]") && told.contains("FAILED one-1 [compiled]"), "{told}");
    assert!(told.contains("No packets were sent"), "{told}");
    assert!(told.contains("step 3") && told.contains("x/a -> x/b 80/TCP was allowed"), "{told}");
}

#[test]
fn policy_that_is_refused_fails_its_rows() {
    let mut case = case(true);
    case["steps"][1]["apply"][0]["spec"] = json!({"podSelector": {}, "ingres": []});
    let (code, told) = Folder::new("refused").with("cases/one-1.json", &case).run(&[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("ingres"), "{told}");
}

#[test]
fn case_that_is_not_understood_is_an_error() {
    let mut case = case(true);
    case["steps"][0]["expected"][0]["delay"] = json!(1);
    let (code, told) = Folder::new("unknown").with("cases/one-1.json", &case).run(&[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("delay"), "{told}");
}

#[test]
fn service_accounts_are_left_out_by_name() {
    let mut case = case(true);
    case["steps"][1]["apply"] = json!([{
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "x"},
        "spec": {"serviceAccountSelector": "all()"},
    }]);
    let (code, told) = Folder::new("left-out").with("cases/one-1.json", &case).run(&[]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("one-1: selects by service account"), "{told}");
}

#[test]
fn nothing_to_run_is_an_error() {
    let (code, told) = Folder::new("none").with("cases/one-1.json", &case(true)).run(&["--only", "two"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("no case and no table"), "{told}");
}

#[test]
fn table_that_nobody_knows_is_an_error() {
    let (code, told) = Folder::new("table").with("tables/strange.json", &json!({})).run(&[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("strange.json"), "{told}");
}

#[test]
fn validation_table_notices_what_was_wrongly_accepted_and_refused() {
    let object = |name: &str, valid: bool, spec: Value| {
        let metadata = json!({"name": "p", "namespace": "x"});
        let policy =
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec});
        json!({"name": name, "valid": valid, "policy": policy})
    };
    let table = json!({"cases": [
        object("fine", true, json!({"podSelector": {}})),
        object("accepted", false, json!({"podSelector": {}})),
        object("refused", true, json!({"podSelector": 1})),
    ]});
    let (code, told) = Folder::new("validation").with("tables/k8s-netpol-validation.json", &table).run(&[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains("FAILED accepted") && told.contains("FAILED refused") && !told.contains("FAILED fine"),
        "{told}"
    );
}
