/// Five AdamW steps on golden models, as torch and PEFT took them; training seen from outside.

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
import Training

/// A golden model with its adapter and its batch.
struct GoldenCase {
    let checkpoint: CheckpointFolder
    let model: AdaptedModel
    let expected: SafetensorsFile
    let examples: [Example]

    init(_ name: String, compute: ComputeChoice = .float32) throws {
        let path = Golden.path("models/" + name)
        checkpoint = try CheckpointFolder(path: path)
        expected = try SafetensorsFile(path: path + "/expected.safetensors")
        let language = try LanguageModel(checkpoint: checkpoint, quantization: .none, compute: compute)
        model = try AdaptedModel(
            model: language, weights: try PEFTAdapter(folder: path + "/adapter").weights(maps: language.linearMaps))
        let ids = try expected.tensors["input_ids"]!.integers()
        let mask = try expected.tensors["attention_mask"]!.integers()
        let labels = try expected.tensors["labels"]!.integers()
        let (rows, columns) = (expected.tensors["input_ids"]!.shape[0], expected.tensors["input_ids"]!.shape[1])
        examples = (0..<rows).map { row in
            let real = (row * columns..<(row + 1) * columns).filter { mask[$0] == 1 }
            return Example(
                tokens: real.map { Int32(ids[$0]) }, targets: real.enumerated().map { $0 > 0 && labels[$1] >= 0 },
                prompt: [], completion: nil, line: row + 1)
        }
    }
}

@Suite struct TrainingGoldenTests {
    static let causal = ["llama-gqa", "llama3-rope-scaled-tied", "qwen2-bias", "qwen3-qknorm"]

    func settings(_ golden: GoldenCase, _ name: String) throws -> (TrainingSettings, steps: Int) {
        let optimizer = try readJSON(Golden.path("models/\(name)/case.json"))["optimizer"]!
        var settings = TrainingSettings()
        settings.batchSize = golden.examples.count
        settings.learningRate = optimizer["lr"]!.double!
        settings.weightDecay = optimizer["weight_decay"]!.double!
        settings.gradientClip = 0
        return (settings, optimizer["steps"]!.int!)
    }

    @Test(arguments: causal) func fiveStepsOfAdamWFollowTorch(_ name: String) throws {
        let golden = try GoldenCase(name)
        let (settings, steps) = try settings(golden, name)
        let outcome = try LocalTrainer.train(
            model: golden.model, examples: golden.examples, settings: settings, stepRange: 0..<steps, totalSteps: steps,
            generator: SeededGenerator(seed: 0, purpose: "batches"))
        let losses = try golden.expected.tensors["adamw_losses"]!.floats()
        for (loss, reference) in zip(outcome.losses, losses) {
            #expect(abs(loss - Double(reference)) <= 1e-4 * Double(reference), "\(loss) \(reference)")
        }
        let layout = outcome.weights.trained.layout
        for (index, tensor) in layout.tensors.enumerated() {
            let name = "after5.base_model.model.\(tensor.map).lora_\(tensor.role == .loraA ? "A" : "B").weight"
            let reference = try #require(golden.expected.tensors[name]).floats()
            #expect(Closeness(outcome.weights.trained.tensor(index), reference).isWithin(norm: 1e-4), "\(name)")
        }
        #expect(golden.model.weights == outcome.weights)
        #expect(outcome.targetTokens == steps * golden.examples.reduce(0) { $0 + $1.targetCount })
    }

    /// At a fifth of the golden rate: beyond it 50 steps on these batches amplify any rounding. What rounding the activations
    /// that wait for the backward pass adds is held apart.
    @Test(.enabled(if: ComputeType.bfloat16.isSupported), arguments: causal)
    func `in bfloat16 the loss falls as it does in float32`(_ name: String) throws {
        func losses(_ compute: ComputeChoice, saved: ComputeType) throws -> [Double] {
            let golden = try GoldenCase(name, compute: compute)
            var (settings, _) = try settings(golden, name)
            settings.learningRate /= 5
            golden.model.savedActivations = saved
            return try LocalTrainer.train(
                model: golden.model, examples: golden.examples, settings: settings, stepRange: 0..<50, totalSteps: 50,
                generator: SeededGenerator(seed: 0, purpose: "batches")
            ).losses
        }
        let reference = try losses(.float32, saved: .float32)
        #expect(reference.last! < 0.99 * reference[0], "\(reference)")
        for (saved, share) in [(ComputeType.float32, 0.01), (.bfloat16, 0.02)] {
            for (loss, other) in zip(try losses(.bfloat16, saved: saved), reference) {
                #expect(abs(loss - other) <= share * other, "saved in \(saved.rawValue): \(loss) and \(other)")
            }
        }
    }

