//! Flows: what the datapath remembers about a connection, one entry for each place that its
//! packets pass.
//!
//! An entry repeats a verdict that the present policy gave to the connection's original direction.
//! It is valid in the generation that it was judged in and no other.

use crate::{
    drops::Side,
    tables::{IfIndex, RuleId},
    wire::{Address, MacWords, PortBe, Protocol},
};

/// The number of a publication. Its lowest bit names the live slot of every policy table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Generation(pub u32);

impl Generation {
    /// Nothing was ever published.
    pub const NONE: Self = Self(0);

    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 & 1
    }
}

/// A hook: an interface and a side, `ifindex << 1 | side`.
///
/// The interface is part of every flow key, so addresses may repeat between bridges, and a packet
/// that arrives anywhere else than the first one did finds no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Place(pub u32);

impl Place {
    #[inline(always)]
    pub const fn new(ifindex: IfIndex, side: Side) -> Self {
        Self(ifindex.0 << 1 | side as u32)
    }

    pub const fn ifindex(self) -> IfIndex {
        IfIndex(self.0 >> 1)
    }

    pub const fn side(self) -> Side {
        if self.0 & 1 == 0 { Side::From } else { Side::To }
    }
}

/// Coarse monotonic time in units of 2^20 ns (1.05 ms), wrapping after 52 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Ticks(pub u32);

impl Ticks {
    #[inline(always)]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self((nanos >> 20) as u32)
    }

    /// Ticks from `earlier` to `self`; 0 where the clock of another CPU was ahead.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u32 {
        let elapsed = self.0.wrapping_sub(earlier.0);
        if elapsed > u32::MAX / 2 { 0 } else { elapsed }
    }

    /// The later of two.
    #[inline(always)]
    pub const fn latest(self, other: Self) -> Self {
        if self.0.wrapping_sub(other.0) > u32::MAX / 2 { other } else { self }
    }
}

/// Ticks in a number of seconds.
pub const fn seconds(seconds: u32) -> u32 {
    ((seconds as u64 * 1_000_000_000) >> 20) as u32
}

/// An entry older than this is looked at by the slow path, which keeps its other half alive.
pub const REFRESH: u32 = seconds(5);

/// Source and destination port, as they lie in a TCP or UDP header. One word: keys are hashed by
/// words, and a CPU stalls on a word that was just written in two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct PortPair(u32);

impl PortPair {
    pub const NONE: Self = Self(0);

    #[inline(always)]
    pub const fn new(source: PortBe, destination: PortBe) -> Self {
        Self(u32::from_le(source.0 as u32 | (destination.0 as u32) << 16))
    }

    #[inline(always)]
    pub const fn source(self) -> PortBe {
        PortBe(self.0.to_le() as u16)
    }

    #[inline(always)]
    pub const fn destination(self) -> PortBe {
        PortBe((self.0.to_le() >> 16) as u16)
    }

    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self(self.0.rotate_left(16))
    }

    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }
}

/// A [`Protocol`], as wide as the words that keys are made of. Of an ICMP query and its answer it says which
/// of the two the packet is: an identifier alone could be taken for a type and code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct KeyProtocol(u32);

impl KeyProtocol {
    const ASKS: u32 = 1 << 8;
    const ANSWERS: u32 = 1 << 9;

    /// Of an ICMP question: the identifier is its source port.
    #[inline(always)]
    pub const fn question(protocol: Protocol) -> Self {
        Self(protocol.0 as u32 | Self::ASKS)
    }

    /// Of an ICMP answer: the identifier is its destination port.
    #[inline(always)]
    pub const fn answer(protocol: Protocol) -> Self {
        Self(protocol.0 as u32 | Self::ANSWERS)
    }

    #[inline(always)]
    pub const fn asks(self) -> bool {
        self.0 & Self::ASKS != 0
    }

    #[inline(always)]
    pub const fn answers(self) -> bool {
        self.0 & Self::ANSWERS != 0
    }

