// Matrix products of bfloat16 operands that are summed in float32, and the packing of their left operand.
//
// C = sum over segments of A B. A is bf16, row-major. B is packed: slivers of 48 columns (the last one of 16, 32 or 48),
// each [pairs][width] of two consecutive k in one 32-bit lane, the first in the low half: what one vdpbf16ps takes.
// A tile of 8 x 48 is 24 registers of sums; with three of B and one of A that is all that there is to load.
#include "path.h"
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SLIVER = TRIBUTARY_BF16_SLIVER, LANES = 16, TILE_ROWS = 8 };

int tributary_bf16_supported(int path) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return path == TRIBUTARY_AVX512 && tributary_path_supported(path) && __builtin_cpu_supports("avx512bf16");
#else
    (void)path;
    return 0;
#endif
}

long tributary_bf16_packed_size(long n, long k) {
    return (n + LANES - 1) / LANES * LANES * ((k + 1) / 2);
}

// ---- the left operand --------------------------------------------------------------------------------------------

static void round_scalar(const float *x, long x_stride, long rows, long columns, float scale, uint16_t *out, long out_stride) {
    for (long row = 0; row < rows; row++) {
        for (long i = 0; i < columns; i++) out[row * out_stride + i] = bf16_from(scale * x[row * x_stride + i]);
        if (columns & 1) out[row * out_stride + columns] = 0;
    }
}

#if defined(__x86_64__)
TARGET_BF16 static void round_bf16(const float *x, long x_stride, long rows, long columns, float scale, uint16_t *out, long out_stride) {
    const __m512 s = _mm512_set1_ps(scale);
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * x_stride;
        uint16_t *to = out + row * out_stride;
        long i = 0;
        for (; i + 32 <= columns; i += 32) {
            __m512 a = _mm512_mul_ps(_mm512_loadu_ps(from + i), s), b = _mm512_mul_ps(_mm512_loadu_ps(from + i + 16), s);
            _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        }
        for (; i < columns; i += 16) {
            long count = columns - i < 16 ? columns - i : 16;
            __m512 a = _mm512_mul_ps(_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from + i), s);
            // An odd end takes one zero with it.
            long wide = (count + 1) & ~1l;
            _mm256_mask_storeu_epi16(to + i, (__mmask16)((1u << wide) - 1), (__m256i)_mm512_cvtneps_pbh(a));
        }
    }
}
#endif

void tributary_bf16_round(int path, const float *x, long x_stride, long rows, long columns, float scale, uint16_t *out,
                          long out_stride) {
#if defined(__x86_64__)
    if (tributary_bf16_supported(path)) {
        round_bf16(x, x_stride, rows, columns, scale, out, out_stride);
        return;
    }
#endif
    round_scalar(x, x_stride, rows, columns, scale, out, out_stride);
}

// ---- the product -------------------------------------------------------------------------------------------------

/// One row of C: the twin of the tile below, with the same operands and sums in the order of k.
BODY void row_of_product(const tributary_bf16_segment *segments, long count, long row, long n, const float *from, float *c) {
    for (long column = 0; column < n; column += SLIVER) {
        long width = (n - column < SLIVER ? n - column + LANES - 1 : SLIVER) / LANES * LANES;
        float sums[SLIVER];
        for (long j = 0; j < width; j++) sums[j] = from && column + j < n ? from[column + j] : 0;
        for (long s = 0; s < count; s++) {
            const uint16_t *a = segments[s].a + row * segments[s].a_stride;
            const uint32_t *b = segments[s].b + column * segments[s].pairs;
            for (long pair = 0; pair < segments[s].pairs; pair++) {
                float first = bf16_to_float(a[2 * pair]), second = bf16_to_float(a[2 * pair + 1]);
                for (long j = 0; j < width; j++) {
                    uint32_t both = b[pair * width + j];
                    sums[j] += first * bf16_to_float((uint16_t)both) + second * bf16_to_float((uint16_t)(both >> 16));
                }
            }
        }
        for (long j = 0; j < width && column + j < n; j++) c[column + j] = sums[j];
    }
}

static void multiply_scalar(const tributary_bf16_segment *segments, long count, long m, long n, const float *from, long from_stride,
                            float *c, long c_stride) {
    for (long row = 0; row < m; row++)
        row_of_product(segments, count, row, n, from ? from + row * from_stride : NULL, c + row * c_stride);
}

