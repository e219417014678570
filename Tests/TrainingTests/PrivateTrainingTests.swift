/// Private steps: what they draw, how much one example can change them, and what must not change them.

import Adapters
import Checkpoints
import Datasets
import LinearAlgebra
import Model
import Plan
import Primitives
import Privacy
import TestSupport
import Testing
import Training

private let key = NoiseKey.unsafeSeeded(7, name: "tests")

/// The golden model's examples, and more of other lengths.
private func examples(_ golden: GoldenCase) -> [Example] {
    var generator = SeededGenerator(seed: 8, purpose: "examples")
    let vocabulary = golden.checkpoint.configuration.vocabularySize
    return golden.examples
        + [3, 20, 2].map { length in
            Example(
                tokens: (0..<length).map { _ in Int32(generator.integer(below: vocabulary)) },
                targets: (0..<length).map { $0 > 0 }, prompt: [], completion: nil, line: 0)
        }
}

private func distance(_ a: [Double], _ b: [Double]) -> Double {
    zip(a, b).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }.squareRoot()
}

/// Each example's gradient, from runs of it alone.
private func gradients(_ model: AdaptedModel, _ examples: [Example]) throws -> [[Double]] {
    try examples.map { example in
        var gradient = [Float](repeating: 0, count: model.weights.trained.values.count)
        _ = try model.lossAndGradient(
            TokenBatch([example]), gradientScale: 1 / Float(max(1, example.targetCount)), gradient: &gradient)
        return gradient.map(Double.init)
    }
}

private func length(_ values: [Double]) -> Double { distance(values, [Double](repeating: 0, count: values.count)) }

@Suite struct PrivateTrainingTests {
    private func settings(_ change: (inout TrainingSettings) -> Void = { _ in }) -> TrainingSettings {
        var settings = TrainingSettings()
        settings.optimizer = .sgd
        settings.learningRate = 0.5
        change(&settings)
        return settings
    }

    /// Trains the golden model; a new one each time.
    private func train(
        _ privacy: PrivateTraining, steps: Range<Int> = 0..<1, settings: TrainingSettings? = nil, generatorSeed: UInt64 = 0
    ) throws -> (before: [Float], TrainingOutcome) {
        let golden = try GoldenCase("llama-gqa")
        let before = golden.model.weights.trained.values
        return (
            before,
            try LocalTrainer.train(
                model: golden.model, examples: examples(golden), settings: settings ?? self.settings(), stepRange: steps,
                totalSteps: 10, generator: SeededGenerator(seed: generatorSeed, purpose: "batches"), privacy: privacy)
        )
    }

    @Test func `an example with or without changes the sum by its clipped gradient, at most the clip`() throws {
        let golden = try GoldenCase("llama-gqa")
        let nothing = Example(tokens: [1, 2, 3], targets: [false, false, false], prompt: [], completion: nil, line: 0)
        let all = examples(golden) + [nothing]
        let own = try gradients(golden.model, all)
        let norms = own.map(length)
        #expect(norms.last == 0 && norms.dropLast().allSatisfy { $0 > 0 })
        let middle = norms.dropLast().sorted()[norms.count / 2 - 1]
        for limit in [middle / 1000, middle, 1000 * middle] {
            let sum = ClippedSum(clip: limit, parameterCount: own[0].count, batchSize: all.count)
            let losses = try sum.form(all, model: golden.model)
            #expect(losses.count == all.count && losses.last == 0)
            let whole = sum.values
            for left in all.indices {
                var others = all
                others.remove(at: left)
                _ = try sum.form(others, model: golden.model)
                let change = zip(whole, sum.values).map { $0 - $1 }
                let expected = own[left].map { $0 * clippingFactor(norm: norms[left], limit: limit) }
                #expect(length(change) <= limit * (1 + 1e-5))
                #expect(distance(change, expected) <= 1e-5 * min(limit, norms.max()!))
            }
        }
    }

