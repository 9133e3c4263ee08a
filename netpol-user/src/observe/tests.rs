//! Translated packets, and those that audited policies would drop.

use std::time::{Duration, SystemTime};

use super::{
    scene::{DB, OUTSIDE, SERVICE, UPLINK, WEB, answered, asked, audited, names, reader, record, through},
    *,
};
use crate::datapath::{Drop, Record, Side};

fn connections(records: &[Record]) -> Sample {
    Sampler::default().of(&reader(), records)
}

#[test]
fn connection_to_a_service_is_one_with_the_backend_that_answers() {
    for records in [[asked(WEB, 5), answered(WEB, 4)], [answered(WEB, 4), asked(WEB, 5)]] {
        let sample = connections(&records);
        let [connection] = &sample.connections[..] else { panic!("{:#?}", sample.connections) };
        assert_eq!((connection.record.packets, connection.reply_packets), (5, 4));
        let flow = connection.flow(&sample);
        assert_eq!(
            (flow.source.describe(), flow.destination.describe()),
            ("shop/web:40000".into(), "shop/db:5432".into())
        );
        assert_eq!(flow.service.map(|service| service.to_string()), Some("shop/store:80".to_owned()));
    }
}

#[test]
fn policy_is_asked_about_the_backend_of_a_service() {
    let reader = reader();
    let asked = asked(WEB, 5);
    let [one] = &conversations(&reader, &[asked, answered(WEB, 4)], &[])[..] else { panic!("more than one") };
    assert_eq!((one.to.to_string(), one.opening.destination_port), ("shop/db".to_owned(), 5432));
    let rows = tally(&[asked], &Ends::new(reader.names(), &[]), reader.names().generation);
    let kinds: Vec<_> = rows.keys().map(|kind| (kind.client, kind.server, kind.port)).collect();
    assert_eq!(kinds, [(End::Endpoint(0), End::Endpoint(1), Some(5432))]);
}

#[test]
fn flow_has_the_ends_that_a_packet_came_with_and_those_that_it_leaves_with() {
    let reader = reader();
    let json = |record: Record| {
        let flow = serde_json::to_value(reader.flow(&record, SystemTime::UNIX_EPOCH + Duration::from_secs(1))).unwrap();
        let [destination, translated, service] =
            ["destination", "translated", "service"].map(|field| flow[field].clone());
        (destination["address"].clone(), destination["name"].clone(), destination["port"].clone(), translated, service)
    };
    let translated =
        |source: &str, destination: &str| serde_json::json!({"source": source, "destination": destination});
    assert_eq!(
        json(asked(WEB, 1)),
        (SERVICE.into(), "db".into(), 80.into(), translated("10.0.0.1:40000", "10.0.0.2:5432"), "shop/store:80".into())
    );
    assert_eq!(
        json(answered(WEB, 1)),
        (WEB.into(), "web".into(), 40_000.into(), translated("10.96.0.1:80", "10.0.0.1:40000"), "shop/store:80".into())
    );
    assert_eq!(
        json(record(WEB, DB, 1)),
        (DB.into(), "db".into(), 5432.into(), serde_json::Value::Null, serde_json::Value::Null)
    );
}

#[test]
fn denial_of_a_service_is_about_the_backend_that_was_chosen() {
    let reader = reader();
    let denied = Record { denied: Some(Drop::PolicyIngress), ..asked(WEB, 1) };
    let [one] = &conversations(&reader, &[denied], &[])[..] else { panic!("more than one") };
    assert_eq!((one.to.to_string(), one.is_denied()), ("shop/db".to_owned(), true));
    assert_eq!(reader.flow(&denied, SystemTime::now()).translated, None, "it does not leave");
}

#[test]
fn what_passes_an_uplink_is_nobodys_connection() {
    let masqueraded = through(record(WEB, OUTSIDE, 5), ("192.0.2.1", 40_000), (OUTSIDE, 5432));
    let there = Record { interface: UPLINK, side: Side::To, ..masqueraded };
    let reader = reader();
    assert!(reader.only_passes(&there) && !reader.only_passes(&masqueraded));
    assert_eq!(connections(&[there]).connections.len(), 0);
    assert!(conversations(&reader, &[there], &[]).is_empty());
    assert!(tally(&[there], &Ends::new(reader.names(), &[]), reader.names().generation).is_empty());
    assert_eq!(reader.flow(&there, SystemTime::now()).interface.to_string(), "eth0");
}

#[test]
fn flow_that_audited_policies_would_drop_is_allowed_and_says_by_which_rule_it_would_not() {
    let mut names = names();
    // no policy that is enforced is about its ingress
    names.endpoints[1].ingress = false;
    let reader = Reader::new(names.into());
    let flow = serde_json::to_value(reader.flow(&audited(WEB, DB, 3), SystemTime::now())).unwrap();
    assert_eq!((&flow["verdict"], &flow["would_drop"]), (&"allowed".into(), &"policy-ingress".into()));
    assert_eq!((&flow["rule"], &flow["explanation"]), (&serde_json::Value::Null, &"no policy".into()));
    assert_eq!(flow["audit_rule"]["source"], "shop.yaml:3");
    let words =
        "isolated by NetworkPolicy shop/database ingress at shop.yaml:3, and no rule allows tcp/5432 from shop/web";
    assert_eq!(flow["audit_explanation"], words);
    for (filter, holds) in [
        ("verdict:would-drop", true),
        ("verdict:allowed", true),
        ("verdict:denied", false),
        ("rule:default-deny", true),
    ] {
        let filter: Filter = filter.parse().unwrap();
        assert_eq!(filter.matches(&reader.flow(&audited(WEB, DB, 3), SystemTime::now())), holds, "{}", filter.text());
        assert!(
            !filter.matches(&reader.flow(&record(WEB, DB, 3), SystemTime::now())) || filter.text() == "verdict:allowed"
        );
    }
    // where one is, its rule is not remembered beside the audited one
    let flow = self::reader().flow(&audited(WEB, DB, 3), SystemTime::now()).explanation.to_string();
    assert_eq!(flow, "a policy that is enforced");
    let plain = serde_json::to_value(reader.flow(&record(WEB, DB, 3), SystemTime::now())).unwrap();
    for field in ["would_drop", "audit_rule", "audit_explanation"] {
        assert_eq!(plain[field], serde_json::Value::Null, "{field}");
    }
}
