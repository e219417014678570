// GGML's blocks (ggml-common.h: block_q4_0, block_q4_1, block_q5_0, block_q5_1, block_q8_0, block_q4_K, block_q5_K, block_q6_K):
// tiles as floats, and products of a few tokens.
#include "lanes.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef u8x16 u8x16_u __attribute__((aligned(1), may_alias));

BODY u8x16 bytes_at(const uint8_t *from) { return *(const u8x16_u *)from; }
/// Sixteen codes of 4 bits: the low or the high halves of 16 bytes.
BODY u8x16 halves_at(const uint8_t *from, int high) { return high ? bytes_at(from) >> 4 : bytes_at(from) & 15; }
// No functions, since vectors this wide change how functions are called.
#define NUMBERS_OF(bytes) __builtin_convertvector((i8x16)(bytes), i32x16)
#define FLOATS_OF(numbers) __builtin_convertvector(numbers, f32x16)

// Two functions a type: NAME_scales, what the block at `from` multiplies its codes with and adds to them; and NAME_part, its
// values 16 part ..< 16 (part + 1), `part` being a constant where it is inlined.

/// `native`, a constant, says that the processor converts halves; a NaN that signals then becomes one that does not.
BODY float half_of(const int native, const uint8_t *from) {
    if (!native) return half_at(from);
    uint16_t bits;
    memcpy(&bits, from, 2);
    // Otherwise the compiler puts the half into a part of a register, and waits for what the rest of that held before.
    uint32_t word = bits;
    __asm__("" : "+r"(word));
    bits = (uint16_t)word;
    _Float16 half;
    memcpy(&half, &bits, 2);
    return (float)half;
}

// ---- blocks of 32 --------------------------------------------------------------------------------------------------

BODY void one_scale(const int native, const uint8_t *from, float *scales) { scales[0] = half_of(native, from); }
BODY void two_scales(const int native, const uint8_t *from, float *scales) {
    scales[0] = half_of(native, from);
    scales[1] = half_of(native, from + 2);
}

/// The fifth bits of part `part`, times 16, of the 32 that are four bytes.
BODY void fifth_bits(const uint8_t *from, int part, i32x16 *out) {
    const i32x16 own = ((i32x16){} + 1) << (lane_numbers + LANES * part);
    int32_t bits;
    memcpy(&bits, from, 4);
    *out = ((((i32x16){} + bits) & own) != 0) & 16;
}

/// f16 d, 32 bytes q: x = d q.
#define q8_0_scales one_scale
BODY void q8_0_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    *out = FLOATS_OF(NUMBERS_OF(bytes_at(from + 2 + LANES * part))) * SPLAT(scales[0]);
}

/// f16 d, 16 bytes whose low halves are the first 16 numbers and whose high halves are the rest: x = d (q - 8).
#define q4_0_scales one_scale
BODY void q4_0_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    *out = FLOATS_OF(NUMBERS_OF(halves_at(from + 2, part) - 8)) * SPLAT(scales[0]);
}

/// f16 d and m, 16 bytes: x = d q + m.
#define q4_1_scales two_scales
BODY void q4_1_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    *out = FLOATS_OF(NUMBERS_OF(halves_at(from + 4, part))) * SPLAT(scales[0]) + SPLAT(scales[1]);
}

/// f16 d, 4 bytes of fifth bits, 16 bytes: x = d (q - 16).
#define q5_0_scales one_scale
BODY void q5_0_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    i32x16 fifth;
    fifth_bits(from + 2, part, &fifth);
    *out = FLOATS_OF((NUMBERS_OF(halves_at(from + 6, part)) | fifth) - 16) * SPLAT(scales[0]);
}

/// f16 d and m, 4 bytes of fifth bits, 16 bytes: x = d q + m.
#define q5_1_scales two_scales
BODY void q5_1_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    i32x16 fifth;
    fifth_bits(from + 4, part, &fifth);
    *out = FLOATS_OF(NUMBERS_OF(halves_at(from + 8, part)) | fifth) * SPLAT(scales[0]) + SPLAT(scales[1]);
}

// ---- blocks of 256 -------------------------------------------------------------------------------------------------

