//! What is remembered of refused packets: netpol-common's [`denial`], in an array.

use aya_ebpf::btf_maps::Array;
use netpol_common::{
    denial::{self, DenialSlot, ROOM, WRITING},
    flow::{FlowKey, FlowValue, Word},
    kernel::Turnover,
    wire::Address,
};

use crate::act;

pub type Denials<A> = Array<DenialSlot<A>, { ROOM as usize }>;

/// A family's table of denials.
pub trait DenialMap<A: Address> {
    /// What is remembered of a key, in whatever generation.
    fn find(&self, key: &FlowKey<A>) -> Option<*mut FlowValue<A>>;

    /// Remembers a denial, its counters going on from what was remembered of the key.
    fn put(&self, key: &FlowKey<A>, value: &mut FlowValue<A>);
}

impl<A: Address> DenialMap<A> for Denials<A> {
    #[inline(always)]
    fn find(&self, key: &FlowKey<A>) -> Option<*mut FlowValue<A>> {
        let [own, neighbour] = denial::places(key);
        let slot = self.get_ptr_mut(own)?;
        if is_of(slot, key) {
            return Some(value(slot));
        }
        let slot = self.get_ptr_mut(neighbour)?;
        is_of(slot, key).then(|| value(slot))
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
                || !second.is_of(key) && first.is_staler(second, value.word.generation(), value.judged);
            if takes_own { own } else { neighbour }
        };
        // SAFETY: as above; a place is written by one at a time. Whoever reads it meanwhile finds no entry of his own there:
        // the word is taken away first, and comes back last, with the tag of the new key.
        unsafe {
            let at = &raw mut (*slot).value.word;
            let before = exchange(at, WRITING);
            if before == WRITING {
                return;
            }
            if before.tag() == key.tag() && (*slot).key == *key {
                value.packets += (*slot).value.packets;
                value.bytes += (*slot).value.bytes;
            } else if before.generation() == value.word.generation() {
                act::tally::<A>(Turnover::DenialsForgotten);
            }
            let word = core::mem::replace(&mut value.word, WRITING);
            (*slot).key.copy_from(key);
            (*slot).value.copy_from(value);
            value.word = word;
            exchange(at, word);
        }
    }
}

#[inline(always)]
fn is_of<A: Address>(slot: *mut DenialSlot<A>, key: &FlowKey<A>) -> bool {
    // SAFETY: elements of an array map stay mapped; see `put`.
    unsafe { (*slot).is_of(key) }
}

#[inline(always)]
fn value<A: Address>(slot: *mut DenialSlot<A>) -> *mut FlowValue<A> {
    // SAFETY: within the element.
    unsafe { &raw mut (*slot).value }
}

/// Puts a word there and gives what was there; what is read or written before it comes before, what comes next after
/// (a full barrier: Documentation/atomic_t.txt).
///
/// # Safety
///
/// The pointer is aligned and valid for reads and writes.
#[inline(always)]
unsafe fn exchange(at: *mut Word, word: Word) -> Word {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's; a word is a number.
    let before = unsafe {
        core::intrinsics::atomic_xchg::<u64, { core::intrinsics::AtomicOrdering::AcqRel }>(at.cast(), word.0)
    };
    // for clippy and editors, which look at the host's target
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    let before = unsafe {
        core::sync::atomic::AtomicU64::from_ptr(at.cast()).swap(word.0, core::sync::atomic::Ordering::AcqRel)
    };
    Word(before)
}
