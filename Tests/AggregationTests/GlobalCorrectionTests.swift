/// FLoRA's correction over rounds: exact until the cap, the best approximation beyond it, the same by whatever way.

import Adapters
import Aggregation
import Checkpoints
import LinearAlgebra
import Plan
import Primitives
import TestSupport
import Testing
import UpdateCodec

@Suite struct GlobalCorrectionTests {
    static let wide = [
        LinearMap(name: "q", outputs: 40, inputs: 28),
        LinearMap(name: "down", outputs: 24, inputs: 64),
    ]

    static func stack(ranks: [Int], seed: UInt64, maps: [LinearMap] = wide) throws -> AdapterState {
        let clients = try participants(
            ranks: ranks, alphas: ranks.map { Double(2 * $0) }, weights: ranks.indices.map { 1 + Double($0) }, maps: maps,
            seed: seed)
        return try combine(.flora, clients, maps: maps)
    }

    static func sum(_ stacks: [AdapterState], _ map: LinearMap) -> [Double] {
        stacks.map { stackDelta($0, map) }.reduce([Double](repeating: 0, count: map.outputs * map.inputs)) {
            zip($0, $1).map(+)
        }
    }

    @Test(arguments: [1, 2] as [UInt64])
    func theCorrectionIsTheSumOfItsRounds(seed: UInt64) throws {
        var correction = GlobalCorrection(maps: Self.wide)
        #expect(correction.state == nil && correction.digest == nil)
        var stacks: [AdapterState] = []
        for round in 1...4 {
            stacks.append(try Self.stack(ranks: [2, 4], seed: seed &+ 100 &* UInt64(round)))
            #expect(try correction.append(stacks[round - 1], round: round, cap: 128) == nil)
        }
        #expect(correction.segments.map(\.round) == [1, 2, 3, 4])
        #expect(correction.ranks == [24, 24])
        let state = try #require(correction.state)
        #expect(state.layout == AdapterSpecification.stackLayout(maps: Self.wide, rank: 24))
        for map in Self.wide {
            let closeness = Closeness(stackDelta(state, map), Self.sum(stacks, map))
            #expect(closeness.isWithin(norm: 1e-12), "seed \(seed), \(map.name): \(closeness)")
        }
    }

    @Test(arguments: [3, 4] as [UInt64])
    func aLateJoinerThatReplaysTheStoredSegmentsHasTheSameDigest(seed: UInt64) throws {
        // Caps: never reached; reached in the middle; reached by the first round.
        for cap in [128, 14, 4] {
            var correction = GlobalCorrection(maps: Self.wide)
            var held: [CorrectionSegment] = []
            for round in 1...5 {
                let stack = try Self.stack(ranks: [2, 4], seed: seed &+ 10 &* UInt64(round))
                let truncated = try correction.append(stack, round: round, cap: cap) != nil
                // A client that took part in every round fetches what it lacks; all of it after a truncation.
                if truncated { held = [] }
                held += correction.segments[held.count...]
                #expect(try GlobalCorrection(maps: Self.wide, segments: held).digest == correction.digest)
                // One that joins now downloads every segment.
                let downloaded = try correction.segments.map { segment in
                    let bytes = EncodedState.encode(segment.stack)
                    return CorrectionSegment(
                        round: segment.round, stack: try EncodedState.decode(bytes, layout: segment.stack.layout))
                }
                let late = try GlobalCorrection(maps: Self.wide, segments: downloaded)
                #expect(late == correction)
                #expect(late.digest == correction.digest && late.state == correction.state, "seed \(seed), round \(round)")
                #expect(correction.ranks.allSatisfy { $0 <= cap })
            }
        }
    }

