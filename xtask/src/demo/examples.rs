//! The examples as the demo plays them: who is there, and what is tried.
//!
//! Addresses and namespaces are those of the `Endpoint` documents in `policies/`; a test compares the two.

use super::topology::{CUSTOMER, ELSEWHERE, HOST, HOST_ADDRESS, INTERNET, UPDATES};

#[derive(Debug)]
pub struct Example {
    pub name: &'static str,
    pub about: &'static str,
    pub bridge: &'static str,
    pub gateway: &'static str,
    pub prefix: u8,
    pub services: &'static [Service],
    pub scenes: &'static [Scene],
    /// What goes through addresses that the host translates, under the last scene's policies; none: it translates none.
    pub translated: &'static [Request],
}

#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// As netpol names it.
    pub endpoint: &'static str,
    pub netns: &'static str,
    pub address: &'static str,
    /// Where its HTTP server listens.
    pub ports: &'static [u16],
}

/// One state of the policies.
#[derive(Debug)]
pub struct Scene {
    pub title: &'static str,
    pub about: &'static str,
    /// What is loaded.
    pub paths: &'static [&'static str],
    /// Of which ports the matrix is shown; none: all that endpoints declare.
    pub ports: &'static [&'static str],
    pub requests: &'static [Request],
}

#[derive(Debug)]
pub struct Request {
    /// Namespaces of the two sides.
    pub from: &'static str,
    pub to: &'static str,
    /// What the client dials, where that is not the service's own address.
    pub dialled: Option<&'static str>,
    pub port: u16,
    /// Whom the server must take the client for, where that is not the client itself.
    pub taken_for: Option<&'static str>,
    pub expected: Expected,
    pub why: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Answer,
    Silence,
}

impl Example {
    pub fn service(&self, netns: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.netns == netns)
    }
}

pub fn find(name: &str) -> Result<&'static Example, String> {
    ALL.iter().find(|example| example.name == name).ok_or_else(|| "it is one of shop, abc, stars".to_owned())
}

pub const fn service(
    endpoint: &'static str,
    netns: &'static str,
    address: &'static str,
    ports: &'static [u16],
) -> Service {
    Service { endpoint, netns, address, ports }
}

const fn answers(from: &'static str, to: &'static str, port: u16, why: &'static str) -> Request {
    Request { from, to, dialled: None, port, taken_for: None, expected: Expected::Answer, why }
}

const fn silent(from: &'static str, to: &'static str, port: u16, why: &'static str) -> Request {
    Request { expected: Expected::Silence, ..answers(from, to, port, why) }
}

/// To a server outside that knows the host alone.
const fn masqueraded(from: &'static str, why: &'static str) -> Request {
    Request { dialled: Some(UPDATES), taken_for: Some(HOST_ADDRESS), ..answers(from, INTERNET, 80, why) }
}

/// From the host itself, which the example's bridge knows by this address.
const fn from_host(to: &'static str, port: u16, why: &'static str) -> Request {
    Request { taken_for: Some(BRIDGE_ADDRESS), ..answers(HOST, to, port, why) }
}

/// The shop's bridge.
const BRIDGE_ADDRESS: &str = "10.0.0.1";
pub const LOCALHOST: &str = "127.0.0.1";

impl Request {
    /// The same by another address.
    const fn at(self, dialled: &'static str) -> Request {
        Request { dialled: Some(dialled), ..self }
    }
}

pub static ALL: [Example; 3] = [SHOP, ABC, STARS];

