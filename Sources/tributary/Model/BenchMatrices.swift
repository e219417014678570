/// Matrices of random weights in every form, for measurements.

import Checkpoints
import FoundationEssentials
import Glibc
import LinearAlgebra
import Primitives
import Quantization

/// One form of weights, with as many matrices as are asked for, no two of which share memory.
struct BenchForm {
    let name: String
    let matrices: [QuantizedMatrix]

    /// Bytes that a weight takes, scales included.
    var bytesPerWeight: Double { Double(matrices[0].byteCount) / Double(matrices[0].rows * matrices[0].columns) }

    /// - Parameters:
    ///   - names: which forms: f32, bf16, f16 (stored in a file, mapped), int8, nf4 (nested), or "nf4 plain"
    ///   - values: `[rows, columns]`
    ///   - bytes: that the matrices of a form take together, at least
    static func make(
        _ names: [String], _ values: [Float], rows: Int, columns: Int, bytes: Int = 1
    ) throws -> [BenchForm] {
        try names.map { name in
            func copies(_ make: () throws -> QuantizedMatrix) throws -> [QuantizedMatrix] {
                var matrices = [try make()]
                while matrices.count * matrices[0].byteCount < bytes { matrices.append(try make()) }
                return matrices
            }
            switch name {
            case "nf4", "nf4 plain":
                let codes = try NF4.encode(values, nested: name == "nf4")
                return BenchForm(
                    name: name,
                    matrices: try copies {
                        QuantizedMatrix(
                            FourBitCodes(
                                format: codes.format, table: codes.table, blockSize: codes.blockSize, packed: codes.packedBytes,
                                scales: codes.scales),
                            rows: rows, columns: columns)
                    })
            case "int8":
                let codes = try Int8Codes(values, rows: rows, columns: columns)
                return BenchForm(
                    name: name,
                    matrices: try copies {
                        let own = codes.codes.withUnsafeBufferPointer { Array($0) }
                        return QuantizedMatrix(Int8Codes(codes: own, scales: codes.scales), rows: rows, columns: columns)
                    })
            case "bf16", "f16":
                let type: TensorType = name == "bf16" ? .bf16 : .f16
                let halves = values.map { type == .bf16 ? bfloat16Bits($0) : Float16($0).bitPattern }
                let size = 2 * values.count
                return BenchForm(
                    name: name,
                    matrices: try stored(
                        halves.withUnsafeBytes { Array($0) }, type, rows: rows, columns: columns, count: (bytes + size - 1) / size
                    ))
            default:
                return BenchForm(
                    name: "f32",
                    matrices: try copies {
                        QuantizedMatrix(values.withUnsafeBufferPointer { Array($0) }, rows: rows, columns: columns)
                    })
            }
        }
    }

    /// Stored matrices, mapped from a file whose name is removed at once.
    private static func stored(
        _ bytes: [UInt8], _ type: TensorType, rows: Int, columns: Int, count: Int
    ) throws -> [QuantizedMatrix] {
        var template = Array(((ProcessInfo.processInfo.environment["TMPDIR"] ?? "/tmp") + "/tributary-bench-XXXXXX").utf8CString)
        guard mkdtemp(&template) != nil else {
            throw Failure(
                .cannotCreate,
                "no temporary folder can be made; set TMPDIR to a folder with room for \(count * bytes.count) bytes")
        }
        let folder = template.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let path = folder + "/weights.safetensors"
        let names = (0..<count).map { "weights.\($0)" }
        try writeSafetensors(path, tensors: names.map { (name: $0, type: type, shape: [rows, columns], bytes: bytes) })
        let file = try SafetensorsFile(path: path)
        return try names.map { name in
            guard let tensor = file.tensors[name] else { throw Failure(.internalError, "\(path) lacks \(name)") }
            return try QuantizedMatrix(stored: tensor, rows: rows, columns: columns)
        }
    }
}
