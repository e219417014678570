// Arithmetic on sixteen lanes that several kernels need: sums, choices, ends of rows, exp, rounding to bfloat16.
#ifndef TRIBUTARY_LANES_H
#define TRIBUTARY_LANES_H
#include "path.h"
#include <string.h>

/// Lanes of a vector, and tokens whose sums are kept in registers together.
enum { LANES = 16, TOKENS = 4 };
static const i32x16 lane_numbers __attribute__((unused)) = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/// Runs body with T a constant, from `token` on, for `tokens` tokens in groups of four at most.
#define FOR_TOKENS(tokens, body)                                    \
    for (long token = 0; token < (tokens); token += TOKENS) {       \
        switch ((tokens) - token) {                                 \
        case 1: { enum { T = 1 }; body; break; }                    \
        case 2: { enum { T = 2 }; body; break; }                    \
        case 3: { enum { T = 3 }; body; break; }                    \
        default: { enum { T = TOKENS }; body; break; }              \
        }                                                           \
    }

BODY float largest_lane(const f32x16 *v) {
    float m = (*v)[0];
    for (int i = 1; i < LANES; i++) m = (*v)[i] > m ? (*v)[i] : m;
    return m;
}
/// condition ? a : b, lane by lane; the condition is all ones or all zeros.
BODY void choose(const i32x16 *condition, const f32x16 *a, const f32x16 *b, f32x16 *out) {
    *out = (f32x16)((*condition & (i32x16)*a) | (~*condition & (i32x16)*b));
}
/// The first `count` lanes from memory, the others `fill`.
BODY void load_part(const float *from, long count, float fill, f32x16 *out) {
    float lanes[LANES];
    for (int i = 0; i < LANES; i++) lanes[i] = fill;
    for (long i = 0; i < count; i++) lanes[i] = from[i];
    *out = LOAD(lanes);
}
BODY void store_part(float *to, long count, const f32x16 *value) {
    float lanes[LANES];
    STORE(lanes, *value);
    for (long i = 0; i < count; i++) to[i] = lanes[i];
}

/// exp(x) to about 1 ulp for -87.3 <= x <= 88.3; smaller x give exp(-87.3), 1.2e-38.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by the polynomial of Cephes' expf (S. Moshier), 2^n by its exponent.
BODY void exp_lanes(const f32x16 *argument, f32x16 *result) {
    const f32x16 lowest = SPLAT(-87.3f), highest = SPLAT(88.3f), magic = SPLAT(0x1.8p23f);
    f32x16 x = *argument;
    i32x16 below = x < lowest, above = x > highest;
    choose(&below, &lowest, &x, &x);
    choose(&above, &highest, &x, &x);
    f32x16 shifted = x * SPLAT(1.44269504088896341f) + magic;  // the integer stands in the low bits
    f32x16 n = shifted - magic;
    f32x16 r = (x - n * SPLAT(0.693359375f)) - n * SPLAT(-2.12194440e-4f);
    f32x16 p = SPLAT(1.9875691500e-4f);
    p = p * r + SPLAT(1.3981999507e-3f);
    p = p * r + SPLAT(8.3334519073e-3f);
    p = p * r + SPLAT(4.1665795894e-2f);
    p = p * r + SPLAT(1.6666665459e-1f);
    p = p * r + SPLAT(5.0000001201e-1f);
    p = (p * (r * r) + r) + SPLAT(1.0f);
    i32x16 power = ((i32x16)shifted - (i32x16)magic) << 23;
    *result = (f32x16)((i32x16)p + power);
}

BODY float dot_body(const float *a, const float *b, long count) {
    f32x16 s0 = {}, s1 = {}, s2 = {}, s3 = {};
    long i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
        s0 += LOAD(a + i) * LOAD(b + i);
        s1 += LOAD(a + i + 16) * LOAD(b + i + 16);
        s2 += LOAD(a + i + 32) * LOAD(b + i + 32);
        s3 += LOAD(a + i + 48) * LOAD(b + i + 48);
    }
    for (; i + LANES <= count; i += LANES) s0 += LOAD(a + i) * LOAD(b + i);
    s0 = (s0 + s1) + (s2 + s3);
    float sum = sum_lanes(&s0);
    for (; i < count; i++) sum += a[i] * b[i];
    return sum;
}

/// The nearest bfloat16 of each lane; see bf16_from.
BODY void round_lanes(const f32x16 *value, u16x16 *out) {
    u32x16 bits = (u32x16)*value, high = bits >> 16, magnitude = bits & 0x7fffffff;
    u32x16 rounded = (bits + 0x7fff + (high & 1)) >> 16;
    u32x16 nan = (u32x16)(magnitude > 0x7f800000), tiny = (u32x16)(magnitude < 0x00800000);
    rounded = (nan & (high | 0x40)) | (~nan & rounded);
    rounded = (tiny & (high & 0x8000)) | (~tiny & rounded);
    *out = __builtin_convertvector(rounded, u16x16);
}
/// The first `count` lanes, and a zero behind an odd number of them.
BODY void store_rounded(uint16_t *to, long count, const f32x16 *value) {
    u16x16 halves;
    round_lanes(value, &halves);
    if (count == LANES) {
        *(u16x16_u *)to = halves;
        return;
    }
    uint16_t lanes[LANES];
    memcpy(lanes, &halves, sizeof lanes);
    for (long i = 0; i < count; i++) to[i] = lanes[i];
    if (count & 1) to[count] = 0;
}

#endif
