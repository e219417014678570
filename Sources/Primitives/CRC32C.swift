/// CRC-32C (RFC 3720, appendix B.4): what tells a damaged frame or state from a whole one.

import CCryptography

public enum CRC32C {
    /// - Parameter previous: the checksum of the bytes before these; 0 at the start.
    public static func checksum(_ bytes: [UInt8], continuing previous: UInt32 = 0) -> UInt32 {
        bytes.withUnsafeBytes { checksum($0, continuing: previous) }
    }

    public static func checksum(_ bytes: UnsafeRawBufferPointer, continuing previous: UInt32 = 0) -> UInt32 {
        guard let start = bytes.baseAddress else { return previous }
        return tributary_crc32c(previous, start.assumingMemoryBound(to: UInt8.self), bytes.count)
    }
}
