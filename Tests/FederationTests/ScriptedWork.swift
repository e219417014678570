/// Clients whose training is a formula: federations without a model, fast enough to be broken in every place.

import Adapters
import Checkpoints
import ClientCore
import CoordinatorCore
import FoundationEssentials
import Plan
import Primitives
import Simulation

/// Moves every trained value by a step that depends on the client, the round and the value.
final class ScriptedWork: LocalWork {
    let name: String
    let exampleCount: Int
    let hasEvaluationData: Bool
    private(set) var trained: [Int] = []
    /// What it was given in each of these rounds.
    private(set) var corrections: [AdapterState?] = []

    init(name: String, exampleCount: Int, hasEvaluationData: Bool) {
        self.name = name
        self.exampleCount = exampleCount
        self.hasEvaluationData = hasEvaluationData
    }

    var dataDigest: Digest { Digest(of: Array(name.utf8)) }

    func prepare(for plan: FederationPlan) throws(Failure) {}

    func train(
        _ assignment: TrainingAssignment, progress: (Int, Int) -> WorkInterruption?
    ) throws(WorkInterruption) -> TrainedResult {
        trained.append(assignment.round)
        corrections.append(assignment.weights.correction)
        if let interruption = progress(1, 1) { throw interruption }
        var state = assignment.weights.trained
        var generator = SeededGenerator(
            seed: assignment.plan.seed, purpose: "scripted", round: assignment.round, client: assignment.client)
        let correction = assignment.weights.correction?.values.first ?? 0
        for index in state.values.indices {
            state.values[index] = 0.9 * state.values[index] + 0.1 * generator.symmetric(1) + 0.01 * correction
        }
        return TrainedResult(
            state: state, trainLoss: 1 / Double(assignment.round), targetTokens: 10 * exampleCount, seconds: 1)
    }

    func evaluate(_ weights: AdapterWeights, plan: FederationPlan) throws(Failure) -> EvaluationResult {
        let sum = (weights.trained.values + (weights.correction?.values ?? [])).reduce(0.0) { $0 + abs(Double($1)) }
        return EvaluationResult(lossSum: sum, targetTokens: 7, examples: 3, exactMatches: plan.exactMatchTokens > 0 ? 1 : nil)
    }

    func start(plan: FederationPlan, client: String, specification: AdapterSpecification) throws(Failure) -> AdapterState {
        var generator = SeededGenerator(seed: plan.seed, purpose: "scripted start", client: client)
        var state = AdapterState(zeros: specification.startLayout)
        for index in state.values.indices { state.values[index] = generator.symmetric(0.5) }
        return state
    }
}

enum Scenario {
    /// Non-square on purpose.
    static let maps = [
        LinearMap(name: "model.layers.0.self_attn.q_proj", outputs: 24, inputs: 16),
        LinearMap(name: "model.layers.0.mlp.down_proj", outputs: 16, inputs: 40),
    ]
    static let exampleCounts = [120, 30, 900, 450]

    static func plan(_ strategy: StrategyName, clients: Int = 4, rounds: Int = 3) -> FederationPlan {
        var plan = FederationPlan()
        plan.strategy = strategy
        plan.rounds = rounds
        plan.minimumClients = clients
        plan.ranks = strategy == .flora ? [1, 2, 4] : [4]
        plan.seed = 11
        plan.baseDigest = Digest(of: [1])
        plan.tokenizerDigest = Digest(of: [2])
        return plan
    }

    static func federation(
        _ plan: FederationPlan, store: any FederationStore, folder: String? = nil, unsafeSeed: UInt64? = nil,
        watch: (ScriptedWork) -> Void = { _ in }
    ) throws -> SimulatedFederation {
        try plan.validate(maps: maps)
        let count = plan.minimumClients
        let clients: [(name: String, maximumRank: Int?)] = (0..<count).map { index in
            ("client-00\(index)", plan.strategy == .flora ? plan.ranks[index % plan.ranks.count] : nil)
        }
        return try SimulatedFederation(
            store: store, plan: plan, maps: maps, start: try RunStart(plan: plan, maps: maps, initial: nil), runID: "test",
            clients: clients, kernelPath: "scripted",
            folder: { name in try folder.map { try ClientFolder(path: $0 + "/" + name) } }, unsafeSeed: unsafeSeed,
            stopwatch: { .zero }
        ) { name, index in
            let work = ScriptedWork(
                name: name, exampleCount: exampleCounts[index % exampleCounts.count], hasEvaluationData: index == 0)
            watch(work)
            return work
        }
    }

    /// Runs to the end and returns the last global adapter's digest.
    ///
    /// - Parameter folder: where clients keep what must outlive a kill; nil keeps it in memory
    static func run(
        _ plan: FederationPlan, store: any FederationStore, folder: String? = nil, unsafeSeed: UInt64? = nil
    ) throws -> Digest {
        let federation = try federation(plan, store: store, folder: folder, unsafeSeed: unsafeSeed)
        try federation.run { _, _ in }
        return try digest(federation.service.weights(afterRound: nil))
    }

    static func digest(_ weights: AdapterWeights) -> Digest {
        var writer = ByteWriter()
        writer.write(weights.trained.digest)
        writer.write(weights.frozen?.digest ?? Digest(of: []))
        writer.write(weights.correction?.digest ?? Digest(of: []))
        return Digest(of: writer.bytes)
    }

    static func temporaryFile(_ name: String) -> String {
        let folder =
            FileManager.default.temporaryDirectory.path() + "/tributary-tests-\(ProcessInfo.processInfo.processIdentifier)"
        try? FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let path = folder + "/" + name
        for suffix in ["", "-wal", "-shm"] { try? FileManager.default.removeItem(atPath: path + suffix) }
        return path
    }
}
