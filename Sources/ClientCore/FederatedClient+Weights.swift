/// The adapter that a task names: kept, derived from the seed, reached by a difference, or fetched.

import Adapters
import Checkpoints
import Plan
import Primitives
import UpdateCodec
import Wire

/// FLoRA's correction as it was last put together, so that a task that names the same segments, or more, decodes only what
/// is new; clients of one process may share it.
public final class HeldCorrection {
    private var digests: [Digest] = []
    private var state: AdapterState?

    public init() {}

    /// The part that is held, if the named segments begin with it.
    func prefix(of named: [Digest]) -> (count: Int, state: AdapterState?) {
        named.starts(with: digests) ? (digests.count, state) : (0, nil)
    }

    func hold(_ state: AdapterState?, of named: [Digest]) {
        self.state = state
        digests = state == nil ? [] : named
    }
}

extension FederatedClient {
    /// Fetches what the task refers to, and derives the rest from the run's seed.
    func weights(
        _ joined: Joined, round: Int, attempt: Int, blobs: [BlobReference], delta: StateDelta?, derivedDigest: Digest?
    ) throws(Refused) -> AdapterWeights {
        let needed = Set(blobs.map(\.digest) + (delta.map { [$0.from] } ?? []))
        try Refused.wrap { () throws(Failure) in try storage.retainBlobs(needed) }
        var weights = joined.plan.derivedWeights(
            joined.specification, round: round, attempt: attempt, client: identity.name)
        var segments: [(reference: BlobReference, bytes: [UInt8])] = []
        for reference in blobs {
            let bytes =
                reference.kind == .state
                ? try state(reference, delta, derived: weights.trained, joined) : try fetch(reference, joined)
            switch reference.kind {
            case .state:
                weights.trained.replaceLast(with: try decode(bytes, layout: try stateLayout(joined)))
            case .frozen:
                guard let layout = joined.specification.frozenLayout else {
                    throw Refused.failure(
                        Failure(
                            .protocolError,
                            "strategy \(joined.plan.strategy.rawValue) has no frozen factors, but the coordinator sent some"))
                }
                weights.frozen = try decode(bytes, layout: layout)
            case .segment:
                segments.append((reference, bytes))
            }
        }
        let known = correction.prefix(of: segments.map(\.reference.digest))
        if !segments.isEmpty, known.count == segments.count {
            weights.correction = known.state
        } else {
            var stacks = known.state.map { [$0] } ?? []
            for (reference, bytes) in segments.dropFirst(known.count) {
                stacks.append(try decode(bytes, layout: try largestLayout(joined, reference)))
            }
            weights.correction = AdapterState.concatenated(stacks: stacks)
            correction.hold(weights.correction, of: segments.map(\.reference.digest))
        }
        if let derivedDigest, weights.frozen?.digest != derivedDigest {
            throw Refused.failure(
                Failure(
                    .protocolError,
                    "the frozen factors that this machine derives from the run's seed differ from the coordinator's: use the same Tributary version on both sides"
                ))
        }
        return weights
    }

    /// The global state: kept, derived from the seed, reached by the difference from the one before, or else fetched whole.
    private func state(
        _ reference: BlobReference, _ delta: StateDelta?, derived: AdapterState, _ joined: Joined
    ) throws(Refused) -> [UInt8] {
        if let bytes = try Refused.wrap({ () throws(Failure) in try storage.blob(reference.digest) }) { return bytes }
        let layout = try stateLayout(joined)
        var made = EncodedState.encode(layout == derived.layout ? derived : derived.splittingHead().head ?? derived)
        if Digest(of: made) != reference.digest, let delta,
            let before = try Refused.wrap({ () throws(Failure) in try storage.blob(delta.from) })
        {
            let codec = joined.plan.compressDownlink
            let bytes = try download(
                delta.digest, byteCount: delta.byteCount, limit: EncodedState.byteLimit(layout: layout, codec: codec), joined)
            made = EncodedState.encode(
                try decode(before, layout: layout).adding(try decode(bytes, layout: layout, codec: codec)))
        }
        guard Digest(of: made) == reference.digest else { return try fetch(reference, joined) }
        try Refused.wrap { () throws(Failure) in try storage.keepBlob(reference.digest, bytes: made) }
        return made
    }

    private func decode(
        _ bytes: [UInt8], layout: AdapterLayout, codec: UpdateCodec = .float32
    ) throws(Refused) -> AdapterState {
        do {
            return try EncodedState.decode(bytes, layout: layout, codecs: [codec])
        } catch {
            throw Refused.failure(Failure(.protocolError, "the coordinator's adapter cannot be read: \(error)"))
        }
    }

    private func fetch(_ reference: BlobReference, _ joined: Joined) throws(Refused) -> [UInt8] {
        if let bytes = try Refused.wrap({ () throws(Failure) in try storage.blob(reference.digest) }) { return bytes }
        let bytes = try download(
            reference.digest, byteCount: reference.byteCount,
            limit: EncodedState.byteLimit(layout: try largestLayout(joined, reference), codec: .float32), joined)
        try Refused.wrap { () throws(Failure) in try storage.keepBlob(reference.digest, bytes: bytes) }
        return bytes
    }

    private func download(
        _ digest: Digest, byteCount announced: UInt64, limit: Int, _ joined: Joined
    ) throws(Refused) -> [UInt8] {
        let byteCount = Int(clamping: announced)
        guard byteCount <= limit else {
            throw Refused.failure(
                Failure(
                    .protocolError,
                    "the coordinator announced an adapter of \(byteCount) bytes, where this run's has at most \(limit)"))
        }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(byteCount)
        for index in 0..<Chunking.count(ofByteCount: byteCount) {
            let reply = try exchange(
                .fetchChunk(FetchChunk(session: joined.session, digest: digest, index: UInt32(index))), bulk: true)
            guard case .chunk(let chunk) = reply, chunk.digest == digest, Int(chunk.index) == index,
                bytes.count + chunk.bytes.count <= byteCount
            else { throw unexpected(reply, to: "a request for chunk \(index)") }
            bytes += chunk.bytes
        }
        guard Digest(of: bytes) == digest else {
            throw Refused.failure(
                Failure(.protocolError, "the adapter from the coordinator is damaged (digest differs from \(digest.short))"))
        }
        return bytes
    }

    private func stateLayout(_ joined: Joined) throws(Refused) -> AdapterLayout {
        guard let layout = joined.plan.stateLayout(joined.specification) else {
            throw Refused.failure(
                Failure(
                    .protocolError,
                    "strategy \(joined.plan.strategy.rawValue) has no global state here, but the coordinator sent one"))
        }
        return layout
    }

    private func largestLayout(_ joined: Joined, _ reference: BlobReference) throws(Refused) -> AdapterLayout {
        switch reference.kind {
        case .state: try stateLayout(joined)
        case .frozen: joined.specification.frozenLayout ?? joined.specification.trainedLayout
        case .segment: AdapterSpecification.stackLayout(maps: joined.specification.maps, rank: Int(reference.rank))
        }
    }
}
