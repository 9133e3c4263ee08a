//! Frames from one endpoint to another, and what became of each: it arrived, or was dropped for a reason.

use std::{cell::Cell, net::SocketAddr, path::Path};

use super::{Endpoint, Family, Host, RawSocket, Scene, packet, packet::Mac, policy};

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Arrived,
    /// Where and why: `egress spoofed`.
    Dropped(String),
    /// Neither.
    Lost,
}

/// What became of it, in a test's words.
#[track_caller]
pub fn dropped(reason: &str) -> Fate {
    Fate::Dropped(reason.to_owned())
}

/// The port of the packets that show how far the others would have come.
const SENTINEL: u16 = 9999;

/// Policies that isolate `a` and `b` in both directions, but for [`SENTINEL`] packets.
pub fn isolated(more: &[String]) -> Vec<String> {
    let rules = [policy::anybody(&[&format!("{SENTINEL}/UDP")])];
    let both = |app: &str| [policy::ingress(app, &rules), policy::egress(app, &rules)];
    [&both("a")[..], &both("b"), more].concat()
}

pub struct Wire<'a> {
    host: &'a Host,
    from: &'a Endpoint,
    to: &'a Endpoint,
    out: RawSocket,
    input: RawSocket,
    /// MAC addresses of both ends.
    pub source: Mac,
    pub target: Mac,
    sent: Cell<u32>,
}

impl<'a> Wire<'a> {
    /// The receiver's own stack hears nothing from then on, so it answers nothing.
    pub fn new(host: &'a Host, from: &'a Endpoint, to: &'a Endpoint) -> Self {
        to.run(
            "nft",
            &["add table inet t; add chain inet t c { type filter hook prerouting priority raw; policy drop; }"],
        );
        // it would cut off what is after a packet's end
        for name in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
            if Path::new("/proc/sys").join(name).exists() {
                host.sysctl(name, "0");
            }
        }
        Self {
            host,
            from,
            to,
            out: from.raw(),
            input: to.raw(),
            source: from.mac(),
            target: to.mac(),
            sent: Cell::new(0),
        }
    }

    /// From `a` to `b`.
    pub fn of(scene: &'a Scene) -> Self {
        Self::new(&scene.host, &scene.a, &scene.b)
    }

    /// Sends a frame with a mark of its own after its end, where no stack looks.
    pub fn send(&self, frame: &[u8]) -> Fate {
        let number = self.sent.get();
        self.sent.set(number + 1);
        let mark = format!("netpol-mark-{number:08}").into_bytes();
        self.judge(&[frame, &mark].concat(), |seen| seen.windows(mark.len()).any(|window| window == mark))
    }

    /// Sends a frame that ends where it ends.
    pub fn send_bare(&self, frame: &[u8]) -> Fate {
        self.judge(frame, |seen| seen == frame)
    }

    /// Sends an IP packet between the two MAC addresses.
    pub fn packet(&self, packet: &[u8]) -> Fate {
        self.send(&packet::frame(self.target, self.source, packet))
    }

    fn judge(&self, frame: &[u8], is_it: impl Fn(&[u8]) -> bool) -> Fate {
        let (early, counts) = self.host.counted(|| {
            self.out.send(frame);
            self.comes_before_sentinel(&is_it)
        });
        let drops = counts.drops();
        // a longer way, through the host's stack, may end after the sentinel's
        let arrived = early || (drops.is_empty() && self.input.receive(is_it).is_some());
        match (arrived, drops.is_empty()) {
            (true, true) => Fate::Arrived,
            (false, true) => Fate::Lost,
            (false, false) => Fate::Dropped(drops.join(", ")),
            (true, false) => panic!("it arrived although something was dropped: {drops:?}"),
        }
    }

    /// Packets from one interface are judged in their order: when a later one has arrived, all counters
    /// of this one are there.
    fn comes_before_sentinel(&self, is_it: impl Fn(&[u8]) -> bool) -> bool {
        let number = self.sent.get();
        let text = format!("netpol-sentinel-{number:08}").into_bytes();
        self.sent.set(number + 1);
        let ends = [self.from, self.to].map(|end| SocketAddr::new(end.ip(Family::V4), SENTINEL));
        self.out.send(&packet::frame(self.target, self.source, &packet::udp(ends[0], ends[1], &text)));
        let is_sentinel = |seen: &[u8]| seen.windows(text.len()).any(|window| window == text);
        let mut arrived = false;
        let last = self.input.receive(|seen| {
            arrived |= is_it(seen);
            is_sentinel(seen)
        });
        assert!(last.is_some(), "an allowed packet does not arrive");
        arrived
    }
}
