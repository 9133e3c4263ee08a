//! What is remembered of connections: netpol-common's [`table`](netpol_common::table), in an array.

use aya_ebpf::{Global, bindings::BPF_F_MMAPABLE, btf_maps::Array};
use netpol_common::{
    flow::{FlowKey, FlowValue, Generation, Ticks, Word},
    kernel::Turnover,
    table::{ALL, Block, HashKeys, Home, Slot, Stalest, Tag, Tags, index, room},
    wire::Address,
};

use crate::act;

/// A family's table of flows, which the loader makes as large as it is wanted. Userspace reads it through its memory.
pub type Flows<A> = Array<Block<A>, 1, { BPF_F_MMAPABLE as usize }>;

/// The table's secret: the loader's. It is that of the tables as long as they are pinned.
#[unsafe(no_mangle)]
static HASH_KEYS: HashKeys = HashKeys([0; HashKeys::COUNT]);
/// How many blocks the tables have, which the loader has made.
#[unsafe(no_mangle)]
pub static BLOCKS4: Global<u32> = Global::new(1);
#[unsafe(no_mangle)]
pub static BLOCKS6: Global<u32> = Global::new(1);

/// What was found of a key: where, and its word, read before the key was compared. As long as that is still there, all that
/// was read meanwhile is the key's.
pub struct Found<A: Address> {
    slot: *mut Slot<A>,
    pub word: Word,
}

impl<A: Address> Found<A> {
    /// In a place, if it is the key's.
    #[inline(always)]
    pub(crate) fn at(slot: *mut Slot<A>, key: &FlowKey<A>) -> Option<Self> {
        // SAFETY: elements of an array map stay mapped; an aligned word.
        let word = unsafe { (&raw const (*slot).value.word).read_volatile() };
        // the key could have been read before it, and the word be that of who has got the place since
        reread();
        // SAFETY: as above. What is read in halves, while another CPU writes, does not matter: see `has_changed`.
        unsafe { (*slot).key.is(key) }.then_some(Self { slot, word })
    }

    #[inline(always)]
    pub fn entry(&self) -> *mut FlowValue<A> {
        // SAFETY: within the element.
        unsafe { &raw mut (*self.slot).value }
    }

    /// Whether somebody has written there since. What was read of the place before this call is the key's, if not.
    #[inline(always)]
    pub fn has_changed(&self) -> bool {
        reread();
        // SAFETY: elements of an array map stay mapped; an aligned word.
        unsafe { (&raw const (*self.slot).value.word).read_volatile() }.0 != self.word.0
    }

    /// Whether it still is the key's. Where somebody is writing, the key comes first, and the word still is that of whom the
    /// place was before.
    #[inline(always)]
    pub fn is_still_of(&self, key: &FlowKey<A>) -> bool {
        if self.has_changed() {
            return false;
        }
        if !self.word.is_writing() {
            return true;
        }
        // what was read of the key in the beginning would do for the compiler
        reread();
        // SAFETY: as in `at`.
        self.word.tag() == key.tag() && unsafe { (*self.slot).key.is(key) }
    }
}

/// What comes before this has read memory, and what comes after reads it anew.
#[inline(always)]
pub fn reread() {
    #[cfg(target_arch = "bpf")]
    // SAFETY: no instructions.
    unsafe {
        core::arch::asm!("", options(nostack, preserves_flags));
    }
}

/// A family's table of flows.
pub struct Table<A: Address + 'static> {
    map: &'static Flows<A>,
    blocks: &'static Global<u32>,
}

impl<A: Address> Table<A> {
    pub const fn new(map: &'static Flows<A>, blocks: &'static Global<u32>) -> Self {
        Self { map, blocks }
    }

    /// The entry of a key, in whatever generation; somebody may be writing there.
    #[inline(always)]
    pub fn find(&self, key: &FlowKey<A>) -> Option<Found<A>> {
        let home = self.home(key);
        let block = self.map.get_ptr_mut(home.block)?;
        let [first, second] = home.groups;
        match look(block, first, key, &home) {
            None => look(block, second, key, &home).map(|(_, found)| found),
            Some((_, found)) => Some(found),
        }
    }

    /// The entry of this generation was looked at, now. `false`: there is none any more.
    #[inline(always)]
    pub fn refresh(&self, key: &FlowKey<A>, generation: Generation, now: Ticks) -> bool {
        let Some(found) = self.find(key).filter(|found| found.word.is_current(generation)) else { return false };
        // SAFETY: elements of an array map stay mapped; an aligned word. Whoever gets the place at this moment was judged
        // now as well.
        unsafe { (*found.entry()).judged = now };
        true
    }

    #[inline(always)]
    fn home(&self, key: &FlowKey<A>) -> Home {
        // SAFETY: an element of the array; the loader has written it, so the compiler must not know it.
        let number = |number: usize| unsafe { (&raw const HASH_KEYS.0[number]).read_volatile() };
        Home::of(key.keyed_hash(number), self.blocks.load())
    }

