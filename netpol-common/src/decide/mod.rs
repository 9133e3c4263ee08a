//! The slow path: what happens to a packet that no valid flow entry speaks for.
//!
//! ```text
//! who are the two ends, and may they say so?      ends
//! what does a service make of it?                 translate
//! which of them opened the connection?            opening
//! what does the present policy say to that?       judge
//! and what would audited policies say?            audit
//! remember it, for both directions                remember
//! ```
//!
//! Beside the way: `dhcp`, which needs no policy; `related`, ICMP errors; `uplink`, where only addresses are translated;
//! [`renew`], for packets whose entry decides.
//!
//! State never widens policy: whatever is remembered repeats what the present policy says about the
//! connection's original direction.

mod audit;
mod dhcp;
mod ends;
mod judge;
mod opening;
mod related;
mod remember;
pub mod translate;
mod uplink;

use crate::{
    drops::{Drop, Side},
    flow::{FlowFlags, FlowKey, FlowValue, Generation, Place, REFRESH, Rewrite, Ticks},
    guard,
    kernel::{Kernel, Live, Remembered, Settings, Way},
    nat::{NatKey, Translation, Zone},
    parse::tcp,
    tables::{AddressFlags, HookValue, Identity, IfIndex},
    wire::{Address, MacWords},
};

pub use self::{
    audit::audit,
    ends::find,
    opening::opens,
    related::{decide_icmp_error, decide_uplink_error},
    uplink::{decide_uplink, identify_uplink, settle_uplink},
};

use self::{
    dhcp::dhcp,
    ends::{End, ends, other_place, receiver},
    judge::{Rules, View},
    opening::{Orientation, may_open, orientation, recall},
    remember::{Judged, delivery, remember},
    translate::{Translated, answers_are_translated, claim, clashes},
    uplink::{departs_like_a_services, translate_out},
};

/// A packet, as the slow path needs it.
#[derive(Clone, Copy)]
pub struct Packet<A: Address> {
    pub key: FlowKey<A>,
    pub source_mac: MacWords,
    pub destination_mac: MacWords,
    /// Where the kernel says that it came from; [`IfIndex::NONE`] for the host's own.
    pub ingress: IfIndex,
    pub tcp_flags: u8,
    /// Offset of the transport header in the frame; 0: a later fragment has none.
    pub transport: u32,
    /// Of the frame, GSO segments counted.
    pub packets: u32,
    pub bytes: u32,
    pub generation: Generation,
    pub settings: Settings,
    pub now: Ticks,
}

/// What to do with a packet that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// [`Desk::value`] is its flow's new entry, the packet counted: deliver it the way that it says.
    Remembered,
    /// An ICMP error, to be judged by the packet inside; when it was, it may pass.
    Related,
    /// Nothing is known about the interface yet.
    Waiting,
    /// What a link needs, guarded but not judged by policy.
    Control,
    /// A message of IPv6's link control, still to be guarded.
    Link,
    /// The entry that its flow has still holds: count it there, and deliver it the way that it says.
    Confirmed,
    /// It passes an uplink and is none of ours.
    Untouched,
    /// On with [`judge`].
    Judge,
    /// On with a pair of translations: see [`translate::claim`].
    Claim,
    /// On with [`settle`].
    Settle,
    /// An ICMP error that may pass, and quotes a packet that was translated: [`Desk::quoted`] is what it must quote,
    /// [`Desk::wire`] has its own addresses.
    Translated,
    /// On with [`resolve`].
    Resolve,
    /// On with [`audit`].
    Audit,
    /// On with [`depart`].
    Depart,
}

impl Action {
    /// The reverse of `as u32`.
    #[inline(always)]
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Remembered,
            1 => Self::Related,
            2 => Self::Waiting,
            3 => Self::Control,
            4 => Self::Link,
            5 => Self::Confirmed,
            6 => Self::Untouched,
            7 => Self::Judge,
            8 => Self::Claim,
            9 => Self::Settle,
            10 => Self::Translated,
            11 => Self::Resolve,
            12 => Self::Audit,
            13 => Self::Depart,
            _ => return None,
        })
    }
}

