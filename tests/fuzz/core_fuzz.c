/* A libFuzzer target over the core itself, with the sanitizers: datagrams of a peer, and frames of the TAP.
 *
 * What must hold: each frame comes out once, unchanged, in the order of its flow; what was merged, when cut again; what was
 * to be cut, as `cut` here does it, which shares nothing with the core; sealed bodies are opened and made by libsodium's
 * secretbox. Input: one operation after the other, fields out of the fuzzer's bytes.
 * Built and run by tests/fuzz/test_fuzz.py. Source: virtio 1.2, §5.1.6.
 */
#include <arpa/inet.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../sleeve/core/core.h"

#define PIECES 4096
#define CHECK(what) ((what) ? (void)0 : (fprintf(stderr, "line %d: %s\n", __LINE__, #what), abort()))

typedef struct {
    uint8_t *octets;
    uint32_t size;
    bool found, ring;
} piece;

typedef struct {
    piece pieces[PIECES];
    uint32_t used;
} pieces;

static const uint8_t LOCAL[6] = {2, 0, 0, 0, 0, 1}, REMOTE[6] = {2, 0, 0, 0, 0, 3}, STRANGER[6] = {2, 0, 0, 0, 0, 5},
                     ALL[6] = {255, 255, 255, 255, 255, 255};
static const uint8_t KEY[32] = {1, 2, 3};
static core *subject;
static session *link_;
static int udp, udp_df, ear, tap;
static struct sockaddr_in core_address;
static uint64_t sent_numbers, seen_numbers[2];
static pieces wanted, got;
static const uint8_t *input;
static size_t left;
static bool unforeseen;

static uint8_t draw(void) { return left ? (left--, *input++) : 0; }
static uint16_t draw16(void) { return (uint16_t)(draw() << 8 | draw()); }

static void add(pieces *to, const uint8_t *octets, uint32_t size, bool ring)
{
    CHECK(to->used < PIECES);
    piece *made = &to->pieces[to->used++];
    *made = (piece){malloc(size + 1), size, false, ring};
    memcpy(made->octets, octets, size);
}

static void forget(pieces *all)
{
    while (all->used)
        free(all->pieces[--all->used].octets);
}

/* --- the reference --- */

static uint32_t words(const uint8_t *from, uint32_t size)
{
    uint32_t total = 0;
    for (uint32_t at = 0; at < size; at++)
        total += at & 1 ? from[at] : (uint32_t)from[at] << 8;
    while (total >> 16)
        total = (total & 0xffff) + (total >> 16);
    return total;
}

static void finish(uint8_t *frame, uint32_t size, bool v6, bool is_udp, uint32_t l4)
{
    uint8_t *ip = frame + 14, *field = frame + l4 + (is_udp ? 6 : 16), pseudo[40] = {0};
    if (v6) {
        put16(ip + 4, size - 54);
    } else {
        put16(ip + 2, size - 14);
        put16(ip + 10, 0);
        put16(ip + 10, 0xffff - words(ip, 20));
    }
    if (is_udp)
        put16(frame + l4 + 4, size - l4);
    memcpy(pseudo, ip + (v6 ? 8 : 12), v6 ? 32 : 8);
    put32(pseudo + 32, size - l4 + (is_udp ? 17 : 6));
    put16(field, 0);
    uint32_t check = 0xffff - words((uint8_t[4]){(uint8_t)(words(pseudo, 36) >> 8), (uint8_t)words(pseudo, 36),
                                                 (uint8_t)(words(frame + l4, size - l4) >> 8),
                                                 (uint8_t)words(frame + l4, size - l4)}, 4);
    put16(field, is_udp && check == 0 ? 0xffff : check);
}

/* The frames that a super-frame stands for. */
static void cut(pieces *into, const uint8_t *frame, uint32_t size, uint32_t gso, bool v6, bool is_udp, uint32_t l4)
{
    uint32_t header = l4 + (is_udp ? 8 : (frame[l4 + 12] >> 4) * 4u), number = 0;
    CHECK(header < size && gso);
    for (uint32_t at = header; at < size; at += gso, number++) {
        uint8_t made[70000];
        uint32_t length = size - at < gso ? size - at : gso;
        memcpy(made, frame, header);
        memcpy(made + header, frame + at, length);
        if (!v6)
            put16(made + 18, get16(made + 18) + number);
        if (!is_udp) {
            put32(made + l4 + 4, get32(made + l4 + 4) + at - header);
            if (at + length < size)
                made[l4 + 13] &= (uint8_t)~0x09;
            if (number)
                made[l4 + 13] &= 0x7f;
        }
        finish(made, header + length, v6, is_udp, l4);
        add(into, made, header + length, false);
    }
}

