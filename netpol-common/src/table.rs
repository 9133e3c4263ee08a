//! Where flows are remembered: a table of places, eight in a group. A key has two groups that it may be in.
//!
//! The kernel's LRU hash takes locks and frees in batches; its look-ups are calls that are four functions deep. An array's
//! are a few instructions of the program itself. Its elements are blocks of four groups, of which the first cache line
//! says which of all places may have a key. Both groups of a key are in the same block: whether a flow is known, and
//! where, is seen in a single access to memory. What is in the way of a new flow, where both groups are full, is the one
//! of the sixteen that had no packet for longest.
//!
//! Who opens flows may choose addresses and ports, so the hash is keyed with a secret of the table: nobody who does not know it
//! can fill two groups on purpose.

use crate::{
    flow::{FlowKey, FlowValue, Ticks},
    wire::Address,
};

/// Room for flows where nobody wants another: so many entries of IPv4, half as many of IPv6.
pub const FLOWS: u32 = 262_144;

/// Places in a group.
pub const PLACES: usize = 8;
/// Groups in a block.
pub const GROUPS: usize = 4;
/// And places there.
pub const ALL: usize = GROUPS * PLACES;

pod! {
    /// One place. (A table of the kernel's that is an array: keys are part of the value.)
    pub struct Slot<A: Address> {
        pub key: FlowKey<A>,
        pub reserved: u32,
        pub value: FlowValue<A>,
    }

    /// What the kernel keeps together, at an address that is a multiple of 8; of an array that userspace may map, one of
    /// 64. Groups come one after the other.
    pub struct Block<A: Address> {
        /// [`Tag`]s of the places, in little endian; 0: it is free.
        pub tags: [u16; ALL],
        pub slots: [Slot<A>; ALL],
    }
}

/// Where in its block a place of a group is.
#[inline(always)]
pub const fn index(group: usize, place: usize) -> usize {
    group % GROUPS * PLACES + place % PLACES
}

const _: () = {
    let () = Slot::<crate::wire::Addr4>::NO_PADDING;
    let () = Slot::<crate::wire::Addr6>::NO_PADDING;
    let () = Block::<crate::wire::Addr4>::NO_PADDING;
    let () = Block::<crate::wire::Addr6>::NO_PADDING;
    // the tags are one cache line
    assert!(core::mem::offset_of!(Block<crate::wire::Addr4>, slots) == 64);
    assert!(size_of::<Block<crate::wire::Addr4>>().is_multiple_of(64));
    assert!(size_of::<Block<crate::wire::Addr6>>().is_multiple_of(64));
    // and what the hot path touches of an IPv4 place that is not translated, two: places begin at multiples of 32 bytes
    assert!(size_of::<Slot<crate::wire::Addr4>>().is_multiple_of(32));
    assert!(24 + core::mem::offset_of!(FlowValue<crate::wire::Addr4>, egress_rule) <= 64 + 32);
};

impl<A: Address> Slot<A> {
    /// As the kernel makes it.
    pub const EMPTY: Self = Self { key: FlowKey::NOBODY, reserved: 0, value: FlowValue::EMPTY };

    /// Whether this is what is remembered of the key, in whatever generation. The tag is asked first: it is nearly always
    /// the answer.
    #[inline(always)]
    pub fn is_of(&self, key: &FlowKey<A>) -> bool {
        let word = self.value.word;
        word.is_used() && word.tag() == key.tag() && self.key.is(key)
    }
}

impl<A: Address> Block<A> {
    /// As the kernel makes it.
    pub const EMPTY: Self = Self { tags: [0; ALL], slots: [Slot::EMPTY; ALL] };

    /// The place of a group that had no packet for longest.
    #[inline(always)]
    pub fn stalest(&self, group: usize, now: Ticks) -> Stalest {
        let seen = |place| self.slots[index(group, place)].value.seen;
        let mut stalest = Stalest::new(seen(0), 0, now);
        for place in 1..PLACES {
            let other = Stalest::new(seen(place), place, now);
            if other.0 > stalest.0 {
                stalest = other;
            }
        }
        stalest
    }

    /// Where a key may be, if it is there.
    pub fn find(&self, key: &FlowKey<A>, home: &Home) -> Option<usize> {
        home.groups.into_iter().find_map(|group| {
            let at = index(group, Tags::of(&self.tags, group).place(home.tag)?);
            self.slots[at].is_of(key).then_some(at)
        })
    }
}

/// A place, and for how long it had no packet: the place is in the lowest 3 bits, and the ticks above it, so that one
/// comparison tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Stalest(pub u64);

