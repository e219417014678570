/// A client's part in a federation, one step at a time: join, ask, fetch, train, keep, upload, ask again.
///
/// Every step ends in a state from which a killed process can go on: a contribution is kept durably before its first
/// byte leaves, uploads and commits can be repeated, and the coordinator's answers say what became of them. No clock
/// and no random source: waiting is returned, not done.

import Adapters
import Checkpoints
import Plan
import Primitives
import Privacy
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
    /// Loss and seconds are nil where the contribution was kept from an earlier process under differential privacy.
    case contributed(round: Int, trainLoss: Double?, seconds: Double?, bytes: Int, status: ContributionStatus)
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

/// What the client's owner says about the privacy of its data, whatever the plan asks for.
public struct ClientPrivacy: Sendable {
    /// The most that this data's examples may be told apart by, over all runs; nil leaves it to each run's plan.
    public var maximumEpsilon: Double?
    /// The delta that it is meant at, whatever delta a plan names.
    public var maximumDelta: Double
    /// Only for tests: noise and sampling follow from this number, so that the guarantee does not hold.
    public var unsafeSeed: UInt64?

    public init(maximumEpsilon: Double? = nil, maximumDelta: Double = 1e-5, unsafeSeed: UInt64? = nil) {
        self.maximumEpsilon = maximumEpsilon
        self.maximumDelta = maximumDelta
        self.unsafeSeed = unsafeSeed
    }
}

public struct FederatedClient {
    public let identity: ClientIdentity
    private let privacy: ClientPrivacy
    let channel: any ClientChannel
    let storage: any ClientStorage
    let work: any LocalWork
    private let nonce: UInt64
    let correction: HeldCorrection
    private var joined: Joined?
    private var preparedPlan: FederationPlan?

    /// What a join gave.
    struct Joined {
        let run: String
        let session: UInt64
        let plan: FederationPlan
        let specification: AdapterSpecification
        /// Example-level privacy: what a round costs, and nothing without it.
        let budget: ExampleBudget?
    }

    /// - Parameters:
    ///   - nonce: differs between processes of one client
    ///   - correction: one that clients of this process share
    public init(
        identity: ClientIdentity, channel: any ClientChannel, storage: any ClientStorage, work: any LocalWork, nonce: UInt64,
        privacy: ClientPrivacy = ClientPrivacy(), correction: HeldCorrection = HeldCorrection()
    ) {
        self.identity = identity
        self.privacy = privacy
        self.channel = channel
        self.storage = storage
        self.work = work
        self.nonce = nonce
        self.correction = correction
    }

