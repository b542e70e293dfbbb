//! Which vCPUs a gap may concern.
//!
//! Owns that a gap costs what it makes doubtful, and not a look at every vCPU of the host. What is
//! doubtful then is the vCPU's to know.

use crate::analysis::vcpu::Vcpu;

/// The vCPUs, by index, that the next gap may make doubtful.
#[derive(Debug, Default)]
pub(super) struct Exposed {
    /// Whether there was a gap: before the first one nothing is noted.
    watched: bool,
    /// Those that polled or waited since a gap made that doubtful; each once.
    open: Vec<u32>,
    /// Those that may run on a pCPU whose current vCPU is another; each once.
    strays: Vec<u32>,
    /// vCPUs looked at.
    #[cfg(test)]
    pub(super) looked: usize,
}

impl Exposed {
    #[inline]
    pub(super) fn is_watched(&self) -> bool {
        self.watched
    }

    /// The vCPU at `index` polls or has waited.
    #[cold]
    pub(super) fn opens(&mut self, index: u32, vcpu: &mut Vcpu) {
        if !std::mem::replace(&mut vcpu.exposed, true) {
            self.open.push(index);
        }
    }

    /// The vCPU at `index` may run somewhere without being current there.
    #[cold]
    pub(super) fn strays(&mut self, index: u32, vcpu: &mut Vcpu) {
        if !std::mem::replace(&mut vcpu.stray, true) {
            self.strays.push(index);
        }
    }

    /// A gap on `cpu`, whose current vCPU is `current`: makes doubtful what other vCPUs than those
    /// that run elsewhere do. Returns those that run on `cpu`.
    pub(super) fn taint(&mut self, cpu: u32, current: Option<u32>, vcpus: &mut [Vcpu]) -> Vec<u32> {
        if !std::mem::replace(&mut self.watched, true) {
            self.open = (0..vcpus.len() as u32).collect();
            vcpus.iter_mut().for_each(|vcpu| vcpu.exposed = true);
        }
        #[cfg(test)]
        {
            self.looked += self.open.len() + self.strays.len() + 1;
        }
        self.open.retain(|&index| {
            let vcpu = &mut vcpus[index as usize];
            vcpu.exposed = vcpu.is_running() && vcpu.cpu != cpu;
            if !vcpu.exposed {
                vcpu.taint_episodes();
            }
            vcpu.exposed
        });
        let mut here: Vec<_> = self.strays.iter().copied().chain(current).collect();
        here.sort_unstable();
        here.dedup();
        here.retain(|&index| {
            let vcpu = &vcpus[index as usize];
            vcpu.is_running() && vcpu.cpu == cpu
        });
        self.strays.retain(|&index| {
            let vcpu = &mut vcpus[index as usize];
            vcpu.stray = vcpu.is_running() && vcpu.cpu != cpu;
            vcpu.stray
        });
        here
    }
}

#[cfg(test)]
mod tests {
    use crate::analysis::{Analyser, Options};
    use crate::event::{self, Runstate};
    use crate::reader::{ReadOptions, read};

    /// A window of records of pCPU `cpu`: each with its event, its TSC and its words.
    fn window(cpu: u32, records: &[(u32, u64, &[u32])]) -> Vec<u8> {
        let timed = |&(event, tsc, words): &(u32, u64, &[u32])| {
            let header = 1 << 31 | (words.len() as u32) << 28 | event;
            let all = [header, tsc as u32, (tsc >> 32) as u32].into_iter();
            all.chain(words.iter().copied()).collect::<Vec<_>>()
        };
        let body: Vec<u32> = records.iter().flat_map(timed).collect();
        let header = [2 << 28 | event::CPU_CHANGE, cpu, 4 * body.len() as u32];
        header.into_iter().chain(body).flat_map(u32::to_le_bytes).collect()
    }

    fn analysed(trace: &[u8]) -> Analyser {
        let mut analyser = Analyser::new(&Options::default());
        read(trace, &ReadOptions::default(), &mut analyser).expect("a sound trace");
        analyser
    }

    /// The change of a vCPU from runnable to running.
    const COMES: u32 = event::RUNSTATE_CHANGE | 1 << 8;

    #[test]
    fn a_gap_costs_what_it_makes_doubtful() {
        const VCPUS: u32 = 3_000;
        const GAPS: u64 = 2_000;
        let poll = [1 << 20 | event::HYPERCALL_SCHED_OP, event::SCHEDOP_POLL];
        let names: Vec<[u32; 2]> = (0..VCPUS).map(|vcpu| [1, vcpu]).collect();
        let keys: Vec<[u32; 1]> = (0..VCPUS).map(|vcpu| [1 << 16 | vcpu]).collect();
        // Every vCPU sleeps in a poll.
        let sleeps = |vcpu: usize| {
            let tsc = 1_000 + 100 * vcpu as u64;
            [
                (COMES, tsc, &keys[vcpu][..]),
                (event::PV_HYPERCALL, tsc + 10, &poll[..]),
                (event::BLOCK, tsc + 20, &names[vcpu][..]),
                (event::RUNSTATE_CHANGE | 2 << 4, tsc + 30, &keys[vcpu][..]),
            ]
        };
        let mut trace = window(0, &(0..VCPUS as usize).flat_map(sleeps).collect::<Vec<_>>());
        let start = 1_000 + 100 * u64::from(VCPUS);
        for gap in 0..GAPS {
            let tsc = start + 100 * gap;
            let words = [1, event::DOMID_IDLE | 1 << 16, (tsc - 50) as u32, 0];
            trace.extend(window(1, &[(event::LOST_RECORDS, tsc, &words[..])]));
        }
        let analyser = analysed(&trace);
        assert_eq!(analyser.vcpus.len(), VCPUS as usize);
        // All vCPUs once, and one look at each gap.
        assert_eq!(analyser.exposed.looked, VCPUS as usize + GAPS as usize);
    }

    /// A vCPU that runs beside the current one of its pCPU, however that came about, is in a gap of
    /// this pCPU too.
    #[test]
    fn a_gap_concerns_all_that_run_there() {
        let (a, b, idle) = ([1 << 16], [1 << 16 | 1], [event::DOMID_IDLE << 16]);
        let gap = [1, event::DOMID_IDLE, 2_000, 0];
        for (how, records) in [
            ("a sibling's", vec![(COMES, 1_100, &a[..]), (COMES, 1_200, &b[..])]),
            ("idle comes over it", vec![(COMES, 1_100, &a[..]), (COMES, 1_200, &idle[..])]),
            (
                "another goes on",
                vec![(COMES, 1_100, &a[..]), (event::CONTINUE_RUNNING, 1_200, &b[..])],
            ),
        ] {
            let before = window(0, &records);
            let running = |analyser: &Analyser| {
                let runs =
                    |vcpu: &&crate::analysis::vcpu::Vcpu| vcpu.state == Some(Runstate::Running);
                analyser.vcpus.iter().filter(runs).count()
            };
            assert!(running(&analysed(&before)) > 0, "{how}");
            let lost = window(0, &[(event::LOST_RECORDS, 3_000, &gap[..])]);
            assert_eq!(running(&analysed(&[before, lost].concat())), 0, "{how}");
        }
    }
}
