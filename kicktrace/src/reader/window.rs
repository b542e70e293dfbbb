//! Windows to blocks: the thread that reads.
//!
//! Owns the byte offsets, the validity of every record's size, and the end of the input. What
//! leaves here as a [`Block`] holds whole records only, so the merge needs no further checks.

use std::io::{self, Read};
use std::marker::PhantomData;
use std::sync::mpsc::{Receiver, SyncSender};

use crate::error::{Error, ErrorKind};
use crate::event;
use crate::reader::reading::{ReadOptions, Truncation};
use crate::reader::record::Visit;
use crate::reader::time::{QUIET, Step, Times, first_timed};
use crate::reader::words::{
    LONGEST, PAYLOAD_WORDS, first, record_at, record_words, split, timed_words, untimed_words, wide,
};

/// Words read at a time. A window larger than this comes as several blocks.
const BLOCK_WORDS: usize = 64 << 10;

/// Bytes of records kept at most while their pCPU shows no TSC.
const UNTIMED: usize = 1 << 20;

/// Bits of the classes whose events hardly ever come: the format's own, and the lives of domains.
const SELDOM: u32 = (event::GENERAL | event::DOMAINS) & event::CLASS_MASK;

/// Words behind the records of a block: wherever a record starts, [`LONGEST`] words can be looked at.
pub(super) const PADDING: usize = LONGEST - 1;

/// Words of a cache line.
const LINE: usize = 16;

/// Room of a full block; buffers of this size go round, smaller ones fit their window.
pub(super) const FULL: usize = LINE + LONGEST + BLOCK_WORDS + PADDING;

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
    /// ([`Visit::is_local`]), and the format's own.
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
    fn offset_of(&self, at: usize) -> u64 {
        self.offset + 4 * (at - self.begin) as u64
    }

    /// Memory it takes, without the room for its place in a cache line.
    pub(super) fn bytes(&self) -> usize {
        4 * (self.words.len().saturating_sub(LINE) + self.stops.len())
    }
}

/// How the input ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    pub(super) bytes: u64,
    pub(super) windows: u64,
    pub(super) truncated: Option<Truncation>,
}

/// Reads for a visitor `V`, which it never meets.
pub(super) struct Windows<R, V> {
    input: R,
    out: SyncSender<Block>,
    spare: Receiver<Block>,
    offset: u64,
    windows: u64,
    times: Times,
    /// Blocks of pCPUs that have shown no TSC yet: their time is that of the next record that has one.
    untimed: Vec<Block>,
    visitor: PhantomData<fn(V)>,
}

impl<R: Read, V: Visit> Windows<R, V> {
    pub(super) fn new(
        input: R,
        options: &ReadOptions,
        out: SyncSender<Block>,
        spare: Receiver<Block>,
    ) -> Self {
        let (times, untimed, visitor) = (Times::new(options), Vec::new(), PhantomData);
        Self { input, out, spare, offset: 0, windows: 0, times, untimed, visitor }
    }

    /// Reads to the end of the input, or until the merge hangs up.
    pub(super) fn run(mut self) -> Result<End, Error> {
        let end = self.windows();
        // Whoever has no time by now has the latest there is.
        // The merge may have hung up.
        let _ = self.release_untimed(None);
        end
    }

