// SPDX-License-Identifier: GPL-2.0-only
/*
 * pvlab's workload on the spin lock of the running Linux: the loop of pvlab's own guest around spin_lock(),
 * a kernel thread bound to each vCPU, so that Linux stands in the table as one lock among others.
 *
 * Owns the whole life of a measured Linux domain: reads the workload's line, tells pvlab of its state through
 * xenstore, waits for the start line, runs, and writes the same report that the guest writes. It changes
 * nothing of the kernel, and while the window runs it touches neither console nor xenstore.
 *
 * Loading it runs the workload; insmod returns when the report is written. With `stay=1` it waits then for the
 * host's next workload, in the node `next`, so that a kernel boots once for many of them.
 */
#include <linux/completion.h>
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/utsname.h>
#include <linux/version.h>
#include <linux/vmalloc.h>
#include <asm/msr.h>
#include <asm/xen/hypercall.h>
#include <asm/xen/hypervisor.h>
#include <xen/interface/vcpu.h>
#include <xen/xen.h>
#include <xen/xen-ops.h>
#include <xen/xenbus.h>

static char *line = "";
module_param(line, charp, 0);
MODULE_PARM_DESC(line, "the workload: key=value words with commas between them");

#define SCHEMA 1			/* of the report: results/src/lib.rs */
#define MOST_VCPUS 64
#define MOST_LOCKS 64
#define PIECE 1500			/* bytes of the report in one node */
#define SUB_BITS 4			/* the histogram's buckets: results/src/histogram.rs */
#define BUCKETS ((64 - SUB_BITS + 1) << SUB_BITS)
#define REPORT_BYTES (256 << 10)

/* Xen's account of a vCPU, in the order of its states. */
enum { RUNNING, RUNNABLE, BLOCKED };

struct guarded {
	spinlock_t lock;
	u64 counter ____cacheline_aligned;
} ____cacheline_aligned;

struct stream { u64 s[4]; };

struct share {
	struct task_struct *thread;
	struct stream random;
	u64 acquisitions, late, longest, last, state[4];
	u32 histogram[BUCKETS];
	/* The handler of its timer, where that takes the lock too, and what it has seen. */
	struct hrtimer timer;
	struct stream delays;
	u64 handled, longest_handled;
	u32 handled_histogram[BUCKETS];
	/* Xen writes this vCPU's clock here; in the direct map, where it is mapped at any time. */
	struct pvclock_vcpu_time_info *clock;
	int number, error;
} ____cacheline_aligned;

/* What is to be done; times in nanoseconds until they are turns. */
struct plan {
	char policy[32];
	int hog, spread;
	u32 vcpus, locks, jitter;
	u64 critical_ns, outside_ns, critical_turns, outside_turns, timer_ns;
	bool critical_in_turns, outside_in_turns, wait, stay;
	u64 acquisitions, duration_ns, seed, spin_turns;
};

static const struct plan defaults = {
	.vcpus = 0, .locks = 0, .jitter = 50, .critical_ns = 2000, .outside_ns = 4000, .seed = 1,
};

static struct plan plan;

static struct share *shares[MOST_VCPUS];
static struct guarded *locks;
static u64 start_at, end_at;		/* in Xen's system time */
static u64 turns_per_ms, loop_ns;
static DECLARE_COMPLETION(arrived);
static DECLARE_COMPLETION(finished);
static DECLARE_COMPLETION(changed);
static bool released;

/* Time of a vCPU: Xen public/xen.h, "struct vcpu_time_info". */
static __always_inline u64 now(const struct pvclock_vcpu_time_info *t)
{
	for (;;) {
		u32 version = READ_ONCE(t->version);
		u64 ticks, ns;
		s8 shift;

		rmb();
		ticks = rdtsc() - t->tsc_timestamp;
		shift = t->tsc_shift;
		ticks = shift < 0 ? ticks >> -shift : ticks << shift;
		ns = t->system_time + mul_u64_u32_shr(ticks, t->tsc_to_system_mul, 32);
		rmb();
		if (!(version & 1) && READ_ONCE(t->version) == version)
			return ns;
		cpu_relax();
	}
}

/* Two instructions a turn, as work() of the guest. */
static __always_inline void work(u64 turns)
{
	if (turns)
		asm volatile("1: dec %0\n\tjnz 1b" : "+r" (turns) : : "cc");
}

