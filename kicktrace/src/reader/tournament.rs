//! Which stream is next: a tournament tree over the streams' keys.
//!
//! Owns nothing but keys. Updating one stream costs one comparison for each level of the tree, and
//! those comparisons are of neighbours in memory, which a heap of pairs cannot offer.

use std::hint::select_unpredictable;

/// The key of a stream with nothing to deliver.
pub(super) const NOTHING: u64 = u64::MAX;

/// A stream and the key of what it has to deliver next.
#[derive(Clone, Copy, Debug)]
struct Player {
    key: u64,
    stream: u32,
}

#[derive(Debug, Default)]
pub(super) struct Tournament {
    /// Leaves from `leaves` on; node `n` holds the winner of `2n` and `2n + 1`.
    nodes: Vec<Player>,
    leaves: usize,
}

impl Player {
    /// The winner against `other`: the lower key, and the lower stream among equal keys. Nobody can
    /// predict who that is, so there must be no branch in it. (A comparison of both fields as one
    /// number of 128 bits is compiled to one.)
    #[inline]
    fn play(self, other: Self) -> Self {
        let wins = (self.key < other.key) | (self.key == other.key) & (self.stream < other.stream);
        Self {
            key: select_unpredictable(wins, self.key, other.key),
            stream: select_unpredictable(wins, self.stream, other.stream),
        }
    }
}

impl Tournament {
    /// Makes room for streams `0..count`.
    pub(super) fn grow(&mut self, count: usize) {
        if count <= self.leaves {
            return;
        }
        let leaves = count.next_power_of_two().max(2);
        let mut nodes = vec![Player { key: NOTHING, stream: 0 }; 2 * leaves];
        for (stream, leaf) in (0..).zip(&mut nodes[leaves..]) {
            leaf.stream = stream;
        }
        nodes[leaves..leaves + self.leaves].copy_from_slice(&self.nodes[self.leaves..]);
        for node in (1..leaves).rev() {
            nodes[node] = nodes[2 * node].play(nodes[2 * node + 1]);
        }
        (self.nodes, self.leaves) = (nodes, leaves);
    }

    /// Sets the key of `stream`.
    #[inline]
    pub(super) fn set(&mut self, stream: u32, key: u64) {
        let mut node = self.leaves + stream as usize;
        let mut winner = Player { key, stream };
        self.nodes[node] = winner;
        while node > 1 {
            winner = winner.play(self.nodes[node ^ 1]);
            node /= 2;
            self.nodes[node] = winner;
        }
    }

    /// The lowest key and its stream; [`NOTHING`] if all are empty.
    #[inline]
    pub(super) fn winner(&self) -> (u64, u32) {
        self.nodes.get(1).map_or((NOTHING, 0), |winner| (winner.key, winner.stream))
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
