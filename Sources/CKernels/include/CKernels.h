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
/// How often a scratch block has grown, on any thread.
long tributary_scratch_growths(void);

// ---- path.c: which instructions to use ---------------------------------------------------------------------------

enum { TRIBUTARY_SCALAR = 0, TRIBUTARY_AVX2 = 1, TRIBUTARY_AVX512 = 2 };

/// 1 if the processor has the path's instructions.
int tributary_path_supported(int path);
/// The path that TRIBUTARY_KERNELS names, if the processor has it, else the best that it has.
int tributary_default_path(void);

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

/// Signed bytes with a scale for each row: value = byte * scale / 127.
void tributary_decode_int8_rows(int path, const int8_t *codes, const float *scales, long columns, long row0, long row1,
                                long column0, long column1, float *out, long stride);

/// bfloat16 and IEEE half, at any byte address.
void tributary_decode_bf16(int path, const void *values, long columns, long row0, long row1, long column0, long column1,
                           float *out, long stride);
void tributary_decode_f16(int path, const void *values, long columns, long row0, long row1, long column0, long column1,
                          float *out, long stride);
void tributary_decode_f32(const void *values, long columns, long row0, long row1, long column0, long column1, float *out,
                          long stride);

// GGML's blocks, as GGUF files hold them, by ggml's numbers (ggml.h, `ggml_type`).
enum {
    TRIBUTARY_GGML_Q4_0 = 2, TRIBUTARY_GGML_Q4_1 = 3, TRIBUTARY_GGML_Q5_0 = 6, TRIBUTARY_GGML_Q5_1 = 7, TRIBUTARY_GGML_Q8_0 = 8,
    TRIBUTARY_GGML_Q4_K = 12, TRIBUTARY_GGML_Q5_K = 13, TRIBUTARY_GGML_Q6_K = 14
};
/// Columns column0 ..< column1 of `rows` rows, whose first begins at `values` and which are `step` bytes apart, as floats;
/// `stride` floats from row to row of `out`. A row is whole blocks; column0 and column1 need not be at their ends. Of scales that
/// are no numbers only that is the same on every path.
void tributary_decode_ggml(int path, int type, const void *values, long step, long rows, long column0, long column1, float *out,
                           long stride);

/// 4-bit codes and the scale of each block of `count` consecutive values, as bitsandbytes computes them.
void tributary_encode_nf4(int path, const float *values, long count, long block, uint8_t *packed, float *scales);
void tributary_encode_fp4(int path, const float *values, long count, long block, uint8_t *packed, float *scales);

/// Bytes and scales of one row of `columns` values in runs of 64: q = round-half-even(w 127 / absmax), scale = absmax / 127.
void tributary_encode_int8(int path, const float *values, long columns, int8_t *codes, float *scales);

// ---- gemv.c: products of a few tokens ----------------------------------------------------------------------------
// y[t y_stride + i] = sum over k of W[i][k] x[t x_stride + k] for rows i and `tokens` tokens t. A sum's order depends on
// `columns` alone.

/// W of floats, bfloat16 and IEEE half at any byte address, `stride` values from row to row.
void tributary_gemv_f32(int path, const void *values, long stride, long rows, long columns, const float *x, long x_stride,
                        long tokens, float *y, long y_stride);
void tributary_gemv_bf16(int path, const void *values, long stride, long rows, long columns, const float *x, long x_stride,
                         long tokens, float *y, long y_stride);
void tributary_gemv_f16(int path, const void *values, long stride, long rows, long columns, const float *x, long x_stride,
                        long tokens, float *y, long y_stride);
/// W of signed bytes; `codes` and `scales` are those of the first of the rows, see tributary_decode_int8.
void tributary_gemv_int8(int path, const int8_t *codes, const float *scales, long rows, long columns, const float *x,
                         long x_stride, long tokens, float *y, long y_stride);

/// Rows row0 ..< row1 of 4-bit codes as tributary_decode_4bit takes them; `columns` is a multiple of 32, and three floats
/// more than the scales can be read. x is what tributary_gemv_order_4bit made of each token.
void tributary_gemv_4bit(int path, const uint8_t *packed, const float *scales, long first_block, int block_shift,
                         const float *table, long columns, long row0, long row1, const float *x, long x_stride, long tokens,
                         float *y, long y_stride);
/// W of GGML's blocks, rows that are whole blocks and `step` bytes apart, see tributary_decode_ggml; 0 where the path has no
/// such product: decoding and tributary_gemv_f32 give its bits.
int tributary_gemv_ggml(int path, int type, const void *values, long step, long rows, long columns, const float *x, long x_stride,
                         long tokens, float *y, long y_stride);
