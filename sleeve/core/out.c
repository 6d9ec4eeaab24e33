/* The way out: frames are packed into datagrams, datagrams sealed, and runs of them handed to the kernel.
 *
 * 1. `out_path` says on which send path a frame goes. 2. `out_frame` gives it room in the datagram being filled.
 * 3. `finish` seals a full one. 4. `lane_send` gives the kernel runs of one size in one call (UDP_SEGMENT). Nothing
 * waits beyond a batch: whoever fills an outbox flushes it. Source: data plane spec §3.2, §3.3, §3.8.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "core.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#define SOL_UDP_ 17
#define WAIT_MS 2
#define LANE_BYTES (LEAD + MAX_PAYLOAD + SLACK)

bool out_make(outbox *out, core *c, int index, ring *events)
{
    out->core = c;
    out->index = index;
    out->events = events;
    if ((out->mac = mac_make()) == NULL)
        return false;
    for (int place = 0; place < LANES; place++)
        if ((out->lanes[place].buffer = malloc(LANE_BYTES)) == NULL)
            return false;
    return true;
}

void out_free(outbox *out)
{
    mac_free(out->mac);
    for (int place = 0; place < LANES; place++)
        free(out->lanes[place].buffer);
}

int out_path(const session *s, const uint8_t *head, uint32_t head_size, uint32_t size)
{
    bool fits = size <= s->mtu + ETHERNET;
    if (head_size < ETHERNET + 20 || head[12] != 0x08 || head[13] != 0x00) {
        bool v6 = head_size >= ETHERNET + 40 && head[12] == 0x86 && head[13] == 0xdd;
        return v6 && !fits ? -1 : 0;
    }
    uint32_t ip_header = (head[ETHERNET] & 0x0fu) * 4;
    if (ip_header < 20 || size < ETHERNET + ip_header || get16(head + 16) < ip_header)
        return 0;
    if (head[20] & 0x40)
        return fits ? 1 : -1;
    if (s->fragments_pass)
        return 0;
    return fits ? 1 : -1;
}

static uint8_t *first(lane *l) { return l->buffer + LEAD; }

static void event(outbox *out, session *s, uint32_t kind, uint32_t value)
{
    record *made = ring_record(out->events, kind, 0);
    if (made == NULL)
        return;
    made->serial = s->serial;
    made->first = value;
    ring_push(out->events);
}

static int reason(int error)
{
    switch (error) {
    case EMSGSIZE: return OVER_PATH_MTU;
    case EAGAIN: return SEND_QUEUE_FULL;
    case ENOBUFS: return NO_BUFFERS;
    case EPERM: return REFUSED_BY_FIREWALL;
    case ENETUNREACH: return NETWORK_UNREACHABLE;
    case EHOSTUNREACH: return HOST_UNREACHABLE;
    case ECONNREFUSED: return CONNECTION_REFUSED;
    case ENETDOWN: return NETWORK_DOWN;
    case EINVAL: return INVALID_ADDRESS;
    case EADDRNOTAVAIL: return ADDRESS_NOT_AVAILABLE;
    default: return SEND_ERROR;
    }
}

/* One call to the kernel; `segment` is the size of all datagrams but the last. Returns 0 or errno. */
static int transmit(outbox *out, session *s, int df, uint8_t *from, size_t size, uint16_t segment)
{
    int fd = out->core->udp[s->v6][df];
    union {
        char room[CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(uint16_t))];
        struct cmsghdr align;
    } control;
    struct iovec piece = {from, size};
    struct msghdr message = {
        .msg_name = &s->remote, .msg_namelen = s->remote_size, .msg_iov = &piece, .msg_iovlen = 1,
    };
    bool origin = __atomic_load_n(&s->has_origin, __ATOMIC_RELAXED);
    if (fd < 0)
        return ENETUNREACH;
    if (origin || segment) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *at = CMSG_FIRSTHDR(&message);
        size_t used = 0;
        if (origin && s->v6) {
            struct in6_pktinfo info = {0};
            memcpy(&info.ipi6_addr, s->origin, 16);
            at->cmsg_level = IPPROTO_IPV6, at->cmsg_type = IPV6_PKTINFO, at->cmsg_len = CMSG_LEN(sizeof info);
            memcpy(CMSG_DATA(at), &info, sizeof info);
            used += CMSG_SPACE(sizeof info);
        } else if (origin) {
            struct in_pktinfo info = {0};
            memcpy(&info.ipi_spec_dst, s->origin, 4);
            at->cmsg_level = IPPROTO_IP, at->cmsg_type = IP_PKTINFO, at->cmsg_len = CMSG_LEN(sizeof info);
            memcpy(CMSG_DATA(at), &info, sizeof info);
            used += CMSG_SPACE(sizeof info);
        }
        if (segment) {
            at = (struct cmsghdr *)((char *)&control + used);
            at->cmsg_level = SOL_UDP_, at->cmsg_type = UDP_SEGMENT, at->cmsg_len = CMSG_LEN(sizeof segment);
            memcpy(CMSG_DATA(at), &segment, sizeof segment);
            used += CMSG_SPACE(sizeof segment);
        }
        message.msg_controllen = used;
    }
    for (int tries = 0;; tries++) {
        if (sendmsg(fd, &message, MSG_DONTWAIT) >= 0)
            return 0;
        /* The device is behind: to wait a moment passes that on to the TAP's queue, which is where to drop. */
        struct pollfd writable = {fd, POLLOUT, 0};
        if (errno != EAGAIN || tries == 3 || poll(&writable, 1, WAIT_MS) < 0)
            return errno;
    }
}

