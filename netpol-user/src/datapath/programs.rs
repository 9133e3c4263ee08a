//! The classifiers: loaded and pinned once, opened from their pins ever after.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash as _, Hasher as _},
    panic::resume_unwind,
    path::Path,
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    pin::PinError,
    programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, TestRun as _, TestRunOptions},
};
use netpol_common::{drops::Side, table::ALL};

use super::{
    Error, clock,
    pins::{MAPS, Pins},
    slots,
    sockets::{self, SocketProgram},
    table::{Layout, TABLES},
};
use crate::privileges;

/// The object that the build script made.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol"));

/// What an interface is to netpol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The host end of an endpoint's veth.
    Workload,
    /// A way to the outside.
    Uplink,
}

/// One of the classifiers of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Classifier {
    pub role: Role,
    pub side: Side,
}

impl Role {
    pub(super) const ALL: [Self; 2] = [Self::Workload, Self::Uplink];

    pub(super) const fn classifiers(self) -> [Classifier; 2] {
        [Classifier { role: self, side: Side::From }, Classifier { role: self, side: Side::To }]
    }
}

impl Classifier {
    /// The name of its function.
    pub(super) const fn name(self) -> &'static str {
        match (self.role, self.side) {
            (Role::Workload, Side::From) => "from_workload",
            (Role::Workload, Side::To) => "to_workload",
            (Role::Uplink, Side::From) => "from_uplink",
            (Role::Uplink, Side::To) => "to_uplink",
        }
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        Role::ALL.into_iter().flat_map(Role::classifiers)
    }
}

/// The program that starts the timer of translations: it is run once, and not kept.
const AGE: &str = "age";

/// An instance's programs and maps, open.
pub struct Datapath {
    pub(super) pins: Pins,
    workload: Pair,
    uplink: Pair,
    /// Those of [`sockets::PROGRAMS`], in that order.
    pub(super) sockets: Vec<CgroupSockAddr>,
}

/// The classifiers of both sides.
struct Pair {
    from: SchedClassifier,
    to: SchedClassifier,
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
        let open = |which: Classifier| {
            let error = |error| Error::Program { what: format!("{} (pinned)", which.name()), error: Box::new(error) };
            SchedClassifier::from_pin(pins.programs().join(which.name())).map_err(error)
        };
        let pair = |role: Role| -> Result<Pair, Error> {
            let [from, to] = role.classifiers();
            Ok(Pair { from: open(from)?, to: open(to)? })
        };
        Ok(Self {
            pins: pins.clone(),
            workload: pair(Role::Workload)?,
            uplink: pair(Role::Uplink)?,
            sockets: sockets::PROGRAMS.iter().map(|which| which.open(pins)).collect::<Result<_, _>>()?,
        })
    }

    /// Opens what is pinned where it is of this build; else loads and pins this build's programs. Maps
    /// that are there go on being used, so flows and counters survive an upgrade.
    ///
    /// `present` is the version that made the pins, as far as anybody remembers. `flows`: room for so many, see [`ROOMS`];
    /// without it there is what there was, or what the object says.
    ///
    /// # Errors
    ///
    /// [`Error::Room`]: there are maps of another size.
    pub fn open_or_load(pins: &Pins, present: Option<u64>, flows: Option<u32>) -> Result<Self, Error> {
        pins.create()?;
        check_rooms(pins, flows)?;
        if present == Some(Self::version())
            && let Ok(datapath) = Self::open(pins)
        {
            return Ok(datapath);
        }
        load(pins, flows)?;
        Self::open(pins)
    }

    pub(super) fn program(&self, which: Classifier) -> &SchedClassifier {
        let pair = match which.role {
            Role::Workload => &self.workload,
            Role::Uplink => &self.uplink,
        };
        match which.side {
            Side::From => &pair.from,
            Side::To => &pair.to,
        }
    }

    pub(super) fn program_mut(&mut self, which: Classifier) -> &mut SchedClassifier {
        let pair = match which.role {
            Role::Workload => &mut self.workload,
            Role::Uplink => &mut self.uplink,
        };
        match which.side {
            Side::From => &mut pair.from,
            Side::To => &mut pair.to,
        }
    }
}

/// The other maps that have an entry for each direction of a connection at each hook that it passes, and which share of the
/// room for flows each has.
const ROOMS: [(&str, u32); 2] = [("NAT4", 1), ("NAT6", 2)];

