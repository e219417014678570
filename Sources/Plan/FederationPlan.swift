/// Everything that the coordinator decides for a run, as it is stored, sent to clients and written to `run.json`.

import Adapters
import Checkpoints
import Primitives
import UpdateCodec

/// The rule that turns contributions into the next global state. Names are never reused for another rule.
public enum StrategyName: String, Codable, Sendable, CaseIterable {
    /// Average A and B (Zhang et al. 2023, arXiv:2305.05644).
    case fedit
    /// Average B, with A frozen and derived from the run's seed (Sun et al. 2024, arXiv:2403.12313).
    case ffaLoRA = "ffa-lora"
    /// Stack the clients' factors into a global correction (Wang et al. 2024, arXiv:2409.05976).
    case flora
    /// Average LoRA-SB's R (Singhal et al. 2025, arXiv:2502.15436).
    case fedSB = "fed-sb"

    public var method: AdapterMethod {
        switch self {
        case .fedit, .flora: .lora
        case .ffaLoRA: .ffaLoRA
        case .fedSB: .loraSB
        }
    }
}

/// How contributions are weighted.
public enum Weighting: String, Codable, Sendable, CaseIterable {
    /// By the size of the client's usable training set, fixed when it joins.
    case samples
    case uniform
}

/// Where the factors that all clients begin with come from.
public enum StartName: String, Codable, Sendable, CaseIterable {
    /// `gradient` for Fed-SB, `zero` for all others.
    case standard = "default"
    /// A at random, B = 0.
    case zero
    /// B A is what quantization took from the base, as far as the rank goes (LoftQ with the base given): no data, but one client
    /// needs the unquantized weights.
    case loftq
    /// The SVD of -learning rate x sign(gradient) on the first client's data (LoRA-SB).
    case gradient
    /// The SVD of the base weights, R = 0 (LoRA-XS): no data.
    case xs

    /// Those of LoRA-SB, the others being LoRA's.
    public static let ofLoRASB: [StartName] = [.gradient, .xs]
}

/// What the model learns to do.
public enum TaskName: String, Codable, Sendable, CaseIterable {
    /// To predict each token from the ones before it.
    case causal
    /// To say which label a text has.
    case classify
}

public enum OptimizerName: String, Codable, Sendable, CaseIterable {
    case adamw
    /// AdamW whose moments are kept in 8 bits between steps.
    case adamw8bit
    case sgd
}

/// What a batch is made of.
public enum PackingName: String, Codable, Sendable, CaseIterable {
    /// Examples.
    case off
    /// Bins of up to a sequence length of tokens, filled with whole examples and parts of long texts.
    case bestFit = "best-fit"
}

public enum ScheduleName: String, Codable, Sendable, CaseIterable { case constant, linear, cosine }

/// Whose presence the run's results must not tell, and so where clipping, noise and accounting are.
public enum PrivacyName: String, Codable, Sendable, CaseIterable {
    case none
    /// One training example's: each client clips and noises its steps (DP-SGD, Abadi et al. 2016, arXiv:1607.00133).
    case example
    /// One client's: the coordinator clips updates and noises their sum (McMahan et al. 2018, arXiv:1710.06963).
    case client
}

/// The form in which a client holds the base's linear maps.
public enum QuantizationName: String, Codable, Sendable, CaseIterable {
    /// As the checkpoint stores them.
    case stored
    /// Decoded to float32.
    case none
    // Formats with an encoder (`WeightFormat.all` of the engine, which a coordinator does not link).
    case int8
    case nf4
    case fp4
}

/// What the products with the frozen weights are computed in. A client that cannot do so is refused.
public enum ComputeName: String, Codable, Sendable, CaseIterable {
    /// Each client as it can: results then depend on the clients' processors.
    case auto
    case float32
    /// Operands rounded to bfloat16, sums in float32 (AVX512-BF16).
    case bfloat16
}

