/// Epsilon from the distribution of the privacy loss: exact up to a fine grid, and rounded to the safe side.
///
/// The losses of all steps add up, so that their distribution is a convolution, taken by Fourier transform (Koskela,
/// Jälkö, Honkela 2020, arXiv:1906.03049; Gopi, Lee, Wutschitz 2021, arXiv:2106.02848). Before it, each step's masses are
/// tilted by exp(lambda loss), with the lambda of the best Chernoff bound: the sum's mass then lies where the answer is, and
/// the transform's rounding is small beside delta, however small that is. Everything that is approximate is added to delta:
/// tails beyond the grid (a Chernoff bound) and the rounding.

import Glibc

enum LossAccounting {
    /// The larger of both directions of adjacency; .infinity where the grid cannot hold the losses.
    ///
    /// - Parameter charges: valid and different
    static func epsilon(of charges: [PrivacyCharge], delta: Double) -> Double {
        // Smaller masses have no logarithm in double precision.
        guard delta > 1e-200 else { return .infinity }
        let isSymmetric = charges.allSatisfy { $0.samplingRate == 1 }
        let directions: [SubsampledGaussian.Direction] = isSymmetric ? [.remove] : [.remove, .add]
        var largest = 0.0
        for direction in directions {
            guard let epsilon = epsilon(of: charges, direction: direction, delta: delta) else { return .infinity }
            largest = max(largest, epsilon)
        }
        return largest
    }

    /// Chernoff's bound can be far above epsilon where the loss is bounded: then the tilted mass lies too far up, and the
    /// next smaller tilt is tried. Each gives a bound; the smallest counts.
    private static func epsilon(
        of charges: [PrivacyCharge], direction: SubsampledGaussian.Direction, delta: Double
    ) -> Double? {
        var smallest: Double?
        var tiltLimit = 1e7
        while true {
            guard let plan = Plan(charges, direction: direction, delta: delta, tiltLimit: tiltLimit) else { return smallest }
            let (epsilon, isPrecise) = plan.epsilon()
            smallest = min(epsilon, smallest ?? .infinity)
            if isPrecise || plan.tilt < 0.1 { return smallest }
            tiltLimit = plan.tilt / 8
        }
    }
}

/// What to compute for one direction: where the grid lies and how fine it is.
private struct Plan {
    /// The steps of each mechanism.
    let mechanisms: [(loss: SubsampledGaussian, steps: Double)]
    /// Smaller losses of each mechanism are rounded up to this.
    let lowest: [Double]
    let delta: Double
    /// Standard deviations beyond which a release counts as an infinite loss.
    let reach: Double
    /// Lambda, and what to add to it for the Chernoff bound on the upper tail.
    let tilt: Double
    let tailTilt: Double
    /// The sum's losses that have a place of their own; the transform lays all others over them.
    let low: Double
    let step: Double
    /// A power of two.
    let count: Int

    /// ln of the part of the tilted sum that may lie outside of the grid.
    private static let outside = -34.0
    /// At least as many points as make the answer precise for a single step, and at most what takes about half a second.
    private static let counts = (1 << 14)...(1 << 20)
    /// Points of one step's loss.
    private static let pointLimit = Double(1 << 21)
    /// ln of the size of a frequency that counts as zero. All sizes are at most 1, so that no later factor brings it back,
    /// and a million of them are far below the rounding.
    private static let nothing = -70.0
    /// Part of epsilon that the grid may add.
    private static let precision = 1e-3

