//! A frame of ours through a classifier, without an interface: `BPF_PROG_TEST_RUN`.

use std::borrow::BorrowMut;

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError},
    programs::{ProgramError, TestRun as _, TestRunOptions},
};
use netpol_common::{
    drops::Side,
    kernel::{Bucket, FragmentKey, FragmentPorts},
    nat::{NatKey, Translation},
    service::{Affinity, AffinityKey},
    table::Slot,
    tables::IfIndex,
    wire::{Addr4, Addr6, Address},
};

use super::{
    Datapath, Error,
    programs::{Classifier, OBJECT, Role},
    records,
    sockets::PROGRAMS,
    table::{self, TABLES},
};

/// Where the kernel is told that a frame arrives. The interfaces must exist in the calling thread's
/// network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub interface: IfIndex,
    /// The interface that received the frame; [`IfIndex::NONE`] for the host's own.
    pub ingress: IfIndex,
}

/// What became of a frame at a classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub action: Action,
    /// As it leaves the classifier, which may have translated it.
    pub frame: Vec<u8>,
}

/// What a classifier told the kernel to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// On to the next program and the stack (`TCX_NEXT`).
    Next,
    Drop,
    /// Into another namespace.
    Redirect,
    /// None that a classifier of ours returns.
    Other(i32),
}

/// How much longer than a frame the answer to it can be: headers in front of what it quotes.
const ANSWER: usize = 128;

impl From<u32> for Action {
    fn from(code: u32) -> Self {
        // TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT of linux/pkt_cls.h
        match code.cast_signed() {
            -1 => Self::Next,
            2 => Self::Drop,
            7 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

/// `struct __sk_buff` of linux/bpf.h up to the interfaces; the kernel takes the rest as zero, and
/// refuses anything but zero in the fields before them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Context {
    before: [u32; 9],
    ingress_ifindex: u32,
    ifindex: u32,
}

impl Context {
    pub(super) const fn new(arrival: Arrival) -> Self {
        Self { before: [0; 9], ingress_ifindex: arrival.ingress.0, ifindex: arrival.interface.0 }
    }

    pub(super) const fn bytes(&self) -> &[u8] {
        // SAFETY: the struct is made of integers without padding.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast::<u8>(), size_of::<Self>()) }
    }
}

pub(super) fn refused(which: Classifier, error: ProgramError) -> Error {
    Error::Program { what: format!("a frame for {}", which.name()), error: Box::new(error) }
}

/// Removes every entry.
pub(super) fn clear<T: BorrowMut<MapData>, K: Pod, V: Pod>(mut map: HashMap<T, K, V>) -> Result<(), MapError> {
    // collected first: the kernel starts anew after a key that is gone
    let keys: Vec<_> = map.keys().collect();
    for key in keys {
        match key.and_then(|key| map.remove(&key)) {
            // evicted between two calls
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Empties every place of a table of denials.
pub(super) fn forget_denials<A: Address>(map: &mut Map, name: &'static str) -> Result<(), Error>
where
    Slot<A>: Pod,
{
    let mut places = Vec::new();
    records::denials::<A>(map, |place, _| places.push(place)).map_err(|error| Error::Read { map: name, error })?;
    let mut map: Array<&mut MapData, Slot<A>> = map.try_into().map_err(Error::map(name))?;
    places.into_iter().try_for_each(|place| map.set(place, Slot::EMPTY, 0)).map_err(Error::map(name))
}

impl Datapath {
    /// Runs a classifier once, on a frame that begins with its Ethernet header: the flows and counters that it
    /// leaves are real.
    ///
    /// # Errors
    /// The kernel refuses frames of less than 14 bytes and interfaces that do not exist.
    pub fn test_run(&self, (role, side): (Role, Side), frame: &[u8], arrival: Arrival) -> Result<Ran, Error> {
        let context = Context::new(arrival);
        let which = Classifier { role, side };
        let program = self.program(which);
        // an answer in the frame's place may be longer
        let mut out = vec![0; frame.len() + ANSWER];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(context.bytes());
        let result = program.test_run(options).map_err(|error| refused(which, error))?;
        out.truncate(result.data_size_out as usize);
        Ok(Ran { action: result.return_value.into(), frame: out })
    }

    /// Removes all flows, denials, fragments and translations, and what interfaces have used of their limits: as if
    /// no packet had passed yet. None may pass meanwhile.
    pub fn forget(&self) -> Result<(), Error> {
        let [v4, v6] = TABLES.map(|table| table.map);
        table::forget::<Addr4>(&self.pins.map(v4)?, v4)?;
        table::forget::<Addr6>(&self.pins.map(v6)?, v6)?;
        forget_denials::<Addr4>(&mut self.pins.map("DENIALS4")?, "DENIALS4")?;
        forget_denials::<Addr6>(&mut self.pins.map("DENIALS6")?, "DENIALS6")?;
        self.clear::<FragmentKey<Addr4>, FragmentPorts>("FRAGMENTS4")?;
        self.clear::<FragmentKey<Addr6>, FragmentPorts>("FRAGMENTS6")?;
        self.clear::<NatKey<Addr4>, Translation<Addr4>>("NAT4")?;
        self.clear::<NatKey<Addr6>, Translation<Addr6>>("NAT6")?;
        self.clear::<AffinityKey<Addr4>, Affinity<Addr4>>("AFFINITY4")?;
        self.clear::<AffinityKey<Addr6>, Affinity<Addr6>>("AFFINITY6")?;
        let mut rates: Array<MapData, Bucket> = self.pins.map("RATES")?.try_into().map_err(Error::map("RATES"))?;
        (0..rates.len()).try_for_each(|index| rates.set(index, Bucket::UNTOUCHED, 0)).map_err(Error::map("RATES"))
    }

    fn clear<K: Pod, V: Pod>(&self, name: &'static str) -> Result<(), Error> {
        let map: HashMap<MapData, K, V> = self.pins.map(name)?.try_into().map_err(Error::map(name))?;
        clear(map).map_err(Error::map(name))
    }

    /// How many instructions the verifier looked at, for each classifier; `None` where the kernel does not say.
    pub fn verified_instructions(&self) -> Result<Vec<(&'static str, Option<u32>)>, Error> {
        let count = |which: Classifier| {
            let error = |error| Error::Program { what: which.name().into(), error: Box::new(error) };
            let info = self.program(which).info().map_err(error)?;
            Ok((which.name(), info.verified_instruction_count()))
        };
        let sockets = PROGRAMS.iter().zip(&self.sockets).map(|(which, program)| {
            let error = |error| Error::Program { what: which.name.into(), error: Box::new(error) };
            Ok((which.name, program.info().map_err(error)?.verified_instruction_count()))
        });
        Classifier::all().map(count).chain(sockets).collect()
    }

    /// The object that this build loads.
    pub fn object() -> &'static [u8] {
        OBJECT
    }
}
