/// How a client trains: the part of a plan that the training loop reads.

import Plan
import Primitives

public struct TrainingSettings: Sendable, Equatable {
    public var batchSize = 8
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
        gradientAccumulation = plan.gradientAccumulation
        learningRate = plan.learningRate
        schedule = plan.schedule
        warmupSteps = plan.warmupSteps
        optimizer = plan.optimizer
        weightDecay = plan.weightDecay
        gradientClip = plan.gradientClip
    }

    public func schedule(totalSteps: Int) -> Schedule {
        Schedule(schedule, peak: learningRate, warmupSteps: warmupSteps, totalSteps: totalSteps)
    }
}
