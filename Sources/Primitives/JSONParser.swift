/// Reads JSON (RFC 8259) by recursive descent over the bytes.

struct JSONParser {
    private let bytes: [UInt8]
    private var position = 0
    /// Deeper nesting is refused: the parser recurses.
    private static let depthLimit = 64

    init(bytes: [UInt8]) { self.bytes = bytes }

    mutating func document() throws(JSONValue.SyntaxError) -> JSONValue {
        let value = try value(depth: 0)
        skipSpace()
        guard position == bytes.count else { throw failed("something follows the end of the value") }
        return value
    }

    private func failed(_ message: String) -> JSONValue.SyntaxError { .init(message: message, position: position) }

    private mutating func skipSpace() {
        while position < bytes.count {
            let byte = bytes[position]
            guard byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 else { return }
            position += 1
        }
    }

    private func peek() throws(JSONValue.SyntaxError) -> UInt8 {
        guard position < bytes.count else { throw failed("the text ends too early") }
        return bytes[position]
    }

    private mutating func expect(_ byte: UInt8) throws(JSONValue.SyntaxError) {
        guard try peek() == byte else { throw failed("expected '\(Character(UnicodeScalar(byte)))'") }
        position += 1
    }

    private mutating func word(_ text: StaticString, _ value: JSONValue) throws(JSONValue.SyntaxError) -> JSONValue {
        let word = text.withUTF8Buffer(Array.init)
        guard bytes.count - position >= word.count, bytes[position..<position + word.count].elementsEqual(word) else {
            throw failed("expected a value")
        }
        position += word.count
        return value
    }

    private mutating func value(depth: Int) throws(JSONValue.SyntaxError) -> JSONValue {
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

    private mutating func object(depth: Int) throws(JSONValue.SyntaxError) -> JSONValue {
        try expect(UInt8(ascii: "{"))
        var members: [JSONValue.Member] = []
        var keys: Set<ExactKey> = []
        skipSpace()
        if try peek() == UInt8(ascii: "}") {
            position += 1
            return .object([])
        }
        while true {
            skipSpace()
            let key = try string()
            guard keys.insert(ExactKey(text: key)).inserted else { throw failed("the key \"\(key.prefix(80))\" occurs twice") }
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

    private mutating func array(depth: Int) throws(JSONValue.SyntaxError) -> JSONValue {
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

    private mutating func string() throws(JSONValue.SyntaxError) -> String {
        try expect(UInt8(ascii: "\""))
        let start = position
        // Most strings hold no escape: one look for the end, one copy.
        while position < bytes.count {
            let byte = bytes[position]
            if byte == UInt8(ascii: "\"") {
                guard let text = String(validating: bytes[start..<position], as: UTF8.self) else {
                    throw failed("a string is not UTF-8")
                }
                position += 1
                return text
            }
            if byte == UInt8(ascii: "\\") { break }
            guard byte >= 0x20 else { throw failed("a control character stands in a string") }
            position += 1
        }
        var out = Array(bytes[start..<position])
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

    private mutating func escape(into out: inout [UInt8]) throws(JSONValue.SyntaxError) {
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
            out.append(contentsOf: UTF8.encode(scalar)!)
        default: throw failed("unknown escape in a string")
        }
    }

    private mutating func fourDigits() throws(JSONValue.SyntaxError) -> UInt32 {
        guard bytes.count - position >= 4 else { throw failed("\\u needs four hexadecimal digits") }
        var code: UInt32 = 0
        for byte in bytes[position..<position + 4] {
            guard let digit = Character(UnicodeScalar(byte)).hexDigitValue, byte < 0x80 else {
                throw failed("\\u needs four hexadecimal digits")
            }
            code = code << 4 | UInt32(digit)
        }
        position += 4
        return code
    }

    private mutating func number() throws(JSONValue.SyntaxError) -> JSONValue {
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

/// A key by its bytes: Swift's own equality of strings is up to canonical equivalence.
private struct ExactKey: Hashable {
    let text: String

    static func == (left: Self, right: Self) -> Bool { left.text.utf8.elementsEqual(right.text.utf8) }

    func hash(into hasher: inout Hasher) {
        var text = text
        text.withUTF8 { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
    }
}