/// f16 d and m, 12 bytes of eight 6-bit scales and minima: x = (d scale) q - (m minimum) in a run of 32. The low six bits of
/// four bytes each are the first four scales and minima; the low halves of the last four are those of the other scales and
/// the high halves those of the other minima, whose upper two bits are the upper bits of the first eight bytes.
BODY void q4_k_scales(const int native, const uint8_t *from, float *scales) {
    uint32_t words[3], whole[4];
    memcpy(words, from + 4, 12);
    whole[0] = words[0] & 0x3f3f3f3f;
    whole[1] = (words[2] & 0x0f0f0f0f) | (words[0] >> 2 & 0x30303030);
    whole[2] = words[1] & 0x3f3f3f3f;
    whole[3] = (words[2] >> 4 & 0x0f0f0f0f) | (words[1] >> 2 & 0x30303030);
    f32x16 d = SPLAT(half_of(native, from)), m = SPLAT(half_of(native, from + 2));
    f32x16 both = __builtin_shufflevector(d, m, 0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16);
    STORE(scales, FLOATS_OF(NUMBERS_OF(bytes_at((const uint8_t *)whole))) * both);
}
/// 128 bytes: of each 32 the low halves are 32 numbers and the high halves the next 32.
BODY void q4_k_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    int run = part / 2;
    u8x16 codes = halves_at(from + 16 + run / 2 * 32 + part % 2 * LANES, run & 1);
    *out = FLOATS_OF(NUMBERS_OF(codes)) * SPLAT(scales[run]) - SPLAT(scales[8 + run]);
}

/// The same with 32 bytes of fifth bits before the 128: bit r of byte i belongs to number i of run r.
#define q5_k_scales q4_k_scales
BODY void q5_k_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    int run = part / 2;
    u8x16 fifth = (bytes_at(from + 16 + part % 2 * LANES) >> (uint8_t)run & 1) << 4;
    u8x16 codes = halves_at(from + 48 + run / 2 * 32 + part % 2 * LANES, run & 1) | fifth;
    *out = FLOATS_OF(NUMBERS_OF(codes)) * SPLAT(scales[run]) - SPLAT(scales[8 + run]);
}

/// 128 bytes of low halves, 64 bytes of pairs of high bits, 16 signed scales, f16 d; x = (d scale) (q - 32). Each half of
/// the block takes 64 and 32 bytes for four runs of 32 numbers.
BODY void q6_k_scales(const int native, const uint8_t *from, float *scales) {
    STORE(scales, FLOATS_OF(NUMBERS_OF(bytes_at(from + 192))) * SPLAT(half_of(native, from + 208)));
}
BODY void q6_k_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    int half = part / 8, run = part / 2 % 4, i = part % 2 * LANES;
    u8x16 bits = bytes_at(from + 128 + half * 32 + i) >> (uint8_t)(2 * run) & 3;
    u8x16 codes = halves_at(from + half * 64 + (run & 1) * 32 + i, run >= 2) | bits << 4;
    *out = FLOATS_OF(NUMBERS_OF(codes - 32)) * SPLAT(scales[part]);
}

/// Runs body(name, elements of a block, bytes of a block) for the type.
#define FOR_TYPE(type, body)                              \
    switch (type) {                                       \
    case TRIBUTARY_GGML_Q4_0: body(q4_0, 32, 18) break;   \
    case TRIBUTARY_GGML_Q4_1: body(q4_1, 32, 20) break;   \
    case TRIBUTARY_GGML_Q5_0: body(q5_0, 32, 22) break;   \
    case TRIBUTARY_GGML_Q5_1: body(q5_1, 32, 24) break;   \
    case TRIBUTARY_GGML_Q8_0: body(q8_0, 32, 34) break;   \
    case TRIBUTARY_GGML_Q4_K: body(q4_k, 256, 144) break; \
    case TRIBUTARY_GGML_Q5_K: body(q5_k, 256, 176) break; \
    default: body(q6_k, 256, 210) break;                  \
    }

// ---- tiles as floats -----------------------------------------------------------------------------------------------

/// Values low ..< high of a block, to the place where its first value would stand.
#define BLOCK(name, elements, from, low, high, to)                                                                                 \
    {                                                                                                                              \
        float scales[LANES];                                                                                                       \
        name##_scales(native, from, scales);                                                                                       \
        _Pragma("clang loop unroll(full)") for (int i = 0; i < (elements) / LANES; i++) {                                          \
            long first = i * LANES > (low) ? i * LANES : (low), end = (i + 1) * LANES < (high) ? (i + 1) * LANES : (high);         \
            f32x16 values;                                                                                                         \
            if (first >= end) continue;                                                                                            \
            name##_part(from, scales, i, &values);                                                                                 \
            if (end - first == LANES) STORE((to) + first, values);                                                                 \
            else memcpy((to) + first, (const float *)&values + (first - i * LANES), sizeof(float) * (size_t)(end - first));        \
        }                                                                                                                          \
    }

