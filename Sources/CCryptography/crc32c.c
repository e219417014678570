// CRC-32C (Castagnoli's polynomial 0x1EDC6F41, reflected 0x82F63B78; RFC 3720, appendix B.4): plain C, and the instructions of
// x86-64 and arm64 chosen at run time. Equal bits either way.
#include "include/CCryptography.h"
#include <string.h>

// The checksum of four bits, each shifted out of the polynomial's division.
static const uint32_t nibbles[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
    0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
    0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

uint32_t tributary_crc32c_scalar(uint32_t crc, const uint8_t *bytes, size_t count) {
    crc = ~crc;
    for (size_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        crc = crc >> 4 ^ nibbles[crc & 15];
        crc = crc >> 4 ^ nibbles[crc & 15];
    }
    return ~crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>
#define WITH_INSTRUCTIONS __attribute__((target("sse4.2")))
#define EIGHT(crc, word) _mm_crc32_u64(crc, word)
#define ONE(crc, byte) _mm_crc32_u8((uint32_t)(crc), byte)
static int has_instructions(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2");
}
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define WITH_INSTRUCTIONS __attribute__((target("crc")))
#define EIGHT(crc, word) __crc32cd((uint32_t)(crc), word)
#define ONE(crc, byte) __crc32cb((uint32_t)(crc), byte)
static int has_instructions(void) { return getauxval(AT_HWCAP) >> 7 & 1; }  // HWCAP_CRC32
#endif

#if defined(WITH_INSTRUCTIONS)
WITH_INSTRUCTIONS static uint32_t with_instructions(uint32_t start, const uint8_t *bytes, size_t count) {
    uint64_t crc = ~start;
    for (; count >= 8; count -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        crc = EIGHT(crc, word);
    }
    for (; count > 0; count--, bytes++) crc = ONE(crc, *bytes);
    return ~(uint32_t)crc;
}
#endif

uint32_t tributary_crc32c(uint32_t crc, const uint8_t *bytes, size_t count) {
#if defined(WITH_INSTRUCTIONS)
    // 0: not asked yet. Two threads that ask at once get the same answer.
    static int answer;
    int known = __atomic_load_n(&answer, __ATOMIC_RELAXED);
    if (known == 0) {
        known = has_instructions() ? 1 : 2;
        __atomic_store_n(&answer, known, __ATOMIC_RELAXED);
    }
    if (known == 1) return with_instructions(crc, bytes, count);
#endif
    return tributary_crc32c_scalar(crc, bytes, count);
}
