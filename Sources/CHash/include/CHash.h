// SHA-256's compression function (FIPS 180-4, section 6.2.2): the loop under Primitives' Digest.
#ifndef TRIBUTARY_CHASH_H
#define TRIBUTARY_CHASH_H
#include <stddef.h>
#include <stdint.h>

/// Mixes `count` blocks of 64 bytes into the state, with the processor's SHA instructions where it has them.
void tributary_sha256_blocks(uint32_t state[8], const uint8_t *blocks, size_t count);

/// The same in plain C: what the other is tested against, and what other processors use.
void tributary_sha256_blocks_scalar(uint32_t state[8], const uint8_t *blocks, size_t count);

#endif