#if defined(__x86_64__)
/// Rows row ..< row + R, columns column ..< column + 16 V; R and V are constants where it is called.
TARGET_BF16 static inline __attribute__((always_inline)) void tile(const int R, const int V, const tributary_bf16_segment *segments,
                                                                    long count, long row, long column, __mmask16 last,
                                                                    const float *from, long from_stride, float *c, long c_stride) {
    __m512 sums[TILE_ROWS][3];
#pragma clang loop unroll(full)
    for (int i = 0; i < R; i++)
#pragma clang loop unroll(full)
        for (int j = 0; j < V; j++)
            sums[i][j] = from ? _mm512_maskz_loadu_ps(j == V - 1 ? last : (__mmask16)0xffff, from + (row + i) * from_stride + column + 16 * j)
                              : _mm512_setzero_ps();
    for (int i = 0; i < R; i++)
        for (int j = 0; j < V; j++) __builtin_prefetch(c + (row + i) * c_stride + column + 16 * j, 1, 3);
    for (long s = 0; s < count; s++) {
        const long stride = segments[s].a_stride, pairs = segments[s].pairs;
        const uint16_t *a = segments[s].a + row * stride;
        const uint32_t *b = segments[s].b + column * pairs;
#pragma clang loop unroll_count(4)
        for (long pair = 0; pair < pairs; pair++) {
            __m512bh right[3];
#pragma clang loop unroll(full)
            for (int j = 0; j < V; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + pair * 16 * V + 16 * j);
#pragma clang loop unroll(full)
            for (int i = 0; i < R; i++) {
                int both;
                memcpy(&both, a + i * stride + 2 * pair, 4);
                __m512bh left = (__m512bh)_mm512_set1_epi32(both);
#pragma clang loop unroll(full)
                for (int j = 0; j < V; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], left, right[j]);
            }
        }
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < R; i++)
#pragma clang loop unroll(full)
        for (int j = 0; j < V; j++) {
            float *to = c + (row + i) * c_stride + column + 16 * j;
            if (j == V - 1 && last != 0xffff) _mm512_mask_storeu_ps(to, last, sums[i][j]);
            else _mm512_storeu_ps(to, sums[i][j]);
        }
}

#define TILES(V)                                                                                                          \
    TARGET_BF16 static void tiles_##V(const tributary_bf16_segment *segments, long count, long row, long end, long column, \
                                      __mmask16 last, const float *from, long from_stride, float *c, long c_stride) {      \
        for (; row + 8 <= end; row += 8) tile(8, V, segments, count, row, column, last, from, from_stride, c, c_stride);    \
        if (row + 4 <= end) {                                                                                              \
            tile(4, V, segments, count, row, column, last, from, from_stride, c, c_stride);                                \
            row += 4;                                                                                                      \
        }                                                                                                                  \
        for (; row < end; row++) tile(1, V, segments, count, row, column, last, from, from_stride, c, c_stride);            \
    }
TILES(1)
TILES(2)
TILES(3)

/// Rows that pass over a sliver of B before the next sliver: their part of A stays in the second-level cache.
#ifndef ROWS_AT_ONCE
enum { ROWS_AT_ONCE = 64 };
#endif

TARGET_BF16 static void multiply_bf16(const tributary_bf16_segment *segments, long count, long m, long n, const float *from,
                                      long from_stride, float *c, long c_stride) {
    for (long row = 0; row < m; row += ROWS_AT_ONCE) {
        long end = row + ROWS_AT_ONCE < m ? row + ROWS_AT_ONCE : m;
        for (long column = 0; column < n; column += SLIVER) {
            long here = n - column < SLIVER ? n - column : SLIVER, rest = here % LANES;
            __mmask16 last = rest ? (__mmask16)((1u << rest) - 1) : (__mmask16)0xffff;
            if (here > 32) tiles_3(segments, count, row, end, column, last, from, from_stride, c, c_stride);
            else if (here > 16) tiles_2(segments, count, row, end, column, last, from, from_stride, c, c_stride);
            else tiles_1(segments, count, row, end, column, last, from, from_stride, c, c_stride);
        }
    }
}
#endif

void tributary_bf16_multiply(int path, const tributary_bf16_segment *segments, long count, long m, long n, const float *from,
                             long from_stride, float *c, long c_stride) {
#if defined(__x86_64__)
    if (tributary_bf16_supported(path)) {
        multiply_bf16(segments, count, m, n, from, from_stride, c, c_stride);
        return;
    }
#endif
    multiply_scalar(segments, count, m, n, from, from_stride, c, c_stride);
}
