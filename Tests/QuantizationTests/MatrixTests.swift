/// Every form of a matrix: tiles, kernel paths, files.

import Checkpoints
import FoundationEssentials
import LinearAlgebra
import Primitives
import Quantization
import TestSupport
import Testing

private func random(_ count: Int, _ purpose: String) -> [Float] {
    var generator = SeededGenerator(seed: 11, purpose: purpose)
    return (0..<count).map { _ in generator.symmetric(1) }
}

/// A folder that is removed with this value.
private final class TemporaryFolder {
    let path: String

    init() throws {
        path = NSTemporaryDirectoryPath() + "tributary-quantization-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

private func NSTemporaryDirectoryPath() -> String {
    (ProcessInfo.processInfo.environment["TMPDIR"] ?? "/tmp") + "/"
}

@Suite struct MatrixTests {
    /// The same values in every form.
    private func forms(_ values: [Float], _ rows: Int, _ columns: Int, _ folder: String) throws -> [QuantizedMatrix] {
        let path = folder + "/forms.safetensors"
        let half: [Float16] = values.map { Float16($0) }
        let bfloat = values.map(bfloat16Bits)
        try writeSafetensors(
            path,
            tensors: [
                // Seven bytes first, so that the others lie at odd addresses.
                (name: "a", type: .u8, shape: [7], bytes: [UInt8](repeating: 0, count: 7)),
                (name: "b", type: .bf16, shape: [rows, columns], bytes: bfloat.withUnsafeBytes { Array($0) }),
                (name: "c", type: .f16, shape: [rows, columns], bytes: half.withUnsafeBytes { Array($0) }),
                (name: "d", type: .f32, shape: [rows, columns], bytes: values.withUnsafeBytes { Array($0) }),
            ], metadata: [:])
        let file = try SafetensorsFile(path: path)
        return [
            QuantizedMatrix(values, rows: rows, columns: columns),
            try QuantizedMatrix(stored: try #require(file.tensors["b"]), rows: rows, columns: columns),
            try QuantizedMatrix(stored: try #require(file.tensors["c"]), rows: rows, columns: columns),
            try QuantizedMatrix(stored: try #require(file.tensors["d"]), rows: rows, columns: columns),
            QuantizedMatrix(try NF4.encode(values, nested: false), rows: rows, columns: columns),
            QuantizedMatrix(try NF4.encode(values, blockSize: 32), rows: rows, columns: columns),
            QuantizedMatrix(try NF4.encode(values, blockSize: 4096), rows: rows, columns: columns),
            QuantizedMatrix(try FP4.encode(values), rows: rows, columns: columns),
            QuantizedMatrix(try Int8Codes(values, rows: rows, columns: columns), rows: rows, columns: columns),
        ]
    }

    @Test(arguments: [(3, 5), (7, 64), (33, 65), (40, 200), (5, 1027)])
    func `any tile has the bits of the whole matrix, on every kernel path`(shape: (Int, Int)) throws {
        let (rows, columns) = shape
        let folder = try TemporaryFolder()
        var generator = SeededGenerator(seed: 5, purpose: "tiles")
        for matrix in try forms(random(rows * columns, "matrix"), rows, columns, folder.path) {
            let whole = matrix.decoded()
            for path in KernelPath.supported {
                for _ in 0..<20 {
                    let row = generator.integer(below: rows)
                    let column = generator.integer(below: columns)
                    let height = 1 + generator.integer(below: rows - row)
                    let width = 1 + generator.integer(below: columns - column)
                    let stride = width + generator.integer(below: 3)
                    var tile = [Float](repeating: 99, count: height * stride)
                    tile.withUnsafeMutableBufferPointer {
                        matrix.decode(
                            rows: row..<row + height, columns: column..<column + width, into: $0.baseAddress!, stride: stride,
                            path: path)
                    }
                    for i in 0..<height {
                        for j in 0..<stride {
                            let expected = j < width ? whole[(row + i) * columns + column + j] : 99
                            #expect(tile[i * stride + j].bitPattern == expected.bitPattern, "\(matrix.formatName) \(path)")
                        }
                    }
                }
            }
        }
    }

    @Test func `halves decode exactly, subnormals, infinities and NaNs included`() throws {
        let folder = try TemporaryFolder()
        let all = (0...UInt16.max).map { $0 }
        for type in [TensorType.f16, .bf16] {
            let path = folder.path + "/\(type.rawValue).safetensors"
            try writeSafetensors(
                path, tensors: [(name: "x", type: type, shape: [2, 1 << 15], bytes: all.withUnsafeBytes { Array($0) })],
                metadata: [:])
            let file = try SafetensorsFile(path: path)
            let matrix = try QuantizedMatrix(stored: try #require(file.tensors["x"]), rows: 2, columns: 1 << 15)
            for path in KernelPath.supported {
                var values = [Float](repeating: 0, count: 1 << 16)
                values.withUnsafeMutableBufferPointer {
                    matrix.decode(rows: 0..<2, columns: 0..<1 << 15, into: $0.baseAddress!, stride: 1 << 15, path: path)
                }
                for (bits, value) in zip(all, values) {
                    let expected = type == .f16 ? Float(Float16(bitPattern: bits)) : bfloat16Value(bits)
                    #expect(value.bitPattern == expected.bitPattern || (value.isNaN && expected.isNaN), "\(type) \(bits)")
                }
            }
        }
    }

    @Test func `int8 rounds to the nearest of 255 steps of its run`() throws {
        let (rows, columns) = (9, 150)
        let values = random(rows * columns, "int8")
        let decoded = QuantizedMatrix(try Int8Codes(values, rows: rows, columns: columns), rows: rows, columns: columns).decoded()
        for row in 0..<rows {
            for start in stride(from: 0, to: columns, by: 64) {
                let run = (start..<min(columns, start + 64)).map { row * columns + $0 }
                let largest = run.map { abs(values[$0]) }.max()!
                for index in run { #expect(abs(decoded[index] - values[index]) <= largest / 127 * 0.5001) }
            }
        }
    }

    @Test func `a kernel path that is unknown is refused with those that exist`() throws {
        #expect(try KernelPath.choose(nil) == KernelPath.supported.last)
        #expect(try KernelPath.choose("scalar") == .scalar)
        let failure = #expect(throws: Failure.self) { try KernelPath.choose("sse9") }
        #expect(failure?.message.contains("scalar") == true && failure?.status == .badConfiguration)
    }

    @Test func `a weight written in bitsandbytes' form reads back to the same bits`() throws {
        let source = try CheckpointFolder(path: Golden.path("models/llama-gqa"))
        let folder = try TemporaryFolder()
        var tensors: [(name: String, type: TensorType, shape: [Int], bytes: [UInt8])] = []
        let maps = source.configuration.linearMaps
        let packed = Set(maps.map { $0.name + ".weight" })
        for name in source.tensorNames where !packed.contains(name) {
            let tensor = try source.tensor(name)
            tensors.append((name, tensor.dtype, tensor.shape, Array(tensor.bytes)))
        }
        for (index, map) in maps.enumerated() {
            let tensor = try source.tensor(map.name + ".weight")
            let nested = index % 2 == 0
            let parts = try NF4.encode(tensor, nested: nested).serialized(
                name: map.name + ".weight", shape: tensor.shape, dtype: tensor.dtype)
            #expect(
                parts.map(\.declaration)
                    == FourBitCodes.declarations(
                        name: map.name + ".weight", shape: tensor.shape, dtype: tensor.dtype, nested: nested))
            for part in parts {
                tensors.append((part.declaration.name, part.declaration.dtype, part.declaration.shape, part.bytes))
            }
        }
        try writeSafetensors(folder.path + "/model.safetensors", tensors: tensors, metadata: ["format": "pt"])
        var configuration = try readJSON(Golden.path("models/llama-gqa/config.json"))
        configuration.set(
            "quantization_config",
            FourBitCodes.quantizationConfiguration(computeType: .f32, nested: true, skippedModules: ["lm_head"]))
        try writeFile(folder.path + "/config.json", Array(configuration.pretty.utf8))
        let written = try CheckpointFolder(path: folder.path)
        for (index, map) in maps.enumerated() {
            #expect(written.isBitsAndBytes4Bit(map.name))
            let direct = QuantizedMatrix(
                try NF4.encode(try source.tensor(map.name + ".weight"), nested: index % 2 == 0), rows: map.outputs,
                columns: map.inputs)
            let read = try QuantizedMatrix.load(map: map, from: written, as: .stored)
            #expect(read.formatName == "nf4" && read.byteCount == direct.byteCount)
            #expect(read.decoded().map(\.bitPattern) == direct.decoded().map(\.bitPattern))
            #expect(try QuantizedMatrix.load(map: map, from: written, as: .none).formatName == "f32")
            let failure = #expect(throws: Failure.self) { try QuantizedMatrix.load(map: map, from: written, as: .int8) }
            #expect(failure?.message.contains("--quantize int8") == true)
        }
    }

    @Test func `a checkpoint that bitsandbytes wrote loads, and a float one in every form`() throws {
        let serialized = try CheckpointFolder(path: Golden.path("quant/bnb4bit-llama"))
        let source = try CheckpointFolder(path: Golden.path("models/llama-gqa"))
        for map in source.configuration.linearMaps {
            let reference = try source.tensor(map.name + ".weight").floats()
            for (checkpoint, form, tolerance) in [
                (serialized, WeightForm.stored, 0.12), (source, .stored, 0), (source, .none, 0), (source, .nf4, 0.12),
                (source, .fp4, 0.15), (source, .int8, 0.01),
            ] {
                let matrix = try QuantizedMatrix.load(map: map, from: checkpoint, as: form)
                #expect(Closeness(matrix.decoded(), reference).isWithin(norm: tolerance), "\(map.name) \(form)")
            }
        }
    }
}
