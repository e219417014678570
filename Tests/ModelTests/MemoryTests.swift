/// What activations take: rounded, run again or kept, and planned.

import Adapters
import Checkpoints
import LinearAlgebra
import Model
import Primitives
import Quantization
import TestSupport
import Testing

private struct Variant: Sendable, CustomStringConvertible {
    enum Base: Sendable {
        case causal(TinyModel)
        case encoder(TinyEncoder)
    }

    var base: Base
    var method = AdapterMethod.lora
    var description: String {
        switch base {
        case .causal(let tiny): "\(tiny.architecture.rawValue) \(method.rawValue)"
        case .encoder(let tiny): "\(tiny.architecture.rawValue) \(method.rawValue)"
        }
    }

    var batch: TokenBatch {
        let lengths = [33, 80, 5, 70, 1]
        return switch base {
        case .causal(let tiny): tiny.batch(lengths)
        case .encoder(let tiny): tiny.batch(lengths)
        }
    }

    private func checkpoint(_ folder: TemporaryFolder) throws -> CheckpointFolder {
        switch base {
        case .causal(let tiny): try tiny.write(to: folder.path)
        case .encoder(let tiny): try tiny.write(to: folder.path)
        }
        return try CheckpointFolder(path: folder.path)
    }

    private func specification(_ model: LanguageModel) throws -> AdapterSpecification {
        try AdapterSpecification(
            method: method, maps: model.linearMaps, rank: 3, alpha: 5, rankStabilized: false, head: model.headMaps)
    }

    func make(_ compute: ComputeChoice = .float32) throws -> AdaptedModel {
        let model: LanguageModel =
            switch base {
            case .causal(let tiny): try tiny.load(compute: compute)
            case .encoder(let tiny): try tiny.load(compute: compute)
            }
        return try AdaptedModel(model: model, weights: randomWeights(try specification(model)))
    }

    /// What one block's activations of `batch` take.
    func blockBytes(saved: ComputeType) throws -> Int {
        let training = MemoryPlan.Training(
            specification: try specification(try make().model), sequences: 1, sequenceLength: batch.tokens.count,
            optimizerBytes: 0, weights: .stored, compute: .float32, savedActivations: saved)
        let folder = TemporaryFolder()
        let plan = try MemoryPlan(training, of: try checkpoint(folder))
        return plan.activationLimit / plan.blockCount
    }
}

private func gradient(
    _ model: AdaptedModel, _ batch: TokenBatch, saved: ComputeType, limit: Int = ActivationMemory.defaultLimit
) throws -> [Float] {
    model.savedActivations = saved
    model.activationMemoryLimit = limit
    var gradient = [Float](repeating: 0, count: model.trainedLayout.parameterCount)
    _ = try model.lossAndGradient(batch, gradientScale: 0.01, gradient: &gradient)
    return gradient
}

@Suite struct MemoryTests {
    private static let variants = [
        Variant(base: .causal(TinyModel(layers: 3))),
        Variant(base: .causal(TinyModel(architecture: .qwen2, layers: 3, keyValueHeads: 3, tied: true, biases: true))),
        Variant(base: .causal(TinyModel(architecture: .qwen3, layers: 3, heads: 4, keyValueHeads: 2)), method: .ffaLoRA),
        Variant(base: .causal(TinyModel(layers: 3)), method: .loraSB),
        Variant(base: .encoder(TinyEncoder(layers: 3))),
        Variant(base: .encoder(TinyEncoder(architecture: .roberta, layers: 3)), method: .ffaLoRA),
    ]

    @Test(arguments: variants)
    private func `rounding what waits for the backward pass moves a gradient by little`(variant: Variant) throws {
        let batch = variant.batch
        let exact = try gradient(try variant.make(), batch, saved: .float32)
        let saved = Closeness(try gradient(try variant.make(), batch, saved: .bfloat16), exact)
        #expect(saved.isWithin(norm: 1e-2) && !saved.isWithin(norm: 1e-6), "\(saved)")
        guard ComputeType.bfloat16.isSupported else { return }
        let both = Closeness(try gradient(try variant.make(.bfloat16), batch, saved: .bfloat16), exact)
        #expect(both.isWithin(norm: 5e-2), "\(both)")
    }

    @Test(arguments: variants, [ComputeType.float32, .bfloat16])
    private func `how many blocks run again changes no bit`(variant: Variant, saved: ComputeType) throws {
        let batch = variant.batch
        let block = try variant.blockBytes(saved: saved)
        #expect(block > 0)
        for compute in ComputeType.bfloat16.isSupported ? [ComputeChoice.float32, .bfloat16] : [.float32] {
            let all = try gradient(try variant.make(compute), batch, saved: saved)
            for limit in [0, block, 2 * block] {
                let values = try gradient(try variant.make(compute), batch, saved: saved, limit: limit)
                #expect(values.map(\.bitPattern) == all.map(\.bitPattern), "\(compute) \(limit) bytes")
            }
        }
    }

