//! Windows to blocks: the thread that reads.
//!
//! Owns the byte offsets, the validity of every record's size, and the end of the input. What
//! leaves here as a [`Block`] holds whole records only, so the merge needs no further checks.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender};

use crate::error::{Error, ErrorKind};
use crate::event;
use crate::reader::{MAX_PCPUS, Truncation};

/// Words read at a time. A window larger than this comes as several blocks.
const BLOCK_WORDS: usize = 64 << 10;

/// Words behind the records of a block: a look at the first three words of a record needs no check.
const PADDING: usize = 2;

/// The longest record: header, TSC, seven words.
const LONGEST: usize = 10;

/// Room of a full block; buffers of this size go round, smaller ones fit their window exactly.
pub(super) const FULL: usize = LONGEST + BLOCK_WORDS + PADDING;

/// Whole records of one pCPU, in the order they were written.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) cpu: u32,
    /// Where the first word stands in the input, in bytes.
    pub(super) offset: u64,
    /// The records, and behind `end` words that mean nothing, two at least.
    pub(super) words: Vec<u32>,
    /// Where the records end.
    pub(super) end: usize,
    /// The latest TSC in the block; 0 if no record carries one.
    pub(super) max_tsc: u64,
    /// Whether the window ends with this block.
    pub(super) last: bool,
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

pub(super) struct Windows<R> {
    input: R,
    out: SyncSender<Block>,
    spare: Receiver<Vec<u32>>,
    offset: u64,
    windows: u64,
}

impl<R: Read> Windows<R> {
    pub(super) fn new(input: R, out: SyncSender<Block>, spare: Receiver<Vec<u32>>) -> Self {
        Self { input, out, spare, offset: 0, windows: 0 }
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
            if cpu >= MAX_PCPUS || size % 4 != 0 {
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
            let mut words = self.buffer(kept + take);
            words[..kept].copy_from_slice(&carry.0[..kept]);
            let start = self.offset - 4 * kept as u64;
            let got = self.fill(bytemuck::cast_slice_mut(&mut words[kept..kept + take]))?;
            left -= take;
            let read = kept + got / 4;
            if cfg!(target_endian = "big") {
                words[kept..read].iter_mut().for_each(|word| *word = u32::from_le(*word));
            }
            let (end, max_tsc) = self.scan(&words[..read], start)?;
            let unused = read - end;
            carry.0[..unused].copy_from_slice(&words[end..read]);
            carry.1 = unused;
            let cut = got < take * 4;
            let last = left == 0 || cut;
            let block = Block { cpu, offset: start, words, end, max_tsc, last };
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

    /// Room for so many words and the padding. What it holds means nothing.
    fn buffer(&mut self, words: usize) -> Vec<u32> {
        if words <= BLOCK_WORDS / 2 {
            return vec![0; words + PADDING];
        }
        self.spare.try_recv().unwrap_or_else(|_| vec![0; FULL])
    }

    /// Walks the records: returns how many words hold whole records and the latest TSC.
    fn scan(&self, words: &[u32], start: u64) -> Result<(usize, u64), Error> {
        let (mut at, mut max_tsc) = (0, 0);
        while let Some(&header) = words.get(at) {
            let next = at + record_words(header);
            if next > words.len() {
                break;
            }
            let event = header & event::EVENT_MASK;
            if event & 0xffff_f000 == 0x0001_f000 {
                self.check_format_record(event, header, start + 4 * at as u64)?;
            }
            if header >> 31 != 0 && event != event::WRAP_BUFFER {
                let tsc = u64::from(words[at + 1]) | u64::from(words[at + 2]) << 32;
                max_tsc = max_tsc.max(tsc);
            }
            at = next;
        }
        Ok((at, max_tsc))
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
