// How one source becomes three: a body written once over 16-lane vectors is compiled for each instruction set.
#ifndef TRIBUTARY_PATH_H
#define TRIBUTARY_PATH_H
#include "CKernels.h"

#if defined(__x86_64__)
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")))
#define TARGET_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi2")))
#define TARGET_AVX2 __attribute__((target("avx2,fma,f16c,bmi2")))
#endif

/// Put before a body: it is copied into each of its variants and takes on their instruction set.
#define BODY static inline __attribute__((always_inline))

// Sixteen lanes: one AVX-512 register, two of AVX2, four of SSE2 or NEON. The lanes and the order of every sum are
// the same on each, and -ffp-contract=off keeps products and sums apart, so that all variants give the same bits.
typedef float f32x16 __attribute__((vector_size(64)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
// The same in memory, at any address.
typedef f32x16 f32x16_u __attribute__((aligned(1), may_alias));
typedef u16x16 u16x16_u __attribute__((aligned(1), may_alias));
typedef i8x16 i8x16_u __attribute__((aligned(1), may_alias));
#define LOAD(pointer) (*(const f32x16_u *)(pointer))
#define STORE(pointer, value) (*(f32x16_u *)(pointer) = (value))
typedef float f32x16_same __attribute__((ext_vector_type(16)));
#define SPLAT(value) ((f32x16)(f32x16_same)(float)(value))

// Lanes are added in one fixed order, whatever the instruction set.
BODY float sum_lanes(const f32x16 *v) {
    f32x8 halves = __builtin_shufflevector(*v, *v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(*v, *v, 8, 9, 10, 11, 12, 13, 14, 15);
    f32x4 quarters = __builtin_shufflevector(halves, halves, 0, 1, 2, 3) + __builtin_shufflevector(halves, halves, 4, 5, 6, 7);
    return (quarters[0] + quarters[2]) + (quarters[1] + quarters[3]);
}

/// Defines tributary_NAME(int path, ...) that calls NAME_body(...) compiled for the path.
#if defined(__x86_64__)
#define VARIANTS(result, name, parameters, arguments)                                  \
    TARGET_AVX512 static result name##_avx512 parameters { return name##_body arguments; } \
    TARGET_AVX2 static result name##_avx2 parameters { return name##_body arguments; }     \
    static result name##_scalar parameters { return name##_body arguments; }
#define CHOOSE(name, arguments)                                 \
    (path == TRIBUTARY_AVX512 ? name##_avx512 arguments         \
                              : path == TRIBUTARY_AVX2 ? name##_avx2 arguments : name##_scalar arguments)
#else
#define VARIANTS(result, name, parameters, arguments) \
    static result name##_scalar parameters { return name##_body arguments; }
#define CHOOSE(name, arguments) ((void)path, name##_scalar arguments)
#endif

/// The largest |x|; NaN if there is one. Without their sign, floats are in the order of their bits, NaN above all.
BODY float largest_magnitude_body(const float *values, long count) {
    uint32_t largest = 0;
    for (long i = 0; i < count; i++) {
        uint32_t bits;
        __builtin_memcpy(&bits, values + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float result;
    __builtin_memcpy(&result, &largest, 4);
    return result;
}

/// The nearest bfloat16, ties to even, as vcvtneps2bf16 rounds: what is subnormal in single precision becomes zero.
static inline uint16_t bf16_from(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    if ((bits & 0x7f800000) == 0) return (uint16_t)(bits >> 16 & 0x8000);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline float bf16_to_float(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

/// The IEEE half at any address: sign, exponent and fraction move into place and are multiplied by 2^(127 - 15), which is
/// exact, subnormals included; infinities and NaNs take the largest exponent.
BODY float half_at(const void *from) {
    int16_t half;
    __builtin_memcpy(&half, from, 2);
    uint32_t bits = (uint32_t)half << 13 & 0x8fffe000;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    value *= 0x1p112f;
    if (__builtin_expect((half & 0x7c00) == 0x7c00, 0)) {
        bits |= 0x7f800000;
        __builtin_memcpy(&value, &bits, 4);
    }
    return value;
}
/// Sixteen of them, at any address.
BODY void f16_lanes(const char *from, f32x16 *out) {
    u32x16 half = __builtin_convertvector(*(const u16x16_u *)from, u32x16);
    u32x16 magnitude = (half & 0x7fff) << 13;
    u32x16 finite = (u32x16)((f32x16)magnitude * SPLAT(0x1p112f));
    u32x16 special = (u32x16)(magnitude >= 0x0f800000);
    u32x16 bits = (special & (magnitude | 0x7f800000)) | (~special & finite);
    *out = (f32x16)(bits | (half & 0x8000) << 16);
}

#endif
