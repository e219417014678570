/// SHA-256 as a value: how Tributary names bases, layouts, adapters and contributions.

public struct Digest: Hashable, Comparable, Sendable, CustomStringConvertible {
    public static let byteCount = 32
    public let bytes: [UInt8]

    /// Nil unless there are exactly 32 bytes.
    public init?(bytes: [UInt8]) {
        guard bytes.count == Self.byteCount else { return nil }
        self.bytes = bytes
    }

    /// Nil unless the text is 64 hexadecimal digits.
    public init?(hexadecimal text: String) {
        let digits = text.utf8.map { UInt8(ascii: "0") <= $0 && $0 <= UInt8(ascii: "9") ? Int($0) - 48 : Int($0 | 0x20) - 87 }
        guard digits.count == 2 * Self.byteCount, digits.allSatisfy({ 0..<16 ~= $0 }) else { return nil }
        bytes = stride(from: 0, to: digits.count, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
    }

    public init(of bytes: some Sequence<UInt8>) {
        var hasher = DigestBuilder()
        hasher.update(Array(bytes))
        self = hasher.finish()
    }

    /// 64 lower-case hexadecimal digits.
    public var description: String {
        let digits = Array("0123456789abcdef".utf8)
        return String(decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
    }

    /// The first 12 digits, for messages.
    public var short: String { String(description.prefix(12)) }

    public static func < (left: Digest, right: Digest) -> Bool {
        left.bytes.lexicographicallyPrecedes(right.bytes)
    }
}

extension Digest: Codable {
    public init(from decoder: any Decoder) throws {
        let text = try decoder.singleValueContainer().decode(String.self)
        guard let digest = Digest(hexadecimal: text) else {
            throw DecodingError.dataCorrupted(
                .init(codingPath: decoder.codingPath, debugDescription: "\(text) is not a SHA-256 digest"))
        }
        self = digest
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}

/// SHA-256 over bytes that arrive in parts.
public struct DigestBuilder: Sendable {
    private var state = SHA256()

    public init() {}

    public mutating func update(_ bytes: [UInt8]) { bytes.withUnsafeBytes { state.update($0) } }
    public mutating func update(_ bytes: UnsafeRawBufferPointer) { state.update(bytes) }

    /// A byte count as u64, then UTF-8: so that ("ab", "c") and ("a", "bc") differ.
    public mutating func update(counted text: String) {
        var writer = ByteWriter()
        writer.write(UInt64(text.utf8.count))
        writer.write(raw: text.utf8)
        update(writer.bytes)
    }

    public func finish() -> Digest { Digest(bytes: state.finish())! }
}
