//! One simulation from beginning to end.
//!
//! Owns the vCPUs' coroutines, what they do, and what must hold: one owner at a time, nobody left
//! asleep, nothing left behind. Time and turns are [`host`](crate::host)'s.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};
use pvlock::debug::Dump;
use pvlock::{Counter, Mode, RawPvLock};

use crate::arena::Arena;
use crate::config::{AS_POSTED, Config, LEVELS, Policy};
use crate::dist::{Dist, Random};
use crate::guest::{self, Event, Guest, Handler, Installed, Request, Vm};
use crate::host::{Host, Next, Task, describe};
use crate::report::{Failure, Report};
use crate::tally::Tally;

/// A lock, and what its owner keeps under it.
#[repr(align(64))]
pub(crate) struct Guarded<const CPUS: usize, K> {
    lock: RawPvLock<Vm<CPUS>, K>,
    owner: Cell<Option<usize>>,
    count: Cell<u64>,
}

/// Lines of each part of a failure.
const SHOWN: usize = 40;

/// Enough for the lock and the message of a panic; pages that are never touched cost nothing.
const STACK: usize = 64 << 10;

/// Runs `config` with `policy`.
///
/// # Errors
///
/// What did not hold, and the command that shows it again.
///
/// # Panics
///
/// If [`Config::check`] finds fault with `config`, or the machine has no room for it.
pub fn simulate(config: &Config, policy: Policy) -> Result<Report, Failure> {
    let name = (policy.to_string(), config.command(policy));
    match policy {
        Policy::KickTwice => sized::<pvlock::KickTwice>(config, name, Mode::Pv),
        Policy::KickAtUnlock => sized::<pvlock::KickAtUnlock>(config, name, Mode::Pv),
        Policy::Adaptive => sized::<pvlock::Adaptive>(config, name, Mode::Pv),
        Policy::Native => sized::<pvlock::KickAtUnlock>(config, name, Mode::Native),
        Policy::TestAndSet => sized::<pvlock::KickAtUnlock>(config, name, Mode::TestAndSet),
        Policy::AsPosted => sized::<AsPosted>(config, name, Mode::Pv),
    }
}

/// Runs `config` with a policy of one's own.
///
/// ```
/// use pvlock::{Platform, Spin};
/// use pvlock_sim::{Config, Policy, simulate, simulate_with};
///
/// /// Sleeps at once.
/// struct Sleepy;
///
/// impl pvlock::Policy for Sleepy {
///     const NAME: &'static str = "sleepy";
///
///     fn keep_spinning<P: Platform>(_: &mut Spin) -> bool {
///         false
///     }
/// }
///
/// let config = Config::default();
/// let (sleepy, other) = (simulate_with::<Sleepy>(&config)?, simulate(&config, Policy::KickAtUnlock)?);
/// assert!(sleepy.blocked.acquisitions > other.blocked.acquisitions);
/// # Ok::<(), pvlock_sim::Failure>(())
/// ```
///
/// # Errors
///
/// What did not hold, and with which options.
///
/// # Panics
///
/// As [`simulate`].
pub fn simulate_with<K: pvlock::Policy>(config: &Config) -> Result<Report, Failure> {
    let again = format!("simulate_with, policy {}, {config}", K::NAME);
    sized::<K>(config, (K::NAME.into(), again), Mode::Pv)
}

/// The patch as posted in 2015: the negative control.
struct AsPosted;

impl pvlock::Policy for AsPosted {
    const NAME: &'static str = AS_POSTED;
    const AS_POSTED: bool = true;
}

/// A machine no larger than it has to be: debug builds look through the whole hash table.
fn sized<K: pvlock::Policy>(config: &Config, name: Name, mode: Mode) -> Result<Report, Failure> {
    if let Err(error) = config.check() {
        panic!("{error}");
    }
    match config.vcpus {
        ..=64 => Machine::<64, 64, K>::new(config, name, mode).run(),
        65..=1_024 => Machine::<1_024, 1_024, K>::new(config, name, mode).run(),
        1_025..=4_096 => Machine::<4_096, 4_096, K>::new(config, name, mode).run(),
        _ => Machine::<16_383, 16_384, K>::new(config, name, mode).run(),
    }
}