/// Where the slow path works on one packet. It is larger than the BPF stack allows, so the classifiers
/// keep one for each CPU.
#[derive(Clone, Copy)]
pub struct Desk<A: Address> {
    pub packet: Packet<A>,
    pub known: Known,
    source: End,
    destination: End,
    /// The key of the packets in the other direction; of an ICMP error, that of the packet inside, at any
    /// place.
    pub other: FlowKey<A>,
    /// What is known of the packet's direction, and of the other.
    own: Remembered<A>,
    partner: Remembered<A>,
    /// Where neither is known: what a local sender's own hook has just found out about the packet.
    sent: Remembered<A>,
    /// What the packet leaves with: what it came with, where nothing is translated.
    pub wire: Rewrite<A>,
    /// Of an ICMP error: the packet inside as its sender knows it, and where its transport header is in the frame.
    pub quoted: Rewrite<A>,
    pub quoted_transport: u32,
    /// The service that it is of; 0: none.
    service: u32,
    /// The uplink by which packets leave directly, or have come; [`IfIndex::NONE`]: the stack brings them there.
    uplink: IfIndex,
    /// Of those that leave, the next hop there.
    hop: A,
    /// Who gets the packet that leaves now, on the hot path as well: a program's stack has no room for it.
    pub next: NextHop<A>,
    /// Of one that is translated, for the same reason: how its frame begins.
    pub head: Head,
    /// Answers are translated at another hook, or on another way of this one: that remembers them.
    is_elsewhere: bool,
    /// What the first stage found: [`HookValue`] of the packet's interface, and a [`Translated`].
    hook: HookValue,
    translated: u32,
    /// What the second found: the rules that allow it, and who opened ([`FlowFlags::REPLY`], [`FlowFlags::UNCLEAR`]).
    rules: Rules,
    flags: FlowFlags,
    /// The translation's keys, and the half that is at hand.
    original: NatKey<A>,
    reply: NatKey<A>,
    half: Translation<A>,
    /// The entry that is being written; in the end, that of the packet's direction.
    pub value: FlowValue<A>,
}

/// As the kernel is told who gets what leaves: `struct bpf_redir_neigh` (include/uapi/linux/bpf.h), or more.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct NextHop<A: Address> {
    /// AF_INET or AF_INET6.
    pub family: u32,
    pub address: A,
    pub rest: [u32; 3],
}

/// The beginning of a frame with Ethernet and IP headers and the two ports behind them, as it is written again.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Head {
    /// What comes next is aligned to 4.
    pub padding: u16,
    pub destination_mac: MacWords,
    /// What follows, the sender's MAC address first: enough for IPv6.
    pub words: [u32; 13],
}

/// What there may be of the packet's own key: the slow path does not look again for what was just not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Known(pub u32);

bits!(Known);

impl Known {
    pub const NOTHING: Self = Self(0);
    /// A flow's entry, of whatever generation.
    pub const FLOW: Self = Self(1);
    /// That there was no pair of translations where uplinks would look for one ([`Desk::at_uplinks`]).
    pub const UNPAIRED: Self = Self(1 << 1);
}

impl<A: Address> Desk<A> {
    /// A desk with a packet on it.
    pub fn new(packet: Packet<A>) -> Self {
        let nobody = End::elsewhere(Identity::ANY, AddressFlags(0), packet.source_mac);
        Self {
            other: packet.key,
            packet,
            known: Known::FLOW,
            source: nobody,
            destination: nobody,
            own: Remembered::NOTHING,
            partner: Remembered::NOTHING,
            sent: Remembered::NOTHING,
            wire: Rewrite::of(&packet.key),
            quoted: Rewrite::NONE,
            quoted_transport: 0,
            service: 0,
            uplink: IfIndex::NONE,
            hop: A::UNSPECIFIED,
            next: NextHop { family: 0, address: A::UNSPECIFIED, rest: [0; 3] },
            head: Head { padding: 0, destination_mac: MacWords::ZERO, words: [0; 13] },
            is_elsewhere: false,
            hook: HookValue::NOBODY,
            translated: Translated::No as u32,
            rules: Rules::NONE,
            flags: FlowFlags::NONE,
            original: NatKey::of(&packet.key, Zone(0)),
            reply: NatKey::of(&packet.key, Zone(0)),
            half: Translation::NOTHING,
            value: FlowValue::EMPTY,
        }
    }

