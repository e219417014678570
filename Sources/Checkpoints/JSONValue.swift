/// JSON as a value: keys keep their order and numbers keep their text, so that a file can be written back unchanged.
///
/// A parser of our own because a header comes from a stranger: duplicate keys, deep nesting and bytes after the end
/// are errors with a position, and 10000.0 stays a real number.

import Primitives

public indirect enum JSONValue: Equatable, Sendable {
    case null
    case boolean(Bool)
    /// The number's text as it was written.
    case number(String)
    case string(String)
    case array([JSONValue])
    case object([Member])

    public struct Member: Equatable, Sendable {
        public let key: String
        public var value: JSONValue

        public init(_ key: String, _ value: JSONValue) {
            self.key = key
            self.value = value
        }
    }

    /// What is wrong with a text, and at which byte.
    public struct SyntaxError: Error, Equatable, Sendable {
        public let message: String
        public let position: Int
    }

    public init(parsing bytes: some Sequence<UInt8>) throws(SyntaxError) {
        var parser = JSONParser(bytes: Array(bytes))
        self = try parser.document()
    }

    public static func integer(_ value: Int) -> JSONValue { .number(String(value)) }

    /// The value under `key`, or nil if this is no object or has no such key.
    public subscript(key: String) -> JSONValue? {
        guard case .object(let members) = self else { return nil }
        return members.first { $0.key == key }?.value
    }

    public var isNull: Bool { self == .null }

    public var bool: Bool? {
        if case .boolean(let value) = self { value } else { nil }
    }

    public var text: String? {
        if case .string(let value) = self { value } else { nil }
    }

    /// An integer, also when it is written as 2.0.
    public var int: Int? {
        guard case .number(let text) = self else { return nil }
        if let value = Int(text) { return value }
        return Double(text).flatMap { Int(exactly: $0) }
    }

    public var double: Double? {
        guard case .number(let text) = self, let value = Double(text), value.isFinite else { return nil }
        return value
    }

    public var elements: [JSONValue]? {
        if case .array(let values) = self { values } else { nil }
    }

    public var members: [Member]? {
        if case .object(let members) = self { members } else { nil }
    }

    /// Replaces or adds a member; nothing happens unless this is an object.
    public mutating func set(_ key: String, _ value: JSONValue) {
        guard case .object(var members) = self else { return }
        if let index = members.firstIndex(where: { $0.key == key }) {
            members[index].value = value
        } else {
            members.append(Member(key, value))
        }
        self = .object(members)
    }

    /// One line, no spaces.
    public var compact: String {
        var out = ""
        write(&out, indent: nil)
        return out
    }

    /// Two spaces a level, as Hugging Face writes it.
    public var pretty: String {
        var out = ""
        write(&out, indent: 0)
        return out
    }

    private func write(_ out: inout String, indent: Int?) {
        func line(_ depth: Int) { out += "\n" + String(repeating: "  ", count: depth) }
        switch self {
        case .null: out += "null"
        case .boolean(let value): out += value ? "true" : "false"
        case .number(let text): out += text
        case .string(let text): Self.quote(text, into: &out)
        case .array(let values):
            out += "["
            for (index, value) in values.enumerated() {
                if index > 0 { out += "," }
                if let indent { line(indent + 1) }
                value.write(&out, indent: indent.map { $0 + 1 })
            }
            if let indent, !values.isEmpty { line(indent) }
            out += "]"
        case .object(let members):
            out += "{"
            for (index, member) in members.enumerated() {
                if index > 0 { out += "," }
                if let indent { line(indent + 1) }
                Self.quote(member.key, into: &out)
                out += indent == nil ? ":" : ": "
                member.value.write(&out, indent: indent.map { $0 + 1 })
            }
            if let indent, !members.isEmpty { line(indent) }
            out += "}"
        }
    }

    private static func quote(_ text: String, into out: inout String) {
        out += "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            case "\n": out += "\\n"
            case "\r": out += "\\r"
            case "\t": out += "\\t"
            case _ where scalar.value < 0x20:
                let digits = String(scalar.value, radix: 16)
                out += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: out.unicodeScalars.append(scalar)
            }
        }
        out += "\""
    }
}

/// Recursive descent over the bytes (RFC 8259).
private struct JSONParser {
    let bytes: [UInt8]
    var position = 0
    /// Deeper nesting is refused: the parser recurses.
    static let depthLimit = 64

    init(bytes: [UInt8]) { self.bytes = bytes }

    func failed(_ message: String) -> JSONValue.SyntaxError { .init(message: message, position: position) }

    mutating func document() throws(JSONValue.SyntaxError) -> JSONValue {
        let value = try value(depth: 0)
        skipSpace()
        guard position == bytes.count else { throw failed("something follows the end of the value") }
        return value
    }

    mutating func skipSpace() {
        while position < bytes.count, [0x20, 0x09, 0x0A, 0x0D].contains(bytes[position]) { position += 1 }
    }

    func peek() throws(JSONValue.SyntaxError) -> UInt8 {
        guard position < bytes.count else { throw failed("the text ends too early") }
        return bytes[position]
    }

    mutating func expect(_ byte: UInt8) throws(JSONValue.SyntaxError) {
        guard try peek() == byte else { throw failed("expected '\(Character(UnicodeScalar(byte)))'") }
        position += 1
    }

