//! Of what is loaded, beside the kernel's own answer.

use netpol_user::datapath::{Datapath, Pass, Pins};
use serde_json::json;

use super::agreed;
use crate::support::{
    Attempt, Family, HOST, Host, LAYOUTS, Layout, Scene, Seen, check,
    policy::{documents, egress, from, ingress, to},
};

const VIRTUAL: [&str; 2] = ["10.96.0.10", "fd96::10"];

/// Port 80 of virtual addresses, and 8000 of the host, lead to 8080 of these.
fn service(name: &str, selector: &str) -> String {
    let [four, six] = VIRTUAL;
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: NodePort\n  selector: {selector}\n  \
         clusterIPs: ['{four}', '{six}']\n  clusterIP: '{four}'\n  ports:\n  \
         - {{name: t, port: 80, targetPort: 8080, nodePort: 8000, protocol: TCP}}\n  \
         - {{name: u, port: 80, targetPort: 8080, nodePort: 8000, protocol: UDP}}\n"
    )
}

fn pool(layout: Layout) -> String {
    let [four, six] = match layout {
        Layout::Bridged => ["10.0.0.0/16", "fd00::/64"],
        Layout::Routed => ["10.1.0.0/16", "fd01::/64"],
    };
    let pool = |name: &str, cidr: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\n\
             spec: {{cidr: '{cidr}', natOutgoing: true}}\n"
        )
    };
    [pool("four", four), pool("six", six)].join("---\n")
}

impl Scene {
    #[track_caller]
    fn load_all(&self, flags: &[&str], more: &[String]) {
        let path = self.host.documents("trace.yaml", &documents(&self.all(), more));
        self.host.netpol(&[&["load", "--uplink", "v-outside"], flags, &[&path]].concat()).ok();
    }
}

/// Everything that a packet could have left behind: generation, counters, flows and denials with theirs.
fn memory(host: &Host) -> String {
    let datapath = Datapath::open(&Pins::at(host.bpffs())).unwrap();
    let mut records: Vec<_> = datapath
        .records()
        .unwrap()
        .into_iter()
        .map(|r| {
            format!("{:?} {} {} {:?}", (r.interface, r.side), r.source, r.destination, (r.packets, r.flags, r.denied))
        })
        .collect();
    records.sort();
    // neighbours go on finding each other
    let counters = datapath.counters().unwrap().into_iter().filter(|counter| counter.verdict != Ok(Pass::Control));
    format!("{:?} {:?} {records:#?}", datapath.live().unwrap(), counters.collect::<Vec<_>>())
}

/// Runs `f`, after which the classifiers remember and count what they did before.
#[track_caller]
pub fn unnoticed<T>(host: &Host, f: impl FnOnce() -> T) -> T {
    let before = memory(host);
    let result = f();
    assert_eq!(memory(host), before);
    result
}

#[test]
fn kernel_and_rules_name_the_same_rule_and_nobody_notices_bridged() {
    same_rule_and_nobody_notices(Layout::Bridged);
}

#[test]
fn kernel_and_rules_name_the_same_rule_and_nobody_notices_routed() {
    same_rule_and_nobody_notices(Layout::Routed);
}

