//! One record as a line of text.

use std::fmt::{self, Display, Formatter};

use crate::analysis::VcpuId;
use crate::event::{self, Runstate, fields, hypercall_name, vector_name};
use crate::markers;
use crate::reader::Record;

/// Which vCPU is on each pCPU, as the records so far say.
#[derive(Clone, Debug, Default)]
pub struct WhoRuns(Vec<Option<VcpuId>>);

impl WhoRuns {
    /// The vCPU on `cpu`, if known; the idle domain is 32767.
    #[must_use]
    pub fn on(&self, cpu: u32) -> Option<VcpuId> {
        self.0.get(cpu as usize).copied().flatten()
    }

    /// Takes a record into account.
    pub fn record(&mut self, record: &Record<'_>) {
        let now = match (event::runstate_change(record.event), record.words) {
            (Some((_, Runstate::Running)), &[key, ..]) => Some(unpack(key)),
            (Some((Runstate::Running, _)), &[key, ..])
                if self.on(record.cpu) == Some(unpack(key)) =>
            {
                None
            }
            (None, &[key, ..]) if record.event == event::CONTINUE_RUNNING => Some(unpack(key)),
            _ if record.event == event::LOST_RECORDS => {
                record.lost().map(|lost| VcpuId { domain: lost.domain, vcpu: lost.vcpu })
            }
            _ => return,
        };
        let cpu = record.cpu as usize;
        if self.0.len() <= cpu {
            self.0.resize(cpu + 1, None);
        }
        self.0[cpu] = now;
    }
}

fn unpack(key: u32) -> VcpuId {
    VcpuId { domain: (key >> 16) as u16, vcpu: key as u16 }
}

/// The vCPUs a record names in its payload.
#[must_use]
pub fn subjects(record: &Record<'_>) -> [Option<VcpuId>; 2] {
    let pair = |domain: u32, vcpu: u32| {
        Some(VcpuId { domain: u16::try_from(domain).ok()?, vcpu: u16::try_from(vcpu).ok()? })
    };
    if event::runstate_change(record.event).is_some() || record.event == event::CONTINUE_RUNNING {
        return [record.words.first().map(|&key| unpack(key)), None];
    }
    match (record.event, record.words) {
        (event::SWITCH, &[pd, pv, nd, nv, ..]) => [pair(pd, pv), pair(nd, nv)],
        (
            event::SLEEP
            | event::WAKE
            | event::YIELD
            | event::BLOCK
            | event::SHUTDOWN
            | event::SWITCH_INFPREV
            | event::SWITCH_INFNEXT
            | event::SWITCH_INFCONT,
            &[domain, vcpu, ..],
        ) => [pair(domain, vcpu), None],
        (event, words) => {
            // A scheduler's own record: a vCPU packed into one word.
            let mut at = 0;
            for field in fields(event).split(' ') {
                if field == "vcpu" {
                    return [words.get(at).map(|&key| unpack(key)), None];
                }
                at += 1 + usize::from(field.ends_with("/64"));
            }
            [None, None]
        }
    }
}

/// The name of an event as [`text`] prints it: its number if this crate has no name for it.
#[must_use]
pub fn name(event: u32) -> String {
    event::name(event).map_or_else(|| format!("{event:#010x}"), str::to_owned)
}

/// Event and payload of a record, decoded as far as this crate knows it.
pub fn text<'a>(record: &'a Record<'a>) -> impl Display + 'a {
    Text(record)
}

