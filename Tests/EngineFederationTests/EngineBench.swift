/// Federations over the real engine on a small golden base, and what every client was given and made of it.

import Adapters
import Checkpoints
import ClientCore
import ClientEngine
import CoordinatorCore
import Datasets
import FoundationEssentials
import LinearAlgebra
import Model
import Plan
import Primitives
import Simulation
import TestSupport
import Training
import Wire

/// One client's training in one round.
struct LoggedTraining {
    let client: String
    let round: Int
    let given: AdapterWeights
    let trained: AdapterState
    /// What the model held when training ended.
    let held: AdapterWeights
    /// What that model, untouched since, makes of the log's probe: the sum of nats.
    let heldLoss: Double
    let exampleCount: Int
}

final class TrainingLog {
    var trainings: [LoggedTraining] = []
    var probe: [Example] = []
    func round(_ round: Int) -> [LoggedTraining] {
        trainings.filter { $0.round == round }.sorted { $0.client < $1.client }
    }
}

/// The engine, and a note of what it did.
final class LoggedWork: LocalWork {
    private let inner: EngineWork
    private let base: EngineBase
    private let log: TrainingLog

    init(_ inner: EngineWork, base: EngineBase, log: TrainingLog) {
        self.inner = inner
        self.base = base
        self.log = log
    }

    var exampleCount: Int { inner.exampleCount }
    var hasEvaluationData: Bool { inner.hasEvaluationData }

    var dataDigest: Digest { inner.dataDigest }
    func prepare(for plan: FederationPlan) throws(Failure) { try inner.prepare(for: plan) }

    func train(
        _ assignment: TrainingAssignment, progress: (Int, Int) -> WorkInterruption?
    ) throws(WorkInterruption) -> TrainedResult {
        let model: AdaptedModel
        do throws(Failure) {
            model = try base.model(assignment.weights, for: assignment.plan)
        } catch {
            throw .failed(error)
        }
        let result = try inner.train(assignment, progress: progress)
        let heldLoss: Double
        do throws(Failure) {
            heldLoss = log.probe.isEmpty ? 0 : try model.loss(TokenBatch(log.probe)).reduce(0) { $0 + $1.loss }
        } catch {
            throw .failed(error)
        }
        log.trainings.append(
            LoggedTraining(
                client: assignment.client, round: assignment.round, given: assignment.weights, trained: result.state,
                held: model.weights, heldLoss: heldLoss, exampleCount: exampleCount))
        return result
    }

    func evaluate(_ weights: AdapterWeights, plan: FederationPlan) throws(Failure) -> EvaluationResult {
        try inner.evaluate(weights, plan: plan)
    }

    func start(plan: FederationPlan, client: String, specification: AdapterSpecification) throws(Failure) -> AdapterState {
        try inner.start(plan: plan, client: client, specification: specification)
    }
}

/// A base in a folder of its own, examples of equal numbers of targets, and federations of any strategy.
final class EngineBench {
    /// Every property here holds for any seed: set `TRIBUTARY_TEST_SEED` to draw other data and other adapters.
    static let seed = ProcessInfo.processInfo.environment["TRIBUTARY_TEST_SEED"].flatMap(UInt64.init) ?? 20

    let folder = TemporaryFolder()
    let base: EngineBase
    let seed: UInt64
    let maps: [LinearMap]

    init(seed: UInt64 = EngineBench.seed) throws {
        self.seed = seed
        try TinyBase.write(to: folder.file("base"))
        base = try EngineBase(modelFolder: folder.file("base"))
        maps = base.checkpoint.configuration.linearMaps
    }

    /// Random letters: prompts of several lengths, completions of one, so that all have the same number of targets.
    func records(_ count: Int, of owner: String) throws -> [Record] {
        var generator = SeededGenerator(seed: seed, purpose: "random letters", client: owner)
        func letters(_ count: Int) -> String {
            String((0..<count).map { _ in Character(Unicode.Scalar(UInt8(97 + generator.integer(below: 26)))) })
        }
        return try (0..<count).map { line in
            let prompt = letters(3 + generator.integer(below: 6))
            return try Record(
                fields: [.init("prompt", .string(prompt)), .init("completion", .string(letters(5)))], path: owner,
                line: line + 1)
        }
    }

    func examples(_ records: [Record]) throws -> [Example] {
        try base.text.examples(records, sequenceLength: 64).examples
    }

    /// SGD with a rate that moves the random base's adapters visibly; two maps of a block, one of them not square.
    func plan(_ strategy: StrategyName, clients: Int = 2, rounds: Int = 2, steps: Int = 2) -> FederationPlan {
        var plan = FederationPlan()
        plan.strategy = strategy
        plan.rounds = rounds
        plan.minimumClients = clients
        plan.localSteps = steps
        plan.batchSize = 3
        plan.sequenceLength = 64
        plan.ranks = strategy == .flora ? [2, 4] : [4]
        plan.alpha = strategy == .fedSB ? nil : 8
        plan.targetModules = ["q_proj", "down_proj"]
        plan.optimizer = .sgd
        plan.learningRate = strategy == .fedSB ? 0.01 : 0.5
        plan.gradientClip = 0
        plan.seed = seed
        plan.baseDigest = Digest(of: [1])
        plan.tokenizerDigest = Digest(of: [2])
        return plan
    }

    static func name(_ index: Int) -> String { "client-\(index)" }

