// GGML's blocks (ggml-common.h: block_q4_0, block_q4_1, block_q5_0, block_q5_1, block_q8_0, block_q4_K, block_q5_K, block_q6_K).
#include "path.h"
#include <string.h>

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef u8x16 u8x16_u __attribute__((aligned(1), may_alias));

BODY u8x16 bytes_at(const uint8_t *from) { return *(const u8x16_u *)from; }
/// Sixteen small numbers as floats; no function, since a vector this wide changes how functions are called.
#define FLOATS_OF(values) __builtin_convertvector(__builtin_convertvector((i8x16)(values), i32x16), f32x16)

// One function a type: values 16 part ..< 16 (part + 1) of the block at `from`. Where loops over parts are unrolled, the
// compiler computes once what several parts share.

/// f16 d, 32 bytes q: x = d q.
BODY void q8_0_part(const uint8_t *from, int part, f32x16 *out) {
    *out = FLOATS_OF(bytes_at(from + 2 + 16 * part)) * SPLAT(half_at(from));
}

/// Sixteen codes of 4 bits: the low halves of 16 bytes are the first 16 numbers, the high halves the rest.
BODY u8x16 halves_of(const uint8_t *from, int high) {
    u8x16 bytes = bytes_at(from);
    return high ? bytes >> 4 : bytes & 15;
}

/// f16 d, 16 bytes: x = d (q - 8).
BODY void q4_0_part(const uint8_t *from, int part, f32x16 *out) {
    *out = FLOATS_OF((i8x16)halves_of(from + 2, part) - 8) * SPLAT(half_at(from));
}

/// f16 d and m, 16 bytes: x = d q + m.
BODY void q4_1_part(const uint8_t *from, int part, f32x16 *out) {
    *out = FLOATS_OF(halves_of(from + 4, part)) * SPLAT(half_at(from)) + SPLAT(half_at(from + 2));
}

/// The fifth bits of sixteen codes, which are the bits of two bytes.
BODY u8x16 fifth_bits(const uint8_t *from) {
    const u8x16 bits = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    u8x16 low = (u8x16){} + from[0], high = (u8x16){} + from[1];
    u8x16 both = __builtin_shufflevector(low, high, 0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16);
    return (u8x16)((both & bits) != 0) & 16;
}

/// f16 d, 4 bytes of fifth bits, 16 bytes: x = d (q - 16).
BODY void q5_0_part(const uint8_t *from, int part, f32x16 *out) {
    u8x16 codes = halves_of(from + 6, part) | fifth_bits(from + 2 + 2 * part);
    *out = FLOATS_OF((i8x16)codes - 16) * SPLAT(half_at(from));
}

/// f16 d and m, 4 bytes of fifth bits, 16 bytes: x = d q + m.
BODY void q5_1_part(const uint8_t *from, int part, f32x16 *out) {
    u8x16 codes = halves_of(from + 8, part) | fifth_bits(from + 4 + 2 * part);
    *out = FLOATS_OF(codes) * SPLAT(half_at(from)) + SPLAT(half_at(from + 2));
}

/// Codes of a run of 32 in a block that begins with f16 d and m and 12 bytes of eight 6-bit scales and minima:
/// x = (d scale) q - (m minimum).
BODY void k_values(const uint8_t *from, int run, u8x16 codes, f32x16 *out) {
    const uint8_t *packed = from + 4;
    int scale, minimum;
    if (run < 4) {
        scale = packed[run] & 63;
        minimum = packed[run + 4] & 63;
    } else {
        scale = (packed[run + 4] & 15) | (packed[run - 4] >> 6) << 4;
        minimum = (packed[run + 4] >> 4) | (packed[run] >> 6) << 4;
    }
    float factor = half_at(from) * (float)scale, offset = half_at(from + 2) * (float)minimum;
    *out = FLOATS_OF(codes) * SPLAT(factor) - SPLAT(offset);
}

/// Scales as `k_values` says, 128 bytes: of each 32 the low halves are 32 numbers and the high halves the next 32.
BODY void q4_k_part(const uint8_t *from, int part, f32x16 *out) {
    int run = part / 2;
    k_values(from, run, halves_of(from + 16 + run / 2 * 32 + part % 2 * 16, run & 1), out);
}

