/// One frozen base in memory, for one client of a process or for all clients of a simulation.

import Adapters
import Checkpoints
import LinearAlgebra
import Model
import Plan
import Primitives
import Quantization
import Training

public final class EngineBase {
    public let checkpoint: CheckpointFolder
    /// The weights from which a quantized base was made, where they are needed and given.
    public let unquantized: CheckpointFolder?
    public let text: ModelText
    /// The base as it is loaded, and the plan that it was last used for.
    private var adapted: (model: AdaptedModel, plan: FederationPlan)?
    /// Bytes that training may take in all; nil: the engine's own limit on activations.
    public var memoryLimit: Int?
    /// The largest rank that is trained here; nil: the plan's largest.
    public var maximumRank: Int?
    /// Told how many linear maps are loaded, and of how many.
    public var loadingProgress: ((_ done: Int, _ count: Int) -> Void)?

    public init(modelFolder: String, unquantizedFolder: String? = nil, chatTemplate: String? = nil) throws(Failure) {
        checkpoint = try CheckpointFolder(path: modelFolder)
        unquantized = try unquantizedFolder.map { (folder) throws(Failure) in try CheckpointFolder(path: folder) }
        text = try ModelText(checkpoint: checkpoint, chatTemplate: chatTemplate)
    }

    /// An adapter that adds nothing.
    public static let noAdapter = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))

    /// Refuses a task that the model is not for, a compute type that this processor lacks, and a plan that does not fit into
    /// the memory limit.
    public func check(_ plan: FederationPlan) throws(Failure) {
        try plan.validateTask(for: checkpoint.configuration)
        _ = try computeType(plan)
        if memoryLimit != nil { _ = try memoryPlan(for: plan) }
    }

    private func computeType(_ plan: FederationPlan) throws(Failure) -> ComputeType {
        try choice(plan.compute).type(holdsFloat32: plan.quantize == .none)
    }

    private func savedActivations(_ plan: FederationPlan) throws(Failure) -> ComputeType {
        switch plan.savedActivations {
        case .auto: try computeType(plan)
        case .float32: .float32
        case .bfloat16: .bfloat16
        }
    }

    private func form(_ plan: FederationPlan) throws(Failure) -> WeightForm {
        guard let form = WeightForm(rawValue: plan.quantize.rawValue) else {
            throw Failure(.internalError, "there is no weight format \(plan.quantize.rawValue)")
        }
        return form
    }

    /// What training at the plan's largest rank that may be trained here takes.
    /// - Throws: `Failure` if it does not fit into the limit
    public func memoryPlan(for plan: FederationPlan) throws(Failure) -> MemoryPlan {
        let rank = plan.rank(maximum: maximumRank) ?? plan.ranks.min() ?? 1
        let specification = try plan.specification(rank: rank, maps: checkpoint.configuration.linearMaps)
        let counts = specification.trainedLayout.tensors.map(\.count)
        var training = MemoryPlan.Training(
            specification: specification, sequences: plan.batchSize, sequenceLength: plan.sequenceLength,
            optimizerBytes: Optimizer.stateByteCount(plan.optimizer, tensorCounts: counts), weights: try form(plan),
            compute: try computeType(plan), savedActivations: try savedActivations(plan))
        training.correctionRank = plan.strategy == .flora ? plan.rankCap : 0
        // The global state, the contribution and its residual, and what is being encoded.
        training.copies = 4
        if plan.privacy == .example {
            training.privateBytes = ClippedSum.byteCount(
                parameterCount: specification.trainedLayout.parameterCount, batchSize: plan.batchSize)
        }
        return try MemoryPlan(training, of: checkpoint, limit: memoryLimit)
    }

    private func choice(_ name: ComputeName) -> ComputeChoice {
        switch name {
        case .auto: .auto
        case .float32: .float32
        case .bfloat16: .bfloat16
        }
    }

    /// Loads the base in the plan's form, the first time, and puts the adapter on it.
    public func model(_ weights: AdapterWeights, for plan: FederationPlan) throws(Failure) -> AdaptedModel {
        let task: ModelTask = plan.task == .classify ? .classify(labelCount: plan.labels.count) : .causal
        if let (model, last) = adapted, last.quantize == plan.quantize, last.compute == plan.compute, model.model.task == task {
            try model.load(weights)
            if last != plan {
                model.use(try memoryPlan(for: plan))
                adapted = (model, plan)
            }
            return model
        }
        // Two forms of one base never stand in memory together.
        adapted = nil
        let model = try LanguageModel(
            checkpoint: checkpoint, quantization: try form(plan), compute: choice(plan.compute), task: task,
            progress: loadingProgress)
        let loaded = try AdaptedModel(model: model, weights: weights)
        loaded.use(try memoryPlan(for: plan))
        adapted = (loaded, plan)
        return loaded
    }
}
