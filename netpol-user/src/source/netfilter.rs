//! Which netfilter rules would see a packet on its way between two endpoints. Direct delivery goes
//! past all of them, so it is only for paths on which there are none.
//!
//! A chain counts even when it is empty: rules may be added to it at any time. What is there is
//! asked in the most complete way that the kernel knows:
//!
//! 1. `nfnetlink_hook` (Linux 5.14, a module): everything that is registered, whoever did it.
//! 2. Without it: the base chains of nftables, and the tables of the older iptables by their files
//!    in /proc/net and the loaded modules.

use std::{fs, io};

use crate::netlink::{Family, Socket, attribute, attributes, push, text};

/// Where in the kernel a chain is hung in (`NFPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    Ip,
    Ip6,
    Bridge,
    /// Of one interface.
    Netdev,
}

/// One set of rules that sees passing packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub layer: Layer,
    /// For [`Layer::Netdev`].
    pub interface: Option<String>,
    /// For people: `nftables chain ip/filter/FORWARD`.
    pub name: String,
}

/// All rules of a namespace that forwarded packets meet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Netfilter {
    rules: Vec<Rules>,
}

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_BRIDGE: u8 = 7;
const NFPROTO_IPV6: u8 = 10;

/// The hooks that forwarded packets pass: `NF_INET_PRE_ROUTING`, `FORWARD`, `POST_ROUTING`; the
/// bridge has the same numbers and one more, `NF_BR_BROUTING`.
const FORWARDED: [u32; 3] = [0, 2, 4];
const FORWARDED_BRIDGE: [u32; 4] = [0, 2, 4, 5];
/// `NF_NETDEV_INGRESS`, `NF_NETDEV_EGRESS`
const NETDEV: [u32; 2] = [0, 1];

impl Netfilter {
    /// What is registered in the calling thread's namespace; for [`Layer::Netdev`], on `interfaces`.
    pub fn read<'a>(interfaces: impl Iterator<Item = &'a str>) -> io::Result<Self> {
        let mut socket = match Socket::open(Family::Netfilter) {
            Ok(socket) => socket,
            // a kernel without nfnetlink has neither nftables nor the list of hooks
            Err(error) if is_absent(&error) => return Ok(Self { rules: xtables() }),
            Err(error) => return Err(error),
        };
        match registered(&mut socket, interfaces) {
            Ok(rules) => Ok(Self { rules }),
            Err(error) if is_absent(&error) => {
                let mut rules = chains(&mut socket)?;
                rules.extend(xtables());
                Ok(Self { rules })
            }
            Err(error) => Err(error),
        }
    }

    /// The first set of rules of a layer.
    pub fn at(&self, layer: Layer) -> Option<&Rules> {
        self.rules.iter().find(|rules| rules.layer == layer)
    }

    /// The first set of rules on an interface.
    pub fn on(&self, interface: &str) -> Option<&Rules> {
        self.rules.iter().find(|rules| rules.interface.as_deref() == Some(interface))
    }
}

// === nfnetlink_hook ===

fn registered<'a>(socket: &mut Socket, interfaces: impl Iterator<Item = &'a str>) -> io::Result<Vec<Rules>> {
    let mut rules = Vec::new();
    let everywhere = [
        (NFPROTO_BRIDGE, Layer::Bridge, &FORWARDED_BRIDGE[..]),
        (NFPROTO_IPV4, Layer::Ip, &FORWARDED),
        (NFPROTO_IPV6, Layer::Ip6, &FORWARDED),
    ];
    // asked first because every kernel has it: an error here is about the subsystem
    hooks(socket, NFPROTO_IPV4, FORWARDED[0], None)?;
    for (family, layer, numbers) in everywhere {
        for &number in numbers {
            let found = optional(hooks(socket, family, number, None))?;
            rules.extend(found.into_iter().map(|name| Rules { layer, interface: None, name }));
        }
    }
    for interface in interfaces {
        for number in NETDEV {
            let found = optional(hooks(socket, NFPROTO_NETDEV, number, Some(interface)))?;
            let on = |name| Rules { layer: Layer::Netdev, interface: Some(interface.to_owned()), name };
            rules.extend(found.into_iter().map(on));
        }
    }
    Ok(rules)
}

fn hooks(socket: &mut Socket, family: u8, number: u32, interface: Option<&str>) -> io::Result<Vec<String>> {
    const NFNL_SUBSYS_HOOK: u16 = 12;
    const NFNL_MSG_HOOK_GET: u16 = 0;
    const HOOKNUM: u16 = 1;
    const DEV: u16 = 3;
    let mut body = vec![family, 0, 0, 0];
    push(&mut body, HOOKNUM, &number.to_be_bytes());
    if let Some(interface) = interface {
        push(&mut body, DEV, &[interface.as_bytes(), b"\0"].concat());
    }
    // the few hooks of one place fit into one message's buffer, which the kernel fills at one moment
    let (messages, _) = socket.dump_once(NFNL_SUBSYS_HOOK << 8 | NFNL_MSG_HOOK_GET, &body)?;
    Ok(messages.iter().filter_map(|message| hook_name(message)).collect())
}

