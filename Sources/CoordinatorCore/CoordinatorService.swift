/// The coordinator around the federation: bytes in, what is decided made durable, bytes out.
///
/// Calls come one at a time. A contribution is stored before its client is told so, and everything that a request
/// changes is stored as one. If the store fails, the error goes up and the process must end: what is in memory would
/// be ahead of what is on disk, and a new start goes on from there.

import Adapters
import Checkpoints
import Plan
import Primitives
import Privacy
import UpdateCodec
import Wire

public final class CoordinatorService {
    public private(set) var federation: Federation
    let store: any FederationStore
    /// Real time, for the seconds in the record; the deadlines' clock is passed with each call.
    private let stopwatch: () -> Duration
    private var roundBegan: Duration
    /// Told of everything that was stored, after it was stored.
    public var observer: ([StoreChange]) -> Void = { _ in }
    /// The blob served last: clients fetch one chunk after the other.
    private var servedBlob: (digest: Digest, kind: StoredBlob.Kind, bytes: [UInt8])?

    /// Goes on with what the store holds, or begins a run.
    ///
    /// - Parameters:
    ///   - plan: of this start; the store's, if it holds a run, must equal it
    ///   - start: the first global adapter of a new run
    ///   - noise: made for a new run under differential privacy
    /// - Throws: `Failure(.cannotCreate)` if the store holds a run with another plan.
    public init(
        store: any FederationStore, plan: FederationPlan, maps: [LinearMap], start: RunStart, newRunID: String,
        noise: @autoclosure () -> CoordinatorNoise = CoordinatorNoise(), at now: Duration, stopwatch: @escaping () -> Duration
    ) throws(Failure) {
        self.store = store
        self.stopwatch = stopwatch
        roundBegan = stopwatch()
        if let stored = try store.load() {
            guard stored.plan == plan else {
                throw Failure(
                    .cannotCreate,
                    "the state holds run \(stored.runID) with another plan (\(PlanDifference.describe(stored.plan, plan))): go on with the same settings, or choose another place for a new run"
                )
            }
            if let kept = stored.noise, kept.isSeeded != noise().isSeeded {
                throw Failure(
                    .badConfiguration,
                    kept.isSeeded
                        ? "run \(stored.runID) was begun with --unsafe-dp-seed and gives no privacy guarantee: go on with it, or choose another place for a new run"
                        : "run \(stored.runID) was begun without --unsafe-dp-seed, whose noise would end its privacy guarantee: leave it out"
                )
            }
            federation = Federation(stored, maps: maps, derivedDigest: start.derivedDigest, at: now)
        } else {
            let noise = plan.privacy == .none ? nil : noise()
            var changes: [StoreChange] = [.run(id: newRunID, plan: plan, noise: noise)]
            var stored = StoredFederation(runID: newRunID, plan: plan, noise: noise)
            for (blob, bytes) in start.blobs { changes.append(.blob(blob, bytes: bytes)) }
            if let adapter = start.adapter {
                changes.append(.adapter(adapter))
                stored.adapters = [adapter]
            }
            try store.apply(changes)
            federation = Federation(stored, maps: maps, derivedDigest: start.derivedDigest, at: now)
        }
    }

    /// Answers one request frame with one reply frame. Broken bytes get a refusal.
    public func handle(_ bytes: [UInt8], at now: Duration, newSession: UInt64) throws(Failure) -> [UInt8] {
        let request: Request
        do {
            request = try Request(decoding: bytes)
        } catch {
            let reply = Reply.refused(error.refusal).encoded()
            federation.count(bytes.count, as: .control)
            federation.count(reply.count, as: .control)
            return reply
        }
        var decision = federation.receive(request, at: now, newSession: newSession)
        if case .acknowledged = decision.reply {
            switch request {
            case .fetchChunk(let fetch): decision = try serve(fetch)
            case .commit(let commit): decision = try complete(commit, at: now)
            default: break
            }
        }
        let reply = decision.reply.encoded()
        federation.count(bytes.count, as: decision.requestTraffic)
        federation.count(reply.count, as: decision.replyTraffic)
        // The message that ends a run is counted in its record, and so is whoever asks after that.
        try keep(decision.changes + federation.foldTraffic())
        if decision.combine { try combine(at: now) }
        return reply
    }

