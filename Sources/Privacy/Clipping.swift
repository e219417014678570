/// Bounds on what one term may contribute to a sum: a fixed norm, or one that follows a quantile of the norms.

import Glibc
import Primitives

/// What to multiply a vector by so that its norm is at most the limit: min(1, limit / norm), and 1 for the zero vector.
///
/// 0 for a norm that is not finite: such a term has to be left out, as 0 times infinity is not 0.
/// - Parameters:
///   - norm: at least 0
///   - limit: positive
public func clippingFactor(norm: Double, limit: Double) -> Double {
    precondition(limit > 0, "a clipping limit is positive, got \(limit)")
    guard norm.isFinite else { return 0 }
    return norm > limit ? limit / norm : 1
}

/// A clipping norm that moves to a quantile of the norms it is applied to (Andrew, Thakkar, McMahan, Ramaswamy 2021,
/// "Differentially private learning with adaptive clipping", arXiv:1905.03871, algorithm 1).
///
/// After each round the fraction of terms within the norm, with noise, moves it: C <- C exp(-rate (fraction - quantile)).
public struct AdaptiveClipping: Codable, Equatable, Sendable {
    /// C: positive.
    public private(set) var norm: Double
    /// Gamma, the fraction of terms that should not be clipped: in [0, 1].
    public let quantile: Double
    /// Eta: positive; 0.2 in the paper.
    public let rate: Double

    /// - Throws: `Failure(.usage)` if a parameter is out of its range
    public init(norm: Double, quantile: Double = 0.5, rate: Double = 0.2) throws(Failure) {
        guard norm > 0, norm.isFinite else {
            throw Failure(.usage, "the first clipping norm is \(norm): give a positive number")
        }
        guard 0...1 ~= quantile else { throw Failure(.usage, "the clipping quantile is \(quantile): give a number from 0 to 1") }
        guard rate > 0, rate.isFinite else { throw Failure(.usage, "the clipping rate is \(rate): give a positive number") }
        self.norm = norm
        self.quantile = quantile
        self.rate = rate
    }

    /// Moves the norm. The fraction is already private: `fraction(within:of:expected:noise:)` makes it so.
    public mutating func update(noisyFraction: Double) {
        let moved = norm * exp(-rate * (noisyFraction - quantile))
        // A fraction far out of [0, 1] is noise alone; the norm stays a number that can be clipped to.
        norm = min(max(moved, Double.leastNormalMagnitude), Double.greatestFiniteMagnitude)
    }

    /// The private fraction of terms within the norm: each contributes 1/2 or -1/2, so that one more or less changes the
    /// sum by 1/2, and the noise belongs to that sum (section 2.2).
    ///
    /// - Parameters:
    ///   - within: terms whose norm was at most C
    ///   - count: terms there were
    ///   - expected: the fixed denominator, such as q N
    ///   - noise: a draw from N(0, countDeviation^2)
    public static func fraction(within: Int, of count: Int, expected: Double, noise: Double) -> Double {
        (Double(within) - Double(count) / 2 + noise) / expected + 0.5
    }

    /// The noise multiplier z_delta of the sum itself, such that it and the noisy count together cost what one release with
    /// `noiseMultiplier` costs: (z^-2 - (2 sigma_b)^-2)^(-1/2) (theorem 1).
    ///
    /// - Parameters:
    ///   - noiseMultiplier: z, what is charged: positive
    ///   - countDeviation: sigma_b, the standard deviation of the count's noise; the paper takes a twentieth of the terms
    /// - Throws: `Failure(.usage)` unless z < 2 sigma_b: the count alone would cost more than there is
    public static func sumNoiseMultiplier(noiseMultiplier z: Double, countDeviation: Double) throws(Failure) -> Double {
        guard z > 0, z.isFinite else { throw Failure(.usage, "the noise multiplier is \(z): give a positive number") }
        guard countDeviation > 0, z < 2 * countDeviation else {
            throw Failure(
                .usage,
                "adaptive clipping with noise \(countDeviation) on its count costs more than the noise multiplier \(z) allows: give the count a noise above \(z / 2)"
            )
        }
        return 1 / (1 / (z * z) - 1 / (4 * countDeviation * countDeviation)).squareRoot()
    }
}
