/// Weights as the checkpoint stores them, F32, F16, BF16 or GGML's blocks: read where the file is mapped, without a copy.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

struct DenseSource: Sendable {
    let tensor: StoredTensor
    var count: Int { tensor.count }

    /// - Throws: `Failure` if the tensor has another type.
    init(_ tensor: StoredTensor) throws(Failure) {
        guard [.f32, .f16, .bf16].contains(tensor.dtype) || tensor.dtype.isBlocks else {
            throw Failure(
                .badData,
                "\(tensor.file.path): tensor \(tensor.name) is stored as \(tensor.dtype.rawValue); F32, F16 and BF16 weights are supported"
            )
        }
        self.tensor = tensor
    }

    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath = .active
    ) {
        for run in tensor.runs(rows) {
            decode(
                run, columns: columns, part, into: target + (run.rows.lowerBound - rows.lowerBound) * stride, stride: stride,
                path: path)
        }
    }

    private func decode(
        _ run: RowRun, columns: Int, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int, path: KernelPath
    ) {
        guard let start = tensor.bytes.baseAddress else { return }
        if tensor.dtype.isBlocks {
            let row = columns / tensor.dtype.blockElements * tensor.dtype.size
            tributary_decode_ggml(
                path.rawValue, tensor.dtype.ggmlBlock, start + run.stored * row, run.step * row, run.rows.count,
                part.lowerBound, part.upperBound, target, stride)
            return
        }
        // Rows at equal distances are those of a matrix with longer rows.
        let bytes = start + run.stored * columns * tensor.dtype.size
        let columns = columns * run.step
        switch tensor.dtype {
        case .bf16:
            tributary_decode_bf16(
                path.rawValue, bytes, columns, 0, run.rows.count, part.lowerBound, part.upperBound, target, stride)
        case .f16:
            tributary_decode_f16(
                path.rawValue, bytes, columns, 0, run.rows.count, part.lowerBound, part.upperBound, target, stride)
        default:
            tributary_decode_f32(bytes, columns, 0, run.rows.count, part.lowerBound, part.upperBound, target, stride)
        }
    }

    /// Elements of the flattened matrix.
    func decode(_ elements: Range<Int>, into target: UnsafeMutablePointer<Float>) {
        guard tensor.interleavedHeadSize != nil else {
            decode(columns: count, rows: 0..<1, elements, into: target, stride: elements.count)
            return
        }
        let columns = tensor.shape[1]
        var element = elements.lowerBound
        while element < elements.upperBound {
            let row = element / columns
            let part = element - row * columns..<min(columns, elements.upperBound - row * columns)
            decode(
                columns: columns, rows: row..<row + 1, part, into: target + element - elements.lowerBound, stride: part.count)
            element += part.count
        }
    }

    /// The stored floats themselves, if they are floats on a 4-byte boundary.
    var floats: UnsafePointer<Float>? {
        guard tensor.dtype == .f32, tensor.interleavedHeadSize == nil, let base = tensor.bytes.baseAddress,
            UInt(bitPattern: base) % 4 == 0
        else { return nil }
        return base.assumingMemoryBound(to: Float.self)
    }
}

extension TensorType {
    /// What the kernels call these blocks.
    fileprivate var ggmlBlock: Int32 {
        switch self {
        case .q8_0: Int32(TRIBUTARY_GGML_Q8_0)
        case .q4_0: Int32(TRIBUTARY_GGML_Q4_0)
        case .q4K: Int32(TRIBUTARY_GGML_Q4_K)
        default: Int32(TRIBUTARY_GGML_Q6_K)
        }
    }
}
