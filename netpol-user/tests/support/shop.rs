//! The example that people see first, with real traffic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use netpol_user::netns::Namespace;
use serde_json::Value;

use super::{
    Attempt::Tcp,
    Endpoint, Example, Family,
    Seen::{Answered, Silent},
    Server, check,
};

/// The shop, busy: what it allows, what it denies, and somebody outside.
pub struct Shop {
    pub example: Example,
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
    _servers: Vec<Server>,
}

pub const ALLOWED: [(&str, &str, u16); 7] = [
    ("nginx-lb", "api-gateway", 80),
    ("api-gateway", "order-service", 80),
    ("api-gateway", "product-service", 80),
    ("order-service", "postgres-db", 5432),
    ("order-service", "redis-cache", 6379),
    ("product-service", "postgres-db", 5432),
    ("product-service", "redis-cache", 6379),
];
pub const DENIED: [(&str, &str, u16); 2] =
    [("redis-cache", "postgres-db", 5432), ("order-service", "product-service", 80)];

impl Shop {
    pub fn open() -> Self {
        Self::busy(Example::up("shop", "10.0.0.1/16"))
    }

    /// Whatever was loaded in the example by now is what its traffic meets.
    pub fn busy(example: Example) -> Self {
        let outside = example.host.outside();
        let of = |name: &str| &example.endpoints[name];
        example.endpoints.values().for_each(|endpoint| endpoint.gateways(&["10.0.0.1"]));
        let ports = [("nginx-lb", 80), ("api-gateway", 80), ("order-service", 80), ("product-service", 80)];
        let ports = ports.into_iter().chain([("redis-cache", 6379), ("postgres-db", 5432)]);
        let servers = ports.map(|(name, port)| of(name).serve_tcp(port)).collect();
        for (client, server, port) in ALLOWED {
            check(&[(of(client), Tcp(of(server).at(Family::V4, port)), Answered)]);
        }
        for (client, server, port) in DENIED {
            check(&[(of(client), Tcp(of(server).at(Family::V4, port)), Silent)]);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let calls = ALLOWED.iter().chain(&DENIED).map(|(client, server, port)| (of(client), of(server), *port));
        let outside_calls = [("nginx-lb", 80), ("api-gateway", 80)].map(|(server, port)| (&outside, of(server), port));
        let callers =
            calls.chain(outside_calls).map(|(c, s, port)| caller(c, &s.at(Family::V4, port), &stop)).collect();
        Self { example, stop, callers, _servers: servers }
    }

    pub fn graph(&self) -> Value {
        self.example.host.netpol(&["map", "-o", "json"]).json()
    }
}

/// Keeps trying.
fn caller(client: &Endpoint, to: &str, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let namespace = Namespace::open(client.namespace.path()).unwrap();
    let (name, host_interface) = (client.name.clone(), client.host_interface.clone());
    let client = Endpoint { name, namespace, host_interface, addresses: client.addresses.clone() };
    let (to, stop) = (to.to_owned(), Arc::clone(stop));
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            client.tcp(&to);
            std::thread::sleep(Duration::from_millis(40));
        }
    })
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.drain(..).for_each(|caller| _ = caller.join());
    }
}
