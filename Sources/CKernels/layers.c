// What stands between the matrix products: norms, rotations, gates, softmax, loss.
#include "lanes.h"
#include <math.h>

BODY void exp_body(const float *x, float *y, long count) {
    long i = 0;
    for (; i + LANES <= count; i += LANES) {
        f32x16 v = LOAD(x + i);
        exp_lanes(&v, &v);
        STORE(y + i, v);
    }
    if (i < count) {
        f32x16 v;
        load_part(x + i, count - i, 0, &v);
        exp_lanes(&v, &v);
        store_part(y + i, count - i, &v);
    }
}
VARIANTS(void, exp, (const float *x, float *y, long count), (x, y, count))
void tributary_exp(int path, const float *x, float *y, long count) { CHOOSE(exp, (x, y, count)); }

// ---- sums --------------------------------------------------------------------------------------------------------

BODY void dot_rows_body(const float *matrix, long stride, long rows, long columns, const float *x, float *out) {
    for (long row = 0; row < rows; row++) out[row] = dot_body(matrix + row * stride, x, columns);
}
VARIANTS(void, dot_rows, (const float *matrix, long stride, long rows, long columns, const float *x, float *out),
         (matrix, stride, rows, columns, x, out))
void tributary_dot_rows(int path, const float *matrix, long stride, long rows, long columns, const float *x, float *out) {
    CHOOSE(dot_rows, (matrix, stride, rows, columns, x, out));
}

BODY void row_dots_body(const float *a, long a_stride, const float *b, long b_stride, long rows, long columns, float *out) {
    for (long row = 0; row < rows; row++) out[row] = dot_body(a + row * a_stride, b + row * b_stride, columns);
}
VARIANTS(void, row_dots, (const float *a, long a_stride, const float *b, long b_stride, long rows, long columns, float *out),
         (a, a_stride, b, b_stride, rows, columns, out))
void tributary_row_dots(int path, const float *a, long a_stride, const float *b, long b_stride, long rows, long columns, float *out) {
    CHOOSE(row_dots, (a, a_stride, b, b_stride, rows, columns, out));
}

BODY void add_body(float *x, const float *y, long count) {
    for (long i = 0; i < count; i++) x[i] += y[i];
}
VARIANTS(void, add, (float *x, const float *y, long count), (x, y, count))
void tributary_add(int path, float *x, const float *y, long count) { CHOOSE(add, (x, y, count)); }

// ---- RMSNorm -----------------------------------------------------------------------------------------------------

BODY void rms_norm_body(const float *x, long x_stride, const float *w, long rows, long columns, float epsilon, float *y,
                        long y_stride, float *inverse) {
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * x_stride;
        float *to = y + row * y_stride;
        float r = 1.0f / sqrtf(dot_body(from, from, columns) / (float)columns + epsilon);
        if (inverse) inverse[row] = r;
        for (long i = 0; i < columns; i++) to[i] = from[i] * r * w[i];
    }
}
VARIANTS(void, rms_norm, (const float *x, long x_stride, const float *w, long rows, long columns, float epsilon, float *y, long y_stride, float *inverse),
         (x, x_stride, w, rows, columns, epsilon, y, y_stride, inverse))
void tributary_rms_norm(int path, const float *x, long x_stride, const float *w, long rows, long columns, float epsilon,
                        float *y, long y_stride, float *inverse) {
    CHOOSE(rms_norm, (x, x_stride, w, rows, columns, epsilon, y, y_stride, inverse));
}

