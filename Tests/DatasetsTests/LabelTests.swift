/// Labels: from data, in records, in examples of a classifier.

import Datasets
import Primitives
import TestSupport
import Testing
import Tokenizers

private func records(_ lines: [String], textField: String? = nil) throws -> [Record] {
    try DataFile.read(Array(lines.joined(separator: "\n").utf8), path: "data.jsonl", textField: textField)
}

private func message(_ body: () throws -> Void) -> String {
    do { try body() } catch { return (error as? Failure)?.message ?? "\(error)" }
    return ""
}

@Suite struct LabelTests {
    private func encoder(length: Int = 16) throws -> LabelledEncoder {
        try LabelledEncoder(
            tokenizer: Tokenizer(bytes: Array(TinyEncoder.tokenizer.utf8), path: "tokenizer.json"),
            labels: LabelSet(["no", "yes"]), field: "label", sequenceLength: length, vocabularySize: 400)
    }

    @Test func `labels of data are all of them, each once, in the order of their bytes`() throws {
        let data = try records([
            #"{"text": "a", "label": "b"}"#, #"{"text": "b", "label": "B"}"#, #"{"text": "c", "label": "\u00e9"}"#,
            #"{"text": "d", "label": 10}"#, #"{"text": "e", "label": "b"}"#, #"{"text": "f", "label": "e\u0301"}"#,
        ])
        // Two spellings of one letter are two labels.
        #expect(
            try LabelSet(of: data, field: "label").names.map { Array($0.utf8) }
                == ["10", "B", "b", "e\u{301}", "\u{e9}"].map { Array($0.utf8) })
    }

    @Test func `an unknown label names its line and the label that was meant`() throws {
        let labels = LabelSet(["card_arrival", "card_linking"])
        let data = try records([#"{"text": "a", "label": "card_arrival"}"#, #"{"text": "b", "label": "card_arival"}"#])
        #expect(try labels.index(of: data[0], field: "label") == 0)
        let text = message { _ = try labels.index(of: data[1], field: "label") }
        #expect(text.hasPrefix("data.jsonl:2: the label \"card_arival\"") && text.contains("did you mean \"card_arrival\"?"))
        let missing = message { _ = try LabelSet(of: data, field: "intent") }
        #expect(missing.hasPrefix("data.jsonl:1:") && missing.contains("\"intent\"") && missing.contains("--label-field"))
    }

    @Test func `an empty label, and one label for all, are told as what they are`() throws {
        let empty = try records([#"{"text": "a", "label": "b"}"#, #"{"text": "b", "label": ""}"#])
        #expect(
            message { _ = try LabelSet(of: empty, field: "label") }.hasPrefix("data.jsonl:2: the label in \"label\" is empty"))
        let one = try records([#"{"text": "a", "label": "b"}"#, #"{"text": "b", "label": "b"}"#])
        let text = message { _ = try LabelSet(classifying: one, field: "label") }
        // A client may have one of the task's labels only.
        #expect(try LabelSet(of: one, field: "label").names == ["b"])
        #expect(text.hasPrefix("data.jsonl: every record has the label \"b\"") && text.contains("at least 2"))
    }

    @Test func `an unknown label that is a whole text is neither compared nor printed whole`() throws {
        let data = try records([
            #"{"text": "a", "label": "\#(String(repeating: "x", count: 100))"}"#,
            #"{"text": "b", "label": "\#(String(repeating: "y", count: 300))"}"#,
        ])
        let labels = LabelSet([String(repeating: "x", count: 99), String(repeating: "y", count: 299)])
        let compared = message { _ = try labels.index(of: data[0], field: "label") }
        #expect(
            compared.contains("the label \"" + String(repeating: "x", count: 80) + "...\"") && compared.contains("did you mean"))
        let long = message { _ = try labels.index(of: data[1], field: "label") }
        #expect(long.contains(String(repeating: "y", count: 80) + "...\"") && !long.contains("did you mean"), "\(long)")
    }

    @Test func `a text that is cut keeps the separator at its end`() throws {
        let data = try records([
            #"{"text": "abcdef", "label": "yes"}"#, #"{"text": "ab", "label": "no"}"#, #"{"text": "", "label": "no"}"#,
        ])
        let encoded = try encoder(length: 5).encode(data)
        // [CLS] is 2 and [SEP] 3; a is 4, ##b is 31.
        #expect(encoded.examples.map(\.tokens) == [[2, 4, 31, 32, 3], [2, 4, 31, 3], [2, 3]])
        #expect(encoded.examples.map(\.label) == [1, 0, 0])
        #expect(encoded.cutCount == 1 && encoded.droppedCount == 0 && encoded.targetCount == 3)
        #expect(encoded.examples.allSatisfy { !$0.targets.contains(true) })
    }

    @Test func `a sequence length without room for a token, and a record that is no text, are refused`() throws {
        #expect(message { _ = try encoder(length: 2) }.contains("use at least 3"))
        let data = try records([#"{"prompt": "a", "completion": "b", "label": "no"}"#])
        #expect(message { _ = try encoder().encode(data) }.hasPrefix("data.jsonl:1:"))
    }

    @Test func `the text may stand in a field of another name, in JSON Lines and in CSV`() throws {
        let line = try records([#"{"query": "a", "prompt": "x", "label": "no"}"#], textField: "query")
        #expect(line[0].content == .text("a"))
        let csv = try DataFile.read(Array("query,intent\n\"a, b\",x\n".utf8), path: "a.csv", textField: "query")
        #expect(csv[0].content == .text("a, b"))
        #expect(try csv[0].value("intent") == "x")
        let missing = message { _ = try DataFile.read(Array("a,b\nc,d\n".utf8), path: "a.csv", textField: "query") }
        #expect(missing.contains("a.csv:2") && missing.contains("\"query\""))
    }
}
