/// An adapter state as bytes, for contributions and for global states alike.
///
///     magic "TUPD" | version u8 | codec u8 | reserved u16 = 0 | layout digest 32 | value count u64 | payload | CRC-32C u32
///
/// All integers little-endian; the checksum covers everything before it. The receiver knows the layout from its plan,
/// so that nothing is believed that the bytes say about sizes: counts are compared before memory is taken.

import Adapters
import Primitives

public enum EncodedState {
    /// "TUPD", read as a little-endian u32.
    public static let magic: UInt32 = 0x4450_5554
    public static let version: UInt8 = 1
    /// Magic, version, codec, reserved, digest, count.
    public static let headerByteCount = 4 + 1 + 1 + 2 + Digest.byteCount + 8
    /// The checksum.
    public static let trailerByteCount = 4

    /// The most bytes of a state of this layout; of `f32`, `bf16` and `int8` every state has exactly as many.
    public static func byteLimit(layout: AdapterLayout, codec: UpdateCodec) -> Int {
        headerByteCount + codec.payload.byteCounts(layout).upperBound + trailerByteCount
    }

    /// - Parameters:
    ///   - state: finite; what is made of another is refused by `decode`.
    ///   - rounding: required where `codec.usesRandomness`. Equal generators give equal bytes.
    public static func encode(_ state: AdapterState, codec: UpdateCodec = .float32, rounding: SeededGenerator? = nil) -> [UInt8] {
        encode(state, codec: codec, rounding: rounding, path: kernelPath)
    }

    /// On another path than this process has chosen; the bytes are the same on each.
    package static func encode(_ state: AdapterState, codec: UpdateCodec, rounding: SeededGenerator?, path: Int32) -> [UInt8] {
        precondition(!codec.usesRandomness || rounding != nil, "\(codec) rounds at random: pass a generator")
        let counts = codec.payload.byteCounts(state.layout)
        var writer = ByteWriter(
            capacity: headerByteCount + trailerByteCount + (counts.count == 1 ? counts.upperBound : 0))
        writer.write(magic)
        writer.write(version)
        writer.write(codec.identifier)
        writer.write(UInt16(0))
        writer.write(state.layout.digest)
        writer.write(UInt64(state.values.count))
        var rounding = rounding
        codec.payload.encode(state, rounding: &rounding, path: path, &writer)
        writer.write(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// - Parameter codecs: those that the plan allows here, with their parameters: a message with more kept values than
    ///   the density of each of them has is refused.
    /// - Throws: `DecodeError` for anything but what `encode` can write for a finite state of this layout.
    public static func decode(
        _ bytes: [UInt8], layout: AdapterLayout, codecs: [UpdateCodec] = [.float32]
    ) throws(DecodeError) -> AdapterState {
        try decode(bytes, layout: layout, codecs: codecs, path: kernelPath)
    }

    /// On another path than this process has chosen; the values are the same on each.
    package static func decode(
        _ bytes: [UInt8], layout: AdapterLayout, codecs: [UpdateCodec], path: Int32
    ) throws(DecodeError) -> AdapterState {
        let overhead = headerByteCount + trailerByteCount
        let limit = codecs.map { byteLimit(layout: layout, codec: $0) }.max() ?? overhead
        guard bytes.count >= overhead else { throw .tooShort(bytes: bytes.count, minimum: overhead) }
        guard bytes.count <= limit else { throw .tooLong(bytes: bytes.count, limit: limit) }
        var reader = ByteReader(bytes)
        let header = try readHeader(&reader, bytes)
        let candidates = codecs.filter { $0.identifier == header.codec }
        guard !candidates.isEmpty else {
            throw .codecNotAllowed(header.codec, allowed: codecs.map(\.description))
        }
        guard header.reserved == 0 else { throw .reservedNotZero(header.reserved) }
        guard header.layout == layout.digest else { throw .otherLayout(expected: layout.digest, found: header.layout) }
        guard header.count == UInt64(layout.parameterCount) else {
            throw .wrongCount(expected: layout.parameterCount, found: header.count)
        }
        // The parameters are not in the message: the first codec under which it is one counts.
        var objection: DecodeError?
        for codec in candidates {
            do throws(DecodeError) { return try decode(bytes, layout, codec, path) } catch { objection = objection ?? error }
        }
        throw objection!
    }

    /// Values of a message whose header and checksum are right.
    private static func decode(
        _ bytes: [UInt8], _ layout: AdapterLayout, _ codec: UpdateCodec, _ path: Int32
    ) throws(DecodeError) -> AdapterState {
        let allowed = codec.payload.byteCounts(layout)
        let count = bytes.count - headerByteCount - trailerByteCount
        guard allowed.contains(count) else {
            throw .wrongPayload(expected: count < allowed.lowerBound ? allowed.lowerBound : allowed.upperBound, found: count)
        }
        var values = [Float](repeating: 0, count: layout.parameterCount)
        var objection: DecodeError?
        bytes.withUnsafeBytes { bytes in
            values.withUnsafeMutableBufferPointer { values in
                do throws(DecodeError) {
                    try codec.payload.decode(
                        UnsafeRawBufferPointer(rebasing: bytes[headerByteCount..<headerByteCount + count]), layout, into: values,
                        path: path)
                } catch { objection = error }
            }
        }
        if let objection { throw objection }
        return AdapterState(layout: layout, values: values)
    }

    private struct Header {
        let magic: UInt32
        let version: UInt8
        let codec: UInt8
        let reserved: UInt16
        let layout: Digest
        let count: UInt64
        let checksum: UInt32

        init(_ reader: inout ByteReader, trailer: ArraySlice<UInt8>) throws(ByteReaderError) {
            magic = try reader.read()
            version = try reader.read()
            codec = try reader.read()
            reserved = try reader.read()
            layout = try reader.readDigest()
            count = try reader.read()
            var end = ByteReader(trailer)
            checksum = try end.read()
        }
    }

    /// The header, once the checksum holds: nothing but magic and version is believed before, so that a damaged
    /// digest is reported as damage and not as another adapter.
    private static func readHeader(_ reader: inout ByteReader, _ bytes: [UInt8]) throws(DecodeError) -> Header {
        let header: Header
        do {
            header = try Header(&reader, trailer: bytes.suffix(trailerByteCount))
        } catch {
            throw .tooShort(bytes: bytes.count, minimum: headerByteCount + trailerByteCount)
        }
        guard header.magic == magic else { throw .notAnUpdate(header.magic) }
        guard header.version == version else { throw .unknownVersion(header.version) }
        let computed = bytes.withUnsafeBytes {
            CRC32C.checksum(UnsafeRawBufferPointer(rebasing: $0.dropLast(trailerByteCount)))
        }
        guard header.checksum == computed else { throw .damaged(stored: header.checksum, computed: computed) }
        return header
    }
}
