/// Bytes, checksums, digests and the seeded generator.

import CCryptography
import Primitives
import TestSupport
import Testing

@Suite struct PrimitivesTests {
    @Test func checksumMatchesThePublishedVectors() {
        // RFC 3720, appendix B.4.
        #expect(CRC32C.checksum([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
        #expect(CRC32C.checksum([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
        #expect(CRC32C.checksum((0..<32).map { UInt8($0) }) == 0x46DD_794E)
        #expect(CRC32C.checksum(Array("123456789".utf8)) == 0xE306_9283)
        let halves = CRC32C.checksum(Array("6789".utf8), continuing: CRC32C.checksum(Array("12345".utf8)))
        #expect(halves == 0xE306_9283)
    }

    @Test(arguments: [1, 2] as [UInt64]) func checksumByInstructionsIsThatInPlainC(seed: UInt64) {
        var generator = SeededGenerator(seed: seed, purpose: "checksums")
        for count in [0, 1, 7, 8, 9, 63, 64, 1000, 4099] {
            let bytes = (0..<count).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
            let start = UInt32(truncatingIfNeeded: generator.next())
            #expect(
                tributary_crc32c(start, bytes, count) == tributary_crc32c_scalar(start, bytes, count),
                "seed \(seed), \(count) bytes")
        }
    }

    @Test func digestMatchesThePublishedVectorAndItsText() {
        // FIPS 180-4, "abc".
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        let digest = Digest(of: "abc".utf8)
        #expect(digest.description == text)
        #expect(Digest(hexadecimal: text) == digest)
        #expect(Digest(hexadecimal: String(text.dropLast()) + "g") == nil)
        #expect(Digest(hexadecimal: "ba78") == nil)
    }

    @Test func whatIsWrittenIsReadAndEveryTruncationIsRefused() throws {
        var writer = ByteWriter()
        writer.write(UInt16(513))
        writer.write(-1.5 as Float)
        writer.write("naïve")
        writer.write([1, 2, 3] as [Float])
        func read(_ bytes: [UInt8]) throws -> (UInt16, Float, String, [Float]) {
            var reader = ByteReader(bytes)
            let a: UInt16 = try reader.read()
            let b = try reader.readFloat()
            let c = try reader.readString()
            let count: UInt32 = try reader.read()
            let d = try reader.readFloats(Int(count))
            try reader.finish()
            return (a, b, c, d)
        }
        let (a, b, c, d) = try read(writer.bytes)
        #expect(a == 513 && b == -1.5 && c == "naïve" && d == [1, 2, 3])
        for length in 0..<writer.bytes.count {
            #expect(throws: ByteReaderError.self) { _ = try read(Array(writer.bytes.prefix(length))) }
        }
        #expect(throws: ByteReaderError.trailing(1)) { _ = try read(writer.bytes + [0]) }
    }

    @Test func aCountBeyondTheLimitIsRefusedBeforeMemoryIsTaken() {
        var writer = ByteWriter()
        writer.write(UInt32.max)
        var reader = ByteReader(writer.bytes)
        #expect(throws: ByteReaderError.tooLong(count: Int(UInt32.max), limit: 16)) { _ = try reader.readCounted(limit: 16) }
    }

    @Test func equalKeysGiveEqualStreamsAndEveryPartOfTheKeyMatters() {
        func first(_ seed: UInt64, _ purpose: String, _ round: Int, _ attempt: Int, _ client: String) -> UInt64 {
            var generator = SeededGenerator(seed: seed, purpose: purpose, round: round, attempt: attempt, client: client)
            return generator.next()
        }
        let reference = first(1, "a", 2, 3, "c")
        #expect(reference == first(1, "a", 2, 3, "c"))
        let others = [
            first(2, "a", 2, 3, "c"), first(1, "b", 2, 3, "c"), first(1, "a", 1, 3, "c"), first(1, "a", 2, 0, "c"),
            first(1, "a", 2, 3, "d"),
        ]
        #expect(!others.contains(reference))
        #expect(Set(others).count == others.count)
    }

    @Test func drawsStayInTheirRangeAndFillIt() {
        var generator = SeededGenerator(seed: 7, purpose: "test")
        var seen = Set<Int>()
        var sum = 0.0
        for _ in 0..<20_000 {
            seen.insert(generator.integer(below: 7))
            let value = generator.symmetric(0.25)
            #expect(abs(value) < 0.25)
            sum += Double(value)
        }
        #expect(seen == Set(0..<7))
        // Mean of 20,000 draws: standard error 0.25 / sqrt(3 x 20,000) = 0.001; five of them.
        #expect(abs(sum / 20_000) < 0.005)
        #expect(generator.permutation(100).sorted() == Array(0..<100))
    }
}

@Suite struct ClosenessTests {
    @Test func plantedErrorsAreSeen() {
        let reference: [Float] = [-2, 0, 1, 4]
        #expect(Closeness(reference, reference).isWithin(ofLargest: 0))
        #expect(Closeness([-2, 0, 1, 4.3] as [Float], reference).isWithin(ofLargest: 0.1))
        #expect(!Closeness([-2, 0.5, 1, 4] as [Float], reference).isWithin(ofLargest: 0.1))
        #expect(!Closeness([2, 0, 1, 4] as [Float], reference).isWithin(norm: 0.5))
        #expect(!Closeness([-2, 0, 1] as [Float], reference).isWithin(norm: 10))
        #expect(!Closeness([-2, .nan, 1, 4] as [Float], reference).isWithin(norm: 10))
        #expect(!Closeness([0, 0, 1e-9] as [Float], [0, 0, 0] as [Float]).isWithin(norm: 10))
    }
}
