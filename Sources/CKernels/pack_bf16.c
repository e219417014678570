// The right operand of a bfloat16 product: packed from 4-bit codes, stored bf16 or floats; see gemm_bf16.c for the layout.
//
// A product reads the matrix in one of two ways. Forward, y = x W^T: a packed column is a row of the matrix, and k runs
// along it. Backward, dx = dy W: a packed column is a column of the matrix, and k runs over its rows.
#include "path.h"
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SLIVER = TRIBUTARY_BF16_SLIVER, LANES = 16 };

static inline long sliver_width(long rest) {
    return rest >= SLIVER ? SLIVER : (rest + LANES - 1) / LANES * LANES;
}

// ---- any source, one value after another: the twins, and odd edges -----------------------------------------------

static inline float block_scale(const tributary_4bit_matrix *m, long block) {
    if (!m->codes) return m->scales[block];
    return m->map[m->codes[block]] * m->scales[block / m->nested_block] + m->offset;
}

static inline uint16_t value_4bit(const tributary_4bit_matrix *m, long row, long column) {
    long element = row * m->columns + column;
    uint8_t byte = m->packed[element >> 1];
    return bf16_from(m->table[element & 1 ? byte & 15 : byte >> 4] * block_scale(m, element >> m->block_shift));
}
static inline uint16_t value_bf16(const tributary_halves_matrix *m, long row, long column) {
    uint16_t half;
    memcpy(&half, (const char *)m->values + 2 * (row * m->stride + column), 2);
    return half;
}
static inline uint16_t value_f32(const tributary_floats_matrix *m, long row, long column) {
    return bf16_from(m->values[row * m->stride + column]);
}

/// Columns n0 ..< n1 of the operand with k0 ..< k1, from value(matrix, row, column).
#define PACK_ONE_BY_ONE(name, type, value)                                                                             \
    static void name(const type *m, int transposed, long n0, long n1, long k0, long k1, uint32_t *out) {               \
        long pairs = (k1 - k0 + 1) / 2;                                                                                \
        for (long column = n0; column < n1; column += SLIVER) {                                                        \
            long width = sliver_width(n1 - column);                                                                    \
            for (long pair = 0; pair < pairs; pair++)                                                                  \
                for (long j = 0; j < width; j++) {                                                                     \
                    long n = column + j, k = k0 + 2 * pair;                                                            \
                    uint32_t both = 0;                                                                                 \
                    if (n < n1) {                                                                                      \
                        both = transposed ? value(m, k, n) : value(m, n, k);                                           \
                        if (k + 1 < k1) both |= (uint32_t)(transposed ? value(m, k + 1, n) : value(m, n, k + 1)) << 16; \
                    }                                                                                                  \
                    out[pair * width + j] = both;                                                                      \
                }                                                                                                      \
            out += pairs * width;                                                                                      \
        }                                                                                                              \
    }
PACK_ONE_BY_ONE(pack_4bit_scalar, tributary_4bit_matrix, value_4bit)
PACK_ONE_BY_ONE(pack_bf16_scalar, tributary_halves_matrix, value_bf16)
PACK_ONE_BY_ONE(pack_f32_scalar, tributary_floats_matrix, value_f32)

#if defined(__x86_64__)
/// Rows ahead of the one that is packed whose lines are asked for: the next row lies in another page or nearly so, where
/// the processor does not look by itself. An address beyond the matrix is ignored.
enum { AHEAD = 16 };
static inline void fetch(const void *address) { _mm_prefetch((const char *)address, _MM_HINT_T0); }

// Word i of the result: the low halves of two registers in turn.
#define INTERLEAVE_WORDS                                                                                                 \
    _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, \
                     17, 1, 16, 0)

