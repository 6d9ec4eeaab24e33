/* The table: which peer is behind a MAC, which session leads to a peer, whither a peer's floods go on.
 *
 * Python decides and writes; the loops read. Both tables are open hashes of powers of two, never more than half full.
 * The list of peers is always replaced as a whole, so that no frame meets half of a change.
 */
#include <sodium.h>
#include <stdlib.h>

#include "core.h"

enum { FREE, TAKEN, LEFT };

static uint32_t hash48(uint64_t key)
{
    return (uint32_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 32);
}

/* --- peers --- */

static peer_row *row_in(peer_row *rows, uint32_t mask, uint64_t name)
{
    for (uint32_t at = hash48(name) & mask;; at = (at + 1) & mask)
        if (!rows[at].used || rows[at].name == name)
            return &rows[at];
}

peer_row *peer_find(core *c, uint64_t name)
{
    if (c->table.peers == NULL)
        return NULL;
    peer_row *row = row_in(c->table.peers, c->table.peer_mask, name);
    return row->used ? row : NULL;
}

static void rows_free(peer_row *rows, uint32_t mask)
{
    for (uint32_t at = 0; rows && at <= mask; at++)
        free(rows[at].flood);
    free(rows);
}

static uint32_t mask_for(uint32_t number)
{
    uint32_t size = 16;
    while (size < 2 * (number + 1))
        size *= 2;
    return size - 1;
}

/* A row for a name that has none: where there is no list yet, a session's own peer still is to be found. */
static peer_row *row_make(core *c, uint64_t name)
{
    tables *t = &c->table;
    if (t->peers == NULL || 2 * (t->peer_count + 1) > t->peer_mask + 1) {
        uint32_t mask = mask_for(2 * t->peer_count + 8);
        peer_row *rows = calloc(mask + 1, sizeof *rows);
        if (rows == NULL)
            return NULL;
        for (uint32_t at = 0; t->peers && at <= t->peer_mask; at++)
            if (t->peers[at].used)
                *row_in(rows, mask, t->peers[at].name) = t->peers[at];
        free(t->peers);
        t->peers = rows;
        t->peer_mask = mask;
    }
    peer_row *row = row_in(t->peers, t->peer_mask, name);
    if (!row->used) {
        row->used = true;
        row->name = name;
        t->peer_count++;
    }
    return row;
}

void table_begin(core *c, uint32_t peers)
{
    tables *t = &c->table;
    uint32_t sessions = 0;
    for (session *s = c->sessions; s; s = s->following)
        sessions++;
    t->fresh_mask = mask_for(peers + sessions);
    t->fresh = calloc(t->fresh_mask + 1, sizeof *t->fresh);
}

void table_peer(core *c, uint64_t name, session *hop)
{
    tables *t = &c->table;
    if (t->fresh == NULL)
        return;
    peer_row *row = row_in(t->fresh, t->fresh_mask, name);
    row->used = row->known = true;
    row->name = name;
    row->hop = hop;
}

void table_end(core *c)
{
    tables *t = &c->table;
    if (t->fresh == NULL)
        return;
    pthread_rwlock_wrlock(&c->lock);
    peer_row *old = t->peers;
    uint32_t old_mask = t->peer_mask;
    t->peers = t->fresh;
    t->peer_mask = t->fresh_mask;
    t->fresh = NULL;
    for (session *s = c->sessions; s; s = s->following) {
        if (!s->listening)
            continue;
        peer_row *row = row_in(t->peers, t->peer_mask, s->peer);
        row->used = true;
        row->name = s->peer;
        row->link = s;
    }
    t->peer_count = 0;
    for (uint32_t at = 0; at <= t->peer_mask; at++)
        t->peer_count += t->peers[at].used;
    pthread_rwlock_unlock(&c->lock);
    rows_free(old, old_mask);
}

void table_flood(core *c, uint64_t source, session **hops, uint32_t number)
{
    session **copy = malloc((number ? number : 1) * sizeof *copy);
    if (copy == NULL)
        return;
    if (number)
        memcpy(copy, hops, number * sizeof *copy);
    pthread_rwlock_wrlock(&c->lock);
    peer_row *row = peer_find(c, source);
    session **old = copy;
    if (row && row->known) {
        old = row->flood;
        row->flood = copy;
        row->flood_count = number;
        row->flooding = true;
    }
    pthread_rwlock_unlock(&c->lock);
    free(old);
}

void table_no_flood(core *c, uint64_t source)
{
    pthread_rwlock_wrlock(&c->lock);
    peer_row *row = peer_find(c, source);
    if (row)
        row->flooding = false;
    pthread_rwlock_unlock(&c->lock);
}

/* --- MACs --- */

static mac_row *mac_slot(mac_row *rows, uint32_t mask, uint64_t mac, bool make)
{
    mac_row *left = NULL;
    for (uint32_t at = hash48(mac) & mask;; at = (at + 1) & mask) {
        mac_row *row = &rows[at];
        if (row->state == TAKEN && row->mac == mac)
            return row;
        if (row->state == LEFT && left == NULL)
            left = row;
        if (row->state == FREE)
            return make ? (left ? left : row) : NULL;
    }
}

mac_row *mac_find(core *c, const uint8_t *mac)
{
    return c->table.macs ? mac_slot(c->table.macs, c->table.mac_mask, get48(mac), false) : NULL;
}