    /// Whether an uplink's packets come from or go to an endpoint directly: then both ends are judged, and remembered, at
    /// once.
    #[inline(always)]
    pub fn is_direct(&self) -> bool {
        self.uplink != IfIndex::NONE
    }

    /// The interface and the MAC address of who gets the packet; [`IfIndex::NONE`]: no endpoint here.
    #[inline(always)]
    pub fn receiver(&self) -> (IfIndex, MacWords) {
        (self.destination.ifindex, self.destination.mac)
    }

    /// An audited policy is about one of the ends.
    #[inline(always)]
    fn is_audited(&self) -> bool {
        const EITHER: u16 = AddressFlags::AUDIT_EGRESS.0 | AddressFlags::AUDIT_INGRESS.0;
        (self.source.flags.0 | self.destination.flags.0) & EITHER != 0
    }

    /// What follows when nobody has said no.
    #[inline(always)]
    fn after_judge(&self) -> Action {
        if self.translated == Translated::New as u32 { Action::Claim } else { Action::Settle }
    }

    /// The key of a packet's translation at the uplinks.
    #[inline(always)]
    pub fn at_uplinks(&mut self, key: &FlowKey<A>) -> &NatKey<A> {
        self.original = NatKey::of(key, Zone::UPLINKS);
        &self.original
    }

    /// Puts down what a packet tells the pair of its translation, which [`renew`] does: `flags` and `rewrite` are those of
    /// the entry that speaks for it.
    #[inline(always)]
    pub fn tells(
        &mut self,
        key: &FlowKey<A>,
        (flags, rewrite): (FlowFlags, Rewrite<A>),
        (live, now, tcp_flags): (Live, Ticks, u8),
    ) {
        self.packet.key.copy_from(key);
        self.packet.generation = live.generation;
        self.packet.settings = live.settings;
        self.packet.now = now;
        self.packet.tcp_flags = tcp_flags;
        self.flags = flags;
        self.wire = rewrite.of_entry(flags, key);
    }

    /// The packet begins a connection: nothing was known of it, or its ports are used again.
    #[inline(always)]
    pub fn is_new(&self) -> bool {
        let ended = self.own.totals().2 & (tcp::FIN | tcp::RST) != 0;
        !self.is_known() || opens(self.packet.tcp_flags) && ended
    }

    /// There was an entry of either direction, whatever its generation: the connection was allowed once.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.own.exists() || self.partner.exists()
    }

    /// The packet has the first FIN or RST of its direction.
    #[inline(always)]
    pub const fn is_closing(&self) -> bool {
        self.packet.tcp_flags & (tcp::FIN | tcp::RST) & !self.own.totals().2 != 0
    }

    /// A packet of a connection that was not there, whose answers somebody's translation could take for its own. (An
    /// entry of the other direction may be that translation's.)
    #[inline(always)]
    fn may_clash(&self) -> bool {
        self.packet.settings.has(Settings::TRANSLATE)
            && matches!(self.packet.key.place.side(), Side::From)
            && (!self.own.exists() || self.own.word.flags().has_pair())
    }
}

/// Decides about the packet on the desk: all stages in turn. (The classifiers call each as a function of its own: their
/// stack frames together would be too large.)
///
/// # Errors
///
/// The reason to drop it.
pub fn decide<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let mut action = identify(kernel, desk)?;
    if action == Action::Resolve {
        action = resolve(kernel, desk)?;
    }
    if action == Action::Depart {
        action = depart(kernel, desk)?;
    }
    let action = judged(kernel, desk, action)?;
    if action == Action::Settle { settle(kernel, desk) } else { Ok(action) }
}

/// From [`Action::Judge`] on, as far as [`Action::Settle`].
fn judged<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, mut action: Action) -> Result<Action, Drop> {
    if action == Action::Judge {
        action = judge(kernel, desk)?;
    }
    if action == Action::Audit {
        action = audit(kernel, desk)?;
    }
    if action == Action::Claim {
        claim(kernel, desk)?;
        action = Action::Settle;
    }
    Ok(action)
}

