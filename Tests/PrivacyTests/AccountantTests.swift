/// Epsilon against Google's dp-accounting and the oracles of the project's notes.

import FoundationEssentials
import Glibc
import Primitives
import Privacy
import TestSupport
import Testing

@Suite struct AccountantTests {
    struct Row: Decodable {
        let q, sigma, delta, rdp: Double
        let steps: Int
        let pld, pld_lower: Double?

        var charge: PrivacyCharge { PrivacyCharge(samplingRate: q, noiseMultiplier: sigma, steps: steps) }
        var name: String { "q \(q) sigma \(sigma) steps \(steps) delta \(delta)" }
    }

    static func rows() throws -> [Row] {
        try JSONDecoder().decode([Row].self, from: Data(contentsOf: URL(filePath: Golden.path("privacy/epsilon.json"))))
    }

    @Test func renyiAccountingMeetsDPAccounting() throws {
        var worst = (0.0, "")
        for row in try Self.rows() {
            let epsilon = PrivacyAccountant.renyiEpsilon(of: [row.charge], delta: row.delta)
            #expect(abs(epsilon - row.rdp) < 1e-4, "\(row.name): \(epsilon), not \(row.rdp)")
            if abs(epsilon - row.rdp) > worst.0 { worst = (abs(epsilon - row.rdp), row.name) }
        }
        if getenv("TRIBUTARY_MEASURE") != nil { print("renyi: worst difference \(worst)") }
    }

    /// Noise so small that its square is no number any more gives nothing, and not everything.
    @Test(arguments: [1e-150, 1e-160, 1e-200, 1e-300]) func hardlyAnyNoiseProtectsNobody(noise: Double) {
        for rate in [1e-6, 0.1, 1] {
            let charge = PrivacyCharge(samplingRate: rate, noiseMultiplier: noise, steps: 10)
            #expect(PrivacyAccountant.renyiEpsilon(of: [charge], delta: 1e-5) > 1e100)
            #expect(PrivacyAccountant.epsilon(of: [charge], delta: 1e-5) > 1e100)
        }
    }

    @Test func lossDistributionsLieBetweenTheBoundsOfDPAccounting() throws {
        var worst = (0.0, "")
        var slowest = (Duration.zero, "")
        for row in try Self.rows() {
            guard let upper = row.pld, let lower = row.pld_lower else { continue }
            var epsilon = 0.0
            let time = ContinuousClock().measure {
                epsilon = PrivacyAccountant.lossDistributionEpsilon(of: [row.charge], delta: row.delta)
            }
            #expect(epsilon >= lower, "\(row.name): \(epsilon), below \(lower)")
            #expect(abs(epsilon - upper) <= max(0.01 * upper, 0.002), "\(row.name): \(epsilon), not \(upper)")
            if epsilon / upper > worst.0 { worst = (epsilon / upper, row.name) }
            if time > slowest.0 { slowest = (time, row.name) }
            if getenv("TRIBUTARY_MEASURE") != nil { print("row \(row.name): \(epsilon) of \(lower) ... \(upper), \(time)") }
        }
        if getenv("TRIBUTARY_MEASURE") != nil { print("losses: worst ratio \(worst), slowest \(slowest)") }
    }

    @Test func integerOrdersMeetTheOracles() {
        let oracles: [(q: Double, sigma: Double, steps: Int, epsilon: Double)] = [
            (0.01, 1, 1000, 2.107753), (256.0 / 60000, 1.3, 3510, 0.953757), (0.02, 2, 500, 1.015258), (1, 10, 50, 3.190352),
            (1, 1, 1, 4.752728),
        ]
        for oracle in oracles {
            let charge = PrivacyCharge(samplingRate: oracle.q, noiseMultiplier: oracle.sigma, steps: oracle.steps)
            let epsilon = PrivacyAccountant.renyiEpsilon(of: [charge], delta: 1e-5, orders: (2...512).map(Double.init))
            #expect(abs(epsilon - oracle.epsilon) < 1e-6, "\(epsilon), not \(oracle.epsilon)")
        }
    }
}

