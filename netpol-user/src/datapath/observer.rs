//! A ring buffer for one who observes, under a lease: the classifiers write into it while the lease holds, and
//! a thread renews it, so that an observer whose output is blocked loses what there is no room for, counted, and
//! one that was killed loses its lease.
//!
//! Whoever holds the lock of a place has the place. The kernel gives the locks of the dead back, so the next one who
//! looks for a place, or the next load, clears theirs.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf};
use netpol_common::{
    event::{Lease, OBSERVERS, SUPPRESSED, Wants},
    flow::FlowKey,
    table::Block,
    wire::Address,
};

use super::{
    Datapath, Error, Event, Pins, Record, calls,
    event::Key,
    records::{now, record},
    slots::{self, RINGS},
    table::Flows,
};
use crate::state::{Lock, State};

/// How long a lease holds. Somebody who was stopped for less is told exactly what was missed.
const LEASE: Duration = Duration::from_secs(20);
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(1);

/// One observer, until it is dropped.
pub struct Observer {
    place: u32,
    leases: Leases,
    ring: RingBuf<MapData>,
    rings: Map,
    untold: PerCpuArray<MapData, u64>,
    /// What was counted before.
    before: Untold,
    flows: Flows,
    /// Time without a lease, in milliseconds, since it was asked for last.
    gap: Arc<AtomicU64>,
    renewal: Option<(Sender<()>, JoinHandle<()>)>,
    _lock: Lock,
}

/// Frames that an observer was not told about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untold {
    /// Its ring had no room.
    pub lost: u64,
    /// Drops like others that were told, or too many of one interface.
    pub suppressed: u64,
}

impl Datapath {
    /// Begins to observe, with a ring of about so many bytes.
    ///
    /// # Errors
    /// Also if there are too many observers.
    pub fn observe(&self, state: &State, wants: Wants, bytes: u32) -> Result<Observer, Error> {
        let mut leases = Leases::open(&self.pins)?;
        let (place, lock) = free(state)?.ok_or(Error::Observers(OBSERVERS))?;
        let size = bytes.max(slots::page_size()).checked_next_power_of_two().unwrap_or(1 << 30);
        let made = calls::create_map(&slots::ring(size)).map_err(|error| Error::Slots { map: RINGS, error })?;
        let ring = MapData::from_fd(made).map_err(Error::map(RINGS))?;
        let rings = self.pins.map(RINGS)?;
        let put = calls::put_map(map_fd(&rings), place, ring.fd().as_fd());
        put.map_err(|error| Error::Slots { map: RINGS, error })?;
        let ring = RingBuf::try_from(Map::RingBuf(ring)).map_err(Error::map(RINGS))?;
        let untold = self.pins.map("UNTOLD")?.try_into().map_err(Error::map("UNTOLD"))?;
        let mut observer = Observer {
            place,
            ring,
            rings,
            before: Untold::default(),
            flows: Flows::open(&self.pins)?,
            gap: Arc::default(),
            renewal: None,
            _lock: lock,
            untold,
            leases: Leases::open(&self.pins)?,
        };
        observer.before = observer.counted()?;
        leases.renew(place, wants)?;
        let (gap, (end, ended)) = (Arc::clone(&observer.gap), channel());
        let renewal = thread::spawn(move || {
            let mut last = nanos();
            while ended.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
                let since = Duration::from_nanos(nanos().saturating_sub(last));
                if let Some(gap_now) = since.checked_sub(LEASE) {
                    gap.fetch_add(gap_now.as_millis() as u64, Ordering::Relaxed);
                }
                // it fails for want of the map alone, which this thread holds
                let _ = leases.renew(place, wants);
                last = nanos();
            }
        });
        observer.renewal = Some((end, renewal));
        Ok(observer)
    }

    /// Clears the places of observers that have died. What fails here is tried again next time.
    pub fn reap_observers(&self, state: &State) -> Result<(), Error> {
        let mut leases = Leases::open(&self.pins)?;
        let rings = self.pins.map(RINGS)?;
        for place in 0..OBSERVERS {
            if leases.get(place + 1)? != Lease::NONE
                && let Some(_lock) = state.observer(place).map_err(Box::new)?
            {
                clear(&mut leases, &rings, place)?;
            }
        }
        Ok(())
    }

    /// Whether the classifiers look for observers at all.
    pub fn is_observed(&self) -> Result<bool, Error> {
        Ok(Leases::open(&self.pins)?.get(0)? != Lease::NONE)
    }

    /// How many observe now, and what they were not told since the maps were made.
    pub fn observers(&self) -> Result<(u32, Untold), Error> {
        let leases = Leases::open(&self.pins)?;
        let mut count = 0;
        for place in 0..OBSERVERS {
            count += u32::from(leases.get(place + 1)?.holds(nanos()));
        }
        let untold = self.pins.map("UNTOLD")?.try_into().map_err(Error::map("UNTOLD"))?;
        let lost = (0..OBSERVERS).try_fold(0, |sum, place| Ok::<_, Error>(sum + total(&untold, place)?))?;
        Ok((count, Untold { lost, suppressed: total(&untold, SUPPRESSED)? }))
    }
}

