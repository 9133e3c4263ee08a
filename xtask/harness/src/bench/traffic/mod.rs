//! Traffic between two ends, and what it costs: CPU time per operation.
//!
//! Client and server run on one CPU and the packets' way through the kernel is paid by whoever sent them (a veth
//! raises the softirq on the sender's CPU). So the CPU time of both threads holds all of the path, and unlike a rate
//! it doesn't change when somebody else has the CPU for a while.

mod flood;
mod socket;
mod tcp;
mod udp;

pub use flood::Flood;
pub use socket::set_receive_buffer;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use super::topology::Topology;
use crate::sandbox::Netns;

/// The server's port; floods that need more of them count upwards.
pub const PORT: u16 = 7001;
/// How many ports above [`PORT`] traffic may go to.
pub const PORTS: u16 = 256;

/// How long a thread waits before it looks whether it should stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// A kind of traffic.
pub struct Mode {
    /// As `--only` has it.
    pub name: &'static str,
    /// What one operation is.
    pub what: &'static str,
    pub run: fn(&Lane) -> Result<Sample>,
    /// How many CPUs it takes.
    pub cpus: usize,
}

/// All kinds, in the order of the report.
pub const MODES: &[Mode] = &[
    Mode { name: "tcp-rr", what: "TCP round trip of one byte", run: tcp::round_trips, cpus: 1 },
    Mode { name: "crr", what: "TCP connect, request, reply, close", run: tcp::connections, cpus: 1 },
    Mode { name: "udp-rr", what: "UDP round trip of one byte", run: udp::round_trips, cpus: 1 },
    Mode { name: "udp", what: "UDP packet of an established flow", run: udp::established, cpus: 1 },
    Mode { name: "udp-unanswered", what: "UDP packet of a flow without replies", run: udp::unanswered, cpus: 1 },
    Mode { name: "udp-new", what: "UDP packet, each of a new flow", run: flood::new_flows, cpus: 1 },
    Mode { name: "flows-64k", what: "UDP packet of 65,536 flows in turn", run: flood::many_flows, cpus: 1 },
    Mode { name: "tcp-stream", what: "KiB of a TCP stream", run: tcp::stream, cpus: 1 },
    Mode { name: "two-cpus", what: "UDP packet, two CPUs sending", run: udp::two_cpus, cpus: 2 },
];

/// Who asks whom, and where.
#[derive(Clone, Copy)]
pub struct Course<'a> {
    pub client: &'a Netns,
    pub server: &'a Netns,
    /// Where the client asks: it may be another address and port than the server's [`PORT`].
    pub to: SocketAddr,
    /// Of the server, where packets arrive.
    pub interface: &'static str,
}

impl<'a> Course<'a> {
    /// From the first container to the second.
    pub fn between(topology: &'a Topology) -> Self {
        let (a, b) = topology.pair();
        Self { client: &a.netns, server: &b.netns, to: (b.v4(), PORT).into(), interface: "eth0" }
    }
}

/// Where and how long traffic runs.
pub struct Lane<'a> {
    pub course: Course<'a>,
    /// For floods, which go from its first container to its second whatever the course.
    pub topology: &'a Topology,
    /// At least one; whoever needs one takes the last, which does less of the machine's other work than the first.
    pub cpus: &'a [Cpu],
    pub time: Duration,
    /// How long to wait in the middle of opening many flows, where their number per second is limited.
    pub pause: Duration,
    pub timing: Timing,
}

impl Lane<'_> {
    fn cpu(&self) -> &Cpu {
        &self.cpus[self.cpus.len() - 1]
    }
}

/// What one run found.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub operations: u64,
    pub spent: Duration,
    /// Operations before the watch ran.
    pub warm_up: u64,
    /// The share of the packets sent that arrived, where somebody counted.
    pub delivered: Option<f64>,
    /// With two CPUs: the cost of an operation relative to one CPU alone.
    pub scaling: Option<f64>,
}

impl Sample {
    pub const NOTHING: Self = Self { operations: 0, spent: Duration::ZERO, warm_up: 0, delivered: None, scaling: None };

    fn after(self, warm_up: u64) -> Self {
        Self { warm_up, ..self }
    }

    /// Nanoseconds per operation.
    pub fn cost(&self) -> f64 {
        self.spent.as_nanos() as f64 / self.operations.max(1) as f64
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// The CPU time of the threads.
    Cpu,
    /// The time of day: for kernels that don't count the packets' way as the threads' time.
    Wall,
}

impl Timing {
    /// CONFIG_IRQ_TIME_ACCOUNTING takes softirqs out of the CPU time of the thread that they interrupt.
    pub fn of_this_kernel(config: &str) -> Self {
        if config.lines().any(|line| line == "CONFIG_IRQ_TIME_ACCOUNTING=y") { Self::Wall } else { Self::Cpu }
    }
}

/// A CPU that traffic may run on.
pub struct Cpu {
    pub number: usize,
    /// The CPU time of its softirq thread: before Linux 6.5 it takes over once softirqs are many.
    softirqs: Option<PathBuf>,
}

impl Cpu {
    /// The CPUs that this process may use.
    pub fn all() -> Result<Vec<Self>> {
        let set = sched_getaffinity(Pid::from_raw(0))?;
        let numbers = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
        Ok(numbers.map(|number| Self { number, softirqs: softirq_thread(number) }).collect())
    }

