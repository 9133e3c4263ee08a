//! A snapshot becomes the policy: the other slot is filled while nobody looks, then one write switches
//! every table at once and makes every remembered verdict stale.

use std::{io, thread};

use aya::{
    Pod,
    maps::{Array, ArrayOfMaps, HashMap, InnerMap, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use ipnet::{Ipv4Net, Ipv6Net};
use netpol_common::{
    flow::Generation,
    kernel::{Live, Settings},
    wire::{Addr4, Addr6},
};

use super::{
    Datapath, Error, Pins, batch, mapped,
    slots::{INNER_MAP, MAPPABLE, MAPPED, NO_PREALLOC},
};
use crate::compile::Snapshot;

impl Datapath {
    /// The published generation and its settings.
    pub fn live(&self) -> Result<Live, Error> {
        let word = live_map(&self.pins)?.get(&0, 0).map_err(Error::map("LIVE"))?;
        Ok(Live { settings: Settings(word as u32), generation: Generation((word >> 32) as u32) })
    }

    /// The number that the next publication will have.
    pub fn next(&self) -> Result<Generation, Error> {
        Ok(Generation(self.live()?.generation.0 + 1))
    }

    /// Enforces a snapshot. Every packet sees the old policy or this one.
    ///
    /// The caller holds the instance's lock. If this fails, the old policy is untouched.
    pub fn publish(&self, snapshot: &Snapshot, settings: Settings) -> Result<Generation, Error> {
        let generation = self.next()?;
        fill(&self.pins, generation.slot(), snapshot)?;
        let word = u64::from(generation.0) << 32 | u64::from(settings.0);
        live_map(&self.pins)?.set(0, word, 0).map_err(Error::map("LIVE"))?;
        // Programs that read the old generation may still use its slot: the next publication will
        // overwrite that, so it must not begin before they have ended.
        wait_for_readers()?;
        Ok(generation)
    }
}

fn live_map(pins: &Pins) -> Result<Array<MapData, u64>, Error> {
    pins.map("LIVE")?.try_into().map_err(Error::map("LIVE"))
}

/// Waits until every program that runs now has ended: `MEMBARRIER_CMD_GLOBAL` is a
/// `synchronize_rcu()` (kernel/sched/membarrier.c), and classifiers run under RCU.
fn wait_for_readers() -> Result<(), Error> {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: no pointers.
    match unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(Error::Barrier(io::Error::last_os_error())),
    }
}

/// Makes the inner maps of a slot. Each replacement waits for RCU, so all wait at once.
fn fill(pins: &Pins, slot: u32, snapshot: &Snapshot) -> Result<(), Error> {
    type Task<'a> = Box<dyn FnOnce() -> Result<(), Error> + Send + 'a>;
    let of = Slot { pins, slot };
    let (hooks, uplinks) = (&snapshot.hooks, &snapshot.uplinks);
    let tasks: Vec<Task<'_>> = vec![
        Box::new(|| of.hash("ADDRESSES4", snapshot.addresses4.iter().copied())),
        Box::new(|| of.hash("ADDRESSES6", snapshot.addresses6.iter().copied())),
        Box::new(|| of.trie("NETWORKS4", snapshot.networks4.iter().map(|(net, id)| (four(net), *id)))),
        Box::new(|| of.trie("NETWORKS6", snapshot.networks6.iter().map(|(net, id)| (six(net), *id)))),
        Box::new(|| of.hash("HOOKS", hooks.iter().map(|(ifindex, value)| (ifindex.0, *value)))),
        Box::new(|| of.hash("PAIRS", snapshot.pairs.iter().copied())),
        Box::new(|| of.hash("PORTS", snapshot.ports.iter().copied())),
        Box::new(|| of.array("RANGES", &snapshot.ranges)),
        Box::new(|| of.hash("SERVICES4", snapshot.services4.iter().copied())),
        Box::new(|| of.hash("SERVICES6", snapshot.services6.iter().copied())),
        Box::new(|| of.array("BACKENDS4", &snapshot.backends4)),
        Box::new(|| of.array("BACKENDS6", &snapshot.backends6)),
        Box::new(|| of.mapped(MAPPED, &snapshot.maglev)),
        Box::new(|| of.hash("MEMBERS4", snapshot.members4.iter().copied())),
        Box::new(|| of.hash("MEMBERS6", snapshot.members6.iter().copied())),
        Box::new(|| of.trie("POOLS4", snapshot.pools4.iter().map(|net| (four(net), POOL)))),
        Box::new(|| of.trie("POOLS6", snapshot.pools6.iter().map(|net| (six(net), POOL)))),
        Box::new(|| of.hash("UPLINKS", uplinks.iter().map(|(ifindex, value)| (ifindex.0, *value)))),
    ];
    thread::scope(|scope| {
        let running: Vec<_> = tasks.into_iter().map(|task| scope.spawn(task)).collect();
        // all of them end before the first error is reported: no thread writes to a slot later
        let results: Vec<_> = running.into_iter().map(|task| task.join()).collect();
        results.into_iter().try_for_each(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// What a prefix of a pool has: being there is all that it says.
const POOL: u32 = 1;

fn four(net: &Ipv4Net) -> Key<Addr4> {
    Key::new(net.prefix_len().into(), net.network().into())
}

fn six(net: &Ipv6Net) -> Key<Addr6> {
    Key::new(net.prefix_len().into(), net.network().into())
}

/// The kernel wants room for at least one.
fn room(entries: usize) -> u32 {
    u32::try_from(entries.max(1)).unwrap_or(u32::MAX)
}

/// Where a publication writes.
#[derive(Clone, Copy)]
struct Slot<'a> {
    pins: &'a Pins,
    slot: u32,
}

impl Slot<'_> {
    fn hash<K: Pod, V: Pod>(
        self,
        name: &'static str,
        entries: impl ExactSizeIterator<Item = (K, V)>,
    ) -> Result<(), Error> {
        self.put(name, || {
            let inner = HashMap::<MapData, K, V>::create(room(entries.len()), 0)?;
            batch::update(&inner, entries)?;
            Ok(inner)
        })
    }

    fn trie<A: Pod, V: Pod>(
        self,
        name: &'static str,
        entries: impl ExactSizeIterator<Item = (Key<A>, V)>,
    ) -> Result<(), Error> {
        self.put(name, || {
            let mut inner = LpmTrie::<MapData, A, V>::create(room(entries.len()), NO_PREALLOC)?;
            for (key, value) in entries {
                inner.insert(&key, value, 0)?;
            }
            Ok(inner)
        })
    }

    fn array<V: Pod>(self, name: &'static str, values: &[V]) -> Result<(), Error> {
        self.put(name, || {
            let inner = Array::<MapData, V>::create(room(values.len()), INNER_MAP)?;
            let entries = values.iter().enumerate().map(|(index, value)| (index as u32, *value));
            batch::update(&inner, entries)?;
            Ok(inner)
        })
    }

    fn mapped(self, name: &'static str, words: &[u32]) -> Result<(), Error> {
        self.put(name, || {
            let inner = Array::<MapData, u32>::create(room(words.len()), INNER_MAP | MAPPABLE)?;
            mapped::write(&inner, words)?;
            Ok(inner)
        })
    }

    /// Fills a new map, then puts it into the slot.
    fn put<M: InnerMap>(self, name: &'static str, make: impl FnOnce() -> Result<M, MapError>) -> Result<(), Error> {
        let outer = self.pins.map(name)?;
        let put = || ArrayOfMaps::<MapData, M>::try_from(outer)?.set(self.slot, &make()?, 0);
        put().map_err(Error::map(name))
    }
}
