// The kernel's part of the fast data path: two programs on every external VXLAN device, one on transmit devices.
//
// `egress` sees what the bridge sends out of the device: it addresses a frame to the peer behind its MAC, or floods it
// to our next hops. `ingress` sees what arrives: it checks where from, relays what is for others, learns, floods along
// the tree of the peer that captured the frame, and leaves the rest to the bridge. What they cannot decide goes to
// the daemon: frames to the TAP `ctl` behind a header, frames for sleeve links to the TAP of sleeve, and addresses
// that were learned into a queue. They decide by maps that the daemon writes, and go on without it.
// Source: data plane spec 4.1, 4.5, 6.2, 6.3. Wire: VNI = source short id | destination short id << 12.
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

static void *(*map_lookup)(void *, const void *) = (void *)BPF_FUNC_map_lookup_elem;
static long (*map_update)(void *, const void *, const void *, __u64) = (void *)BPF_FUNC_map_update_elem;
static long (*map_delete)(void *, const void *) = (void *)BPF_FUNC_map_delete_elem;
static long (*map_push)(void *, const void *, __u64) = (void *)BPF_FUNC_map_push_elem;
static __u64 (*now_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*get_key)(void *, struct bpf_tunnel_key *, __u32, __u64) = (void *)BPF_FUNC_skb_get_tunnel_key;
static long (*set_key)(void *, struct bpf_tunnel_key *, __u32, __u64) = (void *)BPF_FUNC_skb_set_tunnel_key;
static long (*redirect)(__u32, __u64) = (void *)BPF_FUNC_redirect;
static long (*clone_redirect)(void *, __u32, __u64) = (void *)BPF_FUNC_clone_redirect;
static long (*change_head)(void *, __u32, __u64) = (void *)BPF_FUNC_skb_change_head;
static long (*store_bytes)(void *, __u32, const void *, __u32, __u64) = (void *)BPF_FUNC_skb_store_bytes;

#define MAX_HOPS 256
#define MAX_LINKS 512
#define SECOND 1000000000ULL
#define REFLECTION_GUARD (SECOND / 2)
#define SHORT_MASK 0xfff
#define GROUP 1                   // of an address as a number
#define NO_SHORT 0xffff           // a peer that has no short id of its own: sleeve carries its frames
#define STP 0x0000c28001ULL       // 01:80:c2:00:00:00 as the number that `mac` makes of it
#define OLD_KEY __builtin_offsetof(struct bpf_tunnel_key, local_ipv4)
#define ADDRESSED 0x7ea7          // of `tc_index`: a program of ours gave this frame an outer header
#define OTHER_FAMILY -71          // EPROTO: the outer header is IPv6

enum kind { NONE, FAST, SLEEVE };
enum reason { HEARTBEAT = 1, RELAY = 2, FLOOD_SLEEVE = 3, FLOOD_ALL = 4 };
// The names, in this order, are in fastdp/maps.py.
enum count {
    OUT_UNICAST, OUT_FLOOD, OUT_TO_SLEEVE, IN_UNICAST, IN_FLOOD, RELAYED, FLOODED_ON, TO_DAEMON, HEARTBEATS, MOVED,
    NEW_REMOTE, NEW_LOCAL, LOCAL, STP_DROPPED, MALFORMED, REFLECTED, NO_ROUTE, BAD_SOURCE, UNKNOWN_PEER, FROM_OURSELF,
    HAIRPIN, LOCAL_FULL, EVENT_LOST, NO_KEY, REFUSED, COUNTS
};

struct map { __u32 type, key_size, value_size, max_entries, flags; };
// Our short id, the one we had before the last start, and interfaces: sleeve's TAP, the daemon's, the bridge's port.
struct config { __u32 ourself, former, sleeve, ctl, port, spare[3]; };
// A host's address as it is in a bpf_tunnel_key: IPv6, or an IPv4 number and zeros.
struct host { __u32 word[4]; };
// How a peer is reached: addresses of the next hop and of ours for it, the VXLAN device, and what carries frames;
// `flags` are those of bpf_skb_set_tunnel_key; `link` is where traffic with the next hop is counted;
// `direct`: it takes nothing but what we captured for it; `wired` is a transmit device, which gives what we captured
// for this peer the outer header that we would, or 0; `leaf`: nobody gets its floods from us.
struct peer { struct host hop, local; __u32 device, flags, wired; __u8 kind, direct, leaf, spare; __u16 link, more; };
// Next hops of the floods of one source; `sleeve`: others are not carried here.
struct tree { __u16 count, sleeve; __u16 hops[MAX_HOPS]; };
struct address { __u64 seen; __u16 peer; __u16 spare[3]; };
struct learned { __u8 mac[6]; __u16 peer; };
// Frames as they are on the wire, and bytes as we see them: of segments that are not cut yet, headers count once.
struct traffic { __u64 frames_out, bytes_out, frames_in, bytes_in; };
struct header { __u8 reason, spare[3]; __u32 vni; struct host remote; };

