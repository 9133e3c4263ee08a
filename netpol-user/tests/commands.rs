//! The contract of the commands: exit codes, what errors name, fields that scripts rely on, and a
//! `status` that says so when something is not enforced.

mod support;

use std::{fs, process::Output};

use serde_json::Value;
use support::{
    Attempt::Tcp,
    Counts, Family, Host, Scene,
    Seen::{Answered, Silent},
    check,
    policy::{documents, egress, from, ingress, to},
};

/// Runs netpol as root in name only: without these capabilities (`-all`, `-net_admin`).
fn without(host: &Host, capabilities: &str, arguments: &[&str]) -> Output {
    let state = host.folder().join("state");
    let (bounding, bpffs) = (format!("--bounding-set={capabilities}"), host.bpffs().to_str().unwrap());
    let program = env!("CARGO_BIN_EXE_netpol");
    let instance = ["--bpffs", bpffs, "--state", state.to_str().unwrap()];
    host.command("setpriv", &[&[&bounding, "--inh-caps=-all", program][..], &instance, arguments].concat())
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn missing_capability_is_named_and_nothing_changes() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let path = host.documents("load.yaml", &documents(&[a, b, c], &[ingress("b", &[])]));
    let all = without(host, "-all", &["load", &path]);
    assert_eq!(all.status.code(), Some(1));
    assert!(error(&all).contains("CAP_NET_ADMIN (to attach programs)"), "{}", error(&all));
    for (drop, named) in [
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-sys_admin,-bpf", "CAP_BPF"),
        ("-sys_admin,-perfmon", "CAP_PERFMON"),
        ("-sys_admin", "CAP_SYS_ADMIN (to enter network namespaces)"),
    ] {
        let ran = without(host, drop, &["load", &path]);
        assert_eq!(ran.status.code(), Some(1), "{drop}");
        assert!(error(&ran).contains(named) && error(&ran).contains("root"), "{drop}: {}", error(&ran));
        assert!(!host.bpffs().exists(), "{drop}");
    }
    host.load_path(&[], &path);
    for command in [
        &["unload"][..],
        &["status"],
        &["flows"],
        &["verify", &path],
        &["suggest"],
        &["diff", &path],
        &["diff", "--audit"],
    ] {
        let ran = without(host, "-all", command);
        assert_eq!(ran.status.code(), Some(1), "{command:?}");
        assert!(error(&ran).starts_with("netpol: "), "{command:?}: {ran:?}");
    }
    assert!(host.enforced());
}

