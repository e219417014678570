// The primitives that everything trusts: SHA-256 (FIPS 180-4) under Primitives' Digest, ChaCha20 (RFC 8439) under Privacy's
// noise, and CRC-32C (RFC 3720) under frames and encoded states.
#ifndef TRIBUTARY_CCRYPTOGRAPHY_H
#define TRIBUTARY_CCRYPTOGRAPHY_H
#include <stddef.h>
#include <stdint.h>

/// SHA-256's compression function (section 6.2.2): mixes `count` blocks of 64 bytes into the state, with the processor's
/// SHA instructions where it has them.
void tributary_sha256_blocks(uint32_t state[8], const uint8_t *blocks, size_t count);

/// The same in plain C: what the other is tested against, and what other processors use.
void tributary_sha256_blocks_scalar(uint32_t state[8], const uint8_t *blocks, size_t count);

/// ChaCha20's block function (RFC 8439, section 2.3): `count` blocks of 64 bytes of keystream from block `counter` on.
///
/// The counter takes words 12 and 13 of the state and the nonce words 14 and 15, as in Bernstein's original: 2^64 blocks
/// a nonce, where the RFC has 2^32 blocks and a nonce of 96 bits. A state of the RFC is one of these with the first word
/// of its nonce as the counter's upper half.
void tributary_chacha20_blocks(const uint8_t key[32], uint64_t nonce, uint64_t counter, uint8_t *out, size_t count);

/// The same one block at a time.
void tributary_chacha20_blocks_scalar(const uint8_t key[32], uint64_t nonce, uint64_t counter, uint8_t *out, size_t count);

/// CRC-32C of the bytes behind those whose checksum is `crc`, 0 at the start, with the processor's instruction where it has one.
uint32_t tributary_crc32c(uint32_t crc, const uint8_t *bytes, size_t count);

/// The same in plain C.
uint32_t tributary_crc32c_scalar(uint32_t crc, const uint8_t *bytes, size_t count);

#endif
