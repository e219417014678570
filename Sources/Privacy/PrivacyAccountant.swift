/// How much differential privacy a series of Poisson-subsampled Gaussian mechanisms leaves: epsilon at a given delta.

import Glibc
import Primitives

/// Every bound is sound: the true epsilon, under add/remove adjacency, is never above it.
public enum PrivacyAccountant {
    /// The orders of Renyi accounting if no others are given.
    public static var defaultOrders: [Double] { RenyiAccounting.defaultOrders }

    /// The smallest sound bound at hand; .infinity if nothing can be said, as without noise.
    ///
    /// - Parameter delta: in (0, 1); anything else gives .infinity
    public static func epsilon(of charges: [PrivacyCharge], delta: Double) -> Double {
        min(renyiEpsilon(of: charges, delta: delta), lossDistributionEpsilon(of: charges, delta: delta))
    }

    /// By Renyi divergences (Mironov, Talwar, Zhang 2019), the smallest over the orders.
    public static func renyiEpsilon(
        of charges: [PrivacyCharge], delta: Double, orders: [Double] = PrivacyAccountant.defaultOrders
    ) -> Double {
        guard let charges = merged(charges), 0 < delta, delta < 1 else { return .infinity }
        return charges.isEmpty ? 0 : RenyiAccounting.epsilon(of: charges, delta: delta, orders: orders)
    }

    /// By the distribution of the privacy loss on a fine grid: some tenths of a percent above the true epsilon, and never
    /// below it; .infinity where the losses are too large for it (noise under a twentieth of the clipping norm).
    public static func lossDistributionEpsilon(of charges: [PrivacyCharge], delta: Double) -> Double {
        guard let charges = merged(charges), 0 < delta, delta < 1 else { return .infinity }
        return charges.isEmpty ? 0 : LossAccounting.epsilon(of: charges, delta: delta)
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
        /// ln of epsilon over the target: it falls as the noise grows.
        func excess(_ noiseMultiplier: Double, _ bound: ([PrivacyCharge]) -> Double) -> Double {
            let charge = PrivacyCharge(samplingRate: samplingRate, noiseMultiplier: noiseMultiplier, steps: steps)
            return log(bound(charges + [charge]) / epsilon)
        }
        // Renyi accounting is quick and finds the neighbourhood: what it takes for enough is enough.
        func roughly(_ noiseMultiplier: Double) -> Double { excess(noiseMultiplier) { renyiEpsilon(of: $0, delta: delta) } }
        func exactly(_ noiseMultiplier: Double) -> Double { excess(noiseMultiplier) { self.epsilon(of: $0, delta: delta) } }
        var start = 1.0
        while roughly(start) > 0, start < largestNoiseMultiplier { start *= 1.25 }
        while roughly(start / 1.25) <= 0, start > 1e-3 { start /= 1.25 }
        var enough = (noise: start, excess: exactly(start))
        while enough.excess > 0 {
            guard enough.noise < largestNoiseMultiplier else {
                throw Failure(
                    .usage,
                    "no noise up to \(Int(largestNoiseMultiplier)) times the clipping norm gives epsilon \(epsilon) at delta \(delta) over \(steps) steps: allow a larger epsilon or fewer steps"
                )
            }
            enough.noise *= 2
            enough.excess = exactly(enough.noise)
        }
        var tooLittle = (noise: enough.noise / 1.25, excess: exactly(enough.noise / 1.25))
        while tooLittle.excess <= 0 {
            guard tooLittle.noise > 1e-3 else { return tooLittle.noise }
            enough = tooLittle
            tooLittle.noise /= 1.25
            tooLittle.excess = exactly(tooLittle.noise)
        }
        // Where the line through both ends, in logarithms, meets the target, but a little on the side of enough, and never
        // so close to an end that nothing is gained; every third time the middle, so that it always ends.
        let precision = 1.0005
        var turn = 0
        while enough.noise / tooLittle.noise > precision {
            turn += 1
            var middle = (enough.noise * tooLittle.noise).squareRoot()
            let share = tooLittle.excess / (tooLittle.excess - enough.excess)
            if turn % 3 != 0, share > 0, share < 1 {
                let met = tooLittle.noise * exp(share * log(enough.noise / tooLittle.noise)) * 1.0002
                middle = min(max(met, tooLittle.noise * 1.0004), enough.noise / 1.0004)
            }
            let probe = (noise: middle, excess: exactly(middle))
            if probe.excess <= 0 { enough = probe } else { tooLittle = probe }
        }
        return enough.noise
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
