/* Frames of the TAP wait here, each flow in a queue of its own, and are taken in turns: a quantum of octets from each.
 *
 * The TAP's own queue is one for all, so it is kept empty: who sends much waits behind himself, and loses frames of his
 * own where there is no more room. Source: Shreedhar, Varghese, "Efficient fair queuing using deficit round robin";
 * RFC 8290 §4.1 (the longest queue loses).
 */
#include <sodium.h>
#include <stdlib.h>

#include "core.h"

#define FRAMES 512
#define ROOM (sizeof(vnet) + MAX_FRAME)
#define MAX_BYTES (8u << 20)
#define QUANTUM 65536
#define HEADS 1024

typedef struct lined lined;

/* A flow that has frames: one of the ring of those in turn, and of the list of those with the same head. */
struct lined {
    lined *before, *after, *same;
    uint32_t hash, bytes;
    int32_t credit;
    waiting *first, *last;
};

struct queue {
    uint32_t seed, bytes, used_frames, used_flows;
    uint8_t *buffer;
    waiting *room, *taken, *free_frames, frames[FRAMES];
    lined *turn, *free_flows, flows[FRAMES], *heads[HEADS];
};

queue *queue_make(void)
{
    queue *q = calloc(1, sizeof *q);
    if (q == NULL || (q->buffer = malloc(FRAMES * ROOM)) == NULL) {
        free(q);
        return NULL;
    }
    q->seed = randombytes_random();
    return q;
}

void queue_free(queue *q)
{
    if (q)
        free(q->buffer);
    free(q);
}

static uint32_t mix(uint32_t hash, uint32_t word)
{
    uint64_t product = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(product >> 32) ^ (uint32_t)product;
}

/* Equal for frames that must not overtake each other: of fragments, the later ones have no ports. */
static uint32_t flow_hash(uint32_t hash, const uint8_t *frame, uint32_t size)
{
    for (uint32_t at = 0; at < 12 && at + 4 <= size; at += 4)
        hash = mix(hash, get32(frame + at));
    uint16_t type = size < ETHERNET + 44 ? 0 : get16(frame + 12);
    if (type != 0x0800 && type != 0x86dd)
        return hash;
    const uint8_t *ip = frame + ETHERNET;
    bool v6 = type == 0x86dd;
    uint8_t protocol = v6 ? ip[6] : ip[9];
    for (uint32_t at = v6 ? 8 : 12; at < (v6 ? 40 : 20); at += 4)
        hash = mix(hash, get32(ip + at));
    bool ports = (protocol == 6 || protocol == 17) && (v6 || (ip[0] == 0x45 && (get16(ip + 6) & 0x3fff) == 0));
    return ports ? mix(hash, get32(ip + (v6 ? 40 : 20))) : hash;
}

static void leave(queue *q, lined *f)
{
    lined **at = &q->heads[f->hash % HEADS];
    while (*at != f)
        at = &(*at)->same;
    *at = f->same;
    if (q->turn == f)
        q->turn = f->after == f ? NULL : f->after;
    f->before->after = f->after;
    f->after->before = f->before;
    f->same = q->free_flows;
    q->free_flows = f;
}

static waiting *pop(queue *q, lined *f)
{
    waiting *w = f->first;
    f->first = w->next;
    f->bytes -= w->size;
    q->bytes -= w->size;
    if (f->first == NULL)
        leave(q, f);
    return w;
}

static void give_back(queue *q, waiting *w)
{
    w->next = q->free_frames;
    q->free_frames = w;
}

static void drop_one(queue *q)
{
    lined *longest = q->turn;
    for (lined *f = longest->after; f != q->turn; f = f->after)
        if (f->bytes > longest->bytes)
            longest = f;
    give_back(q, pop(q, longest));
}

uint8_t *queue_room(queue *q, uint32_t *dropped)
{
    for (*dropped = 0; q->bytes > MAX_BYTES || (q->used_frames == FRAMES && q->free_frames == NULL); ++*dropped)
        drop_one(q);
    if ((q->room = q->free_frames)) {
        q->free_frames = q->room->next;
    } else {
        q->room = &q->frames[q->used_frames];
        q->room->data = q->buffer + ROOM * q->used_frames++;
    }
    return q->room->data;
}

static lined *find(queue *q, uint32_t hash)
{
    lined *f = q->heads[hash % HEADS];
    while (f && f->hash != hash)
        f = f->same;
    if (f)
        return f;
    if ((f = q->free_flows))
        q->free_flows = f->same;
    else
        f = &q->flows[q->used_flows++];
    *f = (lined){.hash = hash, .credit = QUANTUM, .same = q->heads[hash % HEADS], .before = f, .after = f};
    q->heads[hash % HEADS] = f;
    if (q->turn) {
        f->after = q->turn;
        f->before = q->turn->before;
        f->before->after = f->after->before = f;
    } else {
        q->turn = f;
    }
    return f;
}

void queue_put(queue *q, uint32_t size)
{
    waiting *w = q->room;
    uint32_t header = size < sizeof(vnet) ? size : sizeof(vnet);
    lined *f = find(q, flow_hash(q->seed, w->data + header, size - header));
    w->size = size;
    w->next = NULL;
    if (f->first)
        f->last->next = w;
    else
        f->first = w;
    f->last = w;
    f->bytes += size;
    q->bytes += size;
    q->room = NULL;
}

void queue_no_frame(queue *q)
{
    give_back(q, q->room);
    q->room = NULL;
}

waiting *queue_take(queue *q)
{
    if (q->taken)
        give_back(q, q->taken);
    q->taken = NULL;
    for (lined *f; (f = q->turn); q->turn = f->after) {
        if (f->credit > 0) {
            f->credit -= f->first->size;
            return q->taken = pop(q, f);
        }
        f->credit += QUANTUM;
    }
    return NULL;
}

bool queue_empty(const queue *q) { return q->turn == NULL; }