    @Test(arguments: causal) func evaluationGivesTheGoldenLoss(_ name: String) throws {
        let golden = try GoldenCase(name)
        let outcome = try Evaluation.evaluate(model: golden.model, examples: golden.examples)
        let reference = Double(try golden.expected.tensors["adapter_loss"]!.floats()[0])
        #expect(abs(outcome.loss - reference) <= 1e-5 * reference)
        #expect(outcome.targetTokens == golden.examples.reduce(0) { $0 + $1.targetCount } && outcome.exactMatches == nil)
    }

    @Test func accumulationTakesTheMeanOverAllTargetsOfAStep() throws {
        // Batches of one example with different numbers of targets, against one batch of all.
        var results: [TrainingOutcome] = []
        for (batch, accumulation) in [(3, 1), (1, 3)] {
            let golden = try GoldenCase("llama-gqa")
            var (settings, _) = try settings(golden, "llama-gqa")
            settings.optimizer = .sgd
            settings.batchSize = batch
            settings.gradientAccumulation = accumulation
            results.append(
                try LocalTrainer.train(
                    model: golden.model, examples: golden.examples, settings: settings, stepRange: 0..<2, totalSteps: 2,
                    generator: SeededGenerator(seed: 0, purpose: "batches")))
        }
        #expect(abs(results[0].meanLoss - results[1].meanLoss) < 1e-6)
        #expect(Closeness(results[0].weights.trained.values, results[1].weights.trained.values).isWithin(norm: 1e-5))
    }

    @Test func aScheduleGoesOnWhereTheLastCallStoppedAndAStopIsKept() throws {
        // SGD has no state, so that two calls of two steps are one of four on the same batches (all examples).
        func train(_ ranges: [Range<Int>], stopping: Bool = false) throws -> TrainingOutcome {
            let golden = try GoldenCase("llama-gqa")
            var (settings, _) = try settings(golden, "llama-gqa")
            settings.optimizer = .sgd
            settings.schedule = .linear
            settings.weightDecay = 0
            var outcome: TrainingOutcome?
            for range in ranges {
                outcome = try LocalTrainer.train(
                    model: golden.model, examples: golden.examples, settings: settings, stepRange: range, totalSteps: 4,
                    generator: SeededGenerator(seed: 0, purpose: "batches", round: 1)
                ) { $0.step != 1 || !stopping }
            }
            return outcome!
        }
        let whole = try train([0..<4])
        let halves = try train([0..<2, 2..<4])
        #expect(Closeness(whole.weights.trained.values, halves.weights.trained.values).isWithin(norm: 1e-5))
        let stopped = try train([0..<4], stopping: true)
        #expect(stopped.steps == 2)
        #expect(stopped.weights == (try train([0..<2])).weights)
    }

