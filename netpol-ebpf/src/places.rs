//! What is remembered of connections: netpol-common's [`table`], in two arrays.

use aya_ebpf::{Global, bindings::BPF_F_MMAPABLE, btf_maps::Array};
use netpol_common::{
    flow::{FlowKey, FlowValue, Ticks, Word},
    kernel::Turnover,
    table::{self, GroupTags, HashKeys, Home, Slot, Stalest, Tag, Tags, index, room},
    wire::Address,
};

use crate::act;

/// A family's flows, in as many places as the loader wants.
pub type Flows<A> = Array<Slot<A>, 1, { BPF_F_MMAPABLE as usize }>;
/// And which of the places may have a key.
pub type FlowTags = Array<GroupTags, 1, { BPF_F_MMAPABLE as usize }>;

/// The table's secret: the loader's. It is that of the tables as long as they are pinned.
#[unsafe(no_mangle)]
static HASH_KEYS: HashKeys = HashKeys([0; HashKeys::COUNT]);
/// How many groups the tables have, which the loader has made.
#[unsafe(no_mangle)]
pub static GROUPS4: Global<u32> = Global::new(1);
#[unsafe(no_mangle)]
pub static GROUPS6: Global<u32> = Global::new(1);

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
        // SAFETY: elements of an array map stay mapped. What is read in halves, while another CPU writes, does not matter:
        // see `has_changed`.
        let (word, is_it) = unsafe { ((&raw const (*slot).value.word).read_volatile(), (*slot).key.is(key)) };
        is_it.then_some(Self { slot, word })
    }

    #[inline(always)]
    pub fn entry(&self) -> *mut FlowValue<A> {
        // SAFETY: within the element.
        unsafe { &raw mut (*self.slot).value }
    }

    /// Whether somebody has written there since.
    #[inline(always)]
    pub fn has_changed(&self) -> bool {
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

/// What comes after this reads memory anew.
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
    slots: &'static Flows<A>,
    tags: &'static FlowTags,
    groups: &'static Global<u32>,
}

impl<A: Address> Table<A> {
    pub const fn new(slots: &'static Flows<A>, tags: &'static FlowTags, groups: &'static Global<u32>) -> Self {
        Self { slots, tags, groups }
    }

    /// The entry of a key, in whatever generation; somebody may be writing there.
    #[inline(always)]
    pub fn find(&self, key: &FlowKey<A>) -> Option<Found<A>> {
        let home = self.home(key);
        let [first, second] = home.groups;
        match self.look(first, key, &home) {
            None => self.look(second, key, &home),
            found => found,
        }
    }

    #[inline(always)]
    fn home(&self, key: &FlowKey<A>) -> Home {
        // SAFETY: an element of the array; the loader has written it, so the compiler must not know it.
        let number = |number: usize| unsafe { (&raw const HASH_KEYS.0[number]).read_volatile() };
        Home::of(key.keyed_hash(number), self.groups.load())
    }

    #[inline(always)]
    fn look(&self, group: u32, key: &FlowKey<A>, home: &Home) -> Option<Found<A>> {
        let place = tags(self.tags.get_ptr_mut(group)?).place(home.tag)?;
        Found::at(self.slots.get_ptr_mut(index(group, place))?, key)
    }

    /// Creates or replaces an entry. `Some(false)`: another CPU is in the way. `None`: there is no table.
    ///
    /// `stalest`: [`Self::stalest`], as a function that the verifier looks at on its own.
    #[inline(always)]
    pub fn put(&self, key: &FlowKey<A>, value: &FlowValue<A>, stalest: impl Fn(u32, Ticks) -> Stalest) -> Option<bool> {
        let home = self.home(key);
        // the words of a key are more than there are registers: the stack is small
        reread();
        let groups = [self.tags.get_ptr_mut(home.groups[0])?, self.tags.get_ptr_mut(home.groups[1])?];
        if let Some((place, slot)) = self.there(home.groups[0], tags(groups[0]), (key, home.tag)) {
            return Some(write((groups[0], place, slot), home.tag, home.tag, (key, value)));
        }
        if let Some((place, slot)) = self.there(home.groups[1], tags(groups[1]), (key, home.tag)) {
            return Some(write((groups[1], place, slot), home.tag, home.tag, (key, value)));
        }
        let tags = [tags(groups[0]), tags(groups[1])];
        let pick = |group: usize| if group == 0 { home.groups[0] } else { home.groups[1] };
        let (group, place) = room(tags, home.tag, |group| stalest(pick(group), value.seen));
        let slot = self.slots.get_ptr_mut(index(pick(group), place))?;
        let (says, seen) = if group == 0 { (groups[0], tags[0].at(place)) } else { (groups[1], tags[1].at(place)) };
        let is_made = write((says, place, slot), seen, home.tag, (key, value));
        if is_made {
            act::tally::<A>(Turnover::FlowsMade);
        }
        Some(is_made)
    }

    /// The place of a key in a group with these tags.
    #[inline(always)]
    fn there(&self, group: u32, tags: Tags, (key, tag): (&FlowKey<A>, Tag)) -> Option<(usize, *mut Slot<A>)> {
        let place = tags.place(tag)?;
        let slot = self.slots.get_ptr_mut(index(group, place))?;
        Found::at(slot, key).map(|_| (place, slot))
    }

    /// [`table::stalest`] of a group.
    #[inline(always)]
    pub fn stalest(&self, group: u32, now: Ticks) -> Option<Stalest> {
        table::stalest(now, |place| {
            let slot = self.slots.get_ptr_mut(index(group, place))?;
            // SAFETY: elements of an array map stay mapped: each age is one that it had.
            Some(unsafe { (*slot).value.seen })
        })
    }
}

#[inline(always)]
fn tags(group: *mut GroupTags) -> Tags {
    // SAFETY: elements of an array map stay mapped, and are aligned to 8.
    Tags::from_memory(unsafe { group.cast::<[u64; 2]>().read_volatile() })
}

/// Writes an entry where it was seen that there is one with that tag, or none. `false`: another CPU writes there, or has written.
#[inline(always)]
fn write<A: Address>(
    (group, place, slot): (*mut GroupTags, usize, *mut Slot<A>),
    seen: Tag,
    tag: Tag,
    (key, value): (&FlowKey<A>, &FlowValue<A>),
) -> bool {
    // SAFETY: elements of array maps stay mapped; see `take`.
    unsafe {
        let at = &raw mut (*slot).value.word;
        let Some(before) = take(at) else { return false };
        let says = group.cast::<u16>().add(place);
        if says.read_volatile() != seen.to_le() {
            exchange(at, before);
            return false;
        }
        says.write_volatile(tag.to_le());
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
