/* Making and ending a core, its sockets, and the bell that tells Python of records. */
#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#define SOL_UDP_ 17
#define EVENTS_BYTES (1u << 20)
#define FRAMES_BYTES (4u << 20)
#define PAUSE_MS 100

core *core_new(uint64_t ourself)
{
    pthread_rwlockattr_t fair;
    core *c = calloc(1, sizeof *c);
    if (c == NULL || sodium_init() < 0) {
        free(c);
        return NULL;
    }
    /* Else the loops, which hardly ever let go, would keep Python waiting. */
    pthread_rwlockattr_init(&fair);
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&c->lock, &fair);
    pthread_rwlockattr_destroy(&fair);
    c->ourself = ourself;
    c->segments = true;
    c->tap = c->udp[0][0] = c->udp[0][1] = c->udp[1][0] = c->udp[1][1] = -1;
    c->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    c->bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    bool made = c->wake >= 0 && c->bell >= 0;
    for (int place = 0; place < RINGS && made; place++)
        made = ring_make(&c->rings[place], place < FRAMES_TX ? EVENTS_BYTES : FRAMES_BYTES);
    if (made)
        made = out_make(&c->python, c, 2, &c->rings[EVENTS_PYTHON]) && (c->rx = rx_make(c)) && (c->tx = tx_make(c));
    if (!made) {
        core_free(c);
        return NULL;
    }
    return c;
}

void core_free(core *c)
{
    while (c->sessions)
        session_close(c, c->sessions);
    rx_free(c->rx);
    tx_free(c->tx);
    out_free(&c->python);
    table_free(c);
    for (int place = 0; place < RINGS; place++)
        free(c->rings[place].buffer);
    if (c->wake >= 0)
        close(c->wake);
    if (c->bell >= 0)
        close(c->bell);
    pthread_rwlock_destroy(&c->lock);
    free(c);
}

int core_wake_fd(core *c) { return c->wake; }

void core_wake(core *c, ring *one, ring *other)
{
    uint64_t bell = 1;
    if (!one->rang && !other->rang)
        return;
    one->rang = other->rang = false;
    if (write(c->wake, &bell, sizeof bell) < 0 && errno != EAGAIN)
        count(c->counts, CORE_NOT_TO_PYTHON, 1);
}

void core_socket(core *c, int v6, int fd, int df_fd)
{
    int level = v6 ? IPPROTO_IPV6 : IPPROTO_IP, option = v6 ? IPV6_MTU_DISCOVER : IP_MTU_DISCOVER, on = 1;
    int with = v6 ? IPV6_PMTUDISC_DO : IP_PMTUDISC_DO, without = v6 ? IPV6_PMTUDISC_DONT : IP_PMTUDISC_DONT;
    setsockopt(fd, level, option, &without, sizeof without);
    setsockopt(df_fd, level, option, &with, sizeof with);
    if (setsockopt(fd, SOL_UDP_, UDP_GRO, &on, sizeof on) | setsockopt(df_fd, SOL_UDP_, UDP_GRO, &on, sizeof on))
        c->counts[NO_RECEIVE_OFFLOAD] = 1;
    c->udp[v6 ? 1 : 0][0] = fd;
    c->udp[v6 ? 1 : 0][1] = df_fd;
}

static void ring_bell(core *c)
{
    uint64_t once = 1;
    if (write(c->bell, &once, sizeof once) < 0)
        count(c->counts, RECEIVE_ERROR, 1);
}

void core_tap(core *c, int fd, int merge_udp)
{
    c->merge_udp = merge_udp;
    __atomic_store_n(&c->tap, fd, __ATOMIC_RELEASE);
    ring_bell(c);
}

void core_stop(core *c)
{
    __atomic_store_n(&c->stopping, true, __ATOMIC_RELEASE);
    ring_bell(c);
}

void core_run(core *c, int loops)
{
    struct pollfd wanted[6] = {{c->bell, POLLIN, 0}};
    int number = 1 + (loops & RUN_RX ? rx_sockets(c, wanted + 1) : 0), left = 0;
    for (;;) {
        int tap = loops & RUN_TX ? __atomic_load_n(&c->tap, __ATOMIC_ACQUIRE) : -1;
        /* A device that is down seems readable all the time: a while without it. */
        wanted[number] = (struct pollfd){left < 0 ? -1 : tap, POLLIN, 0};
        int ready = poll(wanted, (nfds_t)number + 1, left < 0 ? PAUSE_MS : left ? 0 : -1);
        if (ready < 0 && errno != EINTR)
            return;
        if (ready > 0 && wanted[0].revents) {
            uint64_t rung;
            /* It goes on ringing for whoever else is to stop. */
            if (__atomic_load_n(&c->stopping, __ATOMIC_ACQUIRE))
                return;
            if (read(c->bell, &rung, sizeof rung) < 0 && errno != EAGAIN)
                return;
        }
        int came = ready > 0 && number > 1 ? rx_step(c, wanted + 1, number - 1) : 0;
        /* What was put on the bridge is mostly answered at once. */
        if (tap >= 0 && (left < 0 ? ready == 0 : left || came || wanted[number].revents))
            left = core_step_tx(c);
    }
}

uint64_t core_count(core *c, int which) { return __atomic_load_n(&c->counts[which], __ATOMIC_RELAXED); }

uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
    return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}
