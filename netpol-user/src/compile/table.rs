//! One ordered list of rules as the table that gives the same answer for every packet.
//!
//! For each protocol that the rules name, the plane of destination and source ports is cut at every
//! port where some rule begins or ends, and the rules paint the cells in their order: a cell keeps
//! its first colour, which settles precedence, pass and defaults at once. What is left to do is to
//! write the picture down in few words.

use std::collections::{BTreeSet, HashMap};

use netpol_common::{
    tables::{Range, Ruling},
    wire::Protocol,
};

use super::{
    rules::RuleEntry,
    shape::{self, Declared, EVERYTHING, Shape, Spans},
};

/// The rules of one tier.
pub(super) struct Stage<'a, 'w> {
    pub rules: Vec<&'a RuleEntry<'w>>,
    /// What no rule decides. `None`: the next tier does.
    pub end: Option<Ruling>,
}

/// All that is asked about one pair.
pub(super) struct List<'a, 'w> {
    pub stages: Vec<Stage<'a, 'w>>,
    /// What no stage decides.
    pub profile: Ruling,
    pub declared: Declared<'a>,
}

/// Ports first, then ranges in order, then the last word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub ports: Vec<(Protocol, u16, Ruling)>,
    pub ranges: Vec<Range>,
    pub otherwise: Ruling,
}

/// More cells than this can't become a list that is short enough, and would cost memory without bound.
const MAX_CELLS: usize = 1 << 20;

/// The picture has too many cells: so many.
#[derive(Debug)]
pub(super) struct TooFine(pub usize);

impl List<'_, '_> {
    pub fn table(&self) -> Result<Table, TooFine> {
        let mut table = Table { ports: Vec::new(), ranges: Vec::new(), otherwise: self.rest() };
        let rules = self.stages.iter().flat_map(|stage| &stage.rules);
        let protocols: BTreeSet<_> = rules.flat_map(|rule| shape::named_protocols(rule.matches)).collect();
        for protocol in protocols {
            self.picture(protocol)?.write(protocol, &mut table);
        }
        Ok(table)
    }

    /// The ruling for protocols that no rule names: these have no ports that a rule could look at.
    fn rest(&self) -> Ruling {
        for stage in &self.stages {
            let hit = stage.rules.iter().find(|rule| shape::holds_for_rest(rule.matches));
            let ruling = match hit {
                Some(rule) => rule.ruling,
                None => stage.end,
            };
            if let Some(ruling) = ruling {
                return ruling;
            }
        }
        self.profile
    }

    fn picture(&self, protocol: Protocol) -> Result<Picture, TooFine> {
        let shaped = |rule: &&RuleEntry<'_>| Some((shape::shape(rule.matches, protocol, self.declared)?, rule.ruling));
        let stages: Vec<Vec<_>> = self.stages.iter().map(|s| s.rules.iter().filter_map(shaped).collect()).collect();
        let shapes = || stages.iter().flatten().map(|(shape, _)| shape);
        let mut picture = Picture::new(edges(shapes().map(|s| &s.destination)), edges(shapes().map(|s| &s.source)))?;
        for (shapes, stage) in stages.iter().zip(&self.stages) {
            for (shape, ruling) in shapes {
                picture.paint(shape, ruling.map_or(Cell::Passed, Cell::Ruled));
            }
            picture.end_stage(stage.end);
        }
        picture.finish(self.profile);
        Ok(picture)
    }
}

