/// GGML's blocks in a GGUF file, read where the file is mapped: a row is whole blocks, and a tile is decoded as it is needed.
///
/// ggml-common.h and ggml-quants.c: `block_q8_0`, `block_q4_0`, `block_q4_K`, `block_q6_K`. We read them and do not write them.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

extension WeightFormat {
    /// 32 bytes with a scale.
    public static let q8_0 = ggml(.q8_0)
    /// 32 codes of 4 bits with a scale.
    public static let q4_0 = ggml(.q4_0)
    /// 256 codes of 4 bits, with a scale and a minimum in 6 bits for each 32.
    public static let q4K = ggml(.q4K)
    /// 256 codes of 6 bits, with a scale in 8 bits for each 16.
    public static let q6K = ggml(.q6K)

    private static func ggml(_ type: TensorType) -> WeightFormat {
        WeightFormat(
            name: type.rawValue.lowercased(), bitsPerWeight: 8 * Double(type.size) / Double(type.blockElements),
            blockSize: type.blockElements,
            open: { (map, checkpoint) throws(Failure) in
                let tensor = try checkpoint.tensor(map.name + ".weight")
                return tensor.dtype == type ? try GGMLBlocks(tensor, rows: map.outputs, columns: map.inputs) : nil
            })
    }
}

struct GGMLBlocks: PackedWeights {
    private let tensor: StoredTensor
    private let kind: Int

    /// - Throws: `Failure` if the tensor has another type or shape.
    init(_ tensor: StoredTensor, rows: Int, columns: Int) throws(Failure) {
        switch tensor.dtype {
        case .q8_0: kind = Int(TRIBUTARY_GGML_Q8_0)
        case .q4_0: kind = Int(TRIBUTARY_GGML_Q4_0)
        case .q4K: kind = Int(TRIBUTARY_GGML_Q4_K)
        case .q6K: kind = Int(TRIBUTARY_GGML_Q6_K)
        default:
            throw Failure(
                .badData, "\(tensor.file.path): tensor \(tensor.name) is stored as \(tensor.dtype.rawValue), not in blocks")
        }
        guard tensor.shape == [rows, columns], rows > 0, columns % tensor.dtype.blockElements == 0,
            tensor.range.count == rows * (columns / tensor.dtype.blockElements * tensor.dtype.size)
        else {
            throw Failure(
                .badData, "\(tensor.file.path): tensor \(tensor.name) has shape \(tensor.shape), but \([rows, columns]) is needed"
            )
        }
        self.tensor = tensor
    }

    var formatName: String { tensor.dtype.rawValue.lowercased() }
    var byteCount: Int { tensor.range.count }

    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath
    ) {
        guard let start = tensor.bytes.baseAddress else { return }
        let row = columns / tensor.dtype.blockElements * tensor.dtype.size
        for run in tensor.runs(rows) {
            tributary_decode_ggml(
                path.rawValue, Int32(kind), start + run.stored * row, run.step * row, run.rows.count, part.lowerBound,
                part.upperBound, target + (run.rows.lowerBound - rows.lowerBound) * stride, stride)
        }
    }
}