#[test]
fn questions_about_files_need_no_capability() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let path = host.documents("load.yaml", &documents(&[a, b, c], &[ingress("b", &[])]));
    for command in [
        &["check", &path][..],
        &["matrix", &path, "--port", "80/tcp"],
        &["trace", "--from", "default/a", "--to", "default/b", "--port", "80/tcp", &path],
        &["diff", "--from", &path, &path, "--port", "80/tcp"],
    ] {
        let ran = without(host, "-all", command);
        assert!(matches!(ran.status.code(), Some(0 | 1)), "{command:?}");
        assert!(!ran.stdout.is_empty() && ran.stderr.is_empty(), "{command:?}: {}", error(&ran));
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let host = Host::new();
    let path = host.documents("empty.yaml", "");
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["load"],
        &["load", &path, "--forwarding", "sideways"],
        &["load", &path, "-o", "xml"],
        &["status", "extra"],
        &["flows", "--verdict", "perhaps"],
        &["matrix", &path, "--port", "80/tcpp"],
        &["diff"],
        &["suggest", "--since", "soon"],
        &["trace", &path],
        &["verify", &path, "--timeout", "0"],
    ] {
        let ran = host.netpol(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {ran:?}");
        assert!(ran.stdout.is_empty() && ran.stderr.contains("--help"), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn commands_about_nothing_say_what_to_do() {
    let host = Host::new();
    for command in [&["flows"][..], &["endpoints"], &["identities"], &["policies"], &["suggest"], &["diff", "--audit"]]
    {
        let ran = host.netpol(command);
        assert_eq!(ran.code, 1, "{command:?}");
        assert!(ran.stderr.contains("netpol load PATH"), "{command:?}: {}", ran.stderr);
    }
    let status = host.netpol(&["status", "-o", "json"]);
    assert_eq!((status.code, &status.json()["enforced"]), (1, &false.into()));
}

/// What a listing says, which must be the same in both notations.
#[track_caller]
fn listing(host: &Host, arguments: &[&str]) -> Value {
    let json = host.netpol(&[arguments, &["-o", "json"]].concat());
    let yaml = host.netpol(&[arguments, &["-o", "yaml"]].concat());
    let table = host.netpol(&[arguments, &["-o", "table"]].concat());
    assert_eq!((json.code, yaml.code), (table.code, table.code), "{arguments:?}");
    assert!(!table.stdout.trim().is_empty(), "{arguments:?}");
    let (json, yaml): (Value, Value) = (json.json(), serde_saphyr::from_str(&yaml.stdout).unwrap());
    let shape = |value: &Value| match value {
        Value::Array(rows) => (rows.len(), rows.first().and_then(Value::as_object).map(|row| row.keys().count())),
        Value::Object(fields) => (fields.len(), None),
        other => panic!("{arguments:?}: {other}"),
    };
    assert_eq!(shape(&json), shape(&yaml), "{arguments:?}");
    json
}

#[track_caller]
fn has(value: &Value, fields: &[&str]) {
    for field in fields {
        let mut at = value;
        for part in field.split('.') {
            at = at.get(part).unwrap_or_else(|| panic!("no {field} in {value:#}"));
        }
    }
}

#[test]
fn listings_have_the_fields_that_scripts_rely_on() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    let pending = "apiVersion: netpol.dev/v1\nkind: Endpoint\nmetadata: {name: gone}\nspec: {netns: npt-gone}\n";
    let policies = [ingress("b", &[from("a", &["80/TCP"])]), egress("c", &[to("a", &[])]), pending.to_owned()];
    let path = &host.documents("load.yaml", &documents(&[a, b, c], &policies));
    let load = listing(host, &["load", path]);
    has(&load, &["generation", "endpoints", "identities", "policies", "changed", "pending"]);
    assert_eq!((&load["policies"], &load["endpoints"]), (&2.into(), &3.into()));
    check(&[
        (a, Tcp(b.at(Family::V4, 80)), Answered),
        (c, Tcp(b.at(Family::V6, 80)), Silent),
        (a, Tcp(b.at(Family::V4, 81)), Silent),
    ]);

    let status = listing(host, &["status"]);
    has(&status, &["enforced", "generation", "problems", "pending", "unprotected", "stack", "counters"]);
    assert_eq!((&status["enforced"], &status["problems"]), (&true.into(), &serde_json::json!([])));
    let rows = status["counters"].as_array().unwrap();
    has(&rows[0], &["direction", "verdict", "reason", "packets", "bytes"]);
    let dropped = |row: &&Value| row["verdict"] == "dropped" && row["reason"] == "policy-ingress";
    assert!(rows.iter().find(dropped).unwrap()["packets"].as_u64() > Some(0));

    let endpoints = listing(host, &["endpoints"]);
    assert_eq!(endpoints.as_array().unwrap().len(), 4);
    has(&endpoints[0], &["namespace", "name", "state", "labels", "addresses", "interface", "isolated.ingress"]);
    assert_eq!((&endpoints[3]["state"], &endpoints[3]["name"]), (&"pending".into(), &"gone".into()));

    let identities = listing(host, &["identities"]);
    has(&identities[0], &["identity", "endpoints", "networks"]);
    let listed = listing(host, &["policies"]);
    has(&listed[0], &["tier", "kind", "namespace", "name", "source", "endpoints"]);
    assert!(listed[0]["source"].as_str().unwrap().contains("load.yaml:"), "{listed:#}");

    let flows = listing(host, &["flows"]);
    for flow in flows.as_array().unwrap() {
        has(flow, &["time", "verdict", "drop_reason", "protocol", "direction", "rule", "packets", "bytes", "is_reply"]);
        for end in ["source", "destination"] {
            has(&flow[end], &["namespace", "name", "identity", "address", "port", "labels"]);
        }
    }
    let flow = host.flow("a", "b", 80);
    assert_eq!(flow["source"]["labels"]["app"], "a");
    assert_eq!((&flow["protocol"], &flow["direction"]), (&"TCP".into(), &"egress".into()));
    assert!(flow["source"]["identity"].is_u64() && flow["rule"]["source"].as_str().unwrap().contains("load.yaml:"));
    let only = |verdict: &str| host.netpol(&["flows", "-o", "json", "--verdict", verdict]).json();
    assert!(only("denied").as_array().unwrap().iter().all(|flow| flow["verdict"] == "denied"));
    assert!(only("allowed").as_array().unwrap().iter().all(|flow| flow["verdict"] == "allowed"));

    let matrix = listing(host, &["matrix", path, "--port", "80/tcp"]);
    has(&matrix["rows"][0], &["from", "to", "port", "protocol", "allowed", "egress", "ingress"]);
    let trace = ["trace", "--from", "default/a", "--to", "default/b", "--port", "81/tcp", path];
    let trace = listing(host, &trace);
    has(&trace, &["from", "to", "allowed", "egress.allowed", "ingress.rule", "ingress.reason"]);
    let verdict = listing(host, &["check", path]);
    has(&verdict, &["valid", "errors", "warnings"]);
    let proof = listing(host, &["verify", path, "--port", "80/tcp"]);
    has(&proof, &["ok", "rows"]);
    assert_eq!(proof["ok"], true);
}

#[test]
fn table_of_flows_names_the_rule_of_each_denial() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    host.load(&[a, b, c], &[ingress("b", &[from("a", &["80/TCP"])])]);
    check(&[(c, Tcp(b.at(Family::V4, 80)), Silent)]);
    let table = host.netpol(&["flows"]).ok();
    let line = table.lines().find(|line| line.contains("default/c:")).unwrap_or_else(|| panic!("{table}"));
    for part in [
        "policy-ingress",
        "default/b:80",
        "NetworkPolicy default/b-ingress",
        "ingress at ",
        "and no rule allows tcp/80 from default/c",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn deleted_pin_is_told_by_status_and_repaired_by_load() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    let policies = [ingress("b", &[])];
    host.load(&[a, b, c], &policies);
    let index = host.net(async |net| net.index("v-b").await);
    let links = host.bpffs().join("links");
    let pins: Vec<_> = fs::read_dir(links).unwrap().map(|entry| entry.unwrap().path()).collect();
    let of_b = pins.iter().filter(|pin| pin.file_name().unwrap().to_str().unwrap().starts_with(&format!("{index}-")));
    let of_b: Vec<_> = of_b.collect();
    assert_eq!(of_b.len(), 2);
    of_b.iter().for_each(|pin| fs::remove_file(pin).unwrap());
    // the kernel lets go of a link some time after its pin is gone
    let told = (0..200).any(|_| !host.enforced());
    assert!(told, "status says that it is enforced");
    let status = host.netpol(&["status"]);
    assert_eq!(status.code, 1);
    assert!(status.stdout.starts_with("NOT ENFORCED"), "{}", status.stdout);
    assert!(status.stdout.contains("default/b: nothing is attached to v-b"), "{}", status.stdout);
    let report = host.load(&[a, b, c], &policies);
    assert_eq!((&report["attached"], &report["changed"]), (&serde_json::json!(["v-b"]), &true.into()));
    assert!(host.enforced());
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]);
}

