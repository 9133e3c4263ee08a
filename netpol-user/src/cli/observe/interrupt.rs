//! An end that is asked for, by Ctrl-C or a closed pipe: the observer gives its ring and its lease back first.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static CAME: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    CAME.store(true, Ordering::Relaxed);
}

/// From now on the first signal is noted; the second one ends the program at once.
pub fn expect() -> Result<()> {
    let note = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESETHAND, SigSet::empty());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for (signal, action) in
        [(Signal::SIGINT, note), (Signal::SIGTERM, note), (Signal::SIGHUP, note), (Signal::SIGPIPE, ignore)]
    {
        // SAFETY: the handler stores to an atomic and does nothing else, which is allowed in one.
        unsafe { sigaction(signal, &action) }.context("taking signals")?;
    }
    Ok(())
}

/// A signal came.
pub fn came() -> bool {
    CAME.load(Ordering::Relaxed)
}
