//! A trace for the Perfetto UI: TrackEvent protobuf, written as it comes.
//!
//! Owns the encoding of the handful of messages it needs (Perfetto protos/perfetto/trace,
//! Apache-2.0): one track for each pCPU with who runs there, one for each vCPU with its runstate
//! and its waits, and a flow arrow from each kick to the run it caused. The messages are few and
//! flat, and the file is written in one pass in constant memory.

use std::collections::HashSet;
use std::io::{self, Write};

use crate::analysis::{Interval, Observe, VcpuId, WaitStory};
use crate::event::Runstate;

// Field numbers of trace_packet.proto, track_descriptor.proto and track_event.proto.
const TRACE_PACKET: u32 = 1;
const PACKET_TIMESTAMP: u32 = 8;
const PACKET_SEQUENCE: u32 = 10;
const PACKET_TRACK_EVENT: u32 = 11;
const PACKET_SEQUENCE_FLAGS: u32 = 13;
const PACKET_TRACK_DESCRIPTOR: u32 = 60;
const TRACK_UUID: u32 = 1;
const TRACK_NAME: u32 = 2;
const TRACK_PARENT: u32 = 5;
const EVENT_TYPE: u32 = 9;
const EVENT_TRACK: u32 = 11;
const EVENT_CATEGORY: u32 = 22;
const EVENT_NAME: u32 = 23;
const EVENT_FLOW: u32 = 47;
const EVENT_ENDING_FLOW: u32 = 48;
const SLICE_BEGIN: u64 = 1;
const SLICE_END: u64 = 2;
const INSTANT: u64 = 3;

/// Track numbers: kinds in the top bits, so that they never meet.
const HOST: u64 = 1 << 60;
const DOMAIN: u64 = 2 << 60;
const VCPU: u64 = 3 << 60;
const WAITS: u64 = 4 << 60;
const PCPU: u64 = 5 << 60;

/// Writes what it observes.
#[derive(Debug)]
pub struct Perfetto<W> {
    out: W,
    ns_per_tick: f64,
    known: HashSet<u64>,
    flows: u64,
    failed: Option<io::Error>,
    begun: bool,
}

impl<W: Write> Perfetto<W> {
    /// A writer for a trace with `hz` TSC ticks a second.
    pub fn new(out: W, hz: f64) -> Self {
        let ns_per_tick = 1e9 / hz;
        Self { out, ns_per_tick, known: HashSet::new(), flows: 0, failed: None, begun: false }
    }

    /// Ends the trace.
    ///
    /// # Errors
    /// The first error of any write.
    pub fn finish(mut self) -> io::Result<()> {
        match self.failed {
            Some(error) => Err(error),
            None => self.out.flush(),
        }
    }

    fn packet(&mut self, fill: impl FnOnce(&mut Message)) {
        if self.failed.is_some() {
            return;
        }
        let mut packet = Message::default();
        packet.number(PACKET_SEQUENCE, 1);
        if !std::mem::replace(&mut self.begun, true) {
            // SEQ_INCREMENTAL_STATE_CLEARED: the sequence begins here.
            packet.number(PACKET_SEQUENCE_FLAGS, 1);
        }
        fill(&mut packet);
        let mut trace = Message::default();
        trace.message(TRACE_PACKET, &packet);
        self.failed = self.out.write_all(&trace.0).err();
    }

    fn track(&mut self, uuid: u64, name: &str, parent: Option<u64>) {
        if !self.known.insert(uuid) {
            return;
        }
        self.packet(|packet| {
            let mut track = Message::default();
            track.number(TRACK_UUID, uuid);
            track.bytes(TRACK_NAME, name.as_bytes());
            if let Some(parent) = parent {
                track.number(TRACK_PARENT, parent);
            }
            packet.message(PACKET_TRACK_DESCRIPTOR, &track);
        });
    }

    fn event(&mut self, tsc: u64, track: u64, kind: u64, name: &str, flow: Option<(u32, u64)>) {
        let ns = (tsc as f64 * self.ns_per_tick) as u64;
        self.packet(|packet| {
            packet.number(PACKET_TIMESTAMP, ns);
            let mut event = Message::default();
            event.number(EVENT_TYPE, kind);
            event.number(EVENT_TRACK, track);
            if kind != SLICE_END {
                event.bytes(EVENT_CATEGORY, b"xen");
                event.bytes(EVENT_NAME, name.as_bytes());
            }
            if let Some((field, id)) = flow {
                event.fixed64(field, id);
            }
            packet.message(PACKET_TRACK_EVENT, &event);
        });
    }

    fn slice(&mut self, track: u64, name: &str, from: u64, to: u64, flow: Option<(u32, u64)>) {
        self.event(from, track, SLICE_BEGIN, name, flow);
        self.event(to, track, SLICE_END, name, None);
    }

    /// The track of a vCPU's runstates.
    fn vcpu_track(&mut self, vcpu: VcpuId) -> u64 {
        let domain = DOMAIN | u64::from(vcpu.domain);
        self.track(domain, &format!("domain {}", vcpu.domain), None);
        let track = VCPU | u64::from(vcpu.domain) << 16 | u64::from(vcpu.vcpu);
        self.track(track, &vcpu.to_string(), Some(domain));
        track
    }
}

impl<W: Write> Observe for Perfetto<W> {
    fn interval(&mut self, interval: &Interval) {
        let Interval { vcpu, state, cpu, from, to } = *interval;
        let track = self.vcpu_track(vcpu);
        self.slice(track, state.name(), from, to, None);
        if state == Runstate::Running {
            self.track(HOST, "host", None);
            let track = PCPU | u64::from(cpu);
            self.track(track, &format!("pCPU {cpu}"), Some(HOST));
            self.slice(track, &vcpu.to_string(), from, to, None);
        }
    }

    fn wait(&mut self, wait: &WaitStory) {
        let parent = self.vcpu_track(wait.vcpu);
        let track = WAITS | u64::from(wait.vcpu.domain) << 16 | u64::from(wait.vcpu.vcpu);
        self.track(track, &format!("{} waits", wait.vcpu), Some(parent));
        let name = wait.lock.map_or_else(|| "wait".into(), |lock| format!("wait for {lock:#x}"));
        self.slice(track, &name, wait.blocked, wait.running, None);
        let Some(kick) = wait.kick else { return };
        self.flows += 1;
        let flow = self.flows;
        let from = self.vcpu_track(kick.by);
        let name = format!("kick {}", wait.vcpu);
        self.event(kick.tsc, from, INSTANT, &name, Some((EVENT_FLOW, flow)));
        self.event(wait.running, track, INSTANT, "runs", Some((EVENT_ENDING_FLOW, flow)));
    }
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A varint field.
    fn number(&mut self, field: u32, value: u64) {
        self.varint(u64::from(field) << 3);
        self.varint(value);
    }

    fn fixed64(&mut self, field: u32, value: u64) {
        self.varint(u64::from(field) << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn message(&mut self, field: u32, message: &Self) {
        self.bytes(field, &message.0);
    }
}
