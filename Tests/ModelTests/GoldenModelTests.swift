/// Logits, losses and gradients against transformers and peft.

import Adapters
import Checkpoints
import LinearAlgebra
import Model
import Primitives
import Quantization
import TestSupport
import Testing

/// The inputs of a golden case, with the padded tokens left out.
private struct GoldenBatch {
    var batch: TokenBatch
    /// Rows of the padded `[sequences, length]` that were kept.
    var rows: [Int]

    init(_ file: SafetensorsFile) throws {
        let ids = try #require(file.tensors["input_ids"])
        let mask = try #require(file.tensors["attention_mask"]).integers()
        let labels = try #require(file.tensors["labels"]).integers()
        let tokens = try ids.integers()
        let (count, length) = (ids.shape[0], ids.shape[1])
        var starts = [0]
        rows = []
        for sequence in 0..<count {
            for row in sequence * length..<(sequence + 1) * length where mask[row] == 1 { rows.append(row) }
            starts.append(rows.count)
        }
        batch = TokenBatch(tokens: rows.map { Int32(tokens[$0]) }, starts: starts, targets: rows.map { labels[$0] >= 0 })
    }

    /// Rows of `[sequences, length, vocabulary]` logits that were kept.
    func kept(_ logits: StoredTensor) throws -> [Float] {
        let values = try logits.floats()
        let width = logits.shape[2]
        return rows.flatMap { values[$0 * width..<($0 + 1) * width] }
    }
}

private let empty = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))

@Suite struct GoldenModelTests {
    static let names = ["llama-gqa", "llama3-rope-scaled-tied", "qwen2-bias", "qwen3-qknorm"]

    private func adapter(_ name: String, _ model: LanguageModel) throws -> AdapterWeights {
        let entries = try PEFTAdapter(folder: Golden.path("models/\(name)/adapter")).entries
        let tensors = entries.flatMap { entry in
            [
                AdapterTensor(
                    map: entry.map, role: .loraA, rows: entry.rank, columns: entry.inputs, rank: entry.rank, scale: entry.scale),
                AdapterTensor(
                    map: entry.map, role: .loraB, rows: entry.outputs, columns: entry.rank, rank: entry.rank, scale: entry.scale),
            ]
        }
        return AdapterWeights(
            trained: AdapterState(layout: AdapterLayout(tensors), values: entries.flatMap { $0.a + $0.b }))
    }

