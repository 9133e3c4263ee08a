//! Ctrl-C: the demo ends where it is, and still removes what it made.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn remember(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From here on a signal that asks us to end is only remembered. Children have their own dispositions: the terminal's
/// Ctrl-C ends the command that is running, and `check` the rest.
pub fn listen() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler stores one atomic, which is allowed in a signal handler.
        unsafe { libc::signal(signal, remember as *const () as libc::sighandler_t) };
    }
}

/// Fails once a signal has come.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
