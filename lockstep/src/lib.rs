//! Makes QEMU's instruction counting repeat on a machine that has other things to do.
//!
//! With `-accel tcg,thread=single -icount ...,sleep=off` one thread of QEMU runs all pCPUs, and
//! virtual time is what it has executed. Two things are still decided by the host's scheduler, because
//! the main loop is another thread and wakes at every expired timer:
//!
//! - a timer that is due can be run by either thread; run by the main loop, it cuts the turns of all
//!   pCPUs short, and the instructions up to the next deadline are shared out differently;
//! - the main loop moves the clock on when it finds all pCPUs halted, and may find that before the vCPU
//!   thread has accounted for the instructions it has just executed.
//!
//! Either shifts everything after it. On an idle machine it is rare; on a busy one every run differs.
//!
//! This library is preloaded into QEMU (`ld.so --preload`) and gives the main loop the big lock (the
//! mutex both threads share) only when the vCPU thread says so: while it sleeps because all pCPUs are
//! halted, and once every `PASS_EVERY` times it takes that lock itself, a number that depends on
//! the guest alone. The second is for what the main loop must do even if no pCPU ever halts: power the
//! machine off, answer a signal.
//!
//! It owns two functions of the C library as QEMU sees them, and never changes what they do for any
//! other mutex or thread. The threads are told apart by name, so QEMU needs `-name
//! ...,debug-threads=on`. When the vCPU thread is found, [`HELD`] is written to standard error: without
//! it, nothing has been changed.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use libc::{pthread_cond_t, pthread_mutex_t, timespec};

/// Said on standard error once, when the vCPU thread is found.
pub const HELD: &str = "lockstep: the main loop waits for the vCPU thread\n";

/// The name QEMU gives the thread that runs all pCPUs in turn.
const VCPU_THREAD: &CStr = c"ALL CPUs/TCG";

/// How many times the vCPU thread takes the big lock before the main loop gets a pass. It takes it some
/// times a turn: at 100 us a turn, this is about a second of virtual time.
const PASS_EVERY: usize = 50_000;

/// How long the vCPU thread offers a pass to a main loop that does not come: it sleeps, nothing has
/// happened that it should look at.
const PATIENCE: timespec = timespec { tv_sec: 1, tv_nsec: 0 };

/// Whose turn it is: one of the three below. The futex both threads sleep on. Written by the vCPU thread;
/// the main loop only takes a pass, from [`PASS`] to [`RUNNING`]. What the threads tell each other
/// otherwise is protected by the big lock, so Release and Acquire on this word pair only with
/// each other, and [`IDLE`] is written and cleared under that lock.
static TURN: AtomicU32 = AtomicU32::new(IDLE);
/// The vCPU thread runs or is about to: the main loop waits.
const RUNNING: u32 = 0;
/// The vCPU thread is not there yet, or sleeps: the main loop may have the lock.
const IDLE: u32 = 1;
/// The vCPU thread waits: the main loop may have the lock once.
const PASS: u32 = 2;

/// `pthread_self` of the two threads; 0 before they are known. Relaxed: each thread looks for itself, and
/// has written the value itself if it is there.
static MAIN: AtomicUsize = AtomicUsize::new(0);
static VCPU: AtomicUsize = AtomicUsize::new(0);
/// The big lock. Relaxed: the main loop compares addresses, and one look too early changes nothing, for
/// the vCPU thread has not run yet.
static BIG_LOCK: AtomicPtr<pthread_mutex_t> = AtomicPtr::new(ptr::null_mut());
/// How often the vCPU thread took the big lock. Relaxed: no other thread uses it.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

type Lock = unsafe extern "C" fn(*mut pthread_mutex_t) -> c_int;
type Wait = unsafe extern "C" fn(*mut pthread_cond_t, *mut pthread_mutex_t) -> c_int;

/// The C library's own functions, looked up at their first use. Relaxed: two threads that look at the
/// same time write the same address.
static REAL_LOCK: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static REAL_WAIT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// The main thread runs this before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = {
    extern "C" fn init() {
        MAIN.store(this_thread(), Ordering::Relaxed);
    }
    init
};

