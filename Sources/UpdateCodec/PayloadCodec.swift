/// What a codec is made of: its row in the table of codecs.

import Adapters
import CKernels
import Primitives

protocol PayloadCodec: Sendable {
    static var identifier: UInt8 { get }
    /// The first word of the text.
    static var name: String { get }
    /// How the whole text is written, for people.
    static var form: String { get }

    /// From the parts of the text after the name; nil if they are not of this form.
    /// - Throws: `Failure(.usage)` for a parameter out of its range.
    init?(parsing parts: [Substring]) throws(Failure)
    /// The parts of the text after the name.
    var parameters: [String] { get }

    var isExact: Bool { get }
    var allowsErrorFeedback: Bool { get }
    var usesRandomness: Bool { get }

    /// Bytes of a payload: the only count that there is, or the least and the most.
    func byteCounts(_ layout: AdapterLayout) -> ClosedRange<Int>
    /// Writes the payload of a state. `rounding` is there where `usesRandomness`.
    func encode(_ state: AdapterState, rounding: inout SeededGenerator?, path: Int32, _ writer: inout ByteWriter)
    /// Sets `values`, which are `layout.parameterCount` zeros, from a payload whose size is within `byteCounts`.
    /// - Throws: `DecodeError` for what `encode` would not write.
    func decode(
        _ payload: UnsafeRawBufferPointer, _ layout: AdapterLayout, into values: UnsafeMutableBufferPointer<Float>, path: Int32
    ) throws(DecodeError)
}

extension PayloadCodec {
    var parameters: [String] { [] }
    var isExact: Bool { false }
    var allowsErrorFeedback: Bool { true }
    var usesRandomness: Bool { false }
}

/// The instructions that kernels of this module use; all of them give the same bits.
let kernelPath: Int32 = tributary_default_path()

extension ByteWriter {
    /// `count` bytes as `fill` leaves them; it may write up to `slack` bytes after them.
    mutating func write(count: Int, slack: Int = 0, _ fill: (UnsafeMutablePointer<UInt8>) -> Void) {
        write(
            raw: [UInt8](unsafeUninitializedCapacity: count + slack) { target, initialized in
                if let base = target.baseAddress { fill(base) }
                initialized = count
            })
    }
}

extension UnsafeRawBufferPointer {
    /// A little-endian integer at any address.
    func integer<T: FixedWidthInteger>(at offset: Int, as type: T.Type = T.self) -> T {
        T(littleEndian: loadUnaligned(fromByteOffset: offset, as: T.self))
    }

    func float(at offset: Int) -> Float { Float(bitPattern: integer(at: offset)) }

    /// The part from `offset` on. There is at least one byte.
    func bytes(at offset: Int) -> UnsafePointer<UInt8> {
        (baseAddress! + offset).assumingMemoryBound(to: UInt8.self)
    }
}
