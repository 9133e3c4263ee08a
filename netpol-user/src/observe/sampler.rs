//! What changes from reading to reading: the kernel has totals for each direction at each place, people
//! want connections and rates.
//!
//! A connection is one row: its entries are found by addresses and ports in the direction that opened
//! it. A rate is the growth between two readings. An entry that was evicted begins again at zero, so
//! a counter that is smaller than before has grown by all that it shows.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    mem,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    census::{Census, ServiceUse},
    connection::{Connection, Key, is_backwards, reversed},
    reader::{Between, Reader},
};
use crate::datapath::{self, Counter, Datapath, Pass, Record};

/// How many readings the history has.
const HISTORY: usize = 240;

/// Reads again and again, and knows what was there before.
#[derive(Debug, Default)]
pub struct Sampler {
    connections: HashMap<Key, Known>,
    counters: Vec<Counter>,
    would_drop: Vec<Counter>,
    /// This reading's, and what the one before has found.
    census: Census,
    services: Vec<ServiceUse>,
    history: VecDeque<Pace>,
    /// The last reading, by its generation's names.
    last: Option<(Instant, u32)>,
    round: u64,
}

/// One reading.
#[derive(Clone, Debug)]
pub struct Sample {
    pub reader: Arc<Reader>,
    pub now: SystemTime,
    /// Since the reading before; `None`: this is the first, and nothing has a rate.
    pub interval: Option<Duration>,
    pub connections: Vec<Connection>,
    pub counters: Vec<Rate>,
    /// What audited policies would have stopped: among `counters` as what became of it.
    pub would_drop: Vec<Rate>,
    /// By the place of the service in [`Names::services`](crate::state::Names::services).
    pub services: Vec<ServiceUse>,
    /// The latest last, [`HISTORY`] at most.
    pub history: Vec<Pace>,
}

/// A verdict's counter, and how fast it grows.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub counter: Counter,
    pub packets_per_second: f64,
    pub bytes_per_second: f64,
}

/// Packets of all flows in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Each once, though it may pass two hooks.
    pub passed: f64,
    pub dropped: f64,
}

#[derive(Debug)]
struct Known {
    connection: Connection,
    first: Instant,
    /// The reading that it was last seen in.
    round: u64,
    /// Packets and bytes of both directions, in this reading and the one before.
    now: [Totals; 2],
    before: [Totals; 2],
}

type Totals = (u64, u64);

impl Sampler {
    /// Reads the kernel's maps.
    pub fn read(&mut self, datapath: &Datapath, reader: &Arc<Reader>) -> Result<Sample, datapath::Error> {
        let at = Instant::now();
        self.begin(reader);
        datapath.each_record(|record| self.add(reader, &record, at))?;
        if !self.census.is_empty() {
            datapath.each_pair(|pair| self.census.pair(&pair))?;
        }
        Ok(self.finish(reader, [&datapath.counters()?, &datapath.would_drop()?], at))
    }

    /// A reading of these.
    #[cfg(test)]
    pub fn of(&mut self, reader: &Arc<Reader>, records: &[Record]) -> Sample {
        let at = Instant::now();
        self.begin(reader);
        records.iter().for_each(|record| self.add(reader, record, at));
        self.finish(reader, [&[], &[]], at)
    }

    fn begin(&mut self, reader: &Reader) {
        self.round += 1;
        self.census = Census::of(reader.names());
    }

