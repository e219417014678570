/// Records to examples: which tokens a record becomes, and which of them are targets.
///
/// - `text`: the tokenizer's own special tokens around it, then one end token unless it already ends in it; every token
///   after the first is a target.
/// - `prompt` and `completion`: the prompt with the special tokens that the tokenizer puts before a text, the
///   completion on its own, one end token; targets are the completion and the end token.
/// - `messages`: as the chat template says; targets are the answers and the token that ends each.

import Primitives
import Tokenizers

/// A data set ready for training or evaluation.
public struct EncodedData: Sendable {
    public let examples: [Example]
    /// How many of the examples lost tokens at their end because they were longer than the sequence length.
    public let cutCount: Int
    /// How many texts were divided into several examples.
    public let dividedCount: Int
    /// How many records have no target within the sequence length, and are not among the examples.
    public let droppedCount: Int

    public var targetCount: Int { examples.reduce(0) { $0 + $1.targetCount } }
}

public struct ExampleEncoder: Sendable {
    public let tokenizer: Tokenizer
    private let chat: ChatEncoder?
    private let endToken: Int32
    private let sequenceLength: Int
    private let dividesTexts: Bool
    private let vocabularySize: Int

    /// - Parameters:
    ///   - template: for records with messages; nil if the model has none
    ///   - endToken: ends texts and completions
    ///   - sequenceLength: longer examples are cut on the right
    ///   - dividesTexts: whether texts beyond that become several examples instead
    ///   - vocabularySize: of the model; a token beyond it is an error
    public init(
        tokenizer: Tokenizer, template: ChatTemplate?, endToken: Int32, sequenceLength: Int, dividesTexts: Bool = false,
        vocabularySize: Int
    ) throws(Failure) {
        guard sequenceLength >= 2 else {
            throw Failure(.usage, "the sequence length must be at least 2, not \(sequenceLength)")
        }
        self.tokenizer = tokenizer
        self.endToken = endToken
        self.sequenceLength = sequenceLength
        self.dividesTexts = dividesTexts
        self.vocabularySize = vocabularySize
        if let template { chat = try ChatEncoder(template: template, tokenizer: tokenizer) } else { chat = nil }
    }

    /// - Throws: a failure that names the file and the line of the record, also if no example is left.
    public func encode(_ records: [Record]) throws(Failure) -> EncodedData {
        var examples: [Example] = []
        var (cutCount, dividedCount, droppedCount) = (0, 0, 0)
        examples.reserveCapacity(records.count)
        for record in records {
            let whole = try encode(record)
            if let token = whole.tokens.first(where: { $0 < 0 || Int($0) >= vocabularySize }) {
                throw Failure(
                    .badData,
                    "\(record.place): the text holds the token \(token), and the model's vocabulary ends at \(vocabularySize - 1); "
                        + "does \(tokenizer.path) belong to this model?")
            }
            let isCut = whole.tokens.count > sequenceLength
            if isCut, dividesTexts, case .text = record.content {
                dividedCount += 1
                examples.append(contentsOf: divided(whole))
                continue
            }
            let targets = Array(whole.targets.prefix(sequenceLength))
            guard targets.contains(true) else {
                droppedCount += 1
                continue
            }
            if isCut { cutCount += 1 }
            examples.append(
                Example(
                    tokens: Array(whole.tokens.prefix(sequenceLength)), targets: targets, prompt: whole.prompt,
                    completion: whole.completion, line: whole.line))
        }
        guard !examples.isEmpty else {
            throw Failure(
                .badData,
                "\(records.first?.path ?? "the data set"): none of its \(records.count) records has anything to learn within "
                    + "\(sequenceLength) tokens; raise --sequence-length or look at the data")
        }
        return EncodedData(examples: examples, cutCount: cutCount, dividedCount: dividedCount, droppedCount: droppedCount)
    }

    /// A text in parts of the sequence length. Nothing stands before a part's first token, which is therefore no target; a last
    /// part of one token has none and is left out.
    private func divided(_ whole: Example) -> [Example] {
        stride(from: 0, to: whole.tokens.count - 1, by: sequenceLength).map { start in
            let tokens = Array(whole.tokens[start..<min(whole.tokens.count, start + sequenceLength)])
            return Example(
                tokens: tokens, targets: tokens.indices.map { $0 > 0 }, prompt: [], completion: nil, line: whole.line)
        }
    }

    /// One record, not cut.
    public func encode(_ record: Record) throws(Failure) -> Example {
        switch record.content {
        case .text(let text):
            var tokens = tokenizer.encode(text, addSpecialTokens: true)
            if tokens.last != endToken { tokens.append(endToken) }
            return Example(
                tokens: tokens, targets: tokens.indices.map { $0 > 0 }, prompt: [], completion: nil, line: record.line)
        case .completion(let prompt, let completion):
            let before = self.prompt(prompt)
            let tokens = before + tokenizer.encode(completion, addSpecialTokens: false) + [endToken]
            return Example(
                tokens: tokens, targets: tokens.indices.map { $0 > 0 && $0 >= before.count }, prompt: before,
                completion: completion, line: record.line)
        case .messages(let messages):
            guard let chat else {
                throw Failure(
                    .badData,
                    "\(record.place): the record has \"messages\", and the model has no chat template; name one with --chat-template"
                )
            }
            let encoded: EncodedChat
            do {
                encoded = try chat.encode(messages)
            } catch {
                throw Failure(.badData, "\(record.place): \(error.sentence)")
            }
            return Example(
                tokens: encoded.tokens, targets: zip(encoded.targets.indices, encoded.targets).map { $0 > 0 && $1 },
                prompt: Array(encoded.tokens.prefix(encoded.promptCount)),
                completion: messages.last { $0.role == "assistant" }?.content, line: record.line)
        }
    }

    /// A prompt as it stands before a completion: without the end or separator token that some tokenizers add.
    public func prompt(_ text: String) -> [Int32] {
        tokenizer.prefixTokens + tokenizer.encode(text, addSpecialTokens: false)
    }
}
