/// `bf16` and `int8`: rounding, and rounding at random.

import Adapters
import Checkpoints
import Primitives
import TestSupport
import Testing
import UpdateCodec

@Suite struct DenseCodecTests {
    @Test func bfloat16RoundsToNearestAndTiesToEven() throws {
        let cases: [(Float, UInt32)] = [
            (Float(bitPattern: 0x3F80_8000), 0x3F80), (Float(bitPattern: 0x3F81_8000), 0x3F82),
            (Float(bitPattern: 0x3F80_8001), 0x3F81),
            (Float(bitPattern: 0x3F80_7FFF), 0x3F80), (-1, 0xBF80), (-0.0, 0x8000), (.greatestFiniteMagnitude, 0x7F7F),
            (-.greatestFiniteMagnitude, 0xFF7F), (Float(bitPattern: 0x7F7F_7FFF), 0x7F7F), (.leastNonzeroMagnitude, 0),
            (Float(bitPattern: 0x8001), 1),
        ]
        let layout = Samples.layout([cases.count])
        let bytes = EncodedState.encode(AdapterState(layout: layout, values: cases.map(\.0)), codec: .bfloat16)
        #expect(Samples.payload(bytes) == cases.flatMap { [UInt8($0.1 & 0xFF), UInt8($0.1 >> 8)] })
        #expect(bytes.count == EncodedState.byteLimit(layout: layout, codec: .bfloat16))
        let decoded = try EncodedState.decode(bytes, layout: layout, codecs: [.bfloat16])
        #expect(decoded.values.map(\.bitPattern) == cases.map { $0.1 << 16 })
    }

    @Test func bfloat16RoundsAsCheckpointsDo() throws {
        for (name, values) in Samples.awkward(333, seed: 2) where name != "largest" {
            let state = AdapterState(layout: Samples.layout([333]), values: values)
            let expected = values.map { bfloat16Value(bfloat16Bits($0)).bitPattern }
            #expect(try Samples.roundTrip(state, .bfloat16).values.map(\.bitPattern) == expected, "\(name)")
        }
    }

    @Test func aByteIsOffByLessThanTheScaleAndTheLargestValueFits() throws {
        for count in [1, 2, 63, 64, 1000, 4096, 4097, 9001] {
            for (name, values) in Samples.awkward(count, seed: UInt64(count)) {
                let layout = Samples.layout([count])
                let decoded = try Samples.roundTrip(AdapterState(layout: layout, values: values), .int8, seed: 7)
                let largest = values.reduce(0) { max($0, abs($1)) }
                let scale = max(largest / 127, largest > 0 ? .leastNonzeroMagnitude : 0).nextUp
                for (value, result) in zip(values, decoded.values) {
                    #expect(abs(Double(value) - Double(result)) <= Double(scale), "\(name), \(count): \(value) became \(result)")
                    #expect(value != 0 || result == 0)
                }
            }
        }
    }

    /// Over 400 generators the mean is within six standard errors of what was encoded, value by value and in the mean of all.
    @Test func bytesAreRoundedWithoutBias() throws {
        let layout = Samples.layout([501, 20])
        let state = Samples.state(layout)
        let trials = 400
        var sums = [Double](repeating: 0, count: layout.parameterCount)
        for seed in 0..<UInt64(trials) {
            let decoded = try Samples.roundTrip(state, .int8, seed: seed)
            for index in sums.indices { sums[index] += Double(decoded.values[index]) }
        }
        let scale = 3.0 / 127
        var total = 0.0
        for index in sums.indices {
            let error = sums[index] / Double(trials) - Double(state.values[index])
            total += error
            #expect(abs(error) <= 6 * 0.5 * scale / Double(trials).squareRoot(), "value \(index)")
        }
        #expect(abs(total) / Double(sums.count) <= 6 * 0.5 * scale / Double(trials * sums.count).squareRoot())
        #expect(
            EncodedState.encode(state, codec: .int8, rounding: SeededGenerator(seed: 1, purpose: "a"))
                != EncodedState.encode(state, codec: .int8, rounding: SeededGenerator(seed: 2, purpose: "a")))
    }

    @Test func theFormatOfInt8IsFixed() throws {
        let layout = Samples.layout([3, 2])
        let bytes = Samples.encode(AdapterState(layout: layout, values: [127, -64, 0, 0, -0.0]), .int8)
        #expect(Samples.payload(bytes) == [0, 0, 0x80, 0x3F, 127, 192, 0, 0, 0, 0, 0, 0, 0])
    }

    @Test func bytesThatNoEncoderWritesAreRefused() throws {
        let layout = Samples.layout([3, 2])
        func decode(_ payload: [UInt8]) throws {
            _ = try EncodedState.decode(Samples.message(payload, .int8, layout), layout: layout, codecs: [.int8])
        }
        let one: [UInt8] = [0, 0, 0x80, 0x3F]
        let none: [UInt8] = [0, 0, 0, 0, 0, 0]
        #expect(throws: Never.self) { try decode(one + [127, 192, 0] + none) }
        #expect(throws: DecodeError.wrongCode(tensor: 0)) { try decode(one + [127, 128, 0] + none) }  // -128
        #expect(throws: DecodeError.wrongCode(tensor: 1)) { try decode(one + [127, 192, 0, 0, 0, 0, 0, 0, 1]) }  // scale 0
        for scale: [UInt8] in [[0, 0, 0x80, 0x7F], [0, 0, 0xC0, 0x7F], [0, 0, 0x80, 0xBF], [0, 0, 0, 0x80], [0, 0, 0, 0x7F]] {
            #expect(throws: DecodeError.self) { try decode(scale + [127, 192, 0] + none) }
        }
    }
}
