// y = W x for a few tokens: weights are widened in registers as they are read, once for up to four tokens.
//
// One row after another: its sum has one order, whatever the rows, tokens and threads beside it, and a processor follows
// a single run of memory best. -ffp-contract=off keeps the bits of every path equal.
#include "lanes.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// ---- weights that are numbers, or bytes with a scale for 64 of them ------------------------------------------------
// Sums as in dot_body (layers.c): four of sixteen lanes over runs of 64, joined, then what is left one by one.

BODY void sixteen_f32(const char *from, f32x16 *w) { *w = LOAD(from); }
BODY float one_f32(const char *from) {
    float value;
    memcpy(&value, from, 4);
    return value;
}

BODY void sixteen_bf16(const char *from, f32x16 *w) {
    *w = (f32x16)(__builtin_convertvector(*(const u16x16_u *)from, u32x16) << 16);
}
BODY float one_bf16(const char *from) {
    uint16_t half;
    memcpy(&half, from, 2);
    return bf16_to_float(half);
}

BODY void sixteen_f16(const char *from, f32x16 *w) { f16_lanes(from, w); }
BODY float one_f16(const char *from) { return half_at(from); }

BODY void sixteen_int8(const char *from, f32x16 *w) {
    *w = __builtin_convertvector(__builtin_convertvector(*(const i8x16_u *)from, i32x16), f32x16);
}
BODY float one_int8(const char *from) { return (float)*(const int8_t *)from; }

/// One row for T tokens; `scales` has one number for 64 columns, or is NULL.
#define ROW_OF(name, size)                                                                                                 \
    BODY void name##_row(const int T, const char *row, const float *scales, long columns, const float *x, long x_stride,   \
                         float *y, long y_stride) {                                                                        \
        f32x16 sums[TOKENS][4] = {};                                                                                       \
        long k = 0;                                                                                                        \
        for (; k + 4 * LANES <= columns; k += 4 * LANES) {                                                                 \
            _Pragma("clang loop unroll(full)") for (int part = 0; part < 4; part++) {                                      \
                f32x16 w;                                                                                                  \
                sixteen_##name(row + (k + part * LANES) * size, &w);                                                       \
                if (scales) w *= SPLAT(scales[k / 64]);                                                                    \
                _Pragma("clang loop unroll(full)") for (int t = 0; t < T; t++)                                             \
                    sums[t][part] += w * LOAD(x + t * x_stride + k + part * LANES);                                        \
            }                                                                                                              \
        }                                                                                                                  \
        for (; k + LANES <= columns; k += LANES) {                                                                         \
            f32x16 w;                                                                                                      \
            sixteen_##name(row + k * size, &w);                                                                            \
            if (scales) w *= SPLAT(scales[k / 64]);                                                                        \
            _Pragma("clang loop unroll(full)") for (int t = 0; t < T; t++) sums[t][0] += w * LOAD(x + t * x_stride + k);   \
        }                                                                                                                  \
        _Pragma("clang loop unroll(full)") for (int t = 0; t < T; t++) {                                                   \
            f32x16 all = (sums[t][0] + sums[t][1]) + (sums[t][2] + sums[t][3]);                                            \
            float sum = sum_lanes(&all);                                                                                   \
            for (long i = k; i < columns; i++) {                                                                           \
                float w = one_##name(row + i * size);                                                                      \
                if (scales) w *= scales[i / 64];                                                                           \
                sum += w * x[t * x_stride + i];                                                                            \
            }                                                                                                              \
            y[t * y_stride] = sum;                                                                                         \
        }                                                                                                                  \
    }                                                                                                                      \
    BODY void gemv_##name##_body(const char *values, long stride, const float *scales, long rows, long columns,            \
                                 const float *x, long x_stride, long tokens, float *y, long y_stride) {                    \
        long runs = (columns + 63) / 64;                                                                                   \
        FOR_TOKENS(tokens, for (long i = 0; i < rows; i++) name##_row(T, values + i * stride * size,                       \
                                                                      scales ? scales + i * runs : NULL, columns,          \
                                                                      x + token * x_stride, x_stride,                      \
                                                                      y + token * y_stride + i, y_stride))                 \
    }                                                                                                                      \
    VARIANTS(void, gemv_##name,                                                                                            \
             (const char *values, long stride, const float *scales, long rows, long columns, const float *x, long x_stride, \
              long tokens, float *y, long y_stride),                                                                       \
             (values, stride, scales, rows, columns, x, x_stride, tokens, y, y_stride))
ROW_OF(f32, 4)
ROW_OF(bf16, 2)
ROW_OF(f16, 2)
ROW_OF(int8, 1)

