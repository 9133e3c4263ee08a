//! A snapshot becomes the policy: the other slot is filled while nobody looks, then one write switches
//! every table at once and makes every remembered verdict stale.

use std::{io, thread};

use aya::{
    Pod,
    maps::{Array, ArrayOfMaps, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use netpol_common::{
    flow::Generation,
    kernel::{Live, Settings},
    wire::{Addr4, Addr6},
};

use super::{
    Datapath, Error, Pins,
    slots::{INNER_MAP, NO_PREALLOC},
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
    let hooks = || snapshot.hooks.iter().map(|(ifindex, value)| (ifindex.0, *value));
    let networks4 = || {
        snapshot.networks4.iter().map(|(net, id)| (Key::new(net.prefix_len().into(), Addr4::from(net.network())), *id))
    };
    let networks6 = || {
        snapshot.networks6.iter().map(|(net, id)| (Key::new(net.prefix_len().into(), Addr6::from(net.network())), *id))
    };
    let tasks: Vec<Task<'_>> = vec![
        Box::new(|| hash(pins, slot, "ADDRESSES4", snapshot.addresses4.iter().copied())),
        Box::new(|| hash(pins, slot, "ADDRESSES6", snapshot.addresses6.iter().copied())),
        Box::new(|| hash(pins, slot, "HOOKS", hooks())),
        Box::new(|| hash(pins, slot, "PAIRS", snapshot.pairs.iter().copied())),
        Box::new(|| hash(pins, slot, "PORTS", snapshot.ports.iter().copied())),
        Box::new(|| trie(pins, slot, "NETWORKS4", networks4())),
        Box::new(|| trie(pins, slot, "NETWORKS6", networks6())),
        Box::new(|| ranges(pins, slot, snapshot)),
    ];
    thread::scope(|scope| {
        let running: Vec<_> = tasks.into_iter().map(|task| scope.spawn(task)).collect();
        // all of them end before the first error is reported: no thread writes to a slot later
        let results: Vec<_> = running.into_iter().map(|task| task.join()).collect();
        results.into_iter().try_for_each(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// The kernel wants room for at least one.
fn room(entries: usize) -> u32 {
    u32::try_from(entries.max(1)).unwrap_or(u32::MAX)
}

fn hash<K: Pod, V: Pod>(
    pins: &Pins,
    slot: u32,
    name: &'static str,
    entries: impl ExactSizeIterator<Item = (K, V)>,
) -> Result<(), Error> {
    let outer = pins.map(name)?;
    let fill = || -> Result<(), MapError> {
        let mut inner = HashMap::create(room(entries.len()), 0)?;
        for (key, value) in entries {
            inner.insert(key, value, 0)?;
        }
        ArrayOfMaps::<MapData, HashMap<MapData, K, V>>::try_from(outer)?.set(slot, &inner, 0)
    };
    fill().map_err(Error::map(name))
}

fn trie<A: Pod, V: Pod>(
    pins: &Pins,
    slot: u32,
    name: &'static str,
    entries: impl ExactSizeIterator<Item = (Key<A>, V)>,
) -> Result<(), Error> {
    let outer = pins.map(name)?;
    let fill = || -> Result<(), MapError> {
        let mut inner = LpmTrie::create(room(entries.len()), NO_PREALLOC)?;
        for (key, value) in entries {
            inner.insert(&key, value, 0)?;
        }
        ArrayOfMaps::<MapData, LpmTrie<MapData, A, V>>::try_from(outer)?.set(slot, &inner, 0)
    };
    fill().map_err(Error::map(name))
}

fn ranges(pins: &Pins, slot: u32, snapshot: &Snapshot) -> Result<(), Error> {
    let outer = pins.map("RANGES")?;
    let fill = || -> Result<(), MapError> {
        let mut inner = Array::create(room(snapshot.ranges.len()), INNER_MAP)?;
        for (index, range) in (0..).zip(&snapshot.ranges) {
            inner.set(index, *range, 0)?;
        }
        ArrayOfMaps::<MapData, Array<MapData, netpol_common::tables::Range>>::try_from(outer)?.set(slot, &inner, 0)
    };
    fill().map_err(Error::map("RANGES"))
}
