//! What can't be compiled is refused, by name.

use std::net::IpAddr;

use netpol_common::tables::{IfIndex, MAX_RANGES, Network};

use super::worlds::{app, at, endpoint, policy, rule, running, tier};
use crate::{
    compile::{CompileError, Workload, compile},
    model::{Action, Direction, EntityMatch, Match, PortMatch, Protocol, TierDefault, World},
};

/// Each of `count` ranges is of another rule's making, so no two can become one.
fn with_ranges(count: u32) -> World {
    let range = |n: u32| {
        let first = (n * 10) as u16;
        let destination = EntityMatch { ports: Some(vec![PortMatch::Range(first..=first + 5)]), ..Default::default() };
        rule(n, Action::Allow, Match { protocol: Some(Protocol::TCP), destination, ..Default::default() })
    };
    let rules = (0..count).map(range).collect();
    let subject = policy("many", app("a"), Direction::Ingress, rules);
    World {
        endpoints: vec![endpoint("a", "10.0.0.1")],
        tiers: vec![tier(TierDefault::Deny, vec![subject])],
        ..World::default()
    }
}

#[test]
fn as_many_ranges_as_the_kernel_walks_are_fine() {
    let world = with_ranges(MAX_RANGES);
    assert_eq!(compile(&world, &running(&world), &[]).unwrap().ranges.len(), MAX_RANGES as usize);
}

#[test]
fn one_range_too_many_names_a_rule_and_its_line() {
    let world = with_ranges(MAX_RANGES + 1);
    let error = compile(&world, &running(&world), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "too many port ranges for one pair of endpoints: 65, at most 64 fit (most are of NetworkPolicy x/many, \
         ingress rule 1 (policies.yaml:0)); split or simplify the lists of ports"
    );
}

#[test]
fn ports_of_both_ends_can_not_exhaust_memory() {
    let singles = || Some((0..30_000).map(|port| PortMatch::Range(port * 2..=port * 2)).collect());
    let source = EntityMatch { ports: singles(), ..Default::default() };
    let destination = EntityMatch { ports: singles(), ..Default::default() };
    let matches = Match { protocol: Some(Protocol::TCP), source, destination, ..Default::default() };
    let mut world = with_ranges(0);
    world.tiers[0].policies[0].ingress = Some(vec![rule(3, Action::Allow, matches)]);
    let Err(CompileError::TooManyRanges { rule, .. }) = compile(&world, &running(&world), &[]) else {
        panic!("compiled");
    };
    assert_eq!(rule.unwrap().origin, at(3));
}

fn twins(networks: [u32; 2]) -> (World, Vec<Workload>) {
    let world = World { endpoints: vec![endpoint("a", "10.0.0.1"), endpoint("b", "10.0.0.1")], ..World::default() };
    let mut workloads = running(&world);
    workloads.iter_mut().zip(networks).for_each(|(workload, network)| workload.network = Network(network));
    (world, workloads)
}

#[test]
fn one_address_twice_in_a_network_is_refused() {
    let (world, workloads) = twins([1, 1]);
    let error = compile(&world, &workloads, &[]).unwrap_err().to_string();
    assert_eq!(error, "x/a and x/b have the same address 10.0.0.1 in the same network");
}

#[test]
fn an_address_of_the_host_is_nobody_elses() {
    let (world, workloads) = twins([0, 1]);
    let host: IpAddr = "10.0.0.1".parse().unwrap();
    let error = compile(&world, &workloads[..1], &[host]).unwrap_err().to_string();
    assert_eq!(error, "x/a and the host itself have the same address 10.0.0.1 in the same network");
}

#[test]
fn one_interface_belongs_to_one_workload() {
    let (world, mut workloads) = twins([1, 2]);
    workloads[1].ifindex = IfIndex(1);
    let error = compile(&world, &workloads, &[]).unwrap_err().to_string();
    assert_eq!(error, "x/a and x/b are behind the same interface (number 1)");
}
