//! A block of whole records of one pCPU, and the memory for it.
//!
//! Owns how records lie in memory between the file and the visitor, and that blocks of full size
//! are used again. Reads no input and interprets no record.

use crate::reader::words::LONGEST;

/// Words read at a time. A window larger than this comes as several blocks.
pub(super) const BLOCK_WORDS: usize = 64 << 10;

/// Words behind the records of a block: wherever a record starts, [`LONGEST`] words can be looked
/// at.
pub(super) const PADDING: usize = LONGEST - 1;

/// Words of a cache line.
pub(super) const LINE: usize = 16;

/// Room of a full block; buffers of this size go round, smaller ones fit their window.
const FULL: usize = LINE + LONGEST + BLOCK_WORDS + PADDING;

/// Whole records of one pCPU, in the order they were written.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) cpu: u32,
    /// Where the first record stands in the input, in bytes.
    pub(super) offset: u64,
    /// The records from `begin` to `end`. What is before and behind them means nothing.
    pub(super) words: Vec<u32>,
    /// Where the records begin.
    pub(super) begin: usize,
    /// Where the records end.
    pub(super) end: usize,
    /// Words where those records start that need their place among all pCPUs'
    /// ([`is_local`](crate::reader::Visit::is_local)), and the format's own.
    pub(super) stops: Vec<u32>,
    /// Records, padding of the ring left out.
    pub(super) records: u64,
    /// Records whose TSC is before that of their predecessor on this pCPU.
    pub(super) backwards: u64,
    /// The latest time in the block; 0 if no record carries one.
    pub(super) max_tsc: u64,
    /// The time of records without a TSC at its start.
    pub(super) before: u64,
    /// Whether the TSC started again just before.
    pub(super) restarts: bool,
    /// Records whose TSC was absurd.
    pub(super) strays: u64,
    /// Whether the window ends with this block.
    pub(super) last: bool,
}

impl Block {
    /// Where the `n`th stop is; behind the last one, where the records end.
    #[inline]
    pub(super) fn stop(&self, n: usize) -> u32 {
        self.stops.get(n).copied().unwrap_or(self.end as u32)
    }

    /// Where the word `at` stands in the input, in bytes.
    pub(super) fn offset_of(&self, at: usize) -> u64 {
        self.offset + 4 * (at - self.begin) as u64
    }

    /// Memory it takes, without the room for its place in a cache line.
    pub(super) fn bytes(&self) -> usize {
        4 * (self.words.len().saturating_sub(LINE) + self.stops.len())
    }
}

/// Blocks that have been emptied, to be filled again.
#[derive(Debug, Default)]
pub(super) struct Spare(Vec<Block>);

impl Spare {
    /// Takes a block back.
    pub(super) fn put(&mut self, block: Block) {
        if block.words.len() == FULL {
            self.0.push(block);
        }
    }

    /// A block with room for so many words: some that are there, and those that are read next,
    /// which stand at `offset` in the input, in bytes. What it holds means nothing.
    ///
    /// What is read comes to a place in its cache line as in that of the file: a copy of lines as
    /// they are takes a quarter less time than one that shifts them, and half of it where it shifts
    /// them by a word.
    pub(super) fn block(&mut self, kept: usize, read: usize, offset: u64) -> Block {
        let words = kept + read;
        let room = if words <= BLOCK_WORDS / 2 { LINE + words + PADDING } else { FULL };
        let used = if room == FULL { self.0.pop() } else { None };
        let mut block = used.unwrap_or_else(|| Block { words: vec![0; room], ..Block::default() });
        block.stops.clear();
        let place = block.words.as_ptr().align_offset(4 * LINE) + (offset / 4) as usize % LINE;
        block.begin = (place + LINE - kept) % LINE;
        (block.restarts, block.strays, block.last) = (false, 0, false);
        block
    }
}
