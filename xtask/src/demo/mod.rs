//! `cargo xtask run`: an example of `policies/`, played with real traffic.
//!
//! Everything happens in network namespaces made for it, the "host" with its bridge among them, with a bpffs and a state
//! folder of its own: the machine's network is never touched. What is made is written down first, so that it is removed
//! even when the demo is interrupted, or later by `cargo xtask clean-up`.

mod examples;
mod interrupt;
mod made;
mod real;
mod serve;
mod stage;
mod topology;

use anyhow::{Result, bail};
use clap::Args;
use examples::Example;
use made::Made;
pub use real::PROGRAMS;
pub use serve::Serve;
use stage::Stage;

use crate::{harness, say, setup::Install, shell};

/// Plays an example of policies/ with real traffic in namespaces of its own, and proves it.
#[derive(Args)]
pub struct Run {
    /// Which: shop, abc or stars.
    #[arg(default_value = "shop", value_parser = examples::find, value_name = "shop|abc|stars")]
    example: &'static Example,
    /// The shop alone: with nginx, Redis, PostgreSQL and Python, from Debian's packages.
    #[arg(long)]
    real: bool,
    /// Leave everything running, and say how to go on by hand.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    install: Install,
}

/// Removes what `cargo xtask run` left behind.
#[derive(Args)]
pub struct CleanUp {}

impl Run {
    pub fn run(self) -> Result<()> {
        need_root("run")?;
        if self.real && self.example.name != real::REAL.name {
            bail!("--real is for the shop");
        }
        self.install.ensure_with(if self.real { &real::PROGRAMS } else { &[] })?;
        let netpol = harness::netpol()?;
        interrupt::listen();
        let example = if self.real { &real::REAL } else { self.example };
        let made = topology::build(example)?;
        let mut stage = Stage::new(example, netpol);
        let played = if self.real {
            real::play(&mut stage)
        } else {
            topology::start_servers(example).and_then(|()| stage.play())
        };
        if self.keep && played.is_ok() {
            stage.how_to_go_on();
            made.keep();
            return stage.conclusion();
        }
        finish(made, played, &stage)
    }
}

/// Removes all of it, and says so; the demo's own outcome comes first.
fn finish(made: Made, played: Result<()>, stage: &Stage) -> Result<()> {
    say::heading("Clean-up");
    let removed = made.remove();
    if removed.is_ok() {
        say::done("namespaces, servers, programs and maps are gone");
    }
    played?;
    removed?;
    stage.conclusion()
}

impl CleanUp {
    pub fn run(self) -> Result<()> {
        need_root("clean-up")?;
        let Some(made) = Made::left_behind()? else {
            say::done("nothing is left of a demo");
            return Ok(());
        };
        made.remove()?;
        say::done("namespaces, servers, programs and maps are gone");
        Ok(())
    }
}

/// Plays all examples, as part of the tests: with [`real::PROGRAMS`], too.
pub fn play_all() -> Result<()> {
    let play = |example, real| Run { example, real, keep: false, install: Install { no_install: true } }.run();
    examples::ALL.iter().try_for_each(|example| play(example, false))?;
    play(&real::REAL, true)
}

fn need_root(command: &str) -> Result<()> {
    if shell::is_root() {
        return Ok(());
    }
    bail!(
        "namespaces and classifiers need root. Try:\n  sudo -E env \"PATH=$PATH\" cargo xtask {command}\n\
         (building stays as you are: `cargo xtask build`)"
    )
}
