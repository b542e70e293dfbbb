/*
 * pvlock from C, on threads: they are the vCPUs of a Xen that is 80 lines long and knows event channels and polls.
 */
#define _POSIX_C_SOURCE 200809L
#include "pvlock.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define VCPUS 4
#define TURNS 20000
#define CHECK(holds)                                                                   \
    do {                                                                               \
        if (!(holds)) {                                                                \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #holds);        \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

/* --- A small Xen. Numbers and layouts: Xen public/xen.h, event_channel.h, sched.h. --- */

enum { SCHED_OP = 29, EVENT_CHANNEL_OP = 32 };
enum { SCHEDOP_YIELD = 0, SCHEDOP_POLL = 3 };
enum { EVTCHNOP_CLOSE = 3, EVTCHNOP_SEND = 4, EVTCHNOP_BIND_IPI = 7 };

static struct {
    uint64_t vcpu_info[32][8];
    _Atomic uint64_t pending[64], mask[64];
    uint64_t rest[128];
} shared_info __attribute__((aligned(4096)));

static pthread_mutex_t xen = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t sent;
static uint32_t last_port;
static _Thread_local uint32_t vcpu;

static uint64_t system_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static bool is_pending(uint32_t port)
{
    return port < 64 && (atomic_load(&shared_info.pending[0]) >> port & 1);
}

static void poll(uint32_t port, uint64_t deadline)
{
    struct timespec until = { (time_t)(deadline / 1000000000), (long)(deadline % 1000000000) };
    while (!is_pending(port) && pthread_cond_timedwait(&sent, &xen, &until) != ETIMEDOUT)
        ;
}

static long hypercall(uint32_t number, uint32_t command, void *argument)
{
    struct { uint32_t *ports, nr_ports; uint64_t timeout; } *sched_poll = argument;
    struct { uint32_t vcpu, port; } *bind = argument;
    uint32_t *port = argument;
    long result = 0;

    if (number == SCHED_OP && command == SCHEDOP_YIELD)
        return sched_yield();
    pthread_mutex_lock(&xen);
    if (number == SCHED_OP && command == SCHEDOP_POLL) {
        CHECK(sched_poll->nr_ports == 1);
        poll(*sched_poll->ports, sched_poll->timeout);
    } else if (number == EVENT_CHANNEL_OP && command == EVTCHNOP_SEND) {
        CHECK(*port >= 1 && *port <= last_port);
        atomic_fetch_or(&shared_info.pending[0], (uint64_t)1 << *port);
        pthread_cond_broadcast(&sent);
    } else if (number == EVENT_CHANNEL_OP && command == EVTCHNOP_BIND_IPI) {
        CHECK(last_port < 63);
        bind->port = ++last_port;
    } else if (number == EVENT_CHANNEL_OP && command == EVTCHNOP_CLOSE) {
        CHECK(*port >= 1 && *port <= last_port);
    } else {
        result = -ENOSYS;
    }
    pthread_mutex_unlock(&xen);
    return result;
}

/* --- A kernel. --- */

static uint32_t current_vcpu(void) { return vcpu; }

static jmp_buf caught;
static bool expected;

static void die(const char *text)
{
    fprintf(expected ? stdout : stderr, "%s\n", text);
    if (!expected)
        abort();
    CHECK(strstr(text, "pvlock: ") == text && strstr(text, ".rs:") != NULL);
    longjmp(caught, 1);
}

static const struct pvlock_kernel kernel = {
    .shared_info = &shared_info,
    .current_vcpu = current_vcpu,
    .hypercall = hypercall,
    .system_time = system_time,
    .panic = die,
};

static struct pvlock lock;
static uint64_t counter;

static struct pvlock_kicker done;
static atomic_uint finished;

static void *count(void *number)
{
    vcpu = (uint32_t)(uintptr_t)number;
    for (int turn = 0; turn < TURNS; turn++) {
        pvlock_lock(&lock);
        counter++;
        pvlock_unlock(&lock);
    }
    atomic_fetch_add(&finished, 1);
    CHECK(pvlock_kicker_kick(&done) == 0);
    return NULL;
}

static bool others_count(void *wanted) { return atomic_load(&finished) < *(unsigned *)wanted; }

/* The lock is held until every other thread sleeps in it. */
static void threads_sleep_and_are_kicked(void)
{
    pthread_t threads[VCPUS];
    unsigned others = VCPUS - 1;

    pvlock_lock(&lock);
    CHECK(pvlock_is_locked(&lock) && !pvlock_try_lock(&lock));
    for (uintptr_t number = 1; number < VCPUS; number++)
        CHECK(pthread_create(&threads[number], NULL, count, (void *)number) == 0);
    for (uint32_t number = 1; number < VCPUS; number++)
        while (pvlock_counts_of(number).polls == 0)
            sched_yield();
    counter++;
    pvlock_unlock(&lock);

    while (others_count(&others))
        pvlock_kicker_wait(&done, system_time() + 1000000000, others_count, &others);
    for (uint32_t number = 1; number < VCPUS; number++)
        CHECK(pthread_join(threads[number], NULL) == 0);

    CHECK(pvlock_try_lock(&lock));
    CHECK(counter == 1 + (VCPUS - 1) * TURNS);
    pvlock_unlock(&lock);
    CHECK(!pvlock_is_locked(&lock));
    for (uint32_t number = 1; number < VCPUS; number++) {
        struct pvlock_counts counts = pvlock_counts_of(number);
        printf("vCPU %u: %llu polls, %llu kicks\n", number, (unsigned long long)counts.polls,
               (unsigned long long)counts.kicked);
        CHECK(counts.kicked > 0);
    }
}

static void mistakes_are_told(void)
{
    struct pvlock_kernel incomplete = kernel;
    incomplete.hypercall = NULL;
    CHECK(pvlock_init(NULL) == -EINVAL && pvlock_init(&incomplete) == -EINVAL);
    CHECK(pvlock_bind(128) == -EINVAL && pvlock_unbind(128) == -EINVAL);
    CHECK(pvlock_configure(3, 1) == -EINVAL);
    CHECK(pvlock_configure(PVLOCK_MODE_NATIVE, 1) == -EBUSY); /* The lock was waited for. */
    CHECK(pvlock_counts_of(128).polls == 0);
    /* The kernel's panic is called, and need not return. */
    expected = true;
    if (setjmp(caught) == 0) {
        pvlock_unlock(&lock);
        CHECK(!"the unlock of a free lock is told");
    }
    expected = false;
}

static void ports_come_and_go(void)
{
    int port = pvlock_kicker_bind(&done, 0);
    CHECK(port > 0 && pvlock_kicker_kick(&done) == 0);
    unsigned more = VCPUS;
    CHECK(pvlock_kicker_wait(&done, 1, others_count, &more) == PVLOCK_OUTCOME_KICKED);
    CHECK(pvlock_kicker_wait(&done, 1, others_count, &more) == PVLOCK_OUTCOME_TIMED_OUT);
    struct pvlock_counts counts = pvlock_kicker_counts(&done);
    CHECK(counts.latched > 0 && counts.kicked >= counts.latched && counts.timed_out > 0);
    CHECK(pvlock_kicker_unbind(&done) == 0);
    CHECK(pvlock_kicker_wait(&done, 1, others_count, &more) == PVLOCK_OUTCOME_NO_PORT);
    uint32_t before = last_port;
    CHECK(pvlock_bind_again() == 0 && last_port == before + VCPUS);
    CHECK(pvlock_unbind(VCPUS - 1) == 0);
}

int main(void)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&sent, &monotonic);
    memset((void *)shared_info.mask, -1, sizeof shared_info.mask);

    CHECK(pvlock_init(&kernel) == 0);
    CHECK(pvlock_configure(PVLOCK_MODE_PV, 50) == 0);
    for (uint32_t number = 0; number < VCPUS; number++)
        CHECK(pvlock_bind(number) > 0);
    pvlock_kicker_init(&done);
    CHECK(pvlock_kicker_bind(&done, 0) > 0);

    threads_sleep_and_are_kicked();
    mistakes_are_told();
    ports_come_and_go();
    puts("threads: success");
    return 0;
}
