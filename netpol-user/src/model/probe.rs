//! What a question is about: a port, or an ICMP message, before it is known between whom.

use std::{fmt, net::IpAddr, str::FromStr};

use super::{Opening, Party, Protocol, World};

/// The client's port when nobody says which: one that both Linux (`ip_local_port_range`) and IANA
/// (RFC 6335) give away to clients. Only rules about source ports see it.
pub const CLIENT_PORT: u16 = 50_000;

/// `80/tcp`, `icmp`, `icmp/8/0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// In host byte order.
    Port { port: u16, protocol: Protocol },
    /// ICMP over IPv4, ICMPv6 over IPv6. Without a type: an echo request.
    Icmp { kind: Option<u8>, code: u8 },
    /// ICMPv6, whatever the addresses.
    Icmpv6 { kind: u8, code: u8 },
}

const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

impl Probe {
    /// The first packet from one party to another.
    pub fn opening(self, from: Party, to: Party, client_port: u16) -> Opening {
        let v6 = from.address().or(to.address()).is_some_and(|address| address.is_ipv6());
        let icmp =
            |protocol, kind, code| Opening { protocol, source_port: 0, destination_port: 0, icmp: Some((kind, code)) };
        match self {
            Self::Port { port, protocol } => {
                Opening { protocol, source_port: client_port, destination_port: port, icmp: None }
            }
            Self::Icmp { kind, code } if v6 => icmp(Protocol::ICMPV6, kind.unwrap_or(ECHO_REQUEST_V6), code),
            Self::Icmp { kind, code } => icmp(Protocol::ICMP, kind.unwrap_or(ECHO_REQUEST), code),
            Self::Icmpv6 { kind, code } => icmp(Protocol::ICMPV6, kind, code),
        }
    }

    /// Every port that some endpoint declares, once.
    pub fn declared(world: &World) -> Vec<Self> {
        let ports = world.endpoints.iter().flat_map(|endpoint| &endpoint.ports);
        let mut probes: Vec<_> = ports.map(|p| Self::Port { port: p.port, protocol: p.protocol }).collect();
        probes.sort_unstable();
        probes.dedup();
        probes
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { port, protocol } => write!(f, "{port}/{}", protocol.to_string().to_lowercase()),
            Self::Icmp { kind: None, .. } => f.write_str("icmp"),
            Self::Icmp { kind: Some(kind), code } => write!(f, "icmp/{kind}/{code}"),
            Self::Icmpv6 { kind, code } => write!(f, "icmpv6/{kind}/{code}"),
        }
    }
}

/// What is wrong with the text of a [`Probe`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected PORT/PROTOCOL like 80/tcp, 53/udp or 9/sctp, or icmp, icmp/TYPE/CODE, icmpv6/TYPE/CODE: {0}")]
pub struct InvalidProbe(String);

impl FromStr for Probe {
    type Err = InvalidProbe;

    fn from_str(text: &str) -> Result<Self, InvalidProbe> {
        let lower = text.to_ascii_lowercase();
        let mut words = lower.split('/');
        let first = words.next().unwrap_or_default();
        let rest: Vec<_> = words.collect();
        if matches!(first, "icmp" | "icmpv6") {
            return icmp(first, &rest);
        }
        let protocol = match rest.as_slice() {
            [] | ["tcp"] => Protocol::TCP,
            ["udp"] => Protocol::UDP,
            ["sctp"] => Protocol::SCTP,
            ["udplite"] => Protocol::UDPLITE,
            other => return Err(InvalidProbe(format!("{:?} is no protocol with ports", other.join("/")))),
        };
        match first.parse() {
            Ok(port) if port > 0 => Ok(Self::Port { port, protocol }),
            _ => Err(InvalidProbe(format!("{first:?} is no port from 1 to 65535"))),
        }
    }
}

fn icmp(family: &str, rest: &[&str]) -> Result<Probe, InvalidProbe> {
    let number = |word: &str| word.parse().map_err(|_| InvalidProbe(format!("{word:?} is no number from 0 to 255")));
    let (kind, code) = match rest {
        [] => (None, 0),
        [kind] => (Some(number(kind)?), 0),
        [kind, code] => (Some(number(kind)?), number(code)?),
        _ => return Err(InvalidProbe(format!("{:?} has too many parts", rest.join("/")))),
    };
    Ok(match family {
        "icmpv6" => Probe::Icmpv6 { kind: kind.unwrap_or(ECHO_REQUEST_V6), code },
        _ => Probe::Icmp { kind, code },
    })
}

/// An end of a question: of an endpoint all its addresses, or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// By its index in [`World::endpoints`].
    Endpoint(usize),
    At {
        endpoint: usize,
        address: IpAddr,
    },
    Outside(IpAddr),
}

impl Place {
    pub const fn endpoint(self) -> Option<usize> {
        match self {
            Self::Endpoint(endpoint) | Self::At { endpoint, .. } => Some(endpoint),
            Self::Outside(_) => None,
        }
    }

    /// The address of an endpoint, or one that nobody has.
    pub fn of_address(world: &World, address: IpAddr) -> Self {
        match world.endpoints.iter().position(|endpoint| endpoint.addresses.contains(&address)) {
            Some(endpoint) => Self::At { endpoint, address },
            None => Self::Outside(address),
        }
    }

    fn parties(self, world: &World) -> Vec<Party> {
        match self {
            Self::Outside(address) => vec![Party::Outside(address)],
            Self::At { endpoint, address } => vec![Party::Endpoint { index: endpoint, address: Some(address) }],
            Self::Endpoint(index) => match world.endpoints[index].addresses.as_slice() {
                [] => vec![Party::Endpoint { index, address: None }],
                all => all.iter().map(|&address| Party::Endpoint { index, address: Some(address) }).collect(),
            },
        }
    }

