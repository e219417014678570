/// Random numbers that nobody can foretell without the key: ChaCha20's keystream (RFC 8439) as words and distributions.

import CCryptography
import CKernels

/// Draws one number after another. Equal keys give equal streams on every machine.
public struct NoiseStream: RandomNumberGenerator, Sendable {
    private let key: NoiseKey
    private var words: [UInt64] = []
    private var position = 0
    private var nextBlock: UInt64 = 0
    /// The second value of the last pair that `gaussian()` made.
    private var spare: Double?

    private static let blocksAtOnce = 16

    public init(key: NoiseKey) { self.key = key }

    /// 64 random bits.
    public mutating func next() -> UInt64 {
        if position == words.count {
            words = [UInt64](unsafeUninitializedCapacity: Self.blocksAtOnce * Keystream.wordsInBlock) { buffer, count in
                Keystream.fill(buffer, key: key, nonce: .stream, firstBlock: nextBlock)
                count = buffer.count
            }
            nextBlock += UInt64(Self.blocksAtOnce)
            position = 0
        }
        defer { position += 1 }
        return words[position]
    }

    /// In [0, 1), a multiple of 2^-53.
    public mutating func uniform() -> Double { Double(next() >> 11) * 0x1p-53 }

    /// True with the given probability, to 2^-53; always false for 0 and always true for 1.
    public mutating func bernoulli(_ probability: Double) -> Bool { uniform() < probability }

    /// From N(0, 1), by Box and Muller; at most 8.6 in size. See `addGaussianNoise` on what floating point costs.
    public mutating func gaussian() -> Double {
        if let value = spare {
            spare = nil
            return value
        }
        let pair = [next(), next()]
        var values = [0.0, 0.0]
        tributary_gaussian(Keystream.kernelPath, pair, &values, 2)
        spare = values[1]
        return values[0]
    }
}

/// ChaCha20's blocks as words.
enum Keystream {
    static let wordsInBlock = 8

    /// Keeps apart what is drawn under one key in different ways.
    enum Nonce: UInt64 {
        case stream = 0
        case vector = 1
    }

    /// The best that this processor has; all paths give the same bits.
    static let kernelPath: Int32 = [2, 1].first { tributary_path_supported($0) != 0 } ?? 0

    /// - Parameter words: a multiple of `wordsInBlock`
    static func fill(_ words: UnsafeMutableBufferPointer<UInt64>, key: NoiseKey, nonce: Nonce, firstBlock: UInt64) {
        precondition(words.count % wordsInBlock == 0, "\(words.count) words are not whole blocks")
        guard let base = words.baseAddress else { return }
        let bytes = UnsafeMutableRawPointer(base).assumingMemoryBound(to: UInt8.self)
        tributary_chacha20_blocks(key.bytes, nonce.rawValue, firstBlock, bytes, words.count / wordsInBlock)
    }
}