/// bf16 of a in the low half of each lane, of b in the high half.
TARGET_BF16 static inline __m512i pair_of(__m512 a, __m512 b, __m512i interleave) {
    return _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

// ---- 4-bit codes -------------------------------------------------------------------------------------------------

/// Sixteen rows' part of 32 columns: one byte is a pair of k. The rows' 16 bytes are turned into four vectors whose
/// lane is the row and that hold four pairs each; a look-up reads the low four bits of its lane.
TARGET_BF16 static void pack_4bit_rows(const tributary_4bit_matrix *m, long n0, long n1, long k0, long k1, uint32_t *out) {
    const long pairs = (k1 - k0) / 2, bytes = m->columns / 2;
    const __m512 table = _mm512_loadu_ps(m->table);
    const __m512i interleave = INTERLEAVE_WORDS;
    for (long column = n0; column < n1; column += SLIVER) {
        long width = sliver_width(n1 - column);
        for (long part = 0; part < width; part += LANES) {
            long first = column + part, rows = n1 - first < LANES ? n1 - first : LANES;
            // Rows beyond the end take the last row's place and a scale of zero.
            const uint8_t *from[LANES];
            float scales[LANES];
            for (long r = 0; r < LANES; r++) from[r] = m->packed + (first + (r < rows ? r : rows - 1)) * bytes;
            __m512 scale = _mm512_setzero_ps();
            for (long k = k0; k < k1; k += 32) {
                // 32 columns on a boundary of 32 lie in one block, since rows are whole runs of 32.
                if (k == k0 || ((first * m->columns + k) & ((1l << m->block_shift) - 1)) == 0 || (m->columns & ((1l << m->block_shift) - 1))) {
                    for (long r = 0; r < LANES; r++)
                        scales[r] = r < rows ? block_scale(m, ((first + r) * m->columns + k) >> m->block_shift) : 0;
                    scale = _mm512_loadu_ps(scales);
                }
                long at = k / 2;
                __m512i quads[4];
                for (int i = 0; i < 4; i++) {
                    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(from[i] + at)));
                    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(from[i + 4] + at)), 1);
                    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(from[i + 8] + at)), 2);
                    quads[i] = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(from[i + 12] + at)), 3);
                }
                __m512i a = _mm512_unpacklo_epi32(quads[0], quads[1]), b = _mm512_unpackhi_epi32(quads[0], quads[1]);
                __m512i c = _mm512_unpacklo_epi32(quads[2], quads[3]), d = _mm512_unpackhi_epi32(quads[2], quads[3]);
                quads[0] = _mm512_unpacklo_epi64(a, c);
                quads[1] = _mm512_unpackhi_epi64(a, c);
                quads[2] = _mm512_unpacklo_epi64(b, d);
                quads[3] = _mm512_unpackhi_epi64(b, d);
                uint32_t *to = out + (k - k0) / 2 * width + part;
                for (int quad = 0; quad < 4; quad++) {
#pragma clang loop unroll(full)
                    for (int byte = 0; byte < 4; byte++) {
                        __m512i low = _mm512_srli_epi32(quads[quad], (unsigned)(8 * byte)), high = _mm512_srli_epi32(quads[quad], (unsigned)(8 * byte + 4));
                        __m512 even = _mm512_mul_ps(_mm512_permutexvar_ps(high, table), scale);
                        __m512 odd = _mm512_mul_ps(_mm512_permutexvar_ps(low, table), scale);
                        _mm512_storeu_si512(to + (4 * quad + byte) * width, pair_of(even, odd, interleave));
                    }
                }
            }
        }
        out += pairs * width;
    }
}

/// Sixteen columns of one row, decoded.
TARGET_BF16 static inline __m512 sixteen_codes(const uint8_t *bytes, __m512 table) {
    __m128i both = _mm_loadl_epi64((const __m128i *)bytes);
    __m128i codes = _mm_unpacklo_epi8(_mm_srli_epi16(both, 4), both);
    return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), table);
}

