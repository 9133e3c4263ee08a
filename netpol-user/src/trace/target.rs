//! Who is spoken to.

use std::net::IpAddr;

use netpol_common::wire::Protocol;

use super::Service;
use crate::model::{
    World,
    probe::{Place, Probe},
};

/// What a connection is opened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Place(Place),
    Service {
        /// Which port of which service: an index into the list of them.
        index: usize,
        /// The address that was asked for; `None`: it was named.
        address: Option<IpAddr>,
    },
}

/// Finds who is meant by `text`. `place` knows endpoints and addresses.
///
/// An address and port at which a service is published mean that service. A name means an endpoint, or a service where
/// no endpoint is called so; `service/NAMESPACE/NAME` always means a service.
///
/// # Errors
/// What `place` says; or that the service has no such port.
pub fn target<E: From<NoPort>>(
    world: &World,
    services: &[Service],
    (text, probe): (&str, Probe),
    place: impl FnOnce(&World, &str) -> Result<Place, E>,
) -> Result<Target, E> {
    let asked = Asked { services, probe };
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(asked.at(address).unwrap_or_else(|| Target::Place(Place::of_address(world, address))));
    }
    if let Some(name) = text.strip_prefix("service/") {
        return Ok(asked.named(name)?.ok_or_else(|| NoPort::unknown(name))?);
    }
    match place(world, text) {
        Ok(place) => Ok(Target::Place(place)),
        Err(unknown) => asked.named(text)?.ok_or(unknown),
    }
}

/// The port that was asked for, among what is published.
struct Asked<'a> {
    services: &'a [Service],
    probe: Probe,
}

/// A service was named that does not publish the port, or that there is none of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoPort(String);

impl NoPort {
    fn unknown(name: &str) -> Self {
        Self(format!("no service is called {name:?}; `netpol services` lists those that are loaded"))
    }
}

impl Asked<'_> {
    fn port(&self) -> Option<(u16, Protocol)> {
        match self.probe {
            Probe::Port { port, protocol } => Some((port, protocol)),
            Probe::Icmp { .. } | Probe::Icmpv6 { .. } => None,
        }
    }

    fn at(&self, address: IpAddr) -> Option<Target> {
        let (port, protocol) = self.port()?;
        let is_there = |service: &Service| {
            // nobody's packets go to a loopback address: only the host's own sockets reach what is published there
            service.protocol == protocol && !address.is_loopback() && service.addresses.contains(&(address, port))
        };
        let index = self.services.iter().position(is_there)?;
        Some(Target::Service { index, address: Some(address) })
    }

    /// `None`: there is no service of that name.
    fn named(&self, text: &str) -> Result<Option<Target>, NoPort> {
        let is_it = |service: &Service| match text.split_once('/') {
            Some((namespace, name)) => (namespace, name) == (service.name.namespace.as_str(), &service.name.name),
            None => text == service.name.name,
        };
        let mut ports = self.services.iter().enumerate().filter(|(_, service)| is_it(service)).peekable();
        let Some((_, first)) = ports.peek() else { return Ok(None) };
        let name = first.name.clone();
        let mut published = Vec::new();
        for (index, service) in ports {
            let is_port = |(port, protocol)| service.protocol == protocol && service.has_port(port);
            if self.port().is_some_and(is_port) {
                return Ok(Some(Target::Service { index, address: None }));
            }
            let word = service.protocol.to_string().to_lowercase();
            published.push(format!("{}/{word}", service.port));
            published.extend(service.node_port.map(|port| format!("{port}/{word} (of the host)")));
        }
        Err(NoPort(format!("service {name} does not publish {}: it has {}", self.probe, published.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ObjectName,
        sample::{endpoint, origin, world},
    };

    fn service(name: &str, port: u16, node_port: Option<u16>) -> Service {
        let name = ObjectName { namespace: "x".to_owned(), name: name.to_owned() };
        let addresses = vec![("10.96.0.1".parse().unwrap(), port)];
        let origin = origin("services.yaml", 9);
        Service { name, port, protocol: Protocol::TCP, node_port, affinity: None, origin, addresses, backends: vec![] }
    }

    fn asked(text: &str, port: &str) -> Result<Target, String> {
        let world = world(&[endpoint("x/web", "10.0.0.1")]);
        let services = [service("api", 80, Some(8080)), service("web", 443, None)];
        let place = |_: &World, text: &str| match text {
            "x/web" => Ok(Place::Endpoint(0)),
            _ => Err(NoPort("nobody".to_owned())),
        };
        target(&world, &services, (text, port.parse().unwrap()), place).map_err(|error| error.to_string())
    }

    #[test]
    fn address_and_port_of_a_service_mean_the_service() {
        let address = "10.96.0.1".parse().unwrap();
        assert_eq!(asked("10.96.0.1", "80/tcp"), Ok(Target::Service { index: 0, address: Some(address) }));
        for port in ["80/udp", "81/tcp", "icmp"] {
            assert_eq!(asked("10.96.0.1", port), Ok(Target::Place(Place::Outside(address))), "{port}");
        }
        assert!(matches!(asked("10.0.0.1", "80/tcp"), Ok(Target::Place(Place::At { endpoint: 0, .. }))));
    }

    #[test]
    fn name_means_an_endpoint_before_a_service() {
        assert_eq!(asked("x/web", "443/tcp"), Ok(Target::Place(Place::Endpoint(0))));
        assert_eq!(asked("service/x/web", "443/tcp"), Ok(Target::Service { index: 1, address: None }));
        for (text, port) in [("x/api", "80/tcp"), ("api", "8080/tcp")] {
            assert_eq!(asked(text, port), Ok(Target::Service { index: 0, address: None }), "{text}");
        }
    }

    #[test]
    fn what_is_not_published_is_said() {
        assert_eq!(
            asked("x/api", "81/tcp"),
            Err("service x/api does not publish 81/tcp: it has 80/tcp, 8080/tcp (of the host)".to_owned())
        );
        assert_eq!(asked("x/nothing", "80/tcp"), Err("nobody".to_owned()));
        assert!(asked("service/x/nothing", "80/tcp").unwrap_err().contains("no service is called \"x/nothing\""));
    }
}
