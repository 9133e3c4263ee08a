//! How edges go around nodes, and where their labels have room.

use std::collections::HashSet;

use super::{
    layout::Placed,
    view::{Frame, Label},
};
use crate::observe::graph::Verdict;

/// Points of a curve that are looked at.
const SAMPLES: usize = 18;
/// Above, edges go straight and have no labels.
const EDGES: usize = 300;
/// How far a curve may bend, in the order in which it is tried.
const BENDS: [f64; 11] = [0.0, 34.0, -34.0, 70.0, -70.0, 110.0, -110.0, 160.0, -160.0, 230.0, -230.0];
/// Of a letter of 11 units, on average.
const LETTER: f64 = 6.7;
const LINE: f64 = 15.0;
const MARGIN: f64 = 26.0;

/// A cubic Bézier curve.
#[derive(Clone, Copy, Debug)]
struct Bezier([(f64, f64); 4]);

impl Bezier {
    fn at(&self, t: f64) -> (f64, f64) {
        let u = 1.0 - t;
        let weights = [u * u * u, 3.0 * u * u * t, 3.0 * u * t * t, t * t * t];
        let sum = |pick: fn(&(f64, f64)) -> f64| self.0.iter().zip(weights).map(|(p, w)| pick(p) * w).sum::<f64>();
        (sum(|p| p.0), sum(|p| p.1))
    }

    fn path(&self) -> String {
        let [a, b, c, d] = self.0;
        format!("M{:.1},{:.1} C{:.1},{:.1} {:.1},{:.1} {:.1},{:.1}", a.0, a.1, b.0, b.1, c.0, c.1, d.0, d.1)
    }

    fn samples(&self) -> impl Iterator<Item = (f64, f64)> {
        (1..SAMPLES).map(|step| self.at(step as f64 / SAMPLES as f64))
    }
}

/// What the picture takes up.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    from: (f64, f64),
    to: (f64, f64),
}

impl Bounds {
    const NOTHING: Self = Self { from: (f64::MAX, f64::MAX), to: (f64::MIN, f64::MIN) };

    fn touches(&self, place: &Placed) -> bool {
        place.x <= self.to.0
            && place.x + place.width >= self.from.0
            && place.y <= self.to.1
            && place.y + place.height >= self.from.1
    }

    fn add(&mut self, x: f64, y: f64) {
        self.from = (self.from.0.min(x), self.from.1.min(y));
        self.to = (self.to.0.max(x), self.to.1.max(y));
    }

    fn add_rectangle(&mut self, place: &Placed) {
        self.add(place.x, place.y);
        self.add(place.x + place.width, place.y + place.height);
    }

    /// With the frames.
    pub fn around(mut self, frames: &[Frame]) -> Self {
        for frame in frames {
            self.add(frame.x, frame.y);
            self.add(frame.x + frame.width, frame.y + frame.height);
        }
        self
    }

    /// x, y, width and height, with a margin.
    pub fn rectangle(&self) -> (f64, f64, f64, f64) {
        if self.from.0 > self.to.0 {
            return (0.0, 0.0, 600.0, 200.0);
        }
        let (x, y) = (self.from.0 - MARGIN, self.from.1 - MARGIN);
        (x, y, self.to.0 - x + MARGIN, self.to.1 - y + MARGIN)
    }
}

/// The path and the label of each link, in their order: denied ones come first, and choose first.
pub fn route(
    nodes: &[Placed],
    titles: &[Placed],
    links: &[(usize, usize, Verdict)],
    labels: &[Vec<String>],
) -> (Bounds, Vec<(String, Option<Label>)>) {
    let mut bounds = Bounds::NOTHING;
    nodes.iter().for_each(|node| bounds.add_rectangle(node));
    let crowded = links.len() > EDGES;
    let mut taken = Taken::default();
    let curves: Vec<Bezier> = links
        .iter()
        .map(|link| {
            let curve = if crowded { candidate(nodes, link, 0.0) } else { best(nodes, link, &taken) };
            // edges that run on each other look like one
            taken.add(&curve);
            curve.samples().for_each(|(x, y)| bounds.add(x, y));
            curve
        })
        .collect();
    let mut written: Vec<Placed> = titles.to_vec();
    let label = |index: usize, curve: &Bezier, written: &mut Vec<Placed>| {
        let lines = labels.get(index).filter(|_| !crowded)?;
        let must = links[index].2 != Verdict::Allowed;
        let place = room(curve, lines, (nodes, written), must)?;
        written.push(place);
        let (x, y) = place.middle();
        Some(Label { x, y, width: place.width, height: place.height, lines: lines.clone() })
    };
    let mut routes = Vec::new();
    for (index, curve) in curves.iter().enumerate() {
        routes.push((curve.path(), label(index, curve, &mut written)));
    }
    written.iter().for_each(|place| bounds.add_rectangle(place));
    (bounds, routes)
}

/// Where curves run already, in cells: what passes the same cell runs together.
#[derive(Default)]
struct Taken(HashSet<(i64, i64)>);

