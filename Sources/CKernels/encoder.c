// What stands between the matrix products of an encoder: LayerNorm and GELU, forward and backward.
#include "lanes.h"
#include <math.h>

// ---- LayerNorm (Ba et al. 2016, arXiv:1607.06450) ----------------------------------------------------------------

/// The mean of a row, and 1 / sqrt(its variance + epsilon), in two passes over it.
BODY void row_statistics(const float *x, long columns, float epsilon, float *mean, float *inverse) {
    f32x16 sums = {};
    long i = 0;
    for (; i + LANES <= columns; i += LANES) sums += LOAD(x + i);
    float sum = sum_lanes(&sums);
    for (; i < columns; i++) sum += x[i];
    float center = sum / (float)columns;
    sums = (f32x16){};
    for (i = 0; i + LANES <= columns; i += LANES) {
        f32x16 v = LOAD(x + i) - SPLAT(center);
        sums += v * v;
    }
    sum = sum_lanes(&sums);
    for (; i < columns; i++) sum += (x[i] - center) * (x[i] - center);
    *mean = center;
    *inverse = 1.0f / sqrtf(sum / (float)columns + epsilon);
}

BODY void layer_norm_body(const float *x, const float *w, const float *b, long rows, long columns, float epsilon, float *y,
                          uint16_t *half, long half_stride, float *statistics) {
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * columns;
        float *to = y ? y + row * columns : 0, mean, inverse;
        uint16_t *rounded = half ? half + row * half_stride : 0;
        row_statistics(from, columns, epsilon, &mean, &inverse);
        if (statistics) {
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = inverse;
        }
        for (long i = 0; i < columns; i += LANES) {
            long count = columns - i < LANES ? columns - i : LANES;
            f32x16 v, weight, bias;
            if (count == LANES) {
                v = LOAD(from + i);
                weight = LOAD(w + i);
                bias = LOAD(b + i);
            } else {
                load_part(from + i, count, 0, &v);
                load_part(w + i, count, 0, &weight);
                load_part(b + i, count, 0, &bias);
            }
            v = ((v - SPLAT(mean)) * SPLAT(inverse)) * weight + bias;
            if (to && count == LANES) STORE(to + i, v);
            else if (to) store_part(to + i, count, &v);
            if (rounded) store_rounded(rounded + i, count, &v);
        }
    }
}
VARIANTS(void, layer_norm,
         (const float *x, const float *w, const float *b, long rows, long columns, float epsilon, float *y, uint16_t *half,
          long half_stride, float *statistics),
         (x, w, b, rows, columns, epsilon, y, half, half_stride, statistics))
void tributary_layer_norm(int path, const float *x, const float *w, const float *b, long rows, long columns, float epsilon,
                          float *y, uint16_t *half, long half_stride, float *statistics) {
    CHOOSE(layer_norm, (x, w, b, rows, columns, epsilon, y, half, half_stride, statistics));
}

// With g = w dy and n = (x - mean) inverse: dx = inverse (g - mean(g) - n mean(g n)).
BODY void layer_norm_backward_body(const float *x, const float *w, const float *statistics, const float *dy, const float *added,
                                   long rows, long columns, float *dx) {
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * columns, *first = dy + row * columns, *second = added ? added + row * columns : 0;
        float *to = dx + row * columns, mean = statistics[2 * row], inverse = statistics[2 * row + 1];
        f32x16 sums = {}, products = {};
        long i = 0;
        for (; i + LANES <= columns; i += LANES) {
            f32x16 g = LOAD(first + i);
            if (second) g += LOAD(second + i);
            g *= LOAD(w + i);
            STORE(to + i, g);
            sums += g;
            products += g * ((LOAD(from + i) - SPLAT(mean)) * SPLAT(inverse));
        }
        float sum = sum_lanes(&sums), product = sum_lanes(&products);
        for (; i < columns; i++) {
            float g = (second ? first[i] + second[i] : first[i]) * w[i];
            to[i] = g;
            sum += g;
            product += g * ((from[i] - mean) * inverse);
        }
        sum /= (float)columns;
        product /= (float)columns;
        for (i = 0; i < columns; i++) to[i] = inverse * ((to[i] - sum) - ((from[i] - mean) * inverse) * product);
    }
}
VARIANTS(void, layer_norm_backward,
         (const float *x, const float *w, const float *statistics, const float *dy, const float *added, long rows, long columns, float *dx),
         (x, w, statistics, dy, added, rows, columns, dx))
