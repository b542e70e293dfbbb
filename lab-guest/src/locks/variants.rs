//! Variants of the default policy: with another budget, stretch or horizon, or without one of its
//! mechanisms.
//!
//! Owns their numbers and what is missing in each. They are for measuring what each is worth, and
//! nobody's lock.

use pvlock::{Adaptive, AdaptiveWithin, Mechanism, Platform, Policy, Spin};

const BUDGET: u64 = Adaptive::BUDGET;
const STRETCH: u64 = Adaptive::STRETCH;
const HORIZON: u64 = Adaptive::HORIZON.expect("its thefts are bounded");
const PER_CPU: u64 = Adaptive::HORIZON_PER_CPU;

/// A newcomer looks once.
pub type NoBudget = AdaptiveWithin<0, STRETCH, HORIZON, PER_CPU>;
/// 10 microseconds.
pub type Budget10us = AdaptiveWithin<10_000, STRETCH, HORIZON, PER_CPU>;
/// 200 microseconds.
pub type Budget200us = AdaptiveWithin<200_000, STRETCH, HORIZON, PER_CPU>;

/// Three quarters of a millisecond.
pub type Stretch750us = AdaptiveWithin<BUDGET, 750_000, HORIZON, PER_CPU>;
/// Three milliseconds.
pub type Stretch3ms = AdaptiveWithin<BUDGET, 3_000_000, HORIZON, PER_CPU>;

/// Two milliseconds.
pub type Horizon2ms = AdaptiveWithin<BUDGET, STRETCH, 2_000_000>;
/// Four milliseconds.
pub type Horizon4ms = AdaptiveWithin<BUDGET, STRETCH, 4_000_000>;
/// Twelve milliseconds.
pub type Horizon12ms = AdaptiveWithin<BUDGET, STRETCH, 12_000_000>;
/// The end of time, for stretches too.
pub type NoHorizon = AdaptiveWithin<BUDGET, { u64::MAX }, { u64::MAX }>;

/// An unlock that wakes a late head does not reserve the lock for it.
pub type NoReservation = Without<{ Mechanism::Reservation as u8 }>;
/// A vCPU that has stolen for long does not queue.
pub type NoThiefBound = Without<{ Mechanism::ThiefBound as u8 }>;

/// [`Adaptive`] without one mechanism, by its number.
#[derive(Debug)]
pub struct Without<const MECHANISM: u8>;

impl<const MECHANISM: u8> Policy for Without<MECHANISM> {
    const NAME: &'static str = Adaptive::NAME;
    const HORIZON: Option<u64> = Adaptive::HORIZON;
    const HORIZON_PER_CPU: u64 = PER_CPU;
    const STRETCH: u64 = STRETCH;
    const WITHOUT: Option<Mechanism> = {
        let all = [Mechanism::Reservation, Mechanism::ThiefBound];
        Some(all[MECHANISM as usize])
    };

    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        Adaptive::keep_spinning::<P>(spin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_variant_differs_from_the_default_in_what_it_is_called_after() {
        fn of<K: Policy>() -> (u64, Option<u64>, Option<Mechanism>) {
            (K::STRETCH, K::HORIZON, K::WITHOUT)
        }
        assert_eq!(
            [NoBudget::BUDGET, Budget10us::BUDGET, Budget200us::BUDGET],
            [0, 10_000, 200_000]
        );
        assert_eq!(of::<Budget10us>(), of::<Adaptive>());
        assert_eq!(of::<Stretch750us>(), (750_000, Some(HORIZON), None));
        assert_eq!(of::<Stretch3ms>(), (3_000_000, Some(HORIZON), None));
        assert_eq!(of::<Horizon2ms>(), (STRETCH, Some(2_000_000), None));
        assert_eq!(of::<Horizon4ms>(), (STRETCH, Some(4_000_000), None));
        assert_eq!(of::<Horizon12ms>(), (STRETCH, Some(12_000_000), None));
        assert_eq!(of::<NoHorizon>(), (u64::MAX, Some(u64::MAX), None));
        let own = Some(HORIZON);
        assert_eq!(of::<NoReservation>(), (STRETCH, own, Some(Mechanism::Reservation)));
        assert_eq!(of::<NoThiefBound>(), (STRETCH, own, Some(Mechanism::ThiefBound)));
    }
}
