//! The classifiers' clock: they count jiffies, and add what the monotonic clock is ahead of them.

use std::time::Duration;

use aya::{
    Ebpf,
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use nix::time::{ClockId, clock_getres};

use super::{
    Error,
    programs::{part, refused},
};

/// The program that measures how far it is ahead.
const SET: &str = "set_clock";

/// What the classifiers are told before they are loaded: the nanoseconds of a jiffy, by which the coarse clocks advance.
pub(super) const JIFFY: &str = "JIFFY";

/// See [`JIFFY`].
pub(super) fn jiffy() -> Result<u64, Error> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|errno| Error::Clock(errno.into()))?;
    Ok(Duration::from(resolution).as_nanos() as u64)
}

/// Sets the clock of an object whose classifiers are not asked yet.
pub(super) fn set(object: &mut Ebpf) -> Result<(), Error> {
    let program: &mut SchedClassifier = part(object, SET)?;
    program.load().map_err(refused(SET))?;
    run(program, SET).map(drop)
}

/// Runs a program that is for no packet, and gives what it returns.
pub(super) fn run(program: &SchedClassifier, name: &'static str) -> Result<u32, Error> {
    let mut options = TestRunOptions::new();
    // no packet is looked at, but the kernel wants an Ethernet header
    options.data_in = Some(&[0; 14]);
    Ok(program.test_run(options).map_err(refused(name))?.return_value)
}