/* One datagram; the address it should come from may be no longer ours: if so, any other is better than none. */
static int transmit_one(outbox *out, session *s, int df, uint8_t *from, size_t size)
{
    int error = transmit(out, s, df, from, size, 0);
    if ((error == EINVAL || error == ENETUNREACH || error == EADDRNOTAVAIL) && s->has_origin) {
        __atomic_store_n(&s->has_origin, false, __ATOMIC_RELAXED);
        int again = transmit(out, s, df, from, size, 0);
        if (again)
            __atomic_store_n(&s->has_origin, true, __ATOMIC_RELAXED);
        return again;
    }
    return error;
}

static void refused(outbox *out, session *s, int error)
{
    count(s->counts, reason(error), 1);
    if (error == EMSGSIZE) {
        event(out, s, PATH_MTU, 0);
    } else if (error != EAGAIN && error != ENOBUFS && __atomic_exchange_n(&s->trouble, error, __ATOMIC_RELAXED) != error) {
        event(out, s, TROUBLE, (uint32_t)reason(error));
    }
}

/* How many datagrams from `at` on one call can take: of one size, the last one may be shorter. */
static uint32_t equal(const lane *l, uint32_t at, uint32_t *bytes)
{
    uint32_t number = 1;
    *bytes = l->sizes[at];
    if (l->sizes[at] > l->to->max_payload)
        return 1;
    while (at + number < l->count && l->sizes[at + number] <= l->sizes[at]) {
        *bytes += l->sizes[at + number];
        number++;
        if (l->sizes[at + number - 1] < l->sizes[at])
            break;
    }
    return number;
}

/* Send finished datagrams. Returns whether the kernel took them all. */
static bool lane_send(outbox *out, lane *l)
{
    session *s = l->to;
    uint8_t *from = first(l);
    bool taken = true;
    count(s->counts, DATAGRAMS_OUT, l->count);
    count(s->counts, BYTES_OUT, l->start);
    for (uint32_t at = 0, number, bytes; at < l->count; at += number, from += bytes) {
        number = equal(l, at, &bytes);
        int error = EIO;
        if (number > 1 && out->core->segments) {
            error = transmit(out, s, l->df, from, bytes, (uint16_t)l->sizes[at]);
            if (error == EIO || error == ENOPROTOOPT || error == EOPNOTSUPP) {
                /* The device cannot do checksums, or the kernel is older than this option. */
                out->core->segments = false;
                count(out->core->counts, NO_SEND_OFFLOAD, 1);
            }
        }
        if (error == EAGAIN) {
            count(s->counts, SEND_QUEUE_FULL, number);
            taken = false;
        } else if (error) {
            /* Singly, which also tells what is wrong. */
            uint8_t *one = from;
            for (uint32_t place = at; place < at + number; one += l->sizes[place], place++) {
                error = transmit_one(out, s, l->df, one, l->sizes[place]);
                if (error) {
                    refused(out, s, error);
                    taken = false;
                }
                if (error == EMSGSIZE)
                    break;
            }
        }
    }
    l->count = l->start = l->end = l->frames = 0;
    return taken;
}