/// Rows are read from end to end, though each sliver lies apart in the packed operand: pages are what reading costs.
TARGET_BF16 static void pack_4bit_columns(const tributary_4bit_matrix *m, long n0, long n1, long k0, long k1, uint32_t *out) {
    const long pairs = (k1 - k0 + 1) / 2;
    const __m512 table = _mm512_loadu_ps(m->table);
    const __m512i interleave = INTERLEAVE_WORDS;
    for (long pair = 0; pair < pairs; pair++) {
        long row = k0 + 2 * pair, above = -1, below = -1;
        __m512 first = table, second = _mm512_setzero_ps();
        for (long column = n0; column < n1; column += SLIVER) {
            long width = sliver_width(n1 - column);
            uint32_t *to = out + (column - n0) * pairs + pair * width;
            fetch(m->packed + ((row + AHEAD) * m->columns + column) / 2);
            fetch(m->packed + ((row + AHEAD + 1) * m->columns + column) / 2);
            for (long part = 0; part < width; part += LANES) {
                long element = row * m->columns + column + part;
                if (element >> m->block_shift != above) {
                    above = element >> m->block_shift;
                    first = _mm512_mul_ps(table, _mm512_set1_ps(block_scale(m, above)));
                }
                __m512 a = sixteen_codes(m->packed + (element >> 1), first), b = _mm512_setzero_ps();
                if (row + 1 < k1) {
                    element += m->columns;
                    if (element >> m->block_shift != below) {
                        below = element >> m->block_shift;
                        second = _mm512_mul_ps(table, _mm512_set1_ps(block_scale(m, below)));
                    }
                    b = sixteen_codes(m->packed + (element >> 1), second);
                }
                _mm512_storeu_si512(to + part, pair_of(a, b, interleave));
            }
        }
    }
}

// ---- halves and floats -------------------------------------------------------------------------------------------

/// Turns 16 x 16 lanes.
TARGET_BF16 static inline void transpose(__m512i v[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 4) {
        __m512i a = _mm512_unpacklo_epi32(v[i], v[i + 1]), b = _mm512_unpackhi_epi32(v[i], v[i + 1]);
        __m512i c = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]), d = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // Now lane 4 q + r of t[4 p + c] is row 4 p + r, column 4 q + c.
    for (int c = 0; c < 4; c++) {
        __m512i a = _mm512_shuffle_i32x4(t[c], t[4 + c], 0x88), b = _mm512_shuffle_i32x4(t[c], t[4 + c], 0xdd);
        __m512i d = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0x88), e = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0xdd);
        v[c] = _mm512_shuffle_i32x4(a, d, 0x88);
        v[8 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
        v[4 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
        v[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
    }
}

/// Up to 32 bf16 of a row, zeros behind them.
TARGET_BF16 static inline __m512i load_halves(const tributary_halves_matrix *m, long row, long column, long count) {
    const char *from = (const char *)m->values + 2 * (row * m->stride + column);
    return count >= 32 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), from);
}
TARGET_BF16 static inline __m512i load_floats(const tributary_floats_matrix *m, long row, long column, long count) {
    const float *from = m->values + row * m->stride + column;
    __m512 low, high = _mm512_setzero_ps();
    if (count >= 32) {
        low = _mm512_loadu_ps(from);
        high = _mm512_loadu_ps(from + 16);
    } else {
        low = _mm512_maskz_loadu_ps((__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1), from);
        if (count > 16) high = _mm512_maskz_loadu_ps((__mmask16)((1u << (count - 16)) - 1), from + 16);
    }
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
/// Up to 16 columns of rows row and row + 1 as pairs; the second row is zero if it is not there.
TARGET_BF16 static inline __m512i pair_halves(const tributary_halves_matrix *m, long row, int second, long column, long count, __m512i interleave) {
    const char *from = (const char *)m->values + 2 * (row * m->stride + column);
    __mmask16 mask = (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1);
    __m256i a = _mm256_maskz_loadu_epi16(mask, from), b = _mm256_setzero_si256();
    if (second) b = _mm256_maskz_loadu_epi16(mask, from + 2 * m->stride);
    return _mm512_permutexvar_epi16(interleave, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1));
}
TARGET_BF16 static inline __m512i pair_floats(const tributary_floats_matrix *m, long row, int second, long column, long count, __m512i interleave) {
    const float *from = m->values + row * m->stride + column;
    __mmask16 mask = (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1);
    __m512 a = _mm512_maskz_loadu_ps(mask, from), b = _mm512_setzero_ps();
    if (second) b = _mm512_maskz_loadu_ps(mask, from + m->stride);
    return pair_of(a, b, interleave);
}

