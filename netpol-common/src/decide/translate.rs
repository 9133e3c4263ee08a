//! Services: a packet to a published address goes to one of the backends, and what the backend answers seems to come
//! from that address.
//!
//! ```text
//! resolve   what does the packet become?          (no state is made yet)
//!           ends, opening, judge: about the real ends
//! claim     for a new connection: the pair of translations, with a port of its own
//! ```
//!
//! Between two endpoints both directions are translated where they leave their sender, if they are delivered directly.
//! Through the stack only the client's own hook translates, both ways: so the host's conntrack sees the client and the
//! backend, in both directions.

use super::{
    Desk, Known, Packet,
    opening::{opens, timeout},
};
use crate::{
    drops::{Drop, Side},
    flow::{Place, PortPair, Rewrite},
    kernel::{Kernel, Settings},
    nat::{self, Claim, NatKey, NatState, Translation, Zone},
    parse::tcp,
    service::{self, AffinityKey, MemberKey, ServiceKey},
    wire::{Address, PortBe, Protocol},
};

/// Whether, and as what, a packet is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Translated {
    No,
    /// In the direction in which the connection was opened; there is a pair.
    Original,
    Reply,
    /// There is none yet: [`Desk::wire`] says what it would be like.
    New,
}

impl Translated {
    /// The reverse of `as u32`.
    #[inline(always)]
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::No,
            1 => Self::Original,
            2 => Self::Reply,
            3 => Self::New,
            _ => return None,
        })
    }
}

/// Finds out what the packet becomes: [`Desk::wire`].
///
/// # Errors
///
/// [`Drop::NoBackend`]: nobody is behind the published address. [`Drop::Translation`].
#[inline(always)]
pub fn resolve<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, zone: Zone) -> Result<Translated, Drop> {
    match recalled(kernel, desk, zone)? {
        Translated::No if !desk.packet.destination_mac.is_group() => match desk.packet.key.place.side() {
            Side::From => published(kernel, desk),
            Side::To => Ok(Translated::No),
        },
        translated => Ok(translated),
    }
}

/// The same, of what there is a pair for.
///
/// # Errors
///
/// [`Drop::NoBackend`]: TCP to a backend that is none any more. [`Drop::Translation`]: a backend opens what would pass for
/// its answers.
#[inline(always)]
pub(super) fn recalled<A: Address, K: Kernel<A>>(
    kernel: &K,
    desk: &mut Desk<A>,
    zone: Zone,
) -> Result<Translated, Drop> {
    desk.wire = Rewrite::of(&desk.packet.key);
    desk.service = 0;
    if desk.packet.destination_mac.is_group() {
        return Ok(Translated::No);
    }
    desk.original = NatKey::of(&desk.packet.key, zone);
    if zone == Zone::UPLINKS && desk.known.has(Known::UNPAIRED) {
        return Ok(Translated::No);
    }
    if kernel.translation(&desk.original, &mut desk.half) {
        let is_tcp = desk.packet.key.protocol() == Protocol::TCP;
        let is_current = is_current(kernel, desk);
        // a backend listens: what it opens itself, from its service's port to the client's, would seem the service's
        let opens_back = desk.half.is_reply() && desk.half.service != 0 && is_tcp && opens(desk.packet.tcp_flags);
        if opens_back && is_current && desk.half.state.is_established() {
            return Err(Drop::Translation);
        }
        if !opens_back && (desk.half.is_reply() || is_current) {
            // the last answers of a backend that is none any more make nothing of its connection valid again
            desk.is_elsewhere |= !is_current;
            return Ok(known(kernel, desk));
        }
        // who opens here has no such connection, or no longer
        forget(kernel, desk);
        if is_tcp && desk.packet.tcp_flags & tcp::SYN == 0 {
            return Err(Drop::NoBackend);
        }
    }
    Ok(Translated::No)
}

/// The packet is of a connection that is translated already.
#[inline(always)]
fn known<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Translated {
    desk.wire = desk.half.rewrite;
    desk.service = desk.half.service;
    tell(kernel, desk);
    if desk.half.is_reply() { Translated::Reply } else { Translated::Original }
}