/* xoshiro256++ by D. Blackman and S. Vigna (public domain), seeded by splitmix64: the guest's numbers. */
static u64 next(struct stream *r)
{
	u64 *s = r->s, t = s[1] << 17, x = rol64(s[0] + s[3], 23) + s[0];

	s[2] ^= s[0]; s[3] ^= s[1]; s[1] ^= s[2]; s[0] ^= s[3]; s[2] ^= t; s[3] = rol64(s[3], 45);
	return x;
}

static void jump(struct stream *r)
{
	static const u64 by[4] = {
		0x180ec6d33cfd0abaULL, 0xd5a61266f0c9392cULL, 0xa9582618e03fc9aaULL, 0x39abdc4529b1661cULL
	};
	struct stream to = { };
	int i, bit, k;

	for (i = 0; i < 4; i++)
		for (bit = 0; bit < 64; bit++) {
			if (by[i] >> bit & 1)
				for (k = 0; k < 4; k++)
					to.s[k] ^= r->s[k];
			next(r);
		}
	*r = to;
}

static void seed(struct stream *r, u64 seed, u32 stream)
{
	int i;

	for (i = 0; i < 4; i++) {
		u64 z = seed += 0x9e3779b97f4a7c15ULL;

		z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
		z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
		r->s[i] = z ^ (z >> 31);
	}
	while (stream--)
		jump(r);
}

static __always_inline u64 below(struct stream *r, u64 n)
{
	return (u64)(((unsigned __int128)next(r) * n) >> 64);
}

static __always_inline u64 around(struct stream *r, u64 mean, u32 percent)
{
	u64 reach = (u64)((unsigned __int128)mean * percent / 100);

	return mean - reach + below(r, 2 * reach + 1);
}

static __always_inline int bucket_of(u64 value)
{
	int shift;

	if (value < 1 << SUB_BITS)
		return value;
	shift = ilog2(value) - SUB_BITS;
	return (shift << SUB_BITS) + (value >> shift);
}

static u64 lower_bound(int bucket)
{
	int shift;

	if (bucket < 2 << SUB_BITS)
		return bucket;
	shift = (bucket >> SUB_BITS) - 1;
	return (u64)(bucket - (shift << SUB_BITS)) << shift;
}

static void take_account(struct share *share, int sign)
{
	struct vcpu_runstate_info info = { };
	int i;

	share->error |= HYPERVISOR_vcpu_op(VCPUOP_get_runstate_info, xen_vcpu_nr(share->number), &info);
	for (i = 0; i < 4; i++)
		share->state[i] += sign * info.time[i];
}

/*
 * The guest's loop (lab-guest, workload.rs), with spin_lock; where handlers take the lock too (`irqs`), with
 * interrupts off.
 */
static __always_inline void contend(struct share *share, struct guarded *on, u32 n, u64 most, u64 end,
				    u64 critical, u64 outside, const bool irqs)
{
	while (share->acquisitions < most) {
		unsigned long flags = 0;
		struct guarded *g;
		u64 asked, owned, counter, wait;

		work(around(&share->random, outside, plan.jitter));
		g = n == 1 ? on : &on[below(&share->random, n)];
		if (irqs)
			local_irq_save(flags);
		asked = now(share->clock);
		if (asked >= end) {
			if (irqs)
				local_irq_restore(flags);
			break;
		}
		spin_lock(&g->lock);
		owned = now(share->clock);
		counter = READ_ONCE(g->counter);
		work(critical);
		WRITE_ONCE(g->counter, counter + 1);
		spin_unlock(&g->lock);
		if (irqs)
			local_irq_restore(flags);
		wait = owned > asked ? owned - asked : 0;
		share->histogram[bucket_of(wait)]++;
		if (wait > share->longest)
			share->longest = wait;
		share->acquisitions++;
		share->late += owned >= end;
	}
}

/* What the timer of a vCPU interrupts it for: the lock that its thread takes, for as long as that does. */
static enum hrtimer_restart handle(struct hrtimer *timer)
{
	struct share *share = container_of(timer, struct share, timer);
	u64 asked = now(share->clock), owned, counter, wait;

	spin_lock(&locks->lock);
	owned = now(share->clock);
	counter = READ_ONCE(locks->counter);
	work(plan.critical_turns);
	WRITE_ONCE(locks->counter, counter + 1);
	spin_unlock(&locks->lock);
	wait = owned > asked ? owned - asked : 0;
	share->handled_histogram[bucket_of(wait)]++;
	share->longest_handled = max(share->longest_handled, wait);
	share->handled++;
	hrtimer_set_expires(timer, ktime_add_ns(ktime_get(), below(&share->delays, plan.timer_ns)));
	return HRTIMER_RESTART;
}

