/// One tokenized record: what a model reads, and which of it it is to predict.

public struct Example: Equatable, Sendable {
    public let tokens: [Int32]
    /// targets[t]: token t is predicted from the tokens before it and counts in the loss; never true for the first, nor where
    /// there is a label.
    public let targets: [Bool]
    /// What to give a model so that it writes the completion itself; empty for plain text.
    public let prompt: [Int32]
    /// What it should write then, nil for plain text.
    public let completion: String?
    /// What a classifier is to tell, as its place among the labels; nil for a causal model.
    public let label: Int32?
    /// Of the record in its file.
    public let line: Int

    public init(
        tokens: [Int32], targets: [Bool], prompt: [Int32], completion: String?, label: Int32? = nil, line: Int
    ) {
        precondition(tokens.count == targets.count && targets.first != true, "targets belong to tokens after the first")
        self.tokens = tokens
        self.targets = targets
        self.prompt = prompt
        self.completion = completion
        self.label = label
        self.line = line
    }

    /// How many losses it has: its target tokens, or 1 for its label.
    public var targetCount: Int { label == nil ? targets.count { $0 } : 1 }
}
