/// A client's part in a federation, one step at a time: join, ask, fetch, train, keep, upload, ask again.
///
/// Every step ends in a state from which a killed process can go on: a contribution is kept durably before its first
/// byte leaves, uploads and commits can be repeated, and the coordinator's answers say what became of them. No clock
/// and no random source: waiting is returned, not done.

import Adapters
import Checkpoints
import Plan
import Primitives
import UpdateCodec
import Wire

/// What came of one step.
public enum ClientStep: Equatable, Sendable {
    /// Something was done; step again at once.
    case worked(ClientEvent)
    /// Nothing to do for so long.
    case wait(milliseconds: Int, reason: String)
    case finished(reason: String)
}

/// What a step did, for the log.
public enum ClientEvent: Equatable, Sendable {
    case joined(run: String, rank: Int, plan: FederationPlan)
    case contributed(round: Int, trainLoss: Double, seconds: Double, bytes: Int, status: ContributionStatus)
    case evaluated(round: Int, EvaluationResult)
    case started(bytes: Int)
    case abandoned(round: Int, reason: String)
    case rejoining(reason: String)
}

/// Who the client is, for the coordinator.
public struct ClientIdentity: Sendable {
    public let name: String
    public let baseDigest: Digest
    public let tokenizerDigest: Digest
    /// Nil means no limit.
    public let maximumRank: Int?
    public let kernelPath: String
    /// In model order.
    public let maps: [LinearMap]

    public init(
        name: String, baseDigest: Digest, tokenizerDigest: Digest, maximumRank: Int?, kernelPath: String, maps: [LinearMap]
    ) {
        self.name = name
        self.baseDigest = baseDigest
        self.tokenizerDigest = tokenizerDigest
        self.maximumRank = maximumRank
        self.kernelPath = kernelPath
        self.maps = maps
    }
}

public struct FederatedClient {
    public let identity: ClientIdentity
    private let channel: any ClientChannel
    private let storage: any ClientStorage
    private let work: any LocalWork
    private let nonce: UInt64
    private var joined: Joined?
    private var preparedPlan: FederationPlan?

    /// What a join gave.
    private struct Joined {
        let run: String
        let session: UInt64
        let plan: FederationPlan
        let specification: AdapterSpecification
    }

    /// - Parameter nonce: differs between processes of one client
    public init(
        identity: ClientIdentity, channel: any ClientChannel, storage: any ClientStorage, work: any LocalWork, nonce: UInt64
    ) {
        self.identity = identity
        self.channel = channel
        self.storage = storage
        self.work = work
        self.nonce = nonce
    }

    /// Does the next thing.
    ///
    /// - Throws: `Failure` when the client cannot go on: refused, a broken reply, a full disk, interrupted.
    public mutating func step() throws(Failure) -> ClientStep {
        do throws(Refused) {
            guard let joined else { return try join() }
            if let (pending, bytes) = try Refused.wrap({ () throws(Failure) in try storage.pending(run: joined.run) }) {
                return .worked(try upload(pending, bytes: bytes, joined))
            }
            return try ask(joined)
        } catch {
            switch error {
            case .failure(let failure): throw failure
            case .refusal(let refusal) where refusal.code == .unknownSession:
                joined = nil
                return .worked(.rejoining(reason: refusal.message))
            case .refusal(let refusal) where refusal.code == .runFinished:
                // This client was away when the run ended, or the coordinator was: the same end as being told.
                return .finished(reason: refusal.message)
            case .refusal(let refusal):
                if let milliseconds = refusal.retryAfterMilliseconds {
                    return .wait(milliseconds: Int(milliseconds), reason: refusal.message)
                }
                throw Failure(refusal.code == .protocolVersion ? .protocolError : .refused, refusal.message)
            }
        }
    }

    /// Tells the coordinator not to wait; errors are of no interest any more.
    public mutating func leave(reason: String) {
        guard let joined else { return }
        _ = try? channel.request(.leave(Leave(session: joined.session, reason: reason)), bulk: false)
    }

    // MARK: - Joining

