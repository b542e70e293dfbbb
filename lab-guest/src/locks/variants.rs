//! Variants of the default policy: with another budget, stretch or horizon, or without one of its
//! mechanisms.
//!
//! Owns their numbers and what is missing in each. They are for measuring what each is worth, and
//! nobody's lock.

use pvlock::{Adaptive, AdaptiveWithin, Mechanism, Platform, Policy, Spin};

const BUDGET: u64 = Adaptive::BUDGET;
const HORIZON: u64 = Adaptive::HORIZON.expect("its thefts are bounded");
const PER_CPU: u64 = Adaptive::HORIZON_PER_CPU;

/// A newcomer looks once.
pub type NoBudget = AdaptiveWithin<0, HORIZON, PER_CPU>;
/// 10 microseconds.
pub type Budget10us = AdaptiveWithin<10_000, HORIZON, PER_CPU>;
/// 200 microseconds.
pub type Budget200us = AdaptiveWithin<200_000, HORIZON, PER_CPU>;

/// Eight stretches in the horizon.
pub type Stretches8 = AdaptiveWithin<BUDGET, HORIZON, PER_CPU, 8>;
/// Two.
pub type Stretches2 = AdaptiveWithin<BUDGET, HORIZON, PER_CPU, 2>;

/// Two milliseconds, and stretches of half of one.
pub type Horizon2ms = AdaptiveWithin<BUDGET, 2_000_000>;
/// Four milliseconds, and stretches of one.
pub type Horizon4ms = AdaptiveWithin<BUDGET, 4_000_000>;
/// Twelve milliseconds, and stretches of three.
pub type Horizon12ms = AdaptiveWithin<BUDGET, 12_000_000>;
/// The end of time, for stretches too.
pub type NoHorizon = AdaptiveWithin<BUDGET, { u64::MAX }>;

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
            (K::STRETCHES, K::HORIZON, K::WITHOUT)
        }
        assert_eq!(
            [NoBudget::BUDGET, Budget10us::BUDGET, Budget200us::BUDGET],
            [0, 10_000, 200_000]
        );
        assert_eq!(of::<Budget10us>(), of::<Adaptive>());
        let own = Some(HORIZON);
        assert_eq!(of::<Stretches8>(), (8, own, None));
        assert_eq!(of::<Stretches2>(), (2, own, None));
        assert_eq!(of::<Horizon2ms>(), (4, Some(2_000_000), None));
        assert_eq!(of::<Horizon4ms>(), (4, Some(4_000_000), None));
        assert_eq!(of::<Horizon12ms>(), (4, Some(12_000_000), None));
        assert_eq!(of::<NoHorizon>(), (4, Some(u64::MAX), None));
        assert_eq!(of::<NoReservation>(), (4, own, Some(Mechanism::Reservation)));
        assert_eq!(of::<NoThiefBound>(), (4, own, Some(Mechanism::ThiefBound)));
    }
}
