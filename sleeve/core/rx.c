/* From UDP to the TAP, in the order of the functions below: datagrams are received in runs, each is opened and its number
 * noted, each of its frames is put on the bridge, or carried on, or both. What is for the state machines, and what
 * nobody knows, goes up to Python. Source: data plane spec §3.4, §6.3.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "core.h"

#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#define SOL_UDP_ 17
#define BATCH 16
#define ROOM (LEAD + 65536 + SLACK)
#define ARENA (4u << 20)
#define CONTROL CMSG_SPACE(sizeof(int))

struct rx {
    core *core;
    outbox out;
    merger merger;
    uint64_t now;
    uint32_t plain_used;
    uint8_t *plain, *buffers;
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];
    struct sockaddr_storage senders[BATCH];
    char controls[BATCH][CONTROL] __attribute__((aligned(8)));
};

rx *rx_make(core *c)
{
    rx *r = calloc(1, sizeof *r);
    if (r == NULL)
        return NULL;
    r->core = r->merger.core = c;
    r->plain = malloc(ARENA);
    r->buffers = malloc((size_t)BATCH * ROOM);
    if (!out_make(&r->out, c, 1, &c->rings[EVENTS_RX]) || r->plain == NULL || r->buffers == NULL) {
        rx_free(r);
        return NULL;
    }
    return r;
}

void rx_free(rx *r)
{
    if (r == NULL)
        return;
    out_free(&r->out);
    free(r->plain);
    free(r->buffers);
    free(r);
}

void rx_forget(rx *r, session *s) { out_forget(&r->out, s); }

static void fill_sender(record *made, const struct sockaddr_storage *from)
{
    const struct sockaddr_in *four = (const struct sockaddr_in *)from;
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)from;
    made->family = from->ss_family;
    if (from->ss_family == AF_INET6) {
        made->port = ntohs(six->sin6_port);
        made->scope = six->sin6_scope_id;
        memcpy(made->address, &six->sin6_addr, 16);
    } else {
        made->port = ntohs(four->sin_port);
        memcpy(made->address, &four->sin_addr, 4);
    }
}

static void bad(rx *r, session *s, const struct sockaddr_storage *from, uint32_t what, uint32_t first, uint32_t second)
{
    uint64_t number = __atomic_add_fetch(&s->counts[MALFORMED], 1, __ATOMIC_RELAXED);
    /* A stranger's garbage does not fill the ring. */
    if (number != 1 && number != 10 && number != 100 && number % 1000)
        return;
    record *made = ring_record(&r->core->rings[EVENTS_RX], BAD_DATAGRAM, 0);
    if (made == NULL)
        return;
    made->serial = s->serial;
    made->number = number;
    made->source = what;
    made->first = first;
    made->second = second;
    fill_sender(made, from);
    ring_push(&r->core->rings[EVENTS_RX]);
}

/* Something for Python: a special frame of a peer, or one to decide about. */
static void to_python(rx *r, uint32_t kind, session *s, const struct sockaddr_storage *from, uint64_t source,
                      uint64_t destination, const uint8_t *frame, uint32_t size)
{
    ring *into = &r->core->rings[kind == SPECIAL ? EVENTS_RX : FRAMES_RX];
    record *made = ring_record(into, kind, size);
    count(r->core->counts, made ? CORE_TO_PYTHON : CORE_NOT_TO_PYTHON, 1);
    if (made == NULL)
        return;
    made->serial = s->serial;
    made->source = source;
    made->destination = destination;
    fill_sender(made, from);
    memcpy(ring_frame(made), frame, size);
    ring_push(into);
}

/* Whether all of a flood's next hops take the frame without Python. */
static bool flood_takes(const peer_row *row, const uint8_t *frame, uint32_t size)
{
    if (!row->flooding)
        return false;
    for (uint32_t place = 0; place < row->flood_count; place++)
        if (!row->flood[place]->has_remote || out_path(row->flood[place], frame, size, size) < 0)
            return false;
    return true;
}

/* One frame. Returns false where Python must decide. */
static bool forward(rx *r, uint64_t source, uint64_t destination, uint8_t *frame, uint32_t size)
{
    core *c = r->core;
    peer_row *from = peer_find(c, source), *to = peer_find(c, destination);
    if (size < ETHERNET || source == c->ourself || from == NULL || to == NULL || !from->known || !to->known)
        return false;
    if (destination != c->ourself) {
        session *hop = to->hop;
        int df = hop && hop->has_remote ? out_path(hop, frame, size, size) : -1;
        if (df < 0)
            return false;
        uint8_t *room = out_frame(&r->out, hop, source, destination, size, df);
        if (room)
            memcpy(room, frame, size);
        count(c->counts, CORE_RELAYED, 1);
        return true;
    }
    mac_row *sender = mac_find(c, frame + NAME_SIZE);
    if (c->tap < 0 || sender == NULL || sender->owner != source || (frame[NAME_SIZE] & 1))
        return false;
    if (frame[0] & 1) {
        if (!flood_takes(from, frame, size))
            return false;
        for (uint32_t place = 0; place < from->flood_count; place++) {
            session *hop = from->flood[place];
            uint8_t *room = out_frame(&r->out, hop, source, hop->peer, size, out_path(hop, frame, size, size));
            if (room)
                memcpy(room, frame, size);
            count(c->counts, CORE_FLOODED, 1);
        }
    } else {
        mac_row *target = mac_find(c, frame);
        if (target == NULL || target->owner != c->ourself)
            return false;
    }
    __atomic_store_n(&sender->seen, r->now, __ATOMIC_RELAXED);
    merge_frame(&r->merger, frame, size);
    count(c->counts, CORE_INJECTED, 1);
    return true;
}

