//! What is remembered of refused packets: netpol-common's [`denial`], in an array.

use aya_ebpf::btf_maps::Array;
use netpol_common::{
    denial::{self, Latest, ROOM},
    flow::{FlowKey, FlowValue, Generation, Ticks},
    kernel::Turnover,
    table::Slot,
    wire::Address,
};

use crate::{
    act,
    places::{Found, fill, take},
};

static mut LATEST: Latest = Latest(0);

/// Whether there may be a denial that is valid.
#[inline(always)]
pub fn may_speak(generation: Generation, now: Ticks) -> bool {
    // SAFETY: an aligned word, of which each store is whole.
    unsafe { (&raw const LATEST).read_volatile() }.may_speak(generation, now)
}

/// A denial is remembered. (Of two CPUs the one with the older time may be the last: those judged at the end of it are judged
/// once more.)
#[inline(always)]
fn remembers<A: Address>(value: &FlowValue<A>) {
    let latest = Latest::of(value.word.generation(), value.judged);
    // SAFETY: as above. What is there already is not written, which would take it from all other CPUs.
    unsafe {
        if (&raw const LATEST).read_volatile() != latest {
            (&raw mut LATEST).write_volatile(latest);
        }
    }
}

pub type Denials<A> = Array<Slot<A>, { ROOM as usize }>;

/// A family's table of denials.
pub trait DenialMap<A: Address> {
    /// What is remembered of a key, in whatever generation; somebody may be writing it.
    fn find(&self, key: &FlowKey<A>) -> Option<Found<A>>;

    /// Remembers a denial, its counters going on from what was remembered of the key.
    fn put(&self, key: &FlowKey<A>, value: &mut FlowValue<A>);
}

impl<A: Address> DenialMap<A> for Denials<A> {
    #[inline(always)]
    fn find(&self, key: &FlowKey<A>) -> Option<Found<A>> {
        let [own, neighbour] = denial::places(key);
        match Found::at(self.get_ptr_mut(own)?, key) {
            None => Found::at(self.get_ptr_mut(neighbour)?, key),
            found => found,
        }
    }

    #[inline(always)]
    fn put(&self, key: &FlowKey<A>, value: &mut FlowValue<A>) {
        let [own, neighbour] = denial::places(key);
        let (Some(own), Some(neighbour)) = (self.get_ptr_mut(own), self.get_ptr_mut(neighbour)) else { return };
        // SAFETY: elements of an array map stay mapped. Another CPU may write meanwhile: what is read in halves is a place
        // to take or to leave, and both are right.
        let slot = unsafe {
            let (first, second) = (&*own, &*neighbour);
            let takes_own = first.is_of(key)
                || !second.is_of(key) && denial::takes_own(first, second, value.word.generation(), value.judged);
            if takes_own { own } else { neighbour }
        };
        // SAFETY: as above; see `take`.
        unsafe {
            let Some(before) = take(&raw mut (*slot).value.word) else { return };
            if before.tag() == key.tag() && (*slot).key.is(key) {
                value.packets += (*slot).value.packets;
                value.bytes += (*slot).value.bytes;
            } else if before.generation() == value.word.generation() {
                act::tally::<A>(Turnover::DenialsForgotten);
            }
            fill(slot, before, (key, value));
            remembers(value);
        }
    }
}
