/// Data files: what is read, and what is said about lines that are wrong.

import FoundationEssentials
import Datasets
import Primitives
import Testing
import Tokenizers

private func read(_ text: String, _ path: String = "data.jsonl") throws -> [Record] {
    try DataFile.read(Array(text.utf8), path: path)
}

@Suite struct DataFileTests {
    @Test func `JSON Lines hold texts, completions or messages, and other fields are kept`() throws {
        #expect(try read(#"{"text": "a\nb", "n": 1.50, "x": {"y": [null, true]}}"#)[0].content == .text("a\nb"))
        let record = try read("\u{FEFF}\n{\"prompt\":\"p\",\"completion\":\" c\",\"kind\":\"k\"}\r\n\n")[0]
        #expect(record.content == .completion(prompt: "p", completion: " c"))
        #expect(try record.value("kind") == "k")
        #expect(record.line == 2)
        let messages = try read(#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}"#)[0]
        #expect(messages.content == .messages([.init(role: "user", content: "hi"), .init(role: "assistant", content: "ho")]))
    }

    @Test func `CSV keeps commas, quotes, line breaks and spaces as they are written`() throws {
        let text = "prompt,completion,category\r\n\"a, \"\"b\"\"\", c ,x\r\n\r\n\"two\nlines\",\"\",y\nlast, ß,z"
        let records = try read(text, "data.CSV")
        #expect(
            records.map(\.content) == [
                .completion(prompt: "a, \"b\"", completion: " c "), .completion(prompt: "two\nlines", completion: ""),
                .completion(prompt: "last", completion: " ß"),
            ])
        #expect(records.map(\.line) == [2, 4, 6])
        #expect(try records.map { try $0.value("category") } == ["x", "y", "z"])
        let messages = try read("messages\n\"[{\"\"role\"\":\"\"assistant\"\",\"\"content\"\":\"\"a\"\"}]\"", "m.csv")
        #expect(messages[0].content == .messages([.init(role: "assistant", content: "a")]))
    }

    @Test(arguments: [
        ("{\"text\": \"a\"}\n{\"text\": ", "data.jsonl:2", "not JSON"),
        ("{\"text\": \"a\"}\nhello", "data.jsonl:2", "not JSON"),
        ("[1]", "data.jsonl:1", "object"),
        ("{\"question\": \"a\"}", "data.jsonl:1", "\"question\""),
        ("{}", "data.jsonl:1", "no fields"),
        ("{\"text\": 3}", "data.jsonl:1", "\"text\" must be a string, not a number"),
        ("{\"text\": \"a\", \"prompt\": \"b\", \"completion\": \"c\"}", "data.jsonl:1", "only one"),
        ("{\"prompt\": \"b\"}", "data.jsonl:1", "without a \"completion\""),
        ("{\"completion\": \"b\"}", "data.jsonl:1", "without a \"prompt\""),
        ("{\"text\": \"a\"}\n\n{\"prompt\": \"a\", \"completion\": \"b\"}", "data.jsonl:3", "one kind"),
        ("{\"messages\": \"a\"}", "data.jsonl:1", "must be an array"),
        ("{\"messages\": []}", "data.jsonl:1", "empty"),
        ("{\"messages\": [{\"role\": \"user\"}]}", "data.jsonl:1", "messages[0]"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": [1]}]}", "data.jsonl:1", "messages[0].content"),
        ("{\"text\": \"a\", \"text\": \"b\"}", "data.jsonl:1", "twice"),
        ("", "data.jsonl", "no records"), ("\n \n", "data.jsonl", "no records"),
    ])
    func `a wrong line is named with its file, number and fault`(text: String, place: String, fault: String) {
        let failure = #expect(throws: Failure.self) { try read(text) }
        #expect(failure?.status == .badData)
        #expect(failure?.message.hasPrefix(place) == true, "\(failure?.message ?? "")")
        #expect(failure?.message.contains(fault) == true, "\(failure?.message ?? "")")
    }

    @Test(arguments: [
        ("text,b\na", "data.csv:2", "1 fields"), ("text,text\na,b", "data.csv:1", "\"text\""),
        ("text\n\"a\nb", "data.csv:2", "never closed"), ("text\n\"a\"b", "data.csv:2", "closing quote"),
        ("question\na", "data.csv:2", "\"question\""), ("text\n", "data.csv", "no records"), ("", "data.csv", "no records"),
        ("messages\nx", "data.csv:2", "not JSON"),
    ])
    func `a wrong row is named with its file, line and fault`(text: String, place: String, fault: String) {
        let failure = #expect(throws: Failure.self) { try read(text, "data.csv") }
        #expect(failure?.message.hasPrefix(place) == true, "\(failure?.message ?? "")")
        #expect(failure?.message.contains(fault) == true, "\(failure?.message ?? "")")
    }

    @Test func `bytes that are not UTF-8 are an error and not a crash`() {
        #expect(throws: Failure.self) {
            try DataFile.read(Array("{\"text\": \"".utf8) + [0xC3, 0x28] + Array("\"}".utf8), path: "a.jsonl")
        }
        #expect(throws: Failure.self) { try DataFile.read(Array("text\n".utf8) + [0xFF], path: "a.csv") }
        let failure = #expect(throws: Failure.self) { try DataFile.read("/nowhere/data.jsonl") }
        #expect(failure?.status == .missingInput)
    }

    @Test func `records that are written and read again are the same`() throws {
        let records = try read(
            "{\"text\": \"quote \\\" back\\\\slash \\u0001 é \\u0065\\u0301 🙂\", \"big\": 12345678901234567890.10, \"none\": null}\n"
                + "{\"text\": \"\", \"nested\": {\"a\": [1, \"x\", false]}}")
        let path =
            FileManager.default.temporaryDirectory.path + "/tributary-records-\(ProcessInfo.processInfo.processIdentifier).jsonl"
        try DataFile.write(records, to: path)
        defer { try? FileManager.default.removeItem(atPath: path) }
        let again = try DataFile.read(path)
        #expect(again.map(\.fields) == records.map(\.fields))
        #expect(zip(again, records).allSatisfy { $0.json.utf8.elementsEqual($1.json.utf8) })
        let failure = #expect(throws: Failure.self) { try DataFile.write(records, to: "/nowhere/x.jsonl") }
        #expect(failure?.status == .cannotCreate)
    }
}
