/*
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The PV queue lock of the crate pvlock over the kicker of the crate evtchn, for spin(1).
 *
 * It models the *protocol* under sequential consistency: every step is one access to shared memory
 * or one hypercall. Orderings weaker than that are the loom suite's business, on the real code.
 * docs/model.md says which line here stands for which line there.
 *
 * Switches (-D):
 *   CPUS=n          vCPUs, 2 to 4 (default 3)
 *   ROUNDS=n        acquisitions of each context; 0 = for ever (default 0)
 *   KICK_TWICE      policy KickTwice; otherwise KickAtUnlock
 *   STEALS          newcomers may take a free lock past the queue, until a waiter is late, as in Adaptive
 *   NESTED          an interrupt on vCPU 0 takes a second lock, which vCPU 1 takes after the first
 *   EARLY=n         how many polls in all may end for no reason (default 0)
 * Defects that the properties must find:
 *   AS_POSTED       the patch as posted in 2015: the head publishes Halted, and is entered twice
 *   NO_LATCH        a kick that meets no poll is dropped
 *   NO_LOOK_BEHIND  a waiter does not look at `handed` again after it published Halted
 *   NO_LOOK_ARMED   a waiter does not look at its condition again before it polls
 *   NESTED_CLEARS   a nested wait uses up the token that ends its poll
 *   NESTED_KEEPS    a nested wait does not give back the token that it has taken
 *   BLIND_UNLOCK    unlock is a store
 *   UNBOUNDED       with STEALS: nobody has to be late ever; for safety, it is every run of Adaptive and more
 *   LOOKS_AGAIN     with STEALS: a head that finds the lock free as it is about to sleep only looks again
 *   NO_RESERVATION  with STEALS: no unlock reserves the lock for a head that is late
 *   ERASES          with STEALS: a head clears pending when it goes to sleep
 *   SLOW_FIRST      the head sets the slow byte before it makes its entry
 */

#ifndef CPUS
#define CPUS 3
#endif
#ifndef ROUNDS
#define ROUNDS 0
#endif
#ifndef EARLY
#define EARLY 0
#endif

/* A context is a flow of control that can wait: a vCPU's task, or an interrupt on it. Each has one
 * queue node, named by its number. */
#ifdef NESTED
#define LOCKS    2
#define IRQ      CPUS                       /* the interrupt on vCPU 0 */
#define CONTEXTS (CPUS + 1)
#define CPU(c)   (c == IRQ -> 0 : c)
#define LOCK(c)  (c == IRQ -> 1 : 0)        /* tasks: lock 0; the interrupt, and then task 1: lock 1 */
#else
#define LOCKS    1
#define CONTEXTS CPUS
#define CPU(c)   c
#define LOCK(c)  0
#endif

/* --- The lock word (word.rs) ----------------------------------------------------------------- */

#define FREE   0
#define LOCKED 1
#define SLOW   3

byte locked[LOCKS];
bit  pending[LOCKS];
byte tail[LOCKS];           /* context + 1; 0 = no queue */

/* --- The nodes (node.rs) --------------------------------------------------------------------- */

#define RUNNING     0
#define HALTED      1
#define REGISTERING 2
#define HASHED      3

byte next[CONTEXTS];        /* context + 1; 0 = none yet */
bit  handed[CONTEXTS];
byte state[CONTEXTS];

/* --- The hash table (hash.rs): one entry a lock, or none ------------------------------------- */

byte entry[LOCKS];          /* vCPU + 1 */

/* --- Event channels (evtchn) ----------------------------------------------------------------- */

bit  latched[CPUS];         /* the pending bit of each vCPU's masked IPI port */
#ifdef NESTED
byte waits[CPUS];           /* waits under way */
#endif
#ifdef NO_LATCH
bit  polling[CPUS];
#endif
#if EARLY > 0
byte early = EARLY;
#endif

/* --- What must hold --------------------------------------------------------------------------- */

byte owners[LOCKS];         /* contexts inside the critical section */
bit  wants[CONTEXTS];       /* asked for the lock, does not own it yet */
#ifdef NESTED
bit  interrupted;           /* the interrupt runs, vCPU 0's task does not */
#endif

