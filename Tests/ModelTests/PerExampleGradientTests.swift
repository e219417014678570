/// Gradients of single sequences out of one pass over many.

import Adapters
import Checkpoints
import LinearAlgebra
import Model
import Primitives
import Quantization
import TestSupport
import Testing

private struct Variant: Sendable, CustomStringConvertible {
    var model = TinyModel()
    var method: AdapterMethod
    var correction: Int? = nil
    var form = WeightForm.stored
    var compute = ComputeChoice.float32
    var description: String { "\(model.architecture.rawValue) \(method.rawValue) correction \(correction ?? 0) \(form.rawValue)" }

    func make() throws -> AdaptedModel {
        let model = try model.load(form, compute: compute)
        let specification = try AdapterSpecification(
            method: method, maps: model.linearMaps, rank: 3, alpha: 5, rankStabilized: false)
        return try AdaptedModel(model: model, weights: randomWeights(specification, correctionRank: correction))
    }
}

private func perExample(_ model: AdaptedModel, _ batch: TokenBatch) throws -> (losses: [Double], gradients: [[Float]]) {
    let count = model.weights.trained.layout.parameterCount
    // What stood there before is no part of the result.
    var all = [Float](repeating: .nan, count: batch.sequenceCount * count)
    var losses: [Double] = []
    try all.withUnsafeMutableBufferPointer { losses = try model.perExampleGradients(batch, into: $0) }
    return (losses, (0..<batch.sequenceCount).map { Array(all[$0 * count..<($0 + 1) * count]) })
}

private func norm(_ values: some Collection<Float>) -> Double {
    values.reduce(0) { $0 + Double($1) * Double($1) }.squareRoot()
}

@Suite struct PerExampleGradientTests {
    private static let variants = [
        Variant(method: .lora), Variant(method: .lora, correction: 2),
        Variant(model: TinyModel(architecture: .qwen3, heads: 4, keyValueHeads: 2, headSize: 10), method: .lora, form: .nf4),
        Variant(method: .ffaLoRA), Variant(method: .ffaLoRA, correction: 4, form: .int8),
        Variant(model: TinyModel(architecture: .qwen2, keyValueHeads: 3, tied: true, biases: true), method: .loraSB),
        Variant(method: .loraSB, correction: 2, form: .nf4),
    ]

    @Test(arguments: variants)
    private func `each row is the gradient of its sequence alone, and together they are the batch's`(variant: Variant) throws {
        let model = try variant.make()
        let layout = model.weights.trained.layout
        // The second last has one token and nothing to predict, the last nothing at all.
        let batch = variant.model.batch([9, 2, 70, 300, 33, 1, 0])
        let (losses, gradients) = try perExample(model, batch)
        var sum = [Double](repeating: 0, count: layout.parameterCount)
        var sequencesWithTargets = 0
        for index in 0..<batch.sequenceCount {
            let range = batch.starts[index]..<batch.starts[index + 1]
            let alone = TokenBatch(
                tokens: Array(batch.tokens[range]), starts: [0, range.count], targets: Array(batch.targets[range]))
            var expected = [Float](repeating: 0, count: layout.parameterCount)
            let targets = alone.targets.dropFirst().count { $0 }
            let (loss, _) = try model.lossAndGradient(alone, gradientScale: 1 / Float(max(1, targets)), gradient: &expected)
            #expect(abs(losses[index] - loss / Double(max(1, targets))) <= 1e-6 * losses[index])
            #expect(gradients[index].allSatisfy { $0.isFinite })
            // What is 0 but for rounding, such as q's and k's gradients of two tokens, is held to the whole gradient's size.
            let whole = norm(expected)
            for (number, tensor) in layout.tensors.enumerated() {
                let own = expected[layout.range(number)]
                let difference = norm(zip(gradients[index][layout.range(number)], own).map { $0 - $1 })
                #expect(
                    difference <= 5e-6 * norm(own) + 3e-7 * whole,
                    "sequence \(index), \(tensor.map) \(tensor.role): \(difference) of \(norm(own)) and \(whole)")
            }
            for position in sum.indices { sum[position] += Double(targets) * Double(gradients[index][position]) }
            sequencesWithTargets += targets > 0 ? 1 : 0
        }
        #expect(sequencesWithTargets >= 4)
        #expect(gradients[5].allSatisfy { $0 == 0 } && gradients[6].allSatisfy { $0 == 0 } && losses[5] == 0 && losses[6] == 0)
        var whole = [Float](repeating: 0, count: layout.parameterCount)
        _ = try model.lossAndGradient(batch, gradientScale: 1, gradient: &whole)
        #expect(Closeness(sum, whole.map(Double.init)).isWithin(norm: 5e-6))
    }

    @Test(arguments: variants)
    private func `one thread and several give the same bits, as does running blocks again`(variant: Variant) throws {
        let model = try variant.make()
        let batch = variant.model.batch([33, 300, 5])
        func run() throws -> [[UInt32]] { try perExample(model, batch).gradients.map { $0.map(\.bitPattern) } }
        let several = try run()
        #expect(try Parallel.limited(toThreads: 1) { try run() } == several)
        model.activationMemoryLimit = 0
        #expect(try run() == several)
    }

    @Test(arguments: variants)
    private func `in bfloat16 each row is near its float32 one`(variant: Variant) throws {
        guard ComputeType.bfloat16.isSupported else { return }
        var rounded = variant
        rounded.compute = .bfloat16
        let batch = variant.model.batch([9, 2, 70, 33, 1, 0])
        let exact = try perExample(try variant.make(), batch)
        let near = try perExample(try rounded.make(), batch)
        for (row, other) in zip(near.gradients, exact.gradients) {
            #expect(row.allSatisfy { $0.isFinite })
            // A short sequence's gradient is a sum of few terms that partly cancel.
            #expect(norm(zip(row, other).map { $0 - $1 }) <= 0.15 * norm(other))
        }
        let (all, others) = (near.gradients.flatMap { $0 }, exact.gradients.flatMap { $0 })
        #expect(norm(zip(all, others).map { $0 - $1 }) <= 5e-2 * norm(others))
        for (loss, other) in zip(near.losses, exact.losses) { #expect(abs(loss - other) <= 1e-2 * max(1, abs(other))) }
    }

    @Test func `without a target every gradient is zero, and a wrong token is refused`() throws {
        let model = try Variant(method: .lora).make()
        let (losses, gradients) = try perExample(model, TokenBatch(tokens: [1, 2], starts: [0, 1, 2], targets: [true, true]))
        #expect(losses == [0, 0])
        #expect(gradients.allSatisfy { $0.allSatisfy { $0 == 0 } })
        #expect(try perExample(model, TokenBatch(tokens: [], starts: [0], targets: [])).losses.isEmpty)
        #expect(throws: Failure.self) {
            try perExample(model, TokenBatch(tokens: [1, 37], starts: [0, 2], targets: [false, true]))
        }
    }
}
