// What the C half of the engine offers to Swift. Every function that takes a `path` computes the same bits on every
// path (products are never contracted into fused multiply-adds); callers pass a path that the processor has.
#ifndef TRIBUTARY_CKERNELS_H
#define TRIBUTARY_CKERNELS_H
#include <stddef.h>
#include <stdint.h>

// ---- threads.c: worker threads, memory of a thread ---------------------------------------------------------------

typedef void (*tributary_task)(void *context, long index);

/// Runs task(context, 0), ..., task(context, count - 1), each exactly once, on the calling thread and the pool's
/// workers, and returns when all have ended. A call from inside a task, or while another thread uses the pool, runs
/// its tasks one after another on its own thread: what a task computes never depends on which thread runs it.
void tributary_parallel_for(long count, tributary_task task, void *context);

/// Threads that tributary_parallel_for uses at most, the caller included: TRIBUTARY_THREADS, or the number of cores.
long tributary_thread_count(void);

/// Lowers the number of threads for calls from this thread; 0 removes the limit. Returns the limit before.
long tributary_limit_threads(long count);

/// Memory of this thread, aligned to 64 bytes, of at least `bytes`: valid until the next call with the same slot on
/// the same thread; kept and reused, freed when the thread ends. Aborts if the machine has no memory left.
#define TRIBUTARY_SCRATCH_SLOTS 12
void *tributary_scratch(int slot, size_t bytes);

// ---- path.c: which instructions to use ---------------------------------------------------------------------------

enum { TRIBUTARY_SCALAR = 0, TRIBUTARY_AVX2 = 1, TRIBUTARY_AVX512 = 2 };

/// 1 if the processor has the path's instructions.
int tributary_path_supported(int path);

// ---- decode.c, encode.c: weight formats --------------------------------------------------------------------------
// Matrices are row-major, `columns` values a row; a tile is rows row0..<row1, columns column0..<column1, written
// to out with `stride` floats from row to row.

/// 4-bit codes, two a byte, the first in the high nibble, over the flattened matrix; value = table[code] *
/// scales[(flat index >> block_shift) - first_block]. block_shift is at least 5.
void tributary_decode_4bit(int path, const uint8_t *packed, const float *scales, long first_block, int block_shift,
                           const float *table, long columns, long row0, long row1, long column0, long column1,
                           float *out, long stride);

/// out[i] = map[codes[i]] * scales[(first + i) / block] + offset, each operation rounded; codes are of i = first on.
void tributary_decode_nested_scales(const uint8_t *codes, const float *map, const float *scales, long block, float offset,
                                    long first, long count, float *out);

/// Signed bytes with a scale for every 64 columns of a row (the last run of a row may be shorter).
void tributary_decode_int8(int path, const int8_t *codes, const float *scales, long columns, long row0, long row1,
                           long column0, long column1, float *out, long stride);

/// bfloat16 and IEEE half, at any byte address.
void tributary_decode_bf16(int path, const void *values, long columns, long row0, long row1, long column0, long column1,
                           float *out, long stride);
void tributary_decode_f16(int path, const void *values, long columns, long row0, long row1, long column0, long column1,
                          float *out, long stride);
void tributary_decode_f32(const void *values, long columns, long row0, long row1, long column0, long column1, float *out,
                          long stride);

/// NF4 codes and the scale of each block of `count` consecutive values, as bitsandbytes computes them.
void tributary_encode_nf4(int path, const float *values, long count, long block, uint8_t *packed, float *scales);

/// Bytes and scales of one row of `columns` values in runs of 64: q = round-half-even(w 127 / absmax), scale = absmax / 127.
void tributary_encode_int8(int path, const float *values, long columns, int8_t *codes, float *scales);

// ---- layers.c: what stands between the matrix products -----------------------------------------------------------

/// out[i] = sum over k of matrix[i stride + k] x[k], for `rows` rows of `columns` floats.
void tributary_dot_rows(int path, const float *matrix, long stride, long rows, long columns, const float *x, float *out);

/// y = x w / sqrt(mean(x^2) + epsilon) for each row of `columns`; 1 / sqrt(...) of each row goes to inverse (may be NULL).
void tributary_rms_norm(int path, const float *x, long x_stride, const float *w, long rows, long columns, float epsilon,
                        float *y, long y_stride, float *inverse);
/// dx += the gradient of tributary_rms_norm; dx may be dy only if `add` is 0, when dx is overwritten instead.
void tributary_rms_norm_backward(int path, const float *x, long x_stride, const float *w, const float *inverse,
                                 const float *dy, long dy_stride, long rows, long columns, float *dx, long dx_stride, int add);

/// Rotates pairs (i, i + size / 2) of each of `heads` heads of a row by its position's angles: x' = x cos - y sin,
/// y' = y cos + x sin. The tables hold size / 2 values a position; direction -1 rotates back, which is also the gradient.
void tributary_rotate(int path, float *x, long stride, long rows, long heads, long size, const float *cosines,
                      const float *sines, const int32_t *positions, float direction);

/// h = silu(gate) up; silu(g) = g / (1 + exp(-g)).
void tributary_swiglu(int path, const float *gate, const float *up, long count, float *h);
/// From dh: gate becomes d(gate), up becomes d(up).
void tributary_swiglu_backward(int path, float *gate, float *up, const float *dh, long count);