    /// Lets time pass: deadlines, and rounds that were complete when the process was killed.
    public func tick(at now: Duration) throws(Failure) {
        let (changes, isComplete) = federation.tick(at: now)
        try keep(changes)
        if isComplete { try combine(at: now) }
    }

    public func forget(_ name: String) throws(Failure) { try keep(federation.forget(name)) }

    private func keep(_ changes: [StoreChange]) throws(Failure) {
        guard !changes.isEmpty else { return }
        try store.apply(changes + [.traffic(federation.traffic)])
        for case .attempt(let attempt) in changes where attempt.attempt == 1 { roundBegan = stopwatch() }
        observer(changes)
    }

    // MARK: - Blobs

    private func serve(_ fetch: FetchChunk) throws(Failure) -> Decision {
        if servedBlob?.digest != fetch.digest {
            guard let kind = federation.kind(ofBlob: fetch.digest), let bytes = try store.blobBytes(fetch.digest) else {
                // The round went on while the client was fetching: asking again gives it the new task.
                return Decision(
                    .refused(
                        Refusal(
                            code: .unknownBlob, message: "no task refers to blob \(fetch.digest.short) now: ask for a task again",
                            retryAfterMilliseconds: 0)))
            }
            servedBlob = (fetch.digest, kind, bytes)
        }
        guard let served = servedBlob, let range = Chunking.range(ofChunk: Int(fetch.index), byteCount: served.bytes.count)
        else { return Federation.refusal(.unknownBlob, "blob \(fetch.digest.short) has no chunk \(fetch.index)") }
        var decision = Decision(
            .chunk(
                Chunk(
                    digest: fetch.digest, index: fetch.index,
                    count: UInt32(Chunking.count(ofByteCount: served.bytes.count)), bytes: Array(served.bytes[range]))))
        decision.replyTraffic = federation.trafficKind(ofChunk: fetch, blob: served.kind)
        return decision
    }

    // MARK: - Contributions

    /// Looks at a contribution whose chunks should all be there.
    private func complete(_ commit: Commit, at now: Duration) throws(Failure) -> Decision {
        guard let name = federation.sessions[commit.session], let member = federation.members[name] else {
            return Federation.refusal(.unknownSession, "join again")
        }
        let layout = try federation.layout(of: commit.kind, rank: member.rank)
        let codec = federation.codec(of: commit.kind)
        guard commit.totalBytes <= UInt64(EncodedState.byteLimit(layout: layout, codec: codec)) else {
            return Federation.refusal(
                .tooLarge, "client \(name) announced \(commit.totalBytes) bytes, more than a contribution has")
        }
        let count = Chunking.count(ofByteCount: Int(commit.totalBytes))
        let present = try store.chunkIndices(client: name, digest: commit.digest)
        let missing = Set(0..<count).subtracting(present).sorted()
        guard missing.isEmpty else {
            return Decision(.committed(Committed(status: .none, missing: missing.prefix(WireLimits.chunkCount).map(UInt32.init))))
        }
        let bytes = try store.assembledChunks(client: name, digest: commit.digest)
        guard Digest(of: bytes) == commit.digest else {
            return refuse(commit, from: name, "its digest differs from the announced one")
        }
        let state: AdapterState
        do {
            state = try EncodedState.decode(bytes, layout: layout, codecs: [codec])
        } catch {
            return refuse(commit, from: name, error.description)
        }
        // Sums and products of larger numbers could leave the range of a float, in a round that could then never close.
        guard state.values.allSatisfy({ abs($0) <= Self.largestValue }) else {
            return refuse(
                commit, from: name, "it holds values beyond \(Self.largestValue): its training diverged, lower --learning-rate")
        }
        guard commit.kind == .start else { return federation.accept(commit, bytes: bytes, from: name) }
        let start = try splitStart(state, plan: federation.plan, maps: federation.maps)
        var decision = Decision(.committed(Committed(status: .counted, missing: [])))
        decision.requestTraffic = .oneTime
        decision.changes = start.blobs.map { .blob($0, bytes: $1) } + [.discardChunks(client: name)]
        if let adapter = start.adapter { decision.changes += federation.started(adapter, at: now) }
        return decision
    }

