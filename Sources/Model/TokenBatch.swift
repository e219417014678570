/// Sequences of tokens, one after another without padding.

import Primitives

public struct TokenBatch: Sendable, Equatable {
    /// Tokens of all sequences.
    public var tokens: [Int32]
    /// Where each sequence begins, and at the end the number of tokens: one more entry than sequences.
    public var starts: [Int]
    /// `targets[t]`: token t is predicted from the ones before it in its sequence, and its loss counts. A sequence's
    /// first token is never predicted, whatever stands here.
    public var targets: [Bool]
    /// The label of each sequence, for a classifier; empty where there are none, as for a causal model.
    public var labels: [Int32]

    public init(tokens: [Int32], starts: [Int], targets: [Bool], labels: [Int32] = []) {
        precondition(tokens.count == targets.count, "\(tokens.count) tokens and \(targets.count) targets")
        precondition(
            labels.isEmpty || labels.count == starts.count - 1, "\(labels.count) labels of \(starts.count - 1) sequences")
        precondition(
            starts.first == 0 && starts.last == tokens.count && zip(starts, starts.dropFirst()).allSatisfy { $0 <= $1 },
            "starts must rise from 0 to the number of tokens")
        self.tokens = tokens
        self.starts = starts
        self.targets = targets
        self.labels = labels
    }

    /// Sequences with a label each, for a classifier; no token is a target.
    public init(tokens: [Int32], starts: [Int], labels: [Int32]) {
        self.init(
            tokens: tokens, starts: starts, targets: [Bool](repeating: false, count: tokens.count), labels: labels)
    }

    public var sequenceCount: Int { starts.count - 1 }

    /// The batch in parts of whole sequences, each of at most `count` tokens unless one sequence alone has more.
    func parts(ofTokens count: Int) -> [TokenBatch] {
        guard tokens.count > count, sequenceCount > 1 else { return [self] }
        var parts: [TokenBatch] = []
        var first = 0
        while first < sequenceCount {
            var last = first + 1
            while last < sequenceCount, starts[last + 1] - starts[first] <= count { last += 1 }
            let range = starts[first]..<starts[last]
            parts.append(
                TokenBatch(
                    tokens: Array(tokens[range]), starts: starts[first...last].map { $0 - range.lowerBound },
                    targets: Array(targets[range]), labels: labels.isEmpty ? [] : Array(labels[first..<last])))
            first = last
        }
        return parts
    }

    func sequence(_ index: Int) -> Range<Int> { starts[index]..<starts[index + 1] }

    /// Position of each token within its sequence.
    var positions: [Int32] {
        var positions = [Int32](repeating: 0, count: tokens.count)
        for index in 0..<sequenceCount {
            let range = sequence(index)
            for token in range { positions[token] = Int32(token - range.lowerBound) }
        }
        return positions
    }

    var longestSequence: Int { (0..<sequenceCount).map { sequence($0).count }.max() ?? 0 }
}

/// Refuses tokens outside the vocabulary.
func checkTokens(_ tokens: some Collection<Int32>, vocabulary: Int) throws(Failure) {
    guard let token = tokens.first(where: { $0 < 0 || Int($0) >= vocabulary }) else { return }
    throw Failure(
        .badData,
        "token \(token) is outside the model's vocabulary of \(vocabulary): the tokenizer does not belong to this model")
}

/// Refuses sequences beyond the model's positions.
func checkLength(_ count: Int, maximum: Int) throws(Failure) {
    guard count > maximum else { return }
    throw Failure(
        .badData, "a sequence has \(count) tokens, but the model has only \(maximum) positions; use a smaller sequence length")
}

/// Refuses sequences without a token, of which nothing can be said.
func checkNotEmpty(_ batch: TokenBatch) throws(Failure) {
    guard let index = (0..<batch.sequenceCount).first(where: { batch.sequence($0).isEmpty }) else { return }
    throw Failure(.badData, "sequence \(index) of the batch has no tokens: a classifier reads at least one")
}
