/*
 * What this kernel asks of Xen. Numbers and structures are those of Xen's public headers, named at each.
 */
#ifndef XEN_H
#define XEN_H

#include <stdbool.h>
#include <stdint.h>

/* Ends of a domain: public/sched.h. */
enum { SHUTDOWN_POWEROFF = 0, SHUTDOWN_CRASH = 3 };

/* Makes hypercalls work, maps the shared page and masks its ports, finds the console. On vCPU 0, first. */
void xen_init(void);

/* The page Xen shares with the domain. */
extern uint8_t shared_info[4096];

/* A hypercall of two arguments: what pvlock asks for. */
long xen_hypercall(uint32_t number, uint32_t command, void *argument);

/* Nanoseconds since Xen booted, by this vCPU's clock. */
uint64_t xen_system_time(void);

/* Whether the domain has a vCPU of that number. */
bool xen_has_vcpu(uint32_t vcpu);

/* Starts a vCPU in start(). 0, or a negative error number. */
long xen_start_vcpu(uint32_t vcpu);

/* Takes the vCPU this runs on down, for good. */
_Noreturn void xen_vcpu_down(uint32_t vcpu);

/* Ends the domain when everything printed has been read. */
_Noreturn void xen_shutdown(uint32_t reason);

/* The console, for one vCPU at a time. */
void print(const char *text);
void print_number(uint64_t number);

/* The number of the vCPU this runs on. */
uint32_t current_vcpu(void);

#endif
