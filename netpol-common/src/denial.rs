//! Where denials are remembered: a table of places, of which each key has two, next to each other.
//!
//! Whoever floods us with packets to refuse decides how often the table is written. So a first denial costs no search for
//! what to evict, no lock and no memory beyond a few megabytes: it takes the place of the two that was judged longest ago.
//! What was there is judged again when it comes again, which is slower, and as safe.

use crate::{
    flow::{FlowKey, Generation, REFRESH, Ticks},
    table::Slot,
    wire::Address,
};

/// How many denials a family remembers: as many as stay in the caches, and a power of two.
pub const ROOM: u32 = 16_384;

const _: () = assert!(ROOM.is_power_of_two());

/// Of the two places of a key that has neither: whether to take `own` rather than `neighbour`.
#[inline(always)]
pub fn takes_own<A: Address>(own: &Slot<A>, neighbour: &Slot<A>, generation: Generation, now: Ticks) -> bool {
    staleness(own, generation, now) >= staleness(neighbour, generation, now)
}

/// How little there is to lose: what was judged last is judged next.
#[inline(always)]
fn staleness<A: Address>(slot: &Slot<A>, generation: Generation, now: Ticks) -> u32 {
    if slot.value.word.generation().0 != generation.0 { u32::MAX } else { now.since(slot.value.judged) }
}

/// When the last denial was remembered, and in which generation (bits 32-63). As long as nobody is refused, nobody looks for
/// denials: a new connection need not wait for two places that are in no cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Latest(pub u64);

impl Latest {
    #[inline(always)]
    pub const fn of(generation: Generation, judged: Ticks) -> Self {
        Self((generation.0 as u64) << 32 | judged.0 as u64)
    }

    /// Whether any denial can still be [valid](crate::decide::is_denial_valid).
    #[inline(always)]
    pub fn may_speak(self, generation: Generation, now: Ticks) -> bool {
        (self.0 >> 32) as u32 == generation.0 && now.since(Ticks(self.0 as u32)) <= REFRESH
    }
}

/// The two places of a key, where it is looked for in this order.
#[inline(always)]
pub fn places<A: Address>(key: &FlowKey<A>) -> [u32; 2] {
    // in the lower ones not every bit of the key has had its say: they get the highest ones on top
    let mixed = key.mixed();
    let place = (mixed >> 32 ^ mixed >> 50) as u32 & (ROOM - 1);
    [place, place ^ 1]
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashMap;

    use super::*;
    use crate::{
        decide::is_denial_valid,
        flow::{FlowFlags, FlowValue, Word},
        table::tests::{crowds, key},
        wire::Addr4,
    };

    fn slot(key: FlowKey<Addr4>, generation: u32, judged: u32) -> Slot<Addr4> {
        let word = Word::new(Generation(generation), key.tag(), FlowFlags::NONE);
        Slot { key, value: FlowValue { word, judged: Ticks(judged), ..FlowValue::EMPTY }, ..Slot::EMPTY }
    }

    #[test]
    fn the_places_of_a_key_are_neighbours_in_the_table() {
        for port in 0..=u16::MAX {
            let [own, neighbour] = places(&key(port, 80));
            assert!(own < ROOM && neighbour < ROOM && own.abs_diff(neighbour) == 1);
        }
    }

    #[test]
    fn scans_and_many_clients_spread_over_the_table() {
        for keys in crowds() {
            // as many as fill an eighth of the table: hardly any two places are wanted by three
            for some in keys.chunks_exact(ROOM as usize / 8) {
                let mut wanted = HashMap::<u32, u32>::new();
                some.iter().for_each(|key| *wanted.entry(places(key)[0] / 2).or_default() += 1);
                let homeless: u32 = wanted.values().map(|count| count.saturating_sub(2)).sum();
                assert!(homeless < 100, "{homeless} of {} find no place", some.len());
            }
        }
    }

    #[test]
    fn nothing_is_lost_while_there_is_a_free_or_an_outdated_place() {
        let (now, generation) = (Ticks(1_000), Generation(5));
        let (old, fresh) = (slot(key(1, 1), 5, 10), slot(key(2, 1), 5, 900));
        let outdated = slot(key(3, 1), 4, 999);
        for [loses, stays] in [[Slot::EMPTY, old], [outdated, old], [old, fresh]] {
            assert!(takes_own(&loses, &stays, generation, now) && !takes_own(&stays, &loses, generation, now));
        }
    }

    #[test]
    fn as_long_as_a_denial_is_valid_somebody_looks_for_it() {
        let generation = Generation(u32::MAX);
        // close to where the clock wraps
        for judged in [Ticks(0), Ticks(900), Ticks(u32::MAX - 900), Ticks(u32::MAX)] {
            let latest = Latest::of(generation, judged);
            for passed in [0, 1, REFRESH - 1, REFRESH, REFRESH + 1, u32::MAX / 2, u32::MAX / 2 + 1, u32::MAX] {
                let now = Ticks(judged.0.wrapping_add(passed));
                let is_valid = is_denial_valid((FlowFlags::NONE, judged), now, 0);
                assert_eq!(latest.may_speak(generation, now), is_valid, "{judged:?} {now:?}");
                assert!(!latest.may_speak(Generation(1), now));
            }
        }
    }

    #[test]
    fn an_empty_place_is_nobodys() {
        assert!(!Slot::EMPTY.is_of(&FlowKey::<Addr4>::NOBODY));
        assert!(slot(key(1, 1), 5, 10).is_of(&key(1, 1)) && !slot(key(1, 1), 5, 10).is_of(&key(1, 2)));
    }
}
