/// An adapter state as bytes: exact, and anything else refused.

import Adapters
import Checkpoints
import Primitives
import TestSupport
import Testing
import UpdateCodec

@Suite struct EncodedStateTests {
    @Test func whatIsEncodedIsDecoded() throws {
        let layout = try Samples.layout()
        for codec in Samples.codecs {
            var state = Samples.state(layout)
            state.values[0] = -0.0
            state.values[1] = .leastNonzeroMagnitude
            state.values[2] = .greatestFiniteMagnitude
            let bytes = Samples.encode(state, codec)
            #expect(bytes.count <= EncodedState.byteLimit(layout: layout, codec: codec))
            let decoded = try EncodedState.decode(bytes, layout: layout, codecs: Samples.codecs)
            #expect(decoded.layout == layout)
            #expect(decoded.values.allSatisfy { $0.isFinite }, "\(codec)")
            #expect(bytes == Samples.encode(state, codec), "\(codec) is not the same twice")
            if codec.isExact { #expect(decoded.values.map(\.bitPattern) == state.values.map(\.bitPattern)) }
        }
    }

    @Test func fixedSizesAreExactAndZerosAreLegal() throws {
        let layout = try Samples.layout()
        let zeros = AdapterState(zeros: layout)
        for codec in Samples.codecs {
            let bytes = Samples.encode(zeros, codec)
            if ["f32", "bf16", "int8"].contains(codec.name) {
                #expect(bytes.count == EncodedState.byteLimit(layout: layout, codec: codec))
            } else {
                #expect(bytes.count == EncodedState.headerByteCount + 16 * layout.tensors.count + EncodedState.trailerByteCount)
            }
            #expect(try EncodedState.decode(bytes, layout: layout, codecs: [codec]) == zeros)
        }
    }

    /// What has been decoded loses nothing more when it is encoded again, and takes the same bytes.
    @Test func encodingWhatWasDecodedChangesNothing() throws {
        let layout = Samples.layout([700, 1, 33, 2000])
        for codec in Samples.codecs where codec.allowsErrorFeedback && !codec.usesRandomness {
            let bytes = Samples.encode(Samples.state(layout), codec)
            let decoded = try EncodedState.decode(bytes, layout: layout, codecs: [codec])
            #expect(Samples.encode(decoded, codec) == bytes, "\(codec)")
        }
    }

    @Test func everyKernelPathWritesAndReadsTheSameBytes() throws {
        for seed in 1...3 as ClosedRange<UInt64> {
            let parts = [1, 17, 64, 999, 4097].flatMap { Samples.awkward($0, seed: seed).map(\.1) }
            let layout = Samples.layout(parts.map(\.count))
            let state = AdapterState(layout: layout, values: parts.flatMap { $0 })
            for codec in Samples.codecs {
                let rounding = SeededGenerator(seed: seed, purpose: "rounding")
                let expected = EncodedState.encode(state, codec: codec, rounding: rounding, path: 0)
                let decoded = try EncodedState.decode(expected, layout: layout, codecs: [codec], path: 0)
                for path in Samples.paths {
                    #expect(
                        EncodedState.encode(state, codec: codec, rounding: rounding, path: path) == expected,
                        "\(codec) on path \(path)")
                    let other = try EncodedState.decode(expected, layout: layout, codecs: [codec], path: path)
                    #expect(other.values.map(\.bitPattern) == decoded.values.map(\.bitPattern), "\(codec) on path \(path)")
                }
            }
        }
    }

