/* How the fields of a ring are read and written: each once, whole, and in an order that both sides rely on.
 *
 * The other side of every pointer here is memory that a hostile guest changes while we look. So each function
 * makes exactly one access of the field's width, and none of them may be repeated, split or merged by the
 * compiler. Where the order matters, and why, is argued at the top of split.pyx and of packed.pyx, and for the
 * inflight area at the top of inflight.pyx. The queues of uring.pyx, which are shared with the kernel, go by the
 * same functions.
 */
#ifndef VHOSTD_RING_BARRIERS_H
#define VHOSTD_RING_BARRIERS_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the fields of a ring are little-endian and are used as they are: this needs a little-endian host"
#endif

static inline uint8_t load_u8(const void *at)
{
    return __atomic_load_n((const uint8_t *)at, __ATOMIC_RELAXED);
}

static inline uint16_t load_u16(const void *at)
{
    return __atomic_load_n((const uint16_t *)at, __ATOMIC_RELAXED);
}

static inline uint16_t load_acquire_u16(const void *at)
{
    return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
}

static inline uint32_t load_u32(const void *at)
{
    return __atomic_load_n((const uint32_t *)at, __ATOMIC_RELAXED);
}

static inline uint32_t load_acquire_u32(const void *at)
{
    return __atomic_load_n((const uint32_t *)at, __ATOMIC_ACQUIRE);
}

static inline uint64_t load_u64(const void *at)
{
    return __atomic_load_n((const uint64_t *)at, __ATOMIC_RELAXED);
}

static inline void store_u16(void *at, uint16_t value)
{
    __atomic_store_n((uint16_t *)at, value, __ATOMIC_RELAXED);
}

static inline void store_u32(void *at, uint32_t value)
{
    __atomic_store_n((uint32_t *)at, value, __ATOMIC_RELAXED);
}

static inline void store_u64(void *at, uint64_t value)
{
    __atomic_store_n((uint64_t *)at, value, __ATOMIC_RELAXED);
}

static inline void store_release_u8(void *at, uint8_t value)
{
    __atomic_store_n((uint8_t *)at, value, __ATOMIC_RELEASE);
}

static inline void store_release_u16(void *at, uint16_t value)
{
    __atomic_store_n((uint16_t *)at, value, __ATOMIC_RELEASE);
}

static inline void store_release_u32(void *at, uint32_t value)
{
    __atomic_store_n((uint32_t *)at, value, __ATOMIC_RELEASE);
}

/* Sets bits of a byte that others change too; what was stored before is there for whoever sees them. */
static inline void set_bits_u8(void *at, uint8_t bits)
{
    __atomic_fetch_or((uint8_t *)at, bits, __ATOMIC_SEQ_CST);
}

static inline void store_release_u64(void *at, uint64_t value)
{
    __atomic_store_n((uint64_t *)at, value, __ATOMIC_RELEASE);
}

/* Orders all earlier stores before all later loads, which neither acquire nor release does. */
static inline void full_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* struct virtq_desc (virtio 1.3, 2.7.5). */
struct descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

/* Nothing obliges a driver to align an indirect table. */
typedef uint64_t unaligned_u64 __attribute__((aligned(1), may_alias));

/* Copies a descriptor, so that what is checked is what is used: volatile forbids a second look. */
static inline struct descriptor load_descriptor(const void *at)
{
    const volatile unaligned_u64 *words = at;
    uint64_t addr = words[0], rest = words[1];

    return (struct descriptor){
        .addr = addr,
        .len = (uint32_t)rest,
        .flags = (uint16_t)(rest >> 32),
        .next = (uint16_t)(rest >> 48),
    };
}

/* struct pvirtq_desc (virtio 1.3, 2.8.13). */
struct packed_descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    uint16_t flags;
};

static inline struct packed_descriptor load_packed(const void *at)
{
    const volatile unaligned_u64 *words = at;
    uint64_t addr = words[0], rest = words[1];

    return (struct packed_descriptor){
        .addr = addr,
        .len = (uint32_t)rest,
        .id = (uint16_t)(rest >> 32),
        .flags = (uint16_t)(rest >> 48),
    };
}

/* Has the index, on its way from `old` to `now`, passed `event`? vring_need_event of virtio 1.3, 2.7.10. */
static inline int passed(uint16_t event, uint16_t now, uint16_t old)
{
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

#endif
