//! The logic on hash maps: a snapshot's tables, and what packets leave behind.

use netpol_common::{
    drops::Verdict,
    flow::Generation,
    kernel::{Live, Settings},
    wire::{Addr4, Addr6},
};
use proptest::prelude::*;

use crate::{
    compile::{Snapshot, compile},
    datapath::{Memory, classify},
    oracle::Oracle,
    script::{Script, Step, script},
    stage::{self, Scene},
};
use netpol_common::drops::{Drop, Pass, Side};

/// Each publication of a script is made of its two worlds in turn.
pub fn snapshots(script: &Script, interfaces: &[u32]) -> Result<[Snapshot; 2], TestCaseError> {
    let compiled = |number: usize| {
        let world = &script.worlds[number];
        compile(world, &stage::workloads(world, interfaces), &stage::host_addresses())
            .map_err(|error| TestCaseError::reject(error.to_string()))
    };
    Ok([compiled(0)?, compiled(1)?])
}

pub fn publish(memory: &mut Memory, snapshot: &Snapshot, settings: Settings) {
    memory.v4.addresses = snapshot.addresses4.iter().copied().collect();
    memory.v6.addresses = snapshot.addresses6.iter().copied().collect();
    let networks4 = snapshot.networks4.iter();
    memory.v4.networks = networks4.map(|(n, id)| (Addr4::from(n.network()), n.prefix_len().into(), *id)).collect();
    let networks6 = snapshot.networks6.iter();
    memory.v6.networks = networks6.map(|(n, id)| (Addr6::from(n.network()), n.prefix_len().into(), *id)).collect();
    memory.hooks = snapshot.hooks.iter().copied().collect();
    memory.pairs = snapshot.pairs.iter().copied().collect();
    memory.ports = snapshot.ports.iter().copied().collect();
    memory.ranges = snapshot.ranges.clone();
    let generation = Generation(memory.live.generation.0 + 1);
    memory.live = Live { settings, generation };
}

/// Plays a script on hash maps. `also` sees each publication and each frame with its verdict.
pub fn play(script: &Script, interfaces: &[u32], also: &mut dyn Kernel) -> Result<(), TestCaseError> {
    let snapshots = snapshots(script, interfaces)?;
    // the oracle knows neither tampering nor a host that is policed
    let honest = script.steps.iter().all(|step| !matches!(step, Step::Say(say) if say.tampering.is_any()))
        && !script.settings.has(Settings::POLICE_HOST)
        && !script.settings.has(Settings::ISOLATE_WAITING);
    let actors = stage::actors(&stage::workloads(&script.worlds[0], interfaces));
    let mut memory = Memory::default();
    let mut oracle = Oracle::default();
    let mut world = 0;
    publish(&mut memory, &snapshots[0], script.settings);
    also.publish(&snapshots[0], script.settings)?;
    for (number, step) in script.steps.iter().enumerate() {
        let say = match step {
            Step::Publish => {
                world = 1 - world;
                publish(&mut memory, &snapshots[world], script.settings);
                oracle.publish();
                also.publish(&snapshots[world], script.settings)?;
                continue;
            }
            Step::Say(say) => say,
        };
        let talk = say.talk.get(&script.talks);
        let Some(ends) = stage::ends(talk, &actors) else { continue };
        let (from, to) = stage::direction(say, ends);
        let (sender, receiver) = stage::travels(say, (from, to));
        let mut hooks = Vec::new();
        if sender.is_workload() {
            hooks.push(Side::From);
        }
        if receiver.is_workload() {
            hooks.push(Side::To);
        }
        for side in hooks {
            let Scene { arrival, frame } = stage::scene(talk, say, (from, to), (side, &actors));
            memory.marked.set(false);
            let verdict = classify(&mut memory, arrival, &frame);
            let audited = memory.would_drop.take();
            also.frame(Scene { arrival, frame: frame.clone() }, verdict, &audited).map_err(|error| {
                TestCaseError::fail(format!("step {number}, {side:?} {arrival:?} {frame:02x?}: {error}"))
            })?;
            if honest {
                oracle
                    .check(&script.worlds[world], (talk, say), (from, to), (side, verdict.is_ok(), memory.marked.get()))
                    .map_err(|error| TestCaseError::fail(format!("step {number}, {side:?}: {error} ({verdict:?})")))?;
            }
            // the bridge brings no further what was dropped, or delivered directly
            if !matches!(verdict, Ok(Pass::Stack | Pass::Control | Pass::Unjudged)) {
                break;
            }
        }
    }
    Ok(())
}

/// Who else plays along.
pub trait Kernel {
    fn publish(&mut self, snapshot: &Snapshot, settings: Settings) -> Result<(), TestCaseError>;
    /// With what audited policies would have stopped.
    fn frame(&mut self, scene: Scene, verdict: Verdict, audited: &[(Side, Drop)]) -> Result<(), TestCaseError>;
}

struct Nobody;

impl Kernel for Nobody {
    fn publish(&mut self, _: &Snapshot, _: Settings) -> Result<(), TestCaseError> {
        Ok(())
    }

    fn frame(&mut self, _: Scene, _: Verdict, _: &[(Side, Drop)]) -> Result<(), TestCaseError> {
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Promise 3: an entry only repeats a verdict that the present policy gives to the connection's
    /// original direction; and nothing that it allows is dropped.
    #[test]
    fn state_never_widens_policy(script in script(true)) {
        let interfaces: Vec<u32> = (11..18).collect();
        play(&script, &interfaces, &mut Nobody)?;
    }
}