#define PACK_DENSE(rows_name, columns_name, type, bytes, load, pair)                                                          \
    TARGET_BF16 static void rows_name(const type *m, long n0, long n1, long k0, long k1, uint32_t *out) {               \
        const long pairs = (k1 - k0 + 1) / 2;                                                                           \
        for (long column = n0; column < n1; column += SLIVER) {                                                         \
            long width = sliver_width(n1 - column);                                                                     \
            for (long part = 0; part < width; part += LANES) {                                                          \
                long first = column + part, rows = n1 - first < LANES ? n1 - first : LANES;                             \
                for (long k = k0; k < k1; k += 32) {                                                                    \
                    __m512i v[LANES];                                                                                   \
                    for (long r = 0; r < LANES; r++) v[r] = r < rows ? load(m, first + r, k, k1 - k) : _mm512_setzero_si512(); \
                    for (long r = 0; r < LANES; r++) fetch((const char *)m->values + ((first + LANES + r) * m->stride + k) * (long)bytes); \
                    transpose(v);                                                                                       \
                    long at = (k - k0) / 2, end = pairs - at < LANES ? pairs - at : LANES;                              \
                    for (long i = 0; i < end; i++) _mm512_storeu_si512(out + (at + i) * width + part, v[i]);            \
                }                                                                                                       \
            }                                                                                                           \
            out += pairs * width;                                                                                       \
        }                                                                                                               \
    }                                                                                                                   \
    TARGET_BF16 static void columns_name(const type *m, long n0, long n1, long k0, long k1, uint32_t *out) {            \
        const long pairs = (k1 - k0 + 1) / 2;                                                                           \
        const __m512i interleave = INTERLEAVE_WORDS;                                                                    \
        for (long p = 0; p < pairs; p++)                                                                                \
            for (long column = n0; column < n1; column += SLIVER) {                                                     \
                long width = sliver_width(n1 - column);                                                                 \
                fetch((const char *)m->values + ((k0 + 2 * p + AHEAD) * m->stride + column) * (long)bytes);              \
                fetch((const char *)m->values + ((k0 + 2 * p + AHEAD) * m->stride + column + 32) * (long)bytes);         \
                fetch((const char *)m->values + ((k0 + 2 * p + AHEAD + 1) * m->stride + column) * (long)bytes);          \
                fetch((const char *)m->values + ((k0 + 2 * p + AHEAD + 1) * m->stride + column + 32) * (long)bytes);     \
                uint32_t *to = out + (column - n0) * pairs + p * width;                                                 \
                for (long part = 0; part < width; part += LANES)                                                        \
                    _mm512_storeu_si512(to + part, pair(m, k0 + 2 * p, k0 + 2 * p + 1 < k1, column + part,              \
                                                        n1 - column - part, interleave));                               \
            }                                                                                                           \
    }
PACK_DENSE(pack_bf16_rows, pack_bf16_columns, tributary_halves_matrix, 2, load_halves, pair_halves)
PACK_DENSE(pack_f32_rows, pack_f32_columns, tributary_floats_matrix, 4, load_floats, pair_floats)

