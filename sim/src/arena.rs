//! The locks of a simulation, at the same addresses in every run of every process.
//!
//! Owns the one mapping they stand in, and that only one simulation at a time uses it. The hash table
//! finds a lock by its address; on the heap, or with a program loaded elsewhere, the same lock would
//! be found in another number of steps, and the same seed would give another run.

use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Where the mapping begins: 64 GiB, which Linux gives to nothing by itself on any 64-bit machine.
const ADDRESS: usize = 0x10_0000_0000;
/// How large it is. Pages that are never touched cost nothing.
pub(crate) const SIZE: usize = 16 << 20;

/// Whether the mapping stands.
static MAPPED: Mutex<bool> = Mutex::new(false);

/// Memory at fixed addresses for values of `T`, while it is not dropped.
pub(crate) struct Arena<T> {
    len: usize,
    _mapped: MutexGuard<'static, bool>,
    _values: PhantomData<T>,
}

impl<T> Arena<T> {
    /// `len` values made by `make`; waits until no other simulation of this process is under way.
    ///
    /// # Errors
    ///
    /// When there is no room, or the addresses are taken.
    pub(crate) fn new(len: usize, make: impl Fn() -> T) -> Result<Self, String> {
        const { assert!(align_of::<T>() <= 4096 && !std::mem::needs_drop::<T>()) };
        if len > SIZE / size_of::<T>() {
            return Err(format!("room for {} locks, not for {len}", SIZE / size_of::<T>()));
        }
        // Who panicked with the arena in hand left nothing that the next one needs.
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*mapped {
            map()?;
            *mapped = true;
        }
        for index in 0..len {
            // SAFETY: inside the mapping, by the check above; writable; aligned, as `size_of` is
            // a multiple of the alignment; `MAPPED` is held, so that nobody else uses it.
            unsafe { place::<T>(index).write(make()) };
        }
        Ok(Self { len, _mapped: mapped, _values: PhantomData })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The value at `index`.
    ///
    /// # Panics
    ///
    /// Beyond the end.
    pub(crate) fn get(&self, index: usize) -> &T {
        assert!(index < self.len, "value {index} of {}", self.len);
        // SAFETY: written by `new`, never unmapped, and only shared until `self` goes.
        unsafe { &*place::<T>(index) }
    }
}

fn place<T>(index: usize) -> *mut T {
    std::ptr::with_exposed_provenance_mut(ADDRESS + index * size_of::<T>())
}

fn map() -> Result<(), String> {
    // SAFETY: a new mapping where there is none, or an error.
    let mapping = unsafe {
        mmap_anonymous(
            std::ptr::without_provenance_mut(ADDRESS),
            SIZE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE,
        )
    };
    match mapping {
        Ok(mapping) if mapping.addr() == ADDRESS => {
            mapping.expose_provenance();
            Ok(())
        }
        Ok(_) => Err(format!("no memory at {ADDRESS:#x}: Linux 4.17 or later is needed")),
        Err(error) => Err(format!("no memory at {ADDRESS:#x}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn values_stand_where_they_stood_before() {
        let address = |arena: &Arena<Cell<u64>>, index| std::ptr::from_ref(arena.get(index)).addr();
        let first = Arena::new(3, || Cell::new(7_u64)).unwrap();
        first.get(1).set(8);
        let was = address(&first, 1);
        drop(first);
        let second = Arena::new(2, || Cell::new(7_u64)).unwrap();
        assert_eq!((address(&second, 1), second.get(1).get()), (was, 7));
    }

    #[test]
    fn too_many_values_are_an_error() {
        assert!(Arena::new(SIZE / 64 + 1, || [0_u64; 8]).is_err());
    }
}
