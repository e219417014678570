/// What a federation keeps: the protocol that every store fulfils, and the changes it applies as one.

import Plan
import Primitives
import Privacy
import Wire

/// A client that has joined.
public struct Member: Codable, Equatable, Sendable {
    public let name: String
    /// SHA-256 of the secret that the client made at its first join.
    public let secretHash: Digest
    public let rank: Int
    /// Size of the usable training set as declared at the first join: the most that a contribution can weigh. Nil where the
    /// plan keeps counts private.
    public let exampleCount: Int?
    public var hasEvaluationData: Bool
}

/// A contribution as the coordinator remembers it; its bytes are kept until the round closes.
public struct ContributionRecord: Codable, Equatable, Sendable {
    public let round: Int
    /// The attempt that the client trained for: with it the coordinator derives what FLoRA's client began with.
    public let attempt: Int
    public let client: String
    /// That it was trained at.
    public let rank: Int
    public let digest: Digest
    /// Size of the training set as the client used it; at most what it declared when it joined. Nil where the plan keeps
    /// counts private.
    public let exampleCount: Int?
    /// This and the next are nil under differential privacy.
    public let trainLoss: Double?
    public let targetTokens: Int?
    public let trainSeconds: Double?
    /// Nil while the round is open.
    public var counted: Bool?
}

/// One try at one round.
public struct RoundAttempt: Codable, Equatable, Sendable {
    public let round: Int
    public let attempt: Int
    /// Ascending by name.
    public let selected: [String]
}

/// The global adapter after a round, as references to blobs.
public struct GlobalAdapter: Codable, Equatable, Sendable {
    /// 0 is the start.
    public let round: Int
    public let blobs: [StoredBlob]
    /// FLoRA: relative Frobenius error of a truncation in this round, if there was one.
    public let truncationError: Double?
    /// The way from the state before, where the downlink is compressed.
    public var delta: StateDelta?
    /// What compressing the downlink has left out so far: the coordinator's alone.
    public var residual: StoredBlob?
    /// Client-level privacy with an adaptive clip: the one for the next round.
    public var clip: Double?

    public init(round: Int, blobs: [StoredBlob], truncationError: Double? = nil) {
        self.round = round
        self.blobs = blobs
        self.truncationError = truncationError
    }
}

/// A blob's name and use.
public struct StoredBlob: Codable, Equatable, Sendable {
    public enum Kind: String, Codable, Sendable {
        case state, frozen, segment
        /// An encoded difference of two states.
        case delta
        /// Never sent.
        case residual
    }
    public let digest: Digest
    public let byteCount: Int
    public let kind: Kind
    public let rank: Int

    public init(digest: Digest, byteCount: Int, kind: Kind, rank: Int) {
        self.digest = digest
        self.byteCount = byteCount
        self.kind = kind
        self.rank = rank
    }

    /// As a task names it; nil for what has no place of its own in a task.
    public var reference: BlobReference? {
        let wireKind: BlobKind
        switch kind {
        case .state: wireKind = .state
        case .frozen: wireKind = .frozen
        case .segment: wireKind = .segment
        case .delta, .residual: return nil
        }
        return BlobReference(digest: digest, byteCount: UInt64(byteCount), kind: wireKind, rank: UInt32(rank))
    }
}

/// One client's evaluation of the global adapter after a round.
public struct EvaluationRecord: Codable, Equatable, Sendable {
    public let round: Int
    public let client: String
    /// Sum of nats over the target tokens.
    public let lossSum: Double
    public let targetTokens: Int
    public let examples: Int
    /// Nil where exact match is not evaluated.
    public let exactMatches: Int?
    /// Nil where texts are not classified.
    public let labelCounts: LabelCounts?

    public init(
        round: Int, client: String, lossSum: Double, targetTokens: Int, examples: Int, exactMatches: Int?,
        labelCounts: LabelCounts? = nil
    ) {
        self.round = round
        self.client = client
        self.lossSum = lossSum
        self.targetTokens = targetTokens
        self.examples = examples
        self.exactMatches = exactMatches
        self.labelCounts = labelCounts
    }
}

/// Bytes as framed, by what they are for.
public struct Traffic: Codable, Equatable, Sendable {
    public enum Kind: Sendable { case uplink, downlink, oneTime, control }
    public var uplink = 0
    public var downlink = 0
    public var oneTime = 0
    public var control = 0
    /// Adapter values that the uplink and the downlink carried, whatever their encoding: what bytes are compared with.
    public var uplinkValues = 0
    public var downlinkValues = 0

    public init() {}

    public mutating func add(_ bytes: Int, as kind: Kind) {
        switch kind {
        case .uplink: uplink += bytes
        case .downlink: downlink += bytes
        case .oneTime: oneTime += bytes
        case .control: control += bytes
        }
    }

