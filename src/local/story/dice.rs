//! Chance that can be repeated: splitmix64, so that a seed tells the same story on every machine
//! and with every version of every dependency. Integers only where a rounding could differ.

#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is 0. The bias of the remainder does not matter here.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1).unsigned_abs()).cast_signed()
    }

    /// Mostly short, sometimes very long: between `shortest` and `shortest * 2^doublings`.
    pub(crate) fn skewed(&mut self, shortest: i64, doublings: u64) -> i64 {
        let base = shortest << self.below(doublings);
        self.between(base, base * 2)
    }

    /// True in the given share of cases: never for 0.0, always for 1.0.
    pub(crate) fn chance(&mut self, share: f64) -> bool {
        const STEPS: u64 = 1 << 53;
        ((self.roll() % STEPS) as f64) < share * STEPS as f64
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }

    /// One of these, each as often as it weighs. They must weigh something together.
    pub(super) fn pick_weighted<'a, T>(&mut self, of: &'a [T], weight: impl Fn(&T) -> u64) -> &'a T {
        let mut left = self.below(of.iter().map(&weight).sum());
        let drawn = of.iter().find(|one| match left.checked_sub(weight(one)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        drawn.unwrap_or(&of[0])
    }

    /// An index into something of this length, which must not be empty.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        (self.roll() % length as u64) as usize
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.roll().to_le_bytes()[0])
    }

    pub(crate) fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, self.index(last + 1));
        }
    }
}