    @Test func lossesThatOverflowEndTheTrainingWithAdvice() throws {
        let golden = try GoldenCase("llama-gqa")
        var (settings, _) = try settings(golden, "llama-gqa")
        settings.optimizer = .sgd
        settings.learningRate = 1e30
        let failure = #expect(throws: Failure.self) {
            try LocalTrainer.train(
                model: golden.model, examples: golden.examples, settings: settings, stepRange: 0..<10, totalSteps: 10,
                generator: SeededGenerator(seed: 0, purpose: "batches"))
        }
        #expect(failure?.message.contains("lower --learning-rate") == true)
    }

    /// No later step tells that the last one diverged; an adapter that was there stays.
    @Test func aLastStepThatDivergesLeavesNoAdapter() throws {
        let golden = try GoldenCase("llama-gqa")
        var (settings, _) = try settings(golden, "llama-gqa")
        settings.learningRate = 1e300
        let failure = #expect(throws: Failure.self) {
            try LocalTrainer.train(
                model: golden.model, examples: golden.examples, settings: settings, stepRange: 0..<1, totalSteps: 1,
                generator: SeededGenerator(seed: 0, purpose: "batches"))
        }
        #expect(failure?.status == .badData && failure?.message.contains("out of range in step 1") == true)
        let folder = TemporaryFolder()
        let maps = golden.model.model.linearMaps
        func adapter(_ value: Float) -> PEFTAdapter {
            PEFTAdapter(entries: [
                .init(
                    map: maps[0].name, a: [Float](repeating: value, count: maps[0].inputs),
                    b: [Float](repeating: 1, count: maps[0].outputs), rank: 1, scale: 1, outputs: maps[0].outputs,
                    inputs: maps[0].inputs)
            ])
        }
        try adapter(1).write(folder: folder.file("a"), maps: maps)
        #expect(throws: Failure.self) { try adapter(.nan).write(folder: folder.file("a"), maps: maps) }
        #expect(try PEFTAdapter(folder: folder.file("a")).entries == adapter(1).entries)
        #expect(try listFolder(folder.file("")) == ["a"])
    }

    @Test func theStartFromGradientsDoesNotDependOnItsMemoryLimitAndLowersTheLoss() throws {
        let golden = try GoldenCase("llama-gqa")
        let specification = try AdapterSpecification(
            method: .loraSB, maps: golden.model.model.linearMaps, rank: 4, alpha: 1, rankStabilized: false)
        var generator = SeededGenerator(seed: 0, purpose: "lora-a")
        let model = try AdaptedModel(model: golden.model.model, weights: specification.initialWeights(&generator))
        let before = try Evaluation.evaluate(model: model, examples: golden.examples).loss
        var states: [AdapterState] = []
        for limit in [1, 1 << 30] {
            let (state, report) = try LoRASBStart.fromGradient(
                model: model, specification: specification, examples: golden.examples, batchSize: 2, learningRate: 1e-3,
                memoryLimit: limit, generator: generator)
            #expect(report.count == specification.maps.count)
            states.append(state)
        }
        #expect(states[0] == states[1])
        try model.load(specification.weights(ofStart: states[0], initial: model.weights))
        #expect(try Evaluation.evaluate(model: model, examples: golden.examples).loss < before)
        // R alone is trained from there.
        let (settings, _) = try settings(golden, "llama-gqa")
        let outcome = try LocalTrainer.train(
            model: model, examples: golden.examples, settings: settings, stepRange: 0..<5, totalSteps: 5,
            generator: SeededGenerator(seed: 0, purpose: "batches"))
        #expect(outcome.weights.trained.values.count == specification.maps.count * 16)
        #expect(outcome.weights.frozen == model.weights.frozen)
        #expect(outcome.losses.last! < before)
    }

    @Test func greedyTextIsWhatTheLogitsSayAndEndsAtItsLimits() throws {
        let golden = try GoldenCase("qwen3-qknorm")
        let prompt = golden.examples[0].tokens
        let generator = SeededGenerator(seed: 0, purpose: "generate")
        let (tokens, end) = try Generation.generate(
            model: golden.model, prompt: prompt, maximumTokens: 6, endTokens: [], generator: generator)
        #expect(tokens.count == 6 && end == .tokenLimit)
        var text = prompt
        let vocabulary = golden.checkpoint.configuration.vocabularySize
        for token in tokens {
            let logits = try golden.model.logits(
                TokenBatch(tokens: text, starts: [0, text.count], targets: [Bool](repeating: false, count: text.count))
            ).suffix(vocabulary)
            let best = logits.indices.max { logits[$0] < logits[$1] }! - logits.startIndex
            #expect(Int32(best) == token)
            text.append(token)
        }
        let ended = try Generation.generate(
            model: golden.model, prompt: prompt, maximumTokens: 6, endTokens: [Int(tokens[3])], generator: generator)
        #expect(ended.end == .endToken && ended.tokens == Array(tokens[..<tokens.firstIndex(of: tokens[3])!]))
        let positions = golden.checkpoint.configuration.maximumPositions
        let full = try Generation.generate(
            model: golden.model, prompt: prompt, maximumTokens: positions, endTokens: [], generator: generator)
        #expect(full.end == .positions && prompt.count + full.tokens.count == positions)
        let sampled = try (0..<2).map { _ in
            try Generation.generate(
                model: golden.model, prompt: prompt, maximumTokens: 8, endTokens: [],
                sampling: Sampling(temperature: 1, topP: 0.9),
                generator: generator
            ).tokens
        }
        #expect(sampled[0] == sampled[1])
        #expect(throws: Failure.self) {
            try Generation.generate(model: golden.model, prompt: [], maximumTokens: 1, endTokens: [], generator: generator)
        }
    }
}
