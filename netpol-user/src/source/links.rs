//! Links, addresses and routes of one network namespace, as rtnetlink tells them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd as _},
};

use netpol_common::wire::Mac;

use crate::netlink::{Socket, attribute, attributes, half, push, text, word};

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `veth`, `bridge`, ...; empty for hardware and loopback.
    pub kind: String,
    pub mac: Mac,
    /// In bytes, without the link's own header.
    pub mtu: u32,
    pub up: bool,
    /// The interface at the other end, in the namespace that [`Self::peer_namespace`] names.
    pub peer: Option<u32>,
    /// This namespace's number for the one where the other end is; `None`: it is in this one.
    pub peer_namespace: Option<i32>,
    pub master: Option<u32>,
    /// `Some` when it is a port of a bridge.
    pub port: Option<Port>,
    /// `Some` when it is a bridge.
    pub bridge: Option<BridgeOptions>,
    /// `net.ipv4.conf.NAME.forwarding`
    pub forwards_ipv4: bool,
}

/// What a bridge does with one of its ports (linux/if_link.h `IFLA_BRPORT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub isolated: bool,
    pub state: PortState,
    pub learning: bool,
    pub unicast_flood: bool,
    /// Frames from unknown stations are dropped (802.1X).
    pub locked: bool,
}

/// State of the spanning tree; a bridge without one has its running ports forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    Disabled,
    Listening,
    Learning,
    Forwarding,
    Blocking,
}

impl PortState {
    const ALL: [Self; 5] = [Self::Disabled, Self::Listening, Self::Learning, Self::Forwarding, Self::Blocking];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Listening => "listening",
            Self::Learning => "learning",
            Self::Forwarding => "forwarding",
            Self::Blocking => "blocking",
        }
    }
}

/// The bridge's own settings; the three `nf_call` hold for it in addition to the sysctls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeOptions {
    pub vlan_filtering: bool,
    pub nf_call_iptables: bool,
    pub nf_call_ip6tables: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub link: u32,
    pub address: IpAddr,
    /// Good everywhere, and not secondary, temporary, deprecated or still being looked for.
    pub primary: bool,
}

/// A way to everywhere, in the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    pub link: u32,
    /// The source address that it asks for.
    pub source: Option<IpAddr>,
    /// The lowest is the best.
    pub priority: u32,
}

/// All interfaces, in the order of their numbers.
pub fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    /// `RTEXT_FILTER_SKIP_STATS`: a third of each answer is counters.
    const SKIP_STATS: u32 = 1 << 3;
    let mut body = vec![0; IFINFOMSG];
    push(&mut body, libc::IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
    let messages = socket.dump(libc::RTM_GETLINK, &body)?;
    let mut links: Vec<Link> = messages.iter().filter_map(|message| link(message)).collect();
    links.sort_unstable_by_key(|link| link.index);
    Ok(links)
}

/// All addresses of all interfaces, also those that are not usable yet (tentative).
pub fn addresses(socket: &mut Socket) -> io::Result<Vec<Assigned>> {
    let messages = socket.dump(libc::RTM_GETADDR, &[0; IFADDRMSG])?;
    Ok(messages.iter().filter_map(|message| assigned(message)).collect())
}

/// The default routes of both families.
pub fn default_routes(socket: &mut Socket) -> io::Result<Vec<DefaultRoute>> {
    let mut routes = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut body = vec![0; RTMSG];
        body[0] = family as u8;
        let messages = socket.dump(libc::RTM_GETROUTE, &body)?;
        routes.extend(messages.iter().filter_map(|message| default_route(message)).flatten());
    }
    Ok(routes)
}

/// This namespace's number for another one; `None` if it has none.
pub fn namespace_number(socket: &mut Socket, namespace: impl AsFd) -> io::Result<Option<i32>> {
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    let mut body = vec![0; 4];
    push(&mut body, NETNSA_FD, &namespace.as_fd().as_raw_fd().to_ne_bytes());
    let answer = socket.get(libc::RTM_GETNSID, &body)?;
    let number = answer.get(4..).and_then(|body| attribute(body, NETNSA_NSID)).and_then(word);
    Ok(number.map(|number| number as i32).filter(|&number| number >= 0))
}

