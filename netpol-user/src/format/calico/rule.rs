//! One rule of a Calico policy: what it says of the protocol and of both ends.

use ipnet::IpNet;

use super::{SERVICE_ACCOUNT, all_of, of_namespace, of_service_account, parse_selector, read_selector};
use crate::{
    format::{
        node::{Node, Pos, Value, shorten},
        reader::{Fields, Report, Text, did_you_mean},
        validate,
    },
    model::{Action, EntityMatch, Expr, IcmpMatch, IpVersion, Match, PortMatch, Protocol, Rule, Scope, Selector},
};

const ACTIONS: [(&str, Action); 4] =
    [("Allow", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass), ("Log", Action::Log)];

const PROTOCOLS: [(&str, Protocol); 6] = [
    ("TCP", Protocol::TCP),
    ("UDP", Protocol::UDP),
    ("ICMP", Protocol::ICMP),
    ("ICMPv6", Protocol::ICMPV6),
    ("SCTP", Protocol::SCTP),
    ("UDPLite", Protocol::UDPLITE),
];

/// Reads the rule `node` of the list `list`. `namespace` is the policy's.
pub fn read(report: &Report, (list, node): (&str, &Node), index: usize, namespace: Option<&str>) -> Option<Rule> {
    let mut rule = report.fields(node, list)?;
    let action = rule.choice("action", &ACTIONS);
    let action = rule.require("action", action);
    if let Some(at) = rule.node("http").and(rule.key_at("http")) {
        report.error_help(at, "`http` has no meaning without an application-layer proxy", "leave it out");
    }
    if let Some(mut metadata) = rule.fields("metadata") {
        for (key, _) in metadata.string_map("annotations").unwrap_or_default() {
            validate::label_key(report, key);
        }
    }
    let protocol = rule.node("protocol").and_then(|node| protocol(report, node, "protocol"));
    let matches = Match {
        version: version(report, &mut rule),
        protocol,
        not_protocol: rule.node("notProtocol").and_then(|node| self::protocol(report, node, "notProtocol")),
        icmp: icmp(report, &mut rule, "icmp", protocol),
        not_icmp: icmp(report, &mut rule, "notICMP", protocol),
        source: entity(report, &mut rule, "source", namespace),
        destination: entity(report, &mut rule, "destination", namespace),
    };
    check_ports(report, &mut rule, protocol);
    check_families(report, &rule, &matches);
    drop(rule);
    Some(Rule { action: action?, index: index as u32, origin: report.origin(node.at), matches })
}

/// A name or a number.
fn protocol(report: &Report, node: &Node, name: &str) -> Option<Protocol> {
    if let Value::Scalar(scalar) = &node.value
        && let Some(number) = scalar.integer()
    {
        let protocol = u8::try_from(number).ok().filter(|number| *number != 0).map(Protocol);
        if protocol.is_none() {
            report.error_help(node.at, format!("{number} is no protocol"), "protocols go from 1 to 255");
        }
        return protocol;
    }
    let word = report.text(node, name)?;
    let found = PROTOCOLS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word.text));
    if found.is_none() {
        let names: Vec<&str> = PROTOCOLS.iter().map(|(known, _)| *known).collect();
        let help = format!("{}, or the number", did_you_mean(word.text, &names));
        report.error_help(word.at, format!("`{}` is no protocol", shorten(word.text)), help);
    }
    found.map(|(_, protocol)| *protocol)
}

fn version(report: &Report, rule: &mut Fields<'_>) -> Option<IpVersion> {
    match rule.integer("ipVersion")? {
        (4, _) => Some(IpVersion::V4),
        (6, _) => Some(IpVersion::V6),
        (other, at) => {
            report.error_help(at, format!("{other} is no IP version"), "4 or 6");
            None
        }
    }
}

