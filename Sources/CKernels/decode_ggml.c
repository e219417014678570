// GGML's blocks to floats, a tile at a time (ggml-common.h: block_q8_0, block_q4_0, block_q4_K, block_q6_K).
#include "path.h"
#include <string.h>

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef u8x16 u8x16_u __attribute__((aligned(1), may_alias));

BODY u8x16 bytes_at(const uint8_t *from) { return *(const u8x16_u *)from; }
/// Sixteen small numbers as floats; no function, since a vector this wide changes how functions are called.
#define FLOATS_OF(values) __builtin_convertvector(__builtin_convertvector((i8x16)(values), i32x16), f32x16)

/// f16 d, 32 bytes q: x = d q.
BODY void q8_0_block(const uint8_t *from, float *to) {
    float d = half_at(from);
    for (int i = 0; i < 32; i += 16) STORE(to + i, FLOATS_OF(bytes_at(from + 2 + i)) * SPLAT(d));
}

/// f16 d, 16 bytes: the low halves are the first 16 numbers, the high halves the rest; x = d (q - 8).
BODY void q4_0_block(const uint8_t *from, float *to) {
    float d = half_at(from);
    u8x16 bytes = bytes_at(from + 2);
    STORE(to, FLOATS_OF((i8x16)(bytes & 15) - 8) * SPLAT(d));
    STORE(to + 16, FLOATS_OF((i8x16)(bytes >> 4) - 8) * SPLAT(d));
}

/// f16 d and m, 12 bytes of eight 6-bit scales and minima, 128 bytes: of each 32 the low halves are 32 numbers and the high
/// halves the next 32; x = (d scale) q - (m minimum).
BODY void q4_k_block(const uint8_t *from, float *to) {
    float d = half_at(from), m = half_at(from + 2);
    const uint8_t *packed = from + 4, *codes = from + 16;
    for (int run = 0; run < 8; run++) {
        int scale, minimum;
        if (run < 4) {
            scale = packed[run] & 63;
            minimum = packed[run + 4] & 63;
        } else {
            scale = (packed[run + 4] & 15) | (packed[run - 4] >> 6) << 4;
            minimum = (packed[run + 4] >> 4) | (packed[run] >> 6) << 4;
        }
        float factor = d * (float)scale, offset = m * (float)minimum;
        for (int i = 0; i < 32; i += 16) {
            u8x16 bytes = bytes_at(codes + run / 2 * 32 + i);
            u8x16 halves = run & 1 ? bytes >> 4 : bytes & 15;
            STORE(to + run * 32 + i, FLOATS_OF(halves) * SPLAT(factor) - SPLAT(offset));
        }
    }
}

/// 128 bytes of low halves, 64 bytes of pairs of high bits, 16 signed scales, f16 d; x = (d scale) (q - 32). Each half of
/// the block takes 64 and 32 bytes for four runs of 32 numbers.
BODY void q6_k_block(const uint8_t *from, float *to) {
    const uint8_t *low = from, *high = from + 128;
    const int8_t *scales = (const int8_t *)(from + 192);
    float d = half_at(from + 208);
    for (int half = 0; half < 2; half++) {
        for (int run = 0; run < 4; run++) {
            for (int i = 0; i < 32; i += 16) {
                u8x16 bytes = bytes_at(low + half * 64 + (run & 1) * 32 + i);
                u8x16 halves = run < 2 ? bytes & 15 : bytes >> 4;
                u8x16 bits = bytes_at(high + half * 32 + i) >> (uint8_t)(2 * run) & 3;
                float factor = d * (float)scales[half * 8 + run * 2 + i / 16];
                STORE(to + half * 128 + run * 32 + i, FLOATS_OF((i8x16)(halves | bits << 4) - 32) * SPLAT(factor));
            }
        }
    }
}

/// Rows at `step` bytes from one another, columns column0 ..< column1 of each; a block that is only partly wanted is decoded
/// beside its place.
#define DECODE_ROWS(block, elements, bytes)                                                                                  \
    for (long row = 0; row < rows; row++) {                                                                                  \
        const uint8_t *from = values + row * step;                                                                           \
        float *to = out + row * stride - column0;                                                                            \
        for (long column = column0; column < column1;) {                                                                     \
            long first = column / (elements) * (elements), end = first + (elements) < column1 ? first + (elements) : column1; \
            const uint8_t *place = from + column / (elements) * (bytes);                                                     \
            if (end - column == (elements)) {                                                                                \
                block(place, to + column);                                                                                   \
            } else {                                                                                                         \
                float whole[elements];                                                                                       \
                block(place, whole);                                                                                         \
                memcpy(to + column, whole + (column - first), 4 * (size_t)(end - column));                                   \
            }                                                                                                                \
            column = end;                                                                                                    \
        }                                                                                                                    \
    }

BODY void ggml_body(int type, const uint8_t *values, long step, long rows, long column0, long column1, float *out, long stride) {
    switch (type) {
    case TRIBUTARY_GGML_Q8_0: DECODE_ROWS(q8_0_block, 32, 34) break;
    case TRIBUTARY_GGML_Q4_0: DECODE_ROWS(q4_0_block, 32, 18) break;
    case TRIBUTARY_GGML_Q4_K: DECODE_ROWS(q4_k_block, 256, 144) break;
    default: DECODE_ROWS(q6_k_block, 256, 210) break;
    }
}
VARIANTS(void, ggml, (int type, const uint8_t *values, long step, long rows, long column0, long column1, float *out, long stride),
         (type, values, step, rows, column0, column1, out, stride))
void tributary_decode_ggml(int path, int type, const void *values, long step, long rows, long column0, long column1, float *out,
                           long stride) {
    CHOOSE(ggml, (type, values, step, rows, column0, column1, out, stride));
}
