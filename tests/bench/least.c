/* The least that a device does for a request by virtio 1.3: it finds it, reads its descriptors, and gives it back.
 *
 * Nothing is checked, translated, recorded or remembered: the driver is trusted, and `base` is where the host has what
 * the guest calls 0. Returns how many requests were there.
 */
#include <stdint.h>

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct packed { uint64_t addr; uint32_t len; uint16_t id, flags; };
struct used { uint32_t id, len; };

enum { NEXT = 1, WRITE = 2, INDIRECT = 4, AVAIL = 0x80, USED = 0x8000 };

static volatile uint64_t sink; /* so that what was read is of use */

static void read_table(const uint8_t *base, uint64_t addr, uint32_t len)
{
    const struct desc *table = (const void *)(base + addr);

    for (uint32_t i = 0; i < len / sizeof(*table); i++)
        sink = table[i].addr + table[i].len;
}

unsigned least_split(uint8_t *base, struct desc *descs, uint16_t *avail, uint16_t *used, uint16_t size, uint16_t *at)
{
    uint16_t end = __atomic_load_n(&avail[1], __ATOMIC_ACQUIRE), begin = *at;
    struct used *elements = (void *)(used + 2);

    for (; *at != end; ++*at) {
        uint16_t head = avail[2 + *at % size], i = head;
        for (;;) {
            if (descs[i].flags & INDIRECT)
                read_table(base, descs[i].addr, descs[i].len);
            else
                sink = descs[i].addr + descs[i].len;
            if (!(descs[i].flags & NEXT))
                break;
            i = descs[i].next;
        }
        elements[*at % size] = (struct used){ head, 0 };
        __atomic_store_n(&used[1], (uint16_t)(*at + 1), __ATOMIC_RELEASE);
    }
    return (uint16_t)(end - begin);
}

unsigned least_packed(uint8_t *base, struct packed *descs, uint16_t size, uint16_t *at, uint16_t *wrap)
{
    unsigned count = 0;

    for (;; count++) {
        uint16_t flags = __atomic_load_n(&descs[*at].flags, __ATOMIC_ACQUIRE), first = *at, round = *wrap, id;
        if (!!(flags & AVAIL) != *wrap || !!(flags & USED) == *wrap)
            return count;
        do {
            flags = descs[*at].flags;
            id = descs[*at].id;
            if (flags & INDIRECT)
                read_table(base, descs[*at].addr, descs[*at].len);
            else
                sink = descs[*at].addr + descs[*at].len;
            if (++*at == size) {
                *at = 0;
                *wrap ^= 1;
            }
        } while (flags & NEXT);
        descs[first].id = id;
        descs[first].len = 0;
        __atomic_store_n(&descs[first].flags, round ? AVAIL | USED : 0, __ATOMIC_RELEASE);
    }
}
