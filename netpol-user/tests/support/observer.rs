//! `netpol observe`, running beside a test.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use netpol_user::datapath::{Datapath, Pins};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::Host;

/// How long an event may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// An observer that prints JSON.
pub struct Watch {
    child: Child,
    lines: Receiver<Value>,
    /// All that it has told so far.
    pub told: Vec<Value>,
}

impl Host {
    /// Begins to observe; events after that are told.
    #[track_caller]
    pub fn observe(&self, arguments: &[&str]) -> Watch {
        let before = self.observers();
        let watch = self.begin_to_observe(arguments);
        wait_until("it observes", || self.observers() > before);
        watch
    }

    /// The same, without waiting until it observes.
    pub fn begin_to_observe(&self, arguments: &[&str]) -> Watch {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
        command.arg("--bpffs").arg(self.bpffs()).arg("--state").arg(self.folder().join("state"));
        command.args(["observe", "-o", "json"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = self.namespace.enter(|| command.spawn()).expect("root").expect("netpol");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        Watch { child, lines, told: vec![] }
    }

    /// How many observers hold a lease.
    #[track_caller]
    pub fn observers(&self) -> u32 {
        self.datapath().observers().unwrap_or_else(|error| panic!("{error}")).0
    }

    /// The datapath believes that somebody observes.
    #[track_caller]
    pub fn is_observed(&self) -> bool {
        self.datapath().is_observed().unwrap_or_else(|error| panic!("{error}"))
    }

    #[track_caller]
    fn datapath(&self) -> Datapath {
        Datapath::open(&Pins::at(self.bpffs())).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Watch {
    /// The first event for which this holds, of those told before and those to come.
    #[track_caller]
    pub fn event(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(told) = self.told.iter().find(|value| wanted(value)) {
            return told.clone();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(value) => {
                    self.told.push(value.clone());
                    if wanted(&value) {
                        return value;
                    }
                }
                Err(error) => panic!("{what}: {error}; told was {:#?}", self.told),
            }
        }
    }

    /// It has told anything by now.
    pub fn has_told(&mut self) -> bool {
        self.told.extend(self.lines.try_iter());
        !self.told.is_empty()
    }

    /// The drop with this reason.
    #[track_caller]
    pub fn drop_of(&mut self, reason: &str) -> Value {
        self.event(reason, |event| event["type"] == "drop" && event["drop_reason"] == reason)
    }

    /// A signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a signal to a child");
    }

    /// Waits until it has ended by itself; its exit code. What it told last is in [`Self::told`].
    #[track_caller]
    pub fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(value) => self.told.push(value),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end"),
            }
        }
        self.child.wait().expect("its end").code()
    }

    /// Asks it to end, as Ctrl-C does, and waits for that.
    #[track_caller]
    pub fn end(&mut self) {
        self.signal(Signal::SIGINT);
        assert_eq!(self.ended(), Some(0), "{:#?}", self.told);
    }

    /// All events of a type so far.
    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.told.iter().filter(|event| event["type"] == kind).collect()
    }

    /// Of the events of a type, the sum of a number.
    pub fn sum(&self, kind: &str, field: &str) -> u64 {
        self.all(kind).iter().map(|event| event[field].as_u64().unwrap_or_else(|| panic!("{event}"))).sum()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
