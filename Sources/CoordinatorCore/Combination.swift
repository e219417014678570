/// From one global adapter and a round's contributions to the next global adapter and its blobs.

import Adapters
import Aggregation
import Checkpoints
import Plan
import Primitives
import Privacy
import UpdateCodec
import Wire

struct Combination {
    let plan: FederationPlan
    let maps: [LinearMap]
    let noise: CoordinatorNoise?
    /// Bytes of a blob of the current adapter.
    let blob: (Digest) throws(Failure) -> [UInt8]
    /// What a client sent.
    let contribution: (String) throws(Failure) -> Contribution

    struct Contribution {
        let bytes: [UInt8]
        /// That it was trained at, and the attempt that it was trained for.
        let rank: Int
        let attempt: Int
    }

    /// - Parameter weights: ascending by client name
    /// - Returns: the next adapter, and the blobs that are new in it
    func next(
        after current: GlobalAdapter, round: Int, weights: [(client: String, weight: Double)]
    ) throws(Failure) -> (GlobalAdapter, [(StoredBlob, bytes: [UInt8])]) {
        let rule = plan.strategy.rule
        let adapted = try plan.targets(among: maps)
        let stateBlob = current.blobs.first { $0.kind == .state }
        let global = try stateBlob.map { (stored) throws(Failure) in
            guard let layout = plan.stateLayout(try plan.specification(rank: stored.rank, maps: maps)) else {
                throw Failure(.badData, "the state holds a global adapter that its plan has none of: restore a copy")
            }
            return try decode(try blob(stored.digest), layout: layout, of: "the global adapter")
        }
        let total = weights.reduce(0) { $0 + $1.weight }
        var aggregator = try makeAggregator(
            rule, AggregationStart(global: global, maps: adapted, totalWeight: total), current, round: round)
        let combined: AdapterState
        do {
            for (client, weight) in weights {
                let sent = try contribution(client)
                let specification = try plan.specification(rank: sent.rank, maps: maps)
                var state = try decode(
                    sent.bytes, layout: rule.contributionLayout(specification), of: "client \(client)'s contribution",
                    codec: plan.compress)
                if rule.takesFactors {
                    var given = plan.derivedWeights(specification, round: round, attempt: sent.attempt, client: client).trained
                    if let global { given.replaceLast(with: global) }
                    state = given.adding(state)
                }
                try aggregator.add(client: client, weight: weight, state: state)
            }
            combined = try aggregator.finish()
        } catch let failure as Failure {
            throw failure
        } catch {
            throw Failure(.internalError, "round \(round) cannot be combined: \(error)")
        }
        if rule.takesFactors { return try append(combined, to: current, round: round, maps: adapted) }
        guard let global, let stateBlob else {
            throw Failure(.internalError, "round \(round) has no global adapter to be combined onto")
        }
        var (next, blobs) = try replace(stateBlob, holding: global, by: combined, in: current, round: round)
        if let clipped = aggregator as? PrivateAverage { next.clip = clipped.nextClip }
        return (next, blobs)
    }

    private func makeAggregator(
        _ rule: StrategyRule, _ start: AggregationStart, _ current: GlobalAdapter, round: Int
    ) throws(Failure) -> any Aggregator {
        guard plan.privacy == .client else { return rule.aggregator(start) }
        guard let noise, let global = start.global, let multiplier = plan.noiseMultiplier else {
            throw Failure(.internalError, "client-level privacy without a key, a state or a noise multiplier")
        }
        return PrivateAverage(
            onto: global, expectedClients: plan.expectedClients, clip: current.clip ?? plan.clip, noiseMultiplier: multiplier,
            adaptation: try plan.clipAdaptation(), key: noise.key.derived("noise", round: round))
    }

    /// The next state as a blob, and where the downlink is compressed the way to it: then the state is the one that clients
    /// reach by it, and what that leaves out is carried to the next round.
    private func replace(
        _ stored: StoredBlob, holding global: AdapterState, by combined: AdapterState, in current: GlobalAdapter, round: Int
    ) throws(Failure) -> (GlobalAdapter, [(StoredBlob, bytes: [UInt8])]) {
        let others = current.blobs.filter { $0.kind != .state }
        let codec = plan.compressDownlink
        guard codec != .float32 else {
            let encoded = encodedBlob(combined, kind: .state, rank: stored.rank)
            return (GlobalAdapter(round: round, blobs: [encoded.0] + others), [encoded])
        }
        var change = combined.update(since: global)
        if let residual = current.residual {
            let carried = try decode(try blob(residual.digest), layout: global.layout, of: "the downlink's residual")
            change = ErrorFeedback.corrected(change, residual: carried, decay: 1, skippedRounds: 0)
        }
        let bytes = EncodedState.encode(
            change, codec: codec, rounding: SeededGenerator(seed: plan.seed, purpose: "downlink rounding", round: round))
        let decoded = try decode(bytes, layout: global.layout, of: "the round's change", codec: codec)
        let state = encodedBlob(global.adding(decoded), kind: .state, rank: stored.rank)
        let left = ErrorFeedback.residual(corrected: change, decoded: decoded)
        let delta = StoredBlob(digest: Digest(of: bytes), byteCount: bytes.count, kind: .delta, rank: stored.rank)
        var next = GlobalAdapter(round: round, blobs: [state.0] + others)
        next.delta = StateDelta(from: stored.digest, digest: delta.digest, byteCount: UInt64(delta.byteCount))
        // A remainder of zeros is none: as a blob it could not be told from a state of zeros, which is never discarded.
        guard left.values.contains(where: { $0 != 0 }) else { return (next, [state, (delta, bytes)]) }
        let residual = encodedBlob(left, kind: .residual, rank: stored.rank)
        next.residual = residual.0
        return (next, [state, residual, (delta, bytes)])
    }

    /// FLoRA: the round's stack becomes one more segment, or all segments are consolidated into one; a head is the new state.
    private func append(
        _ combined: AdapterState, to current: GlobalAdapter, round: Int, maps: [LinearMap]
    ) throws(Failure) -> (GlobalAdapter, [(StoredBlob, bytes: [UInt8])]) {
        let (stack, head) = combined.splittingHead()
        let known = current.blobs.filter { $0.kind == .segment }
        let rank = current.blobs.first { $0.kind == .state }?.rank ?? plan.ranks[0]
        let heads = head.map { [encodedBlob($0, kind: .state, rank: rank)] } ?? []
        var segments: [CorrectionSegment] = []
        for reference in known {
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
            let kept = error == nil ? known : []
            return (
                GlobalAdapter(round: round, blobs: heads.map(\.0) + kept + [encoded.0], truncationError: error),
                heads + [encoded]
            )
        } catch let failure as Failure {
            throw failure
        } catch {
            throw Failure(.internalError, "round \(round) cannot be combined: \(error)")
        }
    }

    private func decode(
        _ bytes: [UInt8], layout: AdapterLayout, of what: String, codec: UpdateCodec = .float32
    ) throws(Failure) -> AdapterState {
        do throws(DecodeError) {
            return try EncodedState.decode(bytes, layout: layout, codecs: [codec])
        } catch {
            throw Failure(.badData, "\(what) in the state is damaged (\(error)): restore the state file from a copy")
        }
    }
}
