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
    /// Told how many linear maps are loaded, and of how many.
    public var loadingProgress: ((_ done: Int, _ count: Int) -> Void)?

    public init(modelFolder: String, chatTemplate: String? = nil) throws(Failure) {
        checkpoint = try CheckpointFolder(path: modelFolder)
        text = try ModelText(checkpoint: checkpoint, chatTemplate: chatTemplate)
    }

    /// An adapter that adds nothing.
    public static let noAdapter = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))

    /// Refuses a compute type that this processor lacks, and a task that the model is not for.
    public func check(_ plan: FederationPlan) throws(Failure) {
        try plan.validateTask(for: checkpoint.configuration)
        _ = try choice(plan.compute).type(holdsFloat32: plan.quantize == .none)
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
        let (form, compute) = (plan.quantize, plan.compute)
        let task: ModelTask = plan.task == .classify ? .classify(labelCount: plan.labels.count) : .causal
        if let adapted, adapted.form == form, adapted.compute == compute, adapted.task == task {
            try adapted.model.load(weights)
            return adapted.model
        }
        // Two forms of one base never stand in memory together.
        adapted = nil
        let weightForm: WeightForm =
            switch form {
            case .stored: .stored
            case .none: .none
            case .int8: .int8
            case .nf4: .nf4
            }
        let model = try LanguageModel(
            checkpoint: checkpoint, quantization: weightForm, compute: choice(compute), task: task, progress: loadingProgress)
        let loaded = try AdaptedModel(model: model, weights: weights)
        adapted = (loaded, form, compute, task)
        return loaded
    }
}