/// Rows at `step` bytes from one another, columns column0 ..< column1 of each.
#define DECODE_ROWS(name, elements, bytes)                                                                                         \
    for (long row = 0; row < rows; row++) {                                                                                        \
        long place = column0 / (elements), low = column0 - place * (elements), high = column1 - place * (elements);                \
        const uint8_t *from = values + row * step + place * (bytes);                                                               \
        float *to = out + row * stride - low;                                                                                      \
        if (low > 0) {                                                                                                             \
            BLOCK(name, elements, from, low, high, to)                                                                             \
            from += (bytes), to += (elements), high -= (elements);                                                                 \
        }                                                                                                                          \
        for (; high >= (elements); from += (bytes), to += (elements), high -= (elements))                                          \
            BLOCK(name, elements, from, 0, elements, to)                                                                           \
        if (high > 0) BLOCK(name, elements, from, 0, high, to)                                                                     \
    }

BODY void ggml_body(const int native, int type, const uint8_t *restrict values, long step, long rows, long column0, long column1,
                    float *restrict out, long stride) {
    FOR_TYPE(type, DECODE_ROWS)
}
#define DECODE(name, target, native)                                                                                               \
    target static void name(int type, const uint8_t *values, long step, long rows, long column0, long column1, float *out, long stride) { \
        ggml_body(native, type, values, step, rows, column0, column1, out, stride);                                                \
    }
DECODE(ggml_scalar, , 0)
#if defined(__x86_64__)
DECODE(ggml_avx2, TARGET_AVX2, 1)
DECODE(ggml_avx512, TARGET_AVX512, 1)
#endif
void tributary_decode_ggml(int path, int type, const void *values, long step, long rows, long column0, long column1, float *out,
                           long stride) {
    CHOOSE(ggml, (type, values, step, rows, column0, column1, out, stride));
}

// ---- products of a few tokens --------------------------------------------------------------------------------------

#if defined(__x86_64__)
/// Bytes ahead of the present block that are asked for.
enum { AHEAD = 2048 };

/// A block times T tokens: part i to sums number `sum` of four.
#define ADD_BLOCK(name, elements, from, x, sum)                                                                                    \
    {                                                                                                                              \
        float scales[LANES];                                                                                                       \
        name##_scales(1, from, scales);                                                                                            \
        __builtin_prefetch((from) + AHEAD);                                                                                        \
        _Pragma("clang loop unroll(full)") for (int i = 0; i < (elements) / LANES; i++) {                                          \
            f32x16 w;                                                                                                              \
            name##_part(from, scales, i, &w);                                                                                      \
            _Pragma("clang loop unroll(full)") for (int t = 0; t < T; t++)                                                         \
                sums[t][sum] += w * LOAD((x) + t * x_stride + i * LANES);                                                          \
        }                                                                                                                          \
    }

/// One row for T tokens, summed as dot_body sums: four sums over runs of 64, what is left to the first.
#define ROW_OF(inlined, name, elements, bytes)                                                                                     \
    inlined void name##_row(const int T, const uint8_t *from, long columns, const float *x, long x_stride, float *y, long y_stride) { \
        f32x16 sums[TOKENS][4] = {};                                                                                               \
        long k = 0;                                                                                                                \
        if ((elements) >= 64) {                                                                                                    \
            for (; k < columns; k += (elements), from += (bytes)) ADD_BLOCK(name, elements, from, x + k, i % 4)                    \
        } else {                                                                                                                   \
            for (; k + 64 <= columns; k += 64, from += 2 * (bytes)) {                                                              \
                ADD_BLOCK(name, elements, from, x + k, i)                                                                          \
                ADD_BLOCK(name, elements, from + (bytes), x + k + 32, i + 2)                                                       \
            }                                                                                                                      \
            if (k < columns) ADD_BLOCK(name, elements, from, x + k, 0)                                                             \
        }                                                                                                                          \
        _Pragma("clang loop unroll(full)") for (int t = 0; t < T; t++) {                                                           \
            f32x16 all = (sums[t][0] + sums[t][1]) + (sums[t][2] + sums[t][3]);                                                    \
            y[t * y_stride] = sum_lanes(&all);                                                                                     \
        }                                                                                                                          \
    }
ROW_OF(BODY, q4_0, 32, 18)
ROW_OF(BODY, q4_1, 32, 20)
ROW_OF(BODY, q5_0, 32, 22)
ROW_OF(BODY, q5_1, 32, 24)
ROW_OF(BODY, q8_0, 32, 34)
ROW_OF(BODY, q4_k, 256, 144)
ROW_OF(BODY, q5_k, 256, 176)
ROW_OF(BODY, q6_k, 256, 210)