/// Tells both halves of the packet's pair what it says about their connection. `false`: it has none any more that makes
/// [`Desk::wire`] of it.
#[inline(always)]
pub(super) fn tell<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> bool {
    let Packet { now, tcp_flags, .. } = desk.packet;
    let state = kernel.tell(&desk.original, &desk.wire, now, tcp_flags);
    if state == NatState::NOTHING {
        return false;
    }
    desk.reply = NatKey::reply(&desk.wire, desk.original.protocol, desk.original.zone);
    kernel.renew(&desk.reply, now, state);
    true
}

/// Whether the backend of a pair still is one.
#[inline(always)]
fn is_current<A: Address, K: Kernel<A>>(kernel: &K, desk: &Desk<A>) -> bool {
    let (key, to) = (&desk.packet.key, &desk.half.rewrite);
    let protocol = key.protocol();
    let (address, port, backend, backend_port) = if desk.half.is_reply() {
        (to.source, to.ports.source(), key.source, key.ports.source())
    } else {
        (key.destination, key.ports.destination(), to.destination, to.ports.destination())
    };
    if address == backend && port == backend_port {
        return true;
    }
    kernel.has_member(&MemberKey { address, backend, port, backend_port, protocol, zero: 0, zeros: 0 })
}

/// Takes both halves back.
#[inline(always)]
fn forget<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) {
    desk.reply = NatKey::reply(&desk.half.rewrite, desk.original.protocol, desk.original.zone);
    kernel.release(&desk.reply);
    kernel.release(&desk.original);
}

/// A packet to a published address, from a client that has no pair yet.
#[inline(always)]
fn published<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Translated, Drop> {
    let key = &desk.packet.key;
    let protocol = key.protocol();
    // nobody's packets on a wire go to a loopback address; those of a neighbour must not reach what is published there
    if !protocol.has_ports() || key.destination.is_loopback() {
        return Ok(Translated::No);
    }
    let (address, port) = (key.destination, key.ports.destination());
    let Some(value) = kernel.service(&ServiceKey { address, port, protocol, zero: 0 }) else {
        return Ok(Translated::No);
    };
    let (service, affinity) = (value.service, value.affinity);
    // in the middle of a connection that has no pair: whoever is chosen now knows nothing of it
    if protocol == Protocol::TCP && !opens(desk.packet.tcp_flags) {
        return Err(Drop::NoBackend);
    }
    let client_port = if affinity == 0 { key.ports.source() } else { PortBe::ZERO };
    let hash = service::hash(&key.source, client_port, address.fold() ^ u32::from(port.0));
    let Some(entry) = service::pick(hash, value) else { return Err(Drop::NoBackend) };
    let client = AffinityKey { client: key.source, address, port, protocol, zero: 0 };
    let chosen = service::choose(kernel, &client, (entry, affinity), desk.packet.now);
    let Some(backend) = chosen else { return Err(Drop::NoBackend) };
    let key = &desk.packet.key;
    // to itself: an answer to its own address would never come out again
    let source = if backend.address == key.source { key.destination } else { key.source };
    desk.wire =
        Rewrite { source, destination: backend.address, ports: PortPair::new(key.ports.source(), backend.port) };
    desk.service = service;
    Ok(Translated::New)
}

/// Makes the pair of a new connection: [`Desk::wire`] may get another port for the client.
///
/// # Errors
///
/// [`Drop::Translation`]: there is no room, or no port was free.
#[inline(always)]
pub fn claim<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<(), Drop> {
    let mut tries = 0;
    while tries < nat::ATTEMPTS {
        match attempt(kernel, desk) {
            Claim::Made => return Ok(()),
            Claim::Full => return Err(Drop::Translation),
            Claim::Taken => {}
        }
        tries += 1;
    }
    Err(Drop::Translation)
}

