use netpol_common::{
    parse::tcp::{ACK, FIN, SYN},
    tables::IfIndex,
    wire::Protocol,
};

use super::*;
use crate::{
    datapath::{FlowFlags, Side},
    observe::{
        scene::{DB, GENERATION, OUTSIDE, WEB, denial, reader, record, reply},
        tcp,
    },
};

/// A sampler whose clock the test moves.
struct Bench {
    sampler: Sampler,
    at: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { sampler: Sampler::default(), at: Instant::now() }
    }

    /// Reads these, `seconds` after the last time.
    fn read(&mut self, seconds: u64, records: &[Record]) -> Sample {
        self.read_by(seconds, records, &[], &reader())
    }

    fn read_by(&mut self, seconds: u64, records: &[Record], counters: &[Counter], reader: &Arc<Reader>) -> Sample {
        self.at += Duration::from_secs(seconds);
        self.sampler.begin(reader);
        records.iter().for_each(|record| self.sampler.add(reader, record, self.at));
        self.sampler.finish(reader, [counters, &[]], self.at)
    }
}

#[track_caller]
fn only(sample: &Sample) -> &Connection {
    assert_eq!(sample.connections.len(), 1, "{:#?}", sample.connections);
    &sample.connections[0]
}

fn counts(connection: &Connection) -> [u64; 4] {
    [connection.record.packets, connection.record.bytes, connection.reply_packets, connection.reply_bytes]
}

#[test]
fn both_directions_are_one_row_whichever_comes_first() {
    for records in [[record(WEB, DB, 5), reply(DB, WEB, 4)], [reply(DB, WEB, 4), record(WEB, DB, 5)]] {
        let sample = Bench::new().read(0, &records);
        let connection = only(&sample);
        assert_eq!(counts(connection), [5, 500, 4, 400]);
        let row = connection.row(&sample);
        assert_eq!(row.flow.source.describe(), "shop/web:40000");
        assert_eq!(row.flow.destination.describe(), "shop/db:5432");
        assert_eq!((row.flow.is_reply, row.flow.direction), (false, "egress"));
    }
}

#[test]
fn replies_alone_are_shown_in_the_direction_that_opened() {
    let sample = Bench::new().read(0, &[reply(DB, WEB, 4)]);
    assert_eq!(counts(only(&sample)), [0, 0, 4, 400]);
    let flow = only(&sample).flow(&sample);
    assert_eq!((flow.source.describe(), flow.destination.describe()), ("shop/web:40000".into(), "shop/db:5432".into()));
    // the replies leave at the database's interface, so that is where the opener's packets arrive
    assert_eq!((flow.direction, flow.interface.to_string()), ("ingress", "v-db".to_owned()));
}

#[test]
fn packets_seen_at_two_places_count_once() {
    let other = Record { interface: IfIndex(2), side: Side::To, ..record(WEB, DB, 3) };
    assert_eq!(counts(only(&Bench::new().read(0, &[record(WEB, DB, 5), other]))), [5, 500, 0, 0]);
    assert_eq!(counts(only(&Bench::new().read(0, &[other, record(WEB, DB, 5)]))), [5, 500, 0, 0]);
}

#[test]
fn who_opened_an_unclear_connection_is_the_same_in_every_reading() {
    let mark = |record: Record, flags| Record { flags: FlowFlags(FlowFlags::UNCLEAR.0 | flags), ..record };
    let (one, other) = (record(WEB, DB, 5), Record { flags: FlowFlags::NONE, ..reply(DB, WEB, 4) });
    for (first, second) in [(0, FlowFlags::REPLY.0), (FlowFlags::REPLY.0, 0)] {
        let sample = Bench::new().read(0, &[mark(one, first), mark(other, second)]);
        assert_eq!(counts(only(&sample)), [5, 500, 4, 400]);
    }
}

#[test]
fn a_denial_and_a_flow_between_the_same_ports_are_two_rows() {
    let sample = Bench::new().read(0, &[record(WEB, DB, 5), denial(WEB, DB, 2)]);
    assert_eq!(sample.connections.len(), 2);
}

#[test]
fn denied_replies_are_explained_by_what_was_judged() {
    let denied = Record {
        denied: denial(WEB, DB, 1).denied,
        ingress_rule: denial(WEB, DB, 1).ingress_rule,
        ..reply(DB, WEB, 3)
    };
    let sample = Bench::new().read(0, &[denied]);
    let said = only(&sample).flow(&sample).explanation.to_string();
    let expected =
        "isolated by NetworkPolicy shop/database ingress at shop.yaml:3, and no rule allows tcp/5432 from shop/web";
    assert_eq!(said, expected);
    // the listing of entries has it as it is, and says the same
    assert_eq!(sample.reader.flow(&denied, sample.now).explanation.to_string(), expected);
}

#[test]
fn first_reading_has_no_rates() {
    let sample = Bench::new().read(0, &[record(WEB, DB, 5)]);
    assert_eq!((only(&sample).packets_per_second, sample.interval, sample.history.len()), (0.0, None, 0));
}