    mutating func word(_ text: StaticString, _ value: JSONValue) throws(JSONValue.SyntaxError) -> JSONValue {
        let word = text.withUTF8Buffer(Array.init)
        guard bytes.count - position >= word.count, Array(bytes[position..<position + word.count]) == word else {
            throw failed("expected a value")
        }
        position += word.count
        return value
    }

    mutating func value(depth: Int) throws(JSONValue.SyntaxError) -> JSONValue {
        guard depth < Self.depthLimit else { throw failed("nested more than \(Self.depthLimit) deep") }
        skipSpace()
        switch try peek() {
        case UInt8(ascii: "{"): return try object(depth: depth)
        case UInt8(ascii: "["): return try array(depth: depth)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .boolean(true))
        case UInt8(ascii: "f"): return try word("false", .boolean(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    mutating func object(depth: Int) throws(JSONValue.SyntaxError) -> JSONValue {
        try expect(UInt8(ascii: "{"))
        var members: [JSONValue.Member] = []
        var keys: Set<String> = []
        skipSpace()
        if try peek() == UInt8(ascii: "}") {
            position += 1
            return .object([])
        }
        while true {
            skipSpace()
            let key = try string()
            guard keys.insert(key).inserted else { throw failed("the key \"\(key.prefix(80))\" occurs twice") }
            skipSpace()
            try expect(UInt8(ascii: ":"))
            members.append(.init(key, try value(depth: depth + 1)))
            skipSpace()
            if try peek() == UInt8(ascii: "}") {
                position += 1
                return .object(members)
            }
            try expect(UInt8(ascii: ","))
        }
    }

    mutating func array(depth: Int) throws(JSONValue.SyntaxError) -> JSONValue {
        try expect(UInt8(ascii: "["))
        var values: [JSONValue] = []
        skipSpace()
        if try peek() == UInt8(ascii: "]") {
            position += 1
            return .array([])
        }
        while true {
            values.append(try value(depth: depth + 1))
            skipSpace()
            if try peek() == UInt8(ascii: "]") {
                position += 1
                return .array(values)
            }
            try expect(UInt8(ascii: ","))
        }
    }

    mutating func string() throws(JSONValue.SyntaxError) -> String {
        try expect(UInt8(ascii: "\""))
        var out: [UInt8] = []
        while true {
            let byte = try peek()
            position += 1
            switch byte {
            case UInt8(ascii: "\""):
                guard let text = String(validating: out, as: UTF8.self) else { throw failed("a string is not UTF-8") }
                return text
            case UInt8(ascii: "\\"): try escape(into: &out)
            case 0..<0x20: throw failed("a control character stands in a string")
            default: out.append(byte)
            }
        }
    }

    mutating func escape(into out: inout [UInt8]) throws(JSONValue.SyntaxError) {
        let byte = try peek()
        position += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): out.append(byte)
        case UInt8(ascii: "b"): out.append(0x08)
        case UInt8(ascii: "f"): out.append(0x0C)
        case UInt8(ascii: "n"): out.append(0x0A)
        case UInt8(ascii: "r"): out.append(0x0D)
        case UInt8(ascii: "t"): out.append(0x09)
        case UInt8(ascii: "u"):
            var code = try fourDigits()
            if 0xD800..<0xDC00 ~= code {
                try expect(UInt8(ascii: "\\"))
                try expect(UInt8(ascii: "u"))
                let low = try fourDigits()
                guard 0xDC00..<0xE000 ~= low else { throw failed("half of a surrogate pair is missing") }
                code = 0x10000 + (code - 0xD800) << 10 + (low - 0xDC00)
            }
            guard let scalar = UnicodeScalar(code) else { throw failed("half of a surrogate pair is missing") }
            out.append(contentsOf: String(Character(scalar)).utf8)
        default: throw failed("unknown escape in a string")
        }
    }

    mutating func fourDigits() throws(JSONValue.SyntaxError) -> UInt32 {
        guard bytes.count - position >= 4, bytes[position..<position + 4].allSatisfy({ UnicodeScalar($0).properties.isASCIIHexDigit }),
            let code = UInt32(String(decoding: bytes[position..<position + 4], as: UTF8.self), radix: 16)
        else { throw failed("\\u needs four hexadecimal digits") }
        position += 4
        return code
    }

    mutating func number() throws(JSONValue.SyntaxError) -> JSONValue {
        let start = position
        func digit() -> Bool { position < bytes.count && 0x30...0x39 ~= bytes[position] }
        func at(_ byte: UInt8) -> Bool { position < bytes.count && bytes[position] == byte }
        func digits() throws(JSONValue.SyntaxError) {
            guard digit() else { throw failed("expected a value") }
            while digit() { position += 1 }
        }
        if at(UInt8(ascii: "-")) { position += 1 }
        if at(UInt8(ascii: "0")) { position += 1 } else { try digits() }
        if at(UInt8(ascii: ".")) {
            position += 1
            try digits()
        }
        if at(UInt8(ascii: "e")) || at(UInt8(ascii: "E")) {
            position += 1
            if at(UInt8(ascii: "+")) || at(UInt8(ascii: "-")) { position += 1 }
            try digits()
        }
        return .number(String(decoding: bytes[start..<position], as: UTF8.self))
    }
}
