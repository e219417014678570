/// What a client needs from the outside: a way to the coordinator, a place to keep things, and someone who trains.
///
/// A process fills them with NNG sockets, a folder and the engine; a simulation with a direct call, memory and the
/// same engine.

import Adapters
import Plan
import Primitives
import Privacy
import Wire

/// One exchange with the coordinator; retries and time limits are the channel's business.
public protocol ClientChannel: AnyObject {
    /// - Parameter bulk: true for chunks, which travel on their own socket
    func request(_ request: Request, bulk: Bool) throws(Failure) -> Reply
}

/// What a client keeps between rounds, and between processes.
public protocol ClientStorage: AnyObject {
    /// 32 random bytes, made at the first join: the coordinator knows the client again by them.
    func secret() throws(Failure) -> [UInt8]
    /// 32 random bytes that never leave the client, from which its noise and its sampling follow; made at the first call.
    func noiseKey() throws(Failure) -> NoiseKey

    /// Nil if nothing was kept for this run. Bytes that the record names are there and undamaged, or their names are not in it.
    func record(run: String) throws(Failure) -> ClientRecord?
    /// As one, durable when it returns: the record and the bytes that it names and that are new.
    func keep(_ record: ClientRecord, bytes: [[UInt8]]) throws(Failure)
    /// Bytes that the record names.
    func bytes(_ digest: Digest) throws(Failure) -> [UInt8]?

    /// What differential privacy has cost this client's data so far, in all runs.
    func ledger() throws(Failure) -> PrivacyLedger
    /// Durable when it returns.
    func keep(_ ledger: PrivacyLedger) throws(Failure)

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
    /// Nil without example-level privacy.
    public let privacy: PrivateTraining?
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
    func prepare(for plan: FederationPlan) throws(Failure)
    /// Size of the usable training set.
    var exampleCount: Int { get }
    /// Of the training examples as they are used: noise must never be used again on other data.
    var dataDigest: Digest { get }
    var hasEvaluationData: Bool { get }
    /// Whether it holds the unquantized weights from which a base was made, for a start that needs them.
    var hasUnquantizedModel: Bool { get }
    /// - Parameter progress: called now and then with the step done and the number of steps; false stops the work
    func train(
        _ assignment: TrainingAssignment, progress: (_ step: Int, _ steps: Int) -> WorkInterruption?
    ) throws(WorkInterruption) -> TrainedResult
    func evaluate(_ weights: AdapterWeights, plan: FederationPlan) throws(Failure) -> EvaluationResult
    /// The plan's start, in `AdapterSpecification.startLayout`.
    func start(plan: FederationPlan, client: String, specification: AdapterSpecification) throws(Failure) -> AdapterState
}

extension LocalWork {
    public var hasUnquantizedModel: Bool { false }
}