void tributary_layer_norm_backward(int path, const float *x, const float *w, const float *statistics, const float *dy,
                                   const float *added, long rows, long columns, float *dx) {
    CHOOSE(layer_norm_backward, (x, w, statistics, dy, added, rows, columns, dx));
}

// ---- GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415), x Phi(x) with the exact normal distribution function --------

/// Phi(x) and exp(-x^2 / 2).
///
/// Phi(-|x|) = exp(-x^2 / 2) t P(t) with t = 1 / (1 + 0.35 |x|). P is our own fit: degree 8, the largest relative error over
/// 0 <= |x| <= 13.5 made as small as possible by reweighted least squares on Chebyshev nodes in t; it is 3.2e-8, half a unit
/// of the last place.
BODY void normal_lanes(const f32x16 *argument, f32x16 *distribution, f32x16 *bell) {
    const f32x16 zero = {}, one = SPLAT(1.0f);
    f32x16 x = *argument, opposite = -x, size;
    i32x16 negative = x < zero;
    choose(&negative, &opposite, &x, &size);
    f32x16 t = one / (one + SPLAT(0.35f) * size), p = SPLAT(-2.9125914983e-2f);
    p = p * t + SPLAT(1.4387247117e-1f);
    p = p * t + SPLAT(-2.5550503759e-1f);
    p = p * t + SPLAT(1.5892981274e-1f);
    p = p * t + SPLAT(-2.2937483147e-2f);
    p = p * t + SPLAT(1.0543307562e-1f);
    p = p * t + SPLAT(1.1985240418e-1f);
    p = p * t + SPLAT(1.3985908654e-1f);
    p = p * t + SPLAT(1.3962156959e-1f);
    f32x16 e = (size * size) * SPLAT(-0.5f);
    exp_lanes(&e, &e);
    f32x16 tail = (p * t) * e, rest = one - tail;
    choose(&negative, &tail, &rest, distribution);
    *bell = e;
}

BODY void gelu_lanes(const f32x16 *x, f32x16 *y) {
    f32x16 distribution, bell;
    normal_lanes(x, &distribution, &bell);
    *y = *x * distribution;
}

BODY void gelu_body(const float *x, long count, float *y) {
    for (long i = 0; i < count; i += LANES) {
        f32x16 v;
        if (count - i >= LANES) {
            v = LOAD(x + i);
            gelu_lanes(&v, &v);
            STORE(y + i, v);
        } else {
            load_part(x + i, count - i, 0, &v);
            gelu_lanes(&v, &v);
            store_part(y + i, count - i, &v);
        }
    }
}
VARIANTS(void, gelu, (const float *x, long count, float *y), (x, count, y))
void tributary_gelu(int path, const float *x, long count, float *y) { CHOOSE(gelu, (x, count, y)); }

BODY void gelu_bf16_body(const float *x, long rows, long columns, uint16_t *y, long y_stride) {
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * columns;
        uint16_t *to = y + row * y_stride;
        for (long i = 0; i < columns; i += LANES) {
            long count = columns - i < LANES ? columns - i : LANES;
            f32x16 v;
            if (count == LANES) v = LOAD(from + i);
            else load_part(from + i, count, 0, &v);
            gelu_lanes(&v, &v);
            store_rounded(to + i, count, &v);
        }
    }
}
VARIANTS(void, gelu_bf16, (const float *x, long rows, long columns, uint16_t *y, long y_stride), (x, rows, columns, y, y_stride))
void tributary_gelu_bf16(int path, const float *x, long rows, long columns, uint16_t *y, long y_stride) {
    CHOOSE(gelu_bf16, (x, rows, columns, y, y_stride));
}

/// dy (Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)).
BODY void gelu_backward_lanes(const f32x16 *x, f32x16 *dy) {
    f32x16 distribution, bell;
    normal_lanes(x, &distribution, &bell);
    *dy *= distribution + *x * (bell * SPLAT(0.398942280401432678f));
}

BODY void gelu_backward_body(const float *x, float *dy, long count) {
    for (long i = 0; i < count; i += LANES) {
        f32x16 v, g;
        if (count - i >= LANES) {
            v = LOAD(x + i);
            g = LOAD(dy + i);
            gelu_backward_lanes(&v, &g);
            STORE(dy + i, g);
        } else {
            load_part(x + i, count - i, 0, &v);
            load_part(dy + i, count - i, 0, &g);
            gelu_backward_lanes(&v, &g);
            store_part(dy + i, count - i, &g);
        }
    }
}
VARIANTS(void, gelu_backward, (const float *x, float *dy, long count), (x, dy, count))
void tributary_gelu_backward(int path, const float *x, float *dy, long count) { CHOOSE(gelu_backward, (x, dy, count)); }
