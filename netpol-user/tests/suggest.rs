//! `netpol suggest`: what it writes from real connections allows these and no others.

mod support;

use support::{
    Attempt::{self, Ping, Tcp, Udp},
    Endpoint, FAMILIES, Family, HOST, LAYOUTS, Layout, Scene, Seen,
    Seen::{Answered, Silent},
    check,
    policy::{documents, from, ingress},
};

/// Loads the endpoints with what is suggested, and gives that back.
fn load_suggested(scene: &Scene, arguments: &[&str]) -> String {
    let Scene { host, a, b, c, .. } = scene;
    let text = host.netpol(&[&["suggest"], arguments].concat()).ok();
    let policies = host.documents("suggested.yaml", &text);
    let checked = host.netpol(&["check", &policies]);
    assert_eq!(checked.code, 0, "{}{text}", checked.stdout);
    let endpoints = host.documents("endpoints.yaml", &documents(&[a, b, c], &[]));
    let diff = host.netpol(&["diff", "--port", "80/tcp", "-o", "json", &endpoints, &policies]).json();
    assert_eq!(diff["flows_cut"], serde_json::json!([]), "{text}");
    host.netpol(&["load", &endpoints, &policies]).ok();
    text
}

/// What is tried, and whether it is wanted.
fn attempts(Scene { a, b, c, outside, .. }: &Scene) -> Vec<(&Endpoint, Attempt, bool)> {
    let mut all = vec![];
    for family in FAMILIES {
        all.extend([
            (a, Tcp(b.at(family, 80)), true),
            (a, Tcp(b.at(family, 81)), false),
            (c, Tcp(b.at(family, 80)), false),
            (b, Tcp(a.at(family, 80)), false),
            (b, Udp(c.at(family, 53)), true),
            (a, Udp(c.at(family, 53)), false),
            (outside, Tcp(a.at(family, 80)), true),
            (outside, Tcp(b.at(family, 80)), false),
            (c, Tcp(outside.at(family, 80)), true),
            (c, Tcp(outside.at(family, 81)), false),
            (b, Tcp(outside.at(family, 80)), false),
        ]);
    }
    all
}

fn expected<'a>(all: &[(&'a Endpoint, Attempt, bool)]) -> Vec<(&'a Endpoint, Attempt, Seen)> {
    let seen = |wanted: &bool| if *wanted { Answered } else { Silent };
    all.iter().map(|(from, attempt, wanted)| (*from, attempt.clone(), seen(wanted))).collect()
}

fn same_connections_work_and_others_do_not(layout: Layout, format: &str) {
    let scene = Scene::new(layout);
    let Scene { host, a, b, c, outside } = &scene;
    let _servers = (b.serve_tcp(80), b.serve_tcp(81), a.serve_tcp(80), c.serve_udp(53));
    let _more = (outside.serve_tcp(80), outside.serve_tcp(81));
    host.load(&[a, b, c], &[]);
    let all = attempts(&scene);
    let wanted: Vec<_> = all.iter().filter(|(.., wanted)| *wanted).cloned().collect();
    check(&expected(&wanted));
    let text = load_suggested(&scene, &["--format", format]);
    assert!(text.starts_with("# Suggested by netpol from 8 connections, last seen from 20"), "{text}");
    check(&expected(&all));
    // what is remembered now is what was wanted: the same again, and what was denied as comments
    let again = host.netpol(&["suggest", "--format", format]).ok();
    let rules =
        |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(ToOwned::to_owned).collect::<Vec<_>>();
    assert_eq!(rules(&again), rules(&text));
    assert!(again.contains("# 14 attempts were denied, also here (--include-denied allows them):"), "{again}");
    assert!(again.contains("#   tcp/81 from default/a to default/b: 2 attempts, "), "{again}");
}

#[test]
fn same_connections_work_and_others_do_not_on_a_bridge() {
    same_connections_work_and_others_do_not(Layout::Bridged, "kubernetes");
}

#[test]
fn same_connections_work_and_others_do_not_where_the_host_routes() {
    same_connections_work_and_others_do_not(Layout::Routed, "calico");
}

