/// FedIT, FFA-LoRA and Fed-SB: averages of updates.

import Adapters
import Aggregation
import Checkpoints
import LinearAlgebra
import Plan
import Primitives
import TestSupport
import Testing
import UpdateCodec

@Suite struct WeightedAverageTests {
    @Test(arguments: [1, 2, 3] as [UInt64])
    func addingTheAverageUpdateEqualsAveragingTheTrainedStates(seed: UInt64) throws {
        for method in AdapterMethod.allCases {
            let layout = try specification(method, rank: 4).trainedLayout
            var generator = SeededGenerator(seed: seed, purpose: "average test")
            let given = randomState(layout, &generator)
            let clients = ["a", "b", "c", "d"].map { name in
                Participant(name: name, weight: 1 + 100 * generator.unit(), state: randomState(layout, &generator))
            }
            let strategy = try #require(StrategyName.allCases.first { $0.method == method && !$0.rule.takesFactors })
            let combined = try combine(strategy, clients, given: given)
            let expected = weightedSum(clients.map { $0.state.values.map(Double.init) }, clients.map(\.weight))
            let closeness = Closeness(combined.values.map(Double.init), expected)
            #expect(closeness.isWithin(ofLargest: 1e-6), "\(method), seed \(seed): \(closeness)")
            #expect(combined.layout == layout)
        }
    }

    @Test func fedITWeightsEachFactorOnce() throws {
        // p = 1/4, 3/4; B = 2, 4; A = 1, 3: mean B = 3.5, mean A = 2.5, product 8.75 (exact would be 9.5).
        let maps = [LinearMap(name: "m", outputs: 1, inputs: 1)]
        let layout = try specification(rank: 1, alpha: 1, maps: maps).trainedLayout
        let clients = [
            Participant(name: "a", weight: 30, state: AdapterState(layout: layout, values: [1, 2])),
            Participant(name: "b", weight: 90, state: AdapterState(layout: layout, values: [3, 4])),
        ]
        let combined = try combine(.fedit, clients, given: AdapterState(zeros: layout), maps: maps)
        #expect(combined.values == [2.5, 3.5])
        #expect(delta(combined, maps[0]) == [8.75])
        // B = (1, -1), A = (1, -1), p = 1/2: exact 1, FedIT 0.
        let opposite = [
            Participant(name: "a", weight: 1, state: AdapterState(layout: layout, values: [1, 1])),
            Participant(name: "b", weight: 1, state: AdapterState(layout: layout, values: [-1, -1])),
        ]
        let zero = try combine(.fedit, opposite, given: AdapterState(zeros: layout), maps: maps)
        #expect(delta(zero, maps[0]) == [0])
        #expect(exactDelta(opposite, maps[0]) == [1])
    }

    @Test(arguments: [11, 12] as [UInt64])
    func whatFedITMissesIsTheCovarianceOfTheFactors(seed: UInt64) throws {
        for count in [2, 4] {
            let weights = (0..<count).map { 1 + Double($0 * $0) }
            let clients = try participants(
                ranks: .init(repeating: 3, count: count), alphas: .init(repeating: 6, count: count), weights: weights,
                seed: seed)
            let layout = clients[0].state.layout
            let combined = try combine(.fedit, clients, given: AdapterState(zeros: layout))
            let p = weights.map { $0 / weights.reduce(0, +) }
            for map in testMaps {
                func difference(_ state: AdapterState, _ other: AdapterState) -> AdapterState { state.update(since: other) }
                let missing = zip(exactDelta(clients, map), delta(combined, map)).map { $0 - $1 }
                let covariance = weightedSum(clients.map { delta(difference($0.state, combined), map) }, weights)
                var pairwise = [Double](repeating: 0, count: missing.count)
                for i in 0..<count {
                    for j in i + 1..<count {
                        let pair = delta(difference(clients[i].state, clients[j].state), map)
                        for index in pair.indices { pairwise[index] += p[i] * p[j] * pair[index] }
                    }
                }
                #expect(Closeness(missing, covariance).isWithin(ofLargest: 1e-5), "seed \(seed), \(map.name)")
                #expect(Closeness(missing, pairwise).isWithin(ofLargest: 1e-5), "seed \(seed), \(map.name)")
            }
        }
    }