/// x in the order in which codes are read; `out` has room for `columns` rounded up to 128.
void tributary_gemv_order_4bit(const float *x, long columns, float *out);

/// out[t out_stride + k] = sum over rows i of weights[t weight_stride + i] matrix[i stride + k], rows in their order.
void tributary_weigh_rows(int path, const float *matrix, long stride, long rows, long columns, const float *weights,
                          long weight_stride, long tokens, float *out, long out_stride);

// ---- layers.c: what stands between the matrix products -----------------------------------------------------------

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
/// dp becomes ds = p (dp - dot) scale with each row's dot, which is the sum of p dp; NULL lets it be computed from these.
void tributary_causal_softmax_backward(int path, float *scores, float *dp, long stride, long rows, long columns, long visible,
                                       float scale, const float *normalizer, const float *dots);

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

// ---- encoder.c: LayerNorm and GELU -------------------------------------------------------------------------------

/// y = (x - mean) / sqrt(variance + epsilon) w + b for each row of `columns`, to y (may be NULL, may be x), and rounded to rows
/// of bfloat16, a zero behind an odd number of columns (may be NULL). Mean and 1 / sqrt(...) of each row go to statistics
/// [rows, 2] (may be NULL).
void tributary_layer_norm(int path, const float *x, const float *w, const float *b, long rows, long columns, float epsilon,
                          float *y, uint16_t *half, long half_stride, float *statistics);
/// dx from dy, or from dy + added (may be NULL); dx is overwritten and may be dy.
void tributary_layer_norm_backward(int path, const float *x, const float *w, const float *statistics, const float *dy,
                                   const float *added, long rows, long columns, float *dx);

/// y = x Phi(x), Phi being the normal distribution function (to about 1 unit of the last place of x).
void tributary_gelu(int path, const float *x, long count, float *y);
/// The same as rows of bfloat16, a zero behind an odd number of columns.
void tributary_gelu_bf16(int path, const float *x, long rows, long columns, uint16_t *y, long y_stride);
/// dy becomes dx.
void tributary_gelu_backward(int path, const float *x, float *dy, long count);

// ---- clipping.c: gradients of single examples --------------------------------------------------------------------

/// The sum of x[i]^2 in double precision.
double tributary_square_sum(int path, const float *x, long count);
/// sum[i] += factor x[i], in double precision.
void tributary_add_scaled(int path, double *sum, const float *x, long count, double factor);

// ---- optimizer.c: AdamW, and bytes with a scale for each block ---------------------------------------------------

/// Values that share a scale: bitsandbytes' block size for optimizer states (csrc/kernels.cu).
#define TRIBUTARY_CODE_BLOCK 256

/// Buckets of numbers by the upper half of their float: sign, exponent and 7 bits of the fraction. The first holds all
/// magnitudes below 2^-23 (1 + 2^-7), the last those from 1 on; negative numbers' buckets follow in the same order.
enum { TRIBUTARY_BUCKET_SHIFT = 16, TRIBUTARY_FIRST_BUCKET = 104 << 7, TRIBUTARY_BUCKETS = ((127 - 104) << 7) + 1 };

/// What a byte stands for, and how its value is found.
typedef struct {
    /// 256 rising values.
    const float *values;
    /// Rising: x takes code i or a lower one if and only if x <= thresholds[i]; the last is infinite.
    const float *thresholds;
    /// 2 TRIBUTARY_BUCKETS: how many thresholds are below all numbers of the bucket, in which lies at most one.
    const uint8_t *buckets;
} tributary_code_map;

/// Codes of values from a block's first on, and their blocks' scales: value = map->values[code] * scale.
typedef struct {
    const tributary_code_map *map;
    uint8_t *codes;
    float *scales;
} tributary_codes;

/// The nearest code of each of `count` values over its block's largest magnitude, which is the block's scale. The last
/// block may be shorter.
void tributary_encode_codes(int path, const tributary_code_map *map, const float *values, long count, uint8_t *codes,
                            float *scales);

/// The numbers of one step t (Kingma and Ba 2015, algorithm 1, with decoupled decay).
typedef struct {
    float keep;          ///< 1 - rate x decay
    float first_share;   ///< 1 - beta1
    float second_keep;   ///< beta2
    float second_share;  ///< 1 - beta2
    float size;          ///< rate / (1 - beta1^t)
    float correction;    ///< sqrt(1 - beta2^t)
    float epsilon;
} tributary_adamw_step;

/// m += (g - m) first_share; v = v second_keep + g g second_share;
/// w = w keep - size m / (sqrt(v) / correction + epsilon).
void tributary_adamw(int path, const tributary_adamw_step *step, float *w, const float *g, float *m, float *v, long count);
/// The same with m and v in codes: decoded, changed, used for w, and only then encoded again.
void tributary_adamw_codes(int path, const tributary_adamw_step *step, float *w, const float *g, const tributary_codes *first,
                           const tributary_codes *second, long count);

