/* The core's own types, and what its files give each other. See api.h for what Python sees.
 *
 * Two loops run here, from the TAP to UDP (tx.c) and from UDP to the TAP (rx.c), each in a thread of its own or both in
 * one; Python's thread sends too. What they share, table and sessions, Python writes under the write lock; each loop holds the read lock for one batch and
 * keeps no pointer beyond it. Each of the three has an outbox (out.c) and rings (ring.c) of its own. No policy: what
 * is not plainly to be forwarded goes up to Python as it came.
 */
#pragma once

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "api.h"

#define NAME_SIZE 6
#define FRAME_HEAD 14
#define ETHERNET 14
#define PLAIN_HEAD 6
#define SEALED_HEAD 30
#define TAG_SIZE 16
#define MAX_PAYLOAD 65507
#define MAX_FRAME 65600
#define UNKNOWN_MTU 65535
#define DF_BIT (UINT64_C(1) << 63)
/* The cipher works on whole blocks of this many octets, so it reads and writes that far behind a message. */
#define ROUND 512
#define SLACK ROUND
/* Room before the first datagram of a buffer, which the cipher's 32 octets of zeros reach into. */
#define LEAD 64
#define MAX_SEGMENTS 64
#define MAX_FRAMES 100
#define LANES 16
#define NO_OWNER UINT64_MAX

typedef struct __attribute__((packed)) {
    uint8_t flags, gso_type;
    uint16_t header, gso_size, csum_start, csum_offset;
} vnet;

enum { VNET_NEEDS_CSUM = 1, VNET_NONE = 0, VNET_TCP4 = 1, VNET_TCP6 = 4, VNET_UDP = 5, VNET_ECN = 0x80 };

/* --- replay.c --- */

typedef struct {
    uint64_t number;
    uint64_t *current, *previous;
} window;

bool window_accept(window *, uint64_t sequence);
void window_free(window *);

/* --- table.c --- */

struct session {
    uint32_t serial;
    uint64_t peer;
    bool sealed, listening;
    uint32_t head;
    uint8_t key_out[32], key_in[32];
    uint64_t next[2];
    window seen[2];
    bool has_remote, v6, has_origin;
    struct sockaddr_storage remote;
    socklen_t remote_size;
    uint8_t origin[16];
    uint32_t max_payload, mtu;
    bool fragments_pass;
    int trouble;
    uint8_t lane[3][2];
    session *following;
    uint64_t counts[SESSION_COUNTS];
};

/* A known peer: where frames to it go (`hop`, NULL: Python knows), and whither its floods (`flooding`: all of them). */
typedef struct {
    uint64_t name;
    session *link, *hop, **flood;
    uint32_t flood_count;
    bool used, known, flooding;
} peer_row;

typedef struct {
    uint64_t mac, owner, seen;
    uint8_t state;
} mac_row;

typedef struct {
    peer_row *peers, *fresh;
    uint32_t peer_mask, peer_count, fresh_mask;
    mac_row *macs;
    uint32_t mac_mask, mac_used;
} tables;

peer_row *peer_find(core *, uint64_t name);
mac_row *mac_find(core *, const uint8_t *mac);
void table_free(core *);

/* --- ring.c --- */

typedef struct {
    uint8_t *buffer;
    uint64_t head, tail, reserved;
    uint32_t size;
    bool rang;
} ring;

bool ring_make(ring *, uint32_t size);
/* Room for a record with a frame of `length`; NULL where the ring is full. `ring_push` makes it visible. */
record *ring_record(ring *, uint32_t kind, uint32_t length);
void ring_push(ring *);

/* --- stream.c, mac.c, box.c --- */

/* Works on whole ROUNDs; the buffers are the same, or apart. */
void stream_xor(uint8_t *to, const uint8_t *from, uint32_t size, const uint8_t nonce[8], const uint8_t key[32]);

typedef struct mac mac;

mac *mac_make(void);
void mac_free(mac *);
void mac_tag(mac *, uint8_t tag[TAG_SIZE], const uint8_t *message, uint32_t size, const uint8_t once[32]);

void box_seal(mac *, const uint8_t key[32], uint64_t sequence, uint8_t *datagram, uint32_t size);
/* Plaintext to `plain` (with SLACK behind it); the datagram has LEAD before it and SLACK behind it. */
bool box_open(mac *, const uint8_t key[32], uint8_t *datagram, uint32_t size, uint8_t *plain);

/* --- out.c --- */

/* Datagrams of one session and one send path: finished ones one behind another, and the one being filled. */
typedef struct {
    session *to;
    int df;
    uint32_t start, end, frames, count;
    uint32_t sizes[MAX_SEGMENTS];
    uint8_t *buffer;
} lane;

typedef struct {
    core *core;
    ring *events;
    mac *mac;
    int index;
    uint32_t used, victim;
    lane lanes[LANES];
} outbox;

