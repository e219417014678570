/// The codec `int8`: for each tensor a scale (f32) and one signed byte a value; value = byte x scale.
///
/// The scale is the largest magnitude / 127, rounded up, so that every quotient is within -127 ... 127. A quotient goes
/// up with a probability that equals its fraction (to 2^-32): what is decoded equals what was encoded on average
/// (stochastic rounding; Alistarh et al. 2017, "QSGD", section 3.1, with one level a unit).

import Adapters
import CKernels
import Primitives

struct Int8Codec: PayloadCodec {
    static let identifier: UInt8 = 2
    static let name = "int8"
    static let form = "int8"
    private static let scaleBytes = MemoryLayout<Float>.size

    init() {}
    init?(parsing parts: [Substring]) { guard parts.isEmpty else { return nil } }

    let usesRandomness = true

    func byteCounts(_ layout: AdapterLayout) -> ClosedRange<Int> {
        let count = layout.tensors.count * Self.scaleBytes + layout.parameterCount
        return count...count
    }

    func encode(_ state: AdapterState, rounding: inout SeededGenerator?, path: Int32, _ writer: inout ByteWriter) {
        guard var generator = rounding else { preconditionFailure("int8 rounds at random: pass a generator") }
        let block = 4096  // values that are rounded with one run of draws
        var draws = [UInt32](repeating: 0, count: block)
        state.values.withUnsafeBufferPointer { values in
            for index in state.layout.tensors.indices {
                let range = state.layout.range(index)
                let tensor = UnsafeBufferPointer(rebasing: values[range])
                let scale =
                    tensor.baseAddress.map { Self.scale(largest: tributary_largest_magnitude(path, $0, range.count)) } ?? 0
                writer.write(scale)
                writer.write(count: range.count) { target in
                    guard scale > 0, scale.isFinite, let base = tensor.baseAddress else {
                        target.initialize(repeating: 0, count: range.count)
                        return
                    }
                    for start in stride(from: 0, to: range.count, by: block) {
                        let count = min(block, range.count - start)
                        draws.withUnsafeMutableBytes { draws in
                            for pair in 0..<(count + 1) / 2 {
                                draws.storeBytes(of: generator.next().littleEndian, toByteOffset: 8 * pair, as: UInt64.self)
                            }
                        }
                        UnsafeMutableRawPointer(target + start).withMemoryRebound(to: Int8.self, capacity: count) {
                            tributary_round_int8(path, base + start, count, scale, draws, $0)
                        }
                    }
                }
            }
        }
        rounding = generator
    }

    /// The least float s with 127 s >= `largest`.
    static func scale(largest: Float) -> Float {
        let scale = largest / 127
        return 127 * Double(scale) < Double(largest) ? scale.nextUp : scale
    }

    func decode(
        _ payload: UnsafeRawBufferPointer, _ layout: AdapterLayout, into values: UnsafeMutableBufferPointer<Float>, path: Int32
    ) throws(DecodeError) {
        guard let target = values.baseAddress else { return }
        var position = 0
        for index in layout.tensors.indices {
            let scale = payload.float(at: position)
            // The largest scale is that of the largest finite value; -0 is none.
            guard scale.sign == .plus, scale <= Self.scale(largest: .greatestFiniteMagnitude) else {
                throw .wrongHeader(tensor: index, field: "scale", value: "\(scale)")
            }
            let range = layout.range(index)
            let bad = (payload.baseAddress! + position + Self.scaleBytes).withMemoryRebound(to: Int8.self, capacity: range.count)
            {
                tributary_widen_int8(path, $0, range.count, scale, target + range.lowerBound)
            }
            guard bad < 0 else { throw .wrongCode(tensor: index) }
            position += Self.scaleBytes + range.count
        }
    }
}
