/// The engine as a client's work: its data, and training and evaluating on the shared base.

import Adapters
import Checkpoints
import ClientCore
import Datasets
import Model
import Plan
import Primitives
import Training

/// What the engine is doing, for whoever shows progress.
public enum EngineProgress: Sendable {
    case training(client: String, round: Int, TrainingProgress)
    case evaluating(client: String, done: Int, count: Int)
    case starting(done: Int, count: Int)
    /// What the start comes to, in a sentence.
    case started(String)
}

public final class EngineWork: LocalWork {
    private let base: EngineBase
    private let records: [Record]
    private let evaluationRecords: [Record]?
    /// That holds the label of a record.
    private let labelField: String
    private let name: String
    /// Nil before the plan has told the labels.
    private var training: EncodedData?
    private var evaluation: EncodedData?
    /// How the training examples are packed at the plan's sequence length; nil if they are not.
    public private(set) var packing: BestFitPacking?
    /// Shows progress; false means that the user wants to stop.
    private let progress: (EngineProgress) -> Bool

    /// Reads nothing: the records are there. Refuses a data set without a usable example.
    public init(
        name: String, base: EngineBase, records: [Record], evaluationRecords: [Record]?, labelField: String = "label",
        progress: @escaping (EngineProgress) -> Bool
    ) throws(Failure) {
        self.name = name
        self.base = base
        self.records = records
        self.evaluationRecords = evaluationRecords
        self.labelField = labelField
        self.progress = progress
        // Which labels there are is in the plan; that there are some can be told at once.
        let isEncoder = base.checkpoint.configuration.isEncoder
        if isEncoder { for records in [records, evaluationRecords ?? []] { _ = try LabelSet(of: records, field: labelField) } }
        try encode(isEncoder ? nil : .causal, sequenceLength: base.checkpoint.configuration.maximumPositions)
    }

    private func encode(_ task: LearningTask?, sequenceLength: Int, dividesTexts: Bool = false) throws(Failure) {
        guard let task else { return }
        let training = try base.text.examples(
            records, task: task, sequenceLength: sequenceLength, dividesTexts: dividesTexts)
        guard !training.examples.isEmpty else {
            if case .classify = task { throw Failure(.badData, "\(name) has no example to classify: add records to its data") }
            throw Failure(
                .badData,
                "no example of \(name) has a target within \(sequenceLength) tokens: add a completion to its records, or raise --sequence-length"
            )
        }
        self.training = training
        evaluation = try evaluationRecords.map { (records) throws(Failure) in
            try base.text.examples(
                records, task: task, sequenceLength: base.checkpoint.configuration.maximumPositions)
        }
    }

    private var examples: [Example] { training?.examples ?? [] }

    /// Examples that were cut, divided and dropped at the plan's sequence length.
    public var changedCounts: (cut: Int, divided: Int, dropped: Int) {
        (training?.cutCount ?? 0, training?.dividedCount ?? 0, training?.droppedCount ?? 0)
    }

    public var exampleCount: Int { training?.examples.count ?? records.count }
    public var hasEvaluationData: Bool { evaluationRecords != nil }
    public var hasUnquantizedModel: Bool { base.unquantized != nil }

    /// Of the training examples at the plan's sequence length: tokens, targets and label of each.
    public var dataDigest: Digest {
        var builder = DigestBuilder()
        for example in examples {
            builder.update(counted: "\(example.tokens.count)")
            example.tokens.withUnsafeBytes { builder.update($0) }
            builder.update(example.targets.map { $0 ? 1 : 0 })
            if let label = example.label { builder.update(counted: "\(label)") }
        }
        return builder.finish()
    }

    public func prepare(for plan: FederationPlan) throws(Failure) {
        try base.check(plan)
        let positions = base.checkpoint.configuration.maximumPositions
        guard plan.sequenceLength <= positions else {
            throw Failure(
                .usage,
                "sequence-length is \(plan.sequenceLength), but the model has \(positions) positions: use at most \(positions)")
        }
        if plan.needsUnquantizedModel, let source = base.unquantized {
            try QuantizationStart.check(source, holds: plan.targets(among: base.checkpoint.configuration.linearMaps))
        }
        try encode(
            plan.task == .causal ? .causal : .classify(LabelSet(plan.labels), field: labelField),
            sequenceLength: plan.sequenceLength, dividesTexts: plan.packing == .bestFit)
        packing = TrainingSettings(plan).packing(examples)
    }

