/// What can be wrong with a round: for each strategy, it is refused with its reason, and nothing else changes.

import Adapters
import Aggregation
import Checkpoints
import Plan
import Primitives
import TestSupport
import Testing

@Suite struct DegenerateFederationTests {
    struct Round {
        let given: AdapterState?
        let clients: [Participant]
        func aggregator(total: Double? = nil) -> any Aggregator {
            strategy.rule.aggregator(
                AggregationStart(
                    global: given, maps: testMaps, totalWeight: total ?? clients.reduce(0) { $0 + $1.weight }))
        }
        let strategy: StrategyName
    }

    /// Clients a, b, c with contributions of equal rank.
    static func round(_ strategy: StrategyName, weights: [Double] = [1, 2, 3]) throws -> Round {
        let layout = strategy.rule.contributionLayout(try specification(strategy.method, rank: 3))
        var generator = SeededGenerator(seed: 9, purpose: "degenerate")
        let clients = zip(["a", "b", "c"], weights).map {
            Participant(name: $0, weight: $1, state: randomState(layout, &generator))
        }
        let given = strategy.rule.takesFactors ? nil : AdapterState(zeros: layout)
        return Round(given: given, clients: clients, strategy: strategy)
    }

    static func finish(_ aggregator: any Aggregator) throws -> AdapterState {
        var aggregator = aggregator
        return try aggregator.finish()
    }

    @Test(arguments: StrategyName.allCases)
    func oneParticipantGivesItsOwnUpdate(strategy: StrategyName) throws {
        let round = try Self.round(strategy)
        let only = round.clients[0]
        var aggregator = round.aggregator(total: 7)
        try aggregator.add(client: only.name, weight: 7, state: only.state)
        let result = try aggregator.finish()
        if strategy == .flora {
            for map in testMaps {
                #expect(Closeness(stackDelta(result, map), delta(only.state, map)).isWithin(ofLargest: 1e-6))
            }
        } else {
            #expect(result == only.state)
        }
    }

    @Test(arguments: StrategyName.allCases)
    func aClientOfWeightZeroIsExcluded(strategy: StrategyName) throws {
        let round = try Self.round(strategy, weights: [1, 0, 3])
        var with = round.aggregator()
        for client in round.clients { try with.add(client: client.name, weight: client.weight, state: client.state) }
        var without = round.aggregator()
        for client in [round.clients[0], round.clients[2]] {
            try without.add(client: client.name, weight: client.weight, state: client.state)
        }
        #expect(try with.finish() == (try without.finish()))
        var nobody = round.aggregator(total: 1)
        try nobody.add(client: "a", weight: 0, state: round.clients[0].state)
        #expect(throws: AggregationError.nothingToCombine) { _ = try nobody.finish() }
        var empty = round.aggregator()
        #expect(throws: AggregationError.nothingToCombine) { _ = try empty.finish() }
    }

    @Test(arguments: StrategyName.allCases)
    func identicalUpdatesGiveThatUpdate(strategy: StrategyName) throws {
        let round = try Self.round(strategy, weights: [0.3, 120, 7])
        var aggregator = round.aggregator()
        for client in round.clients {
            try aggregator.add(client: client.name, weight: client.weight, state: round.clients[0].state)
        }
        let result = try aggregator.finish()
        if strategy == .flora {
            for map in testMaps {
                let closeness = Closeness(stackDelta(result, map), delta(round.clients[0].state, map))
                #expect(closeness.isWithin(ofLargest: 1e-6))
            }
        } else {
            #expect(Closeness(result.values, round.clients[0].state.values).isWithin(ofLargest: 1e-7))
        }
    }

