//! `pvlock` and its kicker for kernels in C: what stands in `include/pvlock.h`.
//!
//! Owns the names that C sees and their checks. No lock logic, no hypercall of its own.
#![no_std]

mod platform;

use core::ffi::{c_char, c_int, c_long, c_void};
use core::sync::atomic::{AtomicU8, Ordering};

use evtchn::{Errno, Kicker, Port, WaitOutcome};
use platform::{InC, Xen, events};
use pvlock::{Mode, RawPvLock};

/// What the library asks of the kernel it lives in: all of it. Every function may be called with
/// interrupts on or off, and takes no lock of this library.
#[repr(C)]
pub struct KernelHooks {
    /// The page that Xen shares with the domain, mapped for ever.
    pub shared_info: *mut c_void,
    /// The number that Xen gives the vCPU this runs on. It stays the same as long as a lock is being
    /// taken, held or released: preemption is off meanwhile.
    pub current_vcpu: Option<extern "C" fn() -> u32>,
    /// Hypercall `number` (`__HYPERVISOR_event_channel_op` or `__HYPERVISOR_sched_op`) with these two
    /// arguments: what Xen answers.
    pub hypercall:
        Option<extern "C" fn(number: u32, command: u32, argument: *mut c_void) -> c_long>,
    /// Nanoseconds since Xen booted, by the PV clock: those of `SCHEDOP_poll`'s deadline. Never 0.
    pub system_time: Option<extern "C" fn() -> u64>,
    /// Ends the kernel: `text` says which fault of this library's use was found. Does not return.
    pub panic: Option<extern "C" fn(text: *const c_char)>,
}

impl KernelHooks {
    fn is_complete(&self) -> bool {
        let Self { shared_info, current_vcpu, hypercall, system_time, panic } = self;
        !shared_info.is_null()
            && current_vcpu.is_some()
            && hypercall.is_some()
            && system_time.is_some()
            && panic.is_some()
    }
}

type Raw = RawPvLock<InC, pvlock::Adaptive>;

/// A spinlock whose waiters sleep in Xen. All zeros is a free one. Its address must not change while it
/// is used.
#[repr(C)]
pub struct Lock {
    /// Only for this library.
    pub word: u32,
}

// What `Lock` is read as, and that zeros are a free lock.
const _: () = {
    assert!(size_of::<Raw>() == size_of::<Lock>());
    assert!(align_of::<Raw>() == align_of::<Lock>());
    // SAFETY: both are four bytes, and a word of the lock is an integer.
    assert!(unsafe { core::mem::transmute::<Raw, u32>(Raw::new()) } == 0);
};

/// # Safety
///
/// As a reference to what `lock` points to.
unsafe fn raw<'a>(lock: *mut Lock) -> &'a Raw {
    // SAFETY: the caller's promise; the layouts are compared above.
    unsafe { &*lock.cast::<Raw>() }
}

/// Which lock to be.
#[repr(C)]
pub enum LockMode {
    /// Waiters sleep in Xen: the default.
    Pv,
    /// Waiters spin in a queue: where each vCPU has a pCPU of its own.
    Native,
    /// Waiters spin without order.
    TestAndSet,
}

fn errno(error: Errno) -> c_int {
    -error.0
}

fn port(bound: Result<Port, Errno>) -> c_int {
    bound.map_or_else(errno, |port| port.get() as c_int)
}

fn status(done: Result<(), Errno>) -> c_int {
    done.map_or_else(errno, |()| 0)
}

/// Says what the library lives in. Once, on vCPU 0, before another vCPU starts and before the first
/// bind; after the shared page is mapped and its ports are masked. 0, or `-EINVAL` (-22): a pointer
/// that must not be NULL is.
///
/// # Safety
///
/// `hooks` is NULL or valid for ever, and its functions do what is said of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_init(hooks: *const KernelHooks) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { hooks.as_ref() } {
        Some(given) if given.is_complete() => {
            // SAFETY: the caller's promise.
            unsafe { platform::install(given) };
            0
        }
        _ => errno(Errno::EINVAL),
    }
}

/// Chooses which lock to be, an `enum pvlock_mode`, and how many turns a waiter spins before it sleeps
/// (32,768 without this call). Before any lock is waited for: 0, or `-EBUSY` (-16) if one was; `-EINVAL`
/// (-22) if there is no such mode.
#[unsafe(no_mangle)]
pub extern "C" fn pvlock_configure(mode: u32, spin_turns: u32) -> c_int {
    const PV: u32 = LockMode::Pv as u32;
    const NATIVE: u32 = LockMode::Native as u32;
    const TEST_AND_SET: u32 = LockMode::TestAndSet as u32;
    let mode = match mode {
        PV => Mode::Pv,
        NATIVE => Mode::Native,
        TEST_AND_SET => Mode::TestAndSet,
        _ => return errno(Errno::EINVAL),
    };
    platform::configure(mode, spin_turns).map_or(-16, |()| 0)
}

