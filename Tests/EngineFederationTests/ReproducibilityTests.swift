/// Simulations over the engine: the same bits from the same seed, on any number of threads, and after any interruption.

import Adapters
import ClientEngine
import CoordinatorCore
import LinearAlgebra
import Plan
import Primitives
import TestSupport
import Testing

@Suite struct ReproducibilityTests {
    /// What a run leaves: its adapter, and the losses that were reported on the way.
    private struct Outcome: Equatable {
        let adapter: Digest
        let evaluations: [Double]
        let trainLosses: [Double?]
    }

    private func plan(_ bench: EngineBench, _ strategy: StrategyName) -> FederationPlan {
        var plan = bench.plan(strategy, clients: 2, rounds: 2, steps: 2)
        plan.optimizer = .adamw
        plan.learningRate = 0.01
        plan.gradientClip = 1
        return plan
    }

    private func outcome(
        _ bench: EngineBench, _ plan: FederationPlan, store: any FederationStore = MemoryFederationStore(),
        progress: @escaping (EngineProgress) -> Bool = { _ in true }
    ) throws -> Outcome {
        let weights = try bench.run(plan, store: store, counts: [6, 4], evaluates: true, progress: progress)
        let stored = try #require(try store.load())
        return Outcome(
            adapter: EngineBench.digest(weights), evaluations: stored.evaluations.sorted { $0.round < $1.round }.map(\.lossSum),
            trainLosses: stored.records.map(\.trainLoss))
    }

    @Test(arguments: StrategyName.allCases)
    func oneSeedGivesTheSameBitsTwiceAndOnAnyNumberOfThreads(strategy: StrategyName) throws {
        let bench = try EngineBench()
        let plan = plan(bench, strategy)
        let reference = try outcome(bench, plan)
        #expect(reference.evaluations.count == 3 && reference.trainLosses.count == 2)
        #expect(Set(reference.evaluations).count == 3, "each round changes the evaluation, seed \(bench.seed)")
        #expect(try outcome(try EngineBench(), plan) == reference, "seed \(bench.seed)")
        for threads in [1, 2] {
            let limited = try Parallel.limited(toThreads: threads) { try outcome(try EngineBench(), plan) }
            #expect(limited == reference, "\(threads) threads, seed \(bench.seed)")
        }
    }

    @Test(arguments: [QuantizationName.int8, .nf4], [StrategyName.fedit, .fedSB])
    func aQuantizedBaseGivesTheSameBitsOnAnyNumberOfThreads(form: QuantizationName, strategy: StrategyName) throws {
        let bench = try EngineBench()
        var plan = plan(bench, strategy)
        let exact = try outcome(bench, plan)
        plan.quantize = form
        let reference = try outcome(bench, plan)
        #expect(reference.evaluations != exact.evaluations, "seed \(bench.seed)")
        for threads in [1, 2] {
            let limited = try Parallel.limited(toThreads: threads) { try outcome(try EngineBench(), plan) }
            #expect(limited == reference, "\(threads) threads, seed \(bench.seed)")
        }
    }

    /// What `--compute bfloat16` promises, where the processor has the instructions; elsewhere that it is refused.
    @Test(arguments: [(StrategyName.fedit, PrivacyName.none), (.ffaLoRA, .example), (.fedSB, .none)])
    func bfloat16GivesItsOwnBitsOnAnyNumberOfThreads(strategy: StrategyName, privacy: PrivacyName) throws {
        let bench = try EngineBench()
        var plan = plan(bench, strategy)
        if privacy == .example {
            (plan.privacy, plan.noiseMultiplier, plan.gradientClip, plan.weighting) = (.example, 1, 0, .uniform)
            plan.publicEvaluation = true
        }
        let exact = try outcome(bench, plan)
        plan.compute = .bfloat16
        guard ComputeType.bfloat16.isSupported else {
            let failure = try #require(throws: Failure.self) { _ = try outcome(bench, plan) }
            #expect(failure.status == .usage && failure.message.contains("AVX512-BF16"))
            return
        }
        let reference = try outcome(bench, plan)
        #expect(reference.adapter != exact.adapter, "seed \(bench.seed)")
        if privacy == .none {
            for (loss, other) in zip(reference.evaluations, exact.evaluations) {
                #expect(abs(loss - other) < 0.02 * abs(other), "seed \(bench.seed)")
            }
            for threads in [1, 2] {
                let limited = try Parallel.limited(toThreads: threads) { try outcome(try EngineBench(), plan) }
                #expect(limited == reference, "\(threads) threads, seed \(bench.seed)")
            }
        }
    }

    @Test(arguments: StrategyName.allCases)
    func anotherSeedGivesAnotherAdapter(strategy: StrategyName) throws {
        let bench = try EngineBench()
        var plan = plan(bench, strategy)
        let reference = try outcome(bench, plan)
        plan.seed += 1
        let other = try outcome(bench, plan)
        #expect(other.adapter != reference.adapter, "seed \(bench.seed)")
        #expect(other.trainLosses != reference.trainLosses, "seed \(bench.seed)")
    }

    @Test(arguments: StrategyName.allCases)
    func aKillAfterAnyWriteAndANewStartGiveTheSameBits(strategy: StrategyName) throws {
        let bench = try EngineBench()
        let plan = plan(bench, strategy)
        let reference = try outcome(bench, plan)
        var writes = 0
        while true {
            let store = MemoryFederationStore()
            let dying = DyingStore(store, after: writes)
            let failure: Failure?
            do {
                _ = try outcome(bench, plan, store: dying)
                failure = nil
            } catch let error as Failure {
                failure = error
            }
            guard let failure else { break }
            #expect(failure.message == "killed", "after \(writes) writes, seed \(bench.seed)")
            #expect(try outcome(bench, plan, store: store) == reference, "killed after \(writes) writes, seed \(bench.seed)")
            writes += 1
        }
        #expect(writes > 10)
    }

    @Test(arguments: [StrategyName.fedSB, .flora])
    func anInterruptOfAClientAnywhereAndANewStartGiveTheSameBits(strategy: StrategyName) throws {
        let bench = try EngineBench()
        let plan = plan(bench, strategy)
        let reference = try outcome(bench, plan)
        var calls = 0
        while true {
            let store = MemoryFederationStore()
            var left = calls
            var failure: Failure?
            do {
                _ = try outcome(bench, plan, store: store) { _ in
                    left -= 1
                    return left >= 0
                }
            } catch let error as Failure {
                failure = error
            }
            guard let failure else { break }
            #expect(failure.status == .interrupted, "after \(calls) calls, seed \(bench.seed): \(failure.message)")
            #expect(try outcome(bench, plan, store: store) == reference, "stopped after \(calls) calls, seed \(bench.seed)")
            calls += 1
        }
        // Two clients, two rounds of two steps, and three evaluations of one batch.
        #expect(calls >= 11)
    }
}
