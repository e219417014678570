/// The training loop: some steps of a schedule on one client's examples.

import Adapters
import Datasets
import Model
import Primitives
import Privacy

extension TokenBatch {
    /// The examples one after another, without padding; with their labels if they have some.
    public init(_ examples: some Sequence<Example>) {
        var tokens: [Int32] = []
        var targets: [Bool] = []
        var starts = [0]
        var labels: [Int32] = []
        for example in examples {
            if let label = example.label { labels.append(label) }
            tokens.append(contentsOf: example.tokens)
            targets.append(contentsOf: example.targets)
            starts.append(tokens.count)
        }
        self.init(tokens: tokens, starts: starts, targets: targets, labels: labels)
    }
}

/// What is known after a step.
public struct TrainingProgress: Sendable {
    /// Counted over the whole federation.
    public let step: Int
    /// Steps done and to be done in this call.
    public let done: Int
    public let count: Int
    /// Mean nats per target token of this step; in private training the mean over its examples of theirs, which is for the
    /// client's own eyes, and not a number if none was drawn.
    public let loss: Double
    public let gradientNorm: Double
    public let learningRate: Double
    /// All tokens that the model read, over the time since this call began.
    public let tokensPerSecond: Double
}

/// What training leaves behind. After private training only the weights may leave the client: losses and counts are computed
/// from its data without noise.
public struct TrainingOutcome: Sendable {
    public let weights: AdapterWeights
    /// Mean nats per target token over all steps; in private training the mean over the examples that were drawn of theirs.
    public let meanLoss: Double
    public let targetTokens: Int
    /// All tokens that the model read.
    public let tokens: Int
    /// Fewer than asked for if the progress call said to stop.
    public let steps: Int
    /// Mean loss of each step.
    public let losses: [Double]
}

/// What is known of a step beside its gradient.
private struct StepResult {
    /// Sum of the losses, and what the mean is taken over: targets, or examples in private training.
    var loss = 0.0
    var count = 0
    var targets = 0
    var tokens = 0
}