    public func train(
        _ assignment: TrainingAssignment, progress heartbeat: (Int, Int) -> WorkInterruption?
    ) throws(WorkInterruption) -> TrainedResult {
        let plan = assignment.plan
        var interruption: WorkInterruption?
        let clock = ContinuousClock()
        let began = clock.now
        let outcome: TrainingOutcome
        do throws(Failure) {
            let model = try base.model(assignment.weights, for: plan)
            outcome = try LocalTrainer.train(
                model: model, examples: examples, settings: TrainingSettings(plan),
                stepRange: plan.steps(ofRound: assignment.round), totalSteps: plan.totalSteps,
                generator: SeededGenerator(
                    seed: plan.seed, purpose: "batches", round: assignment.round, attempt: assignment.attempt,
                    client: assignment.client),
                privacy: assignment.privacy
            ) { step in
                if !progress(.training(client: name, round: assignment.round, step)) {
                    interruption = .failed(stopped("the training of round \(assignment.round)"))
                    return false
                }
                interruption = heartbeat(step.done, step.count)
                return interruption == nil
            }
        } catch {
            throw .failed(error)
        }
        if let interruption { throw interruption }
        return TrainedResult(
            state: outcome.weights.trained, trainLoss: outcome.meanLoss, targetTokens: outcome.targetTokens,
            seconds: (clock.now - began) / .seconds(1))
    }

    public func evaluate(_ weights: AdapterWeights, plan: FederationPlan) throws(Failure) -> EvaluationResult {
        guard let evaluation else { throw Failure(.internalError, "\(name) has no evaluation data") }
        let exactMatch =
            plan.exactMatchTokens > 0
            ? ExactMatch(maximumTokens: plan.exactMatchTokens, marker: plan.exactMatchMarker) : nil
        let outcome = try Evaluation.evaluate(
            model: try base.model(weights, for: plan), examples: evaluation.examples, exactMatch: exactMatch,
            tokenizer: base.text.tokenizer, endTokens: base.text.endTokens
        ) { progress(.evaluating(client: name, done: $0, count: $1)) }
        return EvaluationResult(
            lossSum: outcome.lossSum, targetTokens: outcome.targetTokens, examples: outcome.examples,
            exactMatches: outcome.exactMatches, labelCounts: outcome.labelCounts)
    }

    public func start(
        plan: FederationPlan, client: String, specification: AdapterSpecification
    ) throws(Failure) -> AdapterState {
        let generator = SeededGenerator(seed: plan.seed, purpose: "start", client: client)
        // An adapter that adds nothing; a classifier needs its head.
        let nothing = plan.derivedHead(specification).map { AdapterWeights(trained: $0) } ?? EngineBase.noAdapter
        let model = try base.model(nothing, for: plan)
        switch plan.startName {
        case .standard, .zero:
            throw Failure(.internalError, "start \(plan.startName.rawValue) is made by the coordinator")
        case .loftq:
            guard let source = plan.needsUnquantizedModel ? base.unquantized : base.checkpoint else {
                throw Failure(.usage, "start loftq needs the unquantized weights: add --unquantized-model")
            }
            let made = try QuantizationStart.residual(
                specification: specification,
                base: { (map) throws(Failure) in
                    guard let weight = model.model.weight(of: map.name) else {
                        throw Failure(.internalError, "the model has no \(map.name)")
                    }
                    return weight
                }, weights: { (map) throws(Failure) in try QuantizationStart.weights(of: map, in: source) }, generator: generator
            ) { progress(.starting(done: $0, count: $1)) }
            _ = progress(.started(QuantizationStart.summary(made.errors)))
            return made.state
        case .gradient:
            let drawn = LoRASBStart.examples(
                examples, stepSize: plan.batchSize * plan.gradientAccumulation,
                generator: SeededGenerator(seed: plan.seed, purpose: "start examples", client: client))
            let made = try LoRASBStart.fromGradient(
                model: model, specification: specification, examples: drawn, batchSize: plan.batchSize,
                learningRate: plan.learningRate, generator: generator
            ) { progress(.starting(done: $0, count: $1)) }
            _ = progress(.started(LoRASBStart.summary(made.approximations)))
            return made.state
        case .xs:
            let made = try LoRASBStart.fromBase(specification: specification, model: model.model, generator: generator) {
                progress(.starting(done: $0, count: $1))
            }
            _ = progress(.started(LoRASBStart.summary(made.approximations)))
            return made.state
        }
    }

    private func stopped(_ what: String) -> Failure {
        Failure(.interrupted, "\(what) was stopped; run the same command again to go on")
    }
}
