/// How well a model predicts a data set, and how often what it writes or tells is right.

import Checkpoints
import Datasets
import Glibc
import Model
import Plan
import Primitives
import Tokenizers

public struct EvaluationOutcome: Sendable, Equatable {
    /// Sum of nats over all target tokens, or over all examples of a classifier.
    public let lossSum: Double
    public let targetTokens: Int
    public let examples: Int
    /// Examples whose completion was written exactly; nil if it was not asked for.
    public let exactMatches: Int?
    /// A classifier's; nil for a causal model.
    public let labelCounts: LabelCounts?

    public init(lossSum: Double, targetTokens: Int, examples: Int, exactMatches: Int?, labelCounts: LabelCounts? = nil) {
        self.lossSum = lossSum
        self.targetTokens = targetTokens
        self.examples = examples
        self.exactMatches = exactMatches
        self.labelCounts = labelCounts
    }

    /// Mean nats per target token, or per example of a classifier.
    public var loss: Double { targetTokens > 0 ? lossSum / Double(targetTokens) : 0 }
    public var perplexity: Double { exp(loss) }
    /// The share of examples written exactly.
    public var exactMatch: Double? { exactMatches.map { examples > 0 ? Double($0) / Double(examples) : 0 } }
}

/// What counts as an exact match.
public struct ExactMatch: Sendable, Equatable {
    /// Greedy decoding goes on for at most this many tokens.
    public let maximumTokens: Int
    /// If not empty, only what follows its first occurrence is compared.
    public let marker: String

    public init(maximumTokens: Int, marker: String = "") {
        self.maximumTokens = maximumTokens
        self.marker = marker
    }

    public func isMatch(_ written: String, _ wanted: String) -> Bool {
        guard !marker.isEmpty else { return trim(written) == trim(wanted) }
        guard let written = following(written), let wanted = following(wanted) else { return false }
        return trim(written) == trim(wanted)
    }

    /// What stands after the first marker; nil without one.
    private func following(_ text: String) -> Substring? {
        var rest = text[...]
        while !rest.isEmpty {
            if rest.hasPrefix(marker) { return rest.dropFirst(marker.count) }
            rest = rest.dropFirst()
        }
        return nil
    }

    private func trim(_ text: some StringProtocol) -> [Character] {
        let characters = Array(text)
        let start = characters.firstIndex { !$0.isWhitespace } ?? characters.endIndex
        let end = characters.lastIndex { !$0.isWhitespace } ?? start
        return start < characters.endIndex ? Array(characters[start...end]) : []
    }
}

public enum Evaluation {
    /// Tokens of one batch, unless a single example has more: enough for full speed, little memory.
    static let batchTokens = 2048

    /// Evaluates the examples in their order.
    ///
    /// - Parameters:
    ///   - exactMatch: also lets the model write each completion; nil leaves it out
    ///   - tokenizer: of the model; needed for exact match only
    ///   - endTokens: end what the model writes; nil takes the model configuration's
    ///   - progress: called with the examples done and their number, twice over with exact match; false stops with an
    ///     error
    public static func evaluate(
        model: AdaptedModel, examples: [Example], exactMatch: ExactMatch? = nil, tokenizer: Tokenizer? = nil,
        endTokens: [Int]? = nil, progress: (_ done: Int, _ count: Int) -> Bool = { _, _ in true }
    ) throws(Failure) -> EvaluationOutcome {
        guard !examples.isEmpty else { throw Failure(.badData, "there is no example to evaluate") }
        let stopped = Failure(.interrupted, "the evaluation was stopped; nothing was kept")
        if case .classify(let labelCount) = model.model.task {
            precondition(exactMatch == nil, "a classifier writes nothing")
            return try classify(model, examples, labelCount: labelCount) { done throws(Failure) in
                guard progress(done, examples.count) else { throw stopped }
            }
        }
        let count = exactMatch == nil ? examples.count : 2 * examples.count
        var (lossSum, targets) = (0.0, 0)
        for batch in batches(examples) {
            for part in try model.loss(TokenBatch(examples[batch])) {
                lossSum += part.loss
                targets += part.targets
            }
            guard progress(batch.upperBound, count) else { throw stopped }
        }
        try check(lossSum)
        guard let exactMatch else {
            return EvaluationOutcome(lossSum: lossSum, targetTokens: targets, examples: examples.count, exactMatches: nil)
        }
        guard let tokenizer else { preconditionFailure("exact match needs the tokenizer") }
        let endTokens = endTokens ?? model.model.configuration.endTokens
        let positions = model.model.configuration.maximumPositions
        var matches = 0
        for (index, example) in examples.enumerated() {
            guard let completion = example.completion, !example.prompt.isEmpty else {
                throw Failure(
                    .badData,
                    "--exact-match needs a prompt and a completion in every record, but the one on line \(example.line) has only text; leave --exact-match out"
                )
            }
            if example.prompt.count < positions {
                let written = try Generation.generate(
                    model: model, prompt: example.prompt, maximumTokens: exactMatch.maximumTokens, endTokens: endTokens,
                    generator: SeededGenerator(seed: 0, purpose: "greedy")
                ).tokens
                if exactMatch.isMatch(tokenizer.decode(written, skipSpecialTokens: true), completion) { matches += 1 }
            }
            guard progress(examples.count + index + 1, count) else { throw stopped }
        }
        return EvaluationOutcome(lossSum: lossSum, targetTokens: targets, examples: examples.count, exactMatches: matches)
    }

    /// Ranges of examples that are read at once.
    private static func batches(_ examples: [Example]) -> [Range<Int>] {
        var all: [Range<Int>] = []
        var start = 0
        while start < examples.count {
            var end = start
            var tokens = 0
            while end < examples.count, end == start || tokens + examples[end].tokens.count <= batchTokens {
                tokens += examples[end].tokens.count
                end += 1
            }
            all.append(start..<end)
            start = end
        }
        return all
    }

    private static func check(_ lossSum: Double) throws(Failure) {
        guard lossSum.isFinite else {
            throw Failure(.badData, "the loss is \(lossSum): the adapter or the base holds values that are out of range")
        }
    }

    /// Loss and label of each example from its logits; of equal logits the first label.
    private static func classify(
        _ model: AdaptedModel, _ examples: [Example], labelCount: Int, progress: (_ done: Int) throws(Failure) -> Void
    ) throws(Failure) -> EvaluationOutcome {
        var counts = LabelCounts(labelCount: labelCount)
        var lossSum = 0.0
        for batch in batches(examples) {
            let logits = try model.classLogits(TokenBatch(examples[batch]))
            for (row, example) in examples[batch].enumerated() {
                guard let label = example.label, (0..<labelCount).contains(Int(label)) else {
                    throw Failure(.badData, "the example on line \(example.line) has no label: name its field with --label-field")
                }
                let values = logits[row * labelCount..<(row + 1) * labelCount].map(Double.init)
                var best = 0
                for index in values.indices where values[index] > values[best] { best = index }
                lossSum += log(values.reduce(0) { $0 + exp($1 - values[best]) }) + values[best] - values[Int(label)]
                counts.add(predicted: best, actual: Int(label))
            }
            try progress(batch.upperBound)
        }
        try check(lossSum)
        return EvaluationOutcome(
            lossSum: lossSum, targetTokens: examples.count, examples: examples.count, exactMatches: nil, labelCounts: counts)
    }
}
