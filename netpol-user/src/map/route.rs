//! How edges go around nodes, and where their labels have room.

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
    let mut bounds = Bounds { from: (f64::MAX, f64::MAX), to: (f64::MIN, f64::MIN) };
    nodes.iter().for_each(|node| bounds.add_rectangle(node));
    let crowded = links.len() > EDGES;
    let mut taken: Vec<(f64, f64)> = Vec::new();
    let curves: Vec<Bezier> = links
        .iter()
        .map(|link| {
            let curve = if crowded { candidate(nodes, link, 0.0) } else { best(nodes, link, &taken) };
            // edges that run on each other look like one
            taken.extend((!crowded).then(|| curve.samples()).into_iter().flatten());
            curve.samples().for_each(|(x, y)| bounds.add(x, y));
            curve
        })
        .collect();
    let mut written: Vec<Placed> = titles.to_vec();
    let label = |index: usize, curve: &Bezier, written: &mut Vec<Placed>| {
        let lines = labels.get(index).filter(|_| !crowded)?;
        let must = links[index].2 == Verdict::Denied;
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

/// The curve that meets the fewest nodes, and runs the least along other curves.
fn best(nodes: &[Placed], link: &(usize, usize, Verdict), taken: &[(f64, f64)]) -> Bezier {
    let cost = |curve: &Bezier, bend: f64| {
        let mut crossed = 0;
        let mut along = 0_u32;
        for (x, y) in curve.samples() {
            let near = |node: &&Placed| {
                x > node.x - 8.0 && x < node.x + node.width + 8.0 && y > node.y - 8.0 && y < node.y + node.height + 8.0
            };
            // an edge ends at its own two nodes, and does not cross them
            crossed += nodes.iter().enumerate().filter(|(i, n)| *i != link.0 && *i != link.1 && near(n)).count();
            along += u32::from(taken.iter().any(|(tx, ty)| (tx - x).abs() < 12.0 && (ty - y).abs() < 6.0));
        }
        // two curves may cross; what runs together looks like one
        bend.abs() / 8.0 + 60.0 * crossed as f64 + 9.0 * f64::from(along.saturating_sub(3))
    };
    let curves = BENDS.iter().map(|bend| (candidate(nodes, link, *bend), bend));
    let best = curves.map(|(curve, bend)| (cost(&curve, *bend), curve)).min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or_else(|| candidate(nodes, link, 0.0), |(_, curve)| curve)
}

fn candidate(nodes: &[Placed], (from, to, verdict): &(usize, usize, Verdict), bend: f64) -> Bezier {
    let (a, b) = (nodes[*from], nodes[*to]);
    // denied edges leave and arrive a little higher, so both are seen
    let shift = if *verdict == Verdict::Denied { -9.0 } else { 9.0 };
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
            let wide = Placed { x: place.x - 5.0, y: place.y - 3.0, width: width + 10.0, height: height + 6.0 };
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
