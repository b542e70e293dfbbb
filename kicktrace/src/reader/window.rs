//! Windows to blocks: the thread that reads.
//!
//! Owns the byte offsets, the validity of every record's size, and the end of the input. What
//! leaves here as a [`Block`] holds whole records only, so the merge needs no further checks.

use std::io::{self, Read};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender};

use crate::error::{Error, ErrorKind};
use crate::event;
use crate::reader::reading::Truncation;
use crate::reader::record::Visit;

/// Words read at a time. A window larger than this comes as several blocks.
const BLOCK_WORDS: usize = 64 << 10;

/// The longest record: header, TSC, seven words.
pub(super) const LONGEST: usize = 10;

/// Words behind the records of a block: wherever a record starts, [`LONGEST`] words can be looked at.
const PADDING: usize = LONGEST - 1;

/// Room of a full block; buffers of this size go round, smaller ones fit their window exactly.
pub(super) const FULL: usize = LONGEST + BLOCK_WORDS + PADDING;

/// Whole records of one pCPU, in the order they were written.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) cpu: u32,
    /// Where the first word stands in the input, in bytes.
    pub(super) offset: u64,
    /// The records, and behind `end` the padding, which means nothing.
    pub(super) words: Vec<u32>,
    /// Where the records end.
    pub(super) end: usize,
    /// Words where those records start that need their place among all pCPUs'
    /// ([`Visit::is_local`]), and the format's own.
    stops: Vec<u32>,
    /// Records, padding of the ring left out.
    pub(super) records: u64,
    /// Records whose TSC is before that of their predecessor on this pCPU.
    pub(super) backwards: u64,
    /// The latest TSC in the block; 0 if no record carries one.
    pub(super) max_tsc: u64,
    /// Whether the window ends with this block.
    pub(super) last: bool,
}

impl Block {
    /// Where the `n`th stop is; behind the last one, where the records end.
    #[inline]
    pub(super) fn stop(&self, n: usize) -> usize {
        self.stops.get(n).map_or(self.end, |&at| at as usize)
    }

    /// Memory it takes.
    pub(super) fn bytes(&self) -> usize {
        4 * (self.words.len() + self.stops.len())
    }
}

/// How the input ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    pub(super) bytes: u64,
    pub(super) windows: u64,
    pub(super) truncated: Option<Truncation>,
}

/// The words of a record with this header.
#[inline]
pub(super) const fn record_words(header: u32) -> usize {
    1 + ((header >> 31) as usize) * 2 + ((header >> 28) & 7) as usize
}

/// The words of the payload of a record with this header, from the header on.
#[inline]
pub(super) const fn payload(header: u32) -> Range<usize> {
    let start = 1 + 2 * (header >> 31) as usize;
    start..start + (header >> 28 & 7) as usize
}

/// A number of 64 bits, lower word first.
#[inline]
pub(super) const fn wide(lo: u32, hi: u32) -> u64 {
    lo as u64 | (hi as u64) << 32
}

/// Reads for a visitor `V`, which it never meets.
pub(super) struct Windows<R, V> {
    input: R,
    out: SyncSender<Block>,
    spare: Receiver<Block>,
    offset: u64,
    windows: u64,
    /// The last TSC of each pCPU.
    last_tsc: Vec<u64>,
    visitor: PhantomData<fn(V)>,
}

impl<R: Read, V: Visit> Windows<R, V> {
    pub(super) fn new(input: R, out: SyncSender<Block>, spare: Receiver<Block>) -> Self {
        let (last_tsc, visitor) = (Vec::new(), PhantomData);
        Self { input, out, spare, offset: 0, windows: 0, last_tsc, visitor }
    }

    /// Reads to the end of the input, or until the merge hangs up.
    pub(super) fn run(mut self) -> Result<End, Error> {
        loop {
            let mut header = [0u8; 12];
            let start = self.offset;
            let got = self.fill(&mut header)?;
            let words = bytemuck::pod_read_unaligned::<[u32; 3]>(&header).map(u32::from_le);
            if got == 0 && start == 0 {
                return Err(ErrorKind::Empty.into());
            }
            if got >= 4 || start == 0 {
                self.check_magic(start, words[0], got)?;
            }
            if got < header.len() {
                let truncated = (got > 0).then(|| Truncation {
                    offset: self.offset,
                    missing: (header.len() - got) as u64,
                    unused: got as u64,
                });
                return Ok(self.end(truncated));
            }
            let [_, cpu, size] = words;
            if cpu >= event::MAX_PCPUS || size % 4 != 0 {
                return Err(ErrorKind::AbsurdWindow { offset: start, cpu, size }.into());
            }
            self.windows += 1;
            match self.window(cpu, u64::from(size))? {
                Flow::Next => {}
                Flow::Cut(truncation) => return Ok(self.end(Some(truncation))),
                Flow::HungUp => return Ok(self.end(None)),
            }
        }
    }

    fn end(&self, truncated: Option<Truncation>) -> End {
        End { bytes: self.offset, windows: self.windows, truncated }
    }

    fn check_magic(&self, offset: u64, found: u32, got: usize) -> Result<(), Error> {
        const MAGIC: u32 = event::CPU_CHANGE | 2 << 28;
        match (offset, found) {
            (_, MAGIC) => Ok(()),
            // Too short to tell from the start of a cut trace.
            (0, _) if got < 4 && MAGIC.to_le_bytes().starts_with(&found.to_le_bytes()[..got]) => {
                Ok(())
            }
            (0, _) => Err(ErrorKind::NotATrace { found }.into()),
            _ => Err(ErrorKind::LostSync { offset, found }.into()),
        }
    }

