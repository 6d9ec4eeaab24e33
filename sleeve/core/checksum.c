/* Internet checksums (RFC 1071), eight octets at a time. */
#include <arpa/inet.h>

#include "core.h"

uint64_t sum(uint64_t start, const void *from, size_t size)
{
    const uint8_t *at = from;
    uint64_t low = 0, high = 0;
    for (; size >= 32; size -= 32, at += 32) {
        uint32_t words[8];
        memcpy(words, at, sizeof words);
        low += (uint64_t)words[0] + words[2] + words[4] + words[6];
        high += (uint64_t)words[1] + words[3] + words[5] + words[7];
    }
    for (; size >= 4; size -= 4, at += 4) {
        uint32_t word;
        memcpy(&word, at, sizeof word);
        low += word;
    }
    uint32_t rest = 0;
    memcpy(&rest, at, size);
    /* Two sums of less than 2^53 each; the start is folded so that nothing overflows. */
    return (start & 0xffffffff) + (start >> 32) + low + high + rest;
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
