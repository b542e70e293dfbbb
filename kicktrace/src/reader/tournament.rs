//! Which stream is next: a tournament tree over the streams' keys.
//!
//! Owns nothing but keys. Updating one stream costs one comparison for each level of the tree, and
//! those comparisons are of neighbours in memory, which a heap of pairs cannot offer.

use std::hint::select_unpredictable;

/// The key of a stream with nothing to deliver.
pub(super) const NOTHING: u64 = u64::MAX;

#[derive(Debug, Default)]
pub(super) struct Tournament {
    /// Leaves from `leaves` on; node `n` holds the winner of `2n` and `2n + 1`. Key and stream are
    /// packed into one number, so that a match is one comparison without a branch, and the lower
    /// stream wins among equal keys. Each has a half of its own: a key that straddled both could not
    /// be forwarded from the store just before.
    nodes: Vec<u128>,
    leaves: usize,
}

const fn pack(key: u64, stream: u32) -> u128 {
    (key as u128) << 64 | stream as u128
}

const fn unpack(packed: u128) -> (u64, u32) {
    ((packed >> 64) as u64, packed as u32)
}

impl Tournament {
    /// Makes room for streams `0..count`.
    pub(super) fn grow(&mut self, count: usize) {
        if count <= self.leaves {
            return;
        }
        let leaves = count.next_power_of_two().max(2);
        let mut nodes = vec![pack(NOTHING, 0); 2 * leaves];
        for (index, leaf) in nodes[leaves..].iter_mut().enumerate() {
            *leaf = pack(NOTHING, index as u32);
        }
        nodes[leaves..leaves + self.leaves].copy_from_slice(&self.nodes[self.leaves..]);
        for node in (1..leaves).rev() {
            nodes[node] = nodes[2 * node].min(nodes[2 * node + 1]);
        }
        (self.nodes, self.leaves) = (nodes, leaves);
    }

    /// Sets the key of `stream`.
    #[inline]
    pub(super) fn set(&mut self, stream: u32, key: u64) {
        let mut node = self.leaves + stream as usize;
        let mut winner = pack(key, stream);
        self.nodes[node] = winner;
        while node > 1 {
            let other = self.nodes[node ^ 1];
            winner = select_unpredictable(winner < other, winner, other);
            node /= 2;
            self.nodes[node] = winner;
        }
    }

    /// The lowest key and its stream; [`NOTHING`] if all are empty.
    #[inline]
    pub(super) fn winner(&self) -> (u64, u32) {
        self.nodes.get(1).map_or((NOTHING, 0), |&packed| unpack(packed))
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
