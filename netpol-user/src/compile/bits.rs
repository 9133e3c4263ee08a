//! A set of small numbers as bits: the only thing that grows with endpoints times selectors, so it
//! is one bit for each.

/// All bits that are in use lie below the length it was made with; two sets that meet in an
/// operation have the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    pub fn none(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    pub fn all(len: usize) -> Self {
        let mut bits = Self { words: vec![u64::MAX; len.div_ceil(64)], len };
        bits.trim();
        bits
    }

    pub fn insert(&mut self, index: usize) {
        debug_assert!(index < self.len);
        self.words[index / 64] |= 1 << (index % 64);
    }

    pub fn contains(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub fn union(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a |= b);
    }

    pub fn intersect(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= b);
    }

    pub fn invert(&mut self) {
        self.words.iter_mut().for_each(|word| *word = !*word);
        self.trim();
    }

    /// Keeps what is not in `other`.
    pub fn subtract(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= !b);
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    at * 64 + bit
                })
            })
        })
    }

    /// Clears what lies above the length.
    fn trim(&mut self) {
        if let Some(last) = self.words.last_mut()
            && !self.len.is_multiple_of(64)
        {
            *last &= (1 << (self.len % 64)) - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverting_stays_below_the_length() {
        let mut bits = Bits::none(70);
        bits.insert(3);
        bits.insert(69);
        bits.invert();
        assert_eq!(bits.iter().count(), 68);
        assert!(!bits.contains(69) && bits.contains(68) && !bits.contains(70));
        assert_eq!(Bits::all(70).iter().count(), 70);
    }

    #[test]
    fn operations_are_those_of_sets() {
        let of = |members: &[usize]| {
            let mut bits = Bits::none(130);
            members.iter().for_each(|&m| bits.insert(m));
            bits
        };
        let mut bits = of(&[1, 64, 129]);
        bits.union(&of(&[2]));
        assert_eq!(bits, of(&[1, 2, 64, 129]));
        bits.intersect(&of(&[2, 64, 100]));
        assert_eq!(bits, of(&[2, 64]));
        bits.subtract(&of(&[64]));
        assert_eq!(bits.iter().collect::<Vec<_>>(), [2]);
    }
}
