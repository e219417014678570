/// Clipping bounds what a term changes, and the adaptive norm finds its quantile.

import Primitives
import Privacy
import Testing

@Suite struct ClippingTests {
    @Test func aClippedVectorHasTheSmallerOfNormAndLimit() {
        for (norm, limit) in [(0.0, 1.0), (0.5, 1), (1, 1), (2, 1), (1e-300, 1e-200), (1e200, 3)] {
            #expect(abs(clippingFactor(norm: norm, limit: limit) * norm - min(norm, limit)) <= 1e-12 * min(norm, limit))
        }
        #expect(clippingFactor(norm: 0, limit: 0.1) == 1)
        #expect(clippingFactor(norm: .infinity, limit: 1) == 0 && clippingFactor(norm: .nan, limit: 1) == 0)
    }

    @Test func leavingOutOneClippedTermChangesTheSumByAtMostTheLimit() {
        var generator = SeededGenerator(seed: 24, purpose: "sensitivity")
        let (terms, width, limit) = (12, 31, 0.7)
        let vectors = (0..<terms).map { term in
            (0..<width).map { _ in (2 * generator.unit() - 1) * Double(term) * 0.1 }
        }
        func norm(_ x: [Double]) -> Double { x.reduce(0) { $0 + $1 * $1 }.squareRoot() }
        func sum(without left: Int?) -> [Double] {
            var total = [Double](repeating: 0, count: width)
            for (term, vector) in vectors.enumerated() where term != left {
                let factor = clippingFactor(norm: norm(vector), limit: limit)
                for index in 0..<width { total[index] += factor * vector[index] }
            }
            return total
        }
        let all = sum(without: nil)
        let changes = (0..<terms).map { left in norm(zip(all, sum(without: left)).map { $0 - $1 }) }
        #expect(changes.allSatisfy { $0 <= limit * (1 + 1e-12) })
        #expect(changes.contains { $0 > limit * (1 - 1e-9) }, "no term was clipped")
        #expect(changes.contains { $0 < limit / 2 }, "every term was clipped")
    }

    @Test(arguments: [(0.5, 0.01), (0.8, 50.0), (0.2, 3.0)]) func theNormFindsItsQuantile(quantile: Double, start: Double) throws
    {
        var stream = NoiseStream(key: .unsafeSeeded(7, name: "adaptive \(quantile)"))
        var clipping = try AdaptiveClipping(norm: start, quantile: quantile)
        let terms = 200
        var late: [Double] = []
        for round in 0..<400 {
            // Norms are uniform between 1 and 3, so that the quantile is at 1 + 2 gamma.
            let within = (0..<terms).count { _ in 1 + 2 * stream.uniform() <= clipping.norm }
            clipping.update(
                noisyFraction: AdaptiveClipping.fraction(
                    within: within, of: terms, expected: Double(terms), noise: Double(terms) / 20 * stream.gaussian()))
            if round >= 200 { late.append(clipping.norm) }
        }
        #expect(abs(late.reduce(0, +) / Double(late.count) - (1 + 2 * quantile)) < 0.06)
    }

    @Test func theUpdateIsThePapers() throws {
        var clipping = try AdaptiveClipping(norm: 2, quantile: 0.5, rate: 0.2)
        clipping.update(noisyFraction: 1)
        #expect(abs(clipping.norm - 2 * 0.904837418035959573) < 1e-12)
        #expect(AdaptiveClipping.fraction(within: 30, of: 40, expected: 40, noise: 0) == 0.75)
        // Nobody came: nothing but noise, around one half.
        #expect(AdaptiveClipping.fraction(within: 0, of: 0, expected: 40, noise: 0) == 0.5)
    }

    @Test func sumAndCountTogetherCostOneRelease() throws {
        let z = try AdaptiveClipping.sumNoiseMultiplier(noiseMultiplier: 1, countDeviation: 5)
        #expect(abs(z - 1.005037815259212) < 1e-12)
        #expect(abs(1 / (z * z) + 1 / 100 - 1) < 1e-12)
        for deviation in [0.5, 0.4, 0, -1, .nan] {
            #expect(throws: Failure.self) {
                try AdaptiveClipping.sumNoiseMultiplier(noiseMultiplier: 1, countDeviation: deviation)
            }
        }
        #expect(throws: Failure.self) { try AdaptiveClipping(norm: 0) }
        #expect(throws: Failure.self) { try AdaptiveClipping(norm: 1, quantile: 1.1) }
        #expect(throws: Failure.self) { try AdaptiveClipping(norm: 1, rate: 0) }
    }
}
