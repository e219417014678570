/// Gradients against finite differences at odd shapes, and what must not change them.

import Adapters
import Checkpoints
import LinearAlgebra
import Model
import Primitives
import Quantization
import TestSupport
import Testing

private struct Variant: Sendable, CustomStringConvertible {
    var model: TinyModel
    var method: AdapterMethod
    var modules: Set<String>? = nil
    var correction: Int? = nil
    var form = WeightForm.stored
    var description: String {
        "\(model.architecture.rawValue) \(method.rawValue) \(modules?.sorted().joined(separator: ",") ?? "all") correction \(correction ?? 0) \(form.rawValue)"
    }

    func make() throws -> (AdaptedModel, AdapterWeights) {
        let model = try model.load(form)
        let specification = try AdapterSpecification(
            method: method, maps: model.linearMaps.filter { modules?.contains($0.moduleName) ?? true }, rank: 3, alpha: 5,
            rankStabilized: false)
        let weights = randomWeights(specification, correctionRank: correction)
        return (try AdaptedModel(model: model, weights: weights), weights)
    }
}

private func total(_ model: AdaptedModel, _ batch: TokenBatch) throws -> Double {
    try model.loss(batch).reduce(0) { $0 + $1.loss }
}

@Suite struct GradientTests {
    private static let variants = [
        Variant(model: TinyModel(), method: .lora),
        Variant(model: TinyModel(architecture: .qwen2, keyValueHeads: 3, tied: true, biases: true), method: .lora),
        Variant(model: TinyModel(architecture: .qwen3, heads: 4, keyValueHeads: 2, headSize: 10), method: .lora, correction: 2),
        Variant(model: TinyModel(biases: true), method: .lora, modules: ["v_proj", "down_proj"], form: .nf4),
        Variant(model: TinyModel(), method: .ffaLoRA),
        Variant(model: TinyModel(), method: .ffaLoRA, correction: 4, form: .int8),
        Variant(model: TinyModel(), method: .loraSB),
        Variant(
            model: TinyModel(scaling: "{\"rope_type\": \"linear\", \"factor\": 3.0}"), method: .loraSB, correction: 2,
            form: .nf4),
    ]

