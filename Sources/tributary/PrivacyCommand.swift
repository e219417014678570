/// `tributary privacy`: how much noise a privacy budget needs, or what a given noise costs.

import ArgumentParser
import Primitives
import Privacy
import Programs

struct PrivacyCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "privacy",
        abstract: "Plan differential privacy: the noise that meets an epsilon, or the epsilon of a given noise.",
        discussion: """
            Steps are releases of a sum of clipped terms, each taken with the sampling rate, with Gaussian noise (DP-SGD, DP-FedAvg); \
            neighbouring data differ by one term that is added or removed.
            """)

    @Option(help: "The budget: with it alone, the smallest noise multiplier that keeps to it is found.")
    var epsilon: Double?
    @Option(help: "The probability that the guarantee does without; well below 1 / examples.")
    var delta: Double
    @Option(
        help: ArgumentHelp("The probability with which a step takes each term, such as batch size / examples.", valueName: "rate")
    )
    var samplingRate: Double
    @Option(help: "How many steps there are.")
    var steps: Int
    @Option(
        help: ArgumentHelp(
            "The noise's standard deviation over the clipping norm: with it, its epsilon is said.", valueName: "multiplier"))
    var noiseMultiplier: Double?
    @OptionGroup var result: OutputOptions

    func run() throws {
        try require(
            samplingRate > 0 && samplingRate <= 1, "sampling-rate is \(samplingRate): give a number above 0 and at most 1")
        try require(steps > 0, "steps is \(steps): give at least 1")
        try require(delta > 0 && delta < 1, "delta is \(delta): give a number between 0 and 1, well below 1 / examples")
        if let epsilon {
            try require(epsilon > 0 && epsilon.isFinite, "epsilon is \(epsilon): give a positive number")
        }
        let noise: Double
        if let noiseMultiplier {
            try require(
                noiseMultiplier > 0 && noiseMultiplier.isFinite, "noise-multiplier is \(noiseMultiplier): give a positive number")
            noise = noiseMultiplier
        } else if let epsilon {
            noise = try PrivacyAccountant.noiseMultiplier(
                samplingRate: samplingRate, steps: steps, epsilon: epsilon, delta: delta)
        } else {
            throw Failure(
                .usage, "there is nothing to find: give --epsilon for the noise it needs, or --noise-multiplier for its epsilon")
        }
        let charge = PrivacyCharge(samplingRate: samplingRate, noiseMultiplier: noise, steps: steps)
        let renyi = PrivacyAccountant.renyiEpsilon(of: [charge], delta: delta)
        let losses = PrivacyAccountant.lossDistributionEpsilon(of: [charge], delta: delta)
        let spent = min(renyi, losses)
        let binding = losses <= renyi ? "pld" : "rdp"
        let isMet = epsilon.map { spent <= $0 }
        result.write([
            ("noise_multiplier", real(noise)), ("epsilon", real(spent)), ("epsilon_rdp", real(renyi)),
            ("epsilon_pld", real(losses)), ("bound", .string(binding)), ("target_epsilon", .optional(epsilon)),
            ("target_met", isMet.map(JSONValue.boolean) ?? .null), ("delta", real(delta)),
            ("sampling_rate", real(samplingRate)), ("steps", .integer(steps)),
        ]) {
            """
            noise multiplier \(Readable.decimal(noise, 4))
            epsilon          \(Readable.decimal(spent, 4)) at delta \(delta)\(verdict(isMet))
              by Renyi divergences          \(Readable.decimal(renyi, 4))\(binding == "rdp" ? "  <- binds" : "")
              by privacy loss distributions \(Readable.decimal(losses, 4))\(binding == "pld" ? "  <- binds" : "")

            """
        }
    }

    private func verdict(_ isMet: Bool?) -> String {
        guard let isMet, let epsilon, noiseMultiplier != nil else { return "" }
        return isMet ? ", within the budget of \(epsilon)" : ", above the budget of \(epsilon)"
    }
}
