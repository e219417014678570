/// Models in GGUF files: the logits of the same weights in Hugging Face's form, and training on blocks as they lie.

import Adapters
import Checkpoints
import Datasets
import LinearAlgebra
import Model
import Plan
import Primitives
import Quantization
import TestSupport
import Testing
import Tokenizers
import Training

private let empty = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))

@Suite struct GGUFModelTests {
    static let converted = ["llama-gqa", "llama3-rope-scaled-tied", "qwen2-bias"]
    static let golden = ["llama-mixed", "qwen2-blocks"]
    let folder = TemporaryFolder()

    private func convert(_ name: String, type: TensorType = .f32) throws -> (source: CheckpointFolder, file: CheckpointFolder) {
        let source = try CheckpointFolder(path: Golden.path("models/" + name))
        let path = folder.file("\(name)-\(type.rawValue).gguf")
        try SampleModel(converting: source, type: type).write(path)
        return (source, try CheckpointFolder(path: path))
    }

    /// The unpadded tokens of a golden case.
    private func batch(_ name: String) throws -> TokenBatch {
        let file = try SafetensorsFile(path: Golden.path("models/\(name)/expected.safetensors"))
        let ids = try #require(file.tensors["input_ids"])
        let tokens = try ids.integers()
        let mask = try #require(file.tensors["attention_mask"]).integers()
        let (count, length) = (ids.shape[0], ids.shape[1])
        var (kept, starts): ([Int32], [Int]) = ([], [0])
        for sequence in 0..<count {
            for row in sequence * length..<(sequence + 1) * length where mask[row] == 1 { kept.append(Int32(tokens[row])) }
            starts.append(kept.count)
        }
        return TokenBatch(tokens: kept, starts: starts, targets: kept.indices.map { !starts.contains($0) })
    }

    private func logits(_ checkpoint: CheckpointFolder, _ batch: TokenBatch, _ weights: AdapterWeights = empty) throws -> [Float]
    {
        try AdaptedModel(model: try LanguageModel(checkpoint: checkpoint, quantization: .stored), weights: weights).logits(batch)
    }

    @Test(arguments: converted) func `a converted model has the logits of its folder, with an adapter and without`(
        name: String
    ) throws {
        let (source, file) = try convert(name)
        #expect(file.isGGUF)
        #expect(file.configuration.linearMaps == source.configuration.linearMaps)
        let batch = try batch(name)
        let adapter = try PEFTAdapter(folder: Golden.path("models/\(name)/adapter")).weights(
            maps: source.configuration.linearMaps)
        for weights in [empty, adapter] {
            let closeness = Closeness(try logits(file, batch, weights), try logits(source, batch, weights))
            #expect(closeness.isWithin(ofLargest: 1e-6), "\(closeness)")
        }
        // What is equal in every number is the same base; the length that Llama 3's scaling names is not among them.
        if source.configuration.ropeScaling == nil {
            #expect(try file.baseDigest(cache: nil) == source.baseDigest(cache: nil))
        }
    }

    @Test(arguments: [TensorType.f16, .bf16]) func `halves are read as they are rounded, rows of q and k in their order`(
        type: TensorType
    ) throws {
        let (source, file) = try convert("llama-gqa", type: type)
        for map in source.configuration.linearMaps.prefix(7) {
            let rounded = try source.tensor(map.name + ".weight").floats().map {
                type == .f16 ? Float(Float16($0)) : bfloat16Value(bfloat16Bits($0))
            }
            let matrix = try QuantizedMatrix.load(map: map, from: file, as: .stored)
            #expect(matrix.decoded() == rounded, "\(map.name)")
            #expect(try file.tensor(map.name + ".weight").floats() == rounded)
        }
        let batch = try batch("llama-gqa")
        #expect(Closeness(try logits(file, batch), try logits(source, batch)).isWithin(ofLargest: 2e-2))
        #expect(try file.baseDigest(cache: nil) != source.baseDigest(cache: nil))
    }

    /// Products of a few tokens, as in generation, read weights in another way than those of many.
    @Test(arguments: [TensorType.f32, .f16, .bf16]) func `logits of a few tokens are those of many`(type: TensorType) throws {
        let (_, file) = try convert("llama-gqa", type: type)
        for checkpoint in [file, try CheckpointFolder(path: Sample.path("llama-mixed.gguf"))] {
            let tokens = (0..<40).map { Int32($0 * 7 % 300) }
            let all = try logits(checkpoint, TokenBatch(tokens: tokens, starts: [0, 40], targets: tokens.map { _ in false }))
            for count in [1, 3] {
                let few = TokenBatch(
                    tokens: Array(tokens.prefix(count)), starts: [0, count], targets: [Bool](repeating: false, count: count))
                let values = try logits(checkpoint, few)
                #expect(Closeness(values, all.prefix(values.count)).isWithin(ofLargest: 1e-5))
            }
        }
    }