    private mutating func join() throws(Refused) -> ClientStep {
        let secret = try Refused.wrap { () throws(Failure) in try storage.secret() }
        let reply = try exchange(
            .hello(
                Hello(
                    softwareVersion: Version.current, name: identity.name, secret: secret,
                    baseDigest: identity.baseDigest, tokenizerDigest: identity.tokenizerDigest,
                    maximumRank: identity.maximumRank.map { UInt32(clamping: $0) }, exampleCount: UInt64(work.exampleCount),
                    hasEvaluationData: work.hasEvaluationData, sessionNonce: nonce, kernelPath: identity.kernelPath)))
        guard case .welcome(let welcome) = reply else { throw unexpected(reply, to: "a join") }
        let plan = try Refused.wrap { () throws(Failure) in try PlanCoding.decode(welcome.plan) }
        let rank = Int(welcome.rank)
        let specification = try Refused.wrap { () throws(Failure) in
            try plan.validate(maps: identity.maps)
            guard plan.ranks.contains(rank) else {
                throw Failure(.protocolError, "the coordinator assigned rank \(rank), which is not in its plan")
            }
            if preparedPlan != plan {
                try work.prepare(for: plan, rank: rank)
                preparedPlan = plan
            }
            return try plan.specification(rank: rank, maps: identity.maps)
        }
        joined = Joined(run: welcome.runID, session: welcome.session, plan: plan, specification: specification)
        return .worked(.joined(run: welcome.runID, rank: rank, plan: plan))
    }

    // MARK: - Asking

    private mutating func ask(_ joined: Joined) throws(Refused) -> ClientStep {
        let last = try Refused.wrap { () throws(Failure) in try storage.lastContribution(run: joined.run) }
        let reply = try exchange(.poll(Poll(session: joined.session, lastContribution: last)))
        guard case .task(let answer) = reply else { throw unexpected(reply, to: "a poll") }
        switch answer.task {
        case .wait(let milliseconds, let reason):
            return .wait(milliseconds: Int(milliseconds), reason: reason)
        case .finished(let reason):
            return .finished(reason: reason)
        case .start:
            return .worked(try computeStart(joined))
        case .evaluate(let task):
            let weights = try weights(
                joined, round: Int(task.round) + 1, attempt: 1, blobs: task.blobs, derivedDigest: task.derivedDigest,
                training: false)
            let result = try Refused.wrap { () throws(Failure) in try work.evaluate(weights, plan: joined.plan) }
            _ = try exchange(
                .reportEvaluation(
                    ReportEvaluation(
                        session: joined.session, round: task.round, lossSum: result.lossSum,
                        targetTokens: UInt64(result.targetTokens), examples: UInt64(result.examples),
                        exactMatches: result.exactMatches.map(UInt64.init))))
            return .worked(.evaluated(round: Int(task.round), result))
        case .train(let task):
            return .worked(try train(task, joined))
        }
    }

    private mutating func train(_ task: TrainTask, _ joined: Joined) throws(Refused) -> ClientEvent {
        let round = Int(task.round)
        let attempt = Int(task.attempt)
        guard (1...joined.plan.rounds).contains(round) else {
            throw Refused.failure(Failure(.protocolError, "the coordinator asked for round \(round) of \(joined.plan.rounds)"))
        }
        let given = try weights(
            joined, round: round, attempt: attempt, blobs: task.blobs, derivedDigest: task.derivedDigest, training: true)
        let channel = self.channel
        let result: TrainedResult
        do throws(WorkInterruption) {
            result = try work.train(
                TrainingAssignment(plan: joined.plan, client: identity.name, round: round, attempt: attempt, weights: given)
            ) { step, steps in
                let heartbeat = Heartbeat(
                    session: joined.session, round: task.round, step: UInt32(step), totalSteps: UInt32(steps))
                // A coordinator that cannot be reached now is no reason to stop: the work may count later.
                guard case .heartbeatReply(let reply) = try? channel.request(.heartbeat(heartbeat), bulk: false),
                    !reply.keepGoing
                else { return nil }
                return .abandoned(reason: reply.reason)
            }
        } catch {
            switch error {
            case .abandoned(let reason): return .abandoned(round: round, reason: reason)
            case .failed(let failure): throw Refused.failure(failure)
            }
        }
        let update =
            switch joined.plan.strategy.contribution {
            case .factors: result.state
            case .update: result.state.update(since: given.trained)
            }
        let bytes = EncodedState.encode(update)
        let pending = PendingContribution(
            kind: .update, round: round, attempt: attempt, digest: Digest(of: bytes), exampleCount: work.exampleCount,
            trainLoss: result.trainLoss, targetTokens: result.targetTokens, trainSeconds: result.seconds)
        try Refused.wrap { () throws(Failure) in try storage.keep(pending, bytes: bytes, run: joined.run) }
        return try upload(pending, bytes: bytes, joined)
    }

