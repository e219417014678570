// Dense updates: bfloat16 to nearest, and bytes rounded at random.
#include "path.h"
#include <string.h>

BODY uint16_t bf16_of(uint32_t bits) {
    uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1), magnitude = bits & 0x7fffffff;
    // What rounds up to infinity takes the largest finite value; infinities and NaN are cut, and stay such.
    uint32_t result = magnitude < 0x7f800000 && (rounded & 0x7fffffff) >= 0x7f800000 ? (bits & 0x80000000) | 0x7f7f0000 : rounded;
    result = magnitude >= 0x7f800000 ? bits | (magnitude > 0x7f800000 ? 0x00400000 : 0) : result;
    return (uint16_t)(result >> 16);
}

BODY void round_bf16_body(const float *values, long count, uint8_t *out) {
    for (long i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, 4);
        uint16_t result = bf16_of(bits);
        memcpy(out + 2 * i, &result, 2);
    }
}
VARIANTS(void, round_bf16, (const float *values, long count, uint8_t *out), (values, count, out))
void tributary_round_bf16(int path, const float *values, long count, uint8_t *out) {
    CHOOSE(round_bf16, (values, count, out));
}

void tributary_round_bf16_at(const float *values, const uint32_t *positions, long kept, uint8_t *out) {
    for (long i = 0; i < kept; i++) round_bf16_body(values + positions[i], 1, out + 2 * i);
}

BODY long widen_bf16_body(const uint8_t *values, long count, float *out) {
    uint32_t largest = 0;
    for (long i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, values + 2 * i, 2);
        uint32_t bits = (uint32_t)half << 16, magnitude = bits & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
        memcpy(out + i, &bits, 4);
    }
    if (largest < 0x7f800000) return -1;
    long i = 0;
    while ((out[i] - out[i]) == 0) i++;
    return i;
}
VARIANTS(long, widen_bf16, (const uint8_t *values, long count, float *out), (values, count, out))
long tributary_widen_bf16(int path, const uint8_t *values, long count, float *out) {
    return CHOOSE(widen_bf16, (values, count, out));
}

VARIANTS(float, largest_magnitude, (const float *values, long count), (values, count))
float tributary_largest_magnitude(int path, const float *values, long count) { return CHOOSE(largest_magnitude, (values, count)); }

BODY void round_int8_body(const float *values, long count, float scale, const uint32_t *draws, int8_t *out) {
    for (long i = 0; i < count; i++) {
        // Above 128 everything is positive, where cutting the fraction off is the floor.
        double shifted = (double)values[i] / (double)scale + (double)draws[i] * 0x1p-32 + 128.0;
        out[i] = (int8_t)((int32_t)shifted - 128);
    }
}
VARIANTS(void, round_int8, (const float *values, long count, float scale, const uint32_t *draws, int8_t *out), (values, count, scale, draws, out))
void tributary_round_int8(int path, const float *values, long count, float scale, const uint32_t *draws, int8_t *out) {
    CHOOSE(round_int8, (values, count, scale, draws, out));
}

BODY long widen_int8_body(const int8_t *codes, long count, float scale, float *out) {
    const float most = 0x1.fffffep127f;
    int bad = 0;
    for (long i = 0; i < count; i++) {
        float value = (float)codes[i] * scale;
        value = value > most ? most : value;
        out[i] = value < -most ? -most : value;
        bad |= codes[i] == -128 || (scale == 0 && codes[i] != 0);
    }
    if (!bad) return -1;
    long i = 0;
    while (codes[i] != -128 && (scale != 0 || codes[i] == 0)) i++;
    return i;
}
VARIANTS(long, widen_int8, (const int8_t *codes, long count, float scale, float *out), (codes, count, scale, out))
long tributary_widen_int8(int path, const int8_t *codes, long count, float scale, float *out) {
    return CHOOSE(widen_int8, (codes, count, scale, out));
}