    /// Creates or replaces an entry. `Some(false)`: another CPU is in the way. `None`: there is no table.
    ///
    /// `stalest`: [`Block::stalest`], as a function that the verifier looks at on its own.
    #[inline(always)]
    pub fn put(
        &self,
        key: &FlowKey<A>,
        value: &FlowValue<A>,
        stalest: impl Fn(&Block<A>, usize, Ticks) -> Stalest,
    ) -> Option<bool> {
        let home = self.home(key);
        // the words of a key are more than there are registers: the stack is small
        reread();
        let block = self.map.get_ptr_mut(home.block)?;
        let [first, second] = home.groups;
        if let Some((at, _)) = look(block, first, key, &home) {
            return Some(write((block, at), home.tag, home.tag, (key, value), || true));
        }
        if let Some((at, _)) = look(block, second, key, &home) {
            return Some(write((block, at), home.tag, home.tag, (key, value), || true));
        }
        let both = [tags(block, first), tags(block, second)];
        let pick = |which: usize| if which == 0 { first } else { second };
        // SAFETY: as in `Found::at`: each age is one that it had.
        let (which, place) = room(both, home.tag, |which| stalest(unsafe { &*block }, pick(which), value.seen));
        let was = if which == 0 { both[0] } else { both[1] }.at(place);
        // whoever has looked at the same moment may be writing the same key somewhere else
        let is_alone = || {
            let [own, other] = [tags(block, pick(which)).without(place), tags(block, pick(1 - which))];
            let had = if which == 0 { both[1] } else { both[0] }.place(home.tag);
            own.place(home.tag).is_none() && (had.is_some() || other.place(home.tag).is_none())
        };
        let is_made = write((block, index(pick(which), place)), was, home.tag, (key, value), is_alone);
        if is_made {
            act::tally::<A>(Turnover::FlowsMade);
        }
        Some(is_made)
    }
}

/// The entry of a key in a group, and where in the block it is.
#[inline(always)]
fn look<A: Address>(block: *mut Block<A>, group: usize, key: &FlowKey<A>, home: &Home) -> Option<(usize, Found<A>)> {
    let at = index(group, tags(block, group).place(home.tag)?);
    Some((at, Found::at(slot(block, at), key)?))
}

#[inline(always)]
fn tags<A: Address>(block: *mut Block<A>, group: usize) -> Tags {
    // SAFETY: elements of an array map stay mapped, and are aligned to 8; the offset is within.
    Tags::from_memory(unsafe { (&raw const (*block).tags).cast::<[u64; 2]>().add(group).read_volatile() })
}

#[inline(always)]
fn slot<A: Address>(block: *mut Block<A>, at: usize) -> *mut Slot<A> {
    // SAFETY: within the element.
    unsafe { (&raw mut (*block).slots).cast::<Slot<A>>().add(bounded(at)) }
}

/// An index of a place, of which the verifier sees that it is one: Linux 6.1 knows nothing of what two unknown numbers are
/// together by `|`, into which the compiler makes their sum.
#[inline(always)]
fn bounded(at: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    let at = {
        const { assert!(ALL == 32) };
        let mut at = at;
        // SAFETY: a calculation.
        unsafe { core::arch::asm!("{0} &= 31", inout(reg) at, options(pure, nomem, nostack)) };
        at
    };
    at % ALL
}

/// Writes an entry where a tag was seen, and gives it its own. `false`: another CPU writes there, or has written, or both
/// would have made the same entry.
#[inline(always)]
fn write<A: Address>(
    (block, number): (*mut Block<A>, usize),
    was: Tag,
    tag: Tag,
    (key, value): (&FlowKey<A>, &FlowValue<A>),
    is_alone: impl Fn() -> bool,
) -> bool {
    let slot = slot(block, number);
    // SAFETY: elements of an array map stay mapped; see `take`.
    unsafe {
        let at = &raw mut (*slot).value.word;
        let Some(before) = take(at) else { return false };
        let says = (&raw mut (*block).tags).cast::<u16>().add(bounded(number));
        if says.read_volatile() != was.to_le() {
            exchange(at, before);
            return false;
        }
        says.write_volatile(tag.to_le());
        // a full barrier: of two that say their tag, and then look for the other's, one sees it at least
        let _ = take(at);
        if !is_alone() {
            // what was there had to go anyway
            says.write_volatile(Tag::FREE.to_le());
            exchange(at, Word::NOTHING.after(before));
            return false;
        }
        fill(slot, before, (key, value));
    }
    true
}

/// Writes an entry in a place that was taken: the key first, and the word last, which gives the place back.
///
/// # Safety
///
/// The pointer is aligned and valid for reads and writes, and the place is the caller's ([`take`]).
#[inline(always)]
pub unsafe fn fill<A: Address>(slot: *mut Slot<A>, before: Word, (key, value): (&FlowKey<A>, &FlowValue<A>)) {
    // SAFETY: the caller's; the word is in front of what else is copied.
    unsafe {
        let at = &raw mut (*slot).value.word;
        (*slot).key.copy_from(key);
        let (from, to) = (core::ptr::from_ref(value).cast::<u64>(), at.cast::<u64>());
        to.add(1).copy_from_nonoverlapping(from.add(1), size_of::<FlowValue<A>>() / 8 - 1);
        exchange(at, value.word.after(before));
    }
}

/// Takes a place to write in it, by a bit of its word: only one has it at a time. `None`: another CPU. Whoever reads meanwhile
/// finds that somebody writes, or, later, a word that has changed: it is put back last.
///
/// # Safety
///
/// The pointer is aligned and valid for reads and writes.
#[inline(always)]
pub unsafe fn take(at: *mut Word) -> Option<Word> {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's; a word is a number.
    let before = unsafe {
        core::intrinsics::atomic_or::<u64, u64, { core::intrinsics::AtomicOrdering::AcqRel }>(
            at.cast(),
            Word::WRITING.0,
        )
    };
    // for clippy and editors, which look at the host's target
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    let before = unsafe {
        core::sync::atomic::AtomicU64::from_ptr(at.cast())
            .fetch_or(Word::WRITING.0, core::sync::atomic::Ordering::AcqRel)
    };
    let before = Word(before);
    if before.is_writing() { None } else { Some(before) }
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
