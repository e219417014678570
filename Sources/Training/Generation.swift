/// Text written by the model, token by token.

import Checkpoints
import Glibc
import Model
import Primitives

/// How the next token is drawn.
public struct Sampling: Sendable, Equatable {
    /// 0 takes the likeliest token, the lower id of two equally likely ones.
    public var temperature: Double
    /// Only the likeliest tokens that together reach this probability are drawn (Holtzman et al. 2020, arXiv:1904.09751).
    public var topP: Double

    public static let greedy = Sampling(temperature: 0, topP: 1)

    public init(temperature: Double, topP: Double) {
        self.temperature = temperature
        self.topP = topP
    }

    /// - Throws: `Failure` that names the option and what is possible.
    public func validate() throws(Failure) {
        guard temperature.isFinite, temperature >= 0 else {
            throw Failure(.usage, "temperature is \(temperature): it is 0 (always the likeliest token) or more")
        }
        guard topP > 0, topP <= 1 else { throw Failure(.usage, "top-p is \(topP): it is above 0 and at most 1") }
    }

    public func draw(_ logits: [Float], _ generator: inout SeededGenerator) -> Int32 {
        var best = 0
        for (index, value) in logits.enumerated() where value > logits[best] { best = index }
        guard temperature > 0 else { return Int32(best) }
        let top = Double(logits[best])
        var shares = logits.map { exp((Double($0) - top) / temperature) }
        var order = Array(shares.indices)
        if topP < 1 {
            order.sort { shares[$0] != shares[$1] ? shares[$0] > shares[$1] : $0 < $1 }
            let wanted = topP * shares.reduce(0, +)
            var (sum, kept) = (0.0, 0)
            while kept < order.count, sum < wanted || kept == 0 {
                sum += shares[order[kept]]
                kept += 1
            }
            order.removeLast(order.count - kept)
            shares = order.map { shares[$0] }
        }
        var left = generator.unit() * shares.reduce(0, +)
        for (index, share) in shares.enumerated() {
            left -= share
            if left <= 0 { return Int32(order[index]) }
        }
        return Int32(order.last { _ in true } ?? best)
    }
}

public enum Generation {
    public enum End: Sendable, Equatable {
        /// The model wrote an end token, which is not among the result.
        case endToken
        case tokenLimit
        /// Prompt and text fill the model's positions.
        case positions
        /// The caller said to stop.
        case stopped
    }

    /// Continues `prompt`.
    ///
    /// - Parameters:
    ///   - endTokens: any of them ends the text
    ///   - onToken: called with each new token; false ends the text there
    /// - Throws: `Failure` if the prompt is empty or does not fit the model's positions, or a logit is not finite.
    public static func generate(
        model: AdaptedModel, prompt: [Int32], maximumTokens: Int, endTokens: [Int], sampling: Sampling = .greedy,
        generator: SeededGenerator, onToken: (Int32) -> Bool = { _ in true }
    ) throws(Failure) -> (tokens: [Int32], end: End) {
        let positions = model.model.configuration.maximumPositions
        guard !prompt.isEmpty else {
            throw Failure(.usage, "the prompt is empty: the model needs at least one token to go on from")
        }
        guard prompt.count < positions else {
            throw Failure(
                .usage, "the prompt has \(prompt.count) tokens, but the model has only \(positions) positions: shorten it")
        }
        var generator = generator
        var tokens: [Int32] = []
        guard maximumTokens > 0 else { return ([], .tokenLimit) }
        let decoder = model.makeDecoder()
        var logits = try decoder.prefill(prompt)
        while true {
            if let bad = logits.first(where: { !$0.isFinite }) {
                throw Failure(
                    .badData, "the model's logits hold \(bad): the adapter or the base holds values that are out of range")
            }
            let token = sampling.draw(logits, &generator)
            if endTokens.contains(Int(token)) { return (tokens, .endToken) }
            tokens.append(token)
            if !onToken(token) { return (tokens, .stopped) }
            if tokens.count == maximumTokens { return (tokens, .tokenLimit) }
            if prompt.count + tokens.count >= positions { return (tokens, .positions) }
            logits = try decoder.step(token)
        }
    }
}