/* On the timer's own vCPU. */
static void start_timer(struct share *share)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&share->timer, handle, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
#else
	hrtimer_init(&share->timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	share->timer.function = handle;
#endif
	hrtimer_start(&share->timer, ns_to_ktime(below(&share->delays, plan.timer_ns)),
		      HRTIMER_MODE_REL_PINNED_HARD);
}

/* The neighbour that only computes: a unit of work a turn, no lock. */
static __always_inline void compute(struct share *share, struct guarded *mine, u64 end)
{
	while (now(share->clock) < end) {
		work(plan.critical_turns);
		mine->counter++;
		share->acquisitions++;
	}
}

static int perform(void *data)
{
	struct share *share = data;
	struct vcpu_register_time_memory_area area = { .addr.v = share->clock };
	ktime_t at;
	u64 ns;

	share->error = HYPERVISOR_vcpu_op(VCPUOP_register_vcpu_time_memory_area, xen_vcpu_nr(share->number), &area);
	complete(&arrived);
	for (;;) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		if (smp_load_acquire(&released))	/* pairs with the release in run() */
			break;
		schedule();
	}
	ns = now(share->clock);
	at = ktime_add_ns(ktime_get(), start_at > ns ? start_at - ns : 0);
	schedule_hrtimeout(&at, HRTIMER_MODE_ABS);
	take_account(share, -1);
	if (plan.hog)
		compute(share, &locks[share->number], end_at);
	else if (plan.timer_ns) {
		start_timer(share);
		contend(share, locks, plan.locks, plan.acquisitions ?: U64_MAX, end_at, plan.critical_turns,
			plan.outside_turns, true);
		hrtimer_cancel(&share->timer);
	} else
		contend(share, locks, plan.locks, plan.acquisitions ?: U64_MAX, end_at, plan.critical_turns,
			plan.outside_turns, false);
	share->last = now(share->clock);
	take_account(share, 1);
	complete(&finished);
	while (!kthread_should_stop()) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop())
			schedule();
		__set_current_state(TASK_RUNNING);
	}
	return 0;
}

/*
 * The fastest of many tries, at least 200, until three tries agree with it within a percent: a disturbance only makes
 * a measurement longer, and a speed that was seen once may be an accident. Where time counts instructions, tries one
 * after the other can be disturbed by the same amount: they begin at different places of whatever comes again and again.
 */
static u64 fastest(struct share *share, u64 (*measure)(struct share *, u64), u64 n)
{
	u64 best = U64_MAX;
	int tries, agree = 0;

	for (tries = 1; tries <= 5000 && (tries <= 200 || agree < 3); tries++) {
		unsigned long flags;
		u64 ns;

		local_irq_save(flags);
		work(tries * 37 % 251);
		ns = measure(share, n);
		local_irq_restore(flags);
		if (ns < best) {
			agree = ns + ns / 100 >= best ? agree + 1 : 0;
			best = ns;
		} else if (ns <= best + best / 100) {
			agree++;
		}
	}
	return agree < 3 ? 0 : max(best, 1ULL);
}

static u64 time_of_work(struct share *share, u64 turns)
{
	u64 begin = now(share->clock);

	work(turns);
	return now(share->clock) - begin;
}

static u64 time_of_loop(struct share *share, u64 n)
{
	u64 begin = now(share->clock);

	share->acquisitions = 0;
	contend(share, &locks[MOST_LOCKS], 1, n, U64_MAX, 0, 0, false);
	return now(share->clock) - begin;
}

