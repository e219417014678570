/// A conversation to tokens and targets: special tokens come from the template only, and targets are the answers with
/// the token that ends each.

import Primitives

public struct EncodedChat: Equatable, Sendable {
    public let tokens: [Int32]
    /// targets[t]: token t is to be learnt.
    public let targets: [Bool]
    /// How many tokens lead up to the last answer: the prompt for generating it. All of them without an answer.
    public let promptCount: Int
}

public struct ChatEncoder: Sendable {
    public let template: ChatTemplate
    private let tokenizer: Tokenizer

    /// - Throws: a failure if the tokenizer lacks a token that the template needs.
    public init(template: ChatTemplate, tokenizer: Tokenizer) throws(Failure) {
        self.template = template
        self.tokenizer = tokenizer
        let probe = [ChatMessage(role: "user", content: ""), ChatMessage(role: "assistant", content: "")]
        for part in ((try? template.turns(probe)) ?? []).joined() {
            if case .special(let content, _) = part, tokenizer.tokenID(content) == nil {
                throw Failure(
                    .badData,
                    "\(tokenizer.path): the chat template \(template.name) needs the token \(content), which this tokenizer lacks; "
                        + "choose another with --chat-template")
            }
        }
    }

    public func encode(_ messages: [ChatMessage]) throws(ChatTemplateError) -> EncodedChat {
        var tokens: [Int32] = []
        var targets: [Bool] = []
        var promptCount: Int?
        // The text since the last special token: what is no target, then what is.
        var (lead, answer) = ("", "")
        func flush(_ isAnswer: Bool) {
            let before = tokenizer.encode(lead, addSpecialTokens: false, findsSpecialTokens: false)
            var whole = tokenizer.encode(lead + answer, addSpecialTokens: false, findsSpecialTokens: false)
            // Encoded as one text, unless a token would reach from the template's text into the answer.
            if !whole.starts(with: before) {
                whole = before + tokenizer.encode(answer, addSpecialTokens: false, findsSpecialTokens: false)
            }
            if isAnswer { promptCount = tokens.count + before.count }
            tokens += whole
            targets += whole.indices.map { isAnswer && $0 >= before.count }
            (lead, answer) = ("", "")
        }
        for turn in try template.turns(messages) {
            for part in turn {
                switch part {
                case .text(let text, let isTarget):
                    if isTarget { answer += text } else { lead += text }
                case .special(let content, let isTarget):
                    flush(isTarget)
                    tokens.append(tokenizer.tokenID(content) ?? 0)  // known to exist since init
                    targets.append(isTarget)
                }
            }
            flush(false)
        }
        return EncodedChat(tokens: tokens, targets: targets, promptCount: promptCount ?? tokens.count)
    }

    /// The tokens that ask for an answer to these messages: everything up to where it would start.
    public func prompt(_ messages: [ChatMessage]) throws(ChatTemplateError) -> [Int32] {
        let encoded = try encode(messages + [ChatMessage(role: "assistant", content: "")])
        return Array(encoded.tokens.prefix(encoded.promptCount))
    }
}
