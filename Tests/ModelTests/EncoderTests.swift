/// Classifiers: gradients against finite differences at odd shapes, and what must not change them.

import Adapters
import Checkpoints
import LinearAlgebra
import Model
import Primitives
import Quantization
import TestSupport
import Testing

private struct Variant: Sendable, CustomStringConvertible {
    var model: TinyEncoder
    var method: AdapterMethod
    var modules: Set<String>? = nil
    var correction: Int? = nil
    var form = WeightForm.stored
    var compute = ComputeChoice.float32
    var description: String {
        "\(model.family)\(model.form) \(method.rawValue) \(modules?.sorted().joined(separator: ",") ?? "all") correction \(correction ?? 0) \(form.rawValue)"
    }

    func make() throws -> AdaptedModel {
        let loaded = try model.load(form, compute: compute)
        let specification = try AdapterSpecification(
            method: method, maps: loaded.linearMaps.filter { modules?.contains($0.moduleName) ?? true }, rank: 3, alpha: 5,
            rankStabilized: false, head: loaded.headMaps)
        return try AdaptedModel(model: loaded, weights: randomWeights(specification, correctionRank: correction))
    }
}

private func total(_ model: AdaptedModel, _ batch: TokenBatch) throws -> Double {
    try model.loss(batch).reduce(0) { $0 + $1.loss }
}

private func gradient(_ model: AdaptedModel, _ batch: TokenBatch, scale: Float = 1) throws -> [Float] {
    var gradient = [Float](repeating: 0, count: model.weights.trained.layout.parameterCount)
    _ = try model.lossAndGradient(batch, gradientScale: scale, gradient: &gradient)
    return gradient
}

private func norm(_ values: some Collection<Float>) -> Double {
    values.reduce(0) { $0 + Double($1) * Double($1) }.squareRoot()
}

@Suite struct EncoderTests {
    private static let variants = [
        Variant(model: TinyEncoder(), method: .lora),
        Variant(model: TinyEncoder(architecture: .roberta), method: .lora, correction: 2),
        Variant(model: TinyEncoder(form: "Model", hidden: 20, heads: 2), method: .lora, modules: ["query", "dense"], form: .nf4),
        Variant(
            model: TinyEncoder(architecture: .roberta, form: "Model", layers: 1), method: .ffaLoRA, correction: 4, form: .int8),
        Variant(model: TinyEncoder(form: "ForMaskedLM", hasOldNormNames: true), method: .loraSB, form: .none),
    ]

