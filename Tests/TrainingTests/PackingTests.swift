/// Packed sequences: together they are the sum of each alone, and none sees another.

import Adapters
import Checkpoints
import Datasets
import Model
import Primitives
import TestSupport
import Testing
import Training

@Suite struct PackingTests {
    private static let length = 24

    /// Examples of 2 to 24 tokens, about two thirds of which are targets.
    private func examples(_ golden: GoldenCase, count: Int = 20) -> [Example] {
        var generator = SeededGenerator(seed: 3, purpose: "packing")
        let vocabulary = golden.checkpoint.configuration.vocabularySize
        return (0..<count).map { line in
            let length = 2 + generator.integer(below: Self.length - 1)
            return Example(
                tokens: (0..<length).map { _ in Int32(generator.integer(below: vocabulary)) },
                targets: (0..<length).map { $0 > 0 && ($0 == 1 || generator.integer(below: 3) > 0) }, prompt: [],
                completion: nil, line: line + 1)
        }
    }

    private func settings(batchSize: Int = 2) -> TrainingSettings {
        var settings = TrainingSettings()
        settings.batchSize = batchSize
        settings.binLength = Self.length
        return settings
    }

    @Test(arguments: ["llama-gqa", "qwen2-bias", "qwen3-qknorm"])
    func `the loss and the gradient of packed examples are the sums of theirs alone`(name: String) throws {
        let golden = try GoldenCase(name)
        let examples = examples(golden)
        let packing = try #require(settings().packing(examples))
        #expect(packing.bins.count < examples.count && packing.fillRate > 0.8)
        let count = golden.model.weights.trained.values.count
        var (packed, single) = ([Float](repeating: 0, count: count), [Float](repeating: 0, count: count))
        var (packedLoss, singleLoss) = (0.0, 0.0)
        for bin in packing.bins {
            packedLoss += try golden.model.lossAndGradient(
                TokenBatch(bin.map { examples[$0] }), gradientScale: 1, gradient: &packed
            ).loss
        }
        for example in examples {
            singleLoss += try golden.model.lossAndGradient(TokenBatch([example]), gradientScale: 1, gradient: &single).loss
        }
        #expect(abs(packedLoss - singleLoss) <= 1e-6 * singleLoss)
        #expect(Closeness(packed, single).isWithin(norm: 1e-5), "\(Closeness(packed, single))")
    }

    @Test(arguments: ["llama-gqa", "qwen3-qknorm"])
    func `an example's loss and gradient keep their bits when its neighbours change`(name: String) throws {
        let golden = try GoldenCase(name)
        let examples = examples(golden)
        let packing = try #require(settings().packing(examples))
        let bin = try #require(packing.bins.first { $0.count > 1 })
        let batch = TokenBatch(bin.map { examples[$0] })
        let vocabulary = Int32(golden.checkpoint.configuration.vocabularySize)
        let count = golden.model.weights.trained.values.count
        func gradients(_ batch: TokenBatch) throws -> [Float] {
            var rows = [Float](repeating: 0, count: batch.sequenceCount * count)
            _ = try rows.withUnsafeMutableBufferPointer { try golden.model.perExampleGradients(batch, into: $0) }
            return rows
        }
        let (losses, rows) = (try golden.model.loss(batch), try gradients(batch))
        for kept in 0..<batch.sequenceCount {
            var changed = batch
            for token in changed.tokens.indices where !(batch.starts[kept]..<batch.starts[kept + 1]).contains(token) {
                changed.tokens[token] = (changed.tokens[token] + 1) % vocabulary
            }
            let other = try golden.model.loss(changed)
            let otherRows = try gradients(changed)
            for sequence in 0..<batch.sequenceCount {
                let range = sequence * count..<(sequence + 1) * count
                let areEqual = otherRows[range].elementsEqual(rows[range]) { $0.bitPattern == $1.bitPattern }
                #expect((other[sequence].loss == losses[sequence].loss) == (sequence == kept))
                #expect(areEqual == (sequence == kept))
            }
        }
    }

    @Test func `an epoch reads every token once, bin by bin, and the seed decides the order`() throws {
        let settings = settings()
        func train(_ seed: UInt64, _ settings: TrainingSettings, steps: Int) throws -> TrainingOutcome {
            let golden = try GoldenCase("llama-gqa")
            return try LocalTrainer.train(
                model: golden.model, examples: examples(golden), settings: settings, stepRange: 0..<steps, totalSteps: 100,
                generator: SeededGenerator(seed: seed, purpose: "batches"))
        }
        let all = examples(try GoldenCase("llama-gqa"))
        let bins = try #require(settings.packing(all)).bins
        let tokens = all.reduce(0) { $0 + $1.tokens.count }
        let epoch = try train(1, self.settings(batchSize: 1), steps: bins.count)
        #expect(epoch.tokens == tokens && epoch.targetTokens == all.reduce(0) { $0 + $1.targetCount })
        let whole = try train(1, self.settings(batchSize: bins.count), steps: 1)
        #expect(whole.tokens == tokens)
        let first = try train(1, settings, steps: 3)
        let (again, other) = (try train(1, settings, steps: 3), try train(2, settings, steps: 3))
        #expect(first.weights == again.weights && first.weights != other.weights)
        var unpacked = settings
        unpacked.binLength = nil
        let without = try train(1, unpacked, steps: 3)
        #expect(without.tokens < first.tokens)
    }
}
