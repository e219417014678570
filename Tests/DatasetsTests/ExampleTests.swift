/// Records to examples: which tokens, and which of them are targets.

import Datasets
import FoundationEssentials
import Primitives
import TestSupport
import Testing
import Tokenizers

private func golden(_ name: String) throws -> Tokenizer { try Tokenizer(path: Golden.path("tokenizers/\(name)/tokenizer.json")) }

private func records(_ lines: String...) throws -> [Record] {
    try DataFile.read(Array(lines.joined(separator: "\n").utf8), path: "data.jsonl")
}

private func encoder(
    _ tokenizer: Tokenizer, length: Int = 64, template: String? = nil, vocabulary: Int? = nil
) throws -> ExampleEncoder {
    try ExampleEncoder(
        tokenizer: tokenizer, template: try template.map(ChatTemplate.named), endToken: 2, sequenceLength: length,
        vocabularySize: vocabulary ?? tokenizer.vocabularySize)
}

@Suite struct ExampleTests {
    @Test func `a text is learnt after its first token and gets one end token`() throws {
        let tokenizer = try golden("bpe-llama2-byte-fallback")
        let data = try encoder(tokenizer).encode(records(#"{"text": "Hello there"}"#, #"{"text": "Hello there</s>"}"#))
        let plain = tokenizer.encode("Hello there", addSpecialTokens: true)
        #expect(plain.first == 1)
        #expect(data.examples[0].tokens == plain + [2])
        #expect(data.examples[0].targets == [false] + Array(repeating: true, count: plain.count))
        // The second already ends in it.
        #expect(data.examples[1].tokens == plain + [2])
        #expect(data.examples[0].prompt.isEmpty && data.examples[0].completion == nil)
    }

    @Test func `a long text is divided where that is asked for, and other records are cut`() throws {
        let tokenizer = try golden("bpe-llama3")
        let text = "One and one are two, and two and two are four, and that is all there is to say."
        let texts = try records(#"{"text": "\#(text)"}"#, #"{"text": "One"}"#)
        let completions = try records(#"{"prompt": "One?", "completion": "\#(text)"}"#)
        let whole = tokenizer.encode(text, addSpecialTokens: true) + [2]
        for length in [4, 7, whole.count - 1, whole.count] {
            let encoder = try ExampleEncoder(
                tokenizer: tokenizer, template: nil, endToken: 2, sequenceLength: length, dividesTexts: true,
                vocabularySize: tokenizer.vocabularySize)
            let data = try encoder.encode(texts)
            let parts = data.examples.filter { $0.line == 1 }
            let tokens = parts.flatMap(\.tokens)
            #expect(tokens == Array(whole.prefix(tokens.count)) && whole.count - tokens.count <= 1)
            #expect(parts.dropLast().allSatisfy { $0.tokens.count == length })
            #expect(parts.allSatisfy { $0.targets == $0.tokens.indices.map { $0 > 0 } && $0.targetCount > 0 })
            #expect(data.dividedCount == (length < whole.count ? 1 : 0))
            #expect(data.cutCount == 0 && data.examples.count { $0.line == 2 } == 1)
            guard length >= 7 else { continue }
            let cut = try encoder.encode(completions)
            #expect(cut.examples.count == 1 && cut.dividedCount == 0 && cut.cutCount == 1)
        }
    }

    @Test func `of a prompt and a completion only the completion and the end are learnt`() throws {
        let tokenizer = try golden("bpe-llama3")
        let data = try encoder(tokenizer).encode(records(#"{"prompt": "One and one?", "completion": " Two."}"#))
        let prompt = tokenizer.encode("One and one?", addSpecialTokens: true)
        let completion = tokenizer.encode(" Two.", addSpecialTokens: false)
        let example = data.examples[0]
        #expect(example.tokens == prompt + completion + [2])
        #expect(example.targets == prompt.map { _ in false } + completion.map { _ in true } + [true])
        #expect(example.prompt == prompt)
        #expect(example.completion == " Two.")
        #expect(data.targetCount == completion.count + 1)
    }

    @Test func `an end or separator token that the tokenizer adds to a prompt is left out`() throws {
        let path = Golden.path("tokenizers/bpe-qwen2/tokenizer.json")
        var file = try JSONValue(parsing: try #require(FileManager.default.contents(atPath: path)))
        file.set(
            "post_processor",
            try JSONValue(
                parsing: (#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|im_start|>"}},{"Sequence":{"id":"A"}},"#
                    + #"{"SpecialToken":{"id":"<|im_end|>"}}],"special_tokens":{"<|im_start|>":{"ids":[1]},"<|im_end|>":{"ids":[2]}}}"#)
                    .utf8))
        let tokenizer = try Tokenizer(bytes: Array(file.compact.utf8), path: "t")
        #expect(tokenizer.encode("a", addSpecialTokens: true).last == 2)
        let examples = try encoder(tokenizer).encode(records(#"{"prompt": "a", "completion": "b"}"#)).examples
        #expect(
            examples[0].tokens == [1] + tokenizer.encode("a", addSpecialTokens: false)
                + tokenizer.encode("b", addSpecialTokens: false) + [2])
        // A text that the tokenizer ends itself gets no second end.
        let text = try encoder(tokenizer).encode(records(#"{"text": "a"}"#)).examples[0]
        #expect(text.tokens == tokenizer.encode("a", addSpecialTokens: true))
    }

    @Test func `an empty prompt without special tokens leaves nothing to predict the first token from`() throws {
        let tokenizer = try golden("bpe-gpt2")
        let example = try encoder(tokenizer).encode(records(#"{"prompt": "", "completion": "ab cd"}"#)).examples[0]
        #expect(example.targets.first == false)
        #expect(example.targets.dropFirst().allSatisfy { $0 })
    }

    @Test func `long examples are cut on the right, and those without a target left are dropped and counted`() throws {
        let tokenizer = try golden("bpe-qwen2")
        let long = String(repeating: " word", count: 20)
        let data = try encoder(tokenizer, length: 8).encode(
            records(
                "{\"prompt\": \"a\", \"completion\": \"\(long)\"}", "{\"prompt\": \"\(long)\", \"completion\": \"b\"}",
                "{\"prompt\": \"a\", \"completion\": \"b\"}"))
        #expect(data.examples.map(\.line) == [1, 3])
        #expect(data.examples[0].tokens.count == 8)
        #expect(data.examples[0].targets.count == 8)
        #expect((data.cutCount, data.droppedCount) == (1, 1))
        let failure = #expect(throws: Failure.self) {
            try encoder(tokenizer, length: 8).encode(records("{\"prompt\": \"\(long)\", \"completion\": \"b\"}"))
        }
        #expect(failure?.message.contains("data.jsonl") == true)
    }

    @Test func `messages follow the template, and need one`() throws {
        let tokenizer = try golden("bpe-qwen2")
        let line = #"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}"#
        let example = try encoder(tokenizer, template: "chatml").encode(records(line)).examples[0]
        #expect(
            tokenizer.decode(example.tokens, skipSpecialTokens: false)
                == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n")
        let learnt = zip(example.tokens, example.targets).filter { $0.1 }.map(\.0)
        #expect(tokenizer.decode(learnt, skipSpecialTokens: false) == "Ho<|im_end|>")
        #expect(
            tokenizer.decode(example.prompt, skipSpecialTokens: false)
                == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
        #expect(example.completion == "Ho")
        let failure = #expect(throws: Failure.self) { try encoder(tokenizer).encode(records(line)) }
        #expect(failure?.message.hasPrefix("data.jsonl:1") == true)
    }

    @Test func `a token beyond the model's vocabulary is an error with its line`() throws {
        let tokenizer = try golden("bpe-gpt2")
        let failure = #expect(throws: Failure.self) {
            try encoder(tokenizer, vocabulary: 10).encode(records(#"{"text": "zz"}"#))
        }
        #expect(failure?.message.hasPrefix("data.jsonl:1") == true)
    }
}