#if defined(STEALS) && !defined(UNBOUNDED)
bit  late[CONTEXTS];        /* has waited for longer than the horizon, whoever asks */
#define LATE(c) late[c]
/* Time goes on: a head that has looked, slept or lost the lock in vain is late at the latest then. */
#define TIME_GOES_ON late[c] = 1
#define ON_TIME late[c] = 0
#else
#define LATE(c) false
#define TIME_GOES_ON skip
#define ON_TIME skip
#endif

/* The lock's word says that it is taken: nobody else may be in. */
#define OWN owners[l]++; assert(owners[l] == 1); wants[c] = 0; ON_TIME

/* The contexts differ in their numbers only. With one acquisition each it is enough to look at the
 * runs in which they start in the order of those numbers. */
#if ROUNDS == 1 && !defined(NESTED)
byte started;
#define MAY_START (started == c)
#define STARTED started++
#else
#define MAY_START true
#define STARTED skip
#endif

/* Who wants the lock gets it, if every context that can go on does so in the end. */
#if ROUNDS > 0
byte done;
ltl acquires { <> (done == CONTEXTS) }
#else
/* For one context is enough: they differ in their numbers only. */
ltl acquires { [] ((wants[0] == 1) -> <> (wants[0] == 0)) }
#endif

/* --- Kicks and waits (evtchn/src/kicker.rs) ---------------------------------------------------- */

inline kick(cpu)
{
#ifdef NO_LATCH
    atomic { if :: polling[cpu] -> latched[cpu] = 1 :: else fi }
#else
    latched[cpu] = 1                                /* EVTCHNOP_send */
#endif
}

#ifdef NESTED
#define OUTERMOST (waits[me] == 1)
#else
#define OUTERMOST true
#endif

/* Kicker::token: after the poll, only the outermost wait uses it up. */
#ifdef NESTED_CLEARS
#define USE_UP latched[me] = 0
#else
#define USE_UP if :: OUTERMOST -> latched[me] = 0 :: else fi
#endif

/* Kicker::wait_at: looks at `blocked`, and polls. */
inline look_and_poll(blocked)
{
    if
#ifdef NO_LOOK_ARMED
    :: true ->
#else
    :: !(blocked)                                   /* ConditionGone */
    :: (blocked) ->
#endif
#ifdef NO_LATCH
        polling[me] = 1;
#endif
        if                                          /* SCHEDOP_poll, without a deadline */
        :: latched[me]
#if EARLY > 0
        :: atomic { early > 0 -> early-- }
#endif
        fi;
#ifdef NO_LATCH
        polling[me] = 0;
#endif
        if
        :: atomic { latched[me] -> USE_UP }         /* Kicked; in a nested wait Early */
        :: !latched[me]                             /* Early */
        fi
    fi
}

/* Kicker::wait: sleeps on `blocked` until kicked. */
inline wait(blocked)
{
#ifdef NESTED
    waits[me]++;
#endif
    if
    :: atomic { latched[me] -> latched[me] = 0 };
#ifdef NESTED
        if
        :: OUTERMOST                                /* Kicked */
        :: !OUTERMOST ->                            /* N1 to N4 */
            look_and_poll(blocked);
#ifndef NESTED_KEEPS
            if
            :: latched[me]
            :: !latched[me] -> kick(me)
            fi
#endif
        fi
#endif
    :: !latched[me] -> look_and_poll(blocked)
    fi;
#ifdef NESTED
    waits[me]--
#endif
}

/* --- The slow path (pvlock/src/pv.rs, queue.rs) ------------------------------------------------ */

/* With a policy that steals, pv::acquire takes a free lock past the queue while no head spins. */
#ifdef STEALS
#define CAN_TAKE (locked[l] == FREE && pending[l] == 0)
#else
#define CAN_TAKE (locked[l] == FREE && tail[l] == 0)
#endif

#ifdef AS_POSTED
#define MUST_NOT_REGISTER (registered || seen == HASHED)
#else
#define MUST_NOT_REGISTER (seen == REGISTERING)
#endif

#ifdef AS_POSTED
#define HAS_ENTRY registered = true
#else
#define HAS_ENTRY skip
#endif

/* Locals that mean nothing any more: one state instead of many. */
#if defined(AS_POSTED)
#define FORGET other = 0; seen = 0; registered = 0
#else
#define FORGET other = 0; seen = 0
#endif

/* HashTable::insert. The rule of one entry a lock. */
inline insert(lock, cpu)
{
    atomic {
        assert(entry[lock] == 0);                   /* S1: two entries for one lock */
        entry[lock] = cpu + 1
    }
}