fn same_rule_and_nobody_notices(layout: Layout) {
    let scene = Scene::new(layout);
    let Scene { host, b, .. } = &scene;
    let policies = [ingress("b", &[from("a", &["80/TCP", "53/UDP"])]), egress("c", &[to("a", &["80/TCP"])])];
    scene.load_all(&[], &policies);
    unnoticed(host, || {
        let said = agreed(host, "a", "b", "80/tcp");
        let step = &said["kernel"]["steps"][0];
        assert_eq!((&step["hook"], &step["interface"]), (&json!("from_workload"), &json!("v-a")), "{said:#}");
        let rule = &step["ingress_rule"];
        assert_eq!((&rule["kind"], &rule["index"]), (&json!("NetworkPolicy"), &json!(0)));
        assert_eq!(rule["source"], said["ingress"]["rule"]["source"]);
        assert_eq!(step["egress_rule"], json!(null), "no policy is about the egress of a");

        // isolated, and no rule allows it
        let denied = agreed(host, "a", "b", "81/tcp");
        assert_eq!(denied["kernel"]["drop_reason"], "policy-ingress");
        assert_eq!(denied["kernel"]["steps"][0]["ingress_rule"]["index"], json!(null));
        assert_eq!(denied["kernel"]["delivery"], json!(null));
        let denied = agreed(host, "c", "b", "80/tcp");
        assert_eq!(denied["kernel"]["drop_reason"], "policy-egress");

        for port in ["53/udp", "54/udp", "icmp", "9/sctp"] {
            agreed(host, "a", "b", port);
        }
        let six = b.ip(Family::V6).to_string();
        assert_eq!(agreed(host, "a", &six, "80/tcp")["allowed"], true);
        assert_eq!(agreed(host, "c", &six, "80/tcp")["allowed"], false);
        // the outside and the host
        assert_eq!(agreed(host, "a", "192.0.2.9", "80/tcp")["allowed"], true);
        assert_eq!(agreed(host, "192.0.2.9", "b", "80/tcp")["allowed"], false);
        assert_eq!(agreed(host, "192.0.2.9", "a", "80/tcp")["allowed"], true);
        assert_eq!(agreed(host, HOST[0], "b", "80/tcp")["allowed"], true, "the host is not judged");
        assert_eq!(agreed(host, "a", HOST[0], "80/tcp")["allowed"], true);
        assert_eq!(agreed(host, "c", HOST[0], "80/tcp")["allowed"], false);
    });
    scene.load_all(&["--police-host"], &policies);
    assert_eq!(agreed(host, HOST[0], "b", "80/tcp")["allowed"], false, "the host is judged");
}

#[test]
fn delivery_is_told_with_its_reason() {
    for (layout, way) in [(Layout::Bridged, "direct"), (Layout::Routed, "routed")] {
        let scene = Scene::new(layout);
        scene.load_all(&[], &[]);
        assert_eq!(agreed(&scene.host, "a", "b", "80/tcp")["kernel"]["delivery"]["way"], way);
        scene.load_all(&["--forwarding", "stack"], &[]);
        let said = agreed(&scene.host, "a", "b", "80/tcp");
        assert_eq!(said["kernel"]["delivery"], json!({"way": "stack", "reason": "--forwarding stack"}), "{said:#}");
    }
}

#[test]
fn service_is_traced_through_to_every_backend() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { host, b, c, .. } = &scene;
        let web = service("web", "{tier: web}");
        let tier = |document: String| document.replace("labels: {", "labels: {tier: web, ");
        let policy = ingress("c", &[]);
        let parts = [scene.a.document(), tier(b.document()), tier(c.document()), web, policy];
        for flags in [&[][..], &["--forwarding", "stack"]] {
            let path = host.documents("trace.yaml", &parts.join("---\n"));
            host.netpol(&[&["load", "--uplink", "v-outside"], flags, &[&path]].concat()).ok();
            unnoticed(host, || {
                let [four, six] = VIRTUAL;
                let names: &[&str] = if flags.is_empty() { &["web", "service/default/web"] } else { &[] };
                for &to in [four, six, HOST[0]].iter().chain(names) {
                    let port = if to == HOST[0] { "8000/tcp" } else { "80/tcp" };
                    let (code, said) = super::ask(host, "a", to, port);
                    assert_eq!((code, &said["kernel"]["differences"]), (0, &json!([])), "{to}: {said:#}");
                    assert_eq!(said["allowed"], false, "one of both is denied");
                    let backends = said["translation"]["backends"].as_array().unwrap();
                    let told = |name: &str| backends.iter().find(|backend| backend["endpoint"] == name).unwrap();
                    assert_eq!(told("default/b")["allowed"], true, "{said:#}");
                    assert_eq!(told("default/c")["allowed"], false);
                    let chosen: Vec<_> = backends.iter().filter(|backend| backend["chosen"] == true).collect();
                    assert_eq!(chosen.len(), 1, "{said:#}");
                    assert_eq!(said["kernel"]["allowed"], chosen[0]["allowed"]);
                    let leaves = &said["kernel"]["steps"][0]["translated"]["destination"];
                    let to = std::net::SocketAddr::new(chosen[0]["address"].as_str().unwrap().parse().unwrap(), 8080);
                    assert_eq!(leaves, &json!(to.to_string()), "{said:#}");
                }
            });
        }
        // an endpoint reaches itself, whatever its policies say
        let path = host.documents(
            "trace.yaml",
            &[tier(c.document()), service("web", "{tier: web}"), ingress("c", &[])].join("---\n"),
        );
        host.netpol(&["load", "--uplink", "v-outside", &path]).ok();
        let said = agreed(host, "c", VIRTUAL[0], "80/tcp");
        assert_eq!(
            (&said["allowed"], &said["kernel"]["delivery"]["way"]),
            (&json!(true), &json!("routed")),
            "{said:#}"
        );
        // nobody behind it
        let path = host.documents("trace.yaml", &[c.document(), service("web", "{tier: none}")].join("---\n"));
        host.netpol(&["load", "--uplink", "v-outside", &path]).ok();
        let said = agreed(host, "c", VIRTUAL[0], "80/tcp");
        assert_eq!(said["kernel"]["drop_reason"], "no-backend");
    }
}

