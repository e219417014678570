/// What a client plans its memory for.

import Adapters
import ClientEngine
import LinearAlgebra
import Model
import Plan
import TestSupport
import Testing

@Suite struct ClientMemoryTests {
    @Test func aClientPlansForTheLargestRankThatItTrains() throws {
        let bench = try EngineBench()
        var plan = bench.plan(.flora)
        plan.ranks = [2, 8]
        func peak(_ maximum: Int?) throws -> Int {
            bench.base.maximumRank = maximum
            return try bench.base.memoryPlan(for: plan).peak
        }
        let (largest, smallest) = (try peak(nil), try peak(2))
        #expect(smallest < largest)
        #expect(try peak(8) == largest)
        #expect(try peak(7) == smallest)
        // The coordinator refuses such a client.
        #expect(try peak(1) == smallest)
    }

    @Test func aLoadedBaseKeepsActivationsAsThePresentPlanSays() throws {
        let bench = try EngineBench()
        var plan = bench.plan(.fedit)
        let model = try bench.base.model(EngineBase.noAdapter, for: plan)
        #expect(model.savedActivations == .float32)
        plan.savedActivations = .bfloat16
        let again = try bench.base.model(EngineBase.noAdapter, for: plan)
        #expect(again === model && again.savedActivations == .bfloat16)
    }
}