/// What others hang in for their own ends, without any rule of a user.
const PLUMBING: &[&str] = &[
    // br_netfilter
    "br_nf_",
    "ip_sabotage_in",
    // connection tracking and its defragmentation
    "nf_conntrack",
    "nf_confirm",
    "ipv4_conntrack",
    "ipv6_conntrack",
    "ipv4_confirm",
    "ipv6_confirm",
    "ipv4_defrag",
    "ipv6_defrag",
    "ipv4_helper",
    "ipv6_helper",
    "nf_ct_bridge",
    // looks at packets of the host's own sockets only
    "apparmor_",
];

/// Names one registered hook; `None` for [`PLUMBING`].
fn hook_name(body: &[u8]) -> Option<String> {
    const FUNCTION: u16 = 4;
    const CHAIN_INFO: u16 = 6;
    const INFO_DESC: u16 = 1;
    const TABLE: u16 = 1;
    const FAMILY: u16 = 2;
    const NAME: u16 = 3;
    let body = body.get(NFGENMSG..)?;
    let function = attribute(body, FUNCTION).map(text).unwrap_or_default();
    let chain = attribute(body, CHAIN_INFO).and_then(|info| attribute(info, INFO_DESC));
    if let Some(chain) = chain {
        let part = |kind| attribute(chain, kind).map(text);
        let family = attribute(chain, FAMILY).and_then(|value| value.last()).copied();
        if let (Some(table), Some(name)) = (part(TABLE), part(NAME)) {
            return Some(chain_name(family.unwrap_or_default(), &table, &name));
        }
    }
    if PLUMBING.iter().any(|prefix| function.starts_with(prefix)) {
        return None;
    }
    Some(format!("netfilter hook {}", if function.is_empty() { "without a name" } else { &function }))
}

// === nftables and xtables, where there is no list of hooks ===

fn chains(socket: &mut Socket) -> io::Result<Vec<Rules>> {
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_GETCHAIN: u16 = 4;
    let every_family = [0; NFGENMSG];
    let messages = optional(socket.dump(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN, &every_family))?;
    Ok(messages.iter().flat_map(|message| chain_rules(message).unwrap_or_default()).collect())
}

fn chain_rules(body: &[u8]) -> Option<Vec<Rules>> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const HOOK_NUMBER: u16 = 1;
    let family = *body.first()?;
    let body = body.get(NFGENMSG..)?;
    // only base chains have one
    let hook = attribute(body, HOOK)?;
    let number = u32::from_be_bytes(*attribute(hook, HOOK_NUMBER)?.first_chunk()?);
    let name = chain_name(family, &text(attribute(body, TABLE)?), &text(attribute(body, NAME)?));
    let everywhere = |layer| Rules { layer, interface: None, name: name.clone() };
    let devices = devices(hook);
    let on_devices = || devices.iter().map(|on| Rules { interface: Some(on.clone()), ..everywhere(Layer::Netdev) });
    Some(match family {
        NFPROTO_NETDEV => on_devices().collect(),
        // the ingress of table family `inet` belongs to an interface, too
        NFPROTO_INET if !devices.is_empty() => on_devices().collect(),
        NFPROTO_INET if FORWARDED.contains(&number) => vec![everywhere(Layer::Ip), everywhere(Layer::Ip6)],
        NFPROTO_IPV4 if FORWARDED.contains(&number) => vec![everywhere(Layer::Ip)],
        NFPROTO_IPV6 if FORWARDED.contains(&number) => vec![everywhere(Layer::Ip6)],
        NFPROTO_BRIDGE if FORWARDED_BRIDGE.contains(&number) => vec![everywhere(Layer::Bridge)],
        _ => vec![],
    })
}

