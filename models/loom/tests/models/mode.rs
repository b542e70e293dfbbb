//! The choice of the mode against the first use of a lock.

use loom::thread;
use pvlock::{Mode, ModeCell};
use std::sync::Arc;

/// A choice that comes beside the first use of a lock wins on all CPUs, or is an error and changes
/// nothing on any.
#[test]
fn a_late_choice_of_mode_is_an_error_and_no_race() {
    loom::model(|| {
        let cell = Arc::new(ModeCell::new(Mode::Pv));
        let users: Vec<_> = (0..2)
            .map(|_| {
                let cell = cell.clone();
                thread::spawn(move || {
                    let plain_unlock = cell.plain_unlock();
                    let first = cell.get();
                    // No sleeper is overlooked by an unlock from before the choice.
                    assert!(!plain_unlock || first != Mode::Pv);
                    assert_eq!(cell.get(), first, "it stays");
                    first
                })
            })
            .collect();
        let chosen = match cell.init(Mode::Native) {
            Ok(()) => Mode::Native,
            Err(settled) => settled.mode,
        };
        for user in users {
            assert_eq!(user.join().unwrap(), chosen);
        }
        assert_eq!(cell.get(), chosen);
    });
}
