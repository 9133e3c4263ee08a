//! The engines that send packets: the real classifiers, loaded by netpol's own library, in
//! namespaces of their own.
//!
//! ```text
//! world -> site (a container for each address) -> enforce::Instance::load
//! questions -> packet (each with a mark) -> wave (all at once, until a canary has arrived)
//!           -> what arrived -> the answers, back the same way -> what arrived of them
//! ```
//!
//! Nobody listens and nobody waits: a probe is a frame that the client's namespace sends, and what
//! counts is whether it comes out at the server's interface, and the answer at the client's.

mod packet;
mod site;
mod socket;
mod wave;

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use netpol_user::{
    datapath::{Datapath, Settings},
    enforce::{Instance, Options},
    format::Loaded,
    model::{Party, World},
    observe::Reader,
};

use super::engine::{Again, Engine, Maker, Question};
use crate::sandbox::Sandbox;
use packet::Turn;
use site::{Place, Plan, Site};
use wave::{Probe, Waves};

/// The kernel, by real packets: as containers are connected, and as netpol delivers to them.
const SETTINGS: [(&str, Plan, Settings); 5] = [
    ("bridged", Plan::Bridged, DIRECT),
    ("routed", Plan::Routed, DIRECT),
    ("bridged-stack", Plan::Bridged, Settings::STACK),
    ("routed-stack", Plan::Routed, Settings::STACK),
    ("mixed", Plan::Mixed, DIRECT),
];

/// Straight from interface to interface, wherever the host would.
const DIRECT: Settings = Settings(0);

pub fn makers(sandbox: &Sandbox) -> [Maker<'_>; SETTINGS.len()] {
    SETTINGS.map(|(name, plan, settings)| {
        let make = move || Ok(Box::new(Live::new(sandbox, plan, settings)?) as Box<dyn Engine + '_>);
        Maker { name, make: Box::new(make) }
    })
}

struct Live<'a> {
    sandbox: &'a Sandbox,
    plan: Plan,
    settings: Settings,
    site: Site,
    instance: Instance,
    waves: Waves,
}

impl<'a> Live<'a> {
    fn new(sandbox: &'a Sandbox, plan: Plan, settings: Settings) -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("live{}", MADE.fetch_add(1, Ordering::Relaxed));
        let instance = Instance::new(&sandbox.bpffs(&name), &sandbox.folder(&name)?);
        let (site, mut waves) = (Site::new(plan)?, Waves::default());
        waves.await_uplinks(&site)?;
        Ok(Self { sandbox, plan, settings, site, instance, waves })
    }

    /// Has a container for every endpoint, and says in `world` where it is.
    fn house(&mut self, world: &mut World, questions: &[Question]) -> Result<()> {
        let parties = questions.iter().flat_map(|question| [question.from, question.to]);
        let mut outside = parties.filter(|party| party.endpoint().is_none()).filter_map(Party::address);
        if outside.any(|address| self.site.has(address)) {
            *self = Self::new(self.sandbox, self.plan, self.settings)?;
        }
        for endpoint in &mut world.endpoints {
            let address = *endpoint.addresses.first().with_context(|| format!("{} has no address", endpoint.name))?;
            if !self.site.has(address) {
                self.site.add(address)?;
                self.waves.await_container(&self.site, address)?;
            }
            endpoint.attachment = Some(self.site.attachment(address)?);
        }
        Ok(())
    }

    /// Which of the connections were opened, and answered where answers exist.
    fn ask(&mut self, questions: &[Question]) -> Result<Vec<bool>> {
        let openings = questions.iter().map(probe).collect::<Result<Vec<_>>>()?;
        let mut allowed = self.waves.send(&self.site, &openings, Turn::Opening)?;
        let opened: Vec<_> = (0..openings.len()).filter(|&index| allowed[index]).collect();
        let answers = opened.iter().filter_map(|&index| Some((index, openings[index].answer()?)));
        let (asked, answers): (Vec<_>, Vec<_>) = answers.unzip();
        let answered = self.waves.send(&self.site, &answers, Turn::Answer)?;
        for (index, answered) in asked.into_iter().zip(answered) {
            allowed[index] = answered;
        }
        Ok(allowed)
    }

    /// What the kernel remembers of a connection, in both directions.
    fn records(&self, probe: &Probe) -> Result<Vec<String>> {
        let datapath = Datapath::open(&self.instance.pins)?;
        let names = self.instance.names(&datapath)?;
        let (reader, now) = (Reader::new(names.into()), std::time::SystemTime::now());
        let records = datapath.records()?;
        let same = records.iter().filter(|record| probe.is_of(record));
        let flows = same.map(|record| reader.flow(record, now)).filter(|flow| flow.current);
        let lines = flows.map(|flow| {
            let what = flow.drop_reason.unwrap_or(flow.verdict);
            let rule = &flow.explanation;
            let ends = format!("{} -> {}", flow.source.describe(), flow.destination.describe());
            format!("{what} {ends} at {} of {}: {rule}", flow.direction, flow.interface)
        });
        let mut lines: Vec<_> = lines.collect();
        lines.sort_unstable();
        Ok(lines)
    }

    fn counters(&self) -> Result<Vec<(String, u64)>> {
        let counters = Datapath::open(&self.instance.pins)?.counters()?;
        Ok(counters.iter().map(|c| (format!("{:?} at {:?}", c.verdict, c.side), c.packets)).collect())
    }
}

impl Engine for Live<'_> {
    fn verdicts(&mut self, world: &World, questions: &[Question]) -> Result<Vec<bool>> {
        let mut world = world.clone();
        self.house(&mut world, questions)?;
        let loaded = Loaded { world, ..Loaded::default() };
        let options = Options {
            settings: self.settings,
            attach: None,
            audit: false,
            strict: true,
            uplinks: Vec::new(),
            accept_addresses: false,
            flows: None,
            dry_run: false,
        };
        let load = || self.instance.load(&loaded, &options, &|_, _| {}).context("loading the policy");
        self.site.host.run(load)?;
        self.ask(questions)
    }

    fn again(&mut self, question: &Question) -> Result<Option<Again>> {
        let before = self.counters()?;
        let allowed = self.ask(&[*question])?[0];
        let counted = self.counters()?.into_iter().filter_map(|(what, after)| {
            let then = before.iter().find(|(other, _)| *other == what).map_or(0, |(_, packets)| *packets);
            (after > then).then(|| format!("{} {what}", after - then))
        });
        let counted = counted.collect::<Vec<_>>().join(", ");
        let mut seen = self.records(&probe(question)?)?;
        seen.push(format!("counted: {counted}"));
        Ok(Some(Again { allowed, seen }))
    }
}

fn probe(&Question { from, to, opening }: &Question) -> Result<Probe> {
    let address = |party: Party| party.address().context("a packet needs addresses");
    let place = |party: Party| match party {
        Party::Endpoint { address: Some(address), .. } => Place::Container(address),
        _ => Place::Outside,
    };
    Ok(Probe { places: [place(from), place(to)], addresses: [address(from)?, address(to)?], opening })
}