impl Stalest {
    #[inline(always)]
    fn new(seen: Ticks, place: usize, now: Ticks) -> Self {
        // a quarter of an hour more: another CPU may have been late when it read the clock, or this one
        let age = now.0.wrapping_sub(seen.0).wrapping_add(1 << 20);
        Self((age as u64) << 3 | place as u64)
    }

    #[inline(always)]
    const fn place(self) -> usize {
        self.0 as usize % PLACES
    }
}

/// The secret of a table, as the numbers that hashes are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct HashKeys(pub [u64; Self::COUNT]);

impl HashKeys {
    /// One for each word of an IPv6 key, ports, place and protocol.
    pub const COUNT: usize = 10;

    /// By SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
    pub fn of(seed: u64) -> Self {
        let mut state = seed;
        Self(core::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            // an even one would have no say in the lowest bit
            (mixed ^ mixed >> 31) | 1
        }))
    }
}

/// What a group says of a place: 16 bits of the key's hash, of which the lowest is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Tag(u16);

impl Tag {
    pub const FREE: Self = Self(0);

    /// As it is kept.
    #[inline(always)]
    pub const fn to_le(self) -> u16 {
        self.0.to_le()
    }
}

/// Where a key may be, and by which tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    pub block: u32,
    /// Two different ones of the block.
    pub groups: [usize; 2],
    pub tag: Tag,
}

impl Home {
    /// Of a hash, in a table with so many blocks. The upper half says the block, by its highest bits, and the tag, by its
    /// lowest; the lower half says the groups.
    #[inline(always)]
    pub fn of(hash: u64, blocks: u32) -> Self {
        let (upper, lower) = (hash >> 32, hash & 0xffff_ffff);
        let block = ((upper * u64::from(blocks)) >> 32) as u32;
        // 1 to 3
        let apart = (((lower >> 2) * 3) >> 30) as usize + 1;
        let first = lower as usize % GROUPS;
        Self { block, groups: [first, (first ^ apart) % GROUPS], tag: Tag(upper as u16 | 1) }
    }
}

/// The tags of a group, as two numbers of four tags each: all eight are compared at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags {
    low: u64,
    high: u64,
}

impl Tags {
    /// Of a group's sixteen bytes, as they lie in memory.
    #[inline(always)]
    pub const fn from_memory([low, high]: [u64; 2]) -> Self {
        Self { low: u64::from_le(low), high: u64::from_le(high) }
    }

    /// Of a group among all.
    pub fn of(tags: &[u16; ALL], group: usize) -> Self {
        let half = |half: &[u16]| half.iter().rev().fold(0, |number, tag| number << 16 | u64::from(u16::from_le(*tag)));
        let (low, high) = tags[index(group, 0)..][..PLACES].split_at(PLACES / 2);
        Self { low: half(low), high: half(high) }
    }

    /// A place with this tag: its byte has its lowest bit set, and some bytes above the lowest may have it for nothing.
    ///
    /// A tag that is found leaves a zero among four, which borrows from the bit above it when 1 is taken away (as in
    /// `has_zero` of include/asm-generic/word-at-a-time.h, where only the lowest finding is sure). One half's findings are
    /// put between the other's.
    #[inline(always)]
    const fn findings(self, tag: Tag) -> u64 {
        const ONES: u64 = 0x0001_0001_0001_0001;
        let wanted = tag.0 as u64 * ONES;
        let (low, high) = (self.low ^ wanted, self.high ^ wanted);
        let low = low.wrapping_sub(ONES) & !low & ONES << 15;
        let high = high.wrapping_sub(ONES) & !high & ONES << 15;
        low >> 15 | high >> 7
    }

    /// A place with this tag.
    #[inline(always)]
    pub const fn place(self, tag: Tag) -> Option<usize> {
        let found = self.findings(tag);
        if found == 0 {
            return None;
        }
        // the lowest one alone moves the byte with its place's number to the top
        let lowest = found & found.wrapping_neg();
        Some((lowest.wrapping_mul(0x0004_0105_0206_0307) >> 56) as usize % PLACES)
    }

    /// That of a place.
    #[inline(always)]
    pub const fn at(self, place: usize) -> Tag {
        let half = if place < PLACES / 2 { self.low } else { self.high };
        Tag((half >> (place % (PLACES / 2) * 16)) as u16)
    }

