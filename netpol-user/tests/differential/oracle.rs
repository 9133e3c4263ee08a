//! What should become of an honest packet, by the ordered rules and by who opened what. No tables, no
//! generations, no entries.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use netpol_common::drops::Side;

use crate::{
    datapath::frame::{ACK, SYN},
    model::{Opening, Protocol, Question, Regime, World},
    script::{About, Say, Talk},
    stage::{Actor, echo},
};

/// A connection where it is watched: between two workloads once where packets leave and once where they
/// arrive, else at the one workload that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Watch {
    ends: [(IpAddr, u16); 2],
    protocol: Protocol,
    side: Option<bool>,
}

/// Who opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opener {
    Known(IpAddr, u16),
    Unclear,
}

#[derive(Debug, Default)]
pub struct Oracle {
    opened: HashMap<Watch, Opener>,
    /// Which of them had a packet pass since the last publication.
    fresh: HashSet<Watch>,
    /// Senders of TCP that were denied since then.
    denied: HashSet<(Watch, (IpAddr, u16))>,
}

impl Oracle {
    /// Whether a packet was rightly passed, or dropped, at a hook.
    pub fn check(
        &mut self,
        world: &World,
        (talk, say): (&Talk, &Say),
        (from, to): (Actor, Actor),
        (side, passed, would_drop): (Side, bool, bool),
    ) -> Result<(), &'static str> {
        let may = |from, to, opening| Said::of(world, from, to, opening);
        let agree = |said: Said, passed| said.agrees(passed, would_drop);
        if let About::Echo(_) = talk.about {
            let (request, _) = echo(talk.six);
            let asks = say.flags & SYN != 0;
            let (asker, asked) = if asks { (from, to) } else { (to, from) };
            let protocol = if talk.six { Protocol::ICMPV6 } else { Protocol::ICMP };
            let opening = Opening { protocol, source_port: 0, destination_port: 0, icmp: Some((request, 0)) };
            return agree(may(asker, asked, opening), passed);
        }
        let (protocol, client, server) = match talk.about {
            About::Tcp(client, server) => (Protocol::TCP, client, server),
            About::Udp(client, server) => (Protocol::UDP, client, server),
            About::Gre | About::Echo(_) => (Protocol(47), 0, 0),
        };
        let (source, destination) = if say.back { (server, client) } else { (client, server) };
        let (sender, receiver) = ((from.address, source), (to.address, destination));
        let mut ends = [sender, receiver];
        ends.sort_unstable();
        let both = from.is_workload() && to.is_workload();
        let watch = |side: Side| Watch { ends, protocol, side: both.then_some(side == Side::From) };
        let remembered = self.opened.get(&watch(side));
        // what leaves has just been looked at
        let remembered = remembered.or_else(|| self.opened.get(&watch(Side::From))).copied();
        let tcp = protocol == Protocol::TCP;
        let opener = match remembered {
            _ if tcp && say.flags & (SYN | ACK) == SYN => Opener::Known(sender.0, sender.1),
            Some(opener) => opener,
            None if !tcp => Opener::Known(sender.0, sender.1),
            None if say.flags & SYN != 0 => Opener::Known(receiver.0, receiver.1),
            None => match (source >= 32768, destination >= 32768) {
                (true, false) => Opener::Known(sender.0, sender.1),
                (false, true) => Opener::Known(receiver.0, receiver.1),
                _ => Opener::Unclear,
            },
        };
        let opening = |source_port, destination_port| Opening { protocol, source_port, destination_port, icmp: None };
        let there = may(from, to, opening(source, destination));
        let back = || may(to, from, opening(destination, source));
        let allowed = match opener {
            Opener::Known(address, port) if (address, port) == sender => there,
            Opener::Known(..) => back(),
            Opener::Unclear => there.and(back()),
        };
        let watch = watch(side);
        let direction = (watch, sender);
        if passed {
            self.opened.insert(watch, opener);
            self.fresh.insert(watch);
            return agree(allowed, true);
        }
        // what was denied a moment ago stands for a guess about who opened that differs from this one
        let repeats = say.flags & (SYN | ACK) != SYN && self.denied.contains(&direction);
        if tcp && repeats && !self.fresh.contains(&watch) {
            return Ok(());
        }
        self.denied.insert(direction);
        agree(allowed, false)
    }

    /// A new policy: what was found out under the one before is judged again.
    pub fn publish(&mut self) {
        self.fresh.clear();
        self.denied.clear();
    }
}

/// What the rules say to a connection: those that are enforced, and those together with the audited ones.
#[derive(Clone, Copy)]
struct Said {
    enforced: bool,
    with_audited: bool,
}

impl Said {
    /// The host's own connections are nobody's business.
    fn of(world: &World, from: Actor, to: Actor, opening: Opening) -> Self {
        let allowed = |regime| {
            from.is_host() || Question { world, from: from.party, to: to.party, opening, regime }.judge().allowed()
        };
        Self { enforced: allowed(Regime::Enforced), with_audited: allowed(Regime::WithAudited) }
    }

    const fn and(self, other: Self) -> Self {
        Self { enforced: self.enforced && other.enforced, with_audited: self.with_audited && other.with_audited }
    }

    fn agrees(self, passed: bool, would_drop: bool) -> Result<(), &'static str> {
        match (self.enforced, passed) {
            (false, true) => Err("passed, and the rules deny it"),
            (true, false) => Err("dropped, and the rules allow it"),
            (false, false) if would_drop => Err("dropped, and counted as what passes"),
            (true, true) if would_drop == self.with_audited => Err("audited policies say something else"),
            _ => Ok(()),
        }
    }
}