/// A policy's name, and how to run the simulation again.
type Name = (String, String);

type VcpuCode = Coroutine<(), Request, (), DefaultStack>;

struct Machine<const CPUS: usize, const LINES: usize, K: pvlock::Policy> {
    config: Config,
    name: Name,
    tally: Rc<RefCell<Tally>>,
    guest: &'static Guest,
    host: Host,
    vcpus: Vec<VcpuCode>,
    /// After the coroutines, which refer to it.
    locks: Box<Arena<Guarded<CPUS, K>>>,
    /// Last: it goes after everything that refers to it.
    _installed: Installed,
}

/// A simulation that ends with a failure leaves vCPUs where they stand. Unwound, one in a lock's queue would
/// wait for its turn there, as it must in a kernel, and here nobody lets it have one.
impl<const CPUS: usize, const LINES: usize, K: pvlock::Policy> Drop for Machine<CPUS, LINES, K> {
    fn drop(&mut self) {
        for code in self.vcpus.iter_mut().filter(|code| code.started() && !code.done()) {
            // SAFETY: as a longjmp over its frames, of which none has to be dropped: they hold counted
            // references, which leak, and nothing outside refers to them once the guest is gone.
            unsafe { code.force_reset() };
        }
    }
}

impl<const CPUS: usize, const LINES: usize, K: pvlock::Policy> Machine<CPUS, LINES, K> {
    fn new(config: &Config, name: Name, mode: Mode) -> Self {
        let mut streams = Random::streams(config.seed);
        let mut stream = || streams.next().expect("streams never end");
        let kinds = if config.interrupt_every == Dist::Never { 1 } else { 1 + LEVELS };
        let locks = Arena::new(config.locks * kinds, || Guarded {
            lock: RawPvLock::new(),
            owner: Cell::new(None),
            count: Cell::new(0),
        });
        let locks = Box::new(locks.unwrap_or_else(|error| panic!("{error}")));
        // SAFETY: the machine owns it and keeps it in its place until its coroutines are gone.
        let shared: &'static Arena<_> = unsafe { &*core::ptr::from_ref(&*locks) };
        let installed = Guest::install::<CPUS, LINES>(config, mode, stream());
        let guest = installed.guest();
        let host = Host::new(config, guest, stream());
        let tally = Rc::new(RefCell::new(Tally::new(config.vcpus)));
        let tasks: Vec<Random> = (0..config.vcpus).map(|_| stream()).collect();
        let codes = tasks.into_iter().enumerate().map(|(vcpu, task)| {
            let random = RefCell::new(task);
            let upcalls = RefCell::new(stream());
            let (config, tally) = (config.clone(), tally.clone());
            Rc::new(Vcpu { vcpu, random, upcalls, config, guest, locks: shared, tally })
        });
        let codes: Vec<_> = codes.collect();
        if config.interrupt_every != Dist::Never {
            let handler = |code: &Rc<Vcpu<CPUS, K>>| -> Handler {
                let code = code.clone();
                code.guest.upcall_at[code.vcpu].set(code.until_upcall());
                Rc::new(move |level| code.upcall(level))
            };
            guest.set_handlers(codes.iter().map(handler).collect());
        }
        let vcpus = codes.into_iter().enumerate().map(|(vcpu, code)| {
            let stack = DefaultStack::new(STACK)
                .unwrap_or_else(|error| panic!("no memory for the stack of vCPU {vcpu}: {error}"));
            Coroutine::with_stack(stack, move |door, ()| {
                guest::begin(door);
                code.work();
            })
        });
        let vcpus = vcpus.collect();
        Self {
            config: config.clone(),
            name,
            tally,
            locks,
            guest,
            host,
            vcpus,
            _installed: installed,
        }
    }