    #[inline(always)]
    pub const fn protocol(self) -> Protocol {
        Protocol(self.0 as u8)
    }

    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// The reverse of [`KeyProtocol::word`].
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// That of the packets in the other direction.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        // without a branch, of which the verifier would follow both ways, each time
        let one = self.0 & (Self::ASKS | Self::ANSWERS);
        Self(self.0 ^ (one | one << 1 | one >> 1) & (Self::ASKS | Self::ANSWERS))
    }
}

impl From<Protocol> for KeyProtocol {
    #[inline(always)]
    fn from(protocol: Protocol) -> Self {
        Self(protocol.0 as u32)
    }
}

pod! {
    /// Which packets an entry is about: those in one direction, at one place.
    ///
    /// Ports of ICMP queries: the identifier on the asker's side, the request's type and code on the
    /// other, so that a reply's key is the reverse of its request's and a request in the other
    /// direction with the same identifier is another flow. Other ICMP: 0, and type and code.
    pub struct FlowKey<A: Address> {
        pub source: A,
        pub destination: A,
        pub ports: PortPair,
        pub place: Place,
        pub protocol: KeyProtocol,
    }

    /// A packet's addresses and ports, as it leaves a hook.
    pub struct Rewrite<A: Address> {
        pub source: A,
        pub destination: A,
        pub ports: PortPair,
    }

    /// What is remembered. The hot path reads and writes the first 48 bytes, of a translated flow the rewrite
    /// too; people read the rules.
    pub struct FlowValue<A: Address> {
        pub word: Word,
        /// GSO packets count as their segments.
        pub packets: u64,
        /// Of frames, Ethernet header included.
        pub bytes: u64,
        /// The last packet.
        pub seen: Ticks,
        /// The last look of the slow path.
        pub judged: Ticks,
        /// [`Side::From`]: the interface to deliver to, or to leave by. [`Side::To`]: where packets must come from.
        pub ifindex: IfIndex,
        /// [`Side::From`]: the only MAC address that may send this.
        pub source_mac: MacWords,
        /// For direct delivery the destination's MAC address; with [`FlowFlags::OUT`] the router's, to which packets go.
        pub destination_mac: MacWords,
        pub egress_rule: PackedRule,
        pub ingress_rule: PackedRule,
        /// All flags seen in this direction.
        pub tcp_flags: u8,
        pub reserved: u8,
        /// With [`FlowFlags::TRANSLATED`]: what the packet becomes ([`Self::becomes`]). With [`FlowFlags::OUT`] the
        /// destination is the next hop's address instead (unspecified: the kernel finds it for each packet).
        pub rewrite: Rewrite<A>,
        /// Of a service's flow: the number of what is published, as in
        /// [`ServiceValue::service`](crate::service::ServiceValue::service).
        pub service: u32,
    }
}

const _: () = {
    let () = FlowKey::<crate::wire::Addr4>::NO_PADDING;
    let () = FlowKey::<crate::wire::Addr6>::NO_PADDING;
    let () = FlowValue::<crate::wire::Addr4>::NO_PADDING;
    let () = FlowValue::<crate::wire::Addr6>::NO_PADDING;
    assert!(size_of::<FlowKey<crate::wire::Addr4>>() == 20);
    assert!(size_of::<FlowKey<crate::wire::Addr6>>() == 44);
};

impl<A: Address> FlowValue<A> {
    pub const EMPTY: Self = Self {
        word: Word::NOTHING,
        packets: 0,
        bytes: 0,
        seen: Ticks(0),
        judged: Ticks(0),
        ifindex: IfIndex::NONE,
        source_mac: MacWords::ZERO,
        destination_mac: MacWords::ZERO,
        egress_rule: PackedRule::new(RuleId::NONE),
        ingress_rule: PackedRule::new(RuleId::NONE),
        tcp_flags: 0,
        reserved: 0,
        rewrite: Rewrite::NONE,
        service: 0,
    };

    /// What a packet of the key becomes.
    #[inline(always)]
    pub fn becomes(&self, key: &FlowKey<A>) -> Rewrite<A> {
        self.rewrite.of_entry(self.word.flags(), key)
    }
}

impl<A: Address> Rewrite<A> {
    /// Nothing, where nothing is translated.
    pub const NONE: Self = Self { source: A::UNSPECIFIED, destination: A::UNSPECIFIED, ports: PortPair::NONE };

