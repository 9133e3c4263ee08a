//! `netpol check` as scripts see it: exit codes and JSON.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

/// Runs `netpol check -o FORMAT /dev/stdin` on a text.
fn check(format: &str, text: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_netpol"))
        .args(["check", "-o", format, "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("netpol starts");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("netpol reads its input");
    child.wait_with_output().expect("netpol ends")
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";

#[test]
fn valid_documents_end_with_zero_and_a_summary() {
    let output = check("table", NAMESPACE);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 document, 0 endpoints, 0 policies: valid\n");
}

#[test]
fn invalid_documents_end_with_one_and_say_where_in_json() {
    let output = check("json", &format!("{NAMESPACE}spce: {{}}\n"));
    assert_eq!(output.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        answer,
        serde_json::json!({
            "valid": false,
            "audited": [],
            "errors": [{
                "file": "/dev/stdin",
                "line": 4,
                "column": 1,
                "message": "unknown field `spce`",
                "help": "did you mean `spec`?"
            }],
            "warnings": []
        })
    );
}

#[test]
fn a_path_is_required() {
    let output = Command::new(env!("CARGO_BIN_EXE_netpol")).arg("check").output().expect("netpol starts");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn conflicts_of_services_name_both_places_and_the_cure() {
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let output = check("json", &(service("a") + &service("b")));
    assert_eq!(output.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        answer["errors"],
        serde_json::json!([{
            "file": "/dev/stdin",
            "line": 9,
            "column": 19,
            "message": "services `default/a` and `default/b` both publish 10.96.0.1 port 80/TCP",
            "help": "the other is at /dev/stdin:4:19; give one another address or port"
        }])
    );
    let output = check("table", &service("a"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 document, 0 endpoints, 0 policies, 1 service: valid\n");
}