    fn run(mut self) -> Result<Report, Failure> {
        loop {
            let limit = self.tally.borrow().last.saturating_add(self.config.watchdog.0);
            match self.host.next(limit) {
                Next::Runs(vcpu) => self.run_vcpu(vcpu)?,
                Next::Limit => {
                    let time = self.config.watchdog;
                    return Err(
                        self.failure(format!("no progress: no acquisition for {time}"), None)
                    );
                }
                Next::Nothing => break,
            }
        }
        self.check_end()?;
        let counters = (0..self.config.vcpus).map(pvlock::counters::<Vm<CPUS>>).fold(
            [0; Counter::COUNT],
            |mut sum, counters| {
                sum.iter_mut().zip(counters).for_each(|(sum, one)| *sum += one);
                sum
            },
        );
        let (tally, host) = (self.tally.borrow(), &self.host);
        Ok(Report::new(
            self.name.clone(),
            &self.config,
            host.now(),
            &tally,
            host.switches,
            counters,
        ))
    }

    /// Lets a vCPU's code go on until it has to wait for something.
    fn run_vcpu(&mut self, vcpu: usize) -> Result<(), Failure> {
        let mut now = self.host.now();
        loop {
            guest::enter(vcpu, now, self.host.horizon(vcpu));
            let code = &mut self.vcpus[vcpu];
            let result = catch_unwind(AssertUnwindSafe(|| code.resume(())));
            now = guest::leave();
            match result {
                Ok(CoroutineResult::Return(())) => self.host.finish(vcpu, now),
                Ok(CoroutineResult::Yield(Request::Run)) => self.host.go_on(vcpu, now),
                Ok(CoroutineResult::Yield(Request::Poll(port))) => self.host.poll(vcpu, port, now),
                Ok(CoroutineResult::Yield(Request::Idle(time))) => self.host.idle(vcpu, time, now),
                Ok(CoroutineResult::Yield(Request::Preempt)) => self.host.preempt(vcpu, now),
                Ok(CoroutineResult::Yield(Request::Send(port))) => {
                    self.host.send(vcpu, port, now);
                    continue;
                }
                Ok(CoroutineResult::Yield(Request::TwoOwners { lock, other })) => {
                    let what =
                        format!("exclusion: vCPU {vcpu} and vCPU {other} both own lock {lock}");
                    return Err(self.failure(what, Some(lock)));
                }
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                    let what = format!("panic of vCPU {vcpu}: {}", text.unwrap_or("of no text"));
                    return Err(self.failure(what, self.guest.wants[vcpu].get()));
                }
            }
            return Ok(());
        }
    }

    /// Nothing will ever happen again: what must hold now.
    fn check_end(&self) -> Result<(), Failure> {
        let asleep = |vcpu: &usize| self.host.task(*vcpu) != Task::Done;
        let left: Vec<usize> = (0..self.config.vcpus).filter(asleep).collect();
        if let Some(first) = left.first() {
            let what = format!("lost wake-up: {} vCPUs sleep for ever", left.len());
            return Err(self.failure(what, self.guest.wants[*first].get()));
        }
        let mut counted = 0;
        for number in 0..self.locks.len() {
            let lock = self.locks.get(number);
            counted += lock.count.get();
            if lock.lock.is_locked() || lock.lock.is_contended() {
                return Err(
                    self.failure(format!("lock {number} is not free at the end"), Some(number))
                );
            }
        }
        if counted != self.tally.borrow().acquisitions {
            let what = format!("exclusion: the counts under the locks add up to {counted}");
            return Err(self.failure(what, None));
        }
        if !self.guest.hash().is_empty() || self.guest.nodes_in_use() != 0 {
            return Err(self.failure("an entry or a node is in use at the end".into(), Some(0)));
        }
        Ok(())
    }

    fn failure(&self, what: String, lock: Option<usize>) -> Failure {
        let mut details = Vec::new();
        if let Some(lock) = lock {
            let picture = Dump::new(&self.locks.get(lock).lock).to_string();
            details.push(format!("lock {lock}:"));
            details.extend(picture.lines().take(SHOWN).map(String::from));
        }
        let concerned = |vcpu: &usize| {
            let wants = self.guest.wants[*vcpu].get();
            wants.is_some() && (lock.is_none() || wants == lock)
        };
        let waiting = (0..self.config.vcpus).filter(concerned).take(SHOWN);
        details.extend(waiting.map(|vcpu| describe(&self.host, self.guest, vcpu)));
        details.push("the last steps to do with it, the latest first:".into());
        details.extend(self.guest.history(lock, SHOWN));
        Failure {
            policy: self.name.0.clone(),
            what,
            at_ns: self.host.now(),
            acquisitions: self.tally.borrow().acquisitions,
            details,
            command: self.name.1.clone(),
        }
    }
}

