/// What one use of private data costs: some steps of the Poisson-subsampled Gaussian mechanism.

/// `steps` releases of a sum whose terms were each taken with probability `samplingRate`, each clipped to a norm C, with
/// Gaussian noise of standard deviation `noiseMultiplier` x C on every value; under add/remove adjacency (Abadi et al. 2016,
/// arXiv:1607.00133).
public struct PrivacyCharge: Codable, Equatable, Hashable, Sendable {
    /// In (0, 1].
    public var samplingRate: Double
    /// Positive.
    public var noiseMultiplier: Double
    /// At least 0.
    public var steps: Int

    public init(samplingRate: Double, noiseMultiplier: Double, steps: Int) {
        self.samplingRate = samplingRate
        self.noiseMultiplier = noiseMultiplier
        self.steps = steps
    }

    /// True if all three are in their ranges. What is not gives no guarantee: its epsilon is infinite.
    public var isValid: Bool {
        samplingRate > 0 && samplingRate <= 1 && noiseMultiplier > 0 && noiseMultiplier < .infinity && steps >= 0
    }
}