    /// The gradient of a whole matrix reads what attention wrote, and keeps it; that of B or R alone does not.
    @Test(arguments: [AdapterMethod.ffaLoRA, .loraSB])
    func `without attention's output gradients are those that the whole matrices' gradients give`(
        method: AdapterMethod
    ) throws {
        let variant = Variant(base: .causal(TinyModel(layers: 3)), method: method)
        let model = try variant.make()
        let weights = model.weights
        let layout = model.trainedLayout
        let own = try gradient(model, variant.batch, saved: .float32)
        var dense: [String: [Float]] = [:]
        try model.denseGradient(variant.batch, maps: model.model.linearMaps.map(\.name), into: &dense)
        let frozen = try #require(weights.frozen)
        func factor(_ map: LinearMap, _ role: AdapterRole) throws -> [Float] {
            Array(frozen.tensor(try #require(frozen.layout.index(map: map.name, role: role))))
        }
        for map in model.model.linearMaps {
            let whole = try #require(dense[map.name]).map { 0.01 * $0 }
            let a = try factor(map, .loraA)
            let role: AdapterRole = method == .loraSB ? .core : .loraB
            let index = try #require(layout.index(map: map.name, role: role))
            var expected = multiply(whole, a, m: map.outputs, n: 3, k: map.inputs, transposeB: true)
            if method == .loraSB {
                expected = multiply(try factor(map, .loraB), expected, m: 3, n: 3, k: map.outputs, transposeA: true)
            }
            let scale = layout.tensors[index].scale
            let closeness = Closeness(own[layout.range(index)], expected.map { scale * $0 })
            #expect(closeness.isWithin(norm: 1e-5), "\(map.name): \(closeness)")
        }
    }

    @Test func `labels of many texts are those of each text alone`() throws {
        let tiny = TinyEncoder()
        let model = try Variant(base: .encoder(tiny)).make()
        let batch = tiny.batch([Int](repeating: 80, count: 14))
        let logits = try model.classLogits(batch)
        #expect(logits.count == 14 * tiny.labels)
        for index in 0..<14 {
            let alone = TokenBatch(tokens: Array(batch.tokens[index * 80..<index * 80 + 80]), starts: [0, 80], labels: [0])
            let part = logits[index * tiny.labels..<(index + 1) * tiny.labels]
            #expect(Closeness(part, try model.classLogits(alone)).isWithin(norm: 1e-5))
        }
    }

    private func plan(
        sequences: Int = 2, length: Int = 64, saved: ComputeType = .float32, limit: Int? = nil
    ) throws -> MemoryPlan {
        let checkpoint = try CheckpointFolder(path: Golden.path("models/llama-gqa"))
        let specification = try AdapterSpecification(
            method: .lora, maps: checkpoint.configuration.linearMaps, rank: 4, alpha: 8, rankStabilized: false)
        let training = MemoryPlan.Training(
            specification: specification, sequences: sequences, sequenceLength: length, optimizerBytes: 1000, weights: .stored,
            compute: .float32, savedActivations: saved)
        return try MemoryPlan(training, of: checkpoint, limit: limit)
    }

    @Test func `a plan keeps as many blocks as its limit allows, and says what it needs at least`() throws {
        let whole = try plan()
        #expect(whole.savedBlocks == whole.blockCount && whole.blockCount == 3)
        #expect(whole.parts.allSatisfy { $0.bytes >= 0 } && whole.parts.reduce(0) { $0 + $1.bytes } == whole.peak)
        #expect(try plan(limit: whole.peak).savedBlocks == 3)
        let fewer = try plan(limit: whole.peak - 1)
        #expect(fewer.savedBlocks == 2 && fewer.peak < whole.peak)
        let least = whole.peak - whole.activationLimit
        #expect(try plan(limit: least).savedBlocks == 0 && plan(limit: least).activationLimit == 0)
        let failure = #expect(throws: Failure.self) { try plan(limit: least - 1) }
        #expect(failure?.status == .usage && failure?.message.contains("needs \((least >> 20) + 1) MiB") == true)
        // Rounded, activations take half.
        let rounded = try plan(saved: .bfloat16)
        #expect(2 * rounded.activationLimit < whole.activationLimit * 11 / 10)
    }

    @Test func `a plan is for the tokens that run at once`() throws {
        #expect(try plan(sequences: 1, length: 64).tokensAtOnce == 64)
        #expect(try plan(sequences: 2, length: 64).tokensAtOnce == 128)
        // Shorter sequences than the longest fill 512 tokens up; a longer one runs alone.
        #expect(try plan(sequences: 8, length: 100).tokensAtOnce == 512)
        #expect(try plan(sequences: 8, length: 700).tokensAtOnce == 700)
    }
}
