//! ARP and neighbour discovery: what a link needs is not judged by policy, but nobody may claim an
//! address that is another's.

use crate::{
    decide::{Action, find},
    drops::{Drop, Side},
    flow::Place,
    headers::Arp,
    kernel::{Kernel, Settings},
    parse::IcmpKind,
    tables::{HookValue, IfIndex},
    wire::{Addr4, Addr6, Address, MacWords},
};

/// Where a frame is, and where it came from.
#[derive(Clone, Copy)]
pub struct Passage {
    pub place: Place,
    pub source_mac: MacWords,
    pub ingress: IfIndex,
    pub settings: Settings,
}

/// An ARP message (RFC 826).
///
/// # Errors
///
/// [`Drop::Arp`]: the sender's addresses are not those of where it came from.
#[inline(always)]
pub fn arp<K: Kernel<Addr4>>(kernel: &K, passage: Passage, message: &Arp) -> Result<Action, Drop> {
    let Some(hook) = kernel.hook(passage.place.ifindex()) else { return waiting(passage.settings) };
    let (sender_mac, sender) = (message.sender_mac, message.sender);
    if matches!(passage.place.side(), Side::From) && !(sender_mac == passage.source_mac && sender_mac == hook.mac) {
        return Err(Drop::Arp);
    }
    // a probe (RFC 5227) claims nothing
    if sender.is_unspecified() || may_claim(kernel, passage, hook, sender) {
        Ok(Action::Control)
    } else {
        Err(Drop::Arp)
    }
}

/// Neighbour discovery, router discovery and multicast listener messages (RFC 4861, RFC 3810), by their
/// source and the address that they advertise (unspecified: none).
///
/// # Errors
///
/// [`Drop::NeighbourDiscovery`] for a claim on another's address, [`Drop::RouterAdvertisement`] for
/// a workload that plays the router.
#[inline(always)]
pub fn link<K: Kernel<Addr6>>(
    kernel: &K,
    passage: Passage,
    class: IcmpKind,
    (source, advertised): (Addr6, Addr6),
) -> Result<Action, Drop> {
    let Some(hook) = kernel.hook(passage.place.ifindex()) else { return waiting(passage.settings) };
    if matches!(passage.place.side(), Side::From) {
        if matches!(class, IcmpKind::RouterAdvertisement | IcmpKind::Redirect) {
            return Err(Drop::RouterAdvertisement);
        }
        if passage.source_mac != hook.mac {
            return Err(Drop::NeighbourDiscovery);
        }
    }
    // duplicate address detection asks from nowhere (RFC 4862)
    let speaks_as = source.is_unspecified() || may_claim(kernel, passage, hook, source);
    let claims = advertised.is_unspecified() || may_claim(kernel, passage, hook, advertised);
    if speaks_as && claims { Ok(Action::Control) } else { Err(Drop::NeighbourDiscovery) }
}

/// An IPv4 redirect: a workload may not tell others where to send.
///
/// # Errors
///
/// [`Drop::RouterAdvertisement`] for one from a workload.
#[inline(always)]
pub fn redirect(side: Side) -> Result<Action, Drop> {
    match side {
        Side::From => Err(Drop::RouterAdvertisement),
        Side::To => Ok(Action::Control),
    }
}

/// What happens at an interface that no publication has named.
///
/// # Errors
///
/// [`Drop::NoPolicy`] where such interfaces are isolated.
#[inline(always)]
pub fn waiting(settings: Settings) -> Result<Action, Drop> {
    if settings.has(Settings::ISOLATE_WAITING) { Err(Drop::NoPolicy) } else { Ok(Action::Waiting) }
}

/// Whether what comes from there may say that it has the address.
#[inline(always)]
fn may_claim<A: Address, K: Kernel<A>>(kernel: &K, passage: Passage, hook: &HookValue, address: A) -> bool {
    let known = find(kernel, hook.network, address);
    let own = passage.place.ifindex();
    match (passage.place.side(), known) {
        (Side::From, known) => known.is_some_and(|value| value.ifindex == own),
        // the host may answer for anybody: that is what proxy ARP is
        (Side::To, _) if passage.ingress == IfIndex::NONE => true,
        (Side::To, Some(value)) => value.ifindex != IfIndex::NONE && value.ifindex == passage.ingress,
        (Side::To, None) => true,
    }
}
