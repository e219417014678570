// ChaCha20's keystream (RFC 8439): one block at a time, and eight or sixteen at a time in vectors. Equal bits either way.
#include "include/CCryptography.h"
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words are copied as they lie in memory: a big-endian machine needs them swapped"
#endif

static void fill_state(uint32_t state[16], const uint8_t key[32], uint64_t nonce, uint64_t counter) {
    // "expand 32-byte k" in four words (section 2.3).
    state[0] = 0x61707865, state[1] = 0x3320646e, state[2] = 0x79622d32, state[3] = 0x6b206574;
    memcpy(state + 4, key, 32);
    memcpy(state + 12, &counter, 8);
    memcpy(state + 14, &nonce, 8);
}

#define ROTATED(value, count) ((value) << (count) | (value) >> (32 - (count)))
#define QUARTER_ROUND(a, b, c, d)                \
    do {                                         \
        a += b, d ^= a, d = ROTATED(d, 16);      \
        c += d, b ^= c, b = ROTATED(b, 12);      \
        a += b, d ^= a, d = ROTATED(d, 8);       \
        c += d, b ^= c, b = ROTATED(b, 7);       \
    } while (0)
/// Twenty rounds: ten times the four columns, then the four diagonals (section 2.3.1).
#define TWENTY_ROUNDS(x)                                  \
    for (int round = 0; round < 10; round++) {            \
        QUARTER_ROUND(x[0], x[4], x[8], x[12]);           \
        QUARTER_ROUND(x[1], x[5], x[9], x[13]);           \
        QUARTER_ROUND(x[2], x[6], x[10], x[14]);          \
        QUARTER_ROUND(x[3], x[7], x[11], x[15]);          \
        QUARTER_ROUND(x[0], x[5], x[10], x[15]);          \
        QUARTER_ROUND(x[1], x[6], x[11], x[12]);          \
        QUARTER_ROUND(x[2], x[7], x[8], x[13]);           \
        QUARTER_ROUND(x[3], x[4], x[9], x[14]);           \
    }

void tributary_chacha20_blocks_scalar(const uint8_t key[32], uint64_t nonce, uint64_t counter, uint8_t *out, size_t count) {
    for (; count > 0; count--, counter++, out += 64) {
        uint32_t state[16], x[16];
        fill_state(state, key, nonce, counter);
        memcpy(x, state, 64);
        TWENTY_ROUNDS(x)
        for (int i = 0; i < 16; i++) x[i] += state[i];
        memcpy(out, x, 64);
    }
}

#if defined(__x86_64__)
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));

/// Defines a function that makes as many whole groups of `lanes` blocks as `count` holds, a block in each lane, and returns
/// how many blocks those are.
#define GROUPS(name, vector, lanes, instructions)                                                             \
    __attribute__((target(instructions))) static size_t name(                                                 \
        const uint8_t key[32], uint64_t nonce, uint64_t counter, uint8_t *out, size_t count                   \
    ) {                                                                                                       \
        uint32_t words[16];                                                                                   \
        fill_state(words, key, nonce, counter);                                                               \
        size_t done = 0;                                                                                      \
        for (; done + lanes <= count; done += lanes, out += 64 * lanes) {                                     \
            vector state[16], x[16];                                                                          \
            for (int i = 0; i < 16; i++) state[i] = (vector){} + words[i];                                    \
            for (int lane = 0; lane < lanes; lane++) {                                                        \
                uint64_t block = counter + done + (uint64_t)lane;                                             \
                state[12][lane] = (uint32_t)block, state[13][lane] = (uint32_t)(block >> 32);                 \
            }                                                                                                 \
            for (int i = 0; i < 16; i++) x[i] = state[i];                                                     \
            TWENTY_ROUNDS(x)                                                                                  \
            for (int i = 0; i < 16; i++) x[i] += state[i];                                                    \
            for (int lane = 0; lane < lanes; lane++) {                                                        \
                uint32_t block[16];                                                                           \
                for (int i = 0; i < 16; i++) block[i] = x[i][lane];                                           \
                memcpy(out + 64 * lane, block, 64);                                                           \
            }                                                                                                 \
        }                                                                                                     \
        return done;                                                                                          \
    }
GROUPS(groups_avx512, u32x16, 16, "avx512f,avx512bw,avx512vl,avx2")
GROUPS(groups_avx2, u32x8, 8, "avx2")
#endif

void tributary_chacha20_blocks(const uint8_t key[32], uint64_t nonce, uint64_t counter, uint8_t *out, size_t count) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    size_t done = 0;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        done = groups_avx512(key, nonce, counter, out, count);
    if (__builtin_cpu_supports("avx2"))
        done += groups_avx2(key, nonce, counter + done, out + 64 * done, count - done);
    counter += done, out += 64 * done, count -= done;
#endif
    tributary_chacha20_blocks_scalar(key, nonce, counter, out, count);
}