/// Whether what is pinned has the wanted room: a map's size is for its life.
fn check_rooms(pins: &Pins, flows: Option<u32>) -> Result<(), Error> {
    let Some(flows) = flows else { return Ok(()) };
    let tables = TABLES.map(|table| (table.map, table.blocks_for(flows), ALL as u32));
    for (name, wanted, places) in tables.into_iter().chain(ROOMS.map(|(name, share)| (name, flows / share, 1))) {
        if let Some(has) = pins.room(name)?.filter(|has| *has != wanted) {
            let path = pins.maps().join(name);
            return Err(Error::Room { path, has: has * places, wanted: wanted * places });
        }
    }
    Ok(())
}

/// Loads the object, with the maps that are pinned already, and pins all of it.
fn load(pins: &Pins, flows: Option<u32>) -> Result<(), Error> {
    let paths: Vec<_> = MAPS.iter().map(|(name, ..)| (*name, pins.maps().join(name))).collect();
    // before anything is made
    for (name, _) in paths.iter().filter(|(_, path)| path.exists()) {
        pins.check(name)?;
    }
    slots::create(pins)?;
    let mut loader = EbpfLoader::new();
    let (jiffy, layout) = (clock::jiffy()?, Layout::of(pins, flows)?);
    loader.override_global(clock::JIFFY, &jiffy, true);
    layout.tell(&mut loader);
    for (name, path) in &paths {
        loader.map_pin_path(name, path);
    }
    for (name, share) in ROOMS {
        if let Some(flows) = flows {
            loader.map_max_entries(name, flows / share);
        }
    }
    let mut object = loader.load(OBJECT).map_err(|error| Error::Object(Box::new(error)))?;
    layout.keep(&mut object)?;
    load_together(&mut object)?;
    clock::set(&mut object)?;
    for which in Classifier::all() {
        let program: &mut SchedClassifier = part(&mut object, which.name())?;
        replace_pin(|path| program.pin(path), &pins.programs().join(which.name()))?;
    }
    for SocketProgram { name, .. } in sockets::PROGRAMS {
        let program: &mut CgroupSockAddr = part(&mut object, name)?;
        program.load().map_err(refused(name))?;
        replace_pin(|path| program.pin(path), &pins.programs().join(name))?;
    }
    start_aging(&mut object)
}

/// Loads the classifiers, each on a thread of its own: the verifier looks at them for a while, and it looks at one
/// as well while it looks at others.
fn load_together(object: &mut Ebpf) -> Result<(), Error> {
    let mut classifiers: Vec<_> = object
        .programs_mut()
        .filter_map(|(name, program)| {
            Classifier::all()
                .enumerate()
                .find(|(_, of)| of.name() == name)
                .map(|(place, of)| (place, of.name(), program))
        })
        .collect();
    // of several that are refused, the same one is named each time
    classifiers.sort_by_key(|(place, ..)| *place);
    thread::scope(|scope| {
        let loading: Vec<_> = classifiers
            .into_iter()
            .map(|(_, name, program)| {
                scope.spawn(move || {
                    let program: &mut SchedClassifier = program.try_into().map_err(refused(name))?;
                    program.load().map_err(refused(name))
                })
            })
            .collect();
        let loaded = loading.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        loaded.collect()
    })
}

/// A program of the object.
pub(super) fn part<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let Some(program) = object.program_mut(name) else {
        unreachable!("the object is built with this program in it");
    };
    program.try_into().map_err(refused(name))
}

/// Loads and runs a program that is for no packet, and gives what it returns.
pub(super) fn run(object: &mut Ebpf, name: &'static str) -> Result<u32, Error> {
    let program: &mut SchedClassifier = part(object, name)?;
    program.load().map_err(refused(name))?;
    let mut options = TestRunOptions::new();
    // no packet is looked at, but the kernel wants an Ethernet header
    options.data_in = Some(&[0; 14]);
    Ok(program.test_run(options).map_err(refused(name))?.return_value)
}

pub(super) fn refused(name: &'static str) -> impl Fn(ProgramError) -> Error {
    move |error| Error::Program { what: name.to_owned(), error: Box::new(error) }
}

/// Arms the timer of translations, which goes on without any process; an upgrade gives it the new callback.
fn start_aging(object: &mut Ebpf) -> Result<(), Error> {
    if run(object, AGE)? == 0 { Ok(()) } else { Err(Error::Aging) }
}

/// Pins beside, then renames over: there is always a program under the name.
fn replace_pin(pin: impl FnOnce(&Path) -> Result<(), PinError>, path: &Path) -> Result<(), Error> {
    // bpffs keeps names with a dot to itself
    let beside = path.with_file_name(format!("{}-new", path.file_name().unwrap_or_default().to_string_lossy()));
    let _ = fs::remove_file(&beside);
    pin(&beside).map_err(|error| Error::Pin { path: beside.clone(), error: Box::new(error) })?;
    fs::rename(&beside, path).map_err(|error| Error::Folder { path: path.to_owned(), error })
}
