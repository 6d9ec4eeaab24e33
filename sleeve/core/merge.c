/* Frames on their way to the bridge: those of one flow that follow each other go there as one, as the kernel's GRO would
 * make it; the kernel cuts it again where somebody needs frames.
 *
 * What is merged: TCP and UDP over IPv4 without options or IPv6 without extension headers, no fragments, no VLAN tags,
 * no padding, all checksums verified (UDP's present), everything equal but what must differ: length, identification
 * (following or, with DF, constant), sequence number (following), PSH and FIN on the last. Everything else goes through
 * unchanged, after what the same flow had waiting. Source: virtio 1.2, §5.1.6; Linux, net/ipv4/tcp_offload.c.
 */
#include <errno.h>
#include <unistd.h>

#include "core.h"

enum { FIN = 0x01, PSH = 0x08, ACK = 0x10, ECE = 0x40 };

/* What is to be known of a frame. `mergeable`: it may begin a merged one, or follow. */
typedef struct {
    uint8_t *frame;
    uint32_t size, l3, l4, header, payload, hash, sequence;
    uint16_t id;
    bool v6, udp, mergeable;
} parsed;

static void put(merger *m, struct iovec *pieces, int number)
{
    while (writev(m->core->tap, pieces, number) < 0) {
        if (errno == EINTR)
            continue;
        count(m->core->counts, TAP_WRITE_ERROR, 1);
        return;
    }
}

static void put_alone(merger *m, uint8_t *frame, uint32_t size)
{
    static vnet plain;
    struct iovec pieces[2] = {{&plain, sizeof plain}, {frame, size}};
    put(m, pieces, 2);
}

static void flow_put(merger *m, flow *f)
{
    if (f->count == 1) {
        put_alone(m, f->frame, f->size);
        return;
    }
    uint8_t *ip = f->frame + f->l3, *l4 = f->frame + f->l4;
    uint32_t behind = f->total - f->l4;
    vnet head = {
        .flags = VNET_NEEDS_CSUM, .gso_type = f->udp ? VNET_UDP : f->v6 ? VNET_TCP6 : VNET_TCP4,
        .header = (uint16_t)f->header, .gso_size = (uint16_t)f->gso_size,
        .csum_start = (uint16_t)f->l4, .csum_offset = f->udp ? 6 : 16,
    };
    if (f->v6) {
        put16(ip + 4, behind);
    } else {
        put16(ip + 2, f->total - f->l3);
        memset(ip + 10, 0, 2);
        uint16_t check = (uint16_t)~fold(sum(0, ip, 20));
        memcpy(ip + 10, &check, 2);
    }
    if (f->udp)
        put16(l4 + 4, behind);
    else
        l4[13] |= f->last_flags;
    uint16_t part = fold(pseudo_sum(ip, f->v6, f->udp ? 17 : 6, behind));
    memcpy(l4 + head.csum_offset, &part, 2);
    f->pieces[0] = (struct iovec){&head, sizeof head};
    put(m, f->pieces, (int)f->count + 1);
    count(m->core->counts, CORE_MERGED, f->count);
}

static void drop(merger *m, uint32_t place)
{
    m->used--;
    if (place < m->used) {
        /* Places are for finding only; the order of flows means nothing, that within one is kept. */
        flow *f = &m->flows[place], *last = &m->flows[m->used];
        memcpy(f, last, offsetof(flow, pieces));
        memcpy(f->pieces, last->pieces, (last->count + 1) * sizeof last->pieces[0]);
    }
}

void merge_flush(merger *m)
{
    for (uint32_t place = 0; place < m->used; place++)
        flow_put(m, &m->flows[place]);
    m->used = 0;
}

/* Where the headers are. False: no TCP or UDP that could belong to a flow here. */
static bool parse(parsed *p, uint8_t *frame, uint32_t size)
{
    memset(p, 0, sizeof *p);
    p->frame = frame, p->size = size, p->l3 = ETHERNET;
    uint16_t type = size >= ETHERNET ? get16(frame + 12) : 0;
    const uint8_t *ip = frame + ETHERNET;
    uint8_t protocol;
    uint32_t total;
    if (type == 0x0800 && size >= ETHERNET + 20 && ip[0] == 0x45) {
        protocol = ip[9];
        total = get16(ip + 2);
        p->l4 = p->l3 + 20;
        p->id = get16(ip + 4);
        if (get16(ip + 6) & 0xbfff)
            return false;
    } else if (type == 0x86dd && size >= ETHERNET + 40 && ip[0] >> 4 == 6) {
        protocol = ip[6];
        total = 40u + get16(ip + 4);
        p->l4 = p->l3 + 40;
        p->v6 = true;
    } else {
        return false;
    }
    p->udp = protocol == 17;
    if ((!p->udp && protocol != 6) || size < p->l4 + (p->udp ? 8u : 20u))
        return false;
    const uint8_t *l4 = frame + p->l4;
    p->header = p->l4 + (p->udp ? 8u : (l4[12] >> 4) * 4u);
    p->hash = get32(l4) * 2654435761u ^ get32(ip + (p->v6 ? 20 : 12)) ^ get32(ip + (p->v6 ? 36 : 16)) * 40503u;
    p->mergeable = size == p->l3 + total && p->header >= p->l4 + (p->udp ? 8u : 20u) && p->header < size;
    p->payload = p->mergeable ? size - p->header : 0;
    return true;
}

