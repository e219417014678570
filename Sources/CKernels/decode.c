// From stored weights to floats, a tile at a time.
#include "path.h"
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// ---- 4-bit codes -------------------------------------------------------------------------------------------------

/// One row's part: flat elements first ..< first + count. `packed` is the whole matrix's.
typedef void (*decode_run)(const uint8_t *packed, const float *scales, int block_shift, const float *table, long first,
                           long count, float *out);

BODY float decode_one(const uint8_t *packed, const float *scales, int block_shift, const float *table, long element) {
    uint8_t byte = packed[element >> 1];
    return table[element & 1 ? byte & 15 : byte >> 4] * scales[element >> block_shift];
}

static void decode_run_scalar(const uint8_t *packed, const float *scales, int block_shift, const float *table, long first,
                              long count, float *out) {
    for (long i = 0; i < count; i++) out[i] = decode_one(packed, scales, block_shift, table, first + i);
}

#if defined(__x86_64__)
// 32 elements are 16 bytes and, on a boundary of 32, lie in one block. The table is scaled once a block: table[code] *
// scale is the same product whether it is formed before or after the look-up.

TARGET_AVX512 static void decode_run_avx512(const uint8_t *packed, const float *scales, int block_shift, const float *table,
                                            long first, long count, float *out) {
    long end = first + count, element = first;
    for (; element < end && (element & 31); element++) out[element - first] = decode_one(packed, scales, block_shift, table, element);
    const __m512 unit = _mm512_loadu_ps(table);
    const __m128i low = _mm_set1_epi8(15);
    long block = -1;
    __m512 scaled = unit;
    for (; element + 32 <= end; element += 32) {
        if (element >> block_shift != block) {
            block = element >> block_shift;
            scaled = _mm512_mul_ps(unit, _mm512_set1_ps(scales[block]));
        }
        __m128i bytes = _mm_loadu_si128((const __m128i *)(packed + (element >> 1)));
        __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), low), odd = _mm_and_si128(bytes, low);
        __m512i a = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(even, odd)), b = _mm512_cvtepu8_epi32(_mm_unpackhi_epi8(even, odd));
        _mm512_storeu_ps(out + (element - first), _mm512_permutexvar_ps(a, scaled));
        _mm512_storeu_ps(out + (element - first) + 16, _mm512_permutexvar_ps(b, scaled));
    }
    for (; element < end; element++) out[element - first] = decode_one(packed, scales, block_shift, table, element);
}

TARGET_AVX2 static inline __m256 look_up_avx2(__m256 low, __m256 high, __m256i codes) {
    // vpermps reads the low three bits; bit 3, moved to the sign, chooses the half of the table.
    __m256 from_low = _mm256_permutevar8x32_ps(low, codes), from_high = _mm256_permutevar8x32_ps(high, codes);
    return _mm256_blendv_ps(from_low, from_high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

TARGET_AVX2 static void decode_run_avx2(const uint8_t *packed, const float *scales, int block_shift, const float *table,
                                        long first, long count, float *out) {
    long end = first + count, element = first;
    for (; element < end && (element & 31); element++) out[element - first] = decode_one(packed, scales, block_shift, table, element);
    const __m256 unit_low = _mm256_loadu_ps(table), unit_high = _mm256_loadu_ps(table + 8);
    const __m128i mask = _mm_set1_epi8(15);
    long block = -1;
    __m256 low = unit_low, high = unit_high;
    for (; element + 32 <= end; element += 32) {
        if (element >> block_shift != block) {
            block = element >> block_shift;
            __m256 scale = _mm256_set1_ps(scales[block]);
            low = _mm256_mul_ps(unit_low, scale);
            high = _mm256_mul_ps(unit_high, scale);
        }
        __m128i bytes = _mm_loadu_si128((const __m128i *)(packed + (element >> 1)));
        __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask), odd = _mm_and_si128(bytes, mask);
        __m128i a = _mm_unpacklo_epi8(even, odd), b = _mm_unpackhi_epi8(even, odd);
        float *to = out + (element - first);
        _mm256_storeu_ps(to, look_up_avx2(low, high, _mm256_cvtepu8_epi32(a)));
        _mm256_storeu_ps(to + 8, look_up_avx2(low, high, _mm256_cvtepu8_epi32(_mm_srli_si128(a, 8))));
        _mm256_storeu_ps(to + 16, look_up_avx2(low, high, _mm256_cvtepu8_epi32(b)));
        _mm256_storeu_ps(to + 24, look_up_avx2(low, high, _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8))));
    }
    for (; element < end; element++) out[element - first] = decode_one(packed, scales, block_shift, table, element);
}
#endif

void tributary_decode_4bit(int path, const uint8_t *packed, const float *scales, long first_block, int block_shift,
                           const float *table, long columns, long row0, long row1, long column0, long column1,
                           float *out, long stride) {
    decode_run run = decode_run_scalar;
#if defined(__x86_64__)
    if (path == TRIBUTARY_AVX512) run = decode_run_avx512;
    if (path == TRIBUTARY_AVX2) run = decode_run_avx2;
#endif
    (void)path;
    // Whole rows that follow one another in the output are one run.
    if (column0 == 0 && column1 == columns && stride == columns) {
        run(packed, scales - first_block, block_shift, table, row0 * columns, (row1 - row0) * columns, out);
        return;
    }
    for (long row = row0; row < row1; row++)
        run(packed, scales - first_block, block_shift, table, row * columns + column0, column1 - column0, out + (row - row0) * stride);
}