struct map SECTION("maps") config = { BPF_MAP_TYPE_ARRAY, 4, sizeof(struct config), 1, 0 };
struct map SECTION("maps") peers = { BPF_MAP_TYPE_ARRAY, 4, sizeof(struct peer), 4096, 0 };
struct map SECTION("maps") trees = { BPF_MAP_TYPE_HASH, 4, sizeof(struct tree), 4096, BPF_F_NO_PREALLOC };
// Who may send to us, and where traffic with it is counted.
struct map SECTION("maps") sources = { BPF_MAP_TYPE_HASH, sizeof(struct host), 4, 8192, BPF_F_NO_PREALLOC };
struct map SECTION("maps") remotes = { BPF_MAP_TYPE_LRU_HASH, 8, sizeof(struct address), 65536, 0 };
struct map SECTION("maps") locals = { BPF_MAP_TYPE_HASH, 8, sizeof(struct address), 16384, BPF_F_NO_PREALLOC };
struct map SECTION("maps") events = { BPF_MAP_TYPE_QUEUE, 0, sizeof(struct learned), 4096, 0 };
struct map SECTION("maps") counts = { BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 32, 0 };
struct map SECTION("maps") traffic = { BPF_MAP_TYPE_PERCPU_ARRAY, 4, MAX_LINKS * sizeof(struct traffic), 1, 0 };

char licence[] SECTION("license") = "Dual MIT/GPL";

INLINE void note(__u32 what)
{
    __u64 *number = map_lookup(&counts, &what);
    if (number)
        (*number)++;
}

// Segments that the kernel has not cut yet count as what they will be.
INLINE __u32 frames(const struct __sk_buff *skb)
{
    return skb->gso_segs ? skb->gso_segs : 1;
}

// Counters by link: one value for all, so that a flood looks them up once.
INLINE struct traffic *links(void)
{
    __u32 zero = 0;
    return map_lookup(&traffic, &zero);
}

INLINE void sent(struct traffic *all, __u32 link, __u32 number, __u32 bytes)
{
    struct traffic *one = &all[link % MAX_LINKS];
    one->frames_out += number;
    one->bytes_out += bytes;
}

INLINE void arrived(const struct __sk_buff *skb, __u32 link)
{
    struct traffic *all = links();
    if (all) {
        all[link % MAX_LINKS].frames_in += frames(skb);
        all[link % MAX_LINKS].bytes_in += skb->len;
    }
}

INLINE int drop(__u32 why)
{
    note(why);
    return TC_ACT_SHOT;
}

// Six bytes as a number, the first one lowest; two zero bytes make it the key of a map.
INLINE __u64 mac(const __u16 *bytes)
{
    return (__u64)bytes[0] | (__u64)bytes[1] << 16 | (__u64)bytes[2] << 32;
}

// Both addresses of a frame; not 0 where it is too short.
INLINE long addresses(struct __sk_buff *skb, __u64 *target, __u64 *source)
{
    const __u16 *header = (void *)(long)skb->data;
    if ((void *)(header + 7) > (void *)(long)skb->data_end)
        return -1;
    *target = mac(header);
    *source = mac(header + 3);
    return 0;
}

INLINE void say(__u64 address, __u16 peer)
{
    struct learned event = { .peer = peer };
    __builtin_memcpy(event.mac, &address, 6);
    if (map_push(&events, &event, 0))
        note(EVENT_LOST);
}

// The outer header of a frame, whatever its family; not 0 where it has none.
INLINE long outer(struct __sk_buff *skb, struct bpf_tunnel_key *key, struct host *remote)
{
    long failed = get_key(skb, key, OLD_KEY, 0);
    if (failed == OTHER_FAMILY)
        failed = get_key(skb, key, OLD_KEY, BPF_F_TUNINFO_IPV6);
    __builtin_memcpy(remote, key->remote_ipv6, sizeof(*remote));
    return failed;
}

