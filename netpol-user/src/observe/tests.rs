//! Translated packets.

use std::time::{Duration, SystemTime};

use super::{
    scene::{DB, OUTSIDE, SERVICE, UPLINK, WEB, answered, asked, reader, record, through},
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
    assert!(reader.is_uplink(&there) && !reader.is_uplink(&masqueraded));
    assert_eq!(connections(&[there]).connections.len(), 0);
    assert!(conversations(&reader, &[there], &[]).is_empty());
    assert!(tally(&[there], &Ends::new(reader.names(), &[]), reader.names().generation).is_empty());
    assert_eq!(reader.flow(&there, SystemTime::now()).interface.to_string(), "eth0");
}