/* --- what is drawn --- */

/* A packet without its checksums; returns its size. */
static uint32_t packet(uint8_t *frame, const uint8_t *to, const uint8_t *from, bool v6, bool is_udp, uint32_t payload)
{
    uint32_t l4 = v6 ? 54 : 34, options = is_udp ? 0 : (draw() & 3) * 4u, header = l4 + (is_udp ? 8 : 20 + options);
    memset(frame, 0, header);
    memcpy(frame, to, 6);
    memcpy(frame + 6, from, 6);
    put16(frame + 12, v6 ? 0x86dd : 0x0800);
    uint8_t *ip = frame + 14, *top = frame + l4, many = draw();
    ip[0] = v6 ? 0x60 : 0x45;
    ip[v6 ? 6 : 9] = is_udp ? 17 : 6;
    ip[v6 ? 7 : 8] = 64;
    memset(ip + (v6 ? 8 : 12), 10, v6 ? 32 : 8);
    if (!v6)
        put16(ip + 4, draw16()), ip[6] = many & 1 ? 0x40 : 0;
    put16(top, 1000 + (many >> 1 & 1));
    put16(top + 2, 2000);
    if (!is_udp) {
        put32(top + 4, (uint32_t)draw() << 24);
        top[12] = (uint8_t)((20 + options) << 2);
        top[13] = many & 4 ? draw() : 0x10;
        memset(top + 20, 1, options);
    }
    for (uint32_t at = 0; at < payload; at++)
        frame[header + at] = (uint8_t)(at * 7 + many);
    return header + payload;
}

static uint32_t raw(uint8_t *frame, const uint8_t *to, const uint8_t *from)
{
    uint32_t size = 12 + draw();
    for (uint32_t at = 12; at < size; at++)
        frame[at] = draw();
    memcpy(frame, to, 6);
    memcpy(frame + 6, from, 6);
    return size;
}

static const uint8_t *target(const uint8_t *likely)
{
    uint8_t which = draw();
    return which < 200 ? likely : which < 230 ? ALL : STRANGER;
}

/* --- in --- */

static void send_body(const uint8_t *body, uint32_t size)
{
    static uint8_t datagram[70000];
    uint8_t nonce[24] = {0};
    uint64_t number = sent_numbers++ | DF_BIT;
    put48(datagram, 2);
    for (int place = 0; place < 8; place++)
        nonce[16 + place] = datagram[6 + place] = (uint8_t)(number >> (56 - 8 * place));
    crypto_secretbox_easy(datagram + 14, body, size, nonce, KEY);
    size += SEALED_HEAD;
    uint8_t harm = draw();
    bool harmed = harm > 240;
    if (harmed)
        datagram[6 + draw16() % (size - 6)] ^= (uint8_t)(harm - 239);
    sendto(ear, datagram, size, 0, (struct sockaddr *)&core_address, sizeof core_address);
    if (harmed)
        forget(&wanted);
}

/* Frames of one flow, some of them spoilt, in one datagram. */
static void datagram(void)
{
    static uint8_t body[70000], frame[70000];
    uint8_t kind = draw();
    uint32_t size = 0, number = 1 + (kind >> 4), payload = draw16() % 1500;
    const uint8_t *to = target(LOCAL);
    for (uint32_t place = 0; place < number && size < 40000; place++) {
        uint32_t length;
        if (kind & 4) {
            length = raw(frame, to, REMOTE);
        } else {
            bool v6 = kind & 1, is_udp = kind & 2;
            const uint8_t *again = input;
            size_t again_left = left;
            uint8_t spoil = draw();
            length = packet(frame, to, REMOTE, v6, is_udp, spoil & 1 ? draw16() % 1500 : payload);
            uint32_t l4 = v6 ? 54 : 34;
            if (!is_udp)
                put32(frame + l4 + 4, place * payload);
            if (!v6)
                put16(frame + 18, place);
            if (spoil & 2)
                frame[14 + draw() % (length - 14)] ^= draw();
            finish(frame, length, v6, is_udp, l4);
            if (spoil & 4)
                frame[14 + draw() % (length - 14)] ^= draw();
            if (kind & 8 && (spoil & 1) == 0)
                input = again, left = again_left;
        }
        put48(body + size, 2);
        put48(body + size + 6, 1);
        put16(body + size + 12, length);
        memcpy(body + size + 14, frame, length);
        size += 14 + length;
        add(&wanted, frame, length, false);
    }
    send_body(body, size);
    while (core_step_rx(subject) > 0)
        ;
}

