/// SHA-256 against the published vectors and Python's hashlib, on both paths.

import CCryptography
import Primitives
import TestSupport
import Testing

@Suite struct SHA256Tests {
    @Test func thePublishedVectorsHold() {
        // FIPS 180-2, appendix B, and the empty message.
        let vectors: [(message: [UInt8], digest: String)] = [
            ([], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (Array("abc".utf8), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                Array("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq".utf8),
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
            ),
            (
                [UInt8](repeating: UInt8(ascii: "a"), count: 1_000_000),
                "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
            ),
        ]
        for vector in vectors { #expect(Digest(of: vector.message).description == vector.digest) }
    }

    @Test func everyLengthUpTo300AgreesWithHashlib() {
        // hashlib: the digest of the digests of bytes((7 i + n) % 256 for i in range(n)), n = 0 ..< 300.
        var all = DigestBuilder()
        for length in 0..<300 {
            all.update(Digest(of: (0..<length).map { UInt8(truncatingIfNeeded: 7 * $0 + length) }).bytes)
        }
        #expect(all.finish().description == "d5238871a46ac4a1a75ac3fb19d645b0b3b9e5f35f5f720e2b240d605c6b694e")
    }

    @Test func partsGiveTheDigestOfTheWhole() {
        let seed: UInt64 = 17
        var generator = SeededGenerator(seed: seed, purpose: "digest parts")
        let bytes = (0..<1000).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
        let whole = Digest(of: bytes)
        for turn in 0..<200 {
            var builder = DigestBuilder()
            var rest = bytes[...]
            while !rest.isEmpty {
                let count = min(rest.count, generator.integer(below: 150))
                builder.update(Array(rest.prefix(count)))
                rest = rest.dropFirst(count)
                if generator.integer(below: 4) == 0 { _ = builder.finish() }
            }
            #expect(builder.finish() == whole, "seed \(seed), turn \(turn)")
        }
    }

    @Test func bothPathsGiveTheSameBits() {
        var generator = SeededGenerator(seed: 18, purpose: "digest paths")
        for count in [1, 2, 7, 64] {
            let blocks = (0..<64 * count).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
            var fast = (0..<8).map { _ in UInt32(truncatingIfNeeded: generator.next()) }
            var scalar = fast
            tributary_sha256_blocks(&fast, blocks, count)
            tributary_sha256_blocks_scalar(&scalar, blocks, count)
            #expect(fast == scalar)
        }
    }
}
