//! One look at the kernel, with the rates of the last seconds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    datapath::Datapath,
    enforce,
    observe::{
        Condition, Ends,
        graph::{Graph, Totals, graph},
        tally,
    },
};

/// Finding endpoints again costs more than reading flows, and changes less.
const CONDITION: Duration = Duration::from_secs(5);
/// What rates are about: who is denied tries again after 1, 2, 4 seconds, which must not look like now and then.
const WINDOW: Duration = Duration::from_secs(6);

/// The graph at one moment.
#[derive(Clone, Debug)]
pub struct Reading {
    pub graph: Graph,
    /// Of this reading and of those within the window, the oldest first.
    totals: Vec<(Instant, Arc<Totals>)>,
    condition: (Instant, Condition),
}

impl Reading {
    /// Reads flows and denials; rates are those since the oldest reading in the window that `before` remembers.
    pub fn take(instance: &enforce::Instance, before: Option<&Self>) -> Result<Self, enforce::Error> {
        let known = before.map(|before| &before.condition).filter(|(at, _)| at.elapsed() < CONDITION);
        let condition = match known {
            Some(known) => known.clone(),
            None => (Instant::now(), Condition::of(instance)?),
        };
        let (names, records) = if instance.pins.exist() {
            let datapath = Datapath::open(&instance.pins)?;
            (instance.names(&datapath)?, datapath.records()?)
        } else {
            Default::default()
        };
        let now = Instant::now();
        let rows = tally(&records, &Ends::new(&names, &condition.1.host_addresses), names.generation);
        let remembered = before.map_or(&[][..], |before| &before.totals);
        let mut totals: Vec<_> = remembered.iter().filter(|(at, _)| now - *at <= WINDOW).cloned().collect();
        let oldest = totals.first().map(|(at, totals)| (totals.as_ref(), now - *at));
        let (graph, latest) = graph((&names, &condition.1), &rows, oldest);
        totals.push((now, Arc::new(latest)));
        Ok(Self { graph, totals, condition })
    }
}
