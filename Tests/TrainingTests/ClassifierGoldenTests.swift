/// BERT and RoBERTa with a classifier's head against transformers, PEFT and torch.

import Adapters
import Checkpoints
import LinearAlgebra
import Model
import Plan
import Primitives
import Quantization
import TestSupport
import Testing
import Training

/// A golden classifier with its batch.
private struct GoldenClassifier {
    let checkpoint: CheckpointFolder
    let model: LanguageModel
    let adapter: PEFTAdapter
    let expected: SafetensorsFile
    let batch: TokenBatch
    /// The optimizer's settings.
    let optimizer: JSONValue

    init(_ name: String, form: WeightForm = .stored, compute: ComputeChoice = .float32) throws {
        let path = Golden.path("models/" + name)
        checkpoint = try CheckpointFolder(path: path)
        expected = try SafetensorsFile(path: path + "/expected.safetensors")
        adapter = try PEFTAdapter(folder: path + "/adapter")
        optimizer = try #require(try readJSON(path + "/case.json")["optimizer"])
        let labelCount = try #require(expected.tensors["base_logits"]).shape[1]
        model = try LanguageModel(
            checkpoint: checkpoint, quantization: form, compute: compute, task: .classify(labelCount: labelCount))
        let ids = try #require(expected.tensors["input_ids"])
        let mask = try #require(expected.tensors["attention_mask"]).integers()
        let all = try ids.integers()
        let kept = all.indices.filter { mask[$0] == 1 }
        let (count, length) = (ids.shape[0], ids.shape[1])
        batch = TokenBatch(
            tokens: kept.map { Int32(all[$0]) },
            starts: (0...count).map { end in kept.count { $0 < end * length } },
            labels: try #require(expected.tensors["labels"]).integers().map(Int32.init))
    }

    func adapted() throws -> AdaptedModel {
        try AdaptedModel(model: model, weights: try adapter.weights(maps: model.linearMaps))
    }

    func floats(_ name: String) throws -> [Float] { try #require(expected.tensors[name], "\(name)").floats() }

    /// What PEFT calls a tensor.
    static func key(_ tensor: AdapterTensor) -> String {
        let suffix =
            switch tensor.role {
            case .loraA: "lora_A.weight"
            case .loraB: "lora_B.weight"
            case .headWeight: "weight"
            default: "bias"
            }
        return "base_model.model.\(tensor.map).\(suffix)"
    }
}

@Suite struct ClassifierGoldenTests {
    static let names = ["bert-classifier", "roberta-classifier"]

    @Test(arguments: names)
    func `logits and losses of the base and of the adapter are those of transformers`(name: String) throws {
        let golden = try GoldenClassifier(name)
        // The base classifies with the head that the checkpoint holds.
        let empty = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))
        for (prefix, model) in [
            ("base", try AdaptedModel(model: golden.model, weights: empty)), ("adapter", try golden.adapted()),
        ] {
            let logits = Closeness(try model.classLogits(golden.batch), try golden.floats(prefix + "_logits"))
            #expect(logits.isWithin(ofLargest: 1e-4), "\(name) \(prefix): \(logits)")
            let parts = try model.loss(golden.batch)
            #expect(parts.allSatisfy { $0.targets == 1 })
            let mean = parts.reduce(0) { $0 + $1.loss } / Double(parts.count)
            let expected = Double(try golden.floats(prefix + "_loss")[0])
            #expect(abs(mean - expected) <= 1e-5 * expected, "\(name) \(prefix): \(mean) and \(expected)")
        }
        #expect(golden.checkpoint.headLabelCount == golden.model.headMaps.last?.outputs)
    }