#define MULTIPLY_ROWS(name, elements, bytes)                                                                                       \
    FOR_TOKENS(tokens, for (long i = 0; i < rows; i++) name##_row(T, values + i * step, columns, x + token * x_stride,             \
                                                                  x_stride, y + token * y_stride + i, y_stride))
#define PRODUCT(name, target, first)                                                                                               \
    target static void name(int type, const uint8_t *values, long step, long rows, long columns, const float *x, long x_stride,    \
                            long tokens, float *y, long y_stride) {                                                                \
        first                                                                                                                      \
        FOR_TYPE(type, MULTIPLY_ROWS)                                                                                              \
    }

// A register holds what the sixteen codes of 4 bits stand for, so that a look-up, which reads the low four bits of a lane,
// takes the place of cutting, widening, converting and scaling them.
#define INLINED_AVX512 TARGET_AVX512 static inline __attribute__((always_inline))
#define CODES _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
INLINED_AVX512 __m512 look_up_halves(const uint8_t *from, int high, __m512 table) {
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm512_permutexvar_ps(high ? _mm512_srli_epi32(bytes, 4) : bytes, table);
}

#define q4_0_table_scales q4_0_scales
INLINED_AVX512 void q4_0_table_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    __m512 table = _mm512_mul_ps(_mm512_sub_ps(CODES, _mm512_set1_ps(8)), _mm512_set1_ps(scales[0]));
    *out = (f32x16)look_up_halves(from + 2, part, table);
}
#define q4_1_table_scales q4_1_scales
INLINED_AVX512 void q4_1_table_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    __m512 table = _mm512_add_ps(_mm512_mul_ps(CODES, _mm512_set1_ps(scales[0])), _mm512_set1_ps(scales[1]));
    *out = (f32x16)look_up_halves(from + 4, part, table);
}
#define q5_0_table_scales q5_0_scales
INLINED_AVX512 void q5_0_table_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    __m512 low = _mm512_mul_ps(_mm512_sub_ps(CODES, _mm512_set1_ps(16)), _mm512_set1_ps(scales[0]));
    __m512 high = _mm512_mul_ps(CODES, _mm512_set1_ps(scales[0]));
    __mmask16 fifth;
    memcpy(&fifth, from + 2 + 2 * part, 2);
    *out = (f32x16)_mm512_mask_blend_ps(fifth, look_up_halves(from + 6, part, low), look_up_halves(from + 6, part, high));
}
#define q4_k_table_scales q4_k_scales
INLINED_AVX512 void q4_k_table_part(const uint8_t *from, const float *scales, int part, f32x16 *out) {
    int run = part / 2;
    __m512 table = _mm512_sub_ps(_mm512_mul_ps(CODES, _mm512_set1_ps(scales[run])), _mm512_set1_ps(scales[8 + run]));
    *out = (f32x16)look_up_halves(from + 16 + run / 2 * 32 + part % 2 * LANES, run & 1, table);
}
ROW_OF(INLINED_AVX512, q4_0_table, 32, 18)
ROW_OF(INLINED_AVX512, q4_1_table, 32, 20)
ROW_OF(INLINED_AVX512, q5_0_table, 32, 22)
ROW_OF(INLINED_AVX512, q4_k_table, 256, 144)

#define BY_TABLE(number, name, elements, bytes) if (type == number) { MULTIPLY_ROWS(name, elements, bytes) return; }
PRODUCT(gemv_ggml_avx512, TARGET_AVX512,
    BY_TABLE(TRIBUTARY_GGML_Q4_0, q4_0_table, 32, 18) BY_TABLE(TRIBUTARY_GGML_Q4_1, q4_1_table, 32, 20)
    BY_TABLE(TRIBUTARY_GGML_Q5_0, q5_0_table, 32, 22) BY_TABLE(TRIBUTARY_GGML_Q4_K, q4_k_table, 256, 144))
PRODUCT(gemv_ggml_avx2, TARGET_AVX2, )
#endif

int tributary_gemv_ggml(int path, int type, const void *values, long step, long rows, long columns, const float *x, long x_stride,
                        long tokens, float *y, long y_stride) {
#if defined(__x86_64__)
    if (path == TRIBUTARY_AVX512) {
        gemv_ggml_avx512(type, values, step, rows, columns, x, x_stride, tokens, y, y_stride);
        return 1;
    }
    if (path == TRIBUTARY_AVX2) {
        gemv_ggml_avx2(type, values, step, rows, columns, x, x_stride, tokens, y, y_stride);
        return 1;
    }
#endif
    return 0;
}
