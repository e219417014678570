/// Runs that start from an exported adapter (`--init-adapter`): they go on from the loss that the first run ended with.

import Adapters
import Checkpoints
import CoordinatorCore
import Datasets
import Plan
import Primitives
import TestSupport
import Testing

@Suite struct InitialAdapterTests {
    private func evaluations(_ store: any FederationStore) throws -> [Double] {
        try #require(try store.load()).evaluations.sorted { $0.round < $1.round }.map { $0.lossSum / Double($0.targetTokens) }
    }

    /// The second run takes another seed, and optionally a larger rank and another alpha: the adapter is the same.
    @Test(arguments: [StrategyName.fedit, .ffaLoRA, .flora], [false, true])
    func aRunThatStartsFromAnAdapterBeginsWithTheLossThatItEndedWith(strategy: StrategyName, larger: Bool) throws {
        let bench = try EngineBench()
        var plan = bench.plan(strategy, clients: 2, rounds: 1, steps: 3)
        let store = MemoryFederationStore()
        let weights = try bench.run(plan, store: store, evaluates: true)
        let first = try evaluations(store)
        #expect(first.count == 2 && first[0] != first[1])
        let folder = RunFolder(path: bench.folder.file("first"))
        try folder.create()
        try folder.writeAdapter(weights, maps: bench.maps, base: "base")

        plan.seed += 1
        if larger {
            plan.ranks = strategy == .flora ? [3, 8] : [8]
            plan.alpha = 24
        }
        let initial = try RunStart.weights(of: PEFTAdapter(folder: folder.path + "/adapter"), plan: &plan, maps: bench.maps)
        #expect(plan.initialAdapterDigest != nil)
        let next = MemoryFederationStore()
        let log = TrainingLog()
        let final = try bench.run(plan, store: next, initial: initial, evaluates: true, log: log)
        let second = try evaluations(next)
        let comment = "\(strategy), seed \(bench.seed): ended with \(first[1]), began with \(second[0])"
        #expect(second.count == 2)
        #expect(abs(second[0] - first[1]) <= 1e-6 * first[1], "\(comment)")
        #expect(abs(first[1] - first[0]) > 1e-4 * first[0], "\(comment), from \(first[0])")
        #expect(second[1] != second[0])
        // Every client trained from it, and the run's end holds more than the run's start.
        #expect(log.trainings.count == 2)
        if strategy == .flora {
            #expect(log.trainings.allSatisfy { $0.given.correction == initial.correction })
            #expect(final.correction != initial.correction)
        } else {
            #expect(log.trainings.allSatisfy { $0.given.trained == initial.trained && $0.given.frozen == initial.frozen })
        }
        if strategy == .ffaLoRA { #expect(final.frozen == initial.frozen) }
    }

    /// The correction's rank differs between maps once it passes the smaller side of one; the file knows one rank only.
    @Test func aCorrectionOfMoreRanksThanAMatrixHasStartsAnotherRun() throws {
        let bench = try EngineBench()
        var plan = bench.plan(.flora, clients: 3, rounds: 1, steps: 2)
        plan.targetModules = ["k_proj", "down_proj"]
        let targets = try plan.targets(among: bench.maps)
        let sides = targets.map { min($0.outputs, $0.inputs) }
        let side = try #require(sides.min())
        #expect(try #require(sides.max()) > side)
        plan.ranks = [side / 2 + 1]
        let store = MemoryFederationStore()
        let weights = try bench.run(plan, store: store, evaluates: true)
        let ranks = Set(try #require(weights.correction).layout.tensors.map(\.rank))
        #expect(ranks.count == 2 && ranks.min() == side, "\(ranks)")
        let first = try evaluations(store)
        let folder = RunFolder(path: bench.folder.file("first"))
        try folder.create()
        try folder.writeAdapter(weights, maps: bench.maps, base: "base")

        let examples = try bench.examples(try bench.records(5, of: "evaluation"))
        let loaded = try PEFTAdapter(folder: folder.path + "/adapter").weights(maps: bench.maps)
        let targetTokens = examples.reduce(0) { $0 + $1.targetCount }
        let evaluated = try bench.loss(loaded, examples) / Double(targetTokens)
        #expect(abs(evaluated - first[1]) <= 1e-6 * first[1], "seed \(bench.seed): \(evaluated), not \(first[1])")

        let initial = try RunStart.weights(of: PEFTAdapter(folder: folder.path + "/adapter"), plan: &plan, maps: bench.maps)
        let next = MemoryFederationStore()
        _ = try bench.run(plan, store: next, initial: initial, evaluates: true)
        let second = try evaluations(next)
        #expect(
            abs(second[0] - first[1]) <= 1e-6 * first[1], "seed \(bench.seed): ended with \(first[1]), began with \(second[0])")
    }

    @Test func fedSBRefusesToStartFromAnAdapter() throws {
        let bench = try EngineBench()
        let folder = RunFolder(path: bench.folder.file("first"))
        try folder.create()
        try folder.writeAdapter(try bench.movedStart(bench.plan(.fedit)), maps: bench.maps, base: "base")
        var plan = bench.plan(.fedSB)
        let failure = try #require(throws: Failure.self) {
            _ = try RunStart.weights(of: PEFTAdapter(folder: folder.path + "/adapter"), plan: &plan, maps: bench.maps)
        }
        #expect(failure.status == .usage)
        #expect(failure.message.contains("fed-sb cannot start from an adapter"), "\(failure.message)")
    }
}
