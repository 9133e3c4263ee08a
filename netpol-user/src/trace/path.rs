//! The first packet of a connection from hook to hook, through a copy of the classifiers.
//!
//! | from | hooks |
//! |---|---|
//! | an endpoint | `from_workload` of its interface; out of a pool through the stack also `to_uplink` |
//! | the host | `to_workload` of the receiver |
//! | outside | `from_uplink`, where addresses are translated; through the stack `to_workload` of the receiver |
//!
//! Between endpoints the sender's hook judges both ends, and the receiver's believes it.

use std::net::{IpAddr, SocketAddr};

use netpol_common::{
    drops::{Drop, Pass, Side},
    kernel::Settings,
    tables::{AddressFlags, AddressValue, HookValue, IfIndex, Network, RuleId},
    wire::{Mac, MacWords},
};

use super::frame::Packet;
use crate::datapath::{self, Action, Arrival, Role, Translated, Tried, Twin};

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The endpoint behind an interface.
    Endpoint(IfIndex),
    Host,
    /// Somebody who is reached through an interface.
    Outside(IfIndex),
}

/// A packet at a hook, and what became of it.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    pub role: Role,
    pub side: Side,
    pub interface: IfIndex,
    pub packet: Packet,
    pub tried: Tried,
}

impl Passed {
    pub fn dropped(&self) -> Option<Drop> {
        self.tried.verdict.and_then(Result::err)
    }

    pub fn pass(&self) -> Option<Pass> {
        self.tried.verdict.and_then(Result::ok)
    }

    pub fn rules(&self) -> (RuleId, RuleId) {
        self.tried.record.map_or((RuleId::NONE, RuleId::NONE), |record| (record.egress_rule, record.ingress_rule))
    }

    /// The addresses and ports that it leaves with, where they change there.
    pub fn translated(&self) -> Option<Translated> {
        let record = self.tried.record.as_ref()?;
        let is_changed = |to: &Translated| {
            (to.source, to.destination) != (self.packet.source, self.packet.destination)
                || (to.source_port, to.destination_port) != (record.source_port, record.destination_port)
        };
        record.translated.filter(is_changed)
    }

    /// The packet as it leaves.
    fn leaving(&self) -> Packet {
        let Some(to) = self.translated() else { return self.packet };
        let mut opening = self.packet.opening;
        if opening.protocol.has_ports() {
            (opening.source_port, opening.destination_port) = (to.source_port, to.destination_port);
        }
        Packet { source: to.source, destination: to.destination, opening }
    }
}

/// What happened on the way.
#[derive(Clone, Debug, Default)]
pub struct Path(pub Vec<Passed>);

impl Path {
    pub fn dropped(&self) -> Option<Drop> {
        self.0.iter().find_map(Passed::dropped)
    }

    /// The hook that judges: an uplink's, where it delivers or denies, else the only one of an endpoint's.
    pub fn judge(&self) -> Option<&Passed> {
        self.0.iter().find(|passed| {
            passed.role == Role::Workload
                || passed.pass() == Some(Pass::Routed)
                || passed.dropped().is_some_and(Drop::is_denial)
        })
    }

    /// The packet has left, through the stack or directly.
    pub fn uplink(&self) -> Option<IfIndex> {
        let last = self.0.last()?;
        match last.pass() {
            Some(Pass::Out) => last.tried.record.map(|record| record.far),
            _ => (last.role == Role::Uplink && last.side == Side::To).then_some(last.interface),
        }
    }

    /// The address and port that the packet reached in the end, behind services.
    pub fn reached(&self) -> Option<SocketAddr> {
        let packet = self.0.last()?.leaving();
        Some(SocketAddr::new(packet.destination, packet.opening.destination_port))
    }

    /// The source that it had in the end, of what left through an uplink.
    pub fn masqueraded(&self) -> Option<(IfIndex, SocketAddr)> {
        let (last, uplink) = (self.0.last()?, self.uplink()?);
        let to = last.translated().filter(|to| to.source != last.packet.source)?;
        Some((uplink, SocketAddr::new(to.source, to.source_port)))
    }
}

/// What asks the copy, in one generation.
pub struct Walker<'a> {
    pub twin: &'a mut Twin,
    pub slot: u32,
    pub settings: Settings,
    /// The interfaces to the outside.
    pub uplinks: &'a [IfIndex],
    /// The interface through which the host sends to an address.
    pub route: &'a dyn Fn(IpAddr) -> Option<IfIndex>,
}

/// Somebody's MAC address, where it does not matter whose: a locally administered one.
const SOMEBODY: Mac = [2, 0, 0, 0, 0, 1];

