/// The codec `bf16`: every value as the nearest little-endian bfloat16, ties to even, in layout order. A finite value
/// stays finite: what would round to infinity becomes the largest.

import Adapters
import CKernels
import Primitives

struct BFloat16Codec: PayloadCodec {
    static let identifier: UInt8 = 1
    static let name = "bf16"
    static let form = "bf16"

    init() {}
    init?(parsing parts: [Substring]) { guard parts.isEmpty else { return nil } }

    func byteCounts(_ layout: AdapterLayout) -> ClosedRange<Int> {
        let count = layout.parameterCount * MemoryLayout<UInt16>.size
        return count...count
    }

    func encode(_ state: AdapterState, rounding: inout SeededGenerator?, path: Int32, _ writer: inout ByteWriter) {
        writer.write(count: byteCounts(state.layout).upperBound) {
            tributary_round_bf16(path, state.values, state.values.count, $0)
        }
    }

    func decode(
        _ payload: UnsafeRawBufferPointer, _ layout: AdapterLayout, into values: UnsafeMutableBufferPointer<Float>, path: Int32
    ) throws(DecodeError) {
        guard let target = values.baseAddress else { return }
        let index = tributary_widen_bf16(path, payload.bytes(at: 0), values.count, target)
        guard index < 0 else { throw .notFinite(index) }
    }
}