/// No stage: the entry of the packet decides, which only tells its pair something ([`Desk::tells`]). `false`: it has none any
/// more, so the stages follow.
#[inline(always)]
pub fn renew<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> bool {
    let key = &desk.packet.key;
    let zone = if desk.flags.has(FlowFlags::OUT) {
        Zone::UPLINKS
    } else {
        kernel.hook(key.place.ifindex()).map_or(Zone::UPLINKS, |hook| Zone::of(hook.network))
    };
    desk.original = NatKey::of(key, zone);
    translate::tell(kernel, desk)
}

/// The first stage: who has sent the packet, and whether it may. [`Action::Judge`], or [`Action::Resolve`] before that,
/// unless no policy is asked.
///
/// # Errors
///
/// The reason to drop the packet.
#[inline(always)]
pub fn identify<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let packet = &desk.packet;
    let Some(hook) = kernel.hook(packet.key.place.ifindex()) else { return guard::waiting(packet.settings) };
    if let Some(result) = dhcp(kernel, packet, hook) {
        return result;
    }
    desk.hook.copy_from(hook);
    desk.other = desk.packet.key.reversed(desk.packet.key.place);
    ends(kernel, desk, hook)?;
    desk.wire = Rewrite::of(&desk.packet.key);
    desk.service = 0;
    desk.uplink = IfIndex::NONE;
    desk.is_elsewhere = false;
    desk.translated = Translated::No as u32;
    if desk.packet.settings.has(Settings::TRANSLATE) {
        return Ok(Action::Resolve);
    }
    receiver(kernel, desk, hook);
    desk.other.place = other_place(desk);
    Ok(Action::Judge)
}

/// Where addresses are translated: what the packet becomes, and who gets it, behind a service too. [`Action::Judge`], or
/// [`Action::Depart`] before that.
///
/// # Errors
///
/// [`Drop::NoBackend`], [`Drop::Translation`].
#[inline(always)]
pub fn resolve<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let hook = desk.hook;
    desk.translated = translated(kernel, desk, Zone::of(hook.network))? as u32;
    receiver(kernel, desk, &hook);
    desk.other = desk.packet.key.rewritten(&desk.wire).reversed(other_place(desk));
    Ok(if may_depart(desk) { Action::Depart } else { Action::Judge })
}

/// Whether the host would route what a workload sends out of an uplink, and nobody on the way has a say.
#[inline(always)]
fn may_depart<A: Address>(desk: &Desk<A>) -> bool {
    let Desk { packet, destination, hook, .. } = desk;
    matches!(packet.key.place.side(), Side::From)
        && desk.translated == Translated::No as u32
        && !destination.is_local()
        && !destination.flags.has(AddressFlags::HOST)
        && hook.flags.has(AddressFlags::OUTWARD)
        && !packet.settings.has(Settings::STACK)
        && packet.destination_mac == hook.host_mac
}

/// The second: who opened the connection, and whether the policies of both ends allow it. [`Action::Settle`], or
/// [`Action::Claim`] before that; where audited policies are about one of the ends, [`Action::Audit`] before both.
///
/// # Errors
///
/// The reason to drop the packet.
#[inline(always)]
pub fn judge<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let translated = Translated::from_code(desk.translated).unwrap_or(Translated::No);
    recall(kernel, desk, translated);
    let orientation = orientation(desk, translated);
    match judge::judge(kernel, desk, orientation, View::ENFORCED) {
        Ok(rules) => desk.rules = rules,
        Err(denial) => {
            // what the tables should have known and did not is no verdict to repeat
            if !matches!(denial.reason, Drop::NoPolicy) {
                desk.value = denial.entry(desk, orientation);
                kernel.remember_denial(&desk.packet.key, &mut desk.value);
            }
            return Err(denial.reason);
        }
    }
    desk.flags = match orientation {
        Orientation::Forward => FlowFlags::NONE,
        Orientation::Reply => FlowFlags::REPLY,
        Orientation::Unclear => FlowFlags::UNCLEAR,
    };
    let is_new = !desk.own.exists() && !desk.partner.exists();
    if is_new && !may_open(kernel, &desk.packet) {
        return Err(Drop::Rate);
    }
    if (translated == Translated::No || departs_like_a_services(kernel, desk))
        && desk.may_clash()
        && clashes(kernel, desk)
    {
        return Err(Drop::Translation);
    }
    Ok(if desk.is_audited() { Action::Audit } else { desk.after_judge() })
}