    fn windows(&mut self) -> Result<End, Error> {
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
            let mut block = self.buffer(kept, take);
            let words = &mut block.words;
            let filled = block.begin + kept;
            words[block.begin..filled].copy_from_slice(&carry.0[..kept]);
            let start = self.offset - 4 * kept as u64;
            let got = self.fill(bytemuck::cast_slice_mut(&mut words[filled..filled + take]))?;
            left -= take;
            let mut read = filled + got / 4;
            if cfg!(target_endian = "big") {
                words[filled..read].iter_mut().for_each(|word| *word = u32::from_le(*word));
            }
            (block.cpu, block.offset) = (cpu, start);
            while self.scan(&mut block, read)? == Scanned::Restarts {
                // What follows is a block of its own, in a time of its own.
                let rest = self.split_off(&mut block, read);
                read = rest.begin + read - block.end;
                if self.send(std::mem::replace(&mut block, rest)).is_err() {
                    return Ok(Flow::HungUp);
                }
            }
            let (end, offset) = (block.end, block.offset_of(block.end));
            let unused = read - end;
            carry.0[..unused].copy_from_slice(&block.words[end..read]);
            carry.1 = unused;
            let cut = got < take * 4;
            let last = left == 0 || cut;
            block.last = last;
            // What stands before damage is good: send it first.
            let hung_up = self.send(block).is_err();
            if cut {
                return Ok(Flow::Cut(Truncation {
                    offset: self.offset,
                    missing: window_end - self.offset,
                    unused: unused as u64 * 4 + (got % 4) as u64,
                }));
            }
            if last && unused > 0 {
                let header = carry.0[0];
                let size = 4 * record_words(header);
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

    /// The records of `block` behind its end, as a block that begins a new session.
    #[cold]
    fn split_off(&mut self, block: &mut Block, read: usize) -> Block {
        let end = block.end;
        let mut rest = self.buffer(0, read - end);
        let begin = rest.begin;
        rest.words[begin..begin + read - end].copy_from_slice(&block.words[end..read]);
        (rest.cpu, rest.offset, rest.restarts) = (block.cpu, block.offset_of(end), true);
        block.last = false;
        self.times.restart(rest.cpu, wide(rest.words[begin + 1], rest.words[begin + 2]));
        rest
    }

    /// Hands a block on, or keeps it until its time is known.
    fn send(&mut self, block: Block) -> Result<(), HungUp> {
        let cpu = block.cpu;
        if !self.times.of(cpu).timed {
            self.untimed.push(block);
            let held: usize = self.untimed.iter().map(Block::bytes).sum();
            return if held > UNTIMED { self.release_untimed(None) } else { Ok(()) };
        }
        if !self.untimed.is_empty() {
            self.release_untimed(Some((cpu, block.before)))?;
        }
        self.out.send(block).map_err(|_| HungUp)
    }

    /// Hands on the blocks of a pCPU whose time is known now; those of all, with the latest time there
    /// is, for `None`.
    #[cold]
    fn release_untimed(&mut self, known: Option<(u32, u64)>) -> Result<(), HungUp> {
        let (time, latest) = (known.map(|(_, time)| time), self.times.latest);
        let is_due = |block: &mut Block| known.is_none_or(|(cpu, _)| cpu == block.cpu);
        let due: Vec<_> = self.untimed.extract_if(.., is_due).collect();
        for mut block in due {
            block.before = time.unwrap_or(latest);
            // The pass it belongs to is over.
            block.last = false;
            self.out.send(block).map_err(|_| HungUp)?;
        }
        Ok(())
    }

    /// A block with room for so many words: some that are there, and those that are read next. What
    /// it holds means nothing.
    ///
    /// What is read comes to a place in its cache line as in that of the file: a copy of lines as
    /// they are takes a quarter less time than one that shifts them, and half of it where it shifts
    /// them by a word.
    fn buffer(&mut self, kept: usize, read: usize) -> Block {
        let words = kept + read;
        let room = if words <= BLOCK_WORDS / 2 { LINE + words + PADDING } else { FULL };
        let used = if room == FULL { self.spare.try_recv().ok() } else { None };
        let mut block = used.unwrap_or_else(|| Block { words: vec![0; room], ..Block::default() });
        block.stops.clear();
        let place = block.words.as_ptr().align_offset(4 * LINE) + (self.offset / 4) as usize % LINE;
        block.begin = (place + LINE - kept) % LINE;
        (block.restarts, block.strays, block.last) = (false, 0, false);
        block
    }

    /// Walks the records in the first `filled` words of the block: finds where the whole ones end,
    /// where its stops are, and what there is to know of their TSCs, which become times.
    fn scan(&mut self, block: &mut Block, filled: usize) -> Result<Scanned, Error> {
        let cpu = block.cpu;
        let began = self.begin(block, filled);
        let before = self.times.of(cpu).last;
        let mut walk = Walk { at: block.begin, before, ..Walk::default() };
        block.before = if began { self.times.corrected(cpu, walk.before) } else { 0 };
        let mut done = Scanned::All;
        loop {
            if walk.timed {
                walk.ordinary::<V>(&block.words[..filled], &mut block.stops);
            }
            let at = walk.at;
            let of = record_at(&block.words, at as u32);
            let is_whole = |of: &&[u32; LONGEST]| at + record_words(of[0]) as usize <= filled;
            let Some(&of) = of.filter(is_whole) else { break };
            let (header, event) = (of[0], of[0] & event::EVENT_MASK);
            // The payload of padding is garbage.
            let padding = event == event::WRAP_BUFFER;
            let own = event & event::GROUP_MASK == event::GENERAL;
            let mut is_stop = own || !V::is_local(event, first(&of));
            if own {
                self.check_format_record(event, header, block.offset_of(at))?;
                if event == event::LOST_RECORDS {
                    clamp_gap(&mut block.words[at..], walk.before);
                }
            }
            let timed = header >> 31 != 0 && !padding;
            let mut tsc = if timed { wide(of[1], of[2]) } else { walk.before };
            if is_step(walk.before, tsc) {
                match self.times.step(cpu, walk.before, &block.words, at, filled) {
                    // Nothing may have been written for long: who is to be told of it needs a stop here.
                    Step::Sound => is_stop = true,
                    Step::Restart => {
                        done = Scanned::Restarts;
                        break;
                    }
                    Step::Stray => {
                        block.words[at + 1..at + 3].copy_from_slice(&split(walk.before));
                        block.strays += 1;
                        tsc = walk.before;
                    }
                }
                walk.backwards += u64::from(tsc < walk.before);
                walk.peak = walk.latest();
            }
            walk.timed |= timed;
            walk.before = tsc;
            walk.records += u64::from(!padding);
            if is_stop {
                block.stops.push(at as u32);
            }
            walk.at += record_words(header) as usize;
        }
        let latest = walk.latest();
        self.times.of(cpu).last = walk.before;
        (block.end, block.max_tsc) = (walk.at, 0);
        if latest > 0 {
            block.max_tsc = self.times.seen(cpu, latest);
        }
        if !self.times.is_plain(cpu) {
            self.times.correct(cpu, &mut block.words[block.begin..walk.at]);
        }
        (block.records, block.backwards) = (walk.records, walk.backwards);
        Ok(done)
    }

    /// Prepares the time of a block's pCPU, from the block's first TSC; whether it has any.
    fn begin(&mut self, block: &mut Block, filled: usize) -> bool {
        let (cpu, of) = (block.cpu, *self.times.of(block.cpu));
        if of.timed && !self.times.has_sessions() {
            return true;
        }
        let Some(first) = first_timed(&block.words, block.begin, filled) else { return of.timed };
        if !of.timed {
            self.times.begin(cpu, first);
        } else if self.times.follows_restart(cpu, first) {
            self.times.restart(cpu, first);
            block.restarts = true;
        }
        true
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

/// A walk over the records of a block.
#[derive(Default)]
struct Walk {
    /// Where it has come to, in words.
    at: usize,
    /// The TSC of the last record.
    before: u64,
    /// Whether any record carried one.
    timed: bool,
    /// The latest TSC before the last step; see [`latest`](Self::latest).
    peak: u64,
    /// Records, padding left out.
    records: u64,
    /// Records whose TSC is before that of their predecessor.
    backwards: u64,
}

impl Walk {
    /// Goes on, once a record carried a TSC, over those that give nothing to decide, which nearly
    /// all are: not the format's own, in step with the one before, and in the first of [`LONGEST`]
    /// words or more that are left. Notes the stops among them.
    ///
    /// All that this loop needs fits into registers; so it shares no function with what is rare.
    /// The branches that leave it are the only ones in it.
    #[inline(never)]
    fn ordinary<V: Visit>(&mut self, words: &[u32], stops: &mut Vec<u32>) {
        let (mut at, mut before, mut records) = (self.at as u32, self.before, 0);
        let (mut batch, mut count) = ([0; 64], 0);
        while let Some(of) = record_at(words, at) {
            let header = of[0];
            let event = header & event::EVENT_MASK;
            if event & SELDOM != 0 {
                break;
            }
            // Every turn waits for the size that the one before found, so it is found by the
            // shortest way: nearly all records carry a TSC, which makes the branch free.
            let (size, first) = if header >> 31 != 0 {
                let tsc = wide(of[1], of[2]);
                if is_step(before, tsc) {
                    break;
                }
                before = tsc;
                (timed_words(header), of[3])
            } else {
                (untimed_words(header), of[1])
            };
            records += 1;
            let here = at;
            at += size;
            // A pCPU's events follow each other in few ways, so this branch is nearly free.
            if V::is_always_local(event) {
                continue;
            }
            // Whether such a record is a stop nobody could predict: each is noted, and overwritten
            // if it is none.
            let first = (header & PAYLOAD_WORDS != 0).then_some(first);
            batch[count] = here;
            count += usize::from(!V::is_local(event, first));
            if count == batch.len() {
                stops.extend_from_slice(&batch);
                count = 0;
            }
        }
        stops.extend_from_slice(&batch[..count]);
        (self.at, self.before) = (at as usize, before);
        self.records += records;
    }

    /// The latest TSC that a record carried, 0 if none did. TSCs fall in steps only, so it is the
    /// last one or that before a step.
    fn latest(&self) -> u64 {
        if self.timed { self.peak.max(self.before) } else { self.peak }
    }
}

/// Whether a TSC goes backwards, or far ahead.
#[inline]
fn is_step(before: u64, tsc: u64) -> bool {
    tsc.wrapping_sub(before) > QUIET
}

/// A gap begins no earlier than what its pCPU wrote `before`, and no later than it ends.
#[cold]
fn clamp_gap(lost: &mut [u32], before: u64) {
    let &mut [_, lo, hi, _, _, ref mut start_lo, ref mut start_hi, ..] = lost else { return };
    let start = wide(*start_lo, *start_hi).max(before).min(wide(lo, hi));
    [*start_lo, *start_hi] = split(start);
}

/// How far a block was walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scanned {
    /// To the last whole record.
    All,
    /// To a record whose TSC started again.
    Restarts,
}

/// The merge wants no more.
struct HungUp;

enum Flow {
    Next,
    Cut(Truncation),
    HungUp,
}
