//! What the lock checker can find, and the words for it.
//!
//! Owns no more than that; the search is `checker`'s.

use core::fmt;
use core::panic::Location;

type Site = &'static Location<'static>;

/// What the checker found. A lock is named by its address, as in
/// [`debug::Dump`](crate::debug::Dump); a place by the caller of the lock's method.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
// Nothing here allocates, and there is one at a time.
#[allow(clippy::large_enum_variant)]
pub enum Trouble {
    /// AA: a CPU has to wait for a lock that it holds already, or that a context which it
    /// interrupted waits for. Told before it begins to wait; soon after, where it reads past the
    /// queue.
    #[non_exhaustive]
    Twice {
        /// The CPU.
        cpu: usize,
        /// The lock.
        lock: usize,
        /// Where it was taken.
        first: Site,
        /// Where it is to be taken again.
        again: Site,
    },
    /// ABBA: CPUs wait for each other.
    Circle(Circle),
    /// A wait that is longer than [`Platform::longest_wait`](crate::Platform::longest_wait).
    #[non_exhaustive]
    LongWait {
        /// The CPU that waits.
        cpu: usize,
        /// The lock.
        lock: usize,
        /// Where it waits.
        here: Site,
        /// For how long it has waited, in nanoseconds.
        nanoseconds: u64,
    },
}

/// One CPU of a [`Circle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Link {
    /// The CPU.
    pub cpu: usize,
    /// The lock it holds.
    pub holds: usize,
    /// Where it took that.
    pub taken: Site,
    /// The lock it waits for, which the next CPU of the circle holds.
    pub wants: usize,
    /// Where it waits.
    pub here: Site,
    /// Which of its waits this is.
    #[cfg(feature = "checker")]
    pub(crate) wait: u32,
}

/// CPUs that wait for each other, two to [`Circle::LONGEST`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Circle {
    links: [Option<Link>; Circle::LONGEST],
    length: usize,
}

impl Circle {
    /// The most CPUs of a circle that is looked for.
    pub const LONGEST: usize = 8;

    /// Its CPUs: each waits for a lock of the next, the last for one of the first. The last is the
    /// one that found the circle.
    pub fn links(&self) -> impl Iterator<Item = Link> {
        self.links.into_iter().take(self.length).flatten()
    }
}

#[cfg(feature = "checker")]
impl Circle {
    pub(crate) const EMPTY: Self = Self { links: [None; Self::LONGEST], length: 0 };

    pub(crate) fn push(&mut self, link: Link) -> bool {
        let Some(place) = self.links.get_mut(self.length) else { return false };
        *place = Some(link);
        self.length += 1;
        true
    }

    /// As what it is told of.
    pub(crate) fn trouble(self) -> Trouble {
        match self.links {
            [Some(Link { cpu, holds: lock, taken: first, here: again, .. }), None, ..] => {
                Trouble::Twice { cpu, lock, first, again }
            }
            _ => Trouble::Circle(self),
        }
    }

    pub(crate) fn pop(&mut self) {
        self.length -= 1;
        self.links[self.length] = None;
    }
}

impl fmt::Debug for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.links()).finish()
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Twice { cpu, lock, first, again } => write!(
                f,
                "pvlock: cpu {cpu} would wait for itself: at {again} it takes lock {lock:#x}, \
                 which it took or waits for at {first}"
            ),
            Self::Circle(circle) => {
                f.write_str("pvlock: CPUs wait for each other")?;
                for (number, link) in circle.links().enumerate() {
                    let Link { cpu, holds, taken, wants, here, .. } = link;
                    let mark = if number == 0 { ':' } else { ';' };
                    write!(
                        f,
                        "{mark} cpu {cpu} took lock {holds:#x} at {taken} and waits at {here} \
                         for lock {wants:#x}"
                    )?;
                }
                Ok(())
            }
            Self::LongWait { cpu, lock, here, nanoseconds } => write!(
                f,
                "pvlock: cpu {cpu} has waited {} us at {here} for lock {lock:#x}",
                nanoseconds / 1_000
            ),
        }
    }
}

/// Panics, and unwinds into nobody.
pub(crate) extern "C" fn panic_with(trouble: &Trouble) {
    panic!("{trouble}");
}