    public static func + (left: Traffic, right: Traffic) -> Traffic {
        var sum = left
        sum.uplink += right.uplink
        sum.downlink += right.downlink
        sum.oneTime += right.oneTime
        sum.control += right.control
        sum.uplinkValues += right.uplinkValues
        sum.downlinkValues += right.downlinkValues
        return sum
    }
}

/// What is known of a round when it closes; evaluations stand apart, for they come later.
public struct RoundRecord: Codable, Equatable, Sendable {
    public let round: Int
    public let attempts: Int
    /// Ascending by name.
    public let participants: [String]
    /// Mean nats per target token over the participants' local steps; nil where nobody told.
    public let trainLoss: Double?
    public var traffic: Traffic
    public let seconds: Double
    /// Client-level privacy: what the run has spent with this round, and this round's clip.
    public let epsilon: Double?
    public let clip: Double?

    public init(
        round: Int, attempts: Int, participants: [String], trainLoss: Double?, traffic: Traffic, seconds: Double,
        epsilon: Double? = nil, clip: Double? = nil
    ) {
        self.round = round
        self.attempts = attempts
        self.participants = participants
        self.trainLoss = trainLoss
        self.traffic = traffic
        self.seconds = seconds
        self.epsilon = epsilon
        self.clip = clip
    }
}

/// What the coordinator's draws and noise follow from, under client-level privacy: stored before anything that does, so that a
/// resumed round makes the same; never published.
public struct CoordinatorNoise: Codable, Equatable, Sendable {
    private let bytes: [UInt8]
    public var key: NoiseKey { NoiseKey(bytes: bytes) }
    /// Only in tests: the key follows from a number, so that the guarantee does not hold.
    public let isSeeded: Bool

    public init(seed: UInt64? = nil) {
        bytes = (seed.map { NoiseKey.unsafeSeeded($0, name: "coordinator") } ?? NoiseKey.random()).bytes
        isSeeded = seed != nil
    }
}

extension CoordinatorNoise: CustomStringConvertible, CustomReflectable {
    /// Shows nothing of the key, wherever a state is written into a log.
    public var description: String { isSeeded ? "CoordinatorNoise(seeded)" : "CoordinatorNoise(secret)" }
    public var customMirror: Mirror { Mirror(self, children: EmptyCollection<Mirror.Child>()) }
}

/// Everything that a coordinator needs to go on where it was, but for the blobs' bytes.
public struct StoredFederation: Equatable, Sendable {
    public var runID: String
    public var plan: FederationPlan
    public var noise: CoordinatorNoise?
    public var members: [Member] = []
    public var attempt: RoundAttempt?
    public var contributions: [ContributionRecord] = []
    public var adapters: [GlobalAdapter] = []
    public var evaluations: [EvaluationRecord] = []
    public var records: [RoundRecord] = []
    /// Of the round that is open.
    public var traffic = Traffic()
    public var finished = false

    public init(runID: String, plan: FederationPlan, noise: CoordinatorNoise?) {
        self.runID = runID
        self.plan = plan
        self.noise = noise
    }
}

/// One thing to store. A list of them is stored as a whole or not at all.
public enum StoreChange: Sendable {
    case run(id: String, plan: FederationPlan, noise: CoordinatorNoise?)
    case member(Member)
    case forget(name: String)
    /// A part of a contribution on its way. One contribution per client is on its way at a time: another digest
    /// replaces it.
    case chunk(client: String, digest: Digest, index: Int, bytes: [UInt8])
    /// The contribution whose chunks have all arrived and were checked: its bytes move from the chunks.
    case contribution(ContributionRecord, bytes: [UInt8])
    case discardChunks(client: String)
    case attempt(RoundAttempt)
    case blob(StoredBlob, bytes: [UInt8])
    /// Nothing refers to this blob any more.
    case discardBlob(Digest)
    case adapter(GlobalAdapter)
    /// The round is closed: these contributions counted, its others did not, and no bytes of theirs are kept.
    case closeRound(RoundRecord)
    /// The record's traffic after the final evaluation.
    case updateRecord(RoundRecord)
    case evaluation(EvaluationRecord)
    case traffic(Traffic)
    case finished
}

/// Where a federation is kept. Calls come one at a time.
public protocol FederationStore: AnyObject {
    /// Nil if nothing was ever stored.
    func load() throws(Failure) -> StoredFederation?
    /// Stores all of them or none. When it returns they survive a kill.
    func apply(_ changes: [StoreChange]) throws(Failure)
    /// Indices of the chunks of this contribution that have arrived, ascending.
    func chunkIndices(client: String, digest: Digest) throws(Failure) -> [Int]
    /// The chunks in order, as one.
    func assembledChunks(client: String, digest: Digest) throws(Failure) -> [UInt8]
    /// Bytes of a contribution to the open round.
    func contributionBytes(round: Int, client: String) throws(Failure) -> [UInt8]
    /// Nil if there is no such blob.
    func blobBytes(_ digest: Digest) throws(Failure) -> [UInt8]?
}