    /// Binds the calling thread and puts it before the machine's other work.
    pub fn take(&self) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(self.number)?;
        sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("binding to CPU {}", self.number))?;
        // SAFETY: no memory is involved; 0 is the calling thread. Without the right to it, the run is only noisier.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
        Ok(())
    }

    fn softirq_time(&self) -> Duration {
        let text = self.softirqs.as_ref().and_then(|path| fs::read_to_string(path).ok());
        let nanoseconds = text.and_then(|text| text.split_whitespace().next()?.parse().ok());
        Duration::from_nanos(nanoseconds.unwrap_or(0))
    }
}

fn softirq_thread(cpu: usize) -> Option<PathBuf> {
    let name = format!("ksoftirqd/{cpu}\n");
    fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path()).find_map(|path| {
        let is = fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name);
        is.then(|| path.join("schedstat"))
    })
}

/// The CPU clock of a thread; others may read it while the thread lives.
#[derive(Clone, Copy)]
struct ThreadClock(ClockId);

impl ThreadClock {
    fn mine() -> Result<Self> {
        let mut clock = 0;
        // SAFETY: fills in `clock`; the calling thread exists.
        let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
        if error != 0 {
            return Err(std::io::Error::from_raw_os_error(error)).context("the CPU clock of a thread");
        }
        Ok(Self(ClockId::from_raw(clock)))
    }

    fn now(self) -> Result<Duration> {
        Ok(clock_gettime(self.0)?.into())
    }
}

/// Runs from the end of the warm-up until the time is over.
struct Stopwatch<'a> {
    clocks: &'a [ThreadClock],
    cpu: &'a Cpu,
    timing: Timing,
    spent_before: Duration,
    start: Instant,
    end: Instant,
}

impl<'a> Stopwatch<'a> {
    fn start(lane: &Lane, cpu: &'a Cpu, clocks: &'a [ThreadClock]) -> Result<Self> {
        let start = Instant::now();
        let mut watch =
            Self { clocks, cpu, timing: lane.timing, spent_before: Duration::ZERO, start, end: start + lane.time };
        watch.spent_before = watch.spent()?;
        Ok(watch)
    }

    fn running(&self) -> bool {
        Instant::now() < self.end
    }

    fn stop(self, operations: u64) -> Result<Sample> {
        Ok(Sample { operations, spent: self.spent()? - self.spent_before, ..Sample::NOTHING })
    }

    fn spent(&self) -> Result<Duration> {
        if self.timing == Timing::Wall {
            return Ok(self.start.elapsed());
        }
        self.clocks.iter().try_fold(self.cpu.softirq_time(), |sum, clock| Ok(sum + clock.now()?))
    }
}

/// Adds which share of the packets came through.
fn counted(lane: &Lane, run: impl FnOnce() -> Result<Sample>) -> Result<Sample> {
    let before = received(&lane.course)?;
    let sample = run()?;
    let arrived = received(&lane.course)? - before;
    let sent = sample.operations + sample.warm_up;
    Ok(Sample { delivered: Some(arrived as f64 / sent.max(1) as f64), ..sample })
}

/// Packets that the server's interface has received.
fn received(course: &Course) -> Result<u64> {
    let name = course.interface;
    course.server.run(|| {
        let text = fs::read_to_string(Path::new("/proc/thread-self/net/dev"))?;
        let row = |line: &str| Some(line.trim().strip_prefix(name)?.strip_prefix(':')?.to_owned());
        let line = text.lines().find_map(row).with_context(|| format!("no {name}"))?;
        line.split_whitespace().nth(1).context("no packet count")?.parse().context("packet count")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_time_over_operations() {
        let sample = Sample { operations: 1_000, spent: Duration::from_micros(1_500), ..Sample::NOTHING };
        assert_eq!(sample.cost(), 1_500.0);
    }

    #[test]
    fn kernels_that_count_softirqs_apart_are_timed_by_the_clock() {
        assert_eq!(Timing::of_this_kernel("CONFIG_BPF=y\nCONFIG_IRQ_TIME_ACCOUNTING=y\n"), Timing::Wall);
        assert_eq!(Timing::of_this_kernel("# CONFIG_IRQ_TIME_ACCOUNTING is not set\n"), Timing::Cpu);
    }

    #[test]
    fn a_thread_clock_is_readable_from_another_thread() -> Result<()> {
        let mine = ThreadClock::mine()?;
        let here = mine.now()?;
        let there = std::thread::spawn(move || mine.now()).join().expect("the thread does not panic")?;
        assert!(there >= here);
        Ok(())
    }
}
