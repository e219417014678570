// From floats to quantized weights.
#include "path.h"
#include <math.h>
#include <string.h>

// Midpoints between neighbouring NF4 values as bitsandbytes' kernels have them (f32; csrc/kernels.cu, dQuantizeNF4).
static const float nf4_thresholds[15] = {
    -0x1.b239bp-1f, -0x1.38a4ep-1f, -0x1.d709p-2f, -0x1.5bd4ecp-2f, -0x1.e079d8p-3f,
    -0x1.1a7178p-3f, -0x1.74f0e2p-5f, 0x1.45f5fep-5f, 0x1.ec90c4p-4f, 0x1.a0cfcp-3f,
    0x1.2b05a8p-2f, 0x1.8ea7f2p-2f, 0x1.00da08p-1f, 0x1.491b5ep-1f, 0x1.b913b4p-1f,
};

BODY void nf4_block_body(const float *values, long count, float multiplier, float divisor, uint8_t *codes) {
    // code = number of thresholds below the value, so that a tie takes the lower code.
    for (long i = 0; i < count; i++) {
        float y = divisor != 0 ? values[i] / divisor : values[i] * multiplier;
        int code = 0;
        for (int t = 0; t < 15; t++) code += y > nf4_thresholds[t];
        codes[i] = (uint8_t)code;
    }
}

// bitsandbytes' thresholds on magnitudes (csrc/kernels.cu, dQuantizeFP4).
static const float fp4_thresholds[7] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f};

BODY void fp4_block_body(const float *values, long count, float multiplier, float divisor, uint8_t *codes) {
    for (long i = 0; i < count; i++) {
        float y = divisor != 0 ? values[i] / divisor : values[i] * multiplier;
        float magnitude = __builtin_fabsf(y);
        int rank = 0;
        for (int t = 0; t < 7; t++) rank += magnitude > fp4_thresholds[t];
        // Magnitudes rise in the order of the codes 0 1 6 7 4 5 2 3.
        codes[i] = (uint8_t)((rank & 1) | ((8 - (rank & 6)) & 6) | (y < 0 ? 8 : 0));
    }
}

/// Codes and scales of `count` values; `zero` is the code of zero.
#define FOUR_BIT_BODY(name, block_body, zero)                                                                            \
    BODY void name(const float *values, long count, long block, uint8_t *packed, float *scales) {                        \
        uint8_t codes[4096];                                                                                             \
        for (long start = 0; start < count; start += block) {                                                            \
            long size = count - start < block ? count - start : block;                                                   \
            float largest = largest_magnitude_body(values + start, size);                                                \
            scales[start / block] = largest;                                                                             \
            /* bitsandbytes multiplies by the reciprocal, except in a last block that is not full, where it divides. */  \
            /* We also divide where the reciprocal would overflow. */                                                    \
            float reciprocal = 1.0f / largest;                                                                           \
            if (largest == 0) {                                                                                          \
                for (long i = 0; i < size; i++) codes[i] = zero;                                                         \
            } else if (size < block || isinf(reciprocal)) {                                                              \
                block_body(values + start, size, 0, largest, codes);                                                     \
            } else {                                                                                                     \
                block_body(values + start, size, reciprocal, 0, codes);                                                  \
            }                                                                                                            \
            /* Blocks hold an even number of values, so that only the very last byte may be half used. */                \
            if (size & 1) codes[size] = zero;                                                                            \
            for (long i = 0; i < size; i += 2) packed[(start + i) >> 1] = (uint8_t)(codes[i] << 4 | codes[i + 1]);       \
        }                                                                                                                \
    }
FOUR_BIT_BODY(nf4_body, nf4_block_body, 7)
FOUR_BIT_BODY(fp4_body, fp4_block_body, 0)
VARIANTS(void, nf4, (const float *values, long count, long block, uint8_t *packed, float *scales), (values, count, block, packed, scales))
VARIANTS(void, fp4, (const float *values, long count, long block, uint8_t *packed, float *scales), (values, count, block, packed, scales))
void tributary_encode_nf4(int path, const float *values, long count, long block, uint8_t *packed, float *scales) {
    CHOOSE(nf4, (values, count, block, packed, scales));
}
void tributary_encode_fp4(int path, const float *values, long count, long block, uint8_t *packed, float *scales) {
    CHOOSE(fp4, (values, count, block, packed, scales));
}

BODY void int8_row_body(const float *values, long columns, int8_t *codes, float *scales) {
    for (long start = 0; start < columns; start += 64) {
        long end = start + 64 < columns ? start + 64 : columns;
        float largest = largest_magnitude_body(values + start, end - start);
        scales[start / 64] = largest / 127.0f;
        for (long i = start; i < end; i++) {
            // In double, where the product cannot overflow.
            float q = largest > 0 ? (float)((double)values[i] * 127.0 / (double)largest) : 0;
            // Adding 1.5 x 2^23 rounds to an integer, halves to even.
            codes[i] = (int8_t)(int32_t)((q + 0x1.8p23f) - 0x1.8p23f);
        }
    }
}
VARIANTS(void, int8_row, (const float *values, long columns, int8_t *codes, float *scales), (values, columns, codes, scales))
void tributary_encode_int8(int path, const float *values, long columns, int8_t *codes, float *scales) {
    CHOOSE(int8_row, (values, columns, codes, scales));
}
