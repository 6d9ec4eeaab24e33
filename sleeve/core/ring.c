/* Rings of records: one loop writes, Python reads. A full ring loses what comes next; it is counted, nobody waits. */
#include <stdlib.h>

#include "core.h"

static uint32_t record_size(uint32_t length) { return (uint32_t)((sizeof(record) + length + 7) & ~(size_t)7); }

bool ring_make(ring *r, uint32_t size)
{
    r->size = size;
    return posix_memalign((void **)&r->buffer, 64, size) == 0;
}

record *ring_record(ring *r, uint32_t kind, uint32_t length)
{
    uint32_t size = record_size(length);
    uint64_t tail = __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE), head = r->head;
    uint32_t at = (uint32_t)(head % r->size), behind = r->size - at;
    /* A record is never split: where it does not fit before the end, a mark sends the reader to the start. */
    uint32_t skipped = behind < size ? behind : 0;
    if (head + skipped + size - tail > r->size)
        return NULL;
    if (skipped) {
        uint32_t mark = 0;
        memcpy(r->buffer + at, &mark, sizeof mark);
        at = 0;
    }
    record *made = (record *)(r->buffer + at);
    memset(made, 0, sizeof *made);
    made->size = size;
    made->kind = kind;
    made->length = length;
    r->reserved = head + skipped + size;
    return made;
}

void ring_push(ring *r)
{
    r->rang = true;
    __atomic_store_n(&r->head, r->reserved, __ATOMIC_RELEASE);
}

record *ring_next(core *c, int number)
{
    ring *r = &c->rings[number];
    for (;;) {
        if (__atomic_load_n(&r->head, __ATOMIC_ACQUIRE) == r->tail)
            return NULL;
        record *next = (record *)(r->buffer + r->tail % r->size);
        if (next->size)
            return next;
        __atomic_store_n(&r->tail, r->tail + r->size - r->tail % r->size, __ATOMIC_RELEASE);
    }
}

uint8_t *ring_frame(record *r) { return (uint8_t *)(r + 1); }

void ring_done(core *c, int number)
{
    ring *r = &c->rings[number];
    record *done = (record *)(r->buffer + r->tail % r->size);
    __atomic_store_n(&r->tail, r->tail + done->size, __ATOMIC_RELEASE);
}
