//! Where boxes and nodes are. Whoever opens connections stands left of whom they are opened to, so the picture reads
//! like a sentence; namespaces are boxes in a grid, and outside and host stand before them.

use std::collections::{BTreeMap, BTreeSet};

use super::view::{Frame, Item, ItemKind};
use crate::observe::graph::Verdict;

const NODE: (f64, f64) = (168.0, 48.0);
const GROUP: (f64, f64) = (210.0, 64.0);
const PADDING: f64 = 22.0;
const TITLE: f64 = 30.0;
/// Between boxes.
const GAP: f64 = 90.0;
/// How wide the picture should be for its height.
const ASPECT: f64 = 2.7;
/// A longer chain of callers ends in one heap: nobody looks along a picture that is a mile wide.
const RANKS: usize = 8;
/// Nodes of one rank that stand in one column.
const COLUMN: usize = 7;

/// A rectangle that something stands in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placed {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

impl Placed {
    pub fn of(item: &Item) -> Self {
        Self { x: item.x, y: item.y, width: item.width, height: item.height }
    }

    /// Where a frame's name is written.
    pub fn title(x: f64, y: f64) -> Self {
        Self { x, y, width: 150.0, height: TITLE }
    }

    pub fn overlap(&self, other: &Self) -> f64 {
        let wide = (self.x + self.width).min(other.x + other.width) - self.x.max(other.x);
        let high = (self.y + self.height).min(other.y + other.height) - self.y.max(other.y);
        if wide > 0.0 && high > 0.0 { wide * high } else { 0.0 }
    }

    /// With a margin all around.
    pub fn grown(&self, margin: f64) -> Self {
        let (width, height) = (self.width + 2.0 * margin, self.height + 2.0 * margin);
        Self { x: self.x - margin, y: self.y - margin, width, height }
    }

    pub fn holds(&self, (x, y): (f64, f64)) -> bool {
        x > self.x && x < self.x + self.width && y > self.y && y < self.y + self.height
    }

    pub fn middle(&self) -> (f64, f64) {
        (self.x + self.width / 2.0, self.y + self.height / 2.0)
    }
}

/// What is placed as one.
struct Block {
    namespace: String,
    members: Vec<usize>,
    framed: bool,
    width: f64,
    height: f64,
}

/// Gives every item its place; what frames there are.
pub fn place(items: &mut [Item], links: &[(usize, usize, Verdict)]) -> Vec<Frame> {
    for item in items.iter_mut() {
        (item.width, item.height) = if item.kind == ItemKind::Group { GROUP } else { NODE };
    }
    let mut blocks = blocks(items);
    for block in &mut blocks {
        let (width, height) = arrange(items, &block.members, links);
        let frame = if block.framed { (2.0 * PADDING, 2.0 * PADDING + TITLE) } else { (0.0, 0.0) };
        (block.width, block.height) = (width + frame.0, height + frame.1);
    }
    let origins = shelves(&blocks);
    let mut frames = Vec::new();
    for (block, (x, y)) in blocks.iter().zip(&origins) {
        let inset = if block.framed { (PADDING, PADDING + TITLE) } else { (0.0, 0.0) };
        for member in &block.members {
            items[*member].x += x + inset.0;
            items[*member].y += y + inset.1;
        }
        if block.framed {
            let (namespace, width, height) = (block.namespace.clone(), block.width, block.height);
            frames.push(Frame { namespace, x: *x, y: *y, width, height });
        }
    }
    let bottom = blocks.iter().zip(&origins).map(|(block, (_, y))| y + block.height).fold(NODE.1, f64::max);
    beside(items, bottom);
    frames
}

/// Outside and host: left of everything, around the middle of its height.
fn beside(items: &mut [Item], height: f64) {
    let alone: Vec<usize> =
        (0..items.len()).filter(|i| matches!(items[*i].kind, ItemKind::Outside | ItemKind::Host)).collect();
    let step = NODE.1 + 110.0;
    let top = height / 2.0 - NODE.1 / 2.0 - step * (alone.len().saturating_sub(1)) as f64 / 2.0;
    // the middle of a frame's nodes is below that of the frame
    let top = top + TITLE / 2.0;
    for (row, index) in alone.into_iter().enumerate() {
        items[index].x = -NODE.0 - GAP - 30.0;
        items[index].y = top + step * row as f64;
    }
}

/// The open namespaces, and then all closed ones together.
fn blocks(items: &[Item]) -> Vec<Block> {
    let mut blocks: BTreeMap<(bool, &str), Block> = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        let Some(namespace) = &item.namespace else { continue };
        let closed = item.kind == ItemKind::Group;
        let block = blocks.entry((closed, if closed { "" } else { namespace })).or_insert_with(|| Block {
            namespace: namespace.clone(),
            members: Vec::new(),
            framed: !closed,
            width: 0.0,
            height: 0.0,
        });
        block.members.push(index);
    }
    blocks.into_values().collect()
}

