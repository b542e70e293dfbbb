//! Blocks to records in time order: the merge.
//!
//! Owns the order. `xentrace` empties the pCPUs' rings one after the other, again and again: a
//! *pass* is a run of windows with rising pCPU numbers. When a pCPU's ring is emptied, every record
//! it held has a TSC below that moment; and every record written to the file before that moment
//! bears witness how late it was at least. So a record is final once every pCPU has been emptied at
//! a moment known to be later: about one pass after it was read. Nothing else is held back.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::mpsc::Sender;

use crate::error::Error;
use crate::event;
use crate::reader::window::{Block, End, record_words};
use crate::reader::{PcpuReading, ReadOptions, Reading, Record, Visit};

/// One pCPU's records that were read and not yet delivered.
#[derive(Default)]
struct Stream {
    blocks: VecDeque<Block>,
    /// Word in the front block where the next record starts.
    at: usize,
    /// Sort key of the next record: its TSC, or the start of its gap.
    key: u64,
    /// Correction of this pCPU's TSC.
    tsc_offset: i64,
    /// The last corrected TSC delivered, for records without one.
    tsc: u64,
    reading: PcpuReading,
}

/// When each pCPU was emptied last, as far as the file shows.
#[derive(Default)]
struct Passes {
    /// Windows of the running pass: pCPU and the latest TSC in the file up to the window's end.
    current: Vec<(u32, u64)>,
    previous: Vec<(u32, u64)>,
    /// The latest TSC before the previous pass.
    before: u64,
    latest: u64,
}

impl Passes {
    /// Notes that the window of `cpu` has been read up to `max_tsc`; returns the TSC up to which no
    /// further record can come.
    fn window(&mut self, cpu: u32, max_tsc: u64) -> u64 {
        if self.current.last().is_some_and(|&(last, _)| cpu <= last) {
            if let Some(&(_, tsc)) = self.previous.last() {
                self.before = tsc;
            }
            std::mem::swap(&mut self.previous, &mut self.current);
            self.current.clear();
        }
        self.latest = self.latest.max(max_tsc);
        self.current.push((cpu, self.latest));
        // pCPUs up to `cpu` were emptied in this pass, those above in the previous one, after the
        // windows that stand before theirs.
        let seen = self.previous.partition_point(|&(other, _)| other <= cpu);
        if seen == 0 { self.before } else { self.previous[seen - 1].1 }
    }
}

pub(super) struct Merge<'v, V> {
    streams: Vec<Stream>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    passes: Passes,
    spare: Sender<Vec<u32>>,
    visitor: &'v mut V,
    offsets: Vec<(u32, i64)>,
    buffered: usize,
    buffer_limit: usize,
    delivered: u64,
    reading: Reading,
}

impl<'v, V: Visit> Merge<'v, V> {
    pub(super) fn new(options: &ReadOptions, spare: Sender<Vec<u32>>, visitor: &'v mut V) -> Self {
        Self {
            streams: Vec::new(),
            heap: BinaryHeap::new(),
            passes: Passes::default(),
            spare,
            visitor,
            offsets: options.tsc_offsets.clone(),
            buffered: 0,
            buffer_limit: options.buffer_limit,
            delivered: 0,
            reading: Reading { first_tsc: u64::MAX, ..Reading::default() },
        }
    }

    /// Takes a block in and delivers what has become final.
    pub(super) fn push(&mut self, block: Block) -> Result<(), Error> {
        let (cpu, last) = (block.cpu, block.last);
        while self.streams.len() <= cpu as usize {
            let cpu = self.streams.len() as u32;
            let offset = self.offsets.iter().rev().find(|&&(of, _)| of == cpu);
            self.streams.push(Stream {
                tsc_offset: offset.map_or(0, |&(_, ticks)| ticks),
                reading: PcpuReading { cpu, ..PcpuReading::default() },
                ..Stream::default()
            });
        }
        let stream = &mut self.streams[cpu as usize];
        let max_tsc = match block.max_tsc {
            0 => 0,
            tsc => tsc.wrapping_add_signed(stream.tsc_offset),
        };
        if block.words.is_empty() {
            let _ = self.spare.send(block.words);
        } else {
            self.buffered += block.words.len() * 4;
            self.reading.peak_buffered = self.reading.peak_buffered.max(self.buffered as u64);
            let was_empty = stream.blocks.is_empty();
            stream.blocks.push_back(block);
            if was_empty && stream.next_key(&self.spare, &mut self.buffered) {
                self.heap.push(Reverse((stream.key, cpu)));
            }
        }
        if last {
            let final_up_to = self.passes.window(cpu, max_tsc);
            self.deliver(final_up_to)?;
        } else {
            self.passes.latest = self.passes.latest.max(max_tsc);
        }
        // Too much held back: give up the order rather than the memory.
        while self.buffered > self.buffer_limit {
            let Some(&Reverse((key, _))) = self.heap.peek() else { break };
            self.deliver(key)?;
        }
        Ok(())
    }

