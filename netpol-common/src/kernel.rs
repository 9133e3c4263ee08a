//! What the deciding logic asks of the world: tables to read, flows to remember.
//!
//! The classifiers bind it to BPF maps, the tests to hash maps.

use crate::{
    drops::Drop,
    flow::{FlowKey, FlowValue, Generation, KeyProtocol, Place, PortPair, Rewrite, Ticks, Word},
    nat::{Claim, NatKey, NatState, Translation},
    parse::FragmentId,
    policy::PolicyTables,
    service::{Affinity, AffinityKey, Backend, MemberKey, ServiceKey, ServiceValue},
    tables::{AddressKey, AddressValue, HookValue, Identity, IfIndex},
    wire::{Addr4, Address, MacWords, PortBe, Protocol},
};

/// A way that the host's routing knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way<A: Address> {
    /// Out of which interface; [`IfIndex::NONE`]: there is no way.
    pub interface: IfIndex,
    /// To whom there: a router, or the destination itself. Unspecified: an address of the other family (RFC 8950).
    pub hop: A,
    /// And that one's MAC address; [`MacWords::ZERO`]: the host would have to ask.
    pub next: MacWords,
}

impl<A: Address> Way<A> {
    pub const NONE: Self = Self { interface: IfIndex::NONE, hop: A::UNSPECIFIED, next: MacWords::ZERO };
}

/// What one generation publishes, in one address family.
pub trait Services<A: Address> {
    /// What is published at an address and port.
    fn service(&self, key: &ServiceKey<A>) -> Option<&ServiceValue>;

    /// The backend behind an entry of the Maglev tables.
    fn backend(&self, entry: u32) -> Option<&Backend<A>>;

    /// Whether a backend still is one of those of a published address.
    fn has_member(&self, key: &MemberKey<A>) -> bool;

    /// The backend that a client has stayed with.
    fn affinity(&self, key: &AffinityKey<A>) -> Option<&Affinity<A>>;

    fn stay(&self, key: &AffinityKey<A>, with: &Affinity<A>);
}

/// The tables and flows of one address family, as one generation sees them.
pub trait Kernel<A: Address>: PolicyTables + Services<A> {
    /// `None`: no publication has named the interface yet.
    fn hook(&self, interface: IfIndex) -> Option<&HookValue>;

    /// Exact addresses.
    fn address(&self, key: &AddressKey<A>) -> Option<&AddressValue>;

    /// The class of an outside address that rules mention.
    fn network(&self, address: &A) -> Option<&Identity>;

    /// What is remembered of a flow, whatever its generation; [`Remembered::NOTHING`] where nothing is.
    fn recall(&self, key: &FlowKey<A>) -> Remembered<A>;

    /// Creates or replaces an entry, whole.
    ///
    /// # Errors
    ///
    /// [`Drop::FlowTable`]: there is no table.
    fn remember(&self, key: &FlowKey<A>, value: &FlowValue<A>) -> Result<(), Drop>;

    /// Keeps a denial, for as long as there is [room](crate::denial). Its counters go on from what was remembered of the key.
    fn remember_denial(&self, key: &FlowKey<A>, value: &mut FlowValue<A>);

    /// The entry of this generation was looked at, now. `false`: there is none any more.
    fn refresh(&self, key: &FlowKey<A>, generation: Generation, now: Ticks) -> bool;

    /// Takes one new flow from what the interface may open; `false`: it opens too many.
    fn admit(&self, interface: IfIndex, now: Ticks) -> bool;

    /// The ports of a fragmented packet.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<&FragmentPorts>;

    fn remember_fragment(&self, key: &FragmentKey<A>, ports: &FragmentPorts);

    /// Whether an address is in a pool: what stays among pools is not masqueraded.
    fn is_pooled(&self, address: &A) -> bool;

    /// The address of an uplink; unspecified: it has none, or is no uplink.
    fn uplink(&self, interface: IfIndex) -> A;

    /// The way that the host would route packets of a key, which come from `from`.
    fn route(&self, key: &FlowKey<A>, from: IfIndex) -> Way<A>;

    /// Reads what is translated into `half`, and says whether anything is. Where nothing is, its state alone says so
    /// ([`NatState::NOTHING`]): to clear the rest would cost as much as the look.
    fn translation(&self, key: &NatKey<A>, half: &mut Translation<A>) -> bool;

    /// Writes half a translation down, if nobody has that key.
    fn claim(&self, key: &NatKey<A>, half: &Translation<A>) -> Claim;

    /// A packet with these flags uses half a translation now, if it says `to`. In which state the connection is then;
    /// [`NatState::NOTHING`]: there is no such half.
    fn tell(&self, key: &NatKey<A>, to: &Rewrite<A>, now: Ticks, tcp_flags: u8) -> NatState;

    /// Half a translation is in use, and its connection is in this state.
    fn renew(&self, key: &NatKey<A>, now: Ticks, state: NatState);

    /// Takes half a translation back.
    fn release(&self, key: &NatKey<A>);

    /// Whether a socket of the host would get the answers to these packets.
    fn is_bound(&self, sent: &NatKey<A>) -> bool;

    /// Any number.
    fn random(&self) -> u32;
}

/// What the classifiers count of their own memory, for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Turnover {
    /// Flow entries that were made. Nobody takes one away: those that are not there any more have made room for others.
    FlowsMade,
    /// Denials that another one has taken the place of, although they held.
    DenialsForgotten,
}