    @Test(arguments: variants)
    private func `every tensor's gradient is the slope of the loss`(variant: Variant) throws {
        let (model, weights) = try variant.make()
        let batch = variant.model.batch([9, 2, 70, 1])
        let layout = weights.trained.layout
        var gradient = [Float](repeating: 0, count: layout.parameterCount)
        let (loss, targets) = try model.lossAndGradient(batch, gradientScale: 1, gradient: &gradient)
        #expect(targets > 30)
        #expect(abs(loss - (try total(model, batch))) < 1e-9 * loss)
        var generator = SeededGenerator(seed: 4, purpose: "directions")
        for (index, tensor) in layout.tensors.enumerated() {
            let range = layout.range(index)
            let own = Array(gradient[range])
            let norm = own.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot()
            #expect(norm > 0, "\(tensor.map) \(tensor.role) has no gradient")
            // Along the gradient itself, and along a random direction.
            for direction in [
                own.map { $0 / Float(norm) }, own.map { _ in generator.symmetric(1 / Float(own.count).squareRoot()) },
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
                    abs(measured - slope) <= 0.01 * norm + 0.02,
                    "\(tensor.map) \(tensor.role): \(measured), not \(slope) of \(norm)")
            }
        }
    }

    @Test(arguments: variants)
    private func `one thread and several give the same bits, as does running blocks again`(variant: Variant) throws {
        let (model, weights) = try variant.make()
        let batch = variant.model.batch([33, 300, 5])
        func run() throws -> ([UInt32], UInt64) {
            var gradient = [Float](repeating: 0, count: weights.trained.layout.parameterCount)
            let loss = try model.lossAndGradient(batch, gradientScale: 0.01, gradient: &gradient).loss
            return (gradient.map(\.bitPattern), loss.bitPattern)
        }
        let several = try run()
        let one = try Parallel.limited(toThreads: 1) { try run() }
        #expect(several == one)
        model.activationMemoryLimit = 0
        #expect(try run() == several)
        // And with nothing left over from an earlier, larger batch.
        let (fresh, _) = try variant.make()
        var gradient = [Float](repeating: 0, count: weights.trained.layout.parameterCount)
        _ = try fresh.lossAndGradient(batch, gradientScale: 0.01, gradient: &gradient)
        #expect(gradient.map(\.bitPattern) == several.0)
    }

    @Test func `the dense gradient is what the adapter's gradients are made of`() throws {
        let tiny = TinyModel()
        let model = try tiny.load()
        let specification = try AdapterSpecification(
            method: .lora, maps: model.linearMaps, rank: 3, alpha: 5, rankStabilized: false)
        let weights = randomWeights(specification)
        let adapted = try AdaptedModel(model: model, weights: weights)
        let batch = tiny.batch([40, 7])
        let layout = weights.trained.layout
        var gradient = [Float](repeating: 0, count: layout.parameterCount)
        _ = try adapted.lossAndGradient(batch, gradientScale: 1, gradient: &gradient)
        var dense: [String: [Float]] = [:]
        // In two groups, the second added to twice.
        try adapted.denseGradient(batch, maps: model.linearMaps[..<5].map(\.name), into: &dense)
        try adapted.denseGradient(batch, maps: model.linearMaps[5...].map(\.name), into: &dense)
        try adapted.denseGradient(batch, maps: model.linearMaps[5...].map(\.name), into: &dense)
        for (number, map) in model.linearMaps.enumerated() {
            let whole = try #require(dense[map.name]).map { $0 / (number < 5 ? 1 : 2) }
            let a = try #require(layout.index(map: map.name, role: .loraA))
            let b = try #require(layout.index(map: map.name, role: .loraB))
            let fromA = multiply(
                Array(weights.trained.tensor(b)), whole, m: 3, n: map.inputs, k: map.outputs, transposeA: true
            ).map { $0 * specification.scale }
            #expect(Closeness(gradient[layout.range(a)], fromA).isWithin(norm: 1e-5), "\(map.name) A")
            let fromB = multiply(
                whole, Array(weights.trained.tensor(a)), m: map.outputs, n: 3, k: map.inputs, transposeB: true
            ).map { $0 * specification.scale }
            #expect(Closeness(gradient[layout.range(b)], fromB).isWithin(norm: 1e-5), "\(map.name) B")
        }
        #expect(throws: Failure.self) { try adapted.denseGradient(batch, maps: ["model.nothing"], into: &dense) }
    }

    @Test func `a sequence's loss does not depend on its neighbours`() throws {
        let tiny = TinyModel()
        let model = try tiny.load()
        let adapted = try AdaptedModel(model: model, weights: AdapterWeights(trained: AdapterState(zeros: AdapterLayout([]))))
        let batch = tiny.batch([30, 11, 64])
        let parts = try adapted.loss(batch)
        for index in 0..<3 {
            let range = batch.starts[index]..<batch.starts[index + 1]
            let alone = try adapted.loss(
                TokenBatch(tokens: Array(batch.tokens[range]), starts: [0, range.count], targets: Array(batch.targets[range])))
            #expect(alone[0].targets == parts[index].targets)
            #expect(abs(alone[0].loss - parts[index].loss) < 1e-5 * parts[index].loss)
        }
    }

    @Test func `a correction that is the adapter's product gives the adapter's logits`() throws {
        let tiny = TinyModel()
        let model = try tiny.load()
        let specification = try AdapterSpecification(
            method: .lora, maps: model.linearMaps, rank: 3, alpha: 3, rankStabilized: false)
        let weights = randomWeights(specification)
        let adapted = try AdaptedModel(model: model, weights: weights)
        let batch = tiny.batch([12, 5])
        let expected = try adapted.logits(batch)
        // Scale 1: A and B are the stack's factors.
        var correction = AdapterState(zeros: AdapterSpecification.stackLayout(maps: specification.maps, rank: 3))
        for (index, tensor) in correction.layout.tensors.enumerated() {
            let source = try #require(
                weights.trained.layout.index(map: tensor.map, role: tensor.role == .stackA ? .loraA : .loraB))
            correction.values.replaceSubrange(correction.layout.range(index), with: weights.trained.tensor(source))
        }
        try adapted.load(AdapterWeights(trained: AdapterState(zeros: specification.trainedLayout), correction: correction))
        #expect(Closeness(try adapted.logits(batch), expected).isWithin(norm: 1e-6))
        // Nothing is lost when the values change under the same layouts.
        try adapted.load(weights)
        #expect(try adapted.logits(batch) == expected)
    }

    @Test func `wrong tokens, lengths and adapters are refused with values and limits`() throws {
        let tiny = TinyModel(maximumPositions: 16)
        let model = try tiny.load()
        let empty = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))
        let adapted = try AdaptedModel(model: model, weights: empty)
        let token = #expect(throws: Failure.self) {
            try adapted.loss(TokenBatch(tokens: [1, 37, 2], starts: [0, 3], targets: [true, true, true]))
        }
        #expect(token?.message.contains("37") == true && token?.message.contains("vocabulary") == true)
        #expect(throws: Failure.self) { try adapted.makeDecoder().prefill([-1]) }
        #expect(throws: Failure.self) { try adapted.makeDecoder().prefill([]) }
        let length = #expect(throws: Failure.self) { try adapted.logits(tiny.batch([17])) }
        #expect(length?.message.contains("17") == true && length?.message.contains("16") == true)
        let decoder = adapted.makeDecoder()
        _ = try decoder.prefill([Int32](repeating: 1, count: 16))
        #expect(throws: Failure.self) { try decoder.step(1) }
        func weights(_ tensors: [AdapterTensor]) -> AdapterWeights {
            AdapterWeights(trained: AdapterState(zeros: AdapterLayout(tensors)))
        }
        let name = model.linearMaps[0].name
        func tensor(
            _ map: String, _ role: AdapterRole, _ rows: Int, _ columns: Int, rank: Int = 2, scale: Float = 1
        ) -> AdapterTensor {
            AdapterTensor(map: map, role: role, rows: rows, columns: columns, rank: rank, scale: scale)
        }
        for wrong in [
            [tensor("model.other", .loraA, 2, 21)], [tensor(name, .loraA, 2, 20), tensor(name, .loraB, 18, 2)],
            [tensor(name, .loraA, 2, 21)], [tensor(name, .loraA, 2, 21), tensor(name, .loraB, 18, 2, scale: 2)],
            [tensor(name, .loraA, 2, 21), tensor(name, .loraA, 2, 21), tensor(name, .loraB, 18, 2)],
        ] {
            #expect(throws: Failure.self) { try AdaptedModel(model: model, weights: weights(wrong)) }
        }
        // Nothing to predict: no loss, no gradient, no trap.
        var none: [Float] = []
        let nothing = try adapted.lossAndGradient(
            TokenBatch(tokens: [1], starts: [0, 1], targets: [true]), gradientScale: 1, gradient: &none)
        #expect(nothing == (0, 0))
        #expect(try adapted.loss(TokenBatch(tokens: [], starts: [0], targets: [])).isEmpty)
    }

    @Test(arguments: ComputeType.allCases.filter(\.isSupported))
    func `a long prompt decoded in parts equals the whole`(compute: ComputeType) throws {
        let tiny = TinyModel(architecture: .qwen3, heads: 4, keyValueHeads: 2)
        let model = try tiny.load(.nf4, compute: compute == .bfloat16 ? .bfloat16 : .float32)
        let adapted = try AdaptedModel(model: model, weights: AdapterWeights(trained: AdapterState(zeros: AdapterLayout([]))))
        let batch = tiny.batch([700])
        let all = try adapted.logits(batch)
        let logits = try adapted.makeDecoder().prefill(batch.tokens)
        #expect(Closeness(logits, all[(699 * 37)...]).isWithin(ofLargest: compute == .bfloat16 ? 1e-2 : 1e-5))
    }

    /// A correction of small rank, once as it is and once filled up with zeros until it is larger than its matrices.
    @Test(
        arguments: [(WeightForm.stored, ComputeChoice.float32), (.nf4, .float32)]
            + (ComputeType.bfloat16.isSupported ? [(.nf4, .bfloat16)] : []))
    func `a correction larger than its matrix is added to it, and computes the same`(
        form: WeightForm, compute: ComputeChoice
    ) throws {
        let tiny = TinyModel()
        let model = try tiny.load(form, compute: compute)
        let specification = try AdapterSpecification(
            method: .lora, maps: model.linearMaps, rank: 3, alpha: 5, rankStabilized: false)
        func filledUp(_ weights: AdapterWeights) throws -> AdapterWeights {
            let small = try #require(weights.correction)
            var large = AdapterState(zeros: AdapterSpecification.stackLayout(maps: specification.maps, rank: 1 << 20))
            for (index, tensor) in large.layout.tensors.enumerated() {
                let source = try #require(small.layout.index(map: tensor.map, role: tensor.role))
                let columns = small.layout.tensors[source].columns
                for (position, value) in small.tensor(source).enumerated() {
                    large.values[large.layout.offsets[index] + position / columns * tensor.columns + position % columns] = value
                }
            }
            var weights = weights
            weights.correction = large
            return weights
        }
        let batch = tiny.batch([9, 2, 70, 1])
        let branches = try AdaptedModel(model: model, weights: randomWeights(specification, correctionRank: 2))
        let summed = try AdaptedModel(
            model: model, weights: try filledUp(randomWeights(specification, correctionRank: 2)))
        for seed in [3, 4] as [UInt64] {
            let weights = randomWeights(specification, correctionRank: 2, seed: seed)
            try branches.load(weights)
            try summed.load(try filledUp(weights))
            var gradients = [[Float]](
                repeating: [Float](repeating: 0, count: branches.trainedLayout.parameterCount), count: 2)
            let first = try branches.lossAndGradient(batch, gradientScale: 1, gradient: &gradients[0]).loss
            let second = try summed.lossAndGradient(batch, gradientScale: 1, gradient: &gradients[1]).loss
            let isExact = compute == .float32
            #expect(abs(first - second) < (isExact ? 1e-6 : 1e-3) * first && first != second)
            let closeness = Closeness(gradients[1], gradients[0])
            #expect(closeness.isWithin(norm: isExact ? 1e-5 : 4e-2), "\(closeness)")
        }
    }
}
