/* Internet checksums (RFC 1071), in 32-bit words that are added in vectors of 64-bit ones. */
#include <arpa/inet.h>

#include "core.h"

typedef uint64_t wide __attribute__((vector_size(32)));

uint64_t sum(uint64_t start, const void *from, size_t size)
{
    const uint8_t *at = from;
    wide low = {0}, high = {0}, words;
    for (; size >= sizeof words; size -= sizeof words, at += sizeof words) {
        memcpy(&words, at, sizeof words);
        low += words & 0xffffffff;
        high += words >> 32;
    }
    uint64_t total = low[0] + low[1] + low[2] + low[3] + high[0] + high[1] + high[2] + high[3];
    for (; size >= 4; size -= 4, at += 4) {
        uint32_t word;
        memcpy(&word, at, sizeof word);
        total += word;
    }
    uint32_t rest = 0;
    memcpy(&rest, at, size);
    /* Less than 2^53; the start is folded so that nothing overflows. */
    return (start & 0xffffffff) + (start >> 32) + total + rest;
}

uint16_t fold(uint64_t total)
{
    total = (total & 0xffffffff) + (total >> 32);
    total = (total & 0xffffffff) + (total >> 32);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    return (uint16_t)total;
}

uint64_t pseudo_sum(const uint8_t *ip, bool v6, uint8_t protocol, uint32_t size)
{
    uint64_t total = v6 ? sum(0, ip + 8, 32) : sum(0, ip + 12, 8);
    return total + htonl(size) + htons(protocol);
}
