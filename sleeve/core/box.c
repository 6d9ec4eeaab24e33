/* Sealed bodies: the bytes of NaCl's secretbox, with libsodium's own primitives and less work.
 *
 * The first 16 octets of the nonce never change in one direction, so XSalsa20's subkey is a session's constant and each
 * datagram needs Salsa20 alone. One call over 32 zeros and the message gives the Poly1305 key and the ciphertext; its
 * length is rounded up because the vector code is slow at the tail. Source: data plane spec §3.1; NaCl, secretbox.
 */
#include <sodium.h>

#include "core.h"

#define ZEROS 32

void box_seal(mac *m, const uint8_t key[32], uint64_t sequence, uint8_t *datagram, uint32_t size)
{
    uint8_t *message = datagram + SEALED_HEAD, *zeros = message - ZEROS;
    uint8_t name[NAME_SIZE], nonce[8], once[ZEROS], before[2] = {zeros[0], zeros[1]};
    uint32_t length = size - SEALED_HEAD;
    memcpy(name, datagram, NAME_SIZE);
    for (int place = 0; place < 8; place++)
        nonce[place] = (uint8_t)(sequence >> (56 - 8 * place));
    memset(zeros, 0, ZEROS);
    stream_xor(zeros, zeros, ZEROS + length, nonce, key);
    memcpy(once, zeros, ZEROS);
    mac_tag(m, datagram + NAME_SIZE + 8, message, length, once);
    sodium_memzero(once, sizeof once);
    memcpy(datagram + NAME_SIZE, nonce, sizeof nonce);
    memcpy(datagram, name, NAME_SIZE);
    zeros[0] = before[0], zeros[1] = before[1];
}

bool box_open(mac *m, const uint8_t key[32], uint8_t *datagram, uint32_t size, uint8_t *plain)
{
    uint8_t *message = datagram + SEALED_HEAD, *zeros = message - ZEROS, *opened = plain - ZEROS;
    uint8_t nonce[8], tag[TAG_SIZE], right[TAG_SIZE], before[2] = {zeros[0], zeros[1]};
    uint32_t length = size - SEALED_HEAD;
    memcpy(nonce, datagram + NAME_SIZE, sizeof nonce);
    memcpy(tag, datagram + NAME_SIZE + 8, sizeof tag);
    memset(zeros, 0, ZEROS);
    stream_xor(opened, zeros, ZEROS + length, nonce, key);
    zeros[0] = before[0], zeros[1] = before[1];
    mac_tag(m, right, message, length, opened);
    sodium_memzero(opened, ZEROS);
    return crypto_verify_16(tag, right) == 0;
}
