// Ascending positions as Golomb-coded gaps (Golomb 1966, "Run-length encodings"): the choice of the parameter, coder
// and decoder.
#include "path.h"
#include <string.h>

// ---- how long a record is --------------------------------------------------------------------------------------------

/// Truncated binary of remainders below M: those below `cutoff` take bits - 1 bits, the others `bits`.
typedef struct {
    uint32_t parameter, cutoff;
    int bits;
} golomb;

static golomb golomb_of(uint32_t parameter) {
    golomb code = {parameter, 0, 0};
    while ((1u << code.bits) < parameter) code.bits++;
    code.cutoff = (1u << code.bits) - parameter;
    return code;
}

/// Gaps below this are counted in bins, all others one by one.
enum { GAP_BINS = 4096, POWERS = 16 };

typedef struct {
    uint32_t bins[GAP_BINS];
    long largest_bin;
    int has_larger;
} gap_counts;

static void count_gaps(const uint32_t *positions, long kept, gap_counts *counts) {
    memset(counts, 0, sizeof *counts);
    uint32_t next = 0, largest = 0;
    for (long i = 0; i < kept; i++) {
        uint32_t gap = positions[i] - next;
        next = positions[i] + 1;
        if (gap >= GAP_BINS) {
            counts->has_larger = 1;
            continue;
        }
        counts->bins[gap]++;
        largest = gap > largest ? gap : largest;
    }
    counts->largest_bin = largest;
}

/// Bits of all records without signs.
static long total_bits(const gap_counts *counts, const uint32_t *positions, long kept, uint32_t parameter) {
    const golomb code = golomb_of(parameter);
    uint64_t total = 0;
    uint32_t quotient = 0, remainder = 0;
    for (long gap = 0; gap <= counts->largest_bin; gap++) {
        total += (uint64_t)counts->bins[gap] * (quotient + 1 + (uint32_t)code.bits - (remainder < code.cutoff));
        if (++remainder == parameter) {
            remainder = 0;
            quotient++;
        }
    }
    uint32_t next = 0;
    for (long i = 0; counts->has_larger && i < kept; i++) {
        uint32_t gap = positions[i] - next;
        next = positions[i] + 1;
        if (gap >= GAP_BINS) total += gap / parameter + 1 + (uint32_t)code.bits - (gap % parameter < code.cutoff);
    }
    return (long)total;
}

long tributary_golomb_choose(const uint32_t *positions, long kept, uint32_t *parameter, uint32_t *power, long *power_bits) {
    gap_counts counts;
    count_gaps(positions, kept, &counts);
    // One more bit of remainder saves at most what the bit before it saved: the total falls, and then rises.
    uint32_t best = 1;
    long fewest = total_bits(&counts, positions, kept, 1);
    for (int bits = 1; bits < POWERS; bits++) {
        long total = total_bits(&counts, positions, kept, 1u << bits);
        if (total >= fewest) break;
        fewest = total;
        best = 1u << bits;
    }
    *power = *parameter = best;
    *power_bits = fewest;
    for (uint32_t eighths = 5; eighths <= 14; eighths += eighths < 7 ? 1 : eighths == 7 ? 3 : 2) {
        if (eighths * best % 8 || eighths * best / 8 > 1u << (POWERS - 1)) continue;
        long total = total_bits(&counts, positions, kept, eighths * best / 8);
        if (total >= fewest) continue;
        fewest = total;
        *parameter = eighths * best / 8;
    }
    return fewest;
}

// ---- coding ----------------------------------------------------------------------------------------------------------

typedef struct {
    uint8_t *out;
    uint64_t pending;  // bits that are not in a whole byte yet, from the highest; the rest is 0
    unsigned used;     // how many, below 8 between calls
} bit_writer;

/// Appends the low `length` bits of `bits`, at most 48. Writes eight bytes, of which only whole ones are kept.
static inline void append(bit_writer *writer, uint64_t bits, unsigned length) {
    writer->pending |= bits << (64 - writer->used - length);
    uint64_t bytes = __builtin_bswap64(writer->pending);
    memcpy(writer->out, &bytes, 8);
    writer->used += length;
    writer->out += writer->used >> 3;
    writer->pending <<= writer->used & ~7u;
    writer->used &= 7;
}

typedef struct {
    uint32_t bits, length;
} record;

/// Records of short gaps, ready to be appended; length 0 where one takes more than 32 bits.
enum { RECORDS = 512 };

static void prepare(const golomb *code, record *records) {
    uint32_t quotient = 0, remainder = 0;
    for (uint32_t gap = 0; gap < RECORDS; gap++) {
        int is_short = remainder < code->cutoff;
        uint32_t length = quotient + 1 + (uint32_t)code->bits - (uint32_t)is_short;
        uint64_t ones = quotient < 32 ? (1ull << quotient) - 1 : 0;
        uint64_t rest = is_short ? remainder : remainder + code->cutoff;
        records[gap].bits = (uint32_t)(ones << (length - quotient) | rest);
        records[gap].length = length <= 32 ? length : 0;
        if (++remainder == code->parameter) {
            remainder = 0;
            quotient++;
        }
    }
}