    /// Does the next thing.
    ///
    /// - Throws: `Failure` when the client cannot go on: refused, a broken reply, a full disk, interrupted.
    public mutating func step() throws(Failure) -> ClientStep {
        do throws(Refused) {
            guard let joined else { return try join() }
            var record =
                try Refused.wrap { () throws(Failure) in try storage.record(run: joined.run) } ?? ClientRecord(run: joined.run)
            if let pending = record.pending {
                if let bytes = try Refused.wrap({ () throws(Failure) in try storage.bytes(pending.digest) }) {
                    return .worked(try upload(pending, bytes: bytes, &record, joined))
                }
                record.drop()
            }
            return try ask(&record, joined)
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

    /// Tells the coordinator not to wait; errors are of no interest any more. Under differential privacy it does not tell why:
    /// a sentence about a spent budget would tell how much data there is.
    public mutating func leave(reason: String) {
        guard let joined else { return }
        let reason = joined.plan.privacy == .none ? reason : ""
        _ = try? channel.request(.leave(Leave(session: joined.session, reason: reason)), bulk: false)
    }

    // MARK: - Joining

    private mutating func join() throws(Refused) -> ClientStep {
        let question = try exchange(.inquire(Inquire(softwareVersion: Version.current)))
        guard case .announcement(let announcement) = question else { throw unexpected(question, to: "what is planned") }
        // Ledgers name a run's entries by its identifier and a slash.
        guard !announcement.runID.contains("/") else {
            throw Refused.failure(
                Failure(
                    .protocolError, "the run's identifier \(announcement.runID) holds a slash, which no coordinator gives one"))
        }
        let plan = try Refused.wrap { () throws(Failure) in try PlanCoding.decode(announcement.plan) }
        // A plan over another base or tokenizer is refused by the coordinator, which says so better than what follows.
        let fits = plan.baseDigest == identity.baseDigest && plan.tokenizerDigest == identity.tokenizerDigest
        if fits, preparedPlan != plan {
            try Refused.wrap { () throws(Failure) in
                try plan.validate(maps: identity.maps)
                try work.prepare(for: plan)
                preparedPlan = plan
            }
        }
        let budget = fits ? try Refused.wrap { () throws(Failure) in try makeBudget(plan, run: announcement.runID) } : nil
        let secret = try Refused.wrap { () throws(Failure) in try storage.secret() }
        let reply = try exchange(
            .hello(
                Hello(
                    softwareVersion: Version.current, name: identity.name, secret: secret,
                    baseDigest: identity.baseDigest, tokenizerDigest: identity.tokenizerDigest,
                    maximumRank: identity.maximumRank.map { UInt32(clamping: $0) },
                    exampleCount: plan.tellsCounts ? UInt64(work.exampleCount) : nil,
                    hasEvaluationData: work.hasEvaluationData && plan.allowsEvaluation,
                    hasUnquantizedModel: work.hasUnquantizedModel && plan.needsUnquantizedModel, sessionNonce: nonce,
                    kernelPath: identity.kernelPath)))
        guard case .welcome(let welcome) = reply else { throw unexpected(reply, to: "a join") }
        guard fits else {
            throw Refused.failure(
                Failure(
                    .protocolError,
                    "the coordinator admitted this client to a run on another base model or tokenizer than this client's, which it has to refuse: nothing was sent"
                ))
        }
        let rank = Int(welcome.rank)
        let specification = try Refused.wrap { () throws(Failure) in
            guard welcome.runID == announcement.runID else {
                throw Failure(.protocolError, "the coordinator began another run while this client joined: join again")
            }
            guard plan.ranks.contains(rank) else {
                throw Failure(.protocolError, "the coordinator assigned rank \(rank), which is not in its plan")
            }
            return try plan.specification(rank: rank, maps: identity.maps)
        }
        joined = Joined(run: welcome.runID, session: welcome.session, plan: plan, specification: specification, budget: budget)
        return .worked(.joined(run: welcome.runID, rank: rank, plan: plan))
    }

    /// Example-level privacy: what a round costs this client, or why it declines.
    private func makeBudget(_ plan: FederationPlan, run: String) throws(Failure) -> ExampleBudget? {
        guard plan.privacy == .example else {
            if let limit = privacy.maximumEpsilon {
                throw Failure(
                    .refused,
                    "this client declines: --max-epsilon \(limit) is given, and under the run's dp \(plan.privacy.rawValue) no noise is added on this machine: join a run with dp example, or leave --max-epsilon out; nothing was sent"
                )
            }
            return nil
        }
        return try ExampleBudget(
            plan: plan, run: run, client: identity.name, examples: work.exampleCount, policy: privacy, storage: storage)
    }

    // MARK: - Asking

    private mutating func ask(_ record: inout ClientRecord, _ joined: Joined) throws(Refused) -> ClientStep {
        let reply = try exchange(.poll(Poll(session: joined.session, lastContribution: record.answered)))
        guard case .task(let answer) = reply else { throw unexpected(reply, to: "a poll") }
        switch answer.task {
        case .wait(let milliseconds, let reason):
            return .wait(milliseconds: Int(milliseconds), reason: reason)
        case .finished(let reason):
            return .finished(reason: reason)
        case .start:
            // Whatever the coordinator asks: a start from a gradient is computed on the data, and no budget covers it.
            guard joined.plan.isStartUploaded, joined.plan.privacy == .none || joined.plan.isStartPublic else {
                throw unplanned("a start")
            }
            return .worked(try computeStart(&record, joined))
        case .evaluate(let task):
            guard joined.plan.allowsEvaluation, work.hasEvaluationData else { throw unplanned("an evaluation") }
            let weights = try weights(
                joined, round: Int(task.round) + 1, attempt: 1, blobs: task.blobs, delta: task.delta,
                derivedDigest: task.derivedDigest)
            let result = try Refused.wrap { () throws(Failure) in try work.evaluate(weights, plan: joined.plan) }
            _ = try exchange(
                .reportEvaluation(
                    ReportEvaluation(
                        session: joined.session, round: task.round, lossSum: result.lossSum,
                        targetTokens: UInt64(result.targetTokens), examples: UInt64(result.examples),
                        exactMatches: result.exactMatches.map(UInt64.init),
                        labelTallies: result.labelCounts.map(tallies) ?? [])))
            return .worked(.evaluated(round: Int(task.round), result))
        case .train(let task):
            return .worked(try train(task, &record, residual: record.residual(given: answer.lastContribution), joined))
        }
    }

    private func tallies(_ counts: LabelCounts) -> [LabelTally] {
        (0..<counts.labelCount).map { label in
            LabelTally(
                correct: UInt32(clamping: counts.correct[label]), predicted: UInt32(clamping: counts.predicted[label]),
                actual: UInt32(clamping: counts.actual[label]))
        }
    }

    private mutating func train(
        _ task: TrainTask, _ record: inout ClientRecord, residual: Residual?, _ joined: Joined
    ) throws(Refused) -> ClientEvent {
        let round = Int(task.round)
        let attempt = Int(task.attempt)
        guard (1...joined.plan.rounds).contains(round) else {
            throw Refused.failure(Failure(.protocolError, "the coordinator asked for round \(round) of \(joined.plan.rounds)"))
        }
        let given = try weights(
            joined, round: round, attempt: attempt, blobs: task.blobs, delta: task.delta, derivedDigest: task.derivedDigest)
        let use = try Refused.wrap { () throws(Failure) in
            try joined.budget.map { (budget) throws(Failure) in
                try budget.use(round: round, attempt: attempt, context: context(given, joined.plan), storage: storage)
            }
        }
        let channel = self.channel
        let result: TrainedResult
        do throws(WorkInterruption) {
            result = try work.train(
                TrainingAssignment(
                    plan: joined.plan, client: identity.name, round: round, attempt: attempt, weights: given,
                    privacy: use?.training)
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
        let update = result.state.update(since: given.trained)
        let plan = joined.plan
        let (kept, bytes) = try Refused.wrap { () throws(Failure) in
            let outgoing = try encode(update, given, residual, round: round, attempt: attempt, joined)
            var contribution = KeptContribution(
                isStart: false, round: round, attempt: attempt, digest: Digest(of: outgoing.bytes))
            if plan.tellsCounts { contribution.exampleCount = work.exampleCount }
            if plan.privacy == .none {
                contribution.trainLoss = result.trainLoss
                contribution.targetTokens = result.targetTokens
                contribution.trainSeconds = result.seconds
            }
            // Charged before anything derived from the data is where it could leave from.
            if let use { try use.charge(storage: storage) }
            record.begin(contribution, from: residual, leaving: outgoing.residual?.reference)
            try storage.keep(record, bytes: [outgoing.bytes] + (outgoing.residual.map { [$0.bytes] } ?? []))
            return (contribution, outgoing.bytes)
        }
        let event = try upload(kept, bytes: bytes, &record, joined)
        guard case .contributed(_, _, _, let count, let status) = event else { return event }
        return .contributed(round: round, trainLoss: result.trainLoss, seconds: result.seconds, bytes: count, status: status)
    }

    /// What an update is added to and what it was made from: on anything else, neither a residual nor noise may be used again.
    private func context(_ given: AdapterWeights, _ plan: FederationPlan) -> Digest {
        var builder = DigestBuilder()
        builder.update(PlanCoding.encode(plan))
        for state in [given.trained, given.frozen, given.correction] {
            builder.update((state?.digest ?? Digest(of: [])).bytes)
        }
        builder.update(work.dataDigest.bytes)
        return builder.finish()
    }

    private struct Outgoing {
        let bytes: [UInt8]
        let residual: (reference: Residual, bytes: [UInt8])?
    }

    /// The update as bytes; under error feedback with what the last one left out, and what this one leaves out.
    private func encode(
        _ update: AdapterState, _ given: AdapterWeights, _ residual: Residual?, round: Int, attempt: Int, _ joined: Joined
    ) throws(Failure) -> Outgoing {
        let plan = joined.plan
        let rounding = SeededGenerator(
            seed: plan.seed, purpose: "rounding", round: round, attempt: attempt, client: identity.name)
        guard plan.errorFeedback else {
            return Outgoing(bytes: EncodedState.encode(update, codec: plan.compress, rounding: rounding), residual: nil)
        }
        let context = Digest(of: update.layout.digest.bytes + (given.frozen?.digest ?? Digest(of: [])).bytes)
        var corrected = update
        if let residual, residual.context == context, residual.round < round, let bytes = try storage.bytes(residual.digest),
            let carried = try? EncodedState.decode(bytes, layout: update.layout, codecs: [.float32])
        {
            corrected = ErrorFeedback.corrected(
                update, residual: carried, decay: plan.residualDecay, skippedRounds: round - residual.round - 1)
        }
        let bytes = EncodedState.encode(corrected, codec: plan.compress, rounding: rounding)
        guard let decoded = try? EncodedState.decode(bytes, layout: update.layout, codecs: [plan.compress]) else {
            throw Failure(
                .badData, "the update of round \(round) is out of range and cannot be encoded: lower --learning-rate")
        }
        let left = EncodedState.encode(ErrorFeedback.residual(corrected: corrected, decoded: decoded))
        return Outgoing(
            bytes: bytes, residual: (Residual(digest: Digest(of: left), round: round, context: context), left))
    }

    private mutating func computeStart(_ record: inout ClientRecord, _ joined: Joined) throws(Refused) -> ClientEvent {
        let name = identity.name
        let (contribution, bytes) = try Refused.wrap { () throws(Failure) in
            let state = try work.start(plan: joined.plan, client: name, specification: joined.specification)
            let bytes = EncodedState.encode(state)
            let contribution = KeptContribution(isStart: true, round: 0, attempt: 1, digest: Digest(of: bytes))
            record.begin(contribution, from: nil, leaving: nil)
            try storage.keep(record, bytes: [bytes])
            return (contribution, bytes)
        }
        return try upload(contribution, bytes: bytes, &record, joined)
    }

    // MARK: - Exchanging

    func exchange(_ request: Request, bulk: Bool = false) throws(Refused) -> Reply {
        let channel = self.channel
        let reply = try Refused.wrap { () throws(Failure) in try channel.request(request, bulk: bulk) }
        if case .refused(let refusal) = reply { throw .refusal(refusal) }
        return reply
    }

    private func unplanned(_ what: String) -> Refused {
        .failure(Failure(.protocolError, "the coordinator asked for \(what), which its own plan rules out: nothing was sent"))
    }

    func unexpected(_ reply: Reply, to question: String) -> Refused {
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
