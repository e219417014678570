/// Renyi differential privacy of the Poisson-subsampled Gaussian mechanism, at integer and fractional orders
/// (Mironov, Talwar, Zhang 2019, "Renyi differential privacy of the sampled Gaussian mechanism", arXiv:1908.10530).

import Glibc

enum RenyiAccounting {
    /// 1.1, 1.2, ..., 10.9, 11, 12, ..., 63, 128, 256, 512, 1024: those of Google's dp-accounting.
    static let defaultOrders: [Double] =
        (1..<100).map { 1 + Double($0) / 10 } + (11..<64).map(Double.init) + [128, 256, 512, 1024]

    /// The smallest epsilon over the orders of the composition of all charges; .infinity if there is none.
    static func epsilon(of charges: [PrivacyCharge], delta: Double, orders: [Double]) -> Double {
        var smallest = Double.infinity
        for order in orders {
            var divergence = 0.0
            for charge in charges {
                divergence +=
                    Double(charge.steps)
                    * self.divergence(samplingRate: charge.samplingRate, noiseMultiplier: charge.noiseMultiplier, order: order)
            }
            smallest = min(smallest, epsilon(divergence: divergence, order: order, delta: delta))
        }
        return max(0, smallest)
    }

    /// (epsilon, delta) from the Renyi divergence at one order: Canonne, Kamath, Steinke 2020 (arXiv:2004.00010,
    /// proposition 12).
    private static func epsilon(divergence: Double, order: Double, delta: Double) -> Double {
        guard divergence.isFinite else { return .infinity }
        // The total variation distance is at most sqrt(1 - exp(-KL)) (Bretagnolle and Huber 1979), and KL at most this.
        if delta * delta + expm1(-divergence) > 0 { return 0 }
        // So close to 1 the formula is not stable, and gives nothing.
        guard order > 1.01 else { return .infinity }
        return divergence + log1p(-1 / order) - log(delta * order) / (order - 1)
    }

    /// The Renyi divergence of one step; both directions of adjacency obey it (theorem 5 of the paper).
    ///
    /// - Parameter order: alpha, above 1
    static func divergence(samplingRate q: Double, noiseMultiplier sigma: Double, order: Double) -> Double {
        if q == 1 { return order / (2 * sigma * sigma) }
        return logMoment(q, sigma, order) / (order - 1)
    }

    private static func logMoment(_ q: Double, _ sigma: Double, _ alpha: Double) -> Double {
        if alpha == alpha.rounded(), alpha < 1e9 { return integerMoment(q, sigma, Int(alpha)) }
        let series = fractionalMoment(q, sigma, alpha)
        // The series is 1 and what matters, with rounding of about 1e-14. Where that is much, a bound that does not round:
        // the logarithm of the moment is convex in the order.
        guard series < 1e-10 else { return series + 1e-14 }
        let below = alpha.rounded(.down)
        let share = alpha - below
        return (1 - share) * integerMoment(q, sigma, Int(below)) + share * integerMoment(q, sigma, Int(below) + 1)
    }

    /// ln of the sum over k of binomial(alpha, k) (1 - q)^(alpha - k) q^k exp((k^2 - k) / (2 sigma^2)) (section 3.3,
    /// equation 5 and the line above it).
    ///
    /// The same sum without the exponentials is 1, so that they stand for exp(...) - 1 here and the 1 is added last: however
    /// little a step costs, it is not lost in rounding. Terms 0 and 1 vanish.
    private static func integerMoment(_ q: Double, _ sigma: Double, _ alpha: Int) -> Double {
        guard alpha >= 2 else { return 0 }
        var sum = LogSum()
        let rate = log(q)
        let rest = log1p(-q)
        var binomial = log(Double(alpha))
        for k in 2...alpha {
            binomial += log(Double(alpha - k + 1) / Double(k))
            let exponent = Double(k) * Double(k - 1) / (2 * sigma * sigma)
            let growth = exponent + log(-expm1(-exponent))
            sum.add(logarithm: binomial + Double(k) * rate + Double(alpha - k) * rest + growth)
        }
        let excess = sum.logarithm
        return excess > 30 ? excess : log1p(exp(excess))
    }

    /// An order whose series needs more terms is left out, as in dp-accounting: those are small orders at large rates, which
    /// rarely give the best epsilon, and the time is bounded.
    private static let termLimit = 1000

    /// The same integral at a fractional order: split at z0, where both parts of the mixture are equally likely, each half
    /// is a binomial series (section 3.3, theorem 11).
    ///
    /// Beyond alpha the terms alternate in sign and fall in size. As dp-accounting 0.6 does, we take them all
    /// as positive: a bound on the sum that no cancellation can spoil. What is left out is less than the last terms taken.
    private static func fractionalMoment(_ q: Double, _ sigma: Double, _ alpha: Double) -> Double {
        let rate = log(q)
        let rest = log1p(-q)
        let z0 = sigma * sigma * (rest - rate) + 0.5
        let scale = 1 / (2.0.squareRoot() * sigma)
        let halving = log(0.5)
        var sum = LogSum()
        var binomial = 0.0
        for index in 0..<termLimit {
            let i = Double(index)
            let j = alpha - i
            let belowMoment = (i * i - i) / (2 * sigma * sigma) + halving + logErfc((i - z0) * scale)
            let aboveMoment = (j * j - j) / (2 * sigma * sigma) + halving + logErfc((z0 - j) * scale)
            let below = binomial + j * rest + i * rate + belowMoment
            let above = binomial + i * rest + j * rate + aboveMoment
            sum.add(logarithm: below)
            sum.add(logarithm: above)
            if i > alpha, max(below, above) < sum.logarithm - 30 { return sum.logarithm }
            binomial += log(abs(j / (i + 1)))
        }
        return .infinity
    }

    /// ln erfc(x), also where erfc(x) is too small for a double: the asymptotic series (Abramowitz and Stegun 7.1.23).
    static func logErfc(_ x: Double) -> Double {
        guard x > 20 else { return log(erfc(x)) }
        let s = 1 / (2 * x * x)
        return -x * x - log(x * Double.pi.squareRoot()) + log1p(s * (-1 + s * (3 + s * (-15 + s * 105))))
    }
}

/// A sum of positive terms given by their logarithms, relative to the largest so far.
///
/// A term that is out of range, as with hardly any noise, makes the sum infinite: a bound must not lose it.
struct LogSum {
    private var largest = -Double.infinity
    private var sum = 0.0

    mutating func add(logarithm: Double) {
        guard logarithm != -.infinity else { return }
        if logarithm > largest {
            sum *= exp(largest - logarithm)
            largest = logarithm
        }
        sum += exp(logarithm - largest)
    }

    /// ln of the sum; -infinity for an empty one.
    var logarithm: Double { sum > 0 ? largest + log(sum) : sum.isNaN ? .infinity : -.infinity }
}
