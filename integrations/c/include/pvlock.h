/*
 * pvlock and its kicker for kernels in C on Xen: link with libpvlock_c.a.
 *
 * Made by cbindgen from src/lib.rs; change it there.
 */

#ifndef PVLOCK_H
#define PVLOCK_H

#include <stdbool.h>
#include <stdint.h>

/**
 * How a wait ended: a hint. The caller looks at its condition again.
 */
enum pvlock_outcome {
  /**
   * A kick came, before the wait or during it.
   */
  PVLOCK_OUTCOME_KICKED,
  /**
   * `still_blocked` said no.
   */
  PVLOCK_OUTCOME_CONDITION_GONE,
  /**
   * The deadline passed.
   */
  PVLOCK_OUTCOME_TIMED_OUT,
  /**
   * Another event ended the poll.
   */
  PVLOCK_OUTCOME_EARLY,
  /**
   * There is no event channel yet.
   */
  PVLOCK_OUTCOME_NO_PORT,
};

/**
 * Which lock to be.
 */
enum pvlock_mode {
  /**
   * Waiters sleep in Xen: the default.
   */
  PVLOCK_MODE_PV,
  /**
   * Waiters spin in a queue: where each vCPU has a pCPU of its own.
   */
  PVLOCK_MODE_NATIVE,
  /**
   * Waiters spin without order.
   */
  PVLOCK_MODE_TEST_AND_SET,
};

/**
 * What the library asks of the kernel it lives in: all of it. Every function may be called with
 * interrupts on or off, and takes no lock of this library.
 */
struct pvlock_kernel {
  /**
   * The page that Xen shares with the domain, mapped for ever.
   */
  void *shared_info;
  /**
   * The number that Xen gives the vCPU this runs on. It stays the same as long as a lock is being
   * taken, held or released: preemption is off meanwhile.
   */
  uint32_t (*current_vcpu)(void);
  /**
   * Hypercall `number` (`__HYPERVISOR_event_channel_op` or `__HYPERVISOR_sched_op`) with these two
   * arguments: what Xen answers.
   */
  long (*hypercall)(uint32_t number, uint32_t command, void *argument);
  /**
   * Nanoseconds since Xen booted, by the PV clock: those of `SCHEDOP_poll`'s deadline. Never 0.
   */
  uint64_t (*system_time)(void);
  /**
   * Ends the kernel: `text` says which fault of this library's use was found. Does not return.
   */
  void (*panic)(const char *text);
};

/**
 * A spinlock whose waiters sleep in Xen. All zeros is a free one. Its address must not change while it
 * is used.
 */
struct pvlock {
  /**
   * Only for this library.
   */
  uint32_t word;
};

/**
 * What the waits of one vCPU came to, since boot. Each field counts waits.
 */
struct pvlock_counts {
  /**
   * That asked Xen to poll.
   */
  uint64_t polls;
  /**
   * That found a kick already there. Counted in `kicked` too.
   */
  uint64_t latched;
  /**
   * That were ended by a kick.
   */
  uint64_t kicked;
  /**
   * That reached their deadline.
   */
  uint64_t timed_out;
  /**
   * Of these, those that had nothing left to wait for: the kick was late, or lost.
   */
  uint64_t timed_out_unblocked;
  /**
   * That another event ended.
   */
  uint64_t early;
};

/**
 * Lets one vCPU sleep until another kicks it: an event channel with the rules that make it reliable.
 * For waits of the kernel's own; a lock has its own kickers. Call `pvlock_kicker_init` first.
 */