    /// - Parameters:
    ///   - counts: examples of each client, in turn
    ///   - progress: false stops the work, as an interrupt does
    func federation(
        _ plan: FederationPlan, store: any FederationStore = MemoryFederationStore(), initial: AdapterWeights? = nil,
        counts: [Int] = [6], evaluates: Bool = false, log: TrainingLog = TrainingLog(),
        progress: @escaping (EngineProgress) -> Bool = { _ in true }
    ) throws -> SimulatedFederation {
        try plan.validate(maps: maps)
        let clients: [(name: String, maximumRank: Int?)] = (0..<plan.minimumClients).map {
            (Self.name($0), plan.strategy == .flora ? plan.ranks[$0 % plan.ranks.count] : nil)
        }
        return try SimulatedFederation(
            store: store, plan: plan, maps: maps, start: try RunStart(plan: plan, maps: maps, initial: initial),
            runID: "engine", clients: clients, kernelPath: "test", stopwatch: { .zero }
        ) { name, index in
            let work = try EngineWork(
                name: name, base: base, records: try records(counts[index % counts.count], of: name),
                evaluationRecords: evaluates && index == 0 ? try records(5, of: "evaluation") : nil, progress: progress)
            return LoggedWork(work, base: base, log: log)
        }
    }

    /// Runs to the end and returns the last global adapter.
    func run(
        _ plan: FederationPlan, store: any FederationStore = MemoryFederationStore(), initial: AdapterWeights? = nil,
        counts: [Int] = [6], evaluates: Bool = false, log: TrainingLog = TrainingLog(),
        progress: @escaping (EngineProgress) -> Bool = { _ in true }
    ) throws -> AdapterWeights {
        let federation = try federation(
            plan, store: store, initial: initial, counts: counts, evaluates: evaluates, log: log, progress: progress)
        try federation.run { _, _ in }
        return try federation.service.weights(afterRound: nil)
    }

    /// The weights that a strategy's fresh run starts from, with a B that is not zero.
    func movedStart(_ plan: FederationPlan) throws -> AdapterWeights {
        var weights = try freshStart(plan)
        var generator = SeededGenerator(seed: seed, purpose: "random B")
        for (index, tensor) in weights.trained.layout.tensors.enumerated() where tensor.role == .loraB {
            for position in weights.trained.layout.range(index) { weights.trained.values[position] = generator.symmetric(0.05) }
        }
        return weights
    }

    func freshStart(_ plan: FederationPlan) throws -> AdapterWeights {
        var generator = SeededGenerator(seed: plan.seed, purpose: "lora-a")
        return try plan.specification(rank: plan.ranks[0], maps: maps).initialWeights(&generator)
    }

    /// Training on one machine, from the same weights.
    func train(
        _ weights: AdapterWeights, on examples: [Example], plan: FederationPlan, batchSize: Int? = nil, client: String = ""
    ) throws -> AdapterState {
        var settings = TrainingSettings(plan)
        settings.batchSize = batchSize ?? plan.batchSize
        return try LocalTrainer.train(
            model: try base.model(weights, for: plan), examples: examples, settings: settings,
            stepRange: plan.steps(ofRound: 1), totalSteps: plan.totalSteps,
            generator: SeededGenerator(seed: plan.seed, purpose: "batches", round: 1, attempt: 1, client: client)
        ).weights.trained
    }

    /// Sum of nats over the examples, under these weights.
    func loss(_ weights: AdapterWeights, _ examples: [Example]) throws -> Double {
        try base.model(weights, for: FederationPlan()).loss(TokenBatch(examples)).reduce(0) { $0 + $1.loss }
    }

    /// Everything of an adapter in one digest.
    static func digest(_ weights: AdapterWeights) -> Digest {
        var builder = DigestBuilder()
        for state in [weights.trained, weights.frozen, weights.correction] {
            builder.update((state?.digest ?? Digest(of: [])).bytes)
        }
        return builder.finish()
    }
}

/// Matrices of an adapter in double precision.
enum Matrices {
    static func values(_ state: AdapterState, _ map: String, _ role: AdapterRole) -> (values: [Double], scale: Double)? {
        state.layout.index(map: map, role: role).map {
            (state.tensor($0).map(Double.init), Double(state.layout.tensors[$0].scale))
        }
    }

    /// left [rows, inner] times right [inner, columns].
    static func product(_ left: [Double], _ right: [Double], rows: Int, columns: Int) -> [Double] {
        let inner = left.count / rows
        var result = [Double](repeating: 0, count: rows * columns)
        for row in 0..<rows {
            for index in 0..<inner {
                let factor = left[row * inner + index]
                for column in 0..<columns { result[row * columns + column] += factor * right[index * columns + column] }
            }
        }
        return result
    }

    static func transposed(_ matrix: [Double], rows: Int) -> [Double] {
        let columns = matrix.count / rows
        return (0..<matrix.count).map { matrix[$0 % rows * columns + $0 / rows] }
    }

    /// s B A of one map.
    static func scaledProduct(
        _ state: AdapterState, _ map: LinearMap, a: AdapterRole = .loraA, b: AdapterRole = .loraB
    ) -> [Double] {
        guard let a = values(state, map.name, a), let b = values(state, map.name, b) else { return [] }
        return product(b.values, a.values, rows: map.outputs, columns: map.inputs).map { b.scale * $0 }
    }

    static func sum(_ matrices: [[Double]], weights: [Double]) -> [Double] {
        var total = [Double](repeating: 0, count: matrices.first?.count ?? 0)
        for (matrix, weight) in zip(matrices, weights) {
            for index in total.indices { total[index] += weight * matrix[index] }
        }
        return total
    }

    static func norm(_ values: some Sequence<Double>) -> Double { values.reduce(0) { $0 + $1 * $1 }.squareRoot() }

    static func difference(_ left: [Double], _ right: [Double]) -> [Double] { zip(left, right).map { $0 - $1 } }
}
