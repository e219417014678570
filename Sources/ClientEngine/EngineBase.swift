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
    public let text: ModelText
    private var adapted: (model: AdaptedModel, form: QuantizationName, compute: ComputeName, task: ModelTask)?
    /// Bytes that training may take in all; nil: the engine's own limit on activations.
    public var memoryLimit: Int?
    /// Told how many linear maps are loaded, and of how many.
    public var loadingProgress: ((_ done: Int, _ count: Int) -> Void)?

    public init(modelFolder: String, chatTemplate: String? = nil) throws(Failure) {
        checkpoint = try CheckpointFolder(path: modelFolder)
        text = try ModelText(checkpoint: checkpoint, chatTemplate: chatTemplate)
    }

    /// An adapter that adds nothing.
    public static let noAdapter = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))

    /// Refuses a compute type that this processor lacks, a task that the model is not for, and a plan that does not fit into the
    /// memory limit.
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

    /// What training at the plan's largest rank takes here.
    /// - Throws: `Failure` if it does not fit into the limit
    public func memoryPlan(for plan: FederationPlan) throws(Failure) -> MemoryPlan {
        let specification = try plan.specification(rank: plan.ranks.max() ?? 1, maps: checkpoint.configuration.linearMaps)
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
        if let adapted, adapted.form == plan.quantize, adapted.compute == plan.compute, adapted.task == task {
            try adapted.model.load(weights)
            return adapted.model
        }
        // Two forms of one base never stand in memory together.
        adapted = nil
        let model = try LanguageModel(
            checkpoint: checkpoint, quantization: try form(plan), compute: choice(plan.compute), task: task,
            progress: loadingProgress)
        let loaded = try AdaptedModel(model: model, weights: weights)
        loaded.use(try memoryPlan(for: plan))
        adapted = (loaded, plan.quantize, plan.compute, task)
        return loaded
    }
}
