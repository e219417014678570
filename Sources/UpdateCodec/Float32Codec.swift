/// The codec `f32`: every value as a little-endian IEEE 754 single, in layout order. Exact.

import Adapters
import Primitives

extension UpdateCodec {
    public static let float32 = UpdateCodec(
        identifier: 0,
        name: "f32",
        payloadByteCount: { $0.parameterCount * MemoryLayout<Float>.size },
        isExact: true,
        encode: { state, writer in writer.write(raw: state.values) },
        decode: { (reader: inout ByteReader, count: Int, layout: AdapterLayout) throws(DecodeError) -> [Float] in
            let expected = layout.parameterCount * MemoryLayout<Float>.size
            guard count == expected, let values = try? reader.readFloats(layout.parameterCount) else {
                throw .wrongPayload(expected: expected, found: count)
            }
            if let index = values.firstIndex(where: { !$0.isFinite }) { throw .notFinite(index) }
            return values
        })
}