void tributary_decode_nested_scales(const uint8_t *codes, const float *map, const float *scales, long block, float offset,
                                    long first, long count, float *out) {
    for (long i = 0; i < count;) {
        long run = (first + i) / block, end = (run + 1) * block - first;
        float scale = scales[run];
        for (end = end < count ? end : count; i < end; i++) out[i] = map[codes[first + i]] * scale + offset;
    }
}

// ---- bytes -------------------------------------------------------------------------------------------------------

enum { INT8_RUN = 64 };

BODY void int8_body(const int8_t *codes, const float *scales, long columns, long row0, long row1, long column0, long column1,
                    float *out, long stride) {
    long runs = (columns + INT8_RUN - 1) / INT8_RUN;
    for (long row = row0; row < row1; row++) {
        const int8_t *from = codes + row * columns;
        float *to = out + (row - row0) * stride - column0;
        for (long column = column0; column < column1;) {
            long run = column / INT8_RUN, end = (run + 1) * INT8_RUN < column1 ? (run + 1) * INT8_RUN : column1;
            float scale = scales[row * runs + run];
            for (; column + 16 <= end; column += 16) {
                i32x16 wide = __builtin_convertvector(*(const i8x16_u *)(from + column), i32x16);
                STORE(to + column, __builtin_convertvector(wide, f32x16) * SPLAT(scale));
            }
            for (; column < end; column++) to[column] = (float)from[column] * scale;
        }
    }
}
VARIANTS(void, int8, (const int8_t *codes, const float *scales, long columns, long row0, long row1, long column0, long column1, float *out, long stride),
         (codes, scales, columns, row0, row1, column0, column1, out, stride))
void tributary_decode_int8(int path, const int8_t *codes, const float *scales, long columns, long row0, long row1,
                           long column0, long column1, float *out, long stride) {
    CHOOSE(int8, (codes, scales, columns, row0, row1, column0, column1, out, stride));
}

BODY void int8_rows_body(const int8_t *codes, const float *scales, long columns, long row0, long row1, long column0,
                         long column1, float *out, long stride) {
    // bitsandbytes' reciprocal of 127, and its order of the two products.
    const float unit = 7.874015718698502e-3f;
    for (long row = row0; row < row1; row++) {
        const int8_t *from = codes + row * columns;
        float *to = out + (row - row0) * stride - column0, scale = scales[row];
        long column = column0;
        for (; column + 16 <= column1; column += 16) {
            i32x16 wide = __builtin_convertvector(*(const i8x16_u *)(from + column), i32x16);
            STORE(to + column, __builtin_convertvector(wide, f32x16) * SPLAT(scale) * SPLAT(unit));
        }
        for (; column < column1; column++) to[column] = (float)from[column] * scale * unit;
    }
}
VARIANTS(void, int8_rows, (const int8_t *codes, const float *scales, long columns, long row0, long row1, long column0, long column1, float *out, long stride),
         (codes, scales, columns, row0, row1, column0, column1, out, stride))
void tributary_decode_int8_rows(int path, const int8_t *codes, const float *scales, long columns, long row0, long row1,
                                long column0, long column1, float *out, long stride) {
    CHOOSE(int8_rows, (codes, scales, columns, row0, row1, column0, column1, out, stride));
}

// ---- halves ------------------------------------------------------------------------------------------------------

BODY void bf16_body(const char *values, long columns, long row0, long row1, long column0, long column1, float *out, long stride) {
    for (long row = row0; row < row1; row++) {
        const char *from = values + 2 * (row * columns + column0);
        float *to = out + (row - row0) * stride;
        long count = column1 - column0, i = 0;
        for (; i + 16 <= count; i += 16) {
            u32x16 wide = __builtin_convertvector(*(const u16x16_u *)(from + 2 * i), u32x16) << 16;
            STORE(to + i, (f32x16)wide);
        }
        for (; i < count; i++) {
            uint16_t half;
            memcpy(&half, from + 2 * i, 2);
            uint32_t bits = (uint32_t)half << 16;
            memcpy(to + i, &bits, 4);
        }
    }
}
VARIANTS(void, bf16, (const char *values, long columns, long row0, long row1, long column0, long column1, float *out, long stride),
         (values, columns, row0, row1, column0, column1, out, stride))
void tributary_decode_bf16(int path, const void *values, long columns, long row0, long row1, long column0, long column1,
                           float *out, long stride) {
    CHOOSE(bf16, (values, columns, row0, row1, column0, column1, out, stride));
}

BODY void f16_body(const char *values, long columns, long row0, long row1, long column0, long column1, float *out, long stride) {
    for (long row = row0; row < row1; row++) {
        const char *from = values + 2 * (row * columns + column0);
        float *to = out + (row - row0) * stride;
        long count = column1 - column0, i = 0;
        for (; i + 16 <= count; i += 16) {
            f32x16 wide;
            f16_lanes(from + 2 * i, &wide);
            STORE(to + i, wide);
        }
        for (; i < count; i++) to[i] = half_at(from + 2 * i);
    }
}
VARIANTS(void, f16, (const char *values, long columns, long row0, long row1, long column0, long column1, float *out, long stride),
         (values, columns, row0, row1, column0, column1, out, stride))
void tributary_decode_f16(int path, const void *values, long columns, long row0, long row1, long column0, long column1,
                          float *out, long stride) {
    CHOOSE(f16, (values, columns, row0, row1, column0, column1, out, stride));
}

void tributary_decode_f32(const void *values, long columns, long row0, long row1, long column0, long column1, float *out,
                          long stride) {
    for (long row = row0; row < row1; row++)
        memcpy(out + (row - row0) * stride, (const char *)values + 4 * (row * columns + column0), 4 * (size_t)(column1 - column0));
}
