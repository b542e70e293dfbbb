// Takes records out of a trace, for tests that need one with something missing.

/// The trace without the records of one group of events: a class and its subclass, as in the header
/// of a record.
pub(crate) fn without(trace: &[u8], group: u32) -> Vec<u8> {
    let words: Vec<u32> =
        trace.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < words.len() {
        let end = at + 3 + words[at + 2] as usize / 4;
        let header = out.len();
        out.extend(&words[at..at + 3]);
        at += 3;
        while at < end {
            let size = (1 + 2 * (words[at] >> 31) + (words[at] >> 28 & 7)) as usize;
            if words[at] & 0x0fff_f000 != group {
                out.extend(&words[at..at + size]);
            }
            at += size;
        }
        out[header + 2] = (out.len() - header - 3) as u32 * 4;
    }
    out.into_iter().flat_map(u32::to_le_bytes).collect()
}
