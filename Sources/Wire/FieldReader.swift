/// Reads a message's fields by name, so that an error says which one is wrong.

import Primitives

/// A message's body, or a part of it: what every message type is made of.
protocol WireFields {
    func write(to writer: inout ByteWriter)
    init(from reader: inout FieldReader) throws(WireError)
}

struct FieldReader {
    private var reader: ByteReader

    init(_ body: [UInt8]) {
        reader = ByteReader(body)
    }

    mutating func integer<T: FixedWidthInteger>(_ field: String, _ type: T.Type = T.self) throws(WireError) -> T {
        try named(field) { reader throws(ByteReaderError) in try reader.read(T.self) }
    }

    mutating func bool(_ field: String) throws(WireError) -> Bool {
        try named(field) { reader throws(ByteReaderError) in try reader.readBool() }
    }

    /// A finite number: NaN and infinities have no place in a loss or a time.
    mutating func float(_ field: String) throws(WireError) -> Float {
        let value = try named(field) { reader throws(ByteReaderError) in try reader.readFloat() }
        guard value.isFinite else { throw .malformed(field: field, problem: "\(value) is not a finite number") }
        return value
    }

    /// A finite number: NaN and infinities have no place in a loss or a time.
    mutating func double(_ field: String) throws(WireError) -> Double {
        let value = try named(field) { reader throws(ByteReaderError) in try reader.readDouble() }
        guard value.isFinite else { throw .malformed(field: field, problem: "\(value) is not a finite number") }
        return value
    }

    mutating func digest(_ field: String) throws(WireError) -> Digest {
        try named(field) { reader throws(ByteReaderError) in try reader.readDigest() }
    }

    mutating func string(_ field: String, limit: Int) throws(WireError) -> String {
        try named(field) { reader throws(ByteReaderError) in try reader.readString(limit: limit) }
    }

    /// A u32 count, then that many bytes.
    mutating func bytes(_ field: String, limit: Int) throws(WireError) -> [UInt8] {
        try named(field) { reader throws(ByteReaderError) in try reader.readCounted(limit: limit) }
    }

    /// Exactly `count` bytes.
    mutating func bytes(_ field: String, count: Int) throws(WireError) -> [UInt8] {
        try named(field) { reader throws(ByteReaderError) in try reader.take(count) }
    }

    /// One byte that names a case.
    mutating func choice<T: RawRepresentable>(_ field: String, _ type: T.Type = T.self) throws(WireError) -> T
    where T.RawValue == UInt8 {
        let code = try integer(field, UInt8.self)
        guard let value = T(rawValue: code) else { throw .malformed(field: field, problem: "there is no choice \(code)") }
        return value
    }

    /// A presence byte, then the value.
    mutating func optional<T>(_ field: String, _ body: (inout FieldReader) throws(WireError) -> T) throws(WireError) -> T? {
        try bool(field) ? try body(&self) : nil
    }

    /// A u32 count, then the elements. The count is checked against the limit and the bytes left before memory is taken.
    ///
    /// - Parameter elementBytes: the least that an element takes
    mutating func list<T>(
        _ field: String, limit: Int, elementBytes: Int, _ body: (inout FieldReader) throws(WireError) -> T
    ) throws(WireError) -> [T] {
        let count = Int(try integer(field, UInt32.self))
        guard count <= limit else { throw .malformed(field: field, problem: "\(count) elements; the most is \(limit)") }
        guard count <= reader.remaining / elementBytes else {
            throw .malformed(field: field, problem: "\(count) elements do not fit in the \(reader.remaining) bytes left")
        }
        var values: [T] = []
        values.reserveCapacity(count)
        for _ in 0..<count { values.append(try body(&self)) }
        return values
    }

    func finish() throws(WireError) {
        guard reader.remaining == 0 else {
            throw .malformed(field: "end", problem: "\(reader.remaining) bytes follow the last field")
        }
    }

    private mutating func named<T>(
        _ field: String, _ body: (inout ByteReader) throws(ByteReaderError) -> T
    ) throws(WireError) -> T {
        do throws(ByteReaderError) {
            return try body(&reader)
        } catch {
            let problem =
                switch error {
                case .truncated(let needed, let available): "it needs \(needed) bytes and \(available) are left"
                case .tooLong(let count, let limit): "\(count) bytes; the most is \(limit)"
                case .notUTF8: "it is not UTF-8"
                case .notABoolean(let byte): "\(byte) is neither 0 nor 1"
                case .trailing(let count): "\(count) bytes follow"
                }
            throw .malformed(field: field, problem: problem)
        }
    }
}

extension ByteWriter {
    /// Text for a person: cut at a character's border where it is longer than the limit.
    mutating func write(sentence text: String) {
        var text = text[...]
        while text.utf8.count > WireLimits.sentenceBytes { text.removeLast() }
        write(String(text))
    }
}
