//! A state as netpol's own documents, for IPv4 and for IPv6.
//!
//! The IPv6 addresses are the IPv4 ones behind one /96: what shares a prefix in one family shares
//! it in the other, so every CIDR of a case has its counterpart, 96 bits longer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netpol_user::{
    format::{self, Loaded, Source},
    model::{IpVersion, Labels, Profile},
};
use serde_json::{Value, json};

use super::{
    case::{self, External, ExternalKind},
    state::State,
};

/// The first 96 bits of every IPv6 address (a unique local prefix, RFC 4193).
const PREFIX: [u16; 6] = [0xfd6e, 0x7470, 0, 0, 0, 0];

pub const FAMILIES: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

/// An address of a case in that family.
pub fn address(address: Ipv4Addr, family: IpVersion) -> IpAddr {
    let [a, b, c, d] = address.octets();
    let [p, q, r, s, t, u] = PREFIX;
    match family {
        IpVersion::V4 => address.into(),
        IpVersion::V6 => Ipv6Addr::new(p, q, r, s, t, u, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])).into(),
    }
}

/// The reverse of [`address`].
pub fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            Ipv4Addr::new(a, b, c, d)
        }
    }
}

/// The same address in each of [`FAMILIES`].
pub fn addresses(of: IpAddr) -> [IpAddr; 2] {
    FAMILIES.map(|family| address(v4(of), family))
}

fn network(network: Ipv4Net, family: IpVersion) -> Result<IpNet> {
    Ok(match (family, address(network.addr(), family)) {
        (IpVersion::V6, IpAddr::V6(_)) if network.prefix_len() == 0 => Ipv6Net::default().into(),
        (_, address) => {
            let bits = if address.is_ipv6() { 96 + network.prefix_len() } else { network.prefix_len() };
            IpNet::new(address, bits)?
        }
    })
}

/// Reads a state through netpol's own formats.
pub fn load(state: &State, profile: case::Profile, family: IpVersion) -> Result<Loaded> {
    let mut sources = vec![source("model", &model(state, family))];
    for ((_, key), object) in &state.objects {
        let object = rewrite(object, state, family)?;
        sources.push(source(&format!("{}/{}/{}", key.kind, key.namespace, key.name), &[object]));
    }
    let mut loaded = parse(sources)?;
    loaded.world.profile = match profile {
        case::Profile::Allow => Profile::Allow,
        case::Profile::Deny => Profile::Deny,
    };
    Ok(loaded)
}

/// Reads documents; an error has all that is wrong with them.
pub fn parse(sources: Vec<Source>) -> Result<Loaded> {
    format::parse(sources).map_err(|invalid| {
        let errors: Vec<_> =
            invalid.errors.iter().map(|error| format!("{}: {}", error.origin, error.message)).collect();
        anyhow::anyhow!("refused: {}", errors.join("; "))
    })
}

/// A stream of documents. JSON is YAML.
pub fn source(name: &str, documents: &[Value]) -> Source {
    let documents: Vec<_> = documents.iter().map(Value::to_string).collect();
    Source { name: name.to_owned(), text: documents.join("\n---\n").into_bytes() }
}

fn model(state: &State, family: IpVersion) -> Vec<Value> {
    let namespaces = state.namespaces.iter().map(
        |(name, labels)| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
    );
    let endpoints = state.pods.values().map(|pod| {
        let ports: Vec<_> = pod.ports.iter().map(port).collect();
        json!({
            "apiVersion": "netpol.dev/v1",
            "kind": "Endpoint",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
            "spec": {"addresses": [address(pod.ip, family)], "ports": ports},
        })
    });
    namespaces.chain(endpoints).collect()
}

fn port(case::Port { port, name, protocol }: &case::Port) -> Value {
    match name {
        Some(name) => json!({"name": name, "port": port, "protocol": protocol}),
        None => json!({"port": port, "protocol": protocol}),
    }
}

/// Puts addresses in the place of `${ip:END}` and `${cidr:END/BITS}`, and moves all to `family`.
fn rewrite(value: &Value, state: &State, family: IpVersion) -> Result<Value> {
    let inside = |value: &Value| rewrite(value, state, family);
    Ok(match value {
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| match key.as_str() {
                "nodes" => Ok(("networks".to_owned(), nodes(value, state, family)?)),
                _ => Ok((key.clone(), inside(value)?)),
            };
            Value::Object(fields.iter().map(field).collect::<Result<_>>()?)
        }
        Value::Array(items) => distinct(items.iter().map(inside).collect::<Result<_>>()?),
        Value::String(text) => {
            let text = substitute(text, state).with_context(|| format!("in {text:?}"))?;
            let network_text = text.parse::<Ipv4Net>().ok().map(|net| network(net, family)).transpose()?;
            let address_text = text.parse::<Ipv4Addr>().ok().map(|ip| address(ip, family).to_string());
            Value::String(network_text.map(|net| net.to_string()).or(address_text).unwrap_or(text))
        }
        other => other.clone(),
    })
}

