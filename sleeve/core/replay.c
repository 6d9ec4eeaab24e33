/* The replay window of one counter: every number once, within two windows of 2^20. As sleeve/replay.py does it. */
#include <stdlib.h>

#include "core.h"

#define BITS 20
#define WORDS (1u << (BITS - 6))

bool window_accept(window *w, uint64_t sequence)
{
    uint64_t number = sequence >> BITS;
    if (number > w->number) {
        free(w->previous);
        w->previous = number == w->number + 1 ? w->current : NULL;
        if (number != w->number + 1)
            free(w->current);
        w->current = NULL;
        w->number = number;
    } else if (w->number > number + 1) {
        return false;
    }
    uint64_t **set = number == w->number ? &w->current : &w->previous;
    if (*set == NULL && (*set = calloc(WORDS, sizeof **set)) == NULL)
        return false;
    uint64_t offset = sequence & ((1u << BITS) - 1), bit = UINT64_C(1) << (offset & 63);
    if ((*set)[offset >> 6] & bit)
        return false;
    (*set)[offset >> 6] |= bit;
    return true;
}

void window_free(window *w)
{
    free(w->current);
    free(w->previous);
    w->current = w->previous = NULL;
}
