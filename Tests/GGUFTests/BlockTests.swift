/// GGML's blocks: the numbers that gguf's own code says they stand for, on every kernel path, whole and in tiles.

import Checkpoints
import LinearAlgebra
import Primitives
import Quantization
import TestSupport
import Testing

@Suite struct BlockTests {
    /// Each with the columns of its golden matrix.
    static let types = TensorType.allCases.filter(\.isBlocks).map { (type: $0, columns: $0.blockElements == 32 ? 96 : 512) }
    let folder = TemporaryFolder()

    /// One matrix in a GGUF file.
    private func matrix(_ type: TensorType, rows: Int, columns: Int, _ bytes: [UInt8]) throws -> QuantizedMatrix {
        let path = folder.file("\(type.rawValue).gguf")
        try writeGGUF(path, metadata: [], tensors: [GGUFTensor(name: "w", type: type, shape: [rows, columns], bytes: bytes)])
        let tensor = try #require(try GGUFFile(path: path).tensors["w"])
        return try QuantizedMatrix(stored: tensor, rows: rows, columns: columns)
    }

    private func bytes(_ hexadecimal: String) -> [UInt8] {
        let digits = Array(hexadecimal.utf8)
        return stride(from: 0, to: digits.count, by: 2).map {
            UInt8(String(decoding: digits[$0..<$0 + 2], as: UTF8.self), radix: 16)!
        }
    }

    private func decode(_ matrix: QuantizedMatrix, _ rows: Range<Int>, _ columns: Range<Int>, _ path: KernelPath) -> [Float] {
        var values = [Float](repeating: .nan, count: rows.count * columns.count)
        values.withUnsafeMutableBufferPointer {
            matrix.decode(rows: rows, columns: columns, into: $0.baseAddress!, stride: columns.count, path: path)
        }
        return values
    }

    @Test(arguments: types.indices) func `golden blocks are decoded exactly, on every path and in every tile`(index: Int) throws {
        let (type, columns) = Self.types[index]
        let file = try SafetensorsFile(path: Sample.path("blocks.safetensors"))
        let packed = try #require(file.tensors[type.rawValue + ".packed"])
        let expected = try #require(file.tensors[type.rawValue + ".values"]).floats()
        let matrix = try matrix(type, rows: 3, columns: columns, Array(packed.bytes))
        #expect(matrix.byteCount == packed.range.count)
        #expect(matrix.formatName == type.rawValue.lowercased())
        for path in KernelPath.supported {
            #expect(decode(matrix, 0..<3, 0..<columns, path) == expected, "\(path)")
            for part in [0..<1, 5..<32, 31..<33, 7..<columns - 3, columns - 1..<columns] {
                let tile = decode(matrix, 1..<3, part, path)
                let wanted = [1, 2].flatMap { (row: Int) -> [Float] in
                    let start = row * columns
                    return Array(expected[start + part.lowerBound..<start + part.upperBound])
                }
                #expect(tile == wanted, "\(path) \(part)")
            }
        }
    }

    /// x = (i - 16) / 16 quantized by ggml's reference code.
    @Test func `the worked blocks of Q4_0 and Q8_0 are what ggml's rule makes of a ramp`() throws {
        let ramp = (0..<32).map { Float($0 - 16) / 16 }
        let four = try matrix(.q4_0, rows: 1, columns: 32, bytes("0030809191a2a2b3b3c4c4d5d5e6e6f7f7f8"))
        #expect(four.decoded() == ramp.map { (min(15, ($0 / 0.125 + 8.5).rounded(.towardZero)) - 8) * 0.125 })
        let eight = try matrix(
            .q8_0, rows: 1, columns: 32, bytes("082081899199a1a9b1b9c0c8d0d8e0e8f0f8000810182028303840474f575f676f77"))
        let unit = Float(Float16(Float(1) / 127))
        #expect(eight.decoded() == ramp.map { ($0 / (Float(1) / 127)).rounded(.toNearestOrAwayFromZero) * unit })
    }
}