/* --- out --- */

static void capture(void)
{
    static uint8_t room[70000];
    uint8_t *frame = room + sizeof(vnet), kind = draw();
    vnet head = {0};
    const uint8_t *to = target(REMOTE);
    uint32_t size;
    if (kind & 8) {
        size = raw(frame, to, LOCAL);
        add(&wanted, frame, size, false);
    } else if (kind & 16) {
        /* A header that no kernel writes. What comes of it is not looked at. */
        size = raw(frame, to, LOCAL);
        for (uint32_t at = 0; at < sizeof head; at++)
            ((uint8_t *)&head)[at] = draw();
    } else {
        bool v6 = kind & 1, is_udp = kind & 2;
        uint32_t gso = kind & 4 ? 1 + draw16() % 2000 : 0, l4 = v6 ? 54 : 34, payload = 1 + draw16() % 30000;
        if (gso == 0)
            payload %= 1500;
        else if (payload / gso > 60)
            payload = 60 * gso;
        size = packet(frame, to, LOCAL, v6, is_udp, payload);
        uint32_t header = size - payload;
        head = (vnet){.flags = VNET_NEEDS_CSUM, .csum_start = (uint16_t)l4, .csum_offset = is_udp ? 6 : 16};
        if (gso) {
            head.gso_type = is_udp ? VNET_UDP : v6 ? VNET_TCP6 : VNET_TCP4;
            head.gso_size = (uint16_t)gso;
            head.header = (uint16_t)header;
            finish(frame, size, v6, is_udp, l4);
            cut(&wanted, frame, size, gso, v6, is_udp, l4);
        } else {
            finish(frame, size, v6, is_udp, l4);
            add(&wanted, frame, size, false);
            uint8_t pseudo[36] = {0};
            memcpy(pseudo, frame + 14 + (v6 ? 8 : 12), v6 ? 32 : 8);
            put32(pseudo + 32, size - l4 + (is_udp ? 17 : 6));
            put16(frame + l4 + head.csum_offset, words(pseudo, 36));
        }
    }
    memcpy(room, &head, sizeof head);
    CHECK(write(tap, room, sizeof head + size) > 0);
    while (core_step_tx(subject) > 0)
        ;
    unforeseen = (kind & 24) == 16;
}

/* --- what came out --- */

static void from_tap(void)
{
    static uint8_t room[70000];
    for (ssize_t size; (size = recv(tap, room, sizeof room, MSG_DONTWAIT)) > 0;) {
        vnet head;
        uint8_t *frame = room + sizeof head;
        memcpy(&head, room, sizeof head);
        size -= (ssize_t)sizeof head;
        if (head.gso_type == VNET_NONE) {
            CHECK(head.flags == 0);
            add(&got, frame, (uint32_t)size, false);
        } else {
            bool v6 = get16(frame + 12) == 0x86dd;
            CHECK(head.csum_start == (v6 ? 54 : 34) && head.flags == VNET_NEEDS_CSUM);
            CHECK(head.gso_type == (head.csum_offset == 6 ? VNET_UDP : v6 ? VNET_TCP6 : VNET_TCP4));
            cut(&got, frame, (uint32_t)size, head.gso_size, v6, head.csum_offset == 6, head.csum_start);
        }
    }
}