/// Tries once to make the pair. [`Claim::Taken`]: the next attempt is with another port of the client's.
#[inline(always)]
pub fn attempt<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Claim {
    desk.reply = NatKey::reply(&desk.wire, desk.original.protocol, desk.original.zone);
    desk.other = desk.packet.key.rewritten(&desk.wire).reversed(desk.other.place);
    let is_used = if desk.original.zone == Zone::UPLINKS {
        is_hosts(kernel, desk) || is_plain_inside(kernel, desk) || is_services(kernel, desk)
    } else {
        is_plain(kernel, desk)
    };
    let claim = if is_used { Claim::Taken } else { take(kernel, desk) };
    if claim != Claim::Taken {
        return claim;
    }
    let protocol = desk.packet.key.protocol();
    // SCTP's checksum is of the whole packet
    if !protocol.has_ports() && !protocol.is_icmp() || protocol == Protocol::SCTP {
        return Claim::Full;
    }
    desk.wire.ports = nat::with_client_port(desk.wire.ports, nat::another_port(kernel.random()));
    Claim::Taken
}

/// Whether another connection gets the answers. [`take`] has the last word on that: asked as well right before the flow of the
/// answers, which is in no cache either, the CPU waits for both at once.
#[inline(always)]
fn is_claimed<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> bool {
    kernel.translation(&desk.reply, &mut desk.half) && !is_own_reply(desk)
}

/// Whether the host itself would get the answers: by a socket, or what it publishes there.
#[inline(always)]
fn is_hosts<A: Address, K: Kernel<A>>(kernel: &K, desk: &Desk<A>) -> bool {
    if desk.keeps_source() {
        return false;
    }
    let NatKey { destination: address, ports, protocol, .. } = desk.reply;
    let published = ServiceKey { address, port: ports.destination(), protocol: protocol.protocol(), zero: 0 };
    kernel.service(&published).is_some() || kernel.is_bound(&desk.reply)
}

/// Whether the answers would be those of a connection that is not translated, or at an uplink alone: what leaves it
/// directly, and what is published there.
#[inline(always)]
fn is_plain<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> bool {
    if is_claimed(kernel, desk) {
        return true;
    }
    desk.sent = kernel.recall(&desk.other);
    was_plain(desk) || !desk.destination.is_local() && is_uplinks(kernel, desk)
}

/// Whether what the packet becomes has a pair of translations where uplinks look for one, which is not this connection's own
/// from before: then its answers are still expected here.
#[inline(always)]
fn is_uplinks<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> bool {
    let outside = NatKey::of(&desk.packet.key.rewritten(&desk.wire), Zone::UPLINKS);
    if !kernel.translation(&outside, &mut desk.half) {
        return false;
    }
    kernel.translation(&desk.reply, &mut desk.half);
    !is_own_reply(desk)
}

/// The half at hand is that of the answers to what the packet is.
#[inline(always)]
fn is_own_reply<A: Address>(desk: &Desk<A>) -> bool {
    desk.half.is_reply() && desk.half.rewrite == desk.original.rewrite().reversed()
}

/// Whether any service has this backend outside. (The settings spare most new connections the lookup, which is a two-hundredth
/// of what one costs: nearly nobody's port is like that of a backend.)
#[inline(always)]
pub(super) fn is_backend<A: Address, K: Kernel<A>>(kernel: &K, desk: &Desk<A>, (address, port): (A, PortBe)) -> bool {
    !desk.packet.settings.has(Settings::nobody_outside(port)) && kernel.has_member(&MemberKey::of_any(address, port))
}

/// Of whatever generation: the next packet of that connection makes it valid again.
#[inline(always)]
fn was_plain<A: Address>(desk: &Desk<A>) -> bool {
    desk.sent.exists() && !desk.sent.word.flags().has_pair()
}

/// The same of what comes from outside for an endpoint: what is not translated is not known at the uplink, but at the
/// endpoint's own hook. What is translated is known at both, and passes the uplink last: so is what its pair has left
/// behind, which must not keep the port from its own client for as long as there is room.
#[inline(always)]
fn is_plain_inside<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> bool {
    let place = desk.other.place;
    if !comes_inside(desk) {
        return false;
    }
    if is_claimed(kernel, desk) {
        return true;
    }
    desk.sent = kernel.recall(&desk.other);
    let (outside, last) = (desk.sent.word.flags(), desk.sent.seen);
    let inside = Place::new(desk.destination.ifindex, Side::From);
    // what is delivered directly is known there alone
    if inside != place {
        desk.other.place = inside;
        desk.sent = kernel.recall(&desk.other);
        desk.other.place = place;
    }
    let Desk { packet, sent, .. } = &*desk;
    let was_translated = outside.has_pair() && last.latest(sent.seen) == last;
    was_plain(desk) && !was_translated && packet.now.since(sent.seen) <= timeout(packet.key.protocol())
}

