/// Little-endian bytes, read in order, from a peer or a file that may be hostile: every length is checked
/// against what is left before memory is taken.

public enum ByteReaderError: Error, Equatable, Sendable {
    case truncated(needed: Int, available: Int)
    case tooLong(count: Int, limit: Int)
    case notUTF8
    case notABoolean(UInt8)
    case trailing(Int)
}

public struct ByteReader: Sendable {
    private let bytes: [UInt8]
    private var position: Int
    private let end: Int

    public init(_ bytes: [UInt8]) {
        self.bytes = bytes
        position = 0
        end = bytes.count
    }

    public init(_ bytes: ArraySlice<UInt8>) {
        self.init(Array(bytes))
    }

    public var remaining: Int { end - position }

    public mutating func read<T: FixedWidthInteger>(_ type: T.Type = T.self) throws(ByteReaderError) -> T {
        let size = MemoryLayout<T>.size
        try need(size)
        var value: T = 0
        withUnsafeMutableBytes(of: &value) { target in
            for offset in 0..<size { target[offset] = bytes[position + offset] }
        }
        position += size
        return T(littleEndian: value)
    }

    public mutating func readFloat() throws(ByteReaderError) -> Float { Float(bitPattern: try read()) }
    public mutating func readDouble() throws(ByteReaderError) -> Double { Double(bitPattern: try read()) }

    public mutating func readBool() throws(ByteReaderError) -> Bool {
        let byte: UInt8 = try read()
        guard byte <= 1 else { throw .notABoolean(byte) }
        return byte == 1
    }

    public mutating func readDigest() throws(ByteReaderError) -> Digest {
        Digest(bytes: try take(Digest.byteCount))!
    }

    /// Exactly `count` bytes.
    public mutating func take(_ count: Int) throws(ByteReaderError) -> [UInt8] {
        try need(count)
        defer { position += count }
        return Array(bytes[position..<position + count])
    }

    /// A u32 byte count of at most `limit`, then that many bytes.
    public mutating func readCounted(limit: Int) throws(ByteReaderError) -> [UInt8] {
        let count = Int(try read(UInt32.self))
        guard count <= limit else { throw .tooLong(count: count, limit: limit) }
        return try take(count)
    }

    /// A u32 byte count of at most `limit`, then UTF-8.
    public mutating func readString(limit: Int = 4096) throws(ByteReaderError) -> String {
        guard let text = String(validating: try readCounted(limit: limit), as: UTF8.self) else { throw .notUTF8 }
        return text
    }

    /// Exactly `count` floats.
    public mutating func readFloats(_ count: Int) throws(ByteReaderError) -> [Float] {
        let size = MemoryLayout<Float>.size
        guard count >= 0, count <= remaining / size else { throw .truncated(needed: count, available: remaining / size) }
        let start = position
        position += count * size
        return [Float](unsafeUninitializedCapacity: count) { target, initialized in
            bytes.withUnsafeBytes { source in
                UnsafeMutableRawBufferPointer(target).copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: source[start..<start + count * size]))
            }
            initialized = count
        }
    }

    /// A presence byte, then the value.
    public mutating func readOptional<T>(
        _ body: (inout ByteReader) throws(ByteReaderError) -> T
    ) throws(ByteReaderError) -> T? {
        try readBool() ? try body(&self) : nil
    }

    /// Refuses bytes after the last field.
    public func finish() throws(ByteReaderError) {
        guard remaining == 0 else { throw .trailing(remaining) }
    }

    private func need(_ count: Int) throws(ByteReaderError) {
        guard count >= 0, count <= remaining else { throw .truncated(needed: count, available: remaining) }
    }
}