/// Where something begins, 0 included.
fn edges<'s>(spans: impl Iterator<Item = &'s Spans>) -> Vec<u16> {
    let mut edges = vec![0];
    edges.extend(spans.flatten().flat_map(|&[low, high]| [Some(low), high.checked_add(1)]).flatten());
    edges.sort_unstable();
    edges.dedup();
    edges
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Cell {
    Open,
    /// Some rule left it to the next stage.
    Passed,
    Ruled(Ruling),
}

struct Picture {
    /// Where columns and rows begin.
    destinations: Vec<u16>,
    sources: Vec<u16>,
    /// Column by column.
    cells: Vec<Cell>,
    /// How many cells are [`Cell::Open`].
    open: usize,
}

impl Picture {
    fn new(destinations: Vec<u16>, sources: Vec<u16>) -> Result<Self, TooFine> {
        let count = destinations.len() * sources.len();
        if count > MAX_CELLS {
            return Err(TooFine(count));
        }
        Ok(Self { destinations, sources, cells: vec![Cell::Open; count], open: count })
    }

    fn paint(&mut self, shape: &Shape, colour: Cell) {
        let inside = |edges: &[u16], [low, high]: [u16; 2]| {
            edges.partition_point(|&e| e < low)..edges.partition_point(|&e| e <= high)
        };
        // Nothing comes through a catch-all.
        if self.open == 0 {
            return;
        }
        let height = self.sources.len();
        for &columns in &shape.destination {
            for column in inside(&self.destinations, columns) {
                for &rows in &shape.source {
                    let rows = inside(&self.sources, rows);
                    let cells = &mut self.cells[column * height + rows.start..column * height + rows.end];
                    for cell in cells.iter_mut().filter(|cell| **cell == Cell::Open) {
                        *cell = colour;
                        self.open -= 1;
                    }
                }
            }
        }
    }

    fn end_stage(&mut self, end: Option<Ruling>) {
        for cell in &mut self.cells {
            *cell = match *cell {
                Cell::Open => end.map_or(Cell::Open, Cell::Ruled),
                Cell::Passed => Cell::Open,
                ruled @ Cell::Ruled(_) => ruled,
            };
        }
        self.open = self.cells.iter().filter(|cell| **cell == Cell::Open).count();
    }

    fn finish(&mut self, profile: Ruling) {
        self.cells.iter_mut().filter(|cell| **cell == Cell::Open).for_each(|cell| *cell = Cell::Ruled(profile));
    }

    /// Columns next to each other that look the same, as one.
    fn bands(&self) -> Vec<Band<'_>> {
        let height = self.sources.len();
        let mut bands: Vec<Band<'_>> = Vec::new();
        for (column, cells) in self.cells.chunks_exact(height).enumerate() {
            let end = self.destinations.get(column + 1).map_or(u16::MAX, |next| next - 1);
            match bands.last_mut() {
                Some(band) if band.cells == cells => band.columns[1] = end,
                _ => bands.push(Band { columns: [self.destinations[column], end], cells }),
            }
        }
        bands
    }

    /// Every band says only where it differs from the commonest, which comes last.
    fn write(&self, protocol: Protocol, table: &mut Table) {
        let bands = self.bands();
        let has_destination = protocol.has_ports() || protocol.is_icmp();
        if !has_destination && let [Band { cells: [Cell::Ruled(ruling)], .. }] = bands[..] {
            // Packets without ports count as port 0: an exact entry says it all.
            table.ports.extend((*ruling != table.otherwise).then_some((protocol, 0, *ruling)));
            return;
        }
        let common = self.commonest(&bands, table.otherwise);
        for band in bands.iter().filter(|band| band.cells != common) {
            match (band.columns, band.uniform()) {
                ([low, high], Some(ruling)) if low == high => table.ports.push((protocol, low, ruling)),
                (columns, Some(ruling)) => table.ranges.push(range(protocol, columns, EVERYTHING, ruling)),
                (columns, None) => {
                    let differing = |row: usize| band.cells[row] != common[row];
                    table.ranges.extend(self.runs(band.cells, differing).map(|(r, s)| range(protocol, columns, s, r)));
                }
            }
        }
        let differing = |row: usize| common[row] != Cell::Ruled(table.otherwise);
        let last: Vec<_> = self.runs(common, differing).map(|(r, s)| range(protocol, EVERYTHING, s, r)).collect();
        table.ranges.extend(last);
    }

    /// The look that saves most ranges when nobody has to say it; the list's own last word if it is as good.
    fn commonest<'p>(&self, bands: &[Band<'p>], otherwise: Ruling) -> &'p [Cell] {
        let mut saved: HashMap<&[Cell], usize> = HashMap::new();
        for band in bands {
            *saved.entry(band.cells).or_default() += band.cost();
        }
        let worth = |band: &&Band<'p>| {
            let own = self.runs(band.cells, |row| band.cells[row] != Cell::Ruled(otherwise)).count();
            (saved[band.cells] as isize - own as isize, own == 0)
        };
        // The first of the best: `max_by_key` takes the last, so ask from behind.
        bands.iter().rev().max_by_key(worth).map_or(&[], |band| band.cells)
    }

    /// Rows next to each other with the same ruling, where `wanted`.
    fn runs<'p>(
        &'p self,
        cells: &'p [Cell],
        wanted: impl Fn(usize) -> bool + 'p,
    ) -> impl Iterator<Item = (Ruling, [u16; 2])> + 'p {
        let mut row = 0;
        std::iter::from_fn(move || {
            while row < cells.len() {
                let start = row;
                row += 1;
                let Cell::Ruled(ruling) = cells[start] else { continue };
                if !wanted(start) {
                    continue;
                }
                while row < cells.len() && cells[row] == cells[start] && wanted(row) {
                    row += 1;
                }
                let end = self.sources.get(row).map_or(u16::MAX, |next| next - 1);
                return Some((ruling, [self.sources[start], end]));
            }
            None
        })
    }
}

/// Destinations at which the sources' rulings are the same.
struct Band<'p> {
    columns: [u16; 2],
    cells: &'p [Cell],
}

impl Band<'_> {
    /// The ruling where it doesn't depend on the source.
    fn uniform(&self) -> Option<Ruling> {
        match self.cells {
            [Cell::Ruled(ruling), rest @ ..] if rest.iter().all(|cell| *cell == self.cells[0]) => Some(*ruling),
            _ => None,
        }
    }

    /// About how many ranges it takes.
    fn cost(&self) -> usize {
        match self.uniform() {
            Some(_) => usize::from(self.columns[0] != self.columns[1]),
            None => self.cells.chunk_by(|a, b| a == b).count(),
        }
    }
}

const fn range(protocol: Protocol, destination: [u16; 2], source: [u16; 2], ruling: Ruling) -> Range {
    Range { destination, source, protocol, reserved: [0; 3], ruling }
}
