/* The CNI plugin as it lies on a node: a courier between the container runtime and the router.
 *
 * It decides nothing. What the runtime gave it (variables CNI_*, standard input, the pod's network namespace as an open
 * descriptor) goes to the router's unix socket; the router's answer is printed and its status is ours. Without a router
 * VERSION is answered from here, DEL is put down in a directory that the router works off later, and everything else
 * fails with the code for "try again later". Linked statically: a node may have neither Python nor a C library.
 *
 * All sizes are bounded, and the whole run is: nobody waits for a router that does not answer.
 * The other half, with the format in Python, is wire.py. Source: CNI specification 1.1; Kubernetes and CNI spec §1, §8.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { ENVIRONMENT_LIMIT = 64 << 10, INPUT_LIMIT = 1 << 20, ANSWER_LIMIT = 1 << 20, SPOOL_LIMIT = 4096 };
enum { INVALID_ENVIRONMENT = 4, IO_FAILURE = 5, TRY_AGAIN_LATER = 11, NOT_AVAILABLE = 50 };
enum { NO_NAMESPACE = -1, RETRY_MS = 20, ADD_MS = 100000, OTHER_MS = 15000 };

struct request {
    char magic[4];
    uint16_t version, role;
    int32_t namespace_error; /* 0: the descriptor is attached; NO_NAMESPACE: none was named; else the errno of open */
    uint32_t environment_size, input_size;
};
struct answer {
    uint32_t status, output_size, note_size;
};

static struct {
    struct request head;
    char body[ENVIRONMENT_LIMIT + INPUT_LIMIT];
} request;
static char received[2 * ANSWER_LIMIT];
static int64_t deadline;
extern char **environ;

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int write_all(int descriptor, const char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t written = write(descriptor, bytes, size);
        if (written < 0 && errno != EINTR)
            return -1;
        bytes += written > 0 ? written : 0;
        size -= written > 0 ? (size_t)written : 0;
    }
    return 0;
}

/* An error as the specification wants it, on standard output. */
__attribute__((format(printf, 2, 3), noreturn)) static void fail(int code, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("{\n    \"cniVersion\": \"1.1.0\",\n    \"code\": %d,\n    \"msg\": \"", code);
    for (const char *byte = text; *byte; byte++)
        printf(*byte < 0x20 || *byte > 0x7e || strchr("\"\\", *byte) ? "\\u%04x" : "%c", (unsigned char)*byte);
    printf("\"\n}\n");
    exit(1);
}

static const char *variable(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

/* --- what is to be brought --- */

static void gather_environment(void)
{
    size_t size = 0, length;
    for (char **entry = environ; *entry; entry++) {
        if (strncmp(*entry, "CNI_", 4) != 0)
            continue;
        if ((length = strlen(*entry) + 1) > ENVIRONMENT_LIMIT - size)
            fail(INVALID_ENVIRONMENT, "the variables CNI_* are longer than %d bytes", ENVIRONMENT_LIMIT);
        memcpy(request.body + size, *entry, length);
        size += length;
    }
    request.head.environment_size = (uint32_t)size;
}

static void gather_input(void)
{
    char *start = request.body + request.head.environment_size, beyond;
    size_t size = 0;
    for (;;) {
        ssize_t got = size < INPUT_LIMIT ? read(0, start + size, INPUT_LIMIT - size) : read(0, &beyond, 1);
        if (got < 0 && errno != EINTR)
            fail(IO_FAILURE, "unable to read the network configuration: %s", strerror(errno));
        if (got == 0)
            break;
        if (size == INPUT_LIMIT)
            fail(IO_FAILURE, "the network configuration is longer than %d bytes", INPUT_LIMIT);
        size += got > 0 ? (size_t)got : 0;
    }
    request.head.input_size = (uint32_t)size;
}

static size_t request_size(void) { return sizeof request.head + request.head.environment_size + request.head.input_size; }

/* The namespace has to be opened here: the router may live where its path leads nowhere. */
static int open_namespace(void)
{
    const char *path = variable("CNI_NETNS", NULL);
    int descriptor = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    request.head.namespace_error = descriptor >= 0 ? 0 : path ? errno : NO_NAMESPACE;
    return descriptor;
}

/* --- the router --- */

static int wait_for(int connection, short events)
{
    int64_t left = deadline - now_ms();
    struct pollfd one = {.fd = connection, .events = events};
    int ready = left > 0 ? poll(&one, 1, (int)left) : 0;
    if (ready > 0 || (ready < 0 && errno == EINTR))
        return 0;
    errno = ETIMEDOUT;
    return -1;
}

static int reach(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    while (connection >= 0 && connect(connection, (struct sockaddr *)&address, sizeof address) < 0) {
        /* The router's queue of callers is full, for a moment. */
        if (errno != EAGAIN || now_ms() >= deadline)
            return -1;
        poll(NULL, 0, RETRY_MS);
    }
    return connection;
}

static int send_request(int connection, int namespace)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = {0}};
    size_t sent = 0, size = request_size();
    while (sent < size) {
        struct iovec part = {.iov_base = (char *)&request + sent, .iov_len = size - sent};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        if (sent == 0 && namespace >= 0) {
            control.align = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET};
            control.align.cmsg_type = SCM_RIGHTS;
            memcpy(CMSG_DATA(&control.align), &namespace, sizeof(int));
            message.msg_control = control.bytes;
            message.msg_controllen = sizeof control.bytes;
        }
        ssize_t done = sendmsg(connection, &message, MSG_NOSIGNAL);
        if (done < 0 && ((errno != EAGAIN && errno != EINTR) || wait_for(connection, POLLOUT) < 0))
            return -1;
        sent += done > 0 ? (size_t)done : 0;
    }
    return 0;
}