    /// The same without that of a place.
    #[inline(always)]
    pub const fn without(self, place: usize) -> Self {
        let others = !(0xffff << (place % (PLACES / 2) * 16));
        if place < PLACES / 2 {
            Self { low: self.low & others, ..self }
        } else {
            Self { high: self.high & others, ..self }
        }
    }

    /// How many places are free, or a few more.
    #[inline(always)]
    const fn free(self) -> u64 {
        self.findings(Tag::FREE).wrapping_mul(0x0101_0101_0101_0101) >> 56
    }
}

/// Where an entry goes that is in neither of its groups: which of the two, and the place there.
///
/// A free place: in the first, where most are found at once, until it is half full; from then on where there are more. Else
/// the stalest of all. In a group where another key has the tag it would not be found, so it goes to the other one; where
/// both are like that (one in many millions), the first such gives way.
#[inline(always)]
pub fn room(tags: [Tags; 2], tag: Tag, stalest: impl Fn(usize) -> Stalest) -> (usize, usize) {
    let taken = [tags[0].place(tag), tags[1].place(tag)];
    if let (Some(place), Some(_)) = (taken[0], taken[1]) {
        return (0, place);
    }
    let free = [tags[0].free(), tags[1].free()];
    let first = taken[1].is_some() || taken[0].is_none() && (free[0] >= PLACES as u64 / 2 || free[0] >= free[1]);
    let better = usize::from(!first);
    if let Some(place) = tags[better].place(Tag::FREE) {
        return (better, place);
    }
    let (own, other) = (stalest(better), stalest(1 - better));
    if taken[1 - better].is_none() && other > own { (1 - better, other.place()) } else { (better, own.place()) }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;

    use std::{collections::HashSet, vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        drops::Side,
        flow::{FlowFlags, Generation, KeyProtocol, Place, PortPair, Word},
        tables::IfIndex,
        wire::{Addr4, Addr6, PortBe, Protocol},
    };

    pub(crate) fn key(client: u16, server: u16) -> FlowKey<Addr4> {
        FlowKey {
            source: Addr4(0x0a00_000a),
            destination: Addr4(0x1400_000a),
            ports: PortPair::new(PortBe::from_host(client), PortBe::from_host(server)),
            place: Place::new(IfIndex(7), Side::From),
            protocol: Protocol::TCP.into(),
        }
    }

    /// Many keys that differ in little: of a scan, of a server's clients, and of neighbours that call a group.
    pub(crate) fn crowds() -> [Vec<FlowKey<Addr4>>; 4] {
        let sources = |protocol: Protocol| {
            let key = move |low: u16| {
                let [third, fourth] = low.to_be_bytes();
                let source = Addr4(u32::from_ne_bytes([10, 0, third, fourth]));
                FlowKey { source, protocol: protocol.into(), ..key(5353, 5353) }
            };
            (0..=u16::MAX).map(key).collect()
        };
        let scan = (0..=u16::MAX).map(|port| key(40_000, port));
        let clients = (0..=u16::MAX).map(|port| key(port, 80));
        [scan.collect(), clients.collect(), sources(Protocol::UDP), sources(Protocol::ICMP)]
    }

    fn home<A: Address>(key: &FlowKey<A>, HashKeys(keys): HashKeys, blocks: u32) -> Home {
        Home::of(key.keyed_hash(|number| keys[number]), blocks)
    }

    fn tags(tags: [u16; PLACES]) -> Tags {
        let memory = tags.map(u16::to_le);
        // SAFETY: integers without padding.
        let halves: [u64; 2] = unsafe { core::mem::transmute(memory) };
        for group in 0..GROUPS {
            let mut all = [0; ALL];
            all[group * PLACES..][..PLACES].copy_from_slice(&memory);
            assert_eq!(Tags::from_memory(halves), Tags::of(&all, group));
        }
        Tags::from_memory(halves)
    }

    proptest! {
        #[test]
        fn a_tag_is_found_where_it_is_and_free_places_are_counted(all: [u16; PLACES], pick in 0..PLACES, other: u16) {
            // often the same, and next to each other
            for all in [all, all.map(|tag| tag % 3)] {
                for wanted in [all[pick], other, 0, all[pick] ^ 1, u16::MAX].map(Tag) {
                    match tags(all).place(wanted) {
                        Some(place) => {
                            prop_assert_eq!(all[place], wanted.0);
                            prop_assert_eq!(tags(all).at(place), wanted);
                        }
                        None => prop_assert!(!all.contains(&wanted.0)),
                    }
                }
                let mut others = all;
                others[pick] = 0;
                prop_assert_eq!(tags(all).without(pick), tags(others));
                let free = all.iter().filter(|tag| **tag == 0).count() as u64;
                let ones = all.iter().filter(|tag| **tag == 1).count() as u64;
                prop_assert!((free..=free + ones).contains(&tags(all).free()));
            }
        }

        #[test]
        fn keys_that_differ_anywhere_are_others(bits in 0_usize..44 * 8, seed: u64) {
            let one = FlowKey::<Addr6> {
                source: Addr6([1, 2, 3, 4]),
                destination: Addr6([5, 6, 7, 8]),
                ports: PortPair::new(PortBe(9), PortBe(10)),
                place: Place(11),
                protocol: KeyProtocol::from_word(12),
            };
            // SAFETY: integers without padding.
            let mut bytes: [u8; 44] = unsafe { core::mem::transmute(one) };
            bytes[bits / 8] ^= 1 << (bits % 8);
            // SAFETY: as above.
            let other: FlowKey<Addr6> = unsafe { core::mem::transmute(bytes) };
            prop_assert!(one.is(&one) && !one.is(&other) && one != other);
            let keys = HashKeys::of(seed);
            prop_assert_ne!(one.keyed_hash(|number| keys.0[number]), other.keyed_hash(|number| keys.0[number]));
        }
    }

    /// Of a group whose places were seen at these times.
    fn stalest(seen: [u32; PLACES], now: Ticks) -> Stalest {
        let mut block = Block::<Addr4>::EMPTY;
        (0..).zip(seen).for_each(|(place, seen)| block.slots[index(2, place)].value.seen = Ticks(seen));
        block.stalest(2, now)
    }

    /// A table as the classifiers fill it, of which only tags and ages are kept.
    struct Filled {
        keys: HashKeys,
        blocks: Vec<[[(u16, u32); PLACES]; GROUPS]>,
        /// How many gave way.
        lost: usize,
    }

    impl Filled {
        fn new(blocks: u32, seed: u64) -> Self {
            Self { keys: HashKeys::of(seed), blocks: vec![[[(0, 0); PLACES]; GROUPS]; blocks as usize], lost: 0 }
        }

        fn put<A: Address>(&mut self, key: &FlowKey<A>, now: u32) {
            let Home { block, groups, tag } = home(key, self.keys, self.blocks.len() as u32);
            let block = &mut self.blocks[block as usize];
            let both = groups.map(|group| block[group]);
            let (group, place) = room(both.map(|group| tags(group.map(|(tag, _)| tag))), tag, |group| {
                stalest(both[group].map(|(_, seen)| seen), Ticks(now))
            });
            let at = &mut block[groups[group]][place];
            self.lost += usize::from(at.0 != 0);
            *at = (tag.0, now);
        }
    }

    #[test]
    fn scans_and_many_clients_find_room_until_the_table_is_nearly_full() {
        for keys in crowds() {
            for seed in 0..20 {
                let mut table = Filled::new((keys.len() / ALL) as u32, seed);
                // Poisson's: a block has 32 places, and a key may have 16 of them
                let (half, quarter) = (keys.len() / 2, keys.len() / 4);
                keys[..half].iter().for_each(|key| table.put(key, 0));
                assert!(table.lost < half / 1_000, "{} of {half} lost with seed {seed}", table.lost);
                keys[half..][..quarter].iter().for_each(|key| table.put(key, 0));
                assert!(table.lost < keys.len() / 100, "{} of {} lost with seed {seed}", table.lost, keys.len());
            }
        }
    }

    #[test]
    fn what_was_used_last_stays() {
        let mut table = Filled::new(1, 1);
        let busy = key(1, 1);
        for port in 0..10_000 {
            table.put(&key(port, 443), u32::from(port));
            let Home { groups, tag, .. } = home(&busy, table.keys, 1);
            if port == 0 {
                table.put(&busy, 0);
            }
            // it has a packet after each of theirs
            for group in groups {
                for (_, seen) in table.blocks[0][group].iter_mut().filter(|(other, _)| *other == tag.0) {
                    *seen = u32::from(port);
                }
            }
        }
        let Home { groups, tag, .. } = home(&busy, table.keys, 1);
        assert!(groups.into_iter().any(|group| table.blocks[0][group].iter().any(|(other, _)| *other == tag.0)));
    }

    #[test]
    fn a_tag_that_another_has_leads_to_the_other_group_and_in_both_the_first_gives_way() {
        let free = tags([5, 3, 0, 0, 0, 0, 0, 0]);
        let full = tags([5, 7, 9, 11, 13, 15, 17, 19]);
        let age = |group: usize| Stalest((group as u64 + 1) << 3 | 7);
        assert!(matches!(room([free, full], Tag(1), age), (0, 2..)));
        assert!(matches!(room([full, free], Tag(1), age), (1, 2..)));
        assert_eq!(room([free, free], Tag(3), age), (0, 1));
        assert!(matches!(room([full, free], Tag(7), age), (1, 2..)));
        let few = tags([5, 3, 7, 9, 11, 0, 0, 0]);
        assert!(matches!(room([free, few], Tag(1), age), (0, 2..)));
        assert!(matches!(room([few, free], Tag(1), age), (1, 2..)));
        // no other is ever chosen where the tag is taken, and the stalest elsewhere
        assert_eq!(room([full, full], Tag(1), age), (1, 7));
        assert_eq!(room([full, free], Tag(3), age), (0, 7));
        assert_eq!(room([free, full], Tag(3), |_| Stalest(5)), (1, 5));
    }

    #[test]
    fn blocks_groups_and_tags_of_a_hash_are_in_range_and_spread() {
        for blocks in [1, 2, 128, 1_000, 32_768, 2_097_152] {
            let homes: Vec<_> = (0..10_000).map(|port| home(&key(port, 80), HashKeys::of(3), blocks)).collect();
            for Home { block, groups: [first, second], tag } in &homes {
                assert!(*block < blocks && *first < GROUPS && *second < GROUPS && first != second && tag.0 & 1 == 1);
            }
            let pairs: HashSet<_> = homes.iter().map(|home| home.groups).collect();
            assert_eq!(pairs.len(), GROUPS * (GROUPS - 1), "all pairs of different groups");
            let different: HashSet<_> = homes.iter().map(|home| (home.block, home.groups, home.tag.0)).collect();
            assert!(different.len() > 9_900 || blocks < 128, "{} homes in {blocks} blocks", different.len());
        }
    }

    #[test]
    fn a_key_is_found_in_either_of_its_groups_and_nowhere_else() {
        let key = key(1, 80);
        let home = home(&key, HashKeys::of(3), 1);
        for group in 0..GROUPS {
            let mut block = Block::EMPTY;
            let at = index(group, 5);
            block.tags[at] = home.tag.to_le();
            block.slots[at].key = key;
            assert_eq!(block.find(&key, &home), None, "nobody has written it");
            block.slots[at].value.word = Word::new(Generation(3), key.tag(), FlowFlags::NONE);
            assert_eq!(block.find(&key, &home), home.groups.contains(&group).then_some(at));
        }
    }

    #[test]
    fn the_place_that_had_no_packet_for_longest_is_the_stalest() {
        // over the clock's end, and one whose packet another CPU saw in the future
        let now = Ticks(5);
        let mut ages = [3, 6, 900, 0, u32::MAX - 1_000, 4, 20, 7];
        let of = |ages: [u32; PLACES]| stalest(ages.map(|age| now.0.wrapping_sub(age)), now).place();
        assert_eq!(of(ages), 2);
        ages[7] = 1_000_000;
        assert_eq!(of(ages), 7);
    }

    #[test]
    fn what_is_being_written_is_the_one_before_until_its_key_changes() {
        let mut slot = Slot { key: key(1, 1), ..Slot::EMPTY };
        slot.value.word = Word::new(Generation(3), slot.key.tag(), FlowFlags::REPLY);
        assert!(slot.is_of(&key(1, 1)) && !slot.is_of(&key(1, 2)));
        let before = slot.value.word;
        // somebody writes another there, and has come as far as the key
        slot.value.word = Word(before.0 | Word::WRITING.0);
        assert!(before.is_current(Generation(3)) && !slot.value.word.is_current(Generation(3)));
        assert!(slot.is_of(&key(1, 1)) && slot.value.word.generation() == Generation(3));
        slot.key = key(1, 2);
        assert!(!slot.is_of(&key(1, 2)));
        assert!(!Slot::EMPTY.is_of(&FlowKey::<Addr4>::NOBODY));
    }

    #[test]
    fn a_word_differs_from_the_one_that_it_replaces_whatever_it_says() {
        let flags = FlowFlags::REPLY.with(FlowFlags::OUT);
        let mut word = Word::new(Generation(3), 0xffff, flags);
        for _ in 0..200 {
            let next = Word::new(Generation(3), 0xffff, flags).after(word);
            assert_ne!(next, word);
            assert_eq!((next.generation(), next.tag(), next.flags()), (Generation(3), 0xffff, flags));
            word = next;
        }
    }
}
