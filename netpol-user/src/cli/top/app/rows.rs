//! Which rows the present tab has, and in what order.

use std::{cmp::Ordering, mem};

use super::App;
use crate::{
    cli::top::tables::{DropTable, Dropped, EndpointTable, FlowTable, RuleTable, ServiceTable, Tab, Table, drops},
    observe::{
        Connection,
        summary::{self, EndpointSum, RuleSum},
    },
};

/// A tab's order and position.
#[derive(Default)]
pub struct View {
    pub sort: usize,
    pub descending: bool,
    pub selected: usize,
    /// The first row on the screen.
    pub offset: usize,
    /// Rows in the order of the screen; only the first `sorted` of them are in order.
    pub order: Vec<u32>,
    sorted: usize,
    /// How wide columns were: they should not jump with every reading.
    pub widths: Vec<usize>,
}

/// What the tabs show besides the sample itself.
#[derive(Default)]
pub(super) struct Derived {
    groups: Vec<Connection>,
    endpoints: Vec<EndpointSum>,
    rules: Vec<RuleSum>,
    drops: Vec<Dropped>,
}

impl View {
    /// Sorted by a column, the highest first.
    pub fn by(sort: usize) -> Self {
        Self { sort, descending: true, ..Self::default() }
    }
}

impl App {
    /// The selected row of the table.
    pub fn selected(&self) -> Option<usize> {
        self.view().order.get(self.view().selected).map(|row| *row as usize)
    }

    pub fn view(&self) -> &View {
        &self.views[self.tab as usize]
    }

    pub fn view_mut(&mut self) -> &mut View {
        &mut self.views[self.tab as usize]
    }

    /// The present tab's table; `None`: there is no reading.
    pub fn with_table<T>(&self, look: impl FnOnce(&dyn Table) -> T) -> Option<T> {
        let sample = self.sample.as_deref()?;
        let names = sample.reader.names();
        Some(match self.tab {
            Tab::Flows => {
                let connections = if self.grouping.is_some() { &self.derived.groups } else { &sample.connections };
                look(&FlowTable { sample, connections, grouping: self.grouping })
            }
            Tab::Endpoints => look(&EndpointTable { names, sums: &self.derived.endpoints }),
            Tab::Rules => look(&RuleTable { names, sums: &self.derived.rules }),
            Tab::Drops => look(&DropTable { rates: &self.derived.drops }),
            Tab::Services => look(&ServiceTable { names, uses: &sample.services }),
        })
    }

    /// Puts the rows of the present tab together and in order, as far as they are on the screen.
    pub(super) fn arrange(&mut self) {
        let mut order = mem::take(&mut self.view_mut().order);
        order.clear();
        if let Some(sample) = &self.sample {
            let passes = |c: &&Connection| self.filter.is_empty() || self.filter.matches(&c.flow(sample));
            let matching = sample.connections.iter().filter(passes);
            let names = sample.reader.names();
            match (self.tab, self.grouping) {
                (Tab::Flows, Some(by)) => self.derived.groups = summary::groups(names, by, matching),
                (Tab::Flows, None) => {
                    let rows = (0..).zip(&sample.connections).filter(|(_, connection)| passes(connection));
                    order.extend(rows.map(|(row, _)| row));
                }
                (Tab::Endpoints, _) => self.derived.endpoints = summary::endpoints(names, matching),
                (Tab::Rules, _) => self.derived.rules = summary::rules(names, matching),
                (Tab::Drops, _) => self.derived.drops = drops(sample),
                (Tab::Services, _) => {}
            }
        }
        if self.tab != Tab::Flows || self.grouping.is_some() {
            let rows = self.with_table(|table| table.rows()).unwrap_or_default();
            order.extend(0..rows as u32);
        }
        let view = self.view_mut();
        view.selected = view.selected.min(order.len().saturating_sub(1));
        (view.order, view.sorted) = (order, 0);
        self.sort();
    }

    /// Brings into order what is on the screen, and a few pages more: sorting a million rows for twenty
    /// would take longer than reading them.
    pub fn sort(&mut self) {
        let (height, view) = (self.height, self.view());
        let wanted = (view.selected.max(view.offset) + height).min(view.order.len());
        if view.sorted >= wanted {
            return;
        }
        let count = (wanted + 4 * height).min(view.order.len());
        let (column, descending) = (view.sort, view.descending);
        let mut order = mem::take(&mut self.view_mut().order);
        self.with_table(|table| {
            let compare = |a: &u32, b: &u32| -> Ordering {
                let (a, b) = (*a as usize, *b as usize);
                let ordering = table.compare(column, a, b);
                let ordering = if descending { ordering.reverse() } else { ordering };
                ordering.then_with(|| table.tie(a, b))
            };
            if count < order.len() {
                order.select_nth_unstable_by(count, compare);
            }
            order[..count].sort_unstable_by(compare);
        });
        let view = self.view_mut();
        (view.order, view.sorted) = (order, count);
    }
}
