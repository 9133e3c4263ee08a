//! Random conversations.

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select, subsequence},
};

use netpol_common::kernel::Settings;

use crate::{
    datapath::frame::{ACK, FIN, RST, SYN},
    model::World,
    worlds,
};

/// Two parties and what they talk about.
#[derive(Clone, Debug)]
pub struct Talk {
    pub client: Index,
    pub server: Index,
    pub six: bool,
    pub about: About,
}

#[derive(Clone, Copy, Debug)]
pub enum About {
    Tcp(u16, u16),
    Udp(u16, u16),
    /// An echo with this identifier.
    Echo(u16),
    /// Another protocol, without ports.
    Gre,
}

#[derive(Clone, Debug)]
pub enum Step {
    Say(Say),
    /// The other policy is published.
    Publish,
}

/// One packet of a talk.
#[derive(Clone, Debug)]
pub struct Say {
    pub talk: Index,
    /// From the server to the client.
    pub back: bool,
    /// Of TCP. For an echo: a request where it holds SYN, else a reply.
    pub flags: u8,
    pub tampering: Tampering,
}

/// What is wrong with a packet, or unusual.
#[derive(Clone, Debug)]
pub enum Tampering {
    Nothing,
    SourceMac,
    /// The address of somebody else.
    Source(Index),
    /// It comes from somebody else's interface, or from the host (the last).
    Ingress(Index),
    ToGroup,
    /// To the next hop, or past it.
    DestinationMac,
    /// Cut off after as many bytes, or behind the IP header.
    Short(u8),
    Tagged,
    Ethertype,
    FirstFragment,
    LaterFragment,
    /// An ICMP error from the receiver, about this packet.
    Unreachable,
    /// Behind an IPv6 destination option.
    Extension,
    /// It claims somebody's address: ARP, or an IPv6 neighbour advertisement.
    Claim(Index),
    /// A message to a DHCP server, or from one.
    Dhcp(bool),
    /// A byte changed.
    Byte(Index, u8),
}

impl Tampering {
    pub fn is_any(&self) -> bool {
        !matches!(self, Self::Nothing)
    }
}

#[derive(Clone, Debug)]
pub struct Script {
    /// Two policies for the same endpoints.
    pub worlds: [World; 2],
    pub talks: Vec<Talk>,
    pub steps: Vec<Step>,
    pub settings: Settings,
}

fn about() -> impl Strategy<Value = About> {
    let port = || select(&[80u16, 1000, 443, 40000, 65534, 65535][..]);
    prop_oneof![
        4 => (port(), port()).prop_map(|(a, b)| About::Tcp(a, b)),
        3 => (port(), port()).prop_map(|(a, b)| About::Udp(a, b)),
        2 => select(&[7u16, 0x800, 0x4800, 0x8000, 0][..]).prop_map(About::Echo),
        1 => Just(About::Gre),
    ]
}

fn tampering() -> impl Strategy<Value = Tampering> {
    prop_oneof![
        40 => Just(Tampering::Nothing),
        1 => Just(Tampering::SourceMac),
        1 => any::<Index>().prop_map(Tampering::Source),
        2 => any::<Index>().prop_map(Tampering::Ingress),
        2 => Just(Tampering::ToGroup),
        1 => Just(Tampering::DestinationMac),
        1 => (34u8..90).prop_map(Tampering::Short),
        1 => Just(Tampering::Tagged),
        1 => Just(Tampering::Ethertype),
        2 => Just(Tampering::FirstFragment),
        3 => Just(Tampering::LaterFragment),
        3 => Just(Tampering::Unreachable),
        2 => Just(Tampering::Extension),
        3 => any::<Index>().prop_map(Tampering::Claim),
        2 => any::<bool>().prop_map(Tampering::Dhcp),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Tampering::Byte(at, byte)),
    ]
}

fn step(honest: bool) -> impl Strategy<Value = Step> {
    let flags = select(&[SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST][..]);
    let tampering = if honest { Just(Tampering::Nothing).boxed() } else { tampering().boxed() };
    let say = (any::<Index>(), any::<bool>(), flags, tampering);
    let say = say.prop_map(|(talk, back, flags, tampering)| Step::Say(Say { talk, back, flags, tampering }));
    prop_oneof![16 => say, 1 => Just(Step::Publish)]
}

/// None of them limits how many flows open.
fn settings(honest: bool) -> impl Strategy<Value = Settings> {
    let others = [Settings::STACK, Settings::POLICE_HOST, Settings::ISOLATE_WAITING];
    let count = if honest { 1 } else { others.len() };
    let some = subsequence(others[..count].to_vec(), 0..=count);
    some.prop_map(|some| some.into_iter().fold(Settings::UNLIMITED, Settings::with))
}

/// `honest`: nobody tampers with packets.
pub fn script(honest: bool) -> impl Strategy<Value = Script> {
    let talk = (any::<Index>(), any::<Index>(), any::<bool>(), about());
    let talk = talk.prop_map(|(client, server, six, about)| Talk { client, server, six, about });
    (worlds::world(), worlds::world(), vec(talk, 1..4), vec(step(honest), 1..40), settings(honest)).prop_map(
        |(world, other, talks, steps, settings)| {
            let other = World { endpoints: world.endpoints.clone(), ..other };
            let other = World { namespaces: world.namespaces.clone(), ..other };
            Script { worlds: [world, other], talks, steps, settings }
        },
    )
}
