/// Classification over the engine: from texts to labels, in every strategy, with the same bits on any number of threads.

import Adapters
import Checkpoints
import ClientCore
import ClientEngine
import CoordinatorCore
import Datasets
import FoundationEssentials
import LinearAlgebra
import Plan
import Primitives
import Simulation
import TestSupport
import Testing

/// Texts of three labels and a BERT of three layers, in a folder of its own.
private final class ClassifierBench {
    let folder = TemporaryFolder()
    let base: EngineBase
    let maps: [LinearMap]

    init(_ golden: String = "bert-classifier", isBare: Bool = false) throws {
        try TinyEncoder.write(golden, isBare: isBare, to: folder.file("base"))
        base = try EngineBase(modelFolder: folder.file("base"))
        maps = base.checkpoint.configuration.linearMaps
    }

    func plan(_ strategy: StrategyName) throws -> FederationPlan {
        var plan = FederationPlan()
        plan.strategy = strategy
        (plan.task, plan.labels) = (.classify, TinyEncoder.labels)
        plan.rounds = 2
        plan.minimumClients = 2
        plan.localSteps = 2
        plan.batchSize = 3
        plan.sequenceLength = 32
        plan.ranks = strategy == .flora ? [2, 4] : [4]
        plan.learningRate = 0.01
        plan.seed = EngineBench.seed
        plan.settleTask(for: base.checkpoint.configuration)
        try plan.validate(for: base.checkpoint)
        return plan
    }

    private func records(_ count: Int, _ seed: UInt64) throws -> [Record] {
        try DataFile.read(Array(TinyEncoder.records(count, seed: seed).utf8), path: "texts.jsonl")
    }

    /// The adapter and every evaluation's loss and counts.
    func run(_ plan: FederationPlan) throws -> (weights: AdapterWeights, stored: StoredFederation) {
        let store = MemoryFederationStore()
        let federation = try SimulatedFederation(
            store: store, plan: plan, maps: maps, start: try RunStart(plan: plan, maps: maps, initial: nil), runID: "classifier",
            clients: (0..<2).map { (EngineBench.name($0), plan.strategy == .flora ? plan.ranks[$0] : nil) }, kernelPath: "test",
            stopwatch: { .zero }
        ) { name, index in
            try EngineWork(
                name: name, base: base, records: try records(6 + 3 * index, UInt64(index)),
                evaluationRecords: index == 0 ? try records(9, 9) : nil, labelField: "category"
            ) { _ in true }
        }
        try federation.run { _, _ in }
        return (try federation.service.weights(afterRound: nil), try #require(try store.load()))
    }
}

@Suite struct ClassifierFederationTests {
    @Test(arguments: StrategyName.allCases)
    func everyStrategyTrainsTheHeadWithTheSameBitsOnAnyNumberOfThreads(strategy: StrategyName) throws {
        let bench = try ClassifierBench()
        let plan = try bench.plan(strategy)
        let (weights, stored) = try bench.run(plan)
        let head = try #require(weights.trained.splittingHead().head)
        #expect(head.layout.tensors.map(\.map) == ["classifier", "classifier"])
        let start = try #require(plan.derivedHead(try plan.specification(rank: plan.ranks[0], maps: bench.maps)))
        #expect(head.values != start.values)
        let evaluations = stored.evaluations.sorted { $0.round < $1.round }
        #expect(evaluations.count == 3 && Set(evaluations.map(\.lossSum)).count == 3)
        #expect(evaluations.allSatisfy { $0.targetTokens == 9 && $0.labelCounts?.actual == [3, 3, 3] })
        for threads in [1, 2] {
            let again = try Parallel.limited(toThreads: threads) { try bench.run(plan) }
            #expect(EngineBench.digest(again.weights) == EngineBench.digest(weights), "\(threads) threads")
            #expect(again.stored.evaluations == stored.evaluations, "\(threads) threads")
        }
    }

