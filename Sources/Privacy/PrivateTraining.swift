/// Example-level differential privacy: what a client's steps draw, clip and add (DP-SGD, Abadi et al. 2016,
/// arXiv:1607.00133, algorithm 1).

import Primitives

/// How a client's training is made private. One record is one example; the neighbours are data sets with one example more
/// or less. A step is one `PrivacyCharge` of `samplingRate` and `noiseMultiplier`.
public struct PrivateTraining: Sendable, Equatable {
    /// The largest norm of one example's gradient, over all trained tensors together; the gradient is that of the mean loss
    /// over the example's own targets.
    public let clip: Double
    /// Standard deviation of the noise on the sum, in units of `clip`.
    public let noiseMultiplier: Double
    /// What the noised sum is divided by: fixed in the plan, whatever is drawn.
    public let expectedBatchSize: Int
    /// With this probability each example is part of a step, independently of the others.
    public let samplingRate: Double
    /// Draws and noise of step i are functions of this key and i alone. Two trainings that differ in anything, such as the
    /// weights that they start from, must have different keys; training again from the same start must have the same.
    public let key: NoiseKey

    /// - Throws: `Failure(.usage)` that names the value and what is possible
    public init(
        clip: Double, noiseMultiplier: Double, expectedBatchSize: Int, samplingRate: Double, key: NoiseKey
    ) throws(Failure) {
        guard clip.isFinite, clip > 0 else {
            throw Failure(.usage, "the clip is \(clip): the largest norm of an example's gradient is a positive number")
        }
        guard noiseMultiplier.isFinite, noiseMultiplier > 0 else {
            throw Failure(.usage, "the noise multiplier is \(noiseMultiplier): without positive noise nothing is private")
        }
        guard expectedBatchSize >= 1 else {
            throw Failure(.usage, "the expected batch size is \(expectedBatchSize): it is at least 1")
        }
        guard samplingRate > 0, samplingRate <= 1 else {
            throw Failure(.usage, "the sampling rate is \(samplingRate): it is above 0 and at most 1")
        }
        self.clip = clip
        self.noiseMultiplier = noiseMultiplier
        self.expectedBatchSize = expectedBatchSize
        self.samplingRate = samplingRate
        self.key = key
    }

    /// The indices of the examples of a step, ascending; there may be none.
    public func draw(of count: Int, step: Int) -> [Int] {
        var stream = NoiseStream(key: key.derived("sampling of step \(step)"))
        return (0..<count).filter { _ in stream.bernoulli(samplingRate) }
    }
}
