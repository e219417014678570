/// The codec `f32`: every value as a little-endian IEEE 754 single, in layout order. Exact.

import Adapters
import CKernels
import Primitives

struct Float32Codec: PayloadCodec {
    static let identifier: UInt8 = 0
    static let name = "f32"
    static let form = "f32"

    init() {}
    init?(parsing parts: [Substring]) { guard parts.isEmpty else { return nil } }

    let isExact = true
    let allowsErrorFeedback = false

    func byteCounts(_ layout: AdapterLayout) -> ClosedRange<Int> {
        let count = layout.parameterCount * MemoryLayout<Float>.size
        return count...count
    }

    func encode(_ state: AdapterState, rounding: inout SeededGenerator?, path: Int32, _ writer: inout ByteWriter) {
        writer.write(raw: state.values)
    }

    func decode(
        _ payload: UnsafeRawBufferPointer, _ layout: AdapterLayout, into values: UnsafeMutableBufferPointer<Float>, path: Int32
    ) throws(DecodeError) {
        UnsafeMutableRawBufferPointer(values).copyMemory(from: payload)
        guard let target = values.baseAddress, !tributary_largest_magnitude(path, target, values.count).isFinite else { return }
        if let index = values.firstIndex(where: { !$0.isFinite }) { throw .notFinite(index) }
    }
}
