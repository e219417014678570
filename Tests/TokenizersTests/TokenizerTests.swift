/// Tokenizers against the ids and texts that Hugging Face's `tokenizers` gives, and against broken files.

import FoundationEssentials
import Primitives
import TestSupport
import Testing
import Tokenizers

private let bytePairNames = ["bpe-gpt2", "bpe-llama3", "bpe-qwen2", "bpe-llama2-byte-fallback"]
private let names = bytePairNames + ["wordpiece-bert"]

private func folder(_ name: String) -> String { Golden.path("tokenizers/\(name)") }

private func bytes(_ path: String) throws -> [UInt8] {
    Array(try #require(FileManager.default.contents(atPath: path), "\(path) is missing"))
}

private struct Case {
    let text: String
    let ids: [Int32]
    let idsWithSpecial: [Int32]
    let decoded: String

    static func all(_ name: String) throws -> [Case] {
        let elements = try #require(try JSONValue(parsing: bytes(folder(name) + "/cases.json")).elements)
        return try elements.map { element in
            func ids(_ key: String) throws -> [Int32] {
                try #require(element[key]?.elements).map { Int32(try #require($0.int)) }
            }
            return Case(
                text: try #require(element["text"]?.text), ids: try ids("ids"), idsWithSpecial: try ids("ids_with_special"),
                decoded: try #require(element["decoded"]?.text))
        }
    }
}

/// A tokenizer file with parts replaced.
private func changed(_ name: String, _ change: (inout JSONValue) throws -> Void) throws -> [UInt8] {
    var json = try JSONValue(parsing: bytes(folder(name) + "/tokenizer.json"))
    try change(&json)
    return Array(json.compact.utf8)
}

private func json(_ text: String) throws -> JSONValue { try JSONValue(parsing: text.utf8) }

@Suite struct TokenizerTests {
    @Test(arguments: names) func `every golden text has exactly the golden ids and decodes to the golden text`(
        name: String
    ) throws {
        let tokenizer = try Tokenizer(path: folder(name) + "/tokenizer.json")
        let cases = try Case.all(name)
        #expect(!cases.isEmpty)
        for golden in cases {
            #expect(tokenizer.encode(golden.text, addSpecialTokens: false) == golden.ids, "\(golden.text.debugDescription)")
            #expect(tokenizer.encode(golden.text, addSpecialTokens: true) == golden.idsWithSpecial)
            let decoded = tokenizer.decode(golden.ids, skipSpecialTokens: true)
            #expect(decoded.utf8.elementsEqual(golden.decoded.utf8), "\(golden.decoded.debugDescription)")
        }
    }

    @Test(arguments: names) func `text streamed token by token adds up to the text decoded at once`(name: String) throws {
        let tokenizer = try Tokenizer(path: folder(name) + "/tokenizer.json")
        for golden in try Case.all(name) {
            var decoder = StreamingDecoder(tokenizer)
            var text = ""
            for id in golden.ids {
                let part = decoder.append(id)
                #expect(part.unicodeScalars.last != "\u{FFFD}")
                text += part
            }
            text += decoder.finish()
            #expect(text.utf8.elementsEqual(golden.decoded.utf8), "\(golden.decoded.debugDescription)")
        }
    }

    @Test func `a character of four tokens appears when its last byte does`() throws {
        let tokenizer = try Tokenizer(path: folder("bpe-llama2-byte-fallback") + "/tokenizer.json")
        var decoder = StreamingDecoder(tokenizer)
        let ids = try ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "<0x21>"].map { try #require(tokenizer.tokenID($0)) }
        #expect(ids.map { decoder.append($0) } == ["", "", "", "🙂", "!"])
        // An end in the middle of a character is said to be one.
        #expect(decoder.append(ids[0]) == "")
        #expect(decoder.finish().unicodeScalars.last == "\u{FFFD}")
    }

    @Test func `special tokens written in a text are found, and are not where the caller says so`() throws {
        let tokenizer = try Tokenizer(path: folder("bpe-qwen2") + "/tokenizer.json")
        let text = "<|im_end|>"
        let special = try #require(tokenizer.tokenID(text))
        #expect(tokenizer.encode(text, addSpecialTokens: false) == [special])
        let plain = tokenizer.encode(text, addSpecialTokens: false, findsSpecialTokens: false)
        #expect(!plain.contains(special))
        #expect(tokenizer.decode(plain, skipSpecialTokens: true) == text)
        #expect(tokenizer.isSpecial(special))
        #expect(tokenizer.specialTokens.map(\.content).contains(text))
    }

    @Test func `a hundred thousand letters without a space take no quadratic time`() throws {
        var generator = SeededGenerator(seed: 1, purpose: "test")
        let letters = Array("etaoinshrdlu")
        let text = String((0..<100_000).map { _ in letters[generator.integer(below: letters.count)] })
        for name in bytePairNames {
            let tokenizer = try Tokenizer(path: folder(name) + "/tokenizer.json")
            let start = ContinuousClock.now
            let ids = tokenizer.encode(text, addSpecialTokens: false)
            // It takes about 20 ms; quadratic merging takes minutes.
            #expect(ContinuousClock.now - start < .seconds(5))
            #expect(tokenizer.decode(ids, skipSpecialTokens: true) == text)
        }
    }

    @Test func `many threads share a tokenizer and its cache`() async throws {
        let tokenizer = try Tokenizer(path: folder("bpe-llama3") + "/tokenizer.json")
        let cases = try Case.all("bpe-llama3")
        let wrong = await withTaskGroup(of: Int.self) { group in
            for _ in 0..<8 {
                group.addTask {
                    cases.count { tokenizer.encode($0.text, addSpecialTokens: false) != $0.ids }
                }
            }
            return await group.reduce(0, +)
        }
        #expect(wrong == 0)
    }

    @Test func `merges may be written as strings, and a byte-level word may need its digits apart`() throws {
        let strings = try changed("bpe-gpt2") { file in
            var model = file["model"]!
            model.set(
                "merges", .array(model["merges"]!.elements!.map { .string($0.elements!.map { $0.text! }.joined(separator: " ")) })
            )
            file.set("model", model)
        }
        let plain = try Tokenizer(path: folder("bpe-gpt2") + "/tokenizer.json")
        #expect(
            try Tokenizer(bytes: strings, path: "strings").encode("Hello, world!", addSpecialTokens: false)
                == plain.encode("Hello, world!", addSpecialTokens: false))
        let digits = try changed("bpe-gpt2") { file in
            file.set(
                "pre_tokenizer",
                try json(
                    #"{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},"#
                        + #"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]}"#))
        }
        let ids = try Tokenizer(bytes: digits, path: "digits").encode("in 1984", addSpecialTokens: false)
        #expect(ids.suffix(4) == ["1", "9", "8", "4"].map { plain.tokenID($0)! }[...])
    }
}

@Suite struct EncoderTokenizerTests {
    @Test func `the older processors of BERT and RoBERTa put the same tokens around a text as a template does`() throws {
        let template = try Tokenizer(path: folder("wordpiece-bert") + "/tokenizer.json")
        let processor = try changed("wordpiece-bert") { file in
            file.set("post_processor", try json(#"{"type":"BertProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]}"#))
        }
        let bert = try Tokenizer(bytes: processor, path: "bert")
        #expect(bert.encode("Hello", addSpecialTokens: true) == template.encode("Hello", addSpecialTokens: true))
        let roberta = try Tokenizer(
            bytes: try changed("bpe-gpt2") { file in
                file.set(
                    "post_processor",
                    try json(
                        #"{"type":"RobertaProcessing","sep":["!",2],"cls":["\"",1],"trim_offsets":true,"add_prefix_space":false}"#
                    ))
            }, path: "roberta")
        #expect((roberta.prefixTokens, roberta.suffixTokens) == ([1], [2]))
        #expect(roberta.encode("a", addSpecialTokens: true).count == 3)
    }

    @Test func `a cased BERT keeps case and accents, and its normalizer's steps can be left out one by one`() throws {
        func ids(_ normalizer: String, _ text: String) throws -> [Int32] {
            try Tokenizer(
                bytes: changed("wordpiece-bert") { $0.set("normalizer", try json(normalizer)) }, path: normalizer
            ).encode(text, addSpecialTokens: false)
        }
        let cased =
            #"{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":false}"#
        let uncased = #"{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"lowercase":true}"#
        let accented = #"{"type":"BertNormalizer","strip_accents":false,"lowercase":true}"#
        let unknown: Int32 = 1
        #expect(try ids(cased, "HELLO") == [unknown])
        #expect(try ids(uncased, "HELLO") == ids(uncased, "hello"))
        #expect(try ids(uncased, "caf\u{E9} cafe\u{301}") == ids(uncased, "cafe cafe"))
        #expect(try ids(accented, "caf\u{E9}") == [unknown])
        #expect(try ids(uncased, "he\u{0}l\u{200B}lo\u{A0}hello") == ids(uncased, "hello hello"))
        // Each ideograph is a word, here an unknown one.
        #expect(try ids(uncased, "\u{65E5}\u{672C}") == [unknown, unknown])
        #expect(try ids(#"{"type":"BertNormalizer","handle_chinese_chars":false}"#, "\u{65E5}\u{672C}") == [unknown])
    }

    @Test func `a word longer than the model reads is one unknown token`() throws {
        let tokenizer = try Tokenizer(path: folder("wordpiece-bert") + "/tokenizer.json")
        func count(_ letters: Int) -> Int {
            tokenizer.encode(String(repeating: "a", count: letters), addSpecialTokens: false).count
        }
        #expect(count(100) == 100)
        #expect(count(101) == 1)
    }
}

@Suite struct BrokenTokenizerTests {
    @Test(arguments: names) func `no truncation and no flipped bit of the file makes it crash`(name: String) throws {
        let whole = try bytes(folder(name) + "/tokenizer.json")
        var generator = SeededGenerator(seed: 2, purpose: "test", client: name)
        for _ in 0..<60 {
            let end = generator.integer(below: whole.count)
            #expect(throws: Failure.self) { try Tokenizer(bytes: Array(whole[..<end]), path: "truncated") }
        }
        // Half of the flips near the start, where everything but the vocabulary is.
        for turn in 0..<300 {
            var bytes = whole
            let position = generator.integer(below: turn % 2 == 0 ? min(3000, bytes.count) : bytes.count)
            bytes[position] ^= 1 << UInt8(generator.integer(below: 8))
            guard let tokenizer = try? Tokenizer(bytes: bytes, path: "flipped") else { continue }
            let ids = tokenizer.encode("Hello ▁ 12 naïve 日本 <|im_start|>\r\n x", addSpecialTokens: true)
            _ = tokenizer.decode(ids + [-1, 0, 1, 2, 5_000_000], skipSpecialTokens: false)
        }
    }

    @Test func `what is not supported is named with the file`() throws {
        let changes: [(expected: String, (inout JSONValue) throws -> Void)] = [
            ("\"Unigram\"", { $0.set("model", try json(#"{"type":"Unigram","vocab":[]}"#)) }),
            ("unk_token", { $0.set("model", try json(#"{"type":"WordPiece","unk_token":"[UNK]","vocab":{}}"#)) }),
            ("\"Nmt\"", { $0.set("normalizer", try json(#"{"type":"Nmt"}"#)) }),
            ("\"NFKC\"", { $0.set("normalizer", try json(#"{"type":"Sequence","normalizers":[{"type":"NFKC"}]}"#)) }),
            ("\"Whitespace\"", { $0.set("pre_tokenizer", try json(#"{"type":"Whitespace"}"#)) }),
            (
                "\\\\w+",
                {
                    $0.set(
                        "pre_tokenizer",
                        try json(#"{"type":"Split","pattern":{"Regex":"\\w+"},"behavior":"Isolated","invert":false}"#))
                }
            ),
            (
                "\"Removed\"",
                {
                    $0.set(
                        "pre_tokenizer",
                        try json(#"{"type":"Split","pattern":{"Regex":"x"},"behavior":"Removed","invert":false}"#))
                }
            ),
            ("\"CTC\"", { $0.set("decoder", try json(#"{"type":"CTC"}"#)) }),
            ("post_processor.cls", { $0.set("post_processor", try json(#"{"type":"RobertaProcessing"}"#)) }),
            (
                "post_processor.sep",
                { $0.set("post_processor", try json(#"{"type":"BertProcessing","cls":["a",1],"sep":[2,"b"]}"#)) }
            ),
            (
                "special_tokens",
                {
                    $0.set(
                        "post_processor",
                        try json(
                            #"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"[X]"}},{"Sequence":{"id":"A"}}],"special_tokens":{}}"#
                        ))
                }
            ),
            (
                "\"dropout\"",
                { file in
                    var model = file["model"]!; model.set("dropout", .number("0.1")); file.set("model", model)
                }
            ),
            (
                "unk_token",
                { file in
                    var model = file["model"]!; model.set("unk_token", .string("[none]")); file.set("model", model)
                }
            ),
            (
                "merges[0]",
                { file in
                    var model = file["model"]!; model.set("merges", try json(#"[["a","no such token"]]"#));
                    file.set("model", model)
                }
            ),
            ("added_tokens[0]", { $0.set("added_tokens", try json(#"[{"id":7,"content":"<|endoftext|>","special":true}]"#)) }),
            ("model", { $0.set("model", .null) }),
        ]
        for (expected, change) in changes {
            let bytes = try changed("bpe-gpt2", change)
            let failure = #expect(throws: Failure.self) { try Tokenizer(bytes: bytes, path: "some/tokenizer.json") }
            #expect(failure?.status == .badData)
            #expect(failure?.message.contains("some/tokenizer.json") == true)
            #expect(failure?.message.contains(expected) == true, "\(failure?.message ?? "")")
        }
    }

    @Test func `a small file that would make texts or the time for them huge is refused`() throws {
        func repeated(_ part: String, _ count: Int) -> String { [String](repeating: part, count: count).joined(separator: ",") }
        let doubling = #"{"type":"Replace","pattern":{"String":"a"},"content":"aa"}"#
        let around = #"{"SpecialToken":{"id":"[CLS]"}}"#
        let changes: [(expected: String, key: String, value: String)] = [
            ("more than 1024 times", "normalizer", #"{"type":"Sequence","normalizers":[\#(repeated(doubling, 11))]}"#),
            ("more than 1024 times", "normalizer", #"{"type":"Sequence","normalizers":[\#(repeated(#"{"type":"NFD"}"#, 7))]}"#),
            (
                "more than 1024 times", "normalizer",
                #"{"type":"Prepend","prepend":"\#(String(repeating: "a", count: 1024))"}"#
            ),
            ("more than 1024 times", "decoder", #"{"type":"Sequence","decoders":[\#(repeated(doubling, 11))]}"#),
            (
                "a second \"Metaspace\"", "pre_tokenizer",
                #"{"type":"Sequence","pretokenizers":[{"type":"Metaspace","replacement":"1"},{"type":"Metaspace","replacement":"2"}]}"#
            ),
            (
                "more than 1024 tokens around a text", "post_processor",
                #"{"type":"TemplateProcessing","single":[\#(repeated(around, 400)),{"Sequence":{"id":"A"}}],"special_tokens":{"[CLS]":{"ids":[1,2,3]}}}"#
            ),
            (
                "more than 1024 tokens around a text", "post_processor",
                #"{"type":"TemplateProcessing","single":[\#(repeated(around, 1024)),{"Sequence":{"id":"A"}}],"special_tokens":{"[CLS]":{"ids":[]}}}"#
            ),
        ]
        for (expected, key, value) in changes {
            let bytes = try changed("wordpiece-bert") { $0.set(key, try json(value)) }
            let failure = #expect(throws: Failure.self) { try Tokenizer(bytes: bytes, path: "some/tokenizer.json") }
            #expect(failure?.message.contains(expected) == true, "\(failure?.message ?? "")")
        }
        // As many as may be.
        let bytes = try changed("wordpiece-bert") {
            $0.set("normalizer", try json(#"{"type":"Sequence","normalizers":[\#(repeated(doubling, 10))]}"#))
        }
        let tokenizer = try Tokenizer(bytes: bytes, path: "some/tokenizer.json")
        #expect(tokenizer.encode("a", addSpecialTokens: false).count == 1)
        for length in [-1, 1001] {
            let bytes = try changed("wordpiece-bert") { file in
                var model = file["model"]!
                model.set("max_input_chars_per_word", .integer(length))
                file.set("model", model)
            }
            let failure = #expect(throws: Failure.self) { try Tokenizer(bytes: bytes, path: "some/tokenizer.json") }
            #expect(failure?.message.contains("max_input_chars_per_word\" is \(length)") == true)
        }
    }

    @Test func `a missing file is said to be missing`() {
        let failure = #expect(throws: Failure.self) { try Tokenizer(path: "/nowhere/tokenizer.json") }
        #expect(failure?.status == .missingInput)
    }
}
