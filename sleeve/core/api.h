/* What Python sees of the core. Read by cffi as it stands: plain declarations, no conditions.
 *
 * Peer names are numbers (48 bits), as in Python. `const uint8_t *` without a length: 6 octets of a MAC, 16 of an
 * address (IPv4 in the first four), 32 of a key. One thread of Python's calls everything but core_run.
 */

/* What a session counts. */
enum {
    FRAMES_OUT, DATAGRAMS_OUT, BYTES_OUT, FRAMES_IN, DATAGRAMS_IN, BYTES_IN, REPLAYED, MALFORMED, TOO_BIG_FOR_DATAGRAM,
    AWAITING_CONTACT, OVER_PATH_MTU, SEND_QUEUE_FULL, NO_BUFFERS, REFUSED_BY_FIREWALL, NETWORK_UNREACHABLE,
    HOST_UNREACHABLE, CONNECTION_REFUSED, NETWORK_DOWN, INVALID_ADDRESS, ADDRESS_NOT_AVAILABLE, SEND_ERROR,
    SESSION_COUNTS
};

/* What belongs to no session. */
enum {
    UNKNOWN_SENDER, RECEIVE_ERROR, NO_RECEIVE_OFFLOAD, NO_SEND_OFFLOAD, TAP_READ_ERROR, TAP_WRITE_ERROR, TAP_MALFORMED, TAP_QUEUE_FULL,
    CORE_LOCAL, CORE_SENT, CORE_FLOODED, CORE_RELAYED, CORE_INJECTED, CORE_MERGED, CORE_TO_PYTHON, CORE_NOT_TO_PYTHON,
    CORE_COUNTS
};

/* Kinds of records in the rings, and the rings in the order in which they are to be emptied. */
enum { CAPTURED, RECEIVED, SPECIAL, PATH_MTU, TROUBLE, BAD_DATAGRAM };
enum { EVENTS_PYTHON, EVENTS_TX, EVENTS_RX, FRAMES_TX, FRAMES_RX, RINGS };

/* The loops that one thread runs. */
enum { RUN_TX = 1, RUN_RX = 2 };

/* What is wrong with a datagram. */
enum { TOO_SHORT = 1, NOT_OPENED, TRAILING_GARBAGE, FRAME_CUT };

typedef struct core core;
typedef struct session session;

/* What happened, `length` octets of a frame behind it. */
typedef struct {
    uint32_t size;
    uint32_t length;
    uint64_t source;
    uint64_t destination;
    uint32_t serial;
    uint32_t kind;
    uint32_t first;
    uint32_t second;
    uint64_t number;
    uint32_t family;
    uint32_t port;
    uint32_t scope;
    uint8_t address[16];
} record;

core *core_new(uint64_t ourself);
void core_free(core *);
int core_wake_fd(core *);
void core_socket(core *, int v6, int fd, int df_fd);
void core_tap(core *, int fd, int merge_udp);
void core_run(core *, int loops);
int core_step_tx(core *);
int core_step_rx(core *);
void core_stop(core *);
uint64_t core_count(core *, int which);
void core_flush(core *);

session *session_new(core *, uint32_t serial, uint64_t peer, const uint8_t *key, int outbound);
void session_close(core *, session *);
void session_listen(core *, session *);
void session_aim(core *, session *, int v6, const uint8_t *address, int port, uint32_t scope);
void session_origin(core *, session *, int v6, const uint8_t *address);
void session_limit(core *, session *, uint32_t max_payload, uint32_t mtu, int fragments_pass);
void session_send(core *, session *, uint64_t source, uint64_t destination, const uint8_t *frame, uint32_t size, int df);
void session_send_alone(
    core *, session *, uint64_t source, uint64_t destination, const uint8_t *frame, uint32_t size, int df);
uint64_t session_count(session *, int which);

record *ring_next(core *, int ring);
uint8_t *ring_frame(record *);
void ring_done(core *, int ring);

void table_begin(core *, uint32_t peers);
void table_peer(core *, uint64_t peer, session *hop);
void table_end(core *);
void table_flood(core *, uint64_t source, session **hops, uint32_t count);
void table_no_flood(core *, uint64_t source);
void table_mac(core *, const uint8_t *mac, uint64_t owner);
void table_no_mac(core *, const uint8_t *mac);
double table_seen(core *, const uint8_t *mac);