    /// Without knowing the endpoint's address.
    fn anywhere(self) -> Party {
        match self {
            Self::Outside(address) => Party::Outside(address),
            Self::Endpoint(index) | Self::At { endpoint: index, .. } => Party::Endpoint { index, address: None },
        }
    }
}

/// Every way in which two places can speak: pairs of addresses of one family. Places that share
/// no family are judged once by their labels alone. Never empty.
pub fn pairs(world: &World, from: Place, to: Place) -> Vec<(Party, Party)> {
    let same_family = |a: Party, b: Party| match (a.address(), b.address()) {
        (Some(a), Some(b)) => a.is_ipv4() == b.is_ipv4(),
        _ => true,
    };
    let targets = to.parties(world);
    let all = from.parties(world).into_iter().flat_map(|from| targets.iter().map(move |&to| (from, to)));
    let speaking: Vec<_> = all.filter(|&(from, to)| same_family(from, to)).collect();
    if speaking.is_empty() { vec![(from.anywhere(), to.anywhere())] } else { speaking }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample::{endpoint, port, world};

    #[test]
    fn probes_are_read_and_written_the_same() {
        let icmp = |kind, code| Probe::Icmp { kind, code };
        let of = |port, protocol| Probe::Port { port, protocol };
        let cases = [
            ("80/tcp", of(80, Protocol::TCP)),
            ("53/udp", of(53, Protocol::UDP)),
            ("65535/sctp", of(65535, Protocol::SCTP)),
            ("7/udplite", of(7, Protocol::UDPLITE)),
            ("icmp", icmp(None, 0)),
            ("icmp/8/0", icmp(Some(8), 0)),
            ("icmp/3/4", icmp(Some(3), 4)),
            ("icmpv6/128/0", Probe::Icmpv6 { kind: 128, code: 0 }),
        ];
        for (text, probe) in cases {
            assert_eq!(text.parse(), Ok(probe), "{text}");
            assert_eq!(probe.to_string(), text);
        }
        for (short, long) in
            [("80", "80/tcp"), ("80/TCP", "80/tcp"), ("ICMP/8", "icmp/8/0"), ("icmpv6", "icmpv6/128/0")]
        {
            assert_eq!(short.parse::<Probe>().unwrap().to_string(), long);
        }
    }

    #[test]
    fn what_is_no_probe_is_refused() {
        for text in
            ["", "0/tcp", "65536/tcp", "-1/udp", "80/http", "tcp/80", "80/tcp/1", "icmp/256", "icmp/8/0/0", "icmp/"]
        {
            assert!(text.parse::<Probe>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn icmp_follows_the_addresses() {
        let outside = |address: &str| Party::Outside(address.parse().unwrap());
        let opening =
            |text: &str, address| text.parse::<Probe>().unwrap().opening(outside(address), outside(address), 1);
        let cases = [
            ("icmp", "192.0.2.1", (Protocol::ICMP, 8, 0)),
            ("icmp", "2001:db8::1", (Protocol::ICMPV6, 128, 0)),
            ("icmp/3/1", "192.0.2.1", (Protocol::ICMP, 3, 1)),
            ("icmp/3/1", "2001:db8::1", (Protocol::ICMPV6, 3, 1)),
            ("icmpv6/1/4", "192.0.2.1", (Protocol::ICMPV6, 1, 4)),
        ];
        for (text, address, (protocol, kind, code)) in cases {
            let expected = Opening { protocol, source_port: 0, destination_port: 0, icmp: Some((kind, code)) };
            assert_eq!(opening(text, address), expected, "{text} {address}");
        }
    }

    #[test]
    fn declared_ports_are_listed_once_and_in_order() {
        let mut world = world(&[endpoint("x/a", ""), endpoint("x/b", "")]);
        world.endpoints[0].ports = vec![port("http", 80, Protocol::TCP), port("dns", 53, Protocol::UDP)];
        world.endpoints[1].ports = vec![port("web", 80, Protocol::TCP), port("", 80, Protocol::UDP)];
        let probes: Vec<_> = Probe::declared(&world).iter().map(Probe::to_string).collect();
        assert_eq!(probes, ["53/udp", "80/tcp", "80/udp"]);
    }

    #[test]
    fn ends_speak_by_addresses_of_one_family() {
        let world =
            world(&[endpoint("x/both", "10.0.0.1,fd00::1"), endpoint("x/six", "fd00::2"), endpoint("x/none", "")]);
        let outside = |address: &str| Place::Outside(address.parse().unwrap());
        let spoken = |from, to| -> Vec<_> {
            let text = |party: Party| party.address().map_or_else(|| "-".to_owned(), |address| address.to_string());
            pairs(&world, from, to).into_iter().map(|(from, to)| format!("{} {}", text(from), text(to))).collect()
        };
        let [both, six, none] = [0, 1, 2].map(Place::Endpoint);
        assert_eq!(spoken(both, six), ["fd00::1 fd00::2"]);
        assert_eq!(spoken(both, none), ["10.0.0.1 -", "fd00::1 -"]);
        assert_eq!(spoken(both, outside("192.0.2.1")), ["10.0.0.1 192.0.2.1"]);
        assert_eq!(spoken(six, outside("192.0.2.1")), ["- 192.0.2.1"], "no family in common");
        assert_eq!(spoken(Place::of_address(&world, "fd00::1".parse().unwrap()), six), ["fd00::1 fd00::2"]);
    }
}
