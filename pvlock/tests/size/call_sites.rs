//! Call sites of the fast paths, to be looked at as object code by `tests/size.rs`. Never linked.
#![no_std]
#![allow(missing_docs, improper_ctypes)]

use pvlock::{Adaptive, CpuNodes, HashTable, KickAtUnlock, Mode, ModeCell, Platform, RawPvLock};

unsafe extern "C" {
    safe fn probe_cpu() -> usize;
    safe fn probe_nodes(cpu: usize) -> &'static CpuNodes;
    safe fn probe_hash() -> &'static HashTable;
    safe fn probe_wait();
    safe fn probe_kick(cpu: usize);
    safe fn probe_now() -> u64;
}

macro_rules! platform {
    ($name:ident, $mode:expr $(, $plain_unlock:expr)?) => {
        pub struct $name;

        // SAFETY: never run.
        unsafe impl Platform for $name {
            const MAX_CPUS: usize = 64;
            fn current_cpu() -> usize {
                probe_cpu()
            }
            fn nodes(cpu: usize) -> &'static CpuNodes {
                probe_nodes(cpu)
            }
            fn hash() -> &'static HashTable {
                probe_hash()
            }
            fn wait(still_blocked: impl Fn() -> bool) {
                if still_blocked() {
                    probe_wait();
                }
            }
            fn kick(cpu: usize) {
                probe_kick(cpu);
            }
            fn now() -> u64 {
                probe_now()
            }
            #[inline]
            fn mode() -> Mode {
                $mode
            }
            $(#[inline]
            fn plain_unlock() -> bool {
                $plain_unlock
            })?
        }
    };
}

static MODE: ModeCell = ModeCell::new(Mode::Pv);

// Whether an unlock is a plain store follows from a mode that is a constant.
platform!(AlwaysPv, Mode::Pv);
platform!(AlwaysNative, Mode::Native);
platform!(AtBoot, MODE.get(), MODE.plain_unlock());

macro_rules! call_sites {
    ($platform:ident, $policy:ident, $lock:ident, $unlock:ident) => {
        #[unsafe(no_mangle)]
        pub fn $lock(lock: &RawPvLock<$platform, $policy>) {
            lock.lock();
        }

        /// # Safety
        ///
        /// Never run.
        #[unsafe(no_mangle)]
        pub unsafe fn $unlock(lock: &RawPvLock<$platform, $policy>) {
            // SAFETY: never run.
            unsafe { lock.unlock() };
        }
    };
}

call_sites!(AlwaysPv, KickAtUnlock, pv_lock, pv_unlock);
call_sites!(AlwaysPv, Adaptive, adaptive_lock, adaptive_unlock);
call_sites!(AlwaysNative, KickAtUnlock, native_lock, native_unlock);
call_sites!(AtBoot, KickAtUnlock, boot_lock, boot_unlock);

#[unsafe(no_mangle)]
pub static ONE_LOCK: RawPvLock<AlwaysPv, KickAtUnlock> = RawPvLock::new();
#[unsafe(no_mangle)]
pub static ONE_CPU: CpuNodes = CpuNodes::new();
