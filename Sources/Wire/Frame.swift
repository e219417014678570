/// A frame: sixteen bytes of header, then a message's body.
///
///     offset  size  field
///          0     4  magic, the letters "TRIB"
///          4     1  protocol version
///          5     1  kind: 1-127 are requests, 129-255 replies
///          6     2  reserved, zero
///          8     4  body length
///         12     4  CRC-32C of bytes 0-11 and the body
///
/// Integers are little-endian. The version is at a place that never moves, so that any version can name any other.

import Primitives

public struct Frame: Equatable, Sendable {
    public let kind: UInt8
    public let body: [UInt8]

    public init(kind: UInt8, body: [UInt8]) {
        self.kind = kind
        self.body = body
    }

    /// "TRIB" read as a little-endian u32.
    static let magic: UInt32 = 0x4249_5254

    public func encoded() -> [UInt8] {
        precondition(body.count <= UInt32.max, "a frame's body has \(body.count) bytes")
        var header = ByteWriter(capacity: WireLimits.headerBytes + body.count)
        header.write(Self.magic)
        header.write(WireLimits.protocolVersion)
        header.write(kind)
        header.write(UInt16(0))
        header.write(UInt32(body.count))
        header.write(CRC32C.checksum(body, continuing: CRC32C.checksum(header.bytes)))
        header.write(raw: body)
        return header.bytes
    }

    /// Takes no memory for the body before length, magic, version, kind and limit have been checked.
    ///
    /// - Parameter limit: the largest body of a kind, or nil for a kind that does not belong here
    public init(decoding bytes: [UInt8], limit: (_ kind: UInt8) -> Int?) throws(WireError) {
        guard bytes.count >= WireLimits.headerBytes else {
            throw .truncated(needed: WireLimits.headerBytes, available: bytes.count)
        }
        func word(_ offset: Int) -> UInt32 {
            (0..<4).reduce(0) { $0 | UInt32(bytes[offset + $1]) << UInt32(8 * $1) }
        }
        guard word(0) == Self.magic else { throw .notTributary }
        guard bytes[4] == WireLimits.protocolVersion else { throw .unsupportedVersion(bytes[4]) }
        guard let most = limit(bytes[5]) else { throw .unknownKind(bytes[5]) }
        guard bytes[6] == 0, bytes[7] == 0 else { throw .reservedNotZero }
        let length = Int(word(8))
        guard length <= most else { throw .bodyTooLarge(count: length, limit: most) }
        let end = WireLimits.headerBytes + length
        guard bytes.count >= end else { throw .truncated(needed: end, available: bytes.count) }
        guard bytes.count == end else { throw .trailing(bytes.count - end) }
        let checksum = bytes.withUnsafeBytes { all in
            CRC32C.checksum(
                UnsafeRawBufferPointer(rebasing: all[WireLimits.headerBytes...]),
                continuing: CRC32C.checksum(UnsafeRawBufferPointer(rebasing: all[..<12])))
        }
        guard checksum == word(12) else { throw .badChecksum }
        kind = bytes[5]
        body = Array(bytes[WireLimits.headerBytes...])
    }
}
