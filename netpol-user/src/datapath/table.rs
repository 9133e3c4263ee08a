//! The tables of flows, which are netpol-common's [`table`](netpol_common::table): laid out, read, and searched.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData, MapError},
};
use netpol_common::{
    flow::{FlowKey, FlowValue},
    table::{FLOWS, Group, HashKeys, Home, PLACES, Slot},
    wire::{Addr4, Addr6, Address},
};

use super::{Error, Pins, batch};

/// The maps, and which share of the room for flows each has.
pub(super) const TABLES: [(&str, u32); 2] = [("FLOWS4", 1), ("FLOWS6", 2)];
/// Which of the classifiers' constants says how many groups each has.
const GROUPS: [&str; 2] = ["GROUPS4", "GROUPS6"];
/// And which is their secret, as the classifiers need it, made of the number in the map of the other name.
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
        for ((name, _), groups) in TABLES.into_iter().zip(&mut layout.groups) {
            *groups = pins.room(name)?.unwrap_or(*groups);
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
        let groups = TABLES.map(|(_, share)| groups(flows, share));
        Self { seed, keys: HashKeys::of(seed).0, groups }
    }

    fn with_seed(self, seed: u64) -> Self {
        Self { seed, keys: HashKeys::of(seed).0, ..self }
    }

    /// Tells the classifiers, and makes the maps as large.
    pub(super) fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global(KEYS, &self.keys, true);
        for (((map, _), global), groups) in TABLES.into_iter().zip(GROUPS).zip(&self.groups) {
            loader.override_global(global, groups, true);
            loader.map_max_entries(map, *groups);
        }
    }

    /// Writes down what the secret is made of, before anything is remembered with it.
    pub(super) fn keep(&self, object: &mut Ebpf) -> Result<(), Error> {
        let Some(map) = object.map_mut(SEED) else { unreachable!("the object is built with this map in it") };
        let map: Result<Array<&mut MapData, u64>, _> = map.try_into();
        map.and_then(|mut map| map.set(0, self.seed, 0)).map_err(Error::map(SEED))
    }
}

/// How many groups a table has that is to hold a share of so many flows.
pub(super) const fn groups(flows: u32, share: u32) -> u32 {
    flows.div_ceil(share).div_ceil(PLACES as u32)
}

/// A number that nobody guesses: a hash whose keys the kernel has drawn, and not 0.
fn draw() -> u64 {
    RandomState::new().hash_one(()) | 1
}

/// Each entry of a table, with the number of its group.
pub(super) fn read<A: Address>(map: &Map, mut each: impl FnMut(u32, &Slot<A>)) -> io::Result<()>
where
    Group<A>: Pod,
{
    batch::elements(map, |number, group: &Group<A>| group.entries().for_each(|slot| each(*number, slot)))
}

/// Empties a table, of which no packet makes use meanwhile: what one writes into a group that is emptied may be lost.
pub(super) fn forget<A: Address>(map: &mut Map, name: &'static str) -> Result<(), Error>
where
    Group<A>: Pod,
{
    let mut groups = Vec::new();
    read::<A>(map, |group, _| groups.push(group)).map_err(|error| Error::Read { map: name, error })?;
    groups.dedup();
    let mut map: Array<&mut MapData, Group<A>> = map.try_into().map_err(Error::map(name))?;
    groups.into_iter().try_for_each(|group| map.set(group, Group::EMPTY, 0)).map_err(Error::map(name))
}

/// The tables of an instance, to look entries up.
pub(super) struct Flows {
    layout: Layout,
    pub(super) v4: Array<MapData, Group<Addr4>>,
    pub(super) v6: Array<MapData, Group<Addr6>>,
}

impl Flows {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let [(v4, _), (v6, _)] = TABLES;
        Ok(Self {
            layout: Layout::of(pins, None)?,
            v4: pins.map(v4)?.try_into().map_err(Error::map(v4))?,
            v6: pins.map(v6)?.try_into().map_err(Error::map(v6))?,
        })
    }

    /// What is remembered of a key, in one of these tables.
    pub(super) fn find<A: Address>(
        &self,
        table: &Array<MapData, Group<A>>,
        key: &FlowKey<A>,
    ) -> Result<Option<FlowValue<A>>, MapError>
    where
        Group<A>: Pod,
    {
        let home = Home::of(key.keyed_hash(|number| self.layout.keys[number]), table.len());
        for group in home.groups {
            if let Some(slot) = table.get(&group, 0)?.entries().find(|slot| slot.key.is(key)) {
                return Ok(Some(slot.value));
            }
        }
        Ok(None)
    }
}
