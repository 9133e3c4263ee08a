//! A thousand endpoints with a thousand policies: how long until they are enforced.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Setting, documents,
    netpol::{Instance, Loaded},
    progress::Progress,
    report::{Bound, Goal, Section, Table, Unit},
    stats::Spread,
    topology::{Families, Topology},
};

const ENDPOINTS: u16 = 1_000;
/// Ports of the policies: each version of them differs in nothing else.
const FIRST_PORT: u16 = 8_000;

/// Attaches in the way of kernels before 6.6, which have no TCX, on any kernel.
const CLASSIC: &[&str] = &["--attach", "cls"];

/// A load of some kind, repeated.
struct Step {
    what: &'static str,
    loads: Vec<Loaded>,
}

/// How long taking all of it off took, by each way of attachment.
struct Unloaded {
    tcx: Duration,
    /// `None`: this netpol does not offer it.
    classic: Option<Duration>,
}

pub fn run(setting: &Setting) -> Result<Section> {
    let progress = Progress::start("a thousand endpoints", 6);
    let topology = Topology::bridged(ENDPOINTS, Families::Both)?;
    progress.step("the first load attaches");
    let instance = Instance::new(setting.sandbox, setting.binary, "scale", &topology.host)?;
    let write = |version: u16| {
        instance.write(&(documents::endpoints(&topology) + &documents::ring(ENDPOINTS, FIRST_PORT + version)))
    };
    let times = if setting.quick { 3 } else { 9 };

    write(0)?;
    let first = instance.load(&[]).context("first load")?;
    progress.step("loading the same again");
    let same = (0..times).map(|_| instance.load(&[])).collect::<Result<Vec<_>>>().context("the same again")?;
    progress.step("changing all policies");
    let changed = (1..=times).map(|version| write(version).and_then(|()| instance.load(&[])));
    let changed = changed.collect::<Result<Vec<_>>>().context("changed policies")?;
    progress.step("unloading");
    let mut unloaded = Unloaded { tcx: instance.unload()?, classic: None };
    progress.step("attaching the way of older kernels");
    let mut classic = Vec::new();
    if instance.offers(CLASSIC[0])? {
        classic.push(instance.load(CLASSIC).context("load by cls_bpf")?);
        progress.step("unloading");
        unloaded.classic = Some(instance.unload()?);
    }
    progress.done();

    let steps = [
        Step { what: "first load, TCX", loads: vec![first] },
        Step { what: "first load, cls_bpf", loads: classic },
        Step { what: "nothing changed", loads: same },
        Step { what: "every policy changed", loads: changed },
    ];
    Ok(describe(&steps, &unloaded))
}

impl Step {
    /// Milliseconds from start to exit.
    fn wall(&self) -> Option<Spread> {
        Spread::of(&self.loads.iter().map(|load| load.wall.as_secs_f64() * 1e3).collect::<Vec<_>>())
    }

    /// Milliseconds of a step that `load` told about.
    fn timing(&self, name: &str) -> Option<Spread> {
        let values = self.loads.iter().filter_map(|load| load.timings.get(name).copied());
        Spread::of(&values.collect::<Vec<_>>())
    }

    fn peak_mebibytes(&self) -> Option<Spread> {
        Spread::of(&self.loads.iter().map(|load| load.peak_kib as f64 / 1024.0).collect::<Vec<_>>())
    }
}

fn describe(steps: &[Step], unloaded: &Unloaded) -> Section {
    let mut section = Section { title: "A thousand endpoints, a thousand policies", ..Section::default() };
    let identities = steps[0].loads[0].identities;
    section.notes.push(format!(
        "Each endpoint has a policy of its own, which makes {identities} identities. Medians of `netpol load -o json` \
         in milliseconds, from start to exit and by its own account."
    ));
    section.notes.extend(attachment(steps, unloaded));
    let names = steps.iter().flat_map(|step| &step.loads).flat_map(|load| load.timings.keys());
    let names = names.map(String::as_str).collect::<BTreeSet<_>>();
    let mut table = Table { header: vec!["load".to_owned(), "whole".to_owned()], rows: Vec::new() };
    table.header.extend(names.iter().map(|name| name.trim_end_matches("_ms").to_owned()));
    table.header.push("peak memory".to_owned());
    if steps.iter().any(|step| step.loads.is_empty()) {
        section.notes.push("Not measured: this netpol can't be told to attach by cls_bpf.".to_owned());
    }
    for step in steps.iter().filter(|step| !step.loads.is_empty()) {
        let figure =
            |unit: Unit, spread: Option<Spread>| spread.map_or(String::new(), |spread| unit.format(spread.median));
        let mut row = vec![step.what.to_owned(), figure(Unit::Milliseconds, step.wall())];
        row.extend(names.iter().map(|name| figure(Unit::Milliseconds, step.timing(name))));
        row.push(figure(Unit::Mebibytes, step.peak_mebibytes()));
        table.rows.push(row);
    }
    section.tables.push(table);
    section.goals = goals(steps);
    section
}