public enum LocalTrainer {
    /// Trains `model.weights.trained` on `examples`; the model holds the new weights afterwards.
    ///
    /// The loss of a step is the mean over all its target tokens, gradient accumulation included. In private training each
    /// step draws its own examples, the gradient is the noised sum of clipped ones over the expected batch size,
    /// `settings.gradientClip` is not applied, `settings.batchSize` only bounds how many examples the model reads at once, and
    /// nothing is packed.
    /// - Parameters:
    ///   - stepRange: indices in the schedule: round x local steps onwards
    ///   - totalSteps: of the schedule, over all rounds
    ///   - generator: draws the order of the examples; for the purpose "batches", by round, attempt and client. Not used in
    ///     private training, whose draws are secret.
    ///   - privacy: nil for ordinary training
    ///   - progress: called after each step; false ends the training there
    /// - Throws: `Failure` if the loss or the gradient is no longer finite, or if a trained value is not.
    public static func train(
        model: AdaptedModel, examples: [Example], settings: TrainingSettings, stepRange: Range<Int>, totalSteps: Int,
        generator: SeededGenerator, privacy: PrivateTraining? = nil, progress: (TrainingProgress) -> Bool = { _ in true }
    ) throws(Failure) -> TrainingOutcome {
        guard !examples.isEmpty else { throw Failure(.badData, "there is no example to train on") }
        let schedule = settings.schedule(totalSteps: totalSteps)
        let layout = model.trainedLayout
        let count = layout.parameterCount
        var optimizer = Optimizer(
            settings.optimizer, tensorCounts: layout.tensors.map(\.count), weightDecay: settings.weightDecay)
        let bins = settings.packing(examples)?.bins
        var order = BatchOrder(count: bins?.count ?? examples.count, generator: generator)
        let clipped = privacy.map { ClippedSum(clip: $0.clip, parameterCount: count, batchSize: settings.batchSize) }
        var gradient = [Float](repeating: 0, count: count)
        var losses: [Double] = []
        var total = StepResult()
        let clock = ContinuousClock()
        let began = clock.now

        for step in stepRange {
            let result: StepResult
            let size: Double
            if let privacy, let clipped {
                result = try privateStep(step, examples, model: model, privacy: privacy, sum: clipped, gradient: &gradient)
                size = norm(gradient)
            } else {
                let batches = (0..<settings.gradientAccumulation).map { _ in
                    let drawn = order.next(settings.batchSize)
                    return TokenBatch((bins.map { bins in drawn.flatMap { bins[$0] } } ?? drawn).map { examples[$0] })
                }
                result = try ordinaryStep(step, batches, model: model, gradient: &gradient)
                size = clip(&gradient, limit: settings.gradientClip)
            }
            let loss = result.loss / Double(result.count)
            // Under privacy nothing that depends on the data may end the training; what is released is finite in any case.
            guard privacy != nil || result.loss.isFinite && size.isFinite else {
                throw Failure(
                    .badData,
                    "training went out of range in step \(step + 1): the loss is \(loss), the gradient's norm \(size); \(advice)"
                )
            }
            let rate = schedule.rate(step)
            model.withTrainedValues { optimizer.step($0, gradient: gradient, learningRate: rate) }
            total.loss += result.loss
            total.count += result.count
            total.targets += result.targets
            total.tokens += result.tokens
            losses.append(loss)
            let seconds = (clock.now - began) / .seconds(1)
            let goesOn = progress(
                TrainingProgress(
                    step: step, done: losses.count, count: stepRange.count, loss: loss, gradientNorm: size, learningRate: rate,
                    tokensPerSecond: seconds > 0 ? Double(total.tokens) / seconds : 0))
            if !goesOn { break }
        }
        // A step's loss tells of the values before it; nothing else tells of those after the last.
        var isFinite = true
        model.withTrainedValues { values in isFinite = values.allSatisfy(\.isFinite) }
        guard isFinite else {
            throw Failure(
                .badData,
                "training went out of range in step \(stepRange.lowerBound + losses.count): not all trained values are finite numbers after it; \(advice)"
            )
        }
        return TrainingOutcome(
            weights: model.weights, meanLoss: total.count > 0 ? total.loss / Double(total.count) : 0, targetTokens: total.targets,
            tokens: total.tokens, steps: losses.count, losses: losses)
    }

    /// Noise of differential privacy goes into the trained values, too, at the client or before it gets them.
    private static let advice = "lower --learning-rate, or the noise if there is any (--clip, --noise-multiplier)"

    /// The gradient of the mean loss over all targets of some batches.
    private static func ordinaryStep(
        _ step: Int, _ batches: [TokenBatch], model: AdaptedModel, gradient: inout [Float]
    ) throws(Failure) -> StepResult {
        // A classifier's targets are its texts.
        let targets = batches.reduce(0) { $0 + ($1.labels.isEmpty ? $1.targets.count { $0 } : $1.sequenceCount) }
        guard targets > 0 else { throw Failure(.badData, "the examples of step \(step + 1) hold no target token") }
        gradient.withUnsafeMutableBufferPointer { $0.update(repeating: 0) }
        var result = StepResult(count: targets, targets: targets)
        for batch in batches {
            result.loss += try model.lossAndGradient(batch, gradientScale: 1 / Float(targets), gradient: &gradient).loss
            result.tokens += batch.tokens.count
        }
        return result
    }

    /// The noised sum of the drawn examples' clipped gradients over the expected batch size.
    private static func privateStep(
        _ step: Int, _ examples: [Example], model: AdaptedModel, privacy: PrivateTraining, sum: ClippedSum,
        gradient: inout [Float]
    ) throws(Failure) -> StepResult {
        let drawn = privacy.draw(of: examples.count, step: step).map { examples[$0] }
        let losses = try sum.form(drawn, model: model)
        sum.release(privacy, step: step, into: &gradient)
        return StepResult(
            loss: losses.reduce(0, +), count: losses.count, targets: drawn.reduce(0) { $0 + $1.targetCount },
            tokens: drawn.reduce(0) { $0 + $1.tokens.count })
    }
}