impl Turnover {
    /// Counters.
    pub const ROOM: usize = 4;

    /// The number of the counter.
    #[inline(always)]
    pub const fn place<A: Address>(self) -> u32 {
        (self as u32) << 1 | (A::BITS != Addr4::BITS) as u32
    }
}

/// What the slow path reads of an entry. (No `Option`: the compiler would copy the undefined fields of
/// `None` about, which the verifier refuses.)
#[derive(Clone, Copy, Debug)]
pub struct Remembered<A: Address> {
    pub word: Word,
    pub packets: u64,
    pub bytes: u64,
    pub seen: Ticks,
    pub judged: Ticks,
    pub ifindex: IfIndex,
    pub source_mac: MacWords,
    pub tcp_flags: u8,
    pub rewrite: Rewrite<A>,
}

impl<A: Address> Remembered<A> {
    pub const NOTHING: Self = Self {
        word: Word(0),
        packets: 0,
        bytes: 0,
        seen: Ticks(0),
        judged: Ticks(0),
        ifindex: IfIndex::NONE,
        source_mac: MacWords::ZERO,
        tcp_flags: 0,
        rewrite: Rewrite::NONE,
    };

    /// There is an entry.
    #[inline(always)]
    pub const fn exists(&self) -> bool {
        self.word.is_used()
    }

    /// Makes it [`Remembered::NOTHING`], by one store: what the other fields hold is not looked at.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.word = Word(0);
    }

    /// Packets, bytes and TCP flags so far.
    #[inline(always)]
    pub const fn totals(&self) -> (u64, u64, u8) {
        if self.exists() { (self.packets, self.bytes, self.tcp_flags) } else { (0, 0, 0) }
    }
}

pod! {
    /// Which fragments belong together (RFC 791 section 3.2, RFC 8200 section 4.5), at one place.
    pub struct FragmentKey<A: Address> {
        pub source: A,
        pub destination: A,
        pub id: FragmentId,
        pub place: Place,
        pub protocol: Protocol,
        pub zero: u8,
        pub zeros: u16,
    }

    /// What the first fragment said.
    pub struct FragmentPorts {
        pub ports: PortPair,
        pub protocol: KeyProtocol,
        pub seen: Ticks,
    }

    /// The number that a publication writes, in one aligned store: all of a packet's processing goes
    /// by the value that it read first.
    pub struct Live {
        pub settings: Settings,
        pub generation: Generation,
    }

    /// New flows that an interface may still open.
    pub struct Bucket {
        pub tokens: u32,
        pub filled: Ticks,
    }
}

const _: () = {
    let () = FragmentKey::<crate::wire::Addr4>::NO_PADDING;
    let () = FragmentKey::<crate::wire::Addr6>::NO_PADDING;
    let () = Live::NO_PADDING;
    assert!(size_of::<Live>() == 8);
};

/// Choices that hold for the whole instance, in one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Settings(pub u32);

bits!(Settings);

impl Settings {
    /// Leave delivery to the host's stack, always (`--forwarding stack`).
    pub const STACK: Self = Self(1);
    /// Ingress policy holds for the host's own traffic, too (`--police-host`).
    pub const POLICE_HOST: Self = Self(1 << 1);
    /// Interfaces that no publication has named drop everything, instead of passing it.
    pub const ISOLATE_WAITING: Self = Self(1 << 2);
    /// No limit on new flows.
    pub const UNLIMITED: Self = Self(1 << 3);
    /// There are services or pools.
    pub const TRANSLATE: Self = Self(1 << 4);
    /// No service has a backend that is not on this host: all bits of [`Settings::nobody_outside`].
    pub const NOBODY_OUTSIDE: Self = Self(0xffff << 16);

    /// No service has a backend that is not on this host, at this port or one of those that share a bit with it. Without the
    /// bit there may be some.
    #[inline(always)]
    pub const fn nobody_outside(port: PortBe) -> Self {
        Self(1 << (16 + port.to_host() as u32 % 16))
    }
}

/// New flows an interface may open: this many at once, and this many a second.
///
/// It slows down a container that would push the others' connections out of the flow table, and no
/// more: at the limit for five seconds (the longest that an entry in use goes without a look), both
/// directions counted, it fills the table about twice.
pub const NEW_FLOWS: u32 = 50_000;

impl Bucket {
    /// As the map has it before anybody took something: full.
    pub const UNTOUCHED: Self = Self { tokens: 0, filled: Ticks(0) };

    /// Takes one, after adding what the time since the last fill is worth.
    #[inline(always)]
    pub fn take(self, now: Ticks) -> Option<Self> {
        // never 0, which is the mark of the untouched; a tick more is no matter
        let filled = Ticks(now.0 | 1);
        if self.filled.0 == Self::UNTOUCHED.filled.0 {
            return Some(Self { tokens: NEW_FLOWS - 1, filled });
        }
        let elapsed = now.since(self.filled);
        // a tick is 2^20 ns: NEW_FLOWS * 1.048576 / 1000 new flows, 52.4
        let earned = if elapsed > 1024 { NEW_FLOWS } else { elapsed * (NEW_FLOWS / 954) };
        let tokens = if self.tokens + earned > NEW_FLOWS { NEW_FLOWS } else { self.tokens + earned };
        let filled = if earned > 0 { filled } else { self.filled };
        if tokens == 0 { None } else { Some(Self { tokens: tokens - 1, filled }) }
    }
}
