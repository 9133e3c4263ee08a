//! Classifiers on interfaces: first in the chain, replaced in place, and there without any process.
//!
//! A packet meets the programs of TCX before the filters of clsact, so a netpol that changes from one
//! way to the other attaches by the new one before it leaves the old.

mod cls;
mod tcx;

pub(super) use tcx::take_off;

use aya::programs::SchedClassifier;
use netpol_common::{drops::Side, tables::IfIndex};
use serde::{Deserialize, Serialize};

use super::{
    Datapath, Error, Pins,
    programs::{Classifier, Role},
};

/// A place for classifiers: an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    pub interface: String,
    pub ifindex: IfIndex,
    pub role: Role,
}

/// How classifiers are put on interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Links, pinned: Linux 6.6 and later.
    #[default]
    Tcx,
    /// Filters of a clsact qdisc: every kernel, and more expensive for each packet.
    Cls,
}

/// Where our classifier stands in an interface's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    First,
    /// The name of the program that packets meet before ours: it can hide us.
    Behind(String),
    Missing,
}

/// Whom a packet meets on one side of an interface.
struct Met {
    /// `None`: a filter that is no program.
    program: Option<u32>,
    name: String,
}

const SIDES: [Side; 2] = [Side::From, Side::To];

impl Way {
    /// The one that was asked for, if this kernel has it; else the best that it has.
    pub fn choose(wanted: Option<Self>) -> Result<Self, Error> {
        match wanted {
            Some(Self::Cls) => Ok(Self::Cls),
            Some(Self::Tcx) if !tcx::offered() => Err(Error::NoTcx),
            None if !tcx::offered() => Ok(Self::Cls),
            Some(Self::Tcx) | None => Ok(Self::Tcx),
        }
    }

    pub const fn other(self) -> Self {
        match self {
            Self::Tcx => Self::Cls,
            Self::Cls => Self::Tcx,
        }
    }
}

impl Datapath {
    /// Makes sure that both classifiers of this build are on the interface. `true`: they were not.
    ///
    /// What is there already, of this build or an earlier one, is replaced in place: packets never pass
    /// without a classifier.
    pub fn attach(&mut self, hook: &Hook, way: Way) -> Result<bool, Error> {
        let mut changed = false;
        for which in hook.role.classifiers() {
            changed |= match way {
                Way::Tcx => tcx::attach(self, hook, which)?,
                Way::Cls => cls::attach(self, hook, which)?,
            };
        }
        Ok(changed)
    }

    /// Takes the classifiers off an interface, those that were attached this way. It may be gone.
    pub fn detach(&self, ifindex: IfIndex, way: Way) -> Result<(), Error> {
        match way {
            Way::Tcx => tcx::detach(&self.pins, ifindex),
            Way::Cls => cls::detach(&self.pins, ifindex),
        }
    }

    /// The interfaces that this instance is attached to this way.
    pub fn attached(&self, way: Way) -> Result<Vec<IfIndex>, Error> {
        let mut found = match way {
            Way::Tcx => tcx::attached(&self.pins)?,
            Way::Cls => cls::attached(&self.pins)?,
        };
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Where our classifiers stand on an interface; the worse of both sides.
    pub fn position(&self, hook: &Hook) -> Result<Position, Error> {
        let mut worst = Position::First;
        for which in hook.role.classifiers() {
            let Classifier { side, .. } = which;
            let ours = Some(program_id(self.program(which), which.name())?);
            let is_there = |chain: &[Met]| chain.iter().any(|met| met.program == ours);
            let mut chain = tcx::chain(hook, side)?;
            if !is_there(&chain) {
                chain.extend(cls::chain(hook, side)?);
            }
            match &chain[..] {
                chain if !is_there(chain) => return Ok(Position::Missing),
                [first, ..] if first.program != ours => worst = Position::Behind(first.name.clone()),
                _ => {}
            }
        }
        Ok(worst)
    }
}

/// Takes an instance off all interfaces of this namespace and removes its pins. `false`: there was
/// nothing. Its programs need not be there any more, nor their pins. When this returns no packet meets
/// them any more; by TCX that takes time, and `progress` hears of each link.
///
/// # Errors
/// The first that occurs; the rest is removed all the same.
pub fn unload(pins: &Pins, progress: &dyn Fn(usize, usize)) -> Result<bool, Error> {
    let pinned = pins.root().exists();
    let links = tcx::detach_all(pins, progress);
    let filters = cls::detach_all(pins);
    // with its pin, what could not be taken off goes as well
    pins.remove()?;
    links?;
    Ok(filters? > 0 || pinned)
}

fn program_id(program: &SchedClassifier, what: &str) -> Result<u32, Error> {
    let info = program.info().map_err(|error| Error::Program { what: what.into(), error: Box::new(error) })?;
    Ok(info.id())
}