/* On this vCPU alone, before any thread runs. */
static const char *calibrate(void)
{
	struct share *share = shares[0];
	struct vcpu_register_time_memory_area area = { .addr.v = share->clock };
	/* Short enough for a pCPU's turn under a deterministic emulator, beside two others: a third of 100 us. */
	const u64 turns = 500, loops = 5;
	u64 ns;

	if (HYPERVISOR_vcpu_op(VCPUOP_register_vcpu_time_memory_area, xen_vcpu_nr(0), &area))
		return "Xen gives this domain no second clock (VCPUOP_register_vcpu_time_memory_area)";
	ns = fastest(share, time_of_work, turns);
	if (!ns)
		return "no two measurements of the work loop agree within 1 %: this vCPU is disturbed";
	/* What reading the clock costs is no work. */
	ns -= min(ns - 1, fastest(share, time_of_work, 0));
	turns_per_ms = div64_u64(turns * 1000000, ns);
	ns = fastest(share, time_of_loop, loops);
	if (!ns)
		return "no two measurements of the empty loop agree within 1 %: this vCPU is disturbed";
	ns -= min(ns - 1, fastest(share, time_of_loop, 0));
	loop_ns = div64_u64(ns, loops);
	if (!plan.critical_in_turns)
		plan.critical_turns = div64_u64(plan.critical_ns * turns_per_ms + 500000, 1000000);
	if (!plan.outside_in_turns)
		plan.outside_turns = div64_u64(plan.outside_ns * turns_per_ms + 500000, 1000000);
	/* What calibrating has left. */
	share->acquisitions = share->late = share->longest = 0;
	memset(share->histogram, 0, sizeof(share->histogram));
	seed(&share->random, plan.seed, 0);
	return NULL;
}

static int number(const char *text, const char *unit, u64 *value)
{
	char digits[24];
	size_t length = strspn(text, "0123456789");

	if (!length || length >= sizeof(digits) || strcmp(text + length, unit))
		return -EINVAL;
	memcpy(digits, text, length);
	digits[length] = 0;
	return kstrtou64(digits, 10, value);
}

static int time_or_turns(const char *text, u64 *ns, u64 *turns, bool *in_turns)
{
	static const struct { const char *unit; u64 ns; } units[] = {
		{ "ns", 1 }, { "us", 1000 }, { "ms", 1000000 }, { "s", 1000000000 },
	};
	int i;

	if (turns && !number(text, "turns", turns)) {
		*in_turns = true;
		return 0;
	}
	for (i = 0; i < ARRAY_SIZE(units); i++)
		if (!number(text, units[i].unit, ns)) {
			*ns *= units[i].ns;
			return 0;
		}
	return -EINVAL;
}

/* Reads one word; keys that mean nothing to Linux (its own budget, the ABI of events) are taken and left. */
static int take(char *key, char *value)
{
	u64 n = 0;
	int error = 0;

	if (!strcmp(key, "workload")) {
		plan.hog = !strcmp(value, "hog");
		plan.spread = !strcmp(value, "spread");
		return plan.hog || plan.spread || !strcmp(value, "handoff") ? 0 : -EINVAL;
	}
	if (!strcmp(key, "policy"))
		return strscpy(plan.policy, value, sizeof(plan.policy)) < 0 ? -EINVAL : 0;
	if (!strcmp(key, "critical"))
		return time_or_turns(value, &plan.critical_ns, &plan.critical_turns, &plan.critical_in_turns);
	if (!strcmp(key, "outside"))
		return time_or_turns(value, &plan.outside_ns, &plan.outside_turns, &plan.outside_in_turns);
	if (!strcmp(key, "duration"))
		return time_or_turns(value, &plan.duration_ns, NULL, NULL);
	if (!strcmp(key, "timer"))
		return time_or_turns(value, &plan.timer_ns, NULL, NULL);
	if (!strcmp(key, "stay")) {
		plan.stay = !strcmp(value, "1");
		return 0;
	}
	if (!strcmp(key, "start")) {
		plan.wait = !strcmp(value, "wait");
		return 0;
	}
	if (!strcmp(key, "spin")) {
		/* Set in the kernel's code before it booted; a time is another lock's. */
		if (number(value, "turns", &plan.spin_turns))
			plan.spin_turns = 0;
		return 0;
	}
	if (!strcmp(key, "deadline") || !strcmp(key, "events") || !strcmp(key, "trace"))
		return 0;
	if (!strcmp(key, "fault") || !strcmp(key, "control"))
		return strcmp(value, "off") ? -EINVAL : 0;
	error = number(value, "", &n);
	if (!strcmp(key, "vcpus"))
		plan.vcpus = n;
	else if (!strcmp(key, "locks"))
		plan.locks = n;
	else if (!strcmp(key, "jitter"))
		plan.jitter = n;
	else if (!strcmp(key, "acquisitions"))
		plan.acquisitions = n;
	else if (!strcmp(key, "seed"))
		plan.seed = n;
	else
		return -ENOENT;
	return error;
}

