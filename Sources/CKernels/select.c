// Which values a sparse update keeps: the largest magnitudes, exactly, by histograms over the bits of |x|.
#include "path.h"
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MAGNITUDE = 0x7fffffff };

BODY uint32_t magnitude(const float *value) {
    uint32_t bits;
    memcpy(&bits, value, 4);
    return bits & MAGNITUDE;
}

// ---- selection: the 31 bits of a magnitude as digits of 12, 11 and 8 bits, highest first ----------------------------

enum { FIRST_BITS = 12, SECOND_BITS = 11, THIRD_BITS = 8, BINS = 1 << FIRST_BITS, COPIES = 4 };

/// How many values have each highest digit. Neighbouring values count in different copies, because counting twice in
/// one place makes the second wait for the first.
static void count_first(const float *values, long count, uint32_t *bins) {
    static _Thread_local uint32_t copies[COPIES][BINS];
    memset(copies, 0, sizeof copies);
    const int shift = SECOND_BITS + THIRD_BITS;
    long i = 0;
    for (; i + COPIES <= count; i += COPIES) {
        uint64_t low, high;
        memcpy(&low, values + i, 8);
        memcpy(&high, values + i + 2, 8);
        copies[0][(low >> shift) & (BINS - 1)]++;
        copies[1][(low >> (32 + shift)) & (BINS - 1)]++;
        copies[2][(high >> shift) & (BINS - 1)]++;
        copies[3][(high >> (32 + shift)) & (BINS - 1)]++;
    }
    for (; i < count; i++) copies[0][magnitude(values + i) >> shift]++;
    for (long bin = 0; bin < BINS; bin++) bins[bin] = copies[0][bin] + copies[1][bin] + copies[2][bin] + copies[3][bin];
}

/// How many of the values whose bits from `above` on are `prefix` have each digit from bit `shift` to `above`.
static void count_next_scalar(const float *values, long count, int above, uint32_t prefix, int shift, uint32_t *bins) {
    const uint32_t mask = (1u << (above - shift)) - 1;
    for (long i = 0; i < count; i++) {
        uint32_t bits = magnitude(values + i);
        if (bits >> above == prefix) bins[(bits >> shift) & mask]++;
    }
}

#if defined(__x86_64__)
TARGET_AVX512 static void count_next_avx512(const float *values, long count, int above, uint32_t prefix, int shift, uint32_t *bins) {
    const uint32_t mask = (1u << (above - shift)) - 1;
    const __m512i wanted = _mm512_set1_epi32((int)prefix);
    long i = 0;
    for (; i + 16 <= count; i += 16) {
        __m512i bits = _mm512_and_si512(_mm512_loadu_si512(values + i), _mm512_set1_epi32(MAGNITUDE));
        unsigned matches = _mm512_cmpeq_epi32_mask(_mm512_srl_epi32(bits, _mm_cvtsi32_si128(above)), wanted);
        for (; matches; matches &= matches - 1) bins[(magnitude(values + i + __builtin_ctz(matches)) >> shift) & mask]++;
    }
    count_next_scalar(values + i, count - i, above, prefix, shift, bins);
}

TARGET_AVX2 static void count_next_avx2(const float *values, long count, int above, uint32_t prefix, int shift, uint32_t *bins) {
    const uint32_t mask = (1u << (above - shift)) - 1;
    const __m256i wanted = _mm256_set1_epi32((int)prefix);
    long i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256i bits = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(values + i)), _mm256_set1_epi32(MAGNITUDE));
        __m256i equal = _mm256_cmpeq_epi32(_mm256_srl_epi32(bits, _mm_cvtsi32_si128(above)), wanted);
        unsigned matches = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(equal));
        for (; matches; matches &= matches - 1) bins[(magnitude(values + i + __builtin_ctz(matches)) >> shift) & mask]++;
    }
    count_next_scalar(values + i, count - i, above, prefix, shift, bins);
}
#endif

/// The digit where the count from the highest bin down reaches *keep; *keep becomes how many of that bin are wanted.
static uint32_t digit_of(const uint32_t *bins, long size, long *keep) {
    long bin = size - 1;
    while (bin > 0 && (long)bins[bin] < *keep) *keep -= (long)bins[bin--];
    return (uint32_t)bin;
}

void tributary_select(int path, const float *values, long count, long keep, uint32_t floor, uint32_t *threshold, long *ties) {
    *threshold = floor;
    *ties = 0;
    if (keep >= count) return;
    uint32_t bins[BINS];
    count_first(values, count, bins);
    uint32_t found = digit_of(bins, BINS, &keep);
    const int digits[2] = {SECOND_BITS, THIRD_BITS};
    int above = SECOND_BITS + THIRD_BITS;
    for (int digit = 0; digit < 2; digit++) {
        int shift = above - digits[digit];
        memset(bins, 0, sizeof *bins << digits[digit]);
        CHOOSE(count_next, (values, count, above, found, shift, bins));
        found = found << digits[digit] | digit_of(bins, 1l << digits[digit], &keep);
        above = shift;
    }
    // The keep-th largest is no more than the floor: all above the floor are fewer, and stay.
    if (found <= floor) return;
    *threshold = found;
    *ties = keep;
}