struct Text<'a>(&'a Record<'a>);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let record = self.0;
        match event::name(record.event) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{:#010x}", record.event)?,
        }
        if let Some((old, new)) = event::runstate_change(record.event)
            && let &[key, ..] = record.words
        {
            return write!(f, " {} {}->{}", unpack(key), old.name(), new.name());
        }
        if let Some(lost) = record.lost() {
            let Self(record) = self;
            let ticks = record.tsc.saturating_sub(lost.first_tsc);
            return write!(f, " {} records in {ticks} ticks", lost.records);
        }
        match (record.event, record.words) {
            (event::PV_HYPERCALL | event::PV_SUBCALL, &[first, ..]) => {
                let number = first & 0xf_ffff;
                write!(f, " {number} {}", hypercall_name(number).unwrap_or("?"))?;
                if let (event::HYPERCALL_SCHED_OP, Some(command)) =
                    (number, event::hypercall_arg0(record.words))
                {
                    return write!(f, " {}", sched_op_name(command));
                }
                rest(f, &record.words[1..])
            }
            (event::VMMCALL, &[number, ..]) => {
                write!(f, " {number} {}", hypercall_name(number).unwrap_or("?"))
            }
            (event::PV_TRAP, &[_, trap, ..]) | (event::PV_TRAP_64, &[_, _, trap, ..]) => {
                let vector = trap & 0x7fff;
                write!(f, " {vector} {}", vector_name(vector).unwrap_or("?"))?;
                rest(f, record.words)
            }
            (event, words) if !fields(event).is_empty() => named(f, fields(event), words),
            (event::SWITCH_INFPREV, &[_, _, ns, ..]) => write!(f, "{} ran {ns} ns", self.who()),
            (event::SWITCH_INFNEXT, &[_, _, ns, ..]) => write!(f, "{} waited {ns} ns", self.who()),
            (event, words) if event & event::GROUP_MASK == markers::GUEST => {
                for word in words {
                    write!(f, " {word:#x}")?;
                }
                Ok(())
            }
            (_, words) => {
                let who = self.who();
                f.write_str(&who)?;
                // The words that name vCPUs are written.
                let named = match (who.is_empty(), record.event) {
                    (true, _) => 0,
                    (_, event::SWITCH) => 4,
                    (_, event::CONTINUE_RUNNING) => 1,
                    _ => 2,
                };
                rest(f, words.get(named..).unwrap_or_default())
            }
        }
    }
}

impl Text<'_> {
    fn who(&self) -> String {
        match subjects(self.0) {
            [Some(one), Some(other)] => format!(" {one} -> {other}"),
            [Some(one), None] => format!(" {one}"),
            _ => String::new(),
        }
    }
}

/// The payload by the names of its [`fields`]; what has no name is written as [`rest`] does.
fn named(f: &mut Formatter<'_>, fields: &str, mut words: &[u32]) -> fmt::Result {
    for field in fields.split(' ') {
        let Some((&word, after)) = words.split_first() else { break };
        words = after;
        if field == "vcpu" {
            write!(f, " {}", unpack(word))?;
        } else if field == "padding" {
            continue;
        } else if let (Some(name), Some((&high, after))) =
            (field.strip_suffix("/64"), words.split_first())
        {
            words = after;
            write!(f, " {name}={}", u64::from(word) | u64::from(high) << 32)?;
        } else {
            let parts: Vec<_> = field.split('|').collect();
            // Halves, a half and bytes, or bytes.
            let widths: &[u32] = match parts.len() {
                2 => &[16, 16],
                3 => &[16, 8, 8],
                4 => &[8; 4],
                _ => &[],
            };
            if widths.is_empty() {
                write!(f, " {field}={}", word as i32)?;
            }
            let mut shift = 0;
            for (part, width) in parts.iter().zip(widths) {
                if *part != "padding" {
                    write!(f, " {part}={}", word >> shift & ((1 << width) - 1))?;
                }
                shift += width;
            }
        }
    }
    rest(f, words)
}

fn rest(f: &mut Formatter<'_>, words: &[u32]) -> fmt::Result {
    for word in words {
        write!(f, " {word:#x}")?;
    }
    Ok(())
}

/// Names of the commands of Xen public/sched.h.
fn sched_op_name(command: u32) -> &'static str {
    match command {
        0 => "yield",
        1 => "block",
        2 => "shutdown",
        3 => "poll",
        4 => "remote_shutdown",
        5 => "shutdown_code",
        6 => "watchdog",
        7 => "pin_override",
        _ => "?",
    }
}
