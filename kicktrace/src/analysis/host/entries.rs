//! What makes guests enter Xen: hypercalls by number, traps, exits by reason.
//!
//! Owns how these are told apart and, where the trace has the end of a stay (HVM and PVH: the next
//! entry), how long it was. A PV guest's return leaves no record.

use rustc_hash::FxHashMap;

use crate::analysis::latency::Latency;
use crate::event::{self, Runstate};
use crate::reader::Record;

use super::figures::EntryKind;

/// One record about entering or leaving Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    Xen(EntryKind, u32),
    /// The guest runs again.
    Back,
}

impl Entered {
    pub(super) const fn counts(self) -> bool {
        matches!(self, Self::Xen(..))
    }
}

/// What a record says about entering Xen, if it does.
pub(super) fn entered(record: &Record<'_>) -> Option<Entered> {
    let first = record.words.first().copied();
    let event = record.event;
    Some(match event & event::GROUP_MASK {
        event::PV_ENTRY | event::PV_SUBCALLS => match event {
            event::PV_HYPERCALL => Entered::Xen(EntryKind::Hypercall, first? & 0xf_ffff),
            event::PV_SUBCALL => Entered::Xen(EntryKind::MulticallEntry, first? & 0xf_ffff),
            event::PV_TRAP => Entered::Xen(EntryKind::Trap, record.words.get(1)? & 0x7fff),
            event::PV_TRAP_64 => Entered::Xen(EntryKind::Trap, record.words.get(2)? & 0x7fff),
            _ => Entered::Xen(EntryKind::PvEvent, event & !0x100),
        },
        event::HVM_ENTRY_EXIT if event::is_vmexit(event) => Entered::Xen(EntryKind::Exit, first?),
        event::HVM_ENTRY_EXIT if event & !0x500 == event::VMENTRY => Entered::Back,
        event::HVM_HANDLER if event == event::VMMCALL => Entered::Xen(EntryKind::Hypercall, first?),
        _ => return None,
    })
}

/// The entries of one vCPU.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) counts: FxHashMap<(EntryKind, u32), u64>,
    /// Exits whose end is in the trace: how long Xen worked, without the time off the pCPU.
    pub(super) stays: FxHashMap<u32, Stay>,
    inside: Option<Inside>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Stay {
    pub(super) ticks: u64,
    pub(super) each: Latency,
}

/// A stay in Xen under way.
#[derive(Clone, Copy, Debug)]
struct Inside {
    reason: u32,
    since: u64,
    /// Ticks off its pCPU since.
    off: u64,
}

impl Entries {
    pub(super) fn enter(&mut self, entered: Entered, tsc: u64) {
        match entered {
            Entered::Xen(kind, number) => {
                *self.counts.entry((kind, number)).or_default() += 1;
                if kind == EntryKind::Exit {
                    self.inside = Some(Inside { reason: number, since: tsc, off: 0 });
                }
            }
            Entered::Back => {
                let Some(Inside { reason, since, off }) = self.inside.take() else { return };
                let ticks = tsc.saturating_sub(since).saturating_sub(off);
                let stay = self.stays.entry(reason).or_default();
                stay.ticks = stay.ticks.saturating_add(ticks);
                stay.each.record(ticks);
                // Its exit may be in an earlier phase.
                self.counts.entry((EntryKind::Exit, reason)).or_default();
            }
        }
    }

    /// Time passed in a runstate.
    pub(super) fn account(&mut self, state: Option<Runstate>, ticks: u64) {
        if let (Some(inside), false) = (&mut self.inside, state == Some(Runstate::Running)) {
            inside.off = inside.off.saturating_add(ticks);
        }
    }

    /// Records were lost: whether the stay went on is not known.
    pub(super) fn forget(&mut self) {
        self.inside = None;
    }

    pub(super) fn begin_again(&mut self) {
        self.counts.clear();
        self.stays.clear();
    }
}