static const char *read_line(void)
{
	static char why[160];
	char *rest = line, *word;

	plan = defaults;
	while ((word = strsep(&rest, ", "))) {
		char *key = strsep(&word, "=");
		int error;

		if (!*key)
			continue;
		error = word ? take(key, word) : -EINVAL;
		if (error) {
			snprintf(why, sizeof(why), error == -ENOENT ?
				 "policy linux knows no parameter %.40s" : "policy linux does not take this value of %.40s", key);
			return why;
		}
	}
	if (!plan.vcpus)
		plan.vcpus = num_online_cpus();
	if (plan.vcpus > num_online_cpus() || plan.vcpus > MOST_VCPUS)
		return "policy linux: vcpus is larger than the domain has, or than 64";
	if (!plan.locks || !plan.spread)
		plan.locks = plan.spread ? max(plan.vcpus / 2, 1U) : 1;
	if (plan.locks > MOST_LOCKS || plan.jitter > 100)
		return "policy linux: locks is at most 64, jitter at most 100";
	if (!plan.acquisitions == !plan.duration_ns || (plan.hog && !plan.duration_ns))
		return "policy linux: give acquisitions or duration; workload=hog takes a duration";
	if (plan.timer_ns && (plan.hog || plan.spread))
		return "policy linux: timer= is for workload=handoff alone";
	return NULL;
}

static void tell(const char *node, const char *value)
{
	xenbus_write(XBT_NIL, "data/pvlab", node, value);
}

static void on_change(struct xenbus_watch *watch, const char *path, const char *token)
{
	complete(&changed);
}

/* The value of a node of the host's, once it is there; its watch fires at once, and then with every change. */
static char *wait_for(const char *node)
{
	for (;;) {
		char *word;

		wait_for_completion(&changed);
		word = xenbus_read(XBT_NIL, "data/pvlab", node, NULL);
		if (!IS_ERR(word))
			return word;
	}
}

/* Takes the host's next workload, and what the last one has left in xenstore with it. */
static const char *wait_for_next(void)
{
	static const char *const old[] = { "next", "go", "clock", "result" };
	static struct xenbus_watch watch = { .node = "data/pvlab/next", .callback = on_change };
	int i;

	reinit_completion(&changed);
	if (register_xenbus_watch(&watch))
		return "xenstore takes no watch";
	line = wait_for("next");
	unregister_xenbus_watch(&watch);
	for (i = 0; i < ARRAY_SIZE(old); i++)
		xenbus_rm(XBT_NIL, "data/pvlab", old[i]);
	return NULL;
}

/* The start line had passed when it came: the host may try again, with a later one. */
static bool late;

/*
 * The start line. The host asks one domain for Xen's time (`clock`), and then gives all of them the same moment.
 * `1`: as soon as possible.
 */
static const char *wait_for_go(void)
{
	static struct xenbus_watch watch = { .node = "data/pvlab/go", .callback = on_change };
	const char *why = NULL;

	reinit_completion(&changed);
	if (register_xenbus_watch(&watch))
		return "xenstore takes no watch";
	for (;;) {
		char *word = wait_for("go"), text[24];
		u64 at;

		if (!strcmp(word, "clock")) {
			snprintf(text, sizeof(text), "%llu", now(shares[0]->clock));
			tell("clock", text);
		} else if (!kstrtou64(word, 10, &at)) {
			start_at = at == 1 ? now(shares[0]->clock) + 40000000 : at;
			late = now(shares[0]->clock) >= start_at;
			if (late)
				why = "the start line was in the past when it came: the host is too slow for it";
			kfree(word);
			break;
		}
		kfree(word);
	}
	unregister_xenbus_watch(&watch);
	return why;
}

struct text { char *at; size_t used; };

static __printf(2, 3) void say(struct text *text, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	text->used += vscnprintf(text->at + text->used, REPORT_BYTES - text->used, format, arguments);
	va_end(arguments);
}

/* The lower bound of the bucket in which the value of this rank among the waits of all handlers lies. */
static u64 handled_quantile(u64 rank)
{
	u64 seen = 0;
	int i, b;

	for (b = 0; b < BUCKETS; b++) {
		for (i = 0; i < plan.vcpus; i++)
			seen += shares[i]->handled_histogram[b];
		if (seen > rank)
			return lower_bound(b);
	}
	return 0;
}

