/* Poly1305, of OpenSSL where its library is there: it has code for wide vectors, libsodium has none.
 *
 * Found at run time: nothing is needed to build, and Python's own ssl module mostly has loaded it already.
 * Source: RFC 8439 §2.5; OpenSSL 3, EVP_MAC-POLY1305(7).
 */
#include <dlfcn.h>
#include <sodium.h>
#include <stdlib.h>

#include "core.h"

/* Below, OpenSSL's is slower, which is for the way to it. */
#define WORTH 256

struct mac {
    void *context;
};

static struct {
    void *(*fetch)(void *, const char *, const char *);
    void *(*make)(void *);
    void (*end)(void *);
    int (*init)(void *, const uint8_t *, size_t, const void *);
    int (*update)(void *, const uint8_t *, size_t);
    int (*final)(void *, uint8_t *, size_t *, size_t);
    void *kind;
} openssl;

static void find(void)
{
    void *library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return;
    static const char *const names[] = {
        "EVP_MAC_fetch", "EVP_MAC_CTX_new", "EVP_MAC_CTX_free", "EVP_MAC_init", "EVP_MAC_update", "EVP_MAC_final",
    };
    void *found[6];
    for (int place = 0; place < 6; place++)
        if ((found[place] = dlsym(library, names[place])) == NULL)
            return;
    memcpy(&openssl, found, sizeof found);
    openssl.kind = openssl.fetch(NULL, "POLY1305", NULL);
}

mac *mac_make(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    mac *made = calloc(1, sizeof *made);
    pthread_once(&once, find);
    if (made && openssl.kind)
        made->context = openssl.make(openssl.kind);
    return made;
}

void mac_free(mac *m)
{
    if (m && m->context)
        openssl.end(m->context);
    free(m);
}

void mac_tag(mac *m, uint8_t tag[TAG_SIZE], const uint8_t *message, uint32_t size, const uint8_t once[32])
{
    size_t made;
    if (size < WORTH || m->context == NULL || !openssl.init(m->context, once, 32, NULL)
        || !openssl.update(m->context, message, size) || !openssl.final(m->context, tag, &made, TAG_SIZE))
        crypto_onetimeauth_poly1305(tag, message, size, once);
}
