//! Where records were lost, and which time that makes doubtful.
//!
//! Owns the union of all pCPUs' gaps as a running total, so that "how much of this interval lies in
//! a gap" is one subtraction. A gap is known from its start on (the reader delivers a lost record
//! at the start of its gap).

#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Ticks of all gaps that end before `start`.
    total: u64,
    start: u64,
    end: u64,
}

impl Gaps {
    /// A gap from `start` to `end`; starts come in rising order.
    pub(super) fn add(&mut self, start: u64, end: u64) {
        let end = end.max(start);
        if start <= self.end && self.end != 0 {
            self.end = self.end.max(end);
        } else {
            self.total += self.end - self.start;
            (self.start, self.end) = (start, end);
        }
    }

    /// Ticks inside gaps up to `tsc`.
    #[inline]
    pub(super) fn up_to(&self, tsc: u64) -> u64 {
        self.total + tsc.min(self.end).saturating_sub(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::Gaps;

    #[test]
    fn overlapping_gaps_count_once() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.up_to(50), 0);
        gaps.add(100, 200);
        gaps.add(150, 250);
        assert_eq!(gaps.up_to(120), 20);
        assert_eq!(gaps.up_to(300), 150);
        gaps.add(400, 410);
        assert_eq!(gaps.up_to(405), 155);
        assert_eq!(gaps.up_to(1000), 160);
    }
}
