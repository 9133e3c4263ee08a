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
    table::{ALL, Block, FLOWS, HashKeys, Home, Slot},
    wire::{Addr4, Addr6, Address},
};

use super::{
    Error, Pins,
    mapped::{Access, Mapped},
};

/// A family's table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) map: &'static str,
    /// Which part of the room for flows it has.
    share: u32,
    /// Which of the classifiers' constants says how many blocks it has.
    blocks: &'static str,
}

/// Of both families.
pub(super) const TABLES: [Table; 2] =
    [Table { map: "FLOWS4", share: 1, blocks: "BLOCKS4" }, Table { map: "FLOWS6", share: 2, blocks: "BLOCKS6" }];
/// Which is their secret, as the classifiers need it, made of the number in the map of the other name.
const KEYS: &str = "HASH_KEYS";
const SEED: &str = "SEED";

/// How the tables of an instance are laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    seed: u64,
    keys: [u64; HashKeys::COUNT],
    blocks: [u32; 2],
}

impl Layout {
    /// Of what is pinned; else with this room, and a secret of its own. (A seed of 0 is one that nobody has come to write.)
    pub(super) fn of(pins: &Pins, flows: Option<u32>) -> Result<Self, Error> {
        let mut layout = Self::new(flows.unwrap_or(FLOWS), 0);
        for (table, blocks) in TABLES.into_iter().zip(&mut layout.blocks) {
            *blocks = pins.room(table.map)?.unwrap_or(*blocks);
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
        let blocks = TABLES.map(|table| table.blocks_for(flows));
        Self { seed, keys: HashKeys::of(seed).0, blocks }
    }

    fn with_seed(self, seed: u64) -> Self {
        Self { seed, keys: HashKeys::of(seed).0, ..self }
    }

    /// Tells the classifiers, and makes the maps as large.
    pub(super) fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global(KEYS, &self.keys, true);
        for (table, blocks) in TABLES.into_iter().zip(&self.blocks) {
            loader.override_global(table.blocks, blocks, true);
            loader.map_max_entries(table.map, *blocks);
        }
    }

    /// Writes down what the secret is made of, before anything is remembered with it.
    pub(super) fn keep(&self, object: &mut Ebpf) -> Result<(), Error> {
        let Some(map) = object.map_mut(SEED) else { unreachable!("the object is built with this map in it") };
        let map: Result<Array<&mut MapData, u64>, _> = map.try_into();
        map.and_then(|mut map| map.set(0, self.seed, 0)).map_err(Error::map(SEED))
    }
}

impl Table {
    /// How many blocks it has if it is to hold its share of so many flows.
    pub(super) const fn blocks_for(self, flows: u32) -> u32 {
        flows.div_ceil(self.share).div_ceil(ALL as u32)
    }
}

/// A number that nobody guesses: a hash whose keys the kernel has drawn, and not 0.
fn draw() -> u64 {
    RandomState::new().hash_one(()) | 1
}

/// Gives each entry of a table to `each`. One that somebody writes all the time may be missing. Of what is free only the
/// tags are looked at.
pub(super) fn read<A: Address>(map: &Map, mut each: impl FnMut(&Slot<A>)) -> io::Result<()>
where
    Block<A>: Pod,
{
    for block in mapped::<A>(map, Access::Read)?.elements() {
        // SAFETY: within an element, which any bytes are; each tag is whole.
        let tags = unsafe { (&raw const (*block).tags).read_volatile() };
        for at in (0..ALL).filter(|at| tags[*at] != 0) {
            // SAFETY: as above.
            if let Some(slot) = whole(unsafe { (&raw const (*block).slots).cast::<Slot<A>>().add(at) }) {
                each(&slot);
            }
        }
    }
    Ok(())
}

/// Empties a table, of which no packet makes use meanwhile: what one writes may be lost.
pub(super) fn forget<A: Address>(map: &Map, name: &'static str) -> Result<(), Error>
where
    Block<A>: Pod,
{
    let memory = mapped::<A>(map, Access::Write).map_err(|error| Error::Read { map: name, error })?;
    for block in memory.elements() {
        // SAFETY: an element, which any bytes are. (A page that is empty already is not written.)
        unsafe {
            if (&raw const (*block).tags).read_volatile() != [0; ALL] {
                block.write(Block::EMPTY);
            }
        }
    }
    Ok(())
}

fn mapped<A: Address>(map: &Map, access: Access) -> io::Result<Mapped<Block<A>>>
where
    Block<A>: Pod,
{
    let Map::Array(map) = map else {
        unreachable!("the type of a pinned map is checked where it is opened");
    };
    let blocks = map.info().map_err(io::Error::other)?.max_entries();
    Mapped::of(map.fd().as_fd(), blocks, access)
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

/// The tables of an instance, to look entries up.
pub(super) struct Flows {
    layout: Layout,
    pub(super) v4: Array<MapData, Block<Addr4>>,
    pub(super) v6: Array<MapData, Block<Addr6>>,
}

impl Flows {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let [Table { map: v4, .. }, Table { map: v6, .. }] = TABLES;
        Ok(Self {
            layout: Layout::of(pins, None)?,
            v4: pins.map(v4)?.try_into().map_err(Error::map(v4))?,
            v6: pins.map(v6)?.try_into().map_err(Error::map(v6))?,
        })
    }

    /// What is remembered of a key, in one of these tables.
    pub(super) fn find<A: Address>(
        &self,
        table: &Array<MapData, Block<A>>,
        key: &FlowKey<A>,
    ) -> Result<Option<FlowValue<A>>, MapError>
    where
        Block<A>: Pod,
    {
        let home = Home::of(key.keyed_hash(|number| self.layout.keys[number]), table.len());
        let block = table.get(&home.block, 0)?;
        Ok(block.find(key, &home).map(|at| block.slots[at].value))
    }
}