/// Gives `vcpu` the event channel on which it is kicked: its port, or a negative error number of Xen.
/// For each vCPU before it takes its first contended lock, from any vCPU; and again for all of them
/// after a restore (`pvlock_bind_again`). There may be 128 vCPUs: `-EINVAL` (-22) beyond.
#[unsafe(no_mangle)]
pub extern "C" fn pvlock_bind(vcpu: u32) -> c_int {
    port(platform::bind(vcpu))
}

/// Takes the event channel of `vcpu` away, which is down: 0, or a negative error number of Xen.
#[unsafe(no_mangle)]
pub extern "C" fn pvlock_unbind(vcpu: u32) -> c_int {
    status(platform::unbind(vcpu))
}

/// Gives every vCPU that had an event channel a new one, after a restore, while no other vCPU runs: 0,
/// or a negative error number of Xen.
#[unsafe(no_mangle)]
pub extern "C" fn pvlock_bind_again() -> c_int {
    status(platform::bind_again())
}

/// Takes the lock; the vCPU sleeps in Xen if it has to wait for long. Preemption is off, by the kernel, until
/// after the unlock; and interrupts too, if a handler takes the same lock.
///
/// # Safety
///
/// `lock` points to a `struct pvlock` that was zeroed once and is not moved.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_lock(lock: *mut Lock) {
    // SAFETY: the caller's promise.
    unsafe { raw(lock) }.lock();
}

/// Takes the lock if it is free and nobody waits for it.
///
/// # Safety
///
/// As `pvlock_lock`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_try_lock(lock: *mut Lock) -> bool {
    // SAFETY: the caller's promise.
    unsafe { raw(lock) }.try_lock()
}

/// Releases the lock, and kicks who sleeps for it.
///
/// # Safety
///
/// As `pvlock_lock`, and the caller has the lock.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_unlock(lock: *mut Lock) {
    // SAFETY: the caller's promise.
    let raw = unsafe { raw(lock) };
    // SAFETY: the caller's promise.
    unsafe { raw.unlock() };
}

/// Whether somebody has the lock or is about to get it. A snapshot.
///
/// # Safety
///
/// As `pvlock_lock`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_is_locked(lock: *mut Lock) -> bool {
    // SAFETY: the caller's promise.
    unsafe { raw(lock) }.is_locked()
}

/// What the waits of one vCPU came to, since boot. Each field counts waits.
#[repr(C)]
pub struct WaitCounts {
    /// That asked Xen to poll.
    pub polls: u64,
    /// That found a kick already there. Counted in `kicked` too.
    pub latched: u64,
    /// That were ended by a kick.
    pub kicked: u64,
    /// That reached their deadline.
    pub timed_out: u64,
    /// Of these, those that had nothing left to wait for: the kick was late, or lost.
    pub timed_out_unblocked: u64,
    /// That another event ended.
    pub early: u64,
}

impl From<evtchn::WaitCounts> for WaitCounts {
    fn from(counts: evtchn::WaitCounts) -> Self {
        let evtchn::WaitCounts { polls, latched, kicked, timed_out, timed_out_unblocked, early } =
            counts;
        Self { polls, latched, kicked, timed_out, timed_out_unblocked, early }
    }
}

/// What the waits of `vcpu` for locks came to. All 0 for a vCPU that cannot be.
#[unsafe(no_mangle)]
pub extern "C" fn pvlock_counts_of(vcpu: u32) -> WaitCounts {
    platform::counts(vcpu).into()
}

/// Lets one vCPU sleep until another kicks it: an event channel with the rules that make it reliable.
/// For waits of the kernel's own; a lock has its own kickers. Call `pvlock_kicker_init` first.
#[repr(C)]
pub struct KickerStorage {
    /// Only for this library.
    pub opaque: [u64; 8],
}

const _: () = {
    assert!(size_of::<Kicker>() <= size_of::<KickerStorage>());
    assert!(align_of::<Kicker>() <= align_of::<KickerStorage>());
};

/// How a wait ended: a hint. The caller looks at its condition again.
#[repr(C)]
pub enum Outcome {
    /// A kick came, before the wait or during it.
    Kicked,
    /// `still_blocked` said no.
    ConditionGone,
    /// The deadline passed.
    TimedOut,
    /// Another event ended the poll.
    Early,
    /// There is no event channel yet.
    NoPort,
}

/// # Safety
///
/// As a reference to the kicker that `pvlock_kicker_init` has put there.
unsafe fn kicker<'a>(kicker: *mut KickerStorage) -> &'a Kicker {
    // SAFETY: the caller's promise.
    unsafe { &*kicker.cast::<Kicker>() }
}

