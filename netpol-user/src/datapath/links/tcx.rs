//! TCX: each classifier is held by a link, and each link by a pin.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};
use netpol_common::{drops::Side, tables::IfIndex};

use super::{Hook, Met, program_id};
use crate::datapath::{Datapath, Error, Pins, programs::name};

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

pub(super) fn attach(datapath: &mut Datapath, hook: &Hook, side: Side) -> Result<bool, Error> {
    let path = link(&datapath.pins, hook.ifindex, side);
    let what = format!("{} on {}", name(side), hook.interface);
    let program = datapath.program(side);
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
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&hook.interface, direction(side), first).map_err(refused)?;
    let link = program.take_link(id).map_err(refused)?;
    // aya attaches by name: another interface may have taken it since it was found (a container's restart)
    if nix::net::if_::if_nametoindex(hook.interface.as_str()) != Ok(hook.ifindex.0) {
        return Err(Error::Moved { interface: hook.interface.clone() });
    }
    let link = FdLink::try_from(link).map_err(|error| Error::Link { path: path.clone(), error: Box::new(error) })?;
    link.pin(&path).map_err(|error| Error::Pin { path, error: Box::new(error) })?;
    Ok(true)
}

/// Waits for the end of a link whose pin is gone: the kernel ends it some time after (`bpf_link_put`
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
    for side in super::SIDES {
        let path = link(pins, ifindex, side);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::Folder { path, error }),
            _ => {}
        }
    }
    Ok(())
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

fn link(pins: &Pins, ifindex: IfIndex, side: Side) -> PathBuf {
    pins.links().join(format!("{}-{}", ifindex.0, name(side)))
}
