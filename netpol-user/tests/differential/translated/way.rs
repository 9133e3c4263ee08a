//! The hooks that a packet passes, in the kernel, one after the other, as the host would bring it from one to the next.

use std::net::IpAddr;

use netpol_common::{
    drops::{Drop, Pass, Side, Verdict},
    service::Uplink,
    tables::IfIndex,
    wire::{Addr4, Addr6, Mac, MacWords},
};
use netpol_user::{
    datapath::{Action, Arrival, Role},
    netns::Namespace,
};
use proptest::prelude::*;

use super::{
    packet::{addresses, framed, inside},
    world::UPLINK,
};
use crate::{
    compile::Workload,
    kernel::{Loaded, interfaces},
    model::World,
    stage::{self, Actor, ROUTER},
    support::Host,
};

/// Real interfaces: what is asked for a route must be one.
pub struct Links {
    workloads: Vec<u32>,
    bridges: [IfIndex; 2],
    pub uplink: IfIndex,
    uplink_mac: Mac,
}

impl Links {
    pub fn new(host: &Host, far: &Namespace) -> Self {
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            host.sysctl(setting, "1");
        }
        let workloads = interfaces(host, far);
        let bridges = ["br0", "br1"];
        bridges.iter().for_each(|name| host.bridge(name, &[]));
        host.net(async |net| {
            net.veth("up", "up", far).await;
            for (address, everywhere) in UPLINK.into_iter().zip(["0.0.0.0/0", "::/0"]) {
                let prefix = if address.contains(':') { 64 } else { 24 };
                net.address("up", format!("{address}/{prefix}").parse().unwrap()).await;
                let gateway: IpAddr = address.replace("200", "1").replace("::fe", "::1").parse().unwrap();
                net.route(everywhere.parse().unwrap(), "up", Some(gateway)).await;
            }
            // as `stage::workloads` and `worlds` place endpoints
            for number in 0..workloads.len() {
                let (bridge, half) = (["br0", "br1"][number / 3 % 2], number % 2);
                for own in [format!("10.0.{half}.{number}/32"), format!("fd00:{half}::{number}/128")] {
                    net.route(own.parse().unwrap(), bridge, None).await;
                }
            }
            let bridges = [net.index("br0").await, net.index("br1").await].map(IfIndex);
            Self { workloads, bridges, uplink: IfIndex(net.index("up").await), uplink_mac: net.mac("up").await }
        })
    }

    pub fn uplink(&self) -> (IfIndex, Uplink) {
        let [four, six] = UPLINK;
        let value = Uplink {
            address4: Addr4::from(four.parse::<std::net::Ipv4Addr>().unwrap()),
            address6: Addr6::from(six.parse::<std::net::Ipv6Addr>().unwrap()),
            mac: MacWords::new(self.uplink_mac),
            reserved: 0,
            mtu: 1500,
        };
        (self.uplink, value)
    }

    pub fn running(&self, world: &World, outward: bool) -> Vec<Workload> {
        let mut workloads = stage::workloads(world, &self.workloads);
        for workload in &mut workloads {
            workload.master = self.bridges[workload.segment as usize - 1];
            workload.router_mac = ROUTER;
            workload.outward = outward;
        }
        workloads
    }

    /// Endpoints and the world.
    pub fn actors(&self, workloads: &[Workload]) -> Vec<Actor> {
        let all = stage::actors(workloads).into_iter().filter(|actor| !actor.is_host());
        let there = |actor: Actor| if actor.is_workload() { actor } else { Actor { interface: self.uplink, ..actor } };
        all.map(there).collect()
    }
}

/// Where a packet has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Endpoint(IfIndex),
    /// Or to the host itself.
    Elsewhere,
}

#[derive(Clone, Debug)]
pub enum Fate {
    Arrived(At, Vec<u8>),
    Dropped(Drop),
}

pub struct Way<'a> {
    pub loaded: &'a mut Loaded,
    pub links: &'a Links,
    pub actors: &'a [Actor],
}

