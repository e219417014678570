/// Fed-SB's start on a real model, as the first client of a federation computes it: item 9 of the note's invariants.

import Adapters
import Checkpoints
import ClientEngine
import CoordinatorCore
import LinearAlgebra
import Model
import Plan
import Primitives
import Quantization
import Simulation
import TestSupport
import Testing
import Training

@Suite struct FedSBStartTests {
    private struct Factors {
        let b: [Double]
        let r: [Double]
        let a: [Double]
        let product: [Double]

        init(_ weights: AdapterWeights, _ map: LinearMap, rank: Int) throws {
            let frozen = try #require(weights.frozen)
            b = try #require(Matrices.values(frozen, map.name, .loraB)).values
            a = try #require(Matrices.values(frozen, map.name, .loraA)).values
            let core = try #require(Matrices.values(weights.trained, map.name, .core))
            #expect(core.scale == 1)
            r = core.values
            product = Matrices.product(
                Matrices.product(b, r, rows: map.outputs, columns: rank), a, rows: map.outputs, columns: map.inputs)
        }

        /// Largest distance of B^T B and A A^T from the identity.
        func distanceFromOrthonormal(_ map: LinearMap, rank: Int) -> Double {
            let left = Matrices.product(Matrices.transposed(b, rows: map.outputs), b, rows: rank, columns: rank)
            let right = Matrices.product(a, Matrices.transposed(a, rows: rank), rows: rank, columns: rank)
            return [left, right].joined().enumerated().reduce(0) { worst, entry in
                let place = entry.offset % (rank * rank)
                return max(worst, abs(entry.element - (place / rank == place % rank ? 1 : 0)))
            }
        }
    }

    /// The weights that the federation's first round starts from.
    private func start(_ bench: EngineBench, _ plan: FederationPlan) throws -> AdapterWeights {
        let federation = try bench.federation(plan)
        try federation.run { _, _ in }
        return try federation.service.weights(afterRound: 0)
    }

    @Test func theGradientStartIsTheBestDescentOfItsRank() throws {
        let bench = try EngineBench()
        var plan = bench.plan(.fedSB, clients: 1, rounds: 1, steps: 1)
        plan.targetModules = ["q_proj", "k_proj", "down_proj"]
        let rank = plan.ranks[0]
        let weights = try start(bench, plan)

        // The gradient over what the first client starts from.
        let client = EngineBench.name(0)
        let examples = LoRASBStart.examples(
            try bench.examples(try bench.records(6, of: client)), stepSize: plan.batchSize,
            generator: SeededGenerator(seed: plan.seed, purpose: "start examples", client: client))
        #expect(examples.count == 6)
        let targets = try plan.targets(among: bench.maps)
        let model = try bench.base.model(EngineBase.noAdapter, for: FederationPlan())
        var gradients: [String: [Float]] = [:]
        for first in stride(from: 0, to: examples.count, by: plan.batchSize) {
            try model.denseGradient(
                TokenBatch(examples[first..<min(examples.count, first + plan.batchSize)]), maps: targets.map(\.name),
                into: &gradients)
        }

        #expect(targets.count == 9)
        for map in targets {
            let place = "\(map.name), seed \(bench.seed)"
            let gradient = try #require(gradients[map.name])
            let factors = try Factors(weights, map, rank: rank)
            #expect(factors.distanceFromOrthonormal(map, rank: rank) < 1e-5, "\(place)")

            let descent = zip(gradient, factors.product).reduce(0) { $0 + Double($1.0) * $1.1 }
            #expect(descent < 0, "\(place)")

            let size = Double(Float(plan.learningRate))
            let update = gradient.map { $0 > 0 ? -size : $0 < 0 ? size : 0 }
            let values = try svd(update, rows: map.outputs, columns: map.inputs).s
            let left = Matrices.norm(Matrices.difference(update, factors.product))
            let expected = Matrices.norm(values.dropFirst(rank))
            #expect(abs(left - expected) <= 1e-5 * expected, "\(place): \(left), not \(expected)")
            // R is the diagonal of the largest singular values.
            for row in 0..<rank {
                for column in 0..<rank {
                    let wanted = row == column ? values[row] : 0
                    #expect(abs(factors.r[row * rank + column] - wanted) <= 1e-5 * values[0], "\(place), R \(row), \(column)")
                }
            }
        }
    }

    @Test func theGradientStartChangesTheLossAndASmallOneLowersIt() throws {
        let bench = try EngineBench()
        var plan = bench.plan(.fedSB, clients: 1, rounds: 1, steps: 1)
        let examples = try bench.examples(try bench.records(6, of: EngineBench.name(0)))
        let base = try bench.loss(EngineBase.noAdapter, examples)
        #expect(try bench.loss(try start(bench, plan), examples) != base, "seed \(bench.seed)")
        // To first order the loss changes by <G, B R A>.
        plan.learningRate = 1e-4
        #expect(try bench.loss(try start(bench, plan), examples) < base, "seed \(bench.seed)")
    }

    @Test func theStartFromTheBaseAddsNothing() throws {
        let bench = try EngineBench()
        var plan = bench.plan(.fedSB, clients: 2, rounds: 1, steps: 1)
        plan.start = .xs
        let rank = plan.ranks[0]
        let weights = try start(bench, plan)
        #expect(weights.trained.values.allSatisfy { $0 == 0 })
        for map in try plan.targets(among: bench.maps) {
            let factors = try Factors(weights, map, rank: rank)
            #expect(factors.distanceFromOrthonormal(map, rank: rank) < 1e-5, "\(map.name), seed \(bench.seed)")
            // B^T W A^T is the diagonal of W's largest singular values.
            let model = try bench.base.model(EngineBase.noAdapter, for: FederationPlan()).model
            let base = try #require(model.weight(of: map.name)).decoded().map(Double.init)
            let values = try svd(base, rows: map.outputs, columns: map.inputs).s
            let inner = Matrices.product(
                Matrices.product(
                    Matrices.transposed(factors.b, rows: map.outputs), base, rows: rank, columns: map.inputs),
                Matrices.transposed(factors.a, rows: rank), rows: rank, columns: rank)
            let wanted = (0..<rank * rank).map { $0 / rank == $0 % rank ? values[$0 / rank] : 0 }
            let closeness = Closeness(inner, wanted)
            #expect(closeness.isWithin(ofLargest: 1e-5), "\(map.name), seed \(bench.seed): \(closeness)")
        }
        let examples = try bench.examples(try bench.records(6, of: "anything"))
        #expect(try bench.loss(weights, examples) == bench.loss(EngineBase.noAdapter, examples), "seed \(bench.seed)")
    }
}