    @Test(arguments: variants)
    private func `every tensor's gradient is the slope of the loss`(variant: Variant) throws {
        let model = try variant.make()
        let weights = model.weights
        let batch = variant.model.batch([9, 2, 70, 1])
        let layout = weights.trained.layout
        var gradient = [Float](repeating: 0, count: layout.parameterCount)
        let (loss, targets) = try model.lossAndGradient(batch, gradientScale: 1, gradient: &gradient)
        #expect(targets == 4)
        #expect(abs(loss - (try total(model, batch))) < 1e-9 * loss)
        var generator = SeededGenerator(seed: 4, purpose: "directions")
        for (index, tensor) in layout.tensors.enumerated() {
            let range = layout.range(index)
            let own = Array(gradient[range])
            let size = norm(own)
            #expect(size > 0, "\(tensor.map) \(tensor.role) has no gradient")
            // Along the gradient itself, and along a random direction.
            for direction in [
                own.map { $0 / Float(size) }, own.map { _ in generator.symmetric(1 / Float(own.count).squareRoot()) },
            ] {
                let slope = zip(own, direction).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
                let step: Float = 4e-3
                var losses: [Double] = []
                for sign: Float in [1, -1] {
                    var moved = weights
                    for (offset, position) in range.enumerated() {
                        moved.trained.values[position] += sign * step * direction[offset]
                    }
                    try model.load(moved)
                    losses.append(try total(model, batch))
                }
                let measured = (losses[0] - losses[1]) / Double(2 * step)
                #expect(
                    abs(measured - slope) <= 0.01 * size + 2e-3,
                    "\(tensor.map) \(tensor.role): \(measured), not \(slope) of \(size)")
            }
        }
    }

    @Test(arguments: variants)
    private func `one thread and several give the same bits, as does running blocks again`(variant: Variant) throws {
        for compute in ComputeType.bfloat16.isSupported ? [ComputeChoice.float32, .bfloat16] : [.float32] {
            var variant = variant
            variant.compute = compute
            let model = try variant.make()
            let batch = variant.model.batch([33, 88, 5])
            func run() throws -> [UInt32] { try gradient(model, batch, scale: 0.01).map(\.bitPattern) }
            let several = try run()
            #expect(try Parallel.limited(toThreads: 1) { try run() } == several)
            model.activationMemoryLimit = 0
            #expect(try run() == several)
            // And with nothing left over from an earlier batch.
            #expect(try gradient(try variant.make(), batch, scale: 0.01).map(\.bitPattern) == several)
        }
    }

    @Test(arguments: variants)
    private func `each sequence's own gradient is that of the sequence alone`(variant: Variant) throws {
        let model = try variant.make()
        let layout = model.weights.trained.layout
        let batch = variant.model.batch([9, 2, 70, 1, 33])
        func perExample(_ model: AdaptedModel) throws -> (losses: [Double], gradients: [Float]) {
            // What stood there before is no part of the result.
            var all = [Float](repeating: .nan, count: batch.sequenceCount * layout.parameterCount)
            var losses: [Double] = []
            try all.withUnsafeMutableBufferPointer { losses = try model.perExampleGradients(batch, into: $0) }
            return (losses, all)
        }
        let (losses, all) = try perExample(model)
        var sum = [Double](repeating: 0, count: layout.parameterCount)
        for index in 0..<batch.sequenceCount {
            let range = batch.starts[index]..<batch.starts[index + 1]
            let alone = TokenBatch(
                tokens: Array(batch.tokens[range]), starts: [0, range.count], labels: [batch.labels[index]])
            #expect(abs(losses[index] - (try total(model, alone))) <= 1e-5 * max(0.1, losses[index]))
            let own = all[index * layout.parameterCount..<(index + 1) * layout.parameterCount]
            #expect(Closeness(own, try gradient(model, alone)).isWithin(norm: 5e-6), "sequence \(index)")
            for (position, value) in own.enumerated() { sum[position] += Double(value) }
        }
        #expect(Closeness(sum, try gradient(model, batch).map(Double.init)).isWithin(norm: 5e-6))
        guard ComputeType.bfloat16.isSupported else { return }
        var rounded = variant
        rounded.compute = .bfloat16
        let near = try perExample(try rounded.make())
        #expect(Closeness(near.gradients, all).isWithin(norm: 5e-2))
        #expect(!Closeness(near.gradients, all).isWithin(norm: 1e-6))
    }

    @Test func `the dense gradient is what the adapter's gradients are made of`() throws {
        let variant = Variant(model: TinyEncoder(), method: .lora)
        for compute in ComputeType.bfloat16.isSupported ? [ComputeChoice.float32, .bfloat16] : [.float32] {
            var variant = variant
            variant.compute = compute
            let model = try variant.make()
            let weights = model.weights
            let layout = weights.trained.layout
            let batch = variant.model.batch([40, 7])
            let gradient = try gradient(model, batch)
            var dense: [String: [Float]] = [:]
            let maps = model.model.linearMaps
            for group in [maps[..<5], maps[5...]] { try model.denseGradient(batch, maps: group.map(\.name), into: &dense) }
            for map in maps {
                let whole = try #require(dense[map.name])
                let a = try #require(layout.index(map: map.name, role: .loraA))
                let b = try #require(layout.index(map: map.name, role: .loraB))
                let scale = layout.tensors[a].scale
                let fromA = multiply(
                    Array(weights.trained.tensor(b)), whole, m: 3, n: map.inputs, k: map.outputs, transposeA: true
                ).map { $0 * scale }
                let tolerance = compute == .float32 ? 1e-5 : 2e-2
                #expect(Closeness(gradient[layout.range(a)], fromA).isWithin(norm: tolerance), "\(map.name) A")
                let fromB = multiply(
                    whole, Array(weights.trained.tensor(a)), m: map.outputs, n: 3, k: map.inputs, transposeB: true
                ).map { $0 * scale }
                #expect(Closeness(gradient[layout.range(b)], fromB).isWithin(norm: tolerance), "\(map.name) B")
            }
        }
    }

    @Test func `the mean of the last states is what a sentence encoder's head reads, whatever stands beside it`() throws {
        let tiny = TinyEncoder(form: "Model", labels: 21)
        let model = try tiny.load()
        let specification = try AdapterSpecification(
            method: .lora, maps: model.linearMaps, rank: 1, alpha: 1, rankStabilized: false, head: model.headMaps)
        var weights = randomWeights(specification)
        let layout = weights.trained.layout
        for role in [AdapterRole.headWeight, .headBias] {
            let index = try #require(layout.index(map: "classifier", role: role))
            for (offset, position) in layout.range(index).enumerated() {
                weights.trained.values[position] = role == .headWeight && offset / 21 == offset % 21 ? 1 : 0
            }
        }
        let adapted = try AdaptedModel(model: model, weights: weights)
        let batch = tiny.batch([7, 1, 30])
        let means = try adapted.classLogits(batch)
        for index in 0..<3 {
            let range = batch.starts[index]..<batch.starts[index + 1]
            let alone = try adapted.classLogits(
                TokenBatch(tokens: Array(batch.tokens[range]), starts: [0, range.count], labels: []))
            #expect(Closeness(means[index * 21..<(index + 1) * 21], alone).isWithin(norm: 1e-6))
        }
        // A token later in a sequence is seen by those before it: attention has no direction.
        var changed = batch
        changed.tokens[batch.starts[1] - 1] = (changed.tokens[batch.starts[1] - 1] + 1) % 37
        let moved = try adapted.classLogits(changed)
        #expect(!Closeness(moved[..<21], means[..<21]).isWithin(norm: 1e-3))
        #expect(Closeness(moved[21...], means[21...]).isWithin(norm: 1e-6))
    }

    @Test func `what does not fit a classifier is refused`() throws {
        let tiny = TinyEncoder(architecture: .roberta, positions: 18)
        let model = try tiny.load()
        #expect(model.configuration.maximumPositions == 16)
        let specification = try AdapterSpecification(
            method: .lora, maps: model.linearMaps, rank: 1, alpha: 1, rankStabilized: false, head: model.headMaps)
        let adapted = try AdaptedModel(model: model, weights: randomWeights(specification))
        func message(_ body: () throws -> Void) -> String {
            #expect(throws: Failure.self) { try body() }?.message ?? ""
        }
        #expect(message { _ = try adapted.classLogits(tiny.batch([17])) }.contains("16 positions"))
        #expect(try adapted.classLogits(tiny.batch([16])).count == 3)
        #expect(message { _ = try adapted.loss(tiny.batch([4, 0])) }.contains("sequence 1 of the batch has no tokens"))
        var batch = tiny.batch([4, 5])
        batch.labels[1] = 3
        #expect(message { _ = try adapted.loss(batch) }.contains("label 3 is none of the model's 3 labels"))
        batch.labels = []
        #expect(message { _ = try adapted.loss(batch) }.contains("without labels"))
        #expect(message { _ = try adapted.logits(batch) }.contains("classifier"))
        // Heads: none, half of one, of other labels, and one for a model that predicts tokens.
        let bare = try AdapterSpecification(
            method: .lora, maps: model.linearMaps, rank: 1, alpha: 1, rankStabilized: false)
        #expect(message { _ = try AdaptedModel(model: model, weights: randomWeights(bare)) }.contains("no weight and bias"))
        for head in [Array(model.headMaps.dropLast()), model.configuration.head(labelCount: 4)] {
            let other = try AdapterSpecification(
                method: .lora, maps: model.linearMaps, rank: 1, alpha: 1, rankStabilized: false, head: head)
            #expect(message { _ = try AdaptedModel(model: model, weights: randomWeights(other)) }.contains("classifier.out_proj"))
        }
        let causal = try TinyModel().load()
        let headed = try AdapterSpecification(
            method: .lora, maps: causal.linearMaps, rank: 1, alpha: 1, rankStabilized: false, head: model.headMaps)
        #expect(message { _ = try AdaptedModel(model: causal, weights: randomWeights(headed)) }.contains("predicts tokens"))
        let folder = TemporaryFolder()
        try tiny.write(to: folder.path)
        let checkpoint = try CheckpointFolder(path: folder.path)
        #expect(message { _ = try LanguageModel(checkpoint: checkpoint, quantization: .stored) }.contains("--task classify"))
        #expect(
            message { _ = try LanguageModel(checkpoint: checkpoint, quantization: .stored, task: .classify(labelCount: 1)) }
                .contains("at least 2"))
    }
}