public struct FederationPlan: Codable, Equatable, Sendable {
    // The federation.
    public var strategy: StrategyName = .fedit
    public var rounds = 10
    /// 0 means every client.
    public var clientsPerRound = 0
    public var minimumClients = 1
    /// Contributions that close a round at its deadline; 0 means all that were selected.
    public var quorum = 0
    /// Seconds from the start of a round's attempt to its deadline.
    public var deadlineSeconds = 3600.0
    public var weighting: Weighting = .samples
    public var seed: UInt64 = 0

    // The task.
    public var task: TaskName = .causal
    /// Of `classify`, in the order of the classifier's outputs.
    public var labels: [String] = []

    // The adapter.
    /// One rank, or several for `flora`; ascending.
    public var ranks: [Int] = [16]
    /// Nil means twice the rank.
    public var alpha: Double?
    public var rankStabilized = false
    /// `["all-linear"]`, or the last components of module paths.
    public var targetModules = ["all-linear"]
    /// FLoRA: the largest rank of the global correction.
    public var rankCap = 128
    public var start: StartName = .standard

    // Local training.
    public var localSteps = 10
    public var batchSize = 8
    public var gradientAccumulation = 1
    public var sequenceLength = 512
    public var packing: PackingName = .off
    public var learningRate = 2e-4
    public var schedule: ScheduleName = .constant
    public var warmupSteps = 0
    public var optimizer: OptimizerName = .adamw
    public var weightDecay = 0.0
    /// The largest norm of a step's gradient over all trained tensors; 0 means no clipping.
    public var gradientClip = 1.0
    public var quantize: QuantizationName = .stored
    public var compute: ComputeName = .float32
    /// What blocks' activations are rounded to while they wait for the backward pass; `auto`: as `compute`.
    public var savedActivations: ComputeName = .auto

    // How updates travel.
    /// Of contributions.
    public var compress: UpdateCodec = .float32
    /// Of the global adapter's change, for clients that hold the one before; `f32` sends the whole adapter.
    public var compressDownlink: UpdateCodec = .float32
    /// Whether a client adds what its last contribution's encoding left out to the next one.
    public var errorFeedback = false
    /// The factor on that remainder for each round in which the client did not take part.
    public var residualDecay = 0.9

    // Differential privacy.
    public var privacy: PrivacyName = .none
    /// The budget of the whole run; nil where a noise multiplier is given without one.
    public var epsilon: Double?
    public var delta = 1e-5
    /// The largest norm of an example's gradient, or of a client's update, over all trained tensors.
    public var clip = 1.0
    /// Standard deviation of the noise over `clip`; nil means what the budget needs.
    public var noiseMultiplier: Double?
    /// Client-level: the probability with which each client takes part in a round.
    public var clientSamplingRate = 1.0
    /// Client-level: the share of updates below the clip that it adapts to; nil keeps the clip.
    public var clipQuantile: Double?
    /// Of the clip's logarithm (Andrew et al. 2021, arXiv:1905.03871, section 2).
    public var clipLearningRate = 0.2
    /// Standard deviation of the noise on the count of updates below the clip; nil means a twentieth of the
    /// expected clients, or twice the noise multiplier if that is more.
    public var clipCountNoise: Double?
    /// Example-level: whether clients may tell how many examples they have.
    public var publicCounts = false
    /// Whether evaluation data is nobody's secret, so that results on it may be told.
    public var publicEvaluation = false

    // Evaluation.
    /// Greedy decoding of up to this many tokens, compared with the completion; 0 means no exact match.
    public var exactMatchTokens = 0
    /// Compare only what follows this marker; "" means everything.
    public var exactMatchMarker = ""

    // What it all stands on.
    /// The linear maps of the task's head, as the model and the number of labels have it; empty for `causal`.
    public var head: [LinearMap] = []
    public var baseDigest = Digest(of: [])
    public var tokenizerDigest = Digest(of: [])
    /// Digest of the adapter that the run starts from, if any.
    public var initialAdapterDigest: Digest?

