/// The training engine of this process, watched: heartbeats while it works, progress for the person, signals between
/// its steps.

import Adapters
import Checkpoints
import ClientCore
import ClientEngine
import Datasets
import LinearAlgebra
import Logging
import Plan
import Primitives
import Programs
import Training

final class Engine: LocalWork {
    private let work: EngineWork
    private let channel: ProcessChannel
    private let display: ProgressDisplay
    private let logger: Logger

    /// Reads the data; the model is loaded when the plan is known.
    init(
        name: String, base: EngineBase, data: String, evaluationData: String?, textField: String?, labelField: String,
        channel: ProcessChannel, logger: Logger
    ) throws(Failure) {
        let display = ProgressDisplay(logger: logger)
        let records = try DataFile.read(data, textField: textField)
        let evaluationRecords = try evaluationData.map { (path) throws(Failure) in
            try DataFile.read(path, textField: textField)
        }
        base.loadingProgress = { display.show("loading the base model", done: $0, of: $1) }
        work = try EngineWork(
            name: name, base: base, records: records, evaluationRecords: evaluationRecords, labelField: labelField
        ) { progress in
            display.show(progress)
            return !Interrupts.isInterrupted
        }
        self.channel = channel
        self.display = display
        self.logger = logger
    }

    /// Of the arithmetic: results agree bit for bit within one.
    static func kernelPath() throws(Failure) -> String { try KernelPath.current().name + "+openblas-" + BLAS.coreName }

    var exampleCount: Int { work.exampleCount }
    var hasEvaluationData: Bool { work.hasEvaluationData }
    var hasUnquantizedModel: Bool { work.hasUnquantizedModel }

    var dataDigest: Digest { work.dataDigest }

    func prepare(for plan: FederationPlan) throws(Failure) {
        try work.prepare(for: plan)
        if work.hasEvaluationData, !plan.allowsEvaluation {
            logger.notice(
                "the evaluation data is not used: under dp \(plan.privacy.rawValue) results on it are told only if the plan declares it public"
            )
        }
        if work.hasUnquantizedModel, !plan.needsUnquantizedModel {
            logger.notice(
                "--unquantized-model is not used: this run does not start from what the stored form of its base lost (start loftq)"
            )
        }
        let (cut, divided, dropped) = work.changedCounts
        let notes = [
            cut > 0 ? "\(cut) cut" : nil, divided > 0 ? "\(divided) divided" : nil, dropped > 0 ? "\(dropped) dropped" : nil,
            work.packing.map { "in \($0.bins.count) bins, \(Readable.decimal(100 * $0.fillRate, 1)) % full" },
        ].compactMap { $0 }
        logger.info(
            "\(work.exampleCount) examples at sequence length \(plan.sequenceLength)\(notes.isEmpty ? "" : " (\(notes.joined(separator: ", ")))")"
        )
    }

    func train(
        _ assignment: TrainingAssignment, progress: (Int, Int) -> WorkInterruption?
    ) throws(WorkInterruption) -> TrainedResult {
        channel.beginWork()
        defer {
            channel.endWork()
            display.end()
        }
        let again = assignment.attempt > 1 ? ", attempt \(assignment.attempt)" : ""
        logger.info(
            "round \(assignment.round) of \(assignment.plan.rounds)\(again): training \(assignment.plan.localSteps) steps")
        return try work.train(assignment, progress: progress)
    }

    func evaluate(_ weights: AdapterWeights, plan: FederationPlan) throws(Failure) -> EvaluationResult {
        channel.beginWork()
        defer {
            channel.endWork()
            display.end()
        }
        return try work.evaluate(weights, plan: plan)
    }

    func start(plan: FederationPlan, client: String, specification: AdapterSpecification) throws(Failure) -> AdapterState {
        channel.beginWork()
        defer {
            channel.endWork()
            display.end()
        }
        logger.info("computing the run's start (\(plan.startName.rawValue))")
        return try work.start(plan: plan, client: client, specification: specification)
    }
}

/// Work in progress: one line that is rewritten on a terminal, a line every half minute elsewhere.
private final class ProgressDisplay {
    private let logger: Logger
    private let isTerminal = Console.isTerminal
    private var stage = ""
    private var began = ContinuousClock.now
    private var lastLine = ContinuousClock.now

    init(logger: Logger) { self.logger = logger }

    func show(_ progress: EngineProgress) {
        switch progress {
        case .training(_, let round, let step):
            let speed = "loss \(Readable.decimal(step.loss, 4)), \(Readable.decimal(step.tokensPerSecond, 0)) tokens/s"
            show("round \(round)", done: step.done, of: step.count, speed)
        case .evaluating(_, let done, let count): show("evaluating", done: done, of: count)
        case .starting(let done, let count): show("computing the start", done: done, of: count)
        case .started(let summary): logger.info("\(summary)")
        }
    }

    func show(_ stage: String, done: Int, of count: Int, _ note: String? = nil) {
        let now = ContinuousClock.now
        if stage != self.stage {
            self.stage = stage
            began = now
            lastLine = now
        }
        guard done > 0, count > 0, now - lastLine >= (isTerminal ? .milliseconds(100) : .seconds(30)) else { return }
        let left = (now - began) / .seconds(1) / Double(done) * Double(count - done)
        let text = "\(stage): \(done) of \(count)\(note.map { ", \($0)" } ?? ""), \(Readable.duration(seconds: left)) left"
        lastLine = now
        if isTerminal { Console.progress(text) } else { logger.info("\(text)") }
    }

    func end() {
        stage = ""
        if isTerminal { Console.progress("") }
    }
}