/// What one vCPU does.
struct Vcpu<const CPUS: usize, K: pvlock::Policy> {
    vcpu: usize,
    random: RefCell<Random>,
    /// For handlers, so that the task does the same with and without them.
    upcalls: RefCell<Random>,
    config: Config,
    guest: &'static Guest,
    locks: &'static Arena<Guarded<CPUS, K>>,
    tally: Rc<RefCell<Tally>>,
}

impl<const CPUS: usize, K: pvlock::Policy> Vcpu<CPUS, K> {
    fn work(&self) {
        let sample = |dist: Dist| dist.sample(&mut self.random.borrow_mut());
        for _ in 0..self.config.acquisitions {
            guest::spend(sample(self.config.outside));
            let idle = sample(self.config.idle);
            if idle > 0 {
                guest::give(Request::Idle(idle));
            }
            if self.config.duration.0 != 0 && guest::now() >= self.config.duration.0 {
                break;
            }
            self.guest.take_upcall();
            let lock = self.random.borrow_mut().below(self.config.locks as u64);
            self.acquire(lock as usize, &self.random);
        }
    }

    /// The handler of an upcall: takes a lock that only handlers of this level take. Returns how
    /// long it is until the next one.
    fn upcall(&self, level: usize) -> u64 {
        let lock = self.upcalls.borrow_mut().below(self.config.locks as u64) as usize;
        self.acquire(level * self.config.locks + lock, &self.upcalls);
        self.until_upcall()
    }

    fn until_upcall(&self) -> u64 {
        self.config.interrupt_every.sample(&mut self.upcalls.borrow_mut())
    }

    fn acquire(&self, number: usize, random: &RefCell<Random>) {
        let (vcpu, guest) = (self.vcpu, self.guest);
        let guarded = self.locks.get(number);
        let begin = guest::now();
        let (slept, woken) = (guest.slept[vcpu].get(), guest.woken[vcpu].get());
        guest.wants[vcpu].set(Some(number));
        guest.note(begin, vcpu, Event::Wants(number));
        guarded.lock.lock();
        if let Some(other) = guarded.owner.replace(Some(vcpu)) {
            guest::give(Request::TwoOwners { lock: number, other });
        }
        guest.wants[vcpu].set(None);
        let now = guest::now();
        guest.note(now, vcpu, Event::Owns(number));
        let (slept, woken) = (guest.slept[vcpu].get() - slept, guest.woken[vcpu].get() - woken);
        self.tally.borrow_mut().add(vcpu, now, now - begin, slept, woken);

        // Not one step: a second owner would come between the two.
        let count = guarded.count.get();
        let critical = self.config.critical.sample(&mut random.borrow_mut());
        guest::spend(critical);
        guest.take_upcall();
        guarded.count.set(count + 1);
        guarded.owner.set(None);
        guest.note(guest::now(), vcpu, Event::Releases(number));
        // SAFETY: locked above, by this context.
        unsafe { guarded.lock.unlock() };
    }
}