/// Columns c0 ..< c0 + 16 or fewer of 32 rows or fewer: pairs of rows, turned, are 32 values of each column.
TARGET_BF16 static void round_transposed(const float *x, long x_stride, long rows, long columns, float scale, uint16_t *out,
                                         long out_stride) {
    const __m512 s = _mm512_set1_ps(scale);
    const __m512i interleave = INTERLEAVE_WORDS;
    for (long column = 0; column < columns; column += LANES) {
        long width = columns - column < LANES ? columns - column : LANES;
        __mmask16 inside = (__mmask16)((1u << width) - 1);
        for (long row = 0; row < rows; row += 2 * LANES) {
            __m512i v[LANES];
            for (long i = 0; i < LANES; i++) {
                long first = row + 2 * i;
                __m512 a = first < rows ? _mm512_maskz_loadu_ps(inside, x + first * x_stride + column) : _mm512_setzero_ps();
                __m512 b = first + 1 < rows ? _mm512_maskz_loadu_ps(inside, x + (first + 1) * x_stride + column) : _mm512_setzero_ps();
                v[i] = pair_of(_mm512_mul_ps(a, s), _mm512_mul_ps(b, s), interleave);
            }
            transpose(v);
            long pairs = rows - row >= 2 * LANES ? LANES : (rows - row + 1) / 2;
            for (long i = 0; i < width; i++)
                _mm512_mask_storeu_epi32(out + (column + i) * out_stride + row, (__mmask16)((1u << pairs) - 1), v[i]);
        }
    }
}
#endif

static void round_transposed_scalar(const float *x, long x_stride, long rows, long columns, float scale, uint16_t *out,
                                    long out_stride) {
    for (long column = 0; column < columns; column++) {
        uint16_t *to = out + column * out_stride;
        for (long row = 0; row < rows; row++) to[row] = bf16_from(scale * x[row * x_stride + column]);
        if (rows & 1) to[rows] = 0;
    }
}

void tributary_bf16_round_transposed(int path, const float *x, long x_stride, long rows, long columns, float scale,
                                     uint16_t *out, long out_stride) {
#if defined(__x86_64__)
    if (tributary_bf16_supported(path)) {
        round_transposed(x, x_stride, rows, columns, scale, out, out_stride);
        return;
    }
#endif
    (void)path;
    round_transposed_scalar(x, x_stride, rows, columns, scale, out, out_stride);
}

void tributary_bf16_pack_4bit(int path, const tributary_4bit_matrix *matrix, int transposed, long n0, long n1, long k0,
                              long k1, uint32_t *out) {
#if defined(__x86_64__)
    // Runs of 32 columns on a boundary of 32 hold whole bytes and lie in one block, if rows are such runs.
    int whole = matrix->columns % 32 == 0 && (transposed ? n0 % LANES == 0 && n1 % LANES == 0 : k0 % 32 == 0 && k1 % 32 == 0);
    if (whole && tributary_bf16_supported(path)) {
        if (transposed) pack_4bit_columns(matrix, n0, n1, k0, k1, out);
        else pack_4bit_rows(matrix, n0, n1, k0, k1, out);
        return;
    }
#endif
    (void)path;
    pack_4bit_scalar(matrix, transposed, n0, n1, k0, k1, out);
}

void tributary_bf16_pack_bf16(int path, const tributary_halves_matrix *matrix, int transposed, long n0, long n1, long k0,
                              long k1, uint32_t *out) {
#if defined(__x86_64__)
    if (tributary_bf16_supported(path)) {
        if (transposed) pack_bf16_columns(matrix, n0, n1, k0, k1, out);
        else pack_bf16_rows(matrix, n0, n1, k0, k1, out);
        return;
    }
#endif
    (void)path;
    pack_bf16_scalar(matrix, transposed, n0, n1, k0, k1, out);
}

void tributary_bf16_pack_f32(int path, const tributary_floats_matrix *matrix, int transposed, long n0, long n1, long k0,
                             long k1, uint32_t *out) {
#if defined(__x86_64__)
    if (tributary_bf16_supported(path)) {
        if (transposed) pack_f32_columns(matrix, n0, n1, k0, k1, out);
        else pack_f32_rows(matrix, n0, n1, k0, k1, out);
        return;
    }
#endif
    (void)path;
    pack_f32_scalar(matrix, transposed, n0, n1, k0, k1, out);
}
