/// What a client needs from the outside: a way to the coordinator, a place to keep things, and someone who trains.
///
/// A process fills them with NNG sockets, a folder and the engine; a simulation with a direct call, memory and the
/// same engine.

import Adapters
import Plan
import Primitives
import Wire

/// One exchange with the coordinator; retries and time limits are the channel's business.
public protocol ClientChannel: AnyObject {
    /// - Parameter bulk: true for chunks, which travel on their own socket
    func request(_ request: Request, bulk: Bool) throws(Failure) -> Reply
}

/// A trained contribution before it is acknowledged.
public struct PendingContribution: Codable, Equatable, Sendable {
    public let kind: String
    public let round: Int
    public let attempt: Int
    public let digest: Digest
    public let exampleCount: Int
    public let trainLoss: Double
    public let targetTokens: Int
    public let trainSeconds: Double

    public init(
        kind: ContributionKind, round: Int, attempt: Int, digest: Digest, exampleCount: Int, trainLoss: Double,
        targetTokens: Int, trainSeconds: Double
    ) {
        self.kind = kind == .start ? "start" : "update"
        self.round = round
        self.attempt = attempt
        self.digest = digest
        self.exampleCount = exampleCount
        self.trainLoss = trainLoss
        self.targetTokens = targetTokens
        self.trainSeconds = trainSeconds
    }

    var contributionKind: ContributionKind { kind == "start" ? .start : .update }
}

/// What a client keeps between rounds, and between processes.
public protocol ClientStorage: AnyObject {
    /// 32 random bytes, made at the first join.
    func secret() throws(Failure) -> [UInt8]

    /// The contribution that was made and not yet acknowledged, with its bytes.
    func pending(run: String) throws(Failure) -> (PendingContribution, bytes: [UInt8])?
    /// Durable when it returns: from here on a killed client sends these bytes instead of training again.
    func keep(_ pending: PendingContribution, bytes: [UInt8], run: String) throws(Failure)
    func discardPending(run: String) throws(Failure)

    /// The last acknowledged contribution.
    func lastContribution(run: String) throws(Failure) -> ContributionKey?
    func setLastContribution(_ key: ContributionKey?, run: String) throws(Failure)

    /// Nil if the blob is not there, or is damaged.
    func blob(_ digest: Digest) throws(Failure) -> [UInt8]?
    func keepBlob(_ digest: Digest, bytes: [UInt8]) throws(Failure)
    /// Drops blobs that no task refers to any more.
    func retainBlobs(_ digests: Set<Digest>) throws(Failure)
}

/// What one round asks of a trainer.
public struct TrainingAssignment: Sendable {
    public let plan: FederationPlan
    public let client: String
    public let round: Int
    public let attempt: Int
    public let weights: AdapterWeights
}

/// What a trainer makes of it.
public struct TrainedResult: Sendable {
    /// The trained tensors' new values.
    public let state: AdapterState
    /// Mean nats per target token over the local steps.
    public let trainLoss: Double
    public let targetTokens: Int
    public let seconds: Double

    public init(state: AdapterState, trainLoss: Double, targetTokens: Int, seconds: Double) {
        self.state = state
        self.trainLoss = trainLoss
        self.targetTokens = targetTokens
        self.seconds = seconds
    }
}

/// What an evaluation found.
public struct EvaluationResult: Equatable, Sendable {
    public let lossSum: Double
    public let targetTokens: Int
    public let examples: Int
    public let exactMatches: Int?

    public init(lossSum: Double, targetTokens: Int, examples: Int, exactMatches: Int?) {
        self.lossSum = lossSum
        self.targetTokens = targetTokens
        self.examples = examples
        self.exactMatches = exactMatches
    }
}

/// Said by a trainer whose work is no longer wanted.
public enum WorkInterruption: Error, Sendable {
    /// The round went on without this client.
    case abandoned(reason: String)
    case failed(Failure)
}

/// The client's engine.
public protocol LocalWork: AnyObject {
    /// The plan has arrived: prepare what depends on it, and refuse what cannot be honoured.
    ///
    /// - Returns: the model's linear maps
    func prepare(for plan: FederationPlan, rank: Int) throws(Failure)
    /// Size of the usable training set.
    var exampleCount: Int { get }
    var hasEvaluationData: Bool { get }
    /// - Parameter progress: called now and then with the step done and the number of steps; false stops the work
    func train(
        _ assignment: TrainingAssignment, progress: (_ step: Int, _ steps: Int) -> WorkInterruption?
    ) throws(WorkInterruption) -> TrainedResult
    func evaluate(_ weights: AdapterWeights, plan: FederationPlan) throws(Failure) -> EvaluationResult
    /// B, A and R of Fed-SB, in `AdapterSpecification.startLayout`.
    func start(plan: FederationPlan, client: String, specification: AdapterSpecification) throws(Failure) -> AdapterState
}