static void say_handled(struct text *text, u64 handled, u64 longest)
{
	say(text, "\"interrupt_acquisitions\":%llu,\"interrupt_wait_p50_ns\":%llu,\"interrupt_wait_p99_ns\":%llu,"
	    "\"interrupt_wait_p999_ns\":%llu,\"interrupt_wait_max_ns\":%llu", handled,
	    handled_quantile(handled / 2), handled_quantile(div64_u64(handled * 99, 100)),
	    handled_quantile(div64_u64(handled * 999, 1000)), longest);
}

static const char *report(const char *failure)
{
	struct text text = { .at = vzalloc(REPORT_BYTES) };
	u64 counter = 0, acquisitions = 0, elapsed = 0, longest = 0, handled = 0, longest_handled = 0;
	unsigned int domid = 0;
	char piece[PIECE + 1], name[32];
	size_t at = 0;
	bool first = true;
	int i, b, n = 0;

	if (!text.at)
		return "no memory for the report";
	xenbus_scanf(XBT_NIL, "domid", "", "%u", &domid);
	for (i = 0; i < max_t(u32, MOST_LOCKS, plan.vcpus); i++)
		counter += locks[i].counter;
	for (i = 0; i < plan.vcpus; i++) {
		acquisitions += shares[i]->acquisitions;
		elapsed = max(elapsed, shares[i]->last - start_at);
		longest = max(longest, shares[i]->longest);
		handled += shares[i]->handled;
		longest_handled = max(longest_handled, shares[i]->longest_handled);
		if (shares[i]->error && !failure)
			failure = "Xen refused a vCPU's clock or account";
	}
	/* Handlers are in the section as the threads are; one that was in it beside another is missing here. */
	counter -= min(counter, handled);
	say(&text, "{\"schema\":%d,\"domid\":%u,\"domain_type\":\"%s\",\"image\":\"Linux %s\",", SCHEMA, domid,
	    xen_pv_domain() ? "pv" : "pvh", utsname()->release);
	say(&text, "\"parameters\":{\"workload\":\"%s\",\"policy\":\"%s\",\"vcpus\":%u,\"locks\":%u,",
	    plan.hog ? "hog" : plan.spread ? "spread" : "handoff", plan.policy, plan.vcpus, plan.locks);
	say(&text, "\"critical_ns\":%llu,\"outside_ns\":%llu,\"jitter_percent\":%u,\"spin_ns\":0,",
	    plan.critical_in_turns ? 0 : plan.critical_ns, plan.outside_in_turns ? 0 : plan.outside_ns, plan.jitter);
	say(&text, "\"acquisitions\":%llu,\"duration_ns\":%llu,\"seed\":%llu,\"markers\":false},", plan.acquisitions,
	    plan.duration_ns, plan.seed);
	if (counter != acquisitions)
		say(&text, "\"outcome\":{\"kind\":\"failure\",\"reason\":\"mutual exclusion is broken: %llu acquisitions raised "
		    "the counter to %llu\"},", acquisitions, counter);
	else if (failure)
		say(&text, "\"outcome\":{\"kind\":\"error\",\"reason\":\"%s\"},", failure);
	else
		say(&text, "\"outcome\":{\"kind\":\"success\"},");
	say(&text, "\"calibration\":{\"work_turns_per_ms\":%llu,\"spin_turns_per_ms\":0,\"spin_turns\":%llu,"
	    "\"critical_turns\":%llu,\"outside_turns\":%llu,\"loop_ns\":%llu},", turns_per_ms, plan.spin_turns, plan.critical_turns,
	    plan.outside_turns, loop_ns);
	say(&text, "\"window\":{\"start_ns\":%llu,\"end_ns\":%llu},", start_at, end_at == U64_MAX ? 0 : end_at);
	say(&text, "\"elapsed_ns\":%llu,\"counter\":%llu,\"acquisitions\":%llu,\"vcpus\":[", elapsed, counter, acquisitions);
	for (i = 0; i < plan.vcpus; i++) {
		struct share *s = shares[i];

		say(&text, "%s{\"id\":%d,\"acquisitions\":%llu,\"late_acquisitions\":%llu,\"blocked_acquisitions\":0,"
		    "\"waits\":0,\"longest_wait_ns\":%llu,\"stolen_ns\":%llu,\"running_ns\":%llu,\"blocked_ns\":%llu}",
		    i ? "," : "", i, s->acquisitions, s->late, s->longest, s->state[RUNNABLE], s->state[RUNNING],
		    s->state[BLOCKED]);
	}
	say(&text, "],\"latency\":{\"max\":%llu,\"buckets\":[", longest);
	for (b = 0; b < BUCKETS; b++) {
		u64 count = 0;

		for (i = 0; i < plan.vcpus; i++)
			count += shares[i]->histogram[b];
		if (count) {
			say(&text, "%s[%llu,%llu]", first ? "" : ",", lower_bound(b), count);
			first = false;
		}
	}
	say(&text, "]},\"counters\":{");
	if (plan.timer_ns)
		say_handled(&text, handled, longest_handled);
	say(&text, "}}");
	while (at < text.used) {
		size_t length = min_t(size_t, PIECE, text.used - at);

		memcpy(piece, text.at + at, length);
		piece[length] = 0;
		snprintf(name, sizeof(name), "result/%d", n++);
		tell(name, piece);
		at += length;
	}
	snprintf(name, sizeof(name), "%d", n);
	tell("result/count", name);
	vfree(text.at);
	return counter == acquisitions ? failure : "mutual exclusion is broken";
}