pub const SHOP: Example = Example {
    name: "shop",
    about: "An e-commerce platform of six services on one bridge, under least privilege.",
    bridge: "br-app",
    gateway: "10.0.0.1",
    prefix: 16,
    services: &[
        service("shop/nginx-lb", "nginx-lb", "10.0.0.10", &[80]),
        service("shop/api-gateway", "api-gateway", "10.0.0.20", &[80]),
        service("shop/product-service", "product-service", "10.0.0.30", &[80]),
        service("shop/order-service", "order-service", "10.0.0.40", &[80]),
        service("shop/redis-cache", "redis-cache", "10.0.0.50", &[6379]),
        service("shop/postgres-db", "postgres-db", "10.0.0.60", &[5432]),
    ],
    scenes: &[Scene {
        title: "Least privilege",
        about: "Nobody may talk to anybody, except along the way of an order.",
        paths: &["policies/shop"],
        ports: &[],
        requests: &[
            answers(CUSTOMER, "nginx-lb", 80, "customers come in at the edge"),
            answers("nginx-lb", "api-gateway", 80, "the edge hands on to the gateway"),
            answers("api-gateway", "order-service", 80, "the gateway calls the services"),
            answers("order-service", "postgres-db", 5432, "the services keep data"),
            silent("nginx-lb", "postgres-db", 5432, "a hole in the edge does not reach the data"),
            silent("redis-cache", "postgres-db", 5432, "data stores do not talk to each other"),
            silent("order-service", "product-service", 80, "services only answer the gateway"),
            silent(CUSTOMER, "api-gateway", 80, "customers come in at the edge, and only there"),
        ],
    }],
    translated: &[
        answers(CUSTOMER, "nginx-lb", 8080, "published; nginx sees its client's own address").at(HOST_ADDRESS),
        from_host("nginx-lb", 8080, "on the host itself, translated at the socket").at(LOCALHOST),
        masqueraded("nginx-lb", "everybody fetches updates"),
        masqueraded("api-gateway", "and is the host to whoever is outside"),
        masqueraded("product-service", ""),
        masqueraded("order-service", ""),
        masqueraded("redis-cache", ""),
        masqueraded("postgres-db", ""),
        silent("product-service", INTERNET, 80, "no way out to anywhere else").at(ELSEWHERE),
        silent("product-service", INTERNET, 25, "and to no other port").at(UPDATES),
        silent("postgres-db", "nginx-lb", 8080, "judged as what it is: postgres to nginx").at(HOST_ADDRESS),
    ],
};

const ABC: Example = Example {
    name: "abc",
    about: "Three services and one concern, in Calico's documents: C may not reach A.",
    bridge: "br-abc",
    gateway: "10.10.0.1",
    prefix: 24,
    services: &[
        service("abc/a", "abc-a", "10.10.0.11", &[80]),
        service("abc/b", "abc-b", "10.10.0.12", &[80]),
        service("abc/c", "abc-c", "10.10.0.13", &[80]),
    ],
    scenes: &[Scene {
        title: "A and B, without C",
        about: "A answers B. Whoever A does not know, C among them, gets no answer.",
        paths: &["policies/abc"],
        ports: &[],
        requests: &[
            answers("abc-a", "abc-b", 80, "A and B may talk to each other"),
            answers("abc-b", "abc-a", 80, "in both directions"),
            silent("abc-c", "abc-a", 80, "C may not reach A"),
            answers("abc-c", "abc-b", 80, "B has no policy: C may reach it"),
        ],
    }],
    translated: &[],
};

