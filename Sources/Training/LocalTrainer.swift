/// The training loop: some steps of a schedule on one client's examples.

import Adapters
import Datasets
import Model
import Primitives

extension TokenBatch {
    /// The examples one after another, without padding.
    public init(_ examples: some Sequence<Example>) {
        var tokens: [Int32] = []
        var targets: [Bool] = []
        var starts = [0]
        for example in examples {
            tokens.append(contentsOf: example.tokens)
            targets.append(contentsOf: example.targets)
            starts.append(tokens.count)
        }
        self.init(tokens: tokens, starts: starts, targets: targets)
    }
}

/// What is known after a step.
public struct TrainingProgress: Sendable {
    /// Counted over the whole federation.
    public let step: Int
    /// Steps done and to be done in this call.
    public let done: Int
    public let count: Int
    /// Mean nats per target token of this step.
    public let loss: Double
    public let gradientNorm: Double
    public let learningRate: Double
    /// All tokens that the model read, over the time since this call began.
    public let tokensPerSecond: Double
}

/// What training leaves behind.
public struct TrainingOutcome: Sendable {
    public let weights: AdapterWeights
    /// Mean nats per target token over all steps.
    public let meanLoss: Double
    public let targetTokens: Int
    /// All tokens that the model read.
    public let tokens: Int
    /// Fewer than asked for if the progress call said to stop.
    public let steps: Int
    /// Mean loss of each step.
    public let losses: [Double]
}

public enum LocalTrainer {
    /// Trains `model.weights.trained` on `examples`; the model holds the new weights afterwards.
    ///
    /// The loss of a step is the mean over all its target tokens, gradient accumulation included.
    /// - Parameters:
    ///   - stepRange: indices in the schedule: round x local steps onwards
    ///   - totalSteps: of the schedule, over all rounds
    ///   - generator: draws the order of the examples; for the purpose "batches", by round, attempt and client
    ///   - progress: called after each step; false ends the training there
    /// - Throws: `Failure` if the loss or the gradient is no longer finite.
    public static func train(
        model: AdaptedModel, examples: [Example], settings: TrainingSettings, stepRange: Range<Int>, totalSteps: Int,
        generator: SeededGenerator, progress: (TrainingProgress) -> Bool = { _ in true }
    ) throws(Failure) -> TrainingOutcome {
        guard !examples.isEmpty else { throw Failure(.badData, "there is no example to train on") }
        let schedule = settings.schedule(totalSteps: totalSteps)
        var weights = model.weights
        let count = weights.trained.values.count
        var optimizer = Optimizer(settings.optimizer, count: count, weightDecay: settings.weightDecay)
        var order = BatchOrder(count: examples.count, generator: generator)
        var gradient = [Float](repeating: 0, count: count)
        var losses: [Double] = []
        var (lossSum, targetSum, tokenSum) = (0.0, 0, 0)
        let clock = ContinuousClock()
        let began = clock.now

        for step in stepRange {
            let batches = (0..<settings.gradientAccumulation).map { _ in
                TokenBatch(order.next(settings.batchSize).map { examples[$0] })
            }
            let targets = batches.reduce(0) { $0 + $1.targets.count { $0 } }
            guard targets > 0 else { throw Failure(.badData, "the examples of step \(step + 1) hold no target token") }
            for index in gradient.indices { gradient[index] = 0 }
            var loss = 0.0
            for batch in batches {
                loss += try model.lossAndGradient(batch, gradientScale: 1 / Float(targets), gradient: &gradient).loss
                tokenSum += batch.tokens.count
            }
            let size = clip(&gradient, limit: settings.gradientClip)
            guard loss.isFinite, size.isFinite else {
                throw Failure(
                    .badData,
                    "training went out of range in step \(step + 1): the loss is \(loss / Double(targets)), the gradient's norm \(size); lower --learning-rate"
                )
            }
            let rate = schedule.rate(step)
            optimizer.step(&weights.trained.values, gradient: gradient, learningRate: rate)
            try model.load(weights)
            lossSum += loss
            targetSum += targets
            losses.append(loss / Double(targets))
            let seconds = (clock.now - began) / .seconds(1)
            let goesOn = progress(
                TrainingProgress(
                    step: step, done: losses.count, count: stepRange.count, loss: loss / Double(targets), gradientNorm: size,
                    learningRate: rate, tokensPerSecond: seconds > 0 ? Double(tokenSum) / seconds : 0))
            if !goesOn { break }
        }
        return TrainingOutcome(
            weights: weights, meanLoss: targetSum > 0 ? lossSum / Double(targetSum) : 0, targetTokens: targetSum,
            tokens: tokenSum,
            steps: losses.count, losses: losses)
    }
}