/// The interface through which this namespace would send to `address`; `None`: through none.
pub fn route(socket: &mut Socket, address: IpAddr) -> io::Result<Option<u32>> {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut body = vec![0; RTMSG];
    body[0] = family as u8;
    body[1] = (bytes.len() * 8) as u8;
    push(&mut body, libc::RTA_DST, &bytes);
    match socket.get(libc::RTM_GETROUTE, &body) {
        Ok(answer) => Ok(answer.get(RTMSG..).and_then(|body| attribute(body, libc::RTA_OIF)).and_then(word)),
        Err(error) if error.raw_os_error().is_some_and(|number| NO_ROUTE.contains(&number)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How the kernel answers for unreachable, blackhole and prohibit routes and for none at all.
const NO_ROUTE: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES];

/// Sizes of the fixed parts of messages.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;

fn link(body: &[u8]) -> Option<Link> {
    let index = word(body.get(4..)?)?;
    let flags = word(body.get(8..)?)?;
    let mut link = Link { index, up: flags & libc::IFF_UP as u32 != 0, ..Link::default() };
    for (kind, value) in attributes(body.get(IFINFOMSG..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = value.try_into().unwrap_or_default(),
            libc::IFLA_MTU => link.mtu = word(value).unwrap_or_default(),
            libc::IFLA_LINK => link.peer = word(value),
            libc::IFLA_LINK_NETNSID => link.peer_namespace = word(value).map(|number| number as i32),
            libc::IFLA_MASTER => link.master = word(value),
            libc::IFLA_LINKINFO => link.read_info(value),
            libc::IFLA_AF_SPEC => link.forwards_ipv4 = forwards_ipv4(value),
            _ => {}
        }
    }
    Some(link)
}

impl Link {
    fn read_info(&mut self, info: &[u8]) {
        const SLAVE_KIND: u16 = 4;
        const SLAVE_DATA: u16 = 5;
        self.kind = attribute(info, libc::IFLA_INFO_KIND).map(text).unwrap_or_default();
        if self.kind == "bridge" {
            self.bridge = Some(bridge(attribute(info, libc::IFLA_INFO_DATA).unwrap_or_default()));
        }
        if attribute(info, SLAVE_KIND).is_some_and(|kind| text(kind) == "bridge") {
            self.port = attribute(info, SLAVE_DATA).map(port);
        }
    }
}

fn bridge(data: &[u8]) -> BridgeOptions {
    const VLAN_FILTERING: u16 = 7;
    const NF_CALL_IPTABLES: u16 = 36;
    const NF_CALL_IP6TABLES: u16 = 37;
    let set = |kind| flag(data, kind);
    BridgeOptions {
        vlan_filtering: set(VLAN_FILTERING),
        nf_call_iptables: set(NF_CALL_IPTABLES),
        nf_call_ip6tables: set(NF_CALL_IP6TABLES),
    }
}

fn port(data: &[u8]) -> Port {
    const STATE: u16 = 1;
    const LEARNING: u16 = 8;
    const UNICAST_FLOOD: u16 = 9;
    const ISOLATED: u16 = 33;
    const LOCKED: u16 = 39;
    let state = attribute(data, STATE).and_then(|value| PortState::ALL.get(usize::from(*value.first()?)));
    Port {
        isolated: flag(data, ISOLATED),
        state: state.copied().unwrap_or(PortState::Disabled),
        learning: flag(data, LEARNING),
        unicast_flood: flag(data, UNICAST_FLOOD),
        locked: flag(data, LOCKED),
    }
}

fn flag(data: &[u8], kind: u16) -> bool {
    attribute(data, kind).and_then(<[u8]>::first).is_some_and(|&value| value != 0)
}

fn forwards_ipv4(families: &[u8]) -> bool {
    const IFLA_INET_CONF: u16 = 1;
    // IPV4_DEVCONF_FORWARDING is the first of the values
    let settings = attribute(families, libc::AF_INET as u16).and_then(|inet| attribute(inet, IFLA_INET_CONF));
    settings.and_then(word).is_some_and(|value| value != 0)
}

fn assigned(body: &[u8]) -> Option<Assigned> {
    /// Not to be chosen for what begins now. (`IFA_F_TEMPORARY` is `IFA_F_SECONDARY`, for IPv6.)
    const AVOIDED: u32 = libc::IFA_F_SECONDARY
        | libc::IFA_F_OPTIMISTIC
        | libc::IFA_F_DADFAILED
        | libc::IFA_F_DEPRECATED
        | libc::IFA_F_TENTATIVE;
    let &[family, _, flags, scope] = body.first_chunk()?;
    let link = word(body.get(4..)?)?;
    let rest = body.get(IFADDRMSG..)?;
    // on a point-to-point link the other attribute, IFA_ADDRESS, is the far end
    let value = attribute(rest, libc::IFA_LOCAL).or_else(|| attribute(rest, libc::IFA_ADDRESS))?;
    let address = address(family, value)?;
    let flags = attribute(rest, libc::IFA_FLAGS).and_then(word).unwrap_or_else(|| flags.into());
    Some(Assigned { link, address, primary: scope == libc::RT_SCOPE_UNIVERSE && flags & AVOIDED == 0 })
}

/// One for each interface that it leads through; `None`: no default route.
fn default_route(body: &[u8]) -> Option<Vec<DefaultRoute>> {
    let &[family, destination, _, _, table, _, _, kind] = body.first_chunk()?;
    let rest = body.get(RTMSG..)?;
    let table = attribute(rest, libc::RTA_TABLE).and_then(word).unwrap_or_else(|| table.into());
    if (destination, kind, table) != (0, libc::RTN_UNICAST, libc::RT_TABLE_MAIN.into()) {
        return None;
    }
    let source = attribute(rest, libc::RTA_PREFSRC).and_then(|value| address(family, value));
    let priority = attribute(rest, libc::RTA_PRIORITY).and_then(word).unwrap_or_default();
    let single = attribute(rest, libc::RTA_OIF).and_then(word);
    let several = attribute(rest, libc::RTA_MULTIPATH).map(hops).unwrap_or_default();
    Some(single.into_iter().chain(several).map(|link| DefaultRoute { link, source, priority }).collect())
}

/// The interfaces of a list of `struct rtnexthop`: length, flags, weight, interface, attributes.
fn hops(mut bytes: &[u8]) -> Vec<u32> {
    let mut links = Vec::new();
    while let (Some(length), Some(link)) = (half(bytes), bytes.get(4..).and_then(word)) {
        links.push(link);
        // never less than the structure itself: what is malformed must end
        bytes = bytes.get(usize::from(length).max(8).next_multiple_of(4)..).unwrap_or_default();
    }
    links
}

fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_with_several_hops_lead_through_each_interface() {
        let hop = |link: u32| [&[16, 0, 0, 0][..], &link.to_ne_bytes(), &[8, 0, 5, 0, 10, 0, 0, 1]].concat();
        assert_eq!(hops(&[hop(3), hop(4)].concat()), [3, 4]);
        assert_eq!(hops(&[0; 8]), [0], "a length of nothing ends");
        assert_eq!(hops(&hop(3)[..6]), Vec::<u32>::new());
    }

    #[test]
    fn only_unicast_routes_to_everywhere_in_the_main_table_count() {
        let route = |length, table, kind| {
            let mut body = vec![libc::AF_INET as u8, length, 0, 0, table, 0, 0, kind, 0, 0, 0, 0];
            push(&mut body, libc::RTA_OIF, &7u32.to_ne_bytes());
            push(&mut body, libc::RTA_PREFSRC, &[192, 0, 2, 1]);
            body
        };
        let (main, unicast) = (libc::RT_TABLE_MAIN, libc::RTN_UNICAST);
        let source = Some(IpAddr::from([192, 0, 2, 1]));
        let expected = DefaultRoute { link: 7, source, priority: 0 };
        assert_eq!(default_route(&route(0, main, unicast)), Some(vec![expected]));
        assert_eq!(default_route(&route(8, main, unicast)), None);
        assert_eq!(default_route(&route(0, libc::RT_TABLE_LOCAL, unicast)), None);
        assert_eq!(default_route(&route(0, main, libc::RTN_UNREACHABLE)), None);
    }
}