    init?(_ charges: [PrivacyCharge], direction: SubsampledGaussian.Direction, delta: Double, tiltLimit: Double) {
        self.delta = delta
        mechanisms = charges.map {
            (
                SubsampledGaussian(rate: $0.samplingRate, deviation: $0.noiseMultiplier, direction: direction),
                Double($0.steps)
            )
        }
        let total = mechanisms.reduce(0) { $0 + $1.steps }
        // Above this, all steps together have a mass of at most 1e-12 delta: half of exp(-reach^2 / 2) each.
        let reach = (2 * log(1e12 * total / delta)).squareRoot()
        self.reach = reach
        // exp(loss) has to be a double.
        guard mechanisms.allSatisfy({ $0.loss.logRatio(at: reach * $0.loss.deviation + 1) < 600 }) else { return nil }
        let nodes = mechanisms.map { (points: SubsampledGaussian.Nodes($0.loss, reach: reach), steps: $0.steps) }
        func cumulant(_ s: Double) -> Double { nodes.reduce(0) { $0 + $1.steps * $1.points.cumulant(s) } }

        let tilt = Self.minimizer(from: 1e-4, to: tiltLimit) { (cumulant($0) - log(delta)) / $0 }
        let center = cumulant(tilt)
        let variance = nodes.reduce(0) { $0 + $1.steps * $1.points.variance(tilt) }
        guard variance > 0, variance.isFinite, center.isFinite else { return nil }
        let deviation = variance.squareRoot()
        // Chernoff: the tilted sum is above (K(tilt + t) - K(tilt) + 34) / t with a probability of at most exp(-34).
        func upper(_ t: Double) -> Double { (cumulant(tilt + t) - center - Self.outside) / t }
        func lower(_ t: Double) -> Double { (cumulant(tilt - t) - center - Self.outside) / t }
        self.tilt = tilt
        // The best t of a normal distribution is 8 / deviation.
        tailTilt = Self.minimizer(from: 0.1 / deviation, to: 30 / deviation, upper)
        let low = -lower(Self.minimizer(from: 0.1 / deviation, to: 30 / deviation, lower))
        let width = upper(tailTilt) - low
        guard width > 0, width.isFinite else { return nil }
        self.low = low

        // Moving a loss to two points h apart adds at most h^2 / 4 to the variance of a step, tilt (tilt + 1) h^2 / 8 to its
        // cumulant, and so (tilt + 1) h^2 / 8 to epsilon.
        let rough = (center - log(delta)) / tilt
        let forTail = (8 * Self.precision * rough / (total * (tilt + 1))).squareRoot()
        // And where rare losses make that long, the many small ones have to keep their spread, h^2 / 4 of its square, or
        // together stay far below epsilon.
        let spread = (nodes.reduce(0) { $0 + $1.steps * $1.points.variance(0) } / total).squareRoot()
        let forBulk = max(0.15 * spread, Self.precision * rough / total.squareRoot())
        let wanted = width / min(forTail, forBulk)
        var count = Self.counts.lowerBound
        while count < Self.counts.upperBound, Double(count) < wanted { count *= 2 }
        self.count = count
        // What is rounded up has at most 1e-10 of the tilted sum.
        let lowest = nodes.map { ($0.points.cumulant(tilt) - log(1e10 * total)) / tilt }
        self.lowest = lowest
        var step = width / Double(count)
        for (index, mechanism) in mechanisms.enumerated() {
            let largest = max(mechanism.loss.logRatio(at: reach * mechanism.loss.deviation + 1), -lowest[index])
            step = max(step, largest / Self.pointLimit / 1e6)
            let range = GridLoss.range(of: mechanism.loss, step: step, reach: reach, lowest: lowest[index])
            step *= max(1, Double(range.count) / Self.pointLimit)
        }
        guard low.magnitude / step < 0x1p50 else { return nil }
        self.step = step
    }

    /// Where a function that falls and then rises is smallest, to 2 % (golden section over the logarithm).
    private static func minimizer(from low: Double, to high: Double, _ function: (Double) -> Double) -> Double {
        let ratio = (5.0.squareRoot() - 1) / 2
        var (a, b) = (log(low), log(high))
        var (c, d) = (b - ratio * (b - a), a + ratio * (b - a))
        var (atC, atD) = (function(exp(c)), function(exp(d)))
        while b - a > 0.02 {
            if atC < atD {
                (b, d, atD) = (d, c, atC)
                c = b - ratio * (b - a)
                atC = function(exp(c))
            } else {
                (a, c, atC) = (c, d, atD)
                d = a + ratio * (b - a)
                atD = function(exp(d))
            }
        }
        return exp((a + b) / 2)
    }

    /// Never below the true epsilon; precise if the grid lay where the answer is.
    typealias Bound = (epsilon: Double, isPrecise: Bool)

