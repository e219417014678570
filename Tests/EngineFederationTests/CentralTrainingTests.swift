/// A federated step against the same step on one machine, through the whole path: items 7, 10 and 19 of the note's
/// invariants, and the frozen factors of item 6.

import Adapters
import Checkpoints
import ClientEngine
import CoordinatorCore
import Model
import Plan
import Primitives
import Simulation
import TestSupport
import Testing
import Training

@Suite struct CentralTrainingTests {
    /// The state agrees with central training, and so does the update, but for the state's own rounding (twice on either
    /// side), and it is large enough for that to mean something.
    private func expectEqual(_ state: AdapterState, central: AdapterState, start: AdapterState, _ comment: Comment) {
        #expect(Closeness(state.values, central.values).isWithin(norm: 1e-5), comment)
        let update = Closeness(state.update(since: start).values, central.update(since: start).values)
        let rounding = 4 * 0x1p-24 * Closeness(central.values, central.values).largestReference
        #expect(
            update.comparable && update.largestDifference <= 1e-5 * update.largestReference + rounding,
            "\(comment): \(update), rounding \(rounding)")
        #expect(
            update.largestReference > 1000 * rounding,
            "\(comment): training moved next to nothing: \(update), rounding \(rounding)")
    }

    /// K clients, one full-batch step each, and the same step on everything that they have.
    private func oneStep(
        _ bench: EngineBench, _ plan: FederationPlan, initial: AdapterWeights?, clients: Int
    ) throws -> (start: AdapterWeights, federated: AdapterWeights, central: AdapterState, log: TrainingLog) {
        let log = TrainingLog()
        let federation = try bench.federation(plan, initial: initial, counts: [plan.batchSize], log: log)
        try federation.run { _, _ in }
        let start = try federation.service.weights(afterRound: 0)
        let pooled = try (0..<clients).flatMap { try bench.records(plan.batchSize, of: EngineBench.name($0)) }
        let central = try bench.train(start, on: try bench.examples(pooled), plan: plan, batchSize: pooled.count)
        return (start, try federation.service.weights(afterRound: nil), central, log)
    }

    private func oneStepPlan(_ bench: EngineBench, _ strategy: StrategyName, clients: Int) -> FederationPlan {
        var plan = bench.plan(strategy, clients: clients, rounds: 1, steps: 1)
        plan.batchSize = 4
        return plan
    }

    @Test(arguments: [2, 3])
    func oneStepOfFFAEqualsOneCentralStepOnThePooledData(clients: Int) throws {
        let bench = try EngineBench()
        let plan = oneStepPlan(bench, .ffaLoRA, clients: clients)
        for initial in [nil, try bench.movedStart(plan)] {
            let (start, federated, central, _) = try oneStep(bench, plan, initial: initial, clients: clients)
            expectEqual(
                federated.trained, central: central, start: start.trained, "\(clients) clients, seed \(bench.seed)")
            #expect(federated.frozen == start.frozen, "seed \(bench.seed)")
        }
    }

    @Test(arguments: StartName.ofLoRASB)
    func oneStepOfFedSBEqualsOneCentralStepOnThePooledData(startName: StartName) throws {
        let bench = try EngineBench()
        var plan = oneStepPlan(bench, .fedSB, clients: 3)
        plan.start = startName
        plan.learningRate = 0.05
        let (start, federated, central, _) = try oneStep(bench, plan, initial: nil, clients: 3)
        expectEqual(federated.trained, central: central, start: start.trained, "\(startName), seed \(bench.seed)")
        #expect(federated.frozen == start.frozen, "seed \(bench.seed)")
    }

    @Test func oneStepOfFedITEqualsTheCentralFactorsButNotTheMeanOfTheProducts() throws {
        let bench = try EngineBench()
        let plan = oneStepPlan(bench, .fedit, clients: 3)
        let (start, federated, central, log) = try oneStep(bench, plan, initial: try bench.movedStart(plan), clients: 3)
        expectEqual(federated.trained, central: central, start: start.trained, "seed \(bench.seed)")
        let trainings = log.round(1)
        #expect(trainings.count == 3)
        for map in try plan.targets(among: bench.maps) {
            let products = trainings.map { Matrices.scaledProduct($0.trained, map) }
            let exact = Matrices.sum(products, weights: [Double](repeating: 1 / 3, count: 3))
            let found = Matrices.scaledProduct(federated.trained, map)
            let residual = Matrices.difference(exact, found)
            let moved = Matrices.difference(exact, Matrices.scaledProduct(start.trained, map))
            #expect(
                Matrices.norm(residual) > 1e-4 * Matrices.norm(moved),
                "\(map.name): the averages' product should miss the mean of the products, seed \(bench.seed)")
            // What is missing is the covariance of the factors.
            let covariance = try covariance(trainings.map(\.trained), around: federated.trained, map)
            let closeness = Closeness(residual, covariance)
            #expect(
                closeness.largestDifference <= 1e-6 * (Closeness(exact, exact).largestReference),
                "\(map.name), seed \(bench.seed): \(closeness)")
        }
    }

    /// s times the mean of (B_k - mean B)(A_k - mean A).
    private func covariance(_ states: [AdapterState], around mean: AdapterState, _ map: LinearMap) throws -> [Double] {
        let a = try #require(Matrices.values(mean, map.name, .loraA))
        let b = try #require(Matrices.values(mean, map.name, .loraB))
        let terms = try states.map { state in
            let left = Matrices.difference(try #require(Matrices.values(state, map.name, .loraB)).values, b.values)
            let right = Matrices.difference(try #require(Matrices.values(state, map.name, .loraA)).values, a.values)
            return Matrices.product(left, right, rows: map.outputs, columns: map.inputs)
        }
        return Matrices.sum(terms, weights: [Double](repeating: b.scale / Double(states.count), count: states.count))
    }

    /// Mixed ranks, so mixed scales; unequal data, so unequal weights; several steps, so that A moves too.
    @Test(arguments: [1, 3])
    func theCorrectionOfFLoRAIsTheWeightedSumOfTheClientsProducts(steps: Int) throws {
        let bench = try EngineBench()
        let plan = bench.plan(.flora, clients: 3, rounds: 2, steps: steps)
        let log = TrainingLog()
        let final = try bench.run(plan, counts: [6, 3, 9], log: log)
        let correction = try #require(final.correction)
        #expect(Set(log.trainings.map { $0.trained.layout.tensors[0].rank }) == [2, 4])
        if steps > 1 {
            #expect(log.trainings.allSatisfy { $0.trained.tensor(0) != $0.given.trained.tensor(0) }, "A should have moved")
        }
        for map in try plan.targets(among: bench.maps) {
            let products = log.trainings.map { Matrices.scaledProduct($0.trained, map) }
            let exact = Matrices.sum(products, weights: log.trainings.map { Double($0.exampleCount) / 18 })
            let found = Matrices.scaledProduct(correction, map, a: .stackA, b: .stackB)
            let closeness = Closeness(found, exact)
            #expect(closeness.isWithin(norm: 1e-5), "\(map.name), seed \(bench.seed): \(closeness)")
            #expect(closeness.largestReference > 1e-4, "\(map.name), seed \(bench.seed): the clients moved next to nothing")
        }
    }

    @Test(arguments: [StrategyName.fedit, .flora])
    func theFirstStepOnAZeroBLeavesAExactlyAsItWas(strategy: StrategyName) throws {
        let bench = try EngineBench()
        // FLoRA starts afresh in each round, beside a correction from the second on.
        let plan = bench.plan(strategy, rounds: strategy == .flora ? 2 : 1, steps: 1)
        let log = TrainingLog()
        _ = try bench.run(plan, log: log)
        #expect(log.trainings.count == 2 * plan.rounds)
        let examples = try bench.examples(try bench.records(4, of: "gradient"))
        for training in log.trainings {
            let place = "\(training.client), round \(training.round), seed \(bench.seed)"
            #expect((training.given.correction != nil) == (strategy == .flora && training.round == 2), "\(place)")
            let layout = training.trained.layout
            var gradient = [Float](repeating: 0, count: layout.parameterCount)
            let model = try bench.base.model(training.given, for: FederationPlan())
            _ = try model.lossAndGradient(TokenBatch(examples), gradientScale: 1, gradient: &gradient)
            for (index, tensor) in layout.tensors.enumerated() {
                let (given, trained) = (training.given.trained.tensor(index), training.trained.tensor(index))
                let slopes = gradient[layout.range(index)]
                if tensor.role == .loraA {
                    #expect(slopes.allSatisfy { $0 == 0 }, "\(place), \(tensor.map)")
                    #expect(given.map(\.bitPattern) == trained.map(\.bitPattern), "\(place), \(tensor.map)")
                } else {
                    #expect(given.allSatisfy { $0 == 0 }, "\(place), \(tensor.map)")
                    #expect(slopes.contains { $0 != 0 }, "\(place), \(tensor.map)")
                    #expect(given != trained, "\(place), \(tensor.map)")
                }
            }
        }
        let starts = Set(log.trainings.map { $0.given.trained.digest })
        #expect(starts.count == (strategy == .flora ? 4 : 1), "each FLoRA client draws its own A in each round")
    }

    /// From R = 0 the update is the trained state itself, and the global state takes it without rounding: the same
    /// bits. From R = diag(S) the difference and the sum are each rounded once.
    @Test(arguments: StartName.ofLoRASB, OptimizerName.allCases)
    func aFederationOfOneClientIsLocalTraining(startName: StartName, optimizer: OptimizerName) throws {
        let bench = try EngineBench()
        var plan = bench.plan(.fedSB, clients: 1, rounds: 1, steps: 3)
        plan.start = startName
        plan.optimizer = optimizer
        plan.gradientClip = 1
        let federation = try bench.federation(plan)
        try federation.run { _, _ in }
        let start = try federation.service.weights(afterRound: 0)
        let local = try bench.train(
            start, on: try bench.examples(try bench.records(6, of: EngineBench.name(0))), plan: plan,
            client: EngineBench.name(0))
        let federated = try federation.service.weights(afterRound: nil).trained
        #expect(local != start.trained)
        switch startName {
        case .xs: #expect(federated.values.map(\.bitPattern) == local.values.map(\.bitPattern), "seed \(bench.seed)")
        default:
            let closeness = Closeness(federated.values, local.values)
            #expect(closeness.isWithin(ofLargest: 1e-6), "seed \(bench.seed): \(closeness)")
        }
    }

    @Test func aFedSBContributionHasAsManyBytesWhateverTheMatricesAndTheClients() throws {
        let bench = try EngineBench()
        var sizes: Set<Int> = []
        for module in ["q_proj", "k_proj", "down_proj"] {
            for clients in [1, 3] {
                var plan = bench.plan(.fedSB, clients: clients, rounds: 2, steps: 1)
                plan.start = .xs
                plan.targetModules = [module]
                let store = MemoryFederationStore()
                _ = try bench.run(plan, store: store)
                for record in try #require(try store.load()).records {
                    #expect(record.traffic.uplink % clients == 0)
                    sizes.insert(record.traffic.uplink / clients)
                }
            }
        }
        #expect(sizes.count == 1, "bytes of one contribution: \(sizes.sorted()), seed \(bench.seed)")
    }

    @Test(arguments: [(StrategyName.ffaLoRA, StartName.zero), (.fedSB, .xs), (.fedSB, .gradient)])
    func frozenFactorsAreTheSameBitsOnEveryClientBeforeAndAfterEveryRound(
        strategy: StrategyName, startName: StartName
    ) throws {
        let bench = try EngineBench()
        var plan = bench.plan(strategy, clients: 3, rounds: 2)
        plan.start = startName
        plan.optimizer = .adamw
        plan.weightDecay = 0.1
        let log = TrainingLog()
        log.probe = try bench.examples(try bench.records(4, of: "probe"))
        let federation = try bench.federation(plan, log: log)
        try federation.run { _, _ in }
        let frozen = try #require(try federation.service.weights(afterRound: 0).frozen)
        #expect(frozen.values.contains { $0 != 0 })
        #expect(try federation.service.weights(afterRound: nil).frozen?.digest == frozen.digest)
        #expect(log.trainings.count == 6)
        let examples = try bench.examples(try bench.records(4, of: "probe"))
        for training in log.trainings {
            let place = "\(strategy), \(training.client), round \(training.round), seed \(bench.seed)"
            #expect(training.given.frozen?.digest == frozen.digest, "\(place)")
            #expect(training.held.frozen?.digest == frozen.digest, "\(place)")
            #expect(training.held.trained == training.trained, "\(place)")
            #expect(training.trained != training.given.trained, "\(place)")
            // What the model computed with when training ended is what the factors say, loaded afresh.
            let factors = AdapterWeights(trained: training.trained, frozen: frozen)
            #expect(try bench.loss(factors, examples) == training.heldLoss, "\(place)")
        }
    }
}