// With r = 1 / sqrt(mean(x^2) + epsilon): dx = r w dy - x r^3 mean(w dy x).
BODY void rms_norm_backward_body(const float *x, long x_stride, const float *w, const float *inverse, const float *dy,
                                 long dy_stride, long rows, long columns, float *dx, long dx_stride, int add) {
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * x_stride, *gradient = dy + row * dy_stride;
        float *to = dx + row * dx_stride, r = inverse[row];
        f32x16 sums = {};
        long i = 0;
        for (; i + LANES <= columns; i += LANES) sums += (LOAD(w + i) * LOAD(gradient + i)) * LOAD(from + i);
        float sum = sum_lanes(&sums);
        for (; i < columns; i++) sum += (w[i] * gradient[i]) * from[i];
        float back = r * r * r * (sum / (float)columns);
        if (add)
            for (i = 0; i < columns; i++) to[i] += r * (w[i] * gradient[i]) - from[i] * back;
        else
            for (i = 0; i < columns; i++) to[i] = r * (w[i] * gradient[i]) - from[i] * back;
    }
}
VARIANTS(void, rms_norm_backward,
         (const float *x, long x_stride, const float *w, const float *inverse, const float *dy, long dy_stride, long rows, long columns, float *dx,
          long dx_stride, int add),
         (x, x_stride, w, inverse, dy, dy_stride, rows, columns, dx, dx_stride, add))
void tributary_rms_norm_backward(int path, const float *x, long x_stride, const float *w, const float *inverse,
                                 const float *dy, long dy_stride, long rows, long columns, float *dx, long dx_stride, int add) {
    CHOOSE(rms_norm_backward, (x, x_stride, w, inverse, dy, dy_stride, rows, columns, dx, dx_stride, add));
}

// ---- rotary positions --------------------------------------------------------------------------------------------

BODY void rotate_body(float *x, long stride, long rows, long heads, long size, const float *cosines, const float *sines,
                      const int32_t *positions, float direction) {
    long half = size / 2;
    for (long row = 0; row < rows; row++) {
        const float *c = cosines + positions[row] * half, *s = sines + positions[row] * half;
        for (long head = 0; head < heads; head++) {
            float *a = x + row * stride + head * size, *b = a + half;
            for (long i = 0; i < half; i++) {
                float sine = direction * s[i], first = a[i], second = b[i];
                a[i] = first * c[i] - second * sine;
                b[i] = second * c[i] + first * sine;
            }
        }
    }
}
VARIANTS(void, rotate,
         (float *x, long stride, long rows, long heads, long size, const float *cosines, const float *sines, const int32_t *positions, float direction),
         (x, stride, rows, heads, size, cosines, sines, positions, direction))
void tributary_rotate(int path, float *x, long stride, long rows, long heads, long size, const float *cosines,
                      const float *sines, const int32_t *positions, float direction) {
    CHOOSE(rotate, (x, stride, rows, heads, size, cosines, sines, positions, direction));
}

// ---- SwiGLU ------------------------------------------------------------------------------------------------------

BODY void swiglu_lanes(const f32x16 *gate, const f32x16 *up, f32x16 *h) {
    f32x16 e = -*gate;
    exp_lanes(&e, &e);
    *h = (*gate / (SPLAT(1.0f) + e)) * *up;
}

BODY void swiglu_body(const float *gate, const float *up, long count, float *h) {
    for (long i = 0; i < count; i += LANES) {
        f32x16 g, u, v;
        if (i + LANES <= count) {
            g = LOAD(gate + i);
            u = LOAD(up + i);
            swiglu_lanes(&g, &u, &v);
            STORE(h + i, v);
        } else {
            load_part(gate + i, count - i, 0, &g);
            load_part(up + i, count - i, 0, &u);
            swiglu_lanes(&g, &u, &v);
            store_part(h + i, count - i, &v);
        }
    }
}
VARIANTS(void, swiglu, (const float *gate, const float *up, long count, float *h), (gate, up, count, h))
void tributary_swiglu(int path, const float *gate, const float *up, long count, float *h) { CHOOSE(swiglu, (gate, up, count, h)); }

