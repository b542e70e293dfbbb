/* Hypercalls, the shared page, the clock, the console. */
#include "xen.h"

#include <stddef.h>

#include "layout.h"

/* Hypercalls: public/xen.h, memory.h, vcpu.h, sched.h, event_channel.h, hvm/hvm_op.h. */
enum {
    MEMORY_OP = 12,
    VCPU_OP = 24,
    SCHED_OP = 29,
    EVENT_CHANNEL_OP = 32,
    HVM_OP = 34,
};
enum { XENMEM_ADD_TO_PHYSMAP = 7 };
enum { VCPUOP_INITIALISE = 0, VCPUOP_UP = 1, VCPUOP_DOWN = 2, VCPUOP_IS_UP = 3 };
enum { SCHEDOP_YIELD = 0, SCHEDOP_SHUTDOWN = 2 };
enum { EVTCHNOP_SEND = 4 };
enum { HVMOP_GET_PARAM = 1 };
enum { HVM_PARAM_CONSOLE_PFN = 17, HVM_PARAM_CONSOLE_EVTCHN = 18 };
enum { DOMID_SELF = 0x7ff0 };

uint8_t shared_info[4096] __attribute__((aligned(4096)));

extern uint8_t hypercall_page[128][32];

/* Number by the entry of the page, arguments in rdi, rsi, rdx: public/arch-x86/xen-x86_64.h. */
static long hypercall3(uint32_t number, uint64_t first, uint64_t second, uint64_t third)
{
    long result;
    register uint64_t r10 __asm__("r10") = 0;
    register uint64_t r8 __asm__("r8") = 0;

    __asm__ volatile("call *%[entry]"
                     : "=a"(result), "+D"(first), "+S"(second), "+d"(third), "+r"(r10), "+r"(r8)
                     : [entry] "r"(hypercall_page[number])
                     : "rcx", "r11", "memory");
    return result;
}

long xen_hypercall(uint32_t number, uint32_t command, void *argument)
{
    return hypercall3(number, command, (uint64_t)argument, 0);
}

static void cpuid(uint32_t leaf, uint32_t out[4])
{
    __asm__ volatile("cpuid"
                     : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                     : "a"(leaf), "c"(0));
}

/* Whether Xen's leaves begin here: "XenVMMXenVMM" (public/arch-x86/cpuid.h). */
static bool is_xen(uint32_t leaf)
{
    uint32_t found[4];

    cpuid(leaf, found);
    return found[1] == 0x566e6558 && found[2] == 0x65584d4d && found[3] == 0x4d4d566e;
}

