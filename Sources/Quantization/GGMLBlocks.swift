/// GGML's blocks in a GGUF file, read where the file is mapped: a row is whole blocks, and a tile is decoded as it is needed.
///
/// ggml-common.h and ggml-quants.c. We read them and do not write them.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

extension WeightFormat {
    /// A row for each type of blocks.
    static let ggmlBlocks = TensorType.allCases.filter(\.isBlocks).map(ggml)

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
    /// ggml's number.
    private let kind: Int32

    /// - Throws: `Failure` if the tensor has another type or shape.
    init(_ tensor: StoredTensor, rows: Int, columns: Int) throws(Failure) {
        guard tensor.dtype.isBlocks, let number = tensor.dtype.numberInGGUF else {
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
        kind = Int32(number)
    }

    var formatName: String { tensor.dtype.rawValue.lowercased() }
    var byteCount: Int { tensor.range.count }

    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath
    ) {
        guard let start = tensor.bytes.baseAddress else { return }
        let row = tensor.rowBytes
        for run in tensor.runs(rows) {
            tributary_decode_ggml(
                path.rawValue, kind, start + run.stored * row, run.step * row, run.rows.count, part.lowerBound,
                part.upperBound, target + (run.rows.lowerBound - rows.lowerBound) * stride, stride)
        }
    }

    func multiply(
        _ x: FewTokens, rows: Range<Int>, into y: UnsafeMutablePointer<Float>, lead: Int, path: KernelPath
    ) -> Bool {
        guard let start = tensor.bytes.baseAddress else { return false }
        let row = tensor.rowBytes
        for run in tensor.runs(rows) {
            let isDone = tributary_gemv_ggml(
                path.rawValue, kind, start + run.stored * row, run.step * row, run.rows.count, x.columns, x.values, x.columns,
                x.count, y + (run.rows.lowerBound - rows.lowerBound), lead)
            guard isDone != 0 else { return false }
        }
        return true
    }
}