// With s = 1 / (1 + exp(-g)): d(up) = dh g s, d(gate) = dh up s (1 + g (1 - s)).
BODY void swiglu_backward_lanes(f32x16 *gate, f32x16 *up, const f32x16 *dh) {
    const f32x16 one = SPLAT(1.0f);
    f32x16 e = -*gate;
    exp_lanes(&e, &e);
    f32x16 s = one / (one + e), g = *gate;
    *gate = (*dh * *up) * (s * (one + g * (one - s)));
    *up = *dh * (g * s);
}

BODY void swiglu_backward_body(float *gate, float *up, const float *dh, long count) {
    for (long i = 0; i < count; i += LANES) {
        f32x16 g, u, d;
        if (i + LANES <= count) {
            g = LOAD(gate + i);
            u = LOAD(up + i);
            d = LOAD(dh + i);
            swiglu_backward_lanes(&g, &u, &d);
            STORE(gate + i, g);
            STORE(up + i, u);
        } else {
            load_part(gate + i, count - i, 0, &g);
            load_part(up + i, count - i, 0, &u);
            load_part(dh + i, count - i, 0, &d);
            swiglu_backward_lanes(&g, &u, &d);
            store_part(gate + i, count - i, &g);
            store_part(up + i, count - i, &u);
        }
    }
}
VARIANTS(void, swiglu_backward, (float *gate, float *up, const float *dh, long count), (gate, up, dh, count))
void tributary_swiglu_backward(int path, float *gate, float *up, const float *dh, long count) {
    CHOOSE(swiglu_backward, (gate, up, dh, count));
}

// ---- attention's softmax -----------------------------------------------------------------------------------------

BODY long visible_count(long row, long columns, long visible) { return visible + row < columns ? visible + row : columns; }

BODY void causal_softmax_body(float *scores, long stride, long rows, long columns, long visible, float scale, float *normalizer) {
    const f32x16 zero = {}, nothing = SPLAT(-INFINITY);
    for (long row = 0; row < rows; row++) {
        float *s = scores + row * stride;
        long count = visible_count(row, columns, visible), end = (count + LANES - 1) / LANES * LANES;
        f32x16 m = nothing;
        for (long i = 0; i < end; i += LANES) {
            f32x16 v = LOAD(s + i);
            if (i + LANES > count) {
                i32x16 inside = lane_numbers + (int32_t)i < (int32_t)count;
                choose(&inside, &v, &nothing, &v);
            }
            i32x16 larger = v > m;
            choose(&larger, &v, &m, &m);
        }
        float shift = largest_lane(&m) * scale;
        f32x16 sums = {};
        for (long i = 0; i < end; i += LANES) {
            f32x16 v = LOAD(s + i) * SPLAT(scale) - SPLAT(shift);
            exp_lanes(&v, &v);
            if (i + LANES > count) {
                i32x16 inside = lane_numbers + (int32_t)i < (int32_t)count;
                choose(&inside, &v, &zero, &v);
            }
            sums += v;
            STORE(s + i, v);
        }
        float sum = sum_lanes(&sums), reciprocal = 1.0f / sum;
        for (long i = 0; i < end; i += LANES) STORE(s + i, LOAD(s + i) * SPLAT(reciprocal));
        for (long i = end; i < columns; i++) s[i] = 0;
        if (normalizer) normalizer[row] = shift + logf(sum);
    }
}
VARIANTS(void, causal_softmax, (float *scores, long stride, long rows, long columns, long visible, float scale, float *normalizer),
         (scores, stride, rows, columns, visible, scale, normalizer))
void tributary_causal_softmax(int path, float *scores, long stride, long rows, long columns, long visible, float scale,
                              float *normalizer) {
    CHOOSE(causal_softmax, (scores, stride, rows, columns, visible, scale, normalizer));
}