    func epsilon() -> Bound {
        let transform = FourierTransform(count: count)
        /// K(tilt) and K(tilt + tailTilt) of the grid's masses.
        var (center, tail) = (0.0, 0.0)
        var infiniteMass = 0.0
        /// Of the sum, in bit-reversed order: ln of the size and the angle of each frequency, and the relative error.
        var logSizes = [Double](repeating: 0, count: count)
        var angles = logSizes
        var errors = logSizes
        // Of one frequency of one step: the rounding of the masses (whose tilted sum is 1) and of log2(count) stages.
        let rounding = 8 * Double.ulpOfOne * log2(Double(count))
        for (mechanism, lowest) in zip(mechanisms, lowest) {
            let loss = GridLoss(mechanism.loss, step: step, reach: reach, lowest: lowest)
            let cumulant = loss.cumulant(tilt, step: step)
            center += mechanism.steps * cumulant
            tail += mechanism.steps * loss.cumulant(tilt + tailTilt, step: step)
            infiniteMass += mechanism.steps * loss.infiniteMass
            var real = [Double](repeating: 0, count: count)
            var imaginary = real
            for (offset, logMass) in loss.logMasses.enumerated() {
                let index = loss.firstIndex + offset
                // The count is a power of two: this is the index modulo the count, also of a negative one.
                real[index & (count - 1)] += exp(logMass + tilt * step * Double(index) - cumulant)
            }
            transform.forward(&real, &imaginary)
            transform.forEachFrequency { k, _ in
                let size = (real[k] * real[k] + imaginary[k] * imaginary[k]).squareRoot()
                logSizes[k] += mechanism.steps * log(size)
                guard logSizes[k] > Self.nothing else { return }
                angles[k] += mechanism.steps * atan2(imaginary[k], real[k])
                errors[k] += mechanism.steps * (rounding / size + 4 * Double.ulpOfOne)
            }
        }
        var real = [Double](repeating: 0, count: count)
        var imaginary = real
        var squaredError = 0.0
        transform.forEachFrequency { k, conjugate in
            guard logSizes[k] > Self.nothing else { return }
            let size = exp(logSizes[k])
            real[k] = size * cos(angles[k])
            imaginary[k] = size * sin(angles[k])
            let error = size * (errors[k] + rounding)
            squaredError += error * error
            guard conjugate != k else { return }
            real[conjugate] = real[k]
            imaginary[conjugate] = -imaginary[k]
            squaredError += error * error
        }
        transform.inverse(&real, &imaginary)
        // The sum of the errors' sizes after the inverse is at most the root of the sum of their squares before it.
        let allowance = squaredError.squareRoot()
        let first = Int((low / step).rounded(.down))
        let top = Double(first + count) * step
        let lost = infiniteMass + exp(tail - (tilt + tailTilt) * top)
        return search(real, first: first, center: center, allowance: allowance, lost: lost)
    }

    /// The smallest epsilon at which delta(epsilon) = sum over losses above it of mass (1 - exp(epsilon - loss)), plus all
    /// that is lost, is at most delta.
    ///
    /// - Parameters:
    ///   - masses: of the tilted sum, at index modulo count
    ///   - first: the smallest index
    ///   - center: a mass is exp(center - tilt loss) times its tilted one
    private func search(_ masses: [Double], first: Int, center: Double, allowance: Double, lost: Double) -> Bound {
        guard lost < delta else { return (.infinity, false) }
        // Every step's masses are known to about 1e-13 of each.
        let available = log(delta - lost) - 1e-12 * mechanisms.reduce(0) { $0 + $1.steps }
        // Relative to exp(center - tilt loss(index)) and over all points above the index: the masses times
        // exp(loss(index) - loss), and times 1 - exp(loss(index) - loss). Sums of positive terms only.
        var (discounted, excess) = (0.0, 0.0)
        let fade = exp(-tilt * step)
        let discount = exp(-step)
        for index in stride(from: first + count - 1, through: first, by: -1) {
            let scale = center - tilt * step * Double(index)
            guard log(excess + allowance) + scale <= available else {
                // Up to the next point, delta(epsilon) is excess - expm1(epsilon - loss(index)) discounted.
                guard discounted > 0 else { return (.infinity, false) }
                let distance = log1p((excess + allowance - exp(available - scale)) / discounted)
                return (max(0, step * Double(index) + min(max(0, distance), step)), allowance < 0.01 * excess)
            }
            if index <= 0 { return (0, true) }
            let reached = discounted + max(0, masses[index & (count - 1)])
            excess = fade * (excess - reached * expm1(-step))
            discounted = fade * discount * reached
        }
        return (max(0, Double(first) * step), false)
    }
}