/* What may be merged at all, by itself. */
static bool sound(const merger *m, const parsed *p)
{
    const uint8_t *ip = p->frame + p->l3, *l4 = p->frame + p->l4;
    if (!p->mergeable)
        return false;
    if (p->udp) {
        if (!m->core->merge_udp || get16(l4 + 4) != p->size - p->l4 || (l4[6] | l4[7]) == 0)
            return false;
    } else if (!(l4[13] & ACK) || (l4[13] & ~(ACK | PSH | FIN | ECE)) || (l4[12] & 0x0f)) {
        return false;
    }
    if (!p->v6 && fold(sum(0, ip, 20)) != 0xffff)
        return false;
    return fold(sum(pseudo_sum(ip, p->v6, p->udp ? 17 : 6, p->size - p->l4), l4, p->size - p->l4)) == 0xffff;
}

static bool same_flow(const flow *f, const parsed *p)
{
    if (f->hash != p->hash || f->v6 != p->v6 || f->udp != p->udp || memcmp(f->frame, p->frame, ETHERNET))
        return false;
    uint32_t addresses = p->v6 ? 8 : 12, length = p->v6 ? 32 : 8;
    return memcmp(f->frame + f->l3 + addresses, p->frame + p->l3 + addresses, length) == 0
        && memcmp(f->frame + f->l4, p->frame + p->l4, 4) == 0;
}

static bool follows(flow *f, const parsed *p)
{
    const uint8_t *ip = p->frame + p->l3, *ip0 = f->frame + f->l3, *l4 = p->frame + p->l4, *l40 = f->frame + f->l4;
    if (f->closed || f->count == MAX_MERGED || f->header != p->header || p->payload > f->gso_size
        || f->total + p->payload - f->l3 > 65535)
        return false;
    if (p->v6) {
        if (memcmp(ip, ip0, 4) || ip[7] != ip0[7])
            return false;
    } else {
        uint16_t step = (uint16_t)(p->id - f->first_id);
        bool constant = step == 0 && (ip[6] & 0x40);
        if (ip[1] != ip0[1] || memcmp(ip + 6, ip0 + 6, 3) || !(step == f->count || constant)
            || (f->count > 1 && f->id_step != (constant ? 0 : 1)))
            return false;
        f->id_step = constant ? 0 : 1;
    }
    if (p->udp)
        return true;
    /* Acknowledgement, data offset, flags but PSH and FIN, window; and the options. */
    return p->sequence == f->next_sequence && memcmp(l4 + 8, l40 + 8, 5) == 0
        && ((l4[13] ^ l40[13]) & ~(PSH | FIN)) == 0 && memcmp(l4 + 14, l40 + 14, 2) == 0
        && memcmp(l4 + 18, l40 + 18, p->header - p->l4 - 18) == 0;
}

static void append(flow *f, const parsed *p)
{
    const uint8_t *l4 = p->frame + p->l4;
    if (f->count == 0) {
        f->frame = p->frame, f->size = f->total = p->size, f->header = p->header, f->l3 = p->l3, f->l4 = p->l4;
        f->hash = p->hash, f->v6 = p->v6, f->udp = p->udp, f->gso_size = p->payload, f->first_id = p->id;
        f->id_step = -1;
        f->closed = false;
        f->last_flags = 0;
        f->pieces[1] = (struct iovec){p->frame, p->size};
    } else {
        f->total += p->payload;
        f->pieces[f->count + 1] = (struct iovec){p->frame + p->header, p->payload};
    }
    f->count++;
    f->next_sequence = p->sequence + p->payload;
    if (p->payload < f->gso_size)
        f->closed = true;
    if (!p->udp) {
        f->last_flags = l4[13] & (PSH | FIN);
        if (f->last_flags)
            f->closed = true;
    }
}

void merge_frame(merger *m, uint8_t *frame, uint32_t size)
{
    parsed p;
    if (!parse(&p, frame, size)) {
        /* Whatever this is, a fragment perhaps: it does not overtake. */
        if (size >= ETHERNET && m->used && (get16(frame + 12) == 0x0800 || get16(frame + 12) == 0x86dd))
            merge_flush(m);
        put_alone(m, frame, size);
        return;
    }
    bool may = sound(m, &p);
    if (!p.udp)
        p.sequence = get32(frame + p.l4 + 4);
    for (uint32_t place = 0; place < m->used; place++) {
        flow *f = &m->flows[place];
        if (!same_flow(f, &p))
            continue;
        if (may && follows(f, &p)) {
            append(f, &p);
            return;
        }
        flow_put(m, f);
        drop(m, place);
        break;
    }
    if (!may) {
        put_alone(m, frame, size);
        return;
    }
    if (m->used == FLOWS) {
        flow_put(m, &m->flows[0]);
        drop(m, 0);
    }
    flow *f = &m->flows[m->used++];
    f->count = 0;
    append(f, &p);
}
