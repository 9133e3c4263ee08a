//! The classifiers in the kernel, beside the logic on hash maps.

use netpol_common::{
    drops::{Drop, Pass, Side, Verdict},
    kernel::Settings,
    tables::IfIndex,
};
use netpol_user::{
    compile::Snapshot,
    datapath::{Action, Arrival, Counter, Datapath, Pins, Role},
    netns::Namespace,
};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::{
    host::{self, play},
    script::script,
    stage::Scene,
    support::Host,
};

/// As many as a random world has endpoints, at most.
const INTERFACES: usize = 6;

/// Classifiers that are loaded and attached to nothing.
pub struct Loaded {
    pub datapath: Datapath,
    counters: Vec<Counter>,
    would_drop: Vec<Counter>,
}

impl Loaded {
    pub fn new(host: &Host) -> Self {
        let datapath =
            Datapath::open_or_load(&Pins::at(host.bpffs()), None, None).expect("the kernel takes the classifiers");
        let counters = datapath.counters().expect("counters");
        let would_drop = datapath.would_drop().expect("counters");
        Self { datapath, counters, would_drop }
    }

    /// The verdict that was counted since the last time.
    pub fn counted(&mut self) -> Vec<(Side, Verdict, u64)> {
        growth(&mut self.counters, self.datapath.counters().expect("counters"))
    }

    /// What was counted that audited policies would have stopped.
    fn audited(&mut self) -> Vec<(Side, Verdict, u64)> {
        growth(&mut self.would_drop, self.datapath.would_drop().expect("counters"))
    }
}

/// What was counted since the last time.
fn growth(known: &mut Vec<Counter>, now: Vec<Counter>) -> Vec<(Side, Verdict, u64)> {
    let before = |counter: &Counter| {
        let same = |old: &&Counter| old.side == counter.side && old.verdict == counter.verdict;
        known.iter().find(same).map_or(0, |old| old.packets)
    };
    let new = now.iter().map(|counter| (counter.side, counter.verdict, counter.packets - before(counter)));
    let new = new.filter(|(.., packets)| *packets > 0).collect();
    *known = now;
    new
}

impl host::Kernel for Loaded {
    fn publish(&mut self, snapshot: &Snapshot, settings: Settings) -> Result<(), TestCaseError> {
        let published = self.datapath.publish(snapshot, settings);
        published.map(|_| ()).map_err(|error| TestCaseError::fail(error.to_string()))
    }

    fn frame(
        &mut self,
        Scene { arrival, frame }: Scene,
        verdict: Verdict,
        audited: &[(Side, Drop)],
    ) -> Result<(), TestCaseError> {
        let at = Arrival { interface: arrival.interface, ingress: arrival.ingress };
        let ran = self.datapath.test_run((Role::Workload, arrival.side), &frame, at);
        let action = ran.map_err(|error| TestCaseError::fail(format!("{error:?}")))?.action;
        let expected = match verdict {
            Err(_) => Action::Drop,
            Ok(Pass::Direct | Pass::Routed) => Action::Redirect,
            Ok(_) => Action::Next,
        };
        prop_assert_eq!((action, self.counted()), (expected, vec![(arrival.side, verdict, 1)]));
        let audited: Vec<_> = audited.iter().map(|(side, reason)| (*side, Err(*reason), 1)).collect();
        prop_assert_eq!(self.audited(), audited);
        Ok(())
    }
}

/// A host with interfaces to name, and their numbers.
pub fn interfaces(host: &Host, far: &Namespace) -> Vec<u32> {
    host.net(async |net| {
        let mut numbers = Vec::new();
        for number in 0..INTERFACES {
            let name = format!("v{number}");
            net.veth(&name, &name, far).await;
            numbers.push(net.index(&name).await);
        }
        numbers
    })
}

#[test]
fn the_classifiers_do_what_the_logic_does_on_the_host() {
    let host = Host::new();
    let far = Namespace::anonymous().expect("making a network namespace needs root");
    let numbers = interfaces(&host, &far);
    let mut loaded = Loaded::new(&host);
    let play_all = || {
        let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
        let loaded = std::cell::RefCell::new(&mut loaded);
        let played = TestRunner::new(config).run(&script(false), |script| {
            let mut loaded = loaded.borrow_mut();
            loaded.datapath.forget().map_err(|error| TestCaseError::fail(error.to_string()))?;
            play(&script, &numbers, &mut **loaded)
        });
        played.map_err(|error| error.to_string())
    };
    let result = host.namespace.enter(play_all).expect("entering a network namespace needs root");
    result.unwrap_or_else(|error| panic!("{error}"));
    let seen: Vec<_> = loaded.counters.iter().map(|counter| (counter.side, counter.verdict)).collect();
    for verdict in [(Side::From, Ok(Pass::Direct))].into_iter().chain(COMMON.map(|verdict| (Side::To, verdict))) {
        assert!(seen.contains(&verdict), "nothing ended as {verdict:?}, among {seen:?}");
    }
    assert!(!loaded.would_drop.is_empty(), "nothing was audited");
}

/// What a run that tests something cannot miss where packets arrive.
const COMMON: [Verdict; 8] = [
    Ok(Pass::Stack),
    Ok(Pass::Control),
    Err(Drop::PolicyEgress),
    Err(Drop::PolicyIngress),
    Err(Drop::Spoofed),
    Err(Drop::Vlan),
    Err(Drop::Fragment),
    Err(Drop::IcmpUnrelated),
];

#[test]
fn a_frame_for_no_interface_is_refused() {
    let host = Host::new();
    let loaded = Loaded::new(&host);
    let nowhere = Arrival { interface: IfIndex(12345), ingress: IfIndex::NONE };
    let run = || loaded.datapath.test_run((Role::Workload, Side::From), &[0; 60], nowhere).is_err();
    assert!(host.namespace.enter(run).expect("entering a network namespace needs root"));
}