    @Test(arguments: names)
    func `logits and losses of the base and of the adapter are those of transformers`(name: String) throws {
        let model = try LanguageModel(
            checkpoint: try CheckpointFolder(path: Golden.path("models/" + name)), quantization: .stored)
        let file = try SafetensorsFile(path: Golden.path("models/\(name)/expected.safetensors"))
        let golden = try GoldenBatch(file)
        for (prefix, weights) in [("base", empty), ("adapter", try adapter(name, model))] {
            let adapted = try AdaptedModel(model: model, weights: weights)
            let logits = Closeness(
                try adapted.logits(golden.batch), try golden.kept(try #require(file.tensors[prefix + "_logits"])))
            #expect(logits.isWithin(ofLargest: 1e-4), "\(name) \(prefix): \(logits)")
            let parts = try adapted.loss(golden.batch)
            let mean = parts.reduce(0) { $0 + $1.loss } / Double(parts.reduce(0) { $0 + $1.targets })
            let expected = Double(try #require(file.tensors[prefix + "_loss"]).floats()[0])
            #expect(abs(mean - expected) <= 1e-5 * expected, "\(name) \(prefix): \(mean) and \(expected)")
        }
    }

    @Test(arguments: names)
    func `every gradient is that of peft`(name: String) throws {
        let model = try LanguageModel(
            checkpoint: try CheckpointFolder(path: Golden.path("models/" + name)), quantization: .stored)
        let file = try SafetensorsFile(path: Golden.path("models/\(name)/expected.safetensors"))
        let golden = try GoldenBatch(file)
        let weights = try adapter(name, model)
        let adapted = try AdaptedModel(model: model, weights: weights)
        let layout = weights.trained.layout
        var gradient = [Float](repeating: 0, count: layout.parameterCount)
        let targets = try adapted.loss(golden.batch).reduce(0) { $0 + $1.targets }
        let result = try adapted.lossAndGradient(golden.batch, gradientScale: 1 / Float(targets), gradient: &gradient)
        #expect(result.targets == targets)
        let expected = Double(try #require(file.tensors["adapter_loss"]).floats()[0])
        #expect(abs(result.loss / Double(targets) - expected) <= 1e-5 * expected)
        var seen = 0
        for (index, tensor) in layout.tensors.enumerated() {
            let key = "grad.base_model.model.\(tensor.map).lora_\(tensor.role == .loraA ? "A" : "B").weight"
            let closeness = Closeness(gradient[layout.range(index)], try #require(file.tensors[key], "\(key)").floats())
            #expect(closeness.isWithin(norm: 1e-4), "\(key): \(closeness)")
            seen += 1
        }
        #expect(seen == file.names.filter { $0.hasPrefix("grad.") }.count)
        // Gradients are added: a second pass doubles them.
        let once = gradient
        _ = try adapted.lossAndGradient(golden.batch, gradientScale: 1 / Float(targets), gradient: &gradient)
        #expect(Closeness(gradient, once.map { 2 * $0 }).isWithin(norm: 1e-6))
    }

    @Test(.enabled(if: ComputeType.bfloat16.isSupported), arguments: names)
    func `in bfloat16 logits are within 2 % of the largest and gradients within 5 % of their norm`(name: String) throws {
        let model = try LanguageModel(
            checkpoint: try CheckpointFolder(path: Golden.path("models/" + name)), quantization: .stored, compute: .bfloat16)
        let file = try SafetensorsFile(path: Golden.path("models/\(name)/expected.safetensors"))
        let golden = try GoldenBatch(file)
        let weights = try adapter(name, model)
        let adapted = try AdaptedModel(model: model, weights: weights)
        let logits = Closeness(
            try adapted.logits(golden.batch), try golden.kept(try #require(file.tensors["adapter_logits"])))
        #expect(logits.isWithin(ofLargest: 2e-2) && !logits.isWithin(ofLargest: 1e-4), "\(logits)")
        let layout = weights.trained.layout
        var gradient = [Float](repeating: 0, count: layout.parameterCount)
        let targets = try adapted.loss(golden.batch).reduce(0) { $0 + $1.targets }
        _ = try adapted.lossAndGradient(golden.batch, gradientScale: 1 / Float(targets), gradient: &gradient)
        for (index, tensor) in layout.tensors.enumerated() {
            let key = "grad.base_model.model.\(tensor.map).lora_\(tensor.role == .loraA ? "A" : "B").weight"
            let closeness = Closeness(gradient[layout.range(index)], try #require(file.tensors[key], "\(key)").floats())
            #expect(closeness.isWithin(norm: 5e-2), "\(key): \(closeness)")
        }
    }

    @Test func `a checkpoint in bitsandbytes' 4-bit form gives the logits of its dequantized weights`() throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("quant/bnb4bit-llama"))
        let file = try SafetensorsFile(path: Golden.path("quant/bnb4bit-llama/expected.safetensors"))
        let golden = try GoldenBatch(file)
        for form in [WeightForm.stored, .none] {
            let model = try LanguageModel(checkpoint: checkpoint, quantization: form)
            let adapted = try AdaptedModel(model: model, weights: empty)
            let logits = Closeness(try adapted.logits(golden.batch), try golden.kept(try #require(file.tensors["logits"])))
            #expect(logits.isWithin(ofLargest: 1e-4), "\(logits)")
            let parts = try adapted.loss(golden.batch)
            let mean = parts.reduce(0) { $0 + $1.loss } / Double(parts.reduce(0) { $0 + $1.targets })
            let expected = Double(try #require(file.tensors["loss"]).floats()[0])
            #expect(abs(mean - expected) <= 1e-5 * expected)
        }
    }

    @Test(arguments: ["bnb-fp4-plain", "bnb-nf4-bf16-storage", "bnb-int8"])
    func `other forms that transformers writes give the logits of their decoded weights`(name: String) throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("quant/" + name))
        let file = try SafetensorsFile(path: Golden.path("quant/\(name)/expected.safetensors"))
        let tokens = try #require(file.tensors["input_ids"])
        let ids = try tokens.integers().map { Int32($0) }
        let length = tokens.shape[1]
        let expected = try #require(file.tensors["logits"]).floats()
        let model = try LanguageModel(checkpoint: checkpoint, quantization: .stored)
        let adapted = try AdaptedModel(model: model, weights: empty)
        let batch = TokenBatch(
            tokens: ids, starts: Array(stride(from: 0, through: ids.count, by: length)),
            targets: ids.indices.map { $0 % length > 0 })
        let closeness = Closeness(try adapted.logits(batch), expected)
        #expect(closeness.isWithin(ofLargest: name == "bnb-int8" ? 1e-4 : 1e-2), "\(closeness)")
    }

    @Test(arguments: names)
    func `decoding token by token gives the logits of the whole sequence`(name: String) throws {
        let model = try LanguageModel(
            checkpoint: try CheckpointFolder(path: Golden.path("models/" + name)), quantization: .stored)
        let golden = try GoldenBatch(try SafetensorsFile(path: Golden.path("models/\(name)/expected.safetensors")))
        let adapted = try AdaptedModel(model: model, weights: try adapter(name, model))
        let all = try adapted.logits(golden.batch)
        let width = model.configuration.vocabularySize
        for sequence in 0..<golden.batch.sequenceCount {
            let tokens = Array(golden.batch.tokens[golden.batch.starts[sequence]..<golden.batch.starts[sequence + 1]])
            let first = golden.batch.starts[sequence]
            let decoder = adapted.makeDecoder()
            let split = tokens.count / 2
            var logits = try decoder.prefill(Array(tokens[..<split]))
            for position in split...tokens.count {
                let row = first + position - 1
                #expect(Closeness(logits, all[row * width..<(row + 1) * width]).isWithin(ofLargest: 1e-5))
                if position < tokens.count { logits = try decoder.step(tokens[position]) }
            }
        }
    }
}