    @Test(arguments: [
        ("bert-classifier", false, PEFTAdapter.HeadPlace.savedModules), ("bert-classifier", true, .file),
        ("roberta-classifier", false, .savedModules),
    ])
    func theExportedAdapterGivesTheLossesOfTheRun(golden: String, isBare: Bool, place: PEFTAdapter.HeadPlace) throws {
        let bench = try ClassifierBench(golden, isBare: isBare)
        var plan = try bench.plan(.flora)
        plan.quantize = .nf4
        let (weights, stored) = try bench.run(plan)
        let folder = RunFolder(path: bench.folder.file("run"))
        try folder.create()
        #expect(PEFTAdapter.HeadPlace(bench.base.checkpoint.configuration) == place)
        try folder.writeAdapter(weights, maps: bench.maps, base: "base", headPlace: place, labels: plan.labels)
        let read = try PEFTAdapter(folder: folder.path + "/adapter")
        #expect(read.labels == TinyEncoder.labels && read.headPlace == place && !read.head.isEmpty)
        #expect(FileManager.default.fileExists(atPath: folder.path + "/adapter/head.safetensors") == (place == .file))
        let work = try EngineWork(
            name: "a", base: bench.base, records: try DataFile.read(Array(TinyEncoder.records(9, seed: 9).utf8), path: "a.jsonl"),
            evaluationRecords: try DataFile.read(Array(TinyEncoder.records(9, seed: 9).utf8), path: "a.jsonl"),
            labelField: "category"
        ) { _ in true }
        try work.prepare(for: plan)
        let result = try work.evaluate(try read.weights(maps: bench.maps), plan: plan)
        let last = try #require(stored.evaluations.first { $0.round == plan.rounds })
        #expect(abs(result.lossSum - last.lossSum) < 1e-3 * last.lossSum)
        #expect(result.labelCounts == last.labelCounts)
    }

    @Test(arguments: [StrategyName.fedit, .flora])
    func examplesUnderPrivacyClipAndNoiseTheHead(strategy: StrategyName) throws {
        let bench = try ClassifierBench()
        var plan = try bench.plan(strategy)
        (plan.privacy, plan.noiseMultiplier, plan.gradientClip, plan.weighting) = (.example, 1, 0, .uniform)
        plan.publicEvaluation = true
        let (weights, stored) = try bench.run(plan)
        #expect(weights.trained.values.allSatisfy(\.isFinite) && stored.records.allSatisfy { $0.trainLoss == nil })
        plan.noiseMultiplier = 1e-6
        let quiet = try bench.run(plan)
        let (loud, still) = (weights.trained.splittingHead().head, quiet.weights.trained.splittingHead().head)
        #expect(loud != nil && loud != still)
    }

    @Test func aModelAndATaskThatDoNotFitAreRefusedByName() throws {
        let bench = try ClassifierBench()
        var plan = try bench.plan(.fedit)
        (plan.task, plan.labels, plan.head) = (.causal, [], [])
        var failure = #expect(throws: Failure.self) { try plan.validate(for: bench.base.checkpoint) }
        #expect(failure?.message.contains("--task classify") == true)
        // A head that comes with the plan is the model's own, or none is made of it.
        var widened = try bench.plan(.fedit)
        widened.head[0] = LinearMap(name: widened.head[0].name, outputs: widened.head[0].outputs, inputs: 4096)
        failure = #expect(throws: Failure.self) { _ = try bench.run(widened) }
        #expect(failure?.message.contains("head") == true, "\(failure?.message ?? "")")
        let causal = try EngineBench()
        plan = causal.plan(.fedit)
        (plan.task, plan.labels) = (.classify, TinyEncoder.labels)
        plan.settleTask(for: causal.base.checkpoint.configuration)
        failure = #expect(throws: Failure.self) { try plan.validate(for: causal.base.checkpoint) }
        #expect(failure?.message.contains("predicts tokens") == true)
        plan = try bench.plan(.fedit)
        plan.labels = ["animal", "fruits", "tool"]
        failure = #expect(throws: Failure.self) { _ = try bench.run(plan) }
        #expect(
            failure?.message.contains("texts.jsonl:2: the label \"fruit\"") == true
                && failure?.message.contains("\"fruits\"") == true)
    }
}