#[test]
fn client_that_stays_with_a_backend_is_told_that_one() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let _servers = (b.serve_tcp(8080), c.serve_tcp(8080));
    let sticky = service("web", "{tier: web}").replace("type: NodePort", "type: NodePort\n  sessionAffinity: ClientIP");
    let tier = |document: String| document.replace("labels: {", "labels: {tier: web, ");
    let load = |backends: &[String]| {
        let parts = [&[a.document()], backends, std::slice::from_ref(&sticky)].concat();
        host.load_path(&["--uplink", "v-outside"], &host.documents("trace.yaml", &parts.join("---\n")));
    };
    let chosen = || {
        let said = agreed(host, "a", VIRTUAL[0], "80/tcp");
        let backends = said["translation"]["backends"].as_array().unwrap();
        backends.iter().find(|backend| backend["chosen"] == true).unwrap()["endpoint"].as_str().unwrap().to_owned()
    };
    load(&[tier(b.document()), tier(c.document())]);
    // whom the table does not give it: it asks while only that one is there
    let table = chosen();
    let other = if table == "default/b" { c } else { b };
    load(&[tier(other.document())]);
    check(&[(a, Attempt::Tcp(format!("{}:80", VIRTUAL[0])), Seen::Answered)]);
    load(&[tier(b.document()), tier(c.document())]);
    assert_eq!(chosen(), format!("default/{}", other.name));
}

#[test]
fn published_port_is_traced_from_outside_and_from_the_host() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let host = &scene.host;
        scene.load_all(&[], &[service("b", "{app: b}"), pool(layout), ingress("b", &[from("a", &[])])]);
        unnoticed(host, || {
            let said = agreed(host, "192.0.2.9", HOST[0], "8000/tcp");
            let hooks: Vec<_> = said["kernel"]["steps"].as_array().unwrap().iter().map(|step| &step["hook"]).collect();
            assert_eq!(hooks, [&json!("from_uplink")], "denied before there is a translation: {said:#}");
            assert_eq!((&said["allowed"], &said["kernel"]["drop_reason"]), (&json!(false), &json!("policy-ingress")));
            assert_eq!(agreed(host, "2001:db8::9", HOST[1], "8000/udp")["allowed"], false);
            let own = agreed(host, HOST[0], HOST[0], "8000/tcp");
            assert_eq!(own["allowed"], true, "the host's sockets get the backend's address: {own:#}");
        });
        scene.load_all(&[], &[service("b", "{app: b}"), pool(layout)]);
        let said = agreed(host, "192.0.2.9", HOST[0], "8000/tcp");
        assert_eq!(
            (&said["allowed"], &said["kernel"]["delivery"]["way"]),
            (&json!(true), &json!("routed")),
            "{said:#}"
        );
        assert_eq!(agreed(host, "192.0.2.9", "b", "8080/tcp")["allowed"], true, "by its own address, too");
        scene.load_all(&["--forwarding", "stack"], &[service("b", "{app: b}"), pool(layout)]);
        let said = agreed(host, "192.0.2.9", HOST[0], "8000/tcp");
        let steps = said["kernel"]["steps"].as_array().unwrap();
        let hooks: Vec<_> = steps.iter().map(|step| &step["hook"]).collect();
        assert_eq!(hooks, [&json!("from_uplink"), &json!("to_workload")], "{said:#}");
        assert_eq!(steps[1]["source"], "192.0.2.9:50000", "the client's own address");
    }
}