/* Pv::wait_behind */
inline wait_behind()
{
    do
    :: handed[c] -> break                           /* the spin saw it, */
    :: !handed[c] ->                                /* or was given up */
        state[c] = HALTED;
#ifdef NO_LOOK_BEHIND
        wait(state[c] == HALTED);
#else
        if
        :: handed[c]
        :: !handed[c] -> wait(state[c] == HALTED)
        fi;
#endif
        if                                          /* Node::unhalt */
        :: atomic { state[c] == HALTED -> state[c] = RUNNING }
        :: state[c] != HALTED
        fi
    od
}

/* pv::register. Ends in RETRY with the head's state published, or takes the lock. */
inline register()
{
#ifdef AS_POSTED
    state[c] = HALTED;
#endif
#ifndef SLOW_FIRST
    insert(l, me);
#endif
    if                                              /* Word::exchange_slow */
    :: atomic { locked[l] == FREE -> locked[l] = SLOW };
        atomic { locked[l] = LOCKED; OWN };         /* Word::slow_to_locked */
#ifdef STEALS
        pending[l] = 0;
#endif
#ifndef SLOW_FIRST
        entry[l] = 0;                               /* HashTable::remove */
#endif
        goto owns
    :: atomic { locked[l] != FREE ->
#ifndef AS_POSTED
        assert(locked[l] == LOCKED);                /* "registered twice" */
#endif
        locked[l] = SLOW }
    fi;
#ifdef SLOW_FIRST
    insert(l, me);
#endif
#ifndef AS_POSTED
    state[c] = HASHED;
#endif
}

/* Pv::wait_as_head. Goes to `owns` with the lock taken, to `left` with the queue left too. */
inline wait_as_head()
{
    /* spin_as_head, take */
#ifdef STEALS
    if
    /* Word::try_take_alone */
    :: atomic { locked[l] == FREE && tail[l] == c + 1 ->
            locked[l] = LOCKED; pending[l] = 0; tail[l] = 0; OWN }; goto left
    :: atomic { locked[l] == FREE -> locked[l] = LOCKED; pending[l] = 0; OWN }; goto owns
    :: locked[l] != FREE                            /* spun long enough */
    fi;
#else
    if
    :: atomic { locked[l] == FREE && tail[l] == c + 1 ->
            locked[l] = LOCKED; tail[l] = 0; OWN }; goto left
    :: locked[l] == FREE -> atomic { locked[l] = LOCKED; OWN }; goto owns
    :: locked[l] != FREE                            /* spun long enough */
    fi;
#endif
    seen = state[c];
    if
    :: locked[l] == SLOW -> HAS_ENTRY
    :: locked[l] != SLOW && MUST_NOT_REGISTER -> seen = 0; TIME_GOES_ON; goto head
#if defined(LOOKS_AGAIN) || defined(AS_POSTED)
    :: locked[l] == FREE -> seen = 0; TIME_GOES_ON; goto head
    :: locked[l] == LOCKED && !MUST_NOT_REGISTER ->
#else
    :: locked[l] != SLOW && !MUST_NOT_REGISTER ->   /* free by now: the exchange takes it */
#endif
        register();
        HAS_ENTRY
    fi;
    seen = 0;
#ifdef ERASES
    pending[l] = 0;
#endif
    wait(locked[l] == SLOW);
    TIME_GOES_ON;
    goto head
}

/* Pv::handed_over */
inline handed_over(n)
{
    if
#if defined(KICK_TWICE)
    :: atomic { state[n] == HALTED -> state[n] = RUNNING }; kick(CPU(n))
#elif defined(AS_POSTED)
    :: atomic { state[n] == HALTED -> state[n] = HASHED }; locked[l] = SLOW; insert(l, CPU(n))
#else
    :: atomic { state[n] == HALTED -> state[n] = REGISTERING };
        insert(l, CPU(n)); locked[l] = SLOW; state[n] = HASHED
#endif
    :: state[n] != HALTED
    fi
}