fn devices(hook: &[u8]) -> Vec<String> {
    const DEV: u16 = 3;
    const DEVS: u16 = 4;
    let one = attribute(hook, DEV).map(text);
    let several = attribute(hook, DEVS).into_iter().flat_map(attributes).map(|(_, name)| text(name));
    let mut names: Vec<_> = one.into_iter().chain(several).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Tables of iptables, ip6tables and ebtables from before nftables.
fn xtables() -> Vec<Rules> {
    const FILES: [(Layer, &str, &str); 2] = [
        (Layer::Ip, "iptables", "/proc/thread-self/net/ip_tables_names"),
        (Layer::Ip6, "ip6tables", "/proc/thread-self/net/ip6_tables_names"),
    ];
    let tables = FILES.iter().flat_map(|&(layer, tool, file)| {
        let names = fs::read_to_string(file).unwrap_or_default();
        let rules = |table: &str| Rules { layer, interface: None, name: format!("{tool} table {table}") };
        names.lines().map(rules).collect::<Vec<_>>()
    });
    // ebtables has no such file: a loaded table counts, in whichever namespace it has rules
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let ebtables = modules.lines().filter_map(|line| line.split(' ').next()?.strip_prefix("ebtable_"));
    let ebtables =
        ebtables.map(|table| Rules { layer: Layer::Bridge, interface: None, name: format!("ebtables table {table}") });
    tables.chain(ebtables).collect()
}

/// Size of `struct nfgenmsg`: family, version, resource.
const NFGENMSG: usize = 4;

fn chain_name(family: u8, table: &str, chain: &str) -> String {
    let family = match family {
        NFPROTO_INET => "inet",
        NFPROTO_IPV4 => "ip",
        NFPROTO_IPV6 => "ip6",
        NFPROTO_NETDEV => "netdev",
        NFPROTO_BRIDGE => "bridge",
        _ => "?",
    };
    format!("nftables chain {family}/{table}/{chain}")
}

/// An error that means: this kernel has no such thing, so nobody uses it.
fn is_absent(error: &io::Error) -> bool {
    // nfnetlink answers EINVAL for a subsystem that it doesn't know
    const ABSENT: [i32; 5] = [libc::EINVAL, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT, libc::ENOENT];
    error.raw_os_error().is_some_and(|number| ABSENT.contains(&number))
}

/// An interface may have gone since it was listed; a family may not be built in.
fn optional<T: Default>(answer: io::Result<T>) -> io::Result<T> {
    match answer {
        Err(error) if is_absent(&error) || error.raw_os_error() == Some(libc::ENODEV) => Ok(T::default()),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, value) in parts {
            push(&mut body, *kind, value);
        }
        body
    }

    fn hook(function: &str, chain: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![NFPROTO_IPV4, 0, 0, 0];
        push(&mut body, 4, &[function.as_bytes(), b"\0"].concat());
        if let Some(chain) = chain {
            push(&mut body, 6, &nested(&[(2, &1u32.to_be_bytes()), (1, chain)]));
        }
        body
    }

    #[test]
    fn registered_chains_are_named_by_family_table_and_chain() {
        let chain = nested(&[(1, b"filter\0"), (2, &[NFPROTO_INET]), (3, b"FORWARD\0")]);
        let name = hook_name(&hook("nft_do_chain_inet", Some(&chain)));
        assert_eq!(name.as_deref(), Some("nftables chain inet/filter/FORWARD"));
    }

    #[test]
    fn unknown_hooks_count_and_connection_tracking_does_not() {
        for (function, counts) in [
            ("iptable_filter_hook", true),
            ("ipt_do_table", true),
            ("ebt_filter_hook", true),
            ("nf_nat_ipv4_pre_routing", true),
            ("some_module_of_tomorrow", true),
            ("nf_conntrack_in", false),
            ("ipv4_conntrack_defrag", false),
            ("br_nf_forward", false),
            ("apparmor_ip_postroute", false),
            ("ip_sabotage_in", false),
        ] {
            assert_eq!(hook_name(&hook(function, None)).is_some(), counts, "{function}");
        }
    }

    fn base_chain(family: u8, hook: &[u8]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        body.extend(nested(&[(1, b"t\0"), (3, b"c\0"), (4, hook)]));
        body
    }

    #[test]
    fn base_chains_count_where_forwarded_packets_pass() {
        let at = |family, number: u32| {
            let rules = chain_rules(&base_chain(family, &nested(&[(1, &number.to_be_bytes())]))).unwrap_or_default();
            rules.into_iter().map(|rules| rules.layer).collect::<Vec<_>>()
        };
        const INPUT: u32 = 1;
        const FORWARD: u32 = 2;
        assert_eq!(at(NFPROTO_INET, FORWARD), [Layer::Ip, Layer::Ip6]);
        assert_eq!(at(NFPROTO_IPV4, FORWARD), [Layer::Ip]);
        assert_eq!(at(NFPROTO_IPV6, FORWARD), [Layer::Ip6]);
        assert_eq!(at(NFPROTO_BRIDGE, FORWARD), [Layer::Bridge]);
        for family in [NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_BRIDGE] {
            assert_eq!(at(family, INPUT), [], "family {family}");
        }
    }

    #[test]
    fn chains_of_interfaces_count_on_each_of_them() {
        let devices = nested(&[(1, b"va\0"), (1, b"vb\0")]);
        let hook = nested(&[(1, &0u32.to_be_bytes()), (3, b"va\0"), (4, &devices)]);
        let rules = chain_rules(&base_chain(NFPROTO_NETDEV, &hook)).unwrap();
        let interfaces: Vec<_> = rules.iter().filter_map(|rules| rules.interface.as_deref()).collect();
        assert_eq!(interfaces, ["va", "vb"]);
    }
}