    /// transformers 5.23 packs pooler and head too; with `llm_int8_skip_modules`, the head stays as it is.
    @Test func `classifiers that bitsandbytes packed give the logits of their decoded weights`() throws {
        let own = Golden.repository + "/Tests/Golden"
        let packed = try Set([Golden.folder, own].flatMap { try listFolder($0 + "/quant") })
            .filter { $0.hasPrefix("bnb-bert-") || $0.hasPrefix("bnb-roberta-") }
        #expect(packed.count >= 2)
        for name in packed.sorted() {
            let path = Golden.path("quant/" + name)
            let checkpoint = try CheckpointFolder(path: path)
            #expect(checkpoint.unusedPackedMaps.isEmpty, "\(name)")
            let expected = try SafetensorsFile(path: path + "/expected.safetensors")
            let (ids, logits) = (try #require(expected.tensors["input_ids"]), try #require(expected.tensors["logits"]))
            #expect(checkpoint.headLabelCount == logits.shape[1])
            let model = try LanguageModel(
                checkpoint: checkpoint, quantization: .stored, task: .classify(labelCount: logits.shape[1]))
            let batch = TokenBatch(
                tokens: try ids.integers().map(Int32.init), starts: (0...ids.shape[0]).map { $0 * ids.shape[1] },
                labels: [Int32](repeating: 0, count: ids.shape[0]))
            let empty = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))
            let closeness = Closeness(
                try AdaptedModel(model: model, weights: empty).classLogits(batch), try logits.floats())
            #expect(closeness.isWithin(ofLargest: 1e-5), "\(name): \(closeness)")
        }
    }

    @Test(arguments: names)
    func `every gradient is that of peft, the head's too`(name: String) throws {
        let golden = try GoldenClassifier(name)
        let model = try golden.adapted()
        let layout = model.weights.trained.layout
        var gradient = [Float](repeating: 0, count: layout.parameterCount)
        let count = golden.batch.sequenceCount
        let result = try model.lossAndGradient(golden.batch, gradientScale: 1 / Float(count), gradient: &gradient)
        #expect(result.targets == count)
        let expected = Double(try golden.floats("adapter_loss")[0])
        #expect(abs(result.loss / Double(count) - expected) <= 1e-5 * expected)
        for (index, tensor) in layout.tensors.enumerated() {
            let key = "grad." + GoldenClassifier.key(tensor)
            let closeness = Closeness(gradient[layout.range(index)], try golden.floats(key))
            #expect(closeness.isWithin(norm: 1e-4), "\(key): \(closeness)")
        }
        #expect(layout.tensors.count == golden.expected.names.count { $0.hasPrefix("grad.") })
        // Gradients are added: a second pass doubles them.
        let once = gradient
        _ = try model.lossAndGradient(golden.batch, gradientScale: 1 / Float(count), gradient: &gradient)
        #expect(Closeness(gradient, once.map { 2 * $0 }).isWithin(norm: 1e-6))
    }

    @Test(.enabled(if: ComputeType.bfloat16.isSupported), arguments: names)
    func `in bfloat16 logits are within 2 % of the largest and gradients within 5 % of their norm`(name: String) throws {
        let golden = try GoldenClassifier(name, compute: .bfloat16)
        let model = try golden.adapted()
        let logits = Closeness(try model.classLogits(golden.batch), try golden.floats("adapter_logits"))
        #expect(logits.isWithin(ofLargest: 2e-2) && !logits.isWithin(ofLargest: 1e-5), "\(logits)")
        let layout = model.weights.trained.layout
        var gradient = [Float](repeating: 0, count: layout.parameterCount)
        _ = try model.lossAndGradient(
            golden.batch, gradientScale: 1 / Float(golden.batch.sequenceCount), gradient: &gradient)
        for (index, tensor) in layout.tensors.enumerated() {
            let key = "grad." + GoldenClassifier.key(tensor)
            let closeness = Closeness(gradient[layout.range(index)], try golden.floats(key))
            #expect(closeness.isWithin(norm: 5e-2), "\(key): \(closeness)")
        }
    }

    @Test(arguments: names) func `five steps of AdamW follow torch`(name: String) throws {
        let golden = try GoldenClassifier(name)
        let model = try golden.adapted()
        var weights = model.weights
        let layout = weights.trained.layout
        var optimizer = Optimizer(
            .adamw, tensorCounts: layout.tensors.map(\.count),
            weightDecay: try #require(golden.optimizer["weight_decay"]?.double))
        let rate = try #require(golden.optimizer["lr"]?.double)
        let count = golden.batch.sequenceCount
        for reference in try golden.floats("adamw_losses") {
            var gradient = [Float](repeating: 0, count: layout.parameterCount)
            let loss = try model.lossAndGradient(golden.batch, gradientScale: 1 / Float(count), gradient: &gradient).loss
            #expect(abs(loss / Double(count) - Double(reference)) <= 1e-4 * Double(reference), "\(loss) \(reference)")
            optimizer.step(&weights.trained.values, gradient: gradient, learningRate: rate)
            try model.load(weights)
        }
        for (index, tensor) in layout.tensors.enumerated() {
            let key = "after5." + GoldenClassifier.key(tensor)
            let closeness = Closeness(weights.trained.tensor(index), try golden.floats(key))
            #expect(closeness.isWithin(norm: 1e-4), "\(key): \(closeness)")
        }
    }

    @Test(arguments: names, [true, false])
    func `a merged classifier needs no adapter, whether its class has a head or not`(name: String, isBare: Bool) throws {
        let golden = try GoldenClassifier(name)
        let folder = TemporaryFolder()
        var checkpoint = golden.checkpoint
        let labels = try #require(golden.model.headMaps.last).outputs
        if isBare {
            // The same encoder as a class without a head; then the mean of all states is what the head reads.
            var json = try readJSON(checkpoint.path + "/config.json")
            json.set("architectures", .array([.string(name.hasPrefix("bert") ? "BertModel" : "RobertaModel")]))
            makeFolders(folder.file("bare"))
            try writeFile(folder.file("bare/config.json"), Array(json.pretty.utf8))
            try writeFile(folder.file("bare/model.safetensors"), try readFile(checkpoint.path + "/model.safetensors"))
            checkpoint = try CheckpointFolder(path: folder.file("bare"))
            #expect(PEFTAdapter.HeadPlace(checkpoint.configuration) == .file)
        }
        func adapted(_ checkpoint: CheckpointFolder, _ weights: AdapterWeights) throws -> AdaptedModel {
            try AdaptedModel(
                model: try LanguageModel(checkpoint: checkpoint, quantization: .stored, task: .classify(labelCount: labels)),
                weights: weights)
        }
        let maps = checkpoint.configuration.linearMaps
        var generator = SeededGenerator(seed: 8, purpose: "head")
        let names = (0..<labels).map { "kind \($0)" }
        let adapter = PEFTAdapter(
            entries: golden.adapter.entries,
            head: checkpoint.configuration.head(labelCount: labels).map { map in
                PEFTAdapter.HeadEntry(
                    map: map.name, weight: (0..<map.outputs * map.inputs).map { _ in generator.symmetric(0.3) },
                    bias: (0..<map.outputs).map { _ in generator.symmetric(0.3) })
            }, labels: names)
        let expected = try adapted(checkpoint, try adapter.weights(maps: maps)).classLogits(golden.batch)
        try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: adapter, output: folder.file("merged"))
        let merged = try CheckpointFolder(path: folder.file("merged"))
        #expect(merged.headLabelCount == labels && merged.configuration.encoder?.labels == names)
        #expect(merged.configuration.encoder?.summary == checkpoint.configuration.encoder?.summary)
        let empty = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))
        let logits = Closeness(try adapted(merged, empty).classLogits(golden.batch), expected)
        #expect(logits.isWithin(ofLargest: 1e-5), "\(logits)")
        // Of another number of labels the checkpoint's head is not used, and a head of another kind is refused.
        #expect(throws: Failure.self) {
            try AdaptedModel(
                model: try LanguageModel(checkpoint: merged, quantization: .stored, task: .classify(labelCount: labels + 1)),
                weights: empty)
        }
        let wrong = PEFTAdapter(
            entries: golden.adapter.entries, head: [.init(map: "score", weight: [1], bias: [1])], origin: "some/adapter")
        let failure = #expect(throws: Failure.self) {
            try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: wrong, output: folder.file("wrong"))
        }
        #expect(failure?.message.contains("some/adapter belongs to another base model") == true)
    }
}
