//! TCX: each classifier is held by a link, and each link by a pin.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::{
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::SchedClassifierLink,
    },
    sys::SyscallError,
};
use netpol_common::{drops::Side, tables::IfIndex};

use super::{Hook, Met, program_id};
use crate::datapath::{
    Datapath, Error, Pins, calls,
    programs::{Classifier, Role},
};

const fn direction(side: Side) -> TcAttachType {
    match side {
        Side::From => TcAttachType::Ingress,
        Side::To => TcAttachType::Egress,
    }
}

/// This kernel has TCX. Asked of the kernel, because distributions carry it back to older versions.
pub(super) fn offered() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

pub(super) fn attach(datapath: &mut Datapath, hook: &Hook, which: Classifier) -> Result<bool, Error> {
    let Classifier { side, .. } = which;
    let path = link(&datapath.pins, hook.ifindex, which);
    let what = format!("{} on {}", which.name(), hook.interface);
    if hook.role == Role::Workload {
        // an interface that was an uplink before
        for other in Role::Uplink.classifiers() {
            take_off(&link(&datapath.pins, hook.ifindex, other))?;
        }
    }
    let program = datapath.program_mut(which);
    let ours = program_id(program, &what)?;
    if has(hook, side, ours)? && path.exists() {
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
    await_release(hook, side, ours)?;
    let fd = program.fd().map_err(refused)?;
    let call = |call| move |io_error| ProgramError::SyscallError(SyscallError { call, io_error });
    // by number: another interface may have the name by now (a container's restart)
    let link = calls::attach_first(fd.as_fd(), hook.ifindex, side).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => Error::Gone { interface: hook.interface.clone() },
        _ => refused(call("BPF_LINK_CREATE")(error)),
    })?;
    calls::pin(link.as_fd(), &path).map_err(|error| refused(call("BPF_OBJ_PIN")(error)))?;
    Ok(true)
}

/// Waits for the end of a link whose pin somebody removed: the kernel ends it some time after (`bpf_link_put`
/// leaves it to a worker), and until then a program can't be attached there again.
fn await_release(hook: &Hook, side: Side, program: u32) -> Result<(), Error> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let begin = Instant::now();
    while has(hook, side, program)? && begin.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn has(hook: &Hook, side: Side, program: u32) -> Result<bool, Error> {
    Ok(chain(hook, side)?.iter().any(|met| met.program == Some(program)))
}

pub(super) fn detach(pins: &Pins, ifindex: IfIndex) -> Result<(), Error> {
    Classifier::all().try_for_each(|which| take_off(&link(pins, ifindex, which)))
}

/// Takes the instance off all interfaces, of whatever namespace. `progress` hears of each link.
///
/// # Errors
/// The first that occurs; the rest is taken off all the same.
pub(super) fn detach_all(pins: &Pins, progress: &dyn Fn(usize, usize)) -> Result<(), Error> {
    let Ok(entries) = fs::read_dir(pins.links()) else { return Ok(()) };
    let links: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    let mut result = Ok(());
    for (done, path) in links.iter().enumerate() {
        let taken_off = take_off(path);
        result = result.and(taken_off);
        progress(done + 1, links.len());
    }
    result
}

/// Removing the pin alone would leave it to the kernel when to take the program off.
pub(in crate::datapath) fn take_off(path: &Path) -> Result<(), Error> {
    match calls::open(path).and_then(|link| calls::detach_link(link.as_fd())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::Detach { path: path.to_owned(), error });
        }
        _ => {}
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Folder { path: path.to_owned(), error }),
        _ => Ok(()),
    }
}

/// The interfaces that have a pinned link, one or two times each.
pub(super) fn attached(pins: &Pins) -> Result<Vec<IfIndex>, Error> {
    let path = pins.links();
    let entries = fs::read_dir(&path).map_err(|error| Error::Folder { path, error })?;
    let number = |name: &str| name.split_once('-')?.0.parse().ok().map(IfIndex);
    Ok(entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect())
}

/// Every program on one side of an interface, in order; none where the kernel has no TCX.
pub(super) fn chain(hook: &Hook, side: Side) -> Result<Vec<Met>, Error> {
    let programs = match SchedClassifier::query_tcx(&hook.interface, direction(side)) {
        Ok((_, programs)) => programs,
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => vec![],
        Err(error) => {
            let what = format!("to list programs on {}", hook.interface);
            return Err(Error::Program { what, error: Box::new(error) });
        }
    };
    let met = |info: &aya::programs::ProgramInfo| Met {
        program: Some(info.id()),
        name: info.name_as_str().unwrap_or("?").to_owned(),
    };
    Ok(programs.iter().map(met).collect())
}

fn link(pins: &Pins, ifindex: IfIndex, which: Classifier) -> PathBuf {
    pins.links().join(format!("{}-{}", ifindex.0, which.name()))
}
