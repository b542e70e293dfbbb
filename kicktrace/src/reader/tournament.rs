//! Which stream is next: a tournament tree over the streams' keys.
//!
//! Owns nothing but keys. Updating one stream costs one comparison for each level of the tree, and
//! those comparisons are of neighbours in memory, which a heap of pairs cannot offer.

use std::hint::select_unpredictable;

/// The key of a stream with nothing to deliver. One more is still a number: see
/// [`Tournament::set`].
pub(super) const NOTHING: u64 = u64::MAX - 1;

/// A stream and the key of what it has to deliver next.
#[derive(Clone, Copy, Debug)]
struct Player {
    key: u64,
    stream: u32,
}

const NOBODY: Player = Player { key: NOTHING, stream: 0 };

#[derive(Debug)]
pub(super) struct Tournament {
    /// Two play each other: behind the left one are lower streams than behind the right one. The
    /// winner of pair `n` plays in pair `n / 2`, on the left if `n` is even. The streams themselves
    /// stand in order in the last half of the pairs; pair 0 is none.
    pairs: Vec<[Player; 2]>,
    winner: Player,
}

impl Default for Tournament {
    fn default() -> Self {
        Self { pairs: Vec::new(), winner: NOBODY }
    }
}

impl Tournament {
    /// Makes room for streams `0..count`.
    pub(super) fn grow(&mut self, count: usize) {
        let had = self.pairs.len();
        if count <= had {
            return;
        }
        let pairs = count.next_power_of_two().max(2);
        let before = std::mem::replace(&mut self.pairs, vec![[NOBODY; 2]; pairs]);
        let keys = before[had / 2..].as_flattened().iter().map(|player| player.key);
        for (stream, key) in (0..pairs as u32).zip(keys.chain(std::iter::repeat(NOTHING))) {
            self.set(stream, key);
        }
    }

    /// Sets the key of `stream`. The lower key wins, and the lower stream among equal keys.
    ///
    /// What comes next waits for this, so that few steps depend on the key.
    #[inline]
    pub(super) fn set(&mut self, stream: u32, key: u64) {
        let mut winner = Player { key, stream };
        let mut place = self.pairs.len() + stream as usize;
        while place > 1 {
            let Some(pair) = self.pairs.get_mut(place / 2) else { return };
            let side = place % 2;
            pair[side] = winner;
            let other = pair[side ^ 1];
            // Who wins nobody can predict, so there must be no branch in it. The right one loses
            // against an equal key.
            let wins = winner.key + side as u64 <= other.key;
            winner.key = select_unpredictable(wins, winner.key, other.key);
            winner.stream = select_unpredictable(wins, winner.stream, other.stream);
            place /= 2;
        }
        self.winner = winner;
    }

    /// The lowest key and its stream; [`NOTHING`] if all are empty.
    #[inline]
    pub(super) fn winner(&self) -> (u64, u32) {
        (self.winner.key, self.winner.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::{NOTHING, Tournament};

    #[test]
    fn lowest_key_then_lowest_stream() {
        let mut tree = Tournament::default();
        assert_eq!(tree.winner().0, NOTHING);
        tree.grow(3);
        tree.set(2, 5);
        tree.set(0, 9);
        assert_eq!(tree.winner(), (5, 2));
        tree.grow(70);
        tree.set(69, 5);
        assert_eq!(tree.winner(), (5, 2));
        tree.set(2, NOTHING);
        assert_eq!(tree.winner(), (5, 69));
        tree.set(69, NOTHING);
        assert_eq!(tree.winner(), (9, 0));
    }
}