    /// The packets of a key as they are.
    #[inline(always)]
    pub fn of(key: &FlowKey<A>) -> Self {
        Self { source: key.source, destination: key.destination, ports: key.ports }
    }

    /// What an entry with this [`FlowValue::rewrite`] and these flags makes of a packet of its key.
    #[inline(always)]
    pub fn of_entry(self, flags: FlowFlags, key: &FlowKey<A>) -> Self {
        // what leaves by an uplink keeps its destination
        if flags.has(FlowFlags::OUT) { Self { destination: key.destination, ..self } } else { self }
    }

    /// The packets in the other direction.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self { source: self.destination, destination: self.source, ports: self.ports.reversed() }
    }
}

impl<A: Address> FlowKey<A> {
    /// No packet's.
    pub const NOBODY: Self = Self {
        source: A::UNSPECIFIED,
        destination: A::UNSPECIFIED,
        ports: PortPair::NONE,
        place: Place(0),
        protocol: KeyProtocol(0),
    };

    #[inline(always)]
    pub const fn protocol(&self) -> Protocol {
        self.protocol.protocol()
    }

    /// The same connection in the other direction, at another place.
    #[inline(always)]
    pub fn reversed(&self, place: Place) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            ports: self.ports.reversed(),
            place,
            protocol: self.protocol.reversed(),
        }
    }

    /// The same packets, rewritten.
    #[inline(always)]
    pub fn rewritten(&self, to: &Rewrite<A>) -> Self {
        Self { source: to.source, destination: to.destination, ports: to.ports, ..*self }
    }

    /// The same packets at another place.
    #[inline(always)]
    pub fn at(&self, place: Place) -> Self {
        Self { place, ..*self }
    }

    /// The same packets. All words are compared, whatever the first says: they differ rarely, and each branch costs.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let ends = self.source.differs(&other.source) | self.destination.differs(&other.destination);
        let rest = self.ports.0 ^ other.ports.0 | self.place.0 ^ other.place.0 | self.protocol.0 ^ other.protocol.0;
        ends | rest == 0
    }

    /// A few bits of the whole key, kept in the entry: its place can be given to another flow while a program on another
    /// CPU still holds it.
    #[inline(always)]
    pub fn tag(&self) -> u16 {
        (self.mixed() >> 48) as u16
    }

    /// Where the key is in a table with this secret: multilinear hashing (Lemire, Kaser: "Strongly universal string hashing is
    /// fast", 2014), whose multiplications wait for no other. As its upper half alone is good, and ports that are counted up
    /// would go in steps, it is stirred once.
    #[inline(always)]
    pub fn keyed_hash(&self, key: impl Fn(usize) -> u64) -> u64 {
        let by = |number: usize, word: u32| u64::from(word).wrapping_mul(key(number));
        // interfaces are numbered from 1, and there are no millions of them
        let rest = by(0, self.ports.0).wrapping_add(by(1, self.place.0 ^ self.protocol.0.rotate_left(22)));
        let ends = self.source.multiplied(2, &key).wrapping_add(self.destination.multiplied(2 + A::WORDS, &key));
        let sum = rest.wrapping_add(ends);
        (sum ^ sum >> 32).wrapping_mul(GOLDEN)
    }

    /// A hash of the key without a secret: Fibonacci hashing gives every bit a say in the highest ones (64-bit arithmetic is what BPF does
    /// best), and in each other those below it.
    #[inline(always)]
    pub(crate) fn mixed(&self) -> u64 {
        let ends = u64::from(self.source.fold()) << 32 | u64::from(self.destination.fold());
        let mixed = ends ^ u64::from(self.place.0) << 32 ^ u64::from(self.ports.0) ^ u64::from(self.protocol.0) << 40;
        mixed.wrapping_mul(GOLDEN)
    }
}

/// 2^64 divided by the golden ratio (Knuth, "The Art of Computer Programming", volume 3, section 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A [`RuleId`] in three bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct PackedRule(pub [u8; 3]);

impl PackedRule {
    #[inline(always)]
    pub const fn new(rule: RuleId) -> Self {
        let [a, b, c, _] = rule.0.to_le_bytes();
        Self([a, b, c])
    }

