/// What holds for every row of the table of weight formats: the stated error, round trips, kernel paths, the names of the plan.

import Checkpoints
import LinearAlgebra
import Plan
import Primitives
import Quantization
import TestSupport
import Testing

@Suite struct FormatTableTests {
    let folder = TemporaryFolder()

    /// A matrix whose blocks differ much in size, with values on both sides of zero and some zeros.
    private func values(_ rows: Int, _ columns: Int) -> [Float] {
        var generator = SeededGenerator(seed: 17, purpose: "formats")
        return (0..<rows * columns).map { index in
            let size: Float = [1, 0.01, 30, 0.3][index / 50 % 4]
            return index % 97 == 0 ? 0 : size * generator.symmetric(1) * generator.symmetric(1)
        }
    }

    private func stored(_ values: [Float], _ rows: Int, _ columns: Int, as type: TensorType) throws -> StoredTensor {
        let path = folder.file("\(type.rawValue)-\(rows)-\(columns).safetensors")
        let bytes: [UInt8] =
            switch type {
            case .bf16: values.map(bfloat16Bits).withUnsafeBytes { Array($0) }
            case .f16: values.map { Float16($0) }.withUnsafeBytes { Array($0) }
            default: values.withUnsafeBytes { Array($0) }
            }
        try writeSafetensors(path, tensors: [(name: "w", type: type, shape: [rows, columns], bytes: bytes)])
        return try #require(try SafetensorsFile(path: path).tensors["w"])
    }

