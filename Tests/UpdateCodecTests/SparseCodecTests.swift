/// `topk` and `compeft`: which values are kept, their scale, and how few bytes they take.

import Adapters
import CKernels
import Primitives
import TestSupport
import Testing
import UpdateCodec

@Suite struct SparseCodecTests {
    /// Indices of the `count` largest magnitudes above `floor`, by sorting; ties to the lower index.
    static func largest(_ count: Int, _ values: [Float], floor: UInt32 = 0) -> [Int] {
        let magnitudes = values.map { $0.bitPattern & 0x7FFF_FFFF }
        return magnitudes.indices.sorted { (magnitudes[$1], $0) < (magnitudes[$0], $1) }.prefix(count)
            .filter { magnitudes[$0] > floor }.sorted()
    }

    static func kept(_ share: Double, of count: Int) -> Int {
        min(count, max(1, Int((share * Double(count)).rounded(.toNearestOrEven))))
    }

    /// Bits of the records without signs, counted one by one.
    static func bits(_ positions: [Int], parameter: Int) -> Int {
        var width = 0
        while 1 << width < parameter { width += 1 }
        let cutoff = 1 << width - parameter
        return zip(positions, [-1] + positions).reduce(0) {
            let gap = $1.0 - $1.1 - 1
            return $0 + gap / parameter + 1 + (gap % parameter < cutoff ? width - 1 : width)
        }
    }

    /// The example that the format was defined with: +3, -4, -11, +25 among 32 values and M = 8 give 21 bits.
    @Test func theWorkedExampleIsByteExact() {
        let positions: [UInt32] = [3, 4, 11, 25]
        var values = [Float](repeating: 0, count: 32)
        for (position, value) in zip(positions, [1, -1, -1, 1] as [Float]) { values[Int(position)] = value }
        var bytes = [UInt8](repeating: 0xAA, count: 11)
        tributary_golomb_encode(positions, 4, 8, values, &bytes)
        #expect(Array(bytes.prefix(3)) == [0x30, 0x5B, 0x50])
        var decoded = [Float](repeating: 0, count: 32)
        #expect(tributary_golomb_decode_signs(bytes, 3, 4, 8, 32, 1, &decoded) == 0)
        #expect(decoded == values)
    }