/// What each way of attachment costs an interface, once, and what taking it off does.
fn attachment(steps: &[Step], unloaded: &Unloaded) -> Option<String> {
    let each = |spread: Spread| spread.median / f64::from(ENDPOINTS);
    let per_interface = |step: &Step| step.timing("attach_ms").map(each);
    let [tcx, classic, ..] = steps else { return None };
    let milliseconds = |value: f64| Unit::Milliseconds.format(value);
    let whole = |time: Duration| milliseconds(time.as_secs_f64() * 1e3);
    let mut note = format!(
        "Attaching both classifiers to an interface takes {} by TCX, which waits for RCU under the lock of all \
         interfaces; taking off all of them, {}.",
        milliseconds(per_interface(tcx)?),
        whole(unloaded.tcx)
    );
    if let (Some(each), Some(off)) = (per_interface(classic), unloaded.classic) {
        note += &format!(" By cls_bpf it takes {} and {}.", milliseconds(each), whole(off));
    }
    Some(note)
}

fn goals(steps: &[Step]) -> Vec<Goal> {
    let [first, _, same, changed] = steps else { return Vec::new() };
    let goal = |what: &str, most: f64, unit, measured: Option<Spread>| {
        Some(Goal { what: what.to_owned(), bound: Bound::AtMost(most), unit, measured: measured? })
    };
    [
        goal(
            "1,000 endpoints and policies, compiled and published once attached",
            1_000.0,
            Unit::Milliseconds,
            changed.wall(),
        ),
        goal("1,000 endpoints and policies, nothing changed", 500.0, Unit::Milliseconds, same.wall()),
        goal(
            "1,000 endpoints and policies, publication itself",
            40.0,
            Unit::Milliseconds,
            changed.timing("publish_ms"),
        ),
        goal(
            "1,000 endpoints and policies, peak memory of the first load",
            200.0,
            Unit::Mebibytes,
            first.peak_mebibytes(),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNLOADED: Unloaded = Unloaded { tcx: Duration::from_millis(1), classic: Some(Duration::from_millis(3)) };

    fn load(publish_ms: f64) -> Loaded {
        Loaded {
            identities: 1_000,
            timings: [("publish_ms".to_owned(), publish_ms), ("attach_ms".to_owned(), publish_ms * 100.0)].into(),
            wall: Duration::from_millis(400),
            peak_kib: 100 << 10,
        }
    }

    fn steps() -> [Step; 4] {
        ["tcx", "cls", "same", "changed"].map(|what| Step { what, loads: vec![load(10.0), load(20.0), load(30.0)] })
    }

    #[test]
    fn publication_is_judged_by_the_loads_that_changed_something() {
        let mut steps = steps();
        steps[2].loads = vec![load(500.0)];
        let goals = goals(&steps);
        let publication = goals.iter().find(|goal| goal.what.contains("publication itself")).expect("a goal");
        assert_eq!(publication.measured.median, 20.0);
        assert!(publication.met());
    }

    #[test]
    fn every_timing_that_load_tells_is_a_column() {
        let section = describe(&steps(), &UNLOADED);
        assert_eq!(section.tables[0].header, ["load", "whole", "attach", "publish", "peak memory"]);
        assert_eq!(section.tables[0].rows[3], ["changed", "400 ms", "2,000 ms", "20.0 ms", "100 MiB"]);
    }

    #[test]
    fn both_ways_of_attachment_are_compared_by_interface() {
        let mut steps = steps();
        let note = |steps: &[Step]| describe(steps, &UNLOADED).notes.join(" ");
        assert!(
            note(&steps).contains("by TCX, which waits")
                && note(&steps).contains("By cls_bpf it takes 2.0 ms and 3.0 ms."),
            "{}",
            note(&steps)
        );
        steps[1].loads.clear();
        assert!(!note(&steps).contains("By cls_bpf"), "{}", note(&steps));
    }
}