BODY void causal_softmax_backward_body(float *scores, float *dp, long stride, long rows, long columns, long visible,
                                       float scale, const float *normalizer, const float *dots) {
    const f32x16 zero = {};
    for (long row = 0; row < rows; row++) {
        float *s = scores + row * stride, *d = dp + row * stride;
        long count = visible_count(row, columns, visible), end = (count + LANES - 1) / LANES * LANES;
        f32x16 products = {}, sums = {};
        for (long i = 0; i < end; i += LANES) {
            f32x16 p = LOAD(s + i) * SPLAT(scale) - SPLAT(normalizer[row]), outer = LOAD(d + i);
            exp_lanes(&p, &p);
            if (i + LANES > count) {
                i32x16 inside = lane_numbers + (int32_t)i < (int32_t)count;
                choose(&inside, &p, &zero, &p);
                choose(&inside, &outer, &zero, &outer);
                STORE(d + i, outer);
            }
            products += p * outer;
            sums += p;
            STORE(s + i, p);
        }
        // The sum of p is 1 but for rounding; divided by it, a row of ds adds up to 0 as it should.
        float dot = dots ? dots[row] : sum_lanes(&products) / sum_lanes(&sums);
        for (long i = 0; i < end; i += LANES) STORE(d + i, LOAD(s + i) * (LOAD(d + i) - SPLAT(dot)) * SPLAT(scale));
        for (long i = end; i < columns; i++) s[i] = d[i] = 0;
    }
}
VARIANTS(void, causal_softmax_backward,
         (float *scores, float *dp, long stride, long rows, long columns, long visible, float scale, const float *normalizer, const float *dots),
         (scores, dp, stride, rows, columns, visible, scale, normalizer, dots))
void tributary_causal_softmax_backward(int path, float *scores, float *dp, long stride, long rows, long columns, long visible,
                                       float scale, const float *normalizer, const float *dots) {
    CHOOSE(causal_softmax_backward, (scores, dp, stride, rows, columns, visible, scale, normalizer, dots));
}

// ---- loss --------------------------------------------------------------------------------------------------------

/// Sums of this many exponentials stay in single precision before they join a double: a vocabulary has 10^5 entries.
enum { SUM_RUN = 4096 };

/// The loss and, in `total`, the sum of exp(logit - the largest); the exponentials take the logits' place if `keep` is set.
BODY double exponentials(float *logits, long count, long target, int keep, double *total) {
    f32x16 m = SPLAT(-INFINITY), v;
    for (long i = 0; i < count; i += LANES) {
        if (i + LANES <= count) v = LOAD(logits + i);
        else load_part(logits + i, count - i, -INFINITY, &v);
        i32x16 larger = v > m;
        choose(&larger, &v, &m, &m);
    }
    float shift = largest_lane(&m), at_target = logits[target];
    double sum = 0;
    for (long start = 0; start < count; start += SUM_RUN) {
        long end = start + SUM_RUN < count ? start + SUM_RUN : count;
        f32x16 sums = {};
        float rest = 0;
        for (long i = start; i < end; i += LANES) {
            long here = end - i < LANES ? end - i : LANES;
            if (here == LANES) v = LOAD(logits + i) - SPLAT(shift);
            else {
                load_part(logits + i, here, shift, &v);
                v -= SPLAT(shift);
            }
            exp_lanes(&v, &v);
            if (here == LANES) {
                sums += v;
                if (keep) STORE(logits + i, v);
            } else {
                for (long j = 0; j < here; j++) rest += v[j];
                if (keep) store_part(logits + i, here, &v);
            }
        }
        sum += (double)sum_lanes(&sums) + (double)rest;
    }
    *total = sum;
    return log(sum) - ((double)at_target - (double)shift);
}

BODY double cross_entropy_body(float *logits, long count, long target, float scale) {
    double sum, loss = exponentials(logits, count, target, scale != 0, &sum);
    if (scale != 0) {
        float factor = (float)((double)scale / sum);
        for (long i = 0; i < count; i++) logits[i] *= factor;
        logits[target] -= scale;
    }
    return loss;
}
VARIANTS(double, cross_entropy, (float *logits, long count, long target, float scale), (logits, count, target, scale))
double tributary_cross_entropy(int path, float *logits, long count, long target, float scale) {
    return CHOOSE(cross_entropy, (logits, count, target, scale));
}

