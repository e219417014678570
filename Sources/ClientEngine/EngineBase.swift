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
    private var adapted: (model: AdaptedModel, form: QuantizationName, compute: ComputeName)?
    /// Told how many linear maps are loaded, and of how many.
    public var loadingProgress: ((_ done: Int, _ count: Int) -> Void)?

    public init(modelFolder: String, unquantizedFolder: String? = nil, chatTemplate: String? = nil) throws(Failure) {
        checkpoint = try CheckpointFolder(path: modelFolder)
        unquantized = try unquantizedFolder.map { (folder) throws(Failure) in try CheckpointFolder(path: folder) }
        text = try ModelText(checkpoint: checkpoint, chatTemplate: chatTemplate)
    }

    /// An adapter that adds nothing.
    public static let noAdapter = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))

    /// Refuses a compute type that this processor lacks.
    public func check(_ plan: FederationPlan) throws(Failure) {
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
        if let adapted, adapted.form == form, adapted.compute == compute {
            try adapted.model.load(weights)
            return adapted.model
        }
        // Two forms of one base never stand in memory together.
        adapted = nil
        guard let weightForm = WeightForm(rawValue: form.rawValue) else {
            throw Failure(.internalError, "there is no weight format \(form.rawValue)")
        }
        let model = try LanguageModel(
            checkpoint: checkpoint, quantization: weightForm, compute: choice(compute), progress: loadingProgress)
        let loaded = try AdaptedModel(model: model, weights: weights)
        adapted = (loaded, form, compute)
        return loaded
    }
}