    @Test(arguments: [WeightForm.nf4, .int8]) func `a dense file is quantized as its folder is`(form: WeightForm) throws {
        let (source, file) = try convert("llama-gqa")
        for map in source.configuration.linearMaps.prefix(3) {
            #expect(
                try QuantizedMatrix.load(map: map, from: file, as: form).decoded()
                    == QuantizedMatrix.load(map: map, from: source, as: form).decoded())
        }
    }

    @Test(arguments: golden) func `files of the gguf package have the logits that transformers computes from them`(
        name: String
    ) throws {
        let checkpoint = try CheckpointFolder(path: Sample.path(name + ".gguf"))
        let (batch, expected) = try Sample.expected(name)
        let closeness = Closeness(try logits(checkpoint, batch), expected)
        #expect(closeness.isWithin(ofLargest: 1e-4), "\(closeness)")
        #expect(try LanguageModel(checkpoint: checkpoint, quantization: .stored).weightFormat.hasPrefix("q"))
    }

    @Test(arguments: golden) func `training on blocks as they lie equals training on the floats they stand for`(
        name: String
    ) throws {
        let checkpoint = try CheckpointFolder(path: Sample.path(name + ".gguf"))
        let maps = checkpoint.configuration.linearMaps
        let (batch, _) = try Sample.expected(name)
        let specification = try AdapterSpecification(method: .lora, maps: maps, rank: 4, alpha: 8, rankStabilized: false)
        let examples = (0..<batch.starts.count - 1).map { index in
            let range = batch.starts[index]..<batch.starts[index + 1]
            return Example(
                tokens: Array(batch.tokens[range]), targets: Array(batch.targets[range]), prompt: [], completion: nil, line: 1)
        }
        var settings = TrainingSettings()
        settings.batchSize = examples.count
        settings.learningRate = 1e-2
        var outcomes: [(weights: [Float], losses: [Double])] = []
        for form in [WeightForm.stored, .none] {
            var draws = SeededGenerator(seed: 4, purpose: "lora-a")
            let model = try AdaptedModel(
                model: try LanguageModel(checkpoint: checkpoint, quantization: form),
                weights: specification.initialWeights(&draws))
            let outcome = try LocalTrainer.train(
                model: model, examples: examples, settings: settings, stepRange: 0..<5, totalSteps: 5,
                generator: SeededGenerator(seed: 0, purpose: "batches"))
            outcomes.append((outcome.weights.trained.values, outcome.losses))
        }
        #expect(Closeness(outcomes[0].losses, outcomes[1].losses).isWithin(ofLargest: 1e-6))
        let closeness = Closeness(outcomes[0].weights, outcomes[1].weights)
        #expect(closeness.isWithin(norm: 1e-5), "\(closeness)")
        #expect(outcomes[0].losses.last! < outcomes[0].losses[0])
    }

    @Test func `a bias that qwen2 does not have is refused`() throws {
        let source = try CheckpointFolder(path: Golden.path("models/qwen2-bias"))
        var model = try SampleModel(converting: source)
        let size = source.configuration.hiddenSize
        model.tensors.append(
            GGUFTensor(name: "blk.1.attn_output.bias", shape: [size], floats: [Float](repeating: 1, count: size)))
        try model.write(folder.file("stray.gguf"))
        let message = refusal(folder.file("stray.gguf"))
        #expect(message.contains("tensor blk.1.attn_output.bias is none that this qwen2 model computes with"), "\(message)")
    }

    @Test func `a memory plan counts floats as copied where their rows are not in order`() throws {
        let (source, file) = try convert("llama-gqa")
        let maps = file.configuration.linearMaps
        let specification = try AdapterSpecification(method: .lora, maps: maps, rank: 4, alpha: 8, rankStabilized: false)
        func held(_ checkpoint: CheckpointFolder) throws -> Int? {
            let training = MemoryPlan.Training(
                specification: specification, sequences: 1, sequenceLength: 8, optimizerBytes: 0, weights: .none,
                compute: .float32, savedActivations: .float32)
            return try MemoryPlan(training, of: checkpoint).parts.first { $0.name == "weights of linear maps" }?.bytes
        }
        let turned = maps.filter { ["q_proj", "k_proj"].contains($0.moduleName) }
        #expect(try held(source) == 0)
        #expect(try held(file) == turned.reduce(0) { $0 + 4 * $1.outputs * $1.inputs })
    }

    @Test func `blocks are not quantized again, and nothing but the stored form or floats can be asked for`() throws {
        let checkpoint = try CheckpointFolder(path: Sample.path("qwen2-blocks.gguf"))
        let failure = #expect(throws: Failure.self) { try LanguageModel(checkpoint: checkpoint, quantization: .nf4) }
        #expect(failure?.message.contains("is quantized already") == true)
        #expect(checkpoint.configuration.linearMaps.allSatisfy { checkpoint.isQuantized($0.name) })
        #expect(throws: Failure.self) {
            try ModelQuantization().write(checkpoint, to: folder.file("quantized"))
        }
    }

    @Test func `a merged file is a folder with the same logits, the same tokenizer and no blocks`() throws {
        let checkpoint = try CheckpointFolder(path: Sample.path("llama-mixed.gguf"))
        let maps = checkpoint.configuration.linearMaps
        let specification = try AdapterSpecification(method: .lora, maps: maps, rank: 2, alpha: 4, rankStabilized: false)
        var draws = SeededGenerator(seed: 5, purpose: "lora-a")
        var weights = specification.initialWeights(&draws)
        for index in weights.trained.values.indices { weights.trained.values[index] += draws.symmetric(0.1) }
        let adapter = PEFTAdapter(entries: exportedFactors(weights: weights))
        try ModelFolderWriting.merge(checkpoint: checkpoint, adapter: adapter, output: folder.file("merged"))
        let merged = try CheckpointFolder(path: folder.file("merged"))
        let (batch, _) = try Sample.expected("llama-mixed")
        let closeness = Closeness(try logits(merged, batch), try logits(checkpoint, batch, weights))
        #expect(closeness.isWithin(ofLargest: 5e-3), "\(closeness)")
        #expect(try merged.tokenizerDigest() == checkpoint.tokenizerDigest())
        #expect(try ModelText(checkpoint: merged).endToken == 2)
    }
}