    private static let largestValue: Float = 1e30

    private func refuse(_ commit: Commit, from name: String, _ reason: String) -> Decision {
        var decision = Federation.refusal(
            .badMessage, "the contribution of client \(name) to round \(commit.round) cannot be used: \(reason)")
        decision.changes.append(.discardChunks(client: name))
        return decision
    }

    // MARK: - Combining

    /// Streams the round's contributions in ascending client name through the strategy, one at a time in memory.
    private func combine(at now: Duration) throws(Failure) {
        guard let attempt = federation.attempt, let current = federation.adapter else { return }
        let combination = Combination(
            plan: federation.plan, maps: federation.maps, noise: federation.noise,
            blob: { digest throws(Failure) in try self.requireBlob(digest) },
            contribution: { name throws(Failure) in
                guard let record = self.federation.contributions[name] else {
                    throw Failure(.internalError, "client \(name) has no contribution to round \(attempt.round)")
                }
                return Combination.Contribution(
                    bytes: try self.store.contributionBytes(round: attempt.round, client: name), rank: record.rank,
                    attempt: record.attempt)
            })
        let (next, blobs) = try combination.next(after: current, round: attempt.round, weights: federation.weights)
        let seconds = (stopwatch() - roundBegan) / .seconds(1)
        let superseded = [current.residual?.digest, current.delta?.digest].compactMap { $0 }
        try keep(
            superseded.map(StoreChange.discardBlob) + blobs.map { .blob($0, bytes: $1) }
                + federation.close(with: next, seconds: seconds, at: now))
    }

    private func requireBlob(_ digest: Digest) throws(Failure) -> [UInt8] {
        guard let bytes = try store.blobBytes(digest) else {
            throw Failure(.badData, "the state lacks blob \(digest): restore the state file from a copy")
        }
        return bytes
    }

    // MARK: - Results

    /// The global adapter after a round, as a client would hold it.
    ///
    /// - Throws: `Failure(.usage)` if there is no such round yet.
    public func weights(afterRound round: Int?) throws(Failure) -> AdapterWeights {
        guard let stored = try store.load() else { throw Failure(.badData, "the state holds no run") }
        return try storedWeights(stored, round: round, maps: federation.maps) { digest throws(Failure) in
            try self.requireBlob(digest)
        }
    }
}

extension Federation {
    mutating func count(_ bytes: Int, as kind: Traffic.Kind) { traffic.add(bytes, as: kind) }

    /// A chunk counts by its blob's use the first time it is sent to a client in a round, and as control after that.
    mutating func trafficKind(ofChunk fetch: FetchChunk, blob kind: StoredBlob.Kind) -> Traffic.Kind {
        guard let name = sessions[fetch.session] else { return .control }
        let key = ChunkKey(client: name, digest: fetch.digest, index: fetch.index)
        guard sentChunks.insert(key).inserted else { return .control }
        // What one client made at the start and all others fetch once, in one piece with its frozen factors.
        let isStart = kind == .state && plan.isStartUploaded && adapter?.round == 0
        guard kind != .frozen, !isStart else { return .oneTime }
        if fetch.index == 0, let member = members[name], let values = try? valueCount(ofBlob: fetch.digest, rank: member.rank) {
            traffic.downlinkValues += values
        }
        return .downlink
    }

    /// What a blob that the present tasks name is for; nil if none names it.
    func kind(ofBlob digest: Digest) -> StoredBlob.Kind? {
        if adapter?.delta?.digest == digest { return .delta }
        return adapter?.blobs.first { $0.digest == digest }?.kind
    }

    /// Adapter values that a blob stands for.
    private func valueCount(ofBlob digest: Digest, rank: Int) throws(Failure) -> Int {
        if let segment = adapter?.blobs.first(where: { $0.digest == digest && $0.kind == .segment }) {
            return AdapterSpecification.stackLayout(maps: try plan.targets(among: maps), rank: segment.rank).parameterCount
        }
        return plan.stateLayout(try plan.specification(rank: rank, maps: maps))?.parameterCount ?? 0
    }
}
