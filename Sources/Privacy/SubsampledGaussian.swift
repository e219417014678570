/// The privacy loss of one step of the Poisson-subsampled Gaussian mechanism, continuous and on a grid.

import Glibc

/// One direction of adjacency. With the record in the data the release is P = (1 - q) N(0, sigma^2) + q N(1, sigma^2),
/// without it Q = N(0, sigma^2), at worst (Zhu, Dong, Wang 2022, arXiv:2106.08567, for why this pair dominates). The loss
/// is ln(P / Q) under P where the record is removed, and ln(Q / P) under Q where it is added.
struct SubsampledGaussian {
    enum Direction: CaseIterable {
        case remove
        case add
    }

    /// q and sigma.
    let rate: Double
    let deviation: Double
    let direction: Direction

    /// ln(P / Q) at x: ln(1 - q + q e), with e = exp((2 x - 1) / (2 sigma^2)); it grows with x.
    func logRatio(at x: Double) -> Double {
        let exponent = (2 * x - 1) / (2 * deviation * deviation)
        if rate == 1 { return exponent }
        return exponent < 30
            ? log1p(rate * expm1(exponent)) : exponent + log(rate + (1 - rate) * exp(-exponent))
    }

    /// Where ln(P / Q) has a value; -infinity at and below its infimum ln(1 - q).
    func position(atLogRatio logRatio: Double) -> Double {
        let exponent: Double
        if rate == 1 {
            exponent = logRatio
        } else if logRatio < 30 {
            let excess = expm1(logRatio) / rate
            guard excess > -1 else { return -.infinity }
            exponent = log1p(excess)
        } else {
            exponent = logRatio - log(rate) + log1p(-(1 - rate) * exp(-logRatio))
        }
        return deviation * deviation * exponent + 0.5
    }
}

extension SubsampledGaussian {
    /// The loss at points of a fine grid of releases, for planning: not a bound.
    struct Nodes {
        private(set) var losses: [Double] = []
        /// ln of the probability that each point stands for.
        private(set) var logWeights: [Double] = []

        /// - Parameter reach: how many standard deviations beyond both means are looked at
        init(_ mechanism: SubsampledGaussian, reach: Double) {
            let sigma = mechanism.deviation
            let low = -reach * sigma
            let high = reach * sigma + 1
            // A hundredth of sigma: trapezoids are exact to rounding for a Gaussian, also for narrow tilted ones.
            let count = Int((high - low) / sigma * 100)
            let step = (high - low) / Double(count)
            let normalizer = log(step / sigma) - 0.5 * log(2 * Double.pi)
            for index in 0...count {
                let x = low + Double(index) * step
                let logRatio = mechanism.logRatio(at: x)
                let logDensity = -x * x / (2 * sigma * sigma) + normalizer
                losses.append(mechanism.direction == .remove ? logRatio : -logRatio)
                logWeights.append(mechanism.direction == .remove ? logDensity + logRatio : logDensity)
            }
        }

        /// ln E exp(s loss).
        func cumulant(_ s: Double) -> Double {
            var largest = -Double.infinity
            for index in losses.indices { largest = max(largest, logWeights[index] + s * losses[index]) }
            var sum = 0.0
            for index in losses.indices { sum += exp(logWeights[index] + s * losses[index] - largest) }
            return largest + log(sum)
        }

        /// The variance of the loss under the distribution tilted by exp(s loss).
        func variance(_ s: Double) -> Double {
            let cumulant = cumulant(s)
            var (mean, square) = (0.0, 0.0)
            let weights = losses.indices.map { exp(logWeights[$0] + s * losses[$0] - cumulant) }
            for index in losses.indices { mean += weights[index] * losses[index] }
            for index in losses.indices {
                let difference = losses[index] - mean
                square += weights[index] * difference * difference
            }
            return square
        }
    }
}

/// A loss on the multiples of a step that dominates the continuous one.
///
/// Between two neighbouring points, the probabilities under both hypotheses are moved to the two points such that both are
/// kept: the privacy curve is then exact at the points and linear in exp(epsilon) between them, never below the true one
/// (Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022, "Connect the dots", arXiv:2207.04380). A curve that dominates still
/// does after composition (Zhu, Dong, Wang 2022).
struct GridLoss {
    /// The loss of `logMasses[0]`, in steps.
    let firstIndex: Int
    /// ln of the mass at each point; -infinity for none.
    let logMasses: [Double]
    /// The mass of what lies above the last point: counted as an infinite loss.
    let infiniteMass: Double