const STARS: Example = Example {
    name: "stars",
    about: "Namespaces that know each other by their labels; then card payments move in.",
    bridge: "br-stars",
    gateway: "10.20.0.1",
    prefix: 24,
    services: &[
        service("management-ui/ui", "stars-ui", "10.20.0.10", &[9001]),
        service("client/client", "stars-client", "10.20.0.11", &[9000]),
        service("frontend/facade", "stars-facade", "10.20.0.12", &[80]),
        service("backend/backend", "stars-backend", "10.20.0.13", &[6379]),
        service("pci/payments", "stars-payments", "10.20.0.14", &[8443]),
        service("infrastructure/queue", "stars-queue", "10.20.0.15", &[5000, 15672]),
        service("naming/resolver", "stars-resolver", "10.20.0.16", &[53]),
    ],
    scenes: &[
        Scene {
            title: "First version: client, facade, backend",
            about: "Default deny. The management UI looks at everybody; the rest goes one step at a time.",
            paths: &["policies/stars/v1"],
            // The policies of this version name no port: it is the same on each.
            ports: &["--port", "80/tcp"],
            requests: &[
                answers("stars-client", "stars-facade", 80, "facade from client only"),
                answers("stars-facade", "stars-backend", 6379, "backend from facade only"),
                answers("stars-ui", "stars-backend", 6379, "the management UI sees everything"),
                silent("stars-client", "stars-backend", 6379, "no way around the facade"),
                silent("stars-backend", "stars-facade", 80, "and none back"),
            ],
        },
        Scene {
            title: "Second version: pci and infrastructure",
            about: "The same, and two namespaces more. Nothing that was allowed before is touched.",
            paths: &["policies/stars"],
            ports: &["--port", "5000/tcp", "--port", "53/tcp"],
            requests: &[
                answers("stars-payments", "stars-queue", 5000, "pci is labelled requires=queue"),
                answers("stars-backend", "stars-queue", 5000, "and so is backend"),
                answers("stars-payments", "stars-resolver", 53, "names may be asked for"),
                silent("stars-payments", "stars-queue", 15672, "the queue's own port and no other"),
                silent("stars-payments", "stars-ui", 9001, "card data goes nowhere else"),
                silent("stars-facade", "stars-queue", 5000, "frontend is not labelled"),
                answers("stars-client", "stars-facade", 80, "as before"),
            ],
        },
    ],
    translated: &[],
};

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{demo::real::REAL, shell::root};

    /// The documents of an example, as one text.
    fn documents(folder: &Path) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(folder).expect("the example's folder") {
            let path = entry.expect("its entries").path();
            if path.is_dir() {
                text += &documents(&path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                text = text + "---\n" + &fs::read_to_string(path).expect("a document");
            }
        }
        text
    }

    #[test]
    fn topology_is_that_of_the_documents() {
        for example in ALL.iter().chain([&REAL]) {
            let mut text = documents(&root().join("policies").join(example.name));
            if std::ptr::eq(example, &REAL) {
                text += &documents(&root().join("xtask/src/demo/real"));
            }
            let endpoints: Vec<&str> = text.split("\n---").filter(|doc| doc.contains("kind: Endpoint")).collect();
            assert_eq!(endpoints.len(), example.services.len(), "{}", example.name);
            for Service { endpoint, netns, address, ports } in example.services {
                let (namespace, name) = endpoint.split_once('/').expect("namespace/name");
                let documents = endpoints.iter().filter(|doc| {
                    let has =
                        |line: String| doc.lines().any(|found| found.split(" #").next().map(str::trim) == Some(&line));
                    has(format!("namespace: {namespace}"))
                        && has(format!("name: {name}"))
                        && has(format!("netns: {netns}"))
                        && has(format!("addresses: [{address}]"))
                        && ports.iter().all(|port| doc.contains(&format!("port: {port},")))
                });
                assert_eq!(documents.count(), 1, "{endpoint}");
            }
        }
    }

    #[test]
    fn requests_are_between_services_that_listen() {
        for example in &ALL {
            for request in example.scenes.iter().flat_map(|scene| scene.requests) {
                let from_here = example.service(request.from).is_some() || request.from == CUSTOMER;
                let to = example.service(request.to).expect("a request goes to a service");
                assert!(from_here && request.dialled.is_none() && to.ports.contains(&request.port), "{request:?}");
            }
            for request in example.translated {
                let known =
                    |place: &str| example.service(place).is_some() || [CUSTOMER, INTERNET, HOST].contains(&place);
                assert!(known(request.from) && known(request.to) && request.dialled.is_some(), "{request:?}");
            }
        }
    }

    #[test]
    fn every_example_shows_both_an_answer_and_a_silence() {
        for scene in ALL.iter().flat_map(|example| example.scenes) {
            let shows = |expected| scene.requests.iter().any(|request| request.expected == expected);
            assert!(shows(Expected::Answer) && shows(Expected::Silence), "{}", scene.title);
        }
    }

    #[test]
    fn every_service_of_the_shop_is_seen_to_be_masqueraded() {
        for service in SHOP.services {
            let masqueraded = |request: &&Request| {
                request.from == service.netns && request.to == INTERNET && request.taken_for == Some(HOST_ADDRESS)
            };
            assert_eq!(SHOP.translated.iter().filter(masqueraded).count(), 1, "{}", service.netns);
        }
    }
}
