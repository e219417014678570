/// What a plan's differential privacy comes to in numbers: noise multipliers, charges, rounds within the budget.

import Primitives
import Privacy

extension FederationPlan {
    /// Whether results on evaluation data may be told.
    public var allowsEvaluation: Bool { privacy == .none || publicEvaluation }

    /// Whether clients tell how many examples they have.
    public var tellsCounts: Bool { privacy == .none || publicCounts }

    // MARK: - Example level: each client for its own data

    /// The probability with which an example of a client that has so many takes part in a step.
    public func exampleSamplingRate(examples: Int) -> Double { min(1, Double(stepSize) / Double(max(1, examples))) }

    /// The noise multiplier of a client with so many examples: the plan's, or what the budget needs if the client takes
    /// part in every round, which is the worst case and not the average.
    ///
    /// - Throws: `Failure` if no noise meets the budget
    public func exampleNoiseMultiplier(examples: Int) throws(Failure) -> Double {
        if let noiseMultiplier { return noiseMultiplier }
        guard let epsilon else { throw Failure(.internalError, "the plan has neither epsilon nor a noise multiplier") }
        return try PrivacyAccountant.noiseMultiplier(
            samplingRate: exampleSamplingRate(examples: examples), steps: totalSteps, epsilon: epsilon, delta: delta)
    }

    // MARK: - Client level: the coordinator for everybody

    /// The denominator of a round's sum, fixed before the first round: how many clients take part on average.
    public var expectedClients: Double { clientSamplingRate * Double(minimumClients) }

    /// What some rounds cost a client, whether or not it was drawn in them.
    public func clientCharge(rounds: Int) -> PrivacyCharge {
        PrivacyCharge(samplingRate: clientSamplingRate, noiseMultiplier: noiseMultiplier ?? 0, steps: rounds)
    }

    /// Epsilon spent after so many rounds; nil where the coordinator keeps no budget.
    public func clientEpsilon(afterRounds rounds: Int) -> Double? {
        guard privacy == .client else { return nil }
        return rounds == 0 ? 0 : PrivacyAccountant.epsilon(of: [clientCharge(rounds: rounds)], delta: delta)
    }

    /// The rounds that the budget allows, at most the planned ones.
    public var roundsWithinBudget: Int {
        guard privacy == .client, let epsilon else { return rounds }
        func fits(_ count: Int) -> Bool { (clientEpsilon(afterRounds: count) ?? 0) <= epsilon }
        if fits(rounds) { return rounds }
        var (low, high) = (0, rounds)
        while high - low > 1 {
            let middle = (low + high) / 2
            if fits(middle) { low = middle } else { high = middle }
        }
        return low
    }

    /// How the clip follows the norms of updates, and the share of the noise multiplier that this leaves to their sum.
    public struct ClipAdaptation: Sendable {
        public let quantile: Double
        public let rate: Double
        /// Standard deviation of the noise on the count of updates below the clip.
        public let countDeviation: Double
        /// Of the sum, over the clip.
        public let sumNoiseMultiplier: Double
    }

    /// How a round's noise is divided between the sum of updates and the count of those below the clip (Andrew et al. 2021,
    /// arXiv:1905.03871, theorem 1); nil where the clip is fixed.
    public func clipAdaptation() throws(Failure) -> ClipAdaptation? {
        guard let clipQuantile, let noiseMultiplier else { return nil }
        // The paper's twentieth is for hundreds of clients; among few, a count as noisy as this costs 3 % more noise.
        let deviation = clipCountNoise ?? max(expectedClients / 20, 2 * noiseMultiplier)
        return ClipAdaptation(
            quantile: clipQuantile, rate: clipLearningRate, countDeviation: deviation,
            sumNoiseMultiplier: try AdaptiveClipping.sumNoiseMultiplier(
                noiseMultiplier: noiseMultiplier, countDeviation: deviation))
    }

    /// Fills in the noise multiplier that the budget needs, where the coordinator adds the noise, and checks that at least one
    /// round can be afforded: done once, before a run is made.
    public mutating func settlePrivacy() throws(Failure) {
        guard privacy == .client else { return }
        if noiseMultiplier == nil, let epsilon {
            noiseMultiplier = try PrivacyAccountant.noiseMultiplier(
                samplingRate: clientSamplingRate, steps: rounds, epsilon: epsilon, delta: delta)
        }
        _ = try clipAdaptation()
        guard let whole = clientEpsilon(afterRounds: rounds), whole.isFinite else {
            throw Failure(
                .usage,
                "noise-multiplier \(noiseMultiplier ?? 0) gives no privacy that could be stated in a number: raise --noise-multiplier"
            )
        }
        if roundsWithinBudget == 0, let epsilon, let cost = clientEpsilon(afterRounds: 1) {
            throw Failure(
                .usage,
                "noise-multiplier \(noiseMultiplier ?? 0) costs epsilon \(cost) in the first round, above the budget of \(epsilon): raise --noise-multiplier, or leave it out to have it computed"
            )
        }
    }
}
