/// Optimizers, clipping, schedules and batch order, held against their definitions.

import Plan
import Primitives
import TestSupport
import Testing
import Training

@Suite struct OptimizerTests {
    func random(_ count: Int, _ purpose: String) -> [Float] {
        var generator = SeededGenerator(seed: 3, purpose: purpose)
        return (0..<count).map { _ in generator.symmetric(1) }
    }

    // Larger than one task's part, and odd.
    @Test(arguments: [1, 17, 65_536 + 333]) func adamWFollowsItsDefinition(_ count: Int) {
        var values = random(count, "values")
        var (w, m, v) = (values.map(Double.init), [Double](repeating: 0, count: count), [Double](repeating: 0, count: count))
        var optimizer = Optimizer(.adamw, tensorCounts: [count], weightDecay: 0.01)
        for step in 1...4 {
            let gradient = random(count, "gradient \(step)")
            let rate = 0.01 / Double(step)
            optimizer.step(&values, gradient: gradient, learningRate: rate)
            var (first, second) = (1.0, 1.0)
            for _ in 0..<step { (first, second) = (first * 0.9, second * 0.999) }
            for index in 0..<count {
                let g = Double(gradient[index])
                w[index] *= 1 - rate * 0.01
                m[index] = 0.9 * m[index] + 0.1 * g
                v[index] = 0.999 * v[index] + 0.001 * g * g
                w[index] -= rate * (m[index] / (1 - first)) / ((v[index] / (1 - second)).squareRoot() + 1e-8)
            }
        }
        #expect(Closeness(values.map(Double.init), w).isWithin(norm: 2e-6))
        #expect(optimizer.steps == 4)
    }

    @Test func plainGradientDescentSubtractsTheGradient() {
        var values: [Float] = [1, -2]
        var optimizer = Optimizer(.sgd, tensorCounts: [1, 1], weightDecay: 0.5)
        optimizer.step(&values, gradient: [4, 8], learningRate: 0.25)
        // 1 - (4 + 1 / 2) / 4 and -2 - (8 - 1) / 4.
        #expect(values == [-0.125, -3.75])
    }

    @Test func clippingScalesOnlyWhatIsTooLong() {
        var gradient: [Float] = [3, 4]
        #expect(clip(&gradient, limit: 10) == 5)
        #expect(gradient == [3, 4])
        #expect(clip(&gradient, limit: 0) == 5)
        #expect(gradient == [3, 4])
        #expect(clip(&gradient, limit: 1) == 5)
        #expect(abs(norm(gradient) - 1) < 1e-6)
        #expect(abs(gradient[0] / gradient[1] - 0.75) < 1e-6)
    }

    @Test func schedulesRiseAndFallOverAllSteps() {
        let constant = Schedule(.constant, peak: 2, totalSteps: 10)
        #expect((0..<10).allSatisfy { constant.rate($0) == 2 })
        let linear = Schedule(.linear, peak: 1, warmupSteps: 4, totalSteps: 12)
        #expect((0..<5).map(linear.rate) == [0.25, 0.5, 0.75, 1, 1])
        #expect(linear.rate(8) == 0.5 && linear.rate(11) == 0.125 && linear.rate(12) == 0)
        let cosine = Schedule(.cosine, peak: 1, totalSteps: 8)
        #expect(cosine.rate(0) == 1 && abs(cosine.rate(4) - 0.5) < 1e-12 && cosine.rate(7) < 0.04 && cosine.rate(7) > 0)
        #expect(zip((0..<8).map(cosine.rate), (1..<9).map(cosine.rate)).allSatisfy { $0 > $1 })
    }

    @Test func everyExampleComesOnceBeforeAnyComesAgain() {
        var order = BatchOrder(count: 5, generator: SeededGenerator(seed: 1, purpose: "batches", round: 2, client: "a"))
        let drawn = (0..<5).flatMap { _ in order.next(3) }
        for start in stride(from: 0, to: 15, by: 5) { #expect(drawn[start..<start + 5].sorted() == [0, 1, 2, 3, 4]) }
        #expect(Set([0, 5, 10].map { Array(drawn[$0..<$0 + 5]) }).count > 1)
        var again = BatchOrder(count: 5, generator: SeededGenerator(seed: 1, purpose: "batches", round: 2, client: "a"))
        #expect(again.next(15) == drawn)
        var other = BatchOrder(count: 5, generator: SeededGenerator(seed: 1, purpose: "batches", round: 2, client: "b"))
        #expect(other.next(15) != drawn)
    }
}