/// The last: how packets are delivered, and what is remembered of both directions. [`Action::Remembered`] or
/// [`Action::Confirmed`].
///
/// # Errors
///
/// [`Drop::FlowTable`].
#[inline(always)]
pub fn settle<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let judged = Judged::new(desk, delivery(desk));
    remember(kernel, desk, judged)
}

/// What leaves by an uplink: what becomes of it there, and by which. [`Action::Judge`].
///
/// # Errors
///
/// [`Drop::NoBackend`], [`Drop::Translation`].
#[inline(always)]
pub fn depart<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let place = desk.packet.key.place;
    let router = desk.hook.router(place.ifindex());
    let Way { interface: uplink, hop, next } = kernel.route(&desk.packet.key, router);
    // answers are delivered directly, too: where the host would bring them here, whatever their size
    if kernel.uplink(uplink).is_unspecified() || kernel.route(&desk.other, uplink).interface != router {
        return Ok(Action::Judge);
    }
    let translated = translate_out(kernel, desk, uplink)?;
    desk.translated = translated as u32;
    if translated != Translated::No {
        (desk.uplink, desk.hop) = (uplink, hop);
        desk.other = desk.packet.key.rewritten(&desk.wire).reversed(Place::new(uplink, Side::From));
        // who is next there sends the answers, most likely
        desk.destination.mac = next;
    }
    Ok(Action::Judge)
}

/// What a workload's own hook translates: what it sends; of what reaches it, answers of a service.
#[inline(always)]
fn translated<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, zone: Zone) -> Result<Translated, Drop> {
    let translated = translate::resolve(kernel, desk, zone)?;
    let is_here = match desk.packet.key.place.side() {
        Side::From => true,
        // where both ends change, a backend here has its own hook do it
        Side::To => translated == Translated::Reply && (desk.keeps_destination() || !desk.source.is_local()),
    };
    if is_here {
        return Ok(translated);
    }
    desk.wire = Rewrite::of(&desk.packet.key);
    desk.service = 0;
    desk.is_elsewhere = answers_are_translated(kernel, desk);
    Ok(Translated::No)
}

/// Whether a packet that an entry speaks for says something that the pair of its translation must learn: that the connection
/// was answered (nothing passed yet), begins anew, or ends.
#[inline(always)]
pub fn tells<A: Address>(flags: FlowFlags, entry: &FlowValue<A>, tcp_flags: u8) -> bool {
    let told = tcp_flags & (tcp::SYN | !entry.tcp_flags & (tcp::FIN | tcp::RST)) != 0;
    flags.has(FlowFlags::TRANSLATED) && (entry.packets == 0 || told)
}

/// Whether the slow path must look at a packet that an entry with these flags speaks for. (They are given, as they were read
/// when the entry was found: the entry may be another by now.)
#[inline(always)]
pub fn is_due<A: Address>(flags: FlowFlags, entry: &FlowValue<A>, now: Ticks, tcp_flags: u8) -> bool {
    // a plain SYN from the replying side opens a new connection, and tells who opened where that was unclear
    let reopens = opens(tcp_flags) && (flags.has(FlowFlags::REPLY) || flags.has(FlowFlags::UNCLEAR));
    // the ports of a connection that has ended are used again
    let renews = tcp_flags & tcp::SYN != 0 && entry.tcp_flags & (tcp::FIN | tcp::RST) != 0;
    reopens || renews || now.since(entry.judged) > REFRESH
}

/// Whether a denial that was remembered in this generation still speaks for a packet of its key.
#[inline(always)]
pub fn is_denial_valid((flags, judged): (FlowFlags, Ticks), now: Ticks, tcp_flags: u8) -> bool {
    // it was about the middle of a connection, and this packet opens one; or what made it a reply may be
    // forgotten by now
    let opens_anew = opens(tcp_flags) && flags.has(FlowFlags::REPLY);
    !opens_anew && now.since(judged) <= REFRESH
}
