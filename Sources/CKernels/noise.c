// Random words to normally distributed numbers, by the method of Box and Muller (1958).
#include "path.h"

// Eight lanes of double: one AVX-512 register, two of AVX2, four of SSE2 or NEON. Only +, -, x, / and square roots, each
// rounded on its own, so that every machine gets the same bits from the same words.
typedef double f64x8 __attribute__((vector_size(64)));
typedef int64_t i64x8 __attribute__((vector_size(64)));
typedef uint64_t u64x8 __attribute__((vector_size(64)));
typedef u64x8 u64x8_u __attribute__((aligned(1), may_alias));
typedef f64x8 f64x8_u __attribute__((aligned(1), may_alias));
#define SPLAT64(value) ((f64x8){} + (double)(value))

/// The upper 53 bits of each word, as an integer in [0, 2^53): the halves become doubles through their exponent bits.
BODY void upper_bits(const u64x8 *words, f64x8 *out) {
    u64x8 bits = *words >> 11;
    f64x8 high = (f64x8)((bits >> 32) | ((u64x8){} + 0x4530000000000000u));         // 2^84 + high 2^32
    f64x8 low = (f64x8)((bits & 0xffffffffu) | ((u64x8){} + 0x4330000000000000u));  // 2^52 + low
    *out = (high - SPLAT64(0x1p84 + 0x1p52)) + low;
}

/// ln x for normal x in (0, 1], to 1 ulp: fdlibm's e_log.c (Sun Microsystems 1993). x = 2^k (1 + f) with 1 + f between
/// sqrt(1/2) and sqrt(2), and ln(1 + f) from a polynomial in (f / (2 + f))^2.
BODY void log_lanes(const f64x8 *x, f64x8 *out) {
    // Adding what lies between sqrt(1/2) and 1 to the bits carries into the exponent from sqrt(2) on.
    u64x8 shifted = (u64x8)*x + (0x3ff0000000000000u - 0x3fe6a09e00000000u);
    i64x8 exponent = (i64x8)(shifted >> 52) - 1023;
    f64x8 fraction = (f64x8)((shifted & 0x000fffffffffffffu) + 0x3fe6a09e00000000u);
    // |exponent| is at most 1023: in the low bits of 1.5 x 2^52 it becomes a double.
    f64x8 k = (f64x8)(exponent + (i64x8)SPLAT64(0x1.8p52)) - SPLAT64(0x1.8p52);
    f64x8 f = fraction - SPLAT64(1), half = SPLAT64(0.5) * f * f;
    f64x8 s = f / (SPLAT64(2) + f), z = s * s;
    f64x8 r = SPLAT64(1.479819860511658591e-01);
    r = r * z + SPLAT64(1.531383769920937332e-01);
    r = r * z + SPLAT64(1.818357216161805012e-01);
    r = r * z + SPLAT64(2.222219843214978396e-01);
    r = r * z + SPLAT64(2.857142874366239149e-01);
    r = r * z + SPLAT64(3.999999999940941908e-01);
    r = r * z + SPLAT64(6.666666666666735130e-01);
    r = r * z;
    *out = k * SPLAT64(6.93147180369123816490e-01) -
           ((half - (s * (half + r) + k * SPLAT64(1.90821492927058770002e-10))) - f);
}

/// cos and sin of 2 pi u for u in [0, 1): the quarter of the circle exactly, then fdlibm's k_cos.c and k_sin.c.
BODY void circle_lanes(const f64x8 *u, f64x8 *cosine, f64x8 *sine) {
    const f64x8 magic = SPLAT64(0x1.8p52);
    f64x8 quarters = *u * SPLAT64(4), shifted = quarters + magic;  // the nearest integer stands in the low bits
    f64x8 x = (quarters - (shifted - magic)) * SPLAT64(1.57079632679489661923), z = x * x;
    u64x8 quarter = (u64x8)shifted & 3;
    f64x8 s = SPLAT64(1.58969099521155010221e-10);
    s = s * z + SPLAT64(-2.50507602534068634195e-08);
    s = s * z + SPLAT64(2.75573137070700676789e-06);
    s = s * z + SPLAT64(-1.98412698298579493134e-04);
    s = s * z + SPLAT64(8.33333333332248946124e-03);
    s = s * z + SPLAT64(-1.66666666666666324348e-01);
    s = x + x * z * s;
    f64x8 c = SPLAT64(-1.13596475577881948265e-11);
    c = c * z + SPLAT64(2.08757232129817482790e-09);
    c = c * z + SPLAT64(-2.75573143513906633035e-07);
    c = c * z + SPLAT64(2.48015872894767294178e-05);
    c = c * z + SPLAT64(-1.38888888888741095749e-03);
    c = c * z + SPLAT64(4.16666666666666019037e-02);
    c = SPLAT64(1) - (SPLAT64(0.5) * z - z * z * c);
    // Quarters 1 and 3 exchange the two; the cosine is negative in 1 and 2, the sine in 2 and 3.
    u64x8 exchange = -(quarter & 1), sign = (u64x8){} + 0x8000000000000000u;
    u64x8 from_cosine = ((u64x8)c & ~exchange) | ((u64x8)s & exchange);
    u64x8 from_sine = ((u64x8)s & ~exchange) | ((u64x8)c & exchange);
    *cosine = (f64x8)(from_cosine ^ (sign & -((quarter ^ quarter >> 1) & 1)));
    *sine = (f64x8)(from_sine ^ (sign & -(quarter >> 1)));
}

/// Sixteen words to sixteen values.
BODY void sixteen(const uint64_t *words, double *out) {
    u64x8 a = *(const u64x8_u *)words, b = *(const u64x8_u *)(words + 8);
    u64x8 even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    u64x8 odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
    f64x8 u, v, radius, cosine, sine;
    upper_bits(&even, &u);
    upper_bits(&odd, &v);
    u = (u + SPLAT64(1)) * SPLAT64(0x1p-53);  // in (0, 1]: never ln 0
    v = v * SPLAT64(0x1p-53);                 // in [0, 1)
    log_lanes(&u, &radius);
    radius = __builtin_elementwise_sqrt(SPLAT64(-2) * radius);
    circle_lanes(&v, &cosine, &sine);
    cosine *= radius, sine *= radius;
    *(f64x8_u *)out = __builtin_shufflevector(cosine, sine, 0, 8, 1, 9, 2, 10, 3, 11);
    *(f64x8_u *)(out + 8) = __builtin_shufflevector(cosine, sine, 4, 12, 5, 13, 6, 14, 7, 15);
}

BODY void gaussian_body(const uint64_t *words, double *out, long count) {
    long i = 0;
    for (; i + 16 <= count; i += 16) sixteen(words + i, out + i);
    if (i < count) {
        uint64_t rest[16] = {0};
        double values[16];
        for (long j = i; j < count; j++) rest[j - i] = words[j];
        sixteen(rest, values);
        for (long j = i; j < count; j++) out[j] = values[j - i];
    }
}
VARIANTS(void, gaussian, (const uint64_t *words, double *out, long count), (words, out, count))
void tributary_gaussian(int path, const uint64_t *words, double *out, long count) { CHOOSE(gaussian, (words, out, count)); }
