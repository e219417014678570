/// The first global adapter of a run, made from the plan, from an adapter, or from a client's start.

import Adapters
import Checkpoints
import Plan
import Primitives
import UpdateCodec

public struct RunStart: Sendable {
    /// Nil where a client computes it (Fed-SB; LoftQ's start).
    public let adapter: GlobalAdapter?
    public let blobs: [(StoredBlob, bytes: [UInt8])]
    /// What clients derive from the seed instead of downloading it (FFA-LoRA's A).
    public let derivedDigest: Digest?

    public init(adapter: GlobalAdapter?, blobs: [(StoredBlob, bytes: [UInt8])], derivedDigest: Digest?) {
        self.adapter = adapter
        self.blobs = blobs
        self.derivedDigest = derivedDigest
    }

    /// - Parameter initial: weights that the run starts from instead of fresh ones (`--init-adapter`): trained and frozen
    ///   factors in the plan's layouts, or a correction for `flora`
    public init(plan: FederationPlan, maps: [LinearMap], initial: AdapterWeights?) throws(Failure) {
        let rank = plan.ranks[0]
        guard !plan.isStartUploaded else {
            self.init(adapter: nil, blobs: [], derivedDigest: nil)
            return
        }
        switch plan.strategy {
        case .flora:
            let segment = initial?.correction.map { state in
                encodedBlob(state, kind: .segment, rank: state.layout.tensors.map(\.rank).max() ?? 0)
            }
            let blobs = segment.map { [$0] } ?? []
            self.init(adapter: GlobalAdapter(round: 0, blobs: blobs.map(\.0)), blobs: blobs, derivedDigest: nil)
        case .fedit, .ffaLoRA, .fedSB:
            let specification = try plan.specification(rank: rank, maps: maps)
            let fresh = plan.derivedWeights(specification)
            var blobs = [encodedBlob((initial ?? fresh).trained, kind: .state, rank: rank)]
            // An A that came with an adapter cannot be derived from the seed: it travels once.
            if let frozen = initial?.frozen { blobs.append(encodedBlob(frozen, kind: .frozen, rank: rank)) }
            self.init(
                adapter: GlobalAdapter(round: 0, blobs: blobs.map(\.0)), blobs: blobs,
                derivedDigest: initial == nil ? fresh.frozen?.digest : nil)
        }
    }
}

func encodedBlob(_ state: AdapterState, kind: StoredBlob.Kind, rank: Int) -> (StoredBlob, bytes: [UInt8]) {
    let bytes = EncodedState.encode(state)
    return (StoredBlob(digest: Digest(of: bytes), byteCount: bytes.count, kind: kind, rank: rank), bytes)
}

/// A start, as one client uploaded it: what is trained is the first state, the rest frozen for the run.
func splitStart(_ start: AdapterState, plan: FederationPlan, maps: [LinearMap]) throws(Failure) -> RunStart {
    let rank = plan.ranks[0]
    let specification = try plan.specification(rank: rank, maps: maps)
    let weights = specification.weights(ofStart: start, initial: plan.derivedWeights(specification))
    var blobs = [encodedBlob(weights.trained, kind: .state, rank: rank)]
    if let frozen = weights.frozen { blobs.append(encodedBlob(frozen, kind: .frozen, rank: rank)) }
    return RunStart(adapter: GlobalAdapter(round: 0, blobs: blobs.map(\.0)), blobs: blobs, derivedDigest: nil)
}

/// The global adapter after a round (nil: the last), as a client of the largest rank would hold it.
public func storedWeights(
    _ stored: StoredFederation, round: Int?, maps: [LinearMap], blob: (Digest) throws(Failure) -> [UInt8]
) throws(Failure) -> AdapterWeights {
    guard let last = stored.adapters.map(\.round).max() else {
        throw Failure(.usage, "the run has no adapter yet: its start is still to be computed")
    }
    guard let adapter = stored.adapters.first(where: { $0.round == round ?? last }) else {
        throw Failure(.usage, "there is no adapter of round \(round ?? last): the run has rounds 0 to \(last)")
    }
    let rank = stored.plan.ranks.max() ?? 1
    let specification = try stored.plan.specification(rank: rank, maps: maps)
    var weights = stored.plan.derivedWeights(specification)
    func state(_ blob: StoredBlob, _ bytes: [UInt8], _ layout: AdapterLayout) throws(Failure) -> AdapterState {
        do throws(DecodeError) { return try EncodedState.decode(bytes, layout: layout, codecs: [.float32]) } catch {
            throw Failure(
                .badData, "blob \(blob.digest.short) of the state is damaged (\(error)): restore the state file from a copy")
        }
    }
    var segments: [AdapterState] = []
    for reference in adapter.blobs {
        let bytes = try blob(reference.digest)
        switch reference.kind {
        case .state: weights.trained = try state(reference, bytes, specification.trainedLayout)
        case .frozen:
            if let layout = specification.frozenLayout { weights.frozen = try state(reference, bytes, layout) }
        case .delta, .residual: break
        case .segment:
            segments.append(
                try state(reference, bytes, AdapterSpecification.stackLayout(maps: specification.maps, rank: reference.rank)))
        }
    }
    weights.correction = AdapterState.concatenated(stacks: segments)
    return weights
}
