// What clipping the gradients of single examples takes: their norms, and their weighted sum in double precision.
#include "path.h"

typedef float f32x8_u __attribute__((vector_size(32), aligned(1), may_alias));
typedef double f64x8 __attribute__((vector_size(64)));
#define WIDEN(pointer) __builtin_convertvector(*(const f32x8_u *)(pointer), f64x8)

// Sixteen sums, added in one fixed order; the square of a float is exact in double.
BODY double square_sum_body(const float *x, long count) {
    f64x8 a = {}, b = {};
    long i = 0;
    for (; i + 16 <= count; i += 16) {
        f64x8 v = WIDEN(x + i), w = WIDEN(x + i + 8);
        a += v * v;
        b += w * w;
    }
    a += b;
    double sum = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
    for (; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}
VARIANTS(double, square_sum, (const float *x, long count), (x, count))
double tributary_square_sum(int path, const float *x, long count) { return CHOOSE(square_sum, (x, count)); }

BODY void add_scaled_body(double *sum, const float *x, long count, double factor) {
    for (long i = 0; i < count; i++) sum[i] += factor * (double)x[i];
}
VARIANTS(void, add_scaled, (double *sum, const float *x, long count, double factor), (sum, x, count, factor))
void tributary_add_scaled(int path, double *sum, const float *x, long count, double factor) {
    CHOOSE(add_scaled, (sum, x, count, factor));
}
