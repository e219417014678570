/// How much differential privacy a series of Poisson-subsampled Gaussian mechanisms leaves: epsilon at a given delta.

import Primitives

/// Every bound is sound: the true epsilon, under add/remove adjacency, is never above it.
public enum PrivacyAccountant {
    /// The orders of Renyi accounting if no others are given.
    public static var defaultOrders: [Double] { RenyiAccounting.defaultOrders }

    /// The smallest sound bound at hand; .infinity if nothing can be said, as without noise.
    ///
    /// - Parameter delta: in (0, 1); anything else gives .infinity
    public static func epsilon(of charges: [PrivacyCharge], delta: Double) -> Double {
        renyiEpsilon(of: charges, delta: delta)
    }

    /// By Renyi divergences (Mironov, Talwar, Zhang 2019), the smallest over the orders.
    public static func renyiEpsilon(
        of charges: [PrivacyCharge], delta: Double, orders: [Double] = PrivacyAccountant.defaultOrders
    ) -> Double {
        guard let charges = merged(charges), 0 < delta, delta < 1 else { return .infinity }
        return charges.isEmpty ? 0 : RenyiAccounting.epsilon(of: charges, delta: delta, orders: orders)
    }

    /// The largest noise multiplier that `noiseMultiplier` tries: beyond it no training is left.
    public static let largestNoiseMultiplier = 1e6

    /// The smallest noise multiplier, to a thousandth, whose epsilon is at most the given one.
    ///
    /// - Parameters:
    ///   - samplingRate: in (0, 1]
    ///   - steps: at least 1
    ///   - epsilon: positive
    ///   - delta: in (0, 1)
    ///   - charges: what is spent already and counts too
    /// - Throws: `Failure(.usage)` if a parameter is out of its range, or if no noise meets the target
    public static func noiseMultiplier(
        samplingRate: Double, steps: Int, epsilon: Double, delta: Double, beside charges: [PrivacyCharge] = []
    ) throws(Failure) -> Double {
        guard samplingRate > 0, samplingRate <= 1 else {
            throw Failure(.usage, "the sampling rate is \(samplingRate): give a number above 0 and at most 1")
        }
        guard steps > 0 else { throw Failure(.usage, "there are \(steps) private steps: give at least 1") }
        guard epsilon > 0, epsilon.isFinite else {
            throw Failure(.usage, "the privacy target epsilon is \(epsilon): give a positive number")
        }
        guard delta > 0, delta < 1 else {
            throw Failure(.usage, "the privacy target delta is \(delta): give a number between 0 and 1, below 1 / examples")
        }
        func meets(_ noiseMultiplier: Double) -> Bool {
            let charge = PrivacyCharge(samplingRate: samplingRate, noiseMultiplier: noiseMultiplier, steps: steps)
            return self.epsilon(of: charges + [charge], delta: delta) <= epsilon
        }
        var enough = 1.0
        if meets(enough) {
            while enough > 1e-3, meets(enough / 2) { enough /= 2 }
        } else {
            repeat {
                guard enough < largestNoiseMultiplier else {
                    throw Failure(
                        .usage,
                        "no noise up to \(Int(largestNoiseMultiplier)) times the clipping norm gives epsilon \(epsilon) at delta \(delta) over \(steps) steps: allow a larger epsilon or fewer steps"
                    )
                }
                enough *= 2
            } while !meets(enough)
        }
        var tooLittle = enough / 2
        while enough / tooLittle > 1.0005 {
            let middle = (enough * tooLittle).squareRoot()
            if meets(middle) { enough = middle } else { tooLittle = middle }
        }
        return enough
    }

    /// Equal mechanisms as one charge, in a fixed order, so that the order of charges cannot change a bit; nil if one is
    /// out of its ranges.
    private static func merged(_ charges: [PrivacyCharge]) -> [PrivacyCharge]? {
        var steps: [PrivacyCharge: Int] = [:]
        for var charge in charges {
            guard charge.isValid else { return nil }
            let count = charge.steps
            charge.steps = 0
            let (sum, overflow) = steps[charge, default: 0].addingReportingOverflow(count)
            guard !overflow else { return nil }
            if count > 0 { steps[charge] = sum }
        }
        return steps.map { PrivacyCharge(samplingRate: $0.samplingRate, noiseMultiplier: $0.noiseMultiplier, steps: $1) }
            .sorted { ($0.samplingRate, $0.noiseMultiplier) < ($1.samplingRate, $1.noiseMultiplier) }
    }
}
