/// The only source of randomness in training and federation: a stream that depends on what it is for.
///
/// The generator is xoshiro256** 1.0 (Blackman and Vigna 2021, "Scrambled linear pseudorandom number generators"),
/// its state a SHA-256 of (seed, purpose, round, attempt, client). Equal keys give equal
/// streams on every machine; uniform draws use integers and correctly rounded arithmetic only.

public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: (UInt64, UInt64, UInt64, UInt64)

    /// - Parameters:
    ///   - seed: of the run
    ///   - purpose: what the draws are for, such as "selection" or "batches"; never reused for another thing
    ///   - round, attempt: 0 where there is none
    ///   - client: a client's name, or "" where the draw belongs to nobody
    public init(seed: UInt64, purpose: String, round: Int = 0, attempt: Int = 0, client: String = "") {
        var key = ByteWriter()
        key.write(seed)
        key.write(purpose)
        key.write(UInt64(round))
        key.write(UInt64(attempt))
        key.write(client)
        let digest = Digest(of: key.bytes).bytes
        func word(_ index: Int) -> UInt64 {
            (0..<8).reduce(0) { $0 | UInt64(digest[index * 8 + $1]) << UInt64(8 * $1) }
        }
        state = (word(0), word(1), word(2), word(3))
        if state == (0, 0, 0, 0) { state.0 = 1 }  // the one state that xoshiro never leaves
    }

    public mutating func next() -> UInt64 {
        let result = Self.rotate(state.1 &* 5, 7) &* 9
        let shifted = state.1 << 17
        state.2 ^= state.0
        state.3 ^= state.1
        state.1 ^= state.2
        state.0 ^= state.3
        state.2 ^= shifted
        state.3 = Self.rotate(state.3, 45)
        return result
    }

    private static func rotate(_ value: UInt64, _ count: UInt64) -> UInt64 { value << count | value >> (64 - count) }

    /// An integer in 0..<bound, without bias (rejection).
    public mutating func integer(below bound: Int) -> Int {
        precondition(bound > 0, "the bound must be positive, got \(bound)")
        let bound = UInt64(bound)
        let limit = UInt64.max - UInt64.max % bound
        while true {
            let draw = next()
            if draw < limit { return Int(draw % bound) }
        }
    }

    /// A real in (0, 1) with 53 random bits: never 0, never 1.
    public mutating func unit() -> Double {
        (Double(next() >> 12) + 0.5) * 0x1p-52
    }

    /// A float in (-bound, bound): an odd multiple of 2^-24, times the bound, so that two machines agree bit for bit.
    public mutating func symmetric(_ bound: Float) -> Float {
        let odd = 2 * Int32(truncatingIfNeeded: next() >> 40) + 1 - (1 << 24)
        return Float(odd) * 0x1p-24 * bound
    }

    /// Fisher-Yates, from the end.
    public mutating func shuffle<T>(_ values: inout [T]) {
        for last in stride(from: values.count - 1, to: 0, by: -1) {
            values.swapAt(last, integer(below: last + 1))
        }
    }

    /// 0..<count in random order.
    public mutating func permutation(_ count: Int) -> [Int] {
        var order = Array(0..<count)
        shuffle(&order)
        return order
    }
}