static int receive(int connection, char *into, size_t size)
{
    while (size > 0) {
        ssize_t got = recv(connection, into, size, 0);
        if (got == 0)
            errno = ECONNRESET;
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return -1;
        if (got < 0 && wait_for(connection, POLLIN) < 0)
            return -1;
        into += got > 0 ? got : 0;
        size -= got > 0 ? (size_t)got : 0;
    }
    return 0;
}

/* Bring the request to the router and print what it says; returns only if there is no answer, with errno. */
static void ask_router(const char *path, int namespace)
{
    struct answer answer;
    int connection = reach(path);
    if (connection < 0)
        return;
    if (send_request(connection, namespace) == 0 && receive(connection, (char *)&answer, sizeof answer) == 0) {
        if (answer.output_size > ANSWER_LIMIT || answer.note_size > ANSWER_LIMIT || answer.status > 255)
            errno = EPROTO;
        else if (receive(connection, received, answer.output_size + answer.note_size) == 0) {
            int printed = write_all(1, received, answer.output_size);
            write_all(2, received + answer.output_size, answer.note_size);
            exit(printed < 0 && answer.status == 0 ? 1 : (int)answer.status);
        }
    }
}

/* --- without a router --- */

/* One file an interface, whatever the runtime repeats: FNV-1a of role, container and interface. wire.py has it too. */
static uint64_t spool_key(void)
{
    const char *parts[] = {request.head.role ? "weave-ipam" : "weave-net", variable("CNI_CONTAINERID", ""),
                           variable("CNI_IFNAME", "")};
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t index = 0; index < sizeof parts / sizeof *parts; index++)
        for (size_t at = 0; at <= strlen(parts[index]); at++)
            hash = (hash ^ (uint8_t)parts[index][at]) * 0x100000001b3;
    return hash;
}

static int spool(const char *directory)
{
    char temporary[32], final[32];
    int count = 0;
    snprintf(temporary, sizeof temporary, ".%d", (int)getpid());
    snprintf(final, sizeof final, "%016llx", (unsigned long long)spool_key());
    mkdir(directory, 0700);
    DIR *listing = opendir(directory);
    if (!listing || fchdir(dirfd(listing)) < 0)
        return -1;
    while (readdir(listing))
        count++;
    errno = ENOSPC;
    if (count > SPOOL_LIMIT)
        return -1;
    int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return -1;
    if (write_all(file, (const char *)&request, request_size()) == 0 && fsync(file) == 0 && rename(temporary, final) == 0)
        return 0;
    int reason = errno;
    unlink(temporary);
    errno = reason;
    return -1;
}

static int ends_with(const char *text, const char *ending)
{
    size_t length = strlen(text), wanted = strlen(ending);
    return length >= wanted && strcmp(text + length - wanted, ending) == 0;
}

int main(int count, char **arguments)
{
    const char *name = count > 0 ? arguments[0] : "";
    if (!ends_with(name, "weave-net") && !ends_with(name, "weave-ipam")) {
        fputs("weave-cni: this is a CNI plugin; its name has to be weave-net or weave-ipam\n", stderr);
        return 1;
    }
    request.head = (struct request){.magic = "\0CNI", .version = 1, .role = ends_with(name, "weave-ipam") ? 1 : 0};
    const char *command = variable("CNI_COMMAND", "");
    if (strcmp(command, "VERSION") == 0) {
        puts("{\"cniVersion\":\"1.1.0\",\"supportedVersions\":"
             "[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}");
        return fflush(stdout) != 0;
    }
    deadline = now_ms() + (strcmp(command, "ADD") == 0 ? ADD_MS : OTHER_MS);
    gather_environment();
    gather_input();
    const char *path = variable("WEAVE_CNI_SOCKET", "/run/weave/weaver.sock");
    ask_router(path, open_namespace());
    const char *reason = strerror(errno);
    if (strcmp(command, "DEL") != 0)
        fail(strcmp(command, "STATUS") == 0 ? NOT_AVAILABLE : TRY_AGAIN_LATER,
             "the weave router does not answer on %s: %s; is it running on this node?", path, reason);
    const char *directory = variable("WEAVE_CNI_SPOOL", "/var/lib/weave/cni");
    if (spool(directory) < 0)
        fail(TRY_AGAIN_LATER, "the weave router does not answer on %s: %s; unable to leave the release in %s: %s", path,
             reason, directory, strerror(errno));
    fprintf(stderr, "weave-cni: the router does not answer on %s: %s; the release waits for it in %s\n", path, reason,
            directory);
    return 0;
}