void tributary_gemv_f32(int path, const void *values, long stride, long rows, long columns, const float *x, long x_stride,
                        long tokens, float *y, long y_stride) {
    CHOOSE(gemv_f32, (values, stride, NULL, rows, columns, x, x_stride, tokens, y, y_stride));
}
void tributary_gemv_bf16(int path, const void *values, long stride, long rows, long columns, const float *x, long x_stride,
                         long tokens, float *y, long y_stride) {
    CHOOSE(gemv_bf16, (values, stride, NULL, rows, columns, x, x_stride, tokens, y, y_stride));
}
void tributary_gemv_f16(int path, const void *values, long stride, long rows, long columns, const float *x, long x_stride,
                        long tokens, float *y, long y_stride) {
    CHOOSE(gemv_f16, (values, stride, NULL, rows, columns, x, x_stride, tokens, y, y_stride));
}
void tributary_gemv_int8(int path, const int8_t *codes, const float *scales, long rows, long columns, const float *x,
                         long x_stride, long tokens, float *y, long y_stride) {
    CHOOSE(gemv_int8, ((const char *)codes, columns, scales, rows, columns, x, x_stride, tokens, y, y_stride));
}

// ---- 4-bit codes ---------------------------------------------------------------------------------------------------
// 128 codes are sixteen words of eight. Shifted right by 4 i bits, each word ends in the code of its element i ^ 1 (the
// first of two stands in the high half of a byte), and a look-up reads four bits only: so x is laid out once in that
// order, and a code costs a shift, a look-up, a product and a sum. The eight codes of a word lie in one block, whose
// scale multiplies their sum.

enum { CHUNK = 128, WORD = 8 };

void tributary_gemv_order_4bit(const float *x, long columns, float *out) {
    for (long k = 0; k < columns; k += CHUNK) {
        if (columns - k >= CHUNK) {
            for (long i = 0; i < WORD; i++)
                for (long lane = 0; lane < LANES; lane++) out[k + i * LANES + lane] = x[k + lane * WORD + (i ^ 1)];
        } else {
            for (long i = 0; i < WORD; i++)
                for (long lane = 0; lane < LANES; lane++) {
                    long from = k + lane * WORD + (i ^ 1);
                    out[k + i * LANES + lane] = from < columns ? x[from] : 0;
                }
        }
    }
}

/// What a row of codes is read with: `first` is its first element of the flattened matrix.
typedef struct {
    const uint8_t *packed;
    const float *scales;  // of block 0 on
    int shift;
    const float *table;
    long first;
    long columns;
} codes_row;

/// The words of the chunk at column k, zero behind the end of the row.
BODY void words_of(const codes_row *row, long k, uint32_t words[LANES]) {
    long count = row->columns - k < CHUNK ? row->columns - k : CHUNK;
    memset(words, 0, LANES * sizeof *words);
    memcpy(words, row->packed + (row->first + k) / 2, (size_t)count / 2);
}

static void codes_row_scalar(const codes_row *row, long tokens, const float *x, long x_stride, float *y, long y_stride) {
    for (long t = 0; t < tokens; t++) {
        f32x16 sum = {};
        for (long k = 0; k < row->columns; k += CHUNK) {
            uint32_t words[LANES];
            words_of(row, k, words);
            const float *from = x + t * x_stride + k;
            long inside = (row->first + k) & ((1l << row->shift) - 1), block = (row->first + k) >> row->shift;
            for (long lane = 0; lane < LANES; lane++) {
                float part = row->table[words[lane] & 15] * from[lane];
                for (long i = 1; i < WORD; i++) part += row->table[words[lane] >> (4 * i) & 15] * from[i * LANES + lane];
                sum[lane] += part * row->scales[block + ((inside + lane * WORD) >> row->shift)];
            }
        }
        y[t * y_stride] = sum_lanes(&sum);
    }
}

#if defined(__x86_64__)
/// Bytes ahead of the present chunk that are asked for.
enum { AHEAD = 2048 };