static void wrmsr(uint32_t register_, uint64_t value)
{
    __asm__ volatile("wrmsr" ::"c"(register_), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
}

/* --- Which vCPU is this: a word of its own, to which its GS base points. --- */

static uint64_t numbers[MAX_VCPUS];

uint32_t current_vcpu(void)
{
    uint64_t number;

    __asm__("movq %%gs:0, %0" : "=r"(number));
    return (uint32_t)number;
}

/* Before anything else on a vCPU. */
static void identify(uint32_t vcpu)
{
    numbers[vcpu] = vcpu;
    wrmsr(0xc0000101, (uint64_t)&numbers[vcpu]); /* GS base */
}

/* --- The console: public/io/console.h. --- */

struct ring {
    uint8_t in[1024], out[2048];
    uint32_t in_cons, in_prod, out_cons, out_prod;
};

static struct ring *ring;
static uint32_t console_port;

static uint64_t hvm_param(uint32_t index)
{
    struct { uint16_t domid; uint32_t index; uint64_t value; } argument = { DOMID_SELF, index, 0 };

    return xen_hypercall(HVM_OP, HVMOP_GET_PARAM, &argument) == 0 ? argument.value : 0;
}

/* Waits until at most `most` bytes are unread. */
static void wait_for_reader(uint32_t most)
{
    /* Acquire: what the daemon has read may be written over. */
    while (ring->out_prod - __atomic_load_n(&ring->out_cons, __ATOMIC_ACQUIRE) > most)
        xen_hypercall(SCHED_OP, SCHEDOP_YIELD, NULL);
}

void print(const char *text)
{
    if (ring == NULL)
        return;
    for (; *text != 0; text++) {
        wait_for_reader(sizeof ring->out - 1);
        ring->out[ring->out_prod % sizeof ring->out] = (uint8_t)*text;
        /* Release: whoever sees the new index sees the byte. */
        __atomic_store_n(&ring->out_prod, ring->out_prod + 1, __ATOMIC_RELEASE);
    }
    xen_hypercall(EVENT_CHANNEL_OP, EVTCHNOP_SEND, &console_port);
}

void print_number(uint64_t number)
{
    char digits[21], *first = digits + sizeof digits - 1;

    *first = 0;
    do
        *--first = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    print(first);
}

/* --- vCPUs and the domain. --- */

/* public/hvm/hvm_vcpu.h, 64-bit form; the 32-bit form, which shares the space, is longer. */
struct vcpu_hvm_context {
    uint32_t mode, pad;
    uint64_t rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, rip, rflags, cr0, cr3, cr4, efer;
    uint64_t rest[8];
};

extern uint64_t page_tables[512];
extern uint8_t stacks[MAX_VCPUS][STACK_SIZE];
void vcpu_entry(void);

bool xen_has_vcpu(uint32_t vcpu)
{
    return hypercall3(VCPU_OP, VCPUOP_IS_UP, vcpu, 0) >= 0;
}

long xen_start_vcpu(uint32_t vcpu)
{
    static struct vcpu_hvm_context context;
    long failed;

    context = (struct vcpu_hvm_context){
        .mode = 1, /* 64-bit */
        .rip = (uint64_t)vcpu_entry,
        .rsp = (uint64_t)stacks[vcpu + 1],
        .rdi = vcpu,
        .rflags = 2,
        .cr0 = CR0,
        .cr3 = (uint64_t)page_tables,
        .cr4 = CR4,
        .efer = EFER_LME | EFER_LMA,
    };
    failed = hypercall3(VCPU_OP, VCPUOP_INITIALISE, vcpu, (uint64_t)&context);
    return failed != 0 ? failed : hypercall3(VCPU_OP, VCPUOP_UP, vcpu, 0);
}

void xen_vcpu_down(uint32_t vcpu)
{
    for (;;)
        hypercall3(VCPU_OP, VCPUOP_DOWN, vcpu, 0);
}

void xen_shutdown(uint32_t reason)
{
    if (ring != NULL)
        wait_for_reader(0);
    for (;;)
        xen_hypercall(SCHED_OP, SCHEDOP_SHUTDOWN, &reason);
}

/* --- The shared page and its clock: public/xen.h. --- */

struct vcpu_time_info {
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad1[2];
};

/* In the shared page: 32 of them. */
struct vcpu_info {
    uint8_t events[32];
    struct vcpu_time_info time;
};

/* Where the page has the masks of its ports: after the vCPUs and the pending bits. */
enum { MASKS = 32 * sizeof(struct vcpu_info) + 512 };

_Static_assert(sizeof(struct vcpu_info) == 64, "public/xen.h");

uint64_t xen_system_time(void)
{
    const volatile struct vcpu_time_info *time =
        &((struct vcpu_info *)shared_info)[current_vcpu()].time;

    for (;;) {
        /* Xen writes it on this pCPU only, while this vCPU does not run. */
        uint32_t version = time->version, low, high;
        uint64_t then = time->tsc_timestamp, system_time = time->system_time, ticks;
        uint32_t factor = time->tsc_to_system_mul;
        int shift = time->tsc_shift;

        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
        if ((version & 1) != 0 || version != time->version)
            continue;
        ticks = ((uint64_t)high << 32 | low) - then;
        ticks = shift < 0 ? ticks >> -shift : ticks << shift;
        return system_time + (uint64_t)((unsigned __int128)ticks * factor >> 32);
    }
}

void xen_init(void)
{
    struct { uint16_t domid, size; uint32_t space; uint64_t index, frame; } physmap = {
        DOMID_SELF, 0, 0 /* the shared page */, 0, (uint64_t)shared_info / 4096
    };
    uint32_t base = 0x40000000, found[4];

    while (!is_xen(base) && base < 0x40010000)
        base += 0x100;
    cpuid(base + 2, found);
    wrmsr(found[1], (uint64_t)hypercall_page);

    if (xen_hypercall(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &physmap) != 0)
        xen_shutdown(SHUTDOWN_CRASH);
    /* All ports start unmasked. */
    for (unsigned byte = 0; byte < 512; byte++)
        shared_info[MASKS + byte] = 0xff;
    ring = (struct ring *)(hvm_param(HVM_PARAM_CONSOLE_PFN) * 4096);
    console_port = (uint32_t)hvm_param(HVM_PARAM_CONSOLE_EVTCHN);
}

/* --- Where every vCPU comes in. --- */

void boot_vcpu(void);
void other_vcpu(void);

_Noreturn void start(uint32_t vcpu)
{
    identify(vcpu);
    if (vcpu == 0)
        boot_vcpu();
    other_vcpu();
    xen_vcpu_down(vcpu);
}
