//! Random conversations.

use netpol_common::kernel::Settings;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

use super::{
    packet::Shape,
    world::{Site, site},
};
use crate::datapath::frame::{ACK, FIN, RST, SYN};

/// A client, whom it asks, and about what.
#[derive(Clone, Debug)]
pub struct Talk {
    pub client: Index,
    pub target: Target,
    pub six: bool,
    pub about: About,
    /// The client's port, or an identifier of ICMP.
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    Tcp,
    Udp,
    Echo,
}

#[derive(Clone, Debug)]
pub enum Target {
    /// A service, and one of the places where it is published.
    Service(Index, Index),
    /// Somebody by its own address, at this port.
    Party(Index, u16),
}

#[derive(Clone, Debug)]
pub enum Step {
    Say(Say),
    Complain(Complaint),
    /// The other world is published.
    Publish,
}

/// One packet of a talk.
#[derive(Clone, Debug)]
pub struct Say {
    pub talk: Index,
    /// From whom the client was led to.
    pub back: bool,
    pub shape: Shape,
}

/// An ICMP error about the last packet that has arrived.
#[derive(Clone, Debug)]
pub struct Complaint {
    pub talk: Index,
    /// About an answer, by the client.
    pub back: bool,
    /// It quotes eight bytes of what is behind the IP header.
    pub short: bool,
    /// Outside, not the receiver says it.
    pub router: bool,
}

#[derive(Clone, Debug)]
pub struct Script {
    pub site: Site,
    pub talks: Vec<Talk>,
    pub steps: Vec<Step>,
    pub settings: Settings,
    /// Between endpoints and the uplink is the host's routing alone.
    pub outward: bool,
}

/// Some, of which one often has more to do with another than chance would have it: the same client asks the same from
/// another port, or from the same port somebody else.
fn talks() -> impl Strategy<Value = Vec<Talk>> {
    let one = (talk(), talk(), 0..4u8).prop_map(|(talk, other, how)| match how {
        0 => vec![Talk { port: talk.port ^ 1, ..talk.clone() }, talk],
        1 => vec![Talk { target: other.target, ..talk.clone() }, talk],
        _ => vec![talk],
    });
    vec(one, 1..6).prop_map(|talks| talks.concat())
}

fn talk() -> impl Strategy<Value = Talk> {
    let target = prop_oneof![
        3 => any::<(Index, Index)>().prop_map(|(service, place)| Target::Service(service, place)),
        2 => (any::<Index>(), select(&[80u16, 443, 1000][..])).prop_map(|(whom, port)| Target::Party(whom, port)),
    ];
    let about = prop_oneof![3 => Just(About::Tcp), 3 => Just(About::Udp), 1 => Just(About::Echo)];
    // few, so that connections get into each other's way
    let port = select(&[40_000u16, 40_001][..]);
    (any::<Index>(), target, any::<bool>(), about, port).prop_map(|(client, target, six, about, port)| Talk {
        client,
        target,
        six,
        about,
        port,
    })
}

fn shape(back: bool) -> impl Strategy<Value = Shape> {
    let there = select(&[SYN, SYN, SYN, ACK, FIN | ACK, RST][..]);
    let answers = select(&[SYN | ACK, ACK, FIN | ACK, RST][..]);
    let flags = if back { answers.boxed() } else { there.boxed() };
    let rarely = || prop::bool::weighted(0.15);
    (flags, vec(any::<u8>(), 0..40), rarely(), rarely(), rarely())
        .prop_map(|(flags, payload, options, unsummed, pieces)| Shape { flags, payload, options, unsummed, pieces })
}

fn step() -> impl Strategy<Value = Step> {
    let say = any::<bool>().prop_flat_map(|back| {
        (any::<Index>(), shape(back)).prop_map(move |(talk, shape)| Step::Say(Say { talk, back, shape }))
    });
    let complaint = (any::<Index>(), any::<[bool; 3]>())
        .prop_map(|(talk, [back, short, router])| Step::Complain(Complaint { talk, back, short, router }));
    prop_oneof![16 => say, 3 => complaint, 1 => Just(Step::Publish)]
}

pub fn script() -> impl Strategy<Value = Script> {
    (site(), talks(), vec(step(), 1..50), any::<[bool; 2]>()).prop_map(|(site, talks, steps, [stack, outward])| {
        let settings = Settings::UNLIMITED.with(Settings::TRANSLATE);
        let settings = if stack { settings.with(Settings::STACK) } else { settings };
        Script { site, talks, steps, settings, outward }
    })
}