/// Makes a kicker without an event channel.
///
/// # Safety
///
/// `storage` points to a `struct pvlock_kicker` that nobody uses yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_kicker_init(storage: *mut KickerStorage) {
    static EMPTY: Kicker = Kicker::new();
    // By a string instruction: compiled code would copy it by vector registers.
    // SAFETY: the caller's promise; it is large enough.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") size_of::<Kicker>() => _,
             inout("rsi") &raw const EMPTY => _, inout("rdi") storage => _,
             options(nostack, preserves_flags));
    }
}

/// Gives the kicker an event channel of `vcpu`, which is to wait on it: the port, or a negative error
/// number of Xen. Again after a restore, followed by a kick.
///
/// # Safety
///
/// `storage` was made by `pvlock_kicker_init`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_kicker_bind(storage: *mut KickerStorage, vcpu: u32) -> c_int {
    // SAFETY: the caller's promise.
    port(unsafe { kicker(storage) }.bind(&Xen, &events(), vcpu))
}

/// Takes the event channel away, when nobody waits on it or can still kick: 0, or a negative error
/// number of Xen.
///
/// # Safety
///
/// As `pvlock_kicker_bind`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_kicker_unbind(storage: *mut KickerStorage) -> c_int {
    // SAFETY: the caller's promise.
    status(unsafe { kicker(storage) }.unbind(&Xen))
}

/// Sleeps on the kicker's own vCPU until it is kicked, or until `deadline_ns` of Xen's system time (0 =
/// no deadline), unless `still_blocked(argument)` says no. May end early: call it in a loop.
///
/// # Safety
///
/// As `pvlock_kicker_bind`, and on the vCPU it was bound to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_kicker_wait(
    storage: *mut KickerStorage,
    deadline_ns: u64,
    still_blocked: extern "C" fn(argument: *mut c_void) -> bool,
    argument: *mut c_void,
) -> Outcome {
    // SAFETY: the caller's promise.
    let kicker = unsafe { kicker(storage) };
    match kicker.wait(&Xen, &events(), deadline_ns, || still_blocked(argument)) {
        WaitOutcome::Kicked => Outcome::Kicked,
        WaitOutcome::ConditionGone => Outcome::ConditionGone,
        WaitOutcome::TimedOut => Outcome::TimedOut,
        WaitOutcome::Early => Outcome::Early,
        WaitOutcome::NoPort => Outcome::NoPort,
    }
}

/// Ends the present or the next wait on the kicker, from any vCPU. Change the condition first. 0, or a
/// negative error number of Xen.
///
/// # Safety
///
/// As `pvlock_kicker_bind`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_kicker_kick(storage: *mut KickerStorage) -> c_int {
    // SAFETY: the caller's promise.
    status(unsafe { kicker(storage) }.kick(&Xen))
}

/// What the waits on the kicker came to.
///
/// # Safety
///
/// As `pvlock_kicker_bind`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvlock_kicker_counts(storage: *mut KickerStorage) -> WaitCounts {
    // SAFETY: the caller's promise.
    unsafe { kicker(storage) }.counts().into()
}

/// What [`panic`] says, with a terminating zero. Two vCPUs that panic at once write over each other's.
static TEXT: [AtomicU8; 256] = [const { AtomicU8::new(0) }; 256];

/// Adds to [`TEXT`] what fits, from `at` on: where it ends. Not by `core::fmt`, whose prebuilt code uses
/// vector registers, which a kernel need not have turned on.
fn add(at: usize, text: &str) -> usize {
    let room = TEXT[..TEXT.len() - 1].get(at..).unwrap_or_default();
    // Relaxed: read by this vCPU.
    room.iter().zip(text.bytes()).for_each(|(place, byte)| place.store(byte, Ordering::Relaxed));
    at + text.len()
}

fn add_number(at: usize, number: u32) -> usize {
    let at = if number > 9 { add_number(at, number / 10) } else { at };
    add(at, &"0123456789"[number as usize % 10..][..1])
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let at = add(0, "pvlock: ");
    let mut at = add(at, info.message().as_str().unwrap_or("a number is out of its range"));
    if let Some(place) = info.location() {
        at = add(at, ", ");
        at = add(at, place.file());
        at = add(at, ":");
        add_number(at, place.line());
    }
    if let Some(panic) = platform::hooks().and_then(|kernel| kernel.panic) {
        panic(TEXT.as_ptr().cast());
    }
    loop {
        // SAFETY: an instruction that is not one: the kernel's own crash report.
        unsafe { core::arch::asm!("ud2", options(nomem, nostack)) };
    }
}

core::arch::global_asm!(
    // Nothing unwinds, but the host's prebuilt `core` refers to these. Weak: a C library may have its own.
    ".weak rust_eh_personality",
    ".weak _Unwind_Resume",
    "rust_eh_personality:",
    "_Unwind_Resume:",
    "ud2",
    // `xen-sys` has hypercalls by a page of this name, which nobody calls here.
    ".weak HYPERCALL_PAGE",
);