    @Test func theFormatIsFixed() throws {
        let layout = Samples.layout([32, 2])
        var values = [Float](repeating: 0, count: 34)
        (values[0], values[4], values[11], values[21]) = (0.5, -1.5, -1, 1)
        let state = AdapterState(layout: layout, values: values)
        // Gaps 0, 3, 6, 9 with M = 3: 0 0, 10 0, 110 0, 1110 0, and the signs 0, 1, 1, 0; the scale is the mean, 1.
        let empty: [UInt8] = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        #expect(
            Samples.payload(Samples.encode(state, .compeft(density: 0.125)))
                == [0, 0, 3, 0, 4, 0, 0, 0, 0, 0, 0x80, 0x3F, 3, 0, 0, 0, 0b0001_0011, 0b1001_1110, 0] + empty)
        #expect(
            Samples.payload(Samples.encode(state, .topK(0.125)))
                == [0, 0, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0b0010_0110, 0b0111_0000]
                + [0, 0x3F, 0xC0, 0xBF, 0x80, 0xBF, 0x80, 0x3F] + empty)
    }

    @Test func theLargestMagnitudesAreKeptAtEveryLength() throws {
        for count in Array(1...200) + [255, 256, 257, 1023, 4099] {
            for (name, values) in Samples.awkward(count, seed: UInt64(count)) {
                for share in count <= 200 ? [0.1] : [0.01, 0.1, 0.5, 1] {
                    let state = AdapterState(layout: Samples.layout([count]), values: values)
                    let limit = Self.kept(share, of: count)

                    let ternary = try Samples.roundTrip(state, .compeft(density: share))
                    let expected = Self.largest(limit, values)
                    #expect(ternary.values.indices.filter { ternary.values[$0] != 0 } == expected, "\(name), \(count), \(share)")
                    #expect(expected.allSatisfy { ternary.values[$0].sign == values[$0].sign }, "\(name), \(count), \(share)")
                    let mean = expected.reduce(0.0) { $0 + Double(abs(values[$1])) } / Double(max(expected.count, 1))
                    for index in expected { #expect(abs(abs(Double(ternary.values[index])) - mean) <= 1e-7 * mean + 0x1p-149) }

                    let exact = try Samples.roundTrip(state, .topK(share))
                    let wanted = Self.largest(limit, values, floor: 0x8000)
                    let rounded = try Samples.roundTrip(state, .bfloat16)
                    #expect(exact.values.indices.filter { exact.values[$0] != 0 } == wanted, "\(name), \(count), \(share)")
                    #expect(wanted.allSatisfy { exact.values[$0] == rounded.values[$0] }, "\(name), \(count), \(share)")
                }
            }
        }
    }

    @Test func globalKeepsTheLargestOfAllTensorsWithOneScale() throws {
        for seed in 1...20 as ClosedRange<UInt64> {
            let parts = [30, 1, 500, 64].enumerated().map { Samples.awkward($1, seed: seed)[(Int(seed) + $0) % 7].1 }
            let layout = Samples.layout(parts.map(\.count))
            let values = parts.flatMap { $0 }
            let decoded = try Samples.roundTrip(
                AdapterState(layout: layout, values: values), .compeft(density: 0.1, scope: .allTensors)
            ).values
            let expected = Self.largest(Self.kept(0.1, of: values.count), values)
            #expect(decoded.indices.filter { decoded[$0] != 0 } == expected, "seed \(seed)")
            #expect(Set(expected.map { abs(decoded[$0]) }).count <= 1)
            let mean = expected.reduce(0.0) { $0 + Double(abs(values[$1])) } / Double(max(expected.count, 1))
            if let first = expected.first { #expect(abs(Double(abs(decoded[first])) - mean) <= 1e-7 * mean) }
        }
    }

    @Test func aSigmaScaleIsAMultipleOfTheDenseDeviation() throws {
        let layout = Samples.layout([400, 77])
        var state = Samples.state(layout)
        for index in 0..<400 { state.values[index] = 5 + 0.1 * state.values[index] }
        func deviation(_ values: some Collection<Float>) -> Double {
            let mean = values.reduce(0.0) { $0 + Double($1) } / Double(values.count)
            return (values.reduce(0.0) { $0 + (Double($1) - mean) * (Double($1) - mean) } / Double(values.count)).squareRoot()
        }
        let each = try Samples.roundTrip(state, .compeft(density: 0.2, scale: .deviations(1.5)))
        for index in 0..<2 {
            let scale = each.tensor(index).map(abs).max() ?? 0
            #expect(abs(Double(scale) / (1.5 * deviation(state.tensor(index))) - 1) < 1e-6)
        }
        let all = try Samples.roundTrip(state, .compeft(density: 0.2, scope: .allTensors, scale: .deviations(2)))
        #expect(abs(Double(all.values.map(abs).max() ?? 0) / (2 * deviation(state.values)) - 1) < 1e-6)
        // A constant tensor has no deviation: nothing is sent.
        let constant = AdapterState(layout: layout, values: [Float](repeating: 1, count: 477))
        #expect(try Samples.roundTrip(constant, .compeft(density: 0.2, scale: .deviations(1))) == AdapterState(zeros: layout))
    }

    @Test func theParameterIsTheBestOfThoseThatAreTried() {
        var generator = SeededGenerator(seed: 3, purpose: "gaps")
        for turn in 0..<300 {
            let count = 1 + generator.integer(below: 400)
            let spread = 1 + generator.integer(below: turn % 10 == 0 ? 30_000 : 200)
            var position = -1
            let positions = (0..<count).map { _ in
                position += 1 + generator.integer(below: spread)
                return position
            }
            var (parameter, power): (UInt32, UInt32) = (0, 0)
            var powerBits = 0
            let bits = tributary_golomb_choose(positions.map(UInt32.init), count, &parameter, &power, &powerBits)
            let powers = (0...15).map { (Self.bits(positions, parameter: 1 << $0), 1 << $0) }
            let best = powers.min { $0.0 < $1.0 }!
            #expect((powerBits, Int(power)) == best, "turn \(turn)")
            let others = [5, 6, 7, 10, 12, 14].map { $0 * best.1 }.filter { $0 % 8 == 0 && $0 / 8 <= 1 << 15 }
                .map { (Self.bits(positions, parameter: $0 / 8), $0 / 8) }
            let chosen = others.filter { $0.0 < best.0 }.min { $0 < $1 } ?? best
            #expect((bits, Int(parameter)) == chosen, "turn \(turn)")

            // And the records are as long as was said, and say what they should.
            var bytes = [UInt8](repeating: 0xFF, count: (bits + 7) / 8 + 8)
            tributary_golomb_encode(positions.map(UInt32.init), count, parameter, nil, &bytes)
            let values = (0..<count).flatMap { _ in [0x80, 0x3F] as [UInt8] }
            var decoded = [Float](repeating: 0, count: position + 1)
            #expect(tributary_golomb_decode_bf16(bytes, (bits + 7) / 8, count, parameter, position + 1, values, &decoded) == 0)
            #expect(decoded.indices.filter { decoded[$0] == 1 } == positions, "turn \(turn)")
            // The last position does not fit into one value less.
            #expect(tributary_golomb_decode_bf16(bytes, (bits + 7) / 8, count, parameter, position, values, &decoded) == -1)
        }
    }

    /// At random positions the code is within 2 % of the entropy of positions and signs; the tensor's 16 bytes of header
    /// come on top.
    @Test func randomPositionsTakeNearlyAsFewBitsAsTheyCan() {
        for count in [16_384, 65_536, 300_001] {
            for share in [0.05, 0.1, 0.2] {
                for seed in 1...5 as ClosedRange<UInt64> {
                    let layout = Samples.layout([count])
                    let bytes = Samples.encode(Samples.state(layout, seed: seed), .compeft(density: share))
                    let q = Double(Self.kept(share, of: count)) / Double(count)
                    let entropy = Double(count) * (-q * Self.log2(q) - (1 - q) * Self.log2(1 - q) + q)
                    let ratio = Double(8 * (Samples.payload(bytes).count - 16)) / entropy
                    #expect(ratio < 1.02, "\(count) values at \(share), seed \(seed): \(ratio)")
                }
            }
        }
    }

    /// The logarithm by its bits: this module needs no other.
    static func log2(_ value: Double) -> Double {
        var (result, rest, bit) = (Double(value.exponent), value.significand, 0.5)
        for _ in 0..<40 {
            rest *= rest
            if rest >= 2 {
                rest /= 2
                result += bit
            }
            bit /= 2
        }
        return result
    }

    @Test func noArrangementTakesMoreThanTheLimit() {
        var generator = SeededGenerator(seed: 4, purpose: "limits")
        for share in [0.01, 0.05, 0.1, 0.3, 0.5, 0.9, 1] {
            for codec in [UpdateCodec.topK(share), .compeft(density: share), .compeft(density: share, scope: .allTensors)] {
                let layout = Samples.layout([1, 7, 64, 1000])
                let limit = EncodedState.byteLimit(layout: layout, codec: codec)
                for _ in 0..<100 {
                    // Runs of large values, so that some gaps are 0 and others as long as can be.
                    var large = false
                    let values = (0..<layout.parameterCount).map { _ in
                        if generator.integer(below: 1 + generator.integer(below: 50)) == 0 { large.toggle() }
                        return generator.symmetric(large ? 10 : 1)
                    }
                    #expect(Samples.encode(AdapterState(layout: layout, values: values), codec).count <= limit, "\(codec)")
                }
            }
        }
    }

    @Test func headersThatNoEncoderWritesAreRefused() throws {
        let layout = Samples.layout([32])
        let codec = UpdateCodec.compeft(density: 0.125)
        func decode(_ header: [UInt8], _ bits: [UInt8]) throws -> AdapterState {
            try EncodedState.decode(Samples.message(header + bits, codec, layout), layout: layout, codecs: [codec])
        }
        let header: [UInt8] = [0, 0, 8, 0, 4, 0, 0, 0, 0, 0, 0x80, 0x3F, 3, 0, 0, 0]
        let bits: [UInt8] = [0x30, 0x5B, 0x50]
        #expect(try decode(header, bits).values.filter { $0 != 0 } == [1, -1, -1, 1])
        let bad: [(Int, [UInt8])] = [
            (0, [1]), (0, [0, 1]), (2, [0, 0]), (2, [1, 0x80]), (4, [0]), (4, [3]), (4, [5]), (4, [4, 0, 0, 1]),
            (4, [255, 255, 255, 255]),
            (8, [0, 0, 0, 0]), (8, [0, 0, 0x80, 0xBF]), (8, [0, 0, 0x80, 0x7F]), (8, [0, 0, 0xC0, 0x7F]), (12, [2]), (12, [4]),
            (12, [255, 255, 255, 255]), (2, [1]), (2, [2]),
        ]
        for (offset, replacement) in bad {
            var forged = header
            forged.replaceSubrange(offset..<offset + replacement.count, with: replacement)
            #expect(throws: DecodeError.self, "\(replacement) at \(offset)") { _ = try decode(forged, bits) }
        }
        // A bit after the last record; a last position outside; nothing but ones.
        for forged: [UInt8] in [[0x30, 0x5B, 0x51], [0x30, 0x5B, 0xF0], [0xFF, 0xFF, 0xFF]] {
            #expect(throws: DecodeError.wrongCode(tensor: 0)) { _ = try decode(header, forged) }
        }
    }

    @Test func keptValuesThatAreZeroOrNotFiniteAreRefused() throws {
        let layout = Samples.layout([8])
        let codec = UpdateCodec.topK(0.125)
        func decode(_ value: [UInt8]) throws {
            let payload: [UInt8] = [0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0] + value
            _ = try EncodedState.decode(Samples.message(payload, codec, layout), layout: layout, codecs: [codec])
        }
        #expect(throws: Never.self) { try decode([0x80, 0x3F]) }
        for value: [UInt8] in [[0, 0], [0, 0x80], [0x80, 0x7F], [0xC0, 0xFF]] {
            #expect(throws: DecodeError.wrongCode(tensor: 0)) { try decode(value) }
        }
    }
}
