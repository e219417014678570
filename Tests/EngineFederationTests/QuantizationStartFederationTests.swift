/// LoftQ's start in a federation: one client computes it, everyone begins with it, and updates are differences from it.

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

@Suite struct QuantizationStartFederationTests {
    @Test(arguments: [StrategyName.fedit, .ffaLoRA], [QuantizationName.nf4, .int8])
    func theStartIsWhatQuantizationLostAsFarAsTheRankGoes(strategy: StrategyName, form: QuantizationName) throws {
        let bench = try EngineBench()
        var plan = bench.plan(strategy, clients: 2, rounds: 2, steps: 1)
        plan.start = .loftq
        plan.quantize = form
        plan.learningRate = 1e-3
        let log = TrainingLog()
        let federation = try bench.federation(plan, log: log)
        try federation.run { _, _ in }
        let start = try federation.service.weights(afterRound: 0)
        let specification = try plan.specification(rank: plan.ranks[0], maps: bench.maps)
        let base = try bench.base.model(EngineBase.noAdapter, for: plan).model
        for map in specification.maps {
            let weights = try bench.base.checkpoint.tensor(map.name + ".weight").floats()
            let held = try #require(base.weight(of: map.name)).decoded()
            let rest = zip(weights, held).map { Double($0) - Double($1) }
            let values = try svd(rest, rows: map.outputs, columns: map.inputs).s
            let least = Matrices.norm(values.dropFirst(plan.ranks[0]))
            let b = try #require(Matrices.values(start.trained, map.name, .loraB))
            let a = try #require(Matrices.values(start.frozen ?? start.trained, map.name, .loraA))
            let product = Matrices.product(b.values, a.values, rows: map.outputs, columns: map.inputs).map { b.scale * $0 }
            let left = Matrices.norm(Matrices.difference(rest, product))
            #expect(abs(left - least) <= 1e-4 * least, "\(map.name): \(left), not \(least)")
        }
        // Both clients trained from it, and the average moved from it.
        #expect(log.round(1).count == 2)
        for training in log.round(1) {
            #expect(training.given.trained == start.trained && training.given.frozen == start.frozen)
        }
        let last = try federation.service.weights(afterRound: nil)
        #expect(last.frozen == start.frozen && last.trained != start.trained)
        #expect(Closeness(last.trained.values, start.trained.values).isWithin(norm: 0.5))
        // The start went up once and down to both clients, and none of it counts as a round's traffic.
        let traffic = try #require(federation.service.federation.records.first?.traffic)
        #expect(traffic.oneTime > 4 * specification.startLayout.parameterCount)
        #expect(traffic.downlinkValues == 0 && traffic.downlink < 4 * specification.trainedLayout.parameterCount)
    }

    @Test func aBaseInFourBitsTakesItsStartFromTheModelThatItWasMadeFrom() throws {
        let folder = TemporaryFolder()
        let bench = try EngineBench()
        _ = try ModelQuantization().write(bench.base.checkpoint, to: folder.file("nf4"))
        var plan = bench.plan(.fedit, clients: 1, rounds: 1, steps: 1)
        plan.start = .loftq
        let specification = try plan.specification(rank: plan.ranks[0], maps: bench.maps)
        let records = try bench.records(4, of: "a")
        func start(_ unquantized: String?) throws -> AdapterState {
            let base = try EngineBase(modelFolder: folder.file("nf4"), unquantizedFolder: unquantized)
            try plan.validate(for: base.checkpoint)
            let work = try EngineWork(name: "a", base: base, records: records, evaluationRecords: nil) { _ in true }
            #expect(work.hasUnquantizedModel == (unquantized != nil))
            return try work.start(plan: plan, client: "a", specification: specification)
        }
        let stored = try start(bench.base.checkpoint.path)
        plan.quantize = .nf4
        let work = try EngineWork(name: "a", base: bench.base, records: records, evaluationRecords: nil) { _ in true }
        #expect(try work.start(plan: plan, client: "a", specification: specification) == stored)
        plan.quantize = .stored
        #expect(throws: Failure.self) { try start(nil) }
        #expect(throws: Failure.self) { try start(folder.file("nf4")) }
        // What holds no unquantized weights is refused before anything is computed.
        for (unquantized, isFit) in [(bench.base.checkpoint.path, true), (folder.file("nf4"), false)] {
            let base = try EngineBase(modelFolder: folder.file("nf4"), unquantizedFolder: unquantized)
            let work = try EngineWork(name: "a", base: base, records: records, evaluationRecords: nil) { _ in true }
            if isFit {
                try work.prepare(for: plan)
            } else {
                let failure = #expect(throws: Failure.self) { try work.prepare(for: plan) }
                #expect(failure?.message.contains("holds no unquantized") == true, "\(failure?.message ?? "")")
            }
        }
        let failure = #expect(throws: Failure.self) { try plan.validate(for: bench.base.checkpoint) }
        #expect(failure?.message.contains("is not quantized") == true)
    }
}