    /// The values in a format; of a format that we only read, random blocks, in rows that are whole blocks.
    private func matrix(
        _ format: WeightFormat, _ values: [Float], _ rows: Int, _ columns: Int, from type: TensorType
    ) throws -> QuantizedMatrix {
        if format.isEncodable {
            return try format.encoded(try WeightSource(try stored(values, rows, columns, as: type), rows: rows, columns: columns))
        }
        let type = try #require(TensorType(rawValue: format.name.uppercased()))
        guard type.isBlocks else {
            return try QuantizedMatrix(stored: try stored(values, rows, columns, as: type), rows: rows, columns: columns)
        }
        let columns = (columns + type.blockElements - 1) / type.blockElements * type.blockElements
        var generator = SeededGenerator(seed: 18, purpose: "blocks")
        var bytes = (0..<rows * (columns / type.blockElements * type.size)).map { _ in UInt8(generator.integer(below: 256)) }
        // Scales and minima in half precision: those of Q6_K end a block, the others begin it.
        let places = type == .q6K ? [208] : [.q4_0, .q5_0, .q8_0].contains(type) ? [0] : [0, 2]
        for block in stride(from: 0, to: bytes.count, by: type.size) {
            for place in places { bytes[block + place + 1] = 0x2C }
        }
        let path = folder.file("\(format.name)-\(rows)-\(columns).gguf")
        try writeGGUF(path, metadata: [], tensors: [GGUFTensor(name: "w", type: type, shape: [rows, columns], bytes: bytes)])
        return try QuantizedMatrix(stored: try #require(try GGUFFile(path: path).tensors["w"]), rows: rows, columns: columns)
    }

    /// Of the run of `size` flattened values, or of a row's values in INT8, the largest magnitude.
    private func largestOfBlocks(_ values: [Float], columns: Int, format: WeightFormat) -> [Float] {
        // INT8's blocks end with a row.
        let row = format.name == "int8" ? columns : values.count
        return values.indices.map { index in
            let start = index / row * row
            let block = start + (index - start) / format.blockSize * format.blockSize
            return values[block..<min(start + row, block + format.blockSize)].map(\.magnitude).max()!
        }
    }

    @Test(arguments: WeightFormat.all.filter(\.isEncodable).map(\.name), [(64, 256), (37, 100), (3, 67)])
    func `what is encoded decodes within the stated error, and encodes to itself`(name: String, shape: (Int, Int)) throws {
        let format = try #require(WeightFormat.named(name))
        let bound = try #require(format.errorBound)
        let (rows, columns) = shape
        let values = values(rows, columns)
        let largest = Double(values.map(\.magnitude).max()!)
        let blocks = largestOfBlocks(values, columns: columns, format: format)
        let matrix = try format.encoded(
            try WeightSource(try stored(values, rows, columns, as: .f32), rows: rows, columns: columns))
        #expect(matrix.formatName == name)
        let decoded = matrix.decoded()
        for (index, value) in values.enumerated() {
            let allowed = bound.ofBlock * Double(blocks[index]) + bound.ofMatrix * largest
            #expect(abs(Double(decoded[index]) - Double(value)) <= allowed * 1.00001 + 1e-30, "\(name) \(index)")
        }
        let again = try format.encoded(WeightSource(decoded, rows: rows, columns: columns)).decoded()
        for (first, second) in zip(decoded, again) {
            #expect(abs(Double(first) - Double(second)) <= 2 * bound.ofMatrix * largest + 1e-6 * largest, "\(name)")
        }
    }

    /// Of a large matrix the tables beside the codes do not count any more.
    @Test func `bits a weight are those that are held`() throws {
        let (rows, columns) = (512, 1024)
        let values = values(rows, columns)
        for format in WeightFormat.all where format.name != "llm-int8" {
            let matrix = try matrix(format, values, rows, columns, from: .f32)
            let bits = 8 * Double(matrix.byteCount) / Double(rows * columns)
            #expect(abs(bits - format.bitsPerWeight) < 0.02, "\(format.name): \(bits)")
        }
    }

    @Test(arguments: [(40, 192), (33, 100), (9, 37), (7, 95)])
    func `every kernel path multiplies few tokens as its scalar twin`(shape: (Int, Int)) throws {
        let (rows, columns) = shape
        let values = values(rows, columns)
        for format in WeightFormat.all where format.name != "llm-int8" {
            let matrix = try matrix(format, values, rows, columns, from: .bf16)
            for tokens in [1, 2, 3, 4, 7] {
                let x = self.values(tokens, matrix.columns)
                var twin: [UInt32]?
                for path in KernelPath.supported {
                    var y = [Float](repeating: .nan, count: tokens * rows)
                    x.withUnsafeBufferPointer { x in
                        let few = FewTokens(x.baseAddress!, count: tokens, columns: matrix.columns, for: [matrix])
                        y.withUnsafeMutableBufferPointer {
                            matrix.multiply(few, rows: 0..<rows, into: $0.baseAddress!, lead: rows, path: path)
                        }
                    }
                    let bits = y.map(\.bitPattern)
                    #expect(twin.map { $0 == bits } ?? true, "\(format.name) \(path) \(tokens)")
                    twin = bits
                }
            }
        }
    }

    @Test(arguments: [(40, 192), (33, 100), (9, 37)])
    func `every kernel path decodes and packs as its scalar twin`(shape: (Int, Int)) throws {
        let (rows, columns) = shape
        let values = values(rows, columns)
        for format in WeightFormat.all where format.name != "llm-int8" {
            let matrix = try matrix(format, values, rows, columns, from: .bf16)
            let columns = matrix.columns
            for transposed in [false, true] {
                var twin: [UInt32]?
                for path in KernelPath.supported {
                    var decoded = [Float](repeating: .nan, count: rows * columns)
                    decoded.withUnsafeMutableBufferPointer {
                        matrix.decode(
                            rows: 0..<rows, columns: 0..<columns, into: $0.baseAddress!, stride: columns, path: path)
                    }
                    let isEqual = decoded.map(\.bitPattern) == matrix.decoded().map(\.bitPattern)
                    #expect(isEqual, "\(format.name) \(path)")
                    let (n, k) = transposed ? (columns, rows) : (rows, columns)
                    var packed = [UInt32](repeating: 0, count: ((n + 15) / 16 * 16 + 64) * ((k + 1) / 2))
                    packed.withUnsafeMutableBufferPointer {
                        matrix.pack(columns: 0..<n, over: 0..<k, transposed: transposed, into: $0.baseAddress!, path: path)
                    }
                    // Zeros may have either sign, behind the last row at least.
                    packed = packed.map { pair in
                        (pair & 0x7FFF == 0 ? 0 : pair & 0xFFFF) | (pair & 0x7FFF_0000 == 0 ? 0 : pair & 0xFFFF_0000)
                    }
                    let isTwin = twin.map { $0 == packed } ?? true
                    #expect(isTwin, "\(format.name) \(path) transposed \(transposed)")
                    twin = packed
                }
            }
        }
    }

    @Test(arguments: [(70, 192), (33, 101)])
    func `a sum is held in bfloat16 as products in bfloat16 read it in float32`(shape: (Int, Int)) throws {
        let (rows, columns) = shape
        let values = values(rows, columns)
        let base = try #require(WeightFormat.named("nf4")).encoded(
            try WeightSource(try stored(values, rows, columns, as: .f32), rows: rows, columns: columns))
        let sums = ComputeType.allCases.map { type in
            base.adding(as: type) { range, target in
                for index in 0..<range.count * columns { target[index] += values[range.lowerBound * columns + index] / 3 }
            }
        }
        let decoded = base.decoded()
        for (type, sum) in zip(ComputeType.allCases, sums) {
            #expect(sum.byteCount == QuantizedMatrix.sumByteCount(rows: rows, columns: columns, as: type))
            let isRounded = type == .bfloat16
            for (index, value) in sum.decoded().enumerated() {
                let expected = decoded[index] + values[index] / 3
                #expect(value == (isRounded ? Float(bitPattern: UInt32(bfloat16Bits(expected)) << 16) : expected))
            }
        }
        for transposed in [false, true] {
            let (n, k) = transposed ? (columns, rows) : (rows, columns)
            let packed = sums.map { sum in
                var packed = [UInt32](repeating: 0, count: ((n + 15) / 16 * 16 + 64) * ((k + 1) / 2))
                packed.withUnsafeMutableBufferPointer {
                    sum.pack(columns: 0..<n, over: 0..<k, transposed: transposed, into: $0.baseAddress!)
                }
                return packed
            }
            #expect(packed[0] == packed[1], "transposed \(transposed)")
        }
    }

    @Test func `names are unique, and plans and commands know every format with an encoder`() {
        let names = WeightFormat.all.map(\.name)
        #expect(Set(names).count == names.count)
        #expect(Set(QuantizationName.allCases.map(\.rawValue)) == Set(WeightForm.allCases.map(\.rawValue)))
        #expect(WeightForm(rawValue: "bf16") == nil && WeightForm(rawValue: "nf4")?.format?.name == "nf4")
        #expect(WeightForm.none.format == nil && WeightForm.stored.format == nil)
        #expect(WeightFormat.all.allSatisfy { $0.isEncodable == ($0.errorBound != nil) })
    }
}
