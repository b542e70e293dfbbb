//! What can be said of a few numbers: middle, range, and whether two lots differ.
//!
//! Owns no figure's meaning. Nothing here assumes a distribution.

use serde::{Deserialize, Serialize};

/// The middle of some numbers and how far they go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of `values`; `None` where there are none.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Spread { median, min, max })
    }
}

/// The exact two-sided probability that two lots of numbers from one source differ at least as much in their means as
/// these do: over every way to deal them out. `None` where a lot is empty, or dealing takes too long (above 20
/// numbers). With 3 against 3 it is never below 0.1.
///
/// ```
/// use pvlab::bench::stats::permutation;
///
/// assert_eq!(permutation(&[1.0, 2.0, 3.0], &[7.0, 8.0, 9.0]), Some(0.1));
/// assert_eq!(permutation(&[1.0, 2.0], &[1.0, 2.0]), Some(1.0));
/// ```
pub fn permutation(a: &[f64], b: &[f64]) -> Option<f64> {
    let all = [a, b].concat();
    if a.is_empty() || b.is_empty() || all.len() > 20 {
        return None;
    }
    let sum: f64 = all.iter().sum();
    let apart = |of_a: f64| (of_a / a.len() as f64 - (sum - of_a) / b.len() as f64).abs();
    // Sums in another order differ in their last digits.
    let observed = apart(a.iter().sum()) * (1.0 - 1e-9);
    let (mut as_far, mut deals) = (0u32, 0u32);
    for deal in 0u32..1 << all.len() {
        if deal.count_ones() as usize == a.len() {
            let of_a: f64 =
                all.iter().enumerate().filter(|(i, _)| deal >> i & 1 == 1).map(|(_, x)| x).sum();
            deals += 1;
            as_far += u32::from(apart(of_a) >= observed);
        }
    }
    Some(f64::from(as_far) / f64::from(deals))
}

/// Jain's index of fairness: 1 where all have the same, 1/n where one has all. `None` where nobody has anything.
pub fn jain(shares: &[f64]) -> Option<f64> {
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
    (squares > 0.0).then(|| sum * sum / (shares.len() as f64 * squares))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_a_middle_whatever_the_order() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn fairness_goes_from_one_over_n_to_one() {
        assert_eq!(jain(&[5.0; 4]), Some(1.0));
        assert_eq!(jain(&[8.0, 0.0, 0.0, 0.0]), Some(0.25));
        assert_eq!(jain(&[0.0]), None);
    }

    #[test]
    fn too_many_numbers_have_no_exact_test() {
        assert_eq!(permutation(&[1.0; 15], &[2.0; 15]), None);
        assert_eq!(permutation(&[], &[2.0]), None);
    }
}
