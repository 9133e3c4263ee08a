use super::*;

fn rule(number: u32) -> Option<Rule> {
    Some(Rule {
        kind: "NetworkPolicy".into(),
        namespace: Some("shop".into()),
        name: format!("p{number}"),
        direction: "ingress".into(),
        index: (!number.is_multiple_of(2)).then_some(number),
        source: format!("p.yaml:{number}"),
    })
}

fn hit(packets: u64) -> Hits {
    Hits { flows: 1, packets, bytes: 100 * packets }
}

fn written(rules: &[(Option<Rule>, Hits)]) -> String {
    let mut text = Exposition::default();
    by_rule(&mut text, rules);
    text.finish()
}

#[test]
fn a_rule_has_a_series_with_its_place() {
    let text = written(&most([(1, hit(3)), (2, hit(4))].into(), rule));
    let one = r#"netpol_rule_packets{kind="NetworkPolicy",namespace="shop",name="p1",direction="ingress",rule="1",source="p.yaml:1"} 3"#;
    assert!(text.lines().any(|line| line == one), "{text}");
    assert!(text.contains(r#"name="p2",direction="ingress",rule="default-deny",source="p.yaml:2"} 4"#), "{text}");
    assert!(!text.contains("other"));
}

#[test]
fn ten_thousand_rules_make_a_thousand_series_and_lose_no_packet() {
    let hits: BTreeMap<u32, Hits> = (1..=10_000).map(|number| (number, hit(number.into()))).collect();
    let all: u64 = hits.values().map(|hits| hits.packets).sum();
    let rules = most(hits, rule);
    assert_eq!(rules.len(), RULES);
    assert_eq!(rules.iter().map(|(_, hits)| hits.packets).sum::<u64>(), all);
    let text = written(&rules);
    let series = |family: &str| text.lines().filter(|line| line.starts_with(&format!("{family}{{"))).count();
    assert_eq!(series("netpol_rule_packets"), RULES);
    // the busiest are those that keep their names
    assert!(text.contains(r#"name="p10000""#) && !text.contains(r#"name="p1""#));
    assert!(text.contains("netpol_rule_flows{rule=\"other\"} 9001\n"), "{text}");
}

#[test]
fn rules_of_lost_names_are_summed_up() {
    let text = written(&most([(1, hit(3)), (2, hit(4))].into(), |_| None));
    assert!(text.contains("netpol_rule_packets{rule=\"other\"} 7\n"), "{text}");
}

#[test]
fn nothing_loaded_is_not_enforced() {
    let nothing = enforce::Instance::new("/nonexistent/pins".as_ref(), "/nonexistent/state".as_ref());
    let text = Sample::read(&nothing).unwrap().text();
    assert!(text.contains("\nnetpol_enforced 0\n") && text.contains("\nnetpol_generation 0\n"), "{text}");
    assert!(!text.contains("netpol_packets_total"));
}

#[test]
fn every_reason_has_its_series_before_it_occurs() {
    let mut text = Exposition::default();
    packets(&mut text, &[Counter { side: Side::To, verdict: Err(Drop::Spoofed), packets: 2, bytes: 120 }]);
    let text = text.finish();
    let series = 2 * (Pass::ALL.len() + Drop::ALL.len());
    assert_eq!(text.lines().filter(|line| line.starts_with("netpol_packets_total{")).count(), series);
    for line in [
        r#"netpol_packets_total{direction="ingress",verdict="dropped",reason="spoofed"} 2"#,
        r#"netpol_bytes_total{direction="ingress",verdict="dropped",reason="spoofed"} 120"#,
        r#"netpol_packets_total{direction="egress",verdict="dropped",reason="spoofed"} 0"#,
        r#"netpol_packets_total{direction="egress",verdict="passed",reason="direct"} 0"#,
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
}

/// What is exposed, from its own text: what dashboard and alerts may mention.
fn exposed() -> Vec<String> {
    let mut text = Exposition::default();
    let nothing = enforce::Instance::new("/nonexistent/pins".as_ref(), "/nonexistent/state".as_ref());
    state(&mut text, &Sample::read(&nothing).unwrap().condition);
    packets(&mut text, &[]);
    audited(&mut text, &[]);
    maps(&mut text, &[]);
    publication(&mut text, Some(Publication { at_ms: 0, took_us: 0 }));
    by_rule(&mut text, &[]);
    observation(&mut text, (0, Untold::default()));
    let text = text.finish();
    text.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned())).collect()
}

/// Everything in an expression that is called like a metric of ours.
fn mentioned(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("netpol_")).collect()
}

fn contrib(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn alerts_are_valid_and_mention_only_what_is_exposed() {
    let alerts: serde_json::Value = serde_saphyr::from_str(&contrib("alerts.yaml")).unwrap();
    let rules: Vec<_> =
        alerts["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap()).collect();
    assert!(rules.iter().any(|rule| rule["alert"] == "NetpolNotEnforced" && rule["expr"] == "netpol_enforced == 0"));
    let exposed = exposed();
    for rule in rules {
        let expression = rule["expr"].as_str().unwrap();
        assert!(rule["annotations"]["summary"].is_string() && rule["labels"]["severity"].is_string(), "{rule}");
        for metric in mentioned(expression) {
            assert!(exposed.iter().any(|name| name == metric), "{metric} in {expression}");
        }
    }
}

/// What the dashboard leaves out, in the order of the exposition, and why.
const NOT_DRAWN: [(&str, &str); 6] = [
    ("netpol_identities", "a number of the compiler's, for sizing"),
    ("netpol_stack_endpoints", "`netpol endpoints` says why, and it changes with loads alone"),
    ("netpol_would_drop_bytes_total", "packets say it"),
    ("netpol_map_capacity", "pressure says it"),
    ("netpol_rule_flows", "packets order the rules"),
    ("netpol_rule_bytes", "packets order the rules"),
];

#[test]
fn dashboard_is_valid_and_draws_what_is_exposed_and_nothing_else() {
    let dashboard: serde_json::Value = serde_json::from_str(&contrib("grafana-dashboard.json")).unwrap();
    assert_eq!(dashboard["title"], "netpol");
    let exposed = exposed();
    let mut metrics = std::collections::BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && panel["title"].is_string() && panel["gridPos"]["w"].is_u64(), "{panel}");
        for target in targets {
            let found = mentioned(target["expr"].as_str().unwrap());
            assert!(!found.is_empty(), "{target}");
            metrics.extend(found.into_iter().map(ToOwned::to_owned));
        }
    }
    let unknown: Vec<_> = metrics.iter().filter(|metric| !exposed.contains(metric)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let absent: Vec<_> = exposed.iter().filter(|metric| !metrics.contains(*metric)).map(String::as_str).collect();
    let left_out: Vec<_> = NOT_DRAWN.iter().map(|(metric, _)| *metric).collect();
    assert_eq!(absent, left_out);
}
