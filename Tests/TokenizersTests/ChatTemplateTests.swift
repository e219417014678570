/// Chat templates: what they write, what of it is learnt, and how a model's own is recognised.

import FoundationEssentials
import Primitives
import TestSupport
import Testing
import Tokenizers

private let conversation = [
    ChatMessage(role: "user", content: "Hi there"), ChatMessage(role: "assistant", content: "Hello!"),
    ChatMessage(role: "user", content: "Bye"), ChatMessage(role: "assistant", content: " See you "),
]

/// The golden byte-level tokenizer with the special tokens of a model family.
private func tokenizer(_ specials: [String]) throws -> Tokenizer {
    let path = Golden.path("tokenizers/bpe-gpt2/tokenizer.json")
    var file = try JSONValue(parsing: try #require(FileManager.default.contents(atPath: path)))
    let first = try Tokenizer(path: path).vocabularySize
    file.set(
        "added_tokens",
        .array(
            specials.enumerated().map { index, content in
                .object([
                    .init("id", .integer(first + index)), .init("content", .string(content)), .init("special", .boolean(true)),
                ])
            }))
    return try Tokenizer(bytes: Array(file.compact.utf8), path: "tokenizer.json")
}

private let chatML = ["<|im_start|>", "<|im_end|>"]
private let llama3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

private func encoded(
    _ name: String, _ specials: [String], _ messages: [ChatMessage]
) throws -> (text: String, learnt: String, prompt: String) {
    let tokenizer = try tokenizer(specials)
    let chat = try ChatEncoder(template: .named(name), tokenizer: tokenizer).encode(messages)
    let learnt = zip(chat.tokens, chat.targets).filter { $0.1 }.map(\.0)
    return (
        tokenizer.decode(chat.tokens, skipSpecialTokens: false), tokenizer.decode(learnt, skipSpecialTokens: false),
        tokenizer.decode(Array(chat.tokens.prefix(chat.promptCount)), skipSpecialTokens: false)
    )
}

@Suite struct ChatTemplateTests {
    @Test func `ChatML learns the answers and the token after each`() throws {
        let (text, learnt, prompt) = try encoded("chatml", chatML, conversation)
        #expect(
            text == "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
                + "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n See you <|im_end|>\n")
        #expect(learnt == "Hello!<|im_end|> See you <|im_end|>")
        #expect(prompt == text.replacing(" See you <|im_end|>\n", with: ""))
    }

    @Test func `a model family's standard system turn stands where a conversation has none`() throws {
        #expect(
            try encoded("smollm2", chatML, conversation).text.hasPrefix(
                "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
            ))
        let own = [ChatMessage(role: "system", content: "Be brief.")] + conversation
        #expect(try encoded("qwen2.5", chatML, own).text.hasPrefix("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"))
    }

    @Test func `Llama 3 trims contents and starts with its begin token`() throws {
        let (text, learnt, _) = try encoded("llama3", llama3, conversation)
        #expect(
            text == "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
                + "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
                + "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
                + "<|start_header_id|>assistant<|end_header_id|>\n\nSee you<|eot_id|>")
        #expect(learnt == "Hello!<|eot_id|>See you<|eot_id|>")
        #expect(
            try encoded("llama3.1", llama3, conversation).text.hasPrefix(
                "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
                    + "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"))
    }

    @Test func `Qwen 3 keeps thoughts only in the last answer`() throws {
        let messages = [
            conversation[0], ChatMessage(role: "assistant", content: "<think>\nhm\n</think>\n\nHello!"), conversation[2],
            ChatMessage(role: "assistant", content: "<think>\nwell\n</think>\n\nSee you"),
        ]
        let thinking = try encoded("qwen3", chatML, messages)
        #expect(thinking.text.contains("<|im_start|>assistant\nHello!<|im_end|>\n"))
        #expect(thinking.learnt == "Hello!<|im_end|><think>\nwell\n</think>\n\nSee you<|im_end|>")
        let plain = try encoded("qwen3", chatML, conversation)
        #expect(plain.text.hasSuffix("<|im_start|>assistant\n<think>\n\n</think>\n\n See you <|im_end|>\n"))
        #expect(plain.learnt == "Hello!<|im_end|> See you <|im_end|>")
    }

    @Test func `contents never become special tokens`() throws {
        let tokenizer = try tokenizer(chatML)
        let chat = try ChatEncoder(template: .named("chatml"), tokenizer: tokenizer)
            .encode([ChatMessage(role: "user", content: "<|im_end|>"), ChatMessage(role: "assistant", content: "<|im_start|>")])
        #expect(chat.tokens.count { tokenizer.isSpecial($0) } == 4)
    }

    @Test func `an answer that starts with a line break keeps its own tokens`() throws {
        let tokenizer = try tokenizer(chatML)
        let chat = try ChatEncoder(template: .named("chatml"), tokenizer: tokenizer)
            .encode([ChatMessage(role: "assistant", content: "\n\nHello")])
        let learnt = zip(chat.tokens, chat.targets).filter { $0.1 }.map(\.0)
        #expect(tokenizer.decode(learnt, skipSpecialTokens: true) == "\n\nHello")
    }

    @Test func `a tokenizer without the template's tokens is refused by name`() throws {
        let tokenizer = try tokenizer(chatML)
        let failure = #expect(throws: Failure.self) { try ChatEncoder(template: .named("llama3"), tokenizer: tokenizer) }
        #expect(failure?.message.contains("<|begin_of_text|>") == true)
        #expect(throws: Failure.self) { try ChatTemplate.named("alpaca") }
    }

    @Test func `roles that a template has no place for are refused`() throws {
        let encoder = try ChatEncoder(template: .named("qwen2.5"), tokenizer: tokenizer(chatML))
        #expect(throws: ChatTemplateError.self) { try encoder.encode([ChatMessage(role: "tool", content: "{}")]) }
    }

    @Test func `a model's own template is recognised by what only it contains`() {
        func name(_ jinja: String) -> String? { ChatTemplate(recognising: jinja)?.name }
        let turn = #"{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"#
        func first(_ system: String) -> String {
            "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n\(system)<|im_end|>\\n' }}{% endif %}"
        }
        #expect(name("{% for message in messages %}\(turn){% endfor %}") == "chatml")
        #expect(
            name("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}")
                == "chatml")
        #expect(name(first("You are a helpful AI assistant named SmolLM, trained by Hugging Face") + turn) == "smollm2")
        #expect(name(first("You are a helpful assistant.") + turn) == "qwen2")
        #expect(name(first("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.") + turn) == "qwen2.5")
        #expect(name(first("Talk like a pirate.") + turn) == nil)
        #expect(
            name(
                #"{%- if loop.index0 > ns.last_query_index %}{%- if loop.last or (not loop.last and reasoning_content) %}<think>"#
                    + #"{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}"#) == "qwen3")
        let header =
            #"'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>'"#
        #expect(name("{% set content = \(header) %}") == "llama3")
        #expect(name(#"{{- "Cutting Knowledge Date: December 2023\n" }}{{- \#(header) }}"#) == "llama3.1")
        #expect(name("[INST] {{ message['content'] }} [/INST]") == nil)
    }
}
