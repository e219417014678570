/// ChaCha20 against RFC 8439, and its fast paths against the plain one.

import CCryptography
import Primitives
import Testing

@Suite struct ChaCha20Tests {
    private typealias Blocks = @Sendable (UnsafePointer<UInt8>?, UInt64, UInt64, UnsafeMutablePointer<UInt8>?, Int) -> Void

    private func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
        let digits = Array("0123456789abcdef")
        return String(bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] })
    }

    @Test func thePublishedVectorsHold() {
        // Section 2.3.2: nonce 00:00:00:09:00:00:00:4a:00:00:00:00, counter 1; appendix A.1, test vectors 1, 2, 3 and 5.
        let counting = (0..<32).map { UInt8($0) }
        var last = [UInt8](repeating: 0, count: 32)
        let zero = last
        last[31] = 1
        let vectors: [(key: [UInt8], nonce: UInt64, counter: UInt64, block: String)] = [
            (
                counting, 0x4a00_0000, 0x0900_0000_0000_0001,
                "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4ed2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
            ),
            (
                zero, 0, 0,
                "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
            ),
            (
                zero, 0, 1,
                "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
            ),
            (
                last, 0, 1,
                "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"
            ),
            (
                zero, 0x0200_0000_0000_0000, 0,
                "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c78a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d"
            ),
        ]
        let paths: [Blocks] = [tributary_chacha20_blocks, tributary_chacha20_blocks_scalar]
        for blocks in paths {
            for vector in vectors {
                var block = [UInt8](repeating: 0, count: 64)
                blocks(vector.key, vector.nonce, vector.counter, &block, 1)
                #expect(hexadecimal(block) == vector.block)
            }
        }
    }

    @Test func bothPathsGiveTheSameBitsAlsoWhereTheCounterCarries() {
        var generator = SeededGenerator(seed: 21, purpose: "chacha paths")
        for count in [1, 7, 8, 9, 15, 16, 17, 24, 31, 63, 64] {
            let key = (0..<32).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
            for counter in [0, 0xffff_fff8, generator.next(), UInt64.max - 5] {
                let nonce = generator.next()
                var fast = [UInt8](repeating: 0, count: 64 * count)
                var scalar = fast
                tributary_chacha20_blocks(key, nonce, counter, &fast, count)
                tributary_chacha20_blocks_scalar(key, nonce, counter, &scalar, count)
                #expect(fast == scalar, "\(count) blocks from \(counter)")
            }
        }
    }
}
