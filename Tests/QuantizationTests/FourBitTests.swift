/// NF4 and FP4 against bitsandbytes' codes, scales and decoded values, and against worked vectors.

import Checkpoints
import LinearAlgebra
import Primitives
import Quantization
import TestSupport
import Testing

/// The float's place among all floats, so that neighbours differ by one.
private func place(_ value: Float) -> Int {
    let bits = Int(value.bitPattern)
    return bits < 0x8000_0000 ? bits : 0x8000_0000 - bits
}

private func largestStep(_ a: [Float], _ b: [Float]) -> Int {
    a.count == b.count ? zip(a, b).map { abs(place($0) - place($1)) }.max() ?? 0 : .max
}

private func hexadecimal(_ bytes: [UInt8]) -> String {
    let digits = Array("0123456789abcdef".utf8)
    return String(decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
}

/// The cases of the golden file: KEY of `KEY.packed`, the shape, the format, the block size.
private struct Case {
    let key: String
    let input: String
    let rows: Int
    let columns: Int
    let format: String
    let blockSize: Int
    let nested: Bool

    var encoder: any FourBitFormat.Type { format == "nf4" ? NF4.self : FP4.self }

    init?(_ name: String) {
        guard name.hasSuffix(".packed") else { return nil }
        key = String(name.dropLast(7))
        let parts = key.split(separator: ".").map(String.init)
        let shape = parts[0].split(separator: "x").compactMap { Int($0) }
        guard parts.count == 4, shape.count == 2, let block = Int(parts[2].dropFirst()) else { return nil }
        input = parts[0] + ".input"
        (rows, columns, format, blockSize, nested) = (shape[0], shape[1], parts[1], block, parts[3] == "dq")
    }
}

@Suite struct FourBitTests {
    private let file: SafetensorsFile
    private let cases: [Case]

    init() throws {
        file = try SafetensorsFile(path: Golden.path("quant/quant.safetensors"))
        cases = file.names.compactMap(Case.init)
    }

    private func tensor(_ name: String) throws -> StoredTensor {
        try #require(file.tensors[name], "\(name) is not in the golden file")
    }

    @Test func `the tables are those of bitsandbytes to the last bit`() throws {
        for format in [NF4.self, FP4.self] as [any FourBitFormat.Type] {
            #expect(format.table.map(\.bitPattern) == (try tensor(format.name + ".code").floats().map(\.bitPattern)))
        }
        #expect(DynamicMap.signed.values.map(\.bitPattern) == (try tensor("dynamic8.code.signed").floats().map(\.bitPattern)))
        #expect(DynamicMap.unsigned.values.map(\.bitPattern) == (try tensor("dynamic8.code.unsigned").floats().map(\.bitPattern)))
    }

    /// FP4 has two codes for zero, of which bitsandbytes' GPU kernels take one and its CPU code the other.
    @Test(arguments: ["nf4", "fp4"]) func `codes and plain scales are those of bitsandbytes`(_ format: String) throws {
        let own = cases.filter { $0.format == format }
        #expect(Set(own.map { "\($0.blockSize) \($0.nested)" }) == ["64 false", "64 true", "128 false", "128 true"])
        for item in own {
            let values = try tensor(item.input).floats()
            let reference = Array(try tensor(item.key + ".packed").bytes)
            for path in KernelPath.supported {
                let codes = try item.encoder.encode(values, blockSize: item.blockSize, nested: item.nested, path: path)
                if format == "nf4" {
                    #expect(codes.packedBytes == reference, "\(item.key)")
                } else {
                    func meaning(_ bytes: [UInt8]) -> [Float] {
                        bytes.flatMap { [FP4.table[Int($0 >> 4)], FP4.table[Int($0 & 15)]] }
                    }
                    #expect(meaning(codes.packedBytes) == meaning(reference), "\(item.key)")
                }
                guard case .plain(let scales) = codes.scales else { continue }
                #expect(scales.map(\.bitPattern) == (try tensor(item.key + ".absmax").floats().map(\.bitPattern)), "\(item.key)")
            }
        }
    }

    @Test func `encoding a stored tensor gives what encoding its values gives`() throws {
        for item in cases where !item.nested {
            let stored = try tensor(item.input)
            let codes = try item.encoder.encode(stored, blockSize: item.blockSize, nested: false)
            let direct = try item.encoder.encode(try stored.floats(), blockSize: item.blockSize, nested: false)
            #expect(codes.packedBytes == direct.packedBytes && codes.format == item.format)
        }
    }

    @Test func `nested scales take the nearest code and the mean as offset`() throws {
        for item in cases where item.nested {
            let plain = try tensor(item.key.replacing(".dq", with: ".plain") + ".absmax").floats()
            let offset = try tensor(item.key + ".absmax_offset").floats()[0]
            let own = NestedScales(encoding: plain)
            #expect(abs(place(own.offset) - place(offset)) <= 1, "\(item.key)")
            let nested = NestedScales(encoding: plain, offset: offset)
            #expect(nested.codes == Array(try tensor(item.key + ".absmax_codes_nearest").bytes), "\(item.key)")
            #expect(largestStep(nested.scales, try tensor(item.key + ".absmax_absmax").floats()) <= 1, "\(item.key)")
        }
    }

    @Test(arguments: [false, true])
    func `decoding bitsandbytes' codes gives its values`(wholeRows: Bool) throws {
        for item in cases {
            let scales: FourBitCodes.Scales
            if item.nested {
                scales = .nested(
                    NestedScales(
                        codes: Array(try tensor(item.key + ".absmax_codes").bytes),
                        map: try tensor(item.key + ".absmax_code_table").floats(),
                        scales: try tensor(item.key + ".absmax_absmax").floats(),
                        offset: try tensor(item.key + ".absmax_offset").floats()[0],
                        blockSize: try tensor(item.key + ".absmax_blocksize").integers()[0]))
            } else {
                scales = .plain(try tensor(item.key + ".absmax").floats())
            }
            let codes = FourBitCodes(
                format: item.format, table: try tensor(item.format + ".code").floats(), blockSize: item.blockSize,
                packed: Array(try tensor(item.key + ".packed").bytes), scales: scales)
            let matrix = QuantizedMatrix(codes, rows: item.rows, columns: item.columns)
            let reference = try tensor(item.key + ".dequantized").floats()
            if wholeRows {
                #expect(largestStep(matrix.decoded(), reference) <= 2, "\(item.key)")
            } else {
                // A tile that begins and ends inside blocks and bytes.
                let rows = 1..<item.rows - 2
                let columns = 5..<item.columns - 8
                var tile = [Float](repeating: .nan, count: rows.count * columns.count)
                tile.withUnsafeMutableBufferPointer {
                    matrix.decode(rows: rows, columns: columns, into: $0.baseAddress!, stride: columns.count)
                }
                let expected = rows.flatMap { row in columns.map { reference[row * item.columns + $0] } }
                #expect(largestStep(tile, expected) <= 2, "\(item.key)")
            }
        }
    }

    @Test func `nested scales that are not finite are refused`() throws {
        let source = Golden.path("quant/bnb4bit-llama")
        let original = try CheckpointFolder(path: source)
        let map = original.configuration.linearMaps[0]
        let name = map.name + ".weight"
        let folder = TemporaryFolder()
        try writeFile(folder.file("config.json"), try readFile(source + "/config.json"))
        func message(offset: String, largest: Float? = nil) throws -> String {
            var bytes = try readFile(source + "/model.safetensors")
            let state = try original.tensor(name + ".quant_state.bitsandbytes__nf4").range
            let key = Array("\"nested_offset\": ".utf8)
            let start = try #require(state.first { bytes[$0...].starts(with: key) }) + key.count
            let end = try #require(bytes[start...].firstIndex(of: UInt8(ascii: "}")))
            let number = Array(offset.utf8)
            bytes.replaceSubrange(
                start..<end, with: number + [UInt8](repeating: UInt8(ascii: " "), count: end - start - number.count))
            if let largest {
                let place = try original.tensor(name + ".nested_absmax").range.lowerBound
                bytes.replaceSubrange(place..<place + 4, with: withUnsafeBytes(of: largest) { Array($0) })
            }
            try writeFile(folder.file("model.safetensors"), bytes)
            do {
                _ = try QuantizedMatrix.load(map: map, from: CheckpointFolder(path: folder.path), as: .stored)
                return "accepted"
            } catch {
                return error.message
            }
        }
        #expect(try message(offset: "0.25") == "accepted")
        #expect(try message(offset: "9e38").contains("no valid nested_blocksize and nested_offset"))
        #expect(try message(offset: "2e38", largest: 3e38).contains("nested_absmax gives scales that are not finite"))
    }

    @Test func `a ramp and a sine have the worked codes`() throws {
        let ramp = try NF4.encode((0..<64).map { Float($0 - 32) / 32 }, nested: false)
        #expect(hexadecimal(ramp.packedBytes) == "000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff")
        let coarse = try FP4.encode((0..<64).map { Float($0 - 32) / 32 }, nested: false)
        #expect(hexadecimal(coarse.packedBytes) == "bbbbbbaaaaaaaadddddccccfffeeee9901166667774444555552222222233333")
        // sin of an integer from its Taylor series in double precision: no libm in the test.
        func sine(_ x: Double) -> Double {
            var angle = x.truncatingRemainder(dividingBy: 2 * .pi)
            if angle > .pi { angle -= 2 * .pi }
            var term = angle
            var sum = term
            for n in 1..<20 {
                term *= -angle * angle / Double((2 * n) * (2 * n + 1))
                sum += term
            }
            return sum
        }
        let wave = try NF4.encode((0..<64).map { Float(0.1) * Float(sine(Double($0))) }, nested: false)
        #expect(hexadecimal(wave.packedBytes) == "7ef9104efc202cfe4019fe7106efa103dfd301bfe5017ef9104efc202cfd4019")
    }

    @Test func `nested scales have the worked codes`() {
        let nested = NestedScales(encoding: (0..<512).map { Float($0 + 1) / 512 })
        #expect(nested.offset == 0.5009765625)
        #expect(nested.scales == [0.4990234375, 0.4990234375])
        #expect(Array(nested.codes[..<8]) == [0, 0, 0, 0, 1, 1, 1, 1])
        #expect(Array(nested.codes[250...261]) == [91, 93, 94, 96, 103, 110, 144, 151, 158, 160, 161, 163])
        #expect(Array(nested.codes[508...]) == [254, 254, 254, 255])
        let error = zip(nested.decoded(), 0..<512).map { abs($0 - Float($1 + 1) / 512) }.max()!
        #expect(abs(error - 3.5088e-3) < 1e-6)
    }

    @Test func `a block of zeros decodes to zeros and an odd count keeps its last value`() throws {
        for (format, zeros) in [(NF4.self, 0x77), (FP4.self, 0)] as [(any FourBitFormat.Type, UInt8)] {
            let codes = try format.encode([Float](repeating: 0, count: 64) + [0.5, -1, 0.25], nested: false)
            #expect(codes.packedBytes[..<32].allSatisfy { $0 == zeros })
            let decoded = QuantizedMatrix(codes, rows: 1, columns: 67).decoded()
            #expect(decoded[..<64].allSatisfy { $0 == 0 })
            #expect(decoded[65] == -1)
        }
    }

    @Test func `the error on normal values is that of the format`() throws {
        var generator = SeededGenerator(seed: 3, purpose: "normal")
        // Sum of twelve uniforms: normal enough for one digit.
        let values = (0..<1 << 18).map { _ in Float((0..<12).reduce(-6.0) { sum, _ in sum + generator.unit() }) }
        for (format, expected) in [(NF4.self, 0.0085), (FP4.self, 0.0149)] as [(any FourBitFormat.Type, Double)] {
            for nested in [false, true] {
                let decoded = QuantizedMatrix(try format.encode(values, nested: nested), rows: 1 << 9, columns: 1 << 9).decoded()
                let error =
                    zip(decoded, values).reduce(0.0) { $0 + Double(($1.0 - $1.1) * ($1.0 - $1.1)) } / Double(values.count)
                #expect(abs(error - expected) < 0.0005, "\(format) \(nested): \(error)")
            }
        }
    }

    @Test(arguments: [Float.nan, .infinity, -.infinity])
    func `a value that is not finite is refused with its place`(value: Float) throws {
        var values = [Float](repeating: 1, count: 200)
        values[130] = value
        for format in [NF4.self, FP4.self] as [any FourBitFormat.Type] {
            let failure = #expect(throws: Failure.self) { try format.encode(values) }
            #expect(failure?.message.contains("elements 128 to 191") == true)
        }
        #expect(throws: Failure.self) { try Int8Codes(values, rows: 1, columns: 200) }
    }
}
