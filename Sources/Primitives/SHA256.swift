/// SHA-256 over bytes that arrive in parts (FIPS 180-4).
///
/// Our own, because a cryptographic library would be most of what there is to compile, for this one function.

import CCryptography

struct SHA256: Sendable {
    /// The first 32 bits of the fractional parts of the square roots of the first eight primes (section 5.3.3).
    private var state: [UInt32] = [
        0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19,
    ]
    /// Bytes that do not fill a block yet: fewer than 64.
    private var pending: [UInt8] = []
    private var byteCount: UInt64 = 0

    static let blockByteCount = 64

    mutating func update(_ bytes: UnsafeRawBufferPointer) {
        byteCount += UInt64(bytes.count)
        var rest = bytes[...]
        if !pending.isEmpty {
            let missing = rest.prefix(Self.blockByteCount - pending.count)
            pending += missing
            rest = rest.dropFirst(missing.count)
            guard pending.count == Self.blockByteCount else { return }
            pending.withUnsafeBytes { Self.mix($0, into: &state) }
            pending.removeAll(keepingCapacity: true)
        }
        let whole = rest.count - rest.count % Self.blockByteCount
        Self.mix(UnsafeRawBufferPointer(rebasing: rest.prefix(whole)), into: &state)
        pending += rest.dropFirst(whole)
    }

    /// The 32 bytes for everything so far; more may follow.
    func finish() -> [UInt8] {
        // Section 5.1.1: a one bit, zeros, and the length in bits as a big-endian u64, up to a whole block.
        var last = pending + [0x80]
        while last.count % Self.blockByteCount != Self.blockByteCount - 8 { last.append(0) }
        withUnsafeBytes(of: (byteCount &* 8).bigEndian) { last.append(contentsOf: $0) }
        var state = state
        last.withUnsafeBytes { Self.mix($0, into: &state) }
        return state.flatMap { word in withUnsafeBytes(of: word.bigEndian) { Array($0) } }
    }

    /// - Parameter blocks: a multiple of 64 bytes
    private static func mix(_ blocks: UnsafeRawBufferPointer, into state: inout [UInt32]) {
        guard let base = blocks.baseAddress, blocks.count >= blockByteCount else { return }
        tributary_sha256_blocks(
            &state, base.assumingMemoryBound(to: UInt8.self), blocks.count / blockByteCount)
    }
}
