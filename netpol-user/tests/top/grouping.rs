//! Connections put together: by their two ends, and by the service that was asked.

use crate::{
    COMMAND, LARGE,
    support::{
        Attempt::Tcp,
        Family, Scene,
        Seen::{Answered, Silent},
        check,
        policy::{from, ingress},
    },
};

/// Port 80 of a service, which `b` and `c` answer.
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10, ports: \
                       [{port: 80}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: \
                       web-1, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 80, \
                       protocol: TCP}]\nendpoints: [{addresses: [10.0.0.20]}, {addresses: [10.0.0.30]}]\n";

#[test]
fn groups_are_by_ends_then_by_service_then_there_are_none() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    host.load(&scene.all(), &[SERVICE.to_owned(), ingress("a", &[from("b", &["81/TCP"])])]);
    let _servers = [b.serve_tcp(80), c.serve_tcp(80), a.serve_tcp(81)];
    // until both have answered
    let answered_by = || -> Vec<String> {
        let flows = host.flows();
        let asked = |flow: &&serde_json::Value| flow["service"] == "default/web:80" && flow["is_reply"] == false;
        let mut who: Vec<_> = flows.iter().filter(asked).map(|flow| flow["destination"]["name"].to_string()).collect();
        who.sort_unstable();
        who.dedup();
        who
    };
    let mut connections = 0;
    while answered_by().len() < 2 {
        assert!(connections < 200, "one backend is always chosen");
        check(&[(a, Tcp("10.96.0.10:80".into()), Answered)]);
        connections += 1;
    }
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(a.at(Family::V4, 81)), Silent)]);
    let arguments = [&COMMAND[..], &["--filter", "proto:tcp"]].concat();
    let mut terminal = host.terminal(LARGE, &[], &arguments);
    let flows = connections + 2;
    terminal.shows(&[&format!("{flows} flows, by PKT/S")]);
    terminal.keys("g");
    // a to b (by the service or not), a to c, and what c is denied
    let screen = terminal.shows(&["3 groups, by PKT/S", "CONNS"]);
    assert!(!screen.contains("service default/web:80"), "{screen}");
    terminal.line(&["✓ allowed", "default/a", "default/b:80"]);
    terminal.line(&["✓ allowed", "default/a", "default/c:80"]);
    terminal.line(&["✗ denied", "default/c", "default/a:81"]);
    terminal.keys("g");
    terminal.shows(&["3 groups by service, by PKT/S"]);
    terminal.line(&["✓ allowed", "default/a ", "service default/web:80", &format!(" {connections} ")]);
    terminal.line(&["✓ allowed", "default/a ", "default/b:80", " 1 "]);
    terminal.line(&["✗ denied", "default/c ", "default/a:81"]);
    terminal.click("service default/web:80");
    terminal.keys("\r");
    terminal.line(&["to", "service default/web:80, whoever answers"]);
    terminal.line(&["connections", &connections.to_string()]);
    terminal.keys("\x1bg");
    terminal.shows(&[&format!("{flows} flows, by PKT/S")]);
    terminal.keys("?");
    terminal.shows(&["each client of a service"]);
    terminal.keys("q");
    assert!(terminal.ends_and_restores().success());
}