static void frames(rx *r, session *s, const struct sockaddr_storage *from, uint8_t *body, uint32_t size)
{
    uint64_t number = 0;
    while (size) {
        if (size < FRAME_HEAD) {
            bad(r, s, from, TRAILING_GARBAGE, size, 0);
            break;
        }
        uint64_t source = get48(body), destination = get48(body + NAME_SIZE);
        uint32_t length = get16(body + 2 * NAME_SIZE);
        body += FRAME_HEAD, size -= FRAME_HEAD;
        if (length > size) {
            bad(r, s, from, FRAME_CUT, length, size);
            break;
        }
        number++;
        if (is_special(body, length))
            to_python(r, SPECIAL, s, from, source, destination, body, length);
        else if (!forward(r, source, destination, body, length))
            to_python(r, RECEIVED, s, from, source, destination, body, length);
        body += length, size -= length;
    }
    count(s->counts, FRAMES_IN, number);
}

static void datagram(rx *r, const struct sockaddr_storage *from, uint8_t *data, uint32_t size)
{
    core *c = r->core;
    peer_row *row = size < NAME_SIZE ? NULL : peer_find(c, get48(data));
    session *s = row ? row->link : NULL;
    if (s == NULL) {
        count(c->counts, UNKNOWN_SENDER, 1);
        return;
    }
    count(s->counts, DATAGRAMS_IN, 1);
    count(s->counts, BYTES_IN, size);
    if (!s->sealed) {
        frames(r, s, from, data + PLAIN_HEAD, size - PLAIN_HEAD);
        return;
    }
    if (size < NAME_SIZE + 8) {
        bad(r, s, from, TOO_SHORT, size - NAME_SIZE, 0);
        return;
    }
    if (size < SEALED_HEAD) {
        bad(r, s, from, NOT_OPENED, 0, 0);
        return;
    }
    if (r->plain_used + LEAD + size + SLACK > ARENA) {
        merge_flush(&r->merger);
        r->plain_used = 0;
    }
    uint8_t *body = r->plain + r->plain_used + LEAD;
    uint64_t sequence = (uint64_t)get32(data + NAME_SIZE) << 32 | get32(data + NAME_SIZE + 4);
    if (!box_open(r->out.mac, s->key_in, data, size, body)) {
        bad(r, s, from, NOT_OPENED, 0, 0);
        return;
    }
    if (!window_accept(&s->seen[sequence >> 63], sequence & ~DF_BIT)) {
        count(s->counts, REPLAYED, 1);
        return;
    }
    r->plain_used += LEAD + size - SEALED_HEAD;
    frames(r, s, from, body, size - SEALED_HEAD);
}

static void received(rx *r, int place)
{
    struct msghdr *head = &r->messages[place].msg_hdr;
    uint8_t *data = r->pieces[place].iov_base;
    uint32_t size = r->messages[place].msg_len, segment = size;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(head); at; at = CMSG_NXTHDR(head, at))
        if (at->cmsg_level == SOL_UDP_ && at->cmsg_type == UDP_GRO) {
            int length;
            memcpy(&length, CMSG_DATA(at), sizeof length);
            if (length > 0 && (uint32_t)length < size)
                segment = (uint32_t)length;
        }
    if (size == 0)
        datagram(r, &r->senders[place], data, 0);
    for (uint32_t at = 0; at < size; at += segment)
        datagram(r, &r->senders[place], data + at, size - at < segment ? size - at : segment);
}

/* One run of one socket; how many messages it was. */
static int receive(rx *r, int fd)
{
    for (int place = 0; place < BATCH; place++) {
        r->pieces[place] = (struct iovec){r->buffers + (size_t)place * ROOM + LEAD, 65536};
        r->messages[place].msg_hdr = (struct msghdr){
            .msg_name = &r->senders[place], .msg_namelen = sizeof r->senders[place], .msg_iov = &r->pieces[place],
            .msg_iovlen = 1, .msg_control = r->controls[place], .msg_controllen = CONTROL,
        };
    }
    int number = recvmmsg(fd, r->messages, BATCH, MSG_DONTWAIT, NULL);
    if (number < 0) {
        if (errno == EAGAIN || errno == EINTR)
            return 0;
        /* An earlier send's ICMP error: it was counted, or will be, where the link times out. */
        count(r->core->counts, RECEIVE_ERROR, 1);
        return 1;
    }
    for (int place = 0; place < number; place++)
        received(r, place);
    merge_flush(&r->merger);
    r->plain_used = 0;
    return number;
}

int rx_step(core *c, const struct pollfd *ready, int sockets)
{
    rx *r = c->rx;
    int number = 0;
    pthread_rwlock_rdlock(&c->lock);
    r->now = now();
    for (int place = 0; place < sockets; place++)
        if (ready[place].revents)
            number += receive(r, ready[place].fd);
    out_flush(&r->out);
    pthread_rwlock_unlock(&c->lock);
    core_wake(c, &c->rings[EVENTS_RX], &c->rings[FRAMES_RX]);
    return number;
}

int rx_sockets(const core *c, struct pollfd *into)
{
    int number = 0;
    for (int place = 0; place < 4; place++)
        if (c->udp[place / 2][place % 2] >= 0)
            into[number++] = (struct pollfd){c->udp[place / 2][place % 2], POLLIN, POLLIN};
    return number;
}

int core_step_rx(core *c)
{
    struct pollfd all[4];
    return rx_step(c, all, rx_sockets(c, all));
}
