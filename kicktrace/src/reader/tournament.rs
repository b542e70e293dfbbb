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
    /// A tree: places `2 * n` and `2 * n + 1` play each other, and the winner goes to place `n`.
    /// The streams themselves stand in order in the last half; place 1 is the winner's, 0 nobody's.
    places: Vec<Player>,
}

impl Default for Tournament {
    fn default() -> Self {
        Self { places: vec![NOBODY; 2] }
    }
}

impl Tournament {
    /// Makes room for streams `0..count`.
    pub(super) fn grow(&mut self, count: usize) {
        let had = self.places.len() / 2;
        if count <= had {
            return;
        }
        let room = count.next_power_of_two();
        let before = std::mem::replace(&mut self.places, vec![NOBODY; 2 * room]);
        let keys = before[had..].iter().map(|player| player.key);
        for (stream, key) in (0..room as u32).zip(keys.chain(std::iter::repeat(NOTHING))) {
            self.set(stream, key);
        }
    }

    /// Sets the key of `stream`. The lower key wins, and the lower stream among equal keys.
    #[inline]
    pub(super) fn set(&mut self, stream: u32, key: u64) {
        let mut winner = Player { key, stream };
        let mut place = self.places.len() / 2 + stream as usize;
        while place > 1 {
            let Some(&other) = self.places.get(place ^ 1) else { return };
            self.places[place] = winner;
            // Who wins nobody can predict, so there must be no branch in it. The right one loses
            // against an equal key.
            let wins = winner.key + (place % 2) as u64 <= other.key;
            winner.key = select_unpredictable(wins, winner.key, other.key);
            winner.stream = select_unpredictable(wins, winner.stream, other.stream);
            place /= 2;
        }
        self.places[1] = winner;
    }

    /// The lowest key and its stream; [`NOTHING`] if all are empty.
    #[inline]
    pub(super) fn winner(&self) -> (u64, u32) {
        self.places.get(1).map_or((NOTHING, 0), |winner| (winner.key, winner.stream))
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