    @Test(arguments: [5, 6, 7] as [UInt64])
    func beyondTheCapTheRestIsTheBestApproximationAndItsErrorIsTold(seed: UInt64) throws {
        let cap = 10
        var correction = GlobalCorrection(maps: Self.wide)
        let stacks = try (0..<3).map { try Self.stack(ranks: [2, 4], seed: seed &+ 1000 &* UInt64($0)) }
        #expect(try correction.append(stacks[0], round: 1, cap: cap) == nil)
        let whole = try correction.append(stacks[1], round: 2, cap: cap)
        let error = try #require(whole)
        #expect(correction.segments.count == 1 && correction.segments[0].round == 2)
        #expect(correction.ranks == [cap, cap])
        let state = try #require(correction.state)
        var squaredCut = 0.0
        var squaredWhole = 0.0
        for map in Self.wide {
            let dense = Self.sum([stacks[0], stacks[1]], map)
            let values = try svd(dense, rows: map.outputs, columns: map.inputs).s
            let cut = values.dropFirst(cap).reduce(0) { $0 + $1 * $1 }
            let difference = zip(stackDelta(state, map), dense).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }
            #expect(abs(difference - cut) <= 1e-5 * cut, "seed \(seed), \(map.name): \(difference) against \(cut)")
            squaredCut += cut
            squaredWhole += values.reduce(0) { $0 + $1 * $1 }
        }
        #expect(abs(error - (squaredCut / squaredWhole).squareRoot()) <= 1e-9, "seed \(seed): \(error)")
        #expect(error > 0.01 && error < 1)
        // The same again gives the same bits.
        var again = GlobalCorrection(maps: Self.wide)
        _ = try again.append(stacks[0], round: 1, cap: cap)
        _ = try again.append(stacks[1], round: 2, cap: cap)
        #expect(again.digest == correction.digest)
    }

    @Test func aStackAboveTheSmallerSideIsReducedWithoutLoss() throws {
        // Rank 18 of three clients on matrices whose smaller sides are 9, 8 and 10.
        let clients = try participants(
            ranks: [8, 8, 2], alphas: [8, 8, 8], weights: [1, 2, 3], seed: 8)
        let stack = try combine(.flora, clients)
        #expect(stack.layout.tensors.allSatisfy { $0.rank == 18 })
        var correction = GlobalCorrection(maps: testMaps)
        let appended = try correction.append(stack, round: 1, cap: 128)
        let error = try #require(appended)
        #expect(error < 1e-12)
        #expect(correction.ranks == testMaps.map { min($0.outputs, $0.inputs) })
        for map in testMaps {
            let closeness = Closeness(stackDelta(try #require(correction.state), map), exactDelta(clients, map))
            #expect(closeness.isWithin(norm: 1e-6), "\(map.name): \(closeness)")
        }
    }

    @Test func roundsStaySegmentsBeyondTheSmallerSideUpToTheCap() throws {
        var correction = GlobalCorrection(maps: testMaps)
        var stacks: [AdapterState] = []
        for round in 1...4 {
            stacks.append(try Self.stack(ranks: [2, 2], seed: UInt64(round), maps: testMaps))
            #expect(try correction.append(stacks[round - 1], round: round, cap: 16) == nil)
        }
        #expect(correction.ranks.allSatisfy { $0 == 16 } && correction.segments.count == 4)
        for map in testMaps {
            let closeness = Closeness(stackDelta(try #require(correction.state), map), Self.sum(stacks, map))
            #expect(closeness.isWithin(norm: 1e-12), "\(map.name): \(closeness)")
        }
        // Beyond twice the least of the smaller sides, 8, it leaves no more than those, without loss.
        let fifth = try Self.stack(ranks: [2, 2], seed: 5, maps: testMaps)
        let appended = try correction.append(fifth, round: 5, cap: 128)
        let error = try #require(appended)
        #expect(error < 1e-12)
        #expect(correction.ranks == testMaps.map { min($0.outputs, $0.inputs) })
    }

    @Test func theLargestEntryOfEachLeftVectorIsPositiveAndBothSidesCarryEqualMass() throws {
        var correction = GlobalCorrection(maps: Self.wide)
        _ = try correction.append(try Self.stack(ranks: [2, 4, 8], seed: 9), round: 1, cap: 6)
        let state = try #require(correction.state)
        for map in Self.wide {
            let b = doubles(state, map, .stackB)
            let a = doubles(state, map, .stackA)
            for column in 0..<6 {
                let left = stride(from: column, to: b.count, by: 6).map { b[$0] }
                let right = Array(a[column * map.inputs..<(column + 1) * map.inputs])
                #expect(left.max { abs($0) < abs($1) }! > 0)
                let leftNorm = left.reduce(0) { $0 + $1 * $1 }
                let rightNorm = right.reduce(0) { $0 + $1 * $1 }
                #expect(abs(leftNorm - rightNorm) < 1e-5 * leftNorm)
            }
        }
    }

    @Test func aCorrectionOfZerosIsReducedToZeros() throws {
        var correction = GlobalCorrection(maps: Self.wide)
        let zeros = AdapterState(zeros: AdapterSpecification.stackLayout(maps: Self.wide, rank: 20))
        #expect(try correction.append(zeros, round: 1, cap: 8) == 0)
        #expect(correction.state?.values.allSatisfy { $0 == 0 } == true)
    }

    @Test func aStackOverOtherMapsIsRefused() throws {
        var correction = GlobalCorrection(maps: Self.wide)
        let other = try Self.stack(ranks: [2], seed: 1, maps: testMaps)
        #expect(throws: AggregationError.self) { _ = try correction.append(other, round: 1, cap: 8) }
        #expect(correction.segments.isEmpty)
        let transposed = Self.wide.map { LinearMap(name: $0.name, outputs: $0.inputs, inputs: $0.outputs) }
        #expect(throws: AggregationError.self) {
            _ = try correction.append(try Self.stack(ranks: [2], seed: 1, maps: transposed), round: 1, cap: 8)
        }
        #expect(AdapterState.concatenated(stacks: [other, try Self.stack(ranks: [2], seed: 1)]) == nil)
        #expect(AdapterState.concatenated(stacks: []) == nil)
    }
}
