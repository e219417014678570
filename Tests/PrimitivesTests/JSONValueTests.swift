/// JSON: exact keys and numbers, and errors instead of crashes.

import Primitives
import Testing

@Suite struct JSONValueTests {
    private func parse(_ text: String) throws -> JSONValue { try JSONValue(parsing: text.utf8) }

    @Test func `a value that is read and written is unchanged`() throws {
        let text = #"{"b":[1,-0.50,2e+10,12345678901234567890],"a":{"t":true,"f":false,"n":null},"s":"q\"\\ \n\u0001é🙂"}"#
        #expect(try parse(text).compact == text)
        #expect(try parse(parse(text).pretty) == parse(text))
        #expect(try parse(#""\ud83d\ude42\u00e9\b\f""#).text == "🙂é\u{8}\u{C}")
    }

    @Test func `keys are equal only if their bytes are`() throws {
        let value = try parse("{\"\u{C5}\": 1, \"\u{212B}\": 2, \"A\u{30A}\": 3}")
        #expect(value.members?.count == 3)
        #expect(value["\u{212B}"]?.int == 2)
        #expect(throws: JSONValue.SyntaxError.self) { try parse(#"{"a": 1, "a": 2}"#) }
    }

    @Test(arguments: [
        "", " ", "{", "[1,", "[1,]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "tru", "nul", "01", "1.", "-", "1e", "+1", "\"",
        "\"\\x\"",
        "\"\\u12\"", "\"\\ud800\"", "\"\\ud800\\u0041\"", "\"\n\"", "1 2", "[1] x", "NaN", "'a'",
    ])
    func `what is not JSON is an error with a position`(text: String) {
        let error = #expect(throws: JSONValue.SyntaxError.self) { try parse(text) }
        #expect(0...text.utf8.count ~= error?.position ?? -1)
    }

    @Test func `deep nesting and bytes that are no text are refused`() {
        #expect(throws: JSONValue.SyntaxError.self) { try parse(String(repeating: "[", count: 100_000)) }
        #expect(throws: JSONValue.SyntaxError.self) { try JSONValue(parsing: [0x22, 0xFF, 0x22]) }
        #expect(throws: JSONValue.SyntaxError.self) { try JSONValue(parsing: [0x22, 0x5C, 0x6E, 0xC0, 0x22]) }
    }
}