    /// The indices of the points that `init` fills.
    static func range(of mechanism: SubsampledGaussian, step: Double, reach: Double, lowest: Double) -> ClosedRange<Int> {
        let far = mechanism.logRatio(at: reach * mechanism.deviation + 1)
        let low: Double
        let high: Double
        switch mechanism.direction {
        case .remove:
            low = mechanism.rate < 1 ? log1p(-mechanism.rate) : mechanism.logRatio(at: -reach * mechanism.deviation)
            high = far
        case .add:
            low = -far
            high = -mechanism.logRatio(at: -reach * mechanism.deviation)
        }
        let last = Int((high / step).rounded(.up))
        let first = Int((max(low, min(lowest, high)) / step).rounded(.down))
        return min(first, last - 1)...last
    }

    /// - Parameters:
    ///   - step: the distance of two points, in nats
    ///   - reach: as for `Nodes`: what lies further up counts as infinite
    ///   - lowest: smaller losses are rounded up to the first point at or below this
    init(_ mechanism: SubsampledGaussian, step: Double, reach: Double, lowest: Double) {
        let range = Self.range(of: mechanism, step: step, reach: reach, lowest: lowest)
        firstIndex = range.lowerBound
        let (q, sigma) = (mechanism.rate, mechanism.deviation)
        var masses = [Double](repeating: 0, count: range.count)
        let removes = mechanism.direction == .remove
        /// Where the grid's point lies among the releases.
        func edge(_ index: Int) -> Edge {
            let loss = Double(index) * step
            return Edge(mechanism.position(atLogRatio: removes ? loss : -loss), deviation: sigma)
        }
        func own(_ masses: (without: Double, with: Double)) -> Double {
            removes ? (1 - q) * masses.without + q * masses.with : masses.without
        }
        let share = -1 / expm1(-step)
        var lower = edge(range.lowerBound)
        // What lies below the first point goes up to it.
        masses[0] = own(removes ? lower.massesBelow : lower.massesAbove)
        for index in range.lowerBound..<range.upperBound {
            let upper = edge(index + 1)
            let (without, with) = removes ? Edge.masses(lower, upper) : Edge.masses(upper, lower)
            lower = upper
            // The upper point's part is (U - V exp(loss)) / (1 - exp(-step)) for the masses U of the loss's own hypothesis
            // and V of the other, loss being the lower point's; what U and V have in common is left out before subtracting.
            let loss = Double(index) * step
            let all = own((without, with))
            let odds = 1 + expm1(removes ? loss : -loss) / q
            let above = removes ? q * (with - without * odds) * share : exp(loss) * q * (without * odds - with) * share
            let taken = min(max(above, 0), all)
            masses[index - firstIndex] += all - taken
            masses[index + 1 - firstIndex] += taken
        }
        infiniteMass = own(removes ? lower.massesAbove : lower.massesBelow)
        logMasses = masses.map { log($0) }
    }

    /// ln of the sum of mass exp(s loss).
    func cumulant(_ s: Double, step: Double) -> Double {
        var largest = -Double.infinity
        let slope = s * step
        for (offset, logMass) in logMasses.enumerated() { largest = max(largest, logMass + slope * Double(firstIndex + offset)) }
        var sum = 0.0
        for (offset, logMass) in logMasses.enumerated() {
            sum += exp(logMass + slope * Double(firstIndex + offset) - largest)
        }
        return largest + log(sum)
    }
}

/// A point among the releases, with the tails of both normal distributions.
private struct Edge {
    /// Distances from both means in standard deviations, and the mass beyond each on its own side of the mean.
    private let without: (z: Double, tail: Double)
    private let with: (z: Double, tail: Double)

    init(_ x: Double, deviation: Double) {
        func tail(_ z: Double) -> (z: Double, tail: Double) { (z, erfc(z.magnitude * 0.5.squareRoot()) / 2) }
        without = tail(x / deviation)
        with = tail((x - 1) / deviation)
    }

    /// The masses of N(0, sigma^2) and N(1, sigma^2) below and above the point.
    var massesBelow: (without: Double, with: Double) { (Self.below(without), Self.below(with)) }
    var massesAbove: (without: Double, with: Double) { (Self.above(without), Self.above(with)) }

    private static func below(_ point: (z: Double, tail: Double)) -> Double { point.z < 0 ? point.tail : 1 - point.tail }

    private static func above(_ point: (z: Double, tail: Double)) -> Double { point.z < 0 ? 1 - point.tail : point.tail }

    /// The masses between two points.
    static func masses(_ low: Edge, _ high: Edge) -> (without: Double, with: Double) {
        (mass(low.without, high.without), mass(low.with, high.with))
    }

    /// Without cancellation in the tails.
    private static func mass(_ low: (z: Double, tail: Double), _ high: (z: Double, tail: Double)) -> Double {
        if low.z >= 0 { return low.tail - high.tail }
        return high.z < 0 ? high.tail - low.tail : 1 - low.tail - high.tail
    }
}
