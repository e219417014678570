/// Tokenizers of GGUF files: golden ones, put into metadata, give the golden ids; unknown ones are refused by name.

import Checkpoints
import Primitives
import TestSupport
import Testing
import Tokenizers
import Training

@Suite struct GGUFTokenizerTests {
    let folder = TemporaryFolder()
    static let byteLevel = ["bpe-gpt2": "gpt-2", "bpe-llama3": "llama-bpe", "bpe-qwen2": "qwen2"]

    private func write(_ change: (inout SampleModel) -> Void, vocabulary: Int) throws -> CheckpointFolder {
        var model = SampleModel(vocabulary: vocabulary)
        change(&model)
        let path = folder.file("tokenizer.gguf")
        try model.write(path)
        return try CheckpointFolder(path: path)
    }

    /// Content, kind and rank of the merge that makes it, of every token of a `tokenizer.json`.
    private func parts(_ json: JSONValue) throws -> (tokens: [String], kinds: [Int32], merges: [String]) {
        let model = try #require(json["model"])
        let vocabulary = try #require(model["vocab"]?.members)
        let added = json["added_tokens"]?.elements ?? []
        let count = (vocabulary.compactMap(\.value.int) + added.compactMap { $0["id"]?.int }).max().map { $0 + 1 } ?? 0
        var tokens = (0..<count).map { "[PAD\($0)]" }
        var kinds = [Int32](repeating: 5, count: count)
        for member in vocabulary {
            let id = try #require(member.value.int)
            tokens[id] = member.key
            kinds[id] = member.key.hasPrefix("<0x") && member.key.utf8.count == 6 ? 6 : 1
        }
        for token in added {
            let id = try #require(token["id"]?.int)
            tokens[id] = try #require(token["content"]?.text)
            kinds[id] = token["special"]?.bool == true ? (tokens[id] == "<unk>" ? 2 : 3) : 4
        }
        let merges = try #require(model["merges"]?.elements).map { element in
            element.text ?? (element.elements ?? []).compactMap(\.text).joined(separator: " ")
        }
        return (tokens, kinds, merges)
    }

    private func expectGolden(_ name: String, _ tokenizer: Tokenizer) throws {
        let cases = try #require(try readJSON(Golden.path("tokenizers/\(name)/cases.json")).elements)
        #expect(!cases.isEmpty)
        for golden in cases {
            let text = try #require(golden["text"]?.text)
            let ids = try #require(golden["ids"]?.elements).compactMap { $0.int.map(Int32.init) }
            #expect(tokenizer.encode(text, addSpecialTokens: false) == ids, "\(text.debugDescription)")
            #expect(
                tokenizer.encode(text, addSpecialTokens: true)
                    == golden["ids_with_special"]?.elements?.compactMap { $0.int.map(Int32.init) })
            let decoded = try #require(golden["decoded"]?.text)
            #expect(
                tokenizer.decode(ids, skipSpecialTokens: true).utf8.elementsEqual(decoded.utf8), "\(decoded.debugDescription)")
        }
    }

    @Test(arguments: byteLevel.keys.sorted()) func `a byte-level tokenizer gives the golden ids`(name: String) throws {
        let json = try readJSON(Golden.path("tokenizers/\(name)/tokenizer.json"))
        let (tokens, kinds, merges) = try parts(json)
        let template =
            json["post_processor"]?["single"]?.elements
            ?? json["post_processor"]?["processors"]?.elements?.last?["single"]?.elements
        let begin = template?.first?["SpecialToken"]?["id"]?.text
        let checkpoint = try write(
            { model in
                model.set("tokenizer.ggml.model", .text("gpt2"))
                model.set("tokenizer.ggml.pre", .text(Self.byteLevel[name]!))
                model.set("tokenizer.ggml.tokens", .texts(tokens))
                model.set("tokenizer.ggml.token_type", .integers(kinds))
                model.set("tokenizer.ggml.merges", .texts(merges))
                model.set("tokenizer.ggml.eos_token_id", .uint32(UInt32(kinds.firstIndex(of: 3) ?? 0)))
                if let id = begin.flatMap({ tokens.firstIndex(of: $0) }) {
                    model.set("tokenizer.ggml.bos_token_id", .uint32(UInt32(id)))
                }
                model.set("tokenizer.ggml.add_bos_token", .boolean(begin != nil))
            }, vocabulary: tokens.count)
        try expectGolden(name, try ModelText(checkpoint: checkpoint).tokenizer)
    }

    @Test func `a tokenizer that merges by score gives the golden ids`() throws {
        let name = "bpe-llama2-byte-fallback"
        let (tokens, kinds, merges) = try parts(try readJSON(Golden.path("tokenizers/\(name)/tokenizer.json")))
        // The score of a token is that of the first merge that makes it; a token that nothing makes comes last.
        var ranks: [String: Int] = [:]
        for (rank, merge) in merges.enumerated() {
            ranks[merge.replacing(" ", with: ""), default: rank] = min(rank, ranks[merge.replacing(" ", with: "")] ?? rank)
        }
        func checkpoint(_ scores: [Float]) throws -> CheckpointFolder {
            try write(
                { model in
                    model.set("tokenizer.ggml.model", .text("llama"))
                    model.set("tokenizer.ggml.tokens", .texts(tokens))
                    model.set("tokenizer.ggml.token_type", .integers(kinds))
                    model.set("tokenizer.ggml.scores", .floats(scores))
                    model.set("tokenizer.ggml.bos_token_id", .uint32(1))
                    model.set("tokenizer.ggml.eos_token_id", .uint32(2))
                    model.set("tokenizer.ggml.unknown_token_id", .uint32(0))
                }, vocabulary: tokens.count)
        }
        let scores = tokens.enumerated().map { id, token in -Float(ranks[token] ?? merges.count + id) }
        try expectGolden(name, try ModelText(checkpoint: try checkpoint(scores)).tokenizer)
        // A file whose scores say nothing: merges could be tried in any order.
        let equal = try checkpoint([Float](repeating: -1000, count: tokens.count))
        let failure = #expect(throws: Failure.self) { _ = try ModelText(checkpoint: equal) }
        #expect(failure?.message.contains("have one score, -1000.0") == true)
    }

    @Test func `the golden files' tokenizers mark what begins and ends a text, and their chat templates are known`() throws {
        let llama = try ModelText(checkpoint: try CheckpointFolder(path: Sample.path("llama-mixed.gguf")))
        #expect(llama.tokenizer.prefixTokens == [1] && llama.tokenizer.suffixTokens.isEmpty)
        #expect(llama.endToken == 2 && llama.endTokens == [2])
        // "▁the" and, for a letter that no token has, its bytes.
        let ids = llama.tokenizer.encode("the é<|user|>", addSpecialTokens: false)
        #expect(llama.tokenizer.decode(ids, skipSpecialTokens: true) == "the é<|user|>")
        #expect(ids.contains(3 + 0xC3) && ids.first == llama.tokenizer.tokenID("▁the"))
        #expect(throws: Failure.self) { try llama.template() }
        let qwen = try ModelText(checkpoint: try CheckpointFolder(path: Sample.path("qwen2-blocks.gguf")))
        #expect(qwen.tokenizer.prefixTokens.isEmpty)
        #expect(qwen.endToken == 268)
        #expect(try qwen.template()?.name == "chatml")
        #expect(qwen.tokenizer.isSpecial(266) && qwen.tokenizer.tokenID("[PAD270]") == nil)
    }

    @Test func `tokens that merge in more ways than any vocabulary's are refused before they fill the memory`() throws {
        func message(_ tokens: [String]) throws -> String {
            let checkpoint = try write(
                { model in
                    model.set("tokenizer.ggml.model", .text("llama"))
                    model.set("tokenizer.ggml.tokens", .texts(["<unk>", "<s>"] + tokens))
                    model.set("tokenizer.ggml.token_type", .integers([2, 3] + tokens.map { _ in 1 }))
                    model.set("tokenizer.ggml.scores", .floats((0..<tokens.count + 2).map { -Float($0) }))
                    model.set("tokenizer.ggml.bos_token_id", .uint32(1))
                    model.set("tokenizer.ggml.eos_token_id", .uint32(1))
                }, vocabulary: tokens.count + 2)
            do {
                _ = try ModelText(checkpoint: checkpoint)
                return "accepted"
            } catch {
                return error.message
            }
        }
        // Of one letter n times there are n - 1 cuts, all of them between tokens.
        let runs = (1...200).map { String(repeating: "a", count: $0) }
        let accepted = try message(Array(runs.prefix(100)))
        #expect(accepted == "accepted")
        #expect(try message(runs).contains("of its 202 tokens can be merged from others in "))
        // A token that is there twice is found before any merge is made.
        #expect(try message(runs + ["a"]).contains("token 202, a, is there a second time"))
    }

    @Test func `what is missing or not known is refused by its key`() throws {
        func message(_ change: (inout SampleModel) -> Void) throws -> String {
            let checkpoint = try write(
                { model in
                    model.set("tokenizer.ggml.model", .text("gpt2"))
                    model.set("tokenizer.ggml.pre", .text("gpt-2"))
                    model.set("tokenizer.ggml.tokens", .texts(["a", "b", "ab", "<e>"]))
                    model.set("tokenizer.ggml.token_type", .integers([1, 1, 1, 3]))
                    model.set("tokenizer.ggml.merges", .texts(["a b"]))
                    model.set("tokenizer.ggml.eos_token_id", .uint32(3))
                    change(&model)
                }, vocabulary: 4)
            do {
                _ = try ModelText(checkpoint: checkpoint)
                return "accepted"
            } catch {
                return error.message
            }
        }
        #expect(try message { _ in } == "accepted")
        let cases: [(String, GGUFEntry?, String)] = [
            ("tokenizer.ggml.model", .text("t5"), "tokenizer.ggml.model is t5"),
            ("tokenizer.ggml.model", nil, "holds no tokenizer"),
            ("tokenizer.ggml.pre", .text("default"), "tokenizer.ggml.pre is default"),
            ("tokenizer.ggml.pre", nil, "tokenizer.ggml.pre is missing"),
            ("tokenizer.ggml.token_type", .integers([1]), "there are 4 tokens"),
            ("tokenizer.ggml.token_type", .integers([1, 1, 9, 1]), "token_type of token 2 is 9"),
            ("tokenizer.ggml.merges", .texts(["a c"]), "lacks one or the result"),
            ("tokenizer.ggml.tokens", .texts(["a", "b", "a", "<e>"]), "there a second time"),
            ("tokenizer.ggml.tokens", .integers([1, 2, 3, 4]), "no array of texts"),
            ("tokenizer.ggml.eos_token_id", .uint32(9), "eos_token_id is 9"),
            ("tokenizer.ggml.add_space_prefix", .boolean(true), "add_space_prefix is true"),
            ("tokenizer.ggml.add_bos_token", .boolean(true), "bos_token_id is missing"),
        ]
        for (key, value, part) in cases {
            let message = try message { $0.set(key, value) }
            #expect(message.contains(part), "\(key): \(message)")
        }
    }
}