TARGET_AVX512 static inline __attribute__((always_inline)) void codes_row_avx512(const int T, const codes_row *row, const float *x, long x_stride,
                                                                                  float *y, long y_stride) {
    const __m512 table = _mm512_loadu_ps(row->table);
    const __m512i places = _mm512_set_epi32(120, 112, 104, 96, 88, 80, 72, 64, 56, 48, 40, 32, 24, 16, 8, 0);
    const __m128i shift = _mm_cvtsi32_si128(row->shift);
    const long size = 1l << row->shift;
    // Where a chunk always begins with a block, its words lie in the same of its blocks each time.
    const int whole = size <= CHUNK && (row->columns & (size - 1)) == 0;
    __m512i blocks = _mm512_srl_epi32(places, shift);
    __m512 sums[TOKENS];
#pragma clang loop unroll(full)
    for (int t = 0; t < T; t++) sums[t] = _mm512_setzero_ps();
    for (long k = 0; k < row->columns; k += CHUNK) {
        const long element = row->first + k, left = (row->columns - k) / WORD;
        const uint8_t *from = row->packed + element / 2;
        __m512i words = left >= LANES ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi32((__mmask16)((1u << left) - 1), from);
        _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
        __m512 parts[TOKENS];
        __m512 w = _mm512_permutexvar_ps(words, table);
#pragma clang loop unroll(full)
        for (int t = 0; t < T; t++) parts[t] = _mm512_mul_ps(w, _mm512_loadu_ps(x + t * x_stride + k));
#pragma clang loop unroll(full)
        for (int i = 1; i < WORD; i++) {
            w = _mm512_permutexvar_ps(_mm512_srli_epi32(words, (unsigned)(4 * i)), table);
#pragma clang loop unroll(full)
            for (int t = 0; t < T; t++)
                parts[t] = _mm512_add_ps(parts[t], _mm512_mul_ps(w, _mm512_loadu_ps(x + t * x_stride + k + i * LANES)));
        }
        if (!whole) blocks = _mm512_srl_epi32(_mm512_add_epi32(places, _mm512_set1_epi32((int)(element & (size - 1)))), shift);
        __m512 scale = _mm512_permutexvar_ps(blocks, _mm512_castps128_ps512(_mm_loadu_ps(row->scales + (element >> row->shift))));
#pragma clang loop unroll(full)
        for (int t = 0; t < T; t++) sums[t] = _mm512_add_ps(sums[t], _mm512_mul_ps(parts[t], scale));
    }
#pragma clang loop unroll(full)
    for (int t = 0; t < T; t++) y[t * y_stride] = sum_lanes((const f32x16 *)&sums[t]);
}

TARGET_AVX512 static void gemv_4bit_avx512(codes_row row, long rows, const float *x, long x_stride, long tokens, float *y, long y_stride) {
    const long first = row.first;
    FOR_TOKENS(tokens, for (long i = 0; i < rows; i++) {
        row.first = first + i * row.columns;
        codes_row_avx512(T, &row, x + token * x_stride, x_stride, y + token * y_stride + i, y_stride);
    })
}

/// Half of a chunk, eight words: added to `sums` of T tokens.
TARGET_AVX2 static inline __attribute__((always_inline)) void half_chunk_avx2(const int T, __m256i words, __m256 low, __m256 high, __m256 scale,
                                                                              const float *x, long x_stride, __m256 *sums) {
    __m256 parts[TOKENS];
#pragma clang loop unroll(full)
    for (int i = 0; i < WORD; i++) {
        // vpermps reads three bits; bit 3, moved to the sign, chooses the half of the table.
        __m256i code = _mm256_srli_epi32(words, 4 * i), sign = _mm256_slli_epi32(words, 28 - 4 * i);
        __m256 w = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, code), _mm256_permutevar8x32_ps(high, code), _mm256_castsi256_ps(sign));
#pragma clang loop unroll(full)
        for (int t = 0; t < T; t++) {
            __m256 product = _mm256_mul_ps(w, _mm256_loadu_ps(x + t * x_stride + i * LANES));
            parts[t] = i ? _mm256_add_ps(parts[t], product) : product;
        }
    }
#pragma clang loop unroll(full)
    for (int t = 0; t < T; t++) sums[t] = _mm256_add_ps(sums[t], _mm256_mul_ps(parts[t], scale));
}

TARGET_AVX2 static inline __attribute__((always_inline)) void codes_row_avx2(const int T, const codes_row *row, const float *x, long x_stride, float *y,
                                                                              long y_stride) {
    const __m256 low = _mm256_loadu_ps(row->table), high = _mm256_loadu_ps(row->table + 8);
    const __m256i places = _mm256_set_epi32(56, 48, 40, 32, 24, 16, 8, 0);
    const __m128i shift = _mm_cvtsi32_si128(row->shift);
    const long size = 1l << row->shift;
    __m256 sums[2][TOKENS];
#pragma clang loop unroll(full)
    for (int t = 0; t < T; t++) sums[0][t] = sums[1][t] = _mm256_setzero_ps();
    for (long k = 0; k < row->columns; k += CHUNK) {
        const long element = row->first + k;
        const uint8_t *from = row->packed + element / 2;
        uint32_t words[LANES];
        const int isWhole = row->columns - k >= CHUNK;
        if (!isWhole) words_of(row, k, words);
        _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
        const __m256 four = _mm256_castps128_ps256(_mm_loadu_ps(row->scales + (element >> row->shift)));
#pragma clang loop unroll(full)
        for (int half = 0; half < 2; half++) {
            __m256i own = _mm256_loadu_si256(isWhole ? (const __m256i *)(from + 32 * half) : (const __m256i *)(words + 8 * half));
            __m256i blocks = _mm256_srl_epi32(_mm256_add_epi32(places, _mm256_set1_epi32((int)(element & (size - 1)) + 64 * half)), shift);
            half_chunk_avx2(T, own, low, high, _mm256_permutevar8x32_ps(four, blocks), x + k + 8 * half, x_stride, sums[half]);
        }
    }
#pragma clang loop unroll(full)
    for (int t = 0; t < T; t++) {
        float lanes[LANES];
        _mm256_storeu_ps(lanes, sums[0][t]);
        _mm256_storeu_ps(lanes + 8, sums[1][t]);
        f32x16 all = LOAD(lanes);
        y[t * y_stride] = sum_lanes(&all);
    }
}