    pub const fn rule(self) -> RuleId {
        let [a, b, c] = self.0;
        RuleId(u32::from_le_bytes([a, b, c, 0]))
    }
}

/// What a hit is checked against, in one aligned load: whether somebody is writing the entry (bit 63), generation (32-62), tag
/// of the key (16-31), how often the place was written (10-15, modulo 64) and [`FlowFlags`] (0-9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Word(pub u64);

impl Word {
    #[inline(always)]
    pub const fn new(generation: Generation, tag: u16, flags: FlowFlags) -> Self {
        Self((generation.0 as u64) << 32 | (tag as u64) << 16 | flags.0 as u64)
    }

    /// There is no entry.
    pub const NOTHING: Self = Self(0);
    /// Somebody is writing the entry: the rest is as it was before.
    pub const WRITING: Self = Self(1 << 63);
    const COUNT: u64 = 0x3f << 10;

    /// The generation of what is there, or was when somebody began to write.
    #[inline(always)]
    pub const fn generation(self) -> Generation {
        Generation((self.0 >> 32) as u32 & (u32::MAX >> 1))
    }

    #[inline(always)]
    pub const fn is_writing(self) -> bool {
        self.0 & Self::WRITING.0 != 0
    }

    /// The entry is of this generation, and nobody is writing it. (Generations are counted from 1, and do not come to bit 31.)
    #[inline(always)]
    pub const fn is_current(self, generation: Generation) -> bool {
        (self.0 >> 32) as u32 == generation.0
    }

    /// This word, in a place where there was another: it differs from that, whatever it says.
    #[inline(always)]
    pub const fn after(self, before: Self) -> Self {
        Self(self.0 & !Self::COUNT | (before.0.wrapping_add(1 << 10)) & Self::COUNT)
    }

    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline(always)]
    pub const fn flags(self) -> FlowFlags {
        FlowFlags((self.0 & !Self::COUNT) as u16)
    }

    /// There is an entry, of whatever generation.
    #[inline(always)]
    pub const fn is_used(self) -> bool {
        self.generation().0 != Generation::NONE.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct FlowFlags(pub u16);

bits!(FlowFlags);

impl FlowFlags {
    pub const NONE: Self = Self(0);
    /// These are the replies: the connection was opened in the other direction.
    pub const REPLY: Self = Self(1);
    /// Put packets directly into the destination's namespace, over the same bridge.
    pub const DIRECT: Self = Self(1 << 1);
    /// Route packets directly into the destination's namespace.
    pub const ROUTED: Self = Self(1 << 2);
    /// Who opened the connection was not to be seen: its packets pass while both may have.
    pub const UNCLEAR: Self = Self(1 << 4);
    /// A remembered denial: the source's egress said no (else the destination's ingress). With
    /// [`FlowFlags::AUDITED`]: it would.
    pub const EGRESS_DENIED: Self = Self(1 << 3);
    /// Packets are rewritten.
    pub const TRANSLATED: Self = Self(1 << 5);
    /// The receiver's own hook must see these packets: it translates them.
    pub const UNVOUCHED: Self = Self(1 << 6);
    /// Audited policies would deny the connection, if they were enforced. The rule that would is where the one is of
    /// that direction.
    pub const AUDITED: Self = Self(1 << 7);
    /// With [`FlowFlags::AUDITED`]: the sender's own hook has counted these packets.
    pub const COUNTED: Self = Self(1 << 8);
    /// Send packets out of an uplink, [`FlowValue::ifindex`], to whoever is the next hop there.
    pub const OUT: Self = Self(1 << 9);
    /// Of what is on the hot path, what takes a way of its own.
    pub const SPECIAL: Self = Self::TRANSLATED.with(Self::AUDITED);

    /// Its packets count as what audited policies would have stopped.
    #[inline(always)]
    pub const fn counts_as_audited(self) -> bool {
        self.0 & (Self::AUDITED.0 | Self::COUNTED.0) == Self::AUDITED.0
    }

    /// The connection is translated, here or elsewhere.
    #[inline(always)]
    pub const fn has_pair(self) -> bool {
        self.0 & (Self::TRANSLATED.0 | Self::UNVOUCHED.0) != 0
    }
}
