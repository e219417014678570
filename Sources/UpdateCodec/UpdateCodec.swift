/// How an adapter's values become bytes: one row for each codec. A new codec is one file and one row of `all`.

import Adapters
import Primitives

public struct UpdateCodec: Sendable {
    /// The byte that names the codec in an encoded update; never reused for another codec.
    public let identifier: UInt8
    /// The name in plans, on the command line and in records.
    public let name: String
    /// The most bytes that the values of a layout take, headers not counted; the exact number where `isExact`.
    public let payloadByteCount: @Sendable (_ layout: AdapterLayout) -> Int
    /// True if every payload of a layout has exactly `payloadByteCount` bytes.
    public let isExact: Bool
    /// Writes the payload of a state.
    public let encode: @Sendable (_ state: AdapterState, _ writer: inout ByteWriter) -> Void
    /// Reads `count` payload bytes, which are there, into `layout.parameterCount` finite values.
    public let decode:
        @Sendable (_ reader: inout ByteReader, _ count: Int, _ layout: AdapterLayout) throws(DecodeError) -> [Float]

    /// Every codec, in the order in which they are listed to people.
    public static let all: [UpdateCodec] = [.float32]

    public static func named(_ name: String) -> UpdateCodec? { all.first { $0.name == name } }
}

extension UpdateCodec: Equatable {
    public static func == (left: UpdateCodec, right: UpdateCodec) -> Bool { left.identifier == right.identifier }
}