static void from_udp(void)
{
    static uint8_t datagram[70000], body[70000];
    for (ssize_t size; (size = recv(ear, datagram, sizeof datagram, MSG_DONTWAIT)) > 0;) {
        uint8_t nonce[24] = {0x80};
        uint64_t number = (uint64_t)get32(datagram + 6) << 32 | get32(datagram + 10);
        CHECK(size >= SEALED_HEAD && get48(datagram) == 1);
        CHECK((number & ~DF_BIT) == seen_numbers[number >> 63]++);
        memcpy(nonce + 16, datagram + 6, 8);
        CHECK(crypto_secretbox_open_easy(body, datagram + 14, (unsigned long long)size - 14, nonce, KEY) == 0);
        uint32_t at = 0, end = (uint32_t)size - SEALED_HEAD;
        while (at < end) {
            CHECK(end - at >= FRAME_HEAD && get48(body + at) == 1 && get48(body + at + 6) == 2);
            uint32_t length = get16(body + at + 12);
            CHECK(length <= end - at - FRAME_HEAD);
            add(&got, body + at + FRAME_HEAD, length, false);
            at += FRAME_HEAD + length;
        }
    }
}

static void from_rings(void)
{
    for (int place = 0; place < RINGS; place++)
        for (record *next; (next = ring_next(subject, place)); ring_done(subject, place))
            if (next->kind == CAPTURED || next->kind == RECEIVED || next->kind == SPECIAL)
                add(&got, ring_frame(next), next->length, true);
}

static bool one_flow(const piece *one, const piece *other)
{
    bool v6 = one->size > 14 && one->octets[12] == 0x86;
    uint32_t from = v6 ? 22 : 26, to = v6 ? 58 : 38, protocol = v6 ? 20 : 23;
    if (one->size < to || other->size < to)
        return one->size < to && other->size < to;
    if (one->octets[protocol] != other->octets[protocol])
        return false;
    return memcmp(one->octets, other->octets, 14) == 0 && memcmp(one->octets + from, other->octets + from, to - from) == 0;
}

static bool equal(const piece *one, const piece *other)
{
    return one->size == other->size && memcmp(one->octets, other->octets, one->size) == 0;
}

static void compare(void)
{
    from_tap();
    from_udp();
    from_rings();
    for (int ring = 1; ring >= 0 && !unforeseen; ring--)
        for (uint32_t place = 0; place < got.used; place++) {
            piece *came = &got.pieces[place];
            if (came->ring != (ring == 1))
                continue;
            uint32_t at = 0;
            while (at < wanted.used && (wanted.pieces[at].found
                                        || !(ring ? equal(came, &wanted.pieces[at]) : one_flow(came, &wanted.pieces[at]))))
                at++;
            CHECK(at < wanted.used);
            CHECK(equal(came, &wanted.pieces[at]));
            wanted.pieces[at].found = true;
        }
    for (uint32_t at = 0; at < wanted.used; at++)
        CHECK(wanted.pieces[at].found);
    unforeseen = false;
    forget(&wanted);
    forget(&got);
}

/* --- */

static int loopback(struct sockaddr_in *address)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), room = 8 << 20;
    socklen_t size = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(fd, (struct sockaddr *)address, size) == 0 && getsockname(fd, (struct sockaddr *)address, &size) == 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    return fd;
}

static void begin(void)
{
    struct sockaddr_in theirs, other;
    int ends[2], room = 8 << 20;
    CHECK(sodium_init() >= 0 && (subject = core_new(1)));
    udp = loopback(&core_address);
    udp_df = loopback(&other);
    ear = loopback(&theirs);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) == 0);
    for (int end = 0; end < 2; end++)
        setsockopt(ends[end], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    tap = ends[0];
    core_socket(subject, 0, udp, udp_df);
    core_tap(subject, ends[1], 1);
    link_ = session_new(subject, 7, 2, KEY, 1);
    session_listen(subject, link_);
    session_aim(subject, link_, 0, (const uint8_t *)&theirs.sin_addr, ntohs(theirs.sin_port), 0);
    table_begin(subject, 2);
    table_peer(subject, 1, NULL);
    table_peer(subject, 2, link_);
    table_end(subject);
    table_mac(subject, LOCAL, 1);
    table_mac(subject, REMOTE, 2);
    table_flood(subject, 1, &link_, 1);
    table_flood(subject, 2, NULL, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (subject == NULL)
        begin();
    input = data, left = size;
    session_limit(subject, link_, 1458, 1400, draw() & 1);
    for (int steps = 0; left && steps < 16; steps++) {
        if (draw() & 1)
            datagram();
        else
            capture();
        compare();
    }
    return 0;
}
