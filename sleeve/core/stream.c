/* Salsa20's stream where the processor has AVX-512: eight blocks side by side, a vector for each of their words.
 *
 * Elsewhere libsodium's runs, which does the same with AVX2: half as many registers, and no rotation. No branch and no
 * address here depends on key or message. Source: Bernstein, "The Salsa20 family of stream ciphers"; NaCl, stream.
 */
#include <sodium.h>

#include "core.h"

#if defined(__x86_64__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_WIDE
#endif
#endif

#ifdef HAS_WIDE

#define BLOCKS 8
#define EACH(place, step) _Pragma("GCC unroll 16") for (int place = 0; place < 16; place += (step))
#define ROTATED(word, bits) ((word) << (bits) | (word) >> (32 - (bits)))
#define QUARTER(a, b, c, d) \
    (x[b] ^= ROTATED(x[a] + x[d], 7), x[c] ^= ROTATED(x[b] + x[a], 9), x[d] ^= ROTATED(x[c] + x[b], 13), \
     x[a] ^= ROTATED(x[d] + x[c], 18))
/* Of two rows of a square: exchange the upper one's right tiles of `size` words with the lower one's left ones. */
#define TURN(upper, size, a, b, c, d, e, f, g, h) \
    do { \
        words *one = &x[upper], *other = one + (size), kept = *one; \
        *one = __builtin_shufflevector(kept, *other, a, b, c, d, e, f, g, h); \
        *other = __builtin_shufflevector(kept, *other, a + (size), b + (size), c + (size), d + (size), e + (size), \
                                         f + (size), g + (size), h + (size)); \
    } while (0)

typedef uint32_t words __attribute__((vector_size(4 * BLOCKS)));
typedef uint32_t words_anywhere __attribute__((vector_size(4 * BLOCKS), aligned(1), may_alias));

__attribute__((target("avx512vl"))) static void wide(uint8_t *to, const uint8_t *from, uint32_t runs,
                                                     const uint8_t nonce[8], const uint8_t key[32])
{
    uint32_t start[16] = {0x61707865, 0, 0, 0, 0, 0x3320646e, 0, 0, 0, 0, 0x79622d32, 0, 0, 0, 0, 0x6b206574};
    words numbers = {0, 1, 2, 3, 4, 5, 6, 7}, x[16];
    memcpy(start + 1, key, 16);
    memcpy(start + 6, nonce, 8);
    memcpy(start + 11, key + 16, 16);
    for (; runs; runs--, numbers += BLOCKS, to += 64 * BLOCKS, from += 64 * BLOCKS) {
        EACH(word, 1) x[word] = (words){0} + start[word];
        x[8] = numbers;
        for (int twice = 0; twice < 10; twice++) {
            QUARTER(0, 4, 8, 12), QUARTER(5, 9, 13, 1), QUARTER(10, 14, 2, 6), QUARTER(15, 3, 7, 11);
            QUARTER(0, 1, 2, 3), QUARTER(5, 6, 7, 4), QUARTER(10, 11, 8, 9), QUARTER(15, 12, 13, 14);
        }
        EACH(word, 1) x[word] += start[word];
        x[8] += numbers;
        /* Words of all blocks become blocks: two squares are mirrored, in tiles of 1, 2 and 4 words. */
        EACH(row, 2) TURN(row, 1, 0, 8, 2, 10, 4, 12, 6, 14);
        EACH(row, 1) if ((row & 2) == 0) TURN(row, 2, 0, 1, 8, 9, 4, 5, 12, 13);
        EACH(row, 1) if ((row & 4) == 0) TURN(row, 4, 0, 1, 2, 3, 8, 9, 10, 11);
        EACH(half, 1) {
            uint32_t at = 64u * (half % BLOCKS) + 32u * (half / BLOCKS);
            *(words_anywhere *)(to + at) = *(const words_anywhere *)(from + at) ^ x[half];
        }
    }
}

#endif

void stream_xor(uint8_t *to, const uint8_t *from, uint32_t size, const uint8_t nonce[8], const uint8_t key[32])
{
#ifdef HAS_WIDE
    if (__builtin_cpu_supports("avx512vl")) {
        wide(to, from, (size + ROUND - 1) / ROUND, nonce, key);
        return;
    }
#endif
    crypto_stream_salsa20_xor(to, from, (size + ROUND - 1) / ROUND * ROUND, nonce, key);
}
