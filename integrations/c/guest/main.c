/*
 * A small kernel in C for a PVH domain of Xen, whose vCPUs count under one pvlock. Read boot_vcpu().
 */
#include <stddef.h>

#include "layout.h"
#include "pvlock.h"
#include "xen.h"

/* How often each vCPU takes the lock at least; it goes on until all have slept and were kicked awake. */
enum { AT_LEAST = 200 };
/* How often at most: a kernel whose kicks wake nobody ends too, and says so. */
enum { AT_MOST = 20000 };

static struct pvlock lock;
/* What it protects. */
static volatile uint64_t counter;

/* vCPU 0 sleeps on it until the others are done. */
static struct pvlock_kicker done;
static uint32_t vcpus, finished;
static uint64_t taken;

static _Noreturn void die(const char *text)
{
    print("c-guest: ");
    print(text);
    print("\n");
    xen_shutdown(SHUTDOWN_CRASH);
}

static void check(long result, const char *what)
{
    if (result < 0)
        die(what);
}

static void hook_panic(const char *text) { die(text); }

static const struct pvlock_kernel kernel = {
    .shared_info = shared_info,
    .current_vcpu = current_vcpu,
    .hypercall = xen_hypercall,
    .system_time = xen_system_time,
    .panic = hook_panic,
};

/* vCPUs that have slept in a wait for the lock and were kicked awake. */
static uint32_t sleepers(void)
{
    uint32_t slept = 0;

    for (uint32_t vcpu = 0; vcpu < vcpus; vcpu++) {
        struct pvlock_counts counts = pvlock_counts_of(vcpu);
        slept += counts.polls > 0 && counts.kicked > counts.latched;
    }
    return slept;
}

/* Takes the lock again and again, with all the others. */
static void count(void)
{
    uint64_t mine = 0;

    /* A vCPU that is alone has nobody to wait for. */
    while (mine < AT_LEAST || (vcpus > 1 && mine < AT_MOST && sleepers() < vcpus)) {
        uint64_t before, end;

        pvlock_lock(&lock);
        before = counter;
        /* Long enough for the others to go to sleep. */
        for (end = xen_system_time() + 20000; xen_system_time() < end;)
            __builtin_ia32_pause();
        counter = before + 1;
        pvlock_unlock(&lock);
        mine++;
    }
    __atomic_fetch_add(&taken, mine, __ATOMIC_RELAXED);
    /* Release: pairs with the load in others_count, and hands over `taken` and the counts. */
    __atomic_fetch_add(&finished, 1, __ATOMIC_RELEASE);
}

/* What the other vCPUs do. */
void other_vcpu(void)
{
    count();
    pvlock_kicker_kick(&done);
}

static bool others_count(void *unused)
{
    (void)unused;
    return __atomic_load_n(&finished, __ATOMIC_ACQUIRE) < vcpus;
}

static void print_counts(struct pvlock_counts counts)
{
    print_number(counts.polls);
    print(" polls, ");
    print_number(counts.kicked);
    print(" kicks, ");
    print_number(counts.timed_out);
    print(" timeouts\n");
}

static void report(void)
{
    for (uint32_t vcpu = 0; vcpu < vcpus; vcpu++) {
        print("vCPU ");
        print_number(vcpu);
        print(": ");
        print_counts(pvlock_counts_of(vcpu));
    }
    print("the end: ");
    print_counts(pvlock_kicker_counts(&done));
    print("c-guest: counter ");
    print_number(counter);
    print(" of ");
    print_number(taken);
    print("; ");
    if (vcpus == 1) {
        print("one vCPU never waits for a lock, so it never slept; give the domain more\n");
        return;
    }
    print_number(sleepers());
    print(" of ");
    print_number(vcpus);
    print(" vCPUs slept and were kicked awake\n");
}

/* What vCPU 0 does. */
_Noreturn void boot_vcpu(void)
{
    xen_init();
    check(pvlock_init(&kernel), "pvlock_init failed");
    /* Few turns of spinning, because here the lock is held for long. */
    check(pvlock_configure(PVLOCK_MODE_PV, 100), "pvlock_configure failed");
    pvlock_kicker_init(&done);
    check(pvlock_kicker_bind(&done, 0), "no event channel for the end");

    while (vcpus < MAX_VCPUS && xen_has_vcpu(vcpus))
        vcpus++;
    for (uint32_t vcpu = 0; vcpu < vcpus; vcpu++)
        check(pvlock_bind(vcpu), "a vCPU gets no event channel");
    for (uint32_t vcpu = 1; vcpu < vcpus; vcpu++)
        check(xen_start_vcpu(vcpu), "a vCPU does not start");

    count();
    while (others_count(NULL))
        pvlock_kicker_wait(&done, xen_system_time() + 1000000000, others_count, NULL);
    report();
    xen_shutdown(counter == taken ? SHUTDOWN_POWEROFF : SHUTDOWN_CRASH);
}

/* What compilers call. */
void *memcpy(void *to, const void *from, __SIZE_TYPE__ size)
{
    void *start = to;

    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size)::"memory");
    return start;
}

void *memset(void *to, int byte, __SIZE_TYPE__ size)
{
    void *start = to;

    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(byte) : "memory");
    return start;
}