/// Whether the endpoint's own hook would take what comes from outside for the answer of a service's backend.
#[inline(always)]
fn is_services<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> bool {
    let inside = NatKey::of(&desk.packet.key.rewritten(&desk.wire), Zone::of(desk.hook.network));
    comes_inside(desk)
        && is_backend(kernel, desk, (inside.source, inside.ports.source()))
        && kernel.translation(&inside, &mut desk.half)
}

/// An endpoint here gets what comes from outside, with other addresses or ports than it came with.
#[inline(always)]
fn comes_inside<A: Address>(desk: &Desk<A>) -> bool {
    matches!(desk.packet.key.place.side(), Side::From) && desk.destination.is_local() && desk.is_rewritten()
}

/// Tries to get both halves.
#[inline(always)]
fn take<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Claim {
    let Desk { service, .. } = *desk;
    let seen = desk.packet.now;
    let tag = desk.reply.tag();
    desk.half = Translation {
        rewrite: desk.original.rewrite().reversed(),
        service,
        seen,
        state: NatState::EXISTS.with(NatState::REPLY),
        tag,
    };
    match kernel.claim(&desk.reply, &desk.half) {
        Claim::Made => {}
        Claim::Full => return Claim::Full,
        Claim::Taken => {
            // ours, whose other half is gone?
            kernel.translation(&desk.reply, &mut desk.half);
            if !is_own_reply(desk) {
                return Claim::Taken;
            }
            kernel.renew(&desk.reply, seen, NatState::EXISTS);
        }
    }
    let tag = desk.original.tag();
    desk.half = Translation { rewrite: desk.wire, service, seen, state: NatState::EXISTS, tag };
    match kernel.claim(&desk.original, &desk.half) {
        Claim::Made => return Claim::Made,
        Claim::Full => {
            kernel.release(&desk.reply);
            return Claim::Full;
        }
        Claim::Taken => {}
    }
    kernel.translation(&desk.original, &mut desk.half);
    // a packet of the same connection was faster on another CPU; or another connection's answers have this key by now
    let is_same = desk.half.is_original();
    if is_same && desk.half.rewrite == desk.wire {
        // and found our half of the replies
        return Claim::Made;
    }
    kernel.release(&desk.reply);
    if !is_same {
        return Claim::Taken;
    }
    desk.wire = desk.half.rewrite;
    desk.other = desk.packet.key.rewritten(&desk.wire).reversed(desk.other.place);
    Claim::Made
}

/// Whether somebody's translation has the key of the answers to a packet that is not translated itself.
#[inline(always)]
pub(super) fn clashes<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> bool {
    answers_are_translated(kernel, desk) && desk.half.is_reply()
}

/// Whether the answers to a packet that is not translated are.
#[inline(always)]
pub(super) fn answers_are_translated<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> bool {
    let zone = Zone::of(desk.hook.network);
    desk.reply = NatKey::reply(&Rewrite::of(&desk.packet.key), desk.packet.key.protocol, zone);
    kernel.translation(&desk.reply, &mut desk.half)
}

impl<A: Address> Desk<A> {
    /// The packet leaves with other addresses or ports than it came with.
    #[inline(always)]
    pub(super) fn is_rewritten(&self) -> bool {
        self.wire != Rewrite::of(&self.packet.key)
    }

    /// Its sender stays as it is.
    #[inline(always)]
    pub(super) fn keeps_source(&self) -> bool {
        self.wire.source == self.packet.key.source && self.wire.ports.source() == self.packet.key.ports.source()
    }

    /// Its receiver stays as it is.
    #[inline(always)]
    pub(super) fn keeps_destination(&self) -> bool {
        self.wire.destination == self.packet.key.destination
            && self.wire.ports.destination() == self.packet.key.ports.destination()
    }
}
