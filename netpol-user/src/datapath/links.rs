//! Classifiers on interfaces: attached first in the chain, pinned, replaced in place.

use std::{fs, path::PathBuf};

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};
use netpol_common::{drops::Side, tables::IfIndex};

use super::{Datapath, Error, programs::name};

/// A place for a classifier: one side of an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    pub interface: String,
    pub ifindex: IfIndex,
}

/// Where our classifier stands in an interface's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    First,
    /// The name of the program that packets meet before ours: it can hide us.
    Behind(String),
    Missing,
}

const SIDES: [Side; 2] = [Side::From, Side::To];

const fn direction(side: Side) -> TcAttachType {
    match side {
        Side::From => TcAttachType::Ingress,
        Side::To => TcAttachType::Egress,
    }
}

impl Datapath {
    /// Makes sure that both classifiers of this build are on the interface. `true`: they were not.
    ///
    /// A link that is pinned is replaced in place: packets never pass without a classifier.
    pub fn attach(&mut self, hook: &Hook) -> Result<bool, Error> {
        let mut changed = false;
        for side in SIDES {
            changed |= self.attach_side(hook, side)?;
        }
        Ok(changed)
    }

    fn attach_side(&mut self, hook: &Hook, side: Side) -> Result<bool, Error> {
        let path = self.link(hook.ifindex, side);
        let what = format!("{} on {}", name(side), hook.interface);
        let program = self.program(side);
        let ours = program_id(program, &what)?;
        let chain = chain(hook, side)?;
        if chain.iter().any(|(id, _)| *id == ours) && path.exists() {
            return Ok(false);
        }
        let refused = |error| Error::Program { what: what.clone(), error: Box::new(error) };
        if let Ok(link) = PinnedLink::from_pin(&path) {
            let replaced = SchedClassifierLink::try_from(FdLink::from(link))
                .map_err(|error| Error::Link { path: path.clone(), error: Box::new(error) })
                .and_then(|link| program.attach_to_link(link).map_err(refused));
            if let Ok(id) = replaced {
                // the pin holds it from here on
                drop(program.take_link(id).map_err(refused)?);
                return Ok(true);
            }
            // ENOLINK: the interface that it was on is gone, and another has its number
            fs::remove_file(&path).map_err(|error| Error::Folder { path: path.clone(), error })?;
        }
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(&hook.interface, direction(side), first).map_err(refused)?;
        let link = program.take_link(id).map_err(refused)?;
        let link =
            FdLink::try_from(link).map_err(|error| Error::Link { path: path.clone(), error: Box::new(error) })?;
        link.pin(&path).map_err(|error| Error::Pin { path, error: Box::new(error) })?;
        Ok(true)
    }

    /// Takes the classifiers off an interface. It may be gone.
    pub fn detach(&self, ifindex: IfIndex) -> Result<(), Error> {
        for side in SIDES {
            let path = self.link(ifindex, side);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Folder { path, error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The interfaces that have a pinned link.
    pub fn attached(&self) -> Result<Vec<IfIndex>, Error> {
        let path = self.pins.links();
        let entries = fs::read_dir(&path).map_err(|error| Error::Folder { path, error })?;
        let number = |name: &str| name.split_once('-')?.0.parse().ok().map(IfIndex);
        let mut found: Vec<_> = entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Where our classifiers stand on an interface; the worse of both sides.
    pub fn position(&self, hook: &Hook) -> Result<Position, Error> {
        let mut worst = Position::First;
        for (side, program) in [(Side::From, &self.from), (Side::To, &self.to)] {
            let ours = program_id(program, name(side))?;
            let chain = chain(hook, side)?;
            match chain.iter().position(|(id, _)| *id == ours) {
                None => return Ok(Position::Missing),
                Some(0) => {}
                Some(_) => worst = Position::Behind(chain[0].1.clone()),
            }
        }
        Ok(worst)
    }

    fn link(&self, ifindex: IfIndex, side: Side) -> PathBuf {
        self.pins.links().join(format!("{}-{}", ifindex.0, name(side)))
    }
}

fn program_id(program: &SchedClassifier, what: &str) -> Result<u32, Error> {
    let info = program.info().map_err(|error| Error::Program { what: what.into(), error: Box::new(error) })?;
    Ok(info.id())
}

/// Number and name of every program on one side of an interface, in order.
fn chain(hook: &Hook, side: Side) -> Result<Vec<(u32, String)>, Error> {
    let (_, programs) = SchedClassifier::query_tcx(&hook.interface, direction(side)).map_err(|error| {
        Error::Program { what: format!("to list programs on {}", hook.interface), error: Box::new(error) }
    })?;
    Ok(programs.iter().map(|info| (info.id(), info.name_as_str().unwrap_or("?").to_owned())).collect())
}