    @Test func fedITIsExactWhereAllAOrAllBAreEqual() throws {
        for role in [AdapterRole.loraA, .loraB] {
            var clients = try participants(ranks: [4, 4, 4], alphas: [8, 8, 8], weights: [1, 5, 2], seed: 21)
            for index in clients.indices {
                for (tensor, description) in clients[0].state.layout.tensors.enumerated() where description.role == role {
                    let range = clients[0].state.layout.range(tensor)
                    clients[index].state.values.replaceSubrange(range, with: clients[0].state.values[range])
                }
            }
            let combined = try combine(.fedit, clients, given: AdapterState(zeros: clients[0].state.layout))
            for map in testMaps {
                #expect(Closeness(delta(combined, map), exactDelta(clients, map)).isWithin(ofLargest: 1e-6))
            }
        }
    }

    @Test(arguments: [31, 32] as [UInt64])
    func frozenFactorsMakeAggregateThenMultiplyEqualMultiplyThenAggregate(seed: UInt64) throws {
        let weights = [3.0, 10, 1, 7]
        // FFA-LoRA: B trained over an A that every client derives from the run's seed.
        let ffa = try specification(.ffaLoRA, rank: 5)
        let frozen = (0..<4).map { _ -> AdapterState in
            var generator = SeededGenerator(seed: seed, purpose: "adapter")
            return ffa.initialWeights(&generator).frozen!
        }
        #expect(Set(frozen.map(\.digest)).count == 1)
        var generator = SeededGenerator(seed: seed, purpose: "frozen test")
        let trained = ["a", "b", "c", "d"].enumerated().map { index, name in
            Participant(name: name, weight: weights[index], state: randomState(ffa.trainedLayout, &generator))
        }
        let before = frozen[0]
        let combined = try combine(.ffaLoRA, trained, given: AdapterState(zeros: ffa.trainedLayout))
        #expect(frozen[0] == before)
        for map in testMaps {
            func multiplied(_ b: AdapterState) -> [Double] {
                product(
                    doubles(b, map, .loraB), doubles(frozen[0], map, .loraA), rows: map.outputs, inner: 5,
                    columns: map.inputs)
            }
            let closeness = Closeness(multiplied(combined), weightedSum(trained.map { multiplied($0.state) }, weights))
            #expect(closeness.isWithin(ofLargest: 1e-6), "seed \(seed), \(map.name): \(closeness)")
        }
        // Fed-SB: R trained between frozen B and A.
        let sb = try specification(.loraSB, rank: 4)
        let factors = randomState(sb.frozenLayout!, &generator)
        let cores = ["a", "b", "c", "d"].enumerated().map { index, name in
            Participant(name: name, weight: weights[index], state: randomState(sb.trainedLayout, &generator))
        }
        let core = try combine(.fedSB, cores, given: randomState(sb.trainedLayout, &generator))
        for map in testMaps {
            func multiplied(_ r: AdapterState) -> [Double] {
                let right = product(
                    doubles(r, map, .core), doubles(factors, map, .loraA), rows: 4, inner: 4, columns: map.inputs)
                return product(doubles(factors, map, .loraB), right, rows: map.outputs, inner: 4, columns: map.inputs)
            }
            let closeness = Closeness(multiplied(core), weightedSum(cores.map { multiplied($0.state) }, weights))
            #expect(closeness.isWithin(ofLargest: 1e-5), "seed \(seed), \(map.name): \(closeness)")
        }
    }

