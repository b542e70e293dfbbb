// A trace taken apart into its records, to be changed and put together again.

/// One record. `tsc` is `None` where it carries none.
#[derive(Clone, Debug)]
pub(crate) struct Rec {
    pub(crate) cpu: u32,
    pub(crate) tsc: Option<u64>,
    pub(crate) event: u32,
    pub(crate) words: Vec<u32>,
}

impl Rec {
    pub(crate) fn new(cpu: u32, tsc: u64, event: u32, words: &[u32]) -> Self {
        Self { cpu, tsc: Some(tsc), event, words: words.to_vec() }
    }
}

/// All records, in the order of the file.
pub(crate) fn records(trace: &[u8]) -> Vec<Rec> {
    let words: Vec<u32> =
        trace.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < words.len() {
        let (cpu, end) = (words[at + 1], at + 3 + words[at + 2] as usize / 4);
        at += 3;
        while at < end {
            let header = words[at];
            let timed = header >> 31 != 0;
            let start = at + 1 + 2 * usize::from(timed);
            let tsc = timed.then(|| u64::from(words[at + 1]) | u64::from(words[at + 2]) << 32);
            at = start + (header >> 28 & 7) as usize;
            found.push(Rec {
                cpu,
                tsc,
                event: header & 0x0fff_ffff,
                words: words[start..at].to_vec(),
            });
        }
    }
    found
}

/// A file of them: a window for each pCPU, records in the order of their times. One without a TSC
/// stays behind its predecessor.
pub(crate) fn file(records: &[Rec]) -> Vec<u8> {
    let pcpus = records.iter().map(|rec| rec.cpu).max().unwrap_or(0);
    let mut out = Vec::new();
    for cpu in 0..=pcpus {
        let mut time = 0;
        let timed = records.iter().filter(|rec| rec.cpu == cpu).map(|rec| {
            time = rec.tsc.unwrap_or(time);
            (time, rec)
        });
        let mut own: Vec<_> = timed.collect();
        own.sort_by_key(|&(time, _)| time);
        let words: Vec<u32> = own.into_iter().flat_map(|(_, rec)| encoded(rec)).collect();
        if !words.is_empty() {
            out.extend([0x2001_f003, cpu, 4 * words.len() as u32]);
            out.extend(words);
        }
    }
    out.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn encoded(rec: &Rec) -> Vec<u32> {
    let timed = u32::from(rec.tsc.is_some());
    let mut words = vec![rec.event | (rec.words.len() as u32) << 28 | timed << 31];
    words.extend(rec.tsc.iter().flat_map(|&tsc| [tsc as u32, (tsc >> 32) as u32]));
    words.extend(&rec.words);
    words
}
