/// How a client trains: the part of a plan that the training loop reads.

import Datasets
import Plan
import Primitives

public struct TrainingSettings: Sendable, Equatable {
    /// Examples, or bins where they are packed.
    public var batchSize = 8
    /// Tokens of a bin of packed examples, each of which has as many at most; nil where a batch is made of examples.
    public var binLength: Int?
    /// Batches whose gradients are summed in one step.
    public var gradientAccumulation = 1
    public var learningRate = 2e-4
    public var schedule = ScheduleName.constant
    public var warmupSteps = 0
    public var optimizer = OptimizerName.adamw
    public var weightDecay = 0.0
    /// The largest norm of a step's gradient; 0 means no clipping.
    public var gradientClip = 1.0

    public init() {}

    public init(_ plan: FederationPlan) {
        batchSize = plan.batchSize
        binLength = plan.packing == .bestFit ? plan.sequenceLength : nil
        gradientAccumulation = plan.gradientAccumulation
        learningRate = plan.learningRate
        schedule = plan.schedule
        warmupSteps = plan.warmupSteps
        optimizer = plan.optimizer
        weightDecay = plan.weightDecay
        gradientClip = plan.gradientClip
    }

    /// - Throws: `Failure(.usage)` that names the option, its value and what is possible.
    public func validate(steps: Int, sequenceLength: Int) throws(Failure) {
        try PlanBounds.steps.check(steps)
        try PlanBounds.checkStep(
            batchSize: batchSize, gradientAccumulation: gradientAccumulation, sequenceLength: sequenceLength,
            learningRate: learningRate, weightDecay: weightDecay, gradientClip: gradientClip)
        guard warmupSteps >= 0 && warmupSteps < steps else {
            throw Failure(.usage, "warmup-steps is \(warmupSteps): it is between 0 and \(steps - 1)")
        }
    }

    /// The bins of packed examples; nil where a batch is made of examples.
    public func packing(_ examples: [Example]) -> BestFitPacking? {
        binLength.map { BestFitPacking(lengths: examples.map(\.tokens.count), capacity: $0) }
    }

    public func schedule(totalSteps: Int) -> Schedule {
        Schedule(schedule, peak: learningRate, warmupSteps: warmupSteps, totalSteps: totalSteps)
    }
}
