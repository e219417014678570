/// Fuzz target `update`: every codec's decoder on a small layout.
///
/// The first byte chooses the codec, and whether the rest is a payload, which gets a right header and checksum, or a whole
/// message, of which only the checksum is put right. What is decoded must be finite and must be encoded and decoded again to
/// the same values (the codecs that round at random, or scale by sigma, need only do it without an error).

import Adapters
import Primitives
import UpdateCodec

extension FuzzTarget {
    static let update = FuzzTarget(name: "update", seeds: UpdateFuzz.seeds, run: UpdateFuzz.run)
}

private enum UpdateFuzz {
    static let codecs: [UpdateCodec] = [
        .float32, .bfloat16, .int8, .topK(0.2), .topK(1), .compeft(density: 0.1), .compeft(density: 0.9),
        .compeft(density: 0.5, scope: .allTensors), .compeft(density: 0.2, scale: .deviations(1)),
    ]

    static let layout = AdapterLayout(
        [3, 40, 1, 150].enumerated().map { index, count in
            AdapterTensor(map: "map.\(index)", role: .core, rows: 1, columns: count, rank: 1, scale: 1)
        })

    static func encode(_ state: AdapterState, _ codec: UpdateCodec) -> [UInt8] {
        EncodedState.encode(state, codec: codec, rounding: SeededGenerator(seed: 0, purpose: "fuzz"))
    }

    @Sendable static func seeds() -> [[UInt8]] {
        var generator = SeededGenerator(seed: 0, purpose: "fuzz seeds")
        return codecs.indices.flatMap { index in
            let state = AdapterState(layout: layout, values: (0..<layout.parameterCount).map { _ in generator.symmetric(1) })
            let message = encode(state, codecs[index])
            let payload = message[EncodedState.headerByteCount..<message.count - EncodedState.trailerByteCount]
            return [[UInt8(2 * index)] + payload, [UInt8(2 * index + 1)] + message]
        }
    }

    @Sendable static func run(_ input: [UInt8]) -> String? {
        guard let first = input.first else { return "the input is empty" }
        let codec = codecs[Int(first) / 2 % codecs.count]
        var writer = ByteWriter()
        if first % 2 == 0 {
            writer.write(EncodedState.magic)
            writer.write(EncodedState.version)
            writer.write(codec.identifier)
            writer.write(UInt16(0))
            writer.write(layout.digest)
            writer.write(UInt64(layout.parameterCount))
            writer.write(raw: input.dropFirst())
        } else {
            writer.write(raw: input.dropFirst().dropLast(EncodedState.trailerByteCount))
        }
        writer.write(CRC32C.checksum(writer.bytes))
        let decoded: AdapterState
        do throws(DecodeError) {
            decoded = try EncodedState.decode(writer.bytes, layout: layout, codecs: first % 2 == 0 ? [codec] : codecs)
        } catch {
            precondition(!error.description.isEmpty)
            return error.description
        }
        precondition(decoded.values.allSatisfy { $0.isFinite }, "a value is not finite")
        do throws(DecodeError) {
            let again = try EncodedState.decode(encode(decoded, codec), layout: layout, codecs: [codec])
            if first % 2 == 0, codec.isExact || codec.allowsErrorFeedback && !codec.usesRandomness {
                precondition(again == decoded, "encoding what was decoded changes it")
            }
        } catch {
            preconditionFailure("what was decoded is refused when it is encoded again: \(error)")
        }
        return nil
    }
}
