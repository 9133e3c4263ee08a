//! Progress on standard error: a bar on a terminal, a line per stage elsewhere.

use std::io::{IsTerminal as _, stderr};

use indicatif::{ProgressBar, ProgressStyle};

pub struct Progress(ProgressBar);

impl Progress {
    pub fn start(what: &str, steps: usize) -> Self {
        if !stderr().is_terminal() {
            eprintln!("{what} ({steps} steps)");
        }
        let bar = ProgressBar::new(steps as u64).with_prefix(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:24}] {pos}/{len} {eta} {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    /// One more step, just finished.
    pub fn step(&self, what: &str) {
        self.0.set_message(what.to_owned());
        self.0.inc(1);
    }

    pub fn done(self) {
        self.0.finish_and_clear();
    }
}
