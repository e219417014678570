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

@Suite struct NoiseMultiplierTests {
    @Test(arguments: [(0.01, 1000, 3.0, 1e-6), (1, 1, 0.1, 1e-5), (0.001, 10000, 8, 1e-9), (0.2, 50, 50, 1e-5)])
    func theSmallestNoiseThatMeetsATargetIsFound(samplingRate: Double, steps: Int, epsilon: Double, delta: Double) throws {
        let found = try PrivacyAccountant.noiseMultiplier(
            samplingRate: samplingRate, steps: steps, epsilon: epsilon, delta: delta)
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