#[test]
fn calico_has_rules_for_echo_where_kubernetes_has_a_comment() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { host, a, b, c, .. } = &scene;
        host.load(&[a, b, c], &[]);
        check(&FAMILIES.map(|family| (a, Ping(b.ip(family)), Answered)));
        let kubernetes = host.netpol(&["suggest"]).ok();
        for line in
            ["# Not expressible here: icmp/8/0 to default/b", "# Not expressible here: icmpv6/128/0 from default/a"]
        {
            assert!(kubernetes.contains(line), "{line} in {kubernetes}");
        }
        load_suggested(&scene, &["--format", "calico"]);
        for family in FAMILIES {
            check(&[
                (a, Ping(b.ip(family)), Answered),
                (b, Ping(a.ip(family)), Silent),
                (c, Ping(b.ip(family)), Silent),
            ]);
        }
    }
}

#[test]
fn denials_become_rules_when_they_are_asked_for() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let _server = b.serve_tcp(80);
    host.load(&[a, b, c], &[ingress("b", &[from("a", &["80/TCP"])])]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V4, 80)), Silent)]);
    let listed = host.netpol(&["suggest"]).ok();
    let line = "#   tcp/80 from default/c to default/b: 1 attempt, ";
    let line = listed.lines().find(|one| one.starts_with(line)).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("NetworkPolicy default/b-ingress") && line.contains("load.yaml:"), "{line}");
    assert!(!listed.contains("app: c\n        ports"), "{listed}");
    let text = load_suggested(&scene, &["--include-denied"]);
    assert!(text.contains("# 1 attempt was denied until now, and allowed here"), "{text}");
    check(&[
        (a, Tcp(b.at(Family::V4, 80)), Answered),
        (c, Tcp(b.at(Family::V6, 80)), Answered),
        (c, Tcp(a.at(Family::V4, 80)), Silent),
    ]);
}

#[test]
fn host_needs_no_rule_unless_it_is_policed() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let (itself, _server) = (host.itself(), b.serve_tcp(80));
    let call = [(&itself, Tcp(b.at(Family::V4, 80)), Answered)];
    host.load(&[a, b, c], &[]);
    check(&call);
    let text = host.netpol(&["suggest"]).ok();
    assert!(text.contains("# The host spoke to 80/tcp"), "{text}");
    assert!(!text.contains("ipBlock"), "{text}");
    host.load_with(&["--police-host"], &[a, b, c], &[]);
    check(&call);
    let text = host.netpol(&["suggest"]).ok();
    assert!(text.contains("cidr: 10.0.0.1/32"), "{text}");
    assert!(!text.contains(HOST[0]), "{text}");
    // with both directions of everybody isolated, the host is let in by its address alone
    let policies = host.documents("suggested.yaml", &text);
    let endpoints = host.documents("endpoints.yaml", &documents(&[a, b, c], &[]));
    host.netpol(&["load", "--police-host", &endpoints, &policies]).ok();
    check(&[call[0].clone(), (&itself, Tcp(b.at(Family::V6, 80)), Silent)]);
}

#[test]
fn only_what_was_seen_since_then_counts() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let _servers = (b.serve_tcp(80), c.serve_tcp(80));
    host.load(&[a, b, c], &[]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    check(&[(a, Tcp(c.at(Family::V4, 80)), Answered)]);
    let count = |arguments: &[&str]| {
        let text = host.netpol(&[&["suggest"], arguments].concat()).ok();
        text.split("from ").nth(1).unwrap().split(' ').next().unwrap().parse::<usize>().unwrap()
    };
    assert_eq!((count(&[]), count(&["--since", "1h"])), (2, 2));
    // however long the commands take: what is older when it is asked is left out, what is younger afterwards is not
    let recent = || {
        let opened = |flow: &&serde_json::Value| flow["is_reply"] == false && flow["direction"] == "egress";
        host.flows().iter().filter(opened).filter(|flow| flow["idle_seconds"].as_f64() <= Some(2.0)).count()
    };
    let (before, seen, after) = (recent(), count(&["--since", "2s"]), recent());
    assert!(before <= 1 && (after..=before).contains(&seen), "{before} {seen} {after}");
    let none = host.netpol(&["suggest", "--since", "0s"]);
    assert!(none.code == 0 && none.stderr.contains("these policies deny everything"), "{none:?}");
    assert_eq!(host.netpol(&["suggest", "--since", "soon"]).code, 2);
}
