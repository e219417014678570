/// Records to examples of a classifier: the text with the tokenizer's own special tokens around it, and the label.

import Primitives
import Tokenizers

public struct LabelledEncoder: Sendable {
    private let tokenizer: Tokenizer
    private let labels: LabelSet
    private let field: String
    private let sequenceLength: Int
    private let vocabularySize: Int

    /// - Parameters:
    ///   - field: of the records, that holds the label
    ///   - sequenceLength: longer texts are cut on the right, before the special tokens that end them
    ///   - vocabularySize: of the model; a token beyond it is an error
    public init(
        tokenizer: Tokenizer, labels: LabelSet, field: String, sequenceLength: Int, vocabularySize: Int
    ) throws(Failure) {
        let special = tokenizer.prefixTokens.count + tokenizer.suffixTokens.count
        guard sequenceLength > special else {
            throw Failure(
                .usage,
                "the sequence length \(sequenceLength) has no room beside the \(special) special tokens of a text: use at least \(special + 1)"
            )
        }
        self.tokenizer = tokenizer
        self.labels = labels
        self.field = field
        self.sequenceLength = sequenceLength
        self.vocabularySize = vocabularySize
    }

    /// - Throws: a failure that names the file and the line of a record without a text, or whose label is unknown
    public func encode(_ records: [Record]) throws(Failure) -> EncodedData {
        var examples: [Example] = []
        var cutCount = 0
        examples.reserveCapacity(records.count)
        for record in records {
            guard case .text(let text) = record.content else {
                throw Failure(
                    .badData,
                    "\(record.place): a record to classify needs a text and a label, not \(record.kind): name the text's field with --text-field"
                )
            }
            let label = try labels.index(of: record, field: field)
            var words = tokenizer.encode(text, addSpecialTokens: false)
            let room = sequenceLength - tokenizer.prefixTokens.count - tokenizer.suffixTokens.count
            if words.count > room {
                cutCount += 1
                words.removeLast(words.count - room)
            }
            let tokens = tokenizer.prefixTokens + words + tokenizer.suffixTokens
            guard !tokens.isEmpty else {
                throw Failure(.badData, "\(record.place): the text has no token: a classifier reads at least one")
            }
            if let token = tokens.first(where: { $0 < 0 || Int($0) >= vocabularySize }) {
                throw Failure(
                    .badData,
                    "\(record.place): the text holds the token \(token), and the model's vocabulary ends at \(vocabularySize - 1); "
                        + "does \(tokenizer.path) belong to this model?")
            }
            examples.append(
                Example(
                    tokens: tokens, targets: [Bool](repeating: false, count: tokens.count), prompt: [], completion: nil,
                    label: label, line: record.line))
        }
        return EncodedData(examples: examples, cutCount: cutCount, dividedCount: 0, droppedCount: 0)
    }
}