// ---- noise.c: normally distributed numbers -----------------------------------------------------------------------

/// `count` values of the standard normal distribution from as many uniformly random words (Box and Muller 1958): values
/// 2p and 2p + 1 come from words 2p and 2p + 1; an odd count takes its missing last word as 0. At most 8.6 in size, as a
/// uniform number has 53 bits.
void tributary_gaussian(int path, const uint64_t *words, double *out, long count);

// ---- select.c: which values a sparse update keeps ----------------------------------------------------------------
// Magnitudes are compared as the bits of |x|, which are in the order of the numbers (NaN above all).

/// Finds which values are the `keep` largest magnitudes, ties to the lower index, none whose bits are `floor` or less:
/// those above *threshold, and the first *ties of those equal to it. 0 < keep <= count.
void tributary_select(int path, const float *values, long count, long keep, uint32_t floor, uint32_t *threshold, long *ties);

/// The indices of the values above threshold and of the first *ties equal to it, ascending; *ties becomes what is left
/// of it. Returns how many they are; `positions` has room for 16 more. count < 2^31.
long tributary_gather(int path, const float *values, long count, uint32_t threshold, long *ties, uint32_t *positions);

/// Sum of |values[positions[i]]|, in double, in a fixed order.
double tributary_sum_magnitudes(const float *values, const uint32_t *positions, long kept);
/// Sum of (values[i] - center), and of its square, in double, in a fixed order.
void tributary_moments(int path, const float *values, long count, double center, double *sum, double *squares);

// ---- golomb.c: ascending positions as Golomb-coded gaps ------------------------------------------------------------
// A record is gap / M ones and a 0, gap mod M in truncated binary (Golomb 1966), and where there are signs one bit, 1 for
// negative. A gap is the number of positions left out before this one. Bits fill bytes from the highest.

/// Bits of all records without signs, for the M = *parameter (1 ... 32768) that the coder chooses: the best power of
/// two (the smallest of equals), or one of 5/8, 6/8, 7/8, 5/4, 6/4, 7/4 of it where that is strictly smaller.
/// *power becomes the best power of two, and *power_bits its bits.
long tributary_golomb_choose(const uint32_t *positions, long kept, uint32_t *parameter, uint32_t *power, long *power_bits);

/// Writes the records, with the signs of values[position] unless `values` is NULL. `out` has room for 8 bytes more.
void tributary_golomb_encode(const uint32_t *positions, long kept, uint32_t parameter, const float *values, uint8_t *out);

/// Reads `kept` records with signs, and sets out[position] to +scale or -scale.
/// Returns 0; -1 if a position is not below `count`, or the records and zero bits up to a whole byte are not exactly
/// `bytes` bytes. `out` may then hold some of the values.
int tributary_golomb_decode_signs(const uint8_t *bits, long bytes, long kept, uint32_t parameter, long count, float scale,
                                  float *out);
/// Reads `kept` records without signs, and sets out[position] to the next of `kept` little-endian bfloat16 values.
/// Returns as above, and -1 if a value is zero or not finite.
int tributary_golomb_decode_bf16(const uint8_t *bits, long bytes, long kept, uint32_t parameter, long count,
                                 const uint8_t *values, float *out);

// ---- updates.c: dense updates --------------------------------------------------------------------------------------

/// bfloat16, little-endian at any address: to nearest, ties to even; a finite value stays finite (the largest instead).
void tributary_round_bf16(int path, const float *values, long count, uint8_t *out);
/// The same of values[positions[i]].
void tributary_round_bf16_at(const float *values, const uint32_t *positions, long kept, uint8_t *out);
/// Back to floats. Returns the index of the first that is not finite, or -1.
long tributary_widen_bf16(int path, const uint8_t *values, long count, float *out);

/// The largest |x|; NaN if there is one.
float tributary_largest_magnitude(int path, const float *values, long count);
/// out[i] = floor(values[i] / scale + draws[i] / 2^32), for |values[i]| <= 127 scale.
void tributary_round_int8(int path, const float *values, long count, float scale, const uint32_t *draws, int8_t *out);
/// out[i] = codes[i] scale, at most the largest finite float. Returns the index of the first code that is -128, or is
/// not 0 although the scale is, or -1.
long tributary_widen_int8(int path, const int8_t *codes, long count, float scale, float *out);

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
void tributary_bf16_round_transposed(int path, const float *x, long x_stride, long rows, long columns, float scale, uint16_t *out,
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

/// Reads `count` floats, a multiple of 64, and returns their sum.
float tributary_read_loop(int path, const float *memory, long count);

#endif