struct pvlock_kicker {
  /**
   * Only for this library.
   */
  uint64_t opaque[8];
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Says what the library lives in. Once, on vCPU 0, before another vCPU starts and before the first
 * bind; after the shared page is mapped and its ports are masked. 0, or `-EINVAL` (-22): a pointer
 * that must not be NULL is.
 *
 * `hooks` is NULL or valid for ever, and its functions do what is said of them.
 */
int pvlock_init(const struct pvlock_kernel *hooks);

/**
 * Chooses which lock to be, an `enum pvlock_mode`, and how many turns a waiter spins before it sleeps
 * (32,768 without this call). Before any lock is waited for: 0, or `-EBUSY` (-16) if one was; `-EINVAL`
 * (-22) if there is no such mode.
 */
int pvlock_configure(uint32_t mode,
                     uint32_t spin_turns);

/**
 * Gives `vcpu` the event channel on which it is kicked: its port, or a negative error number of Xen.
 * For each vCPU before it takes its first contended lock, from any vCPU; and again for all of them
 * after a restore (`pvlock_bind_again`). There may be 128 vCPUs: `-EINVAL` (-22) beyond.
 */
int pvlock_bind(uint32_t vcpu);

/**
 * Takes the event channel of `vcpu` away, which is down: 0, or a negative error number of Xen.
 */
int pvlock_unbind(uint32_t vcpu);

/**
 * Gives every vCPU that had an event channel a new one, after a restore, while no other vCPU runs: 0,
 * or a negative error number of Xen.
 */
int pvlock_bind_again(void);

/**
 * Takes the lock; the vCPU sleeps in Xen if it has to wait for long. Preemption is off, by the kernel, until
 * after the unlock; and interrupts too, if a handler takes the same lock.
 *
 * `lock` points to a `struct pvlock` that was zeroed once and is not moved.
 */
void pvlock_lock(struct pvlock *lock);

/**
 * Takes the lock if it is free and nobody waits for it.
 *
 * As `pvlock_lock`.
 */
bool pvlock_try_lock(struct pvlock *lock);

/**
 * Releases the lock, and kicks who sleeps for it.
 *
 * As `pvlock_lock`, and the caller has the lock.
 */
void pvlock_unlock(struct pvlock *lock);

/**
 * Whether somebody has the lock or is about to get it. A snapshot.
 *
 * As `pvlock_lock`.
 */
bool pvlock_is_locked(struct pvlock *lock);

/**
 * What the waits of `vcpu` for locks came to. All 0 for a vCPU that cannot be.
 */
struct pvlock_counts pvlock_counts_of(uint32_t vcpu);

/**
 * Makes a kicker without an event channel.
 *
 * `storage` points to a `struct pvlock_kicker` that nobody uses yet.
 */
void pvlock_kicker_init(struct pvlock_kicker *storage);

/**
 * Gives the kicker an event channel of `vcpu`, which is to wait on it: the port, or a negative error
 * number of Xen. Again after a restore, followed by a kick.
 *
 * `storage` was made by `pvlock_kicker_init`.
 */
int pvlock_kicker_bind(struct pvlock_kicker *storage,
                       uint32_t vcpu);

/**
 * Takes the event channel away, when nobody waits on it or can still kick: 0, or a negative error
 * number of Xen.
 *
 * As `pvlock_kicker_bind`.
 */
int pvlock_kicker_unbind(struct pvlock_kicker *storage);

/**
 * Sleeps on the kicker's own vCPU until it is kicked, or until `deadline_ns` of Xen's system time (0 =
 * no deadline), unless `still_blocked(argument)` says no. May end early: call it in a loop.
 *
 * As `pvlock_kicker_bind`, and on the vCPU it was bound to.
 */
enum pvlock_outcome pvlock_kicker_wait(struct pvlock_kicker *storage,
                                       uint64_t deadline_ns,
                                       bool (*still_blocked)(void *argument),
                                       void *argument);

/**
 * Ends the present or the next wait on the kicker, from any vCPU. Change the condition first. 0, or a
 * negative error number of Xen.
 *
 * As `pvlock_kicker_bind`.
 */
int pvlock_kicker_kick(struct pvlock_kicker *storage);

/**
 * What the waits on the kicker came to.
 *
 * As `pvlock_kicker_bind`.
 */
struct pvlock_counts pvlock_kicker_counts(struct pvlock_kicker *storage);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PVLOCK_H */