bool out_make(outbox *, core *, int index, ring *events);
void out_free(outbox *);
/* Where to write a frame of `size` that goes to a session; NULL where it cannot be carried. */
uint8_t *out_frame(outbox *, session *, uint64_t source, uint64_t destination, uint32_t size, int df);
void out_flush(outbox *);
void out_forget(outbox *, session *);
/* How a frame whose first octets are `head` goes out: 1 with DF, 0 without, -1: Python decides. */
int out_path(const session *, const uint8_t *head, uint32_t head_size, uint32_t size);

/* --- queue.c --- */

typedef struct waiting waiting;
typedef struct queue queue;

/* A frame behind its virtio-net header, `size` octets together. */
struct waiting {
    waiting *next;
    uint32_t size;
    uint8_t *data;
};

queue *queue_make(void);
void queue_free(queue *);
/* Where to read the next frame, at the cost of others if need be; then what was read is put, or nothing was. */
uint8_t *queue_room(queue *, uint32_t *dropped);
void queue_put(queue *, uint32_t size);
void queue_no_frame(queue *);
/* The next in turn, until the next one is taken; NULL where there is none. */
waiting *queue_take(queue *);
bool queue_empty(const queue *);

/* --- segment.c --- */

/* A frame of the TAP: whole, or of segments that share a header. */
typedef struct {
    const uint8_t *frame;
    uint32_t size, header, l3, l4, gso_size, count;
    bool v6, udp;
} super;

bool super_read(super *, const vnet *, uint8_t *frame, uint32_t size);
uint32_t super_size(const super *, uint32_t number);
void super_write(const super *, uint32_t number, uint8_t *to);

/* --- checksum.c --- */

/* Sums are of 16-bit words in this machine's order, unfolded. */
uint64_t sum(uint64_t start, const void *from, size_t size);
uint16_t fold(uint64_t total);
uint64_t pseudo_sum(const uint8_t *ip, bool v6, uint8_t protocol, uint32_t size);

/* --- merge.c --- */

#define FLOWS 32
#define MAX_MERGED 64

typedef struct {
    uint8_t *frame;
    uint32_t hash, size, header, l3, l4, gso_size, total, count, next_sequence;
    uint16_t first_id;
    int id_step;
    bool v6, udp, closed;
    uint8_t last_flags;
    struct iovec pieces[MAX_MERGED + 1];
} flow;

typedef struct {
    core *core;
    uint32_t used;
    flow flows[FLOWS];
} merger;

/* The frame's memory must stay, and may be changed, until `merge_flush`. */
void merge_frame(merger *, uint8_t *frame, uint32_t size);
void merge_flush(merger *);

/* --- rx.c, tx.c, core.c --- */

typedef struct rx rx;
typedef struct tx tx;

struct core {
    pthread_rwlock_t lock;
    uint64_t ourself;
    int wake, bell;
    bool stopping;
    int tap;
    bool merge_udp, segments;
    int udp[2][2];
    session *sessions;
    tables table;
    ring rings[RINGS];
    outbox python;
    rx *rx;
    tx *tx;
    uint64_t counts[CORE_COUNTS];
};

rx *rx_make(core *);
void rx_free(rx *);
void rx_forget(rx *, session *);
/* The sockets that there are, at most four, marked as ready; and one run of each that is. */
int rx_sockets(const core *, struct pollfd *into);
int rx_step(core *, const struct pollfd *ready, int sockets);
tx *tx_make(core *);
void tx_free(tx *);
void tx_forget(tx *, session *);
void core_wake(core *, ring *first, ring *second);
uint64_t now(void);

static inline void count(uint64_t *counts, int which, uint64_t more)
{
    __atomic_fetch_add(&counts[which], more, __ATOMIC_RELAXED);
}

static inline uint64_t get48(const uint8_t *from)
{
    return (uint64_t)from[0] << 40 | (uint64_t)from[1] << 32 | (uint64_t)from[2] << 24 | (uint64_t)from[3] << 16
        | (uint64_t)from[4] << 8 | from[5];
}

static inline void put48(uint8_t *to, uint64_t value)
{
    for (int place = 0; place < NAME_SIZE; place++)
        to[place] = (uint8_t)(value >> (40 - 8 * place));
}

static inline uint16_t get16(const uint8_t *from) { return (uint16_t)(from[0] << 8 | from[1]); }
static inline void put16(uint8_t *to, uint32_t value) { to[0] = (uint8_t)(value >> 8), to[1] = (uint8_t)value; }

static inline uint32_t get32(const uint8_t *from)
{
    return (uint32_t)get16(from) << 16 | get16(from + 2);
}

static inline void put32(uint8_t *to, uint32_t value) { put16(to, value >> 16), put16(to + 2, value & 0xffff); }

/* All of the Ethernet header is zero: such frames are the data paths' own. */
static inline bool is_special(const uint8_t *frame, uint32_t size)
{
    static const uint8_t zeros[ETHERNET];
    return size >= ETHERNET && memcmp(frame, zeros, ETHERNET) == 0;
}