/* Makes what a run needs, or has the run before this one leave it as new. */
static const char *prepare(void)
{
	int i;

	if (!locks)
		locks = vmalloc((MOST_LOCKS + 1) * sizeof(*locks));
	if (!locks)
		return "no memory";
	memset(locks, 0, (MOST_LOCKS + 1) * sizeof(*locks));
	for (i = 0; i <= MOST_LOCKS; i++)
		spin_lock_init(&locks[i].lock);
	for (i = 0; i < plan.vcpus; i++) {
		struct share *share = shares[i] = shares[i] ?: vzalloc(sizeof(*share));
		struct pvclock_vcpu_time_info *clock;

		if (!share)
			return "no memory";
		/* Xen writes there until the domain ends. */
		clock = share->clock ?: kzalloc(sizeof(*clock), GFP_KERNEL);
		if (!clock)
			return "no memory";
		memset(share, 0, sizeof(*share));
		share->number = i;
		share->clock = clock;
		seed(&share->random, plan.seed, i);
		/* Behind those of the threads, as the guest's. */
		seed(&share->delays, plan.seed, plan.vcpus + i);
	}
	released = false;
	return NULL;
}

static const char *run(void)
{
	const char *why;
	int i;

	why = read_line();
	if (!why)
		why = prepare();
	if (!why) {
		/* insmod may move; it must not, while it calibrates. */
		struct cpumask before;

		cpumask_copy(&before, current->cpus_ptr);
		set_cpus_allowed_ptr(current, cpumask_of(0));
		why = calibrate();
		set_cpus_allowed_ptr(current, &before);
	}
	if (why)
		return why;
	for (i = 0; i < plan.vcpus; i++) {
		shares[i]->thread = kthread_create(perform, shares[i], "pvlab/%d", i);
		if (IS_ERR(shares[i]->thread))
			return "a kernel thread could not be made";
		kthread_bind(shares[i]->thread, i);
		wake_up_process(shares[i]->thread);
	}
	for (i = 0; i < plan.vcpus; i++)
		wait_for_completion(&arrived);
	tell("state", "ready");
	if (plan.wait)
		why = wait_for_go();
	if (why)
		return why;
	if (!plan.wait)
		start_at = now(shares[0]->clock) + 40000000;
	end_at = plan.duration_ns ? start_at + plan.duration_ns : U64_MAX;
	tell("state", "running");
	smp_store_release(&released, true);	/* pairs with the acquire in perform() */
	for (i = 0; i < plan.vcpus; i++)
		wake_up_process(shares[i]->thread);
	for (i = 0; i < plan.vcpus; i++)
		wait_for_completion(&finished);
	why = report(why);
	for (i = 0; i < plan.vcpus; i++)
		kthread_stop(shares[i]->thread);
	return why;
}

static int __init pvlab_init(void)
{
	const char *why;

	do {
		tell("state", "booting");
		why = run();
		if (!why) {
			tell("state", "done");
			why = plan.stay ? wait_for_next() : NULL;
		}
	} while (plan.stay && !why);
	if (why) {
		pr_emerg("pvlab: guest error: %s\n", why);
		tell("error", why);
		tell("state", late ? "late" : "failed");
	}
	/* The domain ends now: nothing is given back, and Xen may still write the clocks. */
	return why ? -EINVAL : 0;
}

module_init(pvlab_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("pvlab's workload on Linux' own spin lock");
