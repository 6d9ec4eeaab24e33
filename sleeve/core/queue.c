/* Frames of the TAP wait here, each flow in a queue of its own, and are taken in turns: a quantum of octets from each.
 *
 * The TAP's own queue is one for all, so it is kept empty: who sends much waits behind himself, and loses frames of his
 * own where there is no more room. A flow that had nothing waiting goes first, for one quantum; the round trips it sees
 * are short then, by which TCP decides how large the frames are that it hands over. Flows to one host have their turns
 * one after another, so that host is woken for many datagrams and not for a few of each turn.
 * Source: Shreedhar, Varghese, "Efficient fair queuing using deficit round robin"; RFC 8290 §4.1 (the longest queue
 * loses), §4.2 (new flows first); Linux, net/ipv4/tcp_output.c, tcp_tso_autosize.
 */
#include <sodium.h>
#include <stdlib.h>

#include "core.h"

#define FRAMES 1024
#define ROOM (sizeof(vnet) + MAX_FRAME)
#define MAX_BYTES (8u << 20)
#define QUANTUM (1 << 17)
#define HEADS 1024
#define MAC_SIZE 6

enum { FRESH, OLD, LISTS };

typedef struct lined lined;

/* A flow that has frames: one of a ring of those in turn, and of the list of those with the same head. `host` is a hash
 * of where it goes. */
struct lined {
    lined *before, *after, *same;
    uint32_t hash, host, bytes;
    int32_t credit;
    int list;
    waiting *first, *last;
};

/* `lead`: octets that fresh flows may still take before an old one has its turn. */
struct queue {
    uint32_t seed, bytes, used_frames, used_flows;
    int32_t lead;
    uint8_t *buffer;
    waiting *room, *taken, *free_frames, frames[FRAMES];
    lined *turns[LISTS], *free_flows, flows[FRAMES], *heads[HEADS];
};

queue *queue_make(void)
{
    queue *q = calloc(1, sizeof *q);
    if (q == NULL || (q->buffer = malloc(FRAMES * ROOM)) == NULL) {
        free(q);
        return NULL;
    }
    q->seed = randombytes_random();
    q->lead = QUANTUM;
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

/* Of the host that a frame goes to. */
static uint32_t host_hash(uint32_t hash, const uint8_t *frame, uint32_t size)
{
    return size < MAC_SIZE ? hash : mix(mix(hash, get32(frame)), get16(frame + 4));
}

/* Equal for frames that must not overtake each other: of fragments, the later ones have no ports. */
static uint32_t flow_hash(uint32_t hash, const uint8_t *frame, uint32_t size)
{
    for (uint32_t at = MAC_SIZE; at < 2 * MAC_SIZE && at + 2 <= size; at += 2)
        hash = mix(hash, get16(frame + at));
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

/* As the last of a ring; among old ones, behind the last that goes to the same host. */
static void join(queue *q, lined *f, int list)
{
    lined *first = q->turns[list];
    f->list = list;
    if (first == NULL) {
        q->turns[list] = f->before = f->after = f;
        return;
    }
    lined *at = first->before;
    while (list == OLD && at->host != f->host && at != first)
        at = at->before;
    if (at->host != f->host)
        at = first->before;
    f->before = at;
    f->after = at->after;
    f->before->after = f->after->before = f;
}

static void part(queue *q, lined *f)
{
    if (q->turns[f->list] == f)
        q->turns[f->list] = f->after == f ? NULL : f->after;
    f->before->after = f->after;
    f->after->before = f->before;
}

static void leave(queue *q, lined *f)
{
    lined **at = &q->heads[f->hash % HEADS];
    while (*at != f)
        at = &(*at)->same;
    *at = f->same;
    part(q, f);
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

static lined *longest(lined *first, lined *than)
{
    lined *f = first;
    if (f)
        do {
            if (than == NULL || f->bytes > than->bytes)
                than = f;
        } while ((f = f->after) != first);
    return than;
}

static void drop_one(queue *q)
{
    give_back(q, pop(q, longest(q->turns[OLD], longest(q->turns[FRESH], NULL))));
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

static lined *find(queue *q, uint32_t hash, uint32_t host)
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
    *f = (lined){.hash = hash, .host = host, .credit = QUANTUM, .same = q->heads[hash % HEADS]};
    q->heads[hash % HEADS] = f;
    join(q, f, FRESH);
    return f;
}

void queue_put(queue *q, uint32_t size)
{
    waiting *w = q->room;
    uint32_t header = size < sizeof(vnet) ? size : sizeof(vnet);
    uint32_t host = host_hash(q->seed, w->data + header, size - header);
    lined *f = find(q, flow_hash(host, w->data + header, size - header), host);
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
    for (;;) {
        int list = q->turns[FRESH] && (q->lead > 0 || q->turns[OLD] == NULL) ? FRESH : OLD;
        lined *f = q->turns[list];
        if (f == NULL)
            return NULL;
        if (f->credit > 0) {
            int32_t size = (int32_t)f->first->size;
            f->credit -= size;
            /* Both lists get on: fresh flows without end take half. */
            if (list == OLD)
                q->lead = q->lead + size < QUANTUM ? q->lead + size : QUANTUM;
            else if (q->turns[OLD])
                q->lead -= size;
            return q->taken = pop(q, f);
        }
        f->credit += QUANTUM;
        if (list == OLD) {
            q->turns[OLD] = f->after;
        } else {
            part(q, f);
            join(q, f, OLD);
        }
    }
}

bool queue_empty(const queue *q) { return q->turns[FRESH] == NULL && q->turns[OLD] == NULL; }
