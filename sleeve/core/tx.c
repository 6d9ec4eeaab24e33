/* From the TAP to UDP: frames are read with their virtio-net header, and where source and destination are plain they go
 * out, segment by segment; all others are finished and go up to Python. Source: data plane spec §3.8, §6.2.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "core.h"

#define BATCH 128
#define BATCH_BYTES (1u << 20)
#define PAUSE_MS 100

struct tx {
    core *core;
    outbox out;
    uint64_t now;
    uint8_t *buffer;
};

tx *tx_make(core *c)
{
    tx *t = calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    t->core = c;
    t->buffer = malloc(sizeof(vnet) + MAX_FRAME);
    if (!out_make(&t->out, c, 0, &c->rings[EVENTS_TX]) || t->buffer == NULL) {
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
    free(t->buffer);
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

int core_step_tx(core *c)
{
    tx *t = c->tx;
    int number = 0;
    uint32_t bytes = 0;
    vnet head;
    super s;
    pthread_rwlock_rdlock(&c->lock);
    t->now = now();
    while (number < BATCH && bytes < BATCH_BYTES) {
        ssize_t got = read(c->tap, t->buffer, sizeof head + MAX_FRAME);
        if (got < 0) {
            if (errno == EAGAIN || errno == EINTR)
                break;
            /* The device is down; reading goes on when it is up again. */
            count(c->counts, TAP_READ_ERROR, 1);
            number = number ? number : -1;
            break;
        }
        number++;
        bytes += (uint32_t)got;
        if (got < (ssize_t)sizeof head)
            continue;
        memcpy(&head, t->buffer, sizeof head);
        if (!super_read(&s, &head, t->buffer + sizeof head, (uint32_t)got - (uint32_t)sizeof head))
            count(c->counts, TAP_MALFORMED, 1);
        else if (!forward(t, &s))
            to_python(t, &s);
    }
    out_flush(&t->out);
    pthread_rwlock_unlock(&c->lock);
    core_wake(c, &c->rings[EVENTS_TX], &c->rings[FRAMES_TX]);
    return number;
}

void core_run_tx(core *c)
{
    struct pollfd wanted[2] = {{c->stop, POLLIN, 0}, {c->tap, POLLIN, 0}};
    for (;;) {
        if (poll(wanted, 2, -1) < 0 && errno != EINTR)
            return;
        if (wanted[0].revents)
            return;
        int number = core_step_tx(c);
        if (number < 0)
            poll(wanted, 1, PAUSE_MS);
    }
}