@Suite struct LossDistributionTests {
    private func epsilon(_ q: Double, _ sigma: Double, _ steps: Int, _ delta: Double) -> Double {
        PrivacyAccountant.lossDistributionEpsilon(
            of: [PrivacyCharge(samplingRate: q, noiseMultiplier: sigma, steps: steps)], delta: delta)
    }

    private func tail(_ z: Double) -> Double { erfc(z / 2.0.squareRoot()) / 2 }

    /// Balle and Wang 2018, theorem 8: a composition of Gaussian mechanisms is one with sensitivity sqrt(steps) / sigma.
    private func gaussianDelta(_ epsilon: Double, _ sensitivity: Double) -> Double {
        tail(epsilon / sensitivity - sensitivity / 2) - exp(epsilon) * tail(epsilon / sensitivity + sensitivity / 2)
    }

    @Test(arguments: [(1.0, 1), (0.3, 1), (8, 100), (30, 1000), (1000, 1_000_000), (1e5, 100)])
    func withoutSubsamplingItIsTheAnalyticGaussianMechanism(sigma: Double, steps: Int) {
        for delta in [1e-2, 1e-5, 1e-10, 1e-20, 1e-40] {
            let found = epsilon(1, sigma, steps, delta)
            let sensitivity = Double(steps).squareRoot() / sigma
            if found == 0 {
                #expect(gaussianDelta(0, sensitivity) <= delta)
            } else {
                #expect(gaussianDelta(found, sensitivity) <= delta, "sigma \(sigma), \(steps) steps, delta \(delta): \(found)")
                #expect(
                    gaussianDelta(found * 0.997 - 1e-6, sensitivity) > delta,
                    "sigma \(sigma), \(steps) steps, delta \(delta): \(found)")
            }
        }
    }

    @Test(arguments: [(0.3, 0.7), (0.02, 2.0), (0.9, 5), (0.001, 0.4)])
    func ofOneStepItIsTheLargerOfBothDirections(q: Double, sigma: Double) {
        /// Where ln((1 - q) + q exp((2 x - 1) / (2 sigma^2))) is the loss; nil below its range.
        func position(_ loss: Double) -> Double? {
            let odds = 1 + expm1(loss) / q
            return odds > 0 ? sigma * sigma * log(odds) + 0.5 : nil
        }
        func exact(_ epsilon: Double) -> Double {
            let x = position(epsilon)!
            let above = (without: tail(x / sigma), with: tail((x - 1) / sigma))
            let remove = (1 - q) * above.without + q * above.with - exp(epsilon) * above.without
            guard let y = position(-epsilon) else { return remove }
            let below = (without: tail(-y / sigma), with: tail((1 - y) / sigma))
            return max(remove, below.without - exp(epsilon) * ((1 - q) * below.without + q * below.with))
        }
        for delta in [1e-3, 1e-5, 1e-8, 1e-12] {
            let found = epsilon(q, sigma, 1, delta)
            #expect(exact(found) <= delta * (1 + 1e-9), "delta \(delta): \(found)")
            if found > 0 { #expect(exact(max(0, found * 0.999 - 2e-5)) > delta, "delta \(delta): \(found)") }
        }
    }

    @Test func differentChargesCompose() {
        // Rows of (rate, noise, steps), delta, and dp-accounting 0.6's optimistic and pessimistic epsilon.
        let mixtures: [(parts: [(Double, Double, Int)], delta: Double, low: Double, high: Double)] = [
            (
                [
                    (0.3890228317967176, 5.95217238015817, 6), (0.012592135121257212, 1.0810825275712401, 206),
                    (0.03960747825786994, 7.774578408347156, 9),
                ],
                7.801294850679618e-08, 1.576435363538364, 1.587486541739688
            ),
            (
                [
                    (0.27197797774724364, 15.09720217017979, 361), (0.2619604660214371, 8.824012622032575, 165),
                    (0.004788709258382259, 3.3472967353176544, 11),
                ],
                1.3059321178496389e-08, 2.758654507209125, 2.7855072297298054
            ),
            (
                [
                    (0.0012128615442729362, 1.5530518478377109, 5), (0.11955447181380273, 13.775935695524637, 21),
                    (0.6472373988140343, 15.249418439040245, 732),
                ],
                2.8743757580118144e-07, 5.997101540226298, 6.035003558319131
            ),
            (
                [
                    (0.0045855028635404665, 1.3109440520046796, 3), (0.00410317547098674, 4.717294134825055, 502),
                    (0.33212883477979166, 2.959802936806229, 90),
                ],
                1.5797013140139572e-05, 4.878876571544926, 4.908627900254826
            ),
            (
                [
                    (0.001796120457164663, 5.306643470129317, 536), (0.22228422980187687, 7.082664070271426, 27),
                    (0.0034321412662018697, 8.03136943404615, 9),
                ],
                1.5969608727404216e-05, 0.5572553885682, 0.5858607766060172
            ),
        ]
        for mixture in mixtures {
            let charges = mixture.parts.map { PrivacyCharge(samplingRate: $0.0, noiseMultiplier: $0.1, steps: $0.2) }
            let found = PrivacyAccountant.lossDistributionEpsilon(of: charges, delta: mixture.delta)
            #expect(found >= mixture.low && found <= 1.005 * mixture.high, "\(mixture): \(found)")
            // Order and division into charges do not change a bit.
            var parts: [PrivacyCharge] = []
            for var charge in charges.reversed() {
                charge.steps -= 1
                parts.append(charge)
                charge.steps = 1
                parts.append(charge)
            }
            #expect(PrivacyAccountant.lossDistributionEpsilon(of: parts, delta: mixture.delta) == found)
        }
    }

    @Test func moreStepsCostMoreAndMoreDeltaCostsLess() {
        let bySteps = [1, 2, 5, 30, 200, 2000, 50_000].map { epsilon(0.01, 1, $0, 1e-6) }
        #expect(zip(bySteps, bySteps.dropFirst()).allSatisfy { $0 < $1 })
        let byDelta = [1e-15, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2].map { epsilon(0.01, 1, 1000, $0) }
        #expect(zip(byDelta, byDelta.dropFirst()).allSatisfy { $0 > $1 })
    }

    @Test func whatHardlyCostsAnythingIsNotRoundedToNothing() {
        // A step costs 1e-16, as much as a double can lose; all of them are nearly a Gaussian mechanism.
        let charge = PrivacyCharge(samplingRate: 0.01, noiseMultiplier: 1e6, steps: 100_000_000)
        let sensitivity = 0.01 * 1e8.squareRoot() / 1e6
        let delta = 1e-8
        for found in [
            PrivacyAccountant.renyiEpsilon(of: [charge], delta: delta),
            PrivacyAccountant.lossDistributionEpsilon(of: [charge], delta: delta),
            PrivacyAccountant.renyiEpsilon(of: [charge], delta: delta, orders: [1.5, 2.5, 900.5, 1500.3, 30000]),
        ] {
            #expect(gaussianDelta(found, sensitivity) <= delta * 1.001, "\(found)")
        }
    }

    @Test func theEndsAreAnswered() {
        for (q, sigma, steps, delta) in [
            (1, 0.01, 1, 1e-5), (0.5, 0.02, 10, 1e-5), (0.1, 0.5, 10_000_000, 1e-6),
            (1e-9, 0.6, 10, 1e-12),
            (0.999_999_999, 1, 10, 1e-6), (0.01, 1e6, 1_000_000, 1e-6), (0.01, 1, 10, 0.9), (0.01, 1, 10, 1e-150),
            (0.5, 1, 3, 1e-300),
        ] {
            let charge = PrivacyCharge(samplingRate: q, noiseMultiplier: sigma, steps: steps)
            let found = PrivacyAccountant.epsilon(of: [charge], delta: delta)
            #expect(found >= 0 && found.isFinite, "\(charge): \(found)")
            let renyi = PrivacyAccountant.renyiEpsilon(of: [charge], delta: delta)
            #expect(found <= renyi)
        }
        #expect(PrivacyAccountant.epsilon(of: [], delta: 1e-5) == 0)
        #expect(PrivacyAccountant.epsilon(of: [PrivacyCharge(samplingRate: 1, noiseMultiplier: 1, steps: 0)], delta: 1e-5) == 0)
        for delta in [0, 1, -1, .nan] { #expect(epsilon(0.1, 1, 1, delta) == .infinity) }
    }
}

@Suite struct NoiseMultiplierTests {
    @Test(arguments: [(0.01, 1000, 3.0, 1e-6), (1, 1, 0.1, 1e-5), (0.001, 10000, 8, 1e-9), (0.2, 50, 50, 1e-5)])
    func theSmallestNoiseThatMeetsATargetIsFound(samplingRate: Double, steps: Int, epsilon: Double, delta: Double) throws {
        var found = 0.0
        let time = try ContinuousClock().measure {
            found = try PrivacyAccountant.noiseMultiplier(
                samplingRate: samplingRate, steps: steps, epsilon: epsilon, delta: delta)
        }
        if getenv("TRIBUTARY_MEASURE") != nil { print("MEASURE noise multiplier \(found) after \(time)") }
        var charge = PrivacyCharge(samplingRate: samplingRate, noiseMultiplier: found, steps: steps)
        #expect(PrivacyAccountant.epsilon(of: [charge], delta: delta) <= epsilon)
        charge.noiseMultiplier *= 0.999
        #expect(PrivacyAccountant.epsilon(of: [charge], delta: delta) > epsilon)
    }

    @Test func moreEpsilonNeedsLessNoise() throws {
        let multipliers = try [0.5, 1, 2, 4, 8].map {
            try PrivacyAccountant.noiseMultiplier(samplingRate: 0.02, steps: 300, epsilon: $0, delta: 1e-5)
        }
        #expect(zip(multipliers, multipliers.dropFirst()).allSatisfy { $0 > $1 })
    }

    @Test func whatIsSpentAlreadyNeedsMoreNoise() throws {
        let spent = PrivacyCharge(samplingRate: 0.02, noiseMultiplier: 1, steps: 100)
        let alone = try PrivacyAccountant.noiseMultiplier(samplingRate: 0.02, steps: 100, epsilon: 3, delta: 1e-5)
        let beside = try PrivacyAccountant.noiseMultiplier(
            samplingRate: 0.02, steps: 100, epsilon: 3, delta: 1e-5, beside: [spent])
        #expect(beside > alone)
        #expect(throws: Failure.self) {
            try PrivacyAccountant.noiseMultiplier(samplingRate: 0.02, steps: 100, epsilon: 0.5, delta: 1e-5, beside: [spent])
        }
    }

    @Test(arguments: [
        (0.0, 1, 1.0, 1e-5), (1.5, 1, 1, 1e-5), (0.1, 0, 1, 1e-5), (0.1, 1, 0, 1e-5), (0.1, 1, -1, 1e-5),
        (0.1, 1, .infinity, 1e-5),
        (0.1, 1, 1, 0), (0.1, 1, 1, 1), (.nan, 1, 1, 1e-5), (0.1, 1, .nan, 1e-5), (0.1, 1, 1, .nan),
        (1, 1_000_000_000_000, 1e-9, 1e-12),
    ])
    func impossibleTargetsAreRefused(samplingRate: Double, steps: Int, epsilon: Double, delta: Double) {
        #expect {
            try PrivacyAccountant.noiseMultiplier(samplingRate: samplingRate, steps: steps, epsilon: epsilon, delta: delta)
        } throws: { ($0 as? Failure)?.status == .usage }
    }
}
