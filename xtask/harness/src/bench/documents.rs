//! The policies and endpoints that the benchmark loads, generated to a size.

use std::{fmt::Write as _, net::Ipv4Addr};

use super::{
    topology::Topology,
    traffic::{PORT, PORTS},
};

/// Of the namespace in which everything generated is.
pub(super) const NAMESPACE: &str = "bench";
/// A port that no generated policy allows.
pub const DENIED_PORT: u16 = PORT - 1;

/// Every container of the topology as an endpoint labelled with its own name.
pub fn endpoints(topology: &Topology) -> String {
    topology.workloads.iter().map(|workload| endpoint(&workload.name(), &workload.netns.path())).collect()
}

fn endpoint(name: &str, netns: &str) -> String {
    format!(
        "---\n\
         apiVersion: netpol.dev/v1\n\
         kind: Endpoint\n\
         metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {name}}}}}\n\
         spec: {{netns: {netns}, interface: eth0}}\n"
    )
}

/// The first container may open connections to the second at the ports of the traffic; both are isolated in both
/// directions otherwise.
pub fn pair() -> String {
    let last = PORT + PORTS - 1;
    let ports =
        format!("[{{protocol: TCP, port: {PORT}, endPort: {last}}}, {{protocol: UDP, port: {PORT}, endPort: {last}}}]");
    let mut text = String::new();
    for (name, subject, clause) in [
        ("client", "w1", format!("egress: [{{to: [{{podSelector: {{matchLabels: {{app: w2}}}}}}], ports: {ports}}}]")),
        (
            "server",
            "w2",
            format!("ingress: [{{from: [{{podSelector: {{matchLabels: {{app: w1}}}}}}], ports: {ports}}}]"),
        ),
    ] {
        text += &network_policy(name, subject, &clause);
    }
    text
}

/// How much stands beside the rule that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Outside networks that rules name: each is an identity of its own.
    pub networks: u32,
    /// Ports that each of them may reach.
    pub ports: u16,
}

impl Size {
    /// Entries of the compiled tables: one for each network and port.
    pub fn entries(self) -> u32 {
        self.networks * u32::from(self.ports)
    }
}

/// Rules about outside networks, which only make the tables of the second container larger. Ports differ from network
/// to network, so that no two of them share a rule set.
pub fn bulk(size: Size) -> String {
    if size.networks == 0 {
        return String::new();
    }
    let mut text = format!(
        "---\n\
         apiVersion: projectcalico.org/v3\n\
         kind: NetworkPolicy\n\
         metadata: {{name: bulk, namespace: {NAMESPACE}}}\n\
         spec:\n  selector: app == 'w2'\n  types: [Ingress]\n  ingress:\n"
    );
    for network in 0..size.networks {
        let address = Ipv4Addr::from(Ipv4Addr::new(172, 16, 0, 0).to_bits() + network);
        let first = 10_000 + network % 10_000;
        let ports = (0..size.ports).map(|port| (first + u32::from(port) * 2).to_string()).collect::<Vec<_>>();
        let _ = writeln!(
            text,
            "  - {{action: Allow, protocol: TCP, source: {{nets: [{address}/32]}}, destination: {{ports: [{}]}}}}",
            ports.join(", ")
        );
    }
    text
}

/// A policy for each container: its neighbour may reach it at a port.
pub fn ring(count: u16, port: u16) -> String {
    (1..=count)
        .map(|number| {
            let neighbour = number % count + 1;
            let clause = format!(
                "ingress: [{{from: [{{podSelector: {{matchLabels: {{app: w{neighbour}}}}}}}], \
                 ports: [{{protocol: TCP, port: {port}}}]}}]"
            );
            network_policy(&format!("p{number}"), &format!("w{number}"), &clause)
        })
        .collect()
}

fn network_policy(name: &str, app: &str, clause: &str) -> String {
    let types = if clause.starts_with("egress") { "[Ingress, Egress]" } else { "[Ingress]" };
    format!(
        "---\n\
         apiVersion: networking.k8s.io/v1\n\
         kind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: {app}}}}}\n  policyTypes: {types}\n  {clause}\n"
    )
}

#[cfg(test)]
mod tests {
    use anyhow::{Result, anyhow};
    use netpol_common::tables::IfIndex;
    use netpol_user::{
        compile::{Snapshot, Workload, compile},
        format::{self, Source},
    };

    use super::*;

    /// What netpol makes of `policies` for so many endpoints.
    fn compiled(endpoints: u16, policies: &str) -> Result<Snapshot> {
        let endpoints = (1..=endpoints).map(|number| endpoint(&format!("w{number}"), "/proc/1/fd/3"));
        let text = endpoints.collect::<String>() + policies;
        let loaded = format::parse(vec![Source { name: "bench.yaml".into(), text: text.into() }])
            .map_err(|invalid| anyhow!("{:?}", invalid.errors))?;
        assert_eq!(loaded.warnings, []);
        let workloads = (0_u16..).zip(&loaded.world.endpoints).map(|(number, _)| {
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 0, 11).to_bits() + u32::from(number));
            let workload = Workload::at(number.into(), IfIndex(u32::from(number) + 1), vec![address.into()]);
            Workload { master: IfIndex(2_000), segment: 1, ..workload }
        });
        Ok(compile(&loaded.world, &workloads.collect::<Vec<_>>(), &[])?)
    }

    #[test]
    fn the_tables_grow_by_as_many_entries_as_the_size_says() -> Result<()> {
        let entries = |size| Ok::<_, anyhow::Error>(compiled(2, &(pair() + &bulk(size)))?.ports.len());
        let none = entries(Size { networks: 0, ports: 0 })?;
        for size in
            [Size { networks: 1, ports: 10 }, Size { networks: 100, ports: 10 }, Size { networks: 1_000, ports: 100 }]
        {
            assert_eq!(entries(size)? - none, size.entries() as usize, "{size:?}");
        }
        Ok(())
    }

    #[test]
    fn every_network_is_an_identity_of_its_own() -> Result<()> {
        let identities = |networks| {
            Ok::<_, anyhow::Error>(compiled(2, &(pair() + &bulk(Size { networks, ports: 1 })))?.identities.len())
        };
        assert!(identities(1_000)? >= identities(1)? + 999);
        Ok(())
    }

    #[test]
    fn every_endpoint_of_a_ring_is_an_identity_of_its_own() -> Result<()> {
        assert!(compiled(100, &ring(100, 80))?.identities.len() >= 100);
        Ok(())
    }

    #[test]
    fn bulk_names_every_network_and_port() {
        let size = Size { networks: 3, ports: 2 };
        let text = bulk(size);
        assert_eq!(text.matches("/32").count(), 3);
        assert_eq!(size.entries(), 6);
        assert!(text.contains("nets: [172.16.0.2/32]}, destination: {ports: [10002, 10004]}"), "{text}");
    }

    #[test]
    fn no_bulk_is_no_document() {
        assert_eq!(bulk(Size { networks: 0, ports: 10 }), "");
    }

    #[test]
    fn the_last_of_a_ring_is_reached_by_the_first() {
        assert!(ring(3, 80).contains("name: p3, namespace: bench}\nspec:\n  podSelector: {matchLabels: {app: w3}}"));
        assert!(ring(3, 80).ends_with("{app: w1}}}], ports: [{protocol: TCP, port: 80}]}]\n"), "{}", ring(3, 80));
    }
}