    /// Diverged training: nothing is made of it that a receiver takes.
    @Test func whatIsNotFiniteIsRefusedByTheReceiver() throws {
        let layout = try Samples.layout()
        for codec in Samples.codecs {
            for bad in [Float.nan, .infinity, -.infinity] {
                var state = Samples.state(layout)
                state.values[3] = bad
                #expect(throws: DecodeError.self, "\(codec) with \(bad)") { _ = try Samples.roundTrip(state, codec) }
            }
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
        let layout = try Samples.layout()
        for codec in Samples.codecs {
            let bytes = Samples.encode(Samples.state(layout), codec)
            for length in 0..<bytes.count {
                #expect(throws: DecodeError.self, "\(codec) cut to \(length) bytes") {
                    _ = try EncodedState.decode(Array(bytes.prefix(length)), layout: layout, codecs: [codec])
                }
                guard length < bytes.count - EncodedState.trailerByteCount else { continue }
                // The same with a checksum that is right.
                #expect(throws: DecodeError.self, "\(codec) forged to \(length) bytes") {
                    _ = try EncodedState.decode(
                        Samples.forged(Array(bytes.prefix(length)) + [0, 0, 0, 0], at: 0, []), layout: layout, codecs: [codec])
                }
            }
            for extra in 1...3 {
                for long in [
                    bytes + [UInt8](repeating: 0, count: extra),
                    Samples.forged(bytes + [UInt8](repeating: 0, count: extra), at: 0, []),
                ] {
                    #expect(throws: DecodeError.self) { _ = try EncodedState.decode(long, layout: layout, codecs: [codec]) }
                }
            }
        }
        let bytes = EncodedState.encode(Samples.state(layout))
        #expect(throws: DecodeError.tooLong(bytes: bytes.count + 1, limit: bytes.count)) {
            _ = try EncodedState.decode(bytes + [0], layout: layout)
        }
    }

    @Test func everyBitFlipIsRefused() throws {
        let layout = try Samples.layout()
        for codec in Samples.codecs {
            let bytes = Samples.encode(Samples.state(layout), codec)
            for index in bytes.indices {
                for bit in 0..<8 {
                    var flipped = bytes
                    flipped[index] ^= 1 << UInt8(bit)
                    #expect(throws: DecodeError.self, "\(codec), bit \(bit) of byte \(index)") {
                        _ = try EncodedState.decode(flipped, layout: layout, codecs: Samples.codecs)
                    }
                }
            }
        }
    }

    /// Bytes that a hostile client makes: what is taken is a state like any other.
    @Test func forgedPayloadsAreRefusedOrDecodeToWhatCanBeEncoded() throws {
        let layout = Samples.layout([40, 9, 300])
        let seed: UInt64 = 5
        var generator = SeededGenerator(seed: seed, purpose: "codec fuzz")
        for codec in Samples.codecs {
            let good = Samples.encode(Samples.state(layout), codec)
            var taken = 0
            for turn in 0..<4000 {
                var bytes = good
                let first = turn % 4 == 0 ? 0 : EncodedState.headerByteCount
                for _ in 0...generator.integer(below: 4) {
                    let index = first + generator.integer(below: bytes.count - first)
                    bytes[index] =
                        generator.integer(below: 2) == 0
                        ? UInt8(truncatingIfNeeded: generator.next()) : bytes[index] ^ 1 << UInt8(generator.integer(below: 8))
                }
                bytes = Samples.forged(bytes, at: 0, [])
                guard let decoded = try? EncodedState.decode(bytes, layout: layout, codecs: [codec]) else { continue }
                taken += 1
                #expect(decoded.values.allSatisfy { $0.isFinite }, "\(codec), seed \(seed), turn \(turn)")
                let again = try Samples.roundTrip(decoded, codec)
                if codec.allowsErrorFeedback && !codec.usesRandomness {
                    #expect(again == decoded, "\(codec), seed \(seed), turn \(turn)")
                }
            }
            #expect(taken > 10 && taken < 4000, "\(codec): \(taken) of 4000 were taken, so that nothing was tried")
        }
    }

    @Test func aWellFormedHeaderThatLiesIsRefusedWithItsReason() throws {
        let layout = try Samples.layout()
        let bytes = EncodedState.encode(Samples.state(layout))
        func expect(_ error: DecodeError, _ bytes: [UInt8]) {
            #expect(throws: error) { _ = try EncodedState.decode(bytes, layout: layout) }
            #expect(error.description.count > 20 && !error.description.contains("\n"))
        }
        expect(.notAnUpdate(0x4450_5500), Samples.forged(bytes, at: 0, [0]))
        expect(.unknownVersion(2), Samples.forged(bytes, at: 4, [2]))
        expect(.codecNotAllowed(200, allowed: ["f32"]), Samples.forged(bytes, at: 5, [200]))
        expect(.reservedNotZero(256), Samples.forged(bytes, at: 6, [0, 1]))
        expect(
            .wrongCount(expected: layout.parameterCount, found: .max),
            Samples.forged(bytes, at: 40, [UInt8](repeating: 255, count: 8)))
        let nan = withUnsafeBytes(of: Float.nan.bitPattern.littleEndian) { Array($0) }
        expect(.notFinite(3), Samples.forged(bytes, at: 48 + 4 * 3, nan))
        let infinity = withUnsafeBytes(of: (-Float.infinity).bitPattern.littleEndian) { Array($0) }
        expect(.notFinite(layout.parameterCount - 1), Samples.forged(bytes, at: bytes.count - 8, infinity))
        var damaged = bytes
        damaged[20] ^= 1
        #expect(throws: DecodeError.self) { _ = try EncodedState.decode(damaged, layout: layout) }
        let shorter = Samples.forged(Array(bytes.dropLast(4)), at: 0, [])
        expect(.wrongPayload(expected: 4 * layout.parameterCount, found: 4 * layout.parameterCount - 4), shorter)
    }

    @Test func anotherRankOrScaleIsAnotherLayout() throws {
        let layout = try Samples.layout()
        let scaled = try Samples.layout(alpha: 8)
        let bytes = EncodedState.encode(Samples.state(scaled))
        #expect(throws: DecodeError.otherLayout(expected: layout.digest, found: scaled.digest)) {
            _ = try EncodedState.decode(bytes, layout: layout)
        }
        #expect(throws: DecodeError.self) {
            _ = try EncodedState.decode(EncodedState.encode(Samples.state(try Samples.layout(rank: 3))), layout: layout)
        }
    }

    @Test func aCodecThatThePlanDoesNotAllowIsRefused() throws {
        let layout = try Samples.layout()
        for codec in Samples.codecs {
            let bytes = Samples.encode(Samples.state(layout), codec)
            for others in [[], Samples.codecs.filter { $0.identifier != codec.identifier }] {
                #expect(throws: DecodeError.self) { _ = try EncodedState.decode(bytes, layout: layout, codecs: others) }
            }
        }
    }

    @Test func moreKeptValuesThanTheDensityAllowsAreRefused() throws {
        let layout = Samples.layout([100, 200])
        let state = Samples.state(layout)
        let pairs: [(UpdateCodec, UpdateCodec)] = [
            (.topK(0.2), .topK(0.1)), (.compeft(density: 0.2), .compeft(density: 0.19)),
            (.compeft(density: 0.2, scope: .allTensors), .compeft(density: 0.1, scope: .allTensors)),
        ]
        for (dense, sparse) in pairs {
            let bytes = Samples.encode(state, dense)
            #expect(throws: DecodeError.self, "\(dense) as \(sparse)") {
                _ = try EncodedState.decode(bytes, layout: layout, codecs: [sparse])
            }
            #expect(
                try EncodedState.decode(bytes, layout: layout, codecs: [sparse, dense]) == (try Samples.roundTrip(state, dense)))
        }
        // Two scales where all tensors share one.
        let each = Samples.encode(state, .compeft(density: 0.1))
        #expect(throws: DecodeError.self) {
            _ = try EncodedState.decode(each, layout: layout, codecs: [.compeft(density: 0.2, scope: .allTensors)])
        }
    }
}