// ---- where they are ------------------------------------------------------------------------------------------------

static long gather_scalar(const float *values, long start, long count, uint32_t threshold, long *ties, uint32_t *positions, long kept) {
    for (long i = start; i < count; i++) {
        uint32_t bits = magnitude(values + i);
        // Written always and counted where it is kept: no branch to guess.
        positions[kept] = (uint32_t)i;
        kept += bits > threshold;
        if (bits == threshold && *ties > 0) {
            kept++;
            --*ties;
        }
    }
    return kept;
}

#if defined(__x86_64__)
/// Of the lanes that equal the threshold, the first that there is still room for.
static inline unsigned first_ties(unsigned equal, long *ties) {
    if (!equal || *ties <= 0) return 0;
    while (__builtin_popcount(equal) > *ties) equal &= ~(0x80000000u >> __builtin_clz(equal));
    *ties -= __builtin_popcount(equal);
    return equal;
}

TARGET_AVX512 static long gather_avx512(const float *values, long start, long count, uint32_t threshold, long *ties, uint32_t *positions, long kept) {
    const __m512i limit = _mm512_set1_epi32((int)threshold);
    __m512i lanes = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32((int)start));
    long i = start;
    for (; i + 16 <= count; i += 16) {
        __m512i bits = _mm512_and_si512(_mm512_loadu_si512(values + i), _mm512_set1_epi32(MAGNITUDE));
        unsigned keep = _mm512_cmpgt_epu32_mask(bits, limit);
        if (*ties > 0) keep |= first_ties(_mm512_cmpeq_epi32_mask(bits, limit), ties);
        // Compressed in the register: compressing into memory is slow on some processors.
        _mm512_storeu_si512(positions + kept, _mm512_maskz_compress_epi32((__mmask16)keep, lanes));
        kept += __builtin_popcount(keep);
        lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(16));
    }
    return gather_scalar(values, i, count, threshold, ties, positions, kept);
}

TARGET_AVX2 static long gather_avx2(const float *values, long start, long count, uint32_t threshold, long *ties, uint32_t *positions, long kept) {
    const __m256i limit = _mm256_set1_epi32((int)threshold);
    long i = start;
    for (; i + 8 <= count; i += 8) {
        __m256i bits = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(values + i)), _mm256_set1_epi32(MAGNITUDE));
        unsigned keep = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(bits, limit)));
        if (*ties > 0) {
            unsigned equal = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(bits, limit)));
            keep |= first_ties(equal, ties);
        }
        // The numbers of the set bits, one a byte: each bit spread to a byte, and these bytes taken out of 0, 1, ..., 7.
        uint64_t bytes = _pext_u64(0x0706050403020100u, _pdep_u64(keep, 0x0101010101010101u) * 0xff);
        __m256i lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
        _mm256_storeu_si256((__m256i *)(positions + kept), _mm256_add_epi32(lanes, _mm256_set1_epi32((int)i)));
        kept += __builtin_popcount(keep);
    }
    return gather_scalar(values, i, count, threshold, ties, positions, kept);
}
#endif

long tributary_gather(int path, const float *values, long count, uint32_t threshold, long *ties, uint32_t *positions) {
    return CHOOSE(gather, (values, 0, count, threshold, ties, positions, 0));
}

// ---- sums ----------------------------------------------------------------------------------------------------------

double tributary_sum_magnitudes(const float *values, const uint32_t *positions, long kept) {
    double sums[4] = {0};
    for (long i = 0; i < kept; i++) sums[i & 3] += (double)__builtin_fabsf(values[positions[i]]);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

typedef double f64x16 __attribute__((vector_size(128)));

BODY double sum_doubles(const f64x16 *v) {
    double sum = 0;
    for (int lane = 0; lane < 16; lane++) sum += (*v)[lane];
    return sum;
}

BODY void moments_body(const float *values, long count, double center, double *sum, double *squares) {
    f64x16 sums = {0}, products = {0};
    long i = 0;
    for (; i + 16 <= count; i += 16) {
        f32x16 block = LOAD(values + i);
        f64x16 difference = __builtin_convertvector(block, f64x16) - center;
        sums += difference;
        products += difference * difference;
    }
    *sum = sum_doubles(&sums);
    *squares = sum_doubles(&products);
    for (; i < count; i++) {
        double difference = (double)values[i] - center;
        *sum += difference;
        *squares += difference * difference;
    }
}
VARIANTS(void, moments, (const float *values, long count, double center, double *sum, double *squares), (values, count, center, sum, squares))
void tributary_moments(int path, const float *values, long count, double center, double *sum, double *squares) {
    CHOOSE(moments, (values, count, center, sum, squares));
}