    /// Reads one window's records and sends them on in blocks.
    fn window(&mut self, cpu: u32, size: u64) -> Result<Flow, Error> {
        let window_end = self.offset + size;
        let mut left = (size / 4) as usize;
        // The words of a record that the block before held the start of.
        let mut carry = ([0; LONGEST], 0);
        loop {
            let take = left.min(BLOCK_WORDS);
            let kept = carry.1;
            let mut block = self.buffer(kept + take);
            let words = &mut block.words;
            words[..kept].copy_from_slice(&carry.0[..kept]);
            let start = self.offset - 4 * kept as u64;
            let got = self.fill(bytemuck::cast_slice_mut(&mut words[kept..kept + take]))?;
            left -= take;
            let read = kept + got / 4;
            if cfg!(target_endian = "big") {
                words[kept..read].iter_mut().for_each(|word| *word = u32::from_le(*word));
            }
            (block.cpu, block.offset) = (cpu, start);
            self.scan(&mut block, read)?;
            let end = block.end;
            let unused = read - end;
            carry.0[..unused].copy_from_slice(&block.words[end..read]);
            carry.1 = unused;
            let cut = got < take * 4;
            let last = left == 0 || cut;
            block.last = last;
            // What stands before damage is good: send it first.
            let hung_up = self.out.send(block).is_err();
            if cut {
                return Ok(Flow::Cut(Truncation {
                    offset: self.offset,
                    missing: window_end - self.offset,
                    unused: unused as u64 * 4 + (got % 4) as u64,
                }));
            }
            if last && unused > 0 {
                let header = carry.0[0];
                let offset = start + 4 * end as u64;
                let size = 4 * record_words(header) as u32;
                return Err(ErrorKind::RecordPastWindow { offset, header, size, window_end }.into());
            }
            if hung_up {
                return Ok(Flow::HungUp);
            }
            if last {
                return Ok(Flow::Next);
            }
        }
    }

    /// A block with room for so many words and the padding. What they hold means nothing.
    fn buffer(&mut self, words: usize) -> Block {
        let room = if words <= BLOCK_WORDS / 2 { words + PADDING } else { FULL };
        let used = if room == FULL { self.spare.try_recv().ok() } else { None };
        let mut block = used.unwrap_or_else(|| Block { words: vec![0; room], ..Block::default() });
        block.stops.clear();
        block
    }

    /// Walks the records in the first `filled` words of the block: finds where the whole ones end,
    /// where its stops are, and what there is to know of their TSCs.
    fn scan(&mut self, block: &mut Block, filled: usize) -> Result<(), Error> {
        // Stops are gathered without a branch, which nobody could predict, and passed on in batches.
        let (mut batch, mut stops) = ([0; 64], 0);
        let (mut records, mut backwards, mut max_tsc) = (0, 0, 0);
        let cpu = block.cpu as usize;
        if self.last_tsc.len() <= cpu {
            self.last_tsc.resize(cpu + 1, 0);
        }
        let (mut at, mut before) = (0, self.last_tsc[cpu]);
        while let Some(of) = block.words.get(at..).and_then(<[u32]>::first_chunk::<LONGEST>) {
            let (header, payload) = (of[0], payload(of[0]));
            let next = at + payload.end;
            if next > filled {
                break;
            }
            let event = header & event::EVENT_MASK;
            let mut is_stop = !V::is_local(event, &of[payload]);
            let mut timed = header >> 31 != 0;
            if event & event::GROUP_MASK == event::GENERAL {
                self.check_format_record(event, header, block.offset + 4 * at as u64)?;
                is_stop = true;
                // The payload of padding is garbage.
                let padding = event == event::WRAP_BUFFER;
                timed &= !padding;
                records -= i64::from(padding);
            }
            records += 1;
            let tsc = if timed { wide(of[1], of[2]) } else { before };
            backwards += u64::from(tsc < before);
            max_tsc = max_tsc.max(if timed { tsc } else { 0 });
            before = tsc;
            batch[stops % batch.len()] = at as u32;
            stops += usize::from(is_stop);
            if stops == batch.len() {
                block.stops.extend_from_slice(&batch);
                stops = 0;
            }
            at = next;
        }
        block.stops.extend_from_slice(&batch[..stops]);
        self.last_tsc[cpu] = before;
        (block.end, block.max_tsc) = (at, max_tsc);
        (block.records, block.backwards) = (records as u64, backwards);
        Ok(())
    }

    #[cold]
    fn check_format_record(&self, event: u32, header: u32, offset: u64) -> Result<(), Error> {
        match event {
            event::CPU_CHANGE => Err(ErrorKind::NestedWindow { offset }.into()),
            event::LOST_RECORDS if header >> 28 & 7 < 4 || header >> 31 == 0 => {
                let found = header >> 28 & 7;
                Err(ErrorKind::ShortRecord { offset, event, found, needed: 4 }.into())
            }
            _ => Ok(()),
        }
    }

    /// Reads until `buffer` is full or the input ends; returns the bytes read.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut got = 0;
        while got < buffer.len() {
            match self.input.read(&mut buffer[got..]) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let offset = self.offset + got as u64;
                    return Err(ErrorKind::Io { offset, source }.into());
                }
            }
        }
        self.offset += got as u64;
        Ok(got)
    }
}

enum Flow {
    Next,
    Cut(Truncation),
    HungUp,
}