    public init() {}

    /// Step indices of a round, over the whole federation: the schedule never restarts.
    public func steps(ofRound round: Int) -> Range<Int> { (round - 1) * localSteps..<round * localSteps }
    public var totalSteps: Int { rounds * localSteps }

    /// The linear maps that `targetModules` names, in model order.
    public func targets(among maps: [LinearMap]) throws(Failure) -> [LinearMap] {
        try Self.targets(targetModules, among: maps)
    }

    /// - Throws: `Failure` with the names that exist, if one does not.
    public static func targets(_ names: [String], among maps: [LinearMap]) throws(Failure) -> [LinearMap] {
        if names == ["all-linear"] { return maps }
        for name in names where !maps.contains(where: { $0.moduleName == name || $0.name == name }) {
            var known: [String] = []
            for map in maps where !known.contains(map.moduleName) { known.append(map.moduleName) }
            throw Failure(
                .usage,
                "target module \(name) is not a linear map of this model's blocks; it has \(known.joined(separator: ", ")), or use all-linear"
            )
        }
        return maps.filter { names.contains($0.moduleName) || names.contains($0.name) }
    }

    /// What one client of this rank trains.
    public func specification(rank: Int, maps: [LinearMap]) throws(Failure) -> AdapterSpecification {
        try AdapterSpecification(
            method: strategy.method, maps: try targets(among: maps), rank: rank, alpha: alpha ?? 2 * Double(rank),
            rankStabilized: rankStabilized, head: head)
    }

    /// What travels as the global state: all that clients train, or for `flora`, whose factors begin anew in each round, the
    /// head alone; nil where nothing does.
    public func stateLayout(_ specification: AdapterSpecification) -> AdapterLayout? {
        strategy == .flora ? specification.headLayout : specification.trainedLayout
    }

    /// What clients and coordinator both derive from the run's seed: A where LoRA draws it, the head, and zeros.
    ///
    /// FLoRA's clients begin each round anew, each with an A of its own; elsewhere there is one start for the run. The head's
    /// start is one for the run in every strategy and at every rank.
    public func derivedWeights(
        _ specification: AdapterSpecification, round: Int = 0, attempt: Int = 0, client: String = ""
    ) -> AdapterWeights {
        var generator =
            strategy == .flora
            ? SeededGenerator(seed: seed, purpose: "lora-a", round: round, attempt: attempt, client: client)
            : SeededGenerator(seed: seed, purpose: "lora-a")
        var weights = specification.initialWeights(&generator)
        if let head = derivedHead(specification) { weights.trained.replaceLast(with: head) }
        return weights
    }

    /// The head that a run starts from; nil without one.
    public func derivedHead(_ specification: AdapterSpecification) -> AdapterState? {
        var generator = SeededGenerator(seed: seed, purpose: "head")
        return specification.initialHead(&generator)
    }

    /// Examples that a step takes in all; under example-level privacy on average.
    public var stepSize: Int { batchSize * gradientAccumulation }

    /// Where the run's first factors come from.
    public var startName: StartName { start != .standard ? start : strategy == .fedSB ? .gradient : .zero }

    /// Whether one client makes the start and uploads it.
    public var isStartUploaded: Bool { startName != .zero }

    /// Whether the start is computed without anybody's data.
    public var isStartPublic: Bool { startName != .gradient }

    /// Whether the start needs weights that the base, quantized as it is stored, does not hold.
    public var needsUnquantizedModel: Bool { startName == .loftq && (quantize == .stored || quantize == .none) }

    /// The largest plan rank that a client can hold, or nil if all are above its limit. No limit: the largest.
    public func rank(maximum: Int?) -> Int? {
        guard let maximum else { return ranks.max() }
        return ranks.filter { $0 <= maximum }.max()
    }
}
