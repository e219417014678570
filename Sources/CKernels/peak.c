// What the machine allows: multiply-add instructions alone, without a load; and reading alone.
#include "path.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/// Sums that do not wait for one another: more than an instruction's latency times its rate.
enum { CHAINS = 24 };

#if defined(__x86_64__)
TARGET_BF16 static float peak_bf16(long rounds) {
    __m512 sums[CHAINS];
    for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_set1_ps((float)i);
    const __m512bh operand = (__m512bh)_mm512_setzero_si512();
    for (long round = 0; round < rounds; round++) {
#pragma clang loop unroll(full)
        for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_dpbf16_ps(sums[i], operand, operand);
        __asm__ volatile("" ::: "memory");
    }
    for (int i = 1; i < CHAINS; i++) sums[0] = _mm512_add_ps(sums[0], sums[i]);
    return _mm512_reduce_add_ps(sums[0]);
}
TARGET_AVX512 static float peak_avx512(long rounds) {
    __m512 sums[CHAINS];
    for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_set1_ps((float)i);
    const __m512 operand = _mm512_set1_ps((float)(rounds & 1));
    for (long round = 0; round < rounds; round++) {
#pragma clang loop unroll(full)
        for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_fmadd_ps(operand, operand, sums[i]);
        __asm__ volatile("" ::: "memory");
    }
    for (int i = 1; i < CHAINS; i++) sums[0] = _mm512_add_ps(sums[0], sums[i]);
    return _mm512_reduce_add_ps(sums[0]);
}
TARGET_AVX2 static float peak_avx2(long rounds) {
    enum { SHORT = 12 };
    __m256 sums[SHORT];
    for (int i = 0; i < SHORT; i++) sums[i] = _mm256_set1_ps((float)i);
    const __m256 operand = _mm256_set1_ps((float)(rounds & 1));
    for (long round = 0; round < 2 * rounds; round++) {
#pragma clang loop unroll(full)
        for (int i = 0; i < SHORT; i++) sums[i] = _mm256_fmadd_ps(operand, operand, sums[i]);
        __asm__ volatile("" ::: "memory");
    }
    for (int i = 1; i < SHORT; i++) sums[0] = _mm256_add_ps(sums[0], sums[i]);
    float lanes[8];
    _mm256_storeu_ps(lanes, sums[0]);
    return lanes[0];
}
#endif

double tributary_peak_loop(int path, int bf16, long rounds) {
    static volatile float sink;
#if defined(__x86_64__)
    if (bf16) {
        if (!tributary_bf16_supported(path)) return 0;
        sink = peak_bf16(rounds);
        return 64.0 * CHAINS * (double)rounds;
    }
    if (path == TRIBUTARY_AVX512) {
        sink = peak_avx512(rounds);
        return 32.0 * CHAINS * (double)rounds;
    }
    if (path == TRIBUTARY_AVX2) {
        sink = peak_avx2(rounds);
        return 16.0 * CHAINS * (double)rounds;
    }
#endif
    (void)path;
    (void)bf16;
    (void)rounds;
    (void)sink;
    return 0;
}

BODY float read_loop_body(const float *memory, long count) {
    f32x16 sums[4] = {};
    for (long i = 0; i + 4 * 16 <= count; i += 4 * 16)
        for (int part = 0; part < 4; part++) sums[part] += LOAD(memory + i + part * 16);
    f32x16 all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return sum_lanes(&all);
}
VARIANTS(float, read_loop, (const float *memory, long count), (memory, count))
float tributary_read_loop(int path, const float *memory, long count) { return CHOOSE(read_loop, (memory, count)); }
