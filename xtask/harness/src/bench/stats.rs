//! Medians and their spread: what a round measured is compared only with the rest of that round.

use serde::Serialize;

/// The middle of some values and the middle half of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    /// First quartile.
    pub low: f64,
    /// Third quartile.
    pub high: f64,
    pub count: usize,
}

impl Spread {
    /// `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        Some(Self { median: at(0.5)?, low: at(0.25)?, high: at(0.75)?, count: sorted.len() })
    }
}

/// Of values in ascending order, between the two that `share` falls between.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = sorted.len().checked_sub(1)? as f64 * share;
    let below = sorted[place.floor() as usize];
    let above = sorted[place.ceil() as usize];
    Some(below + (above - below) * place.fract())
}

/// The middle value.
pub fn median(values: &[f64]) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

/// What something costs on a machine at rest: the value that a tenth are below. Whatever else runs there makes it slower,
/// and nothing makes it faster.
pub fn at_rest(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.1)
}

/// Numbers for shuffling: the order of a round must not follow the order of the table.
pub struct Shuffle(u64);

impl Shuffle {
    pub fn seeded(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = (self.next() % (last as u64 + 1)) as usize;
            items.swap(last, other);
        }
    }

    /// Marsaglia's xorshift64.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn a_cost_at_rest_is_what_the_undisturbed_tenth_shows() {
        let disturbed = [vec![60.0; 3], vec![90.0; 8]].concat();
        assert_eq!((at_rest(&disturbed), median(&disturbed)), (Some(60.0), Some(90.0)));
        assert_eq!(at_rest(&[]), None);
    }

    #[test]
    fn a_single_value_is_its_own_spread() {
        assert_eq!(Spread::of(&[3.0]), Some(Spread { median: 3.0, low: 3.0, high: 3.0, count: 1 }));
    }

    #[test]
    fn quartiles_lie_between_the_neighbouring_values() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]).expect("four values");
        assert_eq!(spread, Spread { median: 2.5, low: 1.75, high: 3.25, count: 4 });
    }

    #[test]
    fn one_disturbed_round_does_not_move_the_median() {
        assert_eq!(median(&[1.0, 1.0, 1.0, 1.0, 50.0]), Some(1.0));
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items = (0..100).collect::<Vec<_>>();
        Shuffle::seeded(7).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
