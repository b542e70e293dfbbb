//! Threads as vCPUs, as lean as a platform can be: for measuring the lock, not the machine.
//!
//! One module for each mode, because a mode is for good and a benchmark wants two.

/// A machine of up to [`CPUS`] threads in one mode.
macro_rules! machine {
    ($name:ident, $mode:expr) => {
        pub(crate) mod $name {
            use super::CPUS;
            use pvlock::{CpuNodes, HashStorage, HashTable, Mode, Platform};
            use std::cell::Cell;
            use std::sync::Mutex;
            use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
            use std::thread::Thread;
            use std::time::Instant;

            pub(crate) struct Machine;

            static NODES: [CpuNodes; CPUS] = [const { CpuNodes::new() }; CPUS];
            static STORAGE: HashStorage<64> = HashStorage::new();
            static TABLE: HashTable = HashTable::new(&STORAGE);
            static KICKED: [AtomicBool; CPUS] = [const { AtomicBool::new(false) }; CPUS];
            static THREADS: [Mutex<Option<Thread>>; CPUS] = [const { Mutex::new(None) }; CPUS];
            thread_local!(static CPU: Cell<usize> = const { Cell::new(0) });

            /// The calling thread plays `cpu`, which no running thread plays.
            pub(crate) fn become_cpu(cpu: usize) {
                CPU.set(cpu);
                *THREADS[cpu].lock().unwrap() = Some(std::thread::current());
            }

            // SAFETY: 1. a thread keeps its number while it measures; 2. statics; 3. there are no
            // interrupts; 4. KICKED latches and unpark does too; 5. every access to it is SeqCst.
            unsafe impl Platform for Machine {
                const MAX_CPUS: usize = CPUS;

                #[inline]
                fn current_cpu() -> usize {
                    CPU.get()
                }

                #[inline]
                fn nodes(cpu: usize) -> &'static CpuNodes {
                    &NODES[cpu]
                }

                #[inline]
                fn hash() -> &'static HashTable {
                    &TABLE
                }

                fn wait(still_blocked: impl Fn() -> bool) {
                    let kicked = &KICKED[CPU.get()];
                    if kicked.swap(false, SeqCst) || !still_blocked() {
                        return;
                    }
                    while !kicked.swap(false, SeqCst) {
                        std::thread::park();
                    }
                }

                fn kick(cpu: usize) {
                    KICKED[cpu].store(true, SeqCst);
                    let thread = THREADS[cpu].lock().unwrap().clone();
                    thread.expect("a waiter has a thread").unpark();
                }

                fn now() -> u64 {
                    static BEGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
                    BEGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
                }

                fn spin_turns() -> u32 {
                    super::SPIN_TURNS
                }

                #[inline]
                fn mode() -> Mode {
                    $mode
                }
            }
        }
    };
}

/// Most threads at a time.
pub(crate) const CPUS: usize = 32;
/// Turns before a waiter parks, in the policies that count turns; a few microseconds.
pub(crate) const SPIN_TURNS: u32 = 256;

machine!(pv, Mode::Pv);
machine!(native, Mode::Native);
