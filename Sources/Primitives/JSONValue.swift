/// JSON as a value: keys keep their order and numbers their text, so that a file can be written back unchanged.
///
/// A parser of our own because a tokenizer's vocabulary needs exact keys ("Å" and "Å" are two keys, though Swift calls the
/// strings equal), 128,000 of them in well under a second, and because a file may come from a stranger: nesting is
/// bounded, and every error has a position.

public enum JSONValue: Equatable, Sendable {
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

    /// A real number, or null for nil and for what JSON cannot say.
    public static func optional(_ value: Double?) -> JSONValue {
        guard let value, value.isFinite else { return .null }
        return .number("\(value)")
    }

    /// The value under `key`, or nil if this is no object or has no such key.
    public subscript(key: String) -> JSONValue? {
        guard case .object(let members) = self else { return nil }
        return members.first { $0.key.utf8.elementsEqual(key.utf8) }?.value
    }

    public var isNull: Bool {
        if case .null = self { true } else { false }
    }

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

    /// What kind of value this is, for messages: "a string", "an object".
    public var kind: String {
        switch self {
        case .null: "null"
        case .boolean: "a boolean"
        case .number: "a number"
        case .string: "a string"
        case .array: "an array"
        case .object: "an object"
        }
    }

    /// Replaces or adds a member; nothing happens unless this is an object.
    public mutating func set(_ key: String, _ value: JSONValue) {
        guard case .object(var members) = self else { return }
        if let index = members.firstIndex(where: { $0.key.utf8.elementsEqual(key.utf8) }) {
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
