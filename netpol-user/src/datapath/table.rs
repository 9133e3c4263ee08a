//! The tables of flows, which are netpol-common's [`table`](netpol_common::table): laid out, read, and searched.

use std::{
    hash::{BuildHasher as _, RandomState},
    hint, io,
    os::fd::AsFd as _,
    sync::atomic::{Ordering, fence},
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData, MapError},
};
use netpol_common::{
    flow::{FlowKey, FlowValue},
    table::{FLOWS, GroupTags, HashKeys, Home, PLACES, Slot, Tags, index},
    wire::{Addr4, Addr6, Address},
};

use super::{Error, Pins, mapped::Mapped};

/// A family's table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub(super) slots: &'static str,
    pub(super) tags: &'static str,
    /// Which part of the room for flows it has.
    share: u32,
    /// Which of the classifiers' constants says how many groups it has.
    groups: &'static str,
}

/// Of both families.
pub(super) const TABLES: [Maps; 2] = [
    Maps { slots: "FLOWS4", tags: "TAGS4", share: 1, groups: "GROUPS4" },
    Maps { slots: "FLOWS6", tags: "TAGS6", share: 2, groups: "GROUPS6" },
];
/// Which is their secret, as the classifiers need it, made of the number in the map of the other name.
const KEYS: &str = "HASH_KEYS";
const SEED: &str = "SEED";

/// How the tables of an instance are laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    seed: u64,
    keys: [u64; HashKeys::COUNT],
    groups: [u32; 2],
}

impl Layout {
    /// Of what is pinned; else with this room, and a secret of its own. (A seed of 0 is one that nobody has come to write.)
    pub(super) fn of(pins: &Pins, flows: Option<u32>) -> Result<Self, Error> {
        let mut layout = Self::new(flows.unwrap_or(FLOWS), 0);
        for (table, groups) in TABLES.into_iter().zip(&mut layout.groups) {
            *groups = pins.room(table.tags)?.unwrap_or(*groups);
        }
        if pins.maps().join(SEED).exists() {
            let map: Array<MapData, u64> = pins.map(SEED)?.try_into().map_err(Error::map(SEED))?;
            layout = layout.with_seed(map.get(&0, 0).map_err(Error::map(SEED))?);
        }
        if layout.seed == 0 {
            layout = layout.with_seed(draw());
        }
        Ok(layout)
    }

    /// Of tables with room for so many flows.
    pub(super) fn new(flows: u32, seed: u64) -> Self {
        let groups = TABLES.map(|table| table.groups_for(flows));
        Self { seed, keys: HashKeys::of(seed).0, groups }
    }

    fn with_seed(self, seed: u64) -> Self {
        Self { seed, keys: HashKeys::of(seed).0, ..self }
    }

    /// Tells the classifiers, and makes the maps as large.
    pub(super) fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global(KEYS, &self.keys, true);
        for (table, groups) in TABLES.into_iter().zip(&self.groups) {
            loader.override_global(table.groups, groups, true);
            loader.map_max_entries(table.tags, *groups);
            loader.map_max_entries(table.slots, index(*groups, 0));
        }
    }

    /// Writes down what the secret is made of, before anything is remembered with it.
    pub(super) fn keep(&self, object: &mut Ebpf) -> Result<(), Error> {
        let Some(map) = object.map_mut(SEED) else { unreachable!("the object is built with this map in it") };
        let map: Result<Array<&mut MapData, u64>, _> = map.try_into();
        map.and_then(|mut map| map.set(0, self.seed, 0)).map_err(Error::map(SEED))
    }
}

impl Maps {
    /// How many groups a table has that is to hold its share of so many flows.
    const fn groups_for(self, flows: u32) -> u32 {
        flows.div_ceil(self.share).div_ceil(PLACES as u32)
    }

    /// And how many places these have.
    pub(super) const fn room_for(self, flows: u32) -> u32 {
        index(self.groups_for(flows), 0)
    }
}

/// A number that nobody guesses: a hash whose keys the kernel has drawn, and not 0.
fn draw() -> u64 {
    RandomState::new().hash_one(()) | 1
}

/// A family's table, through its memory.
pub(super) struct Mapping<A: Address>
where
    Slot<A>: Pod,
{
    slots: Mapped<Slot<A>>,
    tags: Mapped<GroupTags>,
    groups: u32,
}

