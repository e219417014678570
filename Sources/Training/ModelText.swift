/// What a model folder says about text: its tokenizer, its end tokens, its chat template.

import Checkpoints
import Datasets
import Primitives
import Tokenizers

public struct ModelText: Sendable {
    public let tokenizer: Tokenizer
    /// Ends texts and completions in training.
    public let endToken: Int32
    /// Any of them ends what the model writes.
    public let endTokens: [Int]
    private let configuration: TokenizerConfiguration
    private let templateName: String?
    private let vocabularySize: Int

    /// - Parameter chatTemplate: a known template's name; nil takes the model's own
    public init(checkpoint: CheckpointFolder, chatTemplate: String? = nil) throws(Failure) {
        guard let bytes = try checkpoint.companion("tokenizer.json") else { throw checkpoint.noTokenizer }
        tokenizer = try Tokenizer(bytes: bytes, path: checkpoint.companionPath("tokenizer.json"))
        if checkpoint.isGGUF {
            configuration = try TokenizerConfiguration(
                bytes: try checkpoint.companion("tokenizer_config.json") ?? Array("{}".utf8),
                path: checkpoint.companionPath("tokenizer_config.json"))
        } else {
            configuration = try TokenizerConfiguration(folder: checkpoint.path)
        }
        let configured = checkpoint.configuration.endTokens
        endToken = try configuration.endToken(tokenizer: tokenizer, configured: configured)
        endTokens = configured + (configured.contains(Int(endToken)) ? [] : [Int(endToken)])
        // A name that does not exist is an error even if no record needs a template.
        if let chatTemplate { _ = try ChatTemplate.named(chatTemplate) }
        templateName = chatTemplate
        vocabularySize = checkpoint.configuration.vocabularySize
    }

    /// The template for messages; nil if the model has none.
    /// - Throws: `Failure` if the model has one that Tributary does not know.
    public func template() throws(Failure) -> ChatTemplate? { try configuration.template(named: templateName) }

    /// Reads and tokenizes a data file.
    public func examples(path: String, sequenceLength: Int, dividesTexts: Bool = false) throws(Failure) -> EncodedData {
        try examples(try DataFile.read(path), sequenceLength: sequenceLength, dividesTexts: dividesTexts)
    }

    /// - Parameter dividesTexts: whether texts beyond the sequence length become several examples instead of being cut
    public func examples(
        _ records: [Record], sequenceLength: Int, dividesTexts: Bool = false
    ) throws(Failure) -> EncodedData {
        var needsTemplate = false
        for record in records {
            if case .messages = record.content { needsTemplate = true }
        }
        let encoder = try ExampleEncoder(
            tokenizer: tokenizer, template: needsTemplate ? try template() : nil, endToken: endToken,
            sequenceLength: sequenceLength, dividesTexts: dividesTexts, vocabularySize: vocabularySize)
        return try encoder.encode(records)
    }

    /// The tokens of a prompt that the model is to go on from: as text, or as a user's message.
    public func prompt(_ text: String, asMessage: Bool) throws(Failure) -> [Int32] {
        guard asMessage else { return tokenizer.prefixTokens + tokenizer.encode(text, addSpecialTokens: false) }
        guard let template = try template() else {
            throw Failure(.usage, "the model has no chat template; name one with --chat-template, or leave --chat out")
        }
        do {
            return try ChatEncoder(template: template, tokenizer: tokenizer).prompt([ChatMessage(role: "user", content: text)])
        } catch let error as ChatTemplateError {
            throw Failure(.usage, "the prompt does not fit the chat template: \(error.sentence)")
        } catch let error as Failure {
            throw error
        } catch {
            throw Failure(.internalError, "\(error)")
        }
    }
}