impl Taken {
    fn cell((x, y): (f64, f64)) -> (i64, i64) {
        ((x / 18.0).round() as i64, (y / 9.0).round() as i64)
    }

    fn add(&mut self, curve: &Bezier) {
        self.0.extend(curve.samples().map(Self::cell));
    }

    fn has(&self, point: (f64, f64)) -> bool {
        let (x, y) = Self::cell(point);
        [(0, 0), (1, 0), (-1, 0)].iter().any(|(dx, dy)| self.0.contains(&(x + dx, y + dy)))
    }
}

/// The curve that meets the fewest nodes, and runs the least along other curves.
fn best(nodes: &[Placed], link: &(usize, usize, Verdict), taken: &Taken) -> Bezier {
    let curves = BENDS.map(|bend| (candidate(nodes, link, bend), bend));
    let mut reach = Bounds::NOTHING;
    curves.iter().for_each(|(curve, _)| curve.0.iter().for_each(|(x, y)| reach.add(*x, *y)));
    // an edge ends at its own two nodes, and does not cross them
    let others = nodes.iter().enumerate().filter(|(index, _)| *index != link.0 && *index != link.1);
    let wide = others.map(|(_, it)| it.grown(8.0)).filter(|it| reach.touches(it));
    let in_the_way: Vec<Placed> = wide.collect();
    let cost = |(curve, bend): &(Bezier, f64)| {
        let crossed =
            curve.samples().map(|point| in_the_way.iter().filter(|it| it.holds(point)).count()).sum::<usize>();
        let along = curve.samples().filter(|point| taken.has(*point)).count();
        // two curves may cross; what runs together looks like one
        bend.abs() / 8.0 + 60.0 * crossed as f64 + 9.0 * along.saturating_sub(3) as f64
    };
    let best = curves.iter().map(|it| (cost(it), it.0)).min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or_else(|| candidate(nodes, link, 0.0), |(_, curve)| curve)
}

fn candidate(nodes: &[Placed], (from, to, verdict): &(usize, usize, Verdict), bend: f64) -> Bezier {
    let (a, b) = (nodes[*from], nodes[*to]);
    // denied edges leave and arrive a little higher, so all are seen
    let shift = match verdict {
        Verdict::Denied => -9.0,
        Verdict::WouldDrop => 0.0,
        Verdict::Allowed => 9.0,
    };
    let ((_, ay), (_, by)) = (a.middle(), b.middle());
    let (ay, by) = (ay + shift, by + shift);
    let (right, left) = (|place: &Placed| place.x + place.width, |place: &Placed| place.x);
    if from == to {
        let (x, y) = (a.x + a.width / 2.0 + shift * 4.0, a.y);
        return Bezier([(x - 20.0, y), (x - 46.0, y - 52.0), (x + 46.0, y - 52.0), (x + 20.0, y)]);
    }
    if left(&b) >= right(&a) {
        let reach = ((left(&b) - right(&a)) / 2.0).max(50.0);
        return Bezier([
            (right(&a), ay),
            (right(&a) + reach, ay + bend),
            (left(&b) - reach, by + bend),
            (left(&b), by),
        ]);
    }
    if left(&a) >= right(&b) {
        let reach = ((left(&a) - right(&b)) / 2.0).max(50.0);
        return Bezier([
            (left(&a), ay),
            (left(&a) - reach, ay + bend),
            (right(&b) + reach, by + bend),
            (right(&b), by),
        ]);
    }
    // one above the other: out to one side, and back
    let reach = 56.0 + bend.abs();
    let (ax, bx, reach) = if bend < 0.0 { (left(&a), left(&b), -reach) } else { (right(&a), right(&b), reach) };
    Bezier([(ax, ay), (ax + reach, ay), (bx + reach, by), (bx, by)])
}

/// Where on its curve a label covers nothing. One that `must` be there covers as little as it can.
fn room(curve: &Bezier, lines: &[String], (nodes, written): (&[Placed], &[Placed]), must: bool) -> Option<Placed> {
    let longest = lines.iter().map(|line| line.chars().count()).max()?;
    let (width, height) = (longest as f64 * LETTER + 16.0, lines.len() as f64 * LINE + 6.0);
    let along = [0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.18, 0.82];
    let beside = [0.0, -0.75, 0.75, -1.4, 1.4, -2.1, 2.1];
    let mut least: Option<(f64, Placed)> = None;
    for offset in beside {
        for t in along {
            let (x, y) = curve.at(t);
            let place = Placed { x: x - width / 2.0, y: y - height / 2.0 + offset * height, width, height };
            let wide = place.grown(4.0);
            let covered: f64 = nodes.iter().chain(written).map(|it| wide.overlap(it)).sum();
            if covered == 0.0 {
                return Some(place);
            }
            if least.is_none_or(|(least, _)| covered < least) {
                least = Some((covered, place));
            }
        }
    }
    least.filter(|_| must).map(|(_, place)| place)
}