#[test]
fn masquerade_is_told_before_and_after() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { host, a, .. } = &scene;
        scene.load_all(&[], &[pool(layout)]);
        unnoticed(host, || {
            let said = agreed(host, "a", "192.0.2.9", "80/tcp");
            let masquerade = &said["masquerade"];
            assert_eq!(masquerade["before"], format!("{}:50000", a.ipv4()), "{said:#}");
            assert_eq!(masquerade["after"], format!("{}:50000", HOST[0]), "{said:#}");
            assert_eq!((&masquerade["uplink"], &masquerade["pool"]), (&json!("v-outside"), &json!("four")));
            assert!(masquerade["source"].as_str().unwrap().contains("trace.yaml:"));
            let six = agreed(host, "a", "2001:db8::9", "icmp");
            assert_eq!(six["masquerade"]["pool"], "six", "{six:#}");
            for (to, what) in [("b", "another endpoint"), (HOST[0], "the host")] {
                assert_eq!(agreed(host, "a", to, "80/tcp").get("masquerade"), None, "{what}");
            }
        });
        let said = agreed(host, "a", "192.0.2.9", "80/tcp");
        assert_eq!(said["kernel"]["delivery"]["way"], "out", "{said:#}");
        scene.load_all(&["--forwarding", "stack"], &[pool(layout)]);
        let said = agreed(host, "a", "192.0.2.9", "80/tcp");
        assert_eq!(said["kernel"]["steps"][1]["hook"], "to_uplink", "{said:#}");
        let told = host.netpol(&["trace", "--from", "a", "--to", "192.0.2.9", "--port", "80/tcp"]).ok();
        let line = format!("\n\nmasquerade: {}:50000 becomes 192.0.2.1:50000 out of v-outside, by pool four", a.ipv4());
        assert!(told.contains(&line), "{told}");
    }
}

#[test]
fn audited_policies_say_what_they_would_and_the_kernel_what_is() {
    let scene = Scene::bridged();
    let policy = ingress("b", &[]).replace("metadata: {", "metadata: {annotations: {netpol.dev/audit: 'true'}, ");
    scene.load_all(&[], &[policy]);
    let said = agreed(&scene.host, "a", "b", "80/tcp");
    assert_eq!((&said["allowed"], &said["audit"]["allowed"]), (&json!(true), &json!(false)), "{said:#}");
}

#[test]
fn people_read_the_way_from_hook_to_hook() {
    let scene = Scene::bridged();
    let host = &scene.host;
    scene.load_all(&[], &[service("b", "{app: b}"), ingress("b", &[from("a", &["8080/TCP"])])]);
    let told = host.netpol(&["trace", "--from", "a", "--to", VIRTUAL[0], "--port", "80/tcp"]).ok();
    for line in [
        "tcp/80 from default/a to 10.96.0.10",
        "  to    service default/b  10.96.0.10:80  its port 80  (",
        "translation: to one backend, by a hash of the client's address and port",
        "  ✓ default/b:8080  10.0.0.20  (the kernel's choice)  allowed",
        "ingress of default/b: allowed",
        "verdict: allowed",
        "the kernel (generation 1): allowed",
        "  from_workload on v-a: 10.0.0.10:50000 to 10.96.0.10:80: passed routed",
        "    leaves as 10.0.0.10:50000 to 10.0.0.20:8080",
        "    by NetworkPolicy default/b-ingress",
        "  as the rules say (asked of a copy of the classifiers, to the instruction, that no packet passes)",
    ] {
        assert!(told.contains(line), "{line:?} is not in:\n{told}");
    }
}
