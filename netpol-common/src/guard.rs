//! ARP and neighbour discovery: what a link needs is not judged by policy, but nobody may claim an
//! address that is another's.

use crate::{
    decide::{Action, find},
    drops::{Drop, Side},
    flow::Place,
    headers::Arp,
    kernel::{Kernel, Settings},
    parse::IcmpKind,
    tables::{AddressFlags, HookValue, IfIndex},
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

/// A message of IPv6's link control.
#[derive(Clone, Copy)]
pub struct LinkMessage {
    pub class: IcmpKind,
    pub source: Addr6,
    pub destination: Addr6,
    /// The address that it advertises; unspecified: none.
    pub advertised: Addr6,
    pub hop_limit: u8,
}

/// Neighbour and router discovery, and multicast listener messages. They pass without policy because a
/// link needs them, so they must be of this link: nothing that a router has forwarded, and nothing that
/// a router would take elsewhere.
///
/// # Errors
///
/// [`Drop::NeighbourDiscovery`] for a claim on another's address or a message from or to elsewhere,
/// [`Drop::RouterAdvertisement`] for a workload that plays the router.
#[inline(always)]
pub fn link<K: Kernel<Addr6>>(kernel: &K, passage: Passage, message: LinkMessage) -> Result<Action, Drop> {
    let Some(hook) = kernel.hook(passage.place.ifindex()) else { return waiting(passage.settings) };
    let LinkMessage { class, source, destination, advertised, hop_limit } = message;
    let is_from = matches!(passage.place.side(), Side::From);
    if is_from && matches!(class, IcmpKind::RouterAdvertisement | IcmpKind::Redirect) {
        return Err(Drop::RouterAdvertisement);
    }
    if hop_limit != class.hop_limit() {
        return Err(Drop::NeighbourDiscovery);
    }
    if is_from {
        // what is on the link and not ours cannot be told from what is elsewhere
        let stays = destination.is_link_scope()
            || !hook.flags.has(AddressFlags::ISOLATED_EGRESS)
            || find(kernel, hook.network, destination).is_some();
        if !stays || passage.source_mac != hook.mac {
            return Err(Drop::NeighbourDiscovery);
        }
    }
    // duplicate address detection asks from nowhere (RFC 4862)
    let speaks_as = source.is_unspecified() || may_claim(kernel, passage, hook, source);
    let claims = advertised.is_unspecified() || may_claim(kernel, passage, hook, advertised);
    if speaks_as && claims { Ok(Action::Control) } else { Err(Drop::NeighbourDiscovery) }
}

impl IcmpKind {
    /// With what hop limit messages of link control are sent, and are valid: 255 for discovery, which
    /// no router leaves as it is (RFC 4861 sections 6.1 and 7.1), 1 for listeners (RFC 3810 section 5).
    #[inline(always)]
    const fn hop_limit(self) -> u8 {
        if matches!(self, Self::Listener) { 1 } else { 255 }
    }
}

/// An IPv4 redirect: only the host may tell a workload where to send.
///
/// # Errors
///
/// [`Drop::RouterAdvertisement`] for one from anybody else.
#[inline(always)]
pub fn redirect(passage: Passage) -> Result<Action, Drop> {
    match passage.place.side() {
        Side::To if passage.ingress == IfIndex::NONE => Ok(Action::Control),
        _ => Err(Drop::RouterAdvertisement),
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