fn icmp(report: &Report, rule: &mut Fields<'_>, name: &'static str, protocol: Option<Protocol>) -> Option<IcmpMatch> {
    /// Calico leaves the reserved type 255 out.
    const HIGHEST_TYPE: i64 = 254;
    let mut fields = rule.fields(name)?;
    let kind = fields.integer("type");
    let code = fields.integer("code");
    if !protocol.is_some_and(Protocol::is_icmp) {
        let at = rule.key_at(name).unwrap_or(fields.at);
        report.error_help(at, format!("`{name}` without ICMP"), "write `protocol: ICMP` or `protocol: ICMPv6`");
    }
    let (None, Some((_, at))) = (kind, code) else {
        let number = |value: Option<(i64, Pos)>, highest, what| {
            let (number, at) = value?;
            if !(0..=highest).contains(&number) {
                report.error_help(at, format!("{number} is no ICMP {what}"), format!("from 0 to {highest}"));
            }
            u8::try_from(number).ok()
        };
        let (kind, code) = (number(kind, HIGHEST_TYPE, "type"), number(code, u8::MAX.into(), "code"));
        return (kind.is_some() || name == "notICMP").then_some(IcmpMatch { kind, code });
    };
    report.error_help(at, "an ICMP code without a type", "write the `type` that the code belongs to");
    None
}

fn entity(report: &Report, rule: &mut Fields<'_>, name: &'static str, namespace: Option<&str>) -> EntityMatch {
    let Some(mut entity) = rule.fields(name) else { return EntityMatch::default() };
    if let Some(at) = entity.node("services").and(entity.key_at("services")) {
        let help = "select the endpoints behind the service with `selector`";
        report.error_help(at, "`services` has no meaning without Kubernetes' lists of endpoints", help);
    }
    let mut labels = Vec::new();
    let said = |text: &Text<'_>| !text.text.is_empty();
    let selector = entity.text("selector").filter(said);
    let not_selector = entity.text("notSelector").filter(said);
    let namespaces = entity.text("namespaceSelector").filter(said);
    let account = service_account(report, &mut entity);
    let selects = selector.is_some() || namespaces.is_some() || account.is_some();
    labels.extend(selector.and_then(|text| read_selector(report, text)));
    labels.extend(account);
    let scope = match (namespaces, namespace) {
        (Some(text), _) => namespace_scope(report, text),
        (None, Some(namespace)) => Scope::Namespace(namespace.to_owned()),
        (None, None) => Scope::Any,
    };
    // In a namespace even `notSelector` alone is about that namespace only.
    let selects = selects || (not_selector.is_some() && namespace.is_some());
    let nets = nets(report, &mut entity, "nets");
    let not_nets = nets_not(report, &mut entity);
    EntityMatch {
        selector: selects.then(|| Selector { scope, labels: all_of(labels) }),
        not_selector: not_selector
            .and_then(|text| read_selector(report, text))
            .map(|labels| Selector { scope: Scope::Any, labels }),
        nets: (!nets.is_empty()).then_some(nets),
        not_nets,
        ports: ports(report, &mut entity, "ports"),
        not_ports: ports(report, &mut entity, "notPorts").unwrap_or_default(),
    }
}

fn namespace_scope(report: &Report, text: Text<'_>) -> Scope {
    let Some(parsed) = parse_selector(report, text) else { return Scope::Any };
    match parsed.global {
        None => of_namespace(parsed.expr),
        Some(offset) => {
            if text.text.split_whitespace().collect::<String>() != "global()" {
                let help = "make two rules of it";
                report.error_help(text.inside(offset), "`global()` stands alone", help);
            }
            Scope::Global
        }
    }
}

/// Service accounts are labels here, named as Calico names them when it derives them.
fn service_account(report: &Report, entity: &mut Fields<'_>) -> Option<Expr> {
    let mut accounts = entity.fields("serviceAccounts")?;
    let names = accounts.texts("names").unwrap_or_default();
    let mut all = Vec::new();
    if !names.is_empty() {
        let names = names.iter().map(|text| text.text.to_owned()).collect();
        all.push(Expr::In(SERVICE_ACCOUNT.to_owned(), names));
    }
    let selector = accounts.text("selector").filter(|text| !text.text.is_empty());
    all.extend(selector.and_then(|text| read_selector(report, text)).map(of_service_account));
    Some(all_of(all))
}

fn nets(report: &Report, entity: &mut Fields<'_>, name: &'static str) -> Vec<IpNet> {
    let texts = entity.texts(name).unwrap_or_default();
    texts.into_iter().filter_map(|text| validate::cidr_or_address(report, text)).collect()
}

fn nets_not(report: &Report, entity: &mut Fields<'_>) -> Vec<IpNet> {
    let mut nets = Vec::new();
    for text in entity.texts("notNets").unwrap_or_default() {
        let Some(net) = validate::cidr_or_address(report, text) else { continue };
        if net.prefix_len() == 0 {
            let message = format!("`{}` in `notNets` leaves nothing", text.text);
            report.error_help(text.at, message, "a rule that never matches can be left out");
        }
        nets.push(net);
    }
    nets
}

