//! Services at the sockets of the host.

use std::{collections::HashSet, net::Ipv4Addr};

use netpol_common::{
    drops::Drop,
    service::{Backend, MemberKey, ServiceKey, ServiceValue},
    socket::{SocketCookie, SocketKey, reach},
    wire::{Addr4, PortBe, Protocol},
};

use crate::support::Memory;

const PORT: PortBe = PortBe::from_host(80);

fn published() -> ServiceKey<Addr4> {
    ServiceKey { address: Ipv4Addr::LOCALHOST.into(), port: PORT, protocol: Protocol::TCP, zero: 0 }
}

fn backend(number: u8) -> Backend<Addr4> {
    Backend { address: Ipv4Addr::new(10, 0, 0, number).into(), port: PortBe::from_host(8080), zeros: 0 }
}

/// A service with these backends, each once in its table.
fn memory(backends: &[u8], affinity: u32) -> Memory {
    let mut memory = Memory::default();
    let key = published();
    memory.v4.services.insert(key, ServiceValue { first: 0, size: backends.len() as u32, affinity, service: 1 });
    memory.maglev = (0..backends.len() as u32).collect();
    memory.v4.backends = backends.iter().map(|&number| backend(number)).collect();
    for (index, backend) in memory.v4.backends.clone().iter().enumerate() {
        let member = MemberKey {
            address: key.address,
            backend: backend.address,
            port: key.port,
            backend_port: backend.port,
            protocol: key.protocol,
            zero: 0,
            zeros: 0,
        };
        memory.v4.members.insert(member, index as u32);
    }
    memory
}

fn ask(memory: &mut Memory, cookie: u64) -> Result<Option<Backend<Addr4>>, Drop> {
    let result = reach(memory, SocketCookie::new(cookie), &published(), memory.now);
    memory.settle();
    result
}

#[test]
fn a_socket_keeps_its_backend_and_sockets_are_spread() {
    let mut memory = memory(&[1, 2, 3, 4], 0);
    let mut seen = HashSet::new();
    for cookie in 0..200 {
        let first = ask(&mut memory, cookie).unwrap().unwrap();
        assert_eq!(ask(&mut memory, cookie), Ok(Some(first)));
        seen.insert(first);
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn with_affinity_all_sockets_stay_with_one_backend_until_it_is_gone_or_time_is_up() {
    let mut memory = memory(&[1, 2, 3, 4], 60);
    let first = ask(&mut memory, 1).unwrap().unwrap();
    for cookie in 2..50 {
        assert_eq!(ask(&mut memory, cookie), Ok(Some(first)));
    }
    // the table says another now, and the client stays
    memory.maglev.rotate_left(1);
    assert_eq!(ask(&mut memory, 50), Ok(Some(first)));
    let mut later = ask(&mut memory, 51);
    assert_eq!(later, Ok(Some(first)));
    memory.v4.members.retain(|key, _| key.backend != first.address);
    later = ask(&mut memory, 52);
    assert_ne!(later, Ok(Some(first)), "it is none of them any more");
    memory.maglev.rotate_left(1);
    memory.wait(61 * 1024);
    assert_ne!(ask(&mut memory, 53), later, "it was silent for too long");
}

#[test]
fn what_a_socket_asked_for_is_remembered_with_what_it_got() {
    let mut memory = memory(&[7], 0);
    let got = ask(&mut memory, 9).unwrap().unwrap();
    let key = SocketKey {
        cookie: SocketCookie::new(9),
        backend: got.address,
        port: got.port,
        protocol: Protocol::TCP,
        zero: 0,
    };
    assert_eq!(memory.v4.wanted.borrow().get(&key), Some(&published()));
}

#[test]
fn what_is_not_published_is_no_services_and_nobody_behind_one_is_an_error() {
    let mut empty = memory(&[], 0);
    assert_eq!(ask(&mut empty, 1), Err(Drop::NoBackend));
    let other = ServiceKey { protocol: Protocol::UDP, ..published() };
    assert_eq!(reach(&empty, SocketCookie::new(1), &other, empty.now), Ok(None));
    assert!(empty.v4.wanted.borrow().is_empty());
}
