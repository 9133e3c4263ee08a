//! The classifiers' clock: they count jiffies, and add what the monotonic clock is ahead of them.

use std::time::Duration;

use aya::Ebpf;
use nix::time::{ClockId, clock_getres};

use super::{Error, programs::run};

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
    run(object, SET).map(drop)
}