    @Test func `the sum does not depend on how the examples are spread over passes`() throws {
        let golden = try GoldenCase("llama-gqa")
        let all = examples(golden)
        let count = golden.model.weights.trained.values.count
        var sums: [[Double]] = []
        // All at once, one at a time for the model's sake, two at a time for the memory's, and less than one.
        for (batch, memory) in [(100, 1 << 28), (1, 1 << 28), (100, 8 * count), (100, 1)] {
            let sum = ClippedSum(clip: 0.1, parameterCount: count, batchSize: batch, memoryLimit: memory)
            _ = try sum.form(all, model: golden.model)
            sums.append(sum.values)
        }
        #expect(length(sums[0]) > 0)
        for sum in sums { #expect(Closeness(sum, sums[0]).isWithin(norm: 1e-5)) }
    }

    @Test func `with hardly any noise and a large clip a step follows the examples' mean gradient, whatever the gradient clip`()
        throws
    {
        let golden = try GoldenCase("llama-gqa")
        let own = try gradients(golden.model, examples(golden))
        let privacy = try PrivateTraining(
            clip: 1e3, noiseMultiplier: 1e-13, expectedBatchSize: 4, samplingRate: 1, key: key)
        let (before, outcome) = try train(privacy, settings: settings { $0.gradientClip = 1e-6 })
        let step = zip(outcome.weights.trained.values, before).map { Double($0) - Double($1) }
        let expected = own[0].indices.map { index in -0.5 * own.reduce(0) { $0 + $1[index] } / 4 }
        #expect(Closeness(step, expected).isWithin(norm: 1e-4))
        #expect(outcome.losses.count == 1 && outcome.losses[0] == outcome.meanLoss && outcome.meanLoss > 0)
        #expect(outcome.targetTokens == examples(golden).reduce(0) { $0 + $1.targetCount })
    }

    @Test func `a step that draws nobody is noise only`() throws {
        let privacy = try PrivateTraining(
            clip: 0.5, noiseMultiplier: 2, expectedBatchSize: 4, samplingRate: 1e-12, key: key)
        let (before, outcome) = try train(privacy, steps: 0..<2)
        #expect(outcome.tokens == 0 && outcome.targetTokens == 0 && outcome.meanLoss == 0)
        #expect(outcome.losses.count == 2 && outcome.losses.allSatisfy(\.isNaN))
        let step = zip(outcome.weights.trained.values, before).map { Double($0) - Double($1) }
        // Two steps of learning rate 0.5 with noise of standard deviation 2 x 0.5 / 4.
        let deviation = length(step) / Double(step.count).squareRoot()
        let expected = 0.5 * 0.25 * 2.0.squareRoot()
        #expect(abs(deviation - expected) <= 0.1 * expected, "\(deviation) for \(expected)")
    }

    @Test func `draws and noise are functions of the key and the step, not of threads, generator or earlier steps`() throws {
        let privacy = try PrivateTraining(clip: 0.1, noiseMultiplier: 1, expectedBatchSize: 3, samplingRate: 0.5, key: key)
        func run(_ privacy: PrivateTraining, _ seed: UInt64 = 0) throws -> [UInt32] {
            try train(privacy, steps: 0..<4, settings: settings { $0.batchSize = 2 }, generatorSeed: seed).1.weights.trained
                .values
                .map(\.bitPattern)
        }
        let reference = try run(privacy)
        #expect(try Parallel.limited(toThreads: 1) { try run(privacy) } == reference)
        #expect(try run(privacy, 1) == reference)
        let other = try PrivateTraining(
            clip: 0.1, noiseMultiplier: 1, expectedBatchSize: 3, samplingRate: 0.5, key: .unsafeSeeded(8, name: "tests"))
        #expect(try run(other) != reference)
        // SGD has no state: two steps and two more are four.
        let golden = try GoldenCase("llama-gqa")
        var halves: TrainingOutcome?
        for range in [0..<2, 2..<4] {
            halves = try LocalTrainer.train(
                model: golden.model, examples: examples(golden), settings: settings { $0.batchSize = 2 }, stepRange: range,
                totalSteps: 10, generator: SeededGenerator(seed: 0, purpose: "batches"), privacy: privacy)
        }
        #expect(halves?.weights.trained.values.map(\.bitPattern) == reference)
    }

    @Test func `noise is added once a step, however many passes it takes`() throws {
        let privacy = try PrivateTraining(clip: 0.1, noiseMultiplier: 3, expectedBatchSize: 4, samplingRate: 1, key: key)
        let (before, whole) = try train(privacy, settings: settings { $0.batchSize = 100 })
        let (_, single) = try train(privacy, settings: settings { $0.batchSize = 1 })
        let steps = [whole, single].map { zip($0.weights.trained.values, before).map { Double($0) - Double($1) } }
        #expect(Closeness(steps[1], steps[0]).isWithin(norm: 1e-5))
        // The noise is what the contract says: of the step's own key, over the expected batch size.
        let golden = try GoldenCase("llama-gqa")
        let sum = ClippedSum(clip: 0.1, parameterCount: before.count, batchSize: 100)
        _ = try sum.form(examples(golden), model: golden.model)
        var noised = sum.values
        addGaussianNoise(to: &noised, standardDeviation: 0.3, key: key.derived("noise of step 0"))
        #expect(Closeness(steps[0], noised.map { -0.5 * $0 / 4 }).isWithin(norm: 1e-5))
    }

    @Test func `each example is drawn by itself`() throws {
        func privacy(_ rate: Double) throws -> PrivateTraining {
            try PrivateTraining(clip: 1, noiseMultiplier: 1, expectedBatchSize: 1, samplingRate: rate, key: key)
        }
        #expect(try privacy(1).draw(of: 50, step: 3) == Array(0..<50))
        let some = try privacy(0.3)
        let draws = (0..<2000).map { some.draw(of: 10, step: $0) }
        #expect(draws[5] == some.draw(of: 10, step: 5) && Set(draws).count > 500)
        // Sizes vary as a binomial's do: mean 3, variance 2.1.
        let sizes = draws.map { Double($0.count) }
        let mean = sizes.reduce(0, +) / 2000
        let variance = sizes.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / 2000
        #expect(abs(mean - 3) < 0.15 && abs(variance - 2.1) < 0.3, "\(mean), \(variance)")
        for example in 0..<10 { #expect(abs(draws.count { $0.contains(example) } - 600) < 90) }
    }

    /// Ending the training would tell that the example was drawn.
    @Test func `an example whose gradient is not finite is left out, and only the noise is released`() throws {
        let golden = try GoldenCase("llama-gqa")
        var weights = golden.model.weights
        for index in weights.trained.values.indices { weights.trained.values[index] = 3e38 }
        try golden.model.load(weights)
        let sum = ClippedSum(clip: 1, parameterCount: weights.trained.values.count, batchSize: 4)
        let losses = try sum.form(examples(golden), model: golden.model)
        #expect(losses.contains { !$0.isFinite })
        #expect(sum.values.allSatisfy { $0 == 0 })
        for index in weights.trained.values.indices { weights.trained.values[index] = 1e30 }
        try golden.model.load(weights)
        let privacy = try PrivateTraining(clip: 1, noiseMultiplier: 1, expectedBatchSize: 1, samplingRate: 1, key: key)
        let outcome = try LocalTrainer.train(
            model: golden.model, examples: golden.examples, settings: settings(), stepRange: 6..<7, totalSteps: 10,
            generator: SeededGenerator(seed: 0, purpose: "batches"), privacy: privacy)
        #expect(outcome.weights.trained.values.allSatisfy { $0.isFinite })
    }

    @Test(arguments: [
        (0, 1.0, 1, 0.5), (.nan, 1, 1, 0.5), (.infinity, 1, 1, 0.5), (1, 0, 1, 0.5), (1, -1, 1, 0.5), (1, .nan, 1, 0.5),
        (1, 1, 0, 0.5), (1, 1, 1, 0), (1, 1, 1, 1.01), (1, 1, 1, .nan),
    ])
    func `values that protect nobody are refused`(clip: Double, noise: Double, batch: Int, rate: Double) {
        #expect(throws: Failure.self) {
            try PrivateTraining(clip: clip, noiseMultiplier: noise, expectedBatchSize: batch, samplingRate: rate, key: key)
        }
    }
}
