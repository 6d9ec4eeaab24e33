/* Frames of the TAP, as the kernel hands them over unfinished: checksums to fill in, segments to cut.
 *
 * A segment is the header of all, with lengths, identification, sequence number, flags and checksums of its own, and
 * its part of the payload. Source: virtio 1.2, §5.1.6.2; RFC 9293; RFC 768.
 */
#include "core.h"

enum { FIN = 0x01, PSH = 0x08, CWR = 0x80 };

static bool layer3(super *s)
{
    uint32_t at = 12;
    for (int tags = 0; tags < 2 && s->size >= at + 2; tags++) {
        uint16_t type = get16(s->frame + at);
        if (type != 0x8100 && type != 0x88a8)
            break;
        at += 4;
    }
    s->l3 = at + 2;
    return s->size >= s->l3 + (s->v6 ? 40u : 20u) && get16(s->frame + at) == (s->v6 ? 0x86dd : 0x0800);
}

static bool segments(super *s, const vnet *head)
{
    uint8_t type = (uint8_t)(head->gso_type & ~VNET_ECN);
    s->l4 = head->csum_start;
    s->gso_size = head->gso_size;
    if (!(head->flags & VNET_NEEDS_CSUM) || s->gso_size == 0 || s->size < ETHERNET)
        return false;
    s->udp = type == VNET_UDP;
    s->v6 = type == VNET_TCP6 || (s->udp && s->size > 12 && !layer3(s));
    if (type != VNET_TCP4 && type != VNET_TCP6 && type != VNET_UDP)
        return false;
    if (!layer3(s) || s->l4 < s->l3 + (s->v6 ? 40u : 20u) || s->l4 + (s->udp ? 8u : 20u) > s->size)
        return false;
    s->header = s->l4 + (s->udp ? 8u : (s->frame[s->l4 + 12] >> 4) * 4u);
    if (s->header < s->l4 + (s->udp ? 8u : 20u) || s->header >= s->size)
        return false;
    /* An IPv4 header that ends elsewhere would be summed wrongly. */
    if (!s->v6 && s->l3 + (s->frame[s->l3] & 0x0fu) * 4 != s->l4)
        return false;
    s->count = (s->size - s->header + s->gso_size - 1) / s->gso_size;
    return true;
}

bool super_read(super *s, const vnet *head, uint8_t *frame, uint32_t size)
{
    memset(s, 0, sizeof *s);
    s->frame = frame;
    s->size = size;
    s->count = 1;
    if ((head->gso_type & ~VNET_ECN) != VNET_NONE)
        return segments(s, head);
    if (head->flags & VNET_NEEDS_CSUM) {
        uint32_t start = head->csum_start, field = start + head->csum_offset;
        if (field + 2 > size || start >= size)
            return false;
        uint16_t filled = (uint16_t)~fold(sum(0, frame + start, size - start));
        if (filled == 0)
            filled = 0xffff;
        memcpy(frame + field, &filled, 2);
    }
    return true;
}

uint32_t super_size(const super *s, uint32_t number)
{
    if (s->header == 0)
        return s->size;
    uint32_t payload = s->size - s->header, begin = number * s->gso_size;
    return s->header + (payload - begin < s->gso_size ? payload - begin : s->gso_size);
}

void super_write(const super *s, uint32_t number, uint8_t *to)
{
    if (s->header == 0) {
        memcpy(to, s->frame, s->size);
        return;
    }
    uint32_t begin = number * s->gso_size, size = super_size(s, number), payload = size - s->header;
    bool last = number + 1 == s->count;
    uint8_t *ip = to + s->l3, *l4 = to + s->l4;
    memcpy(to, s->frame, s->header);
    memcpy(to + s->header, s->frame + s->header + begin, payload);
    if (s->v6) {
        put16(ip + 4, size - s->l3 - 40);
    } else {
        put16(ip + 2, size - s->l3);
        put16(ip + 4, (uint16_t)(get16(ip + 4) + number));
        memset(ip + 10, 0, 2);
        uint16_t check = (uint16_t)~fold(sum(0, ip, s->l4 - s->l3));
        memcpy(ip + 10, &check, 2);
    }
    uint8_t *field = l4 + (s->udp ? 6 : 16);
    if (s->udp) {
        put16(l4 + 4, 8 + payload);
    } else {
        put32(l4 + 4, get32(l4 + 4) + begin);
        if (!last)
            l4[13] &= (uint8_t)~(FIN | PSH);
        if (number)
            l4[13] &= (uint8_t)~CWR;
    }
    memset(field, 0, 2);
    uint64_t total = pseudo_sum(ip, s->v6, s->udp ? 17 : 6, size - s->l4);
    uint16_t check = (uint16_t)~fold(sum(total, l4, size - s->l4));
    if (check == 0 && s->udp)
        check = 0xffff;
    memcpy(field, &check, 2);
}
