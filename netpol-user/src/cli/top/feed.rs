//! Threads that read, and one channel on which they tell: drawing never waits for the kernel, and keys
//! never wait for either.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};
use ratatui::crossterm::event;

use crate::{
    cli::status,
    datapath::Datapath,
    enforce::Instance,
    observe::{Condition, Reader, Sample, Sampler},
};

/// How often it is asked whether the policy is enforced, which enters every endpoint's namespace.
const LOOK: Duration = Duration::from_secs(5);

pub enum Event {
    Input(event::Event),
    /// A reading, or why there is none.
    Sample(Result<Box<Sample>, String>),
    Enforcement(Enforcement),
    /// Somebody wants the program to end.
    Ended,
    /// A thread is gone, with what it was for.
    Lost(&'static str),
}

/// Whether the policy is enforced.
#[derive(Clone, Debug)]
pub struct Enforcement {
    pub enforced: bool,
    pub headline: String,
    pub problems: Vec<String>,
}

/// Reads the kernel's memory, across loads and unloads.
pub struct Source<'a> {
    instance: &'a Instance,
    open: Option<Open>,
}

struct Open {
    datapath: Datapath,
    sampler: Sampler,
    reader: Arc<Reader>,
    /// Of the pin: another one, and everything is another instance's.
    inode: u64,
}

impl<'a> Source<'a> {
    pub const fn new(instance: &'a Instance) -> Self {
        Self { instance, open: None }
    }

    pub fn read(&mut self) -> Result<Sample> {
        let result = self.try_read();
        if result.is_err() {
            self.open = None;
        }
        result
    }

    fn try_read(&mut self) -> Result<Sample> {
        let live = self.instance.pins.maps().join("LIVE");
        let inode = fs::metadata(live).map_or(0, |metadata| metadata.ino());
        if self.open.as_ref().is_none_or(|open| open.inode != inode) {
            let datapath = Datapath::open(&self.instance.pins)?;
            let reader = Arc::new(Reader::new(self.instance.names(&datapath)?.into()));
            self.open = Some(Open { datapath, sampler: Sampler::default(), reader, inode });
        }
        let Some(open) = &mut self.open else { unreachable!("it was opened just now") };
        if open.datapath.live()?.generation.0 != open.reader.names().generation {
            open.reader = Arc::new(Reader::new(self.instance.names(&open.datapath)?.into()));
        }
        Ok(open.sampler.read(&open.datapath, &open.reader)?)
    }
}

/// Starts them all. They end with the program, or when nobody listens any more.
pub fn start(instance: &Instance, interval: Duration) -> Result<Receiver<Event>> {
    let (sender, receiver) = channel();
    // before any thread exists: all of them leave signals to the one that waits for them
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("blocking signals")?;
    spawn(&sender, "signals", move |sender| {
        let _ = signals.wait();
        let _ = sender.send(Event::Ended);
    });
    spawn(&sender, "keys", |sender| {
        while let Ok(event) = event::read() {
            if sender.send(Event::Input(event)).is_err() {
                return;
            }
        }
    });
    let instance = Arc::new(instance.clone());
    let watched = Arc::clone(&instance);
    spawn(&sender, "flows", move |sender| {
        let mut source = Source::new(&watched);
        let mut before = None;
        repeat(interval, 1, || {
            let sample = source.read().map(Box::new).map_err(|error| format!("{error:#}"));
            let generation = sample.as_ref().ok().map(|sample| sample.reader.names().generation);
            // a load or an unload is told with its first reading, not at the next look
            if before.replace(generation).is_some_and(|before| before != generation) {
                let _ = sender.send(Event::Enforcement(look(&watched)));
            }
            sender.send(Event::Sample(sample)).is_ok()
        });
    });
    spawn(&sender, "enforcement", move |sender| {
        repeat(LOOK, 20, || sender.send(Event::Enforcement(look(&instance))).is_ok());
    });
    Ok(receiver)
}

fn look(instance: &Instance) -> Enforcement {
    match Condition::of(instance) {
        Ok(report) => {
            Enforcement { enforced: report.enforced, headline: status::headline(&report), problems: report.problems }
        }
        Err(error) => Enforcement {
            enforced: false,
            headline: "cannot tell whether it is enforced".into(),
            problems: vec![format!("{error:#}")],
        },
    }
}

/// Does it again and again, at least `rest` times as long at rest as at work, until it says no.
fn repeat(interval: Duration, rest: u32, mut work: impl FnMut() -> bool) {
    loop {
        let begin = Instant::now();
        if !work() {
            return;
        }
        let took = begin.elapsed();
        thread::sleep(interval.saturating_sub(took).max(took * rest));
    }
}

fn spawn(sender: &Sender<Event>, what: &'static str, run: impl FnOnce(&Sender<Event>) + Send + 'static) {
    /// Tells that the thread is gone, also when it panics.
    struct Last(Sender<Event>, &'static str);
    impl Drop for Last {
        fn drop(&mut self) {
            let _ = self.0.send(Event::Lost(self.1));
        }
    }
    let last = Last(sender.clone(), what);
    thread::spawn(move || run(&last.0));
}