    @Test func aFedSBContributionHasTheSameBytesWhateverTheMatricesAndTheNumberOfClients() throws {
        func bytes(_ outputs: Int, _ inputs: Int) throws -> Int {
            let maps = [LinearMap(name: "m", outputs: outputs, inputs: inputs)]
            let layout = StrategyName.fedSB.rule.contributionLayout(try specification(.loraSB, rank: 6, maps: maps))
            return EncodedState.encode(AdapterState(zeros: layout)).count
        }
        let reference = try bytes(7, 6)
        #expect(try bytes(700, 33) == reference)
        #expect(reference == EncodedState.headerByteCount + 4 * 36 + EncodedState.trailerByteCount)
        // The global state that goes down is one R, however many clients there were.
        let layout = try specification(.loraSB, rank: 6).trainedLayout
        var generator = SeededGenerator(seed: 3, purpose: "bytes")
        let sizes = try [1, 2, 9].map { count in
            let clients = (0..<count).map {
                Participant(name: "client-00\($0)", weight: 1, state: randomState(layout, &generator))
            }
            return EncodedState.encode(try combine(.fedSB, clients, given: AdapterState(zeros: layout))).count
        }
        #expect(Set(sizes).count == 1)
    }

    @Test func weightingBySamplesAndUniformDifferAndOneClientIsItsOwnTraining() throws {
        let layout = try specification(.loraSB, rank: 4).trainedLayout
        var generator = SeededGenerator(seed: 41, purpose: "weights")
        let given = randomState(layout, &generator)
        let states = (0..<2).map { _ in randomState(layout, &generator) }
        func run(_ weighting: Weighting) throws -> AdapterState {
            let examples = [10, 500]
            return try combine(
                .fedSB,
                states.indices.map {
                    Participant(name: "\($0)", weight: weighting.weight(examples: examples[$0]), state: states[$0])
                }, given: given)
        }
        let samples = try run(.samples)
        let uniform = try run(.uniform)
        #expect(!Closeness(samples.values, uniform.values).isWithin(ofLargest: 0.1))
        let middle = weightedSum(states.map { $0.values.map(Double.init) }, [1, 1])
        #expect(Closeness(uniform.values.map(Double.init), middle).isWithin(ofLargest: 1e-6))
        let alone = try combine(.fedSB, [Participant(name: "a", weight: 17, state: states[0])], given: given)
        #expect(Closeness(alone.values, states[0].values).isWithin(ofLargest: 1e-6))
        #expect(Weighting.samples.weight(examples: 0) == 0 && Weighting.uniform.weight(examples: 0) == 0)
    }

    @Test(arguments: [51, 52] as [UInt64])
    func fedITDependsOnTheGaugeOfAClientsFactors(seed: UInt64) throws {
        let clients = try participants(ranks: [4, 4], alphas: [8, 8], weights: [1, 2], seed: seed)
        let turned = [try rotated(clients[0], seed: seed), clients[1]]
        let given = AdapterState(zeros: clients[0].state.layout)
        let first = try combine(.fedit, clients, given: given)
        let second = try combine(.fedit, turned, given: given)
        for map in testMaps {
            #expect(Closeness(delta(turned[0].state, map), delta(clients[0].state, map)).isWithin(ofLargest: 1e-5))
            #expect(!Closeness(delta(second, map), delta(first, map)).isWithin(ofLargest: 0.05), "seed \(seed)")
        }
    }
}

/// The same client with (B Q, Q^T A) in place of (B, A), Q orthogonal: the same product.
func rotated(_ client: Participant, seed: UInt64) throws -> Participant {
    var result = client
    var generator = SeededGenerator(seed: seed, purpose: "gauge")
    for map in testMaps {
        let a = client.state.layout.index(map: map.name, role: .loraA)!
        let b = client.state.layout.index(map: map.name, role: .loraB)!
        let rank = client.state.layout.tensors[a].rank
        let square = (0..<rank * rank).map { _ in Double(generator.symmetric(1)) }
        let q = try qr(square, rows: rank, columns: rank).q
        let turnedB = product(doubles(client.state, map, .loraB), q, rows: map.outputs, inner: rank, columns: rank)
        let qt = (0..<rank * rank).map { q[$0 % rank * rank + $0 / rank] }
        let turnedA = product(qt, doubles(client.state, map, .loraA), rows: rank, inner: rank, columns: map.inputs)
        result.state.values.replaceSubrange(client.state.layout.range(a), with: turnedA.map { Float($0) })
        result.state.values.replaceSubrange(client.state.layout.range(b), with: turnedB.map { Float($0) })
    }
    return result
}
