/// The range of every number of a plan: one table for plans that a person types and for plans that come over the wire.

import Primitives

/// The values of one key that can work.
public struct NumberBound: Sendable {
    /// As flags have it, without the dashes.
    public let name: String
    let lowest: Double
    /// Whether `lowest` itself is below the range.
    let isAboveLowest: Bool
    let highest: Double
    /// What a value below the range violates: "a run has at least 1 round".
    let meaning: String

    init(_ name: String, _ range: ClosedRange<Double>, isAboveLowest: Bool = false, _ meaning: String) {
        (self.name, lowest, highest, self.isAboveLowest, self.meaning) = (
            name, range.lowerBound, range.upperBound, isAboveLowest, meaning
        )
    }

    /// - Throws: `Failure(.usage)` that names the key, its value and what is possible
    public func check(_ value: Int) throws(Failure) { try check(Double(value), shown: "\(value)") }

    /// - Throws: `Failure(.usage)` that names the key, its value and what is possible
    public func check(_ value: Double) throws(Failure) { try check(value, shown: "\(value)") }

    private func check(_ value: Double, shown: String) throws(Failure) {
        guard value.isFinite, isAboveLowest ? value > lowest : value >= lowest else {
            throw Failure(.usage, "\(name) is \(shown): \(meaning)")
        }
        guard value <= highest else {
            let limit = highest < 0x1p53 ? "\(Int(highest))" : "\(highest)"
            throw Failure(.usage, "\(name) is \(shown): at most \(limit) is possible")
        }
    }
}

/// What no useful plan exceeds, and what still leaves every product of these numbers, and of what follows from them, in
/// range: a number from a flag, a file or a coordinator must not end a program.
public enum PlanBounds {
    /// Rounds, and steps of a round: their product still counts steps.
    public static let largestCount = 1_000_000
    private static let clients = 0...1e6
    /// Beyond 2^24 tokens, and 2^16 examples of a batch, sizes in bytes would come close to 2^63.
    private static let batch = 1...65_536.0

    static let rounds = NumberBound("rounds", 1...Double(largestCount), "a run has at least 1 round")
    static let minimumClients = NumberBound("min-clients", 1...clients.upperBound, "a run needs at least 1 client")
    static let clientsPerRound = NumberBound("clients-per-round", clients, "it is 0 (all) or more")
    static let quorum = NumberBound("quorum", clients, "it is 0 (all selected) or more")
    /// Ten years of 365 days.
    static let deadline = NumberBound("deadline", 0...315_360_000, isAboveLowest: true, "it is a positive number of seconds")

    /// Above the smaller side of every matrix, which is what limits ranks.
    static let rankCap = NumberBound("rank-cap", 1...131_072, "it is at least 1")
    /// Ranks of one run, as clients of flora have them.
    static let largestRankCount = 1024

    static let localSteps = NumberBound("local-steps", 1...Double(largestCount), "a client trains at least 1 step a round")
    /// Of training outside a federation, whose rounds are not told apart.
    public static let steps = NumberBound("steps", 1...1e12, "training takes at least 1 step")
    public static let batchSize = NumberBound("batch-size", batch, "a batch holds at least 1 example")
    public static let gradientAccumulation = NumberBound("gradient-accumulation", batch, "a step sums at least 1 batch")
    public static let sequenceLength = NumberBound(
        "sequence-length", 2...16_777_216, "a target needs a token before it, so at least 2")
    public static let learningRate = NumberBound("learning-rate", 0...1e6, isAboveLowest: true, "it is a positive number")
    public static let weightDecay = NumberBound("weight-decay", 0...1e6, "it is 0 or more")
    public static let gradientClip = NumberBound("gradient-clip", 0...1e12, "it is 0 (off) or more")

    static let epsilon = NumberBound("epsilon", 0...1e9, isAboveLowest: true, "it is a positive number")
    /// Above what an epsilon can ask for (`PrivacyAccountant.largestNoiseMultiplier`).
    static let noiseMultiplier = NumberBound("noise-multiplier", 0...1e7, isAboveLowest: true, "it is a positive number")
    static let clip = NumberBound("clip", 1e-9...1e6, "it is a positive number, at least 1e-09")
    static let clipLearningRate = NumberBound("clip-learning-rate", 0...10, isAboveLowest: true, "it is a positive number")
    static let clipCountNoise = NumberBound("clip-count-noise", 0...1e9, isAboveLowest: true, "it is a positive number")

    static let exactMatch = NumberBound("exact-match", 0...16_777_216, "it is a number of new tokens")

    /// What a step is made of, in a federation or outside.
    ///
    /// - Throws: `Failure(.usage)` that names the first key out of its range
    public static func checkStep(
        batchSize: Int, gradientAccumulation: Int, sequenceLength: Int, learningRate: Double, weightDecay: Double,
        gradientClip: Double
    ) throws(Failure) {
        try self.batchSize.check(batchSize)
        try self.gradientAccumulation.check(gradientAccumulation)
        try self.sequenceLength.check(sequenceLength)
        try self.learningRate.check(learningRate)
        try self.weightDecay.check(weightDecay)
        try self.gradientClip.check(gradientClip)
    }
}