#[test]
fn program_in_front_is_told_by_status() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let path = host.documents("load.yaml", &documents(&[a, b, c], &[ingress("b", &[])]));
    host.load_path(&[], &path);
    assert!(host.enforced());
    // another instance's classifiers come first, as anybody's could
    let (other, state) = (format!("{}-other", host.bpffs().display()), host.folder().join("other"));
    let (other, state) = (other.as_str(), state.to_str().unwrap());
    let program = env!("CARGO_BIN_EXE_netpol");
    host.run(program, &["--bpffs", other, "--state", state, "load", &path]);
    let status = host.netpol(&["status", "-o", "json"]);
    assert_eq!((status.code, &status.json()["enforced"]), (1, &false.into()));
    let problem = status.json()["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.starts_with("default/a: program "), "{problem}");
    assert!(problem.contains("_workload on v-a is in front of netpol"), "{problem}");
    // the cure that it names, tried
    assert!(problem.ends_with("take it off, or `netpol unload` and `netpol load` again, which puts netpol in front"));
    host.netpol(&["unload"]).ok();
    host.load_path(&[], &path);
    assert!(host.enforced(), "{}", host.status());
    host.run(program, &["--bpffs", other, "--state", state, "unload"]);
    assert!((0..200).any(|_| host.enforced()), "{}", host.status());
}

#[test]
fn folder_that_is_no_bpffs_is_refused() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let path = host.documents("load.yaml", &documents(&[a, b, c], &[]));
    let folder = host.folder().join("pins");
    let state = host.folder().join("other");
    let program = env!("CARGO_BIN_EXE_netpol");
    let arguments = ["--bpffs", folder.to_str().unwrap(), "--state", state.to_str().unwrap(), "load", &path];
    let ran = host.command(program, &arguments);
    assert_eq!(ran.status.code(), Some(1));
    assert!(error(&ran).contains("is not in a BPF file system; mount one there"), "{}", error(&ran));
    assert!(!folder.exists());
}

#[test]
fn counters_of_status_are_what_the_classifiers_counted() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    host.load(&[a, b, c], &[ingress("b", &[])]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]);
    let before = host.counts();
    let status = host.status();
    let after = host.counts();
    for row in status["counters"].as_array().unwrap() {
        let text = |field: &str| row[field].as_str().unwrap().to_owned();
        let name = format!("{} {} {}", text("direction"), text("verdict"), text("reason"));
        let packets = row["packets"].as_u64().unwrap();
        assert!((before.of(&name)..=after.of(&name)).contains(&packets), "{name}");
    }
    assert_ne!(before, Counts::default());
}
