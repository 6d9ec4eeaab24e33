/* From the TAP to UDP: frames are read with their virtio-net header, and where source and destination are plain they go
 * out, segment by segment; all others are finished and go up to Python. Source: data plane spec §3.8, §6.2.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "core.h"

#define READS 256
#define BATCH 128
#define BATCH_BYTES (1u << 18)

struct tx {
    core *core;
    outbox out;
    uint64_t now;
    queue *queue;
    bool down;
};

tx *tx_make(core *c)
{
    tx *t = calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    t->core = c;
    if (!out_make(&t->out, c, 0, &c->rings[EVENTS_TX]) || (t->queue = queue_make()) == NULL) {
        tx_free(t);
        return NULL;
    }
    return t;
}

void tx_free(tx *t)
{
    if (t == NULL)
        return;
    out_free(&t->out);
    queue_free(t->queue);
    free(t);
}

void tx_forget(tx *t, session *s) { out_forget(&t->out, s); }

static void to_python(tx *t, const super *s)
{
    ring *into = &t->core->rings[FRAMES_TX];
    for (uint32_t number = 0; number < s->count; number++) {
        record *made = ring_record(into, CAPTURED, super_size(s, number));
        count(t->core->counts, made ? CORE_TO_PYTHON : CORE_NOT_TO_PYTHON, 1);
        if (made == NULL)
            continue;
        super_write(s, number, ring_frame(made));
        ring_push(into);
    }
}

static void carry(tx *t, const super *s, session *hop, uint64_t destination, int df)
{
    for (uint32_t number = 0; number < s->count; number++) {
        uint8_t *room = out_frame(&t->out, hop, t->core->ourself, destination, super_size(s, number), df);
        if (room)
            super_write(s, number, room);
    }
}

static bool flood(tx *t, const super *s)
{
    static const uint8_t spanning_tree[NAME_SIZE] = {0x01, 0x80, 0xc2, 0, 0, 0};
    peer_row *row = peer_find(t->core, t->core->ourself);
    uint32_t size = super_size(s, 0);
    if (row == NULL || !row->flooding || memcmp(s->frame, spanning_tree, NAME_SIZE) == 0)
        return false;
    for (uint32_t place = 0; place < row->flood_count; place++)
        if (!row->flood[place]->has_remote || out_path(row->flood[place], s->frame, s->size, size) < 0)
            return false;
    for (uint32_t place = 0; place < row->flood_count; place++) {
        session *hop = row->flood[place];
        carry(t, s, hop, hop->peer, out_path(hop, s->frame, s->size, size));
        count(t->core->counts, CORE_FLOODED, 1);
    }
    return true;
}

/* One frame. Returns false where Python must decide. */
static bool forward(tx *t, const super *s)
{
    core *c = t->core;
    uint32_t size = super_size(s, 0);
    if (s->size < ETHERNET || is_special(s->frame, s->size))
        return false;
    mac_row *sender = mac_find(c, s->frame + NAME_SIZE);
    if (sender == NULL || sender->owner != c->ourself)
        return false;
    if (s->frame[0] & 1) {
        if (!flood(t, s))
            return false;
    } else {
        mac_row *target = mac_find(c, s->frame);
        if (target == NULL)
            return false;
        if (target->owner == c->ourself) {
            count(c->counts, CORE_LOCAL, 1);
        } else {
            peer_row *row = peer_find(c, target->owner);
            session *hop = row ? row->hop : NULL;
            int df = hop && hop->has_remote ? out_path(hop, s->frame, s->size, size) : -1;
            if (df < 0)
                return false;
            carry(t, s, hop, target->owner, df);
            count(c->counts, CORE_SENT, s->count);
        }
    }
    __atomic_store_n(&sender->seen, t->now, __ATOMIC_RELAXED);
    return true;
}

/* Read what the TAP has. Returns whether there may be more. */
static bool fill(tx *t)
{
    for (int number = 0; number < READS; number++) {
        uint32_t dropped;
        uint8_t *room = queue_room(t->queue, &dropped);
        if (dropped)
            count(t->core->counts, TAP_QUEUE_FULL, dropped);
        ssize_t got = read(t->core->tap, room, sizeof(vnet) + MAX_FRAME);
        if (got < (ssize_t)sizeof(vnet)) {
            queue_no_frame(t->queue);
            if (got < 0 && (errno == EAGAIN || errno == EINTR))
                return false;
            /* The device is down; reading goes on when it is up again. */
            if (got < 0)
                count(t->core->counts, TAP_READ_ERROR, 1);
            t->down = got < 0;
            return false;
        }
        queue_put(t->queue, (uint32_t)got);
    }
    return true;
}

int core_step_tx(core *c)
{
    tx *t = c->tx;
    int number = 0;
    vnet head;
    super s;
    pthread_rwlock_rdlock(&c->lock);
    t->now = now();
    t->down = false;
    bool more = fill(t);
    for (uint32_t bytes = 0; number < BATCH && bytes < BATCH_BYTES; number++) {
        waiting *w = queue_take(t->queue);
        if (w == NULL)
            break;
        bytes += w->size;
        memcpy(&head, w->data, sizeof head);
        if (!super_read(&s, &head, w->data + sizeof head, w->size - (uint32_t)sizeof head))
            count(c->counts, TAP_MALFORMED, 1);
        else if (!forward(t, &s))
            to_python(t, &s);
    }
    out_flush(&t->out);
    pthread_rwlock_unlock(&c->lock);
    core_wake(c, &c->rings[EVENTS_TX], &c->rings[FRAMES_TX]);
    return t->down ? -1 : more || !queue_empty(t->queue) ? 1 : 0;
}
