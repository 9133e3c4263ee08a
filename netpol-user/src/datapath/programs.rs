//! The classifiers: loaded and pinned once, opened from their pins ever after.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash as _, Hasher as _},
    path::Path,
};

use aya::{EbpfLoader, programs::SchedClassifier};
use netpol_common::drops::Side;

use super::{
    Error,
    pins::{MAPS, Pins},
    slots,
};
use crate::privileges;

/// The object that the build script made.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol"));

/// The name of a side's classifier.
pub(super) const fn name(side: Side) -> &'static str {
    match side {
        Side::From => "from_workload",
        Side::To => "to_workload",
    }
}

/// An instance's programs and maps, open.
pub struct Datapath {
    pub(super) pins: Pins,
    pub(super) from: SchedClassifier,
    pub(super) to: SchedClassifier,
}

impl Datapath {
    /// A number that names the classifiers of this build.
    pub fn version() -> u64 {
        let mut hasher = DefaultHasher::new();
        OBJECT.hash(&mut hasher);
        hasher.finish()
    }

    /// Opens what is pinned.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        // whoever may not look into the folder would be told that nothing is loaded
        privileges::require(&[privileges::OPEN_PINS])?;
        if !pins.exist() {
            return Err(Error::NotLoaded { path: pins.maps().join("LIVE") });
        }
        let open = |side| {
            let error = |error| Error::Program { what: format!("{} (pinned)", name(side)), error: Box::new(error) };
            SchedClassifier::from_pin(pins.programs().join(name(side))).map_err(error)
        };
        Ok(Self { pins: pins.clone(), from: open(Side::From)?, to: open(Side::To)? })
    }

    /// Opens what is pinned where it is of this build; else loads and pins this build's programs. Maps
    /// that are there go on being used, so flows and counters survive an upgrade.
    ///
    /// `present` is the version that made the pins, as far as anybody remembers.
    pub fn open_or_load(pins: &Pins, present: Option<u64>) -> Result<Self, Error> {
        pins.create()?;
        if present == Some(Self::version())
            && let Ok(datapath) = Self::open(pins)
        {
            return Ok(datapath);
        }
        load(pins)?;
        Self::open(pins)
    }

    pub(super) fn program(&mut self, side: Side) -> &mut SchedClassifier {
        match side {
            Side::From => &mut self.from,
            Side::To => &mut self.to,
        }
    }
}

/// Loads the object, with the maps that are pinned already, and pins all of it.
fn load(pins: &Pins) -> Result<(), Error> {
    slots::create(pins)?;
    let mut loader = EbpfLoader::new();
    let paths: Vec<_> = MAPS.iter().map(|(name, ..)| (*name, pins.maps().join(name))).collect();
    for (name, path) in &paths {
        if path.exists() {
            pins.check(name)?;
        }
        loader.map_pin_path(name, path);
    }
    let mut object = loader.load(OBJECT).map_err(|error| Error::Object(Box::new(error)))?;
    for side in [Side::From, Side::To] {
        let what = || name(side).to_owned();
        let error = |error| Error::Program { what: what(), error: Box::new(error) };
        let Some(program) = object.program_mut(name(side)) else {
            unreachable!("the object is built with this program in it");
        };
        let program: &mut SchedClassifier = program.try_into().map_err(error)?;
        program.load().map_err(error)?;
        replace_pin(program, &pins.programs().join(name(side)))?;
    }
    Ok(())
}

/// Pins beside, then renames over: there is always a program under the name.
fn replace_pin(program: &mut SchedClassifier, path: &Path) -> Result<(), Error> {
    // bpffs keeps names with a dot to itself
    let beside = path.with_file_name(format!("{}-new", path.file_name().unwrap_or_default().to_string_lossy()));
    let _ = fs::remove_file(&beside);
    program.pin(&beside).map_err(|error| Error::Pin { path: beside.clone(), error: Box::new(error) })?;
    fs::rename(&beside, path).map_err(|error| Error::Folder { path: path.to_owned(), error })
}