static bool macs_grow(tables *t)
{
    uint32_t taken = 0;
    for (uint32_t at = 0; t->macs && at <= t->mac_mask; at++)
        taken += t->macs[at].state == TAKEN;
    uint32_t mask = mask_for(2 * taken + 64);
    mac_row *rows = calloc(mask + 1, sizeof *rows);
    if (rows == NULL)
        return false;
    for (uint32_t at = 0; t->macs && at <= t->mac_mask; at++)
        if (t->macs[at].state == TAKEN)
            *mac_slot(rows, mask, t->macs[at].mac, true) = t->macs[at];
    free(t->macs);
    t->macs = rows;
    t->mac_mask = mask;
    t->mac_used = taken;
    return true;
}

void table_mac(core *c, const uint8_t *mac, uint64_t owner)
{
    tables *t = &c->table;
    pthread_rwlock_wrlock(&c->lock);
    if ((t->macs && 2 * (t->mac_used + 1) <= t->mac_mask) || macs_grow(t)) {
        mac_row *row = mac_slot(t->macs, t->mac_mask, get48(mac), true);
        if (row->state == FREE)
            t->mac_used++;
        *row = (mac_row){.mac = get48(mac), .owner = owner, .state = TAKEN};
    }
    pthread_rwlock_unlock(&c->lock);
}

void table_no_mac(core *c, const uint8_t *mac)
{
    pthread_rwlock_wrlock(&c->lock);
    mac_row *row = mac_find(c, mac);
    if (row)
        row->state = LEFT;
    pthread_rwlock_unlock(&c->lock);
}

double table_seen(core *c, const uint8_t *mac)
{
    pthread_rwlock_rdlock(&c->lock);
    mac_row *row = mac_find(c, mac);
    uint64_t seen = row ? __atomic_load_n(&row->seen, __ATOMIC_RELAXED) : 0;
    pthread_rwlock_unlock(&c->lock);
    return (double)seen / 1e9;
}

void table_free(core *c)
{
    rows_free(c->table.peers, c->table.peer_mask);
    rows_free(c->table.fresh, c->table.fresh_mask);
    free(c->table.macs);
}

/* --- sessions --- */

session *session_new(core *c, uint32_t serial, uint64_t peer, const uint8_t *key, int outbound)
{
    session *s = calloc(1, sizeof *s);
    if (s == NULL)
        return NULL;
    s->serial = serial;
    s->peer = peer;
    s->sealed = key != NULL;
    s->head = key ? SEALED_HEAD : PLAIN_HEAD;
    s->max_payload = MAX_PAYLOAD;
    s->mtu = UNKNOWN_MTU;
    if (key) {
        uint8_t nonce[16] = {outbound ? 0x80 : 0};
        crypto_core_hsalsa20(s->key_out, nonce, key, NULL);
        nonce[0] ^= 0x80;
        crypto_core_hsalsa20(s->key_in, nonce, key, NULL);
    }
    pthread_rwlock_wrlock(&c->lock);
    s->following = c->sessions;
    c->sessions = s;
    pthread_rwlock_unlock(&c->lock);
    return s;
}

void session_close(core *c, session *s)
{
    pthread_rwlock_wrlock(&c->lock);
    for (session **at = &c->sessions; *at; at = &(*at)->following)
        if (*at == s) {
            *at = s->following;
            break;
        }
    for (uint32_t at = 0; c->table.peers && at <= c->table.peer_mask; at++) {
        peer_row *row = &c->table.peers[at];
        if (row->link == s)
            row->link = NULL;
        if (row->hop == s)
            row->hop = NULL;
        for (uint32_t place = 0; row->flooding && place < row->flood_count; place++)
            if (row->flood[place] == s)
                row->flooding = false;
    }
    out_forget(&c->python, s);
    rx_forget(c->rx, s);
    tx_forget(c->tx, s);
    pthread_rwlock_unlock(&c->lock);
    window_free(&s->seen[0]);
    window_free(&s->seen[1]);
    sodium_memzero(s, sizeof *s);
    free(s);
}

void session_listen(core *c, session *s)
{
    pthread_rwlock_wrlock(&c->lock);
    peer_row *row = row_make(c, s->peer);
    if (row) {
        if (row->link)
            row->link->listening = false;
        row->link = s;
        s->listening = true;
    }
    pthread_rwlock_unlock(&c->lock);
}

void session_aim(core *c, session *s, int v6, const uint8_t *address, int port, uint32_t scope)
{
    struct sockaddr_storage remote = {0};
    struct sockaddr_in *four = (struct sockaddr_in *)&remote;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)&remote;
    if (v6) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons((uint16_t)port);
        six->sin6_scope_id = scope;
        memcpy(&six->sin6_addr, address, 16);
    } else {
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)port);
        memcpy(&four->sin_addr, address, 4);
    }
    pthread_rwlock_wrlock(&c->lock);
    s->remote = remote;
    s->remote_size = v6 ? sizeof *six : sizeof *four;
    s->v6 = v6;
    s->has_remote = true;
    s->has_origin = false;
    pthread_rwlock_unlock(&c->lock);
}

void session_origin(core *c, session *s, int v6, const uint8_t *address)
{
    pthread_rwlock_wrlock(&c->lock);
    if (s->v6 == (v6 != 0)) {
        memcpy(s->origin, address, v6 ? 16 : 4);
        s->has_origin = true;
    }
    pthread_rwlock_unlock(&c->lock);
}

void session_limit(core *c, session *s, uint32_t max_payload, uint32_t mtu, int fragments_pass)
{
    pthread_rwlock_wrlock(&c->lock);
    s->max_payload = max_payload;
    s->mtu = mtu;
    s->fragments_pass = fragments_pass;
    pthread_rwlock_unlock(&c->lock);
}

uint64_t session_count(session *s, int which) { return __atomic_load_n(&s->counts[which], __ATOMIC_RELAXED); }