// ---- the same, rounded to bfloat16 for the product that follows --------------------------------------------------

BODY void rms_norm_bf16_body(const float *x, long x_stride, const float *w, long rows, long columns, float epsilon,
                             uint16_t *y, long y_stride, float *inverse) {
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * x_stride;
        uint16_t *to = y + row * y_stride;
        float r = 1.0f / sqrtf(dot_body(from, from, columns) / (float)columns + epsilon);
        inverse[row] = r;
        for (long i = 0; i < columns; i += LANES) {
            long count = columns - i < LANES ? columns - i : LANES;
            f32x16 v, weight;
            if (count == LANES) {
                v = LOAD(from + i);
                weight = LOAD(w + i);
            } else {
                load_part(from + i, count, 0, &v);
                load_part(w + i, count, 0, &weight);
            }
            v = v * SPLAT(r) * weight;
            store_rounded(to + i, count, &v);
        }
    }
}
VARIANTS(void, rms_norm_bf16, (const float *x, long x_stride, const float *w, long rows, long columns, float epsilon, uint16_t *y, long y_stride, float *inverse),
         (x, x_stride, w, rows, columns, epsilon, y, y_stride, inverse))
void tributary_rms_norm_bf16(int path, const float *x, long x_stride, const float *w, long rows, long columns, float epsilon,
                             uint16_t *y, long y_stride, float *inverse) {
    CHOOSE(rms_norm_bf16, (x, x_stride, w, rows, columns, epsilon, y, y_stride, inverse));
}

BODY void swiglu_bf16_body(const float *gate, const float *up, long rows, long columns, uint16_t *h, long h_stride) {
    for (long row = 0; row < rows; row++) {
        const float *g = gate + row * columns, *u = up + row * columns;
        uint16_t *to = h + row * h_stride;
        for (long i = 0; i < columns; i += LANES) {
            long count = columns - i < LANES ? columns - i : LANES;
            f32x16 a, b, v;
            if (count == LANES) {
                a = LOAD(g + i);
                b = LOAD(u + i);
            } else {
                load_part(g + i, count, 0, &a);
                load_part(u + i, count, 0, &b);
            }
            swiglu_lanes(&a, &b, &v);
            store_rounded(to + i, count, &v);
        }
    }
}
VARIANTS(void, swiglu_bf16, (const float *gate, const float *up, long rows, long columns, uint16_t *h, long h_stride), (gate, up, rows, columns, h, h_stride))
void tributary_swiglu_bf16(int path, const float *gate, const float *up, long rows, long columns, uint16_t *h, long h_stride) {
    CHOOSE(swiglu_bf16, (gate, up, rows, columns, h, h_stride));
}

BODY double cross_entropy_bf16_body(float *logits, long count, long target, float scale, uint16_t *gradient) {
    double sum;
    double loss = exponentials(logits, count, target, 1, &sum);
    float factor = (float)((double)scale / sum), at_target = logits[target] * factor - scale;
    for (long i = 0; i < count; i += LANES) {
        long here = count - i < LANES ? count - i : LANES;
        f32x16 v;
        if (here == LANES) v = LOAD(logits + i);
        else load_part(logits + i, here, 0, &v);
        v *= SPLAT(factor);
        store_rounded(gradient + i, here, &v);
    }
    gradient[target] = bf16_from(at_target);
    return loss;
}
VARIANTS(double, cross_entropy_bf16, (float *logits, long count, long target, float scale, uint16_t *gradient), (logits, count, target, scale, gradient))
double tributary_cross_entropy_bf16(int path, float *logits, long count, long target, float scale, uint16_t *gradient) {
    return CHOOSE(cross_entropy_bf16, (logits, count, target, scale, gradient));
}