/// Causal softmax of a tile of scores, in place: row i of `rows` keeps its first `visible + i` entries (visible >= 1),
/// the rest up to `columns` becomes 0; p = exp(scale s - m) / sum, scale > 0. m + log(sum) of each row goes to
/// normalizer (may be NULL). The stride is a multiple of 16 and at least `columns`: whole vectors are written.
void tributary_causal_softmax(int path, float *scores, long stride, long rows, long columns, long visible, float scale,
                              float *normalizer);
/// Backward of the same tile: scores becomes p = exp(scale s - normalizer) (0 beyond the visible part), and
/// dp becomes ds = p (dp - dot) scale.
void tributary_causal_softmax_backward(int path, float *scores, float *dp, long stride, long rows, long columns, long visible,
                                       float scale, const float *normalizer, const float *dot);

/// -log softmax(logits)[target] in nats, in double. Unless scale is 0 (no gradient wanted), logits becomes
/// (softmax - onehot(target)) scale.
double tributary_cross_entropy(int path, float *logits, long count, long target, float scale);

/// tributary_rms_norm, tributary_swiglu and tributary_cross_entropy with y, h and the gradient as rows of bfloat16; a zero
/// stands behind an odd number of columns. In the last, logits become exponentials and `scale` is not 0.
void tributary_rms_norm_bf16(int path, const float *x, long x_stride, const float *w, long rows, long columns, float epsilon,
                             uint16_t *y, long y_stride, float *inverse);
void tributary_swiglu_bf16(int path, const float *gate, const float *up, long rows, long columns, uint16_t *h, long h_stride);
double tributary_cross_entropy_bf16(int path, float *logits, long count, long target, float scale, uint16_t *gradient);

/// out[i] = sum of a[i][k] b[i][k] over columns, for each row.
void tributary_row_dots(int path, const float *a, long a_stride, const float *b, long b_stride, long rows, long columns, float *out);
void tributary_add(int path, float *x, const float *y, long count);
void tributary_exp(int path, const float *x, float *y, long count);

// ---- gemm_bf16.c, pack_bf16.c: products of bfloat16 operands, summed in float32 ---------------------------------
// Functions here do not give the same bits on every path: with AVX512-BF16 the products of a pair of k are joined before
// they are added. They round the same operands, and each path's results depend on shapes only.

/// 1 if the path's products use the processor's bfloat16 instructions; else their scalar twins run.
int tributary_bf16_supported(int path);

/// Columns of a sliver of the packed operand.
#define TRIBUTARY_BF16_SLIVER 48

/// 32-bit words that a packed operand of n columns over k takes.
long tributary_bf16_packed_size(long n, long k);

/// out = bf16(scale x), rounded to nearest even; a zero stands behind an odd number of columns.
void tributary_bf16_round(int path, const float *x, long x_stride, long rows, long columns, float scale, uint16_t *out,
                          long out_stride);

/// out[column][row] = bf16(scale x[row][column]); a zero stands behind an odd number of rows.
void tributary_bf16_round_transposed(const float *x, long x_stride, long rows, long columns, float scale, uint16_t *out,
                                     long out_stride);

/// Part of a sum over k: A [m, 2 pairs] of bf16, `a_stride` values from row to row, and B packed, of as many pairs.
typedef struct {
    const uint16_t *a;
    long a_stride;
    const uint32_t *b;
    long pairs;
} tributary_bf16_segment;

/// c = from + sum over segments of A B, [m, n]; `from` may be c, or NULL for zero.
void tributary_bf16_multiply(int path, const tributary_bf16_segment *segments, long count, long m, long n, const float *from,
                             long from_stride, float *c, long c_stride);

/// 4-bit codes as tributary_decode_4bit takes them, `columns` a row. `codes` is NULL where `scales` are the blocks' own;
/// else a block's scale is map[code] * scales[block / nested_block] + offset.
typedef struct {
    const uint8_t *packed;
    const float *table;
    int block_shift;
    long columns;
    const float *scales;
    const uint8_t *codes;
    const float *map;
    float offset;
    long nested_block;
} tributary_4bit_matrix;

/// bfloat16 at any byte address, and floats; `stride` values from row to row.
typedef struct {
    const void *values;
    long stride;
} tributary_halves_matrix;
typedef struct {
    const float *values;
    long stride;
} tributary_floats_matrix;

/// Packs columns n0 ..< n1 of the right operand over k0 ..< k1: not transposed, its column n is the matrix's row n and k
/// runs along it (y = x W^T); transposed, its column n is the matrix's column n and k runs over rows (dx = dy W).
void tributary_bf16_pack_4bit(int path, const tributary_4bit_matrix *matrix, int transposed, long n0, long n1, long k0,
                              long k1, uint32_t *out);
void tributary_bf16_pack_bf16(int path, const tributary_halves_matrix *matrix, int transposed, long n0, long n1, long k0,
                              long k1, uint32_t *out);
void tributary_bf16_pack_f32(int path, const tributary_floats_matrix *matrix, int transposed, long n0, long n1, long k0,
                             long k1, uint32_t *out);

// ---- peak.c ------------------------------------------------------------------------------------------------------

/// Runs `rounds` of independent multiply-adds on registers, of bf16 pairs or of floats, and returns the floating-point
/// operations that they are; 0 where the path has no such instruction.
double tributary_peak_loop(int path, int bf16, long rounds);

#endif