    @Test(arguments: StrategyName.allCases)
    func aRefusedContributionLeavesTheAggregateAsItWas(strategy: StrategyName) throws {
        let round = try Self.round(strategy)
        let layout = round.clients[0].state.layout
        var reference = round.aggregator()
        var aggregator = round.aggregator()
        func refuse(_ expected: AggregationError, _ name: String, _ weight: Double, _ state: AdapterState) {
            #expect(throws: expected) { try aggregator.add(client: name, weight: weight, state: state) }
            #expect(expected.description.count > 20 && !expected.description.contains("\n"))
        }
        func refuseAny(_ name: String, _ state: AdapterState, matching: (AggregationError) -> Bool) {
            do throws(AggregationError) {
                try aggregator.add(client: name, weight: 1, state: state)
                Issue.record("\(name) was not refused")
            } catch {
                #expect(matching(error), "\(error)")
                #expect(error.description.count > 20)
            }
        }
        for client in round.clients {
            // Values that are not finite.
            for bad in [Float.nan, .infinity, -.infinity] {
                var state = client.state
                let tensor = layout.tensors.count - 1
                state.values[layout.offsets[tensor] + 2] = bad
                refuse(
                    .notFinite(
                        client: client.name, map: layout.tensors[tensor].map, role: layout.tensors[tensor].role, index: 2),
                    client.name, client.weight, state)
            }
            // Weights.
            refuse(.badWeight(client: client.name, weight: -1), client.name, -1, client.state)
            refuse(.badWeight(client: client.name, weight: .infinity), client.name, .infinity, client.state)
            // Missing and unknown tensors.
            let last = layout.tensors[layout.tensors.count - 1]
            refuse(
                .missingTensor(client: client.name, map: last.map, role: last.role), client.name, 1,
                AdapterState(zeros: AdapterLayout(Array(layout.tensors.dropLast()))))
            let stranger = AdapterTensor(map: "lm_head", role: last.role, rows: 2, columns: 3, rank: 2, scale: 1)
            refuse(
                .unknownTensor(client: client.name, map: "lm_head", role: last.role), client.name, 1,
                AdapterState(zeros: AdapterLayout(layout.tensors + [stranger])))
            // A tensor twice, and another order.
            refuseAny(client.name, AdapterState(zeros: AdapterLayout(layout.tensors + [last]))) {
                if case .otherLayout = $0 { true } else { false }
            }
            refuseAny(client.name, AdapterState(zeros: AdapterLayout(layout.tensors.reversed()))) {
                if case .otherLayout = $0 { true } else { false }
            }
            // The right map in another role, shape, rank or scale.
            func changed(_ change: (AdapterTensor) -> AdapterTensor) -> AdapterState {
                AdapterState(zeros: AdapterLayout(layout.tensors.dropLast() + [change(last)]))
            }
            refuseAny(
                client.name,
                changed { .init(map: $0.map, role: .stackA, rows: $0.rows, columns: $0.columns, rank: $0.rank, scale: $0.scale) }
            ) { if case .missingTensor = $0 { true } else { false } }
            refuseAny(
                client.name,
                changed {
                    .init(map: $0.map, role: $0.role, rows: $0.columns, columns: $0.rows + 1, rank: $0.rank, scale: $0.scale)
                }
            ) { if case .wrongShape = $0 { true } else { false } }
            refuseAny(
                client.name,
                changed {
                    .init(map: $0.map, role: $0.role, rows: $0.rows, columns: $0.columns, rank: $0.rank + 1, scale: $0.scale)
                }
            ) { if case .wrongRank = $0 { true } else { false } }
            refuseAny(
                client.name,
                changed {
                    .init(map: $0.map, role: $0.role, rows: $0.rows, columns: $0.columns, rank: $0.rank, scale: $0.scale + 1)
                }
            ) { if case .wrongScale = $0 { true } else { false } }
            // The contribution itself, then a second time.
            try aggregator.add(client: client.name, weight: client.weight, state: client.state)
            try reference.add(client: client.name, weight: client.weight, state: client.state)
            refuse(.duplicateClient(client.name), client.name, 1, client.state)
            refuse(.outOfOrder(client: "A", after: client.name), "A", 1, client.state)
        }
        #expect(try aggregator.finish() == (try reference.finish()))
    }

    @Test func namesAreComparedAsBytes() throws {
        // As Swift strings these two are equal; as bytes "e" + combining accent comes first.
        let round = try Self.round(.fedit)
        var aggregator = round.aggregator()
        try aggregator.add(client: "e\u{301}", weight: 1, state: round.clients[0].state)
        try aggregator.add(client: "\u{e9}", weight: 1, state: round.clients[1].state)
        #expect(throws: AggregationError.outOfOrder(client: "z", after: "\u{e9}")) {
            try aggregator.add(client: "z", weight: 1, state: round.clients[2].state)
        }
    }

    @Test func aSumThatOverflowsIsRefusedAtTheEnd() throws {
        let layout = try specification(rank: 3).trainedLayout
        let huge = AdapterState(
            layout: layout, values: .init(repeating: .greatestFiniteMagnitude, count: layout.parameterCount))
        var aggregator = WeightedAverage(onto: huge)
        try aggregator.add(client: "a", weight: 1, state: huge)
        #expect(throws: AggregationError.self) { _ = try aggregator.finish() }
    }

    @Test func everyStrategyHasExactlyOneRow() {
        #expect(Set(StrategyRule.all.map(\.name)) == Set(StrategyName.allCases))
        #expect(StrategyRule.all.count == StrategyName.allCases.count)
    }
}
