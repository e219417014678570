/// FLoRA's global correction: the stacks of all rounds, a frozen low-rank branch beside the base that is never merged
/// into it, so that a quantized base stays exactly as it is.
///
/// As long as the ranks add up to no more than the cap and twice the matrix's smaller side, each round is a segment of its own: a
/// client that holds the first segments needs only the later ones, and the sum is exact. Beyond that, or where a round alone is
/// above a smaller side, all segments become one, by a truncated singular value decomposition whose relative error is returned.
/// (One segment as soon as the smaller side is reached would be smaller, but everybody would fetch all of it in every round.)

import Adapters
import Checkpoints
import Primitives

/// One part of the correction.
public struct CorrectionSegment: Equatable, Sendable {
    /// The last round that is in it; a consolidated segment holds every earlier round as well.
    public let round: Int
    /// stackA and stackB of each adapted map, weights and scales folded in.
    public let stack: AdapterState

    public init(round: Int, stack: AdapterState) {
        self.round = round
        self.stack = stack
    }

    public var digest: Digest { stack.digest }
}

public struct GlobalCorrection: Equatable, Sendable {
    public let maps: [LinearMap]
    /// In order of rounds.
    public private(set) var segments: [CorrectionSegment]

    public init(maps: [LinearMap]) {
        self.maps = maps
        segments = []
    }

    /// A correction as it was stored, part by part.
    ///
    /// - Throws: `AggregationError` if a part is not a stack over these maps.
    public init(maps: [LinearMap], segments: [CorrectionSegment]) throws(AggregationError) {
        self.maps = maps
        for segment in segments { try Self.check(segment.stack, maps: maps) }
        self.segments = segments
    }

    /// All segments as one state, what a client runs beside its base; nil before the first round.
    public var state: AdapterState? { AdapterState.concatenated(stacks: segments.map(\.stack)) }

    /// The digest of `state`: equal however the rounds arrived.
    public var digest: Digest? { state?.digest }

    /// The rank on each map.
    public var ranks: [Int] {
        maps.indices.map { map in segments.reduce(0) { $0 + $1.stack.layout.tensors[2 * map].rank } }
    }

    /// The largest rank that a map's correction can have.
    public static func largestRank(_ map: LinearMap, cap: Int) -> Int { min(cap, 2 * min(map.outputs, map.inputs)) }

    /// Adds a round's stack.
    ///
    /// - Parameters:
    ///   - stack: what `StackedFactors` returned, over the same maps
    ///   - round: its round
    ///   - cap: the largest rank of the correction on any map
    /// - Returns: nil if the stack was appended; if all was consolidated into one segment, the Frobenius norm of what
    ///   was cut off over that of the whole correction before, taken over all maps together.
    public mutating func append(_ stack: AdapterState, round: Int, cap: Int) throws(AggregationError) -> Double? {
        precondition(cap >= 1, "a rank cap of \(cap)")
        try Self.check(stack, maps: maps)
        let candidate = segments + [CorrectionSegment(round: round, stack: stack)]
        // A segment's layout follows from one rank, which a matrix's smaller side limits.
        let fits = maps.indices.allSatisfy { index in
            let added = stack.layout.tensors[2 * index].rank
            let side = min(maps[index].outputs, maps[index].inputs)
            return added <= side && ranks[index] + added <= Self.largestRank(maps[index], cap: cap)
        }
        if fits {
            segments = candidate
            return nil
        }
        let limits = maps.map { min(cap, $0.outputs, $0.inputs) }
        let truncation = try StackTruncation(stacks: candidate.map(\.stack), maps: maps, limits: limits)
        segments = [CorrectionSegment(round: round, stack: truncation.state)]
        return truncation.relativeError
    }

    private static func check(_ stack: AdapterState, maps: [LinearMap]) throws(AggregationError) {
        let expected = AdapterSpecification.stackLayout(
            maps: maps,
            ranks: maps.map { map in
                stack.layout.index(map: map.name, role: .stackA).map { stack.layout.tensors[$0].rank } ?? 0
            })
        try Admission.checkLayout(stack.layout, expected: expected, client: "")
        try Admission.checkFinite(stack, client: "")
    }
}