INLINE int same(const struct host *one, const struct host *other)
{
    return one->word[3] == other->word[3] && one->word[2] == other->word[2] && one->word[1] == other->word[1] &&
           one->word[0] == other->word[0];
}

// Give a frame the outer header that leads it to a next hop.
INLINE long aim(struct __sk_buff *skb, const struct peer *next, __u32 vni)
{
    struct bpf_tunnel_key key = { .tunnel_ttl = 64 };
    key.tunnel_id = vni;
    __builtin_memcpy(key.remote_ipv6, &next->hop, sizeof(next->hop));
    __builtin_memcpy(key.local_ipv6, &next->local, sizeof(next->local));
    skb->tc_index = ADDRESSED;
    long failed = set_key(skb, &key, sizeof(key), next->flags);
    if (failed)  // Kernels before 6.0 choose the source by the route.
        failed = set_key(skb, &key, OLD_KEY, next->flags);
    return failed;
}

// A frame leaves by one link only.
INLINE void leaves(struct __sk_buff *skb, const struct peer *next, __u32 what)
{
    struct traffic *all = links();
    if (all)
        sent(all, next->link, frames(skb), skb->len);
    note(what);
}

// Copies to all next hops that we carry frames to; whether there are others. Counted once, however many they are.
INLINE int flood(struct __sk_buff *skb, const struct tree *tree, __u32 source, __u32 what)
{
    struct traffic *all = links();
    __u32 number = frames(skb), bytes = skb->len;
    note(what);
    if (!all)
        return 1;
    // The verifier walks through every round of this: no branch may leave a trace behind it.
    for (int i = 0; i < MAX_HOPS; i++) {
        if (i >= tree->count)
            break;
        __u32 hop = tree->hops[i];
        struct peer *next = map_lookup(&peers, &hop);
        if (!next || next->kind != FAST)
            continue;
        sent(all, next->link, number, bytes);
        if (!aim(skb, next, source | hop << 12))
            clone_redirect(skb, next->device, 0);
    }
    return tree->sleeve;
}

// Hand a frame to the daemon, with what it needs to know; whoever calls is done with the frame.
INLINE int ask(struct __sk_buff *skb, const struct config *ours, __u8 reason, __u32 vni, const struct host *remote)
{
    struct header header = { .reason = reason };
    header.vni = __builtin_bswap32(vni);
    header.remote = *remote;
    if (change_head(skb, sizeof(header), 0) || store_bytes(skb, 0, &header, sizeof(header), 0))
        return drop(MALFORMED);
    note(reason == HEARTBEAT ? HEARTBEATS : TO_DAEMON);
    return redirect(ours->ctl, 0);
}

// A frame of ours that left by way of the bridge: its source is here. 0, or why it is to be dropped.
INLINE int learn_local(__u64 source)
{
    __u64 now = now_ns();
    struct address *known = map_lookup(&locals, &source);
    if (known) {
        if (now - known->seen > SECOND)
            known->seen = now;
        return 0;
    }
    struct address *elsewhere = map_lookup(&remotes, &source);
    if (elsewhere) {
        if (now - elsewhere->seen < REFLECTION_GUARD)
            return REFLECTED;
        map_delete(&remotes, &source);
        note(MOVED);
    }
    struct address here = { .seen = now, .peer = NO_SHORT };
    if (map_update(&locals, &source, &here, BPF_ANY)) {
        note(LOCAL_FULL);
    } else {
        note(NEW_LOCAL);
        say(source, NO_SHORT);
    }
    return 0;
}

INLINE void learn_remote(__u64 source, __u16 peer)
{
    __u64 now = now_ns();
    struct address *known = map_lookup(&remotes, &source);
    if (known && known->peer == peer) {
        if (now - known->seen > SECOND / 4)
            known->seen = now;
        return;
    }
    struct address there = { .seen = now, .peer = peer };
    if (known || !map_delete(&locals, &source))
        note(MOVED);
    else
        note(NEW_REMOTE);
    map_update(&remotes, &source, &there, BPF_ANY);
    say(source, peer);
}

