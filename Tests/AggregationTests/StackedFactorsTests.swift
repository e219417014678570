/// FLoRA: stacked factors are exact, whatever the ranks, scales, weights and order.

import Adapters
import Aggregation
import Checkpoints
import Plan
import Primitives
import TestSupport
import Testing

@Suite struct StackedFactorsTests {
    static let ranks = [2, 4, 8, 4]
    static let alphas = [8.0, 4, 16, 2]
    static let weights = [120.0, 30, 900, 450]

    @Test(arguments: [1, 2, 3] as [UInt64])
    func theStackEqualsTheWeightedSumOfProducts(seed: UInt64) throws {
        let clients = try participants(ranks: Self.ranks, alphas: Self.alphas, weights: Self.weights, seed: seed)
        let stack = try combine(.flora, clients)
        #expect(stack.layout.tensors.allSatisfy { $0.rank == 18 && $0.scale == 1 })
        #expect(stack.layout.tensors.map(\.role) == testMaps.flatMap { _ in [AdapterRole.stackA, .stackB] })
        for map in testMaps {
            let closeness = Closeness(stackDelta(stack, map), exactDelta(clients, map))
            #expect(closeness.isWithin(norm: 1e-6), "seed \(seed), \(map.name): \(closeness)")
        }
    }

    @Test(arguments: [4, 5] as [UInt64])
    func theOrderOfClientsChangesNothingButRounding(seed: UInt64) throws {
        let clients = try participants(ranks: Self.ranks, alphas: Self.alphas, weights: Self.weights, seed: seed)
        let reference = try combine(.flora, clients)
        let names = clients.map(\.name)
        var generator = SeededGenerator(seed: seed, purpose: "order")
        for _ in 0..<4 {
            let order = generator.permutation(clients.count)
            let renamed = zip(order, names).map {
                Participant(name: $1, weight: clients[$0].weight, state: clients[$0].state)
            }
            let stack = try combine(.flora, renamed)
            for map in testMaps {
                let closeness = Closeness(stackDelta(stack, map), stackDelta(reference, map))
                #expect(closeness.isWithin(norm: 1e-6), "seed \(seed), order \(order): \(closeness)")
            }
        }
        #expect(try combine(.flora, clients.reversed()) == reference, "arrival order must not matter at all")
    }

    @Test func weightAndScaleAreFoldedInOnce() throws {
        // p = 1/4, 3/4; B = 2, 4; A = 1, 3: exact 9.5. Weighting both stacks would give 6.875.
        let maps = [LinearMap(name: "m", outputs: 1, inputs: 1)]
        func client(_ name: String, _ weight: Double, _ values: [Float], alpha: Double) throws -> Participant {
            let layout = try specification(rank: 1, alpha: alpha, maps: maps).trainedLayout
            return Participant(name: name, weight: weight, state: AdapterState(layout: layout, values: values))
        }
        let plain = [try client("a", 30, [1, 2], alpha: 1), try client("b", 90, [3, 4], alpha: 1)]
        let stack = try combine(.flora, plain, maps: maps)
        #expect(stackDelta(stack, maps[0]) == [9.5])
        #expect(stack.values == [0.25, 2.25, 2, 4])
        // Scales 2 and 1/2: 1/4 x 2 x 2 + 3/4 x 1/2 x 12 = 5.5.
        let scaled = [try client("a", 30, [1, 2], alpha: 2), try client("b", 90, [3, 4], alpha: 0.5)]
        #expect(stackDelta(try combine(.flora, scaled, maps: maps), maps[0]) == [5.5])
    }

    @Test(arguments: [6, 7] as [UInt64])
    func theGaugeOfAClientsFactorsDoesNotMatter(seed: UInt64) throws {
        let clients = try participants(ranks: [4, 2], alphas: [8, 8], weights: [1, 2], seed: seed)
        let first = try combine(.flora, clients)
        let second = try combine(.flora, [try rotated(clients[0], seed: seed), clients[1]])
        for map in testMaps {
            let closeness = Closeness(stackDelta(second, map), stackDelta(first, map))
            #expect(closeness.isWithin(ofLargest: 1e-5), "seed \(seed), \(map.name): \(closeness)")
        }
    }

    @Test func theAnnouncedTotalMustBeTheSumOfTheWeights() throws {
        let clients = try participants(ranks: [2, 2], alphas: [2, 2], weights: [1, 2], seed: 8)
        var aggregator = StackedFactors(maps: testMaps, totalWeight: 3)
        try aggregator.add(client: "a", weight: 1, state: clients[0].state)
        #expect(throws: AggregationError.otherTotalWeight(expected: 3, found: 1)) { _ = try aggregator.finish() }
    }

    @Test(arguments: [9, 10] as [UInt64]) func aHeadBehindTheFactorsIsAveragedAndTheStackIsAsWithoutIt(seed: UInt64) throws {
        let plain = try participants(ranks: Self.ranks, alphas: Self.alphas, weights: Self.weights, seed: seed)
        let head = AdapterLayout(
            try AdapterSpecification(
                method: .lora, maps: testMaps, rank: 1, alpha: 1, rankStabilized: false,
                head: [LinearMap(name: "classifier", outputs: 3, inputs: 7)]
            ).headTensors)
        var generator = SeededGenerator(seed: seed, purpose: "heads")
        let heads = plain.map { _ in randomState(head, &generator) }
        let clients = zip(plain, heads).map { client, head in
            Participant(
                name: client.name, weight: client.weight,
                state: AdapterState(
                    layout: AdapterLayout(client.state.layout.tensors + head.layout.tensors),
                    values: client.state.values + head.values))
        }
        var aggregator = StackedFactors(maps: testMaps, head: head, totalWeight: Self.weights.reduce(0, +))
        var average = WeightedAverage(layout: head)
        for (client, head) in zip(clients, heads) {
            try aggregator.add(client: client.name, weight: client.weight, state: client.state)
            try average.add(client: client.name, weight: client.weight, state: head)
        }
        let combined = try aggregator.finish().splittingHead()
        #expect(combined.factors == (try combine(.flora, plain)))
        #expect(combined.head == (try average.finish()))
        var strict = StackedFactors(maps: testMaps, head: head, totalWeight: 1)
        #expect(throws: AggregationError.self) { try strict.add(client: "a", weight: 1, state: plain[0].state) }
    }
}
