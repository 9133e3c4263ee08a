//! `netpol observe`: what happens to packets, as it happens.
//!
//! | file | one idea |
//! |---|---|
//! | `lines` | one line for each event: for people, aligned, as JSON |
//! | `capture` | the packets themselves, for Wireshark |
//! | `interrupt` | an end that is asked for |

mod capture;
mod interrupt;
mod lines;

use std::{
    io::{self, IsTerminal as _, Write},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use super::{Instance, Outcome};
use crate::{
    datapath::Datapath,
    enforce,
    observe::{Filter, Happening, Item, Reader, Stream, Wanted, What},
    privileges,
};
use capture::Capture;
use lines::Lines;

/// Watch what happens to packets: new connections, drops with their reason, connections that end.
///
/// Drops like one that was told less than a second ago are counted rather than told. Whoever reads too slowly is told how
/// many events were lost. Several may observe at once; when nobody does, packets cost nothing more.
#[derive(Args)]
pub struct Observe {
    /// Only events for which this holds: `from:shop/api to:10.0.0.0/8 port:5432 proto:tcp verdict:denied reason:spoofed
    /// rule:default-deny`, or any text; `-` or `not` before a term turns it around.
    #[arg(value_name = "FILTER", allow_hyphen_values = true)]
    filter: Vec<String>,
    /// Only events of these types.
    #[arg(long = "type", value_enum, value_delimiter = ',', value_name = "TYPE,...")]
    types: Vec<Type>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Compact)]
    output: Format,
    /// Print the last N of what the kernel remembers (flows and denials), and end.
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// After the last N, go on with what happens.
    #[arg(long, requires = "last")]
    follow: bool,
    /// End after so many events.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after so long.
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Write the packets that these events are about into a file for Wireshark (pcapng), with verdict and rule as
    /// comments: 256 bytes of each at most.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// What is translated at interfaces to the outside, too.
    #[arg(long)]
    all: bool,
    /// Room for events that wait to be read, in KiB.
    #[arg(long, value_name = "KIB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(4..=1_048_576))]
    buffer: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Type {
    New,
    Drop,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line in words.
    Compact,
    /// Columns.
    Table,
    /// One object a line.
    Json,
}

/// Between two looks into the ring. Nobody is woken by an event: that would cost the packet more than telling it.
const PAUSE: Duration = Duration::from_millis(50);

fn seconds(text: &str) -> Result<Duration, String> {
    let wanted = || "more than 0 seconds, 10 years at most".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wanted())?;
    if seconds > 0.0 && seconds < 3.2e8 { Ok(Duration::from_secs_f64(seconds)) } else { Err(wanted()) }
}

impl Observe {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        privileges::require(&[privileges::OPEN_PINS])?;
        // a closed pipe shall end it as an interrupt does: giving back what it has in the kernel
        interrupt::expect()?;
        let filter: Filter = self.filter.join(" ").parse().context("the filter")?;
        let instance = instance.open();
        let out = io::stdout();
        let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let mut told = Telling {
            lines: Lines::new(io::BufWriter::new(out.lock()), self.output, colours),
            capture: None,
            filter,
            left: self.count.unwrap_or(u64::MAX),
        };
        let outcome = self.tell(&instance, &mut told);
        match outcome {
            Err(error) if is_closed_pipe(&error) => Ok(Outcome::Done),
            outcome => outcome.map(|()| Outcome::Done),
        }
    }

    fn tell<W: Write>(&self, instance: &enforce::Instance, told: &mut Telling<W>) -> Result<()> {
        if let Some(last) = self.last {
            if self.pcap.is_some() && !self.follow {
                bail!("what is remembered has no packets; --pcap needs --follow here");
            }
            self.tell_last(instance, told, last)?;
            if !self.follow {
                return told.lines.flush().map_err(Into::into);
            }
        }
        let wanted =
            Wanted { kinds: self.kinds(), frames: self.pcap.is_some(), uplinks: self.all, room: self.buffer * 1024 };
        let mut stream = Stream::open(instance, wanted)?;
        if let Some(path) = &self.pcap {
            told.capture = Some(Capture::create(path)?);
        }
        told.lines.begin()?;
        let begin = Instant::now();
        loop {
            let is_over = interrupt::came() || self.duration.is_some_and(|duration| begin.elapsed() >= duration);
            let items = stream.look(is_over)?;
            let is_idle = items.is_empty();
            for item in &items {
                if told.left > 0 {
                    told.item(item)?;
                }
            }
            told.flush()?;
            if is_over || told.left == 0 {
                return Ok(());
            }
            if is_idle {
                thread::sleep(PAUSE);
            }
        }
    }

    fn kinds(&self) -> Vec<What> {
        let all = [Type::New, Type::Drop, Type::Closed];
        let types: &[Type] = if self.types.is_empty() { &all } else { &self.types };
        let kind = |kind: &Type| match kind {
            Type::New => What::New,
            Type::Drop => What::Drop,
            Type::Closed => What::Closed,
        };
        types.iter().map(kind).collect()
    }

    /// What the kernel remembers, the latest last.
    fn tell_last<W: Write>(&self, instance: &enforce::Instance, told: &mut Telling<W>, last: usize) -> Result<()> {
        let datapath = Datapath::open(&instance.pins)?;
        let reader = Arc::new(Reader::new(instance.names(&datapath)?.into()));
        let now = SystemTime::now();
        let mut records = datapath.records()?;
        records.retain(|record| self.all || !reader.only_passes(record));
        records.sort_by_key(|record| record.idle);
        let wants = |kind: What| self.types.is_empty() || self.kinds().contains(&kind);
        let happening = |record| Happening {
            kind: if denied(&record) { What::Drop } else { What::Flow },
            now,
            reader: Arc::clone(&reader),
            record,
            reply: None,
            was_known: false,
            suppressed: 0,
            frame: None,
        };
        let wanted = records.into_iter().map(happening).filter(|happening| {
            wants(if happening.kind == What::Drop { What::Drop } else { What::New })
                && told.filter.matches(&happening.flow())
        });
        let mut latest: Vec<_> = wanted.take(last).collect();
        latest.reverse();
        told.lines.begin()?;
        latest.iter().try_for_each(|happening| told.lines.happening(happening))?;
        Ok(())
    }
}

fn denied(record: &crate::datapath::Record) -> bool {
    record.denied.is_some()
}

/// Where everything goes that the filter lets through.
struct Telling<W: Write> {
    lines: Lines<W>,
    capture: Option<Capture>,
    filter: Filter,
    /// How many more.
    left: u64,
}

impl<W: Write> Telling<W> {
    fn item(&mut self, item: &Item) -> Result<()> {
        let Item::Happening(happening) = item else { return Ok(self.lines.missed(item)?) };
        if !self.filter.matches(&happening.flow()) {
            return Ok(());
        }
        self.left -= 1;
        self.lines.happening(happening)?;
        if let Some(capture) = &mut self.capture {
            capture.packet(happening)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.lines.flush()?;
        if let Some(capture) = &mut self.capture {
            capture.flush()?;
        }
        Ok(())
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
