/// Little-endian bytes, written in order.

public struct ByteWriter: Sendable {
    public private(set) var bytes: [UInt8] = []

    public init(capacity: Int = 0) {
        bytes.reserveCapacity(capacity)
    }

    public mutating func write(_ value: some FixedWidthInteger) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    public mutating func write(_ value: Float) { write(value.bitPattern) }
    public mutating func write(_ value: Double) { write(value.bitPattern) }
    public mutating func write(_ value: Bool) { write(UInt8(value ? 1 : 0)) }
    public mutating func write(_ value: Digest) { bytes.append(contentsOf: value.bytes) }

    /// Bytes as they are, with no length before them.
    public mutating func write(raw value: some Sequence<UInt8>) { bytes.append(contentsOf: value) }

    /// A count of elements as u32, then each float.
    public mutating func write(_ values: [Float]) {
        write(UInt32(values.count))
        write(raw: values)
    }

    /// Floats as they are, with no count before them.
    public mutating func write(raw values: [Float]) {
        // Every supported machine is little-endian, so that the memory is already the encoding.
        values.withUnsafeBytes { bytes.append(contentsOf: $0) }
    }

    /// A byte count as u32, then the bytes.
    public mutating func write(counted value: some Collection<UInt8>) {
        write(UInt32(value.count))
        bytes.append(contentsOf: value)
    }

    /// A byte count as u32, then UTF-8.
    public mutating func write(_ value: String) { write(counted: value.utf8) }

    /// A presence byte, then the value.
    public mutating func write<T>(_ value: T?, _ body: (inout ByteWriter, T) -> Void) {
        write(value != nil)
        if let value { body(&self, value) }
    }
}