impl<A: Address> Mapping<A>
where
    Slot<A>: Pod,
{
    /// # Errors
    /// What the kernel says.
    pub(super) fn of(slots: &Map, tags: &Map) -> io::Result<Self> {
        let (Map::Array(slots), Map::Array(tags)) = (slots, tags) else {
            unreachable!("the type of a pinned map is checked where it is opened");
        };
        let groups = tags.info().map_err(io::Error::other)?.max_entries();
        Ok(Self {
            slots: Mapped::of(slots.fd().as_fd(), index(groups, 0))?,
            tags: Mapped::of(tags.fd().as_fd(), groups)?,
            groups,
        })
    }

    /// Gives each entry to `each`. One that somebody writes all the time may be missing. Of groups without entries only the
    /// tags are looked at.
    pub(super) fn read(&self, mut each: impl FnMut(&Slot<A>)) {
        for place in self.used() {
            if let Some(slot) = whole(self.slots.at(place)) {
                each(&slot);
            }
        }
    }

    /// Empties the table, of which no packet makes use meanwhile: what one writes may be lost.
    pub(super) fn forget(&self) {
        for place in self.used() {
            // SAFETY: elements, which any bytes are.
            unsafe {
                self.tags.at(place / PLACES as u32).write([0; PLACES]);
                self.slots.at(place).write(Slot::EMPTY);
            }
        }
    }

    fn used(&self) -> impl Iterator<Item = u32> {
        (0..self.groups).flat_map(|group| {
            // SAFETY: an element, which any bytes are; its first and its second half are each whole.
            let tags = Tags::from_memory(unsafe { self.tags.at(group).cast::<[u64; 2]>().read_volatile() });
            tags.used().map(move |place| index(group, place))
        })
    }
}

/// The entry in a place, if there is one, as it was between two writings.
fn whole<A: Address>(place: *const Slot<A>) -> Option<Slot<A>> {
    const ATTEMPTS: usize = 100;
    // SAFETY: an element, which any bytes are.
    let word = || unsafe { (&raw const (*place).value.word).read_volatile() };
    for _ in 0..ATTEMPTS {
        let before = word();
        fence(Ordering::Acquire);
        // SAFETY: as above. What is read in halves is read again.
        let slot = unsafe { place.read_volatile() };
        fence(Ordering::Acquire);
        if !before.is_writing() && word() == before {
            return slot.is_of(&slot.key).then_some(slot);
        }
        hint::spin_loop();
    }
    None
}

/// A family's table, to look entries up.
pub(super) struct Entries<A: Address> {
    slots: Array<MapData, Slot<A>>,
    tags: Array<MapData, GroupTags>,
}

/// The tables of an instance.
pub(super) struct Flows {
    layout: Layout,
    pub(super) v4: Entries<Addr4>,
    pub(super) v6: Entries<Addr6>,
}

impl Flows {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let [v4, v6] = TABLES;
        Ok(Self { layout: Layout::of(pins, None)?, v4: Entries::open(pins, v4)?, v6: Entries::open(pins, v6)? })
    }

    /// What is remembered of a key, in one of these tables.
    pub(super) fn find<A: Address>(
        &self,
        table: &Entries<A>,
        key: &FlowKey<A>,
    ) -> Result<Option<FlowValue<A>>, MapError>
    where
        Slot<A>: Pod,
    {
        let home = Home::of(key.keyed_hash(|number| self.layout.keys[number]), table.tags.len());
        for group in home.groups {
            let tags = Tags::from_group(table.tags.get(&group, 0)?);
            let Some(place) = tags.place(home.tag) else { continue };
            let slot = table.slots.get(&index(group, place), 0)?;
            if slot.is_of(key) {
                return Ok(Some(slot.value));
            }
        }
        Ok(None)
    }
}

impl<A: Address> Entries<A>
where
    Slot<A>: Pod,
{
    fn open(pins: &Pins, Maps { slots, tags, .. }: Maps) -> Result<Self, Error> {
        Ok(Self {
            slots: pins.map(slots)?.try_into().map_err(Error::map(slots))?,
            tags: pins.map(tags)?.try_into().map_err(Error::map(tags))?,
        })
    }
}