TARGET_AVX2 static void gemv_4bit_avx2(codes_row row, long rows, const float *x, long x_stride, long tokens, float *y, long y_stride) {
    const long first = row.first;
    FOR_TOKENS(tokens, for (long i = 0; i < rows; i++) {
        row.first = first + i * row.columns;
        codes_row_avx2(T, &row, x + token * x_stride, x_stride, y + token * y_stride + i, y_stride);
    })
}
#endif

void tributary_gemv_4bit(int path, const uint8_t *packed, const float *scales, long first_block, int block_shift,
                         const float *table, long columns, long row0, long row1, const float *x, long x_stride, long tokens,
                         float *y, long y_stride) {
    codes_row row = {packed, scales - first_block, block_shift, table, row0 * columns, columns};
#if defined(__x86_64__)
    if (path == TRIBUTARY_AVX512) {
        gemv_4bit_avx512(row, row1 - row0, x, x_stride, tokens, y, y_stride);
        return;
    }
    if (path == TRIBUTARY_AVX2) {
        gemv_4bit_avx2(row, row1 - row0, x, x_stride, tokens, y, y_stride);
        return;
    }
#endif
    (void)path;
    for (long i = row0; i < row1; i++) {
        row.first = i * columns;
        codes_row_scalar(&row, tokens, x, x_stride, y + i - row0, y_stride);
    }
}

// ---- sums of rows --------------------------------------------------------------------------------------------------

/// Columns 16 part ..< 16 (part + V) of the sums for T tokens.
BODY void weigh_columns(const int T, const int V, const float *matrix, long stride, long rows, const float *weights, long weight_stride,
                        float *out, long out_stride) {
    f32x16 sums[TOKENS][4] = {};
    for (long row = 0; row < rows; row++)
#pragma clang loop unroll(full)
        for (int part = 0; part < V; part++) {
            f32x16 value = LOAD(matrix + row * stride + part * LANES);
#pragma clang loop unroll(full)
            for (int t = 0; t < T; t++) sums[t][part] += SPLAT(weights[t * weight_stride + row]) * value;
        }
#pragma clang loop unroll(full)
    for (int t = 0; t < T; t++)
#pragma clang loop unroll(full)
        for (int part = 0; part < V; part++) STORE(out + t * out_stride + part * LANES, sums[t][part]);
}

BODY void weigh_rows_body(const float *matrix, long stride, long rows, long columns, const float *weights, long weight_stride,
                          long tokens, float *out, long out_stride) {
    long column = 0;
    for (; column + 4 * LANES <= columns; column += 4 * LANES)
        FOR_TOKENS(tokens, weigh_columns(T, 4, matrix + column, stride, rows, weights + token * weight_stride, weight_stride,
                                         out + token * out_stride + column, out_stride))
    for (; column + LANES <= columns; column += LANES)
        FOR_TOKENS(tokens, weigh_columns(T, 1, matrix + column, stride, rows, weights + token * weight_stride, weight_stride,
                                         out + token * out_stride + column, out_stride))
    for (; column < columns; column++)
        for (long t = 0; t < tokens; t++) {
            float sum = 0;
            for (long row = 0; row < rows; row++) sum += weights[t * weight_stride + row] * matrix[row * stride + column];
            out[t * out_stride + column] = sum;
        }
}
VARIANTS(void, weigh_rows,
         (const float *matrix, long stride, long rows, long columns, const float *weights, long weight_stride, long tokens, float *out, long out_stride),
         (matrix, stride, rows, columns, weights, weight_stride, tokens, out, out_stride))
void tributary_weigh_rows(int path, const float *matrix, long stride, long rows, long columns, const float *weights,
                          long weight_stride, long tokens, float *out, long out_stride) {
    CHOOSE(weigh_rows, (matrix, stride, rows, columns, weights, weight_stride, tokens, out, out_stride));
}
