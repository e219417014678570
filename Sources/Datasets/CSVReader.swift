/// Comma-separated values (RFC 4180), row by row with line numbers, every field exactly as it is written.

import Primitives

/// Of our own because white space at the edges of a field is data here, and because a person needs to know the line of
/// an unclosed quote.
struct CSVReader {
    private let bytes: ArraySlice<UInt8>
    private let path: String
    private var position: Int
    private var line = 1

    init(bytes: ArraySlice<UInt8>, path: String) {
        self.bytes = bytes
        self.path = path
        position = bytes.startIndex
    }

    /// The next row with the line on which it starts, nil at the end. Empty lines are passed over.
    mutating func row() throws(Failure) -> (fields: [String], line: Int)? {
        while let byte = peek, byte == 0x0A || byte == 0x0D { endLine() }
        guard peek != nil else { return nil }
        let start = line
        var fields: [String] = []
        while true {
            fields.append(try field())
            guard peek == UInt8(ascii: ",") else { break }
            position += 1
        }
        endLine()
        return (fields, start)
    }

    private var peek: UInt8? { position < bytes.endIndex ? bytes[position] : nil }

    /// Passes over "\n", "\r\n" or "\r"; nothing at the end of the file.
    private mutating func endLine() {
        guard let byte = peek else { return }
        position += 1
        if byte == 0x0D, peek == 0x0A { position += 1 }
        line += 1
    }

    private mutating func field() throws(Failure) -> String {
        if peek == UInt8(ascii: "\"") { return try quoted() }
        let start = position
        while let byte = peek, byte != UInt8(ascii: ","), byte != 0x0A, byte != 0x0D { position += 1 }
        return try text(Array(bytes[start..<position]), line)
    }

    private mutating func quoted() throws(Failure) -> String {
        let start = line
        var out: [UInt8] = []
        position += 1
        while let byte = peek {
            position += 1
            if byte == UInt8(ascii: "\"") {
                guard peek == UInt8(ascii: "\"") else {
                    if let next = peek, next != UInt8(ascii: ","), next != 0x0A, next != 0x0D {
                        throw Failure(
                            .badData,
                            "\(path):\(line): something follows the closing quote of a field; write a quote inside a field twice")
                    }
                    return try text(out, start)
                }
                position += 1
            } else if byte == 0x0A || byte == 0x0D && peek != 0x0A {
                line += 1
            }
            out.append(byte)
        }
        throw Failure(.badData, "\(path):\(start): the quote that opens a field on this line is never closed")
    }

    private func text(_ bytes: [UInt8], _ line: Int) throws(Failure) -> String {
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw Failure(.badData, "\(path):\(line): a field is not UTF-8")
        }
        return text
    }
}