    fn add(&mut self, reader: &Reader, record: &Record, at: Instant) {
        self.census.record(record);
        if reader.only_passes(record) {
            return;
        }
        let record = &record.judged();
        let ends = reader.ends(record);
        let backwards = is_backwards(record);
        let (turned, ends) = if backwards { (reversed(record), ends.reversed()) } else { (*record, ends) };
        let fresh = || Connection {
            record: Record { packets: 0, bytes: 0, tcp_flags: 0, ..turned },
            ends,
            reply_packets: 0,
            reply_bytes: 0,
            reply_tcp_flags: 0,
            packets_per_second: 0.0,
            bytes_per_second: 0.0,
            age: Duration::ZERO,
            members: None,
        };
        let known = match self.connections.entry(Key::new(reader, &turned, ends)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Known {
                connection: fresh(),
                first: at.checked_sub(turned.idle).unwrap_or(at),
                round: 0,
                now: [(0, 0); 2],
                before: [(0, 0); 2],
            }),
        };
        if known.round != self.round {
            let first = known.first;
            let before = if known.round + 1 == self.round { known.now } else { [(0, 0); 2] };
            *known = Known { connection: fresh(), first, round: self.round, now: [(0, 0); 2], before };
        }
        known.count(&turned, backwards, ends);
    }

    /// With the counters, and those of what would be dropped.
    fn finish(&mut self, reader: &Arc<Reader>, [counters, would_drop]: [&[Counter]; 2], at: Instant) -> Sample {
        let generation = reader.names().generation;
        let interval = self.last.map(|(last, _)| at.duration_since(last));
        // other names may give an old connection another key
        let renamed = self.last.is_some_and(|(_, last)| last != generation);
        let round = self.round;
        let mut connections = Vec::with_capacity(self.connections.len());
        self.connections.retain(|_, known| {
            let seen = known.round == round;
            if seen {
                known.rate(interval, renamed);
                known.connection.age = at.duration_since(known.first).max(known.connection.record.idle);
                connections.push(known.connection.clone());
            }
            seen
        });
        let counters = rates(&mut self.counters, counters, interval);
        let would_drop = rates(&mut self.would_drop, would_drop, interval);
        let services = self.paces(interval.filter(|_| !renamed));
        if interval.is_some() {
            self.history.truncate(HISTORY - 1);
            self.history.push_front(pace(&counters));
        }
        self.last = Some((at, generation));
        let history = self.history.iter().rev().copied().collect();
        Sample {
            reader: Arc::clone(reader),
            now: SystemTime::now(),
            interval,
            connections,
            counters,
            would_drop,
            services,
            history,
        }
    }

    /// Of services. `interval` is `None` where those of the reading before may be others.
    fn paces(&mut self, interval: Option<Duration>) -> Vec<ServiceUse> {
        let mut services = mem::take(&mut self.census).finish();
        let total = |s: &ServiceUse| (s.packets + s.reply_packets, s.bytes + s.reply_bytes);
        for (service, before) in services.iter_mut().zip(&self.services) {
            let ((packets, bytes), before) = (total(service), total(before));
            // less than before, where entries were evicted: what has come meanwhile is not known
            service.packets_per_second = per_second(packets.saturating_sub(before.0), interval);
            service.bytes_per_second = per_second(bytes.saturating_sub(before.1), interval);
        }
        self.services.clone_from(&services);
        services
    }
}

impl Known {
    /// One entry of the connection. Where two places count the same packets, the one that saw more.
    fn count(&mut self, record: &Record, backwards: bool, ends: Between) {
        let now = &mut self.now[usize::from(backwards)];
        let more = record.packets >= now.0;
        if more {
            *now = (record.packets, record.bytes);
        }
        let connection = &mut self.connection;
        let idle = connection.record.idle.min(record.idle);
        if backwards {
            connection.reply_tcp_flags |= record.tcp_flags;
        } else {
            let flags = connection.record.tcp_flags | record.tcp_flags;
            if more {
                (connection.record, connection.ends) = (*record, ends);
            }
            connection.record.tcp_flags = flags;
        }
        connection.record.idle = idle;
        [(connection.record.packets, connection.record.bytes), (connection.reply_packets, connection.reply_bytes)] =
            self.now;
    }

    fn rate(&mut self, interval: Option<Duration>, renamed: bool) {
        let is_new = self.before == [(0, 0); 2];
        let long_silent = interval.is_some_and(|interval| self.connection.record.idle > interval);
        let grown = self.now.into_iter().zip(self.before).map(|(now, before)| growth(now, before));
        let (packets, bytes) = grown.fold((0, 0), |sum, grown| (sum.0 + grown.0, sum.1 + grown.1));
        let (packets, bytes) = if is_new && (renamed || long_silent) { (0, 0) } else { (packets, bytes) };
        self.connection.packets_per_second = per_second(packets, interval);
        self.connection.bytes_per_second = per_second(bytes, interval);
    }
}

/// Of counters, which become those of the reading before.
fn rates(known: &mut Vec<Counter>, counters: &[Counter], interval: Option<Duration>) -> Vec<Rate> {
    let rate = |counter: &Counter| {
        let before = known.iter().find(|b| (b.side, b.verdict) == (counter.side, counter.verdict));
        let before = before.map_or((0, 0), |before| (before.packets, before.bytes));
        let (packets, bytes) = growth((counter.packets, counter.bytes), before);
        Rate {
            counter: *counter,
            packets_per_second: per_second(packets, interval),
            bytes_per_second: per_second(bytes, interval),
        }
    };
    let rates = counters.iter().map(rate).collect();
    *known = counters.to_vec();
    rates
}

const fn growth(now: Totals, before: Totals) -> Totals {
    // packets and bytes begin again together
    if now.0 < before.0 || now.1 < before.1 { now } else { (now.0 - before.0, now.1 - before.1) }
}

fn per_second(count: u64, interval: Option<Duration>) -> f64 {
    match interval {
        Some(interval) if !interval.is_zero() => count as f64 / interval.as_secs_f64(),
        _ => 0.0,
    }
}

fn pace(rates: &[Rate]) -> Pace {
    let sum = |wanted: fn(&Counter) -> bool| {
        rates.iter().filter(|rate| wanted(&rate.counter)).map(|rate| rate.packets_per_second).sum()
    };
    Pace {
        // a vouched packet was counted where it was sent; what a link needs is nobody's flow
        passed: sum(|counter| counter.verdict.is_ok_and(|pass| !matches!(pass, Pass::Vouched | Pass::Control))),
        dropped: sum(|counter| counter.verdict.is_err()),
    }
}

#[cfg(test)]
mod tests;
