/// Codecs, layouts and states that the tests of this folder share.

import Adapters
import CKernels
import Checkpoints
import Primitives
import UpdateCodec

enum Samples {
    /// Every codec of the table, those with parameters more than once.
    static let codecs: [UpdateCodec] = [
        .float32, .bfloat16, .int8, .topK(0.2), .topK(1), .compeft(density: 0.1), .compeft(density: 0.5, scope: .allTensors),
        .compeft(density: 0.2, scale: .deviations(1)), .compeft(density: 0.05, scope: .allTensors, scale: .deviations(2.5)),
    ]

    static let maps = [
        LinearMap(name: "model.layers.0.self_attn.q_proj", outputs: 7, inputs: 5),
        LinearMap(name: "model.layers.0.mlp.down_proj", outputs: 4, inputs: 6),
    ]

    static func layout(rank: Int = 2, alpha: Double = 4) throws -> AdapterLayout {
        try AdapterSpecification(method: .lora, maps: maps, rank: rank, alpha: alpha, rankStabilized: false).trainedLayout
    }

    /// One tensor of each size.
    static func layout(_ counts: [Int]) -> AdapterLayout {
        AdapterLayout(
            counts.enumerated().map { index, count in
                AdapterTensor(map: "map.\(index)", role: .core, rows: 1, columns: count, rank: 1, scale: 1)
            })
    }

    static func state(_ layout: AdapterLayout, seed: UInt64 = 1) -> AdapterState {
        var generator = SeededGenerator(seed: seed, purpose: "codec test")
        return AdapterState(layout: layout, values: (0..<layout.parameterCount).map { _ in generator.symmetric(3) })
    }

    /// A message in any codec.
    static func encode(_ state: AdapterState, _ codec: UpdateCodec, seed: UInt64 = 1) -> [UInt8] {
        EncodedState.encode(state, codec: codec, rounding: SeededGenerator(seed: seed, purpose: "rounding"))
    }

    static func roundTrip(_ state: AdapterState, _ codec: UpdateCodec, seed: UInt64 = 1) throws -> AdapterState {
        try EncodedState.decode(encode(state, codec, seed: seed), layout: state.layout, codecs: [codec])
    }

    static func payload(_ message: [UInt8]) -> [UInt8] {
        Array(message[EncodedState.headerByteCount..<message.count - EncodedState.trailerByteCount])
    }

    /// A message of this payload, with the right header and checksum.
    static func message(_ payload: [UInt8], _ codec: UpdateCodec, _ layout: AdapterLayout) -> [UInt8] {
        var writer = ByteWriter()
        writer.write(EncodedState.magic)
        writer.write(EncodedState.version)
        writer.write(codec.identifier)
        writer.write(UInt16(0))
        writer.write(layout.digest)
        writer.write(UInt64(layout.parameterCount))
        writer.write(raw: payload)
        writer.write(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// The same bytes with one part replaced and the checksum made right again.
    static func forged(_ bytes: [UInt8], at offset: Int, _ replacement: [UInt8]) -> [UInt8] {
        var bytes = Array(bytes.dropLast(4))
        bytes.replaceSubrange(offset..<offset + replacement.count, with: replacement)
        var writer = ByteWriter()
        writer.write(raw: bytes)
        writer.write(CRC32C.checksum(bytes))
        return writer.bytes
    }

    /// Kernel paths of this processor.
    static let paths: [Int32] = [0, 1, 2].filter { tributary_path_supported($0) != 0 }

    /// Values that selections get wrong: random, few different ones, all equal, tiny, zeros among them, clustered.
    static func awkward(_ count: Int, seed: UInt64) -> [(String, [Float])] {
        var generator = SeededGenerator(seed: seed, purpose: "awkward")
        func make(_ body: (Int) -> Float) -> [Float] { (0..<count).map(body) }
        let random = make { _ in generator.symmetric(1) }
        let wide = make { _ in
            generator.symmetric(1) * Float(sign: .plus, exponent: generator.integer(below: 250) - 126, significand: 1)
        }
        let tied = make { _ in Float(generator.integer(below: 5) - 2) }
        let denormal = make { _ in
            Float(bitPattern: UInt32(generator.integer(below: 40_000)) | UInt32(generator.integer(below: 2)) << 31)
        }
        let sparse = make { _ in generator.integer(below: 40) == 0 ? generator.symmetric(1) : 0 }
        let close = make { _ in Float(bitPattern: 0x3F80_0000 + UInt32(generator.integer(below: 300))) }
        let clustered = make { $0 % 256 < 16 ? generator.symmetric(1) : generator.symmetric(1e-3) }
        return [
            ("random", random), ("wide", wide), ("tied", tied), ("denormal", denormal), ("sparse", sparse), ("close", close),
            ("clustered", clustered), ("constant", make { _ in -0.5 }), ("zero", make { $0 % 2 == 0 ? 0 : -0.0 }),
            ("largest", make { $0 % 3 == 0 ? .greatestFiniteMagnitude : -.greatestFiniteMagnitude }),
        ]
    }
}
