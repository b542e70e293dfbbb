//! Windows to blocks.
//!
//! Owns the byte offsets, the validity of every record's size, and the end of the input. What
//! leaves here as a [`Block`] holds whole records only, so the merge needs no further checks.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::marker::PhantomData;

use crate::error::{Error, ErrorKind};
use crate::event;
use crate::reader::block::{BLOCK_WORDS, Block, Spare};
use crate::reader::reading::{ReadOptions, Truncation};
use crate::reader::record::Visit;
use crate::reader::time::{QUIET, Step, Times, first_timed};
use crate::reader::words::{
    LONGEST, PAYLOAD_WORDS, first, record_at, record_words, split, timed_words, untimed_words, wide,
};

/// Bytes of records kept at most while their pCPU shows no TSC.
const UNTIMED: usize = 1 << 20;

/// Bits of the classes whose events hardly ever come: the format's own, and the lives of domains.
const SELDOM: u32 = (event::GENERAL | event::DOMAINS) & event::CLASS_MASK;

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
    offset: u64,
    windows: u64,
    /// The window under way.
    window: Window,
    times: Times,
    /// Blocks to be handed out before anything more is read.
    ready: VecDeque<Block>,
    /// Blocks of pCPUs that have shown no TSC yet: their time is that of the next record that has
    /// one.
    untimed: Vec<Block>,
    /// How the input ended, once it has.
    end: Option<Result<End, Error>>,
    visitor: PhantomData<fn(V)>,
}

/// What is known of a window while it is read.
#[derive(Default)]
struct Window {
    cpu: u32,
    /// Where it ends in the input, in bytes.
    end: u64,
    /// Words of it that are to be read yet; `None` between two windows.
    left: Option<usize>,
    /// The words of a record that the block before held the start of.
    carry: [u32; LONGEST],
    /// How many they are.
    carried: usize,
}

impl<R: Read, V: Visit> Windows<R, V> {
    pub(super) fn new(input: R, options: &ReadOptions) -> Self {
        Self {
            input,
            offset: 0,
            windows: 0,
            window: Window::default(),
            times: Times::new(options),
            ready: VecDeque::new(),
            untimed: Vec::new(),
            end: None,
            visitor: PhantomData,
        }
    }

    /// The next block; `None` at the end of the input, or before damage.
    pub(super) fn next_block(&mut self, spare: &mut Spare) -> Option<Block> {
        loop {
            if let Some(block) = self.ready.pop_front() {
                return Some(block);
            }
            if self.end.is_some() {
                return None;
            }
            let read = match self.window.left {
                None => self.open(),
                Some(left) => self.go_on(left, spare),
            };
            if let Some(end) = read.transpose() {
                self.end = Some(end);
                // Whoever has no time by now has the latest there is.
                self.release_untimed(None);
            }
        }
    }

    /// How the input ended, once there are no more blocks.
    pub(super) fn end(self) -> Result<End, Error> {
        self.end.unwrap_or(Ok(End::default()))
    }

    /// Reads the header of the next window; the end, if there is none.
    fn open(&mut self) -> Result<Option<End>, Error> {
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
            return Ok(Some(self.ended(truncated)));
        }
        let [_, cpu, size] = words;
        if cpu >= event::MAX_PCPUS || size % 4 != 0 {
            return Err(ErrorKind::AbsurdWindow { offset: start, cpu, size }.into());
        }
        self.windows += 1;
        self.window = Window {
            cpu,
            end: self.offset + u64::from(size),
            left: Some((size / 4) as usize),
            ..Window::default()
        };
        Ok(None)
    }

    fn ended(&self, truncated: Option<Truncation>) -> End {
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

    /// Reads a block of the window under way, of which `left` words are to be read yet; the end, if
    /// the input is cut there.
    fn go_on(&mut self, left: usize, spare: &mut Spare) -> Result<Option<End>, Error> {
        let take = left.min(BLOCK_WORDS);
        let kept = self.window.carried;
        let start = self.offset - 4 * kept as u64;
        let mut block = spare.block(kept, take, self.offset);
        (block.cpu, block.offset) = (self.window.cpu, start);
        let filled = block.begin + kept;
        block.words[block.begin..filled].copy_from_slice(&self.window.carry[..kept]);
        let got = self.fill(bytemuck::cast_slice_mut(&mut block.words[filled..filled + take]))?;
        let mut read = filled + got / 4;
        if cfg!(target_endian = "big") {
            block.words[filled..read].iter_mut().for_each(|word| *word = u32::from_le(*word));
        }
        while self.scan(&mut block, read)? == Scanned::Restarts {
            // What follows is a block of its own, in a time of its own.
            let rest = self.split_off(&mut block, read, spare);
            read = rest.begin + read - block.end;
            self.hand_out(std::mem::replace(&mut block, rest));
        }
        let (end, offset) = (block.end, block.offset_of(block.end));
        let unused = read - end;
        self.window.carry[..unused].copy_from_slice(&block.words[end..read]);
        self.window.carried = unused;
        let cut = got < take * 4;
        block.last = left == take || cut;
        self.window.left = (!block.last).then_some(left - take);
        // What stands before damage is good.
        self.hand_out(block);
        if cut {
            return Ok(Some(self.ended(Some(Truncation {
                offset: self.offset,
                missing: self.window.end - self.offset,
                unused: unused as u64 * 4 + (got % 4) as u64,
            }))));
        }
        if self.window.left.is_none() && unused > 0 {
            let (header, window_end) = (self.window.carry[0], self.window.end);
            let size = 4 * record_words(header);
            return Err(ErrorKind::RecordPastWindow { offset, header, size, window_end }.into());
        }
        Ok(None)
    }

    /// The records of `block` behind its end, as a block that begins a new session.
    #[cold]
    fn split_off(&mut self, block: &mut Block, read: usize, spare: &mut Spare) -> Block {
        let end = block.end;
        let mut rest = spare.block(0, read - end, self.offset);
        let begin = rest.begin;
        rest.words[begin..begin + read - end].copy_from_slice(&block.words[end..read]);
        (rest.cpu, rest.offset, rest.restarts) = (block.cpu, block.offset_of(end), true);
        block.last = false;
        self.times.restart(rest.cpu, wide(rest.words[begin + 1], rest.words[begin + 2]));
        rest
    }

    /// Hands a block out, or keeps it until its time is known.
    fn hand_out(&mut self, block: Block) {
        let cpu = block.cpu;
        if !self.times.of(cpu).timed {
            self.untimed.push(block);
            if self.untimed.iter().map(Block::bytes).sum::<usize>() > UNTIMED {
                self.release_untimed(None);
            }
            return;
        }
        if !self.untimed.is_empty() {
            self.release_untimed(Some((cpu, block.before)));
        }
        self.ready.push_back(block);
    }

    /// Hands out the blocks of a pCPU whose time is known now; those of all, with the latest time
    /// there is, for `None`.
    #[cold]
    fn release_untimed(&mut self, known: Option<(u32, u64)>) {
        let (time, latest) = (known.map(|(_, time)| time), self.times.latest);
        let is_due = |block: &mut Block| known.is_none_or(|(cpu, _)| cpu == block.cpu);
        for mut block in self.untimed.extract_if(.., is_due) {
            block.before = time.unwrap_or(latest);
            // The pass it belongs to is over.
            block.last = false;
            self.ready.push_back(block);
        }
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
                    // Nothing may have been written for long: who is to be told of it needs a stop
                    // here.
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
