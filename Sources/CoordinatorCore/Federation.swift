/// The federation as a value: who has joined, which round is open, what each request is answered and what must be
/// stored before the answer leaves.
///
/// No clock, no socket, no random source, no file: time and session numbers are passed in, and everything to be
/// stored is returned. `CoordinatorService` performs it. One file per family of requests:
/// joining, tasks, transfer, rounds.

import Adapters
import Checkpoints
import Plan
import Primitives
import Privacy
import Wire

/// What a request leads to.
public struct Decision: Sendable {
    /// To be stored, as one, before the reply leaves.
    public var changes: [StoreChange] = []
    public var reply: Reply
    /// What the request's and the reply's bytes count as.
    public var requestTraffic: Traffic.Kind = .control
    public var replyTraffic: Traffic.Kind = .control
    /// All contributions of the open round are there: combine them.
    public var combine = false

    init(_ reply: Reply) { self.reply = reply }
}

public struct Federation: Sendable {
    /// Where the run stands.
    public enum Phase: Equatable, Sendable {
        /// Fewer clients than the plan's minimum have joined, or too few are there for the quorum.
        case waiting(reason: String)
        /// Fed-SB: one client computes B, A and the first R.
        case starting(client: String, deadline: Duration)
        case round(deadline: Duration)
        /// All rounds are done; clients with evaluation data evaluate the last adapter.
        case finalEvaluation(deadline: Duration)
        case finished
    }

    public let plan: FederationPlan
    public let maps: [LinearMap]
    public let runID: String
    let noise: CoordinatorNoise?
    /// Fewer than the plan's where its privacy budget allows no more.
    public let lastRound: Int
    /// The frozen factors' digest if clients derive them from the seed (FFA-LoRA).
    public let derivedDigest: Digest?

    public internal(set) var phase: Phase
    public internal(set) var members: [String: Member] = [:]
    public internal(set) var attempt: RoundAttempt?
    public internal(set) var contributions: [String: ContributionRecord] = [:]
    public internal(set) var adapter: GlobalAdapter?
    public internal(set) var evaluations: [Int: [String: EvaluationRecord]] = [:]
    public internal(set) var records: [RoundRecord] = []
    public internal(set) var traffic = Traffic()

    /// Of the last closed round: which contributions counted, for clients that ask.
    var lastClosed: [String: ContributionRecord] = [:]
    var sessions: [UInt64: String] = [:]
    var lastSeen: [String: Duration] = [:]
    /// Clients that were told that the run is over.
    var toldFinished: Set<String> = []
    /// Chunks of blobs already sent in this round, so that a repetition counts as control traffic.
    var sentChunks: Set<ChunkKey> = []
    /// Chunks of contributions that have arrived in this round, for the same reason.
    /// One contribution a client, as in the store.
    var receivedChunks: [String: (digest: Digest, indices: Set<UInt32>)] = [:]
    var skippedStarters: Set<String> = []
    /// Clients that said, when they last joined, that they hold the unquantized model.
    var unquantizedHolders: Set<String> = []

    struct ChunkKey: Hashable, Sendable {
        let client: String
        let digest: Digest
        let index: UInt32
    }

    /// The most that a client may tell: mean nats a token, and tokens or examples.
    static let largestLoss = 1e6
    static let largestCount: UInt64 = 1 << 40

    /// Seconds between a working client's heartbeats.
    public static let heartbeatSeconds: Float = 10
    /// A client that was not heard of for this long is not selected.
    public static let livenessSeconds = 60.0
    /// Seconds for the final evaluation, beyond which the run ends without the missing ones.
    var finalEvaluationSeconds: Double { plan.deadlineSeconds }

