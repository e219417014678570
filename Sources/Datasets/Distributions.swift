/// Random draws that partitions need beyond uniform ones.
///
/// They use the C library's logarithm: a partition is made on one machine and written down, never derived on two.

import Primitives

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

extension SeededGenerator {
    /// Standard normal, by Marsaglia's polar method (Marsaglia and Bray 1964).
    mutating func normal() -> Double {
        while true {
            let (x, y) = (2 * unit() - 1, 2 * unit() - 1)
            let square = x * x + y * y
            if square > 0, square < 1 { return x * (-2 * log(square) / square).squareRoot() }
        }
    }

    /// The logarithm of a Gamma(shape, 1) draw (Marsaglia and Tsang 2000, sections 2 and 6). The logarithm, because
    /// the draw itself is 0 in floating point at small shapes.
    mutating func logGamma(shape: Double) -> Double {
        if shape < 1 { return logGamma(shape: shape + 1) + log(unit()) / shape }
        let d = shape - 1.0 / 3
        let c = 1 / (9 * d).squareRoot()
        while true {
            let x = normal()
            let root = 1 + c * x
            guard root > 0 else { continue }
            let v = root * root * root
            if log(unit()) < x * x / 2 + d - d * v + d * log(v) { return log(d) + log(v) }
        }
    }

    /// `count` shares that sum to one, from the symmetric Dirichlet distribution.
    mutating func dirichlet(alpha: Double, count: Int) -> [Double] {
        let logs = (0..<count).map { _ in logGamma(shape: alpha) }
        let largest = logs.max() ?? 0
        let weights = logs.map { exp($0 - largest) }
        let sum = weights.reduce(0, +)
        return weights.map { $0 / sum }
    }
}