    private mutating func computeStart(_ joined: Joined) throws(Refused) -> ClientEvent {
        let name = identity.name
        let (pending, bytes) = try Refused.wrap { () throws(Failure) in
            let state = try work.start(plan: joined.plan, client: name, specification: joined.specification)
            let bytes = EncodedState.encode(state)
            let pending = PendingContribution(
                kind: .start, round: 0, attempt: 1, digest: Digest(of: bytes), exampleCount: work.exampleCount, trainLoss: 0,
                targetTokens: 0, trainSeconds: 0)
            try storage.keep(pending, bytes: bytes, run: joined.run)
            return (pending, bytes)
        }
        return try upload(pending, bytes: bytes, joined)
    }

    // MARK: - Weights

    /// Fetches what the task refers to, and derives the rest from the run's seed.
    private func weights(
        _ joined: Joined, round: Int, attempt: Int, blobs: [BlobReference], derivedDigest: Digest?, training: Bool
    ) throws(Refused) -> AdapterWeights {
        try Refused.wrap { () throws(Failure) in try storage.retainBlobs(Set(blobs.map(\.digest))) }
        var generator =
            joined.plan.strategy == .flora
            ? SeededGenerator(
                seed: joined.plan.seed, purpose: "lora-a", round: round, attempt: attempt, client: identity.name)
            : SeededGenerator(seed: joined.plan.seed, purpose: "lora-a")
        var weights = joined.specification.initialWeights(&generator)
        var segments: [AdapterState] = []
        for reference in blobs {
            let bytes = try fetch(reference, joined)
            switch reference.kind {
            case .state:
                weights.trained = try decode(bytes, layout: joined.specification.trainedLayout)
            case .frozen:
                guard let layout = joined.specification.frozenLayout else {
                    throw Refused.failure(
                        Failure(
                            .protocolError,
                            "strategy \(joined.plan.strategy.rawValue) has no frozen factors, but the coordinator sent some"))
                }
                weights.frozen = try decode(bytes, layout: layout)
            case .segment:
                let layout = AdapterSpecification.stackLayout(maps: joined.specification.maps, rank: Int(reference.rank))
                segments.append(try decode(bytes, layout: layout))
            }
        }
        weights.correction = AdapterState.concatenated(stacks: segments)
        if let derivedDigest, weights.frozen?.digest != derivedDigest {
            throw Refused.failure(
                Failure(
                    .protocolError,
                    "the frozen factors that this machine derives from the run's seed differ from the coordinator's: use the same Tributary version on both sides"
                ))
        }
        return weights
    }

    private func decode(_ bytes: [UInt8], layout: AdapterLayout) throws(Refused) -> AdapterState {
        do {
            return try EncodedState.decode(bytes, layout: layout)
        } catch {
            throw Refused.failure(Failure(.protocolError, "the coordinator's adapter cannot be read: \(error)"))
        }
    }