/// The same with 32 bytes of fifth bits before the 128: bit r of byte i belongs to number i of run r.
BODY void q5_k_part(const uint8_t *from, int part, f32x16 *out) {
    int run = part / 2;
    u8x16 fifth = (bytes_at(from + 16 + part % 2 * 16) >> (uint8_t)run & 1) << 4;
    k_values(from, run, halves_of(from + 48 + run / 2 * 32 + part % 2 * 16, run & 1) | fifth, out);
}

/// 128 bytes of low halves, 64 bytes of pairs of high bits, 16 signed scales, f16 d; x = (d scale) (q - 32). Each half of
/// the block takes 64 and 32 bytes for four runs of 32 numbers.
BODY void q6_k_part(const uint8_t *from, int part, f32x16 *out) {
    int half = part / 8, run = part / 2 % 4, i = part % 2 * 16;
    u8x16 halves = halves_of(from + half * 64 + (run & 1) * 32 + i, run >= 2);
    u8x16 bits = bytes_at(from + 128 + half * 32 + i) >> (uint8_t)(2 * run) & 3;
    float factor = half_at(from + 208) * (float)(int8_t)from[192 + part];
    *out = FLOATS_OF((i8x16)(halves | bits << 4) - 32) * SPLAT(factor);
}

/// Runs body(part, elements of a block, bytes of a block) for the type.
#define FOR_TYPE(type, body)                                   \
    switch (type) {                                            \
    case TRIBUTARY_GGML_Q4_0: body(q4_0_part, 32, 18) break;   \
    case TRIBUTARY_GGML_Q4_1: body(q4_1_part, 32, 20) break;   \
    case TRIBUTARY_GGML_Q5_0: body(q5_0_part, 32, 22) break;   \
    case TRIBUTARY_GGML_Q5_1: body(q5_1_part, 32, 24) break;   \
    case TRIBUTARY_GGML_Q8_0: body(q8_0_part, 32, 34) break;   \
    case TRIBUTARY_GGML_Q4_K: body(q4_k_part, 256, 144) break; \
    case TRIBUTARY_GGML_Q5_K: body(q5_k_part, 256, 176) break; \
    default: body(q6_k_part, 256, 210) break;                  \
    }

// ---- tiles as floats -----------------------------------------------------------------------------------------------

#define BLOCK(part, elements, place, to)                                           \
    _Pragma("clang loop unroll(full)") for (int i = 0; i < (elements) / 16; i++) { \
        f32x16 values;                                                             \
        part(place, i, &values);                                                   \
        STORE((to) + 16 * i, values);                                              \
    }

/// Rows at `step` bytes from one another, columns column0 ..< column1 of each; a block that is only partly wanted is decoded
/// beside its place.
#define DECODE_ROWS(part, elements, bytes)                                                                                    \
    for (long row = 0; row < rows; row++) {                                                                                   \
        const uint8_t *from = values + row * step;                                                                            \
        float *to = out + row * stride - column0;                                                                             \
        for (long column = column0; column < column1;) {                                                                      \
            long first = column / (elements) * (elements), end = first + (elements) < column1 ? first + (elements) : column1; \
            const uint8_t *place = from + column / (elements) * (bytes);                                                      \
            if (end - column == (elements)) {                                                                                 \
                BLOCK(part, elements, place, to + column)                                                                     \
            } else {                                                                                                          \
                float whole[elements];                                                                                        \
                BLOCK(part, elements, place, whole)                                                                           \
                memcpy(to + column, whole + (column - first), 4 * (size_t)(end - column));                                    \
            }                                                                                                                 \
            column = end;                                                                                                     \
        }                                                                                                                     \
    }

BODY void ggml_body(int type, const uint8_t *values, long step, long rows, long column0, long column1, float *out, long stride) {
    FOR_TYPE(type, DECODE_ROWS)
}
VARIANTS(void, ggml, (int type, const uint8_t *values, long step, long rows, long column0, long column1, float *out, long stride),
         (type, values, step, rows, column0, column1, out, stride))
void tributary_decode_ggml(int path, int type, const void *values, long step, long rows, long column0, long column1, float *out,
                           long stride) {
    CHOOSE(ggml, (type, values, step, rows, column0, column1, out, stride));
}
