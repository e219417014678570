/// From one global adapter and a round's contributions to the next global adapter and its blobs.

import Adapters
import Aggregation
import Checkpoints
import Plan
import Primitives
import UpdateCodec

struct Combination {
    let plan: FederationPlan
    let maps: [LinearMap]

    /// - Parameters:
    ///   - weights: ascending by client name
    ///   - blob: bytes of a blob of the current adapter
    ///   - contribution: bytes of a client's contribution, and the rank it was trained at
    func next(
        after current: GlobalAdapter, round: Int, weights: [(client: String, weight: Double)],
        blob: (Digest) throws(Failure) -> [UInt8],
        contribution: (String) throws(Failure) -> (bytes: [UInt8], rank: Int)
    ) throws(Failure) -> (GlobalAdapter, [(StoredBlob, bytes: [UInt8])]) {
        let rule = plan.strategy.rule
        let adapted = try plan.targets(among: maps)
        var global: AdapterState?
        if let stateBlob = current.blobs.first(where: { $0.kind == .state }) {
            let layout = try plan.specification(rank: stateBlob.rank, maps: maps).trainedLayout
            global = try decode(try blob(stateBlob.digest), layout: layout, of: "the global adapter")
        }
        let total = weights.reduce(0) { $0 + $1.weight }
        var aggregator = rule.aggregator(AggregationStart(global: global, maps: adapted, totalWeight: total))
        global = nil
        let combined: AdapterState
        do {
            for (client, weight) in weights {
                let (bytes, rank) = try contribution(client)
                let layout = rule.contributionLayout(try plan.specification(rank: rank, maps: maps))
                try aggregator.add(
                    client: client, weight: weight,
                    state: try decode(bytes, layout: layout, of: "client \(client)'s contribution"))
            }
            combined = try aggregator.finish()
        } catch let failure as Failure {
            throw failure
        } catch {
            throw Failure(.internalError, "round \(round) cannot be combined: \(error)")
        }
        guard plan.strategy == .flora else {
            let rank = plan.ranks[0]
            let encoded = encodedBlob(combined, kind: .state, rank: rank)
            return (GlobalAdapter(round: round, blobs: [encoded.0] + current.blobs.filter { $0.kind != .state }), [encoded])
        }
        return try append(combined, to: current, round: round, maps: adapted, blob: blob)
    }

    /// FLoRA: the round's stack becomes one more segment, or all segments are consolidated into one.
    private func append(
        _ stack: AdapterState, to current: GlobalAdapter, round: Int, maps: [LinearMap],
        blob: (Digest) throws(Failure) -> [UInt8]
    ) throws(Failure) -> (GlobalAdapter, [(StoredBlob, bytes: [UInt8])]) {
        var segments: [CorrectionSegment] = []
        for reference in current.blobs {
            let layout = AdapterSpecification.stackLayout(maps: maps, rank: reference.rank)
            let state = try decode(try blob(reference.digest), layout: layout, of: "the global correction")
            segments.append(CorrectionSegment(round: 0, stack: state))
        }
        do {
            var correction = try GlobalCorrection(maps: maps, segments: segments)
            let error = try correction.append(stack, round: round, cap: plan.rankCap)
            guard let last = correction.segments.last else {
                throw Failure(.internalError, "the correction of round \(round) is empty")
            }
            let encoded = encodedBlob(last.stack, kind: .segment, rank: last.stack.layout.tensors.map(\.rank).max() ?? 0)
            let kept = error == nil ? current.blobs : []
            return (GlobalAdapter(round: round, blobs: kept + [encoded.0], truncationError: error), [encoded])
        } catch let failure as Failure {
            throw failure
        } catch {
            throw Failure(.internalError, "round \(round) cannot be combined: \(error)")
        }
    }

    private func decode(_ bytes: [UInt8], layout: AdapterLayout, of what: String) throws(Failure) -> AdapterState {
        do throws(DecodeError) {
            return try EncodedState.decode(bytes, layout: layout)
        } catch {
            throw Failure(.badData, "\(what) in the state is damaged (\(error)): restore the state file from a copy")
        }
    }
}