impl Way<'_> {
    /// Sends a packet on its way. `is_done`: it is as its receiver's own hook need not change it any more. That hook is
    /// told so by the sender's, in a field of the packet that does not survive from one run to the next.
    pub fn send(
        &mut self,
        from: &Actor,
        packet: &[u8],
        is_done: impl Fn(&[u8]) -> bool,
    ) -> Result<Fate, TestCaseError> {
        if from.is_workload() { self.leave(from, packet, is_done) } else { self.enter(packet) }
    }

    fn leave(&mut self, from: &Actor, packet: &[u8], is_done: impl Fn(&[u8]) -> bool) -> Result<Fate, TestCaseError> {
        let neighbour = self.owner(addresses(packet).1).filter(|to| to.bridge == from.bridge);
        let next = neighbour.map_or(ROUTER, |to| to.mac);
        let own = Arrival { interface: from.interface, ingress: from.interface };
        let (verdict, frame) = self.pass((Role::Workload, Side::From), own, &framed(next, from.mac, packet))?;
        let to = addresses(inside(&frame)).1;
        match verdict {
            Some(Err(reason)) => return Ok(Fate::Dropped(reason)),
            Some(Ok(Pass::Direct | Pass::Routed)) => return self.delivered(&frame),
            Some(Ok(Pass::Out)) => return Ok(Fate::Arrived(At::Elsewhere, inside(&frame).to_vec())),
            _ => {}
        }
        match self.owner(to) {
            Some(to) if is_done(inside(&frame)) => {
                Ok(Fate::Arrived(At::Endpoint(to.interface), inside(&frame).to_vec()))
            }
            Some(to) => self.reach(to, if next == ROUTER { from.bridge } else { from.interface }, inside(&frame)),
            None => {
                let out = Arrival { interface: self.links.uplink, ingress: from.bridge };
                let (verdict, frame) = self.pass((Role::Uplink, Side::To), out, &frame)?;
                Ok(match verdict {
                    Some(Err(reason)) => Fate::Dropped(reason),
                    _ => Fate::Arrived(At::Elsewhere, inside(&frame).to_vec()),
                })
            }
        }
    }

    fn enter(&mut self, packet: &[u8]) -> Result<Fate, TestCaseError> {
        let uplink = self.links.uplink;
        let own = Arrival { interface: uplink, ingress: uplink };
        let frame = framed(self.links.uplink_mac, ROUTER, packet);
        let (verdict, frame) = self.pass((Role::Uplink, Side::From), own, &frame)?;
        match verdict {
            Some(Err(reason)) => return Ok(Fate::Dropped(reason)),
            Some(Ok(Pass::Routed)) => return self.delivered(&frame),
            _ => {}
        }
        match self.owner(addresses(inside(&frame)).1) {
            Some(to) => self.reach(to, uplink, inside(&frame)),
            None => Ok(Fate::Arrived(At::Elsewhere, inside(&frame).to_vec())),
        }
    }

    /// At the interface of the endpoint that the host brings it to.
    fn reach(&mut self, to: Actor, ingress: IfIndex, packet: &[u8]) -> Result<Fate, TestCaseError> {
        let arrival = Arrival { interface: to.interface, ingress };
        let frame = framed(to.mac, ROUTER, packet);
        let (verdict, frame) = self.pass((Role::Workload, Side::To), arrival, &frame)?;
        Ok(match verdict {
            Some(Err(reason)) => Fate::Dropped(reason),
            _ => Fate::Arrived(At::Endpoint(to.interface), inside(&frame).to_vec()),
        })
    }

    /// Past the host: in the namespace of whoever has the MAC address.
    fn delivered(&self, frame: &[u8]) -> Result<Fate, TestCaseError> {
        let to = self.actors.iter().find(|actor| actor.is_workload() && actor.mac[..] == frame[..6]);
        let Some(to) = to else { return Err(TestCaseError::fail("delivered to nobody's MAC address")) };
        let owner = self.owner(addresses(inside(frame)).1).map(|owner| owner.interface);
        prop_assert_eq!(owner, Some(to.interface), "the address is not that of the endpoint that gets it");
        Ok(Fate::Arrived(At::Endpoint(to.interface), inside(frame).to_vec()))
    }

    fn owner(&self, address: IpAddr) -> Option<Actor> {
        self.actors.iter().find(|actor| actor.is_workload() && actor.address == address).copied()
    }

    /// One hook: its verdict, if it counts one, and the frame behind it.
    fn pass(
        &mut self,
        (role, side): (Role, Side),
        at: Arrival,
        frame: &[u8],
    ) -> Result<(Option<Verdict>, Vec<u8>), TestCaseError> {
        let ran = self.loaded.datapath.test_run((role, side), frame, at);
        let ran = ran.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        let counted = self.loaded.counted();
        let direction = if role == Role::Uplink { side.opposite() } else { side };
        let verdict = match counted[..] {
            // what the host's stack brings on is not counted at an uplink
            [] if role == Role::Uplink => None,
            [(at, verdict, 1)] if at == direction => Some(verdict),
            _ => return Err(TestCaseError::fail(format!("{role:?} {side:?} counts {counted:?}"))),
        };
        let expected = match verdict {
            // refused: an answer goes back in its place
            Some(Err(Drop::NoBackend)) if ran.action == Action::Redirect => Action::Redirect,
            Some(Err(_)) => Action::Drop,
            Some(Ok(Pass::Direct | Pass::Routed | Pass::Out)) => Action::Redirect,
            Some(Ok(_)) | None => Action::Next,
        };
        prop_assert_eq!(ran.action, expected, "{:?} {:?} {:?}", role, side, verdict);
        if !matches!(verdict, Some(Err(_))) {
            // the sender's MAC address stays, and who sends it out takes a hop off
            prop_assert_eq!(&ran.frame[6..14], &frame[6..14], "{:?} {:?} {:?}", role, side, verdict);
            let hops = if frame[12..14] == [0x08, 0x00] { 14 + 8 } else { 14 + 7 };
            let taken = u8::from(verdict == Some(Ok(Pass::Out)));
            prop_assert_eq!(ran.frame[hops], frame[hops] - taken, "{:?} {:?} {:?}", role, side, verdict);
        }
        Ok((verdict, ran.frame))
    }
}
