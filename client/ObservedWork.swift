/// The engine, watched: heartbeats while it works, progress for the person, and signals between its steps.

import Adapters
import ClientCore
import Logging
import Plan
import Primitives
import Programs

final class ObservedWork: LocalWork {
    private let engine: any LocalWork
    private let channel: ProcessChannel
    private let logger: Logger

    init(_ engine: any LocalWork, channel: ProcessChannel, logger: Logger) {
        self.engine = engine
        self.channel = channel
        self.logger = logger
    }

    var exampleCount: Int { engine.exampleCount }
    var hasEvaluationData: Bool { engine.hasEvaluationData }

    func prepare(for plan: FederationPlan, rank: Int) throws(Failure) {
        channel.beginWork()
        defer { channel.endWork() }
        try engine.prepare(for: plan, rank: rank)
    }

    func train(
        _ assignment: TrainingAssignment, progress: (Int, Int) -> WorkInterruption?
    ) throws(WorkInterruption) -> TrainedResult {
        channel.beginWork()
        defer { channel.endWork() }
        let again = assignment.attempt > 1 ? ", attempt \(assignment.attempt)" : ""
        logger.info("round \(assignment.round) of \(assignment.plan.rounds)\(again): training \(assignment.plan.localSteps) steps")
        var display = StepProgress(round: assignment.round, logger: logger)
        defer { display.end() }
        return try engine.train(assignment) { step, steps in
            display.show(step: step, of: steps)
            if Interrupts.isInterrupted {
                return .failed(Failure(.interrupted, "stopped in step \(step) of \(steps) of round \(assignment.round)"))
            }
            return progress(step, steps)
        }
    }

    func evaluate(_ weights: AdapterWeights, plan: FederationPlan) throws(Failure) -> EvaluationResult {
        channel.beginWork()
        defer { channel.endWork() }
        return try engine.evaluate(weights, plan: plan)
    }

    func start(plan: FederationPlan, client: String, specification: AdapterSpecification) throws(Failure) -> AdapterState {
        channel.beginWork()
        defer { channel.endWork() }
        logger.info("computing the run's start (\(plan.start.rawValue))")
        return try engine.start(plan: plan, client: client, specification: specification)
    }
}

/// Steps of a round: a line that is rewritten on a terminal, a line every half minute elsewhere.
private struct StepProgress {
    let round: Int
    let logger: Logger
    private let began = ContinuousClock.now
    private var lastLine = ContinuousClock.now
    private let isTerminal = Console.isTerminal

    init(round: Int, logger: Logger) {
        self.round = round
        self.logger = logger
    }

    mutating func show(step: Int, of steps: Int) {
        guard step > 0, steps > 0 else { return }
        let elapsed = (ContinuousClock.now - began) / .seconds(1)
        let each = elapsed / Double(step)
        let text =
            "round \(round): step \(step) of \(steps), \(Readable.decimal(each, each < 10 ? 2 : 0)) s a step, \(Readable.duration(seconds: each * Double(steps - step))) left"
        if isTerminal {
            Console.progress(text)
        } else if ContinuousClock.now - lastLine >= .seconds(30) {
            lastLine = .now
            logger.info("\(text)")
        }
    }

    func end() { if isTerminal { Console.progress("") } }
}