impl Walker<'_> {
    /// Sends the packet on its way, until it is dropped, delivered, or the host's own.
    pub fn walk(&mut self, sender: Sender, packet: Packet) -> Result<Path, datapath::Error> {
        let mut path = Path::default();
        match sender {
            Sender::Endpoint(interface) => self.leaves_endpoint(interface, packet, &mut path)?,
            Sender::Host => self.reaches_endpoint(IfIndex::NONE, packet, &mut path)?,
            Sender::Outside(interface) => self.arrives(interface, packet, &mut path)?,
        }
        Ok(path)
    }

    fn leaves_endpoint(&mut self, own: IfIndex, packet: Packet, path: &mut Path) -> Result<(), datapath::Error> {
        let Some(hook) = self.twin.hook(own, self.slot)? else { return Ok(()) };
        let neighbour = self.neighbour(&hook, packet.destination)?;
        // on one bridge straight, else to whoever routes
        let next = neighbour.unwrap_or(hook.host_mac);
        let passed = self.run((Role::Workload, Side::From, own, own), packet, (hook.mac, next))?;
        path.0.push(passed);
        if passed.dropped().is_some() || passed.tried.action == Action::Redirect {
            return Ok(());
        }
        let packet = passed.leaving();
        let known = self.twin.address(hook.network, packet.destination, self.slot)?;
        if known.is_some() || !self.settings.has(Settings::TRANSLATE) {
            // another endpoint, or the host itself
            return Ok(());
        }
        match (self.route)(packet.destination) {
            Some(uplink) if self.uplinks.contains(&uplink) => {
                let from = if hook.master == IfIndex::NONE { own } else { hook.master };
                let macs = (hook.host_mac, MacWords::new(SOMEBODY));
                path.0.push(self.run((Role::Uplink, Side::To, uplink, from), packet, macs)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn arrives(&mut self, from: IfIndex, packet: Packet, path: &mut Path) -> Result<(), datapath::Error> {
        let mut packet = packet;
        if self.uplinks.contains(&from) && self.settings.has(Settings::TRANSLATE) {
            let own = self.twin.uplink(from, self.slot)?.map_or(MacWords::new(SOMEBODY), |uplink| uplink.mac);
            let macs = (MacWords::new(SOMEBODY), own);
            let passed = self.run((Role::Uplink, Side::From, from, from), packet, macs)?;
            path.0.push(passed);
            if passed.dropped().is_some() || passed.tried.action == Action::Redirect {
                return Ok(());
            }
            packet = passed.leaving();
        }
        self.reaches_endpoint(from, packet, path)
    }

    /// To whoever has the destination address, if that is an endpoint.
    fn reaches_endpoint(&mut self, ingress: IfIndex, packet: Packet, path: &mut Path) -> Result<(), datapath::Error> {
        let known = self.twin.address(Network::SHARED, packet.destination, self.slot)?;
        let Some(receiver) = known.filter(is_endpoint) else { return Ok(()) };
        let Some(hook) = self.twin.hook(receiver.ifindex, self.slot)? else { return Ok(()) };
        let place = (Role::Workload, Side::To, receiver.ifindex, ingress);
        path.0.push(self.run(place, packet, (hook.host_mac, hook.mac))?);
        Ok(())
    }

    /// The MAC address of who has an address on the same bridge.
    fn neighbour(&self, hook: &HookValue, address: IpAddr) -> Result<Option<MacWords>, datapath::Error> {
        let known = self.twin.address(hook.network, address, self.slot)?;
        let Some(known) = known.filter(is_endpoint) else { return Ok(None) };
        let there = self.twin.hook(known.ifindex, self.slot)?;
        let is_near = there.is_some_and(|there| hook.master != IfIndex::NONE && there.master == hook.master);
        Ok(is_near.then_some(known.mac))
    }

    fn run(
        &mut self,
        (role, side, interface, ingress): (Role, Side, IfIndex, IfIndex),
        packet: Packet,
        (source, destination): (MacWords, MacWords),
    ) -> Result<Passed, datapath::Error> {
        // one family: the caller asks between addresses of one alone
        let frame = packet.frame(source.bytes(), destination.bytes()).unwrap_or_default();
        let tried = self.twin.run((role, side), &frame, Arrival { interface, ingress })?;
        Ok(Passed { role, side, interface, packet, tried })
    }
}

fn is_endpoint(value: &AddressValue) -> bool {
    value.ifindex != IfIndex::NONE && !value.flags.has(AddressFlags::HOST)
}
