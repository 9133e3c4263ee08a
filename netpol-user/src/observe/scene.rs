//! Two endpoints, a policy and records about them, for this module's tests.

use std::{net::IpAddr, sync::Arc, time::Duration};

use netpol_common::{
    tables::{IfIndex, RuleId},
    wire::Protocol,
};

use super::Reader;
use crate::{
    datapath::{Audited, Drop, FlowFlags, Generation, Record, Side, Translated},
    model::Labels,
    state::{Endpoint, Names, Rule, Service, Uplink},
};

pub const GENERATION: u32 = 7;
pub const WEB: &str = "10.0.0.1";
pub const DB: &str = "10.0.0.2";
pub const OUTSIDE: &str = "192.0.2.9";
/// Where the service `shop/store` is published: its port 80 is 5432 of `shop/db`.
pub const SERVICE: &str = "10.96.0.1";
/// The interface to the outside.
pub const UPLINK: IfIndex = IfIndex(9);

/// `shop/web` behind interface 1, `shop/db` behind interface 2. Rule 1: what `shop/db` allows. Rule 2: its default deny.
pub fn names() -> Names {
    let endpoint = |name: &str, address: &str, ifindex| Endpoint {
        namespace: "shop".into(),
        name: name.into(),
        labels: Labels::from([("app".to_owned(), name.to_owned())]),
        addresses: vec![address.parse().unwrap()],
        interface: format!("v-{name}"),
        ifindex,
        ingress: true,
        egress: false,
        stack: None,
        outside: None,
    };
    let rule = |index, line| Rule {
        kind: "NetworkPolicy".into(),
        namespace: Some("shop".into()),
        name: "database".into(),
        direction: "ingress".into(),
        index,
        source: format!("shop.yaml:{line}"),
    };
    Names {
        generation: GENERATION,
        endpoints: vec![endpoint("web", WEB, 1), endpoint("db", DB, 2)],
        rules: vec![rule(Some(0), 9), rule(None, 3)],
        services: vec![Service {
            namespace: "shop".into(),
            name: "store".into(),
            port_name: None,
            port: 80,
            protocol: "TCP".into(),
            affinity: None,
            addresses: vec![],
            backends: vec![],
        }],
        uplinks: vec![Uplink { name: "eth0".into(), ifindex: UPLINK.0 }],
        ..Names::default()
    }
}

pub fn reader() -> Arc<Reader> {
    Arc::new(Reader::new(names().into()))
}

/// What the sender's hook remembers of tcp/5432 between two addresses, allowed by rule 1.
pub fn record(source: &str, destination: &str, packets: u64) -> Record {
    let address = |text: &str| -> IpAddr { text.parse().unwrap() };
    let interface = |text: &str| match text {
        WEB => IfIndex(1),
        DB => IfIndex(2),
        _ => IfIndex::NONE,
    };
    let side = if interface(source) == IfIndex::NONE { Side::To } else { Side::From };
    let (near, far) = if side == Side::From { (source, destination) } else { (destination, source) };
    Record {
        interface: interface(near),
        far: interface(far),
        side,
        source: address(source),
        destination: address(destination),
        source_port: 40_000,
        destination_port: 5432,
        protocol: Protocol::TCP,
        generation: Generation(GENERATION),
        flags: FlowFlags::NONE,
        denied: None,
        packets,
        bytes: packets * 100,
        idle: Duration::ZERO,
        egress_rule: RuleId(0),
        ingress_rule: RuleId(1),
        audited: None,
        tcp_flags: 0x12,
        translated: None,
        service: 0,
    }
}

/// The entry of the answers that `source` sends to a [`record`] from `destination`.
pub fn reply(source: &str, destination: &str, packets: u64) -> Record {
    let record = record(source, destination, packets);
    Record { source_port: 5432, destination_port: 40_000, flags: FlowFlags::REPLY, ..record }
}

/// [`record`], denied by rule 2.
pub fn denial(source: &str, destination: &str, packets: u64) -> Record {
    let record = record(source, destination, packets);
    Record { denied: Some(Drop::PolicyIngress), ingress_rule: RuleId(2), tcp_flags: 2, ..record }
}

/// [`record`], which passes; an audited policy's rule 2 would deny it.
pub fn audited(source: &str, destination: &str, packets: u64) -> Record {
    let audited = Some(Audited { reason: Drop::PolicyIngress, rule: RuleId(2) });
    Record { audited, ingress_rule: RuleId::NONE, ..record(source, destination, packets) }
}

/// What `source` sends to [`SERVICE`], which `shop/db` answers.
pub fn asked(source: &str, packets: u64) -> Record {
    let record = record(source, DB, packets);
    Record {
        destination: SERVICE.parse().unwrap(),
        destination_port: 80,
        ..through(record, (source, 40_000), (DB, 5432))
    }
}

/// The answers to [`asked`].
pub fn answered(destination: &str, packets: u64) -> Record {
    through(reply(DB, destination, packets), (SERVICE, 80), (destination, 40_000))
}

/// The record of a packet of the service that leaves with these ends.
pub fn through(
    record: Record,
    (source, source_port): (&str, u16),
    (destination, destination_port): (&str, u16),
) -> Record {
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    let translated = Translated { source, destination, source_port, destination_port };
    Record { flags: record.flags.with(FlowFlags::TRANSLATED), translated: Some(translated), service: 1, ..record }
}
