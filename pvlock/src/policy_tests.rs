//! The policies' decisions, turn by turn, on a machine whose clock stands still unless told.

use crate::word::{Steps, Tail};
use crate::{Adaptive, AdaptiveWithin, CpuNodes, HashTable, KickAtUnlock, KickTwice};
use crate::{Platform, Policy, Spin, Stage};
use std::cell::Cell;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(1_000_000) };
}

const STAGES: [Stage; 4] = [Stage::Newcomer, Stage::Behind, Stage::Head, Stage::Woken];

struct Still;

// SAFETY: nothing is locked here.
unsafe impl Platform for Still {
    const MAX_CPUS: usize = 1;

    fn current_cpu() -> usize {
        0
    }

    fn nodes(_cpu: usize) -> &'static CpuNodes {
        unreachable!("a policy looks at no node")
    }

    fn hash() -> &'static HashTable {
        unreachable!("a policy looks at no entry")
    }

    fn wait(_still_blocked: impl Fn() -> bool) {}

    fn kick(_cpu: usize) {}

    fn now() -> u64 {
        NOW.get()
    }
}

/// The number of turns that `K` grants, with `passes` nanoseconds in each.
fn turns<K: Policy>(stage: Stage, passes: u64) -> u32 {
    let mut spin = Spin::new(stage);
    while K::keep_spinning::<Still>(&mut spin) {
        spin.advance();
        NOW.set(NOW.get() + passes);
    }
    spin.turn()
}

#[test]
fn a_spin_knows_its_stage_and_its_turns() {
    for stage in STAGES {
        let mut spin = Spin::new(stage);
        assert_eq!((spin.stage(), spin.turn(), spin.memo), (stage, 0, 0));
        spin.advance();
        assert_eq!(spin.turn(), 1);
    }
}

#[test]
fn policies_that_count_turns_spin_as_long_as_the_platform_says() {
    assert_eq!(Still::spin_turns(), 1 << 15);
    for stage in STAGES {
        assert_eq!(turns::<KickAtUnlock>(stage, 1_000_000), 1 << 15);
        assert_eq!(turns::<KickTwice>(stage, 1_000_000), 1 << 15);
    }
}

#[test]
fn adaptive_spins_for_its_budget_where_it_can_get_the_lock() {
    for stage in [Stage::Newcomer, Stage::Woken] {
        assert_eq!(turns::<Adaptive>(stage, 1_000), 50, "50 us");
        assert_eq!(turns::<AdaptiveWithin<7_000, 0>>(stage, 1_000), 7);
        assert_eq!(turns::<AdaptiveWithin<0, 0>>(stage, 1_000), 0);
        assert_eq!(turns::<Adaptive>(stage, 0), 1 << 15, "a clock that stands still");
        NOW.set(u64::MAX - 5_000);
        assert_eq!(turns::<Adaptive>(stage, 1_000), 5, "the end of time");
        NOW.set(0);
    }
    for stage in [Stage::Behind, Stage::Head] {
        assert_eq!(turns::<Adaptive>(stage, 1), 0);
    }
}

#[test]
fn adaptive_lets_thefts_go_on_for_longer_where_there_are_more_cpus() {
    let horizons = [0, 1, 2, 12, 13, 32].map(Adaptive::horizon);
    let expected = [6_000_000, 6_000_000, 6_000_000, 6_000_000, 6_500_000, 16_000_000];
    assert_eq!(horizons, expected.map(Some));
    assert_eq!([1, 500].map(AdaptiveWithin::<1, 2>::horizon), [Some(2); 2]);
    let endless = AdaptiveWithin::<1, 2, { u64::MAX }>::horizon;
    assert_eq!([0, 1, 16_383].map(endless), [Some(2), Some(u64::MAX), Some(u64::MAX)]);
}

#[test]
fn a_horizon_has_four_stretches_unless_the_policy_says_otherwise() {
    let stretches = [0, 12, 24, 28, 32, 128].map(Adaptive::stretch);
    assert_eq!(stretches, [1_500_000, 1_500_000, 1_500_000, 1_750_000, 2_000_000, 8_000_000]);
    assert_eq!([1, 500].map(AdaptiveWithin::<1, 60, 0, 6>::stretch), [10, 10]);
    assert_eq!(AdaptiveWithin::<1, { u64::MAX }>::stretch(4), u64::MAX / 4);
    assert_eq!([1, 32].map(KickAtUnlock::stretch), [0, 0]);
}

#[test]
fn nobody_steals_where_order_is_strict() {
    assert_eq!((KickAtUnlock::HORIZON, KickTwice::HORIZON), (None, None));
    assert_eq!((KickAtUnlock::horizon(32), KickTwice::horizon(32)), (None, None));
}

#[test]
fn a_platform_has_defaults() {
    assert_eq!(Still::mode(), crate::Mode::Pv);
    assert!(!Still::plain_unlock());
    assert_eq!(Still::online_cpus(), 1);
}

/// In native mode a pending byte that nobody stands for would keep the head from the lock for ever.
#[test]
fn a_fair_unlock_of_native_mode_reserves_nothing_whatever_plain_unlock_says() {
    /// As a [`ModeCell`](crate::ModeCell) that another CPU settles a moment later.
    struct Native;

    // SAFETY: nobody waits.
    unsafe impl Platform for Native {
        const MAX_CPUS: usize = 1;
        fn current_cpu() -> usize {
            0
        }
        fn nodes(_cpu: usize) -> &'static CpuNodes {
            // Nobody waits, but the checker keeps its record there.
            static NODES: CpuNodes = CpuNodes::new();
            &NODES
        }
        fn hash() -> &'static HashTable {
            unreachable!("nobody sleeps")
        }
        fn wait(_still_blocked: impl Fn() -> bool) {}
        fn kick(_cpu: usize) {}
        fn now() -> u64 {
            0
        }
        fn mode() -> crate::Mode {
            crate::Mode::Native
        }
        fn plain_unlock() -> bool {
            false
        }
    }

    let lock = crate::RawPvLock::<Native, Adaptive>::new();
    lock.lock();
    lock.word().exchange_tail(Tail::new(0, 0));
    // SAFETY: taken above.
    unsafe { lock.unlock_fair() };
    assert!(!lock.snapshot().pending() && lock.snapshot().locked() == 0);
}