/// Numbers, ranges (`"1:10"`) and names. `None`: all.
fn ports(report: &Report, entity: &mut Fields<'_>, name: &'static str) -> Option<Vec<PortMatch>> {
    let nodes = entity.list(name)?;
    let ports: Vec<_> = nodes.iter().filter_map(|node| port(report, node, name)).collect();
    (!nodes.is_empty()).then_some(ports)
}

fn port(report: &Report, node: &Node, name: &str) -> Option<PortMatch> {
    let Value::Scalar(scalar) = &node.value else {
        report.wrong_type(node, name, "a list of numbers, ranges (`\"1:10\"`) and names");
        return None;
    };
    let numbers: Vec<&str> = scalar.text.split(':').collect();
    let numbers: Vec<i64> = numbers.iter().map_while(|number| number.parse().ok()).take(numbers.len()).collect();
    match (numbers.as_slice(), scalar.text.matches(':').count()) {
        (&[port], 0) => validate::port(report, port, node.at).map(|port| PortMatch::Range(port..=port)),
        (&[first, last], 1) => {
            let (first, last) = (validate::port(report, first, node.at)?, validate::port(report, last, node.at)?);
            if last < first {
                let help = format!("write `{last}:{first}`");
                report.error_help(node.at, format!("the range `{}` goes down", scalar.text), help);
            }
            Some(PortMatch::Range(first..=last))
        }
        _ => port_name(report, report.text(node, name)?),
    }
}

fn port_name(report: &Report, text: Text<'_>) -> Option<PortMatch> {
    const LONGEST: usize = 128;
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
    if (1..=LONGEST).contains(&text.text.len()) && text.text.bytes().all(inner) {
        return Some(PortMatch::Named(text.text.to_owned()));
    }
    let message = format!("`{}` is neither a port, a range of ports nor a name", shorten(text.text));
    report.error_help(text.at, message, "such as `80`, `\"8000:8080\"` or `http`");
    None
}

/// Numbers mean nothing without a protocol that has ports; a name brings its own.
fn check_ports(report: &Report, rule: &mut Fields<'_>, protocol: Option<Protocol>) {
    let has_ports = protocol.map(|protocol| matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP));
    // A protocol that is wrong is reported already.
    if has_ports == Some(true) || (protocol.is_none() && rule.node("protocol").is_some()) {
        return;
    }
    for end in ["source", "destination"] {
        let Some(Value::Map(entries)) = rule.node(end).map(|node| &node.value) else { continue };
        for (key, node) in entries.iter().filter(|(key, _)| matches!(key.text.as_str(), "ports" | "notPorts")) {
            let Value::List(items) = &node.value else { continue };
            let is_name = |item: &Node| match &item.value {
                Value::Scalar(scalar) => !scalar.text.starts_with(|c: char| c.is_ascii_digit()),
                _ => true,
            };
            if items.iter().all(is_name) && has_ports.is_none() {
                continue;
            }
            let help = "write `protocol: TCP`, `UDP` or `SCTP` in the rule";
            report.error_help(key.at, format!("`{}` without a protocol that has ports", key.text), help);
        }
    }
}

/// What one rule says can be about one IP version only.
fn check_families(report: &Report, rule: &Fields<'_>, matches: &Match) {
    let of_net = |net: &IpNet| match net {
        IpNet::V4(_) => IpVersion::V4,
        IpNet::V6(_) => IpVersion::V6,
    };
    let ends = [&matches.source, &matches.destination];
    let nets = ends.into_iter().flat_map(|end| end.nets.iter().flatten().chain(&end.not_nets)).map(of_net);
    let of_protocol = match matches.protocol {
        Some(Protocol::ICMP) => Some(IpVersion::V4),
        Some(Protocol::ICMPV6) => Some(IpVersion::V6),
        _ => None,
    };
    let mut said = matches.version.into_iter().chain(of_protocol).chain(nets);
    let Some(first) = said.next() else { return };
    if said.any(|version| version != first) {
        let help = "make a rule for each of the two; ICMP is IPv4's, ICMPv6 is IPv6's";
        report.error_help(rule.at, "the rule is about IPv4 and IPv6 at once", help);
    }
}
