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

    /// Bytes of a state of this layout: exact where the codec's size is fixed, else the most that there can be.
    public static func byteCount(layout: AdapterLayout, codec: UpdateCodec = .float32) -> Int {
        headerByteCount + codec.payloadByteCount(layout) + trailerByteCount
    }

    public static func encode(_ state: AdapterState, codec: UpdateCodec = .float32) -> [UInt8] {
        var writer = ByteWriter(capacity: byteCount(layout: state.layout, codec: codec))
        writer.write(magic)
        writer.write(version)
        writer.write(codec.identifier)
        writer.write(UInt16(0))
        writer.write(state.layout.digest)
        writer.write(UInt64(state.values.count))
        codec.encode(state, &writer)
        writer.write(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// - Parameter codecs: those that the plan allows here.
    /// - Throws: `DecodeError` for anything but exactly what `encode` writes for a finite state of this layout.
    public static func decode(
        _ bytes: [UInt8], layout: AdapterLayout, codecs: [UpdateCodec] = UpdateCodec.all
    ) throws(DecodeError) -> AdapterState {
        let overhead = headerByteCount + trailerByteCount
        let limit = codecs.map { byteCount(layout: layout, codec: $0) }.max() ?? overhead
        guard bytes.count >= overhead else { throw .tooShort(bytes: bytes.count, minimum: overhead) }
        guard bytes.count <= limit else { throw .tooLong(bytes: bytes.count, limit: limit) }
        var reader = ByteReader(bytes)
        let header = try readHeader(&reader, bytes)
        guard let codec = codecs.first(where: { $0.identifier == header.codec }) else { throw .unknownCodec(header.codec) }
        guard header.reserved == 0 else { throw .reservedNotZero(header.reserved) }
        guard header.layout == layout.digest else { throw .otherLayout(expected: layout.digest, found: header.layout) }
        guard header.count == UInt64(layout.parameterCount) else {
            throw .wrongCount(expected: layout.parameterCount, found: header.count)
        }
        let payload = bytes.count - overhead
        let bound = codec.payloadByteCount(layout)
        guard payload <= bound, !codec.isExact || payload == bound else {
            throw .wrongPayload(expected: bound, found: payload)
        }
        let values = try codec.decode(&reader, payload, layout)
        guard reader.remaining == trailerByteCount, values.count == layout.parameterCount else {
            throw .wrongPayload(expected: payload - reader.remaining + trailerByteCount, found: payload)
        }
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
