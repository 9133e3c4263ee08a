//! What netpol loads for the benchmark of translations.

use std::{fmt::Write as _, net::Ipv4Addr};

use super::{
    super::{
        documents::NAMESPACE,
        traffic::{PORT, PORTS},
    },
    site::{PUBLISHED, VIRTUAL},
};

/// Addresses of services that nobody asks, and of their backends.
pub fn idle(number: u32) -> (Ipv4Addr, Ipv4Addr) {
    let at = |first: Ipv4Addr| Ipv4Addr::from_bits(first.to_bits() + number);
    (at(Ipv4Addr::new(10, 97, 0, 1)), at(Ipv4Addr::new(172, 20, 0, 1)))
}

/// `count` services: the second container's, at a virtual address and a port of the host's, and idle ones.
pub fn services(count: u32) -> String {
    let (address, port) = VIRTUAL;
    let ports = ["TCP", "UDP"].map(|protocol| {
        format!(
            "{{name: {}, port: {port}, targetPort: {PORT}, nodePort: {PUBLISHED}, protocol: {protocol}}}",
            protocol.to_lowercase()
        )
    });
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {NAMESPACE}}}\n\
         spec: {{type: NodePort, selector: {{app: w2}}, clusterIP: {address}, ports: [{}]}}\n",
        ports.join(", ")
    );
    for number in 1..count {
        let (address, backend) = idle(number);
        text += &elsewhere(&format!("idle-{number}"), &[&address.to_string()], "TCP", (80, 8_080));
        text += &slice(&format!("idle-{number}"), 0, "TCP", 8_080, &[&backend.to_string()]);
    }
    text
}

/// A service whose backends are named by [`slice`]s, at addresses of one or both families.
pub fn elsewhere(name: &str, addresses: &[&str], protocol: &str, (port, target): (u16, u16)) -> String {
    let quoted = addresses.iter().map(|address| format!("'{address}'")).collect::<Vec<_>>().join(", ");
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec: {{clusterIP: '{}', clusterIPs: [{quoted}], ports: \
         [{{port: {port}, targetPort: {target}, protocol: {protocol}}}]}}\n",
        addresses[0]
    )
}

/// Backends of a service, all of one family.
pub fn slice(service: &str, number: u32, protocol: &str, port: u16, backends: &[&str]) -> String {
    let family = if backends[0].contains(':') { "IPv6" } else { "IPv4" };
    let label = family.to_lowercase();
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-{label}-{number}, namespace: {NAMESPACE}, \
         labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: {family}\n\
         ports: [{{port: {port}, protocol: {protocol}}}]\nendpoints:\n"
    );
    for backend in backends {
        let _ = writeln!(text, "- {{addresses: ['{backend}']}}");
    }
    text
}

/// The containers' addresses leave by the uplink as the host's.
pub fn pool() -> String {
    "---\napiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: containers}\n\
     spec: {cidr: 10.77.0.0/16, natOutgoing: true}\n"
        .to_owned()
}

/// Both containers are isolated but for the ports of the traffic, whoever asks.
pub fn policy() -> String {
    let last = PORT + PORTS - 1;
    let ports =
        format!("[{{protocol: TCP, port: {PORT}, endPort: {last}}}, {{protocol: UDP, port: {PORT}, endPort: {last}}}]");
    let one = |app: &str, direction: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: {app}, namespace: {NAMESPACE}}}\nspec:\n  podSelector: {{matchLabels: {{app: {app}}}}}\n  \
             policyTypes: [{direction}]\n  {}: [{{ports: {ports}}}]\n",
            direction.to_lowercase()
        )
    };
    one("w1", "Egress") + &one("w2", "Ingress")
}

#[cfg(test)]
mod tests {
    use anyhow::{Result, anyhow};
    use netpol_user::format::{self, Source};

    use super::*;

    fn valid(text: String) -> Result<()> {
        let loaded = format::parse(vec![Source { name: "bench.yaml".into(), text: text.into() }])
            .map_err(|invalid| anyhow!("{:?}", invalid.errors))?;
        assert_eq!(loaded.warnings, []);
        Ok(())
    }

    #[test]
    fn documents_are_what_netpol_takes() -> Result<()> {
        valid(services(300) + &pool() + &policy())?;
        let both = elsewhere("web", &["10.96.1.1", "fd96:1::1"], "UDP", (7_001, 7_002));
        valid(both + &slice("web", 0, "UDP", 7_002, &["10.96.1.2"]) + &slice("web", 0, "UDP", 7_002, &["fd96:1::2"]))
    }

    #[test]
    fn so_many_services_are_so_many() {
        assert_eq!(services(100).matches("kind: Service\n").count(), 100);
    }
}