#[test]
fn rates_are_the_growth_of_both_directions() {
    let mut bench = Bench::new();
    bench.read(0, &[record(WEB, DB, 5), reply(DB, WEB, 4)]);
    let sample = bench.read(2, &[record(WEB, DB, 25), reply(DB, WEB, 14)]);
    assert_eq!((only(&sample).packets_per_second, only(&sample).bytes_per_second), (15.0, 1500.0));
    let sample = bench.read(2, &[record(WEB, DB, 25), reply(DB, WEB, 14)]);
    assert_eq!(only(&sample).packets_per_second, 0.0);
}

#[test]
fn counters_that_began_again_have_grown_by_all_they_show() {
    let mut bench = Bench::new();
    bench.read(0, &[record(WEB, DB, 1000), reply(DB, WEB, 10)]);
    let sample = bench.read(1, &[record(WEB, DB, 3), reply(DB, WEB, 12)]);
    assert_eq!((only(&sample).packets_per_second, only(&sample).bytes_per_second), (5.0, 500.0));
}

#[test]
fn a_direction_that_was_evicted_has_no_negative_rate() {
    let mut bench = Bench::new();
    bench.read(0, &[record(WEB, DB, 1000), reply(DB, WEB, 10)]);
    let sample = bench.read(1, &[reply(DB, WEB, 12)]);
    assert_eq!((counts(only(&sample))[0], only(&sample).packets_per_second), (0, 2.0));
    let sample = bench.read(1, &[record(WEB, DB, 4), reply(DB, WEB, 12)]);
    assert_eq!(only(&sample).packets_per_second, 4.0);
}

#[test]
fn new_connection_came_in_the_interval_unless_it_was_silent_longer() {
    let mut bench = Bench::new();
    bench.read(0, &[]);
    let old = Record { idle: Duration::from_secs(60), ..record(OUTSIDE, DB, 9) };
    let sample = bench.read(2, &[record(WEB, DB, 8), old]);
    let rate = |wanted: &str| {
        let row = sample.connections.iter().map(|connection| connection.row(&sample));
        row.into_iter().find(|row| row.flow.source.address.to_string() == wanted).unwrap().packets_per_second
    };
    assert_eq!((rate(WEB), rate(OUTSIDE)), (4.0, 0.0));
}

#[test]
fn other_names_make_no_rates() {
    let mut bench = Bench::new();
    bench.read(0, &[record(WEB, DB, 500)]);
    let mut names = crate::observe::scene::names();
    (names.generation, names.endpoints) = (GENERATION + 1, vec![]);
    let sample = bench.read_by(1, &[record(WEB, DB, 501)], &[], &Arc::new(Reader::new(names.into())));
    assert_eq!(only(&sample).packets_per_second, 0.0);
}

#[test]
fn age_counts_from_the_first_sight_and_is_never_less_than_the_silence() {
    let mut bench = Bench::new();
    assert_eq!(only(&bench.read(0, &[record(WEB, DB, 1)])).age, Duration::ZERO);
    assert_eq!(only(&bench.read(3, &[record(WEB, DB, 2)])).age, Duration::from_secs(3));
    let silent = Record { idle: Duration::from_secs(90), ..record(OUTSIDE, DB, 1) };
    assert_eq!(only(&bench.read(1, &[silent])).age, Duration::from_secs(90));
    assert_eq!(only(&bench.read(2, &[silent])).age, Duration::from_secs(92));
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut bench = Bench::new();
    bench.read(0, &[record(WEB, DB, 100)]);
    assert!(bench.read(1, &[]).connections.is_empty());
    assert!(bench.sampler.connections.is_empty());
    assert_eq!(only(&bench.read(1, &[record(WEB, DB, 2)])).packets_per_second, 2.0);
}

#[test]
fn tcp_state_is_of_both_directions_and_of_allowed_connections_only() {
    let forward = Record { tcp_flags: SYN | ACK | FIN, ..record(WEB, DB, 5) };
    let backward = Record { tcp_flags: SYN | ACK | FIN, ..reply(DB, WEB, 4) };
    let state = |records: &[Record]| only(&Bench::new().read(0, records)).tcp_state();
    assert_eq!(state(&[forward]), Some(tcp::State::Closing));
    assert_eq!(state(&[forward, backward]), Some(tcp::State::Closed));
    assert_eq!(state(&[denial(WEB, DB, 1)]), None);
    assert_eq!(state(&[Record { protocol: Protocol::UDP, ..forward }]), None);
}

#[test]
fn history_is_bounded_and_counts_a_vouched_packet_once() {
    let counter = |side, verdict, packets| Counter { side, verdict, packets, bytes: packets * 100 };
    let mut bench = Bench::new();
    for round in 0..2 * HISTORY as u64 {
        let counters = [
            counter(Side::From, Ok(Pass::Stack), 10 * round),
            counter(Side::To, Ok(Pass::Vouched), 10 * round),
            counter(Side::From, Ok(Pass::Control), 10 * round),
            counter(Side::From, Err(crate::datapath::Drop::PolicyIngress), 3 * round),
            counter(Side::To, Err(crate::datapath::Drop::Spoofed), round),
        ];
        let sample = bench.read_by(1, &[], &counters, &reader());
        assert!(sample.history.len() <= HISTORY);
        if let Some(last) = sample.history.last() {
            assert_eq!(*last, Pace { passed: 10.0, dropped: 4.0 });
        }
    }
    assert_eq!(bench.sampler.history.len(), HISTORY);
}