    private func fetch(_ reference: BlobReference, _ joined: Joined) throws(Refused) -> [UInt8] {
        if let bytes = try Refused.wrap({ () throws(Failure) in try storage.blob(reference.digest) }) { return bytes }
        let byteCount = Int(clamping: reference.byteCount)
        let limit = EncodedState.byteLimit(
            layout: largestLayout(joined, reference), codec: .float32)
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
                .fetchChunk(FetchChunk(session: joined.session, digest: reference.digest, index: UInt32(index))), bulk: true)
            guard case .chunk(let chunk) = reply, chunk.digest == reference.digest, Int(chunk.index) == index,
                bytes.count + chunk.bytes.count <= byteCount
            else { throw unexpected(reply, to: "a request for chunk \(index)") }
            bytes += chunk.bytes
        }
        guard Digest(of: bytes) == reference.digest else {
            throw Refused.failure(
                Failure(
                    .protocolError, "the adapter from the coordinator is damaged (digest differs from \(reference.digest.short))")
            )
        }
        try Refused.wrap { () throws(Failure) in try storage.keepBlob(reference.digest, bytes: bytes) }
        return bytes
    }

    private func largestLayout(_ joined: Joined, _ reference: BlobReference) -> AdapterLayout {
        switch reference.kind {
        case .state: joined.specification.trainedLayout
        case .frozen: joined.specification.frozenLayout ?? joined.specification.trainedLayout
        case .segment: AdapterSpecification.stackLayout(maps: joined.specification.maps, rank: Int(reference.rank))
        }
    }

    // MARK: - Uploading

    private mutating func upload(
        _ pending: PendingContribution, bytes: [UInt8], _ joined: Joined
    ) throws(Refused) -> ClientEvent {
        let kind = pending.contributionKind
        let count = Chunking.count(ofByteCount: bytes.count)
        var wanted = Array(0..<count)
        // Once, and once more for chunks that a restarted coordinator has lost.
        for _ in 0..<3 {
            for index in wanted {
                guard let range = Chunking.range(ofChunk: index, byteCount: bytes.count) else { continue }
                let reply = try exchangeUpload(
                    .uploadChunk(
                        UploadChunk(
                            session: joined.session, kind: kind, round: UInt32(pending.round), digest: pending.digest,
                            index: UInt32(index), count: UInt32(count), totalBytes: UInt64(bytes.count),
                            bytes: Array(bytes[range]))), joined)
                if reply == nil { return try drop(pending, joined) }
            }
            let reply = try exchangeUpload(
                .commit(
                    Commit(
                        session: joined.session, kind: kind, round: UInt32(pending.round), attempt: UInt32(pending.attempt),
                        digest: pending.digest, totalBytes: UInt64(bytes.count), exampleCount: UInt64(pending.exampleCount),
                        trainLoss: pending.trainLoss, targetTokens: UInt64(pending.targetTokens),
                        trainSeconds: Float(pending.trainSeconds))), joined, bulk: false)
            guard let reply else { return try drop(pending, joined) }
            guard case .committed(let committed) = reply else { throw unexpected(reply, to: "a commit") }
            if !committed.missing.isEmpty {
                wanted = committed.missing.map(Int.init)
                continue
            }
            try Refused.wrap { () throws(Failure) in
                if kind == .update, committed.status != .dropped {
                    try storage.setLastContribution(
                        ContributionKey(round: UInt32(pending.round), digest: pending.digest), run: joined.run)
                }
                try storage.discardPending(run: joined.run)
            }
            if kind == .start { return .started(bytes: bytes.count) }
            return .contributed(
                round: pending.round, trainLoss: pending.trainLoss, seconds: pending.trainSeconds, bytes: bytes.count,
                status: committed.status)
        }
        throw Refused.failure(
            Failure(
                .protocolError,
                "the coordinator keeps asking for chunks of the contribution to round \(pending.round) that were sent"))
    }

    /// Nil if the contribution is no longer wanted.
    private func exchangeUpload(_ request: Request, _ joined: Joined, bulk: Bool = true) throws(Refused) -> Reply? {
        do throws(Refused) {
            return try exchange(request, bulk: bulk)
        } catch {
            if case .refusal(let refusal) = error, refusal.code == .notSelected { return nil }
            throw error
        }
    }

    private func drop(_ pending: PendingContribution, _ joined: Joined) throws(Refused) -> ClientEvent {
        try Refused.wrap { () throws(Failure) in try storage.discardPending(run: joined.run) }
        return .abandoned(round: pending.round, reason: "the round went on without this contribution")
    }

    // MARK: - Exchanging

    private func exchange(_ request: Request, bulk: Bool = false) throws(Refused) -> Reply {
        let channel = self.channel
        let reply = try Refused.wrap { () throws(Failure) in try channel.request(request, bulk: bulk) }
        if case .refused(let refusal) = reply { throw .refusal(refusal) }
        return reply
    }

    private func unexpected(_ reply: Reply, to question: String) -> Refused {
        .failure(
            Failure(
                .protocolError,
                "the coordinator answered \(question) with something else: use the same Tributary version on both sides"))
    }
}

/// Why an exchange did not give a reply.
enum Refused: Error {
    case refusal(Refusal)
    case failure(Failure)

    static func wrap<T>(_ body: () throws(Failure) -> T) throws(Refused) -> T {
        do throws(Failure) { return try body() } catch { throw .failure(error) }
    }
}