impl Observer {
    /// The next event, if there is one by now.
    pub fn hear(&mut self) -> Option<Event> {
        loop {
            // another version's are none of ours
            let event = Event::read(&self.ring.next()?);
            if event.is_some() {
                return event;
            }
        }
    }

    /// What was missed since this was asked for last.
    pub fn untold(&mut self) -> Result<Untold, Error> {
        let now = self.counted()?;
        let before = std::mem::replace(&mut self.before, now);
        Ok(Untold { lost: now.lost - before.lost, suppressed: now.suppressed - before.suppressed })
    }

    /// How long nothing was told, nor counted, since this was asked for last: the process did not run and its lease
    /// ran out.
    pub fn gap(&self) -> Duration {
        Duration::from_millis(self.gap.swap(0, Ordering::Relaxed))
    }

    /// What is remembered of the event's flow now, and of its other direction.
    pub fn both(&self, event: &Event) -> Result<[Option<Record>; 2], Error> {
        match event.key {
            Key::V4(own, others) => both(&self.flows, &self.flows.v4, own, others),
            Key::V6(own, others) => both(&self.flows, &self.flows.v6, own, others),
        }
        .map_err(Error::map("FLOWS"))
    }

    fn counted(&self) -> Result<Untold, Error> {
        Ok(Untold { lost: total(&self.untold, self.place)?, suppressed: total(&self.untold, SUPPRESSED)? })
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if let Some((end, renewal)) = self.renewal.take() {
            drop(end);
            let _ = renewal.join();
        }
        // what cannot be given back runs out
        let _ = clear(&mut self.leases, &self.rings, self.place);
    }
}

fn both<A: Address>(
    flows: &Flows,
    table: &Array<MapData, Block<A>>,
    own: FlowKey<A>,
    others: [FlowKey<A>; 2],
) -> Result<[Option<Record>; 2], MapError>
where
    Block<A>: aya::Pod,
{
    let find =
        |key: &FlowKey<A>| flows.find(table, key).map(|value| value.map(|value| record(key, &value, (false, now()))));
    let [first, second] = others;
    Ok([find(&own)?, find(&first)?.map_or_else(|| find(&second), |record| Ok(Some(record)))?])
}

/// The leases of all observers.
struct Leases(Array<MapData, Lease>);

impl Leases {
    fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self(pins.map("LEASES")?.try_into().map_err(Error::map("LEASES"))?))
    }

    fn get(&self, place: u32) -> Result<Lease, Error> {
        self.0.get(&place, 0).map_err(Error::map("LEASES"))
    }

    fn set(&mut self, place: u32, lease: Lease) -> Result<(), Error> {
        self.0.set(place, lease, 0).map_err(Error::map("LEASES"))
    }

    /// The one that holds longest.
    fn latest(&self) -> Result<Lease, Error> {
        let mut latest = Lease::NONE;
        for place in 0..OBSERVERS {
            let lease = self.get(place + 1)?;
            if lease.0 > latest.0 {
                latest = lease;
            }
        }
        Ok(latest)
    }

    /// First the observer's own, then the one that says that somebody observes: see [`clear`].
    fn renew(&mut self, place: u32, wants: Wants) -> Result<(), Error> {
        let until = nanos() + LEASE.as_nanos() as u64;
        self.set(place + 1, Lease::until(until, wants))?;
        self.set(0, Lease::until(until, Wants::NOTHING))
    }
}

/// Gives a place back. The last one who leaves says that nobody observes, and looks again whether somebody has begun
/// meanwhile: who began before that look is seen, who begins after it says so itself.
fn clear(leases: &mut Leases, rings: &Map, place: u32) -> Result<(), Error> {
    leases.set(place + 1, Lease::NONE)?;
    calls::take_map(map_fd(rings), place).map_err(|error| Error::Slots { map: RINGS, error })?;
    if leases.latest()? == Lease::NONE {
        leases.set(0, Lease::NONE)?;
        let begun = leases.latest()?;
        if begun != Lease::NONE {
            leases.set(0, begun)?;
        }
    }
    Ok(())
}

fn map_fd(rings: &Map) -> BorrowedFd<'_> {
    let Map::ArrayOfMaps(data) = rings else {
        unreachable!("the type of a pinned map is checked where it is opened");
    };
    data.fd().as_fd()
}

/// A place that nobody has, with its lock.
fn free(state: &State) -> Result<Option<(u32, Lock)>, Error> {
    for place in 0..OBSERVERS {
        if let Some(lock) = state.observer(place).map_err(Box::new)? {
            return Ok(Some((place, lock)));
        }
    }
    Ok(None)
}

fn total(untold: &PerCpuArray<MapData, u64>, place: u32) -> Result<u64, Error> {
    Ok(untold.get(&place, 0).map_err(Error::map("UNTOLD"))?.iter().sum())
}

/// The clock of leases, in nanoseconds.
fn nanos() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
    Duration::from(time).as_nanos() as u64
}
