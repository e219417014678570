/// Text as it is generated, token by token: nothing is shown before its UTF-8 is complete.

public struct StreamingDecoder: Sendable {
    private let tokenizer: Tokenizer
    private let skipsSpecialTokens: Bool
    /// Tokens whose text is shown but gives the next ones their context, then those not yet shown.
    private var tokens: [Int32] = []
    private var shownCount = 0

    public init(_ tokenizer: Tokenizer, skipSpecialTokens: Bool = true) {
        self.tokenizer = tokenizer
        skipsSpecialTokens = skipSpecialTokens
    }

    /// The text that this token completes; often all of it, sometimes nothing.
    public mutating func append(_ token: Int32) -> String {
        tokens.append(token)
        let text = tokenizer.decode(tokens, skipSpecialTokens: skipsSpecialTokens)
        // U+FFFD at the end: a character of which some bytes are still to come.
        if text.unicodeScalars.last == "\u{FFFD}" { return "" }
        return show(text)
    }

    /// What is left at the end, complete or not.
    public mutating func finish() -> String {
        show(tokenizer.decode(tokens, skipSpecialTokens: skipsSpecialTokens))
    }

    private mutating func show(_ text: String) -> String {
        let shown = tokenizer.decode(Array(tokens.prefix(shownCount)), skipSpecialTokens: skipsSpecialTokens)
        let new = String(String.UnicodeScalarView(text.unicodeScalars.dropFirst(shown.unicodeScalars.count)))
        // What was new is the context of what follows: a decoder may treat the first token of a text differently.
        // A token without text cannot serve as context, so that it keeps the one before.
        if !new.isEmpty {
            tokens.removeFirst(shownCount)
            shownCount = tokens.count
        } else {
            shownCount = tokens.count
        }
        return new
    }
}