/// Places the members of a block from (0, 0) on, in columns; what room they take.
fn arrange(items: &mut [Item], members: &[usize], links: &[(usize, usize, Verdict)]) -> (f64, f64) {
    let inside: BTreeSet<usize> = members.iter().copied().collect();
    let allowed = links.iter().filter(|(from, to, verdict)| *verdict != Verdict::Denied && from != to);
    let mut before: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (from, to, _) in allowed.filter(|(from, to, _)| inside.contains(from) && inside.contains(to)) {
        before.entry(*to).or_default().push(*from);
    }
    let ranks = ranks(members, &before);
    let tallest = COLUMN.max((members.len() as f64 / 2.5).sqrt().ceil() as usize);
    let mut columns: Vec<Vec<usize>> = Vec::new();
    for rank in 0..=ranks.values().copied().max().unwrap_or(0) {
        let mut of: Vec<usize> = members.iter().copied().filter(|member| ranks[member] == rank).collect();
        sort_by_neighbours(&mut of, &before, &columns);
        // as many in each column as in the next
        let even = of.len().div_ceil(of.len().div_ceil(tallest).max(1)).max(1);
        columns.extend(of.chunks(even).map(<[usize]>::to_vec));
    }
    // few nodes have room for whole sentences between them
    let (gap_x, gap_y) = match members.len() {
        ..=12 => (146.0, 104.0),
        13..=30 => (120.0, 40.0),
        31..=60 => (90.0, 26.0),
        _ => (40.0, 20.0),
    };
    let height = |column: &Vec<usize>| {
        let sum: f64 = column.iter().map(|member| items[*member].height).sum();
        sum + gap_y * column.len().saturating_sub(1) as f64
    };
    let heights: Vec<f64> = columns.iter().map(height).collect();
    let tallest = heights.iter().copied().fold(0.0, f64::max);
    let mut x = 0.0;
    let mut width: f64 = 0.0;
    for (column, height) in columns.iter().zip(&heights) {
        let mut y = (tallest - height) / 2.0;
        let mut wide: f64 = 0.0;
        for member in column {
            (items[*member].x, items[*member].y) = (x, y);
            y += items[*member].height + gap_y;
            wide = wide.max(items[*member].width);
        }
        width = x + wide;
        x = width + gap_x;
    }
    (width, tallest)
}

/// One more than the highest rank of those who call it. An edge that closes a circle counts for nothing.
fn ranks(members: &[usize], before: &BTreeMap<usize, Vec<usize>>) -> BTreeMap<usize, usize> {
    enum Step {
        Enter(usize),
        Leave(usize),
    }
    let mut ranks = BTreeMap::new();
    let mut entered = BTreeSet::new();
    let callers = |member: usize| before.get(&member).map_or(&[][..], Vec::as_slice);
    for member in members {
        let mut steps = vec![Step::Enter(*member)];
        while let Some(step) = steps.pop() {
            match step {
                Step::Enter(member) if entered.insert(member) => {
                    steps.push(Step::Leave(member));
                    steps.extend(callers(member).iter().rev().map(|caller| Step::Enter(*caller)));
                }
                Step::Enter(_) => {}
                Step::Leave(member) => {
                    // a caller that is entered and not left closes a circle
                    let rank = callers(member).iter().filter_map(|caller| ranks.get(caller)).map(|rank| rank + 1).max();
                    ranks.insert(member, rank.unwrap_or(0).min(RANKS - 1));
                }
            }
        }
    }
    ranks
}

/// Whoever is called from above stands above, so edges cross less.
fn sort_by_neighbours(column: &mut [usize], before: &BTreeMap<usize, Vec<usize>>, placed: &[Vec<usize>]) {
    let mut height: BTreeMap<usize, f64> = BTreeMap::new();
    for column in placed {
        let middle = (column.len() as f64 - 1.0) / 2.0;
        height.extend(column.iter().enumerate().map(|(row, member)| (*member, row as f64 - middle)));
    }
    let wish = |member: &usize| {
        let heights: Vec<f64> =
            before.get(member).into_iter().flatten().filter_map(|it| height.get(it).copied()).collect();
        if heights.is_empty() { 0.0 } else { heights.iter().sum::<f64>() / heights.len() as f64 }
    };
    // stable: by name among equals
    column.sort_by(|a, b| wish(a).total_cmp(&wish(b)));
}

/// Upper left corners, in rows. Of all widths the one whose picture is nearest to the wanted aspect.
fn shelves(blocks: &[Block]) -> Vec<(f64, f64)> {
    let widest = blocks.iter().map(|block| block.width).fold(0.0, f64::max);
    let together: f64 = blocks.iter().map(|block| block.width + GAP).sum();
    const TRIES: usize = 24;
    let tries = (0..=TRIES).map(|step| widest + (together - widest) * step as f64 / TRIES as f64);
    let arranged = tries.map(|width| rows(blocks, width.max(widest)));
    let off = |(_, (width, height)): &(Vec<(f64, f64)>, (f64, f64))| (width / height.max(1.0) / ASPECT).ln().abs();
    arranged.min_by(|a, b| off(a).total_cmp(&off(b))).map(|(origins, _)| origins).unwrap_or_default()
}

fn rows(blocks: &[Block], width: f64) -> (Vec<(f64, f64)>, (f64, f64)) {
    let (mut x, mut y, mut row, mut wide) = (0.0, 0.0, 0.0_f64, 0.0_f64);
    let mut origins = Vec::new();
    for block in blocks {
        if x > 0.0 && x + block.width > width + 0.5 {
            (x, y, row) = (0.0, y + row + GAP, 0.0);
        }
        origins.push((x, y));
        x += block.width + GAP;
        row = row.max(block.height);
        wide = wide.max(x - GAP);
    }
    (origins, (wide, y + row))
}
