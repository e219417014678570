/// An adapter state as bytes: exact, and anything else refused.

import Adapters
import Checkpoints
import Primitives
import TestSupport
import Testing
import UpdateCodec

@Suite struct EncodedStateTests {
    static let maps = [
        LinearMap(name: "model.layers.0.self_attn.q_proj", outputs: 7, inputs: 5),
        LinearMap(name: "model.layers.0.mlp.down_proj", outputs: 4, inputs: 6),
    ]

    static func layout(rank: Int = 2, alpha: Double = 4) throws -> AdapterLayout {
        try AdapterSpecification(method: .lora, maps: maps, rank: rank, alpha: alpha, rankStabilized: false).trainedLayout
    }

    static func state(_ layout: AdapterLayout, seed: UInt64 = 1) -> AdapterState {
        var generator = SeededGenerator(seed: seed, purpose: "codec test")
        return AdapterState(layout: layout, values: (0..<layout.parameterCount).map { _ in generator.symmetric(3) })
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

    @Test func whatIsEncodedIsDecodedBitForBit() throws {
        let layout = try Self.layout()
        for codec in UpdateCodec.all {
            var state = Self.state(layout)
            state.values[0] = -0.0
            state.values[1] = .leastNonzeroMagnitude
            state.values[2] = .greatestFiniteMagnitude
            let bytes = EncodedState.encode(state, codec: codec)
            #expect(bytes.count <= EncodedState.byteCount(layout: layout, codec: codec))
            if codec.isExact { #expect(bytes.count == EncodedState.byteCount(layout: layout, codec: codec)) }
            let decoded = try EncodedState.decode(bytes, layout: layout)
            #expect(decoded.layout == layout)
            if codec == .float32 { #expect(decoded.values.map(\.bitPattern) == state.values.map(\.bitPattern)) }
        }
    }

    @Test func theFormatOfFloat32IsFixed() throws {
        let layout = AdapterLayout([AdapterTensor(map: "m", role: .core, rows: 1, columns: 2, rank: 1, scale: 1)])
        let bytes = EncodedState.encode(AdapterState(layout: layout, values: [1, -2]))
        #expect(Array(bytes[0..<8]) == Array("TUPD".utf8) + [1, 0, 0, 0])
        #expect(Array(bytes[8..<40]) == layout.digest.bytes)
        #expect(Array(bytes[40..<48]) == [2, 0, 0, 0, 0, 0, 0, 0])
        #expect(Array(bytes[48..<56]) == [0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0])
        #expect(bytes.count == 60)
    }

    @Test func everyTruncationAndEveryExtensionIsRefused() throws {
        let layout = try Self.layout()
        let bytes = EncodedState.encode(Self.state(layout))
        for length in 0..<bytes.count {
            #expect(throws: DecodeError.self, "cut to \(length) bytes") {
                _ = try EncodedState.decode(Array(bytes.prefix(length)), layout: layout)
            }
        }
        #expect(throws: DecodeError.tooLong(bytes: bytes.count + 1, limit: bytes.count)) {
            _ = try EncodedState.decode(bytes + [0], layout: layout)
        }
    }

    @Test func everyBitFlipIsRefused() throws {
        let layout = try Self.layout()
        let bytes = EncodedState.encode(Self.state(layout))
        for index in bytes.indices {
            for bit in 0..<8 {
                var flipped = bytes
                flipped[index] ^= 1 << UInt8(bit)
                #expect(throws: DecodeError.self, "bit \(bit) of byte \(index)") {
                    _ = try EncodedState.decode(flipped, layout: layout)
                }
            }
        }
    }

    @Test func randomBytesNeverTrap() throws {
        let layout = try Self.layout()
        let seed: UInt64 = 5
        var generator = SeededGenerator(seed: seed, purpose: "codec fuzz")
        let good = EncodedState.encode(Self.state(layout))
        for turn in 0..<2000 {
            var bytes = good
            for _ in 0...generator.integer(below: 8) {
                bytes[generator.integer(below: bytes.count)] = UInt8(truncatingIfNeeded: generator.next())
            }
            if generator.integer(below: 2) == 0 { bytes = Self.forged(bytes, at: 0, []) }
            let decoded = try? EncodedState.decode(bytes, layout: layout)
            #expect(decoded?.values.allSatisfy(\.isFinite) ?? true, "seed \(seed), turn \(turn)")
        }
    }

    @Test func aWellFormedHeaderThatLiesIsRefusedWithItsReason() throws {
        let layout = try Self.layout()
        let bytes = EncodedState.encode(Self.state(layout))
        func expect(_ error: DecodeError, _ bytes: [UInt8]) {
            #expect(throws: error) { _ = try EncodedState.decode(bytes, layout: layout) }
            #expect(error.description.count > 20 && !error.description.contains("\n"))
        }
        expect(.notAnUpdate(0x4450_5500), Self.forged(bytes, at: 0, [0]))
        expect(.unknownVersion(2), Self.forged(bytes, at: 4, [2]))
        expect(.unknownCodec(200), Self.forged(bytes, at: 5, [200]))
        expect(.reservedNotZero(256), Self.forged(bytes, at: 6, [0, 1]))
        expect(
            .wrongCount(expected: layout.parameterCount, found: .max),
            Self.forged(bytes, at: 40, [UInt8](repeating: 255, count: 8)))
        let nan = withUnsafeBytes(of: Float.nan.bitPattern.littleEndian) { Array($0) }
        expect(.notFinite(3), Self.forged(bytes, at: 48 + 4 * 3, nan))
        let infinity = withUnsafeBytes(of: (-Float.infinity).bitPattern.littleEndian) { Array($0) }
        expect(.notFinite(layout.parameterCount - 1), Self.forged(bytes, at: bytes.count - 8, infinity))
        var damaged = bytes
        damaged[20] ^= 1
        #expect(throws: DecodeError.self) { _ = try EncodedState.decode(damaged, layout: layout) }
        let shorter = Self.forged(Array(bytes.dropLast(4)), at: 0, [])
        expect(.wrongPayload(expected: 4 * layout.parameterCount, found: 4 * layout.parameterCount - 4), shorter)
    }

    @Test func anotherRankOrScaleIsAnotherLayout() throws {
        let layout = try Self.layout()
        let scaled = try Self.layout(alpha: 8)
        let bytes = EncodedState.encode(Self.state(scaled))
        #expect(throws: DecodeError.otherLayout(expected: layout.digest, found: scaled.digest)) {
            _ = try EncodedState.decode(bytes, layout: layout)
        }
        #expect(throws: DecodeError.self) {
            _ = try EncodedState.decode(EncodedState.encode(Self.state(try Self.layout(rank: 3))), layout: layout)
        }
    }

    @Test func aCodecThatThePlanDoesNotAllowIsRefused() throws {
        let layout = try Self.layout()
        #expect(throws: DecodeError.self) {
            _ = try EncodedState.decode(EncodedState.encode(Self.state(layout)), layout: layout, codecs: [])
        }
    }

    @Test func identifiersAndNamesOfCodecsAreUnique() {
        #expect(Set(UpdateCodec.all.map(\.identifier)).count == UpdateCodec.all.count)
        #expect(Set(UpdateCodec.all.map(\.name)).count == UpdateCodec.all.count)
        for codec in UpdateCodec.all { #expect(UpdateCodec.named(codec.name) == codec) }
    }
}
