/// The codec `topk:K`: of each tensor the share K that is largest in magnitude, as bfloat16; the rest is zero.
///
/// For each tensor a `SparseHeader` with scale 0, the Golomb-coded positions, and the kept values in their order. A value
/// that bfloat16 has only zero for is never kept.

import Adapters
import CKernels
import Primitives

struct TopKCodec: PayloadCodec {
    static let identifier: UInt8 = 3
    static let name = "topk"
    static let form = "topk:K with 0 < K <= 1, as in topk:0.05"
    private static let valueBytes = MemoryLayout<UInt16>.size
    /// The largest magnitude that bfloat16 rounds to zero: half of its smallest, a tie that goes to even.
    private static let floor: UInt32 = 0x8000

    let density: Density

    init(density: Double) { self.density = Density(density) }

    init?(parsing parts: [Substring]) throws(Failure) {
        guard parts.count == 1 else { return nil }
        density = try Density(parsing: parts[0])
    }

    var parameters: [String] { [density.description] }

    func byteCounts(_ layout: AdapterLayout) -> ClosedRange<Int> {
        SparsePayload.byteCounts(layout) { tensor in
            let kept = density.keptCount(of: tensor.count)
            return (SparsePayload.mostBits(kept: kept, of: tensor.count, signs: false) + 7) / 8 + Self.valueBytes * kept
        }
    }

    func encode(_ state: AdapterState, rounding: inout SeededGenerator?, path: Int32, _ writer: inout ByteWriter) {
        let layout = state.layout
        state.values.withUnsafeBufferPointer { values in
            for index in layout.tensors.indices {
                let range = layout.range(index)
                let tensor = UnsafeBufferPointer(rebasing: values[range])
                let kept = SparsePayload.largest(
                    density.keptCount(of: range.count), of: tensor, tensors: [0..<range.count], floor: Self.floor, path: path)[0]
                SparsePayload.write(kept, of: tensor, scale: 0, signs: false, valueBytes: Self.valueBytes, &writer)
                writer.write(count: Self.valueBytes * kept.count) { target in
                    if let base = tensor.baseAddress { tributary_round_bf16_at(base, kept, kept.count, target) }
                }
            }
        }
    }

    func decode(
        _ payload: UnsafeRawBufferPointer, _ layout: AdapterLayout, into values: UnsafeMutableBufferPointer<Float>, path: Int32
    ) throws(DecodeError) {
        let headers = try SparsePayload.readHeaders(payload, layout)
        for (index, header) in headers.enumerated() {
            let count = layout.tensors[index].count
            let allowed = density.keptCount(of: count)
            guard header.kept <= allowed else { throw .tooManyKept(tensor: index, kept: header.kept, allowed: allowed) }
            guard header.scale.bitPattern == 0 else {
                throw .wrongHeader(tensor: index, field: "scale", value: "\(header.scale)")
            }
            let valueBytes = Self.valueBytes * header.kept
            guard header.byteCount >= valueBytes else { throw .wrongCode(tensor: index) }
            guard header.kept > 0, let target = values.baseAddress else { continue }
            let bits = payload.bytes(at: header.offset)
            let positionBytes = header.byteCount - valueBytes
            guard
                tributary_golomb_decode_bf16(
                    bits, positionBytes, header.kept, header.parameter, count, bits + positionBytes,
                    target + layout.offsets[index]) == 0
            else { throw .wrongCode(tensor: index) }
        }
    }
}