/* Seal the datagram being filled. */
static void finish(outbox *out, lane *l)
{
    session *s = l->to;
    if (s->sealed) {
        uint64_t sequence = __atomic_fetch_add(&s->next[l->df], 1, __ATOMIC_RELAXED);
        box_seal(out->mac, s->key_out, sequence | (l->df ? DF_BIT : 0), first(l) + l->start, l->end - l->start);
    }
    count(s->counts, FRAMES_OUT, l->frames);
    l->sizes[l->count++] = l->end - l->start;
    l->start = l->end;
    l->frames = 0;
}

static void lane_flush(outbox *out, lane *l)
{
    if (l->frames)
        finish(out, l);
    if (l->count)
        lane_send(out, l);
}

static lane *lane_for(outbox *out, session *s, int df)
{
    lane *l = &out->lanes[s->lane[out->index][df]];
    if (l->to == s && l->df == df)
        return l;
    if (out->used < LANES) {
        l = &out->lanes[out->used++];
    } else {
        l = &out->lanes[out->victim];
        out->victim = (out->victim + 1) % LANES;
        lane_flush(out, l);
    }
    l->to = s;
    l->df = df;
    s->lane[out->index][df] = (uint8_t)(l - out->lanes);
    return l;
}

uint8_t *out_frame(outbox *out, session *s, uint64_t source, uint64_t destination, uint32_t size, int df)
{
    uint32_t room = FRAME_HEAD + size;
    if (s->head + room > MAX_PAYLOAD) {
        count(s->counts, TOO_BIG_FOR_DATAGRAM, 1);
        return NULL;
    }
    if (!s->has_remote) {
        count(s->counts, AWAITING_CONTACT, 1);
        return NULL;
    }
    lane *l = lane_for(out, s, df);
    if (l->frames && (l->end - l->start + room > s->max_payload || l->frames >= MAX_FRAMES))
        finish(out, l);
    if (l->frames == 0 && (l->count == MAX_SEGMENTS || l->end + s->head + room > MAX_PAYLOAD))
        lane_send(out, l);
    if (l->end + room > MAX_PAYLOAD) {
        finish(out, l);
        lane_send(out, l);
    }
    uint8_t *at = first(l) + l->end;
    if (l->frames == 0) {
        put48(at, out->core->ourself);
        at += s->head;
        l->end += s->head;
    }
    put48(at, source);
    put48(at + NAME_SIZE, destination);
    put16(at + 2 * NAME_SIZE, size);
    l->end += room;
    l->frames++;
    return at + FRAME_HEAD;
}

void out_flush(outbox *out)
{
    for (uint32_t place = 0; place < out->used; place++) {
        lane_flush(out, &out->lanes[place]);
        out->lanes[place].to = NULL;
    }
    out->used = out->victim = 0;
}

void out_forget(outbox *out, session *s)
{
    for (uint32_t place = 0; place < LANES; place++) {
        lane *l = &out->lanes[place];
        if (l->to == s) {
            l->to = NULL;
            l->count = l->start = l->end = l->frames = 0;
        }
    }
}

/* --- Python's side --- */

void session_send(core *c, session *s, uint64_t source, uint64_t destination, const uint8_t *frame, uint32_t size, int df)
{
    pthread_rwlock_rdlock(&c->lock);
    uint8_t *to = out_frame(&c->python, s, source, destination, size, df);
    if (to)
        memcpy(to, frame, size);
    pthread_rwlock_unlock(&c->lock);
}

void session_send_alone(
    core *c, session *s, uint64_t source, uint64_t destination, const uint8_t *frame, uint32_t size, int df)
{
    outbox *out = &c->python;
    pthread_rwlock_rdlock(&c->lock);
    if (s->has_remote)
        lane_flush(out, lane_for(out, s, df));
    uint8_t *to = out_frame(out, s, source, destination, size, df);
    if (to) {
        memcpy(to, frame, size);
        lane *l = lane_for(out, s, df);
        finish(out, l);
        if (lane_send(out, l) && __atomic_exchange_n(&s->trouble, 0, __ATOMIC_RELAXED))
            event(out, s, TROUBLE, 0);
    }
    pthread_rwlock_unlock(&c->lock);
}

void core_flush(core *c)
{
    pthread_rwlock_rdlock(&c->lock);
    out_flush(&c->python);
    pthread_rwlock_unlock(&c->lock);
}
