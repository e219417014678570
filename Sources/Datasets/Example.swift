/// One tokenized record: what a model reads, and which of it it is to predict.

public struct Example: Equatable, Sendable {
    public let tokens: [Int32]
    /// targets[t]: token t is predicted from the tokens before it and counts in the loss; never true for the first.
    public let targets: [Bool]
    /// What to give a model so that it writes the completion itself; empty for plain text.
    public let prompt: [Int32]
    /// What it should write then, nil for plain text.
    public let completion: String?
    /// Of the record in its file.
    public let line: Int

    public init(tokens: [Int32], targets: [Bool], prompt: [Int32], completion: String?, line: Int) {
        precondition(tokens.count == targets.count && targets.first != true, "targets belong to tokens after the first")
        self.tokens = tokens
        self.targets = targets
        self.prompt = prompt
        self.completion = completion
        self.line = line
    }

    /// How many tokens count in the loss.
    public var targetCount: Int { targets.count { $0 } }
}
