// AdamW's step, on moments in float32 or in bytes of a dynamic map with a scale for each block.
#include "path.h"
#include <float.h>
#include <string.h>

enum { LANES = 16, BLOCK = TRIBUTARY_CODE_BLOCK };

// ---- codes -------------------------------------------------------------------------------------------------------

/// out[i] = map[codes[i]] scale.
BODY void decode_block(const tributary_code_map *map, const uint8_t *codes, float scale, long count, float *out) {
    for (long i = 0; i < count; i++) out[i] = map->values[codes[i]] * scale;
}

/// The scale is the largest magnitude, or FLT_MAX where that is infinite; each code is that of the map's value nearest to
/// value / scale, as its thresholds say.
BODY void encode_block(const tributary_code_map *map, const float *values, long count, uint8_t *codes, float *scale) {
    uint32_t largest_bits = 0;
    for (long i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, 4);
        bits &= 0x7fffffff;
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    float largest;
    memcpy(&largest, &largest_bits, 4);
    if (!(largest <= FLT_MAX)) largest = FLT_MAX;
    *scale = largest;
    const float divisor = largest > 0 ? largest : 1;
    float units[BLOCK];
    uint16_t buckets[BLOCK];
    for (long i = 0; i < count; i++) units[i] = values[i] / divisor;
    for (long i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, units + i, 4);
        int32_t bucket = ((bits & 0x7fffffff) >> TRIBUTARY_BUCKET_SHIFT) - TRIBUTARY_FIRST_BUCKET;
        bucket = bucket > 0 ? bucket : 0;
        bucket = bucket < TRIBUTARY_BUCKETS - 1 ? bucket : TRIBUTARY_BUCKETS - 1;
        buckets[i] = (uint16_t)(bucket + (bits < 0 ? TRIBUTARY_BUCKETS : 0));
    }
    // No bucket holds more than one threshold: its first code, or the one above.
    for (long i = 0; i < count; i++) {
        uint8_t code = map->buckets[buckets[i]];
        codes[i] = (uint8_t)(code + (units[i] > map->thresholds[code]));
    }
}

BODY void encode_codes_body(const tributary_code_map *map, const float *values, long count, uint8_t *codes, float *scales) {
    for (long start = 0; start < count; start += BLOCK)
        encode_block(map, values + start, count - start < BLOCK ? count - start : BLOCK, codes + start, scales + start / BLOCK);
}
VARIANTS(void, encode_codes, (const tributary_code_map *map, const float *values, long count, uint8_t *codes, float *scales),
         (map, values, count, codes, scales))
void tributary_encode_codes(int path, const tributary_code_map *map, const float *values, long count, uint8_t *codes,
                            float *scales) {
    CHOOSE(encode_codes, (map, values, count, codes, scales));
}

// ---- AdamW -------------------------------------------------------------------------------------------------------

/// Sixteen values, in torch's order of operations (`_single_tensor_adam`).
BODY void adamw_lanes(const tributary_adamw_step *step, float *w, const float *g, float *m, float *v) {
    f32x16 slope = LOAD(g), mean = LOAD(m), square = LOAD(v);
    mean = mean + (slope - mean) * SPLAT(step->first_share);
    square = square * SPLAT(step->second_keep) + slope * slope * SPLAT(step->second_share);
    STORE(m, mean);
    STORE(v, square);
    f32x16 root = __builtin_elementwise_sqrt(square);
    STORE(w, LOAD(w) * SPLAT(step->keep) - SPLAT(step->size) * (mean / (root / SPLAT(step->correction) + SPLAT(step->epsilon))));
}

BODY void adamw_body(const tributary_adamw_step *step, float *w, const float *g, float *m, float *v, long count) {
    long i = 0;
    for (; i + LANES <= count; i += LANES) adamw_lanes(step, w + i, g + i, m + i, v + i);
    if (i == count) return;
    float part[4][LANES] = {};
    const size_t bytes = (size_t)(count - i) * sizeof(float);
    memcpy(part[0], w + i, bytes);
    memcpy(part[1], g + i, bytes);
    memcpy(part[2], m + i, bytes);
    memcpy(part[3], v + i, bytes);
    adamw_lanes(step, part[0], part[1], part[2], part[3]);
    memcpy(w + i, part[0], bytes);
    memcpy(m + i, part[2], bytes);
    memcpy(v + i, part[3], bytes);
}
VARIANTS(void, adamw, (const tributary_adamw_step *step, float *w, const float *g, float *m, float *v, long count),
         (step, w, g, m, v, count))
void tributary_adamw(int path, const tributary_adamw_step *step, float *w, const float *g, float *m, float *v, long count) {
    CHOOSE(adamw, (step, w, g, m, v, count));
}

BODY void adamw_codes_body(const tributary_adamw_step *step, float *w, const float *g, const tributary_codes *first,
                           const tributary_codes *second, long count) {
    float m[BLOCK], v[BLOCK];
    for (long start = 0; start < count; start += BLOCK) {
        long size = count - start < BLOCK ? count - start : BLOCK, block = start / BLOCK;
        decode_block(first->map, first->codes + start, first->scales[block], size, m);
        decode_block(second->map, second->codes + start, second->scales[block], size, v);
        adamw_body(step, w + start, g + start, m, v, size);
        encode_block(first->map, m, size, first->codes + start, first->scales + block);
        encode_block(second->map, v, size, second->codes + start, second->scales + block);
    }
}
VARIANTS(void, adamw_codes, (const tributary_adamw_step *step, float *w, const float *g, const tributary_codes *first, const tributary_codes *second, long count),
         (step, w, g, first, second, count))
void tributary_adamw_codes(int path, const tributary_adamw_step *step, float *w, const float *g, const tributary_codes *first,
                           const tributary_codes *second, long count) {
    CHOOSE(adamw_codes, (step, w, g, first, second, count));
}