    /// Delivers everything that is left.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        self.deliver(u64::MAX)
    }

    pub(super) fn into_reading(self, end: End) -> Reading {
        let mut reading = self.reading;
        reading.bytes = end.bytes;
        reading.windows = end.windows;
        reading.truncated = end.truncated;
        reading.pcpus = self.streams.into_iter().map(|stream| stream.reading).collect();
        reading.pcpus.retain(|pcpu| pcpu.records > 0);
        reading.records = reading.pcpus.iter().map(|pcpu| pcpu.records).sum();
        if reading.records == 0 {
            reading.first_tsc = 0;
        }
        reading
    }

    /// Delivers all records with a key up to `limit`.
    fn deliver(&mut self, limit: u64) -> Result<(), Error> {
        while let Some(&Reverse((key, cpu))) = self.heap.peek() {
            if key > limit {
                break;
            }
            self.heap.pop();
            // Stay with this pCPU until another one's record is due.
            let until = self.heap.peek().map_or(limit, |&Reverse((next, _))| next.min(limit));
            if self.run(cpu, until)? {
                let key = self.streams[cpu as usize].key;
                self.heap.push(Reverse((key, cpu)));
            }
        }
        Ok(())
    }

    /// Delivers records of `cpu` up to key `until`; returns whether any is left.
    fn run(&mut self, cpu: u32, until: u64) -> Result<bool, Error> {
        let stream = &mut self.streams[cpu as usize];
        loop {
            let Some(block) = stream.blocks.front() else { return Ok(false) };
            let at = stream.at;
            let header = block.words[at];
            let size = record_words(header);
            let event = header & event::EVENT_MASK;
            let timed = header >> 31 != 0;
            let payload = at + 1 + 2 * usize::from(timed);
            if timed {
                let raw = u64::from(block.words[at + 1]) | u64::from(block.words[at + 2]) << 32;
                let tsc = raw.wrapping_add_signed(stream.tsc_offset);
                stream.reading.backwards += u64::from(tsc < stream.tsc);
                stream.tsc = tsc;
            }
            let record = Record {
                cpu,
                tsc: stream.tsc,
                event,
                timed,
                words: &block.words[payload..at + size],
                offset: block.offset + 4 * at as u64,
            };
            self.reading.late_records += u64::from(stream.key < self.delivered);
            self.delivered = self.delivered.max(stream.key);
            self.reading.first_tsc = self.reading.first_tsc.min(stream.key);
            self.reading.last_tsc = self.reading.last_tsc.max(stream.tsc);
            stream.reading.records += 1;
            if event == event::LOST_RECORDS {
                stream.reading.note_lost(&record, stream.tsc_offset);
            }
            self.visitor.record(&record)?;
            stream.at = at + size;
            if !stream.next_key(&self.spare, &mut self.buffered) {
                return Ok(false);
            }
            if stream.key > until {
                return Ok(true);
            }
        }
    }
}

impl PcpuReading {
    #[cold]
    fn note_lost(&mut self, record: &Record<'_>, tsc_offset: i64) {
        if let Some(lost) = record.lost() {
            let start = lost.first_tsc.wrapping_add_signed(tsc_offset);
            self.lost_records += u64::from(lost.records);
            self.gaps += 1;
            self.gap_ticks = self.gap_ticks.saturating_add(record.tsc.saturating_sub(start));
        }
    }
}

impl Stream {
    /// Moves to the next record that is not padding and computes its key; false if there is none.
    #[inline]
    fn next_key(&mut self, spare: &Sender<Vec<u32>>, buffered: &mut usize) -> bool {
        loop {
            let Some(block) = self.blocks.front() else { return false };
            let Some(&header) = block.words.get(self.at) else {
                self.at = 0;
                if let Some(block) = self.blocks.pop_front() {
                    *buffered -= block.words.len() * 4;
                    // The reading thread may have ended already.
                    let _ = spare.send(block.words);
                }
                continue;
            };
            if header & event::EVENT_MASK == event::WRAP_BUFFER {
                self.at += record_words(header);
                continue;
            }
            if header >> 31 == 0 {
                self.key = self.tsc;
                return true;
            }
            let lost = header & event::EVENT_MASK == event::LOST_RECORDS;
            let at = self.at + if lost { 5 } else { 1 };
            let raw = u64::from(block.words[at]) | u64::from(block.words[at + 1]) << 32;
            self.key = raw.wrapping_add_signed(self.tsc_offset);
            return true;
        }
    }
}