/// No document says which machines there are and how they are labelled, so a peer by node is
/// written as what it stands for: the addresses of the nodes.
fn nodes(selector: &Value, state: &State, family: IpVersion) -> Result<Value> {
    let fields = selector.as_object().context("`nodes` is no selector")?;
    ensure!(fields.keys().all(|key| key == "matchLabels"), "`nodes` is selected by more than matchLabels");
    let wanted: Labels = serde_json::from_value(selector["matchLabels"].clone()).context("in `nodes`")?;
    let selected = |external: &&External| {
        let has = |(key, value)| external.labels.get(key) == Some(value);
        external.kind == ExternalKind::Node && wanted.iter().all(has)
    };
    let addresses = state.externals.values().filter(selected).map(|external| address(external.ip, family));
    Ok(addresses.map(|address| Value::String(IpNet::from(address).to_string())).collect())
}

/// `[0.0.0.0/0, ::/0]` would become the same network twice.
fn distinct(items: Vec<Value>) -> Value {
    let mut kept: Vec<Value> = vec![];
    for item in items {
        let is_network = item.as_str().is_some_and(|text| text.parse::<IpNet>().is_ok());
        if !(is_network && kept.contains(&item)) {
            kept.push(item);
        }
    }
    Value::Array(kept)
}

fn substitute(text: &str, state: &State) -> Result<String> {
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, from)) = rest.split_once("${") {
        let (inside, after) = from.split_once('}').context("a placeholder without end")?;
        done.push_str(before);
        done.push_str(&placeholder(inside, state)?);
        rest = after;
    }
    Ok(done + rest)
}

fn placeholder(inside: &str, state: &State) -> Result<String> {
    let (what, end) = inside.split_once(':').context("a placeholder without `:`")?;
    match what {
        "ip" => Ok(state.address(end)?.to_string()),
        "cidr" => {
            let (end, bits) = end.rsplit_once('/').context("a `cidr` without length")?;
            Ok(Ipv4Net::new(state.address(end)?, bits.parse()?)?.trunc().to_string())
        }
        other => anyhow::bail!("an unknown placeholder `{other}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut state = State::default();
        let labels = [("os".to_owned(), "linux".to_owned())].into();
        let ip = Ipv4Addr::new(10, 201, 3, 40);
        let node = External { name: "out".to_owned(), ip, kind: ExternalKind::Node, labels };
        state.externals.insert("@out".to_owned(), node);
        state
    }

    #[test]
    fn placeholders_become_addresses_of_the_family() {
        let object = json!({"a": "${ip:@out}/32", "b": ["${cidr:@out/24}", "${cidr:@out/4}"], "c": "${ip:@out}"});
        let v4 = rewrite(&object, &state(), IpVersion::V4).unwrap();
        assert_eq!(v4, json!({"a": "10.201.3.40/32", "b": ["10.201.3.0/24", "0.0.0.0/4"], "c": "10.201.3.40"}));
        let v6 = rewrite(&object, &state(), IpVersion::V6).unwrap();
        assert_eq!(
            v6,
            json!({"a": "fd6e:7470::ac9:328/128", "b": ["fd6e:7470::ac9:300/120", "fd6e:7470::/100"], "c": "fd6e:7470::ac9:328"})
        );
    }

    #[test]
    fn the_whole_of_one_family_becomes_the_whole_of_the_other() {
        let nets = json!(["0.0.0.0/0", "::/0"]);
        assert_eq!(rewrite(&nets, &state(), IpVersion::V6).unwrap(), json!(["::/0"]));
        assert_eq!(rewrite(&nets, &state(), IpVersion::V4).unwrap(), nets);
    }

    #[test]
    fn node_peers_become_their_addresses() {
        let by = |os: &str| json!({"to": [{"nodes": {"matchLabels": {"os": os}}}]});
        let written = rewrite(&by("linux"), &state(), IpVersion::V4).unwrap();
        assert_eq!(written, json!({"to": [{"networks": ["10.201.3.40/32"]}]}));
        assert_eq!(rewrite(&by("plan9"), &state(), IpVersion::V4).unwrap(), json!({"to": [{"networks": []}]}));
        assert!(rewrite(&json!({"nodes": {"matchExpressions": []}}), &state(), IpVersion::V4).is_err());
    }

    #[test]
    fn addresses_of_both_families_are_found_from_either() {
        let both =
            [address(Ipv4Addr::new(10, 65, 0, 1), IpVersion::V4), address(Ipv4Addr::new(10, 65, 0, 1), IpVersion::V6)];
        assert_eq!(both.map(addresses), [both; 2]);
    }

    #[test]
    fn unknown_placeholder_is_an_error() {
        assert!(rewrite(&json!("${ip:x/nobody}"), &state(), IpVersion::V4).is_err());
        assert!(rewrite(&json!("${mac:@out}"), &state(), IpVersion::V4).is_err());
    }
}