static inline void append_gap(bit_writer *writer, const golomb *code, uint32_t gap) {
    uint32_t quotient = gap / code->parameter, remainder = gap % code->parameter;
    for (; quotient >= 32; quotient -= 32) append(writer, 0xffffffff, 32);
    append(writer, ((1ull << quotient) - 1) << 1, quotient + 1);
    int is_short = remainder < code->cutoff;
    unsigned bits = (unsigned)(code->bits - is_short);
    if (bits) append(writer, is_short ? remainder : remainder + code->cutoff, bits);
}

void tributary_golomb_encode(const uint32_t *positions, long kept, uint32_t parameter, const float *values, uint8_t *out) {
    const golomb code = golomb_of(parameter);
    record records[RECORDS];
    prepare(&code, records);
    bit_writer writer = {out, 0, 0};
    uint32_t next = 0;
    for (long i = 0; i < kept; i++) {
        uint32_t position = positions[i], gap = position - next, sign = 0;
        next = position + 1;
        if (values) {
            memcpy(&sign, values + position, 4);
            sign >>= 31;
        }
        uint32_t length = gap < RECORDS ? records[gap].length : 0;
        if (length) {
            append(&writer, values ? (uint64_t)records[gap].bits << 1 | sign : records[gap].bits, length + (values != NULL));
        } else {
            append_gap(&writer, &code, gap);
            if (values) append(&writer, sign, 1);
        }
    }
}

// ---- decoding --------------------------------------------------------------------------------------------------------

/// 57 bits or more from this bit on, from the highest; zeros after the end.
static inline uint64_t bits_at(const uint8_t *bytes, long count, uint64_t bit) {
    uint64_t word = 0, start = bit >> 3;
    if ((long)start + 8 <= count) {
        memcpy(&word, bytes + start, 8);
        word = __builtin_bswap64(word);
    } else {
        for (uint64_t i = start; (long)i < count; i++) word |= (uint64_t)bytes[i] << (56 - 8 * (i - start));
    }
    return word << (bit & 7);
}

static inline int leading_ones(uint64_t word) { return ~word ? __builtin_clzll(~word) : 64; }

BODY int decode_body(const uint8_t *bits, long bytes, long kept, uint32_t parameter, long count, float scale, const uint8_t *values, float *out) {
    const golomb code = golomb_of(parameter);
    const uint64_t end = 8 * (uint64_t)bytes;
    // A word of 57 bits holds a record of at most this many ones whole: the 0, 16 bits of remainder and the sign follow.
    const int most_ones = 57 - 18;
    uint64_t bit = 0, next = 0;
    uint32_t scale_bits;
    memcpy(&scale_bits, &scale, 4);
    for (long i = 0; i < kept; i++) {
        uint64_t word = bits_at(bits, bytes, bit), quotient = 0;
        int ones = leading_ones(word);
        while (ones > most_ones) {
            bit += (uint64_t)most_ones;
            quotient += (uint64_t)most_ones;
            if (quotient * parameter >= (uint64_t)count || bit >= end) return -1;
            word = bits_at(bits, bytes, bit);
            ones = leading_ones(word);
        }
        quotient += (uint64_t)ones;
        word <<= ones + 1;
        // Shifted in two steps, because a shift by 64 is none.
        uint64_t wide = word >> 1 >> (63 - code.bits), narrow = wide >> 1;
        int is_short = narrow < code.cutoff;
        // By a mask, because which of the two cannot be guessed.
        uint64_t mask = (uint64_t)0 - (uint64_t)is_short, remainder = (narrow & mask) | ((wide - code.cutoff) & ~mask);
        int length = code.bits - is_short;
        uint64_t position = next + quotient * parameter + remainder;
        if (position >= (uint64_t)count) return -1;
        next = position + 1;
        bit += (uint64_t)(ones + 1 + length);
        if (values) {
            uint32_t value = ((uint32_t)values[2 * i] | (uint32_t)values[2 * i + 1] << 8) << 16;
            if (!(value << 1) || (value & 0x7f800000) == 0x7f800000) return -1;
            memcpy(out + position, &value, 4);
        } else {
            uint32_t value = scale_bits | (uint32_t)((word << length) >> 63) << 31;
            bit++;
            memcpy(out + position, &value, 4);
        }
    }
    if (bit > end || end - bit >= 8) return -1;
    return end > bit && bits[bytes - 1] & ((1u << (end - bit)) - 1) ? -1 : 0;
}

int tributary_golomb_decode_signs(const uint8_t *bits, long bytes, long kept, uint32_t parameter, long count, float scale, float *out) {
    return decode_body(bits, bytes, kept, parameter, count, scale, NULL, out);
}

int tributary_golomb_decode_bf16(const uint8_t *bits, long bytes, long kept, uint32_t parameter, long count, const uint8_t *values, float *out) {
    return decode_body(bits, bytes, kept, parameter, count, 0, values, out);
}
