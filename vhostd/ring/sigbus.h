/* Survives guest memory that vanishes: when a file shrinks while it is mapped, the next access raises SIGBUS.
 *
 * The handler puts an anonymous page into the hole, notes the loss in the table of guarded mappings, and lets
 * the access go on (it reads zeros). A fault at any other address goes to whoever handled SIGBUS before.
 *
 * State lives in the including file: memory.pyx alone includes this. The table is written under the GIL; the
 * handler reads it on any thread at any moment, so entries are published and withdrawn by their `end`.
 */
#ifndef VHOSTD_RING_SIGBUS_H
#define VHOSTD_RING_SIGBUS_H

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

/* Eight full maps of 509 regions: those that are replaced live on while requests in flight use them. */
#define GUARDS 4096

struct guard {
    uintptr_t start;
    uintptr_t end; /* 0: the entry is free */
    uintptr_t page; /* the size of the mapping's pages, a power of two */
    int lost;
};

static struct guard guards[GUARDS];
static unsigned losses; /* cheap to compare before asking about each mapping */
static struct sigaction before_us;

static struct guard *guard_at(uintptr_t addr)
{
    for (struct guard *guard = guards; guard < guards + GUARDS; guard++) {
        uintptr_t end = __atomic_load_n(&guard->end, __ATOMIC_ACQUIRE);
        if (addr >= end)
            continue;
        uintptr_t start = __atomic_load_n(&guard->start, __ATOMIC_ACQUIRE);
        /* An entry that changed between the two loads is not the one of a mapping that is in use. */
        if (addr >= start && end == __atomic_load_n(&guard->end, __ATOMIC_ACQUIRE))
            return guard;
    }
    return NULL;
}

static int fill_hole(struct guard *guard, uintptr_t addr)
{
    uintptr_t page = addr & ~(guard->page - 1);

    /* mmap is not on the list of async-signal-safe functions, but on Linux it is a bare system call. */
    if (mmap((void *)page, guard->page, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
        return 0;
    __atomic_store_n(&guard->lost, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&losses, 1, __ATOMIC_RELEASE);
    return 1;
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    /* Only a code above 0 comes from a fault and has an address; others are signals that somebody sent. */
    struct guard *guard = info->si_code > 0 ? guard_at((uintptr_t)info->si_addr) : NULL;

    (void)context;
    if (!guard || !fill_hole(guard, (uintptr_t)info->si_addr)) {
        /* On return the access faults again, under the older action. That one is used once: it may have been
         * installed over an earlier installation of ours, and would hand the signal back for ever. */
        sigaction(number, &before_us, NULL);
        before_us = (struct sigaction){.sa_handler = SIG_DFL};
        if (info->si_code <= 0)
            raise(number);
    }
    errno = saved;
}

/* Makes this handler the one in charge, also when another was installed since. */
static int sigbus_install(void)
{
    struct sigaction current, ours = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    if (sigaction(SIGBUS, NULL, &current) < 0)
        return -1;
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_sigbus)
        return 0;
    before_us = current;
    sigemptyset(&ours.sa_mask);
    return sigaction(SIGBUS, &ours, NULL);
}

/* Takes a mapping under guard and returns the entry's number, or -1 when there is no room. */
static int sigbus_guard(void *start, size_t length, size_t page)
{
    for (int i = 0; i < GUARDS; i++)
        if (!guards[i].end) {
            __atomic_store_n(&guards[i].start, (uintptr_t)start, __ATOMIC_RELAXED);
            guards[i].page = page;
            guards[i].lost = 0;
            __atomic_store_n(&guards[i].end, (uintptr_t)start + length, __ATOMIC_RELEASE);
            return i;
        }
    return -1;
}

static void sigbus_release(int number)
{
    __atomic_store_n(&guards[number].end, 0, __ATOMIC_RELEASE);
}

static int sigbus_lost(int number)
{
    return __atomic_load_n(&guards[number].lost, __ATOMIC_RELAXED);
}

/* How many pages were replaced so far, those of earlier accesses of this thread included. */
static unsigned sigbus_losses(void)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(&losses, __ATOMIC_ACQUIRE);
}

#endif