/* queue::queue_up. Falls through with the lock owned and the queue left. */
inline queue_up()
{
    /* Node::reset is below: nobody looks at the node of a context that is in no queue. */
    if                                              /* Word::exchange_tail */
    :: atomic { tail[l] == 0 -> tail[l] = c + 1 }
    :: atomic { tail[l] != 0 -> other = tail[l] - 1; tail[l] = c + 1 };
        next[other] = c + 1;                        /* Node::set_next */
        other = 0;
        wait_behind()
    fi;
head:
    wait_as_head();
owns:
    if                                              /* Word::try_clear_tail */
    :: atomic { tail[l] == c + 1 -> tail[l] = 0 }
    :: tail[l] != c + 1 ->
        atomic { next[c] != 0 -> other = next[c] - 1 };
        handed[other] = 1;                          /* Node::hand_over */
        handed_over(other)
    fi;
left:
    atomic { FORGET; next[c] = 0; handed[c] = 0; state[c] = RUNNING }
}

/* A newcomer that looks in vain has done nothing, so that one look, at any time, stands for all of its budget.
 * has_stolen_long: a thief may queue though the lock is free. */
#ifdef STEALS
#define MUST_QUEUE (!CAN_TAKE || tail[l] != 0)
#else
#define MUST_QUEUE !CAN_TAKE
#endif

inline lock()
{
    if
    /* Word::try_acquire, Word::try_steal */
    :: atomic { MAY_START && CAN_TAKE -> STARTED; locked[l] = LOCKED; OWN }
    :: atomic { MAY_START && MUST_QUEUE -> STARTED; wants[c] = 1 };
        queue_up()
    fi
}

/* RawPvLock::unlock, pv::release_slow */
inline unlock()
{
    if                                              /* Word::try_release */
#ifdef BLIND_UNLOCK
    :: atomic { locked[l] = FREE; owners[l]-- }
#else
    :: atomic { locked[l] == LOCKED -> locked[l] = FREE; owners[l]-- }
    :: locked[l] != LOCKED ->
        atomic {                                    /* HashTable::remove */
            assert(locked[l] == SLOW);
            assert(entry[l] != 0);                  /* the slow byte without an entry */
            other = entry[l] - 1;
            entry[l] = 0
        }
#ifdef STEALS
        /* Word::release_reserved: the head is late, or the unlock is a fair one. The clocks of two vCPUs
         * differ, so that who is not late may seem so. */
        if
#ifdef NO_RESERVATION
        :: true -> atomic { locked[l] = FREE; owners[l]-- }
#else
        :: true -> atomic { locked[l] = FREE; pending[l] = 1; owners[l]-- }
        :: !LATE(other) -> atomic { locked[l] = FREE; owners[l]-- }
#endif
        fi;
#else
        atomic { locked[l] = FREE; owners[l]-- };
#endif
        kick(other);
        other = 0
#endif
    fi
}

#ifdef NESTED
#define USE use: lock(); unlock(); if :: c == 1 && l == 0 -> l = 1; goto use :: else -> l = LOCK(c) fi
#else
#define USE lock(); unlock()
#endif

/* One context. `me` is its vCPU, `l` its lock. */
inline work()
{
#if ROUNDS > 0
    byte round;
    for (round : 1 .. ROUNDS) { USE }
    done++
#else
end:
    do
    :: USE
    od
#endif
}

#define LOCALS \
    byte me = CPU(c); \
    byte l = LOCK(c); \
    byte other, seen; \
    MORE_LOCALS

#if defined(AS_POSTED)
#define MORE_LOCALS bool registered;
#else
#define MORE_LOCALS
#endif

proctype task(byte c)
#ifdef NESTED
provided (_pid != 1 || !interrupted)          /* 1: the first task that init runs */
#endif
{
    LOCALS
    work()
}

#ifdef NESTED
/* An interrupt may come between any two steps of vCPU 0's task, also within its wait, and runs to
 * its end before the task goes on. */
proctype interrupt(byte c)
{
    LOCALS
#if ROUNDS > 0
    byte round;
    for (round : 1 .. ROUNDS) { interrupted = 1; lock(); unlock(); interrupted = 0 }
    done++
#else
end:
    do
    :: interrupted = 1; lock(); unlock(); interrupted = 0
    od
#endif
}
#endif

init
{
    byte i;
    atomic {
        for (i : 0 .. CPUS - 1) { run task(i) }
#ifdef NESTED
        run interrupt(IRQ)
#endif
    }
#if ROUNDS > 0
    /* All done: nothing is left behind. */
    (_nr_pr == 1);
    for (i : 0 .. LOCKS - 1) {
        assert(locked[i] == FREE && tail[i] == 0 && pending[i] == 0 && entry[i] == 0)
    }
#endif
}