SECTION("egress") int frame_out(struct __sk_buff *skb)
{
    struct bpf_tunnel_key key = {};
    struct host remote;
    __u64 target, source;
    __u32 zero = 0;
    struct config *ours = map_lookup(&config, &zero);
    // What has an address already was given it here, or by `ingress`. To look at the mark first is cheaper.
    if (!ours || (skb->tc_index == ADDRESSED && !outer(skb, &key, &remote)))
        return TC_ACT_OK;
    if (addresses(skb, &target, &source))
        return drop(MALFORMED);
    if (!target && !source)
        return drop(MALFORMED);  // The peer would take it for a heartbeat.
    if (!(source & GROUP)) {
        int problem = learn_local(source);
        if (problem)
            return drop(problem);
    }
    __u32 ourself = ours->ourself;
    if (target & GROUP) {
        if (target == STP)
            return drop(STP_DROPPED);
    } else {
        struct address *known = map_lookup(&remotes, &target);
        if (known) {
            __u32 peer = known->peer;
            struct peer *next = map_lookup(&peers, &peer);
            if (!next || next->kind == SLEEVE) {
                note(OUT_TO_SLEEVE);
                return redirect(ours->sleeve, 0);
            }
            if (next->kind != FAST)
                return drop(NO_ROUTE);
            leaves(skb, next, OUT_UNICAST);
            // A key of ours makes the kernel look up a route for every packet; a device of its own remembers it.
            if (next->wired)
                return redirect(next->wired, 0);
            if (aim(skb, next, ourself | peer << 12))
                return drop(NO_KEY);
            return next->device == skb->ifindex ? TC_ACT_OK : redirect(next->device, 0);
        }
        if (map_lookup(&locals, &target))
            return drop(LOCAL);
    }
    struct tree *tree = map_lookup(&trees, &ourself);
    int sleeve = tree ? flood(skb, tree, ourself, OUT_FLOOD) : 1;
    // The bridge itself gives group frames to sleeve's port, but nothing that it does not know.
    if (sleeve && !(target & GROUP)) {
        note(OUT_TO_SLEEVE);
        return redirect(ours->sleeve, 0);
    }
    return TC_ACT_SHOT;
}

SECTION("ingress") int frame_in(struct __sk_buff *skb)
{
    struct bpf_tunnel_key key = {};
    struct host remote;
    __u64 target, source;
    __u32 zero = 0;
    struct config *ours = map_lookup(&config, &zero);
    if (!ours)
        return TC_ACT_SHOT;
    if (outer(skb, &key, &remote))
        return TC_ACT_OK;  // The bridge's copy of a flood, made below.
    __u32 vni = key.tunnel_id & 0xffffff;
    __u32 from = vni & SHORT_MASK, to = vni >> 12;
    struct peer *sender = map_lookup(&peers, &from);
    __u32 link;
    // Most frames come from their origin itself, which was admitted as the next hop to itself.
    if (sender && sender->kind == FAST && same(&sender->hop, &remote)) {
        link = sender->link;
    } else {
        __u32 *admitted = map_lookup(&sources, &remote);
        if (!admitted)
            return drop(BAD_SOURCE);
        link = *admitted;
    }
    if (addresses(skb, &target, &source))
        return drop(MALFORMED);
    if (!target && !source)
        return ask(skb, ours, HEARTBEAT, vni, &remote);
    arrived(skb, link);
    if (from == ours->ourself || from == ours->former)
        return drop(FROM_OURSELF);
    if (!sender || sender->kind == NONE)
        return drop(UNKNOWN_PEER);
    if (to != ours->ourself && to != ours->former) {
        struct peer *next = map_lookup(&peers, &to);
        if (!next || next->kind == NONE)
            return drop(NO_ROUTE);
        if (next->kind == SLEEVE || next->direct)
            return ask(skb, ours, RELAY, vni, &remote);
        if (same(&next->hop, &remote))
            return drop(HAIRPIN);
        leaves(skb, next, RELAYED);
        if (aim(skb, next, vni))
            return drop(NO_KEY);
        return redirect(next->device, 0);
    }
    if (!(source & GROUP))
        learn_remote(source, from);
    // Where there is nobody to flood to, it makes no difference whether the target is known here.
    if (!(target & GROUP) && (sender->leaf || map_lookup(&locals, &target))) {
        note(IN_UNICAST);
        return TC_ACT_OK;
    }
    note(IN_FLOOD);
    struct tree *tree = map_lookup(&trees, &from);
    int sleeve = tree ? flood(skb, tree, from, FLOODED_ON) : 1;
    if (!sleeve)
        return TC_ACT_OK;
    clone_redirect(skb, ours->port, BPF_F_INGRESS);
    return ask(skb, ours, tree ? FLOOD_SLEEVE : FLOOD_ALL, vni, &remote);
}

// What arrives at a transmit device, whose UDP port is nobody's business, must not come into the host.
SECTION("refuse") int frame_refused(struct __sk_buff *skb)
{
    (void)skb;
    return drop(REFUSED);
}