/// Takes the mutex; the main loop takes the big lock only when it may.
///
/// # Safety
///
/// As POSIX demands of `pthread_mutex_lock`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_mutex_lock(mutex: *mut pthread_mutex_t) -> c_int {
    let real = found(&REAL_LOCK, c"pthread_mutex_lock");
    // SAFETY: the C library's symbol of this name has this type.
    let lock = unsafe { std::mem::transmute::<*mut c_void, Lock>(real) };
    let big = mutex == BIG_LOCK.load(Ordering::Relaxed);
    if big && this_thread() == VCPU.load(Ordering::Relaxed) {
        let taken = TAKEN.load(Ordering::Relaxed) + 1;
        TAKEN.store(taken, Ordering::Relaxed);
        if taken.is_multiple_of(PASS_EVERY) {
            offer_pass();
        }
    }
    // SAFETY: the caller's promise.
    let mut result = unsafe { lock(mutex) };
    if big && this_thread() == MAIN.load(Ordering::Relaxed) {
        // With the lock held, IDLE cannot end under our feet.
        while result == 0 && !may_pass() {
            // SAFETY: the big lock, which this thread has just taken.
            unsafe { libc::pthread_mutex_unlock(mutex) };
            sleep_while(RUNNING, ptr::null());
            // SAFETY: the caller's promise.
            result = unsafe { lock(mutex) };
        }
    }
    result
}

/// Waits on the condition; the vCPU thread lets the main loop in for as long.
///
/// # Safety
///
/// As POSIX demands of `pthread_cond_wait`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_cond_wait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
) -> c_int {
    let real = found(&REAL_WAIT, c"pthread_cond_wait");
    // SAFETY: the C library's symbol of this name has this type.
    let wait = unsafe { std::mem::transmute::<*mut c_void, Wait>(real) };
    let me = this_thread();
    if VCPU.load(Ordering::Relaxed) == 0 && me != MAIN.load(Ordering::Relaxed) && is_vcpu_thread() {
        // Its first sleep is before its first instruction, with the big lock.
        VCPU.store(me, Ordering::Relaxed);
        BIG_LOCK.store(mutex, Ordering::Relaxed);
        eprint!("{HELD}");
    }
    let sleeps = me == VCPU.load(Ordering::Relaxed) && mutex == BIG_LOCK.load(Ordering::Relaxed);
    if sleeps {
        turn(IDLE);
    }
    // SAFETY: the caller's promise.
    let result = unsafe { wait(condition, mutex) };
    if sleeps {
        turn(RUNNING);
    }
    result
}

/// Lets the main loop through once, if it is there to go.
fn offer_pass() {
    turn(PASS);
    sleep_while(PASS, &PATIENCE);
    // Nobody came. Acquire and Release as of TURN; if the main loop takes it at this moment, it has it.
    let _ = TURN.compare_exchange(PASS, RUNNING, Ordering::AcqRel, Ordering::Acquire);
}

/// Whether the main loop, which holds the big lock, may keep it.
fn may_pass() -> bool {
    // Acquire pairs with the Release of `turn`.
    match TURN.compare_exchange(PASS, RUNNING, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            wake();
            true
        }
        Err(now) => now == IDLE,
    }
}

/// The vCPU thread says whose turn it is.
fn turn(now: u32) {
    // Release pairs with the Acquire of `may_pass`.
    TURN.store(now, Ordering::Release);
    if now != RUNNING {
        wake();
    }
}

/// Sleeps until `TURN` is no longer `value`, or `limit` is over; null for no limit.
fn sleep_while(value: u32, limit: *const timespec) {
    // Acquire pairs with the Release of `turn`, or with the other side's compare_exchange.
    while TURN.load(Ordering::Acquire) == value {
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the word is static, and `limit` null or static.
        let result =
            unsafe { libc::syscall(libc::SYS_futex, TURN.as_ptr(), operation, value, limit) };
        // Woken, or the value had changed, or a signal: look again. Time over: enough.
        if result != 0 && !limit.is_null() && last_error() == libc::ETIMEDOUT {
            return;
        }
    }
}

/// Wakes the other thread, which is the only one that can sleep on `TURN`.
fn wake() {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word is static.
    unsafe { libc::syscall(libc::SYS_futex, TURN.as_ptr(), operation, 1) };
}

fn last_error() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn this_thread() -> usize {
    // SAFETY: has no precondition.
    unsafe { libc::pthread_self() as usize }
}

/// Whether QEMU has named this thread as the one of all pCPUs.
fn is_vcpu_thread() -> bool {
    // The kernel writes at most 16 bytes, the last of them zero.
    let mut name = [0 as c_char; 16];
    // SAFETY: the buffer is as large as PR_GET_NAME demands.
    let result = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    // SAFETY: the buffer ends in a zero byte, whether it was written or not.
    result == 0 && unsafe { CStr::from_ptr(name.as_ptr()) } == VCPU_THREAD
}

/// The function that `name` would be without this library.
fn found(place: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let known = place.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: a name that ends in a zero byte; RTLD_NEXT is allowed in a preloaded library.
    let address = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    if address.is_null() {
        // Cannot be: the C library has both. There is no way to go on without.
        std::process::abort();
    }
    place.store(address, Ordering::Relaxed);
    address
}