    /// - Parameter stored: a new run's identity and plan, or everything that a store kept of an earlier process.
    public init(_ stored: StoredFederation, maps: [LinearMap], derivedDigest: Digest?, at now: Duration) {
        plan = stored.plan
        runID = stored.runID
        noise = stored.noise
        lastRound = stored.plan.roundsWithinBudget
        self.maps = maps
        self.derivedDigest = derivedDigest
        phase = .waiting(reason: "")
        for member in stored.members {
            members[member.name] = member
            // After a restart nobody has had the chance to be heard of yet.
            lastSeen[member.name] = now
        }
        adapter = stored.adapters.max { $0.round < $1.round }
        records = stored.records.sorted { $0.round < $1.round }
        traffic = stored.traffic
        for record in stored.evaluations { evaluations[record.round, default: [:]][record.client] = record }
        if let attempt = stored.attempt, attempt.round > (records.last?.round ?? 0) {
            self.attempt = attempt
        }
        for record in stored.contributions {
            if record.round == attempt?.round, record.counted == nil { contributions[record.client] = record }
            if record.round == records.last?.round, record.counted != nil { lastClosed[record.client] = record }
        }
        if stored.finished {
            phase = .finished
        } else if attempt != nil {
            phase = .round(deadline: now + .seconds(plan.deadlineSeconds))
        } else if records.count == lastRound {
            phase = .finalEvaluation(deadline: now + .seconds(finalEvaluationSeconds))
        }
    }

    /// Whether differential privacy's noise follows from a number that was given for tests.
    public var hasUnsafeNoise: Bool { noise?.isSeeded == true }

    /// The run as its results name it: plan and truncations, without members, contributions and evaluations.
    public var summary: StoredFederation {
        var summary = StoredFederation(runID: runID, plan: plan, noise: noise)
        summary.adapters = adapter.map { [$0] } ?? []
        return summary
    }

    /// Round of the open attempt, or of the next one.
    public var currentRound: Int { attempt?.round ?? (records.last?.round ?? 0) + 1 }

    /// Names of the members heard of lately, ascending.
    func liveMembers(at now: Duration) -> [String] {
        members.keys.filter { name in
            lastSeen[name].map { now - $0 <= .seconds(Self.livenessSeconds) } ?? false
        }.sorted()
    }

    /// Contributions that close a round at its deadline.
    public var quorum: Int {
        // Drawn clients are not replaced: whom a round closes with must not depend on who reports.
        if plan.privacy == .client { return 0 }
        if plan.quorum > 0 { return plan.quorum }
        return plan.clientsPerRound > 0 ? plan.clientsPerRound : plan.minimumClients
    }

    /// Answers one request.
    ///
    /// - Parameters:
    ///   - now: time since any fixed point
    ///   - newSession: an unguessable number, used if the request is a join
    public mutating func receive(_ request: Request, at now: Duration, newSession: UInt64) -> Decision {
        switch request {
        case .inquire:
            return Decision(
                .announcement(
                    Announcement(softwareVersion: Version.current, runID: runID, plan: PlanCoding.encode(plan))))
        case .hello(let hello): return join(hello, at: now, session: newSession)
        case .poll(let poll):
            return withMember(poll.session, at: now) { $0.nextTask(for: $1, poll, at: now) }
        case .fetchChunk(let fetch):
            return withMember(fetch.session, at: now) { _, _ in Decision(.acknowledged) }
        case .uploadChunk(let upload):
            return withMember(upload.session, at: now) { $0.receiveChunk(from: $1, upload) }
        case .commit(let commit):
            return withMember(commit.session, at: now) { $0.screen(commit, from: $1) ?? Decision(.acknowledged) }
        case .reportEvaluation(let report):
            return withMember(report.session, at: now) { $0.receiveEvaluation(from: $1, report, at: now) }
        case .heartbeat(let heartbeat):
            return withMember(heartbeat.session, at: now) { $0.answer(heartbeat, from: $1) }
        case .leave(let leave):
            return withMember(leave.session, at: now) { federation, name in
                federation.lastSeen[name] = nil
                federation.sessions[leave.session] = nil
                return Decision(.acknowledged)
            }
        }
    }

    /// Runs `body` for the member that owns the session, or refuses.
    mutating func withMember(
        _ session: UInt64, at now: Duration, _ body: (inout Federation, String) -> Decision
    ) -> Decision {
        guard let name = sessions[session] else {
            return Decision(
                .refused(
                    Refusal(
                        code: .unknownSession,
                        message: "this session is not known here (the coordinator may have been restarted): join again",
                        retryAfterMilliseconds: 0)))
        }
        lastSeen[name] = now
        return body(&self, name)
    }

    static func refusal(_ code: RefusalCode, _ message: String) -> Decision {
        Decision(.refused(Refusal(code: code, message: message, retryAfterMilliseconds: nil)))
    }
}
