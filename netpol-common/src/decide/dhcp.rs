//! DHCP: a link needs it, so no policy is asked; but a workload may not serve.

use super::{Action, Packet, find};
use crate::{
    drops::{Drop, Side},
    kernel::Kernel,
    tables::HookValue,
    wire::{Address, PortBe, Protocol},
};

pub(super) const DHCP_SERVER: PortBe = PortBe::from_host(67);

pub(super) const DHCP_CLIENT: PortBe = PortBe::from_host(68);

pub(super) const DHCPV6_CLIENT: PortBe = PortBe::from_host(546);

pub(super) const DHCPV6_SERVER: PortBe = PortBe::from_host(547);

/// RFC 2131 and RFC 8415: a workload may ask a DHCP server, and hear one that is no workload; it may not be
/// one. `None`: the policy decides, also about questions that are not for the link or the host.
#[inline(always)]
pub(super) fn dhcp<A: Address, K: Kernel<A>>(
    kernel: &K,
    packet: &Packet<A>,
    hook: &HookValue,
) -> Option<Result<Action, Drop>> {
    let (server, client) = if A::BITS == 32 { (DHCP_SERVER, DHCP_CLIENT) } else { (DHCPV6_SERVER, DHCPV6_CLIENT) };
    let (from, to) = (packet.key.ports.source(), packet.key.ports.destination());
    if packet.key.protocol() != Protocol::UDP {
        return None;
    }
    match packet.key.place.side() {
        // clients listen to whoever writes to their port
        Side::From if from == server || to == client => Some(Err(Drop::DhcpServer)),
        Side::From if from == client && to == server => asks_dhcp(kernel, packet, hook),
        Side::To if from == server && to == client => Some(Ok(Action::Control)),
        _ => None,
    }
}

/// A question as a workload may ask it: from nowhere or its own address, to everybody on the link.
#[inline(always)]
pub(super) fn asks_dhcp<A: Address, K: Kernel<A>>(
    kernel: &K,
    packet: &Packet<A>,
    hook: &HookValue,
) -> Option<Result<Action, Drop>> {
    let own = packet.key.place.ifindex();
    let from_itself = packet.key.source.is_unspecified()
        || find(kernel, hook.network, packet.key.source).is_some_and(|value| value.ifindex == own);
    if !from_itself || packet.source_mac != hook.mac {
        return Some(Err(Drop::Spoofed));
    }
    let to_all = packet.destination_mac.is_group() && packet.key.destination.is_group();
    if to_all { Some(Ok(Action::Control)) } else { None }
}
